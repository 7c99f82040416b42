//! What a backend has counted and heard of its guest, as it tells: Prometheus text over HTTP on a unix socket in its guest's
//! directory.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::backend::stats::{GUEST_ADDRESS, REFUSED_FRAME};

/// A backend answers within microseconds, or not at all.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a queue has counted, by name; with a dot where there are kinds: `dropped.over_mtu`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct QueueCounters {
    /// virtio's name for it, `receiveq` or `transmitq`.
    pub queue: String,
    /// Its pair, counted from 0.
    pub pair: u32,
    /// By name.
    pub counters: BTreeMap<String, u64>,
}

/// A frame that the guard has refused.
#[derive(Debug, PartialEq, Serialize)]
pub struct RefusedFrame {
    /// When, in seconds since 1970.
    pub at: f64,
    /// What for.
    pub reason: String,
    /// Who spoke to whom.
    pub frame: String,
}

/// What a backend tells.
#[derive(Debug, Default)]
pub struct Stats {
    /// In order of appearance.
    pub queues: Vec<QueueCounters>,
    /// By which the guest has made itself heard of late.
    pub addresses: BTreeSet<IpAddr>,
    /// The last ones, of all queues.
    pub refused: Vec<RefusedFrame>,
}

/// What the backend tells that listens on `socket`.
///
/// # Errors
/// It does not answer.
pub fn of(socket: &Path) -> io::Result<Stats> {
    ask(socket).map(|text| Stats {
        queues: parse(&text),
        addresses: text.lines().filter_map(address).collect(),
        refused: text.lines().filter_map(refused_frame).collect(),
    })
}

/// The frame in a line that tells a refused one.
fn refused_frame(line: &str) -> Option<RefusedFrame> {
    let labels = line.strip_prefix(REFUSED_FRAME)?.strip_prefix('{')?;
    let (labels, at) = labels.rsplit_once("} ")?;
    let labels = split_labels(labels);
    let label = |name: &str| {
        let found = labels.iter().find(|(label, _)| *label == name);
        found.map(|(_, value)| value.to_string())
    };
    Some(RefusedFrame {
        at: at.parse().ok()?,
        reason: label("reason")?,
        frame: label("frame")?,
    })
}

/// The address in a line that tells one of the guest's.
fn address(line: &str) -> Option<IpAddr> {
    let labels = line.strip_prefix(GUEST_ADDRESS)?.strip_prefix('{')?;
    let (labels, _) = labels.rsplit_once("} ")?;
    let mut labels = split_labels(labels).into_iter();
    let (_, ip) = labels.find(|(label, _)| *label == "address")?;
    ip.parse().ok()
}

/// What is not zero, in a line.
impl std::fmt::Display for QueueCounters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counted = self.counters.iter().filter(|(_, count)| **count > 0);
        let words: Vec<_> = counted
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        let words = match words.is_empty() {
            true => "nothing yet".to_owned(),
            false => words.join(", "),
        };
        write!(f, "{} {}: {words}", self.queue, self.pair)
    }
}

/// The text that the backend behind `socket` answers with.
fn ask(socket: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((_, text)) => Ok(text.to_owned()),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Every queue in Prometheus' text exposition format 0.0.4, in order of appearance.
fn parse(text: &str) -> Vec<QueueCounters> {
    let mut queues: Vec<QueueCounters> = Vec::new();
    for sample in text.lines().filter_map(Sample::parse) {
        let known = queues
            .iter_mut()
            .find(|it| it.queue == sample.queue && it.pair == sample.pair);
        match known {
            Some(queue) => {
                queue.counters.insert(sample.name, sample.value);
            }
            None => queues.push(QueueCounters {
                queue: sample.queue,
                pair: sample.pair,
                counters: [(sample.name, sample.value)].into(),
            }),
        }
    }
    queues
}

struct Sample {
    name: String,
    queue: String,
    pair: u32,
    value: u64,
}

impl Sample {
    /// `ringtap_NAME_total{tap="…",pair="0",queue="…",KIND="…"} VALUE`; anything else is none.
    fn parse(line: &str) -> Option<Self> {
        let (metric, rest) = line.split_once('{')?;
        let (labels, value) = rest.rsplit_once("} ")?;
        let mut name = metric
            .strip_prefix("ringtap_")?
            .strip_suffix("_total")?
            .to_owned();
        let (mut queue, mut pair) = (None, None);
        for (label, value) in split_labels(labels) {
            match label {
                "tap" => {}
                "queue" => queue = Some(value.to_owned()),
                "pair" => pair = value.parse().ok(),
                _ => name = format!("{name}.{value}"),
            }
        }
        Some(Self {
            name,
            queue: queue?,
            pair: pair?,
            value: value.parse().ok()?,
        })
    }
}

/// `a="x",b="y"` in pairs. A quote or backslash within a value has a backslash before it.
fn split_labels(mut text: &str) -> Vec<(&str, &str)> {
    let mut labels = Vec::new();
    while let Some((label, rest)) = text.split_once("=\"") {
        let mut escaped = false;
        let end = rest.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some(end) = end else { break };
        labels.push((label, &rest[..end]));
        text = rest[end + 1..].trim_start_matches(',');
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::stats::render;
    use crate::backend::worker::Report;

    #[test]
    fn samples_are_gathered_by_queue() {
        let text = "# HELP ringtap_frames_total Frames moved.\n\
            ringtap_frames_total{tap=\"a,\\\"}\",pair=\"0\",queue=\"receiveq\"} 7\n\
            ringtap_frames_total{tap=\"a\",pair=\"1\",queue=\"receiveq\"} 8\n\
            ringtap_dropped_total{tap=\"a\",pair=\"0\",queue=\"receiveq\",reason=\"over_mtu\"} 0\n\
            process_cpu_seconds_total 3\n";
        let queues = parse(text);
        let lines: Vec<_> = queues.iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["receiveq 0: frames 7", "receiveq 1: frames 8"]);
        assert_eq!(queues[0].counters["dropped.over_mtu"], 0);
    }

    #[test]
    fn what_the_backend_renders_is_understood() {
        let mut report = Report::default();
        report.heard.remember("2001:db8::5".parse().unwrap());
        let text = render("t\"0", &[report.clone(), report]);
        let addresses: Vec<_> = text.lines().filter_map(address).collect();
        assert_eq!(addresses, ["2001:db8::5".parse::<IpAddr>().unwrap()]);
        let queues = parse(&text);
        let names: Vec<_> = queues.iter().map(|it| (&it.queue[..], it.pair)).collect();
        let expected = [
            ("receiveq", 0),
            ("transmitq", 0),
            ("receiveq", 1),
            ("transmitq", 1),
        ];
        assert_eq!(names, expected);
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.filter(|line| line.contains("_total")).count();
        let parsed: usize = queues.iter().map(|it| it.counters.len()).sum();
        assert_eq!(parsed, samples);
        assert_eq!(queues[0].to_string(), "receiveq 0: nothing yet");
    }
}
