//! What is measured: a back-end, or a loop of the bench's own that tells what the kernel allows.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use super::WorkError;
use super::cpu;
use super::link::{self, BenchBridge, BenchTap};
use super::nic::{self, Nic, Wish};
use super::pattern::Party;
use super::raw::{Buffers, Yardstick};
use super::sample::Sample;
use super::work::{self, Work};
use crate::backend::guard::Policy;
use crate::backend::{BackendArgs, Endpoint, HostLink};
use crate::types::{IfName, MacAddr, QueuePairs};

/// The links of all that the bench starts by itself.
const TAPS: [&str; 2] = ["rt-bench", "rt-bench-peer"];
const BRIDGE: &str = "rt-bench-br";

/// What a person calls by a name: `NAME=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    name: String,
    value: String,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok(Self {
                name: name.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err("a name and `=` are to be before it, such as dpdk=/run/dpdk.sock".to_owned()),
        }
    }
}

/// Who takes part.
#[derive(Debug, Clone)]
pub enum Subject {
    /// ringtap's own back-end, started for each sample.
    Ringtap(Own),
    /// One that a command starts for each sample.
    Started(Named),
    /// One that runs.
    Running(Running),
    /// A loop on a tap.
    Raw(Yardstick),
}

/// What ringtap's own back-end is told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Own {
    /// As `backend --poll-us` has it.
    pub poll_us: u32,
    /// Whether it looks at what its guest claims.
    pub guarded: bool,
}

impl Own {
    /// The arguments of one that serves this guest.
    fn args(self, endpoint: Endpoint, tap: IfName, guest: Party) -> BackendArgs {
        BackendArgs {
            poll_us: self.poll_us,
            guard: self.guarded.then(|| guard_of(guest)),
            ..BackendArgs::new(endpoint, HostLink::Tap(tap))
        }
    }
}

/// What a launcher would let a guest claim.
fn guard_of(guest: Party) -> Policy {
    Policy {
        mac: MacAddr::from_octets(&guest.mac()),
        addresses: Some(vec![IpAddr::from(guest.ip()).into()]),
        learns: true,
        others: Vec::new(),
        no_services: true,
        vlans: Some(BTreeSet::new()),
        only_ip: true,
    }
}

/// A back-end that somebody else has started.
#[derive(Debug, Clone)]
pub struct Running {
    name: String,
    /// Where it listens, and where the other guest's is, on the same bridge.
    socket: PathBuf,
    peer: Option<PathBuf>,
    /// Its tap, if the person has said.
    tap: Option<IfName>,
}

impl Running {
    /// The one that listens on the first of `sockets`, by no other name; the second is the other guest's.
    pub fn of_sockets(sockets: &[PathBuf], tap: Option<IfName>) -> Option<Self> {
        let (socket, others) = sockets.split_first()?;
        Some(Self {
            name: "back-end".to_owned(),
            socket: socket.clone(),
            peer: others.first().cloned(),
            tap,
        })
    }

    /// The one that listens on a socket by this name; another, behind a comma, is the other guest's.
    pub fn of_named(back_end: &Named) -> Self {
        let sockets: Vec<PathBuf> = back_end.value.splitn(2, ',').map(PathBuf::from).collect();
        Self {
            name: back_end.name.clone(),
            socket: sockets[0].clone(),
            peer: sockets.get(1).cloned(),
            tap: None,
        }
    }
}

/// The yardsticks for some work.
pub fn yardsticks(work: Work) -> Vec<Subject> {
    let raw: &[Yardstick] = match work {
        Work::Tx => &[
            Yardstick::Writes(Buffers::Hot),
            Yardstick::Writes(Buffers::Cold),
        ],
        Work::Rx => &[Yardstick::Reads],
        Work::Both | Work::Vm | Work::Churn | Work::Rr | Work::Idle => &[],
    };
    raw.iter().copied().map(Subject::Raw).collect()
}

