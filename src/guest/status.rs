//! `ringtap status`: the networks, and what the backends of the guests on them have counted.
//!
//! Whatever the backends name is shown, so that a counter the backend gains is shown here too.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::GuestError;
use super::nic::stats_socket;
use super::run_dir::{GuestDir, read_record};
use super::stats::{self, QueueCounters};
use super::supervisor::watch_all;
use crate::cli::ReportArgs;
use crate::config::Config;
use crate::network::{self, StatusReport};
use crate::report::{print_json, say};
use crate::types::{IfName, Name};

/// Shows networks as they are and as the file wants them, and the running guests on them; exit code 1 where a network is
/// not as it should be.
///
/// # Errors
/// The file has problems, or the host can't be looked at.
pub fn status(args: &ReportArgs) -> Result<ExitCode, GuestError> {
    let host = &args.network.host;
    let config = Config::load(&host.config)?;
    let chosen = config.chosen(&args.network.names)?;
    watch_all(host)?;
    let networks = network::status(host, &config, &chosen)?;
    let code = ExitCode::from(u8::from(!networks.all_up()));
    let report = Report {
        networks,
        guests: running(&chosen, &network::run_dir_path(&host.run_dir)?),
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

/// The guests with a NIC on one of these networks that run.
fn running(networks: &BTreeSet<Name>, run_dir: &Path) -> Vec<GuestStatus> {
    let guests = GuestDir::all(run_dir).into_iter();
    guests
        .filter_map(|guest| GuestStatus::of(guest, networks, run_dir))
        .collect()
}

impl GuestStatus {
    fn of(name: Name, networks: &BTreeSet<Name>, run_dir: &Path) -> Option<Self> {
        let dir = GuestDir::of(run_dir, &name);
        let nics = read_record(&dir)?.nics;
        let concerned = nics.values().any(|nic| networks.contains(&nic.network));
        concerned.then(|| Self {
            name,
            nics: nics
                .into_iter()
                .map(|(index, nic)| {
                    let answer = stats::of(&stats_socket(&dir, index));
                    NicStatus {
                        tap: nic.link().clone(),
                        network: nic.network,
                        error: answer.as_ref().err().map(ToString::to_string),
                        queues: answer.unwrap_or_default().queues,
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
