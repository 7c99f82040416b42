//! A burst's view of a split virtqueue (virtio 1.3 §2.7).

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::VolatileMemory;

use super::super::chain::{BadChain, Direction, Walk};
use super::super::memory::{Finder, Mem, Slice};
use super::{
    AHEAD, Broken, Chain, DESC, MAX_SIZE, RingError, RingLayout, fetch_buffer, fetch_descriptor,
    load, passes, store,
};

/// Bytes of `flags` and `idx` before a ring, of an avail entry, of a used element, and of the event index
/// behind a ring (virtio 1.3 §2.7.6, §2.7.8).
const RING_HEADER: usize = 4;
const AVAIL_ENTRY: usize = 2;
const USED_ELEM: usize = 8;
const EVENT: usize = 2;

/// Offsets of `flags` and `idx` in both rings.
const FLAGS: usize = 0;
const IDX: usize = 2;

/// Whether the ring's size and alignment are those of a split ring.
pub(super) fn check(layout: &RingLayout) -> Result<(), RingError> {
    let [desc, avail, used] = layout.parts;
    let mut checked = Queue::new(MAX_SIZE)?;
    checked.try_set_size(layout.size)?;
    checked.try_set_desc_table_address(desc)?;
    checked.try_set_avail_ring_address(avail)?;
    checked.try_set_used_ring_address(used)?;
    Ok(())
}

/// The lengths in bytes of descriptor table, avail ring and used ring.
pub(super) fn part_lens(layout: &RingLayout) -> [usize; 3] {
    let size = usize::from(layout.size);
    let event = if layout.event_idx { EVENT } else { 0 };
    [
        size * DESC,
        RING_HEADER + size * AVAIL_ENTRY + event,
        RING_HEADER + size * USED_ELEM + event,
    ]
}

/// How far a split ring has been worked through; all indices run freely and wrap at 2¹⁶.
#[derive(Debug, Clone, Copy)]
pub struct SplitPosition {
    next_avail: u16,
    next_used: u16,
    /// The used index at the last look at whether to notify; `None` before the first.
    judged_used: Option<u16>,
    /// Kicks are switched off by flag.
    kicks_off: bool,
}

impl SplitPosition {
    /// From the next avail index, and the used index as it stands in the ring.
    pub(super) fn resume(used: &Slice<'_>, base: u32) -> Result<Self, RingError> {
        Ok(Self {
            next_avail: u16::try_from(base).map_err(|_| RingError::Range(base))?,
            next_used: load(used, IDX),
            judged_used: None,
            kicks_off: false,
        })
    }

    pub(super) fn base(&self) -> u32 {
        self.next_avail.into()
    }
}

/// A split ring during one burst.
#[derive(Debug)]
pub struct SplitRing<'m> {
    mem: Finder<'m>,
    desc: Slice<'m>,
    avail: Slice<'m>,
    used: Slice<'m>,
    layout: RingLayout,
    position: &'m mut SplitPosition,
    /// The avail index as seen at the start of the burst.
    end: u16,
    /// The used index as the driver sees it.
    published: u16,
}

