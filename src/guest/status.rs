//! `ringtap status`: the networks, and what the backends of the guests on them have counted.
//!
//! A backend tells its counters as Prometheus text over HTTP on a unix socket in its guest's directory. Whatever the
//! text names is shown, so that a counter the backend gains is shown here too.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::GuestError;
use super::nic::stats_socket;
use super::run_dir::GuestDir;
use crate::cli::ReportArgs;
use crate::config::{Config, Guest};
use crate::network::{self, StatusReport};
use crate::report::{print_json, say};
use crate::types::{IfName, Name};

/// A backend answers within microseconds, or not at all.
const PATIENCE: Duration = Duration::from_secs(2);

/// Shows networks as they are and as the file wants them, and the running guests on them; exit code 1 where a network is
/// not as it should be.
///
/// # Errors
/// The file has problems, or the host can't be looked at.
pub fn status(args: &ReportArgs) -> Result<ExitCode, GuestError> {
    let host = &args.network.host;
    let config = Config::load(&host.config)?;
    let chosen = config.chosen(&args.network.names)?;
    let networks = network::status(host, &config, &chosen)?;
    let code = ExitCode::from(u8::from(!networks.all_up()));
    let report = Report {
        networks,
        guests: running(&config, &chosen, &host.run_dir),
    };
    if args.json {
        print_json(&report);
    } else {
        report.networks.print();
        report.guests.iter().for_each(GuestStatus::print);
    }
    Ok(code)
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    networks: StatusReport,
    guests: Vec<GuestStatus>,
}

/// A guest that runs.
#[derive(Serialize)]
struct GuestStatus {
    name: Name,
    nics: Vec<NicStatus>,
}

#[derive(Serialize)]
struct NicStatus {
    tap: IfName,
    network: Name,
    queues: Vec<QueueCounters>,
    /// Why the backend did not tell its counters.
    error: Option<String>,
}

/// What a queue has counted, by name; with a dot where there are kinds: `dropped.over_mtu`.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct QueueCounters {
    /// virtio's name for it, `receiveq` or `transmitq`.
    queue: String,
    pair: u32,
    counters: BTreeMap<String, u64>,
}

/// The guests with a NIC on one of these networks that have a directory, and so run.
fn running(config: &Config, networks: &BTreeSet<Name>, run_dir: &Path) -> Vec<GuestStatus> {
    let guests = config.guests.values();
    guests
        .filter_map(|guest| GuestStatus::of(guest, networks, &GuestDir::of(run_dir, &guest.name)))
        .collect()
}

impl GuestStatus {
    fn of(guest: &Guest, networks: &BTreeSet<Name>, dir: &Path) -> Option<Self> {
        let nics: Vec<_> = guest.nics.iter().enumerate().collect();
        let concerned = nics.iter().any(|(_, nic)| networks.contains(&nic.network));
        (concerned && dir.exists()).then(|| Self {
            name: guest.name.clone(),
            nics: nics
                .into_iter()
                .map(|(index, nic)| {
                    let answer = ask(&stats_socket(dir, index));
                    NicStatus {
                        tap: guest.tap(index),
                        network: nic.network.clone(),
                        error: answer.as_ref().err().map(ToString::to_string),
                        queues: answer.map(|text| parse(&text)).unwrap_or_default(),
                    }
                })
                .collect(),
        })
    }

    fn print(&self) {
        say(format_args!("guest {}", self.name));
        for nic in &self.nics {
            say(format_args!("  {} on {}", nic.tap, nic.network));
            if let Some(error) = &nic.error {
                say(format_args!("    its backend does not answer: {error}"));
            }
            for queue in &nic.queues {
                say(format_args!("    {queue}"));
            }
        }
    }
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
        let counters = crate::backend::counters::Counters::default();
        let text = crate::backend::stats::render("t\"0", &[[counters; 2], [counters; 2]]);
        let queues = parse(&text);
        let names: Vec<_> = queues.iter().map(|it| (&it.queue[..], it.pair)).collect();
        let expected = [
            ("receiveq", 0),
            ("transmitq", 0),
            ("receiveq", 1),
            ("transmitq", 1),
        ];
        assert_eq!(names, expected);
        let samples = text.lines().filter(|line| !line.starts_with('#')).count();
        let parsed: usize = queues.iter().map(|it| it.counters.len()).sum();
        assert_eq!(parsed, samples);
        assert_eq!(queues[0].to_string(), "receiveq 0: nothing yet");
    }
}
