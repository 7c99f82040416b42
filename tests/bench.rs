//! `ringtap bench`: that it works with each kind of ring, and that it notices whatever a back-end does to a frame.

mod support;

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ringtap::backend::message::Connection;
use ringtap::backend::queue_pair::QueuePair;
use ringtap::backend::session::{Device, Limits};
use ringtap::backend::worker::Worker;
use ringtap::tap::{Tap, TapQueue};
use ringtap::types::QueuePairs;
use serde_json::Value;
use support::driver::{HostEnd, tap_pair};
use support::host::{Said, said_by};
use support::netns::{Netns, difference};
use vm_memory::VolatileSlice;

const TAP: &str = "tap-rogue";

/// Seventeen samples of a fifth of a second, with what is around them, and other work beside.
const PATIENCE: Duration = Duration::from_secs(240);

fn bench(netns: &Netns, words: &str) -> Said {
    let mut command = netns.command(env!("CARGO_BIN_EXE_ringtap"));
    command.args(["bench", "--seconds", "0.2", "--json"]);
    said_by(PATIENCE, command.args(words.split_whitespace()))
}

fn chapters(said: Said) -> Vec<Value> {
    serde_json::from_str(&said.succeeded()).unwrap()
}

#[test]
fn every_kind_of_work_gives_samples_and_leaves_nothing() {
    let netns = Netns::new("bench");
    let before = netns.snapshot();
    for ring in ["split", "packed"] {
        let chapters = chapters(bench(&netns, &format!("--samples 1 --ring {ring}")));
        assert_eq!(chapters.len(), 8); // three works, three sizes, but nobody asks by 64 KB
        for chapter in &chapters {
            let what = format!("{ring} {} {}", chapter["work"], chapter["size"]);
            let subjects = chapter["subjects"].as_array().unwrap();
            assert_eq!(subjects[0]["name"], "ringtap", "{what}");
            for subject in subjects {
                let samples = subject["samples"].as_array().unwrap();
                assert_eq!(samples.len(), 1, "{what}: {subject}");
                for sample in samples {
                    assert!(sample["frames"].as_u64() > Some(0), "{what}: {sample}");
                    let cpu = sample["usage"]["cpu_ns"].as_u64();
                    assert!(cpu > Some(100_000), "{what}: {sample}");
                }
            }
        }
    }
    assert_eq!(difference(&before, &netns.snapshot()), "");
    assert_eq!(netns.pids(), [0; 0]);
}

/// What becomes of one frame of a thousand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mischief {
    None,
    Loses,
    Damages,
    Doubles,
    /// Two frames change their places.
    Swaps,
}

impl Mischief {
    /// What goes on in place of the frames of number `number` and the one before, which is `last` if it was kept.
    fn apply(self, number: u64, mut frame: Vec<u8>, last: &mut Option<Vec<u8>>) -> Vec<Vec<u8>> {
        if let Some(last) = last.take() {
            return vec![frame, last];
        }
        if number % 1000 != 999 {
            return vec![frame];
        }
        match self {
            Self::None => vec![frame],
            Self::Loses => Vec::new(),
            Self::Damages => {
                let middle = 12 + 14 + (frame.len() - 26) / 2;
                frame[middle] ^= 1;
                vec![frame]
            }
            Self::Doubles => vec![frame.clone(), frame],
            Self::Swaps => {
                *last = Some(frame);
                Vec::new()
            }
        }
    }
}

/// A back-end that listens on `socket` for as long as this process lives, with a tap in `netns`, and does mischief on the way
/// between them.
fn rogue(netns: &Netns, socket: &Path, mischief: Mischief) {
    let name = TAP.parse().unwrap();
    let opened = netns.within(move || Tap::open(&name, QueuePairs::ONE));
    let (settings, mut queues) = opened.unwrap();
    netns.run(&format!("ip link set {TAP} addrgenmode none up"));
    let (tap, end) = tap_pair();
    let pair = QueuePair::new(TapQueue::from_fd(tap).unwrap()).unwrap();
    let worker = Worker::spawn("pair0".into(), pair, Duration::ZERO).unwrap();
    let mut device = Device::new(Box::new(settings), vec![worker], Limits::default());
    let queue = queues.remove(0);
    thread::spawn(move || relay(&queue, &end, mischief));
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = Connection::new(stream.unwrap()).unwrap();
            while let Ok(true) = device.serve_message(&connection) {}
            device.reset().unwrap();
        }
    });
}

fn relay(queue: &TapQueue, end: &HostEnd, mischief: Mischief) {
    let (mut to_tap, mut to_guest) = ((0, None), (0, None));
    let mut buffer = vec![0; 1 << 17];
    loop {
        while let Some(frame) = end.receive() {
            for mut frame in mischief.apply(to_tap.0, frame, &mut to_tap.1) {
                queue
                    .writev(&[VolatileSlice::from(&mut frame[..])])
                    .unwrap();
            }
            to_tap.0 += 1;
        }
        while let Ok(bytes) = queue.readv(&[VolatileSlice::from(&mut buffer[..])]) {
            let frame = buffer[..bytes].to_vec();
            for frame in mischief.apply(to_guest.0, frame, &mut to_guest.1) {
                end.send(&frame);
            }
            to_guest.0 += 1;
        }
        let wanted = [queue.as_fd(), end.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        poll(&mut wanted.clone(), PollTimeout::NONE).unwrap();
    }
}

/// What a run says of a back-end that does this, and how it ends.
fn of_a_rogue(mischief: Mischief, work: &str) -> (Option<i32>, String) {
    let netns = Netns::new("bench");
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("rogue.sock");
    rogue(&netns, &socket, mischief);
    let words = format!("--socket {} --tap {TAP} --samples 1", socket.display());
    let said = bench(&netns, &format!("{words} --size 64 --work {work}"));
    let chapters: Vec<Value> = serde_json::from_str(&said.out).expect(&said.err);
    let failure = chapters[0]["subjects"][0]["failure"].as_str();
    (said.code, failure.unwrap_or_default().to_owned())
}

#[test]
fn a_back_end_that_harms_frames_voids_the_run() {
    for work in ["tx", "rx"] {
        let honest = of_a_rogue(Mischief::None, work);
        assert_eq!(honest, (Some(0), String::new()), "{work}");
        for (mischief, word) in [
            (Mischief::Loses, " lost"),
            (Mischief::Damages, " damaged"),
            (Mischief::Doubles, " out of order"),
            (Mischief::Swaps, " out of order"),
        ] {
            let (code, failure) = of_a_rogue(mischief, work);
            let what = format!("{work} {mischief:?}: {failure}");
            assert_eq!(code, Some(1), "{what}");
            assert!(failure.starts_with("void: "), "{what}");
            // Of the kind in question there are some.
            let count = failure.split(word).next().unwrap();
            let count = count.rsplit(' ').next().unwrap();
            assert!(count.parse::<u64>().unwrap() > 0, "{what}");
        }
    }
}

#[test]
fn what_can_not_be_measured_is_said() {
    let netns = Netns::new("bench");
    let words = "--socket /nowhere/nic.sock --samples 1 --size 64 --work tx";
    let said = bench(&netns, words);
    assert_eq!(said.code, Some(1));
    assert!(
        said.out
            .contains("/nowhere/nic.sock: no vhost-user back-end"),
        "{said:?}"
    );
    bench(&netns, "--size 20").failed(2, &["60 to 9014 bytes"]);
    bench(&netns, "--tap t0").failed(2, &["--socket"]);
}
