//! Two hosts on one LAN, which has a router with DHCP: what their guests reach of each other, by bridges, by routes, and by
//! port forwards.

mod support;

use std::process::{Child, Stdio};

use support::dhcp::lease;
use support::host::Host;
use support::netns::Netns;
use support::party::{Party, reaches, seen_by};

/// The LAN's router, 192.0.2.1, whose DHCP serves who asks; it goes with this value.
struct Lan {
    netns: Netns,
    server: Child,
    _dir: tempfile::TempDir,
}

impl Lan {
    fn new(hosts: [&Host; 2]) -> Self {
        let netns = Netns::new("lan");
        netns.run("ip link add lan0 type bridge");
        netns.run("ip address add 192.0.2.1/24 dev lan0");
        netns.run("ip link set lan0 up");
        netns.run("sysctl -w net.ipv4.ip_forward=1");
        for (number, host) in hosts.iter().enumerate() {
            let port = format!("port{number}");
            host.netns.join("up0", &netns, &port);
            netns.run(&format!("ip link set {port} master lan0"));
            let last = number + 2;
            host.netns
                .run(&format!("ip address add 192.0.2.{last}/24 dev up0"));
            host.netns.run("ip route add default via 192.0.2.1");
            // What the admin tells the LAN's router of the hosts' routed guests.
            netns.run(&format!("ip route add 10.4.{last}.0/24 via 192.0.2.{last}"));
        }
        let dir = tempfile::tempdir().unwrap();
        let leases = dir.path().join("leases");
        let mut server = netns.command("dnsmasq");
        server.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0"]);
        server.args([
            "--pid-file=",
            "--user=root",
            "--interface=lan0",
            "--no-ping",
        ]);
        server.args([
            "--dhcp-authoritative",
            "--dhcp-range=192.0.2.100,192.0.2.199,1h",
        ]);
        server.arg(format!("--dhcp-leasefile={}", leases.display()));
        let server = server
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            netns,
            server,
            _dir: dir,
        }
    }

    /// A guest on `bridge` of `host` with the address that the LAN gives it.
    fn guest(&self, host: &Host, bridge: &str, name: &str) -> Party {
        let guest = plugged(host, bridge, name);
        lease(&guest, &[]);
        let text = guest.run("ip -o -4 address show dev eth0");
        let mut words = text.split_whitespace();
        let net = words
            .find(|word| word.starts_with("192.0.2."))
            .expect(&text);
        let ip = net.split('/').next().unwrap().to_owned();
        Party::new(guest, &[ip])
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn plugged(host: &Host, bridge: &str, name: &str) -> Netns {
    let guest = Netns::new(name);
    host.netns.join(name, &guest, "eth0");
    host.netns
        .run(&format!("ip link set {name} master {bridge}"));
    guest
}

/// A guest of the address that its network gives it, with its gateway.
fn fixed(host: &Host, bridge: &str, name: &str, ip: &str) -> Party {
    let guest = plugged(host, bridge, name);
    guest.run(&format!("ip address add {ip}/24 dev eth0"));
    let gateway = format!("{}.1", ip.rsplit_once('.').unwrap().0);
    guest.run(&format!("ip route add default via {gateway}"));
    Party::new(guest, &[ip.to_owned()])
}

fn file(number: u8) -> String {
    format!(
        r#"
[networks.lan]
mode = "bridge"
uplink = "up0"

[networks.public]
mode = "routed"
subnet = "10.4.{number}.0/24"

[networks.default]
mode = "nat"
subnet = "10.1.0.0/24"
forwards = ["tcp:2222 -> 10.1.0.10:7777"]
"#
    )
}

#[test]
fn guests_of_two_hosts_reach_each_other_as_each_hosts_file_has_it() {
    let hosts = [Host::new(&file(2)), Host::new(&file(3))];
    let lan = Lan::new([&hosts[0], &hosts[1]]);
    for host in &hosts {
        host.netns.settle();
    }
    let before = [0, 1].map(|number| hosts[number].everything());
    for host in &hosts {
        host.ringtap(&["up"]).succeeded();
    }
    let [one, other] = &hosts;
    let peers = [
        lan.guest(one, "rt-lan", "peer2"),
        lan.guest(other, "rt-lan", "peer3"),
    ];
    let public = [
        fixed(one, "rt-public", "public2", "10.4.2.10"),
        fixed(other, "rt-public", "public3", "10.4.3.10"),
    ];
    // Both have the same addresses behind the hosts' own.
    let private = [
        fixed(one, "rt-default", "nat2", "10.1.0.10"),
        fixed(other, "rt-default", "nat3", "10.1.0.10"),
    ];
    let ip = |party: &Party| party.ip(false);
    let sees = |to: (&str, u16), from: &Party| {
        let to = format!("{}:{}", to.0, to.1).parse().unwrap();
        seen_by(to, &from.netns).map(|ip| ip.to_string())
    };

    // Peers on the LAN, with everybody there: as themselves, by addresses that the LAN gave them.
    assert_ne!(ip(&peers[0]), ip(&peers[1]));
    for (from, to) in [(0, 1), (1, 0)] {
        assert_eq!(reaches(&peers[from].netns, ip(&peers[to])), [true; 3]);
        assert_eq!(reaches(&lan.netns, ip(&peers[to]))[2..], [true]);
        assert_eq!(reaches(&hosts[from].netns, ip(&peers[to])), [true; 3]);
        // Routed ones by the LAN's router, as themselves.
        assert_eq!(reaches(&public[from].netns, ip(&public[to])), [true; 3]);
        let seen = sees((&ip(&public[to]).to_string(), 7777), &public[from]);
        assert_eq!(seen, Some(ip(&public[from]).to_string()));
        assert_eq!(reaches(&peers[from].netns, ip(&public[to])), [true; 3]);
        // Those behind a host's address outwards alone, with that address.
        let host = format!("192.0.2.{}", from + 2);
        let seen = sees((&ip(&public[to]).to_string(), 7777), &private[from]);
        assert_eq!(seen.as_ref(), Some(&host));
        let seen = sees((&ip(&peers[to]).to_string(), 7777), &private[from]);
        assert_eq!(seen, Some(host));
        // And inwards by a forward.
        let far = format!("192.0.2.{}", to + 2);
        for guest in [&peers[from], &public[from], &private[from]] {
            assert!(sees((&far, 2222), guest).is_some(), "{far} by a forward");
        }
    }
    lan.netns.run("ip route add 10.1.0.0/24 via 192.0.2.2");
    assert_eq!(reaches(&peers[1].netns, ip(&private[0])), [false; 3]);

    for (number, host) in hosts.iter().enumerate() {
        for port in ["peer", "public", "nat"] {
            host.netns
                .run(&format!("ip link delete {port}{}", number + 2));
        }
        host.ringtap(&["down"]).succeeded();
        host.is_as(&before[number]);
    }
}
