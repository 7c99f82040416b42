//! What was set right on a network that was up, when and by whom: the last few times, in the network's own directory.
//!
//! It drifted, or the file has changed since: the steps tell.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::journal::{RunDirError, write_whole};
use super::plan::{files, network_dir};
use crate::clock::since_epoch;
use crate::types::Name;

/// How many times are kept.
const MOST: usize = 20;

/// A command that sets networks right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum By {
    /// `ringtap up`.
    #[serde(rename = "ringtap up")]
    Up,
    /// `ringtap run`.
    #[serde(rename = "ringtap run")]
    Run,
    /// `ringtap watch`.
    #[serde(rename = "ringtap watch")]
    Watch,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "ringtap up",
            Self::Run => "ringtap run",
            Self::Watch => "ringtap watch",
        })
    }
}

/// One time that a network was set right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mending {
    /// When, in seconds since 1970.
    pub at: u64,
    /// By whom.
    pub by: By,
    /// What was done, a line a step.
    pub steps: Vec<String>,
}

impl Mending {
    /// How long ago it was, in words.
    pub fn age(&self) -> String {
        age(since_epoch().as_secs().saturating_sub(self.at))
    }
}

/// The last times that network `name` was set right, the latest last; none where nobody kept them.
pub fn read(run_dir: &Path, name: &Name) -> Vec<Mending> {
    let file = network_dir(run_dir, name).join(files::MENDED);
    let text = fs::read_to_string(file).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Keeps that just now `by` has done these steps to these networks.
///
/// # Errors
/// A file can't be written.
pub fn keep(
    run_dir: &Path,
    by: By,
    networks: &BTreeMap<Name, Vec<String>>,
) -> Result<(), RunDirError> {
    for (name, steps) in networks {
        let mut all = read(run_dir, name);
        all.push(Mending {
            at: since_epoch().as_secs(),
            by,
            steps: steps.clone(),
        });
        all.drain(..all.len().saturating_sub(MOST));
        let file = network_dir(run_dir, name).join(files::MENDED);
        let text = serde_json::to_string(&all).map_err(Into::into);
        let written = text.and_then(|text| write_whole(&file, &text));
        written.map_err(|source| RunDirError::new("write", &file, source))?;
    }
    Ok(())
}

fn age(seconds: u64) -> String {
    let units = [(86400, "d"), (3600, "h"), (60, "min")];
    let unit = units.into_iter().find(|(length, _)| seconds >= *length);
    let (length, unit) = unit.unwrap_or((1, "s"));
    format!("{} {unit} ago", seconds / length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_times_are_kept_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let name: Name = "a".parse().unwrap();
        fs::create_dir_all(network_dir(dir.path(), &name)).unwrap();
        assert_eq!(read(dir.path(), &name), []);
        for time in 0..MOST + 5 {
            let steps = [(name.clone(), vec![format!("step {time}")])].into();
            keep(dir.path(), By::Up, &steps).unwrap();
        }
        let kept = read(dir.path(), &name);
        assert_eq!(kept.len(), MOST);
        assert_eq!(kept[0].steps, ["step 5"]);
        assert_eq!(kept[MOST - 1].steps, [format!("step {}", MOST + 4)]);
        assert!(kept[MOST - 1].age().ends_with(" s ago"));
    }

    #[test]
    fn ages_are_in_the_largest_unit_that_fits() {
        for (seconds, said) in [
            (0, "0 s ago"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (7199, "1 h ago"),
            (200_000, "2 d ago"),
        ] {
            assert_eq!(age(seconds), said);
        }
    }
}
