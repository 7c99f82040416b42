//! A guest's directory while it runs: `RUN_DIR/guests/NAME`, locked, and removed with all that is in it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

use crate::types::Name;

/// The directory of guests' directories.
const GUESTS: &str = "guests";

/// Why a guest can't have its directory.
#[derive(Debug, Error)]
pub enum GuestDirError {
    /// Another ringtap runs it.
    #[error("guest {0} is running already: end that one first")]
    Running(Name),
    /// The directory can't be made or locked.
    #[error("run directory {path}")]
    Kernel {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
}

/// The directory, for as long as this value lives.
#[derive(Debug)]
pub struct GuestDir {
    path: PathBuf,
    /// Directories above it that go when they are empty.
    above: Vec<PathBuf>,
    _lock: Flock<File>,
}

impl GuestDir {
    /// Makes the directory, or takes over what a killed ringtap has left of it.
    ///
    /// # Errors
    /// See [`GuestDirError`].
    pub fn lock(run_dir: &Path, guest: &Name) -> Result<Self, GuestDirError> {
        let guests = run_dir.join(GUESTS);
        let path = Self::of(run_dir, guest);
        let failed = |path: &Path, cause| GuestDirError::Kernel {
            path: path.to_owned(),
            cause,
        };
        let mut above = vec![guests.clone()];
        // Others find their files in the run directory; a guest's are its own.
        for (dir, mode) in [(run_dir, 0o755), (&guests, 0o700), (&path, 0o700)] {
            match DirBuilder::new().mode(mode).create(dir) {
                Ok(()) if dir == run_dir => above.push(run_dir.to_owned()),
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(dir, error)),
            }
        }
        let directory = File::open(&path).map_err(|cause| failed(&path, cause))?;
        let lock =
            Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
                match errno {
                    Errno::EWOULDBLOCK => GuestDirError::Running(guest.clone()),
                    errno => failed(&path, errno.into()),
                }
            })?;
        let dir = Self {
            path,
            above,
            _lock: lock,
        };
        dir.empty().map_err(|cause| failed(&dir.path, cause))?;
        Ok(dir)
    }

    /// Where the directory of `guest` is while it runs.
    pub fn of(run_dir: &Path, guest: &Name) -> PathBuf {
        run_dir.join(GUESTS).join(guest.as_str())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn empty(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }
}

impl Drop for GuestDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!("{} stays: {error}", self.path.display());
        }
        for dir in &self.above {
            let _ = fs::remove_dir(dir); // not empty while others use it
        }
    }
}
