//! Networks beside other firewalls: chains such as Docker makes, in nftables and in the kernel's older tables, and packets that
//! pass them only by the rules that ringtap puts there.

mod support;

use std::net::SocketAddr;
use std::thread;

use support::host::Host;
use support::netns::{Netns, difference, require};
use support::party::{PORT, Party, is_echoed, reaches, seen_by};

const NETWORKS: &str = r#"
[networks.default]
mode = "nat"
subnet = "10.1.0.0/24"
ipv6 = "2001:db8:1::/64"
forwards = ["tcp:2222 -> 10.1.0.10:7777"]

[networks.public]
mode = "routed"
subnet = "10.2.0.0/24"
ipv6 = "2001:db8:2::/64"

[networks.lab]
mode = "isolated"
subnet = "10.3.0.0/24"
"#;

/// A guest with the last number 10 or 20 on the network of this bridge and number.
fn guest(host: &Host, bridge: &str, number: u8, last: u8) -> Party {
    let name = format!("g{number}-{last}");
    let guest = Netns::new(&name);
    guest.run("sysctl -w net.ipv6.conf.default.accept_ra=0");
    host.netns.join(&name, &guest, "eth0");
    host.netns
        .run(&format!("ip link set {name} master {bridge}"));
    let ips = [
        format!("10.{number}.0.{last}"),
        format!("2001:db8:{number}::{last}"),
    ];
    guest.run(&format!("ip address add {}/24 dev eth0", ips[0]));
    guest.run(&format!("ip address add {}/64 nodad dev eth0", ips[1]));
    guest.run(&format!("ip route add default via 10.{number}.0.1"));
    guest.run(&format!("ip route add default via 2001:db8:{number}::1"));
    Party::new(guest, &ips)
}

/// The world beyond the host's uplink, which knows the way to every guest.
fn outside(host: &Host) -> Party {
    let outside = Netns::new("outside");
    host.netns.join("uplink", &outside, "eth0");
    for (netns, link, last) in [(&host.netns, "uplink", 2), (&outside, "eth0", 1)] {
        netns.run(&format!("ip address add 198.51.100.{last}/24 dev {link}"));
        let ipv6 = format!("2001:db8:ff::{last}/64");
        netns.run(&format!("ip address add {ipv6} nodad dev {link}"));
    }
    outside.run("ip route add 10.0.0.0/8 via 198.51.100.2");
    outside.run("ip route add 2001:db8::/32 via 2001:db8:ff::2");
    let ips = ["198.51.100.1", "2001:db8:ff::1"].map(str::to_owned);
    Party::new(outside, &ips)
}

/// Runs `line` with iptables and with ip6tables, of the kind given.
fn iptables(host: &Host, kind: &str, line: &str) -> [String; 2] {
    ["iptables", "ip6tables"].map(|program| host.netns.run(&format!("{program}{kind} -w {line}")))
}

/// What Docker makes of the table `filter`.
fn docker(host: &Host, kind: &str) {
    for line in [
        "-P FORWARD DROP",
        "-N DOCKER",
        "-N DOCKER-USER",
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -o docker0 -j DOCKER",
        "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
        "-A DOCKER-USER -j RETURN",
    ] {
        iptables(host, kind, line);
    }
}

#[test]
fn guests_pass_dockers_firewall_by_rules_of_their_own() {
    beside_docker("");
}

#[test]
fn guests_pass_dockers_firewall_in_the_older_tables() {
    require("iptables-legacy", "iptables");
    beside_docker("-legacy");
}

