//! A burst's view of a virtqueue: split (virtio 1.3 §2.7) or packed (§2.8), behind one interface.
//!
//! A [`Ring`] is opened for one burst and dropped after it: any number of [`next`](Ring::next) and
//! [`complete`](Ring::complete), one [`publish`](Ring::publish) with one decision whether the driver is to be
//! notified. Between bursts only a [`RingPosition`] is kept, so nothing outlives the memory table. Looking,
//! publishing and deciding once a burst instead of once a frame is worth a factor of two.
//!
//! Chains are completed strictly in the order in which they became available: a front-end that reconnects
//! takes the used index for the position to go on from, and it is all that IN_ORDER asks for.
//!
//! Touches guest memory only, by volatile and atomic access. The driver may write anything there at any
//! time, so every value is read once and checked.

mod packed;
mod split;

use std::sync::atomic::Ordering;

use thiserror::Error;
use vm_memory::{AtomicAccess, Bytes, GuestAddress, GuestMemoryBackend};

use super::chain::{BadChain, Direction};
use super::features::Features;
use super::memory::{Finder, Mem, Slice, prefetch, prefetch_for_write};
use packed::{PackedPosition, PackedRing};
use split::{SplitPosition, SplitRing};

/// The largest ring that is served, in descriptors.
pub const MAX_SIZE: u16 = 1024;

/// Bytes of a descriptor, in either kind of ring.
const DESC: usize = 16;

/// While a chain is worked on, the buffer of the one so far behind it is fetched from the guest's CPU, and the descriptor of the
/// one twice as far.
const AHEAD: u16 = 8;

/// Why a ring can't be started.
#[derive(Debug, Error)]
pub enum RingError {
    /// A split ring's size is not a power of two up to [`MAX_SIZE`], or a part is not aligned as it must be.
    #[error("vring size or address is invalid: {0}")]
    Invalid(#[from] virtio_queue::Error),
    /// A packed ring's size or base is out of range.
    #[error("packed vring: {0} is out of range")]
    Range(u32),
    /// A part of a packed ring is not aligned as it must be.
    #[error("packed vring part at guest address {0:#x} is not aligned")]
    Unaligned(u64),
    /// A part of the ring lies outside the memory table.
    #[error("vring part at guest address {0:#x} lies outside guest memory")]
    OutsideMemory(u64),
}

/// Where a ring lies and which options it uses; checked against the memory table it was made with.
#[derive(Debug, Clone, Copy)]
pub struct RingLayout {
    size: u16,
    /// Descriptor table, avail ring, used ring; or descriptor ring, driver and device event suppression.
    parts: [GuestAddress; 3],
    event_idx: bool,
    indirect: bool,
    packed: bool,
}

impl RingLayout {
    /// A ring of `size` descriptors whose three parts lie at these guest-physical addresses.
    ///
    /// # Errors
    /// See [`RingError`].
    pub fn new(
        mem: &Mem,
        size: u16,
        parts: [GuestAddress; 3],
        features: Features,
    ) -> Result<Self, RingError> {
        let layout = Self {
            size,
            parts,
            event_idx: features.event_idx(),
            indirect: features.indirect(),
            packed: features.packed_ring(),
        };
        if layout.packed {
            packed::check(&layout)?;
        } else {
            split::check(&layout)?;
        }
        layout.slices(mem)?;
        Ok(layout)
    }

    fn slices<'m>(&self, mem: &'m Mem) -> Result<[Slice<'m>; 3], RingError> {
        let lens = if self.packed {
            packed::part_lens(self)
        } else {
            split::part_lens(self)
        };
        let slice = |part: usize| {
            let addr = self.parts[part];
            mem.get_slice(addr, lens[part])
                .map_err(|_| RingError::OutsideMemory(addr.0))
        };
        Ok([slice(0)?, slice(1)?, slice(2)?])
    }
}

/// How far a ring has been worked through.
#[derive(Debug, Clone, Copy)]
pub enum RingPosition {
    /// Of a split ring.
    Split(SplitPosition),
    /// Of a packed ring.
    Packed(PackedPosition),
}

impl RingPosition {
    /// Where to go on: `base` as SET_VRING_BASE gives it.
    ///
    /// # Errors
    /// Where the base is out of the ring's range, or the ring outside the memory table.
    pub fn resume(mem: &Mem, layout: &RingLayout, base: u32) -> Result<Self, RingError> {
        if layout.packed {
            return Ok(Self::Packed(PackedPosition::resume(layout, base)?));
        }
        let [_, _, used] = layout.slices(mem)?;
        Ok(Self::Split(SplitPosition::resume(&used, base)?))
    }

    /// As [`Self::resume`] where a back-end died at the ring, and the front-end may not know how far it came. It does for a
    /// split ring, whose used index is in memory.
    ///
    /// # Errors
    /// As there.
    pub fn recover(mem: &Mem, layout: &RingLayout, base: u32) -> Result<Self, RingError> {
        if !layout.packed {
            return Self::resume(mem, layout, base);
        }
        let parts = layout.slices(mem)?;
        Ok(Self::Packed(PackedPosition::recover(layout, parts, base)?))
    }

    /// What GET_VRING_BASE answers.
    pub fn base(&self) -> u32 {
        match self {
            Self::Split(position) => position.base(),
            Self::Packed(position) => position.base(),
        }
    }
}

/// The driver broke the ring itself, not only a chain: no more can be taken from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

