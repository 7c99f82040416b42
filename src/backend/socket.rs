//! A listening unix socket whose file goes away with it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a socket can't be listened on.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error(
        "socket {0} is in use: another process listens there; stop that one, or name another path"
    )]
    InUse(PathBuf),
    /// The kernel refused a step.
    #[error("socket {path}: {step}")]
    Kernel {
        /// The socket's path.
        path: PathBuf,
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
}

/// A listening socket that never blocks.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    replaces_dead_one: bool,
}

impl Socket {
    /// Listens on `path`. A socket that a dead process left there is replaced.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn listen(path: &Path) -> Result<Self, SocketError> {
        let failed = |step, cause| SocketError::Kernel {
            path: path.to_owned(),
            step,
            cause,
        };
        let mut replaces_dead_one = false;
        match UnixStream::connect(path) {
            Ok(_) => return Err(SocketError::InUse(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(|cause| failed("remove a dead one", cause))?;
                replaces_dead_one = true;
            }
            Err(_) => {} // nothing there, or something that bind() will name
        }
        let listener = UnixListener::bind(path).map_err(|cause| failed("listen", cause))?;
        let socket = Self {
            listener,
            path: path.to_owned(),
            replaces_dead_one,
        };
        let set = socket.listener.set_nonblocking(true);
        set.map_err(|cause| failed("make it non-blocking", cause))?;
        Ok(socket)
    }

    /// Whether a process that listened here has died without a chance to remove its socket.
    pub fn replaces_dead_one(&self) -> bool {
        self.replaces_dead_one
    }

    /// The next connection.
    ///
    /// # Errors
    /// `WouldBlock` where there is none.
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().map(|(stream, _)| stream)
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Best effort: a dead socket is replaced at the next start anyway.
        let _ = std::fs::remove_file(&self.path);
    }
}
