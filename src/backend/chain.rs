//! Descriptor chains: the rules they must keep, whichever kind of ring they come from (virtio 1.3 §2.7.5, §2.8).
//!
//! A guest may write anything into its descriptors, also while they are read. Every descriptor is copied once
//! and judged by that copy; every chain that breaks a rule gets a [`BadChain`] and no byte of it is touched.

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::memory::{Finder, Slice};
use crate::tap::MAX_BUFFERS;

/// Which way the bytes of a chain go. Net queues never mix them: transmitqs are read, receiveqs written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The device reads: the driver's frames.
    Readable,
    /// The device writes: room for frames.
    Writable,
}

/// The rule a chain breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadChain {
    /// A head or `next` beyond the table.
    Index,
    /// A buffer or table outside guest memory.
    Address,
    /// A descriptor of length zero.
    ZeroLength,
    /// A descriptor that is device-writable in a transmitq, or device-readable in a receiveq.
    Direction,
    /// More descriptors than the queue has, as a loop would give, or more buffers than a system call takes.
    TooLong,
    /// An indirect table that was not negotiated, is nested, has a next, is empty or of an odd length (§2.7.5.3.1).
    Indirect,
    /// Fewer bytes than the header and, in a transmitq, an Ethernet header; or more than any frame has.
    Size,
}

impl BadChain {
    /// All kinds, in the order they are counted in.
    pub const ALL: [Self; 7] = [
        Self::Index,
        Self::Address,
        Self::ZeroLength,
        Self::Direction,
        Self::TooLong,
        Self::Indirect,
        Self::Size,
    ];
}

/// Bytes of a descriptor.
const DESC: usize = 16;

/// A chain on its way from descriptors to buffers.
pub(super) struct Walk<'a, 'm> {
    mem: &'a Finder<'m>,
    direction: Direction,
    /// A table of descriptors may come: once, and last.
    indirect: bool,
    /// Descriptors that the chain may still have.
    left: u16,
    /// Contiguous pieces of memory so far; one is left for the receive path's own buffer.
    slices: usize,
    bytes: usize,
}

impl<'a, 'm> Walk<'a, 'm> {
    /// A chain of at most `longest` descriptors.
    pub(super) fn new(
        mem: &'a Finder<'m>,
        direction: Direction,
        indirect: bool,
        longest: u16,
    ) -> Self {
        Self {
            mem,
            direction,
            indirect,
            left: longest,
            slices: 0,
            bytes: 0,
        }
    }

    /// Adds the buffer that a descriptor stands for.
    #[inline(always)] // see `Ring::next`
    pub(super) fn buffer(
        &mut self,
        addr: GuestAddress,
        len: u32,
        writable: bool,
        buffers: &mut Vec<Slice<'m>>,
    ) -> Result<(), BadChain> {
        self.left = self.left.checked_sub(1).ok_or(BadChain::TooLong)?;
        if writable != (self.direction == Direction::Writable) {
            return Err(BadChain::Direction);
        }
        if len == 0 {
            return Err(BadChain::ZeroLength);
        }
        self.bytes += len as usize;
        match self.mem.slice_at_hand(addr, len as usize) {
            Some(slice) => self.push(slice, buffers),
            None => self.buffer_elsewhere(addr, len, buffers),
        }
    }

    /// Adds one that is in another region than the last, or goes over from one region into the next.
    #[cold]
    fn buffer_elsewhere(
        &mut self,
        addr: GuestAddress,
        len: u32,
        buffers: &mut Vec<Slice<'m>>,
    ) -> Result<(), BadChain> {
        if let Some(slice) = self.mem.slice(addr, len as usize) {
            return self.push(slice, buffers);
        }
        for slice in self.mem.mem().get_slices(addr, len as usize) {
            self.push(slice.map_err(|_| BadChain::Address)?, buffers)?;
        }
        Ok(())
    }

    fn push(&mut self, slice: Slice<'m>, buffers: &mut Vec<Slice<'m>>) -> Result<(), BadChain> {
        self.slices += 1;
        if self.slices >= MAX_BUFFERS {
            return Err(BadChain::TooLong);
        }
        buffers.push(slice);
        Ok(())
    }

    /// The indirect table that a descriptor stands for.
    pub(super) fn table(
        &mut self,
        addr: GuestAddress,
        len: u32,
        has_next: bool,
    ) -> Result<Slice<'m>, BadChain> {
        let len = len as usize;
        let allowed = std::mem::replace(&mut self.indirect, false);
        if !allowed || has_next || len == 0 || len % DESC != 0 {
            return Err(BadChain::Indirect);
        }
        self.mem.slice(addr, len).ok_or(BadChain::Address)
    }

    /// Which way the chain's queue goes.
    pub(super) fn direction(&self) -> Direction {
        self.direction
    }

    /// What all buffers are together.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
