//! The file that a network was brought up from, in the network's own directory: a copy, or a hard link to that of another that
//! was brought up along with it.
//!
//! `ringtap watch` keeps a network as that has it. A file that was changed since is for a person to apply, by `ringtap up`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::journal::{RunDirError, link_whole, write_private};
use super::plan::{files, network_dir};
use crate::config::Config;
use crate::types::Name;

/// Keeps the file of `config` as what `names` were brought up from.
///
/// # Errors
/// A copy can't be written.
pub fn keep(run_dir: &Path, config: &Config, names: &BTreeSet<Name>) -> Result<(), RunDirError> {
    let mut copy: Option<PathBuf> = None;
    for name in names {
        let path = network_dir(run_dir, name).join(files::ORIGIN);
        if fs::read_to_string(&path).is_ok_and(|there| there == config.text()) {
            continue;
        }
        let written = match &copy {
            Some(copy) => link_whole(copy, &path),
            None => write_private(&path, config.text()),
        };
        written.map_err(|source| RunDirError::new("write", &path, source))?;
        copy = Some(path);
    }
    Ok(())
}

/// Networks, with the file that all of them were brought up from.
pub type Origin = (Config, BTreeSet<Name>);

/// The files that `names` were brought up from, each with its networks, and the names of those whose file is not there or
/// can't be read any more.
pub fn read<'n>(
    run_dir: &Path,
    names: impl IntoIterator<Item = &'n Name>,
) -> (Vec<Origin>, BTreeSet<Name>) {
    let mut by_text: BTreeMap<String, BTreeSet<Name>> = BTreeMap::new();
    let mut without = BTreeSet::new();
    for name in names {
        match fs::read_to_string(network_dir(run_dir, name).join(files::ORIGIN)) {
            Ok(text) => by_text.entry(text).or_default().insert(name.clone()),
            Err(_) => without.insert(name.clone()),
        };
    }
    let mut origins = Vec::new();
    for (text, mut names) in by_text {
        match Config::parse(&text, Path::new(files::ORIGIN)) {
            Ok(config) => origins.push((config, names)),
            Err(_) => without.append(&mut names),
        }
    }
    (origins, without)
}
