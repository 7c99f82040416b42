//! What a run of back-ends has found.

use serde::Serialize;

use super::findings::Findings;
use super::html;
use super::page::Page;
use super::pattern::Size;
use super::sample::{Latency, Sample};
use super::setting::Setting;
use super::table::{Row, Table, number};
use super::turns::Samples;
use super::work::Work;

/// A run, and what one has to know to do it again.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What it was done on, by whom.
    #[serde(flatten)]
    pub setting: Setting,
    /// What they did.
    pub chapters: Vec<Chapter>,
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
    pub subjects: Vec<Samples<Sample>>,
}

impl Report {
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
}

impl Findings for Report {
    fn tables(&self) -> Vec<Table<'_>> {
        self.chapters.iter().map(Chapter::table).collect()
    }

    fn page(&self) -> Page {
        html::page(self)
    }

    /// Of what goes one way.
    fn chart(&self) -> String {
        let one_way = |it: &&Chapter| matches!(it.work, Work::Tx | Work::Rx);
        let one_way: Vec<&Chapter> = self.chapters.iter().filter(one_way).collect();
        html::throughput(&one_way, &self.names())
    }
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

impl Medians {
    /// None where there is no sample.
    fn of(samples: &Samples<Sample>) -> Option<Self> {
        let a_frame =
            |value: fn(&Sample) -> u64| samples.median(|it| value(it) as f64 / it.count as f64);
        let time = |value: fn(&Latency) -> u64| {
            samples.median(|it| it.latency.as_ref().map_or(f64::NAN, |it| value(it) as f64))
        };
        Some(Self {
            rate: samples.median(Sample::rate)?,
            cpu: a_frame(|it| it.usage.cpu_ns)?,
            calls: a_frame(|it| it.usage.io_calls)?,
            events: [
                a_frame(|it| it.kicks)?,
                a_frame(|it| it.calls)?,
                a_frame(|it| it.usage.wake_ups)?,
            ],
            memory: samples.median(|it| it.memory.map_or(f64::NAN, |bytes| bytes as f64))?,
            latency: [time(|it| it.p50)?, time(|it| it.p99)?, time(|it| it.p999)?],
        })
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

    /// Medians, compared with the first one's.
    pub fn table(&self) -> Table<'_> {
        let first = self.subjects.first().and_then(Medians::of);
        let rows = self.subjects.iter().map(|subject| Row {
            name: &subject.name,
            cells: Medians::of(subject).map_or_else(Vec::new, |its| self.cells(its, first)),
            failure: subject.failure.as_deref(),
        });
        Table {
            title: format!("{}, {}", self.work.title(), self.title()),
            columns: self.columns(),
            rows: rows.collect(),
        }
    }

    /// What is moved in gigabits a second, without virtio-net's headers.
    pub fn gigabits(&self, rate: f64) -> f64 {
        rate * self.bytes * 8.0 / 1e9
    }

    fn columns(&self) -> &'static [&'static str] {
        match self.work {
            Work::Rr => &[
                "p50 us", "p99 us", "p99.9 us", "ns/frame", "kick", "intr", "wake", "MB", "ratio",
            ],
            Work::Churn => &[
                "1000/s", "Gbit/s", "rw/conn", "ns/conn", "kick", "intr", "wake", "MB", "ratio",
            ],
            Work::Idle => &["rw/ms", "ns/ms", "kick", "intr", "wake", "MB"],
            _ => &[
                "Mpps", "Gbit/s", "rw/frame", "ns/frame", "kick", "intr", "wake", "MB", "ratio",
            ],
        }
    }

    /// What the columns are of. The ratio is the first one's rate, or its median round trip, as a multiple of this one's.
    fn cells(&self, its: Medians, first: Option<Medians>) -> Vec<String> {
        let mut cells = match self.work {
            Work::Rr => its.latency.map(|ns| number(ns / 1e3, 1)).to_vec(),
            Work::Idle => vec![number(its.calls, 2)],
            Work::Churn => vec![
                number(its.rate / 1e3, 1),
                number(self.gigabits(its.rate), 2),
                number(its.calls, 2),
            ],
            _ => vec![
                number(its.rate / 1e6, 3),
                number(self.gigabits(its.rate), 2),
                number(its.calls, 2),
            ],
        };
        cells.push(number(its.cpu, 0));
        cells.extend(its.events.map(|it| number(it, 3)));
        cells.push(number(its.memory / f64::from(1 << 20), 1));
        let ratio = first.map_or(f64::NAN, |first| match self.work {
            Work::Rr => first.latency[0] / its.latency[0],
            _ => first.rate / its.rate,
        });
        if self.work != Work::Idle {
            cells.push(number(ratio, 2));
        }
        cells
    }
}