impl<'m> SplitRing<'m> {
    /// Looks at the avail index, once for the burst.
    pub(super) fn open(
        mem: &'m Mem,
        layout: RingLayout,
        [desc, avail, used]: [Slice<'m>; 3],
        position: &'m mut SplitPosition,
    ) -> Result<Self, Broken> {
        let end: u16 = load(&avail, IDX);
        fence(Ordering::Acquire); // entries and descriptors are read after the index that covers them
        if end.wrapping_sub(position.next_avail) > layout.size {
            return Err(Broken);
        }
        let published = position.next_used;
        Ok(Self {
            mem: Finder::new(mem),
            desc,
            avail,
            used,
            layout,
            position,
            end,
            published,
        })
    }

    #[inline(always)] // see `Ring::next`
    pub(super) fn next(
        &mut self,
        direction: Direction,
        buffers: &mut Vec<Slice<'m>>,
    ) -> Option<(Chain, Result<usize, BadChain>)> {
        if self.position.next_avail == self.end {
            return None;
        }
        self.look_ahead(direction);
        let head = self.head(self.position.next_avail);
        self.position.next_avail = self.position.next_avail.wrapping_add(1);
        let chain = Chain { id: head, slots: 1 };
        Some((chain, self.walk(head, direction, buffers)))
    }

    /// The chain that became available as number `number`.
    fn head(&self, number: u16) -> u16 {
        let slot = self.slot(number);
        load(&self.avail, RING_HEADER + slot * AVAIL_ENTRY)
    }

    /// Where in its ring an entry is; sizes are powers of two (§2.7).
    fn slot(&self, number: u16) -> usize {
        usize::from(number & (self.layout.size - 1))
    }

    /// Has what is needed for chains that come after the next one fetched.
    fn look_ahead(&self, direction: Direction) {
        let next = self.position.next_avail;
        let left = self.end.wrapping_sub(next);
        if left > 2 * AHEAD {
            fetch_descriptor(&self.desc, self.head(next.wrapping_add(2 * AHEAD)));
        }
        if left > AHEAD
            && direction == Direction::Writable
            && let Ok(descriptor) = read(&self.desc, self.head(next.wrapping_add(AHEAD)))
        {
            fetch_buffer(&self.mem, descriptor.addr(), descriptor.len());
        }
    }

    /// Follows the links from `head`. The longest chain allowed has as many descriptors as the ring (§2.7.5.2).
    #[inline(always)]
    fn walk(
        &self,
        head: u16,
        direction: Direction,
        buffers: &mut Vec<Slice<'m>>,
    ) -> Result<usize, BadChain> {
        let mut walk = Walk::new(&self.mem, direction, self.layout.indirect, self.layout.size);
        let mut table = self.desc;
        let mut index = head;
        loop {
            let descriptor = read(&table, index)?;
            if descriptor.refers_to_indirect_table() {
                // After normal descriptors or first, but last: §2.7.5.3.2.
                let (addr, len) = (descriptor.addr(), descriptor.len());
                table = walk.table(addr, len, descriptor.has_next())?;
                index = 0;
                continue;
            }
            let writable = descriptor.is_write_only();
            walk.buffer(descriptor.addr(), descriptor.len(), writable, buffers)?;
            if !descriptor.has_next() {
                return Ok(walk.bytes());
            }
            index = descriptor.next();
        }
    }

    pub(super) fn undo(&mut self) {
        self.position.next_avail = self.position.next_avail.wrapping_sub(1);
    }

    pub(super) fn complete(&mut self, chain: Chain, len: u32) {
        let slot = self.slot(self.position.next_used);
        let element = self.used.get_ref(RING_HEADER + slot * USED_ELEM);
        let element = element.expect("the used ring has that many elements");
        element.store([u32::from(chain.id), len]);
        self.position.next_used = self.position.next_used.wrapping_add(1);
    }

    pub(super) fn publish(&mut self) -> bool {
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

    /// With event indices there is nothing to do: an index that was passed brings no more kicks.
    pub(super) fn disable_kicks(&mut self) {
        if !self.layout.event_idx && !self.position.kicks_off {
            self.position.kicks_off = true;
            store(&self.used, FLAGS, VRING_USED_F_NO_NOTIFY as u16);
        }
    }

    pub(super) fn enable_kicks(&mut self) -> bool {
        if self.layout.event_idx {
            let avail_event = RING_HEADER + usize::from(self.layout.size) * USED_ELEM;
            store(&self.used, avail_event, self.end);
        } else {
            self.position.kicks_off = false;
            store(&self.used, FLAGS, 0u16);
        }
        fence(Ordering::SeqCst); // the request before the second look
        let now: u16 = load(&self.avail, IDX);
        now != self.end
    }

    /// Offset of `used_event`, behind the avail ring.
    fn avail_end(&self) -> usize {
        RING_HEADER + usize::from(self.layout.size) * AVAIL_ENTRY
    }
}

/// A copy of descriptor `index` of `table`.
fn read(table: &Slice<'_>, index: u16) -> Result<Descriptor, BadChain> {
    table
        .get_ref::<Descriptor>(usize::from(index) * DESC)
        .map(|descriptor| descriptor.load())
        .map_err(|_| BadChain::Index)
}
