//! Bridges over uplinks: what the host has on the uplink moves to the bridge and back, connections go on, and the host is
//! afterwards as it was.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use libtest_mimic::Trial;
use ringtap::config::Config;
use ringtap::network::port::Port;
use support::host::{Host, Said};
use support::kernel::{Feature, run, trial};
use support::netns::{Netns, until};

fn main() {
    let anywhere = [
        (
            "the_uplinks_addresses_and_routes_move_to_the_bridge_and_back_under_a_connection",
            the_uplinks_addresses_and_routes_move_to_the_bridge_and_back_under_a_connection
                as fn(),
        ),
        (
            "what_is_not_confirmed_is_taken_back_under_a_connection",
            what_is_not_confirmed_is_taken_back_under_a_connection,
        ),
        (
            "what_is_not_confirmed_is_taken_back_though_up_was_killed",
            what_is_not_confirmed_is_taken_back_though_up_was_killed,
        ),
        ("what_is_confirmed_stays", what_is_confirmed_stays),
        (
            "a_shim_lets_the_host_and_macvtaps_talk",
            a_shim_lets_the_host_and_macvtaps_talk,
        ),
        (
            "who_comes_by_the_uplink_must_confirm_and_others_need_not",
            who_comes_by_the_uplink_must_confirm_and_others_need_not,
        ),
    ];
    let mut trials: Vec<_> = anywhere
        .into_iter()
        .map(|(name, test)| trial(name, &[], test))
        .collect();
    trials.extend([
        trial(
            "a_bond_loses_a_link_under_a_connection",
            &[Feature::Bonding],
            a_bond_loses_a_link_under_a_connection,
        ),
        trial("bonds_speak_lacp", &[Feature::Bonding], bonds_speak_lacp),
        trial(
            "vlans_share_a_bond_and_the_last_takes_it_down",
            &[Feature::Bonding, Feature::Vlan],
            vlans_share_a_bond_and_the_last_takes_it_down,
        ),
        trial(
            "a_vlan_stays_as_long_as_a_macvtap_is_on_it",
            &[Feature::Vlan],
            a_vlan_stays_as_long_as_a_macvtap_is_on_it,
        ),
        trial(
            "access_and_trunk_ports_are_in_their_vlans_alone",
            &[Feature::Vlan, Feature::VlanFiltering],
            access_and_trunk_ports_are_in_their_vlans_alone,
        ),
    ]);
    for (feature, module, network) in [
        (Feature::Vlan, "8021q", "uplink = \"up0\"\nvlan = 20"),
        (
            Feature::Bonding,
            "bonding",
            "uplink = { bond = [\"up0\", \"up1\"] }",
        ),
        (
            Feature::VlanFiltering,
            "CONFIG_BRIDGE_VLAN_FILTERING",
            "uplink = \"up0\"\nvlan-filtering = true",
        ),
    ] {
        if !feature.is_here() {
            let name = format!("what_the_kernel_lacks_is_named_{module}");
            let test = move || {
                what_the_kernel_lacks_is_named(module, network);
                Ok(())
            };
            trials.push(Trial::test(name, test));
        }
    }
    run(trials);
}

const LAN: &str = "[networks.lan]\nmode = \"bridge\"\nuplink = \"up0\"\n";

/// A host on a LAN with another machine, which is its router.
struct World {
    host: Host,
    lan: Netns,
}

impl World {
    fn new(config: &str) -> Self {
        let host = Host::new(config);
        let lan = Netns::new("lan");
        host.netns.join("up0", &lan, "lan0");
        lan.run("ip address add 198.51.100.1/24 dev lan0");
        lan.run("ip address add 2001:db8::1/64 dev lan0 nodad");
        for line in [
            "ip link set up0 mtu 1400",
            "ip address add 198.51.100.2/24 brd + dev up0",
            "ip address add 198.51.100.3/24 brd + dev up0 label up0:m",
            "ip address add 203.0.113.2/28 dev up0 noprefixroute",
            "ip address add 2001:db8::2/64 dev up0",
            "ip route add default via 198.51.100.1 metric 50",
            "ip -6 route add default via 2001:db8::1",
            "ip route add 192.0.2.0/24 via 198.51.100.1 src 198.51.100.3",
            "ip route add 203.0.113.0/28 dev up0 proto kernel scope link metric 77",
            "ip route add 192.0.2.128/25 via 198.51.100.1 table 100",
            "ip rule add from 198.51.100.3 table 100",
            "ip neigh add proxy 198.51.100.77 dev up0",
            "ip neigh add 198.51.100.78 lladdr 52:54:00:00:00:78 dev up0",
        ] {
            host.netns.run(line);
        }
        host.netns.settle();
        lan.settle();
        Self { host, lan }
    }