impl Subject {
    /// As reports have it.
    pub fn name(&self) -> String {
        match self {
            Self::Ringtap(Own { poll_us, guarded }) => {
                let guarded = guarded.then_some(", guarded").unwrap_or_default();
                match poll_us {
                    0 => format!("ringtap{guarded}"),
                    _ => format!("ringtap, {poll_us} us{guarded}"),
                }
            }
            Self::Started(Named { name, .. }) | Self::Running(Running { name, .. }) => name.clone(),
            Self::Raw(Yardstick::Writes(Buffers::Hot)) => "raw loop, hot".to_owned(),
            Self::Raw(_) => "raw loop, cold".to_owned(),
        }
    }

    /// What starts it, if anything does; how it is found otherwise.
    pub fn origin(&self) -> String {
        match self {
            Self::Ringtap(own) => {
                let endpoint = Endpoint::Listen("$SOCKET".into());
                let argv = own.args(endpoint, tap_name(0), Party::GUEST).to_argv();
                let words = argv.iter().map(|word| word.to_string_lossy());
                format!("ringtap {}", words.collect::<Vec<_>>().join(" "))
            }
            Self::Started(Named { value, .. }) => value.clone(),
            Self::Running(Running { socket, .. }) => format!("listens on {}", socket.display()),
            Self::Raw(Yardstick::Writes(_)) => "write(2) again and again".to_owned(),
            Self::Raw(Yardstick::Reads) => "read(2) again and again".to_owned(),
        }
    }

    /// Works for `span`.
    ///
    /// # Errors
    /// See [`WorkError`].
    pub fn sample(&self, work: Work, wish: Wish, span: Duration) -> Result<Sample, WorkError> {
        match self {
            Self::Raw(yardstick) => {
                let tap = BenchTap::make(tap_name(0))?;
                yardstick.sample(tap.name(), wish.size, span)
            }
            _ if work.is_between_guests() => self.between_guests(work, wish, span),
            _ => self.with_host(work, wish, span),
        }
    }

    fn with_host(&self, work: Work, wish: Wish, span: Duration) -> Result<Sample, WorkError> {
        match self {
            Self::Ringtap(own) => {
                let tap = BenchTap::make(tap_name(0))?;
                let back_end = BackEnd::own(tap.name(), wish, *own, Party::GUEST)?;
                drive(&back_end.sockets[0], Some(tap.name()), work, wish, span)
            }
            Self::Started(Named { value, .. }) => {
                let back_end = BackEnd::of_shell(value, 1)?;
                drive(&back_end.sockets[0], None, work, wish, span)
            }
            Self::Running(Running { socket, tap, .. }) => {
                drive(socket, tap.as_ref(), work, wish, span)
            }
            Self::Raw(_) => Err(WorkError::NoPart),
        }
    }

    fn between_guests(&self, work: Work, wish: Wish, span: Duration) -> Result<Sample, WorkError> {
        match self {
            Self::Ringtap(own) => {
                let bridge = BenchBridge::make(BRIDGE.parse().expect("a link's name"))?;
                let taps = [BenchTap::make(tap_name(0))?, BenchTap::make(tap_name(1))?];
                let back_ends = [
                    BackEnd::own(taps[0].name(), wish, *own, Party::GUEST)?,
                    BackEnd::own(taps[1].name(), wish, *own, Party::PEER)?,
                ];
                taps.iter().try_for_each(|tap| bridge.add(tap.name()))?;
                let [from, to] = back_ends.each_ref().map(|it| &it.sockets[0]);
                drive_between([from, to], work, wish, span, |_| Ok(()))
            }
            Self::Started(Named { value, .. }) => {
                let bridge = BenchBridge::make(BRIDGE.parse().expect("a link's name"))?;
                let back_end = BackEnd::of_shell(value, 2)?;
                let [from, to] = [0, 1].map(|it| &back_end.sockets[it]);
                drive_between([from, to], work, wish, span, |pids| {
                    let taps = pids.iter().map(|pid| link::taps_of(*pid));
                    let taps: Vec<_> = taps.collect::<Result<_, _>>()?;
                    taps.iter().flatten().try_for_each(|tap| bridge.add(tap))
                })
            }
            Self::Running(Running { socket, peer, .. }) => {
                let peer = peer.as_ref().ok_or(WorkError::NoPeer)?;
                drive_between([socket, peer], work, wish, span, |_| Ok(()))
            }
            Self::Raw(_) => Err(WorkError::NoPart),
        }
    }
}

