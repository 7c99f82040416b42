//! A burst's view of a packed virtqueue (virtio 1.3 §2.8).
//!
//! One ring of descriptors serves both directions. The driver makes a chain available by setting the flags of its
//! first descriptor last; the device gives it back by overwriting the descriptor at its own position, and skips as
//! many as the chain had. Both keep a wrap counter, whose value in the flags says whose a descriptor is.
//!
//! A burst holds its used descriptors back to the end, and the flags of the first until all others are written: the
//! driver then sees the whole burst at once.
//!
//! A back-end that dies can't say how far it came, and with packed rings no front-end knows: the split ring's used index
//! has no counterpart in memory. So the place is kept in the device's event structure, in the field that means something
//! to the driver only together with [`VRING_PACKED_EVENT_FLAG_DESC`], and it is there that the next kick is asked for;
//! a kick that is wanted elsewhere is asked for without a place. [`PackedPosition::recover`] reads it.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE, VRING_PACKED_EVENT_FLAG_ENABLE,
};
use virtio_queue::desc::packed::Descriptor;
use vm_memory::VolatileMemory;

use super::super::chain::{BadChain, Direction, Walk};
use super::super::memory::{Finder, Mem, Slice};
use super::{
    AHEAD, Chain, DESC, MAX_SIZE, RingError, RingLayout, fetch_buffer, fetch_descriptor, load,
    passes, store,
};

/// Offsets in a descriptor (§2.8.13).
const LEN: usize = 8;
const ID: usize = 12;
const FLAGS: usize = 14;

/// The flags by which driver and device tell whose a descriptor is (§2.8.1).
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// An event suppression structure: offset and wrap counter, then flags (§2.8.14).
const EVENT_STRUCT: usize = 4;
const EVENT_OFF_WRAP: usize = 0;
const EVENT_FLAGS: usize = 2;

/// Whether the ring's size and alignment are those of a packed ring; any size will do (§2.8.10.1).
pub(super) fn check(layout: &RingLayout) -> Result<(), RingError> {
    if !(1..=MAX_SIZE).contains(&layout.size) {
        return Err(RingError::Range(layout.size.into()));
    }
    for (part, align) in layout.parts.iter().zip([DESC, EVENT_STRUCT, EVENT_STRUCT]) {
        if part.0 % align as u64 != 0 {
            return Err(RingError::Unaligned(part.0));
        }
    }
    Ok(())
}

/// The lengths in bytes of descriptor ring, driver and device event suppression.
pub(super) fn part_lens(layout: &RingLayout) -> [usize; 3] {
    [usize::from(layout.size) * DESC, EVENT_STRUCT, EVENT_STRUCT]
}

/// A place in the ring and the wrap counter there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    /// From 15 bits of index and one of wrap counter, as vhost-user and the event structures have it.
    fn decode(bits: u16, size: u16) -> Option<Self> {
        let index = bits & 0x7fff;
        (index < size).then_some(Self {
            index,
            wrap: bits >> 15 == 1,
        })
    }

    fn encode(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    fn advance(&mut self, slots: u16, size: u16) {
        self.index += slots;
        if self.index >= size {
            self.index -= size;
            self.wrap = !self.wrap;
        }
    }

    fn retreat(&mut self, slots: u16, size: u16) {
        if self.index < slots {
            self.index += size;
            self.wrap = !self.wrap;
        }
        self.index -= slots;
    }
}

/// How far a packed ring has been worked through.
#[derive(Debug, Clone, Copy)]
pub struct PackedPosition {
    avail: Place,
    used: Place,
    /// Where `used` was at the last look at whether to notify; `None` before the first.
    judged_used: Option<u16>,
    kicks_off: bool,
}

impl PackedPosition {
    /// From avail in the low half of `base` (vhost-user "SET_VRING_BASE"). The high half should be used, but DPDK leaves it
    /// out; and as chains are completed in order and none stays under way, the two are the same.
    pub(super) fn resume(layout: &RingLayout, base: u32) -> Result<Self, RingError> {
        let place = Place::decode(base as u16, layout.size).ok_or(RingError::Range(base))?;
        Ok(Self {
            avail: place,
            used: place,
            judged_used: None,
            kicks_off: false,
        })
    }

