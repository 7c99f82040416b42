//! What a run of `scripts/bench` says of the goals that the back-end has, as ratios of that run.
//!
//! `cargo bench --bench goals -- FOLDER`. Reads what is there of `results.json` (`ringtap bench --report FOLDER`),
//! `pairs/results.json` (the same with `--pairs 1,2,4`) and `guests/results.json` (`ringtap bench guest --report FOLDER/guests`); what
//! was not measured is told as such.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// Bytes of a packet of UDP, without headers (`ringtap bench guest`).
const UDP_BYTES: u32 = 1448;

/// A figure, and what it is to be.
struct Goal {
    work: &'static str,
    /// What is divided by what.
    ratio: String,
    bound: Bound,
    measured: Option<f64>,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

fn main() {
    // cargo adds a word of its own.
    let Some(folder) = std::env::args().skip(1).find(|word| word != "--bench") else {
        eprintln!("goals: name the folder of a run: cargo bench --bench goals -- FOLDER");
        std::process::exit(2);
    };
    let folder = Path::new(&folder);
    let goals = Backend::read(&folder.join("results.json"))
        .goals()
        .into_iter()
        .chain(Backend::read(&folder.join("pairs/results.json")).goals_of_pairs())
        .chain(Guests::read(&folder.join("guests/results.json")).goals());
    println!("| work | ratio | goal | measured | |\n|---|---|---|---|---|");
    for goal in goals {
        println!("{}", goal.row());
    }
}

impl Goal {
    fn row(&self) -> String {
        let (bound, is_met) = match (self.bound, self.measured) {
            (Bound::AtLeast(least), its) => (format!("≥ {least}"), its.map(|its| its >= least)),
            (Bound::AtMost(most), its) => (format!("≤ {most}"), its.map(|its| its <= most)),
        };
        let measured = self
            .measured
            .map_or("not here".to_owned(), |its| format!("{its:.2}"));
        let met = match is_met {
            Some(true) => "met",
            Some(false) => "not met",
            None => "",
        };
        format!(
            "| {} | {} | {bound} | {measured} | {met} |",
            self.work, self.ratio
        )
    }
}

/// The chapters of a run's results; nothing where there is no such file.
fn chapters(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut results: Value = serde_json::from_str(&text).unwrap_or_default();
    results["chapters"].take()
}

/// The median of a figure of the samples of `name`.
fn median(chapter: &Value, name: &str, figure: impl Fn(&Value) -> Option<f64>) -> Option<f64> {
    let subjects = chapter["subjects"].as_array()?;
    let subject = subjects.iter().find(|it| it["name"] == name)?;
    let samples = subject["samples"].as_array()?;
    let mut all: Vec<f64> = samples.iter().filter_map(figure).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

/// What `ringtap bench` has found.
struct Backend(Value);

impl Backend {
    fn read(path: &Path) -> Self {
        Self(chapters(path))
    }

    fn chapter(&self, work: &str, size: &str, pairs: u16) -> &Value {
        let mut chapters = self.0.as_array().into_iter().flatten();
        let found =
            chapters.find(|it| it["work"] == work && it["size"] == size && it["pairs"] == pairs);
        found.unwrap_or(&Value::Null)
    }

    fn rate(&self, work: &str, size: &str, pairs: u16, name: &str) -> Option<f64> {
        let figure = |it: &Value| Some(it["count"].as_f64()? / it["seconds"].as_f64()?);
        median(self.chapter(work, size, pairs), name, figure)
    }

    fn cpu(&self, work: &str, size: &str, name: &str) -> Option<f64> {
        let figure = |it: &Value| Some(it["usage"]["cpu_ns"].as_f64()? / it["count"].as_f64()?);
        median(self.chapter(work, size, 1), name, figure)
    }

    fn goals(&self) -> Vec<Goal> {
        let (ours, hot, cold) = ("ringtap", "raw loop, hot", "raw loop, cold");
        let rate = |work: &'static str, size: &str, peer: &str, bound| Goal {
            work,
            ratio: format!("{size}, rate / that of {peer}"),
            bound,
            measured: parts(
                self.rate(work, size, 1, ours),
                self.rate(work, size, 1, peer),
            ),
        };
        let cpu = |size: &str, most| Goal {
            work: "rx",
            ratio: format!("{size}, CPU a frame / that of {cold}"),
            bound: Bound::AtMost(most),
            measured: parts(self.cpu("rx", size, ours), self.cpu("rx", size, cold)),
        };
        let round_trip = |name: &str| {
            let figure = |it: &Value| it["latency"]["p50"].as_f64();
            median(self.chapter("rr", "64 B", 1), name, figure)
        };
        let wake_ups = |it: &Value| it["usage"]["wake_ups"].as_f64();
        let least = Bound::AtLeast;
        vec![
            rate("tx", "64 B", "dpdk", least(1.2)),
            rate("tx", "64 B", "cloud-hypervisor", least(4.0)),
            rate("tx", "64 B", hot, least(0.85)),
            rate("tx", "64 B", cold, least(1.0)),
            rate("tx", "1514 B", "dpdk", least(1.3)),
            rate("tx", "1514 B", hot, least(0.85)),
            rate("tx", "64 KB", cold, least(1.0)),
            cpu("64 B", 1.15),
            cpu("1514 B", 1.15),
            cpu("64 KB", 1.1),
            rate("rx", "64 B", "dpdk", least(1.0)),
            rate("rx", "1514 B", "dpdk", least(1.0)),
            Goal {
                work: "rr",
                ratio: "64 B, p50 with --poll-us 50 / without".to_owned(),
                bound: Bound::AtMost(0.5),
                measured: parts(round_trip("ringtap, 50 us"), round_trip(ours)),
            },
            Goal {
                work: "idle",
                ratio: "times that it wakes".to_owned(),
                bound: Bound::AtMost(0.0),
                measured: median(self.chapter("idle", "no frames", 1), ours, wake_ups),
            },
        ]
    }

    /// Of more pairs: where there are no CPUs for them, they are to cost nothing.
    fn goals_of_pairs(&self) -> Vec<Goal> {
        let works = ["tx", "both"].into_iter();
        let rows = works.flat_map(|work| [2, 4].map(|pairs| (work, pairs)));
        let goal = |(work, pairs)| {
            let rate = |pairs| self.rate(work, "64 B", pairs, "ringtap");
            Goal {
                work,
                ratio: format!("64 B, pairs: {pairs}, rate / that of one pair"),
                bound: Bound::AtLeast(1.0),
                measured: parts(rate(pairs), rate(1)),
            }
        };
        rows.map(goal).collect()
    }
}

/// What `ringtap bench guest` has found.
struct Guests(Value);

impl Guests {
    fn read(path: &Path) -> Self {
        Self(chapters(path))
    }

