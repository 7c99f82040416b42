//! A queue of a NIC: a ring, and a place in memory for the buffers of each of its chains.

use std::io;
use std::sync::Arc;

use vhost::vhost_user::Frontend;
use vhost::{VhostBackend, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{NicError, Wish, refused};
use crate::bench::driver::Header;
use crate::bench::memory::Memory;
use crate::bench::pattern::{HEADER, Size};
use crate::bench::ring::{Direction, DriverRing, Part, Places, Shape};

/// Bytes of a header without the last field (virtio 1.3 §5.1.6).
pub(super) const SHORT_HEADER: usize = HEADER - 2;

/// Large frames are in pieces of a page, as Linux has them.
const PIECE: usize = 4096;

/// A receive buffer holds an Ethernet frame of the usual MTU.
const RECEIVE: usize = 1536;

/// What a queue is made of.
#[derive(Clone)]
pub(super) struct Outline {
    shape: Shape,
    /// Bytes that a chain's buffers have, behind one another; the first [`Self::skip`] of them are none's.
    chain: usize,
    /// What the header lacks of [`HEADER`].
    skip: usize,
    /// Where in those bytes each of the buffers begins.
    cuts: Vec<usize>,
}

impl Outline {
    pub(super) fn of(wish: Wish, direction: Direction, features: u64) -> Self {
        let has = |bit: u32| features >> bit & 1 == 1;
        let long = has(VIRTIO_F_VERSION_1) || has(VIRTIO_NET_F_MRG_RXBUF);
        let skip = if long { 0 } else { HEADER - SHORT_HEADER };
        let chain = chain_bytes(direction, wish.size);
        let cuts = cuts(chain, skip, wish.driver.header);
        let shape = Shape {
            layout: wish.driver.ring,
            size: wish.driver.queue_size.get(),
            parts: cuts.len() as u16,
            indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
            direction,
            event_idx: has(VIRTIO_RING_F_EVENT_IDX),
        };
        Self {
            shape,
            chain,
            skip,
            cuts,
        }
    }

    /// From a chain's buffers to the next one's, so that no two are in one line of a cache.
    fn room(&self) -> usize {
        self.chain.next_multiple_of(64)
    }

    /// Bytes of its buffers.
    fn buffers(&self) -> usize {
        usize::from(self.shape.chains()) * self.room()
    }

    /// Bytes that a queue takes at most, with its buffers.
    pub(super) fn bytes(&self) -> usize {
        self.shape.bytes() + self.buffers() + 4096
    }

    /// The buffers of the chain whose bytes begin at `at`.
    fn parts(&self, at: usize) -> Vec<Part> {
        let ends = self.cuts[1..].iter().copied().chain([self.chain]);
        let part = |(from, to): (&usize, usize)| Part {
            at: at + from,
            len: (to - from) as u32,
        };
        self.cuts.iter().zip(ends).map(part).collect()
    }
}

/// Where the buffers of a chain of `bytes` begin: the header's, if it has one of its own, and pieces of the frame.
fn cuts(bytes: usize, skip: usize, header: Header) -> Vec<usize> {
    let second = match header {
        Header::Joined => PIECE,
        Header::Apart => HEADER,
    };
    let others = (second..bytes).step_by(PIECE);
    std::iter::once(skip).chain(others).collect()
}

/// Where a queue and its buffers are.
pub(super) struct Plan {
    places: Places,
    outline: Outline,
    buffers: usize,
}

impl Plan {
    pub(super) fn take(memory: &mut Memory, outline: &Outline) -> Self {
        Self {
            places: Places::take(memory, outline.shape),
            outline: outline.clone(),
            buffers: memory.take(outline.buffers(), 4096),
        }
    }

    /// Has the back-end start ring `index` there.
    pub(super) fn start(
        self,
        front_end: &mut Frontend,
        memory: &Arc<Memory>,
        index: usize,
        batch: Option<u16>,
    ) -> Result<Queue, NicError> {
        let (places, shape) = (self.places, self.outline.shape);
        let address = |at: usize| memory.user_address() + at as u64;
        let config = VringConfigData {
            queue_max_size: shape.size,
            queue_size: shape.size,
            flags: 0,
            desc_table_addr: address(places.descriptors),
            used_ring_addr: address(places.device),
            avail_ring_addr: address(places.driver),
            log_addr: None,
        };
        let queue = self.queue(memory, batch)?;
        refused("SET_VRING_NUM", front_end.set_vring_num(index, shape.size))?;
        let base = shape.layout.base();
        refused("SET_VRING_BASE", front_end.set_vring_base(index, base))?;
        refused("SET_VRING_ADDR", front_end.set_vring_addr(index, &config))?;
        let call = front_end.set_vring_call(index, &queue.call);
        refused("SET_VRING_CALL", call)?;
        let kick = front_end.set_vring_kick(index, &queue.kick);
        refused("SET_VRING_KICK", kick)?;
        Ok(queue)
    }

    /// The queue, of which nobody knows so far.
    fn queue(self, memory: &Arc<Memory>, batch: Option<u16>) -> io::Result<Queue> {
        let Self {
            places,
            outline,
            buffers,
        } = self;
        let ids = 0..usize::from(outline.shape.chains());
        let parts = |id: usize| outline.parts(buffers + id * outline.room());
        Ok(Queue {
            memory: Arc::clone(memory),
            ring: DriverRing::new(memory, places, outline.shape),
            chains: ids.map(parts).collect(),
            chain: outline.chain,
            skip: outline.skip,
            batch: batch.unwrap_or(u16::MAX),
            fresh: 0,
            kick: EventFd::new(EFD_NONBLOCK)?,
            call: EventFd::new(EFD_NONBLOCK)?,
            kicks: 0,
            calls: 0,
        })
    }
}

/// Bytes of buffers that a chain has.
fn chain_bytes(direction: Direction, size: Size) -> usize {
    match direction {
        Direction::Readable => HEADER + size.most(),
        Direction::Writable => match fits_one_buffer(size) {
            true => RECEIVE,
            false => PIECE,
        },
    }
}

/// Whether a frame never takes more than one of a receiveq's chains.
pub(super) fn fits_one_buffer(size: Size) -> bool {
    size.most() <= RECEIVE - HEADER
}

/// What both kinds of queues have.
pub(super) struct Queue {
    memory: Arc<Memory>,
    pub(super) ring: DriverRing,
    /// The buffers of each chain, by its id.
    pub(super) chains: Vec<Vec<Part>>,
    /// See [`Outline`].
    pub(super) chain: usize,
    pub(super) skip: usize,
    /// The most chains that are added before the device is told, and how many were.
    batch: u16,
    fresh: u16,
    pub(super) kick: EventFd,
    pub(super) call: EventFd,
    /// How often either was signalled.
    pub(super) kicks: u64,
    pub(super) calls: u64,
}

impl Queue {
    /// The first bytes of a chain, its header's first, at whichever length of that.
    pub(super) fn start_of(&self, id: u16, len: usize) -> vm_memory::VolatileSlice<'_> {
        let header = self.chains[usize::from(id)][0].at;
        self.memory.slice(header - self.skip, len)
    }

    /// Adds a chain; the device is told of it by [`Self::publish`], if not before.
    pub(super) fn offer(&mut self, id: u16) {
        self.ring.offer(id, &self.chains[usize::from(id)]);
        self.fresh += 1;
        if self.fresh == self.batch {
            self.publish();
        }
    }

    pub(super) fn publish(&mut self) {
        self.fresh = 0;
        if self.ring.publish() {
            // It can only fail when nobody has taken 2^64 of them.
            let _ = self.kick.write(1);
            self.kicks += 1;
        }
    }

    /// How often the driver has told the device so far, and the device the driver.
    pub(super) fn told(&mut self) -> [u64; 2] {
        self.calls += self.call.read().unwrap_or(0); // there may be none
        [self.kicks, self.calls]
    }
}

