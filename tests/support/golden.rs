//! Expected texts kept in files: compared, or rewritten where `UPDATE_GOLDEN=1` asks for it.

use std::fs;
use std::path::Path;

/// Compares `actual` with the text in `file`; gives what to say where they differ.
pub fn compare(file: &Path, actual: &str) -> Result<(), String> {
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        fs::write(file, actual).map_err(|error| format!("{}: {error}", file.display()))?;
        return Ok(());
    }
    let expected = fs::read_to_string(file).unwrap_or_default();
    if expected == actual {
        return Ok(());
    }
    Err(format!(
        "{} differs (UPDATE_GOLDEN=1 rewrites it).\n--- expected\n{expected}\n--- actual\n{actual}",
        file.display()
    ))
}

/// The entries of `dir`, in order; a folder without any would test nothing, so there must be some.
pub fn entries(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    assert!(!entries.is_empty(), "{} is empty", dir.display());
    entries
}
