//! `ringtap list`: the guests, how they are, and where they can be reached.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;

use super::GuestError;
use super::control::{Phase, State};
use super::nic::stats_socket;
use super::run_dir::{GuestDir, read_failure, read_record};
use super::stats::{self, QueueCounters};
use super::supervisor::watch_all;
use crate::cli::{HostArgs, ListArgs};
use crate::clock::since_boot;
use crate::config::Config;
use crate::network::{self, Addresses};
use crate::report::{print_json, say};
use crate::types::{IfName, MacAddr, Name, QueuePairs};

/// `ringtap list`: prints the guests of the file, and those that run beside.
///
/// # Errors
/// See [`GuestError`].
pub fn list(args: &ListArgs) -> Result<(), GuestError> {
    watch_all(&args.host)?;
    let guests = look(&args.host)?;
    if args.json {
        print_json(&guests);
        return Ok(());
    }
    let rows: Vec<_> = guests.iter().flat_map(Guest::rows).collect();
    table(&HEADER, &rows);
    Ok(())
}

/// A guest, for programs.
#[derive(Debug, Serialize)]
struct Guest {
    name: Name,
    state: GuestState,
    /// QEMU's.
    pid: Option<u32>,
    /// For how many seconds QEMU has been running.
    uptime: Option<u64>,
    /// Why it has failed, if it has.
    failure: Option<String>,
    nics: Vec<Nic>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum GuestState {
    Running,
    Stopping,
    Restarting,
    /// On its way to run, or out of reach.
    Starting,
    Failed,
    Stopped,
}

impl GuestState {
    fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Restarting => "restarting",
            Self::Starting => "starting",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

impl From<Phase> for GuestState {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Running => Self::Running,
            Phase::Stopping => Self::Stopping,
            Phase::Restarting => Self::Restarting,
        }
    }
}

/// A NIC of a guest that runs.
#[derive(Debug, Serialize)]
struct Nic {
    index: usize,
    network: Name,
    link: IfName,
    mac: MacAddr,
    queue_pairs: QueuePairs,
    /// Its backend's pid.
    backend: Option<u32>,
    addresses: BTreeSet<IpAddr>,
    /// Bytes that the guest has received since the backend was started.
    rx_bytes: u64,
    /// Bytes that it has sent.
    tx_bytes: u64,
}

fn look(host: &HostArgs) -> Result<Vec<Guest>, GuestError> {
    let run_dir = network::run_dir_path(&host.run_dir)?;
    // Without a file there are still those that run.
    let defined = match host.config.exists() {
        true => Config::load(&host.config)?.guests.into_keys().collect(),
        false => BTreeSet::new(),
    };
    let there = GuestDir::all(&run_dir);
    let records: BTreeMap<_, _> = there
        .iter()
        .filter_map(|name| Some((name, read_record(&GuestDir::of(&run_dir, name))?)))
        .collect();
    let nics = records.values().flat_map(|record| record.nics.values());
    let networks = nics.map(|nic| nic.network.clone()).collect();
    let addresses = Addresses::on(host, &networks)?;

    let all: BTreeSet<&Name> = there.iter().chain(&defined).collect();
    let guest = |name: &Name| {
        let dir = GuestDir::of(&run_dir, name);
        let state = State::of(&dir);
        let failure = read_failure(&dir);
        let record = records.get(name);
        let pid = state.as_ref().and_then(|state| state.pid);
        Guest {
            name: name.clone(),
            state: match (&state, &failure) {
                (Some(state), _) => state.phase.into(),
                (None, Some(_)) => GuestState::Failed,
                (None, None) if dir.exists() => GuestState::Starting,
                (None, None) => GuestState::Stopped,
            },
            uptime: pid
                .and(record.map(|record| since_boot().as_secs().saturating_sub(record.started))),
            pid,
            failure,
            nics: record
                .into_iter()
                .flat_map(|record| &record.nics)
                .map(|(index, nic)| {
                    let told = stats::of(&stats_socket(&dir, *index)).unwrap_or_default();
                    Nic {
                        index: *index,
                        network: nic.network.clone(),
                        link: nic.link().clone(),
                        mac: nic.mac,
                        queue_pairs: nic.queue_pairs,
                        backend: state
                            .as_ref()
                            .and_then(|it| it.backends.get(index).copied()),
                        addresses: &nic.addresses(&addresses) | &told.addresses,
                        rx_bytes: bytes(&told.queues, "receiveq"),
                        tx_bytes: bytes(&told.queues, "transmitq"),
                    }
                })
                .collect(),
        }
    };
    Ok(all.into_iter().map(guest).collect())
}

fn bytes(queues: &[QueueCounters], queue: &str) -> u64 {
    let its = queues.iter().filter(|it| it.queue == queue);
    its.filter_map(|it| it.counters.get("bytes")).sum()
}

const HEADER: [&str; 9] = [
    "GUEST",
    "STATE",
    "PID",
    "UPTIME",
    "NETWORK",
    "ADDRESSES",
    "PAIRS",
    "RX",
    "TX",
];

impl Guest {
    /// A row, and another for each further NIC.
    fn rows(&self) -> Vec<[String; 9]> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let own = [
            self.name.to_string(),
            self.state.name().to_owned(),
            or_dash(self.pid.map(|pid| pid.to_string())),
            or_dash(self.uptime.map(duration)),
        ];
        let count = self.nics.len().max(1);
        let row = |index: usize| {
            let own = match index {
                0 => own.clone(),
                _ => <[String; 4]>::default(),
            };
            let nic = match self.nics.get(index) {
                Some(nic) => nic.columns(),
                None => ["-"; 5].map(str::to_owned),
            };
            let mut columns = own.into_iter().chain(nic);
            std::array::from_fn(|_| columns.next().unwrap_or_default())
        };
        (0..count).map(row).collect()
    }
}

impl Nic {
    fn columns(&self) -> [String; 5] {
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        let addresses = match addresses.is_empty() {
            true => "-".to_owned(),
            false => addresses.join(" "),
        };
        [
            self.network.to_string(),
            addresses,
            self.queue_pairs.to_string(),
            size(self.rx_bytes),
            size(self.tx_bytes),
        ]
    }
}

/// As `uptime` has it, in the two largest units.
fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, ..) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// With three digits or so, in units of 1000.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            return match unit {
                "B" => format!("{bytes} B"),
                _ if value < 9.95 => format!("{value:.1} {unit}"),
                _ => format!("{value:.0} {unit}"),
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// Prints columns as wide as what is in them.
fn table<const N: usize>(header: &[&str; N], rows: &[[String; N]]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(header[column].len())
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths);
        let padded: Vec<_> = padded
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        say(padded.join("  ").trim_end());
    };
    line(*header);
    for row in rows {
        line(row.each_ref().map(String::as_str));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_short() {
        let times = [0, 59, 60, 3599, 3600, 86399, 86400, 90000].map(duration);
        let expected = [
            "0s", "59s", "1m0s", "59m59s", "1h0m", "23h59m", "1d0h", "1d1h",
        ];
        assert_eq!(times, expected);
        let sizes = [0, 999, 1000, 9949, 9950, 999_499, 999_500, 1_500_000_000].map(size);
        let expected = [
            "0 B", "999 B", "1.0 kB", "9.9 kB", "10 kB", "999 kB", "1.0 MB", "1.5 GB",
        ];
        assert_eq!(sizes, expected);
    }
}
