//! nftables through `nft`: load, delete and list ringtap's own tables.

use std::collections::BTreeMap;
use std::fs::File;

use serde_json::Value;

use crate::network::plan::replace_script;
use crate::programs::{self, NFT, ToolError};

/// Loads `rules` in place of `table`, in one transaction, and gives the table's listing.
///
/// # Errors
/// nft is missing or refuses.
pub fn replace(table: &str, rules: &str, lock: &File) -> Result<String, ToolError> {
    programs::run_holding(NFT, &["-f", "-"], &replace_script(table, rules), lock)?;
    // Of this one alone: with many networks the whole would be listed as often as there are networks.
    let of_table = listed(&["list", "table", "inet", table])?.remove(table);
    Ok(of_table.unwrap_or_default())
}

/// Deletes `table`; it may be absent.
///
/// # Errors
/// nft is missing or refuses.
pub fn delete(table: &str, lock: &File) -> Result<(), ToolError> {
    let script = format!("table inet {table}\ndelete table inet {table}\n");
    programs::run_holding(NFT, &["-f", "-"], &script, lock)
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
