//! A report as one page that needs nothing else: charts, tables, and every sample. Pure.

use std::fmt::Write;

use super::chart::{Bar, Curve, Escaped, Group, bars, curves};
use super::report::{Chapter, Medians, Report, Samples};
use super::sample::{QUANTILES, Sample};
use super::work::Work;

const STYLE: &str = "
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .15rem .6rem; text-align: right }
th:first-child, td:first-child { text-align: left }
tbody tr:nth-child(odd) { background: #8881 }
dt { font-weight: bold } dd { margin: 0 0 .5rem }
code { overflow-wrap: anywhere }
.void { color: #d55e00; text-align: left }
svg { max-width: 100%; height: auto }
";

/// The page.
pub fn page(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>ringtap bench</title><style>{STYLE}</style></head><body>\n<h1>ringtap bench</h1>\n"
    );
    about(&mut page, report);
    let names = report.names();
    for work in Work::ALL {
        let chapters = report
            .chapters
            .iter()
            .filter(|chapter| chapter.work == work);
        let chapters: Vec<&Chapter> = chapters.collect();
        if !chapters.is_empty() {
            section(&mut page, work, &chapters, &names);
        }
    }
    page + "</body></html>\n"
}

fn about(page: &mut String, report: &Report) {
    let machine = &report.machine;
    let (kernel, cpu) = (Escaped(&machine.kernel), Escaped(&machine.cpu));
    let _ = writeln!(
        page,
        "<dl><dt>Machine</dt><dd>{} CPUs, {cpu}; Linux {kernel}</dd>\
         <dt>Command, of ringtap {}</dt><dd><code>{}</code></dd>",
        machine.cpus,
        report.version,
        Escaped(&report.command.join(" ")),
    );
    for subject in &report.subjects {
        let _ = writeln!(
            page,
            "<dt>{}</dt><dd><code>{}</code></dd>",
            Escaped(&subject.name),
            Escaped(&subject.origin),
        );
    }
    page.push_str("</dl>\n<p>All take turns, sample by sample. Figures are medians; thin lines reach from the least to the most.</p>\n");
}

fn section(page: &mut String, work: Work, chapters: &[&Chapter], names: &[&str]) {
    let _ = writeln!(page, "<h2>{}</h2>", Escaped(work.title()));
    match work {
        Work::Rr => {
            for chapter in chapters {
                let _ = writeln!(page, "<h3>{}</h3>", Escaped(&chapter.title()));
                page.push_str(&curves(&latencies(chapter, names), "µs"));
            }
        }
        _ => page.push_str(&throughput(chapters, names)),
    }
    let _ = writeln!(page, "<h3>CPU a {}</h3>", work.unit());
    let cpu = groups(
        chapters,
        names,
        |its| its.cpu,
        |it| it.usage.cpu_ns as f64 / it.count as f64,
        |its, _| format!("{:.0} ns", its.cpu),
    );
    page.push_str(&bars(&cpu));
    for chapter in chapters {
        table(page, chapter);
    }
}

/// Throughput by frame size, each beside what the kernel allows. `names` are of all who take part anywhere, in the order of their
/// colours.
pub fn throughput(chapters: &[&Chapter], names: &[&str]) -> String {
    let groups = groups(
        chapters,
        names,
        |its| its.rate,
        |it| it.count as f64 / it.seconds,
        |its, chapter| {
            let gigabits = chapter.gigabits(*its);
            match chapter.work {
                Work::Churn => format!("{:.1} thousand a second", its.rate / 1e3),
                _ => format!("{:.3} Mpps, {gigabits:.2} Gbit/s", its.rate / 1e6),
            }
        },
    );
    bars(&groups)
}

fn groups(
    chapters: &[&Chapter],
    names: &[&str],
    median: impl Fn(&Medians) -> f64,
    value: impl Fn(&Sample) -> f64,
    text: impl Fn(&Medians, &Chapter) -> String,
) -> Vec<Group> {
    let group = |chapter: &&Chapter| {
        let bars = chapter.subjects.iter().filter_map(|subject| {
            let its = subject.medians()?;
            let all = || subject.samples.iter().map(&value);
            let (low, high) = (
                all().fold(f64::INFINITY, f64::min),
                all().fold(0.0, f64::max),
            );
            Some(Bar {
                name: subject.name.clone(),
                colour: number_of(&subject.name, names),
                values: [low, median(&its), high],
                text: text(&its, chapter),
            })
        });
        Group {
            title: format!("{}, {}", chapter.work.title(), chapter.title()),
            bars: bars.collect(),
        }
    };
    chapters.iter().map(group).collect()
}

fn number_of(name: &str, names: &[&str]) -> usize {
    let found = names.iter().position(|known| *known == name);
    found.unwrap_or(names.len())
}

fn latencies(chapter: &Chapter, names: &[&str]) -> Vec<Curve> {
    let curve = |subject: &Samples| {
        let points = QUANTILES.iter().enumerate().filter_map(|(number, part)| {
            let mut all: Vec<u64> = subject
                .samples
                .iter()
                .filter_map(|sample| Some(sample.latency?.curve[number]))
                .collect();
            all.sort_unstable();
            let median = *all.get(all.len() / 2)?;
            Some((*part, median as f64 / 1e3))
        });
        Curve {
            name: subject.name.clone(),
            colour: number_of(&subject.name, names),
            points: points.collect(),
        }
    };
    chapter.subjects.iter().map(curve).collect()
}

fn table(page: &mut String, chapter: &Chapter) {
    let _ = write!(
        page,
        "<h3>{}</h3>\n<table><thead><tr><th></th>",
        Escaped(&chapter.title())
    );
    for name in chapter.columns() {
        let _ = write!(page, "<th>{}</th>", Escaped(name));
    }
    page.push_str("</tr></thead><tbody>\n");
    for (name, cells, failure) in chapter.rows() {
        let _ = write!(page, "<tr><td>{}</td>", Escaped(name));
        for cell in cells {
            let _ = write!(page, "<td>{}</td>", Escaped(&cell));
        }
        page.push_str("</tr>\n");
        if let Some(failure) = failure {
            let _ = writeln!(
                page,
                "<tr><td class=\"void\" colspan=\"10\">{}</td></tr>",
                Escaped(failure)
            );
        }
    }
    page.push_str("</tbody></table>\n<details><summary>every sample</summary><pre>");
    for subject in &chapter.subjects {
        for sample in &subject.samples {
            let json = serde_json::json!(sample);
            let _ = writeln!(
                page,
                "{:16} {}",
                Escaped(&subject.name).to_string(),
                Escaped(&json.to_string())
            );
        }
    }
    page.push_str("</pre></details>\n");
}
