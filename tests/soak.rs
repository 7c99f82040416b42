//! A soak: two guests at work for as long as wanted while links flap, are deleted, and what serves them is killed, at random.
//! Whatever happens is over within a minute, but for the pause before a QEMU is started that was killed again and again; both are
//! reached again and work on; and in the end nobody holds more than at the beginning.
//!
//! `RINGTAP_SOAK_MINUTES=60 cargo test --test soak -- --nocapture` for an hour, with figures every ten minutes; without it a few
//! rounds.

mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::console::Console;
use support::dice::{Dice, seed};
use support::host::said;
use support::lab::{INTERNET, Lab, WWW, tiny};
use support::netns::{BOUND, difference, until, until_by};
use support::web::WebServer;

/// Rounds of a run without a time.
const ROUNDS: u64 = 8;

/// Before the figures that others are compared with: by then everything has happened once.
const WARM_UP: u64 = Mishap::ALL.len() as u64;

/// Bytes of what guests fetch.
const BLOB: usize = 1 << 20;

/// Nobody does anything to the processes of the first.
const STEADY: &str = "steady";
const HARMED: &str = "harmed";

const HARMED_QEMU: [&str; 2] = ["memory-backend-memfd", "guest=harmed"];

const HOSTS: [(&str, u8); 2] = [(STEADY, 10), (HARMED, 11)];

/// What a guest does all the time. A connection that was begun without the rules that translate addresses is for nothing.
const WORK: &str = "(while :; do timeout 5 wget -q -O /dev/null http://WWW/blob; ping -c 1 -W 1 INTERNET >/dev/null; sleep 0.5; done 2>/dev/null &)";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mishap {
    BackendKilled,
    SupervisorKilled,
    DnsmasqKilled,
    QemuKilled,
    TapDeleted,
    TapFlaps,
    BridgeDeleted,
    UplinkFlaps,
    RulesFlushed,
}

impl Mishap {
    const ALL: [Self; 9] = [
        Self::BackendKilled,
        Self::SupervisorKilled,
        Self::DnsmasqKilled,
        Self::QemuKilled,
        Self::TapDeleted,
        Self::TapFlaps,
        Self::BridgeDeleted,
        Self::UplinkFlaps,
        Self::RulesFlushed,
    ];
}

/// How much of everything is held, by what and whom.
type Figures = BTreeMap<String, u64>;

struct World {
    lab: Lab,
    before: String,
    watch: Child,
}

impl World {
    fn new() -> Self {
        let lab = Lab::new();
        let guests = HOSTS.map(|(name, host)| {
            tiny(name, host, &[]).replace("cpus", "restart = \"always\"\ncpus")
        });
        lab.configure(&guests.concat().replace("256M", "128M"));
        let before = lab.host.snapshot();
        said(&mut lab.ringtap("up")).succeeded();
        let mut watch = lab.ringtap("watch");
        let watch = watch.stdout(Stdio::null()).spawn().unwrap();
        Self { lab, before, watch }
    }

    fn ringtap(&self, words: &str) -> String {
        said(&mut self.lab.ringtap(words)).succeeded()
    }

    fn pid(&self, words: &[&str]) -> Option<i32> {
        self.lab.pids(words).first().copied()
    }

    fn kill(&self, words: &[&str]) {
        if let Some(pid) = self.pid(words) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL); // another may have ended it
        }
    }

    /// Has a guest that has booted begin its work.
    fn puts_to_work(&self, guest: &str) {
        let mut console = Console::boot(&mut self.lab.ringtap(&format!("console {guest}")));
        console.run(&WORK.replace("WWW", WWW).replace("INTERNET", INTERNET));
    }

    fn happens(&self, mishap: Mishap) {
        let host = &self.lab.host;
        let tap = format!("tap-{HARMED}-0");
        match mishap {
            Mishap::BackendKilled => self.kill(&["backend --socket-path", &format!("/{HARMED}/")]),
            Mishap::SupervisorKilled => self.kill(&["supervise", HARMED]),
            Mishap::DnsmasqKilled => self.kill(&["dnsmasq --conf-file", "default"]),
            Mishap::QemuKilled => {
                self.kill(&HARMED_QEMU);
                until("its end", || self.pid(&HARMED_QEMU).is_none());
            }
            Mishap::TapDeleted => drop(host.attempt(&format!("ip link delete {tap}"))),
            Mishap::TapFlaps => {
                host.attempt(&format!("ip link set {tap} down"));
                sleep(Duration::from_millis(300));
                host.attempt(&format!("ip link set {tap} up"));
            }
            Mishap::BridgeDeleted => drop(host.run("ip link delete rt-default")),
            Mishap::UplinkFlaps => {
                host.run("ip link set up0 down");
                sleep(Duration::from_millis(300));
                host.run("ip link set up0 up");
                host.run("ip route add default via 198.51.100.1");
            }
            Mishap::RulesFlushed => drop(host.run("nft flush ruleset")),
        }
    }

    /// Waits until it is over: both guests are reached and fetch something from the internet.
    fn is_over(&self, mishap: Mishap) {
        match mishap {
            // Whoever looks at the guests has their supervisors started again.
            Mishap::SupervisorKilled => drop(self.ringtap("list")),
            // Its console still has what the one before has said. Whom it hits again and again waits a minute for its next start.
            Mishap::QemuKilled => until_by(2 * BOUND, "another QEMU", || {
                self.pid(&HARMED_QEMU).is_some()
            }),
            _ => {}
        }
        for (_, host) in HOSTS {
            until(&format!("an answer of .{host} after {mishap:?}"), || {
                let ping = format!("ping -n -c 1 -W 1 192.168.100.{host}");
                self.lab.host.attempt(&ping).status.success()
            });
        }
        if mishap == Mishap::QemuKilled {
            self.puts_to_work(HARMED);
        }
        for (guest, _) in HOSTS {
            let mut received = self.received(guest);
            until(&format!("work of {guest}'s after {mishap:?}"), || {
                let now = self.received(guest);
                received = received.min(now); // another backend counts anew
                now > received + BLOB as u64
            });
        }
    }

    /// Bytes that have come to the guest by the backend that it has.
    fn received(&self, guest: &str) -> u64 {
        let list: Value = serde_json::from_str(&self.ringtap("list --json")).unwrap();
        let guest = list
            .as_array()
            .unwrap()
            .iter()
            .find(|it| it["name"] == guest);
        guest.unwrap()["nics"][0]["rx_bytes"].as_u64().unwrap()
    }

    fn figures(&self) -> Figures {
        let mut figures = Figures::new();
        let processes = [
            ("supervisor", vec!["supervise", STEADY]),
            ("backend", vec!["backend --socket-path", "/steady/"]),
            ("QEMU", vec!["memory-backend-memfd", "guest=steady"]),
            ("watch", vec!["ringtap watch"]),
        ];
        for (name, words) in processes {
            let pid = self.pid(&words).expect(name);
            figures.insert(
                format!("{name}: KiB"),
                field(&format!("/proc/{pid}/status"), "RssAnon:"),
            );
            figures.insert(
                format!("{name}: threads"),
                field(&format!("/proc/{pid}/status"), "Threads:"),
            );
            let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
            figures.insert(format!("{name}: descriptors"), fds as u64);
        }
        figures.insert("host: processes".into(), self.lab.host.pids().len() as u64);
        let lines = |command: &str| self.lab.host.run(command).lines().count() as u64;
        figures.insert("host: links".into(), lines("ip -o link"));
        figures.insert("host: rules".into(), lines("nft list ruleset"));
        figures.insert("host: sockets".into(), lines("ss -a -H"));
        figures.insert(
            "host: files".into(),
            lines(&format!("find {}", self.lab.run_dir().display())),
        );
        // These are the whole machine's, and others' as well.
        figures.insert(
            "machine: slab KiB".into(),
            field("/proc/meminfo", "SUnreclaim:"),
        );
        let files = fs::read_to_string("/proc/sys/fs/file-nr").unwrap();
        let files = files.split_whitespace().next().unwrap().parse().unwrap();
        figures.insert("machine: open files".into(), files);
        figures
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.watch.kill();
        let _ = self.watch.wait();
    }
}

