//! Waiting for a child's word that it is ready, by the protocol of sd_notify(3).

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::process::Process;

/// A socket on which a child may say that it is ready; it goes with this value. The child finds it in `NOTIFY_SOCKET`.
#[derive(Debug)]
pub struct Readiness {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Readiness {
    /// Listens on a socket at `path`, in the place of what was there.
    ///
    /// # Errors
    /// Those of `bind`.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
        })
    }

    /// True once `child` has said so; false where it ended or the time ran out.
    ///
    /// # Errors
    /// Those of `poll` and `recv`.
    pub fn of(&self, child: &mut Process, limit: Duration) -> io::Result<bool> {
        let end = Instant::now() + limit;
        let mut message = [0; 256];
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            child.wait_with(&[self.socket.as_fd()], left)?;
            match self.socket.recv(&mut message) {
                Ok(bytes) if is_ready(&message[..bytes]) => return Ok(true),
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if child.ended()?.is_some() {
                return Ok(false);
            }
        }
        Ok(false)
    }
}

impl Drop for Readiness {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // nobody else's, and of no use any more
    }
}

fn is_ready(message: &[u8]) -> bool {
    message
        .split(|byte| *byte == b'\n')
        .any(|line| line == b"READY=1")
}
