//! The nft table of a network: its [`Policy`] as rules.
//!
//! Every network's table has its say on a packet: one from network to network passes if the first lets it out and the
//! second lets it in.

use std::fmt::Write;

use super::table_name;
use crate::config::{Mode, Network};
use crate::network::policy::Policy;
use crate::types::Family;

/// The whole table of family inet; none where the firewall is the admin's.
pub(super) fn table(network: &Network) -> Option<String> {
    if network.mode == Mode::Open {
        return None;
    }
    let mut chains = vec![forward(network)];
    if !network.has_host() {
        chains.push(keep_off(network));
    }
    chains.extend(postrouting(network));
    let table = table_name(&network.name);
    Some(format!("table inet {table} {{\n{}}}\n", chains.join("\n")))
}

/// Forwarding: among guests (which are forwarded only where br_netfilter makes the bridge ask), from the guests' addresses
/// outwards and to them inwards as far as the policy goes, and nothing else in either direction.
fn forward(network: &Network) -> String {
    let bridge = network.bridge();
    let mut rules = vec![format!("iifname \"{bridge}\" oifname \"{bridge}\" accept")];
    for (ip, net, policy) in families(network) {
        if policy.outbound {
            rules.push(format!("iifname \"{bridge}\" {ip} saddr {net} accept"));
        }
        if policy.inbound {
            rules.push(format!("oifname \"{bridge}\" {ip} daddr {net} accept"));
        } else if policy.outbound {
            let replies = "ct state established,related accept";
            rules.push(format!("oifname \"{bridge}\" {ip} daddr {net} {replies}"));
        }
    }
    for name in ["iifname", "oifname"] {
        rules.push(format!(
            "{name} \"{bridge}\" reject with icmpx admin-prohibited"
        ));
    }
    chain("forward", "filter hook forward priority filter", &rules)
}

/// A host without an address on the bridge still answers what is sent to one of its other addresses.
fn keep_off(network: &Network) -> String {
    let bridge = network.bridge();
    let rule = |name| format!("{name} \"{bridge}\" drop");
    let input = chain(
        "input",
        "filter hook input priority filter",
        &[rule("iifname")],
    );
    let output = chain(
        "output",
        "filter hook output priority filter",
        &[rule("oifname")],
    );
    format!("{input}\n{output}")
}

/// Masquerading; for IPv4 what is meant for all on the network stays as it is.
fn postrouting(network: &Network) -> Option<String> {
    let mut rules = Vec::new();
    for (ip, net, _) in families(network).filter(|(.., policy)| policy.masquerade) {
        let to_all: &[&str] = match ip {
            "ip" => &["224.0.0.0/24", "255.255.255.255"],
            _ => &["ff00::/8"],
        };
        for all in to_all {
            rules.push(format!("{ip} saddr {net} {ip} daddr {all} return"));
        }
        let beyond = format!("{ip} saddr {net} {ip} daddr != {net}");
        // Ports below 1024 would be given to guests that use such, and some servers trust those.
        let ports = "meta l4proto { tcp, udp } masquerade to :1024-65535";
        rules.push(format!("{beyond} {ports}"));
        rules.push(format!("{beyond} masquerade"));
    }
    let hook = "nat hook postrouting priority srcnat";
    (!rules.is_empty()).then(|| chain("postrouting", hook, &rules))
}

/// Each family that the network has addresses of: as nft calls it, the addresses, and what they may do.
fn families(network: &Network) -> impl Iterator<Item = (&'static str, ipnet::IpNet, Policy)> {
    Family::BOTH.into_iter().filter_map(|family| {
        let ip = match family {
            Family::Ipv4 => "ip",
            Family::Ipv6 => "ip6",
        };
        Some((ip, network.prefix(family)?, Policy::of(network, family)?))
    })
}

fn chain(name: &str, hook: &str, rules: &[String]) -> String {
    let mut text = format!("\tchain {name} {{\n\t\ttype {hook}; policy accept;\n");
    for rule in rules {
        let _ = writeln!(text, "\t\t{rule}"); // writing to a String can't fail
    }
    text + "\t}\n"
}
