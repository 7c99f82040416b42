//! `ringtap reach` against packets: a host with a network of every kind, guests on each, and the world outside, who all
//! try to open TCP connections, exchange UDP and ping each other, in both families. Guests are namespaces.

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::thread;

use ringtap::network::port::Port;
use ringtap::types::MacAddr;
use serde_json::Value;
use support::golden;
use support::host::{Host, nic};
use support::netns::{Netns, bounded};
use support::party::{PORT, Party, reaches, seen_by, serve};

const NETWORKS: &str = r#"
[networks.default]
mode = "nat"
subnet = "10.1.0.0/24"
ipv6 = "2001:db8:1::/64"

[networks.local]
mode = "nat"
host-access = ["all"]
subnet = "10.2.0.0/24"
ipv6 = "fd00:2::/64"

[networks.six]
mode = "nat"
ipv6 = "fd00:3::/64"
nat66 = true

[networks.public]
mode = "routed"
host-access = ["udp:9", "tcp:7777"] # support::party::PORT
subnet = "10.4.0.0/24"
ipv6 = "2001:db8:4::/80"

[networks.lab]
mode = "isolated"
subnet = "10.5.0.0/24"
ipv6 = "fd00:5::/64"

[networks.dark]
mode = "isolated"
host = false
subnet = "10.6.0.0/24"
ipv6 = "fd00:6::/64"

[networks.apart]
mode = "nat"
isolate-guests = true
subnet = "10.8.0.0/24"
ipv6 = "2001:db8:8::/64"

[networks.wild]
mode = "open"
subnet = "10.7.0.0/24"
ipv6 = "2001:db8:7::/64"
"#;

/// Each network's name and its prefixes, but for the last part of an address.
const PREFIXES: [(&str, Option<&str>, &str); 8] = [
    ("default", Some("10.1.0."), "2001:db8:1::"),
    ("local", Some("10.2.0."), "fd00:2::"),
    ("six", None, "fd00:3::"),
    ("public", Some("10.4.0."), "2001:db8:4::"),
    ("lab", Some("10.5.0."), "fd00:5::"),
    ("dark", Some("10.6.0."), "fd00:6::"),
    ("apart", Some("10.8.0."), "2001:db8:8::"),
    ("wild", Some("10.7.0."), "2001:db8:7::"),
];

/// How many cells are tried at once: what is dropped is a long wait.
const HANDS: usize = 17;

/// A guest of `network`: with addresses, a port on the bridge, and a way out through the gateway whether the network has
/// one or not, so that nothing but the host keeps it in.
fn guest(host: &Host, network: &str, number: u8) -> Party {
    let (_, ipv4, ipv6) = PREFIXES.iter().find(|(name, ..)| *name == network).unwrap();
    let guest = Netns::new(&format!("{network}{number}"));
    let port = format!("{network}{number}");
    // One address a family, or UDP would answer from another one than was asked.
    guest.run("sysctl -w net.ipv6.conf.default.accept_ra=0");
    host.netns.join(&port, &guest, "eth0");
    let bridge = format!("rt-{network}");
    let config = host.config();
    let plugged = host.netns.within(|| {
        let nic = nic(network, MacAddr::derived_from(&port));
        let network = config.network(&nic.network).unwrap();
        let port = Port::new(&port.parse().unwrap(), &nic, network, &host.run_dir());
        port.attach()
    });
    plugged.unwrap();
    let mac = host
        .netns
        .run(&format!("cat /sys/class/net/{bridge}/address"));
    let mac = mac.trim();
    let length = if network == "public" { 80 } else { 64 };
    let nets = ipv4
        .map(|prefix| (prefix, 24, "brd +"))
        .into_iter()
        .chain([(*ipv6, length, "nodad")]);
    let mut ips = Vec::new();
    for (prefix, length, option) in nets {
        let ip = format!("{prefix}{number}");
        guest.run(&format!("ip address add {ip}/{length} {option} dev eth0"));
        guest.run(&format!("ip route add default via {prefix}1 dev eth0"));
        if network == "dark" {
            guest.run(&format!("ip neigh add {prefix}1 lladdr {mac} dev eth0"));
        }
        ips.push(ip);
    }
    Party::new(guest, &ips)
}

