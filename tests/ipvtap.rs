//! Guests on ipvtaps: peers on the LAN that share the MAC address of the host's uplink, whom the host takes nothing from.

mod support;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use libtest_mimic::Trial;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use ringtap::network::ipvtap::{Ipvtap, IpvtapWish};
use ringtap::tap::{Offloads, Tap, TapQueue, TapSettings};
use ringtap::types::QueuePairs;
use support::console::Console;
use support::host::Host;
use support::kernel::{Feature, run, trial};
use support::lab::{INTERNET, Lab, tiny};
use support::netns::{Netns, bounded, difference, until};
use vm_memory::VolatileSlice;

fn main() {
    const NEEDS: &[Feature] = &[Feature::Ipvtap];
    let mut trials = vec![
        trial(
            "the_hosts_own_address_is_refused",
            &[],
            the_hosts_own_address_is_refused,
        ),
        trial(
            "guests_are_peers_with_one_mac",
            NEEDS,
            guests_are_peers_with_one_mac,
        ),
        trial(
            "nobody_answers_in_a_guests_place",
            NEEDS,
            nobody_answers_in_a_guests_place,
        ),
        trial("an_address_is_taken_once", NEEDS, an_address_is_taken_once),
        trial(
            "a_shim_lets_the_host_and_ipvtaps_talk",
            NEEDS,
            a_shim_lets_the_host_and_ipvtaps_talk,
        ),
        trial("qemu_on_an_ipvtap", NEEDS, qemu_on_an_ipvtap),
        trial(
            "a_link_that_went_with_its_uplink_comes_again",
            NEEDS,
            a_link_that_went_with_its_uplink_comes_again,
        ),
    ];
    if !Feature::Ipvtap.is_here() {
        trials.push(Trial::test("what_the_kernel_lacks_is_named", || {
            what_the_kernel_lacks_is_named();
            Ok(())
        }));
    }
    run(trials);
}

const NETWORK: &str = "[networks.direct]\nmode = \"ipvtap\"\nuplink = \"up0\"\n";
const HOST: [&str; 2] = ["198.51.100.2", "2001:db8::2"];
const LAN: [&str; 2] = ["198.51.100.1", "2001:db8::1"];

/// A host on a LAN with another machine, which counts the frames that come from other MAC addresses than the host's.
struct World {
    host: Host,
    lan: Netns,
}

impl World {
    fn new(more: &str) -> Self {
        let host = Host::new(&format!("{NETWORK}{more}"));
        let lan = Netns::new("lan");
        host.netns.join("up0", &lan, "lan0");
        for (netns, link, ips) in [(&host.netns, "up0", HOST), (&lan, "lan0", LAN)] {
            give(netns, link, ips);
        }
        host.netns.settle();
        lan.settle();
        let world = Self { host, lan };
        for line in [
            "nft add table netdev seen",
            "nft add chain netdev seen in { type filter hook ingress device lan0 priority 0 ; }",
            &format!(
                "nft add rule netdev seen in ether saddr != {} counter",
                world.mac()
            ),
        ] {
            world.lan.run(line);
        }
        world
    }

    fn mac(&self) -> String {
        let mac = self.host.netns.run("cat /sys/class/net/up0/address");
        mac.trim().to_owned()
    }

    #[track_caller]
    fn one_mac_was_seen(&self) {
        let rules = self.lan.run("nft list table netdev seen");
        assert!(rules.contains("counter packets 0 "), "{rules}");
    }

    fn guest(&self, number: u8) -> Guest {
        Guest::new(self, number)
    }
}

fn give(netns: &Netns, link: &str, [ipv4, ipv6]: [&str; 2]) {
    netns.run(&format!("ip address add {ipv4}/24 dev {link}"));
    netns.run(&format!("ip address add {ipv6}/64 dev {link} nodad"));
}

fn pings(from: &Netns, to: &str) -> bool {
    let ping = from.attempt(&format!("ping -c 1 -W 2 {to}"));
    ping.status.success()
}

#[track_caller]
fn all_ping(from: &Netns, ips: [&str; 2]) {
    for ip in ips {
        assert!(pings(from, ip), "{ip}");
    }
}

