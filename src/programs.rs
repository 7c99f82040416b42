//! Programs ringtap runs (nft, dnsmasq, QEMU), and daemons it left running.
//!
//! A program is given its input and a bound of time. A process left running is found by its pid file or in
//! the list of processes, held by a pidfd *before* its command line is checked, and signalled through that
//! pidfd: a pid that was reused in between is never hit.
//!
//! A leaf: the control plane's modules use it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use thiserror::Error;

/// Longer than any program here takes on a loaded machine.
const PROGRAM_BOUND: Duration = Duration::from_secs(30);

/// A program that ringtap needs, and the Debian package it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// The program's name, looked up in `PATH`.
    pub name: &'static str,
    /// The package that has it.
    pub package: &'static str,
}

/// nftables.
pub const NFT: Tool = Tool {
    name: "nft",
    package: "nftables",
};

/// DHCP and DNS.
pub const DNSMASQ: Tool = Tool {
    name: "dnsmasq",
    package: "dnsmasq-base",
};

/// Open vSwitch's database.
pub const OVS_VSCTL: Tool = Tool {
    name: "ovs-vsctl",
    package: "openvswitch-switch",
};

/// Open vSwitch's flows.
pub const OVS_OFCTL: Tool = Tool {
    name: "ovs-ofctl",
    package: "openvswitch-common",
};

/// Open vSwitch's daemons.
pub const OVS_APPCTL: Tool = Tool {
    name: "ovs-appctl",
    package: "openvswitch-common",
};

/// Open vSwitch's part in the kernel.
pub const OVS_DPCTL: Tool = Tool {
    name: "ovs-dpctl",
    package: "openvswitch-switch",
};

/// The machine that guests run on.
pub const QEMU: Tool = Tool {
    name: "qemu-system-x86_64",
    package: "qemu-system-x86",
};

/// Disk images.
pub const QEMU_IMG: Tool = Tool {
    name: "qemu-img",
    package: "qemu-utils",
};

/// Why a program did not do its work.
#[derive(Debug, Error)]
pub enum ToolError {
    /// The program is not installed.
    #[error(
        "{} not found; install the package {} (or put its directory, often /usr/sbin, into PATH)",
        .0.name, .0.package
    )]
    Missing(Tool),
    /// It could not be run, or its output not be read.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It said that it failed.
    #[error("{command} failed ({status}): {message}")]
    Failed {
        /// What was run.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to stderr.
        message: String,
    },
    /// It was still running after its time, and was killed.
    #[error("{command} took longer than {} s and was stopped", PROGRAM_BOUND.as_secs())]
    Slow {
        /// What was run.
        command: String,
    },
    /// What it printed is not what it should print.
    #[error("cannot read what {program} prints")]
    Output {
        /// The program.
        program: &'static str,
        /// Why.
        source: serde_json::Error,
    },
}

/// Checks that `tool` is installed, so that its lack is known before anything is touched.
///
/// # Errors
/// It is not in `PATH`.
pub fn require(tool: Tool) -> Result<(), ToolError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(tool.name).is_file());
    if found {
        Ok(())
    } else {
        Err(ToolError::Missing(tool))
    }
}

/// Runs `tool` with `input` on its stdin and gives its stdout.
///
/// # Errors
/// It can't be run, fails or takes too long; what it wrote to stderr is in the error.
pub fn run(tool: Tool, args: &[&str], input: &str) -> Result<String, ToolError> {
    run_to(tool, args, input, Stdio::piped())
}

/// Runs `tool` with `input` on its stdin, holding `lock` until it has done its work.
///
/// The lock is its stdout, on which it has nothing to say: should ringtap be killed, the lock stays taken until
/// the change that was under way is made, and no `down` overtakes it. A daemon gives it back when it leaves for
/// the background.
///
/// # Errors
/// As [`run`].
pub fn run_holding(tool: Tool, args: &[&str], input: &str, lock: &File) -> Result<(), ToolError> {
    let lock = lock.try_clone().map_err(|source| ToolError::Run {
        program: tool.name,
        source,
    })?;
    run_to(tool, args, input, lock.into()).map(drop)
}

fn run_to(tool: Tool, args: &[&str], input: &str, stdout: Stdio) -> Result<String, ToolError> {
    let failed = |source| ToolError::Run {
        program: tool.name,
        source,
    };
    let mut child = Command::new(tool.name)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ToolError::Missing(tool),
            _ => failed(error),
        })?;
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
        .map_err(|error| failed(error.into()))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    // Threads, since a pipe that nobody reads would stop the program.
    let (ended, stdout, stderr) = thread::scope(|scope| {
        scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input.as_bytes())));
        let stdout = scope.spawn(move || read_all(stdout));
        let stderr = scope.spawn(move || read_all(stderr));
        let ended = wait(&pidfd, PROGRAM_BOUND);
        if !matches!(ended, Ok(true)) {
            // Closes the pipes, which lets the threads end.
            let _ = child.kill();
        }
        (
            ended,
            stdout.join().unwrap_or_default(),
            stderr.join().unwrap_or_default(),
        )
    });
    let status = child.wait().map_err(failed)?;
    let command = || [&[tool.name], args].concat().join(" ");
    if !ended.map_err(failed)? {
        return Err(ToolError::Slow { command: command() });
    }
    if !status.success() {
        return Err(ToolError::Failed {
            command: command(),
            status,
            message: explain(tool, stderr.trim()),
        });
    }
    Ok(stdout)
}

