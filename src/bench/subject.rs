//! What is measured: a back-end, or a loop of the bench's own that tells what the kernel allows.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use super::link::{self, BenchTap, LinkError};
use super::nic::{self, Nic, Wish};
use super::pattern::Frames;
use super::work::{self, Buffers, Sample, WorkError};
use crate::backend::{BackendArgs, Endpoint, HostLink};
use crate::tap::{HeaderLen, Offloads, Tap, TapSettings};
use crate::types::{IfName, QueuePairs};

/// The link of all that the bench starts by itself.
const TAP: &str = "rt-bench";

/// Which way frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// From the guest to its tap.
    Tx,
    /// From the tap to its guest.
    Rx,
    /// From the guest to its tap and back, one at a time.
    Rr,
}

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
    Ringtap,
    /// One that a command starts for each sample.
    Started(Named),
    /// One that runs, on this tap, or on the one that it has open.
    Socket {
        /// What it is called.
        name: String,
        /// Where it listens.
        socket: PathBuf,
        /// Its tap, if the person has said.
        tap: Option<IfName>,
    },
    /// A loop on a tap.
    Raw(Yardstick),
}

/// What the kernel allows, measured by a loop of the bench's own.
#[derive(Debug, Clone, Copy)]
pub enum Yardstick {
    /// Of frames that are written.
    Writes(Buffers),
    /// Of frames that are read, into memory that is in no cache.
    Reads,
}

impl Yardstick {
    /// Those for some work.
    pub fn of(work: Work) -> &'static [Self] {
        match work {
            Work::Tx => &[Self::Writes(Buffers::Hot), Self::Writes(Buffers::Cold)],
            Work::Rx => &[Self::Reads],
            Work::Rr => &[],
        }
    }

    fn sample(self, frames: &Frames, span: Duration) -> Result<Sample, WorkError> {
        let tap = own_tap()?;
        let opened = Tap::open(tap.name(), QueuePairs::ONE);
        let (control, queues) = opened.map_err(LinkError::from)?;
        // As a back-end sets it whose guest can do all of it.
        control.set_header_len(HeaderLen::Long)?;
        control.set_offloads(Offloads::CSUM.with(Offloads::TSO4).with(Offloads::TSO6))?;
        match self {
            Self::Writes(buffers) => work::raw_writes(&queues[0], frames, buffers, span),
            Self::Reads => work::raw_reads(&queues[0], tap.name(), frames, span),
        }
    }
}

impl Subject {
    /// The one that listens on `socket`, by no other name.
    pub fn of_socket(socket: &Path, tap: Option<IfName>) -> Self {
        Self::Socket {
            name: "back-end".to_owned(),
            socket: socket.to_owned(),
            tap,
        }
    }

    /// The one that listens on a socket by this name.
    pub fn of_named(back_end: &Named) -> Self {
        Self::Socket {
            name: back_end.name.clone(),
            socket: PathBuf::from(&back_end.value),
            tap: None,
        }
    }

    /// As reports have it.
    pub fn name(&self) -> String {
        match self {
            Self::Ringtap => "ringtap".to_owned(),
            Self::Started(Named { name, .. }) | Self::Socket { name, .. } => name.clone(),
            Self::Raw(Yardstick::Writes(Buffers::Hot)) => "raw loop, hot".to_owned(),
            Self::Raw(_) => "raw loop, cold".to_owned(),
        }
    }

    /// Works for `span`.
    ///
    /// # Errors
    /// See [`WorkError`].
    pub fn sample(
        &self,
        work: Work,
        wish: Wish,
        frames: &Frames,
        span: Duration,
    ) -> Result<Sample, WorkError> {
        match self {
            Self::Ringtap => {
                let tap = own_tap()?;
                let back_end = BackEnd::own(tap.name(), wish)?;
                drive(&back_end.socket, Some(tap.name()), work, wish, frames, span)
            }
            Self::Started(Named { value, .. }) => {
                let back_end = BackEnd::of_shell(value)?;
                drive(&back_end.socket, None, work, wish, frames, span)
            }
            Self::Socket { socket, tap, .. } => {
                drive(socket, tap.as_ref(), work, wish, frames, span)
            }
            Self::Raw(yardstick) => yardstick.sample(frames, span),
        }
    }
}

fn own_tap() -> Result<BenchTap, WorkError> {
    Ok(BenchTap::make(TAP.parse().expect("a link's name"))?)
}

fn drive(
    socket: &Path,
    tap: Option<&IfName>,
    work: Work,
    wish: Wish,
    frames: &Frames,
    span: Duration,
) -> Result<Sample, WorkError> {
    let mut nic = Nic::connect(socket, wish, frames)?;
    let tap = match tap {
        Some(tap) => tap.clone(),
        None => link::tap_of(nic.back_end)?,
    };
    match work {
        Work::Tx => work::transmit(&mut nic, &tap, frames, span),
        Work::Rx => work::receive(&mut nic, &tap, frames, span),
        Work::Rr => work::round_trips(&mut nic, &tap, frames, span),
    }
}

/// A back-end that is there for a sample; it ends with this value, and so does all that it has started.
struct BackEnd {
    child: Child,
    socket: PathBuf,
    _dir: TempDir,
}

impl BackEnd {
    /// ringtap's, on this tap.
    fn own(tap: &IfName, wish: Wish) -> Result<Self, WorkError> {
        Self::start_with(|socket| {
            let endpoint = Endpoint::Listen(socket.to_owned());
            let mut args = BackendArgs::new(endpoint, HostLink::Tap(tap.clone()));
            if let Ok(pairs) = QueuePairs::try_from(wish.pairs) {
                args.queue_pairs = pairs;
            }
            let mut command = Command::new("/proc/self/exe");
            command.args(args.to_argv()).env("RINGTAP_LOG", "warn");
            command
        })
    }

    /// What `line`, a shell's, starts: it is to listen on `$SOCKET`.
    fn of_shell(line: &str) -> Result<Self, WorkError> {
        Self::start_with(|socket| {
            let mut command = Command::new("sh");
            command.args(["-c", line]).env("SOCKET", socket);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command
        })
    }

    fn start_with(command: impl FnOnce(&Path) -> Command) -> Result<Self, WorkError> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("nic.sock");
        let mut command = command(&socket);
        let child = command.stdin(Stdio::null()).process_group(0).spawn()?;
        let started = Self {
            child,
            socket,
            _dir: dir,
        };
        nic::wait_for(&started.socket);
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
