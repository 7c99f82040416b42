//! `ringtap bench`: that it works with each kind of ring, that it notices whatever a back-end does to a frame, and that it
//! measures guests.

mod support;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringtap::backend::message::Connection;
use ringtap::backend::queue_pair::QueuePair;
use ringtap::backend::session::{Device, Limits};
use ringtap::backend::worker::Worker;
use ringtap::tap::{Tap, TapQueue};
use ringtap::types::QueuePairs;
use serde_json::Value;
use support::console::Console;
use support::driver::{HostEnd, tap_pair};
use support::host::{Said, said_by};
use support::lab::{Lab, tiny_guest};
use support::netns::{BOUND, Netns, difference, until, wait};
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

const TAP: &str = "tap-rogue";

/// Forty samples of a fifth of a second, with what is around them, and other work beside.
const PATIENCE: Duration = Duration::from_secs(300);

fn bench(netns: &Netns, words: &str) -> Said {
    let mut command = netns.command(env!("CARGO_BIN_EXE_ringtap"));
    command.args(["bench", "--seconds", "0.2", "--json"]);
    said_by(PATIENCE, command.args(words.split_whitespace()))
}

fn chapters(said: Said) -> Vec<Value> {
    let report: Value = serde_json::from_str(&said.succeeded()).unwrap();
    report["chapters"].as_array().unwrap().clone()
}

#[test]
fn every_kind_of_work_gives_samples_and_leaves_nothing() {
    let netns = Netns::new("bench");
    let before = netns.snapshot();
    let dir = tempfile::tempdir().unwrap();
    // Seven works, three sizes, one pair or two; but connections have frames of their own, an idle guest has none, and who
    // asks one by one does so by short frames of one pair.
    for (ring, pairs, works) in [
        ("split", "1,2", 4 * 3 * 2 + 2 + 2 + 1),
        ("packed", "1", 4 * 3 + 3),
    ] {
        let report = dir.path().join(ring);
        let words = format!(
            "--samples 1 --size 64,imix,64k --pairs {pairs} --ring {ring} --report {}",
            report.display()
        );
        let chapters = chapters(bench(&netns, &words));
        assert_eq!(chapters.len(), works);
        for chapter in &chapters {
            let what = format!(
                "{ring} {} {} {}",
                chapter["work"], chapter["size"], chapter["pairs"]
            );
            let subjects = chapter["subjects"].as_array().unwrap();
            assert_eq!(subjects[0]["name"], "ringtap", "{what}");
            for subject in subjects {
                let samples = subject["samples"].as_array().unwrap();
                assert_eq!(samples.len(), 1, "{what}: {subject}");
                for sample in samples {
                    assert!(sample["count"].as_u64() > Some(0), "{what}: {sample}");
                    let usage = &sample["usage"];
                    match chapter["work"] == "idle" {
                        true => assert_eq!(usage["wake_ups"], 0, "{what}: {sample}"),
                        false => {
                            assert!(usage["cpu_ns"].as_u64() > Some(100_000), "{what}: {sample}")
                        }
                    }
                }
            }
        }
    }
    assert_eq!(difference(&before, &netns.snapshot()), "");
    assert_eq!(netns.pids(), [0; 0]);
    is_a_whole_report(&dir.path().join("split"));
}

/// Frames come whole by whatever kind of driver.
#[test]
fn drivers_of_all_kinds_are_served() {
    let netns = Netns::new("bench");
    for driver in [
        "--batch 1",
        "--header apart --batch 7",
        "--features version-1",
        "--features version-1,indirect-desc,mrg-rxbuf --header apart",
        "--features version-1,event-idx,indirect-desc --header apart --ring packed",
        "--features mrg-rxbuf --queue-size 64",
        "--features event-idx",
        "--features indirect-desc --header apart",
    ] {
        let chapters = chapters(bench(
            &netns,
            &format!("--samples 1 --work both --size 64,1514 {driver}"),
        ));
        for chapter in chapters {
            let sample = &chapter["subjects"][0]["samples"][0];
            assert!(sample["count"].as_u64() > Some(0), "{driver}: {chapter}");
        }
    }
    let lacks = "--work rx --size 64k --features version-1";
    let said = bench(&netns, &format!("--samples 1 {lacks}"));
    assert_eq!(said.code, Some(1));
    let why = "without VIRTIO_NET_F_MRG_RXBUF, which --features leaves out";
    assert!(said.out.contains(why), "{said:?}");
    bench(&netns, "--features mrg").failed(2, &["`mrg` is none of version-1"]);
}