fn beside_docker(kind: &str) {
    require("iptables", "iptables");
    let host = Host::new(NETWORKS);
    let outside = outside(&host);
    host.ringtap(&["up"]).succeeded();
    let default = guest(&host, "rt-default", 1, 10);
    let public = guest(&host, "rt-public", 2, 10);
    let lab = guest(&host, "rt-lab", 3, 10);
    for netns in [&host.netns, &outside.netns, &default.netns, &public.netns] {
        netns.settle();
    }
    let forward: SocketAddr = "198.51.100.2:2222".parse().unwrap();
    // Whether each way is open that the networks' own rules have open; what is dropped is a long wait.
    let ways = || {
        thread::scope(|scope| {
            let (beyond, guests) = (&outside.netns, &default.netns);
            let ways = [false, true].map(|ipv6| {
                let (public, outside) = (public.ip(ipv6), outside.ip(ipv6));
                [
                    scope.spawn(move || reaches(guests, outside)),
                    scope.spawn(move || reaches(beyond, public)),
                ]
            });
            let by_port = scope.spawn(|| [seen_by(forward, beyond).is_some(); 3]);
            let ways = ways.into_iter().flatten().chain([by_port]);
            ways.map(|way| way.join().unwrap()).collect::<Vec<_>>()
        })
    };
    let all = |open: bool| vec![[open; 3]; 5];
    assert_eq!(ways(), all(true), "without Docker");

    docker(&host, kind);
    let before = iptables(&host, kind, "-S");
    assert_eq!(
        ways(),
        all(false),
        "Docker lets nothing pass that is not its own"
    );
    let status = host.ringtap(&["status"]);
    assert_eq!(status.code, Some(1));
    let command = format!(
        "iptables{kind} -w -I DOCKER-USER -i rt-default -m comment --comment \"ringtap default\" -j ACCEPT\n"
    );
    assert!(status.out.contains(&command), "{}", status.out);
    let up = host.ringtap(&["up"]).succeeded();
    assert!(up.contains(&command), "{up}");
    assert_eq!(ways(), all(true));
    let again = host.ringtap(&["up"]).succeeded();
    assert!(again.contains("nothing to do"), "{again}");

    // Docker's firewall is passed, and not the networks' own.
    assert!(!is_echoed((default.ip(false), PORT).into(), &outside.netns));
    assert_eq!(reaches(&outside.netns, default.ip(true)), [false; 3]);
    assert_eq!(reaches(&lab.netns, outside.ip(false)), [false; 3]);
    assert_eq!(reaches(&outside.netns, lab.ip(false)), [false; 3]);

    // Whoever flushes the chain takes the way with it, until it is set right.
    iptables(&host, kind, "-F DOCKER-USER");
    assert_eq!(ways(), all(false));
    host.ringtap(&["up"]).succeeded();
    assert_eq!(ways(), all(true));
    iptables(&host, kind, "-A DOCKER-USER -j RETURN");

    // What the network no longer needs goes.
    host.configure(&NETWORKS.replace("\"routed\"", "\"isolated\""));
    host.ringtap(&["up"]).succeeded();
    let rules = iptables(&host, kind, "-S DOCKER-USER").concat();
    assert!(!rules.contains("rt-public"), "{rules}");
    assert!(rules.contains("rt-default"), "{rules}");

    for port in ["g1-10", "g2-10", "g3-10"] {
        host.netns.run(&format!("ip link delete {port}"));
    }
    host.ringtap(&["down"]).succeeded();
    assert_eq!(iptables(&host, kind, "-S"), before);
}

/// Frames from guest to guest of one network, which the kernel shows to a firewall for what is routed.
#[test]
fn guests_of_one_network_reach_each_other_as_the_file_has_it() {
    require("iptables", "iptables");
    let networks = "[networks.lab]\nmode = \"isolated\"\nsubnet = \"10.3.0.0/24\"\n\
        [networks.lan]\nmode = \"bridge\"\nbridge = \"br0\"\n";
    let host = Host::new(networks);
    host.netns.run("ip link add br0 type bridge");
    host.netns.run("ip link set br0 up");
    let keys = ["iptables", "ip6tables", "arptables"];
    let shown = || {
        keys.map(|key| {
            let key = format!("sysctl -n net.bridge.bridge-nf-call-{key}");
            host.netns.run(&key).trim().to_owned()
        })
    };
    assert_eq!(shown(), ["1"; 3], "the kernel's default");
    iptables(&host, "", "-P FORWARD DROP");
    // With Docker's chain and without.
    for docker in [false, true] {
        if docker {
            iptables(&host, "", "-N DOCKER-USER");
            iptables(&host, "", "-A FORWARD -j DOCKER-USER");
        }
        let before = iptables(&host, "", "-S");
        for (choice, expected, open) in [
            ("off", ["0"; 3], true),
            ("accept", ["1"; 3], true),
            ("leave", ["1"; 3], false),
        ] {
            host.configure(&format!(
                "[host]\nbridge-nf-call = \"{choice}\"\n{networks}"
            ));
            let plan = host.ringtap(&["plan"]).succeeded();
            let said = plan.contains("go through iptables as well");
            assert_eq!(said, choice == "leave", "{plan}");
            host.ringtap(&["up"]).succeeded();
            host.ringtap(&["status"]).succeeded();
            assert_eq!(shown(), expected);
            for (bridge, number) in [("rt-lab", 3), ("br0", 4)] {
                let [one, other] = [10, 20].map(|last| guest(&host, bridge, number, last));
                let reached = thread::scope(|scope| {
                    let (one, other) = (&one.netns, &other);
                    let ways = [false, true];
                    let ways = ways.map(|ipv6| scope.spawn(move || reaches(one, other.ip(ipv6))));
                    ways.map(|way| way.join().unwrap())
                });
                assert_eq!(reached, [[open; 3]; 2], "{choice} {bridge} {docker}");
                for last in [10, 20] {
                    host.netns.run(&format!("ip link delete g{number}-{last}"));
                }
            }
            host.ringtap(&["down"]).succeeded();
            assert_eq!(shown(), ["1"; 3]);
            assert_eq!(iptables(&host, "", "-S"), before);
        }
    }
}

