//! What a run has found, for people and for programs.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::args::BenchCommand;
use super::html;
use super::pattern::Size;
use super::sample::Sample;
use super::work::Work;
use crate::report::say;

/// A run, and what one has to know to do it again.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The words of the command.
    pub command: Vec<String>,
    /// ringtap's version.
    pub version: &'static str,
    /// What it ran on.
    pub machine: Machine,
    /// Who took part, the one in question first.
    pub subjects: Vec<Origin>,
    /// What they did.
    pub chapters: Vec<Chapter>,
}

/// A machine, as far as figures depend on it.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Linux's release.
    pub kernel: String,
    /// The model of its CPUs, and how many there are.
    pub cpu: String,
    /// How many the bench may use.
    pub cpus: usize,
}

/// Who took part, and how it was started.
#[derive(Debug, Serialize)]
pub struct Origin {
    /// Its name.
    pub name: String,
    /// What started it, or how it was found.
    pub origin: String,
}

/// All samples of one kind of work, of everybody who took part.
#[derive(Debug, Serialize)]
pub struct Chapter {
    /// Which way frames went.
    pub work: Work,
    /// What frames were like.
    pub size: Size,
    /// Pairs of queues.
    pub pairs: u16,
    /// Bytes of what is counted, on average.
    pub bytes: f64,
    /// Who took part, the one in question first.
    pub subjects: Vec<Samples>,
}

impl Report {
    /// Of a run on this machine.
    pub fn new(command: &BenchCommand, chapters: Vec<Chapter>) -> Self {
        let subjects = command.subjects();
        let origins = subjects.iter().map(|subject| Origin {
            name: subject.name(),
            origin: subject.origin(),
        });
        Self {
            command: std::env::args().collect(),
            version: env!("CARGO_PKG_VERSION"),
            machine: Machine::this(),
            subjects: origins.collect(),
            chapters,
        }
    }

    /// The names of all who took part, in the order in which they come.
    pub fn names(&self) -> Vec<&str> {
        let subjects = self.chapters.iter().flat_map(|chapter| &chapter.subjects);
        let mut names: Vec<&str> = Vec::new();
        for subject in subjects {
            if !names.contains(&subject.name.as_str()) {
                names.push(&subject.name);
            }
        }
        names
    }

    /// Whether any sample is void, or could not be taken.
    pub fn has_failures(&self) -> bool {
        let mut subjects = self.chapters.iter().flat_map(|chapter| &chapter.subjects);
        subjects.any(|subject| subject.failure.is_some())
    }

    /// Prints tables.
    pub fn print(&self) {
        self.chapters.iter().for_each(Chapter::print);
    }

    /// Writes into folder `dir`, which is made if need be: `results.json`, the page `report.html`, and `throughput.svg`, its chart of
    /// what goes one way.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(
            dir.join("results.json"),
            format!("{:#}\n", serde_json::json!(self)),
        )?;
        fs::write(dir.join("report.html"), html::page(self))?;
        let one_way = self
            .chapters
            .iter()
            .filter(|it| matches!(it.work, Work::Tx | Work::Rx));
        let chart = html::throughput(&one_way.collect::<Vec<_>>(), &self.names());
        fs::write(dir.join("throughput.svg"), chart)
    }
}

impl Machine {
    fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let model = model
            .unwrap_or_default()
            .trim_start_matches(['\t', ' ', ':']);
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: model.to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
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

/// The medians of some samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Medians {
    /// Frames a second.
    pub rate: f64,
    /// Nanoseconds of CPU a frame.
    pub cpu: f64,
    /// Calls of read and write a frame.
    pub calls: f64,
    /// Exits and interrupts of a guest, and times that the back-end was woken, a frame.
    pub events: [f64; 3],
    /// Bytes of memory that a NIC's back-end has for itself.
    pub memory: f64,
    /// Nanoseconds of a round trip: half of them, 99 of 100 and 999 of 1000 take no longer.
    pub latency: [f64; 3],
}

impl Samples {
    /// Of one who has not begun.
    pub fn none(name: String) -> Self {
        Self {
            name,
            samples: Vec::new(),
            failure: None,
        }
    }

