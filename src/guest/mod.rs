//! Guests: QEMU with its NICs prewired.
//!
//! # Theory of operation
//! [`run`] validates everything it can before it touches anything: the file, the accelerator, QEMU, the guest's
//! kernel and disks. Then it brings the guest's networks up, makes a tap and starts a backend for each NIC
//! (`nic`), starts QEMU on them (`qemu`, a pure command line), and supervises the processes until QEMU has ended
//! (`supervise`). Whatever was made is a value whose drop takes it back, so every way out of [`run`] cleans up.
//!
//! The run directory of a guest, `RUN_DIR/guests/NAME`, holds a lock, the backends' sockets and their logs. Each backend
//! serves its counters on one of the sockets, and [`status()`] asks them.

mod accel;
mod nic;
mod process;
mod qemu;
mod run_dir;
mod status;
mod supervise;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use thiserror::Error;

use accel::{Accelerator, KvmSupport, NoKvm};
use nic::{HostNic, NicError};
use process::Process;
use qemu::Version;
use run_dir::{GuestDir, GuestDirError};
use supervise::{End, supervise};

pub use status::status;

use crate::cli::RunArgs;
use crate::config::{Config, Guest, Problems};
use crate::network;
use crate::programs::{self, QEMU, ToolError};
use crate::signals::EndRequests;
use crate::types::Name;

/// Why a guest can't be run, or how it failed.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The file is wrong, or has no such guest.
    #[error("the configuration can't be used")]
    Config(#[from] Problems),
    /// KVM was demanded and isn't there.
    #[error(transparent)]
    NoKvm(#[from] NoKvm),
    /// QEMU is missing or does not run.
    #[error("guests need QEMU")]
    Tool(#[from] ToolError),
    /// QEMU's version can't be told.
    #[error("QEMU's --version can't be understood: {0:?}")]
    QemuVersion(String),
    /// QEMU can't be started.
    #[error("{} can't be started", QEMU.name)]
    StartQemu(#[source] io::Error),
    /// A file the guest starts from can't be read.
    #[error("guest {guest}: {key} {path} can't be read: name a file that exists and may be read")]
    File {
        /// The guest.
        guest: Name,
        /// The key in the file.
        key: &'static str,
        /// The file it names.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// The guest's directory, or its lock.
    #[error(transparent)]
    RunDir(#[from] GuestDirError),
    /// A network can't be brought up.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// A NIC can't be had.
    #[error("guest {guest}: NIC {index}")]
    Nic {
        /// The guest.
        guest: Name,
        /// Which NIC, counted from 0.
        index: usize,
        /// Why.
        #[source]
        cause: NicError,
    },
    /// QEMU failed; it has said why on standard error.
    #[error("guest {guest}: QEMU ended with {status}; its own message is above")]
    Qemu {
        /// The guest.
        guest: Name,
        /// How QEMU ended.
        status: ExitStatus,
    },
    /// Supervision itself failed.
    #[error("supervision of the guest")]
    Supervision(#[source] io::Error),
}

/// Runs a guest in the foreground until it powers off or a signal comes; leaves nothing of it behind.
///
/// # Errors
/// See [`GuestError`].
pub fn run(args: &RunArgs) -> Result<ExitCode, GuestError> {
    let config = Config::load(&args.host.config)?;
    let guest = config.guest(&args.guest)?;
    let accel = KvmSupport::probe().choose(guest.accel)?;
    let version = qemu_version()?;
    check_files(guest)?;
    let signals = EndRequests::catch().map_err(GuestError::Supervision)?;

    let networks = guest.nics.iter().map(|nic| nic.network.clone()).collect();
    let _plugged = network::plug(&args.host, &config, &networks)?;
    let dir = GuestDir::lock(&args.host.run_dir, &guest.name)?;
    let run_dir = network::run_dir_path(&args.host.run_dir)?;
    let nics = start_nics(&config, guest, &run_dir, dir.path())?;
    let qemu = start_qemu(guest, &nics, accel, version)?;
    match supervise(qemu, nics, signals).map_err(GuestError::Supervision)? {
        End::Qemu(status) if !status.success() => Err(GuestError::Qemu {
            guest: guest.name.clone(),
            status,
        }),
        End::Qemu(_) | End::Asked => Ok(ExitCode::SUCCESS),
    }
}

/// Asks QEMU for its version, and so whether it is there at all.
fn qemu_version() -> Result<Version, GuestError> {
    let text = programs::run(QEMU, &["--version"], "")?;
    Version::parse(&text).ok_or(GuestError::QemuVersion(text))
}

fn check_files(guest: &Guest) -> Result<(), GuestError> {
    let kernel = guest.kernel.iter().map(|path| ("kernel", path));
    let initrd = guest.initrd.iter().map(|path| ("initrd", path));
    let disks = guest.disks.iter().map(|path| ("disk", path));
    for (key, path) in kernel.chain(initrd).chain(disks) {
        std::fs::File::open(path).map_err(|cause| GuestError::File {
            guest: guest.name.clone(),
            key,
            path: path.clone(),
            cause,
        })?;
    }
    Ok(())
}

fn start_nics(
    config: &Config,
    guest: &Guest,
    run_dir: &Path,
    dir: &Path,
) -> Result<Vec<HostNic>, GuestError> {
    let start = |(index, nic): (usize, &crate::config::Nic)| {
        let network = config.network(&nic.network)?;
        let started = HostNic::start(guest, index, network, run_dir, dir);
        started.map_err(|cause| GuestError::Nic {
            guest: guest.name.clone(),
            index,
            cause,
        })
    };
    guest.nics.iter().enumerate().map(start).collect()
}

fn start_qemu(
    guest: &Guest,
    nics: &[HostNic],
    accel: Accelerator,
    version: Version,
) -> Result<Process, GuestError> {
    if accel == Accelerator::Tcg {
        tracing::warn!(
            "guest {}: no usable KVM, QEMU translates (accel tcg)",
            guest.name
        );
    }
    let wiring: Vec<_> = nics.iter().map(|nic| nic.wiring().clone()).collect();
    let mut command = Command::new(QEMU.name);
    command.args(qemu::argv(guest, &wiring, accel, version));
    Process::spawn(&mut command).map_err(GuestError::StartQemu)
}
