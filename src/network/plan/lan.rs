//! What a network on the LAN needs: a link that guests are attached to. An uplink of macvtaps or somebody else's bridge must
//! be there; a bridge over an uplink is made, and what the host has on the uplink moves there.

use std::collections::BTreeSet;

use super::link_step::{Kind, LinkStep, Master};
use super::step::Step;
use super::uplink::{heed_routers, take_over, without_ipv6};
use super::{Remark, bridge, clash, firewall, network_dir, ovs, sysctl, uplink};
use crate::config::{Config, LanBridge, Mode, Network, Switch, Uplink};
use crate::network::inventory::{Inventory, Link};
use crate::types::{Family, IfName, MacAddr, VlanId};

/// The steps: a directory, by which guests show that they use the network, a bridge if it has one of its own, and rules that
/// let its frames pass.
pub(super) fn steps(config: &Config, network: &Network, inventory: &Inventory) -> Vec<Step> {
    let held = inventory.networks.get(&network.name);
    let mut steps = Vec::new();
    if !held.is_some_and(|held| held.dir) {
        let dir = network_dir(&inventory.run_dir, &network.name);
        steps.push(Step::MakeDir { dir });
    }
    match &network.mode {
        Mode::Bridge {
            bridge: LanBridge::Over { uplink, .. },
        } => {
            steps.extend(bridge_steps(network, uplink, inventory));
            steps.extend(vlans(config, network, uplink, inventory));
        }
        Mode::Macvtap {
            uplink, shim: true, ..
        } => {
            let kind = Kind::Macvlan {
                link: uplink.link(),
            };
            let mac = Some(bridge::bridge_mac(network));
            steps.extend(shim_steps(network, uplink, (kind, mac), inventory));
        }
        Mode::Ipvtap { uplink, shim: true } => {
            let kind = Kind::Ipvlan {
                link: uplink.link(),
            };
            steps.extend(shim_steps(network, uplink, (kind, None), inventory));
        }
        _ => {}
    }
    steps.extend(ovs::ports(config, network, inventory));
    steps.extend(firewall::steps(config, network, inventory));
    steps
}

/// The host's links by which the network's guests get out, and that are down: whoever has set one down may have meant it.
pub(super) fn remarks(network: &Network, inventory: &Inventory) -> Vec<Remark> {
    let (links, become_ports) = match (&network.mode, network.uplink()) {
        (_, Some(uplink)) => {
            let is_bond = !uplink.hardware().contains(&uplink.base_link());
            let has_bridge = matches!(network.mode, Mode::Bridge { .. });
            let become_ports = is_bond || has_bridge && uplink.vlan.is_none();
            (uplink.hardware(), become_ports)
        }
        (
            Mode::Bridge {
                bridge: LanBridge::There(bridge),
            },
            None,
        ) => (std::slice::from_ref(bridge), false),
        _ => return Vec::new(),
    };
    let found = links
        .iter()
        .filter_map(|link| inventory.link(link.as_str()));
    let is_set_up_by_steps = |link: &Link| become_ports && link.master.is_none();
    let left = found.filter(|link| !link.up && !is_set_up_by_steps(link));
    let remark = |link: &Link| Remark {
        network: Some(network.name.clone()),
        text: format!("{0} is down: ip link set {0} up", link.name),
    };
    left.map(remark).collect()
}

/// A macvlan beside the guests' macvtaps, or an ipvlan beside their ipvtaps, since those can't talk to the uplink itself. A
/// macvlan has an address of its own: the kernel gives it no other's.
fn shim_steps(
    network: &Network,
    uplink: &Uplink,
    (kind, mac): (Kind, Option<MacAddr>),
    inventory: &Inventory,
) -> Vec<Step> {
    let name = network.own_bridge();
    let found = inventory.link(name.as_str());
    let over = uplink.link();
    let mut steps: Vec<Step> = Vec::new();
    if found.is_none() {
        let add = LinkStep::Add {
            link: name.clone(),
            kind,
            mac,
        };
        steps.push(add.into());
        let below = hardware(uplink, inventory);
        steps.extend(below.and_then(|below| heed_routers(&name, below, inventory)));
    }
    steps.extend(ignore_routers(&over, inventory));
    if !found.is_some_and(|link| link.up) {
        let link = name.clone();
        steps.push(LinkStep::SetUp { link }.into());
    }
    steps.extend(take_over_below(uplink, &name, inventory));
    steps
}