/// A namespace in a guest's place, whose frames go to and come from an ipvtap as a backend's do.
struct Guest {
    netns: Netns,
    ips: [String; 2],
    ipvtap: Option<Ipvtap>,
    wire: Wire,
}

impl Guest {
    fn new(world: &World, number: u8) -> Self {
        let ips = [
            format!("198.51.100.{number}"),
            format!("2001:db8::{number}"),
        ];
        let ipvtap = ipvtap(world, number, &ips).unwrap();
        let netns = Netns::new("guest");
        let theirs = netns.within(|| Tap::open(&"eth0".parse().unwrap(), QueuePairs::ONE));
        let (keep, theirs) = theirs.unwrap();
        netns.run(&format!("ip link set eth0 address {} up", ipvtap.mac()));
        give(&netns, "eth0", [&ips[0], &ips[1]]);
        let mut handed = ipvtap.handed_over().unwrap();
        let ours = handed.remove(0).parent_fd;
        let (tap, ours) = Tap::from_fds(vec![ours]).unwrap();
        tap.set_offloads(Offloads::default()).unwrap();
        let wire = Wire::new(keep, [theirs, ours].map(|mut it| it.remove(0)));
        Self {
            netns,
            ips,
            ipvtap: Some(ipvtap),
            wire,
        }
    }

    fn ips(&self) -> [&str; 2] {
        [&self.ips[0], &self.ips[1]]
    }

    #[track_caller]
    fn reaches(&self, ips: [&str; 2], expected: bool) {
        for ip in ips {
            assert_eq!(pings(&self.netns, ip), expected, "{:?} to {ip}", self.ips);
        }
        // A search for a neighbour outlives a ping, and would fail the next one if that came within a second.
        until("the end of a search for neighbours", || {
            !self.netns.run("ip neigh").contains("INCOMPLETE")
        });
    }
}

fn ipvtap(world: &World, number: u8, ips: &[String]) -> Result<Ipvtap, String> {
    let wish = IpvtapWish {
        name: format!("tap-{number}").parse().unwrap(),
        uplink: "up0".parse().unwrap(),
        addresses: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        pairs: QueuePairs::ONE,
        mtu: None,
    };
    let make = || {
        // What the thread finds in /sys is of the namespace in which that was mounted.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).unwrap();
        Ipvtap::make(&wish)
    };
    let made = world.host.netns.within(make);
    made.map_err(|error| format!("{error}: {:?}", std::error::Error::source(&error)))
}

/// Passes frames on, each behind its virtio-net header, from either queue to the other.
struct Wire {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<[TapQueue; 2]>>,
    _keep: Tap,
}

impl Wire {
    fn new(keep: Tap, queues: [TapQueue; 2]) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                pass_on(&queues);
            }
            queues
        });
        Self {
            end,
            thread: Some(thread),
            _keep: keep,
        }
    }

    /// Ends it; gives the ipvtap's queue.
    fn cut(&mut self) -> Option<TapQueue> {
        self.end.store(true, Ordering::Relaxed);
        let [_, ours] = self.thread.take()?.join().unwrap();
        Some(ours)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.cut();
    }
}

/// What waits in either queue, or comes within a while.
fn pass_on(queues: &[TapQueue; 2]) {
    let fds = queues.each_ref().map(|queue| queue.as_fd());
    let mut ready = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    poll(&mut ready, PollTimeout::from(50u8)).unwrap();
    let mut frame = vec![0; 1 << 16];
    for (from, to) in [(0, 1), (1, 0)] {
        while let Ok(bytes) = queues[from].readv(&[VolatileSlice::from(&mut frame[..])]) {
            // A frame that does not fit, or comes while a link is down, is lost as on any wire.
            let _ = queues[to].writev(&[VolatileSlice::from(&mut frame[..bytes])]);
        }
    }
}

/// What `ringtap reach` says of guests, to guests, the host and the LAN.
#[track_caller]
fn said_to_reach(host: &Host, expected: &str) {
    let said = host.ringtap(&["reach"]).succeeded();
    let mut lines = said.lines();
    let row = lines.find(|line| line.starts_with("direct ")).expect(&said);
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(words.join(" "), format!("direct {expected}"), "{said}");
}

