//! Child processes of a launch: started with clear errors, watched by pidfd, ended with a bound.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process that was asked to end gets this long.
pub const GRACE: Duration = Duration::from_secs(5);

/// A child process. It is ended when this value is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pidfd: OwnedFd,
    started: Instant,
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
            child,
            pidfd,
            started: Instant::now(),
        })
    }

    /// How long ago it was started.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    /// Those of `waitpid`.
    pub fn exit_status(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends `signal`; a process that has ended is not an error.
    pub fn signal(&self, signal: Signal) {
        // The pidfd names this very child, so there is none other that could be hit.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits until it ends or `others` is readable, at most `limit`; false where the time ran out.
    ///
    /// # Errors
    /// Those of `poll`.
    pub fn wait_with(&self, others: Option<&OwnedFd>, limit: Duration) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        fds.extend(others.map(|fd| PollFd::new(fd, PollFlags::IN)));
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&limit)))?;
        Ok(ready > 0)
    }
}

impl AsRawFd for Process {
    /// The pidfd: readable once the process has ended.
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        self.signal(Signal::TERM);
        if !matches!(self.wait_with(None, GRACE), Ok(true)) {
            self.signal(Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// A command that logs both of its outputs to `log`, which is appended to, and belongs to a process group of its own, so
/// that a terminal's Ctrl-C is the supervisor's to pass on.
///
/// # Errors
/// Where the log can't be opened.
pub fn background(program: &Path, log: &Path) -> io::Result<Command> {
    use std::os::unix::process::CommandExt;
    let log = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(program);
    command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}

/// The last line of a log that is not blank, for an error.
pub fn last_line(log: &PathBuf) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let last = text
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty());
    last.unwrap_or("it said nothing").to_owned()
}
