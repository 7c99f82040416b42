//! What a network needs of Open vSwitch: a bridge of its own or somebody's, and its guests' ports as the file has them.
//!
//! Flows are the admin's: none is made, changed or deleted, and those that are there are named. A bridge that nobody gave
//! any has one by which it switches as a bridge does.

use super::Remark;
use super::ovs_step::OvsStep;
use super::step::Step;
use crate::config::{Config, Datapath, Network, Switch};
use crate::network::inventory::Inventory;
use crate::network::ovs::{GuestPort, Lack, Mark, Ovs, OvsBridge};
use crate::types::{IfName, MacAddr};

/// The flow of a bridge that nobody gave any.
const USUAL_FLOW: &str = "priority=0 actions=NORMAL";

/// How many flows are shown to people.
const SHOWN: usize = 20;

fn mark(network: &Network, inventory: &Inventory) -> Mark {
    Mark::new(&network.name, &inventory.run_dir)
}

/// The bridge of that name, if it is this ringtap's for this network.
fn own<'i>(network: &Network, inventory: &'i Inventory) -> Option<&'i OvsBridge> {
    let found = inventory.ovs.bridges.get(network.own_bridge().as_str());
    found.filter(|found| found.mark == Some(mark(network, inventory)))
}

/// Whether the host has a bridge of Open vSwitch's that this ringtap made for the network.
pub(super) fn is_up(network: &Network, inventory: &Inventory) -> bool {
    own(network, inventory).is_some()
}

/// Makes the network's own bridge where it or the host's link to it is not there. One that an earlier boot has left is taken
/// over.
pub(super) fn own_bridge(network: &Network, mac: MacAddr, inventory: &Inventory) -> Option<Step> {
    let Switch::Ovs(datapath) = network.switch else {
        return None;
    };
    let bridge = network.own_bridge();
    let held = inventory.networks.get(&network.name);
    let noted = held.is_some_and(|held| held.own_link);
    let there = noted && is_up(network, inventory) && inventory.link(bridge.as_str()).is_some();
    let mark = mark(network, inventory);
    let add = || OvsStep::AddSwitch {
        bridge,
        datapath,
        mac,
        mark,
    };
    (!there).then(|| add().into())
}

/// Gives the host's link to the bridge the MTU `mtu`, which is `was` now.
pub(super) fn mtu(network: &Network, mtu: u32, was: u32, inventory: &Inventory) -> Option<Step> {
    let bridge = network.own_bridge();
    let asked = own(network, inventory)
        .and_then(|found| found.ports.get(bridge.as_str()))
        .and_then(|port| port.mtu_request);
    (mtu != was).then(|| {
        OvsStep::SetSwitchMtu {
            bridge,
            mtu: Some(mtu),
            was: asked,
        }
        .into()
    })
}

/// Makes the uplink a port of the network's bridge.
pub(super) fn uplink(
    network: &Network,
    port: &IfName,
    was_up: bool,
    inventory: &Inventory,
) -> Step {
    OvsStep::AddUplink {
        port: port.clone(),
        bridge: network.own_bridge(),
        mark: mark(network, inventory),
        was_up,
    }
    .into()
}

/// Sets right the ports of guests that run, and deletes those of guests that are gone: a port outlives its tap.
pub(super) fn ports(config: &Config, network: &Network, inventory: &Inventory) -> Vec<Step> {
    if !network.switch.is_ovs() {
        return Vec::new();
    }
    let mut steps: Vec<Step> = dead(network, inventory)
        .map(|port| OvsStep::DeletePort { port }.into())
        .collect();
    let wanted = wanted(config, network, inventory);
    let running = wanted.filter(|port| inventory.link(port.name.as_str()).is_some());
    steps.extend(running.filter_map(|port| port_step(port, inventory)));
    steps
}

/// A port of another's of that name is left alone.
fn port_step(port: GuestPort, inventory: &Inventory) -> Option<Step> {
    let Some((bridge, found)) = inventory.ovs.port(port.name.as_str()) else {
        return Some(OvsStep::SetPort { port, was: None }.into());
    };
    let ours = found.mark.as_ref() == Some(&port.mark) && bridge == port.bridge.as_str();
    let was = GuestPort {
        vlans: found.vlans.clone(),
        protected: found.protected,
        ..port.clone()
    };
    (ours && was != port).then(|| {
        let was = Some(was);
        OvsStep::SetPort { port, was }.into()
    })
}

