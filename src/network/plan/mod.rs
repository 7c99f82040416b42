//! What must happen to a host so that it has the networks a file describes: a function of the two.
//!
//! [`plan`] compares the file with the [`Inventory`] and gives the [`Step`]s from one to the other, none where
//! they agree, or refuses with every [`Clash`] it sees. Nothing here reads a file, runs a program or opens a
//! socket: golden folders under `tests/plans` hold file, inventory and expected steps.

mod bridge;
mod dnsmasq;
mod forwarding;
mod lan;
mod rules;
mod step;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::inventory::{Inventory, Link, Listener};
use crate::config::{Config, Forward, Network, overlap};
use crate::types::{Family, IfName, Name};
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
    let clashes = clashes(config, &networks, inventory);
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
            Step::DeleteBridge { link, .. } => Some(link),
            _ => None,
        })
        .collect();
    let goes_anyway = |step: &&Step| match step {
        Step::DeleteAddress { link, .. } => bridges.contains(&link),
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

/// Something on the host that a network can't be made beside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clash {
    network: Name,
    cause: String,
    remedy: String,
}

/// All that stands in the way; prints one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clashes(Vec<Clash>);

impl fmt::Display for Clashes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, clash) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(
                f,
                "network {}: {}; {}",
                clash.network, clash.cause, clash.remedy
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for Clashes {}

fn clashes(config: &Config, networks: &[&Network], inventory: &Inventory) -> Vec<Clash> {
    let mut clashes = Vec::new();
    let strangers = strangers(config, inventory);
    let own = networks.iter().filter(|network| !network.is_lan());
    let bridges: BTreeSet<String> = own
        .map(|network| network.own_bridge().to_string())
        .collect();
    for network in networks {
        let cause = if network.is_lan() {
            lan::clash(network, inventory)
        } else {
            no_ipv6(network, inventory)
                .or_else(|| taken_name(network, inventory))
                .or_else(|| taken_port(config, network, inventory, &strangers))
                .or_else(|| {
                    // The chosen networks' own bridges may hold an old address until this plan is done.
                    taken_addresses(network, inventory, &|link| bridges.contains(link))
                })
        };
        if let Some((cause, remedy)) = cause {
            clashes.push(Clash {
                network: network.name.clone(),
                cause,
                remedy,
            });
        }
    }
    clashes
}

/// A network with IPv6 on a host without.
fn no_ipv6(network: &Network, inventory: &Inventory) -> Option<(String, String)> {
    let lacking = network.ipv6.is_some() && !inventory.has_ipv6();
    lacking.then(|| {
        (
            "the kernel has no IPv6".to_owned(),
            "boot without ipv6.disable=1, or leave ipv6 out".to_owned(),
        )
    })
}

/// The host's own servers: dnsmasq's on the bridges are for guests.
fn strangers<'a>(config: &Config, inventory: &'a Inventory) -> Vec<&'a Listener> {
    let gateways = config.networks.values().flat_map(Network::gateways);
    let gateways: BTreeSet<IpAddr> = gateways.map(|gateway| gateway.addr()).collect();
    let listeners = inventory.listeners.iter();
    let others = listeners.filter(|listener| !gateways.contains(&listener.address));
    others.collect()
}

/// A server of the host's own, whose port a forward is about to take. One that came later finds the port taken.
fn taken_port(
    config: &Config,
    network: &Network,
    inventory: &Inventory,
    strangers: &[&Listener],
) -> Option<(String, String)> {
    let held = inventory.networks.get(&network.name);
    let loaded = held.and_then(|held| held.table.as_ref());
    if loaded.map(|table| &table.rules) == rules::table(config, network).as_ref() {
        return None;
    }
    strangers.iter().find_map(|listener| {
        let Listener {
            protocol,
            address,
            port,
        } = listener;
        let takes = |forward: &&Forward| forward.takes(*protocol, *address, *port);
        let forward = network.forwards.iter().find(takes)?;
        let cause = format!("a program of the host listens on {protocol} port {port} ({address}), which the forward `{forward}` takes");
        let remedy = "choose another port, or an address of the host's that the program is not bound to";
        Some((cause, remedy.to_owned()))
    })
}

/// A link that has the bridge's name and is not the bridge ringtap made.
fn taken_name(network: &Network, inventory: &Inventory) -> Option<(String, String)> {
    let name = network.own_bridge();
    let found = inventory.link(name.as_str())?;
    let held = inventory.networks.get(&network.name);
    if held.is_some_and(|held| held.bridge) && is_bridge_of(network, found) {
        return None;
    }
    Some((
        format!("the host has a link `{name}` that this ringtap did not make"),
        format!("rename the network, or delete the link: ip link delete {name}"),
    ))
}

fn is_bridge_of(network: &Network, found: &Link) -> bool {
    found.kind.as_deref() == Some("bridge") && found.mac == Some(bridge::bridge_mac(network))
}

/// An address or route of another link that shares addresses with the network.
fn taken_addresses(
    network: &Network,
    inventory: &Inventory,
    ours: &dyn Fn(&str) -> bool,
) -> Option<(String, String)> {
    let prefixes = Family::BOTH.map(|family| network.prefix(family));
    prefixes.into_iter().flatten().find_map(|net| {
        let remedy = || format!("choose another subnet than {net}");
        let others = inventory.links.iter().filter(|link| !ours(&link.name));
        let mut addresses = others.flat_map(|link| link.addresses.iter().map(move |a| (link, a)));
        if let Some((link, address)) = addresses.find(|(_, address)| overlap(net, **address)) {
            let cause = format!("{net} overlaps {address} on link `{}`", link.name);
            return Some((cause, remedy()));
        }
        let mut routes = inventory.routes.iter();
        let route = routes
            .find(|route| !route.link.as_deref().is_some_and(ours) && overlap(net, route.to))?;
        let over = match &route.link {
            Some(link) => format!("over link `{link}`"),
            None => "of the host".to_owned(),
        };
        let cause = format!("{net} overlaps the route to {} {over}", route.to);
        Some((cause, remedy()))
    })
}
