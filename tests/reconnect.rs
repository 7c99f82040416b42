//! A backend that is killed again and again at random moments, while bytes flow in both directions: its successors
//! go on with the same rings, and neither of the guest's two TCP connections notices more than a pause.
//!
//! A dozen kills; fifty, on either kind of ring, in full runs.

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::bytes::noise;
use support::console::Console;
use support::lab::{Lab, Qemu, WWW, tiny};
use support::netns::{BOUND, Netns, until};
use support::web::WebServer;

/// The supervisor lets a successor wait for that long where a backend lived less.
const YOUNG: u64 = 1000;
/// What must have moved in either direction before a backend that is not killed young is killed.
const MOVED: u64 = 256 << 10;

/// The far ends of one connection that goes to the guest and one that comes from it. There is no third: the listeners
/// are gone once each has its connection.
struct Streams {
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<String>,
    receiver: JoinHandle<()>,
}

impl Streams {
    /// Port 8000 gives bytes that never repeat, as an answer to a GET, until [`Self::stop`]; port 8001 takes nothing but
    /// `chunk`, over and over.
    fn start(netns: &Netns, chunk: Vec<u8>) -> Self {
        let bind = |port| TcpListener::bind(("0.0.0.0", port)).expect("a port of the namespace");
        let [give, take] = netns.within(|| [bind(8000), bind(8001)]);
        let (sent, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let sender = std::thread::spawn({
            let (sent, stop) = (Arc::clone(&sent), Arc::clone(&stop));
            move || give_until(&give, &sent, &stop)
        });
        let receiver = std::thread::spawn({
            let received = Arc::clone(&received);
            move || take_all(&take, &received, &chunk)
        });
        Self {
            sent,
            received,
            stop,
            sender,
            receiver,
        }
    }

    /// Bytes sent and received so far.
    fn moved(&self) -> (u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.sent), load(&self.received))
    }

    /// Both connections are still there.
    fn check(&self) {
        assert!(!self.sender.is_finished(), "the download ended early");
        assert!(!self.receiver.is_finished(), "the upload ended early");
    }

    /// Ends the download.
    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Returns the SHA-256 of what it gave.
fn give_until(listener: &TcpListener, sent: &AtomicU64, stop: &AtomicBool) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        request.push(byte[0]);
    }
    stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
    let mut command = Command::new("sha256sum");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut sum = command.spawn().unwrap();
    let mut into = sum.stdin.take().unwrap();
    for seed in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let bytes = noise(64 << 10, seed);
        stream.write_all(&bytes).expect("the download");
        into.write_all(&bytes).unwrap();
        sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
    drop((into, stream));
    let output = sum.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout)[..64].to_owned()
}

fn take_all(listener: &TcpListener, received: &AtomicU64, chunk: &[u8]) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        let len = stream.read(&mut buffer).expect("the upload");
        if len == 0 {
            return;
        }
        let mut bytes = &buffer[..len];
        while !bytes.is_empty() {
            let part = bytes.len().min(chunk.len() - at);
            assert!(
                bytes[..part] == chunk[at..at + part],
                "the upload differs after {} bytes",
                received.load(Ordering::Relaxed)
            );
            at = (at + part) % chunk.len();
            bytes = &bytes[part..];
        }
        received.fetch_add(len as u64, Ordering::Relaxed);
    }
}

/// The age in milliseconds at which each backend is killed: mostly one that serves, and now and then one that has
/// only started, or is about to meet its front-end.
fn ages(seed: u64) -> impl Iterator<Item = u64> {
    let bytes = noise(8 * 64, seed);
    (0..).map(move |i| {
        let word: [u8; 8] = bytes[i % 64 * 8..][..8].try_into().unwrap();
        let word = u64::from_le_bytes(word) >> 8;
        match word % 5 {
            0 => word / 5 % 300,
            _ => YOUNG + 20 + word / 5 % 280,
        }
    })
}

#[test]
fn a_backend_killed_again_and_again_costs_no_connection() {
    killed(12, &[]);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn a_backend_killed_fifty_times_costs_no_connection() {
    killed(50, &[]);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn a_backend_of_packed_rings_killed_fifty_times_costs_no_connection() {
    killed(50, &["-global", "virtio-net-pci.packed=on"]);
}

fn killed(kills: u32, qemu_args: &[&str]) {
    let lab = Lab::with_qemu(Qemu::Ten);
    lab.configure(&tiny("web1", 10, qemu_args));
    let web = WebServer::start(&lab.internet);
    let chunk = noise(8 << 20, 3);
    web.put("chunk", chunk.clone());
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    guest.run(&format!("wget -q -O /tmp/chunk http://{WWW}/chunk"));

    let streams = Streams::start(&lab.internet, chunk.clone());
    let upload =
        "n=0; while [ ! -e /tmp/stop ]; do cat /tmp/chunk; n=$((n+1)); done; echo $n >/tmp/chunks";
    guest.begin(&format!(
        "(({upload}) | nc {WWW} 8001 & wget -q -O - http://{WWW}:8000/ | sha256sum >/tmp/sum; \
         touch /tmp/stop; wait; cat /tmp/sum /tmp/chunks)"
    ));
    until("bytes both ways", || {
        let (sent, received) = streams.moved();
        sent > MOVED && received > MOVED
    });

    let started = Instant::now();
    let mut born = started;
    let mut last = 0;
    for (round, age) in (1..=kills).zip(ages(1)) {
        let before = streams.moved();
        let mut pid = 0;
        until("a new backend", || {
            let pids = lab.pids(&["backend --socket-path"]);
            pid = *pids.first().unwrap_or(&0);
            pids.len() == 1 && pid != last
        });
        if round > 1 {
            born = Instant::now();
        }
        let found = started.elapsed();
        if age > YOUNG {
            until("bytes both ways under a new backend", || {
                streams.check();
                let (sent, received) = streams.moved();
                sent > before.0 + MOVED && received > before.1 + MOVED
            });
        }
        // The moment itself.
        std::thread::sleep(Duration::from_millis(age).saturating_sub(born.elapsed()));
        streams.check();
        let now = streams.moved();
        println!(
            "{round}: found at {found:?}, killed at {:?}; {} bytes to the guest, {} from it",
            started.elapsed(),
            now.0 - before.0,
            now.1 - before.1
        );
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        last = pid;
    }
    let took = started.elapsed();
    let before = streams.moved();
    until("bytes both ways under the last backend", || {
        streams.check();
        let (sent, received) = streams.moved();
        sent > before.0 + MOVED && received > before.1 + MOVED
    });

    streams.stop();
    let (code, said) = guest.finish(BOUND);
    assert_eq!(code, 0, "{said}");
    let (sent, received) = streams.moved();
    println!("{kills} kills in {took:?}; {sent} bytes to the guest, {received} from it");
    assert_eq!(said[..64], streams.sender.join().unwrap(), "{said}");
    streams.receiver.join().unwrap();
    let chunks: u64 = said.lines().last().unwrap().trim().parse().expect(&said);
    assert_eq!(
        streams.received.load(Ordering::Relaxed),
        chunks * chunk.len() as u64
    );
    assert_eq!(web.gets(), 1);
    assert!(guest.power_off().success());
}
