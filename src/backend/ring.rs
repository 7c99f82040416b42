//! A burst's view of a split virtqueue (virtio 1.3 §2.7).
//!
//! A [`SplitRing`] is opened for one burst and dropped after it: one look at the avail index, any number of
//! [`pop`](SplitRing::pop) and [`complete`](SplitRing::complete), one [`publish`](SplitRing::publish) with one
//! decision whether the driver is to be notified. Between bursts only a [`RingPosition`] is kept, so nothing
//! outlives the memory table. Looking, publishing and deciding once a burst instead of once a frame is worth
//! a factor of two.
//!
//! Chains are completed strictly in the order in which they became available: a front-end that reconnects
//! takes the used index for the position to go on from.
//!
//! Touches guest memory only, by volatile and atomic access. The driver may write anything there at any
//! time, so every value is read once and checked.

use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::features::Features;

/// The largest ring that is served, in descriptors.
pub const MAX_SIZE: u16 = 1024;

/// Bytes of a descriptor, of `flags` and `idx` before a ring, of an avail entry, of a used element, and of the
/// event index behind a ring (virtio 1.3 §2.7.5, §2.7.6, §2.7.8).
const DESC: usize = 16;
const RING_HEADER: usize = 4;
const AVAIL_ENTRY: usize = 2;
const USED_ELEM: usize = 8;
const EVENT: usize = 2;

/// Offsets of `flags` and `idx` in both rings.
const FLAGS: usize = 0;
const IDX: usize = 2;

/// Why a ring can't be started.
#[derive(Debug, Error)]
pub enum RingError {
    /// The size is not a power of two between 1 and [`MAX_SIZE`], or a part is not aligned as it must be.
    #[error("vring size or address is invalid: {0}")]
    Invalid(#[from] virtio_queue::Error),
    /// A part of the ring lies outside the memory table.
    #[error("vring part at guest address {0:#x} lies outside guest memory")]
    OutsideMemory(u64),
}

/// Where a ring lies and which options it uses; checked against the memory table it was made with.
#[derive(Debug, Clone, Copy)]
pub struct RingLayout {
    size: u16,
    desc: GuestAddress,
    avail: GuestAddress,
    used: GuestAddress,
    event_idx: bool,
    indirect: bool,
}

impl RingLayout {
    /// A ring of `size` descriptors at the given guest-physical addresses.
    ///
    /// # Errors
    /// See [`RingError`].
    pub fn new(
        mem: &GuestMemoryMmap,
        size: u16,
        [desc, avail, used]: [GuestAddress; 3],
        features: Features,
    ) -> Result<Self, RingError> {
        let mut checked = Queue::new(MAX_SIZE)?;
        checked.try_set_size(size)?;
        checked.try_set_desc_table_address(desc)?;
        checked.try_set_avail_ring_address(avail)?;
        checked.try_set_used_ring_address(used)?;
        let layout = Self {
            size,
            desc,
            avail,
            used,
            event_idx: features.event_idx(),
            indirect: features.indirect(),
        };
        layout.slices(mem)?;
        Ok(layout)
    }

    /// The descriptor table, avail ring and used ring.
    fn slices<'m>(&self, mem: &'m GuestMemoryMmap) -> Result<[VolatileSlice<'m>; 3], RingError> {
        let size = usize::from(self.size);
        let event = if self.event_idx { EVENT } else { 0 };
        let slice = |addr: GuestAddress, len| {
            mem.get_slice(addr, len)
                .map_err(|_| RingError::OutsideMemory(addr.0))
        };
        Ok([
            slice(self.desc, size * DESC)?,
            slice(self.avail, RING_HEADER + size * AVAIL_ENTRY + event)?,
            slice(self.used, RING_HEADER + size * USED_ELEM + event)?,
        ])
    }
}

/// How far a ring has been worked through; all indices run freely and wrap at 2¹⁶.
#[derive(Debug, Clone, Copy, Default)]
pub struct RingPosition {
    next_avail: u16,
    next_used: u16,
    /// The used index at the last look at whether to notify; `None` before the first.
    judged_used: Option<u16>,
    /// Kicks are switched off by flag.
    kicks_off: bool,
}

impl RingPosition {
    /// Where to go on: `base` as SET_VRING_BASE gives it, and the used index as it stands in the ring.
    ///
    /// # Errors
    /// Where the ring lies outside the memory table.
    pub fn resume(
        mem: &GuestMemoryMmap,
        layout: &RingLayout,
        base: u16,
    ) -> Result<Self, RingError> {
        let [_, _, used] = layout.slices(mem)?;
        Ok(Self {
            next_avail: base,
            next_used: load(&used, IDX),
            ..Self::default()
        })
    }

    /// What GET_VRING_BASE answers: the next avail entry to be taken.
    pub fn base(&self) -> u16 {
        self.next_avail
    }
}

/// The avail index is further ahead than the ring is long: the driver has lost its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadIndex;

/// A ring during one burst.
#[derive(Debug)]
pub struct SplitRing<'m> {
    desc: VolatileSlice<'m>,
    avail: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
    layout: RingLayout,
    position: &'m mut RingPosition,
    /// The avail index as seen at the start of the burst.
    end: u16,
    /// The used index as the driver sees it.
    published: u16,
}

