//! The work itself: frames one way or the other for a while, and whether all of them have arrived.
//!
//! Towards the host, each run begins with [`CHECKED`] frames of which every one is looked at. In the measured part, whose limit is not to
//! be the one who looks, one of [`STRIDE`] is, and the kernel's count of the others must be the driver's. Towards the guest the
//! driver looks at all of them, and no more are under way than the tap has room for, so that none may be lost.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use thiserror::Error;
use vm_memory::VolatileSlice;

use super::cpu::Usage;
use super::link::{self, LinkError};
use super::memory::Memory;
use super::nic::{Nic, NicError};
use super::pattern::{ETHER_TYPE, Frames, HEADER, Pattern, Size, Verdict};
use super::tally::Tally;
use crate::packet::{PacketSocket, Take};
use crate::tap::TapQueue;
use crate::types::IfName;

/// So many frames are looked at one by one.
const CHECKED: u64 = 20_000;
/// And one of so many of the others.
const STRIDE: u64 = 64;
/// How many of the first may be under way at once.
const UNSEEN: u64 = 2048;
/// How long a driver with nothing to do leaves the CPU to others: a ring of 1024 lasts longer.
const NAP: Duration = Duration::from_micros(50);
/// How long frames may take that are under way when the load ends.
const LAST: Duration = Duration::from_secs(2);
/// What comes first is not measured.
const WARM_UP: Duration = Duration::from_millis(200);
/// How much a yardstick's buffers are together: more than caches hold.
const COLD: usize = 64 << 20;

/// Why there is no result.
#[derive(Debug, Error)]
pub enum WorkError {
    /// Frames are not what they should be.
    #[error("void: {0}")]
    Void(String),
    /// The back-end.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// The host's end.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The kernel.
    #[error("the host's end of the wire")]
    Wire(#[from] io::Error),
}

/// A measured while.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    /// Frames that were moved.
    pub frames: u64,
    /// How long that took.
    pub seconds: f64,
    /// What who moved them has used meanwhile.
    pub usage: Usage,
    /// How long round trips took.
    pub latency: Option<Latency>,
}

/// Times of round trips, in nanoseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    /// Half of them took no longer.
    pub p50: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1000.
    pub p999: u64,
}

/// What a sample is taken of, while it works.
struct Stopwatch<'a> {
    usage: &'a dyn Fn() -> io::Result<Usage>,
    begun: Option<(Instant, u64, Usage)>,
    start: Instant,
    span: Duration,
}

impl<'a> Stopwatch<'a> {
    fn new(span: Duration, usage: &'a dyn Fn() -> io::Result<Usage>) -> Self {
        Self {
            usage,
            begun: None,
            start: Instant::now(),
            span,
        }
    }

    /// Whether what happens counts.
    fn runs(&self) -> bool {
        self.begun.is_some()
    }

    /// To be told now and then how many `frames` were moved so far; gives the sample once its time is over.
    fn tick(&mut self, frames: u64) -> io::Result<Option<Sample>> {
        let now = Instant::now();
        let Some((begun, first, before)) = self.begun else {
            if now - self.start >= WARM_UP {
                self.begun = Some((now, frames, (self.usage)()?));
            }
            return Ok(None);
        };
        if now - begun < self.span {
            return Ok(None);
        }
        Ok(Some(Sample {
            frames: frames - first,
            seconds: (now - begun).as_secs_f64(),
            usage: (self.usage)()? - before,
            latency: None,
        }))
    }
}

/// Frames from the guest to `tap`, as many as go for `span`.
///
/// # Errors
/// See [`WorkError`].
pub fn transmit(
    nic: &mut Nic,
    tap: &IfName,
    frames: &Frames,
    span: Duration,
) -> Result<Sample, WorkError> {
    check_each(nic, tap, frames)?;
    let transmitq = &mut nic.pairs[0].1;
    let mut witness = Witness::new(tap, &frames.tx, transmitq.sent)?;
    let (before, first) = (link::counts(tap)?, transmitq.sent);
    let usage = || Usage::of(nic.back_end);
    let mut stopwatch = Stopwatch::new(span, &usage);
    let sample = loop {
        if transmitq.turn(u64::MAX) == 0 {
            thread::sleep(NAP);
        }
        witness.look()?;
        if let Some(sample) = stopwatch.tick(transmitq.done)? {
            break sample;
        }
    };
    // A back-end may be done with a frame before the tap has it.
    let sent = transmitq.sent - first;
    let end = Instant::now() + LAST;
    let mut arrived = 0;
    while (transmitq.done < transmitq.sent || arrived < sent) && Instant::now() < end {
        thread::sleep(NAP);
        transmitq.turn(0);
        witness.look()?;
        arrived = link::counts(tap)?.received - before.received;
    }
    witness.look()?;
    witness.settle(transmitq.sent)?;
    if arrived != sent {
        let why = format!("{sent} frames were sent, {arrived} have come in by {tap}");
        return Err(WorkError::Void(why));
    }
    Ok(sample)
}

