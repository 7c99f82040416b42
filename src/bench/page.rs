//! A page that needs nothing else: what was run on what, charts, tables, and every sample. Pure.

use std::fmt::Write;

use serde::Serialize;

use super::chart::{Curve, Escaped};
use super::sample::{Latency, QUANTILES};
use super::setting::Setting;
use super::table::{Table, median};
use super::turns::Samples;

const STYLE: &str = "
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .15rem .6rem; text-align: right }
th:first-child, td:first-child { text-align: left }
tbody tr:nth-child(odd) { background: #8881 }
dt { font-weight: bold } dd { margin: 0 0 .5rem }
code { overflow-wrap: anywhere; white-space: pre-wrap }
.void { color: #d55e00; text-align: left }
svg { max-width: 100%; height: auto }
";

/// A page that is being written, from its top down.
pub struct Page(String);

impl Page {
    /// One that says what one has to know to do the run again.
    pub fn new(title: &str, setting: &Setting) -> Self {
        let title = Escaped(title);
        let mut page = Self(format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\">\
             <title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n<dl>"
        ));
        let machine = &setting.machine;
        let (cpu, kernel) = (Escaped(&machine.cpu), Escaped(&machine.kernel));
        page.add(format_args!(
            "<dt>Machine</dt><dd>{} CPUs, {cpu}; Linux {kernel}</dd>",
            machine.cpus
        ));
        page.add(format_args!(
            "<dt>Command, of ringtap {}</dt><dd><code>{}</code></dd>",
            setting.version,
            Escaped(&setting.command_line()),
        ));
        for origin in setting.programs.iter().chain(&setting.subjects) {
            let (name, text) = (Escaped(&origin.name), Escaped(&origin.origin));
            page.add(format_args!("<dt>{name}</dt><dd><code>{text}</code></dd>"));
        }
        page.add(format_args!(
            "</dl>\n<p>All take turns, sample by sample. Figures are medians; thin lines reach from the least to the most.</p>"
        ));
        page
    }

    /// A part of it.
    pub fn section(&mut self, title: &str) {
        self.add(format_args!("<h2>{}</h2>", Escaped(title)));
    }

    /// A chart, with what it shows.
    pub fn chart(&mut self, title: &str, svg: &str) {
        self.add(format_args!("<h3>{}</h3>\n{svg}", Escaped(title)));
    }

    /// A table, and each sample of which its figures are medians.
    pub fn table<T: Serialize>(&mut self, table: &Table<'_>, subjects: &[Samples<T>]) {
        self.add(format_args!(
            "<h3>{}</h3>\n<table><thead><tr><th></th>",
            Escaped(&table.title)
        ));
        for name in table.columns {
            self.add(format_args!("<th>{}</th>", Escaped(name)));
        }
        self.add(format_args!("</tr></thead><tbody>"));
        for row in &table.rows {
            let cells = row.cells.iter();
            let cells: String = cells
                .map(|it| format!("<td>{}</td>", Escaped(it)))
                .collect();
            self.add(format_args!(
                "<tr><td>{}</td>{cells}</tr>",
                Escaped(row.name)
            ));
            if let Some(failure) = row.failure {
                self.add(format_args!(
                    "<tr><td class=\"void\" colspan=\"{}\">{}</td></tr>",
                    table.columns.len() + 1,
                    Escaped(failure)
                ));
            }
        }
        self.add(format_args!(
            "</tbody></table>\n<details><summary>every sample</summary><pre>"
        ));
        for subject in subjects {
            let name = Escaped(&subject.name).to_string();
            for sample in &subject.samples {
                let json = serde_json::json!(sample).to_string();
                self.add(format_args!("{name:16} {}", Escaped(&json)));
            }
        }
        self.add(format_args!("</pre></details>"));
    }

    /// The whole of it.
    pub fn end(self) -> String {
        self.0 + "</body></html>\n"
    }

    fn add(&mut self, line: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.0, "{line}"); // a string takes all
    }
}

/// The curve of one's round trips, in microseconds: of each part of them the median of all samples.
pub fn latencies<T>(
    subject: &Samples<T>,
    colour: usize,
    latency: impl Fn(&T) -> Option<Latency>,
) -> Curve {
    let of = |number: usize| {
        let all = subject.samples.iter().filter_map(&latency);
        median(all.map(|it| it.curve[number] as f64 / 1e3))
    };
    let points = QUANTILES.iter().enumerate();
    Curve {
        name: subject.name.clone(),
        colour,
        points: points
            .filter_map(|(number, part)| Some((*part, of(number)?)))
            .collect(),
    }
}
