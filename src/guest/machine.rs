//! QEMU at work: the process, its monitor and its serial line.
//!
//! QEMU gets the sockets that it listens on from its supervisor, which so can connect before QEMU has come that far. The
//! machine starts stopped, and runs once somebody listens to its console: nothing that it says is lost.

use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qapi::qmp;
use thiserror::Error;

use super::handed::Handed;
use super::monitor::{Monitor, MonitorError, Wait, readable};
use super::peer::listen;
use super::process::{Ended, GRACE, Process, background, last_line};
use super::qemu::SocketFds;
use super::run_dir::files;
use super::user::User;
use crate::programs::{self, QEMU};
use crate::report::causes;
use crate::types::fnv1a;

/// QEMU makes a machine within a second; where many start at once on a host that is slow itself, in a minute or two.
const START_LIMIT: Duration = Duration::from_secs(180);

/// One whose machine is made answers at once.
const ADOPTION_LIMIT: Duration = Duration::from_secs(10);

/// Why QEMU does not run.
#[derive(Debug, Error)]
pub enum MachineError {
    /// The program can't be started.
    #[error("{} can't be started", QEMU.name)]
    Spawn(#[source] io::Error),
    /// It has ended.
    #[error("QEMU does not start: {said} ({ended}); its log is {}", log.display())]
    Failed {
        /// The last line of its log.
        said: String,
        /// How.
        ended: Ended,
        /// Where that is.
        log: PathBuf,
    },
    /// It does not get ready.
    #[error("QEMU hangs while it starts: its monitor does not answer; its log is {}", log.display())]
    Hangs {
        /// Where that is.
        log: PathBuf,
    },
    /// Its sockets.
    #[error("QEMU's sockets in {}", dir.display())]
    Sockets {
        /// Where they are.
        dir: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// It does not do what it is told.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
}

/// A QEMU process. It is ended with this value.
#[derive(Debug)]
pub struct Machine {
    /// The process.
    pub process: Process,
    /// Its monitor; none where it has stopped talking.
    pub monitor: Option<Monitor>,
}

/// A machine whose serial line somebody is to listen to.
pub type WithSerial = (Machine, UnixStream);

/// Makes the sockets in the guest's directory `dir` that QEMU listens on, for `handed` to hand over.
///
/// # Errors
/// Those of `bind`.
pub fn sockets(dir: &Path, handed: &mut Handed) -> Result<SocketFds, MachineError> {
    let mut listen_at = |name| {
        let listening = listen(&dir.join(name));
        let listening = listening.map_err(|cause| MachineError::Sockets {
            dir: dir.to_owned(),
            cause,
        });
        listening.map(|listening| handed.add(listening))
    };
    Ok(SocketFds {
        monitor: listen_at(files::MONITOR)?,
        serial: listen_at(files::SERIAL)?,
    })
}

/// Ends a process that has not become a machine.
fn failed(mut process: Process, cause: &io::Error, log: PathBuf) -> MachineError {
    if cause.kind() == io::ErrorKind::TimedOut {
        return MachineError::Hangs { log };
    }
    // Its sockets are closed before it has ended, and only then is in the log what it says last.
    let _ = process.wait_with(&[], GRACE);
    process.end();
    MachineError::Failed {
        said: last_line(&log),
        ended: process.ended().ok().flatten().unwrap_or(Ended::Unseen),
        log,
    }
}

impl Machine {
    /// Starts QEMU with these words and descriptors in the guest's directory `dir`, as `user`, and has its CPUs run. While
    /// its machine is made, `wait` waits.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn start(
        words: &[OsString],
        handed: Handed,
        user: &User,
        dir: &Path,
        wait: &mut Wait<'_>,
    ) -> Result<WithSerial, MachineError> {
        let sockets = |cause| MachineError::Sockets {
            dir: dir.to_owned(),
            cause,
        };
        let log = dir.join(files::QEMU_LOG);
        let mut command = background(Path::new(QEMU.name), &log).map_err(sockets)?;
        command.args(words).args(["-uuid", &uuid(dir)]);
        handed.over(&mut command);
        user.runs(&mut command);
        let process = Process::spawn(&mut command).map_err(MachineError::Spawn)?;
        drop(command); // and with it our copies of what it listens on
        let serial = UnixStream::connect(dir.join(files::SERIAL)).map_err(sockets)?;
        let connected = Monitor::connect(&dir.join(files::MONITOR), &process, START_LIMIT, wait);
        let begun = connected.and_then(|mut monitor| {
            monitor.execute(&qmp::cont {})?;
            Ok(monitor)
        });
        let monitor = match begun {
            Err(MonitorError::Silent(cause)) => return Err(failed(process, &cause, log)),
            begun => begun?,
        };
        let machine = Self {
            process,
            monitor: Some(monitor),
        };
        Ok((machine, serial))
    }

    /// Takes over `process`, which another has started in `dir`, with its serial line if that can be had.
    pub fn adopt(process: programs::Process, dir: &Path) -> (Self, Option<UnixStream>) {
        let process = Process::from(process);
        let serial = UnixStream::connect(dir.join(files::SERIAL));
        let serial = serial.inspect_err(|error| tracing::warn!("no serial line: {error}"));
        let path = dir.join(files::MONITOR);
        let monitor = Monitor::connect(&path, &process, ADOPTION_LIMIT, &mut readable);
        let begun = monitor.and_then(|mut monitor| {
            let status = monitor.execute(&qmp::query_status {})?;
            if status.status == qmp::RunState::prelaunch {
                monitor.execute(&qmp::cont {})?;
            }
            Ok(monitor)
        });
        // One that does not talk runs on: whoever wants its end gets it.
        let monitor = begun.inspect_err(|error| tracing::warn!("{}", causes(error)));
        let machine = Self {
            process,
            monitor: monitor.ok(),
        };
        (machine, serial.ok())
    }

    /// The QEMU that was started in `dir`, if it runs.
    pub fn running(dir: &Path) -> Option<programs::Process> {
        programs::Process::with_arguments(&["-uuid", &uuid(dir)])
    }
}

/// What tells the guest with this directory from all others of this host: by it its QEMU is found, and the guest has it as
/// its machine's UUID (RFC 9562, section 5.8: of a kind of its own).
fn uuid(dir: &Path) -> String {
    let path = dir.display();
    let [high, low] =
        ["ringtap guest", "ringtap uuid"].map(|salt| fnv1a(&format!("{salt} {path}")));
    let (version, variant) = (0x8000 | high & 0xfff, 0x8000 | low >> 48 & 0x3fff);
    format!(
        "{:08x}-{:04x}-{version:04x}-{variant:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        low & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_stable_sound_and_differ() {
        let one = uuid(Path::new("/run/ringtap/guests/web1"));
        assert_eq!(one, uuid(Path::new("/run/ringtap/guests/web1")));
        assert_ne!(one, uuid(Path::new("/run/ringtap/guests/web2")));
        let parts: Vec<usize> = one.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&one[14..15], "8");
        assert!(["8", "9", "a", "b"].contains(&&one[19..20]), "{one}");
    }
}