/// The world beyond the uplink, which knows a way to every guest.
fn outside(host: &Host) -> Party {
    let outside = Netns::new("outside");
    host.netns.join("uplink", &outside, "eth0");
    for (netns, link, last) in [(&host.netns, "uplink", 2), (&outside, "eth0", 1)] {
        netns.run(&format!("ip address add 198.51.100.{last}/24 dev {link}"));
        netns.run(&format!(
            "ip address add 2001:db8:ff::{last}/64 nodad dev {link}"
        ));
    }
    for (_, ipv4, ipv6) in PREFIXES {
        if let Some(ipv4) = ipv4 {
            outside.run(&format!("ip route add {ipv4}0/24 via 198.51.100.2"));
        }
        outside.run(&format!("ip route add {ipv6}/64 via 2001:db8:ff::2"));
    }
    let ips = ["198.51.100.1", "2001:db8:ff::1"].map(str::to_owned);
    Party::new(outside, &ips)
}

struct World {
    host: Host,
    outside: Party,
    /// Two of each network: one that opens connections, one to whom they are opened.
    guests: BTreeMap<&'static str, [Party; 2]>,
}

impl World {
    fn new() -> Self {
        let host = Host::new(NETWORKS);
        let outside = outside(&host);
        host.ringtap(&["up"]).succeeded();
        serve(&host.netns);
        // The host knows a way to those that it keeps off, so that only its rules do.
        host.netns.run("ip route add 10.6.0.0/24 dev rt-dark");
        let two = |network: &'static str| [10, 20].map(|number| guest(&host, network, number));
        let guests: BTreeMap<_, _> = PREFIXES.map(|(network, ..)| (network, two(network))).into();
        // Frames between ports are the bridge's alone to pass or not, as on most hosts; where br_netfilter is not even
        // there, so are they.
        for tables in ["iptables", "ip6tables"] {
            let key = format!("net.bridge.bridge-nf-call-{tables}");
            host.netns.attempt(&format!("sysctl -w {key}=0"));
        }
        // Every refusal is to be told, so that nobody waits for it.
        host.netns.run("sysctl -w net.ipv4.icmp_ratelimit=0");
        host.netns.run("sysctl -w net.ipv6.icmp.ratelimit=0");
        // Ports that have just got their carrier lose what comes first; a checked address has waited for that.
        let guests_and_host = guests.values().flatten().map(|party| &party.netns);
        for netns in guests_and_host.chain([&host.netns]) {
            netns.settle();
        }
        Self {
            host,
            outside,
            guests,
        }
    }

    /// What `ringtap reach` says.
    fn said(&self) -> Vec<Cell> {
        let json = self.host.ringtap(&["reach", "--json"]).succeeded();
        let json: Value = serde_json::from_str(&json).unwrap();
        let family = |key: &'static str| {
            let cells = json[key].as_array().unwrap().iter();
            cells.filter_map(move |cell| {
                let word = |key: &str| Some(cell[key].as_str()?.to_owned());
                Some(Cell {
                    ipv6: key == "ipv6",
                    from: word("from")?,
                    to: word("to")?,
                    allowed: word("allowed")?,
                })
            })
        };
        family("ipv4").chain(family("ipv6")).collect()
    }

    /// What was tried and turned out otherwise than the cell says. No rule but ringtap's is on this host.
    fn refutes<'c>(&self, cell: &'c Cell) -> Option<(&'c Cell, [bool; 3])> {
        let mut expected = [cell.allowed != "no"; 3];
        if cell.to == "(host)" && cell.from != "dark" {
            expected[2] = true; // a gateway answers pings
            expected[0] |= cell.from == "public"; // one of the host's ports
        }
        let tried = self.tried(cell);
        (tried != expected).then_some((cell, tried))
    }

    /// Whether TCP, UDP and ICMP get from where the cell says to where it says.
    fn tried(&self, cell: &Cell) -> [bool; 3] {
        let from = match &*cell.from {
            "(host)" => &self.host.netns,
            "(outside)" => &self.outside.netns,
            network => &self.guests[network][0].netns,
        };
        let to = match (&*cell.to, &*cell.from) {
            // The host has no address here; elsewhere it has.
            ("(host)", "dark") if cell.ipv6 => "2001:db8:ff::2".parse().unwrap(),
            ("(host)", "dark") => "198.51.100.2".parse().unwrap(),
            ("(host)", network) => gateway(network, cell.ipv6),
            ("(outside)", _) => self.outside.ip(cell.ipv6),
            (network, _) => self.guests[network][1].ip(cell.ipv6),
        };
        reaches(from, to)
    }
}

