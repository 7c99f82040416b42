//! Port forwards tried with packets: from outside, from the host itself, and from a neighbour on the same network.

mod support;

use std::net::SocketAddr;

use support::host::Host;
use support::netns::Netns;
use support::party::{PORT, Party, is_echoed, seen_by, serve};

const NETWORK: &str = r#"
[networks.default]
mode = "nat"
host-access = ["all"] # else that alone would keep guests from what listens on 127.0.0.1
subnet = "10.1.0.0/24"
ipv6 = "fd00:1::/64"
forwards = [
  "tcp:2222 -> web1:7777",
  "udp:2222 -> web1:7777",
  "tcp:198.51.100.2:80 -> 10.1.0.20:7777",
  "tcp:5000-5002 -> web1:7776-7778",
  "udp:7777 -> web1",
]

[guests.web1]
memory = "256M"
nics = [{ network = "default", ip = "10.1.0.10", ipv6 = "fd00:1::10" }]
"#;

fn guest(host: &Host, name: &str, last: u8) -> Party {
    let guest = Netns::new(name);
    guest.run("sysctl -w net.ipv6.conf.default.accept_ra=0");
    host.netns.join(name, &guest, "eth0");
    host.netns
        .run(&format!("ip link set {name} master rt-default"));
    guest.run(&format!("ip address add 10.1.0.{last}/24 dev eth0"));
    guest.run(&format!("ip address add fd00:1::{last}/64 nodad dev eth0"));
    guest.run("ip route add default via 10.1.0.1");
    guest.run("ip route add default via fd00:1::1");
    let ips = [format!("10.1.0.{last}"), format!("fd00:1::{last}")];
    Party::new(guest, &ips)
}

#[test]
fn forwards_lead_to_guests_from_outside_the_host_and_the_same_network() {
    let host = Host::new(NETWORK);
    let outside = Netns::new("outside");
    host.netns.join("uplink", &outside, "eth0");
    for (netns, link, last) in [(&host.netns, "uplink", 2), (&outside, "eth0", 1)] {
        netns.run(&format!("ip address add 198.51.100.{last}/24 dev {link}"));
        netns.run(&format!("ip address add 198.51.100.{last}2/24 dev {link}"));
        netns.run(&format!(
            "ip address add 2001:db8::{last}/64 nodad dev {link}"
        ));
    }
    host.ringtap(&["up"]).succeeded();
    serve(&host.netns);
    let web1 = guest(&host, "web1", 10);
    let web2 = guest(&host, "web2", 20);
    for netns in [&host.netns, &outside, &web1.netns, &web2.netns] {
        netns.settle();
    }
    let to = |address: &str| address.parse::<SocketAddr>().unwrap();
    let seen = |address: &str, from: &Netns| seen_by(to(address), from).map(|ip| ip.to_string());
    let sees = |address: &str, from: &Netns, whom: &str| {
        assert_eq!(
            seen(address, from).as_deref(),
            Some(whom),
            "{address} from {from:?}"
        );
    };

    // From outside: as who it is, at any address of the host or at the chosen one.
    sees("198.51.100.2:2222", &outside, "198.51.100.1");
    sees("198.51.100.22:2222", &outside, "198.51.100.1");
    sees("[2001:db8::2]:2222", &outside, "2001:db8::1");
    sees("198.51.100.2:80", &outside, "198.51.100.1");
    assert_eq!(seen("198.51.100.22:80", &outside), None);
    assert!(is_echoed(to("198.51.100.2:2222"), &outside));
    assert!(is_echoed(to("[2001:db8::2]:2222"), &outside));
    // A range of other ports goes one to one.
    sees("198.51.100.2:5001", &outside, "198.51.100.1");
    assert_eq!(seen("198.51.100.2:5000", &outside), None);
    assert_eq!(seen("198.51.100.2:5002", &outside), None);
    // What is not forwarded is the host's, or nobody's.
    sees("198.51.100.2:7777", &outside, "198.51.100.1");
    assert_eq!(seen("198.51.100.2:81", &outside), None);

    // From the host, at its own addresses and at 127.0.0.1.
    sees("127.0.0.1:2222", &host.netns, "10.1.0.1");
    assert!(is_echoed(to("127.0.0.1:2222"), &host.netns));
    sees("198.51.100.2:2222", &host.netns, "198.51.100.2");
    sees("[2001:db8::2]:2222", &host.netns, "2001:db8::2");

    // From the same network: the answer must come back by the host.
    sees("198.51.100.2:2222", &web2.netns, "10.1.0.1");
    sees("[2001:db8::2]:2222", &web2.netns, "fd00:1::1");
    assert!(is_echoed(to("198.51.100.2:2222"), &web2.netns));

    // From the guest to itself, where bridged frames don't go through iptables: a bridge sends none back to its port.
    for family in ["ip", "ip6"] {
        let key = format!("net.bridge.bridge-nf-call-{family}tables");
        host.netns.attempt(&format!("sysctl -w {key}=0"));
    }
    sees("198.51.100.2:2222", &web1.netns, "10.1.0.1");
    sees("198.51.100.2:2222", &web2.netns, "10.1.0.1");

    // What listens on 127.0.0.1 alone stays the host's own, though its bridge now routes such addresses.
    let mac = host.netns.run("cat /sys/class/net/rt-default/address");
    web2.netns
        .run("sysctl -w net.ipv4.conf.all.route_localnet=1");
    web2.netns.run("ip address delete 127.0.0.1/8 dev lo");
    web2.netns
        .run("ip route add 127.0.0.1 via 10.1.0.1 dev eth0 src 10.1.0.20");
    web2.netns.run(&format!(
        "ip neigh replace 10.1.0.1 lladdr {} dev eth0",
        mac.trim()
    ));
    let local = format!("127.0.0.1:{PORT}");
    assert!(seen(&local, &host.netns).is_some());
    assert_eq!(seen(&local, &web2.netns), None);
    let rules = "nft flush chain inet ringtap_default localnet";
    host.netns.run(rules);
    assert!(
        seen(&local, &web2.netns).is_some(),
        "it was not `{rules}` that kept it out"
    );

    for port in ["web1", "web2"] {
        host.netns.run(&format!("ip link delete {port}"));
    }
    host.ringtap(&["down"]).succeeded();
    assert_eq!(seen("198.51.100.2:2222", &outside), None);
}
