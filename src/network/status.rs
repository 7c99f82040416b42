//! Networks as they are and as the file wants them: what `ringtap status` says of them. Looks, and changes nothing.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::Serialize;

use super::confirm;
use super::inventory::Inventory;
use super::mended::{self, Mending};
use super::plan::Planned;
use super::{Error, look, plan};
use crate::cli::HostArgs;
use crate::config::{Config, Mode, Network};
use crate::report::say;
use crate::types::Name;

/// How many of the times that a network was set right are shown to people.
const SHOWN: usize = 3;

/// The networks `chosen`, as they are and as `config` wants them.
///
/// # Errors
/// Where the host can't be looked at.
pub fn status(
    host: &HostArgs,
    config: &Config,
    chosen: &BTreeSet<Name>,
) -> Result<StatusReport, Error> {
    let (journal, inventory) = look(host)?;
    let networks = chosen
        .iter()
        .filter_map(|name| config.networks.get(name))
        .map(|network| NetworkStatus::of(config, network, &inventory));
    let forgotten = journal
        .networks
        .keys()
        .filter(|name| !config.networks.contains_key(name));
    Ok(StatusReport {
        networks: networks.collect(),
        not_in_file: forgotten.cloned().collect(),
        confirm_within: confirm::seconds_left(&journal),
    })
}

/// What is said of networks.
#[derive(Debug, Serialize)]
pub struct StatusReport {
    networks: Vec<NetworkStatus>,
    /// Networks that are up though the file no longer has them.
    not_in_file: Vec<Name>,
    /// How many seconds are left to confirm the last `up` in, if it must be.
    confirm_within: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// As the file wants it.
    Up,
    /// ringtap has made nothing of it.
    Down,
    /// ringtap made it, and it is no longer as the file wants it.
    Drifted,
}

/// A network as it is.
#[derive(Debug, Serialize)]
struct NetworkStatus {
    name: Name,
    /// Whose it is, if its gateway is a router of that tenant's.
    tenant: Option<Name>,
    state: State,
    /// The link that guests are attached to.
    trunk: String,
    /// What kind of link it is: `bridge`, `ovs-bridge` (Open vSwitch's), `uplink` of macvtaps and ipvtaps, or the `cable` to a
    /// tenant's router.
    trunk_kind: &'static str,
    /// The host's addresses on the bridge.
    gateways: Vec<IpNet>,
    dnsmasq_pid: Option<u32>,
    ports: Vec<String>,
    /// What `up` would do, a line each.
    steps: Vec<String>,
    /// What stands in the way of that.
    clashes: Option<String>,
    /// What else a person should know.
    remarks: Vec<String>,
    /// The last times that it was set right, the latest last.
    mended: Vec<Mending>,
}

impl NetworkStatus {
    fn of(config: &Config, network: &Network, inventory: &Inventory) -> Self {
        let held = inventory.held(&network.name);
        let trunk = network.trunk().to_string();
        let alone = [network.name.clone()].into();
        let remarks = plan::remarks(config, &alone, inventory);
        let (steps, clashes) = match plan::plan(config, &alone, inventory) {
            Ok(steps) => (steps.iter().map(Planned::line).collect(), None),
            Err(clashes) => (Vec::new(), Some(clashes.to_string())),
        };
        let state = match held {
            None => State::Down,
            Some(_) if steps.is_empty() && clashes.is_none() => State::Up,
            Some(_) => State::Drifted,
        };
        let links = inventory.links_of(network.tenant.as_ref()).iter();
        let ports = links.filter(|link| link.master.as_ref() == Some(&trunk));
        Self {
            name: network.name.clone(),
            tenant: network.tenant.clone(),
            state,
            gateways: network.gateways(),
            dnsmasq_pid: held.and_then(|held| Some(held.dnsmasq.as_ref()?.pid)),
            ports: ports.map(|link| link.name.clone()).collect(),
            trunk,
            trunk_kind: match network.mode {
                Mode::Macvtap { .. } | Mode::Ipvtap { .. } => "uplink",
                Mode::Router { .. } => "cable",
                _ if network.switch.is_ovs() => "ovs-bridge",
                _ => "bridge",
            },
            steps,
            clashes,
            remarks: remarks.into_iter().map(|remark| remark.text).collect(),
            mended: mended::read(&inventory.run_dir, &network.name),
        }
    }
}

impl StatusReport {
    /// Whether every network is as the file wants it.
    pub fn all_up(&self) -> bool {
        self.networks
            .iter()
            .all(|network| network.state == State::Up)
    }

    /// Prints it for people.
    pub fn print(&self) {
        if let Some(seconds) = self.confirm_within {
            say(format_args!(
                "the last `ringtap up` is taken back in {seconds} s unless `ringtap confirm` comes"
            ));
        }
        for network in &self.networks {
            let state = match network.state {
                State::Up => "up",
                State::Down => "down",
                State::Drifted => "drifted",
            };
            let whose = network.tenant.as_ref();
            let whose = whose.map_or(String::new(), |tenant| format!(", tenant {tenant}"));
            say(format_args!("{}: {state}{whose}", network.name));
            let gateways = network
                .gateways
                .iter()
                .map(|net| format!(", gateway {net}"));
            let gateways: String = gateways.collect();
            let (kind, trunk) = (network.trunk_kind, &network.trunk);
            say(format_args!("  {kind} {trunk}{gateways}"));
            if let Some(pid) = network.dnsmasq_pid {
                say(format_args!("  dnsmasq {pid}"));
            }
            if !network.ports.is_empty() {
                say(format_args!("  ports {}", network.ports.join(", ")));
            }
            if let Some(clashes) = &network.clashes {
                say(format_args!("  in the way: {clashes}"));
            }
            for remark in &network.remarks {
                say(format_args!("  {remark}"));
            }
            // Of a network that is down, all is missing: `plan` shows it.
            if network.state == State::Drifted && !network.steps.is_empty() {
                say(format_args!("  `ringtap up {}` would:", network.name));
                network
                    .steps
                    .iter()
                    .for_each(|step| say(format_args!("    {step}")));
            }
            for mending in network.mended.iter().rev().take(SHOWN).rev() {
                say(format_args!(
                    "  set right {} by `{}`:",
                    mending.age(),
                    mending.by
                ));
                mending
                    .steps
                    .iter()
                    .for_each(|step| say(format_args!("    {step}")));
            }
        }
        for name in &self.not_in_file {
            say(format_args!(
                "{name}: up, but not in the file; `ringtap down {name}` takes it back"
            ));
        }
    }
}
