//! Static routes to what is behind a machine on a network, tried with packets: a namespace on the bridge that forwards, and one
//! behind it.

mod support;

use std::net::{IpAddr, UdpSocket};

use support::host::Host;
use support::netns::{Netns, difference};
use support::party::{PORT, Party, reaches, seen_by, serve};

const NETWORKS: &str = r#"
[networks.default]
mode = "nat"
subnet = "10.1.0.0/24"
ipv6 = "fd00:1::/64"
nat66 = true
host-access = ["all"]
routes = ["10.11.0.0/16 via 10.1.0.5", "fd00:11::/48 via fd00:1::5"]

[networks.public]
mode = "routed"
subnet = "10.2.0.0/24"
ipv6 = "2001:db8:2::/64"
routes = ["10.12.0.0/16 via 10.2.0.5", "2001:db8:12::/48 via 2001:db8:2::5 metric 7"]

[networks.lab]
mode = "isolated"
subnet = "10.3.0.0/24"
routes = ["10.13.0.0/16 via 10.3.0.5"]
"#;

/// A machine on a network's bridge, with the gateway as its way out.
fn on_bridge(host: &Host, network: &str, number: u8, prefixes: &[&str]) -> Party {
    let netns = Netns::new(&format!("{network}{number}"));
    let port = format!("{network}{number}");
    netns.run("sysctl -w net.ipv6.conf.default.accept_ra=0");
    host.netns.join(&port, &netns, "eth0");
    host.netns
        .run(&format!("ip link set {port} master rt-{network}"));
    for prefix in prefixes {
        let (length, option) = if prefix.contains(':') {
            (64, "nodad")
        } else {
            (24, "brd +")
        };
        netns.run(&format!(
            "ip address add {prefix}{number}/{length} {option} dev eth0"
        ));
        netns.run(&format!("ip route add default via {prefix}1 dev eth0"));
    }
    let ips: Vec<String> = prefixes
        .iter()
        .map(|prefix| format!("{prefix}{number}"))
        .collect();
    Party::new(netns, &ips)
}

/// A machine behind number 5 of a network, which forwards; and that one.
fn behind(host: &Host, network: &str, prefixes: &[&str], beyond: &[&str]) -> (Party, Party) {
    let router = on_bridge(host, network, 5, prefixes);
    let far = Netns::new(&format!("{network}-far"));
    router.netns.join("eth1", &far, "eth0");
    router.netns.run("sysctl -w net.ipv4.ip_forward=1");
    router.netns.run("sysctl -w net.ipv6.conf.all.forwarding=1");
    for prefix in beyond {
        let (length, option) = if prefix.contains(':') {
            (64, "nodad")
        } else {
            (24, "brd +")
        };
        for (netns, link, last) in [(&router.netns, "eth1", 1), (&far, "eth0", 7)] {
            netns.run(&format!(
                "ip address add {prefix}{last}/{length} {option} dev {link}"
            ));
        }
        far.run(&format!("ip route add default via {prefix}1 dev eth0"));
    }
    let ips: Vec<String> = beyond.iter().map(|prefix| format!("{prefix}7")).collect();
    (Party::new(far, &ips), router)
}

/// The world beyond the uplink, which knows a way to everybody.
fn outside(host: &Host) -> Party {
    let outside = Netns::new("outside");
    host.netns.join("uplink", &outside, "eth0");
    for (netns, link, last) in [(&host.netns, "uplink", 2), (&outside, "eth0", 1)] {
        netns.run(&format!("ip address add 198.51.100.{last}/24 dev {link}"));
        netns.run(&format!(
            "ip address add 2001:db8:ff::{last}/64 nodad dev {link}"
        ));
    }
    outside.run("ip route add 10.0.0.0/8 via 198.51.100.2");
    for net in ["fd00::/8", "2001:db8::/32"] {
        outside.run(&format!("ip route add {net} via 2001:db8:ff::2"));
    }
    host.netns.settle();
    let ips = ["198.51.100.1", "2001:db8:ff::1"].map(str::to_owned);
    Party::new(outside, &ips)
}