/// The ports of the file's guests on `network`.
fn wanted<'a>(
    config: &'a Config,
    network: &'a Network,
    inventory: &'a Inventory,
) -> impl Iterator<Item = GuestPort> + 'a {
    let nics = config.guests.values().flat_map(|guest| {
        let nics = guest.nics.iter().enumerate();
        nics.map(move |(index, nic)| (guest.tap(index), nic))
    });
    let on_it = nics.filter(|(_, nic)| nic.network == network.name);
    on_it.filter_map(|(tap, nic)| GuestPort::of(&tap, nic, network, &inventory.run_dir))
}

/// The ports that guests of `network` have left, whose taps are gone.
fn dead<'a>(
    network: &'a Network,
    inventory: &'a Inventory,
) -> impl Iterator<Item = GuestPort> + 'a {
    let trunk = network.trunk();
    let mark = mark(network, inventory);
    let uplink = network.uplink().map(|uplink| uplink.link().to_string());
    let found = inventory.ovs.bridges.get(trunk.as_str());
    let ports = found.into_iter().flat_map(|found| &found.ports);
    ports.filter_map(move |(name, port)| {
        let ours = port.mark.as_ref() == Some(&mark) && Some(name) != uplink.as_ref();
        let gone = ours && inventory.link(name).is_none();
        Some(GuestPort {
            name: name.parse().ok().filter(|_| gone)?,
            bridge: trunk.clone(),
            vlans: port.vlans.clone(),
            protected: port.protected,
            mark: mark.clone(),
        })
    })
}

/// What stands in the way of a network with its switch, whether that is Open vSwitch or not: cause and remedy.
pub(super) fn clash(network: &Network, inventory: &Inventory) -> Option<(String, String)> {
    let Switch::Ovs(datapath) = network.switch else {
        return another_switch(network, inventory);
    };
    lack(datapath, network, &inventory.ovs).or_else(|| match network.has_own_bridge() {
        true => taken(network, datapath, inventory),
        false => no_bridge(network, inventory),
    })
}

fn another_switch(network: &Network, inventory: &Inventory) -> Option<(String, String)> {
    (network.has_own_bridge() && is_up(network, inventory)).then(|| {
        let cause = "it is up with a bridge of Open vSwitch's".to_owned();
        (cause, format!("run `ringtap down {}` first", network.name))
    })
}

fn lack(datapath: Datapath, network: &Network, ovs: &Ovs) -> Option<(String, String)> {
    let (cause, remedy) = match ovs.lack {
        Some(Lack::Programs) => (
            "Open vSwitch is not installed",
            "install the package openvswitch-switch, or leave out switch",
        ),
        Some(Lack::Database) => (
            "Open vSwitch's ovsdb-server does not answer",
            "start it: systemctl start openvswitch-switch",
        ),
        Some(Lack::Daemon) => (
            "Open vSwitch's ovs-vswitchd does not answer",
            "start it: systemctl restart openvswitch-switch",
        ),
        None if datapath == Datapath::System && network.has_own_bridge() && !ovs.kernel => (
            "the kernel lacks Open vSwitch's part, the module openvswitch",
            "load it (modprobe openvswitch), boot a kernel that has it, or write datapath = \"netdev\", which is slower",
        ),
        None => return None,
    };
    Some((cause.to_owned(), remedy.to_owned()))
}