    /// As [`Self::resume`] where a back-end of this program died at the ring and `base` is older than that: from where it
    /// left off, if there is a ring that it has left.
    pub(super) fn recover(
        layout: &RingLayout,
        parts: [Slice<'_>; 3],
        base: u32,
    ) -> Result<Self, RingError> {
        let [ring, _, device_event] = parts;
        let left = Left {
            ring,
            size: layout.size,
            indirect: layout.indirect,
        };
        let place = recorded(&device_event, layout.size).and_then(|place| left.go_on_from(place));
        match place {
            Some(place) => Self::resume(layout, place.encode().into()),
            None => Self::resume(layout, base),
        }
    }

    pub(super) fn base(&self) -> u32 {
        u32::from(self.avail.encode()) | u32::from(self.used.encode()) << 16
    }
}

/// The place that the device's event structure holds; `None` if nobody has written it since the driver cleared it.
fn recorded(device_event: &Slice<'_>, size: u16) -> Option<Place> {
    let off_wrap: u16 = load(device_event, EVENT_OFF_WRAP);
    let flags: u16 = load(device_event, EVENT_FLAGS);
    let written = off_wrap != 0 || flags != 0;
    written.then(|| Place::decode(off_wrap, size))?
}

/// A ring whose device died.
struct Left<'m> {
    ring: Slice<'m>,
    size: u16,
    indirect: bool,
}

impl Left<'_> {
    /// Where to go on if the dead device began its last burst at `place`, or ended it there; `None` if it can't have done
    /// either, for there is no end to what was used. It may have died while it wrote the burst, which is then finished, or
    /// before it wrote the place down.
    fn go_on_from(&self, mut place: Place) -> Option<Place> {
        if self.is_available(place) && self.is_used(self.after_chain(place)) {
            // All but the first descriptor's flags are there, and its length was written before any other's flags.
            let at = usize::from(place.index) * DESC;
            let len: u32 = load(&self.ring, at + LEN);
            store(&self.ring, at + FLAGS, used_flags(place, len));
        }
        for _ in 0..self.size {
            if !self.is_used(place) {
                return Some(place);
            }
            place = self.after_used(place);
        }
        None
    }

    fn flags(&self, place: Place) -> u16 {
        load(&self.ring, usize::from(place.index) * DESC + FLAGS)
    }

    fn is_available(&self, place: Place) -> bool {
        is_available(self.flags(place), place.wrap)
    }

    fn is_used(&self, place: Place) -> bool {
        let mark = used_flags(place, 0);
        self.flags(place) & (AVAIL | USED) == mark
    }

    /// The place after the available chain at `place`.
    fn after_chain(&self, mut place: Place) -> Place {
        for _ in 1..self.size {
            if u32::from(self.flags(place)) & VRING_DESC_F_NEXT == 0 {
                break;
            }
            place.advance(1, self.size);
        }
        place.advance(1, self.size);
        place
    }

    /// The place after the used chain at `place`. Only its first descriptor was overwritten; the others, if any, look
    /// available still, with its id. With indirect tables there is but one.
    fn after_used(&self, mut place: Place) -> Place {
        let id = |place: Place| load::<u16>(&self.ring, usize::from(place.index) * DESC + ID);
        let first = id(place);
        place.advance(1, self.size);
        for _ in 1..self.size {
            if self.indirect || !self.is_available(place) || id(place) != first {
                break;
            }
            place.advance(1, self.size);
        }
        place
    }
}

/// Whether a descriptor with these flags is the device's, on the lap of that wrap counter (§2.8.1).
fn is_available(flags: u16, wrap: bool) -> bool {
    (flags & AVAIL != 0) == wrap && (flags & USED != 0) != wrap
}

/// The flags of a descriptor that gives a chain back at `place`, `len` bytes written.
fn used_flags(place: Place, len: u32) -> u16 {
    let flags = if place.wrap { AVAIL | USED } else { 0 };
    if len > 0 {
        flags | VRING_DESC_F_WRITE as u16 // §2.8.4: `len` counts
    } else {
        flags
    }
}

/// A chain that is to be given back.
#[derive(Debug)]
struct Used {
    place: Place,
    id: u16,
    len: u32,
}

/// A packed ring during one burst.
#[derive(Debug)]
pub struct PackedRing<'m> {
    mem: Finder<'m>,
    ring: Slice<'m>,
    driver_event: Slice<'m>,
    device_event: Slice<'m>,
    layout: RingLayout,
    position: &'m mut PackedPosition,
    /// The furthest place that was seen not to be available yet.
    end: Place,
    /// What the burst gives back.
    used: Vec<Used>,
}