#[test]
fn what_is_behind_a_machine_is_reached_and_passes_as_the_networks_own() {
    let host = Host::new(NETWORKS);
    let outside = outside(&host);
    host.ringtap(&["up"]).succeeded();
    host.ringtap(&["status"]).succeeded();
    serve(&host.netns);
    let (nat, nat_router) = behind(
        &host,
        "default",
        &["10.1.0.", "fd00:1::"],
        &["10.11.0.", "fd00:11::"],
    );
    let (routed, routed_router) = behind(
        &host,
        "public",
        &["10.2.0.", "2001:db8:2::"],
        &["10.12.0.", "2001:db8:12::"],
    );
    let (lab, lab_router) = behind(&host, "lab", &["10.3.0."], &["10.13.0."]);
    let neighbour = on_bridge(&host, "default", 20, &["10.1.0.", "fd00:1::"]);
    let all = [
        &nat,
        &nat_router,
        &routed,
        &routed_router,
        &lab,
        &lab_router,
        &neighbour,
    ];
    for netns in all.iter().map(|party| &party.netns).chain([&host.netns]) {
        netns.settle();
    }
    // Every refusal is to be told, so that nobody waits for it.
    host.netns.run("sysctl -w net.ipv4.icmp_ratelimit=0");
    host.netns.run("sysctl -w net.ipv6.icmp.ratelimit=0");

    let gateway = |text: &str| text.parse::<IpAddr>().unwrap();
    let (yes, no, pings) = ([true; 3], [false; 3], [false, false, true]);
    for (who, from, to, expected) in [
        ("host to NAT", &host.netns, nat.ip(false), yes),
        ("host to NAT", &host.netns, nat.ip(true), yes),
        ("host to routed", &host.netns, routed.ip(false), yes),
        ("host to routed", &host.netns, routed.ip(true), yes),
        ("host to isolated", &host.netns, lab.ip(false), yes),
        ("NAT to host", &nat.netns, gateway("10.1.0.1"), yes),
        ("isolated to host", &lab.netns, gateway("10.3.0.1"), pings),
        ("NAT out", &nat.netns, outside.ip(false), yes),
        ("NAT out", &nat.netns, outside.ip(true), yes),
        ("into NAT", &outside.netns, nat.ip(false), no),
        ("into NAT", &outside.netns, nat.ip(true), no),
        ("routed out", &routed.netns, outside.ip(false), yes),
        ("routed out", &routed.netns, outside.ip(true), yes),
        ("into routed", &outside.netns, routed.ip(false), yes),
        ("into routed", &outside.netns, routed.ip(true), yes),
        ("isolated out", &lab.netns, outside.ip(false), no),
        ("into isolated", &outside.netns, lab.ip(false), no),
        ("NAT to routed", &nat.netns, routed.ip(false), yes),
        ("routed to NAT", &routed.netns, nat.ip(false), no),
        ("a neighbour to NAT", &neighbour.netns, nat.ip(false), yes),
        ("a neighbour to NAT", &neighbour.netns, nat.ip(true), yes),
    ] {
        assert_eq!(reaches(from, to), expected, "{who}: {to}");
    }

    // As whom they are seen.
    let seen = |to: IpAddr, from: &Netns| seen_by((to, PORT).into(), from).map(|ip| ip.to_string());
    let is_seen = |to, from: &Netns, whom: &str| assert_eq!(seen(to, from).as_deref(), Some(whom));
    is_seen(outside.ip(false), &nat.netns, "198.51.100.2");
    is_seen(outside.ip(true), &nat.netns, "2001:db8:ff::2");
    is_seen(outside.ip(false), &routed.netns, "10.12.0.7");
    is_seen(outside.ip(true), &routed.netns, "2001:db8:12::7");
    is_seen(nat.ip(false), &neighbour.netns, "10.1.0.20");
    is_seen(nat.ip(true), &neighbour.netns, "fd00:1::20");

    // With ports that come and go, and without any, routes stay.
    for port in ["default5", "default20", "public5", "lab5"] {
        host.netns.run(&format!("ip link delete {port}"));
    }
    host.ringtap(&["status"]).succeeded();
    host.ringtap(&["down"]).succeeded();
}

/// The host's routes to what is behind machines on `public`.
fn routes(host: &Host) -> Vec<String> {
    let lines = [
        "ip -4 route show dev rt-public",
        "ip -6 route show dev rt-public",
    ];
    let all = lines.map(|line| host.netns.run(line)).concat();
    let ours = all.lines().filter(|line| line.contains(" via "));
    // Whether the bridge has a carrier, and what routers prefer, is nothing of ours.
    let route = |line: &str| {
        let words = line.split(" linkdown").next().unwrap();
        words.split(" pref").next().unwrap().trim().to_owned()
    };
    ours.map(route).collect()
}

const IPV4: &str = "10.12.0.0/16 via 10.2.0.5 proto static";
const IPV6: &str = "2001:db8:12::/48 via 2001:db8:2::5 proto static metric 7";

