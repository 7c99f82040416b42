//! Between a guest and the host.
//!
//! Towards the host, each run begins with [`CHECKED`] frames of which every one is looked at. In the measured part, whose limit
//! is not to be the one who looks, one of [`STRIDE`] is, and the kernel's count of the others must be the driver's. Towards a
//! guest the driver looks at all of them, and no more are under way than the tap has room for, so that none may be lost.

use std::thread;
use std::time::{Duration, Instant};

use super::ask::ask;
use super::{LAST, Load, SILENCE, Work, drain, progress};
use crate::bench::WorkError;
use crate::bench::cpu::Usage;
use crate::bench::link;
use crate::bench::nic::{Nic, Receiveq, Transmitq, Wish};
use crate::bench::pattern::{Pattern, Size};
use crate::bench::ring::Direction;
use crate::bench::sample::{Progress, Sample, Stopwatch};
use crate::bench::wire::{Feed, NAP, STRIDE, Witness, echoed, fed};
use crate::types::IfName;

/// So many frames of each stream are looked at one by one.
const CHECKED: u64 = 20_000;
/// How many of the first may be under way at once.
const UNSEEN: u64 = 2048;
/// A tap forgets which queue a flow is of when it has not heard of it for three seconds.
const REMINDER: Duration = Duration::from_secs(1);

/// Does some work between the guest of `nic` and `tap` for `span`, with NICs as `wish` says.
///
/// # Errors
/// See [`WorkError`].
pub fn with_host(
    work: Work,
    nic: &mut Nic,
    tap: &IfName,
    wish: Wish,
    span: Duration,
) -> Result<Sample, WorkError> {
    let patterns = |direction| {
        let pairs = 0..wish.pairs;
        pairs.map(|pair| wish.pattern(pair, direction)).collect()
    };
    let to_host: Vec<Pattern> = patterns(Direction::Readable);
    let to_guest: Vec<Pattern> = patterns(Direction::Writable);
    let pids = [nic.back_end];
    if work == Work::Idle {
        return idle(&pids, span);
    }
    if work == Work::Rr {
        return echoed(tap, [&to_host[0], &to_guest[0]], || ask(nic, span));
    }
    let out = match work {
        Work::Rx => {
            check_each(nic, tap, &to_host, 1)?; // and so its tap knows which queue each flow is of
            None
        }
        _ => Some(Out::begin(nic, tap, &to_host)?),
    };
    if work == Work::Tx {
        return Exchange::new(nic, out, None).run(&pids, span);
    }
    fed(tap, to_guest, |feed| {
        Exchange::new(nic, out, Some(feed)).run(&pids, span)
    })
}

/// Leaves the back-end alone; what is counted is milliseconds.
fn idle(pids: &[u32], span: Duration) -> Result<Sample, WorkError> {
    let usage = || Usage::of_all(pids);
    let mut stopwatch = Stopwatch::new(span, &usage);
    let start = Instant::now();
    loop {
        thread::sleep(SILENCE);
        if stopwatch.is_due() {
            let now = Progress {
                count: start.elapsed().as_millis() as u64,
                ..Progress::default()
            };
            if let Some(sample) = stopwatch.tick(now)? {
                return Ok(sample);
            }
        }
    }
}

/// Frames on their way to a tap.
struct Out<'a> {
    tap: &'a IfName,
    witness: Witness,
    /// What the kernel had counted, and the driver sent, when it began.
    received: u64,
    sent: u64,
}

impl<'a> Out<'a> {
    /// Sends a few of which every one is looked at, and has the others looked at now and then.
    fn begin(nic: &mut Nic, tap: &'a IfName, patterns: &[Pattern]) -> Result<Self, WorkError> {
        let count = match patterns[0].size() {
            Size::Gso => CHECKED / 10,
            _ => CHECKED,
        };
        check_each(nic, tap, patterns, count)?;
        let next = nic.pairs.iter().map(|(_, transmitq)| transmitq.sent);
        let sent = next.clone().sum();
        let streams = patterns.iter().cloned().zip(next).collect();
        Ok(Self {
            tap,
            witness: Witness::new(tap, streams, STRIDE)?,
            received: link::counts(tap)?.received,
            sent,
        })
    }

