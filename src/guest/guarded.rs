//! All that a guest is made of on the host, in one value: whoever holds it starts QEMU on it, changes its NICs (`hotplug`) and
//! writes down what has become of it. Dropped, it takes the guest down in the right order.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::GuestError;
use super::launch::Relaunch;
use super::machine::Machine;
use super::monitor::readable;
use super::nic::HostNic;
use super::run_dir::{GuestDir, GuestDirError, Record};
use crate::cli::HostArgs;
use crate::clock::since_boot;
use crate::network::Plugged;
use crate::report::causes;

/// How long a backend that ends as soon as it has started waits for its next try.
pub const BACKEND_PAUSE: Duration = Duration::from_secs(1);

/// All that a guest is made of. Fields drop in order: QEMU ends before its backends, those before their taps and networks,
/// and the directory goes last.
#[derive(Debug)]
pub struct Guarded {
    /// QEMU; none while it has ended and is to be started anew.
    pub machine: Option<Machine>,
    /// The NICs, by number.
    pub nics: BTreeMap<usize, HostNic>,
    /// The networks that they are on.
    pub plugged: Plugged,
    /// Where the file and the run directory are.
    pub host: HostArgs,
    /// The directory.
    pub dir: GuestDir,
    /// What is written there.
    pub record: Record,
    /// How QEMU is started anew.
    pub relaunch: Relaunch,
}

impl Guarded {
    /// Writes down what the guest is made of now.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&mut self) -> Result<(), GuestDirError> {
        let nics = self.nics.values();
        self.record.nics = nics
            .map(|nic| (nic.index(), nic.record().clone()))
            .collect();
        self.dir.write(&self.record)
    }

    /// Writes down that the guest is to end: who takes over then brings it to its end, and does not start it anew.
    pub fn note_end(&mut self) {
        self.record.ends = true;
        if let Err(error) = self.save() {
            tracing::warn!("{}", causes(&error));
        }
    }

    /// Takes all of it down but the logs, for a person to see why.
    pub fn end_keeping_logs(self, reason: &str) {
        if let Err(error) = self.dir.note_failure(reason) {
            tracing::warn!("{}", causes(&error));
        }
        let Self {
            machine,
            nics,
            plugged,
            mut dir,
            ..
        } = self;
        drop(machine);
        drop(nics);
        drop(plugged);
        if let Err(error) = dir.keep_logs(reason) {
            tracing::warn!("{}", causes(&error));
        }
    }

    /// Starts QEMU.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn start(&mut self) -> Result<UnixStream, GuestError> {
        let wiring = self.nics.values();
        let wiring = wiring
            .filter_map(|nic| Some((nic.index(), nic.wiring()?.clone())))
            .collect();
        let nics = &mut self.nics;
        let mut wait = |fds: &[BorrowedFd<'_>], limit| wait_with_backends(nics, fds, limit);
        let (machine, serial) = self.relaunch.start(&wiring, &self.dir, &mut wait)?;
        self.machine = Some(machine);
        self.record.started = since_boot().as_secs();
        self.save()?;
        Ok(serial)
    }
}

/// Waits for one of `fds`, and has backends that end meanwhile started anew: QEMU makes no machine without them.
fn wait_with_backends(
    nics: &mut BTreeMap<usize, HostNic>,
    fds: &[BorrowedFd<'_>],
    limit: Duration,
) -> io::Result<bool> {
    let mut pause = limit;
    for nic in nics.values_mut() {
        if nic.backend().ended()?.is_none() {
            continue;
        }
        let left = BACKEND_PAUSE.saturating_sub(nic.backend().age());
        if !left.is_zero() {
            pause = pause.min(left);
        } else if let Err(error) = nic.restart() {
            tracing::warn!("the backend of {}: {}", nic.tap(), causes(&error));
            pause = pause.min(BACKEND_PAUSE);
        }
    }
    let running = nics.values().filter(|nic| nic.runs());
    let all: Vec<_> = fds
        .iter()
        .copied()
        .chain(running.map(HostNic::as_fd))
        .collect();
    Ok(readable(&all, pause)? || pause < limit)
}
