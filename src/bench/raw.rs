//! Yardsticks: what the kernel allows, by loops that do nothing but write to a tap or read from it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use vm_memory::VolatileSlice;

use super::WorkError;
use super::cpu::Usage;
use super::link::LinkError;
use super::memory::Memory;
use super::pattern::{HEADER, Party, Pattern, Size};
use super::sample::{Progress, Sample, Stopwatch};
use super::tally::Tally;
use super::wire::{Feed, NAP, beside, fed, wait_for_frames, watched};
use crate::tap::{HeaderLen, Offloads, Tap, TapQueue, TapSettings};
use crate::types::{IfName, QueuePairs};

/// How much cold buffers are together: more than caches hold.
const COLD: usize = 64 << 20;

/// The clock is looked at once in so many frames.
const TICK: u64 = 64;

/// Buffers of a yardstick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Buffers {
    /// One, which stays in cache.
    Hot,
    /// As many as are [`COLD`] together, as a guest's are.
    Cold,
}

/// What such a loop does.
#[derive(Debug, Clone, Copy)]
pub enum Yardstick {
    /// It writes frames.
    Writes(Buffers),
    /// It reads frames, into memory that is in no cache.
    Reads,
}

impl Yardstick {
    /// Does that for `span` with frames of this size, on a tap that nobody else uses.
    ///
    /// # Errors
    /// See [`WorkError`].
    pub fn sample(self, tap: &IfName, size: Size, span: Duration) -> Result<Sample, WorkError> {
        let opened = Tap::open(tap, QueuePairs::ONE);
        let (control, queues) = opened.map_err(LinkError::from)?;
        // As a back-end sets it whose guest can do all of it.
        control.set_header_len(HeaderLen::Long)?;
        control.set_offloads(Offloads::CSUM.with(Offloads::TSO4).with(Offloads::TSO6))?;
        match self {
            Self::Writes(buffers) => {
                let frames = Pattern::new(size, 0, Party::GUEST, Party::PEER);
                // A back-end's frames are looked at as well, which costs whoever writes them.
                watched(tap, vec![frames.clone()], || {
                    writes(&queues[0], &frames, buffers, span)
                })
            }
            Self::Reads => reads(&queues[0], tap, size, span),
        }
    }
}

fn moved(count: u64) -> Progress {
    Progress {
        count,
        ..Progress::default()
    }
}

fn writes(
    queue: &TapQueue,
    frames: &Pattern,
    buffers: Buffers,
    span: Duration,
) -> Result<Sample, WorkError> {
    let (memory, places) = store(buffers, frames)?;
    let places: Vec<(usize, usize)> = places
        .iter()
        .enumerate()
        .map(|(turn, place)| (*place, frames.frame(turn).len()))
        .collect();
    for (turn, (place, len)) in places.iter().enumerate() {
        memory.slice(*place, *len).copy_from(frames.frame(turn));
    }
    let mut stopwatch = Stopwatch::new(span, &Usage::of_this_thread);
    let mut done = 0;
    for (place, len) in places.iter().cycle() {
        queue.writev(&[memory.slice(*place, *len)])?;
        done += 1;
        if done % TICK == 0
            && stopwatch.is_due()
            && let Some(sample) = stopwatch.tick(moved(done))?
        {
            return Ok(sample);
        }
    }
    unreachable!("there is a buffer at least")
}

/// A second thread looks at each frame, as a back-end's driver does.
fn reads(queue: &TapQueue, tap: &IfName, size: Size, span: Duration) -> Result<Sample, WorkError> {
    let frames = Pattern::new(size, 0, Party::PEER, Party::GUEST);
    let (memory, places) = store(Buffers::Cold, &frames)?;
    let room = HEADER + size.most();
    let buffer = |number: u64| memory.slice(places[number as usize % places.len()], room);
    let done = AtomicU64::new(0);
    let mut tally = Tally::default();
    fed(tap, vec![frames.clone()], |feed| {
        let look = |ends: &AtomicBool| {
            let mut frame = vec![0; room];
            let mut seen = 0;
            while !ends.load(Ordering::Relaxed) {
                let next = done.load(Ordering::Acquire);
                for number in seen..next {
                    let frame = &mut frame[..HEADER + frames.bytes_of(number)];
                    buffer(number).copy_to(frame);
                    tally.add(frames.check(&frame[HEADER..]));
                }
                feed.arrived(0, next);
                if seen == next {
                    thread::sleep(NAP);
                }
                seen = next;
            }
            let settled = tally.settle(seen, seen);
            settled.map_err(io::Error::other)
        };
        beside(look, || read_on(queue, feed, &done, buffer, span))
    })
}

fn read_on<'m>(
    queue: &TapQueue,
    feed: &Feed,
    done: &AtomicU64,
    buffer: impl Fn(u64) -> VolatileSlice<'m>,
    span: Duration,
) -> Result<Sample, WorkError> {
    let mut stopwatch = Stopwatch::new(span, &Usage::of_this_thread);
    for number in 0.. {
        while let Err(error) = queue.readv(&[buffer(number)]) {
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(error.into());
            }
            feed.is_well()?;
            wait_for_frames(queue)?;
        }
        done.store(number + 1, Ordering::Release);
        if number % TICK == 0
            && stopwatch.is_due()
            && let Some(sample) = stopwatch.tick(moved(number))?
        {
            return Ok(sample);
        }
    }
    unreachable!("there is always a next number")
}

/// Memory, and the places of buffers in it, of which a mix has as many as come in turn at least.
fn store(buffers: Buffers, frames: &Pattern) -> io::Result<(Memory, Vec<usize>)> {
    let room = (HEADER + frames.size().most()).next_multiple_of(64);
    let count = match buffers {
        Buffers::Hot => frames.turns(),
        Buffers::Cold => COLD / room,
    };
    let mut memory = Memory::new(count * room)?;
    let places = (0..count).map(|_| memory.take(room, 64)).collect();
    Ok((memory, places))
}
