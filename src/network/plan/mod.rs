//! What must happen to a host so that it has the networks a file describes: a function of the two.
//!
//! [`plan`] compares the file with the [`Inventory`] and gives the [`Step`]s from one to the other, none where
//! they agree, or refuses with every clash it sees. Nothing here reads a file, runs a program or opens a
//! socket: golden folders under `tests/plans` hold file, inventory and expected steps.

mod bridge;
mod clash;
mod dnsmasq;
mod forwarding;
mod lan;
mod link_step;
mod rules;
mod step;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::inventory::Inventory;
use crate::config::{Config, Network};
use crate::types::{IfName, Name};
pub use clash::Clashes;
pub use link_step::LinkStep;
pub use step::{Step, conf_option, files, replace_script};

/// The kernel's MTU for a link that is told none, in bytes.
const DEFAULT_MTU: u32 = 1500;

/// A step and what it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// The network; none where several share what the step makes.
    pub network: Option<Name>,
    /// The step.
    #[serde(flatten)]
    pub step: Step,
}

impl Planned {
    /// The step that takes it back, for the same network.
    pub fn undo(&self) -> Option<Self> {
        Some(Self {
            network: self.network.clone(),
            step: self.step.undo()?,
        })
    }
}

/// The steps that make the `chosen` networks of `config` on the host of `inventory`, in order.
///
/// # Errors
/// Something on the host stands in the way.
pub fn plan(
    config: &Config,
    chosen: &BTreeSet<Name>,
    inventory: &Inventory,
) -> Result<Vec<Planned>, Clashes> {
    let networks: Vec<&Network> = chosen
        .iter()
        .filter_map(|name| config.networks.get(name))
        .collect();
    let clashes = clash::clashes(config, &networks, inventory);
    if !clashes.is_empty() {
        return Err(Clashes(clashes));
    }
    let of_networks = networks.iter().flat_map(|network| {
        let steps = match network.is_lan() {
            true => lan::steps(network, inventory),
            false => bridge::steps(config, network, inventory),
        };
        let name = network.name.clone();
        steps.into_iter().map(move |step| Planned {
            network: Some(name.clone()),
            step,
        })
    });
    let shared = forwarding::steps(config, &networks, inventory);
    let shared = shared.into_iter().map(|step| Planned {
        network: None,
        step,
    });
    Ok(of_networks.chain(shared).collect())
}

/// What undoes `teardown`, the list of what must be taken back in the order in which it came about.
///
/// Backwards, and without the addresses and sysctls of bridges that go anyway.
pub fn take_back(teardown: &[Step]) -> Vec<Step> {
    let bridges: Vec<&IfName> = teardown
        .iter()
        .filter_map(|step| match step {
            Step::Link(LinkStep::DeleteBridge { link, .. }) => Some(link),
            _ => None,
        })
        .collect();
    let goes_anyway = |step: &&Step| match step {
        Step::Link(LinkStep::DeleteAddress { link, .. }) => bridges.contains(&link),
        Step::SetSysctl { key, .. } => bridges
            .iter()
            .any(|link| key.contains(&format!(".conf.{link}."))),
        _ => false,
    };
    let left = teardown.iter().rev().filter(|step| !goes_anyway(step));
    left.cloned().collect()
}

/// Where the files of network `name` are.
pub fn network_dir(run_dir: &Path, name: &Name) -> PathBuf {
    run_dir.join("networks").join(name.as_str())
}

/// The nft table of network `name`, of family inet.
pub fn table_name(name: &Name) -> String {
    format!("ringtap_{name}")
}

fn desired_mtu(network: &Network) -> u32 {
    network.mtu.map_or(DEFAULT_MTU, u32::from)
}