    fn chapter(&self, load: &Value, pairs: u16) -> &Value {
        let mut chapters = self.0.as_array().into_iter().flatten();
        let found = chapters.find(|it| it["load"] == *load && it["pairs"] == pairs);
        found.unwrap_or(&Value::Null)
    }

    /// Thousands of packets a second that arrive by one NIC.
    fn kpps(&self, load: &Value, name: &str) -> String {
        let rate = |it: &Value| Some(it["bits_per_second"].as_f64()? / f64::from(8 * UDP_BYTES));
        let rate = median(self.chapter(load, 1), name, rate);
        rate.map_or("none".to_owned(), |rate| format!("{:.0}", rate / 1000.0))
    }

    fn goals(&self) -> Vec<Goal> {
        let compared = |load: &Value, pairs, figure: &dyn Fn(&Value) -> Option<f64>| {
            let chapter = self.chapter(load, pairs);
            parts(
                median(chapter, "ringtap", figure),
                median(chapter, "QEMU's tap", figure),
            )
        };
        let ways = [("guest", "guest to host"), ("host", "host to guest")];
        let mut goals = Vec::new();
        for pairs in [1, 2] {
            for (from, way) in ways {
                for (what, load) in loads(from) {
                    goals.push(Goal {
                        work: "iperf3",
                        ratio: format!("{what} {way}, pairs: {pairs}, rate / that of QEMU's tap"),
                        bound: Bound::AtLeast(1.0),
                        measured: compared(&load, pairs, &|it| it["bits_per_second"].as_f64()),
                    });
                }
            }
        }
        for (from, way) in ways {
            let load = json!({ "paced": { "from": from } });
            let cpu = |it: &Value| Some(it["device_ns"].as_f64()? / it["bytes"].as_f64()?);
            let [ours, theirs] = ["ringtap", "QEMU's tap"].map(|name| self.kpps(&load, name));
            goals.push(Goal {
                work: "iperf3",
                ratio: format!(
                    "{way}, at most 100 kpps ({ours}, {theirs} arrive), the device's CPU a packet / with QEMU's tap"
                ),
                bound: Bound::AtMost(1.0),
                measured: compared(&load, 1, &cpu),
            });
        }
        for part in ["p50", "p99"] {
            goals.push(Goal {
                work: "ping",
                ratio: format!("{part} / that of QEMU's tap"),
                bound: Bound::AtMost(1.0),
                measured: compared(&"ping".into(), 1, &|it| it["latency"][part].as_f64()),
            });
        }
        goals
    }
}

/// What iperf3 sends as fast as it goes, as `scripts/bench --publish` has it.
fn loads(from: &str) -> [(&'static str, Value); 3] {
    let tcp = |streams| json!({ "tcp": { "from": from, "streams": streams } });
    [
        ("TCP", tcp(1)),
        ("TCP in 4 streams", tcp(4)),
        ("UDP", json!({ "udp": { "from": from } })),
    ]
}

fn parts(ours: Option<f64>, theirs: Option<f64>) -> Option<f64> {
    Some(ours? / theirs?)
}
