//! One burst from a transmitq to the tap.

use std::ops::Range;

use arrayvec::ArrayVec;

use super::super::chain::{BadChain, Direction};
use super::super::counters::Counters;
use super::super::guard::{Frame, Guard, HEAD, Reason, Refusal, Refusals};
use super::super::heard::{Heard, Packet};
use super::super::memory::{Slice, prefetch};
use super::super::rate::Quota;
use super::super::ring::{Chain, Ring};
use super::frame::{ETHERNET, FrameFormat, MAX_FRAME, Says, part, read_at};
use super::{BURST, BURST_BYTES, TxEnd};
use crate::tap::TapQueue;

/// A pair's guard, and its own memory for the heads of a burst's frames.
pub(super) struct Gate<'m> {
    pub guard: &'m mut Guard,
    pub refusals: &'m mut Refusals,
    /// Where a head is looked at.
    pub scratch: &'m mut [u8; HEAD],
    /// [`HEADS`] bytes.
    pub heads: Slice<'m>,
}

/// Bytes of all heads.
pub(super) const HEADS: usize = BURST * HEAD;

/// One burst from a transmitq: chains are taken, looked at, written to the tap together, and given back.
pub(super) struct Transmit<'m> {
    /// `None` while the ring is disabled.
    tap: Option<&'m mut TapQueue>,
    format: FrameFormat,
    counters: &'m mut Counters,
    heard: &'m mut Heard,
    /// `None` where nobody looks at what the guest claims.
    gate: Option<Gate<'m>>,
    quota: Quota,
    /// Those of all chains that were taken.
    buffers: Vec<Slice<'m>>,
    taken: ArrayVec<Taken, BURST>,
}

/// A chain taken from a transmitq.
struct Taken {
    chain: Chain,
    /// Its own among the buffers of all.
    buffers: Range<usize>,
    /// What its frame says, once it was looked into.
    says: Says,
    fate: Fate,
}

/// What is to become of a chain from a transmitq.
enum Fate {
    /// A frame of so many bytes goes to the tap.
    Send(usize),
    /// A frame of a disabled ring.
    Disabled,
    OverMtu,
    /// The guard refuses it.
    Refused(Reason),
    Bad(BadChain),
}

impl<'m> Transmit<'m> {
    pub(super) fn new(
        tap: Option<&'m mut TapQueue>,
        format: FrameFormat,
        counters: &'m mut Counters,
        heard: &'m mut Heard,
        gate: Option<Gate<'m>>,
        quota: Quota,
    ) -> Self {
        Self {
            tap,
            format,
            counters,
            heard,
            gate,
            quota,
            buffers: Vec::with_capacity(BURST),
            taken: ArrayVec::new(),
        }
    }

    pub(super) fn burst(mut self, ring: &mut Ring<'m>) -> TxEnd {
        ring.disable_kicks();
        let end = self.take(ring);
        self.look();
        let done = self.send();
        let (done, left) = self.taken.split_at(done);
        for taken in done {
            ring.complete(taken.chain, 0); // the device writes nothing into a transmitq's chains
        }
        for taken in left.iter().rev() {
            ring.undo(taken.chain);
        }
        match left {
            [] => end,
            _ => TxEnd::TapFull,
        }
    }

    /// Takes as many chains as may be sent now.
    fn take(&mut self, ring: &mut Ring<'m>) -> TxEnd {
        let mut bytes_taken = 0;
        while !self.taken.is_full() && bytes_taken < BURST_BYTES {
            if self.quota.is_used_up() {
                self.counters.throttled += 1;
                return TxEnd::Throttled;
            }
            let begin = self.buffers.len();
            let head = self.taken.len() * HEAD;
            let store = self.gate.as_ref().map(|gate| part(gate.heads, head, HEAD));
            self.buffers.extend(store);
            let first = self.buffers.len();
            let Some((chain, bytes)) = ring.next(Direction::Readable, &mut self.buffers) else {
                self.buffers.truncate(begin);
                return TxEnd::RingEmpty;
            };
            let buffers = begin..self.buffers.len();
            let fate = self.fate(bytes);
            if let Fate::Send(bytes) = fate {
                prefetch(&self.buffers[first]);
                self.quota.take(bytes);
                bytes_taken += bytes;
            }
            self.taken.push(Taken {
                chain,
                buffers,
                says: Says::default(),
                fate,
            });
        }
        TxEnd::More
    }

