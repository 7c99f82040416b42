//! nftables through `nft`: load, delete and list ringtap's own tables.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::execute::absent_is_fine;
use crate::network::journal::write_whole;
use crate::network::plan::replace_script;
use crate::programs::{self, NFT, ToolError};

/// A change to one table.
pub struct Change<'a> {
    /// The table.
    pub table: &'a str,
    /// What it is to be; none where it is to go.
    pub rules: Option<&'a str>,
    /// The file that tells later what was loaded.
    pub note: PathBuf,
}

/// A table that was loaded, as its note has it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Loaded {
    /// The text it was loaded from.
    pub rules: String,
    /// How the kernel listed it right after.
    pub listing: String,
}

/// What was loaded for a network last, according to the note `path`.
pub fn loaded(path: &Path) -> Option<Loaded> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

/// Makes all of `changes` in one transaction, or those that can be if that fails; gives the outcome of each.
pub fn change(changes: &[Change<'_>], lock: &File) -> Vec<Result<(), ToolError>> {
    match change_all(changes, lock) {
        Err(_) if changes.len() > 1 => {
            let alone = changes.chunks(1).map(|change| change_all(change, lock));
            alone.collect()
        }
        Err(error) => vec![Err(error)],
        Ok(()) => changes.iter().map(|_| Ok(())).collect(),
    }
}

fn change_all(changes: &[Change<'_>], lock: &File) -> Result<(), ToolError> {
    let script = |change: &Change<'_>| replace_script(change.table, change.rules.unwrap_or(""));
    let scripts: String = changes.iter().map(script).collect();
    programs::run_holding(NFT, &["-f", "-"], &scripts, lock)?;
    let mut listings = match changes {
        // Of this one alone: the host may have many.
        [one] if one.rules.is_some() => listed(&["list", "table", "inet", one.table])?,
        [_] => BTreeMap::new(),
        _ => listed(&["list", "ruleset", "inet"])?,
    };
    for change in changes {
        let noted = match change.rules {
            Some(rules) => {
                let loaded = Loaded {
                    rules: rules.to_owned(),
                    listing: listings.remove(change.table).unwrap_or_default(),
                };
                let note = serde_json::to_string(&loaded).map_err(io::Error::from);
                note.and_then(|note| write_whole(&change.note, &note))
            }
            None => absent_is_fine(fs::remove_file(&change.note)),
        };
        noted.map_err(|source| ToolError::Run {
            program: NFT.name,
            source,
        })?;
    }
    Ok(())
}

/// All that the kernel has of nftables, as nft prints it for programs.
///
/// # Errors
/// nft is missing or refuses.
pub fn ruleset() -> Result<Value, ToolError> {
    json(&["list", "ruleset"])
}

fn listed(what: &[&str]) -> Result<BTreeMap<String, String>, ToolError> {
    Ok(listings(&json(what)?))
}

fn json(what: &[&str]) -> Result<Value, ToolError> {
    let words: Vec<&str> = ["-j"].iter().chain(what).copied().collect();
    let text = programs::run(NFT, &words, "")?;
    serde_json::from_str(&text).map_err(|source| ToolError::Output {
        program: NFT.name,
        source,
    })
}

/// What `ruleset` has of each table of family inet, as a text that is the same as long as the table is: all that is listed of
/// it, but for the handles, which differ from load to load.
pub fn listings(ruleset: &Value) -> BTreeMap<String, String> {
    let mut tables: BTreeMap<String, String> = BTreeMap::new();
    let objects = ruleset["nftables"].as_array().into_iter().flatten();
    let objects = objects.filter_map(|object| object.as_object()?.iter().next());
    for (kind, fields) in objects.filter(|(_, fields)| fields["family"] == "inet") {
        let table = &fields[if kind == "table" { "name" } else { "table" }];
        let Some(table) = table.as_str() else {
            continue;
        };
        let mut fields = fields.clone();
        if let Some(fields) = fields.as_object_mut() {
            fields.remove("handle");
        }
        let text = tables.entry(table.to_owned()).or_default();
        text.push_str(&format!("{kind} {fields}\n"));
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_differ_by_rules_and_not_by_handles() {
        let listing = |handle: u32, verdict: &str| {
            listings(&serde_json::json!({"nftables": [
                {"metainfo": {"version": "1.0.6"}},
                {"table": {"family": "inet", "name": "ringtap_a", "handle": handle}},
                {"table": {"family": "ip", "name": "ringtap_a", "flags": verdict}},
                {"rule": {"family": "inet", "table": "ringtap_a", "chain": "forward",
                          "handle": handle + 1, "expr": [{verdict: null}]}},
            ]}))
        };
        assert_eq!(listing(1, "accept"), listing(7, "accept"));
        assert_ne!(listing(1, "accept"), listing(1, "drop"));
        assert!(listing(1, "accept").contains_key("ringtap_a"));
    }
}
