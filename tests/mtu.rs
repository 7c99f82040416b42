//! One MTU for a network, from the bridge to what guests are told, and never above the uplink's.

mod support;

use support::console::Console;
use support::dhcp::lease;
use support::host::Host;
use support::lab::{INTERNET, Lab, tiny};
use support::netns::{Netns, until};

const NETWORKS: &str = r#"
[networks.default]
mode = "nat"
subnet = "10.1.0.0/24"
ipv6 = "fd00:1::/64"
nat66 = true

[networks.public]
mode = "routed"
subnet = "10.2.0.0/24"
mtu = 1300

[networks.lab]
mode = "isolated"
subnet = "10.3.0.0/24"
mtu = 9000
"#;

/// A host with an uplink, whose MTU it is, without a default route.
fn host(config: &str, mtu: u32) -> (Host, Netns) {
    let host = Host::new(config);
    let internet = Netns::new("internet");
    host.netns.join("uplink", &internet, "eth0");
    host.netns.run(&format!("ip link set uplink mtu {mtu}"));
    host.netns.run("ip address add 198.51.100.2/24 dev uplink");
    host.netns
        .run("ip address add 2001:db8:ff::2/64 nodad dev uplink");
    host.netns.settle();
    (host, internet)
}

fn mtu(netns: &Netns, link: &str) -> u32 {
    let text = netns.run(&format!("cat /sys/class/net/{link}/mtu"));
    text.trim().parse().unwrap()
}

/// Of the bridges of `default`, `public` and `lab`.
fn mtus(host: &Host) -> [u32; 3] {
    ["rt-default", "rt-public", "rt-lab"].map(|bridge| mtu(&host.netns, bridge))
}

#[test]
fn a_network_that_leads_out_follows_its_uplink() {
    let (host, _internet) = host(NETWORKS, 1400);
    // No way out, nothing to follow.
    host.ringtap(&["up"]).succeeded();
    assert_eq!(mtus(&host), [1500, 1300, 9000]);
    for (change, expected) in [
        ("ip route add default via 198.51.100.1", 1400),
        ("ip link set uplink mtu 1450", 1450),
        ("ip link set uplink mtu 9000", 1500),
        ("ip link set uplink mtu 1350", 1350),
        ("ip route delete default", 1500),
        ("ip route add default via 2001:db8:ff::1", 1350),
        ("ip route delete default via 2001:db8:ff::1", 1500),
        (
            "ip route add default nexthop via 198.51.100.1 nexthop via 198.51.100.7",
            1350,
        ),
    ] {
        let was = mtus(&host)[0];
        host.netns.run(change);
        let changed = was != expected;
        assert_eq!(
            host.ringtap(&["status"]).code,
            Some(i32::from(changed)),
            "{change}"
        );
        host.ringtap(&["up"]).succeeded();
        host.ringtap(&["status"]).succeeded();
        assert_eq!(mtus(&host), [expected, 1300, 9000], "after {change}");
    }
    host.netns.run("ip link set uplink mtu 1200");
    host.ringtap(&["up", "default"]).failed(
        1,
        &["IPv6 needs an MTU of 1280", "`uplink`", "leave ipv6 out"],
    );
    host.ringtap(&["down"]).succeeded();
}

#[test]
fn an_mtu_above_the_uplinks_is_refused_and_nothing_is_touched() {
    let config = NETWORKS.replace("mtu = 1300", "mtu = 1401");
    let (host, _internet) = host(&config, 1400);
    host.netns.run("ip route add default via 198.51.100.1");
    let before = host.everything();
    let words = [
        "network public",
        "its MTU of 1401 is above the 1400 of `uplink`",
        "lower it, leave it out, or raise the link's",
    ];
    host.ringtap(&["up"]).failed(1, &words);
    host.is_as(&before);
}

#[test]
fn machines_are_told_by_dhcp_and_by_router_advertisements() {
    let (host, _internet) = host(NETWORKS, 1400);
    host.netns.run("ip route add default via 198.51.100.1");
    host.ringtap(&["up"]).succeeded();
    let machine = Netns::new("machine");
    host.netns.join("port", &machine, "eth0");
    host.netns
        .run("ip link set port mtu 1400 master rt-default");
    let said = lease(&machine, &["mtu"]);
    assert!(said.contains("mtu='1400'"), "{said}");
    until("the MTU of the router advertisement", || {
        machine.run("sysctl -n net.ipv6.conf.eth0.mtu").trim() == "1400"
    });
    assert_eq!(mtu(&machine, "eth0"), 1500, "its own is another matter");
    host.netns.run("ip link delete port");
    host.ringtap(&["down"]).succeeded();
}

#[test]
fn a_guest_has_the_mtu_of_the_uplink() {
    let lab = Lab::new();
    for netns in [&lab.host, &lab.internet] {
        netns.run("ip link set up0 mtu 1400");
    }
    lab.configure(&tiny("web1", 10, &[]));
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    for link in ["rt-default", "tap-web1-0"] {
        assert_eq!(mtu(&lab.host, link), 1400, "{link}");
    }
    assert_eq!(guest.run("cat /sys/class/net/eth0/mtu").trim(), "1400");
    // It is the NIC's, not what DHCP made of it.
    let (code, _) = guest.attempt("ip link set eth0 mtu 1401", support::netns::BOUND);
    assert_ne!(code, 0);
    guest.run(&format!("ping -c 1 -s 1372 {INTERNET}"));
    assert!(guest.power_off().success());
}
