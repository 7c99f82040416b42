//! The nft table of a network: its [`Policy`] as rules.
//!
//! Every network's table has its say on a packet: one from network to network passes if the first lets it out and the
//! second lets it in.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::table_name;
use crate::config::{Config, Forward, HostAccess, Mode, Network, Ports, Protocol};
use crate::network::policy::Policy;
use crate::types::{Family, RateLimit};

/// The whole table of family inet; none where the firewall is the admin's.
pub(super) fn table(config: &Config, network: &Network) -> Option<String> {
    if network.mode == Mode::Open {
        return None;
    }
    let forwards = forwards(config, network);
    let mut chains = vec![forward(network, &forwards)];
    chains.extend(network.rate_out.map(|limit| limited(OUT, limit)));
    chains.extend(network.rate_in.map(|limit| limited(IN, limit)));
    chains.extend(match network.has_host() {
        true => to_host(network),
        false => Some(keep_off(network)),
    });
    if !forwards.is_empty() {
        chains.push(redirect(network, &forwards));
    }
    chains.extend(postrouting(network, &forwards));
    let table = table_name(&network.name);
    Some(format!("table inet {table} {{\n{}}}\n", chains.join("\n")))
}

/// A port forward to one address; all ports are as many as the first.
struct Redirect {
    /// What matches on the way in: the host's address and ports.
    matches: String,
    /// Where it goes.
    to: IpAddr,
    protocol: Protocol,
    to_ports: Ports,
    /// Whether ports stay what they were.
    same_ports: bool,
}

/// Each forward, for each family, and for each port where they change: nft's `dnat` to a range takes any port of it.
fn forwards(config: &Config, network: &Network) -> Vec<Redirect> {
    let mut all = Vec::new();
    for forward in &network.forwards {
        for to in config.targets(network, forward) {
            let same_ports = forward.ports == forward.to_ports;
            let one = |ports: Ports, to_ports: Ports| Redirect {
                matches: matches(forward, ports, to),
                to,
                protocol: forward.protocol,
                to_ports,
                same_ports,
            };
            if same_ports {
                all.push(one(forward.ports, forward.to_ports));
            } else {
                let each = |ports: Ports| {
                    (ports.first..=ports.last).map(|port| Ports {
                        first: port,
                        last: port,
                    })
                };
                let pairs = each(forward.ports).zip(each(forward.to_ports));
                all.extend(pairs.map(|(ports, to_ports)| one(ports, to_ports)));
            }
        }
    }
    all
}

fn matches(forward: &Forward, ports: Ports, to: IpAddr) -> String {
    let address = match (forward.address, to) {
        (Some(address), _) => format!("{} daddr {address}", nft_family(address)),
        (None, IpAddr::V4(_)) => "meta nfproto ipv4 fib daddr type local".to_owned(),
        (None, IpAddr::V6(_)) => "meta nfproto ipv6 fib daddr type local".to_owned(),
    };
    format!("{address} {} dport {ports}", forward.protocol)
}

fn nft_family(ip: IpAddr) -> &'static str {
    match ip {
        IpAddr::V4(_) => "ip",
        IpAddr::V6(_) => "ip6",
    }
}

/// Forwards: from elsewhere and from the host itself. With the bridge told to route 127.0.0.0/8, for what the host sends
/// to itself, guests could reach what listens there alone, but for the first chain.
fn redirect(network: &Network, forwards: &[Redirect]) -> String {
    let bridge = network.own_bridge();
    let keep_out = format!("iifname \"{bridge}\" ip daddr 127.0.0.0/8 drop");
    let rules: Vec<String> = forwards
        .iter()
        .map(|forward| {
            let to = match (forward.to, forward.same_ports) {
                (to, true) => to.to_string(),
                (to, false) => SocketAddr::new(to, forward.to_ports.first).to_string(),
            };
            format!(
                "{} dnat {} to {to}",
                forward.matches,
                nft_family(forward.to)
            )
        })
        .collect();
    [
        chain(
            "localnet",
            "filter hook prerouting priority raw",
            &[keep_out],
        ),
        chain("prerouting", "nat hook prerouting priority dstnat", &rules),
        chain("output", "nat hook output priority -100", &rules),
    ]
    .join("\n")
}

