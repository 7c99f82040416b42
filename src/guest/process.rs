//! The processes of a guest: started with clear errors or taken over from a supervisor that died, watched by pidfd, ended
//! with a bound.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::programs;

/// A process that was asked to end gets this long.
pub const GRACE: Duration = Duration::from_secs(5);

/// A process. It is ended when this value is dropped.
#[derive(Debug)]
pub struct Process {
    /// Its pid; nobody else's while this value is there and [`Process::ended`] has given nothing.
    pid: u32,
    pidfd: OwnedFd,
    /// None of one that another process has started, whose exit status is not ours to have.
    child: Option<Child>,
    since: Instant,
    ended: Option<Ended>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    With(ExitStatus),
    /// Nobody knows: it was not started from here.
    Unseen,
}

impl Ended {
    /// Whether it ended by itself, with a word that it failed: one that was killed has said nothing.
    pub fn gave_up(self) -> bool {
        matches!(self, Self::With(status) if status.code().is_some_and(|code| code != 0))
    }

    /// Whether it did not end well.
    pub fn failed(self) -> bool {
        matches!(self, Self::With(status) if !status.success())
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::With(status) => status.fmt(f),
            Self::Unseen => f.write_str("exit status unknown"),
        }
    }
}

impl Process {
    /// Starts `command`.
    ///
    /// # Errors
    /// Those of `exec` and `pidfd_open`.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child = command.spawn()?;
        let opened = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let pidfd = opened.inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        })?;
        Ok(Self {
            pid: child.id(),
            pidfd,
            child: Some(child),
            since: Instant::now(),
            ended: None,
        })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How long it has been held from here.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    /// Those of `waitpid` and `poll`.
    pub fn ended(&mut self) -> io::Result<Option<Ended>> {
        if self.ended.is_none() {
            self.ended = match &mut self.child {
                Some(child) => child.try_wait()?.map(Ended::With),
                None => self
                    .wait_with(&[], Duration::ZERO)?
                    .then_some(Ended::Unseen),
            };
        }
        Ok(self.ended)
    }

    /// Whether it is not known to have ended.
    pub fn runs(&self) -> bool {
        self.ended.is_none()
    }

    /// Sends `signal`; a process that has ended is not an error.
    pub fn signal(&self, signal: Signal) {
        // The pidfd names this very process, so there is none other that could be hit.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits until it ends or one of `others` is readable, at most `limit`; false where the time ran out.
    ///
    /// # Errors
    /// Those of `poll`.
    pub fn wait_with(&self, others: &[BorrowedFd<'_>], limit: Duration) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        fds.extend(others.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&limit)))?;
        Ok(ready > 0)
    }

    /// Leaves it to run on.
    pub fn leave(mut self) {
        self.ended = Some(Ended::Unseen);
    }

    /// Ends it: by SIGTERM and, where that does not help within [`GRACE`], by SIGKILL.
    pub fn end(&mut self) {
        if let Ok(Some(_)) = self.ended() {
            return;
        }
        for signal in [Signal::TERM, Signal::KILL] {
            self.signal(signal);
            if matches!(self.wait_with(&[], GRACE), Ok(true)) {
                break;
            }
        }
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

/// One that another has started, and that is ours from here on.
impl From<programs::Process> for Process {
    fn from(programs::Process { pid, pidfd }: programs::Process) -> Self {
        Self {
            pid,
            pidfd,
            child: None,
            since: Instant::now(),
            ended: None,
        }
    }
}

impl AsFd for Process {
    /// The pidfd: readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl AsRawFd for Process {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// A command that logs both of its outputs to `log`, which is appended to, and belongs to a session of its own, so that it
/// hears nothing of a terminal.
///
/// # Errors
/// Where the log can't be opened.
pub fn background(program: &Path, log: &Path) -> io::Result<Command> {
    let log = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}

/// The last line of a log that is not blank, with the causes that an error has in lines of their own, for an error.
pub fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines = text.lines().rev().map(str::trim);
    let mut last = Vec::new();
    for line in lines.filter(|line| !line.is_empty()) {
        last.insert(0, line);
        if !line.starts_with("because: ") {
            break;
        }
    }
    match &last[..] {
        [] => "it said nothing".to_owned(),
        lines => lines.join(", "),
    }
}