/// What `status` says is in the way of networks.
fn in_the_way(host: &Host) -> Vec<String> {
    let status = host.ringtap(&["status"]).succeeded();
    let lines = status.lines().map(str::trim);
    let lines = lines.filter(|line| line.starts_with("in the way: "));
    lines.map(str::to_owned).collect()
}

/// The commands between backticks.
fn commands(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// A host's own firewall stops guests, is named and not touched; what is said to be done about it helps, and is all.
#[test]
fn a_firewall_in_the_way_is_named_with_what_helps() {
    require("iptables", "iptables");
    require("busybox", "busybox-static");
    let network = "[networks.default]\nmode = \"nat\"\nsubnet = \"10.1.0.0/24\"\n";
    let host = Host::new(network);
    let outside = outside(&host);
    host.ringtap(&["up"]).succeeded();
    let guest = guest(&host, "rt-default", 1, 10);
    let leaves = || reaches(&guest.netns, outside.ip(false));
    let name = "busybox nslookup -type=a localhost.default.internal 10.1.0.1";
    // That there is no such name is an answer.
    let is_served = || {
        let said = guest.netns.attempt(name).stdout;
        String::from_utf8_lossy(&said).contains("NXDOMAIN")
    };
    assert_eq!((leaves(), is_served()), ([true; 3], true));
    assert_eq!(in_the_way(&host), [""; 0]);
    let own = [
        "nft add table inet own",
        "nft add chain inet own forward { type filter hook forward priority 0 ; policy drop ; }",
        "nft add chain inet own input { type filter hook input priority 0 ; policy accept ; }",
        "nft add rule inet own input iifname lo accept",
        "nft add rule inet own input counter reject",
    ];
    let iptables = [
        "iptables -P FORWARD DROP",
        "iptables -A INPUT -i lo -j ACCEPT",
        "iptables -A INPUT -j DROP",
    ];
    for (firewall, table, words) in [
        (
            &own[..],
            "inet own",
            [
                "table inet own chain forward has the policy drop",
                "table inet own chain input ends in reject",
            ],
        ),
        (
            &iptables[..],
            "ip filter",
            [
                "table ip filter chain FORWARD has the policy drop",
                "table ip filter chain INPUT ends in drop",
            ],
        ),
    ] {
        firewall.iter().for_each(|line| drop(host.netns.run(line)));
        assert_eq!((leaves(), is_served()), ([false; 3], false), "{firewall:?}");
        let before = host.netns.snapshot();
        let lines = in_the_way(&host);
        assert_eq!(lines.len(), 2, "{lines:#?}");
        for (line, words) in lines.iter().zip(words) {
            assert!(line.contains(words), "no {words:?} in {line}");
        }
        let plan = host.ringtap(&["plan"]).succeeded();
        let remark = format!("# network default: {}\n", lines[0]);
        assert!(
            plan.contains(&remark) && plan.ends_with("# nothing to do\n"),
            "{plan}"
        );
        host.ringtap(&["up"]).succeeded();
        assert_eq!(difference(&before, &host.netns.snapshot()), "");

        let helps = lines.iter().flat_map(|line| commands(line));
        helps.for_each(|line| drop(host.netns.run(line)));
        assert_eq!((leaves(), is_served()), ([true; 3], true), "{lines:#?}");
        assert_eq!(in_the_way(&host), [""; 0]);
        host.netns.run(&format!("nft delete table {table}"));
    }
    host.netns.run("ip link delete g1-10");
    host.ringtap(&["down"]).succeeded();
}

/// Chains as firewalld and ufw make them: what they are told of a bridge shows in chains that the first one leads to.
#[test]
fn firewalld_and_ufw_are_known_by_their_chains() {
    require("iptables", "iptables");
    let host = Host::new("[networks.default]\nmode = \"nat\"\nsubnet = \"10.1.0.0/24\"\n");
    host.ringtap(&["up"]).succeeded();
    for line in [
        "nft add table inet firewalld",
        "nft add chain inet firewalld filter_FWD_public",
        "nft add chain inet firewalld filter_FORWARD_ZONES",
        "nft add rule inet firewalld filter_FORWARD_ZONES iifname eth0 goto filter_FWD_public",
        "nft add chain inet firewalld filter_FORWARD { type filter hook forward priority 10 ; }",
        "nft add rule inet firewalld filter_FORWARD ct state { established, related } accept",
        "nft add rule inet firewalld filter_FORWARD jump filter_FORWARD_ZONES",
        "nft add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited",
    ] {
        host.netns.run(line);
    }
    let lines = in_the_way(&host);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    let words =
        "table inet firewalld chain filter_FORWARD ends in reject; run `firewall-cmd --permanent";
    assert!(lines[0].contains(words), "{}", lines[0]);
    // As `firewall-cmd --add-interface` does.
    host.netns
        .run("nft insert rule inet firewalld filter_FORWARD_ZONES iifname rt-default accept");
    assert_eq!(in_the_way(&host), [""; 0]);

    for line in [
        "iptables -N ufw-user-forward",
        "iptables -N ufw-before-forward",
        "iptables -A ufw-before-forward -j ufw-user-forward",
        "iptables -A FORWARD -j ufw-before-forward",
        "iptables -P FORWARD DROP",
    ] {
        host.netns.run(line);
    }
    let lines = in_the_way(&host);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(
        lines[0].ends_with("run `ufw route allow in on rt-default`"),
        "{}",
        lines[0]
    );
    host.netns
        .run("iptables -A ufw-user-forward -i rt-default -j ACCEPT");
    assert_eq!(in_the_way(&host), [""; 0]);
    host.ringtap(&["down"]).succeeded();
}

/// Where Docker was there first, and where it goes while networks are up.
#[test]
fn what_docker_has_is_left_as_it_was() {
    require("iptables", "iptables");
    let host = Host::new(NETWORKS);
    docker(&host, "");
    let before = host.everything();
    host.ringtap(&["up"]).succeeded();
    host.ringtap(&["down"]).succeeded();
    host.is_as(&before);

    host.ringtap(&["up"]).succeeded();
    iptables(&host, "", "-F");
    iptables(&host, "", "-P FORWARD ACCEPT");
    iptables(&host, "", "-X");
    let without = host.netns.snapshot();
    host.ringtap(&["status"]).succeeded();
    host.ringtap(&["up"]).succeeded();
    assert_eq!(difference(&without, &host.netns.snapshot()), "");
    host.ringtap(&["down"]).succeeded();
}

/// Without iptables, or with one that sees the older tables alone, a host with its chains is told so.
#[test]
fn a_host_without_iptables_does_without_the_rules() {
    let host = Host::new(NETWORKS);
    docker(&host, "");
    let bin = host.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    for program in ["nft", "dnsmasq"] {
        let path = std::env::var_os("PATH").unwrap();
        let mut files = std::env::split_paths(&path).map(|dir| dir.join(program));
        let file = files.find(|file| file.is_file()).unwrap();
        std::os::unix::fs::symlink(file, bin.join(program)).unwrap();
    }
    let path = format!("PATH={}", bin.display());
    for other in [None, Some("/usr/sbin/xtables-legacy-multi")] {
        if let Some(program) = other {
            std::os::unix::fs::symlink(program, bin.join("iptables")).unwrap();
        }
        let ringtap = |word| host.ringtap_by(&["env", &path], &[word]).succeeded();
        let up = ringtap("up");
        assert!(!up.contains("DOCKER-USER"), "{up}");
        let status = ringtap("status");
        let remark = "chain FORWARD has the policy drop; install the package iptables";
        assert!(status.contains(remark), "{other:?} {status}");
        ringtap("down");
    }
}
