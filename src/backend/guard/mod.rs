//! The guard: who a guest may say it is.
//!
//! # Theory of operation
//! Every frame of a transmitq passes it, so that it holds for a bridge, a routed network and a macvtap alike, and needs nothing
//! of the host's firewall. Its [`Policy`] says what the guest may claim; `inspect` is what looks at a frame, and is pure. The
//! frame's first [`HEAD`] bytes are copied out of the guest's memory before they are looked at, and what goes to the tap is the
//! copy: a guest that changes its frame meanwhile changes what nobody has looked at.
//!
//! What DHCP gives the guest, and prefixes of which it makes itself addresses, are read from the answers on their way to it
//! (`lease`), count for all queues of the NIC, and are kept for the next process that serves it (`memory`). Of a prefix, and of
//! its link, a guest has the addresses that are made of its own MAC address. Any other it must ask for before, as every host
//! does (RFC 4862, "Duplicate Address Detection"); it is the guest's once nobody has said for a while that it is theirs (RFC
//! 6620, "FCFS SAVI"). Frames that are refused are counted by reason (`counters`), and the last ones are kept for people to
//! look at (`refusal`).

mod inspect;
mod lease;
mod memory;
mod policy;
mod reason;
mod refusal;

use std::cell::Cell;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;

pub use inspect::{Frame, Rights};
pub use lease::{ANSWER, GLANCE};
pub use memory::LeaseFile;
pub use policy::Policy;
pub use reason::Reason;
pub use refusal::{Refusal, Refusals};

use crate::clock::since_boot;

/// The first bytes of what a guest sends, virtio-net header and all, that are copied and looked at.
pub const HEAD: usize = 192;

/// So many leases are known at once, the ones given last.
const MOST_LEASES: usize = 64;

/// How long a lease that never ends is kept for the next process.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// How long nobody may have contested an address that a guest is about to take: less than hosts wait before they use it.
const SILENCE: Duration = Duration::from_millis(800);

/// So many are asked for at once, the last ones.
const MOST_ASKED: usize = 16;

/// A guard of one queue pair.
#[derive(Debug, Clone)]
pub struct Guard {
    nic: Arc<Nic>,
    /// What of the NIC's leases this pair has seen.
    leased: Vec<IpNet>,
    generation: u64,
    /// When one of them ends, or another begins.
    until: Option<Instant>,
    /// Whom packets of either family came from that passed last.
    known: Cell<[Option<IpAddr>; 2]>,
}

/// What the pairs of a NIC have in common.
#[derive(Debug)]
struct Nic {
    policy: Policy,
    leases: Mutex<Leases>,
    /// Grows with every change of those.
    generation: AtomicU64,
    /// Whether there are addresses that the guest has asked for.
    asks: AtomicBool,
}

/// What a NIC was given, the last first, each until when if not for ever; and where that is kept.
#[derive(Debug, Default)]
struct Leases {
    all: Vec<(IpNet, Option<Instant>)>,
    /// Addresses that the guest has asked for, and when they are its own unless they are contested.
    asked: Vec<(Ipv6Addr, Instant)>,
    file: Option<LeaseFile>,
}

impl Leases {
    /// With those of `file` that have not ended.
    fn of(file: Option<LeaseFile>) -> Self {
        let kept = file.as_ref().map(LeaseFile::kept).unwrap_or_default();
        let left = kept.iter().filter_map(|(net, until)| {
            let left = until.checked_sub(since_boot())?;
            Some((*net, Instant::now().checked_add(left)))
        });
        Self {
            all: left.take(MOST_LEASES).collect(),
            asked: Vec::new(),
            file,
        }
    }

    fn add(&mut self, lease: lease::Lease) {
        // A lease that never ends is longer than clocks reach.
        self.put(lease.net, Instant::now().checked_add(lease.time));
    }

    fn put(&mut self, net: IpNet, until: Option<Instant>) {
        self.all.retain(|(known, _)| *known != net);
        self.all.truncate(MOST_LEASES - 1);
        self.all.insert(0, (net, until));
    }

    /// Waits for whoever contests `address`, unless the guest has it.
    fn ask(&mut self, address: Ipv6Addr) {
        let net = IpNet::from(IpAddr::from(address));
        if self.all.iter().any(|(known, _)| *known == net) {
            return;
        }
        self.asked.retain(|(known, _)| *known != address);
        self.asked.truncate(MOST_ASKED - 1);
        self.asked.insert(0, (address, Instant::now() + SILENCE));
    }