/// The uplink sees what routers advertise as well, and would have addresses and routes again.
fn ignore_routers(over: &IfName, inventory: &Inventory) -> Option<Step> {
    // Without IPv6 there is no such sysctl.
    sysctl::set(Family::Ipv6, over, "accept_ra", ("0", "0"), inventory)
}

/// The bridge is up before the uplink is its port, and has the uplink's address: nobody on the LAN sees a difference.
fn bridge_steps(network: &Network, uplink: &Uplink, inventory: &Inventory) -> Vec<Step> {
    let name = network.own_bridge();
    let found = inventory.link(name.as_str());
    let port = uplink.link();
    let below = inventory.link(port.as_str());
    let mut steps: Vec<Step> = Vec::new();
    let mac = bridge_mac(network, uplink, inventory);
    steps.extend(bridge::make(network, mac, inventory));
    steps.extend(bridge::vlan_filtering(network, found));
    steps.extend(match uplink.vlan {
        Some(_) => without_ipv6(&name, inventory),
        None => hardware(uplink, inventory)
            .filter(|_| found.is_none())
            .and_then(|below| heed_routers(&name, below, inventory)),
    });
    let was = found.map_or(super::DEFAULT_MTU, |link| link.mtu);
    let mtu = below_mtu(uplink, inventory).unwrap_or(was);
    steps.extend(bridge::set_mtu(network, mtu, was, inventory));
    if !found.is_some_and(|link| link.up) {
        let link = name.clone();
        steps.push(LinkStep::SetUp { link }.into());
    }
    if below.and_then(|below| below.master.as_deref()) != Some(name.as_str()) {
        let was_up = below.is_none_or(|below| below.up);
        steps.push(match network.switch {
            Switch::Ovs(_) => ovs::uplink(network, &port, was_up, inventory),
            Switch::Linux => LinkStep::Enslave {
                port: port.clone(),
                master: name.clone(),
                to: Master::Bridge,
                was_up,
            }
            .into(),
        });
    }
    if uplink.vlan.is_none() {
        steps.extend(take_over_below(uplink, &name, inventory));
    }
    steps
}

/// The VLANs of the network's NICs leave by the uplink with their tags; 1 is the bridge's own, without.
fn vlans(config: &Config, network: &Network, uplink: &Uplink, inventory: &Inventory) -> Vec<Step> {
    if !network.vlan_filtering {
        return Vec::new();
    }
    let port = uplink.link();
    let nics = config.nics_on(network);
    let wanted: BTreeSet<VlanId> = nics.flat_map(|(_, nic)| nic.vlans.all()).collect();
    let found = inventory
        .link(port.as_str())
        .filter(|_| inventory.link(network.own_bridge().as_str()).is_some());
    let there = found.map(|found| found.vlans.clone()).unwrap_or_default();
    let own = VlanId::DEFAULT;
    let add = wanted
        .iter()
        .filter(|id| !there.contains(id) && **id != own);
    let add = add.map(|id| LinkStep::AddVlan {
        link: port.clone(),
        id: *id,
    });
    let delete = there
        .iter()
        .filter(|id| !wanted.contains(id) && **id != own);
    let delete = delete.map(|id| LinkStep::DeleteVlan {
        link: port.clone(),
        id: *id,
    });
    delete.chain(add).map(Step::from).collect()
}

/// What the host has on the uplink; where that is a bond yet to be made, it has by then what its links have now.
fn take_over_below(uplink: &Uplink, bridge: &IfName, inventory: &Inventory) -> Option<Step> {
    let port = uplink.link();
    if let Some(below) = inventory.link(port.as_str()) {
        return take_over(below, &port, bridge, inventory);
    }
    let mut addresses = Vec::new();
    let mut routes = Vec::new();
    for link in uplink.hardware() {
        if let Some(Step::MoveAddresses {
            addresses: its,
            routes: its_routes,
            ..
        }) = take_over(inventory.link(link.as_str())?, link, bridge, inventory)
        {
            addresses.extend(its);
            routes.extend(its_routes);
        }
    }
    (!addresses.is_empty() || !routes.is_empty()).then(|| Step::MoveAddresses {
        from: port,
        to: bridge.clone(),
        addresses,
        routes,
    })
}

/// The MTU of the uplink, or the one that it is going to have.
fn below_mtu(uplink: &Uplink, inventory: &Inventory) -> Option<u32> {
    if let Some(there) = inventory.link(uplink.base_link().as_str()) {
        return Some(there.mtu);
    }
    let links = uplink.hardware().iter();
    let mtus = links.filter_map(|link| Some(inventory.link(link.as_str())?.mtu));
    mtus.min()
}