impl<'m> PackedRing<'m> {
    pub(super) fn open(
        mem: &'m Mem,
        layout: RingLayout,
        [ring, driver_event, device_event]: [Slice<'m>; 3],
        position: &'m mut PackedPosition,
    ) -> Self {
        Self {
            mem: Finder::new(mem),
            ring,
            driver_event,
            device_event,
            layout,
            end: position.avail,
            position,
            used: Vec::new(),
        }
    }

    #[inline(always)] // see `Ring::next`
    pub(super) fn next(
        &mut self,
        direction: Direction,
        buffers: &mut Vec<Slice<'m>>,
    ) -> Option<(Chain, Result<usize, BadChain>)> {
        let place = self.position.avail;
        if !self.is_available(place) {
            self.end = place;
            return None;
        }
        self.look_ahead(direction);
        fence(Ordering::Acquire); // the chain is read after the flags that make it available
        let (chain, walked) = self.walk(place.index, direction, buffers);
        self.position.avail.advance(chain.slots, self.layout.size);
        Some((chain, walked))
    }

    /// Has what is needed for chains that come after the next one fetched.
    fn look_ahead(&self, direction: Direction) {
        let at = |ahead| self.after(self.position.avail.index, ahead);
        fetch_descriptor(&self.ring, at(2 * AHEAD));
        if direction == Direction::Writable {
            // What is not available holds an old buffer, which is as likely to come back as any.
            let descriptor = self.read(at(AHEAD));
            fetch_buffer(&self.mem, descriptor.addr(), descriptor.len());
        }
    }

    /// The index `slots` behind `index`, round the ring where it ends. (A CPU divides slower than all the rest of this takes.)
    fn after(&self, index: u16, slots: u16) -> u16 {
        let size = self.layout.size;
        let mut index = index + slots;
        while index >= size {
            index -= size;
        }
        index
    }

    /// Whether the descriptor at `place` is the device's (§2.8.1).
    fn is_available(&self, place: Place) -> bool {
        let flags = load(&self.ring, usize::from(place.index) * DESC + FLAGS);
        is_available(flags, place.wrap)
    }

    /// Reads the chain that starts at `index`. The end of a chain that breaks a rule is looked for all the same: its
    /// last descriptor has its id. One that goes round the whole ring is cut off there.
    #[inline(always)]
    fn walk(
        &self,
        index: u16,
        direction: Direction,
        buffers: &mut Vec<Slice<'m>>,
    ) -> (Chain, Result<usize, BadChain>) {
        let size = self.layout.size;
        let mut walk = Walk::new(&self.mem, direction, self.layout.indirect, size);
        let mut result = Ok(());
        let mut slots = 0;
        loop {
            let descriptor = self.read(self.after(index, slots));
            slots += 1;
            let more = has(&descriptor, VRING_DESC_F_NEXT);
            result = result.and_then(|()| self.add(&mut walk, &descriptor, more, buffers));
            if more && slots == size {
                result = Err(BadChain::TooLong);
            }
            if !more || slots == size {
                let id = descriptor.id();
                return (Chain { id, slots }, result.map(|()| walk.bytes()));
            }
        }
    }

    fn add(
        &self,
        walk: &mut Walk<'_, 'm>,
        descriptor: &Descriptor,
        more: bool,
        buffers: &mut Vec<Slice<'m>>,
    ) -> Result<(), BadChain> {
        let (addr, len) = (descriptor.addr(), descriptor.len());
        if !has(descriptor, VRING_DESC_F_INDIRECT) {
            let writable = has(descriptor, VRING_DESC_F_WRITE);
            return walk.buffer(addr, len, writable, buffers);
        }
        let table = walk.table(addr, len, more)?;
        // All entries in order; ids and NEXT mean nothing there (§2.8.7). WRITE should, but DPDK's driver leaves it
        // set on what it sends, so every entry is taken for what its queue is for: nothing else can be meant.
        for at in (0..table.len()).step_by(DESC) {
            let entry = table
                .get_ref::<Descriptor>(at)
                .map_err(|_| BadChain::Index)?
                .load();
            if has(&entry, VRING_DESC_F_INDIRECT) {
                return Err(BadChain::Indirect);
            }
            let writable = walk.direction() == Direction::Writable;
            walk.buffer(entry.addr(), entry.len(), writable, buffers)?;
        }
        Ok(())
    }

    /// A copy of the descriptor at `index`, which is below the ring's size.
    fn read(&self, index: u16) -> Descriptor {
        self.ring
            .get_ref::<Descriptor>(usize::from(index) * DESC)
            .expect("the ring has that many descriptors")
            .load()
    }

    pub(super) fn undo(&mut self, chain: Chain) {
        self.position.avail.retreat(chain.slots, self.layout.size);
    }

    pub(super) fn complete(&mut self, chain: Chain, len: u32) {
        self.used.push(Used {
            place: self.position.used,
            id: chain.id,
            len,
        });
        self.position.used.advance(chain.slots, self.layout.size);
    }

    pub(super) fn publish(&mut self) -> bool {
        let Some((first, others)) = self.used.split_first() else {
            return false;
        };
        for used in &self.used {
            let at = usize::from(used.place.index) * DESC;
            store(&self.ring, at + LEN, used.len);
            store(&self.ring, at + ID, used.id);
        }
        fence(Ordering::Release); // ids and lengths before the flags that give them to the driver
        others.iter().for_each(|used| self.show(used));
        fence(Ordering::Release); // all the burst before the flags that show it
        self.show(first);
        self.record();
        self.used.clear();
        fence(Ordering::SeqCst); // the burst before the look at whether to notify
        let judged = self.position.judged_used.replace(self.position.used.index);
        let flags: u16 = load(&self.driver_event, EVENT_FLAGS);
        match u32::from(flags) & 0x3 {
            VRING_PACKED_EVENT_FLAG_DISABLE => false,
            VRING_PACKED_EVENT_FLAG_DESC if self.layout.event_idx => {
                judged.is_none_or(|old| self.passes_event(old))
            }
            _ => true,
        }
    }

    fn show(&self, used: &Used) {
        let at = usize::from(used.place.index) * DESC;
        store(&self.ring, at + FLAGS, used_flags(used.place, used.len));
    }

    /// Writes down how far the ring has been worked through.
    fn record(&self) {
        let place = self.position.used.encode();
        store(&self.device_event, EVENT_OFF_WRAP, place);
    }

    /// Whether going from `old` to here passes the place that the driver wants to hear of. Places before the last wrap are
    /// counted as if they lay before the ring.
    fn passes_event(&self, old: u16) -> bool {
        let size = self.layout.size;
        let new = self.position.used;
        let off_wrap: u16 = load(&self.driver_event, EVENT_OFF_WRAP);
        let mut event = off_wrap & 0x7fff;
        if new.wrap != (off_wrap >> 15 == 1) {
            event = event.wrapping_sub(size);
        }
        let old = if new.index <= old {
            old.wrapping_sub(size)
        } else {
            old
        };
        passes(event, old, new.index)
    }

    pub(super) fn disable_kicks(&mut self) {
        if !self.position.kicks_off {
            self.position.kicks_off = true;
            self.set_device_event(VRING_PACKED_EVENT_FLAG_DISABLE);
        }
    }

    pub(super) fn enable_kicks(&mut self) -> bool {
        self.position.kicks_off = false;
        self.record();
        fence(Ordering::Release); // the place before the flags that give it a meaning
        if self.layout.event_idx && self.end == self.position.used {
            self.set_device_event(VRING_PACKED_EVENT_FLAG_DESC);
        } else {
            self.set_device_event(VRING_PACKED_EVENT_FLAG_ENABLE);
        }
        fence(Ordering::SeqCst); // the request before the second look
        self.is_available(self.end)
    }

    fn set_device_event(&self, flags: u32) {
        store(&self.device_event, EVENT_FLAGS, flags as u16);
    }
}

fn has(descriptor: &Descriptor, flag: u32) -> bool {
    u32::from(descriptor.flags()) & flag != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_advance_and_retreat_over_the_wrap() {
        let mut place = Place {
            index: 6,
            wrap: true,
        };
        place.advance(4, 8);
        assert_eq!((place.index, place.wrap), (2, false));
        place.retreat(4, 8);
        assert_eq!((place.index, place.wrap), (6, true));
        place.advance(8, 8);
        assert_eq!((place.index, place.wrap), (6, false));
    }

    #[test]
    fn places_are_encoded_as_vhost_user_has_them() {
        let start = Place {
            index: 0,
            wrap: true,
        };
        assert_eq!(start.encode(), 0x8000);
        assert_eq!(Place::decode(0x8000, 8), Some(start));
        assert_eq!(Place::decode(8, 8), None);
    }
}