/// Sends a few of which every one is looked at.
fn check_each(nic: &mut Nic, tap: &IfName, frames: &Frames) -> Result<(), WorkError> {
    let transmitq = &mut nic.pairs[0].1;
    let count = match frames.size() {
        Size::Wire(_) => CHECKED,
        Size::Gso => CHECKED / 10,
    };
    let socket = PacketSocket::on(tap, Take::EtherType(ether_type(frames.size())))?;
    let (first, mut tally) = (transmitq.sent, Tally::from(transmitq.sent));
    let mut buffer = vec![0; 1 << 17];
    let mut last = Instant::now();
    while tally.whole < count && last.elapsed() < LAST {
        let limit = (first + count).min(first + tally.whole + UNSEEN);
        transmitq.turn(limit);
        let seen = drain(&socket, &mut buffer, |frame| {
            tally.add(frames.tx.check(frame))
        })?;
        match seen {
            0 => thread::sleep(NAP),
            _ => last = Instant::now(),
        }
    }
    // What is sent twice would come after the last.
    thread::sleep(WARM_UP / 4);
    drain(&socket, &mut buffer, |frame| {
        tally.add(frames.tx.check(frame))
    })?;
    missed_none(&socket)?;
    tally.settle(count, first + count).map_err(WorkError::Void)
}

/// Who looks at one frame of [`STRIDE`].
struct Witness<'a> {
    socket: PacketSocket,
    frames: &'a Pattern,
    buffer: Vec<u8>,
    tally: Tally,
    first: u64,
}

impl<'a> Witness<'a> {
    /// Of those from number `next` on.
    fn new(tap: &IfName, frames: &'a Pattern, next: u64) -> io::Result<Self> {
        let [number, _] = frames.numbers();
        let take = Take::Sample {
            ether_type: ether_type(frames.size()),
            at: (number + 7 - HEADER) as u32, // its lowest byte
            mask: STRIDE as u8 - 1,
        };
        let first = next.div_ceil(STRIDE);
        Ok(Self {
            socket: PacketSocket::on(tap, take)?,
            frames,
            buffer: vec![0; 1 << 17],
            tally: Tally::from(first),
            first,
        })
    }

    fn look(&mut self) -> io::Result<()> {
        let (tally, frames) = (&mut self.tally, self.frames);
        drain(&self.socket, &mut self.buffer, |frame| {
            tally.add(match frames.check(frame) {
                Verdict::Whole(number) => Verdict::Whole(number / STRIDE),
                other => other,
            });
        })?;
        Ok(())
    }

    /// What is wrong, once `sent` is the number of the next frame.
    fn settle(&self, sent: u64) -> Result<(), WorkError> {
        missed_none(&self.socket)?;
        let next = sent.div_ceil(STRIDE);
        let settled = self.tally.settle(next - self.first, next);
        settled.map_err(|why| WorkError::Void(format!("of a sample {why}")))
    }
}

fn ether_type(size: Size) -> u16 {
    match size {
        Size::Wire(_) => ETHER_TYPE,
        Size::Gso => libc::ETH_P_IP as u16,
    }
}