/// The number behind `name` in a file of /proc.
fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with(name))
        .expect(name);
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What there may be more of in the end: of memory a little, since allocators keep it, and of what comes and goes a few.
fn allowed(name: &str, first: u64) -> u64 {
    match name {
        // What it has translated of the guest's code.
        "QEMU: KiB" => first + (96 << 10),
        _ if name.ends_with("KiB") => first + first / 5 + 2048,
        "host: processes" | "host: sockets" => first + 8,
        _ => first + 1,
    }
}

fn table(first: &Figures, last: &Figures) -> String {
    first.iter().fold(String::new(), |mut text, (name, first)| {
        let _ = writeln!(text, "  {name:24} {first:>9} {:>9}", last[name]);
        text
    })
}

fn minutes() -> Option<Duration> {
    let text = std::env::var("RINGTAP_SOAK_MINUTES").ok()?;
    let minutes: u64 = text.parse().expect("RINGTAP_SOAK_MINUTES");
    Some(Duration::from_secs(60 * minutes))
}

#[test]
fn guests_work_on_whatever_happens_and_nothing_leaks() {
    let seed = seed();
    let time = minutes();
    let world = World::new();
    let web = WebServer::start(&world.lab.internet);
    web.put("blob", vec![7; BLOB]);
    for (guest, _) in HOSTS {
        world.ringtap(&format!("start {guest}"));
        world.puts_to_work(guest);
    }
    let (begun, mut first, mut told) = (Instant::now(), None, Instant::now());
    let mut counts = BTreeMap::new();
    let mut slowest = (Duration::ZERO, None);
    let mut round = 0;
    while time.map_or(round < ROUNDS + WARM_UP, |time| begun.elapsed() < time) {
        if round == WARM_UP {
            first = Some(world.figures());
        }
        let mut dice = Dice::new(seed, round);
        // Each of them once, and then as they fall.
        let mishap = match Mishap::ALL.get(round as usize) {
            Some(mishap) => *mishap,
            None => dice.one_of(&Mishap::ALL),
        };
        let start = Instant::now();
        world.happens(mishap);
        world.is_over(mishap);
        *counts.entry(format!("{mishap:?}")).or_insert(0) += 1;
        slowest = slowest.max((start.elapsed(), Some(round)));
        round += 1;
        if let Some(first) = &first
            && told.elapsed() > Duration::from_secs(600)
        {
            told = Instant::now();
            println!("{round} rounds\n{}", table(first, &world.figures()));
        }
    }
    let (first, last) = (first.expect("time for a few rounds"), world.figures());
    println!(
        "{round} rounds in {:?}: {counts:?}; the slowest {:?}; {} fetched\n{}",
        begun.elapsed(),
        slowest.0,
        web.gets(),
        table(&first, &last)
    );
    for (name, last) in &last {
        let is_ours = !name.starts_with("machine");
        assert!(!is_ours || *last <= allowed(name, first[name]), "{name}");
    }
    world.ringtap("stop --all");
    world.ringtap("down");
    until("the end of the last", || world.lab.host.pids().len() == 1); // but watch
    world.lab.host.settle(); // the uplink may have come back only now
    assert_eq!(difference(&world.before, &world.lab.host.snapshot()), "");
}
