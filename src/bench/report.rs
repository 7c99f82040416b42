//! What a run has found, for people and for programs.

use serde::Serialize;

use super::pattern::Size;
use super::subject::Work;
use super::work::Sample;
use crate::report::say;

/// All samples of one kind of work, of everybody who took part.
#[derive(Debug, Serialize)]
pub struct Chapter {
    /// Which way frames went.
    pub work: Work,
    /// What frames were like.
    #[serde(serialize_with = "as_text")]
    pub size: Size,
    /// Bytes of a frame.
    pub bytes: usize,
    /// Who took part, the one in question first.
    pub subjects: Vec<Samples>,
}

/// The samples of one.
#[derive(Debug, Serialize)]
pub struct Samples {
    /// Who.
    pub name: String,
    /// Each, in order.
    pub samples: Vec<Sample>,
    /// Why there are no more, if there are fewer than were asked for.
    pub failure: Option<String>,
}

fn as_text<S: serde::Serializer>(size: &Size, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(size)
}

/// The medians of some samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Medians {
    /// Frames a second.
    pub rate: f64,
    /// Nanoseconds of CPU a frame.
    pub cpu: f64,
    /// Calls of read and write a frame.
    pub calls: f64,
    /// Nanoseconds of a round trip: half of them, 99 of 100 and 999 of 1000 take no longer.
    pub latency: [f64; 3],
}

fn row(name: &str, columns: [String; 5]) {
    let [a, b, c, d, e] = columns;
    say(format_args!(
        "  {name:16} {a:>9} {b:>9} {c:>9} {d:>9} {e:>9}"
    ));
}

impl Samples {
    /// None where there is no sample.
    pub fn medians(&self) -> Option<Medians> {
        let of = |value: fn(&Sample) -> f64| {
            let mut all: Vec<f64> = self.samples.iter().map(value).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied()
        };
        Some(Medians {
            rate: of(|it| it.frames as f64 / it.seconds)?,
            cpu: of(|it| it.usage.cpu_ns as f64 / it.frames as f64)?,
            calls: of(|it| it.usage.io_calls as f64 / it.frames as f64)?,
            latency: [
                of(|it| it.latency.map_or(f64::NAN, |it| it.p50 as f64))?,
                of(|it| it.latency.map_or(f64::NAN, |it| it.p99 as f64))?,
                of(|it| it.latency.map_or(f64::NAN, |it| it.p999 as f64))?,
            ],
        })
    }
}

impl Chapter {
    /// Prints it as a table: each one's medians, and what they are of the first's.
    pub fn print(&self) {
        let direction = match self.work {
            Work::Tx => "guest to tap",
            Work::Rx => "tap to guest",
            Work::Rr => "guest to tap and back",
        };
        say(format_args!("{direction}, {}", self.size));
        let names = match self.work {
            Work::Rr => ["p50 us", "p99 us", "p99.9 us", "ns/frame", "its p50"],
            _ => ["Mpps", "Gbit/s", "calls", "ns/frame", "its rate"],
        };
        row("", names.map(str::to_owned));
        let first = self.subjects.first().and_then(Samples::medians);
        for subject in &self.subjects {
            let columns = subject.medians().map(|its| self.columns(its, first));
            row(&subject.name, columns.unwrap_or_default());
            if let Some(failure) = &subject.failure {
                say(format_args!("  {:16} {failure}", ""));
            }
        }
    }

    /// The last is the first one's measure as a part of this one's.
    fn columns(&self, its: Medians, first: Option<Medians>) -> [String; 5] {
        let part = |measure: fn(&Medians) -> f64| match &first {
            Some(first) => format!("{:.2}", measure(first) / measure(&its)),
            None => String::new(),
        };
        let cpu = format!("{:.0}", its.cpu);
        match self.work {
            Work::Rr => {
                let [p50, p99, p999] = its.latency.map(|ns| format!("{:.1}", ns / 1e3));
                [p50, p99, p999, cpu, part(|it| it.latency[0])]
            }
            Work::Tx | Work::Rx => {
                let gigabits = its.rate * self.bytes as f64 * 8.0 / 1e9;
                let (rate, calls) = (its.rate / 1e6, its.calls);
                let [rate, calls] = [(rate, 3), (calls, 2)].map(|(it, n)| format!("{it:.n$}"));
                [
                    rate,
                    format!("{gigabits:.2}"),
                    calls,
                    cpu,
                    part(|it| it.rate),
                ]
            }
        }
    }
}