/// Takes what there is; how many frames.
fn drain(socket: &PacketSocket, buffer: &mut [u8], mut look: impl FnMut(&[u8])) -> io::Result<u64> {
    let mut count = 0;
    loop {
        match socket.receive(buffer) {
            Ok(bytes) => look(&buffer[..bytes.min(buffer.len())]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
            Err(error) => return Err(error),
        }
        count += 1;
    }
}

/// That who looks has not been too slow is a condition of everything that it says.
fn missed_none(socket: &PacketSocket) -> Result<(), WorkError> {
    match socket.missed()? {
        0 => Ok(()),
        missed => Err(WorkError::Void(format!(
            "the bench itself was too slow for {missed} frames"
        ))),
    }
}

/// Frames from `tap` to the guest, as many as go for `span`.
///
/// # Errors
/// See [`WorkError`].
pub fn receive(
    nic: &mut Nic,
    tap: &IfName,
    frames: &Frames,
    span: Duration,
) -> Result<Sample, WorkError> {
    let receiveq = &mut nic.pairs[0].0;
    let back_end = nic.back_end;
    fed(tap, frames, |feed| {
        let usage = || Usage::of(back_end);
        let mut stopwatch = Stopwatch::new(span, &usage);
        let sample = loop {
            if receiveq.turn() == 0 {
                thread::sleep(NAP);
            }
            feed.arrived(receiveq.tally.whole);
            if let Some(sample) = stopwatch.tick(receiveq.tally.whole)? {
                break sample;
            }
            feed.is_well()?;
        };
        let sent = feed.end();
        let end = Instant::now() + LAST;
        while receiveq.tally.whole < sent && Instant::now() < end {
            receiveq.turn();
            thread::sleep(NAP);
        }
        let settled = receiveq.tally.settle(sent, sent);
        settled.map_err(WorkError::Void)?;
        Ok(sample)
    })
}

/// Who puts frames on a tap, for the one who takes them.
struct Feed {
    arrived: AtomicU64,
    ends: AtomicBool,
    has_failed: AtomicBool,
    sent: AtomicU64,
    done: AtomicBool,
}

impl Feed {
    fn arrived(&self, frames: u64) {
        self.arrived.store(frames, Ordering::Relaxed);
    }

    /// Has it send no more; how many it has sent.
    fn end(&self) -> u64 {
        self.ends.store(true, Ordering::Relaxed);
        while !self.done.load(Ordering::Acquire) {
            thread::sleep(NAP);
        }
        self.sent.load(Ordering::Relaxed)
    }

    fn is_well(&self) -> Result<(), WorkError> {
        match self.has_failed.load(Ordering::Relaxed) {
            true => Err(WorkError::Void("the bench can't send".to_owned())),
            false => Ok(()),
        }
    }

    fn run(&self, tap: &IfName, frames: &Frames) -> io::Result<()> {
        let socket = PacketSocket::on(tap, Take::Nothing)?;
        // A packet socket's headers are those of legacy devices, of ten bytes.
        let (socket, skipped, window) = match frames.size() {
            Size::Wire(_) => (socket, HEADER, 512),
            Size::Gso => (socket.with_headers()?, 2, 64),
        };
        let mut batch: Vec<Vec<u8>> = (0..64).map(|_| frames.rx.bytes().to_vec()).collect();
        if frames.size() == Size::Gso {
            for frame in &mut batch {
                frame.copy_within(..10, 2);
            }
        }
        let mut sent = 0;
        while !self.ends.load(Ordering::Relaxed) {
            let room = self.arrived.load(Ordering::Relaxed) + window - sent;
            let count = room.min(batch.len() as u64);
            if count == 0 {
                thread::sleep(NAP);
                continue;
            }
            for (number, frame) in batch.iter_mut().take(count as usize).enumerate() {
                frames.rx.stamp(frame, sent + number as u64);
            }
            let ready: Vec<&[u8]> = batch[..count as usize]
                .iter()
                .map(|frame| &frame[skipped..])
                .collect();
            match socket.send(&ready) {
                Ok(more) => sent += more as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(NAP),
                Err(error) => return Err(error),
            }
            self.sent.store(sent, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Runs `work` while a thread puts frames on `tap`.
fn fed(
    tap: &IfName,
    frames: &Frames,
    work: impl FnOnce(&Feed) -> Result<Sample, WorkError>,
) -> Result<Sample, WorkError> {
    let feed = Feed {
        arrived: AtomicU64::new(0),
        ends: AtomicBool::new(false),
        has_failed: AtomicBool::new(false),
        sent: AtomicU64::new(0),
        done: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let feeding = scope.spawn(|| {
            let fed = feed.run(tap, frames);
            feed.has_failed.store(fed.is_err(), Ordering::Relaxed);
            feed.done.store(true, Ordering::Release);
            fed
        });
        let worked = work(&feed);
        feed.ends.store(true, Ordering::Relaxed);
        match feeding.join() {
            Ok(fed) => fed?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        worked
    })
}

/// One frame at a time from the guest to `tap` and back, for `span`. All sleep in between, the host's end as well.
///
/// # Errors
/// See [`WorkError`].
pub fn round_trips(
    nic: &mut Nic,
    tap: &IfName,
    frames: &Frames,
    span: Duration,
) -> Result<Sample, WorkError> {
    let socket = PacketSocket::on(tap, Take::EtherType(ether_type(frames.size())))?;
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        let echo = scope.spawn(|| answer(&socket, frames, &ends));
        let sample = ask(nic, span);
        ends.store(true, Ordering::Relaxed);
        match echo.join() {
            Ok(echoed) => echoed?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        sample
    })
}

fn ask(nic: &mut Nic, span: Duration) -> Result<Sample, WorkError> {
    let back_end = nic.back_end;
    let (receiveq, transmitq) = &mut nic.pairs[0];
    let mut times = Histogram::<u64>::new(3).map_err(io::Error::other)?;
    let usage = || Usage::of(back_end);
    let mut stopwatch = Stopwatch::new(span, &usage);
    loop {
        let start = Instant::now();
        let number = transmitq.sent + 1;
        transmitq.turn(number);
        while receiveq.tally.whole < number {
            receiveq.sleep(LAST.saturating_sub(start.elapsed()))?;
            receiveq.turn();
            if start.elapsed() >= LAST {
                receiveq
                    .tally
                    .settle(number, number)
                    .map_err(WorkError::Void)?;
            }
        }
        if stopwatch.runs() {
            let nanoseconds = start.elapsed().as_nanos() as u64;
            times.record(nanoseconds).map_err(io::Error::other)?;
        }
        if let Some(mut sample) = stopwatch.tick(number)? {
            receiveq
                .tally
                .settle(number, number)
                .map_err(WorkError::Void)?;
            let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|part| times.value_at_quantile(part));
            sample.latency = Some(Latency { p50, p99, p999 });
            return Ok(sample);
        }
    }
}

/// Sends frames back to where they come from.
fn answer(socket: &PacketSocket, frames: &Frames, ends: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 17];
    let to_guest = &frames.rx.bytes()[HEADER..HEADER + 12];
    while !ends.load(Ordering::Relaxed) {
        match socket.receive(&mut buffer) {
            Ok(bytes) => {
                buffer[..12].copy_from_slice(to_guest);
                socket.send(&[&buffer[..bytes]])?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_for_frames(socket)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Buffers of a yardstick: one that stays in cache, or more than caches hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Buffers {
    /// One.
    Hot,
    /// As many as are [`COLD`] together.
    Cold,
}

/// What the kernel allows: frames written to `queue`, one after another, by a loop that does nothing else.
///
/// # Errors
/// See [`WorkError`].
pub fn raw_writes(
    queue: &TapQueue,
    frames: &Frames,
    buffers: Buffers,
    span: Duration,
) -> Result<Sample, WorkError> {
    let (memory, places) = store(buffers, frames.tx.bytes().len())?;
    for place in &places {
        memory
            .slice(*place, frames.tx.bytes().len())
            .copy_from(frames.tx.bytes());
    }
    let mut stopwatch = Stopwatch::new(span, &Usage::of_this_thread);
    let mut done = 0;
    for place in places.iter().cycle() {
        queue.writev(&[memory.slice(*place, frames.tx.bytes().len())])?;
        done += 1;
        if done % STRIDE == 0
            && let Some(sample) = stopwatch.tick(done)?
        {
            return Ok(sample);
        }
    }
    unreachable!("there is a buffer at least")
}

/// Frames read from `queue`, the tap's, into memory that is in no cache.
///
/// # Errors
/// See [`WorkError`].
pub fn raw_reads(
    queue: &TapQueue,
    tap: &IfName,
    frames: &Frames,
    span: Duration,
) -> Result<Sample, WorkError> {
    let (memory, places) = store(Buffers::Cold, frames.rx.bytes().len())?;
    let mut places = places.iter().cycle();
    fed(tap, frames, |feed| {
        let mut stopwatch = Stopwatch::new(span, &Usage::of_this_thread);
        let mut done = 0;
        loop {
            let place = places.next().expect("a buffer at least");
            let buffer: VolatileSlice<'_> = memory.slice(*place, frames.rx.bytes().len());
            match queue.readv(&[buffer]) {
                Ok(_) => done += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    feed.arrived(done);
                    feed.is_well()?;
                    wait_for_frames(queue)?;
                }
                Err(error) => return Err(error.into()),
            }
            if done % STRIDE == 0 {
                feed.arrived(done);
                if let Some(sample) = stopwatch.tick(done)? {
                    return Ok(sample);
                }
            }
        }
    })
}

fn wait_for_frames(end: &impl AsFd) -> io::Result<()> {
    let limit = Timespec {
        tv_sec: 0,
        tv_nsec: 10_000_000,
    };
    poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&limit))?;
    Ok(())
}

fn store(buffers: Buffers, frame: usize) -> io::Result<(Memory, Vec<usize>)> {
    let room = frame.next_multiple_of(64);
    let count = match buffers {
        Buffers::Hot => 1,
        Buffers::Cold => COLD / room,
    };
    let mut memory = Memory::new(count * room)?;
    let places = (0..count).map(|_| memory.take(room, 64)).collect();
    Ok((memory, places))
}