/// The link whose address the bridge takes: the uplink, or the first of those it is yet to be made of.
fn hardware<'i>(uplink: &Uplink, inventory: &'i Inventory) -> Option<&'i Link> {
    let base = uplink.base_link();
    let first = || inventory.link(uplink.hardware().first()?.as_str());
    inventory.link(base.as_str()).or_else(first)
}

fn bridge_mac(network: &Network, uplink: &Uplink, inventory: &Inventory) -> MacAddr {
    let own = bridge::bridge_mac(network);
    match uplink.vlan {
        Some(_) => own,
        None => hardware(uplink, inventory)
            .and_then(|link| link.mac)
            .unwrap_or(own),
    }
}

/// What stands in the way: cause and remedy.
pub(super) fn clash(
    config: &Config,
    network: &Network,
    inventory: &Inventory,
) -> Option<(String, String)> {
    let held = inventory.networks.get(&network.name);
    let has_own = network.has_own_bridge() || network.has_shim();
    if held.is_some_and(|held| held.own_link) && !has_own {
        let cause = "it is up with a link of its own".to_owned();
        return Some((cause, format!("run `ringtap down {}` first", network.name)));
    }
    match &network.mode {
        Mode::Bridge {
            bridge: LanBridge::There(bridge),
        } => ovs::clash(network, inventory)
            .or_else(|| no_bridge(network, bridge, inventory))
            .or_else(|| heedless(network, bridge, inventory))
            .or_else(|| large_mtu(network, bridge, inventory)),
        Mode::Bridge {
            bridge: LanBridge::Over { uplink, force },
        } => {
            let own = network.own_bridge();
            uplink::clash(uplink, Some(&own), inventory)
                .or_else(|| {
                    let mac = bridge_mac(network, uplink, inventory);
                    clash::taken_bridge(network, mac, inventory)
                })
                .or_else(|| unbridgeable(uplink, *force, inventory))
                .or_else(|| large_mtu(network, uplink.hardware().first()?, inventory))
        }
        Mode::Macvtap {
            uplink,
            shim,
            force,
            ..
        } => uplink::clash(uplink, None, inventory)
            .or_else(|| {
                let mac = bridge::bridge_mac(network);
                let taken = || clash::taken_name(network, "macvlan", mac, inventory);
                shim.then(taken).flatten()
            })
            .or_else(|| one_mac(uplink, *force, inventory))
            .or_else(|| large_mtu(network, uplink.hardware().first()?, inventory)),
        Mode::Ipvtap { uplink, shim } => uplink::clash(uplink, None, inventory)
            .or_else(|| {
                let mac = hardware(uplink, inventory)?.mac?;
                let taken = || clash::taken_name(network, "ipvlan", mac, inventory);
                shim.then(taken).flatten()
            })
            .or_else(|| hosts_own(config, network, inventory))
            .or_else(|| large_mtu(network, uplink.hardware().first()?, inventory)),
        _ => None,
    }
}

/// An address of a guest's ipvtap that is the host's: the host would no longer get what is for it.
fn hosts_own(
    config: &Config,
    network: &Network,
    inventory: &Inventory,
) -> Option<(String, String)> {
    let nics = config.nics_on(network);
    let mut addresses = nics.flat_map(|(guest, nic)| nic.told().map(move |ip| (guest, ip)));
    addresses.find_map(|(guest, ip)| {
        let has = |link: &&Link| link.addresses.iter().any(|net| net.addr() == ip);
        let link = inventory.links.iter().find(has)?;
        let cause = format!(
            "{ip} of guest {} is the host's own, on link `{}`",
            guest.name, link.name
        );
        Some((cause, "choose another address for the guest".to_owned()))
    })
}

fn large_mtu(network: &Network, below: &IfName, inventory: &Inventory) -> Option<(String, String)> {
    let found = inventory.link(below.as_str())?;
    let mtu = network.mtu.map(u32::from).filter(|mtu| *mtu > found.mtu)?;
    let cause = format!("its MTU of {mtu} is above the {} of `{below}`", found.mtu);
    Some((cause, "lower it, or raise the link's".to_owned()))
}