/// Forwarding: among guests (which are forwarded only where br_netfilter makes the bridge ask), from the guests' addresses
/// outwards and to them inwards as far as the policy, the port forwards and the limits go, and nothing else in either
/// direction.
fn forward(network: &Network, forwards: &[Redirect]) -> String {
    let bridge = network.own_bridge();
    // What is refused takes nothing of a limit: else strangers could use it up.
    let goto = |chain, limit: Option<_>| match limit {
        Some(_) => format!("goto {chain}"),
        None => "accept".to_owned(),
    };
    let (out, inwards) = (goto(OUT, network.rate_out), goto(IN, network.rate_in));
    let among_guests = format!("iifname \"{bridge}\" oifname \"{bridge}\"");
    let mut rules = if network.isolate_guests {
        // Forwards are for all who reach the host; else one guest would reach the other by way of the gateway.
        vec![
            format!("{among_guests} ct status dnat accept"),
            format!("{among_guests} reject with icmpx admin-prohibited"),
        ]
    } else {
        vec![format!("{among_guests} accept")]
    };
    for (ip, nets, policy) in families(network) {
        if policy.outbound {
            rules.push(format!("iifname \"{bridge}\" {ip} saddr {nets} {out}"));
        }
        if policy.inbound {
            rules.push(format!("oifname \"{bridge}\" {ip} daddr {nets} {inwards}"));
        } else if policy.outbound {
            let replies = "ct state established,related";
            rules.push(format!(
                "oifname \"{bridge}\" {ip} daddr {nets} {replies} {inwards}"
            ));
        }
    }
    for forward in forwards {
        let Redirect {
            to,
            protocol,
            to_ports,
            ..
        } = forward;
        let target = format!("{} daddr {to} {protocol} dport {to_ports}", nft_family(*to));
        rules.push(format!(
            "oifname \"{bridge}\" {target} ct status dnat {inwards}"
        ));
        let source = format!("{} saddr {to} {protocol} sport {to_ports}", nft_family(*to));
        rules.push(format!(
            "iifname \"{bridge}\" {source} ct status dnat {out}"
        ));
    }
    for name in ["iifname", "oifname"] {
        rules.push(format!(
            "{name} \"{bridge}\" reject with icmpx admin-prohibited"
        ));
    }
    chain("forward", "filter hook forward priority filter", &rules)
}

/// Where what leaves by the gateway goes, and what comes in by it, if there is a limit.
const OUT: &str = "rate_out";
const IN: &str = "rate_in";

/// The chain that lets pass what is within `limit`. Of bytes the kernel lets what comes in a second gather besides the burst.
fn limited(name: &str, limit: RateLimit) -> String {
    let bytes = limit.bits().map(|rate| {
        let a_second = (rate.a_second.get() / 8).max(1);
        format!("{a_second} bytes/second burst {} bytes", rate.burst)
    });
    let packets = limit
        .packets()
        .map(|rate| format!("{}/second burst {} packets", rate.a_second, rate.burst));
    let mut text = format!("\tchain {name} {{\n");
    for over in bytes.into_iter().chain(packets) {
        let _ = writeln!(text, "\t\tlimit rate over {over} drop"); // writing to a String can't fail
    }
    text + "\t\taccept\n\t}\n"
}

