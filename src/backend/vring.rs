//! A vring as the back-end keeps it between bursts: its state, its ring, its two notifications.
//!
//! A vring is *started* (SET_VRING_KICK, until GET_VRING_BASE) or not, and independently *enabled* or not
//! (vhost-user "Ring states"). Only what is needed to work on it lives here; what a front-end told so far, complete or
//! not, is the session's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::memory::GuestMemory;
use super::ring::{Broken, Ring, RingLayout, RingPosition};

/// An eventfd that a front-end gave, never blocking.
#[derive(Debug)]
pub struct Notifier(File);

impl Notifier {
    /// Takes the descriptor over and makes it non-blocking.
    ///
    /// # Errors
    /// Those of `fcntl`.
    pub fn new(fd: OwnedFd) -> std::io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self(fd.into()))
    }

    /// Takes the pending notifications.
    pub fn clear(&self) {
        // Nothing to read means that somebody else took them: work is looked for either way.
        let _ = (&self.0).read(&mut [0; 8]);
    }

    /// Notifies the other side.
    pub fn signal(&self) {
        // A full eventfd is a pending notification; a closed one means that nobody waits.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }
}

impl AsRawFd for Notifier {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A started ring.
#[derive(Debug)]
pub struct Started {
    /// The memory that the layout was checked against.
    pub memory: Arc<GuestMemory>,
    /// Where the ring lies.
    pub layout: RingLayout,
    /// How far it has been worked through.
    pub position: RingPosition,
    /// How the driver says that it added chains; `None` where it is polled instead.
    pub kick: Option<Notifier>,
}

impl Started {
    /// Opens the ring for a burst.
    ///
    /// # Errors
    /// Where the driver broke it.
    pub fn open(&mut self) -> Result<Ring<'_>, Broken> {
        Ring::open(self.memory.mem(), self.layout, &mut self.position)
    }
}

/// A vring: stopped and disabled at first.
#[derive(Debug, Default)]
pub struct Vring {
    /// Whether frames may go through (SET_VRING_ENABLE).
    pub enabled: bool,
    /// The ring, while started.
    pub started: Option<Started>,
    /// How the driver is told of completed chains; `None` where it polls.
    pub call: Option<Notifier>,
}

impl Vring {
    /// Whether this ring must be looked at without waiting for a kick, for there is none.
    pub fn is_polled(&self) -> bool {
        self.started
            .as_ref()
            .is_some_and(|ring| ring.kick.is_none())
    }

    /// Tells the driver that chains were completed; false where it does not want to know.
    pub fn notify(&self) -> bool {
        if let Some(call) = &self.call {
            call.signal();
        }
        self.call.is_some()
    }
}