fn guests_are_peers_with_one_mac() {
    let world = World::new("");
    let host = &world.host;
    let before = host.everything();
    said_to_reach(host, "yes no yes");
    host.ringtap(&["up"]).succeeded();
    host.ringtap(&["status"]).succeeded();
    {
        let (first, second) = (world.guest(9), world.guest(10));
        first.reaches(LAN, true);
        second.reaches(LAN, true);
        first.reaches(second.ips(), true);
        second.reaches(first.ips(), true);
        for guest in [&first, &second] {
            all_ping(&world.lan, guest.ips());
            // The host has neither their addresses nor a way to them of its own, and is no peer of theirs.
            for ip in guest.ips() {
                let has = host.netns.run("ip address");
                assert!(!has.contains(ip), "{has}");
                let route = host.netns.run(&format!("ip route get {ip}"));
                assert!(
                    !route.contains("local") && route.contains("dev up0"),
                    "{route}"
                );
                assert!(!pings(&host.netns, ip), "{ip}");
            }
            guest.reaches(HOST, false);
        }
        // The host goes on as it was.
        all_ping(&host.netns, LAN);
        all_ping(&world.lan, HOST);
        // Whoever is on the LAN has one MAC address for all.
        for ip in first.ips().into_iter().chain(second.ips()).chain(HOST) {
            let known = world.lan.run(&format!("ip neigh show {ip}"));
            assert!(known.contains(&world.mac()), "{known}");
        }
        world.one_mac_was_seen();
    }
    host.ringtap(&["down"]).succeeded();
    host.is_as(&before);
}

/// While no backend has the guest's queue, frames for it must not be answered by whoever is behind the ipvtap: a reset would
/// end the guest's connections.
fn nobody_answers_in_a_guests_place() {
    let world = World::new("");
    let mut guest = world.guest(9);
    all_ping(&world.lan, guest.ips());
    let mut queue = guest.wire.cut().unwrap();
    queue.set_attached(false).unwrap();
    for ip in guest.ips() {
        assert!(!pings(&world.lan, ip), "{ip}");
        let connect = format!("timeout 1 bash -c :</dev/tcp/{ip}/7");
        let said = world.lan.attempt(&connect);
        assert_eq!(said.status.code(), Some(124), "{ip}: {said:?}");
    }
    // The next one finds it attached again.
    let ipvtap = guest.ipvtap.as_ref().unwrap();
    ipvtap.handed_over().unwrap();
    assert!(!pings(&world.lan, &guest.ips[0]));
    let mut frame = [0; 2048];
    let mut read = || queue.readv(&[VolatileSlice::from(&mut frame[..])]);
    assert!(read().is_ok(), "no frame came");
}

fn an_address_is_taken_once() {
    let world = World::new("");
    let before = world.host.everything();
    let mut guest = world.guest(9);
    let said = ipvtap(&world, 10, &["198.51.100.9".to_owned()]).unwrap_err();
    assert!(
        said.contains("tap-10") && said.contains("198.51.100.9"),
        "{said}"
    );
    assert!(
        said.contains("EADDRINUSE") || said.contains("in use"),
        "{said}"
    );
    guest.reaches(LAN, true);
    // It goes at once with its guest.
    guest.wire.cut();
    guest.ipvtap = None;
    ipvtap(&world, 10, &["198.51.100.9".to_owned()]).unwrap();
    world.host.is_as(&before);
}

fn a_shim_lets_the_host_and_ipvtaps_talk() {
    let world = World::new("");
    let host = &world.host;
    let before = host.everything();
    let guest = world.guest(9);
    host.ringtap(&["up"]).succeeded();
    guest.reaches(HOST, false);
    host.configure(&format!("{NETWORK}shim = true\n"));
    host.ringtap(&["up"]).succeeded();
    host.ringtap(&["status"]).succeeded();
    let again = host.ringtap(&["up"]).succeeded();
    assert!(again.contains("nothing to do"), "{again}");
    said_to_reach(host, "yes admin yes");
    guest.reaches(HOST, true);
    guest.reaches(LAN, true);
    all_ping(&host.netns, guest.ips());
    all_ping(&host.netns, LAN);
    all_ping(&world.lan, HOST);
    world.one_mac_was_seen();
    drop(guest);
    host.ringtap(&["down"]).succeeded();
    host.configure(NETWORK);
    all_ping(&host.netns, LAN);
    host.is_as(&before);
}

