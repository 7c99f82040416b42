//! Requests to end this process, as something an event loop can wait for.
//!
//! By handlers and not by blocking: children start with handlers reset, but with the signals blocked that their parent
//! has blocked, and QEMU would then never hear of SIGTERM.
//!
//! A leaf: both halves may use it.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// SIGINT, SIGTERM and SIGHUP of this process; readable when one has come.
#[derive(Debug)]
pub struct EndRequests(UnixStream);

impl EndRequests {
    /// Catches the signals from here on, until the process ends.
    ///
    /// # Errors
    /// Those of `sigaction` and `socketpair`.
    pub fn catch() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
        }
        Ok(Self(read))
    }

    /// How many have come since the last call.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn take(&mut self) -> io::Result<usize> {
        match self.0.read(&mut [0; 64]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            count => count,
        }
    }
}

impl AsRawFd for EndRequests {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
