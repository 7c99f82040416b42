//! A receiveq, a transmitq and the tap queue between them: frames in both directions, and what is counted.
//!
//! # Theory of operation
//! [`process_tx`](QueuePair::process_tx) and [`process_rx`](QueuePair::process_rx) each do one burst of at most
//! [`BURST`] chains and say how it ended; the worker decides when to call them again. Neither waits, locks
//! or knows of epoll, so a test drives a pair with a ring in memory and a socketpair for a tap.
//!
//! **Transmit**: a burst's chains are taken first, so that the frames in them are on their way from memory while others are
//! looked at; then the guard, if there is one, copies their heads and judges the copies; and then they are written to the tap
//! together, virtio-net headers and all, straight from guest memory but for heads that were judged, of which the copies are
//! written: the guest can't change those any more. The kernel checks the header; a frame it refuses is dropped and counted.
//!
//! **Receive**: one `readv` straight into the buffers of as many chains as the last frame took, one nearly always, with the
//! pair's own bounce buffer behind them. A frame that fits was never anywhere else. The tail of a larger one (GSO, with mergeable
//! buffers) is copied from the bounce buffer to the chains that follow, and the next read has more of them: large frames come in
//! rows. Gathering up to 64 KB of chains for every read instead costs small frames the walk through 42 unused chains; and a
//! driver that posts fewer than 64 KB of buffers would never receive at all.
//!
//! A frame for which there are too few chains is *held* whole in the pair until there are enough.
//!
//! A chain that breaks a rule is given back with length 0 and counted by kind, and so are those before it that were gathered for
//! the same frame; it harms no other.

mod frame;
mod receive;
mod transmit;

use std::io;
use std::time::{Duration, Instant};

use vm_memory::{MmapRegion, VolatileSlice};

use super::coalesce::{Coalescer, GAP};
use super::counters::Counters;
use super::dirty_log::RegionLog;
use super::guard::{Guard, HEAD, Refusals};
use super::heard::Heard;
use super::rate::{Pacer, Quota};
use super::ring::MAX_SIZE;
use super::vring::{Started, Vring};
use crate::tap::{HeaderLen, TapQueue};
pub use frame::{FrameFormat, MAX_FRAME};
use frame::{frame_store, whole};
use receive::{Held, Receive, Rooms};
use transmit::{Gate, HEADS, Transmit};

/// The most chains taken in one burst of one direction, so that the other gets its turn, and the driver its chains back.
pub const BURST: usize = 64;

/// A burst ends with the frame that brings it to so many bytes: 64 of 64 KB would be all chains that a ring has, and leave the
/// driver nothing to do meanwhile.
const BURST_BYTES: usize = 256 << 10;

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
    /// What of that was refused of late.
    pub refusals: Refusals,
    /// Who the guest may say it is; anybody where `None`.
    guard: Option<Gatekeeper>,
    /// The limit of the first; none where `None`.
    pub rx_pacer: Option<Pacer>,
    /// The limit of the second.
    pub tx_pacer: Option<Pacer>,
    /// When the driver is told of the transmitq's chains.
    pub tx_calls: Coalescer,
    /// A ring is about to be disabled: its frames do not wait for a limit.
    draining: bool,
    format: FrameFormat,
    tap: TapQueue,
    bounce: MmapRegion<RegionLog>,
    held: Held,
    /// See [`Receive::expected`].
    expected: usize,
}

/// A guard, and memory for the heads of a burst's frames.
#[derive(Debug)]
struct Gatekeeper {
    guard: Guard,
    scratch: Box<[u8; HEAD]>,
    heads: MmapRegion<RegionLog>,
}

