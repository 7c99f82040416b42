//! Guests that want more than their share: what they can have of the host's processors is one of them for each pair of queues, and
//! what is left of it for a neighbour is measured and told.
//!
//! `RINGTAP_STARVE_SECONDS=3 cargo test --test starve -- --nocapture` takes longer samples than the quick ones.

mod support;

use std::fs;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::unistd::{SysconfVar, sysconf};
use serde_json::Value;
use support::driver::{Buffer, guest_memory};
use support::netns::{Netns, bounded};
use support::served::{BROADCAST, GUEST_MAC, Guest, RINGTAP, World, test_frame};
use vhost::vhost_user::message::FrontendReq as Req;

const TXQ: usize = 1;

/// Chains that are available at once.
const AHEAD: usize = 256;

/// A neighbour's samples, each of this many seconds.
fn seconds() -> String {
    std::env::var("RINGTAP_STARVE_SECONDS").unwrap_or_else(|_| "0.2".to_owned())
}

/// What a guest does that wants to starve others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Greed {
    /// It tells of chains all the time, and has none.
    Kicks,
    /// It gives no buffers for what comes.
    NoBuffers,
    /// It sends frames of a thousand pieces, a byte each.
    Crumbs,
    /// It sends as fast as it can.
    Flood,
}

impl Greed {
    const ALL: [Self; 4] = [Self::Kicks, Self::NoBuffers, Self::Crumbs, Self::Flood];

    /// Does it until `done`.
    fn act(self, guest: &mut Guest<'_>, world: &World, done: &AtomicBool) {
        match self {
            Self::Kicks => {
                while !done.load(Ordering::Relaxed) {
                    guest.rings[TXQ].1.kick();
                }
            }
            Self::NoBuffers => {
                let wire = world.bridged("t0", "lo");
                let bytes = test_frame(BROADCAST, [0x52, 0x54, 0, 0, 0, 9], 200, 1);
                while !done.load(Ordering::Relaxed) {
                    let _ = wire.tap.send(&bytes[12..]); // what nobody takes is lost
                }
            }
            Self::Crumbs => {
                let bytes = test_frame(BROADCAST, GUEST_MAC, 1000, 1);
                let ring = &mut guest.rings[TXQ].0;
                let crumbs: Vec<_> = bytes.iter().map(|byte| ring.readable(&[*byte])).collect();
                let chain = ring.indirect(&crumbs);
                send(guest, chain, done);
            }
            Self::Flood => {
                let bytes = test_frame(BROADCAST, GUEST_MAC, 64, 1);
                let chain = guest.rings[TXQ].0.readable(&bytes);
                send(guest, chain, done);
            }
        }
    }
}

/// Keeps the transmitq full of this chain.
fn send(guest: &mut Guest<'_>, chain: Buffer, done: &AtomicBool) {
    let (ring, events) = &mut guest.rings[TXQ];
    let mut free = AHEAD;
    while !done.load(Ordering::Relaxed) {
        for _ in 0..std::mem::take(&mut free) {
            ring.add(&[chain]);
        }
        events.kick();
        while free == 0 && !done.load(Ordering::Relaxed) {
            std::thread::yield_now();
            free = ring.completed().len();
        }
    }
}

/// What a neighbour has: its own guest's frames a second, and how long one of them takes there and back in half of the cases and in
/// all but one of a hundred, in microseconds.
#[derive(Debug)]
struct Share {
    frames: f64,
    p50: f64,
    p99: f64,
}

/// Measures a backend beside whatever else goes on, with frames that count: one that is lost or damaged voids it.
fn neighbour() -> Share {
    let netns = Netns::new("neighbour");
    let mut bench = netns.command(RINGTAP);
    bench.args(["bench", "--work", "tx,rr", "--size", "64", "--samples", "3"]);
    bench
        .args(["--json", "--seconds", &seconds()])
        .stdin(Stdio::null());
    let output = bounded(&mut bench, "");
    let run: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        panic!("{}", String::from_utf8_lossy(&output.stderr));
    });
    let samples = |work: &str| -> Vec<Value> {
        let chapters = run["chapters"].as_array().unwrap();
        let chapter = chapters.iter().find(|it| it["work"] == work).unwrap();
        let ours = &chapter["subjects"][0];
        assert_eq!(ours["failure"], Value::Null, "{ours}");
        ours["samples"].as_array().unwrap().clone()
    };
    let median = |work: &str, figure: &dyn Fn(&Value) -> f64| {
        let mut all: Vec<f64> = samples(work).iter().map(figure).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value}"));
    Share {
        frames: median("tx", &|it| number(&it["count"]) / number(&it["seconds"])),
        p50: median("rr", &|it| number(&it["latency"]["p50"]) / 1000.0),
        p99: median("rr", &|it| number(&it["latency"]["p99"]) / 1000.0),
    }
}

/// What process `pid` has had of the processors, in seconds (proc_pid_stat(5)).
fn processor_time(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    let ticks: Vec<f64> = fields
        .skip(11)
        .take(2)
        .map(|it| it.parse().unwrap())
        .collect();
    let a_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
    ticks.iter().sum::<f64>() / a_second as f64
}

#[test]
fn what_greedy_guests_leave_to_a_neighbour() {
    let alone = neighbour();
    println!(
        "{:10} {:>9} {:>9} {:>9} {:>9}",
        "", "its CPU", "frames/s", "p50 us", "p99 us"
    );
    println!(
        "{:10} {:>9} {:>9.0} {:>9.0} {:>9.0}",
        "nobody", "", alone.frames, alone.p50, alone.p99
    );
    for greed in Greed::ALL {
        let world = World::new();
        let backend = world.serve("--tap t0 --guard services");
        world.ip("link set t0 up");
        let memory = guest_memory();
        let mut guest = Guest::start(world.connect(), &memory, 1);
        let done = AtomicBool::new(false);
        let (share, used) = std::thread::scope(|scope| {
            let ended = Ended(&done);
            scope.spawn(|| greed.act(&mut guest, &world, &done));
            let (before, start) = (processor_time(backend.0.id()), Instant::now());
            let share = neighbour();
            let used = (processor_time(backend.0.id()) - before) / start.elapsed().as_secs_f64();
            drop(ended);
            (share, used)
        });
        println!(
            "{:10} {:>8.0}% {:>9.0} {:>9.0} {:>9.0}",
            format!("{greed:?}"),
            used * 100.0,
            share.frames,
            share.p50,
            share.p99
        );
        // One thread for its pair, and a little for messages.
        assert!(used < 1.1, "{greed:?} has {used} processors");
        match greed {
            Greed::NoBuffers => assert!(used < 0.1, "{used} processors for nothing"),
            _ => assert!(
                used > 0.02,
                "{greed:?} has {used} processors: it is not greedy"
            ),
        }
        assert!(share.frames > alone.frames / 20.0, "{greed:?}: {share:?}");
        // It is served as before.
        guest.front_end.get_u64(Req::GET_FEATURES);
        assert_eq!(backend.end(), Some(0));
    }
}

/// Ends what goes on until then, whatever happens.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