    /// None where there is no sample.
    pub fn medians(&self) -> Option<Medians> {
        let of = |value: &dyn Fn(&Sample) -> f64| median(&self.samples, value);
        let a_frame = |value: fn(&Sample) -> u64| of(&|it| value(it) as f64 / it.count as f64);
        let time = |value: fn(&super::sample::Latency) -> u64| {
            of(&|it| it.latency.as_ref().map_or(f64::NAN, |it| value(it) as f64))
        };
        Some(Medians {
            rate: of(&|it| it.count as f64 / it.seconds)?,
            cpu: a_frame(|it| it.usage.cpu_ns)?,
            calls: a_frame(|it| it.usage.io_calls)?,
            events: [
                a_frame(|it| it.kicks)?,
                a_frame(|it| it.calls)?,
                a_frame(|it| it.usage.wake_ups)?,
            ],
            memory: of(&|it| it.memory.map_or(f64::NAN, |bytes| bytes as f64))?,
            latency: [time(|it| it.p50)?, time(|it| it.p99)?, time(|it| it.p999)?],
        })
    }
}

const COLUMNS: usize = 9;

/// The median of what `samples` have of it; none where there are none.
pub fn median<T>(samples: &[T], value: &dyn Fn(&T) -> f64) -> Option<f64> {
    let mut all: Vec<f64> = samples.iter().map(value).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

/// Prints a row of a table.
pub fn row<const COLUMNS: usize>(name: &str, columns: [String; COLUMNS]) {
    let columns = columns.map(|column| format!("{column:>9}"));
    say(format_args!("  {name:16}{}", columns.concat()));
}

/// A number that is there, with so many digits behind its point.
pub fn number(value: f64, digits: usize) -> String {
    match value.is_finite() {
        true => format!("{value:.digits$}"),
        false => String::new(),
    }
}

impl Chapter {
    /// What frames were like, and how many pairs of queues.
    pub fn title(&self) -> String {
        match self.pairs {
            1 => self.size.to_string(),
            pairs => format!("{}, {pairs} pairs", self.size),
        }
    }

    /// The names of the columns of a table.
    pub fn columns(&self) -> [&'static str; COLUMNS] {
        let [a, b, c, d] = match self.work {
            Work::Rr => ["p50 us", "p99 us", "p99.9 us", "ns/frame"],
            Work::Churn => ["1000/s", "Gbit/s", "rw/conn", "ns/conn"],
            Work::Idle => ["", "", "rw/ms", "ns/ms"],
            _ => ["Mpps", "Gbit/s", "rw/frame", "ns/frame"],
        };
        [a, b, c, d, "kick", "intr", "wake", "MB", "ratio"]
    }

    /// The rows of a table: each one's name and medians, and why there are no more samples, if that is so.
    pub fn rows(&self) -> impl Iterator<Item = (&str, [String; COLUMNS], Option<&str>)> {
        let first = self.subjects.first().and_then(Samples::medians);
        self.subjects.iter().map(move |subject| {
            let cells = subject.medians().map(|its| self.cells(its, first));
            let failure = subject.failure.as_deref();
            (subject.name.as_str(), cells.unwrap_or_default(), failure)
        })
    }

    /// What is moved in gigabits a second, without virtio-net's headers.
    pub fn gigabits(&self, its: Medians) -> f64 {
        its.rate * self.bytes * 8.0 / 1e9
    }

    /// Prints it as a table.
    fn print(&self) {
        say(format_args!("{}, {}", self.work.title(), self.title()));
        row("", self.columns().map(str::to_owned));
        for (name, cells, failure) in self.rows() {
            row(name, cells);
            if let Some(failure) = failure {
                say(format_args!("  {:16} {failure}", ""));
            }
        }
    }

    /// The last is the first one's rate, or its median round trip, as a multiple of this one's.
    fn cells(&self, its: Medians, first: Option<Medians>) -> [String; COLUMNS] {
        let [a, b, c] = match self.work {
            Work::Rr => its.latency.map(|ns| number(ns / 1e3, 1)),
            Work::Idle => [String::new(), String::new(), number(its.calls, 2)],
            _ => {
                let rate = match self.work {
                    Work::Churn => number(its.rate / 1e3, 1),
                    _ => number(its.rate / 1e6, 3),
                };
                [rate, number(self.gigabits(its), 2), number(its.calls, 2)]
            }
        };
        let [kicks, interrupts, wake_ups] = its.events.map(|it| number(it, 3));
        let part = first.map_or(f64::NAN, |first| match self.work {
            Work::Rr => first.latency[0] / its.latency[0],
            Work::Idle => f64::NAN,
            _ => first.rate / its.rate,
        });
        [
            a,
            b,
            c,
            number(its.cpu, 0),
            kicks,
            interrupts,
            wake_ups,
            number(its.memory / f64::from(1 << 20), 1),
            number(part, 2),
        ]
    }
}
