//! A backend as a program in a namespace of its own, the driver that it serves, and what is beyond its bridge.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringtap::backend::memory::GuestMemory;
use vhost::vhost_user::message::FrontendReq as Req;

use super::driver::{Buffer, DriverRing, MEMORY, frame};
use super::front_end::{Events, RawFrontEnd, wait_for};
use super::netns::{BOUND, Netns, bounded, until, wait};
use super::wire::Wire;

pub const VERSION_1: u64 = 1 << 32;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
pub const RINGTAP: &str = env!("CARGO_BIN_EXE_ringtap");

/// A namespace and a place for sockets.
pub struct World {
    pub netns: Netns,
    pub dir: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        Self {
            netns: Netns::new("host-side"),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn ip(&self, words: &str) -> String {
        self.netns.run(&format!("ip {words}"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("nic.sock")
    }

    /// `ringtap backend` with `options`, words between spaces.
    pub fn backend(&self, options: &str) -> Command {
        let mut command = self.netns.command(RINGTAP);
        command.arg("backend").args(options.split_whitespace());
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// A backend that listens on the socket.
    pub fn serve(&self, options: &str) -> Backend {
        let mut command = self.backend(options);
        let command = command.arg("--socket-path").arg(self.socket());
        let child = command.spawn().unwrap();
        until("the socket", || self.socket().exists());
        Backend(child)
    }

    pub fn connect(&self) -> RawFrontEnd {
        let connect = || UnixStream::connect(self.socket()).ok();
        RawFrontEnd(wait_for("a connection", connect))
    }

    /// What a backend with `options` says that can't serve.
    pub fn refusal(&self, options: &str) -> String {
        let mut command = self.backend(options);
        refusal_of(command.arg("--socket-path").arg(self.socket()))
    }

    /// A link whose frames come out of the wire `w0` and back: a veth into a bridge.
    pub fn far_end(&self, link: &str) -> Wire {
        self.ip(&format!("link add {link} type veth peer name far0"));
        self.bridged("far0", link)
    }

    /// A wire that is bridged to `port`; `others` are set up, too.
    pub fn bridged(&self, port: &str, other: &str) -> Wire {
        self.ip("link add br0 type bridge mcast_snooping 0");
        let wire = Wire::open(&self.netns, "w0");
        for port in [port, "w0"] {
            self.ip(&format!("link set {port} master br0"));
        }
        for link in [port, other, "w0", "br0"] {
            self.ip(&format!("link set {link} up"));
        }
        wire
    }
}

/// How a backend ends that can't serve: with 1, and with what it says.
pub fn refusal_of(command: &mut Command) -> String {
    let output = bounded(command, "");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("ringtap: "), "{said}");
    said
}

pub struct Backend(pub Child);

impl Backend {
    pub fn end(self) -> Option<i32> {
        self.end_by(Signal::SIGTERM)
    }

    pub fn end_by(mut self, signal: Signal) -> Option<i32> {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
        self.ended()
    }

    pub fn ended(&mut self) -> Option<i32> {
        wait(&mut self.0, BOUND).expect("its end").code()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// A frame of an EtherType that nobody has, behind a header of zeroes.
pub fn test_frame(to: [u8; 6], from: [u8; 6], len: usize, seed: u8) -> Vec<u8> {
    let mut bytes = frame(len, seed);
    bytes[12..18].copy_from_slice(&to);
    bytes[18..24].copy_from_slice(&from);
    bytes[24..26].copy_from_slice(&[0x88, 0xb5]);
    bytes
}

/// Descriptors of each ring.
pub const RING: u16 = 1024;
/// More chains than the rates below let through.
pub const CHAINS: usize = 500;

/// A driver of every ring, receiveq first.
pub struct Guest<'m> {
    pub rings: Vec<(DriverRing<'m>, Events)>,
    pub front_end: RawFrontEnd,
}

impl<'m> Guest<'m> {
    pub fn start(
        front_end: RawFrontEnd,
        (memory, file): &'m (Arc<GuestMemory>, File),
        pairs: u64,
    ) -> Self {
        let rings: Vec<_> = (0..2 * pairs)
            .map(|i| {
                let place = i * MEMORY / (2 * pairs);
                let ring = DriverRing::new(memory.mem(), place, RING);
                (ring, Events::new())
            })
            .collect();
        front_end.u64(Req::SET_PROTOCOL_FEATURES, 1 << 3);
        front_end.u64(
            Req::SET_FEATURES,
            VERSION_1 | PROTOCOL_FEATURES | INDIRECT_DESC,
        );
        assert_eq!(front_end.set_mem_table(file), 0);
        for (index, (ring, events)) in rings.iter().enumerate() {
            front_end.set_up_ring(index as u32, ring, 0, events);
            front_end.state(Req::SET_VRING_ENABLE, index as u32, 1);
        }
        front_end.get_u64(Req::GET_FEATURES); // answered in order, so all of the above is done
        Self { rings, front_end }
    }

    /// Sends a frame by the transmitq of `pair`.
    pub fn send(&mut self, pair: usize, bytes: &[u8]) {
        let (ring, events) = &mut self.rings[2 * pair + 1];
        let buffer = ring.readable(bytes);
        ring.add(&[buffer]);
        events.kick();
    }

    /// Makes `CHAINS` chains of the one buffer available in ring `index`.
    pub fn fill_with(&mut self, index: usize, buffer: impl FnOnce(&mut DriverRing<'m>) -> Buffer) {
        let (ring, events) = &mut self.rings[index];
        let buffer = buffer(ring);
        for _ in 0..CHAINS {
            ring.add(&[buffer]);
        }
        events.kick();
    }

    /// How many chains of these rings the device completes until `end`.
    pub fn completed_until(&mut self, end: Instant, indices: &[usize]) -> usize {
        let mut count = 0;
        while Instant::now() < end {
            for index in indices {
                count += self.rings[*index].0.completed().len();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(count < CHAINS, "the rate, not the ring, is to be the limit");
        count
    }

    /// Gives every receiveq `count` buffers.
    pub fn fill(&mut self, count: usize) -> Vec<Vec<Buffer>> {
        let receiveqs = self.rings.iter_mut().step_by(2);
        receiveqs
            .map(|(ring, events)| {
                let buffers: Vec<_> = (0..count).map(|_| ring.writable(2048)).collect();
                for buffer in &buffers {
                    ring.add(&[*buffer]);
                }
                events.kick();
                buffers
            })
            .collect()
    }
}