    /// Forgets what has ended, and gives the guest what it has asked for and nobody has contested. True where it is more then.
    fn settle(&mut self, now: Instant) -> bool {
        self.all
            .retain(|(_, until)| until.is_none_or(|until| until > now));
        let (free, asked) = self.asked.iter().partition(|(_, from)| *from <= now);
        self.asked = asked;
        let free: Vec<(Ipv6Addr, Instant)> = free;
        for (address, _) in &free {
            let address = IpAddr::from(*address);
            let mut prefixes = self.all.iter().filter(|(net, _)| net.contains(&address));
            let until = prefixes.find_map(|(_, until)| *until);
            self.put(address.into(), until);
        }
        !free.is_empty()
    }

    /// When [`Self::settle`] has something to do next.
    fn next_change(&self) -> Option<Instant> {
        let ends = self.all.iter().filter_map(|(_, until)| *until);
        ends.chain(self.asked.iter().map(|(_, from)| *from)).min()
    }

    /// Writes them down for the next process.
    fn keep(&self) {
        let Some(file) = &self.file else { return };
        let (now, clock) = (Instant::now(), since_boot());
        let lasting = self.all.iter().map(|(net, until)| {
            let left = until.map_or(FOR_EVER, |until| until.saturating_duration_since(now));
            (*net, clock + left)
        });
        if let Err(error) = file.write(lasting) {
            tracing::warn!("what the guest was given can't be kept: {error}");
        }
    }
}

impl Guard {
    /// That of a NIC, which keeps what the guest is given in `file`; its clones are of the same one's pairs.
    pub fn new(policy: Policy, file: Option<LeaseFile>) -> Self {
        Self {
            nic: Arc::new(Nic {
                policy,
                leases: Mutex::new(Leases::of(file)),
                generation: AtomicU64::new(1),
                asks: AtomicBool::new(false),
            }),
            leased: Vec::new(),
            generation: 0,
            until: None,
            known: Cell::default(),
        }
    }

    /// Looks at what the NIC's other pairs have heard, once for many frames.
    pub fn refresh(&mut self) {
        let generation = self.nic.generation.load(Ordering::Acquire);
        let is_over = self.until.is_some_and(|until| until <= Instant::now());
        if generation == self.generation && !is_over {
            return;
        }
        let mut leases = self.nic.leases();
        let mut generation = generation;
        if leases.settle(Instant::now()) {
            leases.keep();
            generation = self.nic.changed();
        }
        self.nic
            .asks
            .store(!leases.asked.is_empty(), Ordering::Relaxed);
        self.leased = leases.all.iter().map(|(net, _)| *net).collect();
        self.until = leases.next_change();
        self.known.take();
        self.generation = generation;
    }

    /// Whether `frame` may pass. Most frames are ordinary packets from where the one before came from, and that is seen at a
    /// glance.
    ///
    /// # Errors
    /// Why it may not.
    pub fn judge(&self, frame: &Frame<'_>) -> Result<(), Reason> {
        let Some(source) = frame.ordinary_source() else {
            return self.examine(frame);
        };
        let mut known = self.known.get();
        let before = &mut known[usize::from(source.is_ipv6())];
        if *before == Some(source) && frame.comes_from(self.nic.policy.mac) {
            return Ok(());
        }
        self.examine(frame)?;
        // It has passed, and so its source is the guest's.
        *before = Some(source);
        self.known.set(known);
        Ok(())
    }

    /// As [`Self::judge`], whatever has passed before.
    ///
    /// # Errors
    /// Why it may not.
    pub fn examine(&self, frame: &Frame<'_>) -> Result<(), Reason> {
        frame.judge(Rights {
            policy: &self.nic.policy,
            leased: &self.leased,
        })?;
        if self.nic.policy.addresses.is_some()
            && let Some(address) = frame.question()
        {
            self.nic.leases().ask(address);
            self.nic.asks.store(true, Ordering::Relaxed);
            self.nic.changed();
        }
        Ok(())
    }

    /// Whether a frame towards the guest that begins so is to be [heard](Self::hear).
    pub fn wants_to_hear(&self, glance: &[u8; GLANCE]) -> bool {
        (self.nic.policy.learns && lease::may_give(glance))
            || (self.nic.asks.load(Ordering::Relaxed) && lease::may_contest(glance))
    }

    /// Learns what the guest is given by a frame that begins so, or is not to have.
    pub fn hear(&self, frame: &[u8]) {
        let nic = &self.nic;
        let contested = lease::contested(frame, nic.policy.mac);
        let given = match nic.policy.learns {
            true => lease::leases(frame, nic.policy.mac),
            false => Vec::new(),
        };
        if given.is_empty() && contested.is_none() {
            return;
        }
        let mut leases = nic.leases();
        leases
            .asked
            .retain(|(address, _)| Some(*address) != contested);
        let is_more = !given.is_empty();
        for lease in given {
            leases.add(lease);
        }
        if is_more {
            leases.keep();
        }
        nic.changed();
    }
}

impl Nic {
    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has every pair look at the leases anew; gives the new generation.
    fn changed(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Release) + 1
    }
}
