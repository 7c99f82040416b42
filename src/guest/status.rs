//! `ringtap status`: the networks, and what the backends of the guests on them have counted.
//!
//! Whatever the backends name is shown, so that a counter the backend gains is shown here too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::GuestError;
use super::control::State;
use super::nic::stats_socket;
use super::run_dir::{GuestDir, read_record};
use super::stats::{self, QueueCounters, RefusedFrame};
use super::supervisor::watch_all;
use crate::cli::ReportArgs;
use crate::clock::since_epoch;
use crate::config::{Config, Problems};
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
    let chosen = Chosen::of(&config, &args.network.names)?;
    watch_all(host)?;
    let networks = network::status(host, &config, &chosen.all_networks(&config))?;
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

/// What a person meant by names: networks, with all guests on them, or guests.
struct Chosen {
    networks: BTreeSet<Name>,
    guests: BTreeSet<Name>,
}

impl Chosen {
    fn of(config: &Config, names: &[Name]) -> Result<Self, Problems> {
        let is_guest = |name: &&Name| {
            config.guests.contains_key(*name) && !config.networks.contains_key(*name)
        };
        let (guests, networks): (Vec<&Name>, Vec<&Name>) = names.iter().partition(is_guest);
        let networks: Vec<Name> = networks.into_iter().cloned().collect();
        Ok(Self {
            networks: match networks.is_empty() && !guests.is_empty() {
                true => BTreeSet::new(),
                false => config.chosen(&networks)?,
            },
            guests: guests.into_iter().cloned().collect(),
        })
    }

    /// Those networks, and those that the guests are on.
    fn all_networks(&self, config: &Config) -> BTreeSet<Name> {
        let guests = self
            .guests
            .iter()
            .filter_map(|name| config.guests.get(name));
        let theirs = guests.flat_map(|guest| &guest.nics).map(|nic| &nic.network);
        self.networks.iter().chain(theirs).cloned().collect()
    }
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
    /// What has become of its link, where that is not as it was made.
    complaint: Option<String>,
    network: Name,
    queues: Vec<QueueCounters>,
    /// The last frames that its guard has refused.
    refused: Vec<RefusedFrame>,
    /// Why the backend did not tell its counters.
    error: Option<String>,
}

/// Those of the chosen guests that run.
fn running(chosen: &Chosen, run_dir: &Path) -> Vec<GuestStatus> {
    let guests = GuestDir::all(run_dir).into_iter();
    guests
        .filter_map(|guest| GuestStatus::of(guest, chosen, run_dir))
        .collect()
}

impl GuestStatus {
    fn of(name: Name, chosen: &Chosen, run_dir: &Path) -> Option<Self> {
        let dir = GuestDir::of(run_dir, &name);
        let nics = read_record(&dir)?.nics;
        let mut networks = nics.values().map(|nic| &nic.network);
        let concerned = chosen.guests.contains(&name)
            || networks.any(|network| chosen.networks.contains(network));
        if !concerned {
            return None;
        }
        let mut complaints = State::of(&dir).map_or_else(BTreeMap::new, |state| state.complaints);
        Some(Self {
            name,
            nics: nics
                .into_iter()
                .map(|(index, nic)| {
                    let answer = stats::of(&stats_socket(&dir, index));
                    let error = answer.as_ref().err().map(ToString::to_string);
                    let stats = answer.unwrap_or_default();
                    NicStatus {
                        tap: nic.link().clone(),
                        // Of an ipvtap its supervisor alone can tell.
                        complaint: complaints.remove(&index).or_else(|| nic.complaint()),
                        network: nic.network,
                        error,
                        queues: stats.queues,
                        refused: stats.refused,
                    }
                })
                .collect(),
        })
    }

    fn print(&self) {
        say(format_args!("guest {}", self.name));
        for nic in &self.nics {
            say(format_args!("  {} on {}", nic.tap, nic.network));
            if let Some(complaint) = &nic.complaint {
                say(format_args!("    {complaint}"));
            }
            if let Some(error) = &nic.error {
                say(format_args!("    its backend does not answer: {error}"));
            }
            for queue in &nic.queues {
                say(format_args!("    {queue}"));
            }
            for RefusedFrame { at, reason, frame } in &nic.refused {
                let ago = (since_epoch().as_secs_f64() - at).max(0.0);
                say(format_args!(
                    "    refused {ago:.0} s ago ({reason}): {frame}"
                ));
            }
        }
    }
}
