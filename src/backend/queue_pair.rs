//! A receiveq, a transmitq and the tap queue between them: frames in both directions, and what is counted.
//!
//! # Theory of operation
//! [`process_tx`](QueuePair::process_tx) and [`process_rx`](QueuePair::process_rx) each do one burst of at most
//! [`BURST`] chains and say how it ended; the worker decides when to call them again. Neither waits, locks
//! or knows of epoll, so a test drives a pair with a ring in memory and a socketpair for a tap.
//!
//! **Transmit**: the buffers of a chain, virtio-net header and all, go to the tap in one `writev`, straight from
//! guest memory. The kernel checks the header; a frame it refuses is dropped and counted.
//!
//! **Receive**: one `readv` straight into the buffers of the next chain, with the pair's own bounce buffer behind
//! them. A frame that fits the first chain, as nearly all do, was never anywhere else. The tail of a larger one
//! (GSO, with mergeable buffers) is copied from the bounce buffer to the chains that follow. Gathering up to 64 KB of
//! chains for every read instead would spare that copy, yet measured 3 % slower at 64 KB and 8 % at 64
//! bytes, since one buffer that stays in cache is cheaper than walking and giving back 42 unused chains; and
//! a driver that posts fewer than 64 KB of buffers would never receive at all.
//!
//! A frame for which there are too few chains is *held* whole in the pair until there are enough.
//!
//! A chain that breaks a rule is given back with length 0, counted by kind, and harms no other.

use std::io;
use std::time::{Duration, Instant};

use vm_memory::bitmap::Bitmap;
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

use super::chain::{BadChain, Direction};
use super::counters::Counters;
use super::dirty_log::RegionLog;
use super::heard::{Heard, Packet};
use super::memory::Slice;
use super::rate::{Pacer, Quota};
use super::ring::{Chain, MAX_SIZE, Ring};
use super::vring::Vring;
use crate::tap::{HeaderLen, TapQueue};

/// The most chains taken in one burst of one direction, so that the other gets its turn.
pub const BURST: usize = 64;

/// An Ethernet header, the least a frame can be.
const ETHERNET: usize = 14;

/// The most bytes a frame can have: an IP packet of 65535 bytes behind an Ethernet header with two VLAN tags.
pub const MAX_FRAME: usize = 65535 + ETHERNET + 8;

/// Bytes of a VLAN tag, and the EtherTypes that announce one.
const VLAN_TAG: usize = 4;
const VLAN: [u16; 2] = [0x8100, 0x88a8];

/// Where `gso_type` lies in the header; 0 is a frame as it stands (virtio 1.3 §5.1.6).
const GSO_TYPE: usize = 1;

/// Where `num_buffers` lies in the long header (virtio 1.3 §5.1.6).
const NUM_BUFFERS: usize = 10;

/// One of the two queues of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The receiveq.
    Rx,
    /// The transmitq.
    Tx,
}

/// How a burst of transmission ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxEnd {
    /// The ring is empty, and a kick will tell of more.
    RingEmpty,
    /// The tap has no room for now.
    TapFull,
    /// The rate limit is used up; the pacer's timer can tell when to go on.
    Throttled,
    /// There may be more to do at once.
    More,
}

/// How a burst of reception ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RxEnd {
    /// The tap has no frame.
    TapEmpty,
    /// The ring has too few buffers for the next frame, and a kick will tell of more.
    NoBuffers,
    /// The rate limit is used up; the pacer's timer can tell when to go on.
    Throttled,
    /// There may be more to do at once.
    More,
}

/// What a burst that ends for want of chains leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Idle {
    /// A kick is asked for.
    Park,
    /// No kick is asked for.
    Poll,
}

/// The settings that features decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameFormat {
    /// The virtio-net header's length.
    pub header: HeaderLen,
    /// A received frame may be spread over several chains.
    pub mergeable: bool,
    /// The largest packet behind an Ethernet header, in bytes, unless it is to be segmented on its way. None without a
    /// limit but [`MAX_FRAME`].
    pub mtu: Option<u16>,
}