fn tap_name(number: usize) -> IfName {
    TAPS[number].parse().expect("a link's name")
}

fn drive(
    socket: &Path,
    tap: Option<&IfName>,
    work: Work,
    wish: Wish,
    span: Duration,
) -> Result<Sample, WorkError> {
    let mut nic = Nic::connect(socket, wish)?;
    let tap = match tap {
        Some(tap) => tap.clone(),
        None => link::tap_of(nic.back_end)?,
    };
    link::until_running(&tap)?;
    let pids = BTreeSet::from([nic.back_end]);
    let sample = work::with_host(work, &mut nic, &tap, wish, span);
    of_back_ends(&pids, 1, sample)
}

/// A sample with the memory that one of these processes' `nics` takes. That a process has ended is why there is none, if it has,
/// whatever came of that.
fn of_back_ends(
    pids: &BTreeSet<u32>,
    nics: u64,
    sample: Result<Sample, WorkError>,
) -> Result<Sample, WorkError> {
    let sample = sample.and_then(|sample| {
        let of_each = pids.iter().map(|pid| cpu::memory_of(*pid));
        let memory: u64 = of_each.sum::<Result<_, _>>()?;
        Ok(Sample {
            memory: Some(memory / nics),
            ..sample
        })
    });
    sample.map_err(|why| match pids.iter().find(|pid| !cpu::runs(**pid)) {
        Some(pid) => WorkError::Ended(*pid),
        None => why,
    })
}

/// `join` brings the taps of these processes together, where they are not.
fn drive_between(
    [from, to]: [&PathBuf; 2],
    work: Work,
    wish: Wish,
    span: Duration,
    join: impl FnOnce(&BTreeSet<u32>) -> Result<(), link::LinkError>,
) -> Result<Sample, WorkError> {
    let owned = |owner| Wish { owner, ..wish };
    let mut from = Nic::connect(from, owned(Party::GUEST))?;
    let mut to = Nic::connect(to, owned(Party::PEER))?;
    let pids = BTreeSet::from([from.back_end, to.back_end]);
    join(&pids)?;
    let sample = work::between(work, &mut from, &mut to, wish.size, span);
    of_back_ends(&pids, 2, sample)
}

/// A back-end that is there for a sample; it ends with this value, and so does all that it has started.
struct BackEnd {
    child: Child,
    sockets: Vec<PathBuf>,
    _dir: TempDir,
}

impl BackEnd {
    /// ringtap's, on this tap.
    fn own(tap: &IfName, wish: Wish, own: Own, guest: Party) -> Result<Self, WorkError> {
        Self::start(1, |sockets| {
            let endpoint = Endpoint::Listen(sockets[0].clone());
            let mut args = own.args(endpoint, tap.clone(), guest);
            if let Ok(pairs) = QueuePairs::try_from(wish.pairs) {
                args.queue_pairs = pairs;
            }
            let mut command = Command::new("/proc/self/exe");
            command.args(args.to_argv()).env("RINGTAP_LOG", "warn");
            command
        })
    }

    /// What `line`, a shell's, starts: it is to listen on `$SOCKET`, and for two guests on `$PEER` as well.
    fn of_shell(line: &str, sockets: usize) -> Result<Self, WorkError> {
        Self::start(sockets, |sockets| {
            let mut command = Command::new("sh");
            command.args(["-c", line]);
            command.envs(["SOCKET", "PEER"].iter().zip(sockets));
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command
        })
    }

    fn start(
        sockets: usize,
        command: impl FnOnce(&[PathBuf]) -> Command,
    ) -> Result<Self, WorkError> {
        let dir = tempfile::tempdir()?;
        let sockets = (0..sockets).map(|it| dir.path().join(format!("nic{it}.sock")));
        let sockets: Vec<PathBuf> = sockets.collect();
        let mut command = command(&sockets);
        let child = command.stdin(Stdio::null()).process_group(0).spawn()?;
        let started = Self {
            child,
            sockets,
            _dir: dir,
        };
        started.sockets.iter().for_each(|it| nic::wait_for(it));
        Ok(started)
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}
