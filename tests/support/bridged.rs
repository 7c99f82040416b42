//! `ringtap backend` on a tap on a bridge, with a plain tap for the other end of the wire, in a namespace where
//! nobody else sends: every frame counted there is the test's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vhost::vhost_user::message::FrontendReq;

use super::front_end::{PATIENCE, RawFrontEnd};
use super::netns::{BOUND, Netns, until, wait};

/// The backend's tap, and the wire's.
pub const TAP: &str = "t0";
const WIRE: &str = "w0";

/// The backend, its surroundings and its log. All of it goes with this value.
pub struct Bridged {
    pub wire: Wire,
    backend: Child,
    dir: tempfile::TempDir,
    pub netns: Netns,
}

impl Bridged {
    /// A backend that serves, `args` among its arguments, on links of that MTU.
    pub fn new(mtu: usize, args: &[&str]) -> Self {
        let netns = Netns::new("bridged");
        netns.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
        netns.run(&format!(
            "ip tuntap add dev {TAP} mode tap multi_queue vnet_hdr"
        ));
        netns.run("ip link add br0 type bridge mcast_snooping 0");
        // Bridged frames are none of iptables' business here; where it can't be said, nothing filters anyway.
        for family in ["iptables", "ip6tables", "arptables"] {
            netns.attempt(&format!("sysctl -qw net.bridge.bridge-nf-call-{family}=0"));
        }
        let wire = Wire::open(&netns, WIRE);
        for link in [TAP, WIRE] {
            netns.run(&format!("ip link set {link} mtu {mtu} master br0 up"));
        }
        netns.run("ip link set br0 up");
        let dir = tempfile::tempdir().unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut command = netns.command(env!("CARGO_BIN_EXE_ringtap"));
        command
            .env("RINGTAP_LOG", "info")
            .args(["backend", "--tap", TAP, "--socket-path"])
            .arg(dir.path().join("nic.sock"))
            .args(args)
            .stdin(Stdio::null())
            .stderr(log);
        let backend = command.spawn().unwrap();
        let this = Self {
            wire,
            backend,
            dir,
            netns,
        };
        until("the backend's socket", || this.socket().exists());
        this
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("nic.sock")
    }

    /// Where front-ends may keep files of theirs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What the backend has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// The features the last front-end accepted, as the backend's log has them.
    pub fn accepted(&self) -> u64 {
        let log = self.log();
        let bits = log.rsplit("features 0x").next().expect("the features");
        let digits = bits.split(|c: char| !c.is_ascii_hexdigit()).next();
        u64::from_str_radix(digits.unwrap_or_default(), 16).expect(&log)
    }

    /// The features the backend offers, and how many pairs of queues: it must know GET_QUEUE_NUM.
    pub fn offers(&self) -> (u64, u64) {
        let stream = std::os::unix::net::UnixStream::connect(self.socket()).unwrap();
        let front_end = RawFrontEnd(stream);
        (
            front_end.get_u64(FrontendReq::GET_FEATURES),
            front_end.get_u64(FrontendReq::GET_QUEUE_NUM),
        )
    }

    /// Frames and bytes that came out of the backend's tap: what the front-end sent.
    pub fn sent(&self) -> (u64, u64) {
        counters(&self.netns, TAP, "rx")
    }

    /// Frames and bytes that went into the backend's tap: what the front-end is to receive.
    pub fn delivered(&self) -> (u64, u64) {
        counters(&self.netns, TAP, "tx")
    }
}

impl Drop for Bridged {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.backend.id() as i32), Signal::SIGTERM);
        let _ = wait(&mut self.backend, BOUND);
        if std::thread::panicking() {
            eprintln!("the backend's log:\n{}", self.log());
        }
    }
}

/// Packets and bytes a link has counted; for a tap `rx` is what its program wrote.
pub fn counters(netns: &Netns, link: &str, direction: &str) -> (u64, u64) {
    let json = netns.run(&format!("ip -s -j link show dev {link}"));
    let links: serde_json::Value = serde_json::from_str(&json).expect(&json);
    let stats = &links[0]["stats64"][direction];
    let field = |name: &str| stats[name].as_u64().expect(&json);
    (field("packets"), field("bytes"))
}

/// The other end of a wire: a plain tap, and what comes out of it.
pub struct Wire {
    tap: Arc<tun_tap::Iface>,
    frames: Receiver<Vec<u8>>,
}

impl Wire {
    pub fn open(netns: &Netns, name: &str) -> Self {
        let open = || tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tap);
        let tap = Arc::new(netns.within(open).unwrap());
        let (send, frames) = channel();
        let reader = Arc::clone(&tap);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 70_000];
            while let Ok(bytes) = reader.recv(&mut buffer) {
                if send.send(buffer[..bytes].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { tap, frames }
    }

    pub fn send(&self, frame: &[u8]) {
        assert_eq!(self.tap.send(frame).unwrap(), frame.len());
    }

    /// The next frame that comes out.
    pub fn next(&self, what: &str) -> Vec<u8> {
        let frame = self.frames.recv_timeout(PATIENCE);
        frame.unwrap_or_else(|_| panic!("no frame came out of the wire: {what}"))
    }

    /// Whether such a frame comes out in that time.
    pub fn within(&self, time: Duration, is_it: impl Fn(&[u8]) -> bool) -> bool {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            match self.frames.recv_timeout(left) {
                Ok(frame) if is_it(&frame) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
        false
    }

    /// Throws away what has come out so far.
    pub fn drain(&self) {
        while self.frames.try_recv().is_ok() {}
    }
}
