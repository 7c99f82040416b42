//! One burst from the tap into a receiveq.

use std::io;

use vm_memory::MmapRegion;

use super::super::chain::{BadChain, Direction};
use super::super::counters::Counters;
use super::super::dirty_log::RegionLog;
use super::super::guard::{ANSWER, GLANCE, Guard};
use super::super::memory::Slice;
use super::super::rate::Quota;
use super::super::ring::{Chain, Ring};
use super::frame::{
    FrameFormat, Says, copy, frame_store, mark_written, part, read_at, set_num_buffers, whole,
};
use super::{BURST, BURST_BYTES, RxEnd};
use crate::tap::{HeaderLen, TapQueue};

/// One burst into a receiveq.
pub(super) struct Receive<'m> {
    pub tap: &'m TapQueue,
    pub format: FrameFormat,
    /// Room for what is beyond the chains of a frame.
    pub bounce: Slice<'m>,
    /// Who wants to know what DHCP gives.
    pub guard: Option<&'m Guard>,
    pub held: &'m mut Held,
    /// Bytes of the last frame, header included: the next is likely to be as large.
    pub expected: &'m mut usize,
    pub counters: &'m mut Counters,
    pub quota: Quota,
    pub rooms: Rooms<'m>,
}

/// Chains of a receiveq that are to take one frame.
#[derive(Debug, Default)]
pub(super) struct Rooms<'m> {
    /// Each, and its length in bytes.
    chains: Vec<(Chain, usize)>,
    /// Those together.
    bytes: usize,
    /// The buffers of all of them, in order.
    buffers: Vec<Slice<'m>>,
}

/// A frame, header included, that waits for buffers; none if `bytes` is 0.
#[derive(Debug)]
pub(super) struct Held {
    store: MmapRegion<RegionLog>,
    bytes: usize,
}

/// Why chains for a frame could not be had.
enum Shortage {
    /// There are too few; those that were taken are available again.
    TooFew,
    /// One was bad; it and those before it were given back with length 0.
    Bad,
}

impl<'m> Receive<'m> {
    pub(super) fn burst(mut self, ring: &mut Ring<'m>) -> RxEnd {
        ring.disable_kicks();
        let full = self.counters.bytes + BURST_BYTES as u64;
        for _ in 0..BURST {
            if self.counters.bytes >= full {
                break;
            }
            if self.quota.is_used_up() {
                self.counters.throttled += 1;
                return RxEnd::Throttled;
            }
            let next = if self.held.bytes > 0 {
                self.deliver_held(ring)
            } else {
                self.receive(ring)
            };
            if let Err(end) = next {
                return end;
            }
        }
        RxEnd::More
    }

    /// Takes one frame from the tap, or one bad chain from the ring. `Err` says how the burst ends.
    fn receive(&mut self, ring: &mut Ring<'m>) -> Result<(), RxEnd> {
        self.rooms.clear();
        let likely = match self.format.mergeable {
            true => *self.expected,
            false => 0,
        };
        match self.gather(ring, likely.max(self.format.header.bytes())) {
            Ok(()) => {}
            Err(Shortage::Bad) => return Ok(()),
            // Perhaps the next frame is smaller than the last.
            Err(Shortage::TooFew) if std::mem::take(self.expected) > 0 => return Ok(()),
            Err(Shortage::TooFew) => return Err(RxEnd::NoBuffers),
        }
        self.rooms.buffers.push(self.bounce);
        self.counters.syscalls += 1;
        let read = self.tap.readv(&self.rooms.buffers);
        self.rooms.buffers.pop();
        let Ok(bytes) = read else {
            // WouldBlock, or a tap that is down: it tells when it has frames again.
            self.rooms.undo(ring);
            return Err(RxEnd::TapEmpty);
        };
        *self.expected = bytes;
        let room = self.rooms.bytes;
        mark_written(&self.rooms.buffers, bytes);
        let says = Says::of(&self.rooms.buffers, self.format.header);
        let frame = bytes.saturating_sub(self.format.header.bytes());
        if self.format.exceeds_mtu(says, frame) {
            self.rooms.undo(ring);
            self.counters.over_mtu += 1;
            return Ok(());
        }
        if bytes <= room {
            self.finish(ring, bytes, says);
            Ok(())
        } else if self.format.mergeable {
            self.spill(ring, room, bytes, says)
        } else {
            // Larger than the one chain it may have.
            self.rooms.undo(ring);
            self.counters.dropped += 1;
            Ok(())
        }
    }

    /// Finds chains for a frame whose first `room` bytes are in those at hand, and the others in the bounce buffer.
    fn spill(
        &mut self,
        ring: &mut Ring<'m>,
        room: usize,
        bytes: usize,
        says: Says,
    ) -> Result<(), RxEnd> {
        let tail = part(self.bounce, 0, bytes - room);
        let first = self.rooms.buffers.len();
        match self.gather(ring, bytes) {
            Ok(()) => {
                copy(&[tail], &self.rooms.buffers[first..]);
                self.finish(ring, bytes, says);
                Ok(())
            }
            Err(Shortage::TooFew) => {
                let held = self.held.set(bytes);
                copy(&self.rooms.buffers[..first], &[part(held, 0, room)]);
                copy(&[tail], &[part(held, room, bytes - room)]);
                Err(RxEnd::NoBuffers)
            }
            Err(Shortage::Bad) => {
                self.counters.dropped += 1;
                Ok(())
            }
        }
    }