/// A bridge or link that has the name of the network's own and is not.
fn taken(network: &Network, datapath: Datapath, inventory: &Inventory) -> Option<(String, String)> {
    let name = network.own_bridge();
    if let Some(found) = own(network, inventory) {
        return (found.datapath != datapath.name()).then(|| {
            let cause = format!("it is up with the datapath {}", found.datapath);
            (cause, format!("run `ringtap down {}` first", network.name))
        });
    }
    let held = inventory.networks.get(&network.name);
    let found = inventory.link(name.as_str());
    let is_bridge = found.is_some_and(|found| found.kind.as_deref() == Some("bridge"));
    if held.is_some_and(|held| held.own_link) && is_bridge {
        let cause = "it is up with a bridge of the kernel's".to_owned();
        return Some((cause, format!("run `ringtap down {}` first", network.name)));
    }
    if inventory.ovs.bridges.contains_key(name.as_str()) {
        return Some((
            format!("Open vSwitch has a bridge `{name}` that this ringtap did not make"),
            format!("rename the network, or delete the bridge: ovs-vsctl del-br {name}"),
        ));
    }
    if let Some((bridge, _)) = inventory.ovs.port(name.as_str()) {
        return Some((
            format!(
                "Open vSwitch's bridge `{bridge}` has a port `{name}` that this ringtap did not make"
            ),
            format!("rename the network, or delete the port: ovs-vsctl del-port {bridge} {name}"),
        ));
    }
    found.map(|_| {
        (
            format!("the host has a link `{name}` that this ringtap did not make"),
            format!("rename the network, or delete the link: ip link delete {name}"),
        )
    })
}

/// A bridge that the file says is there.
fn no_bridge(network: &Network, inventory: &Inventory) -> Option<(String, String)> {
    let name = network.trunk();
    if inventory.ovs.bridges.contains_key(name.as_str()) {
        let missing = inventory.link(name.as_str()).is_none();
        return missing.then(|| {
            let cause = format!("Open vSwitch could not make its bridge `{name}`");
            (cause, "see its log (ovs-vswitchd.log) for why".to_owned())
        });
    }
    let found = inventory.link(name.as_str());
    let is_bridge = found.is_some_and(|found| found.kind.as_deref() == Some("bridge"));
    let remedy = match is_bridge {
        true => "leave out switch: that of the name is one of the kernel's".to_owned(),
        false => format!("make it (ovs-vsctl add-br {name}), or name another"),
    };
    Some((format!("Open vSwitch has no bridge `{name}`"), remedy))
}

/// What others have told the network's bridge to do, which is theirs to say.
pub(super) fn remarks(network: &Network, inventory: &Inventory) -> Vec<Remark> {
    let name = network.trunk();
    let found = inventory.ovs.bridges.get(name.as_str());
    let Some(found) = found.filter(|_| network.switch.is_ovs()) else {
        return Vec::new();
    };
    let mut texts = Vec::new();
    if found.datapath == Datapath::Netdev.name() {
        texts.push(format!(
            "{name} has the datapath netdev: the host's kernel also gets what guests send, whatever VLANs and flows say of it"
        ));
    }
    for controller in &found.controllers {
        texts.push(format!(
            "the controller {controller} says what Open vSwitch's bridge {name} does"
        ));
    }
    texts.extend(broken(found, inventory));
    if let Some(flows) = &found.flows {
        if flows.is_empty() {
            texts.push(format!(
                "nothing passes Open vSwitch's bridge {name}: it has no flows (`ovs-ofctl add-flow {name} actions=NORMAL` lets all pass)"
            ));
        }
        let others: Vec<&String> = flows.iter().filter(|flow| *flow != USUAL_FLOW).collect();
        let shown = others.iter().take(SHOWN);
        texts.extend(shown.map(|flow| format!("somebody's flow on {name}, left alone: {flow}")));
        if others.len() > SHOWN {
            let more = others.len() - SHOWN;
            texts.push(format!("and {more} more: ovs-ofctl dump-flows {name}"));
        }
    }
    let remark = |text| Remark {
        network: Some(network.name.clone()),
        text,
    };
    texts.into_iter().map(remark).collect()
}

/// Links that are there and that Open vSwitch can't use.
fn broken(bridge: &OvsBridge, inventory: &Inventory) -> Vec<String> {
    let ports = bridge.ports.iter();
    let there = ports.filter(|(name, _)| inventory.link(name).is_some());
    let said = there.filter_map(|(name, port)| {
        let error = port.error.as_ref()?;
        Some(format!("Open vSwitch can't use port {name}: {error}"))
    });
    said.collect()
}
