//! How a guest comes to be watched over: made anew, or taken over from a supervisor that died.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;

use thiserror::Error;

use super::GuestError;
use super::accel::{Accelerator, KvmSupport};
use super::guarded::Guarded;
use super::handed::Handed;
use super::host_memory::{self, MemoryError};
use super::machine::{self, Machine, MachineError, WithSerial};
use super::monitor::Wait;
use super::nic::{HostNic, NicRecord};
use super::qemu::{self, Files, Parts, SocketFds, Version, Wiring};
use super::run_dir::{GuestDir, Record, files, read_failure};
use super::seed::{self, SeedError};
use super::storage::{self, StorageError};
use super::user::{User, UserError};
use crate::cli::HostArgs;
use crate::config::{Accel, Config, Guest, Restart};
use crate::network::{self, Plugged};
use crate::programs::{self, QEMU};
use crate::report::causes;
use crate::types::Name;

/// What QEMU is started by, again and again.
#[derive(Debug)]
pub struct Relaunch {
    name: Name,
    /// None where the file that it was started from can't be read any more.
    config: Option<Config>,
}

impl Relaunch {
    /// The guest's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Whether it is to be started anew when it has ended.
    pub fn policy(&self) -> Restart {
        let config = self.config.as_ref();
        let guest = config.and_then(|it| it.guests.get(&self.name));
        guest.map_or(Restart::No, |guest| guest.restart)
    }

    /// Starts QEMU for the guest, with these NICs, in its directory. While its machine is made, `wait` waits.
    ///
    /// # Errors
    /// Something that QEMU needs is not there, or it does not start.
    pub fn start(
        &self,
        nics: &BTreeMap<usize, Wiring>,
        dir: &GuestDir,
        wait: &mut Wait<'_>,
    ) -> Result<WithSerial, GuestError> {
        let config = self.config.as_ref();
        let config = config.ok_or_else(|| GuestError::Undefined(self.name.clone()))?;
        let guest = config.guest(&self.name)?;
        let of_guest = |cause| of_guest(guest, cause);
        let accel = KvmSupport::probe().choose(guest.accel)?;
        if accel == Accelerator::Tcg && guest.accel == Accel::Auto {
            tracing::warn!(
                "guest {}: no usable KVM, QEMU translates (accel tcg)",
                guest.name
            );
        }
        let user = user(guest, accel).map_err(of_guest)?;
        host_memory::check(guest).map_err(|cause| of_guest(cause.into()))?;
        let mut handed = Handed::default();
        let (sockets, files) = hand(config, guest, dir, &user, &mut handed).map_err(of_guest)?;
        let parts = Parts {
            nics,
            files: &files,
            sockets,
            accel,
            version: qemu_version()?,
        };
        let words = qemu::argv(guest, &parts);
        let started = Machine::start(&words, handed, &user, dir.path(), wait);
        started.map_err(|cause| of_guest(cause.into()))
    }
}

/// Opens all that the QEMU of `guest` inherits.
fn hand(
    config: &Config,
    guest: &Guest,
    dir: &GuestDir,
    user: &User,
    handed: &mut Handed,
) -> Result<(SocketFds, Files), StartError> {
    let sockets = machine::sockets(dir.path(), handed)?;
    let mut files = storage::open(guest, dir.path(), user.is_root(), handed)?;
    let seed = seed::make(config, guest)?;
    files.seed = seed.map(|disk| handed.add(disk));
    Ok((sockets, files))
}