    /// No end of a connection has had to send more than a byte or two again: what the kernel has taken off a link just before
    /// that changes hands goes with it.
    #[track_caller]
    fn assert_nothing_lost(&self) {
        for netns in [&self.lan, &self.host.netns] {
            let sockets = netns.run("ss -Htni state established");
            assert!(sockets.contains("segs_out"), "{sockets}");
            let again = sockets.split("bytes_retrans:").nth(1);
            let again = again.map_or("0", |rest| rest.split_whitespace().next().unwrap());
            let again: u32 = again.parse().unwrap();
            assert!(again <= 2, "{sockets}");
        }
    }

    fn routes(&self) -> String {
        let text = self.host.netns.run("ip route show table all");
        text + &self.host.netns.run("ip -6 route show table all")
    }
}

/// A connection from the LAN to the host that somebody types at all the time.
struct Typist {
    stream: TcpStream,
}

impl Typist {
    fn start(world: &World) -> Self {
        let listener = world
            .host
            .netns
            .within(|| TcpListener::bind("198.51.100.2:22").unwrap());
        let to = ("198.51.100.2", 22);
        let stream = world.lan.within(|| TcpStream::connect(to).unwrap());
        let (mut served, _) = listener.accept().unwrap();
        thread::spawn(move || {
            let mut byte = [0];
            while served.read_exact(&mut byte).is_ok() && served.write_all(&byte).is_ok() {}
        });
        stream.set_nodelay(true).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        Self { stream }
    }

    /// What is typed comes back: the longest time that took.
    fn type_for(&mut self, time: Duration) -> Duration {
        let start = std::time::Instant::now();
        let mut longest = Duration::ZERO;
        while start.elapsed() < time {
            let typed = std::time::Instant::now();
            self.stream.write_all(b"x").unwrap();
            self.stream.read_exact(&mut [0]).unwrap();
            longest = longest.max(typed.elapsed());
            thread::sleep(Duration::from_millis(1));
        }
        longest
    }
}

fn the_uplinks_addresses_and_routes_move_to_the_bridge_and_back_under_a_connection() {
    let world = World::new(LAN);
    let host = &world.host;
    let before = host.everything();
    let routes = world.routes();
    let mut typist = Typist::start(&world);
    typist.type_for(Duration::from_millis(20));

    let typing = thread::spawn(move || {
        typist.type_for(Duration::from_secs(3));
        typist
    });
    host.ringtap(&["up"]).succeeded();
    host.ringtap(&["status"]).succeeded();
    assert!(host.ringtap(&["up"]).succeeded().contains("nothing to do"));
    let mut typist = typing.join().unwrap();
    world.assert_nothing_lost();

    let there = host.netns.run("ip -o address show dev rt-lan");
    for address in [
        "198.51.100.2/24 brd 198.51.100.255",
        "198.51.100.3/24 brd 198.51.100.255 scope global secondary rt-lan:m",
        "203.0.113.2/28",
        "2001:db8::2/64",
    ] {
        assert!(there.contains(address), "{address}: {there}");
    }
    let left = host.netns.run("ip -o address show dev up0 scope global");
    assert_eq!(left, "");
    let proxies = host.netns.run("ip neigh show proxy");
    assert_eq!(proxies.trim(), "198.51.100.77 dev rt-lan proxy");
    // But for names, it is what it was; in the kernel's own table are what goes with addresses of the link alone.
    let own = |routes: &str| -> Vec<String> {
        let lines = routes.lines().filter(|line| !line.contains("table local"));
        let mut lines: Vec<String> = lines
            .filter(|line| !line.starts_with("fe80"))
            .map(|line| line.replace("rt-lan", "up0"))
            .collect();
        lines.sort();
        lines
    };
    assert_eq!(own(&routes), own(&world.routes()));
    host.netns.run("ping -c 1 -W 2 198.51.100.1");
    host.netns.run("ping -c 1 -W 2 2001:db8::1");
    let mtu = host.netns.run("cat /sys/class/net/rt-lan/mtu");
    assert_eq!(mtu.trim(), "1400");

    let typing = thread::spawn(move || {
        typist.type_for(Duration::from_secs(2));
        typist
    });
    host.ringtap(&["down"]).succeeded();
    let typist = typing.join().unwrap();
    world.assert_nothing_lost();
    drop(typist);
    host.is_as(&before);
    assert_eq!(own(&routes), own(&world.routes()));
}

