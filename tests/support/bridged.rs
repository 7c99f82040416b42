//! `ringtap backend` on a tap on a bridge, with a plain tap for the other end of the wire, in a namespace where
//! nobody else sends: every frame counted there is the test's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vhost::vhost_user::message::FrontendReq;

use super::front_end::RawFrontEnd;
use super::netns::{BOUND, Netns, until, wait};
use super::wire::Wire;

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