    /// Waits until the tap has all that was sent; a back-end may be done with a frame before that.
    fn end(&mut self, sending: &mut [&mut Transmitq]) -> Result<(), WorkError> {
        let numbers: Vec<u64> = sending.iter().map(|it| it.sent).collect();
        let sent = numbers.iter().sum::<u64>() - self.sent;
        let end = Instant::now() + LAST;
        let mut arrived = 0;
        let under_way = |sending: &[&mut Transmitq]| sending.iter().any(|it| it.done < it.sent);
        while (under_way(sending) || arrived < sent) && Instant::now() < end {
            thread::sleep(NAP);
            for transmitq in &mut *sending {
                transmitq.turn(0);
            }
            self.witness.look()?;
            arrived = link::counts(self.tap)?.received - self.received;
        }
        self.witness.look()?;
        self.witness.settle(&numbers)?;
        if arrived != sent {
            let tap = self.tap;
            let why = format!("{sent} frames were sent, {arrived} have come in by {tap}");
            return Err(WorkError::Void(why));
        }
        Ok(())
    }
}

/// Sends `count` of each stream, of which every one is looked at.
fn check_each(
    nic: &mut Nic,
    tap: &IfName,
    patterns: &[Pattern],
    count: u64,
) -> Result<(), WorkError> {
    let next = nic.pairs.iter().map(|(_, transmitq)| transmitq.sent);
    let streams: Vec<(Pattern, u64)> = patterns.iter().cloned().zip(next).collect();
    let first: Vec<u64> = streams.iter().map(|(_, next)| *next).collect();
    let unseen = UNSEEN / patterns.len() as u64;
    let mut witness = Witness::new(tap, streams, 1)?;
    let mut last = Instant::now();
    while (0..first.len()).any(|it| witness.whole(it) < count) && last.elapsed() < LAST {
        for (stream, (_, transmitq)) in nic.pairs.iter_mut().enumerate() {
            let seen = witness.whole(stream);
            transmitq.turn(first[stream] + count.min(seen + unseen));
        }
        match witness.look()? {
            0 => thread::sleep(NAP),
            _ => last = Instant::now(),
        }
    }
    thread::sleep(SILENCE);
    witness.look()?;
    let next: Vec<u64> = first.iter().map(|first| first + count).collect();
    witness.settle(&next)
}

/// What a NIC's queues do for a while: as much as goes.
struct Exchange<'a> {
    sending: Vec<&'a mut Transmitq>,
    receiving: Vec<&'a mut Receiveq>,
    /// To the host, if anything is.
    out: Option<Out<'a>>,
    /// From the host, if anything is.
    feed: Option<&'a Feed>,
    /// When the tap was told last which queue each flow is of.
    reminded: Option<Instant>,
}

impl<'a> Exchange<'a> {
    fn new(nic: &'a mut Nic, out: Option<Out<'a>>, feed: Option<&'a Feed>) -> Self {
        let (receiving, sending) = nic.pairs.iter_mut().map(|(rx, tx)| (rx, tx)).unzip();
        Self {
            sending,
            receiving,
            out,
            feed,
            reminded: None,
        }
    }

    fn run(mut self, pids: &[u32], span: Duration) -> Result<Sample, WorkError> {
        let sample = self.measure(pids, span)?;
        if let Some(feed) = self.feed {
            let sent = feed.end();
            drain(&mut self.receiving, &sent)?;
        }
        if let Some(out) = &mut self.out {
            out.end(&mut self.sending)?;
        }
        Ok(sample)
    }

    /// A guest that sends of each flow has the tap know its queue.
    fn remind(&mut self) {
        if self.reminded.is_none_or(|it| it.elapsed() >= REMINDER) {
            self.reminded = Some(Instant::now());
            for transmitq in &mut self.sending {
                transmitq.turn(transmitq.sent + 1);
            }
        }
    }
}

impl Load for Exchange<'_> {
    fn turn(&mut self) -> Result<u64, WorkError> {
        let mut moved = 0;
        if let Some(out) = &mut self.out {
            for transmitq in &mut self.sending {
                moved += transmitq.turn(u64::MAX);
            }
            out.witness.look()?;
        }
        if let Some(feed) = self.feed {
            for (stream, receiveq) in self.receiving.iter_mut().enumerate() {
                moved += receiveq.turn();
                feed.arrived(stream, receiveq.tally.whole);
            }
            feed.is_well()?;
            if self.out.is_none() {
                self.remind();
            }
        }
        Ok(moved)
    }

    fn progress(&mut self) -> Progress {
        let sent = self.sending.iter().map(|it| it.done);
        let sent: u64 = sent.filter(|_| self.out.is_some()).sum();
        let received: u64 = self.receiving.iter().map(|it| it.tally.whole).sum();
        progress(sent + received, &mut self.sending, &mut self.receiving)
    }
}
