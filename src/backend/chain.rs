//! Descriptor chains: from a head to the guest buffers it stands for (virtio 1.3 §2.7.5).
//!
//! A guest may write anything into its tables, also while they are read. Every descriptor is copied once and
//! judged by that copy; every chain that breaks a rule gets a [`BadChain`] and no byte of it is touched.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, VolatileMemory, VolatileSlice};

use super::ring::SplitRing;
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

/// Appends the buffers of the chain at `head` to `buffers`; returns how many bytes they are.
///
/// # Errors
/// The first rule broken; `buffers` is then as before.
pub fn walk<'m>(
    mem: &'m GuestMemoryMmap,
    ring: &SplitRing<'m>,
    head: u16,
    direction: Direction,
    buffers: &mut Vec<VolatileSlice<'m>>,
) -> Result<usize, BadChain> {
    let before = buffers.len();
    let walked = Walk {
        mem,
        direction,
        indirect: ring.indirect(),
        left: ring.size(),
        slices: 0,
        bytes: 0,
    }
    .run(ring.descriptors(), head, buffers);
    if walked.is_err() {
        buffers.truncate(before);
    }
    walked
}

struct Walk<'m> {
    mem: &'m GuestMemoryMmap,
    direction: Direction,
    /// A table of descriptors may come: once, and last.
    indirect: bool,
    /// Descriptors that the chain may still have.
    left: u16,
    /// Contiguous pieces of memory so far; one is left for the receive path's own buffer.
    slices: usize,
    bytes: usize,
}

impl<'m> Walk<'m> {
    fn run(
        mut self,
        mut table: VolatileSlice<'m>,
        head: u16,
        buffers: &mut Vec<VolatileSlice<'m>>,
    ) -> Result<usize, BadChain> {
        let mut index = head;
        loop {
            let descriptor = read(&table, index)?;
            if descriptor.refers_to_indirect_table() {
                table = self.enter(&descriptor)?;
                index = 0;
                continue;
            }
            self.add(&descriptor, buffers)?;
            if !descriptor.has_next() {
                return Ok(self.bytes);
            }
            index = descriptor.next();
        }
    }

    fn enter(&mut self, descriptor: &Descriptor) -> Result<VolatileSlice<'m>, BadChain> {
        let len = descriptor.len() as usize;
        let allowed = std::mem::replace(&mut self.indirect, false);
        if !allowed || descriptor.has_next() || len == 0 || len % size_of::<Descriptor>() != 0 {
            return Err(BadChain::Indirect);
        }
        self.mem
            .get_slice(descriptor.addr(), len)
            .map_err(|_| BadChain::Address)
    }

    fn add(
        &mut self,
        descriptor: &Descriptor,
        buffers: &mut Vec<VolatileSlice<'m>>,
    ) -> Result<(), BadChain> {
        self.left = self.left.checked_sub(1).ok_or(BadChain::TooLong)?;
        if descriptor.is_write_only() != (self.direction == Direction::Writable) {
            return Err(BadChain::Direction);
        }
        let len = descriptor.len() as usize;
        if len == 0 {
            return Err(BadChain::ZeroLength);
        }
        // A buffer may go over from one region into the next; nearly always this is one slice.
        for slice in self.mem.get_slices(descriptor.addr(), len) {
            self.slices += 1;
            if self.slices >= MAX_BUFFERS {
                return Err(BadChain::TooLong);
            }
            buffers.push(slice.map_err(|_| BadChain::Address)?);
        }
        self.bytes += len;
        Ok(())
    }
}

/// A copy of descriptor `index` of `table`.
fn read(table: &VolatileSlice<'_>, index: u16) -> Result<Descriptor, BadChain> {
    table
        .get_ref::<Descriptor>(usize::from(index) * size_of::<Descriptor>())
        .map(|descriptor| descriptor.load())
        .map_err(|_| BadChain::Index)
}