/// Why a guest's QEMU is not started.
#[derive(Debug, Error)]
pub enum StartError {
    /// It does not run.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The guest's files.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// What cloud-init is told.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// As whom it runs.
    #[error(transparent)]
    User(#[from] UserError),
    /// The host's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

fn of_guest(guest: &Guest, cause: StartError) -> GuestError {
    GuestError::Start {
        guest: guest.name.clone(),
        cause,
    }
}

fn user(guest: &Guest, accel: Accelerator) -> Result<User, StartError> {
    Ok(User::of(&guest.name, guest.user.as_deref(), accel)?)
}

/// Looks at all that starting `guest` of `config` needs and that can be looked at before the host is touched,
/// and makes the disks that are to be made. Gives as whom QEMU will run.
fn check(config: &Config, guest: &Guest) -> Result<User, GuestError> {
    let accel = KvmSupport::probe().choose(guest.accel)?;
    qemu_version()?;
    let look = || {
        let user = user(guest, accel)?;
        host_memory::check(guest)?;
        seed::make(config, guest)?;
        storage::prepare(guest, user.is_root())?;
        Ok(user)
    };
    look().map_err(|cause| of_guest(guest, cause))
}

/// Starts the guest of this name in `config`, in the directory that `dir` gives once nothing else is wrong.
///
/// # Errors
/// See [`GuestError`]; nothing is left behind then but, where QEMU has failed, the logs.
pub fn launch(
    host: &HostArgs,
    config: &Config,
    name: &Name,
    dir: impl FnOnce() -> Result<GuestDir, GuestError>,
) -> Result<(Guarded, UnixStream), GuestError> {
    let guest = config.guest(name)?;
    let user = check(config, guest)?;

    let networks = guest.nics.iter().map(|nic| nic.network.clone()).collect();
    let plugged = network::plug(host, config, &networks)?;
    let dir = dir()?;
    dir.open_to(user.group())?;
    let run_dir = network::run_dir_path(&host.run_dir)?;
    let mut guarded = Guarded {
        machine: None,
        nics: BTreeMap::new(),
        plugged,
        host: host.clone(),
        record: Record {
            config: config.path().to_owned(),
            started: 0,
            ends: false,
            nics: planned(config, guest, &run_dir)?,
        },
        dir,
        relaunch: Relaunch {
            name: name.clone(),
            config: Some(config.clone()),
        },
    };
    guarded.dir.define(config.text())?;
    guarded.dir.write(&guarded.record)?;
    start_nics(config, guest, &mut guarded)?;
    // Whoever takes over from here on finds a guest with all of its NICs.
    guarded.save()?;
    match guarded.start() {
        Ok(serial) => Ok((guarded, serial)),
        Err(error) => {
            let has_run = |cause: &StartError| matches!(cause, StartError::Machine(_));
            if matches!(&error, GuestError::Start { cause, .. } if has_run(cause)) {
                guarded.end_keeping_logs(&causes(&error));
            }
            Err(error)
        }
    }
}

/// What the NICs of `guest` are going to be made of.
fn planned(
    config: &Config,
    guest: &Guest,
    run_dir: &Path,
) -> Result<BTreeMap<usize, NicRecord>, GuestError> {
    let record = |(index, nic): (usize, &crate::config::Nic)| {
        let network = config.network(&nic.network)?;
        let record = NicRecord::new(guest.tap(index), nic, network, run_dir);
        Ok((index, record))
    };
    guest.nics.iter().enumerate().map(record).collect()
}

fn start_nics(config: &Config, guest: &Guest, guarded: &mut Guarded) -> Result<(), GuestError> {
    for (index, nic) in guest.nics.iter().enumerate() {
        let network = config.network(&nic.network)?;
        let record = guarded.record.nics[&index].clone();
        let started = HostNic::start(record, index, nic, network, guarded.dir.path());
        let started = started.map_err(|cause| GuestError::Nic {
            guest: guest.name.clone(),
            index,
            cause,
        })?;
        guarded.nics.insert(index, started);
    }
    Ok(())
}

/// Takes over what `dir` says that there is of the guest, with QEMU if it runs.
///
/// # Errors
/// The networks' run directory can't be used; the guest runs on then as it did.
pub fn adopt(
    host: &HostArgs,
    name: &Name,
    dir: GuestDir,
    record: Record,
    qemu: Option<programs::Process>,
) -> Result<(Guarded, Option<UnixStream>), GuestError> {
    let text = fs::read_to_string(dir.file(files::DEFINITION)).unwrap_or_default();
    let config = Config::parse(&text, &record.config);
    let config = config.inspect_err(|error| {
        tracing::warn!("guest {name}: what it was started from can't be read any more: {error}");
    });
    let plugged = plugged_again(host, &record)?;
    let mut nics = BTreeMap::new();
    for (index, nic) in &record.nics {
        let adopted = HostNic::adopt(nic.clone(), *index, dir.path());
        match adopted {
            Ok(adopted) => nics.extend(adopted.map(|nic| (*index, nic))),
            // The guest has run on without, and goes on.
            Err(error) => tracing::warn!("guest {name}: NIC {index} is lost: {}", causes(&error)),
        }
    }
    let (machine, serial) = qemu.map(|qemu| Machine::adopt(qemu, dir.path())).unzip();
    let mut guarded = Guarded {
        machine,
        nics,
        plugged,
        host: host.clone(),
        dir,
        record,
        relaunch: Relaunch {
            name: name.clone(),
            config: config.ok(),
        },
    };
    if let Err(error) = guarded.save() {
        tracing::warn!("guest {name}: {}", causes(&error));
    }
    Ok((guarded, serial.flatten()))
}

/// Takes away what is left of a guest whose QEMU has ended while nobody watched over it.
///
/// # Errors
/// See [`GuestError`].
pub fn clean(host: &HostArgs, dir: &GuestDir) -> Result<(), GuestError> {
    take_back(host, dir)?;
    Ok(dir.empty()?)
}

/// As [`clean`], but for the logs of one that has failed, and for why.
///
/// # Errors
/// See [`GuestError`].
pub fn clean_but_logs(host: &HostArgs, dir: &mut GuestDir) -> Result<(), GuestError> {
    take_back(host, dir)?;
    match read_failure(dir.path()) {
        Some(reason) => Ok(dir.keep_logs(&reason)?),
        None => Ok(dir.empty()?),
    }
}

/// Takes away all of a guest but what is in its directory.
fn take_back(host: &HostArgs, dir: &GuestDir) -> Result<(), GuestError> {
    let Some(record) = dir.record() else {
        return Ok(());
    };
    let plugged = plugged_again(host, &record)?;
    for (index, nic) in &record.nics {
        nic.clean(*index, dir.path());
    }
    drop(plugged);
    Ok(())
}

fn plugged_again(host: &HostArgs, record: &Record) -> Result<Plugged, GuestError> {
    let networks: BTreeSet<Name> = record
        .nics
        .values()
        .map(|nic| nic.network.clone())
        .collect();
    Ok(network::plugged_again(host, &networks)?)
}

/// Whether NICs of guests that are started now have MSI-X, where the file leaves the accelerator to ringtap.
///
/// # Errors
/// There is no QEMU.
pub fn nics_have_vectors() -> Result<bool, GuestError> {
    let version = qemu_version()?;
    let accel = KvmSupport::probe().choose(Accel::Auto);
    Ok(accel.is_ok_and(|accel| !version.crashes_with_vectors(accel)))
}

/// Asks QEMU for its version, and so whether it is there at all.
fn qemu_version() -> Result<Version, GuestError> {
    let text = programs::run(QEMU, &["--version"], "")?;
    Version::parse(&text).ok_or(GuestError::QemuVersion(text))
}