/// A page with all charts and samples beside the data and a chart.
fn is_a_whole_report(dir: &Path) {
    let page = page(dir);
    assert_eq!(page.matches("<h2>").count(), 7, "{page}");
    assert_eq!(page.matches("every sample").count(), 4 * 3 * 2 + 2 + 2 + 1);
    assert!(page.contains("<polyline") && page.contains("--queue-size 1024"));
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let results: Value = serde_json::from_str(&read("results.json")).unwrap();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(results["machine"]["kernel"], kernel.trim());
    assert!(read("throughput.svg").contains("tap to guest, 64 B"));
}

fn is_a_whole_report_of_guests(dir: &Path) {
    let page = page(dir);
    assert_eq!(page.matches("every sample").count(), 9);
    assert!(page.contains("<polyline") && page.contains("vhost=off"));
    assert!(page.contains("QEMU emulator version") && page.contains("iperf 3"));
    let chart = fs::read_to_string(dir.join("throughput.svg")).unwrap();
    assert!(chart.contains("TCP, guest to host; nat, 2 pairs"));
}

/// The page of a report, which asks nobody for anything.
fn page(dir: &Path) -> String {
    let page = fs::read_to_string(dir.join("report.html")).unwrap();
    let asks = ["src=", "href=", "url(", "@import"];
    assert!(!asks.iter().any(|word| page.contains(word)), "{page}");
    page
}

/// A NIC of ringtap's and one of QEMU's in one guest, and a guest that runs already.
#[test]
fn guests_are_measured_by_each_of_their_nics_and_leave_nothing() {
    let [kernel, ..] = tiny_guest();
    let tiny = Path::new(&kernel)
        .parent()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    let netns = Netns::new("bench-guest");
    let before = netns.snapshot();
    let few = "--samples 1 --seconds 1 --json";
    let dir = tempfile::tempdir().unwrap();
    let report = format!("--report {}", dir.path().display());
    let words = format!("bench guest --pairs 2 --mode nat --tiny {tiny} {report} {few}");
    let mut command = netns.command(env!("CARGO_BIN_EXE_ringtap"));
    let said = said_by(PATIENCE, command.args(words.split_whitespace()));
    let mut names = vec!["ringtap", "QEMU's tap"];
    if Path::new("/dev/vhost-net").exists() {
        names.push("vhost-net");
    }
    all_loads_are_measured(&said.succeeded(), &names);
    is_a_whole_report_of_guests(dir.path());
    assert_eq!(difference(&before, &netns.snapshot()), "");
    assert_eq!(netns.pids(), [0; 0]);

    let lab = Lab::new();
    lab.configure_guest("");
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    guest.run("iperf3 -s -D");
    let mut command = lab.ringtap(&format!("bench guest web1 {few}"));
    let said = said_by(PATIENCE, &mut command);
    all_loads_are_measured(&said.succeeded(), &["web1"]);
    let said = said_by(
        PATIENCE,
        &mut lab.ringtap(&format!("bench guest web2 {few}")),
    );
    said.failed(1, &["guest web2 runs nowhere"]);
    assert!(guest.power_off().success());
}

fn all_loads_are_measured(json: &str, names: &[&str]) {
    let report: Value = serde_json::from_str(json).unwrap();
    let chapters = report["chapters"].as_array().unwrap();
    assert_eq!(chapters.len(), 9, "{json}");
    for chapter in chapters {
        let subjects = chapter["subjects"].as_array().unwrap();
        let theirs: Vec<&str> = subjects
            .iter()
            .map(|it| it["name"].as_str().unwrap())
            .collect();
        assert_eq!(theirs, names);
        for subject in subjects {
            assert!(subject["failure"].is_null(), "{chapter}");
            let sample = &subject["samples"][0];
            let figure = match chapter["load"] == "ping" {
                true => &sample["latency"]["p50"],
                false => &sample["bits_per_second"],
            };
            assert!(figure.as_f64() > Some(1000.0), "{chapter}");
            let (whole, device) = (sample["cpu_ns"].as_u64(), sample["device_ns"].as_u64());
            assert!(whole > Some(100_000_000), "{chapter}");
            // The guest's CPU, which is none of the device's, is emulated.
            assert!(device > Some(1_000_000) && device < whole, "{chapter}");
        }
    }
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
    /// It lets the first frames wait for a while, which is none.
    BeginsLate,
}

