//! Bridges over uplinks: what the host has on the uplink moves to the bridge and back, connections go on, and the host is
//! afterwards as it was.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use support::host::{Host, Said};
use support::netns::{Netns, until};

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
            "ip address add 198.51.100.3/24 brd + dev up0 label up0:more",
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
        until("settled addresses", || {
            host.netns.run("ip -6 address show tentative").is_empty()
                && lan.run("ip -6 address show tentative").is_empty()
        });
        Self { host, lan }
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

#[test]
fn the_uplinks_addresses_and_routes_move_to_the_bridge_and_back_under_a_connection() {
    let world = World::new(LAN);
    let host = &world.host;
    let before = host.everything();
    let routes = world.routes();
    let mut typist = Typist::start(&world);
    typist.type_for(Duration::from_millis(20));

    let typing = thread::spawn(move || {
        let longest = typist.type_for(Duration::from_secs(3));
        (typist, longest)
    });
    host.ringtap(&["up"]).succeeded();
    host.ringtap(&["status"]).succeeded();
    assert!(host.ringtap(&["up"]).succeeded().contains("nothing to do"));
    let (mut typist, longest) = typing.join().unwrap();
    // A packet that was lost is sent again after 200 ms at the earliest (TCP_RTO_MIN).
    assert!(longest < Duration::from_millis(200), "{longest:?}");

    let there = host.netns.run("ip -o address show dev rt-lan");
    for address in [
        "198.51.100.2/24 brd 198.51.100.255",
        "198.51.100.3/24 brd 198.51.100.255 scope global secondary rt-lan:more",
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

    let typing = thread::spawn(move || typist.type_for(Duration::from_secs(2)));
    host.ringtap(&["down"]).succeeded();
    let longest = typing.join().unwrap();
    assert!(longest < Duration::from_millis(200), "{longest:?}");
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

#[test]
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

#[test]
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

#[test]
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

#[test]
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
