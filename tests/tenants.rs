//! Tenants with equal subnets: each with DHCP, names, translation and forwards of its own, neither reaching the other.

mod support;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use support::console::Console;
use support::host::{Host, kill_after};
use support::lab::{INTERNET, Lab, WWW, tiny};
use support::netns::{Netns, difference};
use support::party::{Party, is_echoed, reaches, seen_by, serve};

/// Of a tenant called by `name` in this test's process: namespaces have their names on the whole machine.
fn tenant(name: &str) -> String {
    format!("{name}{}", process::id())
}

fn namespace(tenant: &str) -> Netns {
    Netns::of_program(&format!("rt-{tenant}"))
}

/// Two tenants and the host itself with equal subnets.
fn networks() -> String {
    let (a, b) = (tenant("a"), tenant("b"));
    format!(
        r#"
[networks.red]
mode = "nat"
tenant = "{a}"
subnet = "192.168.1.0/24"
ipv6 = "fd00:1::/64"
nat66 = true
forwards = ["tcp:2222 -> web:7777", "udp:2222 -> web:7777"]
host-access = ["tcp:7777"]

[networks.back]
mode = "isolated"
tenant = "{a}"
subnet = "192.168.2.0/24"

[networks.blue]
mode = "nat"
tenant = "{b}"
subnet = "192.168.1.0/24"
ipv6 = "2001:db8:b::/64"
forwards = ["tcp:198.51.100.2:3333 -> 192.168.1.20:7777"]

[guests.web]
memory = "256M"
nics = [{{ network = "red", ip = "192.168.1.10", ipv6 = "fd00:1::10" }}]

[networks.own]
mode = "nat"
subnet = "192.168.1.0/24"
ipv6 = "fd00:1::/64"
"#
    )
}

/// Tenants' namespaces have names that are the machine's: one test at a time has those of this process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // What a test that failed has made went with it.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct World {
    host: Host,
    outside: Netns,
    a: Netns,
    b: Netns,
}

impl World {
    fn new() -> Self {
        let host = Host::new(&networks());
        let outside = Netns::new("outside");
        host.netns.join("uplink", &outside, "eth0");
        for (netns, link, last) in [(&host.netns, "uplink", 2), (&outside, "eth0", 1)] {
            netns.run(&format!("ip address add 198.51.100.{last}/24 dev {link}"));
            netns.run(&format!(
                "ip address add 2001:db8::{last}/64 nodad dev {link}"
            ));
        }
        outside.run("ip route add 2001:db8:b::/64 via 2001:db8::2");
        for netns in [&host.netns, &outside] {
            netns.settle();
            serve(netns);
        }
        Self {
            host,
            outside,
            a: namespace(&tenant("a")),
            b: namespace(&tenant("b")),
        }
    }
}

/// A guest with its port on the bridge of `network`, which is in `place`.
fn guest(place: &Netns, network: &str, ipv4: &str, ipv6: Option<&str>) -> Party {
    let guest = Netns::new(network);
    guest.run("sysctl -w net.ipv6.conf.default.accept_ra=0");
    let port = format!("{network}{}", ipv4.rsplit('.').next().unwrap());
    place.join(&port, &guest, "eth0");
    place.run(&format!("ip link set {port} master rt-{network}"));
    let mut ips = vec![ipv4.to_owned()];
    guest.run(&format!("ip address add {ipv4}/24 dev eth0"));
    let gateway = format!("{}.1", ipv4.rsplit_once('.').unwrap().0);
    guest.run(&format!("ip route add default via {gateway}"));
    if let Some(ipv6) = ipv6 {
        guest.run(&format!("ip address add {ipv6}/64 nodad dev eth0"));
        let gateway = format!("{}::1", ipv6.rsplit_once("::").unwrap().0);
        guest.run(&format!("ip route add default via {gateway}"));
        ips.push(ipv6.to_owned());
    }
    guest.settle();
    Party::new(guest, &ips)
}

