//! What a network needs on the host: a bridge with the gateway's addresses, rules, routes, dnsmasq.

use std::net::IpAddr;

use ipnet::IpNet;

use super::link_step::{Kind, LinkStep};
use super::step::Step;
use super::{dnsmasq, firewall, mtu, network_dir, ovs, rules, sysctl, table_name, tenant};
use crate::config::{Config, Network, StaticRoute};
use crate::network::inventory::{Held, Inventory, Link, Table};
use crate::types::{Family, IfName, MacAddr};

/// The steps that make `network` of what is there. Rules come before the bridge is up, so that there is no
/// moment in which the network is open.
pub(super) fn steps(config: &Config, network: &Network, inventory: &Inventory) -> Vec<Step> {
    let nothing = Held::default();
    let held = inventory.networks.get(&network.name).unwrap_or(&nothing);
    let mut steps = Vec::new();
    if !held.dir {
        let dir = network_dir(&inventory.run_dir, &network.name);
        steps.push(Step::MakeDir { dir });
    }
    let namespace = tenant::namespace_steps(network, inventory);
    let rest = match namespace.is_empty() {
        true => link_steps(config, network, held, inventory),
        // What a link to an old one has goes with it.
        false => {
            let without = inventory.without(&network.own_bridge());
            link_steps(config, network, held, &without)
        }
    };
    steps.into_iter().chain(namespace).chain(rest).collect()
}

/// The steps to the link that is the network's own, and to all that belongs to it.
fn link_steps(config: &Config, network: &Network, held: &Held, inventory: &Inventory) -> Vec<Step> {
    let name = network.own_bridge();
    let found = inventory.link(name.as_str());
    let mut steps = Vec::new();
    steps.extend(make(network, bridge_mac(network), inventory));
    steps.extend(vlan_filtering(network, found));
    steps.extend(sysctls(network, &name, inventory));
    let mtu = mtu::of(config, network, inventory);
    let was = found.map_or(super::DEFAULT_MTU, |link| link.mtu);
    steps.extend(set_mtu(network, mtu, was, inventory));
    steps.extend(old_routes(network, &name, held, inventory));
    let addresses = addresses(network, &name, held, found);
    let routes = routes(network, &name, &addresses, inventory);
    steps.extend(addresses.into_iter().map(Step::from));
    steps.extend(table(config, network, held.table.as_ref()));
    steps.extend(firewall::steps(config, network, inventory));
    if !found.is_some_and(|link| link.up) {
        steps.push(LinkStep::SetUp { link: name }.into());
    }
    steps.extend(ovs::ports(config, network, inventory));
    steps.extend(routes);
    steps.extend(proxies(network, held, inventory));
    steps.extend(services(config, network, held, inventory));
    steps
}

/// The kind of link that the network's own is: a bridge, unless a router is all that is on it.
pub(super) fn kind(network: &Network) -> Kind {
    tenant::cable(network).unwrap_or(Kind::Bridge {
        vlan_filtering: network.vlan_filtering,
    })
}

/// Makes the network's own link, with address `mac`, where it is not there.
pub(super) fn make(network: &Network, mac: MacAddr, inventory: &Inventory) -> Option<Step> {
    if network.switch.is_ovs() {
        return ovs::own_bridge(network, mac, inventory);
    }
    let link = network.own_bridge();
    let missing = inventory.link(link.as_str()).is_none();
    let (kind, mac) = (kind(network), Some(mac));
    missing.then(|| LinkStep::Add { link, kind, mac }.into())
}

/// Gives the network's own bridge the MTU `mtu`, unless it has that.
pub(super) fn set_mtu(
    network: &Network,
    mtu: u32,
    was: u32,
    inventory: &Inventory,
) -> Option<Step> {
    if network.switch.is_ovs() {
        return ovs::mtu(network, mtu, was, inventory);
    }
    let link = network.own_bridge();
    (mtu != was).then(|| LinkStep::SetMtu { link, mtu, was }.into())
}

/// A bridge that is there heeds VLANs, or not, as the file has it now.
pub(super) fn vlan_filtering(network: &Network, found: Option<&Link>) -> Option<Step> {
    let found = found.filter(|_| !network.switch.is_ovs())?;
    let on = network.vlan_filtering;
    let link = network.own_bridge();
    (found.vlan_filtering != on).then(|| LinkStep::SetVlanFiltering { link, on }.into())
}

/// What the host does on the bridge by itself. As the gateway it takes no other's router advertisements, which a guest
/// may send; where it has no IPv6 address it has no link-local one either, by which guests could reach it. What the host
/// sends to 127.0.0.1 may be forwarded to a guest only if the bridge is told that such is no mistake.
fn sysctls(network: &Network, link: &IfName, inventory: &Inventory) -> Vec<Step> {
    let gateways = network.gateways();
    let ipv6 = gateways.iter().any(|net| matches!(net, IpNet::V6(_)));
    let truth = |truth| if truth { "1" } else { "0" };
    let set = |family, name, values| sysctl::set(family, link, name, values, inventory);
    let mut steps = Vec::new();
    if inventory.has_ipv6() {
        steps.extend(set(Family::Ipv6, "disable_ipv6", ("0", truth(!ipv6))));
        if ipv6 {
            steps.extend(set(Family::Ipv6, "accept_ra", ("1", "0")));
        }
    }
    let forwards = truth(!network.forwards.is_empty());
    steps.extend(set(Family::Ipv4, "route_localnet", ("0", forwards)));
    steps
}

