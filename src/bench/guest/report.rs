//! What was measured of guests: tables, and a page. Pure.

use serde::Serialize;

use super::NetworkMode;
use super::load::{Load, Measured};
use crate::bench::chart::{Bar, Group, bars, curves};
use crate::bench::findings::Findings;
use crate::bench::page::{Page, latencies};
use crate::bench::setting::Setting;
use crate::bench::table::{Row, Table, number};
use crate::bench::turns::Samples;

/// A run, and what one has to know to do it again.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What it was done on, by whom.
    #[serde(flatten)]
    pub setting: Setting,
    /// What they did.
    pub chapters: Vec<Chapter>,
}

/// What was measured of all of them, by one load.
#[derive(Debug, Serialize)]
pub struct Chapter {
    /// The mode of their networks, where it is the bench's choice.
    pub mode: Option<NetworkMode>,
    /// Pairs of queues, likewise.
    pub pairs: Option<u16>,
    /// What it was.
    pub load: Load,
    /// Who took part, the one in question first.
    pub subjects: Vec<Samples<Measured>>,
}

impl Findings for Report {
    fn tables(&self) -> Vec<Table<'_>> {
        self.chapters.iter().map(Chapter::table).collect()
    }

    fn page(&self) -> Page {
        let mut page = Page::new("ringtap bench guest", &self.setting);
        page.section("iperf3");
        page.chart("throughput", &self.chart());
        let cpu = self.groups(
            |it| it.cpu_ns as f64 / it.bytes,
            |cpu| format!("{cpu:.2} s/GB"),
        );
        page.chart("CPU a GB, of the whole host, guest and all", &bars(&cpu));
        let device = self.groups(
            |it| it.device_ns.map_or(f64::NAN, |ns| ns as f64 / it.bytes),
            |cpu| format!("{cpu:.2} s/GB"),
        );
        page.chart(
            "CPU a GB, of what moves the frames alone: the backend, and QEMU without the guest's CPUs",
            &bars(&device),
        );
        page.section("pings");
        for chapter in self.chapters.iter().filter(|it| it.load == Load::Ping) {
            let subjects = chapter.subjects.iter().enumerate();
            let all = subjects.map(|(colour, it)| latencies(it, colour, |sample| sample.latency));
            page.chart(&chapter.title(), &curves(&all.collect::<Vec<_>>(), "µs"));
        }
        page.section("all of it");
        for chapter in &self.chapters {
            page.table(&chapter.table(), &chapter.subjects);
        }
        page
    }

    fn chart(&self) -> String {
        let groups = self.groups(
            |it| it.bits_per_second / 1e9,
            |gigabits| format!("{gigabits:.2} Gbit/s"),
        );
        bars(&groups)
    }
}

impl Report {
    /// A group of bars for each load of iperf3's; what has no value has no bar.
    fn groups(&self, value: impl Fn(&Measured) -> f64, text: impl Fn(f64) -> String) -> Vec<Group> {
        let group = |chapter: &Chapter| {
            let subjects = chapter.subjects.iter().enumerate();
            let bars = subjects.filter_map(|(colour, it)| {
                let values = it.samples.iter().map(&value);
                Bar::of(&it.name, colour, values.filter(|it| it.is_finite()), &text)
            });
            Group {
                title: chapter.title(),
                bars: bars.collect(),
            }
        };
        let of_iperf = self.chapters.iter().filter(|it| it.load != Load::Ping);
        of_iperf.map(group).collect()
    }
}

impl Chapter {
    fn title(&self) -> String {
        let load = self.load.title();
        match (self.mode, self.pairs) {
            (Some(mode), Some(1)) => format!("{load}; {}, 1 pair", mode.word()),
            (Some(mode), Some(pairs)) => format!("{load}; {}, {pairs} pairs", mode.word()),
            _ => load,
        }
    }

    /// Medians, compared with the first one's.
    fn table(&self) -> Table<'_> {
        let first = self.subjects.first().and_then(|it| self.value(it));
        let rows = self.subjects.iter().map(|subject| {
            let its = self.value(subject);
            let ratio = its.zip(first).map(|(its, first)| first / its);
            Row {
                name: &subject.name,
                cells: self.cells(subject, ratio),
                failure: subject.failure.as_deref(),
            }
        });
        let columns: &[&str] = match self.load {
            Load::Ping => &["p50 us", "p99 us", "p99.9 us", "lost %", "ratio"],
            Load::Tcp { .. } => &["Gbit/s", "CPU s/GB", "again", "ratio"],
            Load::Udp { .. } | Load::Paced { .. } => {
                &["Gbit/s", "CPU us/p", "dev us/p", "lost %", "ratio"]
            }
        };
        Table {
            title: self.title(),
            columns,
            rows: rows.collect(),
        }
    }

    fn cells(&self, subject: &Samples<Measured>, ratio: Option<f64>) -> Vec<String> {
        let of = |value: &dyn Fn(&Measured) -> f64, digits| {
            subject
                .median(value)
                .map_or_else(String::new, |it| number(it, digits))
        };
        let time = |at: usize| {
            let ns = |it: &Measured| it.latency.map(|it| [it.p50, it.p99, it.p999][at] as f64);
            of(&|it| ns(it).map_or(f64::NAN, |ns| ns / 1e3), 0)
        };
        let gigabits = of(&|it| it.bits_per_second / 1e9, 3);
        let lost = of(&|it| 100.0 * it.lost, 2);
        let mut cells = match self.load {
            Load::Ping => vec![time(0), time(1), time(2), lost],
            Load::Tcp { .. } => vec![
                gigabits,
                of(&|it| it.cpu_ns as f64 / it.bytes, 2),
                of(&|it| it.retransmits as f64, 0),
            ],
            Load::Udp { .. } | Load::Paced { .. } => {
                let cpu = of(&|it| it.cpu_a_packet() / 1e3, 2);
                vec![gigabits, cpu, of(&|it| it.device_a_packet() / 1e3, 2), lost]
            }
        };
        cells.push(ratio.map_or_else(String::new, |it| number(it, 2)));
        cells
    }

    /// The figure by which subjects are compared: a rate, a time of most pings, or, at a fixed rate, the device's CPU.
    fn value(&self, subject: &Samples<Measured>) -> Option<f64> {
        subject.median(|it| match self.load {
            Load::Ping => it.latency.map_or(f64::NAN, |it| it.p50 as f64),
            Load::Paced { .. } => it.device_a_packet(),
            Load::Tcp { .. } | Load::Udp { .. } => it.bits_per_second,
        })
    }
}
