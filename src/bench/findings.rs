//! What a run has found, told as the person wants it: tables, JSON, or files for others to see.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::args::Sampling;
use super::page::Page;
use super::table::Table;
use crate::report::print_json;
use crate::signals::end_is_asked;

/// How a run ends whose end was asked for: with a word, and with nothing told.
pub fn ended() -> Option<ExitCode> {
    end_is_asked().then(|| {
        eprintln!("ringtap: ended by a signal, with nothing to tell");
        ExitCode::FAILURE
    })
}

/// What a run has found.
pub trait Findings: Serialize {
    /// A table for each thing that was done.
    fn tables(&self) -> Vec<Table<'_>>;

    /// All of it as a page.
    fn page(&self) -> Page;

    /// The chart that says most in least room, as SVG.
    fn chart(&self) -> String;

    /// Tells it, unless the end was asked for in the midst of it. Exit code 1 then, and where a sample was void or could not be taken,
    /// or what is to be written can't be.
    fn tell(&self, sampling: &Sampling) -> ExitCode {
        if let Some(ended) = ended() {
            return ended;
        }
        let tables = self.tables();
        match sampling.json {
            true => print_json(&serde_json::json!(self)),
            false => tables.iter().for_each(Table::print),
        }
        if let Some(dir) = &sampling.report
            && let Err(error) = self.write(dir)
        {
            let dir = dir.display();
            eprintln!("ringtap: cannot write the report into {dir}: {error}");
            return ExitCode::FAILURE;
        }
        let mut rows = tables.iter().flat_map(|table| &table.rows);
        ExitCode::from(u8::from(rows.any(|row| row.failure.is_some())))
    }

    /// Writes into folder `dir`, which is made if need be: `results.json`, `report.html` and `throughput.svg`, its chart.
    ///
    /// # Errors
    /// Those of the file system.
    fn write(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        let results = format!("{:#}\n", serde_json::json!(self));
        fs::write(dir.join("results.json"), results)?;
        fs::write(dir.join("report.html"), self.page().end())?;
        fs::write(dir.join("throughput.svg"), self.chart())
    }
}