#[test]
fn equal_subnets_lead_out_are_forwarded_to_and_never_meet() {
    let _alone = alone();
    let World {
        host,
        outside,
        a,
        b,
    } = World::new();
    let before = host.everything();
    host.ringtap(&["up"]).succeeded();
    host.ringtap(&["status"]).succeeded();
    assert!(
        host.ringtap(&["up"])
            .succeeded()
            .starts_with("nothing to do")
    );
    let red = guest(&a, "red", "192.168.1.10", Some("fd00:1::10"));
    let neighbour = guest(&a, "red", "192.168.1.11", Some("fd00:1::11"));
    let back = guest(&a, "back", "192.168.2.10", None);
    let blue = guest(&b, "blue", "192.168.1.20", Some("2001:db8:b::20"));
    let own = guest(&host.netns, "own", "192.168.1.30", Some("fd00:1::30"));
    for netns in [&a, &b] {
        netns.settle();
    }
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let to = |text: &str| text.parse::<SocketAddr>().unwrap();
    let sees = |at: &str, from: &Netns| seen_by(to(at), from).map(|ip| ip.to_string());

    // Out, as the host; with addresses that are known beyond, as itself.
    assert_eq!(
        sees("198.51.100.1:7777", &red.netns).as_deref(),
        Some("198.51.100.2")
    );
    assert_eq!(
        sees("198.51.100.1:7777", &blue.netns).as_deref(),
        Some("198.51.100.2")
    );
    assert_eq!(
        sees("[2001:db8::1]:7777", &red.netns).as_deref(),
        Some("2001:db8::2")
    );
    assert_eq!(
        sees("[2001:db8::1]:7777", &blue.netns).as_deref(),
        Some("2001:db8:b::20")
    );
    for (party, far) in [
        (&red, "198.51.100.1"),
        (&red, "2001:db8::1"),
        (&blue, "198.51.100.1"),
        (&blue, "2001:db8::1"),
        (&own, "198.51.100.1"),
    ] {
        assert_eq!(
            reaches(&party.netns, ip(far)),
            [true; 3],
            "{:?} {far}",
            party.ips
        );
    }
    // The host too, whose UDP would answer from the address that is nearest.
    assert!(sees("198.51.100.2:7777", &red.netns).is_some());
    assert!(sees("198.51.100.2:7777", &blue.netns).is_none());
    let mut never = vec![
        (&back.netns, ip("198.51.100.1")),
        (&back.netns, ip("198.51.100.2")),
        (&outside, ip("2001:db8:b::20")),
    ];

    // Each meets its own: of those at one address the one that is the tenant's.
    assert_eq!(
        sees("192.168.1.10:7777", &neighbour.netns).as_deref(),
        Some("192.168.1.11")
    );
    for (party, others) in [
        (&red, ["192.168.1.20", "192.168.1.30", "2001:db8:b::20"]),
        (&blue, ["192.168.1.10", "192.168.1.30", "fd00:1::10"]),
        (&own, ["192.168.1.10", "192.168.1.20", "2001:db8:b::20"]),
        (&back, ["192.168.1.10", "192.168.1.20", "192.168.1.30"]),
    ] {
        never.extend(others.map(|other| (&party.netns, ip(other))));
    }
    // Not by their routers either.
    let router = |netns: &Netns| {
        let text = netns.run("ip -j -4 address show dev uplink");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value[0]["addr_info"][0]["local"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    serve(&a);
    for from in [&blue.netns, &own.netns, &outside] {
        from.attempt(&format!("ip route add {}/32 via 198.51.100.2", router(&a)));
        never.push((from, ip(&router(&a))));
    }
    thread::scope(|scope| {
        let cells = never.iter().map(|(from, to)| {
            let tried = scope.spawn(move || reaches(from, *to));
            (from, to, tried)
        });
        for (from, to, tried) in cells.collect::<Vec<_>>() {
            assert_eq!(tried.join().unwrap(), [false; 3], "{to} from {from:?}");
        }
    });

    // Forwards: from outside, from the host, from the same network and from another tenant.
    for (from, at, whom) in [
        (&outside, "198.51.100.2:2222", "198.51.100.1"),
        (&outside, "198.51.100.2:3333", "198.51.100.1"),
        (&outside, "[2001:db8::2]:2222", "2001:db8::1"),
        (&host.netns, "198.51.100.2:2222", "198.51.100.2"),
    ] {
        assert_eq!(sees(at, from).as_deref(), Some(whom), "{at}");
    }
    for (from, at) in [
        (&host.netns, "127.0.0.1:2222"),
        (&neighbour.netns, "198.51.100.2:2222"),
        (&red.netns, "198.51.100.2:2222"),
        (&blue.netns, "198.51.100.2:2222"),
        (&own.netns, "198.51.100.2:2222"),
    ] {
        assert!(sees(at, from).is_some(), "{at} from {from:?}");
        assert!(is_echoed(to(at), from), "{at} from {from:?}");
    }

    // As the file alone tells.
    let table = host.ringtap(&["reach", "--json"]).succeeded();
    let table: serde_json::Value = serde_json::from_str(&table).unwrap();
    let verdict = |family: &str, from: &str, to: &str| {
        let mut cells = table[family].as_array().unwrap().iter();
        let cell = cells.find(|cell| cell["from"] == from && cell["to"] == to);
        cell.unwrap()["allowed"].as_str().unwrap().to_owned()
    };
    for (family, from, to, expected) in [
        ("ipv4", "red", "red", "yes"),
        ("ipv4", "red", "(outside)", "yes"),
        ("ipv4", "red", "(host)", "no"), // but for what is named
        ("ipv4", "(host)", "red", "no"),
        ("ipv4", "(outside)", "red", "no"),
        ("ipv4", "red", "blue", "no"),
        ("ipv4", "red", "own", "no"),
        ("ipv4", "own", "red", "no"),
        ("ipv4", "red", "back", "no"),
        ("ipv4", "back", "(host)", "no"),
        ("ipv4", "back", "(outside)", "no"),
        ("ipv6", "blue", "(outside)", "yes"),
        ("ipv6", "(outside)", "blue", "no"),
    ] {
        assert_eq!(verdict(family, from, to), expected, "{family} {from} {to}");
    }

    // What runs behind a router stands in its way, and nothing else.
    host.ringtap(&["down", "blue"])
        .failed(1, &["network blue is in use", "blue20"]);
    for (place, port) in [
        (&a, "red10"),
        (&a, "red11"),
        (&a, "back10"),
        (&b, "blue20"),
        (&host.netns, "own30"),
    ] {
        place.run(&format!("ip link delete {port}"));
    }
    host.ringtap(&["down", "blue"]).succeeded();
    assert!(a.exists() && !b.exists());
    host.ringtap(&["down", "red"]).succeeded();
    assert!(a.exists(), "network back still needs it");
    host.ringtap(&["down"]).succeeded();
    assert!(!a.exists());
    host.is_as(&before);
}

#[test]
fn what_drifts_behind_a_router_is_set_right() {
    let _alone = alone();
    let World { host, a, .. } = World::new();
    let before = host.everything();
    host.ringtap(&["up"]).succeeded();
    let first = host.dnsmasq("red");
    let namespace = a.name();
    let mtu_is = |expected: &str| {
        for link in ["uplink", "rt-red"] {
            let text = a.run(&format!("ip -j link show {link}"));
            assert!(text.contains(&format!("\"mtu\":{expected},")), "{text}");
        }
    };
    mtu_is("1500");
    for (change, word) in [
        ("nft flush ruleset".to_owned(), "nft -f -"),
        ("ip link delete rt-red".to_owned(), "link add rt-red"),
        ("ip link delete uplink".to_owned(), "ip link add rt-tenant-"),
        (
            "ip address flush dev uplink".to_owned(),
            "address add 169.254.",
        ),
        (
            "sysctl -w net.ipv4.ip_forward=0".to_owned(),
            "net.ipv4.ip_forward=1",
        ),
    ] {
        a.run(&change);
        let status = host.ringtap(&["status"]);
        assert_eq!(status.code, Some(1), "{change}");
        assert!(status.out.contains(word), "{change}: {}", status.out);
        host.ringtap(&["up"]).succeeded();
        host.ringtap(&["status"]).succeeded();
    }
    // The namespace itself, which lives on for what runs in it.
    let deleted = format!("ip netns delete {namespace}");
    support::netns::run("sh", &["-c", &deleted]);
    assert_eq!(host.ringtap(&["status"]).code, Some(1));
    host.ringtap(&["up"]).succeeded();
    host.ringtap(&["status"]).succeeded();
    assert_ne!(host.dnsmasq("red"), first);
    assert!(a.pids().contains(&host.dnsmasq("red")));
    // What the way out carries, all behind it do.
    host.netns.run("ip route add default via 198.51.100.1");
    host.netns.run("ip link set uplink mtu 1400");
    assert_eq!(host.ringtap(&["status"]).code, Some(1));
    host.ringtap(&["up"]).succeeded();
    mtu_is("1400");
    host.netns.run("ip link set uplink mtu 1500");
    host.netns.run("ip route delete default");
    host.ringtap(&["down"]).succeeded();
    host.is_as(&before);
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_is_touched() {
    let _alone = alone();
    let World { host, a, .. } = World::new();
    let before = host.everything();
    support::netns::run("ip", &["netns", "add", a.name()]);
    let words = ["a network namespace", "ip netns delete"];
    host.ringtap(&["up"]).failed(1, &words);
    assert!(a.exists());
    host.is_as(&before);
    support::netns::run("ip", &["netns", "delete", a.name()]);
    host.ringtap(&["up"]).succeeded();
    let of_tenant = |name| format!("mode = \"isolated\"\ntenant = \"{}\"", tenant(name));
    host.configure(&networks().replace(&of_tenant("a"), &of_tenant("b")));
    let words = ["network back", "is up as tenant a", "ringtap down back"];
    host.ringtap(&["up"]).failed(1, &words);
    host.configure(&networks());
    host.ringtap(&["down"]).succeeded();
    host.is_as(&before);
}

#[test]
fn killed_at_any_step_the_next_up_and_down_find_all_of_it() {
    let _alone = alone();
    let World { host, a, b, .. } = World::new();
    let before = host.everything();
    let steps = host.ringtap(&["up"]).succeeded().lines().count();
    host.ringtap(&["down"]).succeeded();
    assert!(steps > 60, "{steps}");
    for step in (0..steps).step_by(5) {
        kill_after(&mut host.command(&["up"]), step + 1, Duration::ZERO);
        if step % 2 == 0 {
            host.ringtap(&["up"]).succeeded();
            host.ringtap(&["status"]).succeeded();
        }
        host.ringtap(&["down"]).succeeded();
        assert!(!a.exists() && !b.exists(), "step {step}");
        host.is_as(&before);
    }
}

#[test]
fn a_guest_of_a_tenant_has_all_that_it_has_elsewhere() {
    let lab = Lab::new();
    let tenant = tenant("g");
    let file = lab.configure(&tiny("web1", 10, &[]));
    let mode = "mode = \"nat\"\n";
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        text.replace(mode, &format!("{mode}tenant = \"{tenant}\"\n")),
    )
    .unwrap();
    let before = lab.host.snapshot();
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    let addresses = guest.run("ip -4 address show dev eth0");
    assert!(addresses.contains("192.168.100.10/24"), "{addresses}");
    guest.run(&format!("ping -c 1 {INTERNET}"));
    let answer = guest.run(&format!("nslookup {WWW}"));
    assert!(answer.contains(INTERNET), "{answer}");
    // Neither the tap nor who serves it is on the host itself.
    let links = lab.host.run("ip -j link");
    assert!(
        !links.contains("tap-web1-0") && links.contains("rt-tenant-"),
        "{links}"
    );
    assert!(lab.pids(&["ringtap", "backend"]).is_empty());
    assert!(guest.power_off().success());
    assert!(!namespace(&tenant).exists());
    assert_eq!(difference(&before, &lab.host.snapshot()), "");
}