/// A chain that was taken from a ring and is to be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// The index of its head, or its buffer id in a packed ring.
    id: u16,
    /// How many descriptors of the ring itself it takes up: 1 in a split ring, where others are linked.
    slots: u16,
}

/// A ring during one burst.
#[derive(Debug)]
pub enum Ring<'m> {
    /// Split.
    Split(SplitRing<'m>),
    /// Packed.
    Packed(PackedRing<'m>),
}

impl<'m> Ring<'m> {
    /// Opens the ring for a burst.
    ///
    /// # Errors
    /// [`Broken`]; it stays broken until it is set up anew.
    ///
    /// # Panics
    /// Where `layout` was made with other memory than `mem`, or `position` with another layout.
    pub fn open(
        mem: &'m Mem,
        layout: RingLayout,
        position: &'m mut RingPosition,
    ) -> Result<Self, Broken> {
        let parts = layout
            .slices(mem)
            .expect("a layout is checked against the memory it is used with");
        match position {
            RingPosition::Split(position) => {
                SplitRing::open(mem, layout, parts, position).map(Self::Split)
            }
            RingPosition::Packed(position) => {
                Ok(Self::Packed(PackedRing::open(mem, layout, parts, position)))
            }
        }
    }

    /// The next available chain, with the bytes its buffers have, which are appended to `buffers`; or with the rule it
    /// breaks, and nothing is appended. `None` at the end of the burst.
    ///
    /// What it returns stays in registers where this is inlined, with all that leads there. A caller that read it from memory, some
    /// fields at once, would wait each time until the CPU's stores of each of them are done: a hundredth of a short frame's time.
    #[inline(always)]
    pub fn next(
        &mut self,
        direction: Direction,
        buffers: &mut Vec<Slice<'m>>,
    ) -> Option<(Chain, Result<usize, BadChain>)> {
        let before = buffers.len();
        let next = match self {
            Self::Split(ring) => ring.next(direction, buffers),
            Self::Packed(ring) => ring.next(direction, buffers),
        };
        if let Some((_, Err(_))) = next {
            buffers.truncate(before);
        }
        next
    }

    /// Makes the chain that was taken last, and not completed, available again.
    pub fn undo(&mut self, chain: Chain) {
        match self {
            Self::Split(ring) => ring.undo(),
            Self::Packed(ring) => ring.undo(chain),
        }
    }

    /// Gives a chain back with `len` bytes written into it; seen by the driver after [`Self::publish`].
    pub fn complete(&mut self, chain: Chain, len: u32) {
        match self {
            Self::Split(ring) => ring.complete(chain, len),
            Self::Packed(ring) => ring.complete(chain, len),
        }
    }

    /// Shows the driver what was completed; true if it wants to be notified of it (virtio 1.3 §2.7.7, §2.8.10).
    #[must_use = "the driver sleeps until it is notified"]
    pub fn publish(&mut self) -> bool {
        match self {
            Self::Split(ring) => ring.publish(),
            Self::Packed(ring) => ring.publish(),
        }
    }

    /// Asks the driver not to kick while work goes on anyway. A hint: a kick may still come.
    pub fn disable_kicks(&mut self) {
        match self {
            Self::Split(ring) => ring.disable_kicks(),
            Self::Packed(ring) => ring.disable_kicks(),
        }
    }

    /// Asks for a kick at the next chain that becomes available; true if some came while asking, and then
    /// whoever asks must look again instead of sleeping (virtio 1.3 §2.7.10, §2.8.10).
    ///
    /// The event index is where this burst found the driver, not the next chain to be taken: where chains are
    /// left over because they are too few for a frame, the driver has long passed that one, and a kick would never
    /// come.
    #[must_use = "what came meanwhile brings no kick"]
    pub fn enable_kicks(&mut self) -> bool {
        match self {
            Self::Split(ring) => ring.enable_kicks(),
            Self::Packed(ring) => ring.enable_kicks(),
        }
    }
}

/// Whether going from `old` to `new` passes `event` (virtio 1.3 §2.7.10.1, `vring_need_event`).
pub fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Has descriptor `index` of `table`, if there is one, fetched.
fn fetch_descriptor(table: &Slice<'_>, index: u16) {
    if let Ok(descriptor) = table.subslice(usize::from(index) * DESC, DESC) {
        prefetch(&descriptor);
    }
}

/// Has the buffer of a receiveq that is at `addr`, if there is memory, fetched.
fn fetch_buffer(mem: &Finder<'_>, addr: GuestAddress, len: u32) {
    const SHORT: usize = 128; // most frames are
    if let Some(buffer) = mem.slice(addr, SHORT.min(len as usize)) {
        prefetch_for_write(&buffer);
    }
}

/// Reads a field of a ring. Offsets are computed from the size the slice was made with, so they are in bounds, and
/// rings are aligned to more than a field, so they are aligned.
fn load<T: AtomicAccess>(part: &Slice<'_>, offset: usize) -> T {
    part.load(offset, Ordering::Relaxed)
        .expect("ring fields are in bounds and aligned")
}

fn store<T: AtomicAccess>(part: &Slice<'_>, offset: usize, value: T) {
    part.store(value, offset, Ordering::Relaxed)
        .expect("ring fields are in bounds and aligned");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_passed_once_also_over_the_wrap() {
        assert!(passes(5, 5, 6));
        assert!(!passes(5, 6, 7));
        assert!(!passes(5, 4, 5));
        assert!(passes(5, 0, 64));
        assert!(passes(0xffff, 0xfff0, 0x10));
        assert!(!passes(0x20, 0xfff0, 0x10));
    }
}