/// A `ringtap up` that must be confirmed within so many seconds.
fn up(world: &World, seconds: &str) -> String {
    let words = ["up", "--confirm", seconds];
    let said = world.host.ringtap(&words).succeeded();
    assert!(said.contains("run `ringtap confirm"), "{said}");
    said
}

fn confirm(world: &World) -> Said {
    let run_dir = format!("--run-dir={}", world.host.run_dir().display());
    world.host.ringtap_with(&["confirm", &run_dir])
}

fn is_bridged(world: &World) -> bool {
    world.host.netns.run("ip link").contains("rt-lan")
}

fn what_is_not_confirmed_is_taken_back_under_a_connection() {
    let world = World::new(LAN);
    let before = world.host.everything();
    let mut typist = Typist::start(&world);
    let typing = thread::spawn(move || typist.type_for(Duration::from_secs(5)));
    up(&world, "2");
    assert!(is_bridged(&world));
    let status = world.host.ringtap(&["status"]).succeeded();
    assert!(
        status.contains("unless `ringtap confirm` comes"),
        "{status}"
    );
    world
        .host
        .ringtap(&["up"])
        .failed(1, &["ringtap confirm", "wait"]);
    until("the way back", || !is_bridged(&world));
    until("the end of who did it", || {
        world.host.netns.pids().is_empty()
    });
    world.host.is_as(&before);
    assert!(typing.join().unwrap() < Duration::from_secs(1));
    confirm(&world).failed(1, &["nothing waits"]);
}