impl FrameFormat {
    /// Whether a frame of `bytes` in `buffers`, behind its header, is larger than it may be. VLAN tags do not count, and
    /// neither do frames that will be segmented.
    fn exceeds_mtu(self, buffers: &[Slice<'_>], bytes: usize) -> bool {
        let Some(over) = self
            .mtu
            .and_then(|mtu| bytes.checked_sub(usize::from(mtu) + ETHERNET))
            .filter(|over| *over > 0)
        else {
            return false;
        };
        let [gso_type] = read_at(buffers, GSO_TYPE);
        let (_, packet) = self.packet(buffers);
        let tags = packet - self.header.bytes() - ETHERNET;
        gso_type == 0 && over > tags
    }

    /// What is in a frame, by its EtherType, and where that begins; VLAN tags, two at most, are passed over.
    fn packet(self, buffers: &[Slice<'_>]) -> (u16, usize) {
        let untagged = self.header.bytes() + ETHERNET;
        let mut at = untagged;
        loop {
            let ether_type = u16::from_be_bytes(read_at(buffers, at - 2));
            if !VLAN.contains(&ether_type) || at == untagged + 2 * VLAN_TAG {
                return (ether_type, at);
            }
            at += VLAN_TAG;
        }
    }
}

/// A receiveq and a transmitq of one NIC, with their queue of the tap.
#[derive(Debug)]
pub struct QueuePair {
    /// Host to guest.
    pub rx: Vring,
    /// Guest to host.
    pub tx: Vring,
    /// What became of frames towards the guest.
    pub rx_counters: Counters,
    /// What became of frames from the guest.
    pub tx_counters: Counters,
    /// Who the guest says it is.
    pub heard: Heard,
    /// The limit of the first; none where `None`.
    pub rx_pacer: Option<Pacer>,
    /// The limit of the second.
    pub tx_pacer: Option<Pacer>,
    /// A ring is about to be disabled: its frames do not wait for a limit.
    draining: bool,
    format: FrameFormat,
    tap: TapQueue,
    bounce: MmapRegion<RegionLog>,
    held: Held,
}

impl QueuePair {
    /// A pair with both rings stopped.
    ///
    /// # Errors
    /// Where there is no memory for its own two frames.
    pub fn new(tap: TapQueue) -> io::Result<Self> {
        Ok(Self {
            rx: Vring::default(),
            tx: Vring::default(),
            rx_counters: Counters::default(),
            tx_counters: Counters::default(),
            heard: Heard::default(),
            rx_pacer: None,
            tx_pacer: None,
            draining: false,
            format: FrameFormat {
                header: HeaderLen::Short,
                mergeable: false,
                mtu: None,
            },
            tap,
            bounce: frame_store()?,
            held: Held {
                store: frame_store()?,
                bytes: 0,
            },
        })
    }

    /// The queue of the tap.
    pub fn tap(&self) -> &TapQueue {
        &self.tap
    }

    /// Sets how frames are laid out. A frame held in the old format is dropped.
    pub fn set_format(&mut self, format: FrameFormat) {
        if self.format != format && self.held.bytes > 0 {
            self.held.take();
            self.rx_counters.dropped += 1;
        }
        self.format = format;
    }

    /// Lets frames through a ring, or not. The tap's queue is attached while either ring is enabled, and what was under
    /// way is brought home before a ring is disabled: the chains the driver has made available, and the frames that
    /// wait in the tap, as far as there are buffers.
    ///
    /// # Errors
    /// Where the tap refuses to attach or detach its queue.
    pub fn enable(&mut self, side: Side, enabled: bool) -> io::Result<()> {
        if !enabled {
            self.drain(side);
        }
        self.vring(side).enabled = enabled;
        self.tap.set_attached(self.rx.enabled || self.tx.enabled)
    }

    /// At most a tap's or ring's worth, since a guest may go on adding. What this takes beyond a rate limit is owed.
    fn drain(&mut self, side: Side) {
        self.draining = true;
        self.drain_bursts(side);
        self.draining = false;
    }

    fn drain_bursts(&mut self, side: Side) {
        for _ in 0..usize::from(MAX_SIZE) / BURST {
            let more = match side {
                Side::Rx => self.process_rx() == RxEnd::More,
                Side::Tx => self.tx.enabled && self.process_tx() == TxEnd::More,
            };
            if !more {
                return;
            }
        }
    }

    /// Whether either ring is started.
    pub fn is_running(&self) -> bool {
        self.rx.started.is_some() || self.tx.started.is_some()
    }

    /// How many chains have been taken, in either direction: what tells a poll that found something.
    fn taken(&self) -> u64 {
        [&self.rx_counters, &self.tx_counters]
            .iter()
            .map(|counters| counters.taken())
            .sum()
    }

    /// Polls both directions until either has had work, at most for `limit`; false where there was none.
    pub fn spin(&mut self, limit: Duration) -> bool {
        let (start, before) = (Instant::now(), self.taken());
        while start.elapsed() < limit {
            self.poll_tx();
            self.poll_rx();
            if self.taken() != before {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// The ring of one side.
    pub fn vring(&mut self, side: Side) -> &mut Vring {
        match side {
            Side::Rx => &mut self.rx,
            Side::Tx => &mut self.tx,
        }
    }

    /// Tells the host's switches where the guest is now, on behalf of a guest that can't (vhost-user "SEND_RARP"): a
    /// broadcast of `mac` into the tap.
    ///
    /// # Errors
    /// Those of the tap.
    pub fn announce(&self, mac: [u8; 6]) -> io::Result<()> {
        let mut bytes = vec![0; self.format.header.bytes()];
        bytes.extend_from_slice(&rarp(mac));
        self.tap
            .writev(&[VolatileSlice::from(&mut bytes[..])])
            .map(drop)
    }

    /// Moves a burst of frames from the transmitq to the tap. Frames of a disabled ring are dropped
    /// (vhost-user "Ring states").
    pub fn process_tx(&mut self) -> TxEnd {
        self.transmit(Idle::Park)
    }

    /// As [`Self::process_tx`], but asks for no kick where the ring is empty: whoever polls looks again anyway.
    pub fn poll_tx(&mut self) -> TxEnd {
        self.transmit(Idle::Poll)
    }

    fn transmit(&mut self, idle: Idle) -> TxEnd {
        let Some(started) = &mut self.tx.started else {
            return TxEnd::RingEmpty;
        };
        let pacer = self.tx_pacer.as_ref().filter(|_| !self.draining);
        let Some(quota) = quota(pacer, &mut self.tx_counters) else {
            return TxEnd::Throttled;
        };
        let Ok(mut ring) = started.open() else {
            self.tx_counters.bad_index += 1;
            return TxEnd::RingEmpty;
        };
        let before = self.tx_counters;
        let transmit = Transmit {
            tap: self.tx.enabled.then_some(&self.tap),
            format: self.format,
            counters: &mut self.tx_counters,
            heard: &mut self.heard,
            quota,
        };
        let mut end = transmit.burst(&mut ring);
        let notify = ring.publish();
        if end == TxEnd::RingEmpty && idle == Idle::Park && ring.enable_kicks() {
            end = TxEnd::More;
        }
        if notify && self.tx.notify() {
            self.tx_counters.calls += 1;
        }
        bill(&self.tx_pacer, &before, &self.tx_counters);
        end
    }

    /// Moves a burst of frames from the tap to the receiveq.
    pub fn process_rx(&mut self) -> RxEnd {
        self.receive(Idle::Park)
    }

    /// As [`Self::process_rx`], but asks for no kick where buffers lack.
    pub fn poll_rx(&mut self) -> RxEnd {
        self.receive(Idle::Poll)
    }

    fn receive(&mut self, idle: Idle) -> RxEnd {
        let Some(started) = self.rx.started.as_mut().filter(|_| self.rx.enabled) else {
            return RxEnd::NoBuffers;
        };
        let pacer = self.rx_pacer.as_ref().filter(|_| !self.draining);
        let Some(quota) = quota(pacer, &mut self.rx_counters) else {
            return RxEnd::Throttled;
        };
        let Ok(mut ring) = started.open() else {
            self.rx_counters.bad_index += 1;
            return RxEnd::NoBuffers;
        };
        let before = self.rx_counters;
        let receive = Receive {
            tap: &self.tap,
            format: self.format,
            bounce: whole(&self.bounce),
            held: &mut self.held,
            counters: &mut self.rx_counters,
            quota,
            rooms: Rooms::default(),
        };
        let mut end = receive.burst(&mut ring);
        let notify = ring.publish();
        if end == RxEnd::NoBuffers && idle == Idle::Park && ring.enable_kicks() {
            end = RxEnd::More;
        }
        if notify && self.rx.notify() {
            self.rx_counters.calls += 1;
        }
        bill(&self.rx_pacer, &before, &self.rx_counters);
        end
    }
}

/// One burst from a transmitq.
struct Transmit<'m> {
    /// `None` while the ring is disabled.
    tap: Option<&'m TapQueue>,
    format: FrameFormat,
    counters: &'m mut Counters,
    heard: &'m mut Heard,
    quota: Quota,
}

impl<'m> Transmit<'m> {
    fn burst(mut self, ring: &mut Ring<'m>) -> TxEnd {
        ring.disable_kicks();
        let mut buffers = Vec::with_capacity(BURST);
        for _ in 0..BURST {
            if self.quota.reached(self.counters) {
                self.counters.throttled += 1;
                return TxEnd::Throttled;
            }
            buffers.clear();
            let Some((chain, bytes)) = ring.next(Direction::Readable, &mut buffers) else {
                return TxEnd::RingEmpty;
            };
            match bytes.and_then(|bytes| self.frame_len(bytes)) {
                Ok(bytes) => {
                    if let Err(TapFull) = self.send(&buffers, bytes) {
                        ring.undo(chain);
                        return TxEnd::TapFull;
                    }
                }
                Err(bad) => self.counters.bad_chains.add(bad),
            }
            ring.complete(chain, 0); // the device writes nothing into a transmitq's chains
        }
        TxEnd::More
    }

    /// The length of the frame in a chain of `bytes`, if they can be a frame behind a header.
    fn frame_len(&self, bytes: usize) -> Result<usize, BadChain> {
        bytes
            .checked_sub(self.format.header.bytes())
            .filter(|frame| (ETHERNET..=MAX_FRAME).contains(frame))
            .ok_or(BadChain::Size)
    }

    fn send(&mut self, buffers: &[Slice<'_>], bytes: usize) -> Result<(), TapFull> {
        let Some(tap) = self.tap else {
            self.counters.disabled += 1;
            return Ok(());
        };
        if self.format.exceeds_mtu(buffers, bytes) {
            self.counters.over_mtu += 1;
            return Ok(());
        }
        self.counters.syscalls += 1;
        match tap.writev(buffers) {
            Ok(_) => {
                self.counters.frames += 1;
                self.counters.gso_frames += u64::from(is_gso(buffers));
                self.counters.bytes += bytes as u64;
                let (ether_type, at) = self.format.packet(buffers);
                self.heard.listen(ether_type, &Behind { buffers, at });
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(TapFull),
            // A header the kernel does not accept, or a tap that is down: the frame is lost, as on a cable.
            Err(_) => self.counters.dropped += 1,
        }
        Ok(())
    }
}

struct TapFull;

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

/// One burst into a receiveq.
struct Receive<'m> {
    tap: &'m TapQueue,
    format: FrameFormat,
    bounce: Slice<'m>,
    held: &'m mut Held,
    counters: &'m mut Counters,
    quota: Quota,
    rooms: Rooms<'m>,
}

/// Chains of a receiveq that are to take one frame.
#[derive(Debug, Default)]
struct Rooms<'m> {
    /// Each, and its length in bytes.
    chains: Vec<(Chain, usize)>,
    /// The buffers of all of them, in order.
    buffers: Vec<Slice<'m>>,
}

/// A frame, header included, that waits for buffers; none if `bytes` is 0.
#[derive(Debug)]
struct Held {
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
    fn burst(mut self, ring: &mut Ring<'m>) -> RxEnd {
        ring.disable_kicks();
        for _ in 0..BURST {
            if self.quota.reached(self.counters) {
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
        match self.gather(ring, self.format.header.bytes()) {
            Ok(()) => {}
            Err(Shortage::TooFew) => return Err(RxEnd::NoBuffers),
            Err(Shortage::Bad) => return Ok(()),
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
        let (_, room) = self.rooms.chains[0];
        mark_written(&self.rooms.buffers, bytes);
        let frame = bytes.saturating_sub(self.format.header.bytes());
        if self.format.exceeds_mtu(&self.rooms.buffers, frame) {
            self.rooms.undo(ring);
            self.counters.over_mtu += 1;
            return Ok(());
        }
        if bytes <= room {
            self.finish(ring, bytes);
            Ok(())
        } else if self.format.mergeable {
            self.spill(ring, room, bytes)
        } else {
            // Larger than the one chain it may have.
            self.rooms.undo(ring);
            self.counters.dropped += 1;
            Ok(())
        }
    }

    /// Finds chains for a frame whose first `room` bytes are in the first chain, and the others in the bounce buffer.
    fn spill(&mut self, ring: &mut Ring<'m>, room: usize, bytes: usize) -> Result<(), RxEnd> {
        let tail = part(self.bounce, 0, bytes - room);
        let first = self.rooms.buffers.len();
        match self.gather(ring, bytes) {
            Ok(()) => {
                copy(&[tail], &self.rooms.buffers[first..]);
                self.finish(ring, bytes);
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
                self.finish(ring, bytes);
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
        let mut room: usize = self.rooms.chains.iter().map(|(_, bytes)| bytes).sum();
        while room < bytes {
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
                Ok(bytes) => {
                    self.rooms.chains.push((chain, bytes));
                    room += bytes;
                }
                Err(bad) => {
                    self.counters.bad_chains.add(bad);
                    for (chain, _) in self.rooms.chains.drain(..) {
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
    fn finish(&mut self, ring: &mut Ring<'m>, bytes: usize) {
        let header = self.format.header;
        self.counters.gso_frames += u64::from(is_gso(&self.rooms.buffers));
        if header == HeaderLen::Long {
            let count = self.rooms.chains.len() as u16;
            write_at(&self.rooms.buffers, NUM_BUFFERS, &count.to_le_bytes());
        }
        let mut left = bytes;
        for (chain, room) in &self.rooms.chains {
            let used = left.min(*room);
            ring.complete(*chain, used as u32);
            left -= used;
        }
        self.counters.frames += 1;
        self.counters.bytes += bytes.saturating_sub(header.bytes()) as u64;
    }
}

impl<'m> Rooms<'m> {
    fn clear(&mut self) {
        self.chains.clear();
        self.buffers.clear();
    }

    /// Makes all chains available again. The buffers stay, for what is in them already.
    fn undo(&mut self, ring: &mut Ring<'m>) {
        for (chain, _) in self.chains.drain(..).rev() {
            ring.undo(chain);
        }
    }
}

impl Held {
    fn set(&mut self, bytes: usize) -> Slice<'_> {
        self.bytes = bytes;
        part(whole(&self.store), 0, bytes)
    }

    fn take(&mut self) -> Slice<'_> {
        let bytes = std::mem::take(&mut self.bytes);
        part(whole(&self.store), 0, bytes)
    }
}

/// How far a burst may go; `None` where its limit is used up.
fn quota(pacer: Option<&Pacer>, counters: &mut Counters) -> Option<Quota> {
    let quota = match pacer {
        Some(pacer) => pacer.quota(counters),
        None => Some(Quota::UNLIMITED),
    };
    counters.throttled += u64::from(quota.is_none());
    quota
}

fn bill(pacer: &Option<Pacer>, before: &Counters, after: &Counters) {
    if let Some(pacer) = pacer {
        pacer.bill(before, after);
    }
}

/// Whether the frame in `buffers`, header first, is yet to be segmented.
fn is_gso(buffers: &[Slice<'_>]) -> bool {
    read_at(buffers, GSO_TYPE) != [0]
}

/// The pair's own memory for one frame with its header: reached like guest memory, so that both go into one
/// list of buffers.
fn frame_store() -> io::Result<MmapRegion<RegionLog>> {
    MmapRegion::new(HeaderLen::Long.bytes() + MAX_FRAME).map_err(io::Error::other)
}

fn whole(region: &MmapRegion<RegionLog>) -> Slice<'_> {
    part(region.as_volatile_slice(), 0, region.size())
}

/// # Panics
/// Where the part lies outside.
fn part(slice: Slice<'_>, offset: usize, len: usize) -> Slice<'_> {
    slice.subslice(offset, len).expect("the part lies inside")
}

/// Copies what `from` holds into `to`, which has room for it.
fn copy(from: &[Slice<'_>], to: &[Slice<'_>]) {
    let mut to = to.iter().copied();
    let mut room = to.next();
    for slice in from {
        let mut done = 0;
        while let Some(target) = room.filter(|_| done < slice.len()) {
            let len = target.len().min(slice.len() - done);
            part(*slice, done, len).copy_to_volatile_slice(part(target, 0, len));
            done += len;
            room = if len == target.len() {
                to.next()
            } else {
                Some(part(target, len, target.len() - len))
            };
        }
    }
}

/// A reverse ARP request by `mac` for itself (RFC 903), padded to the least Ethernet frame.
fn rarp(mac: [u8; 6]) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    // EtherType, Ethernet, IPv4, lengths of both kinds of address, request reverse
    frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}

/// Marks what the kernel has written of `bytes` in the dirty log.
fn mark_written(buffers: &[Slice<'_>], bytes: usize) {
    let mut left = bytes;
    for buffer in buffers {
        let written = left.min(buffer.len());
        buffer.bitmap().mark_dirty(0, written);
        left -= written;
        if left == 0 {
            return;
        }
    }
}

/// The bytes at `offset` of what `buffers` are together; zeroes beyond their end.
fn read_at<const N: usize>(buffers: &[Slice<'_>], mut offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    let mut done = 0;
    for buffer in buffers {
        if offset >= buffer.len() {
            offset -= buffer.len();
            continue;
        }
        let len = (buffer.len() - offset).min(N - done);
        part(*buffer, offset, len).copy_to(&mut bytes[done..done + len]);
        (done, offset) = (done + len, 0);
        if done == N {
            break;
        }
    }
    bytes
}

/// Writes `bytes` at `offset` of what `buffers` are together.
fn write_at(buffers: &[Slice<'_>], mut offset: usize, bytes: &[u8]) {
    let mut left = bytes;
    for buffer in buffers {
        if left.is_empty() {
            return;
        }
        if offset >= buffer.len() {
            offset -= buffer.len();
            continue;
        }
        let (now, later) = left.split_at(left.len().min(buffer.len() - offset));
        part(*buffer, offset, now.len()).copy_from(now);
        (left, offset) = (later, 0);
    }
}
