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
        _ => listings()?,
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

/// What the kernel has of each table of family inet, as a text that is the same as long as the table is.
///
/// # Errors
/// nft is missing or refuses.
pub fn listings() -> Result<BTreeMap<String, String>, ToolError> {
    listed(&["list", "ruleset", "inet"])
}

fn listed(what: &[&str]) -> Result<BTreeMap<String, String>, ToolError> {
    let words: Vec<&str> = ["-j"].iter().chain(what).copied().collect();
    let text = programs::run(NFT, &words, "")?;
    let listing = serde_json::from_str(&text).map_err(|source| ToolError::Output {
        program: NFT.name,
        source,
    })?;
    Ok(by_table(listing))
}

/// One entry a table: all that is listed of it, but for the handles, which differ from load to load.
fn by_table(listing: Value) -> BTreeMap<String, String> {
    let mut tables: BTreeMap<String, String> = BTreeMap::new();
    let Some(Value::Array(objects)) = listing.get("nftables").cloned() else {
        return tables;
    };
    for mut object in objects {
        let Some((kind, Value::Object(fields))) = object
            .as_object_mut()
            .and_then(|object| object.iter_mut().next())
        else {
            continue;
        };
        fields.remove("handle");
        let table = fields.get(if kind == "table" { "name" } else { "table" });
        if let Some(table) = table.and_then(Value::as_str).map(str::to_owned) {
            let text = tables.entry(table).or_default();
            text.push_str(&object.to_string());
            text.push('\n');
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_differ_by_rules_and_not_by_handles() {
        let listing = |handle: u32, verdict: &str| {
            by_table(serde_json::json!({"nftables": [
                {"metainfo": {"version": "1.0.6"}},
                {"table": {"family": "inet", "name": "ringtap_a", "handle": handle}},
                {"rule": {"family": "inet", "table": "ringtap_a", "chain": "forward",
                          "handle": handle + 1, "expr": [{verdict: null}]}},
            ]}))
        };
        assert_eq!(listing(1, "accept"), listing(7, "accept"));
        assert_ne!(listing(1, "accept"), listing(1, "drop"));
        assert!(listing(1, "accept").contains_key("ringtap_a"));
    }
}
