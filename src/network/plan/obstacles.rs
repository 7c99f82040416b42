//! Chains of other firewalls that let not everything pass, and that ringtap does not touch: named, with what their owner can do.
//!
//! Whether a firewall stands in the way of a network can't be told for certain without a packet. A base chain that ends by
//! letting nothing pass does as long as none of its rules, nor of those that it leads to, speaks of the network's bridge.

use super::{DOCKER_USER, Remark, bridged, firewall, passes};
use crate::config::{Config, Network};
use crate::network::inventory::{Chain, End, Hook, Inventory};
use crate::network::policy::Policy;
use crate::types::Family;

/// The chains that stand in the way of `network`.
pub(super) fn remarks(config: &Config, network: &Network, inventory: &Inventory) -> Vec<Remark> {
    let chains = inventory.chains.iter().filter_map(|chain| {
        let hook = chain.hook?;
        let stops = stops(config, network, inventory, chain, hook);
        stops.then(|| Remark {
            network: Some(network.name.clone()),
            text: format!(
                "in the way: {}; {}",
                described(chain),
                remedy(network, inventory, chain, hook)
            ),
        })
    });
    chains.collect()
}

/// Whether `chain` stops packets of `network` that come to it by `hook`.
fn stops(
    config: &Config,
    network: &Network,
    inventory: &Inventory,
    chain: &Chain,
    hook: Hook,
) -> bool {
    if chain.end == End::Accept || chain.links.contains(network.trunk().as_str()) {
        return false;
    }
    let mut families = families(chain);
    match hook {
        Hook::Forward => families.any(|family| {
            let routed = passes(config, network, family)
                && !firewall::lets_routed_pass(config, network, inventory, chain);
            // Those of iptables get a rule.
            let bridged =
                bridged::is_accepted(config, network, inventory, family) && chain.program.is_none();
            routed || bridged
        }),
        Hook::Input => {
            network.has_host() && families.any(|family| network.prefix(family).is_some())
        }
    }
}

/// Which packets come to `chain`.
fn families(chain: &Chain) -> impl Iterator<Item = Family> {
    let family = chain.family.clone();
    Family::BOTH.into_iter().filter(move |it| {
        family == "inet"
            || family
                == match it {
                    Family::Ipv4 => "ip",
                    Family::Ipv6 => "ip6",
                }
    })
}

fn described(chain: &Chain) -> String {
    let Chain {
        family,
        table,
        name,
        ..
    } = chain;
    let end = match chain.end {
        End::Accept => "lets pass",
        End::Policy => "has the policy drop",
        End::Drop => "ends in drop",
        End::Reject => "ends in reject",
    };
    match chain.program.filter(|program| program.is_legacy()) {
        Some(program) => format!("chain {name} of {} {end}", program.name()),
        None => format!("table {family} {table} chain {name} {end}"),
    }
}

/// Who makes the rules of a chain.
enum Owner {
    Firewalld,
    Ufw,
    /// Docker, on a host without iptables.
    Docker,
    /// A person or a program that is not known here.
    Somebody,
}

fn owner(chain: &Chain) -> Owner {
    let leads_to = |part: &str| chain.leads_to.iter().any(|name| name.contains(part));
    if chain.table == "firewalld" || leads_to("_ZONES") {
        Owner::Firewalld
    } else if leads_to("ufw") {
        Owner::Ufw
    } else if chain.program.is_none() && leads_to(DOCKER_USER) {
        Owner::Docker
    } else {
        Owner::Somebody
    }
}

/// What a person can do, in the words of who owns `chain`.
fn remedy(network: &Network, inventory: &Inventory, chain: &Chain, hook: Hook) -> String {
    let bridge = network.trunk();
    match (owner(chain), hook) {
        (Owner::Firewalld, _) => format!(
            "run `firewall-cmd --permanent --zone=trusted --add-interface={bridge}` and `firewall-cmd --reload` (with \
             --zone=libvirt, where libvirt has made that, guests reach no more of the host than they need)"
        ),
        (Owner::Ufw, Hook::Forward) if lets_in(network) => {
            format!("run `ufw route allow in on {bridge}` and `ufw route allow out on {bridge}`")
        }
        (Owner::Ufw, Hook::Forward) => format!("run `ufw route allow in on {bridge}`"),
        (Owner::Ufw, Hook::Input) => {
            let ports = ports(network, chain).join(",");
            format!("run `ufw allow in on {bridge} to any port {ports} proto udp`")
        }
        (Owner::Docker, Hook::Forward) => {
            "install the package iptables, with which `ringtap up` lets guests pass".to_owned()
        }
        (Owner::Docker | Owner::Somebody, _) => rules(network, inventory, chain, hook),
    }
}

/// The commands that put rules for `network` into `chain`, whoever has made it.
fn rules(network: &Network, inventory: &Inventory, chain: &Chain, hook: Hook) -> String {
    let Chain {
        family,
        table,
        name,
        ..
    } = chain;
    let bridge = network.trunk();
    let ports = ports(network, chain);
    match (chain.program, hook) {
        (Some(program), Hook::Forward) => {
            let docker = firewall::chain(program, DOCKER_USER, inventory);
            let name = docker.map_or(name, |docker| &docker.name);
            let insert = format!("{} -I {name}", program.name());
            format!("run `{insert} -i {bridge} -j ACCEPT` and `{insert} -o {bridge} -j ACCEPT`")
        }
        (Some(program), Hook::Input) => {
            let (program, ports) = (program.name(), ports.join(","));
            format!(
                "run `{program} -I {name} -i {bridge} -p udp -m multiport --dports {ports} -j ACCEPT`"
            )
        }
        (None, Hook::Forward) => {
            let insert = format!("nft insert rule {family} {table} {name}");
            format!("run `{insert} iifname {bridge} accept` and `{insert} oifname {bridge} accept`")
        }
        (None, Hook::Input) => {
            let insert = format!("nft insert rule {family} {table} {name}");
            let ports = ports.join(", ");
            format!("run `{insert} iifname {bridge} udp dport {{ {ports} }} accept`")
        }
    }
}

/// Whether others may open connections to guests.
fn lets_in(network: &Network) -> bool {
    let policies = Family::BOTH.map(|family| Policy::of(network, family));
    policies.iter().flatten().any(|policy| policy.inbound)
}

/// The UDP ports of DNS and DHCP that guests need of the host and that come to `chain`.
fn ports(network: &Network, chain: &Chain) -> Vec<&'static str> {
    let dhcp = families(chain).filter(|family| network.prefix(*family).is_some());
    let dhcp = dhcp.map(|family| match family {
        Family::Ipv4 => "67",
        Family::Ipv6 => "547",
    });
    ["53"].into_iter().chain(dhcp).collect()
}