impl Mischief {
    /// What goes on in place of the frames of number `number` and the one before, which is `last` if it was kept: something else
    /// in every `period`.
    fn apply(
        self,
        period: u64,
        number: u64,
        mut frame: Vec<u8>,
        last: &mut Option<Vec<u8>>,
    ) -> Vec<Vec<u8>> {
        if let Some(last) = last.take() {
            return vec![frame, last];
        }
        if number % period != period - 1 {
            return vec![frame];
        }
        match self {
            Self::None | Self::BeginsLate => vec![frame],
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
fn rogue(netns: &Netns, tap: &str, socket: &Path, mischief: Mischief, period: u64) {
    let name = tap.parse().unwrap();
    let opened = netns.within(move || Tap::open(&name, QueuePairs::ONE));
    let (settings, mut queues) = opened.unwrap();
    netns.run(&format!("ip link set {tap} addrgenmode none up"));
    let (tap, end) = tap_pair();
    let pair = QueuePair::new(TapQueue::from_fd(tap).unwrap()).unwrap();
    let lost = Arc::new(EventFd::new(0).unwrap());
    let worker = Worker::spawn("pair0".into(), pair, Duration::ZERO, lost).unwrap();
    let mut device = Device::new(Box::new(settings), vec![worker], Limits::default());
    let queue = queues.remove(0);
    thread::spawn(move || relay(&queue, &end, mischief, period));
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = Connection::new(stream.unwrap()).unwrap();
            while let Ok(true) = device.serve_message(&connection) {}
            device.reset().unwrap();
        }
    });
}