fn what_is_not_confirmed_is_taken_back_though_up_was_killed() {
    let world = World::new(LAN);
    let before = world.host.everything();
    let said = world.host.ringtap(&["up"]).succeeded();
    let steps = said.lines().count() - 1; // the last says that it is verified
    world.host.ringtap(&["down"]).succeeded();
    world.host.is_as(&before);
    for step in 0..steps {
        let mut command = world.host.command(&["up", "--confirm", "1"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let killed = (0..=step).all(|_| lines.next().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(killed, "it was done before step {step}");
        until("the end of who takes it back", || {
            world.host.netns.pids().is_empty()
        });
        world.host.is_as(&before);
    }
}

fn what_is_confirmed_stays() {
    let world = World::new(LAN);
    let before = world.host.everything();
    up(&world, "1");
    assert_eq!(confirm(&world).succeeded().trim(), "confirmed");
    until("the end of who would have taken it back", || {
        world.host.netns.pids().is_empty()
    });
    assert!(is_bridged(&world));
    world.host.ringtap(&["status"]).succeeded();
    confirm(&world).failed(1, &["nothing waits"]);
    world.host.ringtap(&["down"]).succeeded();
    world.host.is_as(&before);
}

fn who_comes_by_the_uplink_must_confirm_and_others_need_not() {
    let world = World::new(LAN);
    let before = world.host.everything();
    let up_from = |peer: &str| {
        let session = format!("SSH_CONNECTION={peer} 50000 198.51.100.2 22");
        // As sudo does, what is started has another environment.
        let script = "env -u SSH_CONNECTION \"$@\"; exit $?";
        let by = ["env", &session, "sh", "-c", script, "sh"];
        world.host.ringtap_by(&by, &["up"]).succeeded()
    };
    for peer in ["198.51.100.1", "8.8.8.8", "2001:db8::1"] {
        let said = up_from(peer);
        assert!(said.contains("within 60 s"), "{peer}: {said}");
        world.host.ringtap(&["down"]).succeeded();
        world.host.is_as(&before);
    }
    world
        .host
        .netns
        .run("ip link add other type veth peer name peer");
    world.host.netns.run("ip address add 10.9.9.1/24 dev other");
    world.host.netns.run("ip link set other up");
    let said = up_from("10.9.9.2");
    assert!(!said.contains("confirm"), "{said}");
    world.host.ringtap(&["down"]).succeeded();
}

/// A network on the LAN that needs what the kernel has not.
fn what_the_kernel_lacks_is_named(module: &str, network: &str) {
    let world = World::new(&format!("[networks.lan]\nmode = \"bridge\"\n{network}\n"));
    world
        .host
        .netns
        .run("ip link add up1 type veth peer name end");
    let before = world.host.everything();
    world.host.ringtap(&["up"]).failed(1, &[module]);
    world.host.is_as(&before);
}

/// A LAN that is a bridge with three ports, two of them bonded to one by the host.
fn bonded(mode: &str, more: &str) -> World {
    let world = World::new(&format!(
        "[networks.lan]\nmode = \"bridge\"\n\
         uplink = {{ bond = [\"up0\", \"up1\"], mode = {mode:?} }}\n{more}"
    ));
    world.host.netns.join("up1", &world.lan, "lan1");
    world.host.netns.run("ip link set up1 mtu 1400");
    // Its address appears some time after the link does, and would be news to a snapshot that was taken before.
    until("up1's address", || {
        let address = world.host.netns.run("ip -6 address show dev up1");
        address.contains("fe80::") && !address.contains("tentative")
    });
    world
}

fn a_bond_loses_a_link_under_a_connection() {
    let world = bonded("active-backup", "");
    // The switch on the LAN, with the router's address.
    let lan = &world.lan;
    lan.run("ip link add br0 type bridge");
    lan.run("ip address flush dev lan0");
    lan.run("ip address add 198.51.100.1/24 dev br0");
    for line in ["lan0 master br0", "lan1 master br0", "br0 up"] {
        lan.run(&format!("ip link set {line}"));
    }
    let before = world.host.everything();
    let mut typist = Typist::start(&world);
    world.host.ringtap(&["up"]).succeeded();
    world.host.ringtap(&["status"]).succeeded();
    assert!(
        world
            .host
            .ringtap(&["up"])
            .succeeded()
            .contains("nothing to do")
    );
    typist.type_for(Duration::from_millis(100));

    let bond = "bond-up0-up1";
    let active = || {
        let file = format!("cat /sys/class/net/{bond}/bonding/active_slave");
        world.host.netns.run(&file).trim().to_owned()
    };
    let lost = active();
    let typing = thread::spawn(move || {
        let longest = typist.type_for(Duration::from_secs(3));
        (typist, longest)
    });
    let end = lost.replace("up", "lan");
    world.lan.run(&format!("ip link set {end} down"));
    until("the other link", || active() != lost);
    let (mut typist, longest) = typing.join().unwrap();
    println!("a link was lost: the longest pause was {longest:?}");
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    world.lan.run(&format!("ip link set {end} up"));

    world.host.ringtap(&["down"]).succeeded();
    typist.type_for(Duration::from_millis(100));
    until("carrier and settled addresses", || {
        let tentative = world.host.netns.run("ip -6 address show tentative");
        tentative.is_empty()
            && world
                .host
                .netns
                .run("ip link show up1")
                .contains("LOWER_UP")
    });
    world.host.is_as(&before);
}

fn bonds_speak_lacp() {
    let world = bonded("802.3ad", "");
    let lan = &world.lan;
    lan.run("ip link add bond0 type bond mode 802.3ad miimon 100 lacp_rate fast");
    lan.run("ip address flush dev lan0");
    for end in ["lan0", "lan1"] {
        lan.run(&format!("ip link set {end} down"));
        lan.run(&format!("ip link set {end} master bond0"));
    }
    lan.run("ip address add 198.51.100.1/24 dev bond0");
    lan.run("ip link set bond0 up");
    world.host.ringtap(&["up"]).succeeded();
    let aggregator = || world.host.netns.run("cat /proc/net/bonding/bond-up0-up1");
    until("both links in one aggregator", || {
        aggregator().contains("Number of ports: 2")
    });
    world.host.netns.run("ping -c 1 -W 5 198.51.100.1");
    world.host.ringtap(&["down"]).succeeded();
}

fn vlans_share_a_bond_and_the_last_takes_it_down() {
    let more = "vlan = 20\n[networks.other]\nmode = \"bridge\"\nvlan = 30\n\
                uplink = { bond = [\"up0\", \"up1\"] }\n";
    let world = bonded("active-backup", more);
    let host = &world.host;
    host.ringtap(&["up"]).succeeded();
    let links = || host.netns.run("ip -d link");
    let both = links();
    assert!(
        both.contains("bond-up0-up1.20@") && both.contains("bond-up0-up1.30@"),
        "{both}"
    );
    // The host itself is where it was: on the bond, without a tag.
    let address = host.netns.run("ip -o -4 address show dev bond-up0-up1");
    assert!(address.contains("198.51.100.2/24"), "{address}");
    host.ringtap(&["down", "lan"]).succeeded();
    host.ringtap(&["status", "other"]).succeeded();
    let one = links();
    assert!(
        !one.contains("bond-up0-up1.20@") && one.contains("bond-up0-up1.30@"),
        "{one}"
    );
    host.ringtap(&["down"]).succeeded();
    assert!(!links().contains("bond-up0-up1"));
    let address = host.netns.run("ip -o -4 address show dev up0");
    assert!(address.contains("198.51.100.2/24"), "{address}");
}

fn a_vlan_stays_as_long_as_a_macvtap_is_on_it() {
    let network = "mode = \"macvtap\"\nuplink = \"up0\"\nvlan = 20\n";
    let world = World::new(&format!(
        "[networks.one]\n{network}[networks.two]\n{network}"
    ));
    let host = &world.host;
    let before = host.everything();
    host.ringtap(&["up"]).succeeded();
    // As a guest leaves it whose supervisor was killed.
    host.netns
        .run("ip link add orphan link up0.20 type macvtap mode bridge");
    host.ringtap(&["down", "two"]).succeeded(); // the other network has the VLAN still
    for names in [&["down"][..], &["down", "one"]] {
        host.ringtap(names)
            .failed(1, &["in use: orphan on its links"]);
    }
    host.netns.run("ip link delete orphan");
    host.ringtap(&["down"]).succeeded();
    host.is_as(&before);
}

/// A stand-in for a guest, a namespace whose end of a pair is attached as the guest's first NIC is.
fn plugged(world: &World, guest: &str) -> Netns {
    let there = Netns::new(guest);
    let config: Config = world.host.config();
    let nic = &config.guests[&guest.parse().unwrap()].nics[0];
    let network = &config.networks[&nic.network];
    world.host.netns.join(guest, &there, "eth0");
    let port = Port::new(&guest.parse().unwrap(), nic, network, &world.host.run_dir());
    let attached = world.host.netns.within(|| port.attach());
    attached.unwrap();
    there
}

fn access_and_trunk_ports_are_in_their_vlans_alone() {
    let guest = |name: &str, vlans: &str| {
        format!("[guests.{name}]\nmemory = \"64M\"\nnics = [{{ network = \"lan\", {vlans} }}]\n")
    };
    let guests = [
        guest("red", "vlan = 20"),
        guest("blue", "vlan = 30"),
        guest("trunk", "vlans = [20, 30]"),
        guest("plain", "queue-pairs = 1"),
    ];
    let file = format!("{LAN}vlan-filtering = true\n{}", guests.concat());
    let world = World::new(&file);
    let before = world.host.everything();
    world.host.ringtap(&["up"]).succeeded();
    world.host.ringtap(&["status"]).succeeded();
    let tag = |netns: &Netns, link: &str, id: u8, host: u8| {
        netns.run(&format!(
            "ip link add link {link} name v{id} type vlan id {id}"
        ));
        netns.run(&format!("ip address add 10.0.{id}.{host}/24 dev v{id}"));
        netns.run(&format!("ip link set v{id} up"));
    };
    tag(&world.lan, "lan0", 20, 1);
    tag(&world.lan, "lan0", 30, 1);
    let [red, blue, trunk, plain] = ["red", "blue", "trunk", "plain"].map(|it| plugged(&world, it));
    // Both have addresses of both subnets: only VLANs keep them apart.
    for (netns, host) in [(&red, 2), (&blue, 3)] {
        netns.run(&format!("ip address add 10.0.20.{host}/24 dev eth0"));
        netns.run(&format!("ip address add 10.0.30.{host}/24 dev eth0"));
    }
    tag(&trunk, "eth0", 20, 4);
    tag(&trunk, "eth0", 30, 4);
    plain.run("ip address add 198.51.100.5/24 dev eth0");
    let reaches = |from: &Netns, to: &str| {
        let ping = from.attempt(&format!("ping -c 1 -W 1 {to}"));
        ping.status.success()
    };
    for (from, to, expected) in [
        (&red, "10.0.20.1", true),
        (&red, "10.0.20.4", true),
        (&red, "10.0.20.3", false),
        (&red, "10.0.30.1", false),
        (&blue, "10.0.30.1", true),
        (&blue, "10.0.30.4", true),
        (&blue, "10.0.20.1", false),
        (&trunk, "10.0.20.1", true),
        (&trunk, "10.0.30.1", true),
        (&plain, "198.51.100.1", true),
        (&plain, "198.51.100.2", true),
    ] {
        assert_eq!(reaches(from, to), expected, "{to}");
    }
    // A VLAN that no guest is in any more leaves by the uplink no longer.
    world
        .host
        .configure(&format!("{LAN}vlan-filtering = true\n{}", guests[0]));
    let said = world.host.ringtap(&["up"]).succeeded();
    assert!(
        said.starts_with("[1/1] bridge vlan delete dev up0 vid 30\n"),
        "{said}"
    );
    assert!(!reaches(&trunk, "10.0.30.1") && reaches(&trunk, "10.0.20.1"));

    world.host.configure(&file);
    for guest in ["red", "blue", "trunk", "plain"] {
        world.host.netns.run(&format!("ip link delete {guest}"));
    }
    world.host.ringtap(&["down"]).succeeded();
    world.host.is_as(&before);
}

/// Macvlans stand in for macvtaps: to the kernel both are one, but for who reads them.
fn a_shim_lets_the_host_and_macvtaps_talk() {
    let network = "[networks.taps]\nmode = \"macvtap\"\nuplink = \"up0\"\n";
    let world = World::new(network);
    let host = &world.host;
    let before = host.everything();
    let guest = Netns::new("guest");
    let plug = || {
        host.netns
            .run("ip link add guest link up0 type macvlan mode bridge");
        host.netns
            .run(&format!("ip link set guest netns {}", guest.name()));
        for line in [
            "ip link set guest up",
            "ip address add 198.51.100.9/24 dev guest",
            "ip address add 2001:db8::9/64 dev guest nodad",
        ] {
            guest.run(line);
        }
    };
    let reaches = |to: &str| {
        let ping = guest.attempt(&format!("ping -c 1 -W 1 {to}"));
        ping.status.success()
    };
    let is_peer = |with_host: bool| {
        for (to, expected) in [
            ("198.51.100.1", true),
            ("2001:db8::1", true),
            ("198.51.100.2", with_host),
            ("2001:db8::2", with_host),
        ] {
            assert_eq!(reaches(to), expected, "{to}, with the host: {with_host}");
        }
    };
    plug();
    host.ringtap(&["up"]).succeeded();
    is_peer(false);

    host.configure(&format!("{network}shim = true\n"));
    let mut typist = Typist::start(&world);
    host.ringtap(&["up"]).succeeded();
    host.ringtap(&["status"]).succeeded();
    is_peer(true);
    let longest = typist.type_for(Duration::from_millis(500));
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    host.netns.run("ping -c 1 -W 2 198.51.100.9");

    guest.run("ip link delete guest");
    host.ringtap(&["down"]).succeeded();
    host.configure(network);
    typist.type_for(Duration::from_millis(100));
    drop(typist);
    host.is_as(&before);
}