/// Leaves `bytes` of a chain's buffers.
pub(super) fn shorten(parts: &mut Vec<Part>, bytes: usize) {
    let mut left = bytes as u32;
    for part in parts.iter_mut() {
        part.len = part.len.min(left);
        left -= part.len;
    }
    parts.retain(|part| part.len > 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::driver::Driver;
    use crate::bench::pattern::Party;
    use crate::bench::ring::Layout;
    use crate::types::QueueSize;

    #[test]
    fn the_device_is_told_of_each_batch() {
        let wish = Wish {
            driver: Driver {
                ring: Layout::Split,
                queue_size: QueueSize::MAX,
                batch: Some(2),
                header: Header::Apart,
                features: None,
            },
            pairs: 1,
            size: Size::Wire(64),
            owner: Party::GUEST,
        };
        let outline = Outline::of(wish, Direction::Readable, 0);
        let mut memory = Memory::new(outline.bytes()).unwrap();
        let plan = Plan::take(&mut memory, &outline);
        let mut queue = plan.queue(&Arc::new(memory), wish.driver.batch).unwrap();
        for (id, kicks) in [0, 1, 1, 2, 2].into_iter().enumerate() {
            queue.offer(id as u16);
            assert_eq!(queue.told(), [kicks, 0], "after {id}");
        }
        queue.publish();
        assert_eq!(queue.told(), [3, 0], "of what is left");
        queue.publish();
        assert_eq!(queue.told(), [3, 0], "of nothing");
    }

    /// Whatever a chain is cut into, it is all there, once.
    #[test]
    fn a_chain_is_cut_into_header_and_pieces() {
        let lens = |bytes, skip, header| -> Vec<usize> {
            let ends = [cuts(bytes, skip, header), vec![bytes]].concat();
            ends.windows(2).map(|it| it[1] - it[0]).collect()
        };
        assert_eq!(lens(76, 0, Header::Joined), [76]);
        assert_eq!(lens(76, 2, Header::Joined), [74]);
        assert_eq!(lens(76, 2, Header::Apart), [10, 64]);
        assert_eq!(lens(9026, 0, Header::Joined), [4096, 4096, 834]);
        assert_eq!(lens(9026, 0, Header::Apart), [12, 4096, 4096, 822]);
    }
}
