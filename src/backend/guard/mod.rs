//! The guard: who a guest may say it is.
//!
//! # Theory of operation
//! Every frame of a transmitq passes it, so that it holds for a bridge, a routed network and a macvtap alike, and needs nothing
//! of the host's firewall. Its [`Policy`] says what the guest may claim; `inspect` is what looks at a frame, and is pure. The
//! frame's first [`HEAD`] bytes are copied out of the guest's memory before they are looked at, and what goes to the tap is the
//! copy: a guest that changes its frame meanwhile changes what nobody has looked at.
//!
//! What DHCP gives the guest, and prefixes of which it makes itself addresses, are read from the answers on their way to it
//! (`lease`), and count for all queues of the NIC.
//! Frames that are refused are counted by reason (`counters`).

mod inspect;
mod lease;
mod policy;
mod reason;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ipnet::IpNet;

pub use inspect::{Frame, Rights};
pub use lease::{ANSWER, GLANCE};
pub use policy::Policy;
pub use reason::Reason;

/// The first bytes of what a guest sends, virtio-net header and all, that are copied and looked at.
pub const HEAD: usize = 192;

/// So many of those are known at once, the ones given last.
const MOST_LEASES: usize = 64;

/// A guard of one queue pair.
#[derive(Debug, Clone)]
pub struct Guard {
    nic: Arc<Nic>,
    /// What of the NIC's leases this pair has seen.
    leased: Vec<IpNet>,
    generation: u64,
    /// When one of them ends.
    until: Option<Instant>,
}

/// What the pairs of a NIC have in common.
#[derive(Debug)]
struct Nic {
    policy: Policy,
    leases: Mutex<Vec<(IpNet, Option<Instant>)>>,
    /// Grows with every change of those.
    generation: AtomicU64,
}

impl Guard {
    /// That of a NIC; its clones are of the same one's pairs.
    pub fn new(policy: Policy) -> Self {
        Self {
            nic: Arc::new(Nic {
                policy,
                leases: Mutex::default(),
                generation: AtomicU64::new(0),
            }),
            leased: Vec::new(),
            generation: 0,
            until: None,
        }
    }

    /// Looks at what the NIC's other pairs have heard, once for many frames.
    pub fn refresh(&mut self) {
        let generation = self.nic.generation.load(Ordering::Acquire);
        let is_over = self.until.is_some_and(|until| until <= Instant::now());
        if generation == self.generation && !is_over {
            return;
        }
        let now = Instant::now();
        let mut leases = self
            .nic
            .leases
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        leases.retain(|(_, until)| until.is_none_or(|until| until > now));
        self.leased = leases.iter().map(|(net, _)| *net).collect();
        self.until = leases.iter().filter_map(|(_, until)| *until).min();
        self.generation = generation;
    }

    /// Whether `frame` may pass.
    ///
    /// # Errors
    /// Why it may not.
    pub fn judge(&self, frame: &Frame<'_>) -> Result<(), Reason> {
        frame.judge(Rights {
            policy: &self.nic.policy,
            leased: &self.leased,
        })
    }

    /// Whether a frame towards the guest that begins so is to be [heard](Self::hear).
    pub fn wants_to_hear(&self, glance: &[u8; GLANCE]) -> bool {
        self.nic.policy.addresses.is_some() && lease::may_give(glance)
    }

    /// Learns what the guest is given by a frame that begins so.
    pub fn hear(&self, frame: &[u8]) {
        let mut leases = self
            .nic
            .leases
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for lease in lease::leases(frame, self.nic.policy.mac) {
            leases.retain(|(net, _)| *net != lease.net);
            leases.truncate(MOST_LEASES - 1);
            // A lease that never ends is longer than clocks reach.
            let until = Instant::now().checked_add(lease.time);
            leases.insert(0, (lease.net, until));
            self.nic.generation.fetch_add(1, Ordering::Release);
        }
    }
}