#[test]
fn routes_that_drift_are_mended_and_go_with_the_network() {
    let host = Host::new(NETWORKS);
    let before = host.everything();
    host.ringtap(&["up"]).succeeded();
    assert_eq!(routes(&host), [IPV4, IPV6]);
    for harm in [
        "ip route delete 10.12.0.0/16",
        "ip route delete 2001:db8:12::/48",
        "ip route replace 10.12.0.0/16 via 10.2.0.6",
        "ip route change 2001:db8:12::/48 via 2001:db8:2::6 dev rt-public metric 7",
        "ip link set rt-public down",
        "ip address delete 10.2.0.1/24 dev rt-public",
    ] {
        host.netns.run(harm);
        assert_eq!(host.ringtap(&["status"]).code, Some(1), "after {harm}");
        host.ringtap(&["up"]).succeeded();
        host.ringtap(&["status"]).succeeded();
        assert_eq!(routes(&host), [IPV4, IPV6], "after {harm}");
    }
    let again = host.ringtap(&["up"]).succeeded();
    assert!(again.contains("nothing to do"), "{again}");
    host.ringtap(&["down"]).succeeded();
    host.is_as(&before);
}

#[test]
fn routes_follow_the_file_and_a_failure_puts_them_back() {
    let host = Host::new(NETWORKS);
    let before = host.everything();
    host.ringtap(&["up"]).succeeded();
    let bridge = host.netns.run("ip link show rt-public");

    // Another subnet, gateway and way there; then a dnsmasq that can't start.
    let other = NETWORKS
        .replace("10.2.0.0/24", "10.20.0.0/24")
        .replace("10.2.0.5", "10.20.0.5")
        .replace("10.12.0.0/16", "10.14.0.0/16");
    host.configure(&other);
    let is_up = host.netns.snapshot();
    host.netns.run("sysctl -w net.ipv4.ip_nonlocal_bind=1");
    let taken = host
        .netns
        .within(|| UdpSocket::bind("10.20.0.1:53").unwrap());
    host.netns.run("sysctl -w net.ipv4.ip_nonlocal_bind=0");
    host.ringtap(&["up"]).failed(1, &["taken back"]);
    drop(taken);
    assert_eq!(difference(&is_up, &host.netns.snapshot()), "");
    assert_eq!(routes(&host), [IPV4, IPV6]);

    host.ringtap(&["up"]).succeeded();
    let ipv4 = "10.14.0.0/16 via 10.20.0.5 proto static";
    assert_eq!(routes(&host), [ipv4, IPV6]);
    // A smaller subnet: the gateway's old address goes, and with it what routes there are.
    host.configure(&other.replace("10.20.0.0/24", "10.20.0.0/25"));
    host.ringtap(&["up"]).succeeded();
    assert_eq!(routes(&host), [ipv4, IPV6]);
    // None of ours, and one that a person made, which stays.
    host.netns.run("ip route add 10.99.0.0/16 via 10.20.0.9");
    let routes_key = other
        .lines()
        .find(|line| line.contains("10.14.0.0"))
        .unwrap();
    host.configure(
        &other
            .replace("10.20.0.0/24", "10.20.0.0/25")
            .replace(routes_key, ""),
    );
    host.ringtap(&["up"]).succeeded();
    assert_eq!(routes(&host), ["10.99.0.0/16 via 10.20.0.9"]);
    host.ringtap(&["status"]).succeeded();
    assert_eq!(host.netns.run("ip link show rt-public"), bridge);
    host.ringtap(&["down"]).succeeded();
    host.configure(NETWORKS);
    host.is_as(&before);
}

#[test]
fn a_route_that_the_host_has_otherwise_is_refused_and_nothing_is_touched() {
    let host = Host::new(NETWORKS);
    let _outside = outside(&host);
    for (harm, words) in [
        (
            "10.12.128.0/17 via 198.51.100.1",
            [
                "10.12.0.0/16 overlaps the route to 10.12.128.0/17",
                "leave out the route",
            ],
        ),
        (
            "fd00::/16 via 2001:db8:ff::1",
            [
                "fd00:1::/64 overlaps the route to fd00::/16",
                "another subnet",
            ],
        ),
        (
            "2001:db8:12:9::/64 via 2001:db8:ff::1",
            ["2001:db8:12::/48 overlaps", "via 2001:db8:2::5 metric 7"],
        ),
    ] {
        host.netns.run(&format!("ip route add {harm}"));
        let before = host.everything();
        host.ringtap(&["up"]).failed(1, &words);
        host.is_as(&before);
        host.netns.run(&format!("ip route delete {harm}"));
    }
}
