//! What was measured, for people.

use super::load::{Load, Measured};
use super::{Chapter, Samples};
use crate::bench::report::{median, number, row};
use crate::report::say;

/// Prints a chapter as a table.
pub fn print(chapter: &Chapter) {
    let mut title = chapter.load.title();
    if let (Some(mode), Some(pairs)) = (chapter.mode, chapter.pairs) {
        let plural = if pairs == 1 { "" } else { "s" };
        title = format!("{title}; {}, {pairs} pair{plural}", mode.word());
    }
    say(title);
    let columns = match chapter.load {
        Load::Ping => ["p50 us", "p99 us", "p99.9 us", "lost %", "ratio"],
        _ => ["Gbit/s", "CPU s/GB", "again", "lost %", "ratio"],
    };
    row("", columns.map(str::to_owned));
    let first = chapter
        .subjects
        .first()
        .and_then(|it| value(chapter.load, it));
    for subject in &chapter.subjects {
        let ratio = match (first, value(chapter.load, subject)) {
            (Some(first), Some(its)) => first / its,
            _ => f64::NAN,
        };
        let of =
            |value: &dyn Fn(&Measured) -> f64| median(&subject.samples, value).unwrap_or(f64::NAN);
        let time = |at: usize| {
            of(&|it| {
                it.latency
                    .map_or(f64::NAN, |it| [it.p50, it.p99, it.p999][at] as f64 / 1e3)
            })
        };
        let lost = number(of(&|it| 100.0 * it.lost), 2);
        let cells = match chapter.load {
            Load::Ping => [
                number(time(0), 0),
                number(time(1), 0),
                number(time(2), 0),
                lost,
                number(ratio, 2),
            ],
            _ => [
                number(of(&|it| it.bits_per_second / 1e9), 3),
                number(of(&|it| it.cpu_ns as f64 / it.bytes), 2),
                number(of(&|it| it.retransmits as f64), 0),
                lost,
                number(ratio, 2),
            ],
        };
        row(&subject.name, cells);
        if let Some(failure) = &subject.failure {
            say(format_args!("  {:16} {failure}", ""));
        }
    }
}

/// The figure by which subjects are compared.
fn value(load: Load, subject: &Samples) -> Option<f64> {
    match load {
        Load::Ping => median(&subject.samples, &|it| {
            it.latency.map_or(f64::NAN, |it| it.p50 as f64)
        }),
        _ => median(&subject.samples, &|it| it.bits_per_second),
    }
}