impl<'m> SplitRing<'m> {
    /// Looks at the avail index and opens the ring for a burst.
    ///
    /// # Errors
    /// [`BadIndex`] where the driver broke the ring; it stays broken until it is set up anew.
    ///
    /// # Panics
    /// Where `layout` was made with other memory than `mem`.
    pub fn open(
        mem: &'m GuestMemoryMmap,
        layout: RingLayout,
        position: &'m mut RingPosition,
    ) -> Result<Self, BadIndex> {
        let [desc, avail, used] = layout
            .slices(mem)
            .expect("a layout is checked against the memory it is used with");
        let end: u16 = load(&avail, IDX);
        fence(Ordering::Acquire); // entries and descriptors are read after the index that covers them
        if end.wrapping_sub(position.next_avail) > layout.size {
            return Err(BadIndex);
        }
        let published = position.next_used;
        Ok(Self {
            desc,
            avail,
            used,
            layout,
            position,
            end,
            published,
        })
    }

    /// The head of the next available chain, as the driver wrote it; `None` at the end of the burst.
    pub fn pop(&mut self) -> Option<u16> {
        if self.position.next_avail == self.end {
            return None;
        }
        let slot = usize::from(self.position.next_avail % self.layout.size);
        self.position.next_avail = self.position.next_avail.wrapping_add(1);
        Some(load(&self.avail, RING_HEADER + slot * AVAIL_ENTRY))
    }

    /// Makes the last `count` chains that were popped and not completed available again.
    pub fn undo_pop(&mut self, count: u16) {
        self.position.next_avail = self.position.next_avail.wrapping_sub(count);
    }

    /// Gives a chain back with `len` bytes written into it; seen by the driver after [`Self::publish`].
    pub fn complete(&mut self, head: u16, len: u32) {
        let slot = usize::from(self.position.next_used % self.layout.size);
        let at = RING_HEADER + slot * USED_ELEM;
        store(&self.used, at, u32::from(head));
        store(&self.used, at + 4, len);
        self.position.next_used = self.position.next_used.wrapping_add(1);
    }

    /// Shows the driver what was completed; true if it wants to be notified of it (virtio 1.3 §2.7.7).
    #[must_use = "the driver sleeps until it is notified"]
    pub fn publish(&mut self) -> bool {
        let new = self.position.next_used;
        if new == self.published {
            return false;
        }
        self.published = new;
        fence(Ordering::Release); // elements before the index that covers them
        store(&self.used, IDX, new);
        fence(Ordering::SeqCst); // the index before the look at whether to notify
        let judged = self.position.judged_used.replace(new);
        if self.layout.event_idx {
            let used_event = load(&self.avail, self.avail_end());
            judged.is_none_or(|old| passes(used_event, old, new))
        } else {
            let flags: u16 = load(&self.avail, FLAGS);
            u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Asks the driver not to kick while work goes on anyway. A hint: a kick may still come.
    pub fn disable_kicks(&mut self) {
        if !self.layout.event_idx && !self.position.kicks_off {
            self.position.kicks_off = true;
            store(&self.used, FLAGS, VRING_USED_F_NO_NOTIFY as u16);
        }
    }

    /// Asks for a kick at the next chain that becomes available; true if some came while asking, and then
    /// whoever asks must look again instead of sleeping (virtio 1.3 §2.7.10).
    ///
    /// The event index is what the driver's index was at the start of the burst, not the next entry to be taken: where
    /// chains are left over because they are too few for a frame, the driver has long passed that entry, and a
    /// kick would never come.
    #[must_use = "what came meanwhile brings no kick"]
    pub fn enable_kicks(&mut self) -> bool {
        if self.layout.event_idx {
            store(
                &self.used,
                RING_HEADER + usize::from(self.layout.size) * USED_ELEM,
                self.end,
            );
        } else {
            self.position.kicks_off = false;
            store(&self.used, FLAGS, 0u16);
        }
        fence(Ordering::SeqCst); // the request before the second look
        let now: u16 = load(&self.avail, IDX);
        now != self.end
    }

    /// The descriptor table.
    pub fn descriptors(&self) -> VolatileSlice<'m> {
        self.desc
    }

    /// The number of descriptors, which is also the longest chain allowed (virtio 1.3 §2.7.5.2).
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// Whether indirect tables were negotiated.
    pub fn indirect(&self) -> bool {
        self.layout.indirect
    }

    /// Offset of `used_event`, behind the avail ring.
    fn avail_end(&self) -> usize {
        RING_HEADER + usize::from(self.layout.size) * AVAIL_ENTRY
    }
}

/// Whether going from `old` to `new` passes `event` (virtio 1.3 §2.7.10.1, `vring_need_event`).
fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Reads a field of a ring. Offsets are computed from the size the slice was made with, so they are in bounds, and
/// rings are aligned to more than a field, so they are aligned.
fn load<T: vm_memory::AtomicAccess>(part: &VolatileSlice<'_>, offset: usize) -> T {
    part.load(offset, Ordering::Relaxed)
        .expect("ring fields are in bounds and aligned")
}

fn store<T: vm_memory::AtomicAccess>(part: &VolatileSlice<'_>, offset: usize, value: T) {
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
