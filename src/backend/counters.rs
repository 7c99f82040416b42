//! What a queue pair counts. Plain numbers, owned by the worker that adds to them.

use std::fmt;
use std::marker::PhantomData;

use super::chain::BadChain;
use super::guard::Reason;

/// What is counted by kind: an enum whose `N` values are numbered from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByKind<K, const N: usize> {
    counts: [u64; N],
    kind: PhantomData<K>,
}

/// Chains that broke a rule, by kind.
pub type BadChains = ByKind<BadChain, { BadChain::ALL.len() }>;

/// Frames that the guard has refused, by reason.
pub type Refused = ByKind<Reason, { Reason::ALL.len() }>;

/// A kind that things are counted by.
pub trait Kind {
    /// Its number.
    fn number(self) -> usize;
}

impl Kind for BadChain {
    fn number(self) -> usize {
        self as usize
    }
}

impl Kind for Reason {
    fn number(self) -> usize {
        self as usize
    }
}

impl<K, const N: usize> Default for ByKind<K, N> {
    fn default() -> Self {
        Self {
            counts: [0; N],
            kind: PhantomData,
        }
    }
}

impl<K: Kind, const N: usize> ByKind<K, N> {
    /// Counts one.
    pub fn add(&mut self, kind: K) {
        self.counts[kind.number()] += 1;
    }

    /// How many of this kind.
    pub fn of(&self, kind: K) -> u64 {
        self.counts[kind.number()]
    }

    /// How many of any kind.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// One direction of a queue pair since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Frames moved.
    pub frames: u64,
    /// Bytes of those, without virtio-net headers.
    pub bytes: u64,
    /// Those among the frames that are to be segmented by whoever comes next (GSO).
    pub gso_frames: u64,
    /// Frames dropped since the tap did not take them, or the receiveq could not hold them.
    pub dropped: u64,
    /// Frames dropped since they were larger than the MTU.
    pub over_mtu: u64,
    /// Frames that the guard has refused.
    pub refused: Refused,
    /// Frames of a disabled transmitq, consumed and dropped.
    pub disabled: u64,
    /// Chains given back unused.
    pub bad_chains: BadChains,
    /// Looks at a ring whose avail index made no sense.
    pub bad_index: u64,
    /// Kicks taken.
    pub kicks: u64,
    /// Notifications sent to the driver.
    pub calls: u64,
    /// Times that the worker looked for more instead of going to sleep.
    pub spins: u64,
    /// Reads and writes of the tap, successful or not.
    pub syscalls: u64,
    /// Times that the rate limit ended a burst, or did not let one begin.
    pub throttled: u64,
}

impl Counters {
    /// Chains and frames that were dealt with in any way.
    pub fn taken(&self) -> u64 {
        self.frames
            + self.dropped
            + self.over_mtu
            + self.refused.total()
            + self.disabled
            + self.bad_chains.total()
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "frames {} bytes {} gso {} dropped {} over_mtu {} refused {} disabled {} bad_chains {} bad_index {} kicks {} \
             calls {} spins {} syscalls {} throttled {}",
            self.frames,
            self.bytes,
            self.gso_frames,
            self.dropped,
            self.over_mtu,
            self.refused.total(),
            self.disabled,
            self.bad_chains.total(),
            self.bad_index,
            self.kicks,
            self.calls,
            self.spins,
            self.syscalls,
            self.throttled,
        )
    }
}