fn relay(queue: &TapQueue, end: &HostEnd, mischief: Mischief, period: u64) {
    let (mut to_tap, mut to_guest) = ((0, None), (0, None));
    let mut buffer = vec![0; 1 << 17];
    let ends = [queue.as_fd(), end.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let wait = || poll(&mut ends.clone(), PollTimeout::NONE).unwrap();
    if mischief == Mischief::BeginsLate {
        wait();
        thread::sleep(Duration::from_millis(500));
    }
    loop {
        while let Some(frame) = end.receive() {
            for mut frame in mischief.apply(period, to_tap.0, frame, &mut to_tap.1) {
                queue
                    .writev(&[VolatileSlice::from(&mut frame[..])])
                    .unwrap();
            }
            to_tap.0 += 1;
        }
        while let Ok(bytes) = queue.readv(&[VolatileSlice::from(&mut buffer[..])]) {
            let frame = buffer[..bytes].to_vec();
            for frame in mischief.apply(period, to_guest.0, frame, &mut to_guest.1) {
                end.send(&frame);
            }
            to_guest.0 += 1;
        }
        wait();
    }
}

/// What a run says of a back-end that does this, and how it ends. The other guest's, if there is one, is honest.
fn of_a_rogue(mischief: Mischief, work: &str) -> (Option<i32>, String) {
    let netns = Netns::new("bench");
    let dir = tempfile::tempdir().unwrap();
    let sockets = ["rogue", "peer"].map(|name| dir.path().join(name).display().to_string());
    // Of connections an emulated machine moves less than a thousand frames in a sample.
    let period = if work == "churn" { 100 } else { 1000 };
    rogue(&netns, TAP, Path::new(&sockets[0]), mischief, period);
    let mut words = format!("--socket {} --tap {TAP} --samples 1", sockets[0]);
    if ["vm", "churn"].contains(&work) {
        rogue(
            &netns,
            "tap-peer",
            Path::new(&sockets[1]),
            Mischief::None,
            period,
        );
        words = format!("{words} --socket {}", sockets[1]);
        netns.run("ip link add br0 type bridge");
        netns.run("ip link set br0 addrgenmode none up");
        netns.run(&format!("ip link set {TAP} master br0"));
        netns.run("ip link set tap-peer master br0");
    }
    let said = bench(&netns, &format!("{words} --size 64 --work {work}"));
    let report: Value = serde_json::from_str(&said.out).expect(&said.err);
    let failure = report["chapters"][0]["subjects"][0]["failure"].as_str();
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

/// So does DPDK's testpmd, which listens some time before it forwards.
#[test]
fn a_back_end_that_begins_late_is_waited_for() {
    for work in ["tx", "rx", "both", "vm", "churn"] {
        let said = of_a_rogue(Mischief::BeginsLate, work);
        assert_eq!(said, (Some(0), String::new()), "{work}");
    }
}

/// Of two connections it does not matter whose frame is first.
#[test]
fn a_back_end_that_harms_connections_voids_the_run() {
    for (mischief, word) in [
        (Mischief::None, ""),
        (Mischief::Loses, "connections are lost"),
        (Mischief::Damages, "frames are damaged"),
        (Mischief::Doubles, " came when "),
    ] {
        let (code, failure) = of_a_rogue(mischief, "churn");
        let what = format!("{mischief:?}: {failure}");
        assert_eq!(code, Some(i32::from(mischief != Mischief::None)), "{what}");
        assert!(failure.contains(word), "{what}");
        assert_eq!(failure.is_empty(), mischief == Mischief::None, "{what}");
    }
}

/// The kernel takes the io_uring of a killed process apart behind it, and until then the tap has a queue of that process's.
#[test]
fn a_back_end_that_was_killed_under_load_leaves_its_tap_to_the_next() {
    let netns = Netns::new("bench");
    netns.run("ip tuntap add dev tap-killed mode tap multi_queue vnet_hdr");
    netns.run("ip link set tap-killed addrgenmode none up");
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let socket = dir.path().join(format!("{round}.sock"));
        let mut back_end = netns.command(env!("CARGO_BIN_EXE_ringtap"));
        back_end.args(["backend", "--tap", "tap-killed", "--socket-path"]);
        let mut back_end = back_end.arg(&socket).spawn().unwrap();
        until("it listens", || {
            assert_eq!(back_end.try_wait().unwrap(), None, "round {round}");
            socket.exists()
        });
        let mut load = netns.command(env!("CARGO_BIN_EXE_ringtap"));
        load.args(["bench", "--work", "tx", "--size", "64", "--socket"]);
        let mut load = load.arg(&socket).stdout(Stdio::null()).spawn().unwrap();
        let received = || -> u64 {
            let count = netns.run("cat /sys/class/net/tap-killed/statistics/rx_packets");
            count.trim().parse().unwrap()
        };
        let before = received();
        until("load", || received() > before + 50_000);
        back_end.kill().unwrap();
        load.kill().unwrap();
        back_end.wait().unwrap();
        load.wait().unwrap();
    }
}

/// By Ctrl-C at its terminal, or by whoever has started it.
#[test]
fn an_end_that_is_asked_for_leaves_nothing() {
    let [kernel, ..] = tiny_guest();
    let tiny = Path::new(&kernel).parent().unwrap().display().to_string();
    let netns = Netns::new("bench-ended");
    let before = netns.snapshot();
    for (words, signal, sign) in [
        (
            "bench --seconds 600 --work tx",
            Signal::SIGTERM,
            "exe backend",
        ),
        (
            "bench --seconds 600 --work churn",
            Signal::SIGINT,
            "exe backend",
        ),
        (
            &format!("bench guest --tiny {tiny}"),
            Signal::SIGTERM,
            "qemu-system-x86_64",
        ),
    ] {
        let mut command = netns.command(env!("CARGO_BIN_EXE_ringtap"));
        command.args(words.split_whitespace());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut bench = command.spawn().unwrap();
        until(sign, || {
            assert_eq!(bench.try_wait().unwrap(), None, "{words}");
            netns.pids().iter().any(|pid| {
                let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let words = String::from_utf8_lossy(&words).replace('\0', " ");
                words.contains(sign)
            })
        });
        kill(Pid::from_raw(bench.id() as i32), signal).unwrap();
        assert!(wait(&mut bench, BOUND).is_some(), "{words} goes on");
        let output = bench.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}: {said}");
        assert!(output.stdout.is_empty(), "{words}");
        assert!(said.contains("ended by a signal"), "{words}: {said}");
        assert_eq!(netns.pids(), [0; 0], "{words}");
        assert_eq!(difference(&before, &netns.snapshot()), "", "{words}");
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
    bench(&netns, "--size 20").failed(2, &["64 to 9014 bytes"]);
    bench(&netns, "--tap t0").failed(2, &["--socket"]);
}

/// Frames that are lost with it are not why; nor whether anybody has noticed its end.
#[test]
fn a_back_end_that_dies_under_load_is_told_as_such() {
    let netns = Netns::new("bench");
    netns.run("ip tuntap add dev tap-dies mode tap multi_queue vnet_hdr");
    netns.run("ip link set tap-dies addrgenmode none up");
    let ringtap = env!("CARGO_BIN_EXE_ringtap");
    let back_end = format!("{ringtap} backend --tap tap-dies --socket-path $SOCKET");
    for (work, line) in [
        ("tx", format!("exec timeout -s KILL 1 {back_end}")),
        (
            "rx",
            format!("{back_end} & sleep 1; kill -KILL $!; exec sleep 9"),
        ),
    ] {
        let mut command = netns.command(ringtap);
        command.args(["bench", "--samples", "1", "--seconds", "2", "--size", "64"]);
        command.args(["--work", work, "--vs-run", &format!("dies={line}")]);
        let said = said_by(PATIENCE, &mut command);
        assert_eq!(said.code, Some(1), "{work}");
        let why = "the back-end has ended meanwhile, process ";
        assert!(said.out.contains(why), "{work}: {said:?}");
    }
}
