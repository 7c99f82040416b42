//! Tables of a report, before anything is made of them: text on a terminal, or a part of a page. Pure but for [`Table::print`].

use crate::report::say;

/// A row for each who took part.
#[derive(Debug)]
pub struct Table<'a> {
    /// What all did.
    pub title: String,
    /// What each cell is, the names' own column not among them.
    pub columns: &'static [&'static str],
    /// In the order of those who took part.
    pub rows: Vec<Row<'a>>,
}

/// What one has done.
#[derive(Debug)]
pub struct Row<'a> {
    /// Whose.
    pub name: &'a str,
    /// Figures; none where there is no sample.
    pub cells: Vec<String>,
    /// Why there are no more samples, if there are fewer than were asked for.
    pub failure: Option<&'a str>,
}

impl Table<'_> {
    /// Prints it for a person.
    pub fn print(&self) {
        say(&self.title);
        line("", self.columns.iter());
        for row in &self.rows {
            line(row.name, row.cells.iter());
            if let Some(failure) = row.failure {
                say(format_args!("  {:16} {failure}", ""));
            }
        }
    }
}

fn line(name: &str, cells: impl Iterator<Item = impl std::fmt::Display>) {
    let cells: String = cells.map(|cell| format!("{cell:>9}")).collect();
    say(format_args!("  {name:16}{cells}"));
}

/// The median; none where there are no values.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

/// A number with so many digits behind its point; nothing where there is none.
pub fn number(value: f64, digits: usize) -> String {
    match value.is_finite() {
        true => format!("{value:.digits$}"),
        false => String::new(),
    }
}