/// Has the guest web1 have two pairs on an ipvtap, as 198.51.100.9.
fn configure_direct(lab: &Lab) {
    let guest = tiny("web1", 10, &[]);
    let (on_default, direct) = (
        "network = \"default\", ip = \"192.168.100.10\"",
        "network = \"direct\", ip = \"198.51.100.9\", queue-pairs = 2",
    );
    assert!(guest.contains(on_default), "{guest}");
    lab.configure(&format!("{NETWORK}{}", guest.replace(on_default, direct)));
}

/// From its start to its end; its backend is killed once.
fn qemu_on_an_ipvtap() {
    let lab = Lab::new();
    configure_direct(&lab);
    let before = lab.host.snapshot();
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    guest.run("ip address add 198.51.100.9/24 dev eth0");
    guest.run(&format!("ping -c 3 {INTERNET}"));
    assert!(pings(&lab.internet, "198.51.100.9"));
    let mac = guest.run("cat /sys/class/net/eth0/address");
    let uplink = lab.host.run("cat /sys/class/net/up0/address");
    assert_eq!(mac.trim(), uplink.trim());
    for pid in lab.pids(&["backend", "--tap-fd"]) {
        lab.host.run(&format!("kill -9 {pid}"));
    }
    until("the next backend", || pings(&lab.internet, "198.51.100.9"));
    guest.run(&format!("ping -c 3 {INTERNET}"));
    assert!(guest.power_off().success());
    let change = difference(&before, &lab.host.snapshot());
    assert_eq!(change, "", "the host is not as it was");
}

/// On an uplink with the MAC address that the guest was told: it has no other.
fn a_link_that_went_with_its_uplink_comes_again() {
    let lab = Lab::new();
    configure_direct(&lab);
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    guest.run("ip address add 198.51.100.9/24 dev eth0");
    assert!(pings(&lab.internet, "198.51.100.9"));
    let mac = guest.run("cat /sys/class/net/eth0/address");
    let names = |words: &str| {
        until(words, || {
            let status = bounded(&mut lab.ringtap("status web1"), "");
            String::from_utf8_lossy(&status.stdout).contains(words)
        });
    };
    lab.host.run("ip link set up0 down");
    names("is down: ip link set up0 up");
    lab.host.run("ip link delete up0");
    names("was deleted, and there is no up0 to make it on again");
    lab.host.join("up0", &lab.internet, "up0");
    lab.internet
        .run(&format!("ip address add {INTERNET}/24 dev up0"));
    names("up0 has MAC address");
    assert!(!pings(&lab.internet, "198.51.100.9"));
    lab.host
        .run(&format!("ip link set up0 address {}", mac.trim()));
    until("the next ipvtap", || pings(&lab.internet, "198.51.100.9"));
    guest.run(&format!("ping -c 3 {INTERNET}"));
    assert!(guest.power_off().success());
    assert_eq!(lab.host.pids(), [0; 0]);
}

fn the_hosts_own_address_is_refused() {
    let guest = "[guests.web1]\nmemory = \"64M\"\n\
                 nics = [{ network = \"direct\", ip = \"198.51.100.2\" }]\n";
    let world = World::new(guest);
    let before = world.host.everything();
    let words = ["198.51.100.2 of guest web1 is the host's own", "up0"];
    world.host.ringtap(&["up"]).failed(1, &words);
    world.host.is_as(&before);
}

fn what_the_kernel_lacks_is_named() {
    let world = World::new("shim = true\n");
    let before = world.host.everything();
    world.host.ringtap(&["up"]).failed(1, &["module ipvlan"]);
    let said = ipvtap(&world, 9, &["198.51.100.9".to_owned()]).unwrap_err();
    assert!(said.contains("module ipvtap"), "{said}");
    world.host.is_as(&before);
}