    fn fate(&self, bytes: Result<usize, BadChain>) -> Fate {
        let header = self.format.header.bytes();
        match bytes.map(|bytes| bytes.checked_sub(header)) {
            Err(bad) => Fate::Bad(bad),
            Ok(Some(bytes)) if (ETHERNET..=MAX_FRAME).contains(&bytes) => match self.tap {
                None => Fate::Disabled,
                Some(_) => Fate::Send(bytes),
            },
            Ok(_) => Fate::Bad(BadChain::Size),
        }
    }

    /// Looks into the frames, which are on their way from memory since they were taken.
    fn look(&mut self) {
        if let Some(gate) = &mut self.gate {
            gate.guard.refresh();
        }
        for number in 0..self.taken.len() {
            if let Fate::Send(bytes) = self.taken[number].fate {
                self.taken[number].fate = self.look_into(number, bytes);
            }
        }
    }

    fn look_into(&mut self, number: usize, bytes: usize) -> Fate {
        let taken = &mut self.taken[number];
        if let Some(gate) = &mut self.gate {
            let buffers = &mut self.buffers[taken.buffers.clone()];
            let (skipped, copied) = detach_head(buffers);
            let head = &mut gate.scratch[..copied];
            buffers[skipped].copy_to(head);
            taken.buffers.start += skipped;
            let frame = Frame {
                header: head.first_chunk().copied().unwrap_or_default(),
                head: &head[self.format.header.bytes()..],
                len: bytes,
            };
            if let Err(reason) = gate.guard.judge(&frame) {
                gate.refusals.add(Refusal::new(reason, frame.head));
                return Fate::Refused(reason);
            }
        }
        taken.says = Says::of(&self.buffers[taken.buffers.clone()], self.format.header);
        match self.format.exceeds_mtu(taken.says, bytes) {
            true => Fate::OverMtu,
            false => Fate::Send(bytes),
        }
    }

    /// Sends what is to be sent; how many chains are done with by then.
    fn send(&mut self) -> usize {
        let mut accepted = ArrayVec::<bool, BURST>::new();
        if let Some(tap) = &mut self.tap {
            let to_send = self.taken.iter().filter_map(|taken| match taken.fate {
                Fate::Send(_) => Some(&self.buffers[taken.buffers.clone()]),
                _ => None,
            });
            let frames: ArrayVec<&[Slice<'_>], BURST> = to_send.collect();
            let burst = tap.write_burst(&frames, |written| accepted.push(written.is_ok()));
            self.counters.syscalls += burst.calls;
        }
        let mut accepted = accepted.into_iter();
        for (number, taken) in self.taken.iter().enumerate() {
            match taken.fate {
                Fate::Send(bytes) => match accepted.next() {
                    None => return number,
                    Some(true) => {
                        self.counters.frames += 1;
                        self.counters.gso_frames += u64::from(taken.says.is_gso);
                        self.counters.bytes += bytes as u64;
                        let packet = Behind {
                            buffers: &self.buffers[taken.buffers.clone()],
                            at: taken.says.packet(self.format.header),
                        };
                        self.heard.listen(taken.says.ether_type, &packet);
                    }
                    // A header the kernel does not accept, or a tap that is down: the frame is lost, as on a cable.
                    Some(false) => self.counters.dropped += 1,
                },
                Fate::Disabled => self.counters.disabled += 1,
                Fate::OverMtu => self.counters.over_mtu += 1,
                Fate::Refused(reason) => self.counters.refused.add(reason),
                Fate::Bad(bad) => self.counters.bad_chains.add(bad),
            }
        }
        self.taken.len()
    }
}

/// Copies the first bytes of the frame in `buffers` into the first of these, which is the pair's own, and cuts them off the
/// others. Returns how many buffers are then to be left out at the front, and how many bytes were copied: the first that is not
/// left out has them.
fn detach_head<'m>(buffers: &mut [Slice<'m>]) -> (usize, usize) {
    let store = buffers[0];
    let (mut skipped, mut copied) = (0, 0);
    while let Some(buffer) = buffers.get(skipped + 1).copied() {
        let len = buffer.len().min(store.len() - copied);
        part(buffer, 0, len).copy_to_volatile_slice(part(store, copied, len));
        copied += len;
        if len < buffer.len() {
            buffers[skipped + 1] = part(buffer, len, buffer.len() - len);
            break;
        }
        skipped += 1;
    }
    buffers[skipped] = part(store, 0, copied);
    (skipped, copied)
}

/// What is in a frame behind its headers.
struct Behind<'a> {
    buffers: &'a [Slice<'a>],
    at: usize,
}

impl Packet for Behind<'_> {
    fn at<const N: usize>(&self, offset: usize) -> [u8; N] {
        read_at(self.buffers, self.at + offset)
    }
}