impl QueuePair {
    /// A pair with both rings stopped.
    ///
    /// # Errors
    /// Where there is no memory for its own two frames, or no timer.
    pub fn new(tap: TapQueue) -> io::Result<Self> {
        Ok(Self {
            rx: Vring::default(),
            tx: Vring::default(),
            rx_counters: Counters::default(),
            tx_counters: Counters::default(),
            heard: Heard::default(),
            refusals: Refusals::default(),
            guard: None,
            rx_pacer: None,
            tx_pacer: None,
            tx_calls: Coalescer::new(GAP)?,
            draining: false,
            format: FrameFormat {
                header: HeaderLen::Short,
                mergeable: false,
                mtu: None,
            },
            tap,
            bounce: frame_store()?,
            held: Held::new()?,
            expected: 0,
        })
    }

    /// Has `guard` look at what the guest sends.
    ///
    /// # Errors
    /// Where there is no memory for the heads of a burst's frames.
    pub fn set_guard(&mut self, guard: Guard) -> io::Result<()> {
        let heads = MmapRegion::new(HEADS).map_err(io::Error::other)?;
        self.guard = Some(Gatekeeper {
            guard,
            scratch: Box::new([0; HEAD]),
            heads,
        });
        Ok(())
    }

    /// The queue of the tap.
    pub fn tap(&self) -> &TapQueue {
        &self.tap
    }

    /// Sets how frames are laid out. A frame held in the old format is dropped.
    pub fn set_format(&mut self, format: FrameFormat) {
        if self.format != format && self.held.discard() {
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
        let end = self.taken() + u64::from(MAX_SIZE);
        for _ in 0..MAX_SIZE {
            if self.taken() >= end {
                return;
            }
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

    /// Stops a ring; returns it, or `None` if it was stopped. Of what it has completed the driver has then been told.
    pub fn stop(&mut self, side: Side) -> Option<Started> {
        if side == Side::Tx {
            self.call_held();
        }
        self.vring(side).started.take()
    }

    /// The timer of [`Self::tx_calls`] has told.
    pub fn call_in_time(&mut self) {
        if self.tx_calls.expired() {
            self.call(Side::Tx);
        }
    }

    /// Tells the driver at once of what it would be told later.
    fn call_held(&mut self) {
        if self.tx_calls.take() {
            self.call(Side::Tx);
        }
    }

    fn call(&mut self, side: Side) {
        let (vring, counters) = match side {
            Side::Rx => (&self.rx, &mut self.rx_counters),
            Side::Tx => (&self.tx, &mut self.tx_counters),
        };
        counters.calls += u64::from(vring.notify());
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
        let tap = self.tx.enabled.then_some(&mut self.tap);
        let (counters, heard) = (&mut self.tx_counters, &mut self.heard);
        let gate = self.guard.as_mut().map(|it| Gate {
            guard: &mut it.guard,
            refusals: &mut self.refusals,
            scratch: &mut it.scratch,
            heads: whole(&it.heads),
        });
        let transmit = Transmit::new(tap, self.format, counters, heard, gate, quota);
        let mut end = transmit.burst(&mut ring);
        let notify = ring.publish();
        if end == TxEnd::RingEmpty && idle == Idle::Park && ring.enable_kicks() {
            end = TxEnd::More;
        }
        if self.tx_calls.completed(notify, &before, &self.tx_counters) {
            self.call(Side::Tx);
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
            guard: self.guard.as_ref().map(|it| &it.guard),
            held: &mut self.held,
            expected: &mut self.expected,
            counters: &mut self.rx_counters,
            quota,
            rooms: Rooms::default(),
        };
        let mut end = receive.burst(&mut ring);
        let notify = ring.publish();
        if end == RxEnd::NoBuffers && idle == Idle::Park && ring.enable_kicks() {
            end = RxEnd::More;
        }
        if notify {
            self.call(Side::Rx);
            self.call_held(); // the guest is interrupted anyway
        }
        bill(&self.rx_pacer, &before, &self.rx_counters);
        end
    }
}

/// How far a burst may go; `None` where its limit is used up.
fn quota(pacer: Option<&Pacer>, counters: &mut Counters) -> Option<Quota> {
    let quota = match pacer {
        Some(pacer) => pacer.quota(),
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
