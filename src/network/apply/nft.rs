//! nftables through `nft`: loads and deletes ringtap's own tables, and lists those of others.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::execute::absent_is_fine;
use super::tables::Tables;
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
    /// What it was known by right after.
    pub fingerprint: u64,
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
    let failed = |source| ToolError::Run {
        program: NFT.name,
        source,
    };
    let tables = Tables::look().map_err(failed)?;
    for change in changes {
        let noted = match change.rules {
            Some(rules) => note(&change.note, rules, tables.fingerprint(change.table)),
            None => absent_is_fine(fs::remove_file(&change.note)),
        };
        noted.map_err(failed)?;
    }
    Ok(())
}

/// Of a table that has gone already nothing is noted: it is not what was loaded.
fn note(path: &Path, rules: &str, fingerprint: Option<u64>) -> io::Result<()> {
    let Some(fingerprint) = fingerprint else {
        return absent_is_fine(fs::remove_file(path));
    };
    let loaded = Loaded {
        rules: rules.to_owned(),
        fingerprint,
    };
    write_whole(path, &serde_json::to_string(&loaded)?)
}

/// What is in `tables`, each a family and a name, as nft lists it for programs: objects, in their order.
///
/// # Errors
/// nft is missing or refuses.
pub fn objects(tables: &[(&str, String)]) -> Result<Vec<Value>, ToolError> {
    let list = |(family, name): &(&str, String)| listed(&["list", "table", family, name]);
    let each: Result<Vec<_>, _> = tables.iter().map(list).collect();
    match each {
        Ok(each) => Ok(each.concat()),
        // One has gone meanwhile, or has a name that nft can't read.
        Err(ToolError::Failed { .. }) => listed(&["list", "ruleset"]),
        Err(error) => Err(error),
    }
}

fn listed(what: &[&str]) -> Result<Vec<Value>, ToolError> {
    let words: Vec<&str> = ["-j"].iter().chain(what).copied().collect();
    let text = programs::run(NFT, &words, "")?;
    let listing: Listing = serde_json::from_str(&text).map_err(|source| ToolError::Output {
        program: NFT.name,
        source,
    })?;
    Ok(listing.nftables)
}

/// What nft prints for programs.
#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Value>,
}
