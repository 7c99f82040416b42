//! Requests to this process by signals, as something an event loop can wait for, or work that has none can ask for.
//!
//! By handlers and not by blocking: children start with handlers reset, but with the signals blocked that their parent
//! has blocked, and QEMU would then never hear of SIGTERM.
//!
//! A leaf: both halves may use it.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// Requests to end: SIGINT, SIGTERM, and SIGHUP unless that means something else; readable when one has come.
#[derive(Debug)]
pub struct EndRequests(Caught);

impl EndRequests {
    /// Catches the signals from here on, until the process ends.
    ///
    /// # Errors
    /// Those of `sigaction` and `socketpair`.
    pub fn catch() -> io::Result<Self> {
        Ok(Self(Caught::new(&[SIGHUP, SIGINT, SIGTERM])?))
    }

    /// As [`EndRequests::catch`], with SIGHUP left to [`ReloadRequests`].
    ///
    /// # Errors
    /// As [`EndRequests::catch`].
    pub fn catch_but_hangups() -> io::Result<Self> {
        Ok(Self(Caught::new(&[SIGINT, SIGTERM])?))
    }

    /// How many have come since the last call.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn take(&mut self) -> io::Result<usize> {
        self.0.take()
    }
}

impl AsFd for EndRequests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

impl AsRawFd for EndRequests {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// Whether a request to end has come since they are noted.
static END: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Has the first request to end noted from here on, for [`end_is_asked`]. The second one ends the process.
///
/// # Errors
/// Those of `sigaction`.
pub fn note_end_requests() -> io::Result<()> {
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        flag::register_conditional_default(signal, Arc::clone(&END))?;
        flag::register(signal, Arc::clone(&END))?;
    }
    Ok(())
}

/// Whether a request to end was noted.
pub fn end_is_asked() -> bool {
    END.load(Ordering::Relaxed)
}

/// Requests to read a file again, by SIGHUP; readable when one has come.
#[derive(Debug)]
pub struct ReloadRequests(Caught);

impl ReloadRequests {
    /// Catches SIGHUP from here on, until the process ends.
    ///
    /// # Errors
    /// Those of `sigaction` and `socketpair`.
    pub fn catch() -> io::Result<Self> {
        Ok(Self(Caught::new(&[SIGHUP])?))
    }

    /// How many have come since the last call.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn take(&mut self) -> io::Result<usize> {
        self.0.take()
    }
}

impl AsRawFd for ReloadRequests {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// A byte for each signal that has come.
#[derive(Debug)]
struct Caught(UnixStream);

impl Caught {
    fn new(signals: &[i32]) -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        for signal in signals {
            signal_hook::low_level::pipe::register(*signal, write.try_clone()?)?;
        }
        Ok(Self(read))
    }

    fn take(&mut self) -> io::Result<usize> {
        match self.0.read(&mut [0; 64]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            count => count,
        }
    }
}