fn gateway(network: &str, ipv6: bool) -> IpAddr {
    let mut prefixes = PREFIXES.iter();
    let (_, v4, v6) = prefixes.find(|(name, ..)| *name == network).unwrap();
    let prefix = if ipv6 { v6 } else { &v4.unwrap() };
    format!("{prefix}1").parse().unwrap()
}

/// A cell of the table.
#[derive(Debug)]
struct Cell {
    ipv6: bool,
    from: String,
    to: String,
    allowed: String,
}

#[test]
fn the_table_is_printed_for_people() {
    let config = "--config=tests/plans/modes/config.toml";
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringtap"));
    let output = bounded(command.args(["reach", config]), "");
    let text = String::from_utf8(output.stdout).unwrap();
    golden::compare(Path::new("tests/reach.txt"), &text).unwrap();
}

#[test]
fn packets_go_where_reach_says_and_nowhere_else() {
    let world = World::new();
    let cells = world.said();
    let count = |word: &str| cells.iter().filter(|cell| cell.allowed == word).count();
    assert!(
        count("yes") > 20 && count("no") > 50 && count("admin") > 10,
        "{cells:?}"
    );
    let wrong: Vec<_> = thread::scope(|scope| {
        let shares: Vec<_> = (0..HANDS)
            .map(|hand| {
                let share = cells.iter().skip(hand).step_by(HANDS);
                scope.spawn(|| {
                    let wrong = share.filter_map(|cell| world.refutes(cell));
                    wrong.collect::<Vec<_>>()
                })
            })
            .collect();
        let wrong = shares.into_iter().map(|share| share.join().unwrap());
        wrong.flatten().collect()
    });
    assert!(wrong.is_empty(), "{wrong:#?}");

    // Those who share the host's address show up with it, and nobody else.
    let seen = |network: &str, ipv6| {
        let ip = world.outside.ip(ipv6);
        seen_by((ip, PORT).into(), &world.guests[network][0].netns).map(|ip| ip.to_string())
    };
    assert_eq!(seen("default", false).as_deref(), Some("198.51.100.2"));
    assert_eq!(seen("default", true).as_deref(), Some("2001:db8:1::10"));
    assert_eq!(seen("six", true).as_deref(), Some("2001:db8:ff::2"));
    assert_eq!(seen("public", false).as_deref(), Some("10.4.0.10"));
    assert_eq!(seen("wild", false).as_deref(), Some("10.7.0.10"));

    // Without the rules others are let in and out: so the rules are what kept them.
    world.host.netns.run("nft flush ruleset");
    let denied = cells
        .iter()
        .filter(|cell| cell.allowed == "no" && cell.from == "(outside)" && cell.to != "dark");
    let still: Vec<_> = denied
        .filter(|cell| world.tried(cell) != [true; 3])
        .collect();
    assert!(still.is_empty(), "{still:#?}");
}