/// What guests open to the host itself, at whichever of its addresses: what the network serves, what the file names, and ICMP,
/// by which they find the gateway, and find out what is wrong with their way to it.
fn to_host(network: &Network) -> Option<String> {
    let HostAccess::Only(ports) = &network.host_access else {
        return None;
    };
    let own: &[&str] = match network.has_services() {
        true => &["udp dport { 53, 67, 547 }", "tcp dport 53"],
        false => &[],
    };
    let own = own.iter().map(|it| (*it).to_owned());
    let named = ports.iter();
    let named = named.map(|(protocol, ports)| format!("{protocol} dport {ports}"));
    let accepted = [
        "ct state established,related",
        "meta l4proto { icmp, ipv6-icmp }",
    ];
    let accepted = accepted
        .map(str::to_owned)
        .into_iter()
        .chain(own)
        .chain(named);
    let bridge = network.own_bridge();
    let mut rules: Vec<String> = accepted
        .map(|matches| format!("iifname \"{bridge}\" {matches} accept"))
        .collect();
    rules.push(format!(
        "iifname \"{bridge}\" reject with icmpx admin-prohibited"
    ));
    Some(chain("input", "filter hook input priority filter", &rules))
}

/// A host without an address on the bridge still answers what is sent to one of its other addresses.
fn keep_off(network: &Network) -> String {
    let bridge = network.own_bridge();
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
///
/// A guest that a neighbour reaches by a forward, or the host by 127.0.0.1, must answer to the host, and not to whom it
/// can't know or would speak to directly.
fn postrouting(network: &Network, forwards: &[Redirect]) -> Option<String> {
    let mut rules = Vec::new();
    let bridge = network.own_bridge();
    for (ip, nets, _) in families(network) {
        let mut redirected = forwards.iter();
        if redirected.any(|forward| nft_family(forward.to) == ip) {
            let hairpin = "ct status dnat masquerade";
            rules.push(format!("oifname \"{bridge}\" {ip} saddr {nets} {hairpin}"));
            if ip == "ip" {
                rules.push(format!(
                    "oifname \"{bridge}\" ip saddr 127.0.0.0/8 {hairpin}"
                ));
            }
        }
    }
    let families = families(network).into_iter();
    for (ip, nets, _) in families.filter(|(.., policy)| policy.masquerade) {
        let to_all: &[&str] = match ip {
            "ip" => &["224.0.0.0/24", "255.255.255.255"],
            _ => &["ff00::/8"],
        };
        for all in to_all {
            rules.push(format!("{ip} saddr {nets} {ip} daddr {all} return"));
        }
        let beyond = format!("{ip} saddr {nets} {ip} daddr != {nets}");
        // Ports below 1024 would be given to guests that use such, and some servers trust those.
        let ports = "meta l4proto { tcp, udp } masquerade to :1024-65535";
        rules.push(format!("{beyond} {ports}"));
        rules.push(format!("{beyond} masquerade"));
    }
    let hook = "nat hook postrouting priority srcnat";
    (!rules.is_empty()).then(|| chain("postrouting", hook, &rules))
}

/// Each family that the network has addresses of, as nft calls it: its own and what is behind machines on it, those
/// together that may do the same.
fn families(network: &Network) -> Vec<(&'static str, String, Policy)> {
    let mut all = Vec::new();
    for family in Family::BOTH {
        let mut alike: Vec<(Policy, Vec<IpNet>)> = Vec::new();
        for net in network.nets(family) {
            let Some(policy) = Policy::of_net(network, net) else {
                continue;
            };
            match alike.iter_mut().find(|(known, _)| *known == policy) {
                Some((_, nets)) => nets.push(net),
                None => alike.push((policy, vec![net])),
            }
        }
        let ip = match family {
            Family::Ipv4 => "ip",
            Family::Ipv6 => "ip6",
        };
        all.extend(
            alike
                .into_iter()
                .map(|(policy, nets)| (ip, set(&nets), policy)),
        );
    }
    all
}

fn set(nets: &[IpNet]) -> String {
    match nets {
        [net] => net.to_string(),
        _ => {
            let nets: Vec<String> = nets.iter().map(IpNet::to_string).collect();
            format!("{{ {} }}", nets.join(", "))
        }
    }
}

fn chain(name: &str, hook: &str, rules: &[String]) -> String {
    let mut text = format!("\tchain {name} {{\n\t\ttype {hook}; policy accept;\n");
    for rule in rules {
        let _ = writeln!(text, "\t\t{rule}"); // writing to a String can't fail
    }
    text + "\t}\n"
}