fn read_all(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What came before an error is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A program's own words, and what to do about those that people meet.
fn explain(tool: Tool, message: &str) -> String {
    let remedy = if message.is_empty() {
        "it gave no reason"
    } else if tool == DNSMASQ && message.contains("Address already in use") {
        "; another DNS or DHCP server has taken every address of this host: \
         let it listen on its own alone (`ss -lunp 'sport = :53 or sport = :67'` shows it)"
    } else if tool == OVS_VSCTL && is_silence(message) {
        "; Open vSwitch does not answer: systemctl restart openvswitch-switch"
    } else {
        ""
    };
    format!("{message}{remedy}")
}

/// Whether ovs-vsctl says that a daemon does not answer: the database, or ovs-vswitchd within its time.
fn is_silence(message: &str) -> bool {
    let signs = ["database connection failed", "Alarm clock"];
    signs.iter().any(|sign| message.contains(sign))
}

/// A running process, held so that nobody else can have its pid.
#[derive(Debug)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// Readable once it has ended.
    pub pidfd: OwnedFd,
}

impl Process {
    /// Any process that has these words, one after the other, among its arguments.
    pub fn with_arguments(words: &[&str]) -> Option<Self> {
        all_pids().find_map(|pid| Self::hold(pid, words))
    }

    /// The process that `pid_file` names or, that failing, any one that has `word` among its arguments; only
    /// one that has.
    pub fn find(pid_file: &Path, word: &str) -> Option<Self> {
        let named = fs::read_to_string(pid_file)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        named
            .and_then(|pid| Self::hold(pid, &[word]))
            .or_else(|| Self::with_arguments(&[word]))
    }

    /// Process `pid`, if it has these words, one after the other, among its arguments.
    pub fn hold(pid: u32, words: &[&str]) -> Option<Self> {
        let raw = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).ok()?;
        // Of a process that has ended but is not waited for yet, the command line is empty.
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let arguments: Vec<&[u8]> = cmdline.split(|&byte| byte == 0).collect();
        let is_meant = |some: &[&[u8]]| {
            some.iter()
                .zip(words)
                .all(|(one, word)| *one == word.as_bytes())
        };
        let mut runs = arguments.windows(words.len());
        runs.any(is_meant).then_some(Self { pid, pidfd })
    }

    /// Asks it to read its files again.
    ///
    /// # Errors
    /// It may not be signalled, or is gone.
    pub fn reload(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.pidfd, Signal::HUP)?)
    }

    /// Ends it, with force if it does not listen, and waits until it is gone.
    ///
    /// # Errors
    /// It may not be signalled, or outlives all of it.
    pub fn stop(&self) -> io::Result<()> {
        for signal in [Signal::TERM, Signal::KILL] {
            match pidfd_send_signal(&self.pidfd, signal) {
                Err(rustix::io::Errno::SRCH) => return Ok(()),
                sent => sent?,
            }
            if wait(&self.pidfd, Duration::from_secs(5))? {
                return Ok(());
            }
        }
        let message = format!("process {} does not end, not even by SIGKILL", self.pid);
        Err(io::Error::new(io::ErrorKind::TimedOut, message))
    }
}

impl AsRawFd for Process {
    /// The pidfd: readable once the process has ended.
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

/// Waits until those processes of `tool` that are ending have ended: a process loses its command line, by which it is
/// found, before it lets go of its sockets.
///
/// # Errors
/// Those of `poll`.
pub fn wait_for_ending(tool: Tool) -> io::Result<()> {
    for pid in all_pids() {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(Ok(pidfd)) = raw.map(|raw| pidfd_open(raw, PidfdFlags::empty())) else {
            continue;
        };
        let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}"));
        let is_meant = read("comm").is_ok_and(|name| name.trim() == tool.name);
        if is_meant && read("cmdline").is_ok_and(|line| line.is_empty()) {
            wait(&pidfd, Duration::from_secs(5))?;
        }
    }
    Ok(())
}

/// The names of the programs that hold these sockets, by inode; of one that nobody here holds there is none.
pub fn holders(inodes: &BTreeSet<u64>) -> BTreeMap<u64, String> {
    let mut holders = BTreeMap::new();
    if inodes.is_empty() {
        return holders;
    }
    let names = all_pids().filter_map(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some((pid, name.trim().to_owned()))
    });
    // Those that are most often the ones first: to ask every process for its files takes long.
    let (likely, others): (Vec<_>, Vec<_>) = names.partition(|(_, name)| name == DNSMASQ.name);
    for (pid, name) in likely.into_iter().chain(others) {
        if holders.len() == inodes.len() {
            break;
        }
        let held = sockets(pid).filter(|inode| inodes.contains(inode));
        holders.extend(held.map(|inode| (inode, name.clone())));
    }
    holders
}

/// The inodes of the sockets that a process holds.
fn sockets(pid: u32) -> impl Iterator<Item = u64> {
    let files = fs::read_dir(format!("/proc/{pid}/fd"));
    files.into_iter().flatten().filter_map(|entry| {
        let target = fs::read_link(entry.ok()?.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?;
        inode.strip_suffix(']')?.parse().ok()
    })
}

fn all_pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Whether the process ends within `bound`.
fn wait(pidfd: &OwnedFd, bound: Duration) -> io::Result<bool> {
    let bound = Timespec {
        tv_sec: bound.as_secs() as i64,
        tv_nsec: bound.subsec_nanos().into(),
    };
    loop {
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&bound)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}
