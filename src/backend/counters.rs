//! What a queue pair counts. Plain numbers, owned by the worker that adds to them.

use std::fmt;

use super::chain::BadChain;

/// Chains that broke a rule, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BadChains([u64; BadChain::ALL.len()]);

impl BadChains {
    /// Counts one.
    pub fn add(&mut self, kind: BadChain) {
        self.0[kind as usize] += 1;
    }

    /// How many of this kind.
    pub fn of(&self, kind: BadChain) -> u64 {
        self.0[kind as usize]
    }

    /// How many of any kind.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
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
    pub refused: u64,
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
            + self.refused
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
            self.refused,
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
