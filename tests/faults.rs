//! Faults at every turn: each system call by which ringtap changes the host, or notes what it changes, is made to fail, and
//! ringtap is killed at each; whatever comes of it, `down` leaves the host as it was.
//!
//! strace makes them fail (strace(1), `--inject`). It traces ringtap's one thread that does the work, and not the programs it
//! runs.

mod support;

use std::collections::BTreeMap;

use support::host::{Host, Said};
use support::kernel::is_test_host;
use support::netns::{Netns, require};

/// All that ringtap makes without a guest: rules, a forward, addresses of both families, a server, an uplink that moves.
const FILE: &str = "[networks.default]\nmode = \"nat\"\nsubnet = \"192.168.100.0/24\"\nipv6 = \"fd00:100::/64\"\nmtu = 1400\n\
     forwards = [\"tcp:2222 -> 192.168.100.10:22\"]\n\
     [networks.public]\nmode = \"routed\"\nsubnet = \"10.67.0.0/24\"\n\
     [networks.cable]\nmode = \"isolated\"\nhost = false\nsubnet = \"10.68.0.0/24\"\n\
     [networks.lan]\nmode = \"bridge\"\nuplink = \"up0\"\n";

/// By what ringtap changes something: sockets to the kernel, files, programs.
const CALLS: [&str; 7] = [
    "sendto", "openat", "write", "rename", "unlink", "mkdir", "clone3",
];

/// The numbers of the calls of each kind that are worth a fault.
type Calls = BTreeMap<&'static str, Vec<usize>>;

struct World {
    host: Host,
    _lan: Netns,
    before: String,
}

impl World {
    fn new() -> Self {
        require("strace", "strace");
        let host = Host::new(FILE);
        let lan = Netns::new("lan");
        host.netns.join("up0", &lan, "lan0");
        host.netns.run("ip address add 198.51.100.2/24 dev up0");
        host.netns
            .run("ip address add 2001:db8::2/64 dev up0 nodad");
        host.netns.run("ip route add default via 198.51.100.1");
        host.netns.settle();
        let before = host.everything();
        Self {
            host,
            _lan: lan,
            before,
        }
    }

    /// Which calls of each kind a command makes, counted from 1 as strace counts.
    fn calls(&self, command: &str) -> Calls {
        let log = self.host.dir.path().join("calls");
        let output = format!("--output={}", log.display());
        let trace = format!("--trace={}", CALLS.join(","));
        let by = ["strace", &output, &trace];
        self.host.ringtap_by(&by, &[command]).succeeded();
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_file(log).unwrap();
        let made = |call: &&'static str| {
            let lines = text
                .lines()
                .filter(|line| line.starts_with(&format!("{call}(")));
            let worth = (1..).zip(lines).filter(|(_, line)| !asks_a_process(line));
            (*call, worth.map(|(when, _)| when).collect())
        };
        CALLS.iter().map(made).collect()
    }

    /// A command whose call number `when` of this kind ends as `how` says.
    fn with_fault(&self, command: &str, call: &str, how: &str, when: usize) -> Said {
        let trace = format!("--trace={call}");
        let inject = format!("--inject={call}:{how}:when={when}");
        let by = ["strace", "--output=/dev/null", &trace, &inject];
        self.host.ringtap_by(&by, &[command])
    }

    /// Takes down whatever there is, once what still runs has ended.
    #[track_caller]
    fn down(&self, what: &str) {
        let down = self.host.ringtap(&["down"]);
        assert_eq!(down.code, Some(0), "{what}: {down:?}");
        let change = support::netns::difference(&self.before, &self.host.everything());
        assert_eq!(change, "", "{what}: the host is not as it was");
    }
}

/// Whether a line of strace's is a question about one of the host's processes: there are as many as the host has processes,
/// and it is no fault if one of those is gone.
fn asks_a_process(line: &str) -> bool {
    let path = line.split_once("\"/proc/").map(|(_, path)| path);
    path.is_some_and(|path| path.starts_with(|first: char| first.is_ascii_digit()))
}

/// Which of a command's calls are tried: one in `stride`, not the same for each kind. Each takes seconds on an emulated CPU:
/// there one in many has to do.
fn chosen(calls: &Calls, stride: usize) -> Vec<(&'static str, usize)> {
    let stride = if is_test_host() { 96 } else { stride };
    let mut all = Vec::new();
    for (offset, (call, made)) in calls.iter().enumerate() {
        let some = made.iter().skip(offset % stride).step_by(stride);
        all.extend(some.map(|when| (*call, *when)));
    }
    all
}

const FAULTS: [&str; 2] = ["error=EIO", "signal=SIGKILL"];

fn faults_on_the_way_up(stride: usize) {
    let world = World::new();
    let calls = world.calls("up");
    world.down("no fault");
    let few = calls["sendto"].len() <= 20 || calls["write"].len() <= 10;
    assert!(!few, "{calls:?}");
    let (mut tried, mut failed) = (0, 0);
    for how in FAULTS {
        for (call, when) in chosen(&calls, stride) {
            let what = format!("up with {how} at {call} {when}");
            let said = world.with_fault("up", call, how, when);
            tried += 1;
            failed += usize::from(said.code != Some(0));
            // What failed has been taken back by itself, all of it.
            if said.code == Some(1) && said.err.contains("taken back") {
                let change = support::netns::difference(&world.before, &world.host.everything());
                assert_eq!(change, "", "{what}: {said:?}");
            }
            world.down(&what);
        }
    }
    println!("up: {tried} faults, {failed} of which ended it");
    assert!(failed > tried / 4, "{failed} of {tried}");
}

fn faults_on_the_way_down(stride: usize) {
    let world = World::new();
    world.host.ringtap(&["up"]).succeeded();
    let calls = world.calls("down");
    assert!(calls["sendto"].len() > 10, "{calls:?}");
    let (mut tried, mut failed) = (0, 0);
    for how in FAULTS {
        for (call, when) in chosen(&calls, stride) {
            world.host.ringtap(&["up"]).succeeded();
            let said = world.with_fault("down", call, how, when);
            tried += 1;
            failed += usize::from(said.code != Some(0));
            world.down(&format!("down with {how} at {call} {when}"));
        }
    }
    println!("down: {tried} faults, {failed} of which ended it");
    assert!(failed > tried / 8, "{failed} of {tried}");
}

#[test]
fn some_faults_on_the_way_up_leave_nothing() {
    faults_on_the_way_up(32);
}

#[test]
fn some_faults_on_the_way_down_leave_nothing() {
    faults_on_the_way_down(24);
}

#[test]
#[ignore = "takes minutes: every call, where the quick run tries one in many"]
fn no_fault_on_the_way_up_leaves_anything() {
    faults_on_the_way_up(1);
}

#[test]
#[ignore = "takes minutes: every call, where the quick run tries one in many"]
fn no_fault_on_the_way_down_leaves_anything() {
    faults_on_the_way_down(1);
}