    /// Delivers the frame that waits, if there are chains enough by now.
    fn deliver_held(&mut self, ring: &mut Ring<'m>) -> Result<(), RxEnd> {
        self.rooms.clear();
        let bytes = self.held.bytes;
        match self.gather(ring, bytes) {
            Ok(()) => {
                copy(&[self.held.take()], &self.rooms.buffers);
                let says = Says::of(&self.rooms.buffers, self.format.header);
                self.finish(ring, bytes, says);
                Ok(())
            }
            Err(Shortage::TooFew) => Err(RxEnd::NoBuffers),
            Err(Shortage::Bad) => {
                self.held.take();
                self.counters.dropped += 1;
                Ok(())
            }
        }
    }

    /// Takes chains until there is room for `bytes` in all.
    ///
    /// Chains are completed in order, so a bad one takes those gathered before it along.
    fn gather(&mut self, ring: &mut Ring<'m>, bytes: usize) -> Result<(), Shortage> {
        let header = self.format.header.bytes();
        while self.rooms.bytes < bytes {
            let buffers = &mut self.rooms.buffers;
            let Some((chain, bytes)) = ring.next(Direction::Writable, buffers) else {
                self.rooms.undo(ring);
                return Err(Shortage::TooFew);
            };
            match bytes.and_then(|bytes| {
                if bytes < header {
                    Err(BadChain::Size)
                } else {
                    Ok(bytes)
                }
            }) {
                Ok(bytes) => self.rooms.push(chain, bytes),
                Err(bad) => {
                    self.counters.bad_chains.add(bad);
                    for (chain, _) in self.rooms.take() {
                        ring.complete(chain, 0);
                    }
                    ring.complete(chain, 0);
                    return Err(Shortage::Bad);
                }
            }
        }
        Ok(())
    }

    /// Completes the gathered chains, which hold a frame of `bytes`. tun leaves `num_buffers` to the device,
    /// which sets it also where buffers can't be merged (virtio 1.3 §5.1.6.4.1).
    fn finish(&mut self, ring: &mut Ring<'m>, bytes: usize, says: Says) {
        self.rooms.trim(ring, bytes);
        let header = self.format.header;
        if let Some(guard) = self.guard {
            tell(guard, &self.rooms.buffers, header);
        }
        self.counters.gso_frames += u64::from(says.is_gso);
        if header == HeaderLen::Long {
            set_num_buffers(&self.rooms.buffers, self.rooms.chains.len() as u16);
        }
        let mut left = bytes;
        for (chain, room) in &self.rooms.chains {
            let used = left.min(*room);
            ring.complete(*chain, used as u32);
            left -= used;
        }
        let bytes = bytes.saturating_sub(header.bytes());
        self.quota.take(bytes);
        self.counters.frames += 1;
        self.counters.bytes += bytes as u64;
    }
}

/// Tells `guard` of a frame in `buffers` that may give the guest an address.
fn tell(guard: &Guard, buffers: &[Slice<'_>], header: HeaderLen) {
    let glance: [u8; GLANCE] = read_at(buffers, header.bytes());
    if guard.wants_to_hear(&glance) {
        guard.hear(&read_at::<ANSWER>(buffers, header.bytes()));
    }
}

impl<'m> Rooms<'m> {
    fn clear(&mut self) {
        self.take();
        self.buffers.clear();
    }

    /// One more, whose buffers are there already.
    fn push(&mut self, chain: Chain, bytes: usize) {
        self.chains.push((chain, bytes));
        self.bytes += bytes;
    }

    /// All chains. The buffers stay, for what is in them already.
    fn take(&mut self) -> std::vec::Drain<'_, (Chain, usize)> {
        self.bytes = 0;
        self.chains.drain(..)
    }

    /// Makes those available again that a frame of `bytes` does not need.
    fn trim(&mut self, ring: &mut Ring<'m>, bytes: usize) {
        while let [_, .., (chain, last)] = self.chains[..]
            && self.bytes - last >= bytes
        {
            ring.undo(chain);
            self.chains.pop();
            self.bytes -= last;
        }
    }

    /// Makes all chains available again.
    fn undo(&mut self, ring: &mut Ring<'m>) {
        for (chain, _) in self.take().rev() {
            ring.undo(chain);
        }
    }
}

impl Held {
    /// None, and room for one.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            store: frame_store()?,
            bytes: 0,
        })
    }

    /// Drops it; whether there was one.
    pub fn discard(&mut self) -> bool {
        std::mem::take(&mut self.bytes) > 0
    }

    fn set(&mut self, bytes: usize) -> Slice<'_> {
        self.bytes = bytes;
        part(whole(&self.store), 0, bytes)
    }

    fn take(&mut self) -> Slice<'_> {
        let bytes = std::mem::take(&mut self.bytes);
        part(whole(&self.store), 0, bytes)
    }
}
