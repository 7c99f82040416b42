//! A guest's directory, `RUN_DIR/guests/NAME`: while it runs, what its supervisor holds; after it has failed, its logs.
//!
//! The directory itself is the lock: who holds it is the guest's supervisor, and the only one to change what is in it.
//! What a guest is made of is in [`Record`], written before it is made, with the file that it was started from.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::nic::NicRecord;
use crate::network::journal::{Journal, write_private};
use crate::types::Name;

/// The directory of guests' directories.
const GUESTS: &str = "guests";

/// A file there: the run directory was made for guests and their networks, and goes with the last of them.
const RUN_DIR_IS_OURS: &str = ".run-dir-is-ours";

/// What is in a guest's directory.
pub mod files {
    /// The supervisor's socket for commands.
    pub const CONTROL: &str = "control.sock";
    /// The supervisor's socket for the console.
    pub const CONSOLE: &str = "console.sock";
    /// What the console has said of late.
    pub const CONSOLE_LOG: &str = "console.log";
    /// QEMU's monitor.
    pub const MONITOR: &str = "qmp.sock";
    /// QEMU's serial line.
    pub const SERIAL: &str = "serial.sock";
    /// What QEMU says.
    pub const QEMU_LOG: &str = "qemu.log";
    /// What the supervisor says once nobody waits for it any more.
    pub const SUPERVISOR_LOG: &str = "supervisor.log";
    /// The file that the guest was started from.
    pub const DEFINITION: &str = "ringtap.toml";
    /// What the guest is made of.
    pub const RECORD: &str = "record.json";
    /// Why it failed.
    pub const FAILURE: &str = "failure";
}

/// Why a guest can't have its directory.
#[derive(Debug, Error)]
pub enum GuestDirError {
    /// It has a supervisor.
    #[error("guest {0} is running already: `ringtap stop {0}` ends it")]
    Running(Name),
    /// The directory can't be made, locked or written.
    #[error("run directory {path}")]
    Kernel {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
}

/// What a guest is made of, for who takes over from its supervisor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Where the file was that it was started from.
    pub config: PathBuf,
    /// When QEMU was started last, in seconds since boot; 0 before that.
    pub started: u64,
    /// Whether its end was asked for, or has come.
    #[serde(default)]
    pub ends: bool,
    /// Its NICs, by number.
    pub nics: BTreeMap<usize, NicRecord>,
}

/// The directory, for as long as this value lives.
#[derive(Debug)]
pub struct GuestDir {
    guest: Name,
    path: PathBuf,
    /// Whether it outlives this value.
    stays: bool,
    _lock: Flock<File>,
}

impl GuestDir {
    /// Makes the directory, or takes it over as a supervisor that died has left it.
    ///
    /// # Errors
    /// See [`GuestDirError`].
    pub fn lock(run_dir: &Path, guest: &Name) -> Result<Self, GuestDirError> {
        let guests = run_dir.join(GUESTS);
        let path = Self::of(run_dir, guest);
        loop {
            let made_run_dir = make(run_dir, 0o755)?;
            // A network may have come first.
            let is_ours =
                || made_run_dir || Journal::read(run_dir).is_ok_and(|it| it.made_run_dir());
            if make(&guests, 0o711)? && is_ours() {
                let _ = File::create(guests.join(RUN_DIR_IS_OURS));
            }
            make(&path, 0o700)?;
            let Some(lock) = try_lock(&path, guest)? else {
                continue;
            };
            return Ok(Self {
                guest: guest.clone(),
                path,
                stays: false,
                _lock: lock,
            });
        }
    }

    /// Where the directory of `guest` is while it runs.
    pub fn of(run_dir: &Path, guest: &Name) -> PathBuf {
        run_dir.join(GUESTS).join(guest.as_str())
    }

    /// The guests that have a directory: that run, have failed, or were left by a supervisor.
    pub fn all(run_dir: &Path) -> Vec<Name> {
        let entries = fs::read_dir(run_dir.join(GUESTS)).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let mut names: Vec<Name> = names.collect();
        names.sort();
        names
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Lets the group of this number, QEMU's, use what is in it that it knows by name; new sockets are the group's.
    ///
    /// # Errors
    /// The file system's.
    pub fn open_to(&self, group: u32) -> Result<(), GuestDirError> {
        let open = || {
            chown(&self.path, None, Some(group))?;
            fs::set_permissions(&self.path, Permissions::from_mode(0o2710))
        };
        open().map_err(|cause| GuestDirError::Kernel {
            path: self.path.clone(),
            cause,
        })
    }

    /// What the guest is made of that is there already; none where there is nothing of it.
    pub fn record(&self) -> Option<Record> {
        read_record(&self.path)
    }

    /// Writes down what the guest is about to be made of.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, record: &Record) -> Result<(), GuestDirError> {
        let text = serde_json::to_string_pretty(record).expect("a record has no odd keys");
        self.put(files::RECORD, &text)
    }

