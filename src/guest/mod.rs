//! Guests: QEMU with its NICs prewired, each watched over by a supervisor of its own.
//!
//! # Theory of operation
//! ```text
//! run, start ──starts──→ supervise ──makes──→ networks, taps, backends, QEMU      (launch)
//! console ←──console.sock──→ hub ←──serial.sock──→ QEMU's serial line             (hub, terminal)
//! stop, list ←──control.sock──→ supervise ←──pidfds, qmp.sock──→ backends, QEMU   (control, supervise, monitor)
//! ```
//! A supervisor validates everything it can before it touches anything: the file, the accelerator, QEMU, the guest's kernel
//! and disks. Then it brings the guest's networks up, makes a tap and starts a backend for each NIC (`nic`), and starts QEMU
//! on them (`machine`, by a pure command line, `qemu`). Until then its errors are those of the command that has started it
//! (`supervisor`). From then on it is an event loop (`supervise`) until the guest has ended, and takes back what was made.
//!
//! What a guest is made of is written down in its directory before it is made (`run_dir`). A supervisor that is killed
//! leaves its guest running, and the next one takes it over (`launch::adopt`): `start`, `status`, `list`, `stop` and
//! `console` see to it. The supervisor alone changes anything of a guest, and holds the directory's lock while it does.

mod accel;
mod claims;
mod commands;
mod control;
mod guarded;
mod handed;
mod host_memory;
mod hotplug;
mod hub;
mod launch;
mod links;
mod list;
mod machine;
mod monitor;
mod nic;
mod patience;
mod peer;
mod process;
mod qemu;
mod readiness;
mod run_dir;
mod seed;
mod ssh;
mod stats;
mod status;
mod storage;
mod supervise;
mod supervisor;
mod terminal;
mod user;

use std::io;

use thiserror::Error;

use accel::NoKvm;
use launch::StartError;
use nic::NicError;
use run_dir::GuestDirError;

pub use commands::{console, nic, restart, rm, run, start, stop};
pub use launch::nics_have_vectors;
pub use list::list;
pub use ssh::ssh;
pub use status::status;
pub use supervisor::supervise;

use crate::config::Problems;
use crate::network;
use crate::programs::ToolError;
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
    /// QEMU is not started.
    #[error("guest {guest}")]
    Start {
        /// The guest.
        guest: Name,
        /// Why.
        #[source]
        cause: StartError,
    },
    /// The file that it was started from is gone or can't be understood.
    #[error(
        "guest {0}: what it was started from can't be read any more; `ringtap start {0}` starts it as the file has it"
    )]
    Undefined(Name),
    /// It has failed while it was watched.
    #[error("guest {guest}: {reason}")]
    Failed {
        /// The guest.
        guest: Name,
        /// Why.
        reason: String,
    },
    /// It does not run.
    #[error("guest {0} does not run: `ringtap start {0}` starts it")]
    NotRunning(Name),
    /// It was waited for in vain.
    #[error(
        "guest {0} is on its way up or down, and not there yet: `ringtap list` shows how it is"
    )]
    Busy(Name),
    /// Its supervisor has died or does not answer.
    #[error("guest {0}: nobody watches over it any more; `ringtap start {0}` sees to it")]
    Lost(Name),
    /// A supervisor can't be started.
    #[error("the supervisor of guest {guest} can't be started")]
    Supervisor {
        /// The guest.
        guest: Name,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// Nobody knows where it can be reached.
    #[error(
        "guest {0} has no address that this host knows of: it has not booted so far, or none of its networks leads here"
    )]
    NoAddress(Name),
    /// ssh can't be run.
    #[error("cannot run ssh: install the package openssh-client")]
    Ssh(#[source] io::Error),
    /// Its supervisor won't.
    #[error("guest {guest}: {reason}")]
    Refused {
        /// The guest.
        guest: Name,
        /// Why.
        reason: String,
    },
    /// The terminal.
    #[error("the terminal")]
    Terminal(#[source] io::Error),
    /// Supervision itself failed.
    #[error("supervision of the guest")]
    Supervision(#[source] io::Error),
}