/// Only addresses of ours go: a person may have added one.
fn addresses(network: &Network, link: &IfName, held: &Held, found: Option<&Link>) -> Vec<LinkStep> {
    let wanted = network.gateways();
    let there = |address: &&IpNet| found.is_some_and(|link| link.addresses.contains(address));
    let old = held.addresses.iter().filter(there);
    let old = old.filter(|address| !wanted.contains(address));
    let delete = old.map(|&address| LinkStep::DeleteAddress {
        link: link.clone(),
        address,
    });
    let missing = wanted.iter().filter(|address| !there(address));
    let add = missing.map(|&address| LinkStep::AddAddress {
        link: link.clone(),
        address,
    });
    delete.chain(add).collect()
}

/// Only routes of ours go.
fn old_routes(network: &Network, link: &IfName, held: &Held, inventory: &Inventory) -> Vec<Step> {
    let there = held
        .routes
        .iter()
        .filter(|route| inventory.has(route, link));
    let old = there.filter(|route| !network.all_routes().any(|wanted| wanted == *route));
    let delete = old.map(|&route| LinkStep::DeleteRoute {
        link: link.clone(),
        route,
    });
    delete.map(Step::from).collect()
}

/// The routes that are missing, or go with an address that the steps `before` them delete: with a link's last of a family go
/// its routes.
fn routes(
    network: &Network,
    link: &IfName,
    before: &[LinkStep],
    inventory: &Inventory,
) -> Vec<Step> {
    let goes = |route: &StaticRoute| {
        let of_family = |step: &LinkStep| match step {
            LinkStep::DeleteAddress { address, .. } => Family::of(address.addr()) == route.family(),
            _ => false,
        };
        before.iter().any(of_family)
    };
    let missing = network
        .all_routes()
        .filter(|route| goes(route) || !inventory.has(route, link));
    let add = missing.map(|&route| LinkStep::AddRoute {
        link: link.clone(),
        route,
    });
    add.map(Step::from).collect()
}

/// Where a provider expects its addresses on the cable, the host answers for those of its guests. For IPv6 the link must be
/// told that it may.
fn proxies(network: &Network, held: &Held, inventory: &Inventory) -> Vec<Step> {
    let wanted: Vec<(IfName, IpAddr)> = network
        .proxy
        .iter()
        .flat_map(|link| {
            network
                .singles
                .iter()
                .map(move |it| (link.clone(), it.to.addr()))
        })
        .collect();
    let there = |(link, address): &(IfName, IpAddr)| {
        let found = inventory.link(link.as_str());
        found.is_some_and(|found| found.proxies.contains(address))
    };
    let old = held
        .proxies
        .iter()
        .filter(|it| there(it) && !wanted.contains(it));
    let delete = old
        .cloned()
        .map(|(link, address)| LinkStep::DeleteProxy { link, address });
    let missing = wanted.iter().filter(|it| !there(it));
    let add = missing
        .cloned()
        .map(|(link, address)| LinkStep::AddProxy { link, address });
    let ipv6 = wanted.iter().find(|(_, address)| address.is_ipv6());
    let may_answer = ipv6
        .and_then(|(link, _)| sysctl::set(Family::Ipv6, link, "proxy_ndp", ("0", "1"), inventory));
    let steps = delete.chain(add).map(Step::from);
    may_answer.into_iter().chain(steps).collect()
}

fn table(config: &Config, network: &Network, was: Option<&Table>) -> Option<Step> {
    let table = table_name(&network.name);
    let rules_were = || was.map(|was| was.rules.clone());
    match rules::table(config, network) {
        Some(rules) => {
            let there = was.is_some_and(|was| was.intact && was.rules == rules);
            (!there).then(|| Step::ReplaceTable {
                table,
                rules,
                was: rules_were(),
            })
        }
        None => was.is_some().then(|| Step::DeleteTable {
            table,
            was: rules_were(),
        }),
    }
}

fn services(config: &Config, network: &Network, held: &Held, inventory: &Inventory) -> Vec<Step> {
    let dir = network_dir(&inventory.run_dir, &network.name);
    let found = held.dnsmasq.as_ref();
    if network.has_services() {
        let files = dnsmasq::texts(config, network, inventory);
        dnsmasq::steps(&dir, files, found)
    } else {
        dnsmasq::none(&dir, found)
    }
}

/// The bridge's own address. A bridge without one takes the lowest of its ports', and changes it as guests
/// come and go.
pub(super) fn bridge_mac(network: &Network) -> MacAddr {
    MacAddr::derived_from(&format!("network/{}", network.name))
}