    /// Writes down the file that the guest is started from.
    ///
    /// # Errors
    /// The file system's.
    pub fn define(&self, text: &str) -> Result<(), GuestDirError> {
        self.put(files::DEFINITION, text)
    }

    /// Removes what an earlier life of the guest has left.
    ///
    /// # Errors
    /// The file system's.
    pub fn empty(&self) -> Result<(), GuestDirError> {
        self.clear(|_| false)
    }

    /// Writes down why the guest has failed.
    ///
    /// # Errors
    /// The file system's.
    pub fn note_failure(&self, failure: &str) -> Result<(), GuestDirError> {
        self.put(files::FAILURE, failure)
    }

    /// The directory stays with the logs, and with why the guest failed.
    ///
    /// # Errors
    /// The file system's.
    pub fn keep_logs(&mut self, failure: &str) -> Result<(), GuestDirError> {
        self.stays = true;
        self.note_failure(failure)?;
        self.clear(|name| name.ends_with(".log") || name == files::FAILURE)
    }

    /// The directory stays as it is.
    pub fn leave(mut self) {
        self.stays = true;
    }

    fn put(&self, name: &str, text: &str) -> Result<(), GuestDirError> {
        let path = self.file(name);
        write_private(&path, text).map_err(|cause| GuestDirError::Kernel { path, cause })
    }

    fn clear(&self, stays: impl Fn(&str) -> bool) -> Result<(), GuestDirError> {
        let clear = || {
            for entry in fs::read_dir(&self.path)? {
                let entry = entry?;
                if !stays(&entry.file_name().to_string_lossy()) {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        clear().map_err(|cause| GuestDirError::Kernel {
            path: self.path.clone(),
            cause,
        })
    }
}

/// What the guest with this directory is made of, if it is.
pub fn read_record(dir: &Path) -> Option<Record> {
    let text = fs::read_to_string(dir.join(files::RECORD)).ok()?;
    let record = serde_json::from_str(&text);
    let told = record.inspect_err(|error| {
        tracing::warn!("{} can't be understood: {error}", dir.display());
    });
    told.ok()
}

/// Why the guest with this directory has failed, if it has.
pub fn read_failure(dir: &Path) -> Option<String> {
    fs::read_to_string(dir.join(files::FAILURE)).ok()
}

/// Makes directory `path`, whatever the umask, if it is not there; whether it had to be made.
fn make(path: &Path, mode: u32) -> Result<bool, GuestDirError> {
    let made = match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode)).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    };
    made.map_err(|cause| GuestDirError::Kernel {
        path: path.to_owned(),
        cause,
    })
}

/// Removes the directory of guests' directories if none is left, and the one above it if that is ours.
fn tidy(guests: &Path) {
    let entries = fs::read_dir(guests).into_iter().flatten().flatten();
    if entries
        .map(|entry| entry.file_name())
        .any(|name| name != RUN_DIR_IS_OURS)
    {
        return;
    }
    let is_ours = fs::remove_file(guests.join(RUN_DIR_IS_OURS)).is_ok();
    // Neither is empty while others use it.
    if fs::remove_dir(guests).is_ok()
        && is_ours
        && let Some(run_dir) = guests.parent()
    {
        let _ = fs::remove_dir(run_dir);
    }
}

/// The lock on directory `path`; none where that was removed meanwhile.
fn try_lock(path: &Path, guest: &Name) -> Result<Option<Flock<File>>, GuestDirError> {
    let failed = |cause| GuestDirError::Kernel {
        path: path.to_owned(),
        cause,
    };
    let directory = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let locked = Flock::lock(directory, FlockArg::LockExclusiveNonblock);
    let lock = locked.map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => GuestDirError::Running(guest.clone()),
        errno => failed(errno.into()),
    })?;
    let held = lock.metadata().map_err(failed)?.ino();
    let is_there = fs::metadata(path).is_ok_and(|there| there.ino() == held);
    Ok(is_there.then_some(lock))
}

impl Drop for GuestDir {
    fn drop(&mut self) {
        if !self.stays
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!("what is left of guest {} stays: {error}", self.guest);
        }
        if let Some(guests) = self.path.parent() {
            tidy(guests);
        }
    }
}