fn no_bridge(network: &Network, name: &IfName, inventory: &Inventory) -> Option<(String, String)> {
    if network.switch.is_ovs() {
        return None; // it has been looked for
    }
    let Some(found) = inventory.link(name.as_str()) else {
        let cause = format!("the host has no link `{name}`");
        let remedy = "make it (ip link add, or the distribution's way), or name another";
        return Some((cause, remedy.to_owned()));
    };
    if found.kind.as_deref() == Some("bridge") {
        return None;
    }
    if inventory.ovs.bridges.contains_key(name.as_str()) {
        let cause = format!("`{name}` is a bridge of Open vSwitch's");
        return Some((cause, "write switch = \"ovs\"".to_owned()));
    }
    let remedy = match &found.master {
        Some(master) => format!("name `{master}`, which it is a port of"),
        None => format!("name a bridge, or write uplink = \"{name}\" to have one made over it"),
    };
    Some((format!("`{name}` is no bridge"), remedy))
}

/// Whether somebody's bridge heeds VLANs is not ringtap's to say.
fn heedless(network: &Network, name: &IfName, inventory: &Inventory) -> Option<(String, String)> {
    let found = inventory.link(name.as_str())?;
    (network.vlan_filtering && !found.vlan_filtering).then(|| {
        let cause = format!("`{name}` does not heed VLANs");
        let remedy = format!("switch it on: ip link set {name} type bridge vlan_filtering 1");
        (cause, remedy)
    })
}

/// Why an uplink had better not be bridged.
fn unbridgeable(uplink: &Uplink, force: bool, inventory: &Inventory) -> Option<(String, String)> {
    let is_ovs = |link: &&Link| inventory.ovs.bridges.contains_key(&link.name);
    if let Some(link) = hardware_links(uplink, inventory).find(is_ovs) {
        let name = &link.name;
        let cause = format!("`{name}` is a bridge of Open vSwitch's itself");
        let remedy = format!("write bridge = \"{name}\" and switch = \"ovs\" instead of uplink");
        return Some((cause, remedy));
    }
    let is_bridge = |link: &&Link| link.kind.as_deref() == Some("bridge");
    if let Some(link) = hardware_links(uplink, inventory).find(is_bridge) {
        let name = &link.name;
        let cause = format!("`{name}` is a bridge itself");
        return Some((
            cause,
            format!("write bridge = \"{name}\" instead of uplink"),
        ));
    }
    one_mac(uplink, force, inventory).or_else(|| {
        let mut links = hardware_links(uplink, inventory);
        let leased = links.find(|link| link.leased && !force && uplink.vlan.is_none())?;
        let cause = format!("a DHCP client looks after the address of `{}`, and can't on a port of a bridge", leased.name);
        let remedy = "give the host a fixed address, or make the bridge in the distribution's way and write \
                      bridge = \"br0\", or force = true if the address stays for good";
        Some((cause, remedy.to_owned()))
    })
}

/// Why guests had better not show MAC addresses of their own on an uplink.
fn one_mac(uplink: &Uplink, force: bool, inventory: &Inventory) -> Option<(String, String)> {
    hardware_links(uplink, inventory).find_map(|link| {
        if link.wireless {
            let cause = format!(
                "`{}` is wireless: its access point takes the host's address alone",
                link.name
            );
            return Some((
                cause,
                "use mode = \"ipvtap\", \"nat\" or \"routed\"".to_owned(),
            ));
        }
        if force || uplink.vlan.is_some() {
            return None;
        }
        let why = takes_one_mac(link, inventory)?;
        let cause = format!(
            "{why}: many a provider cuts off hosts that show other MAC addresses than their own"
        );
        let remedy = "use mode = \"routed\" or \"ipvtap\", or write force = true if it takes them";
        Some((cause, remedy.to_owned()))
    })
}

/// The links of the host that an uplink is made of, as far as they are there.
fn hardware_links<'i>(
    uplink: &'i Uplink,
    inventory: &'i Inventory,
) -> impl Iterator<Item = &'i Link> {
    let links = uplink.hardware().iter();
    links.filter_map(|link| inventory.link(link.as_str()))
}

/// Signs of a host that is alone on its cable, as hosters have them.
fn takes_one_mac(link: &Link, inventory: &Inventory) -> Option<String> {
    let name = &link.name;
    if let Some(alone) = link.addresses.iter().find(|net| net.prefix_len() == 32) {
        return Some(format!(
            "`{name}` has the address {alone}, on a subnet of its own"
        ));
    }
    let mut defaults = inventory.routes.iter().filter(|route| route.is_default());
    let outside = defaults.find_map(|route| {
        let via = route.via.filter(|via| via.is_ipv4())?;
        let over = route.link.as_deref() == Some(name.as_str());
        let within = link.addresses.iter().any(|net| net.contains(&via));
        (over && !within).then_some(via)
    });
    outside.map(|via| format!("the gateway {via} is outside of the subnets of `{name}`"))
}
