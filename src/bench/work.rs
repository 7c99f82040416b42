//! The work itself: frames one way or the other for a while, and whether all of them have arrived.
//!
//! Towards the host, each run begins with [`CHECKED`] frames of which every one is looked at. In the measured part, whose limit is not to
//! be the one who looks, one of [`STRIDE`] is, and the kernel's count of the others must be the driver's. Towards a guest the
//! driver looks at all of them, and no more are under way than the tap has room for, so that none may be lost.

use std::thread;
use std::time::{Duration, Instant};

use super::WorkError;
use super::cpu::Usage;
use super::link;
use super::nic::{Nic, Receiveq, Transmitq, Wish};
use super::pattern::{Pattern, Size};
use super::ring::Direction;
use super::sample::{Progress, Sample, Stopwatch, Times};
use super::wire::{Feed, NAP, STRIDE, Witness, echoed, fed};
use crate::types::IfName;

/// So many frames of each stream are looked at one by one.
const CHECKED: u64 = 20_000;
/// How many of the first may be under way at once.
const UNSEEN: u64 = 2048;
/// How many may be under way between two guests, all pairs together: a tap has room for as many.
const BETWEEN: u64 = 512;
/// Those of them that are of 64 KB.
const BETWEEN_GSO: u64 = 64;
/// How long frames may take that are under way when the load ends.
const LAST: Duration = Duration::from_secs(2);
/// What is sent twice comes within that after the last.
const SILENCE: Duration = Duration::from_millis(50);
/// A tap forgets which queue a flow is of when it has not heard of it for three seconds.
const REMINDER: Duration = Duration::from_secs(1);

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// From the guest to its tap.
    Tx,
    /// From the tap to its guest.
    Rx,
    /// Both at once.
    Both,
    /// From a guest to another on the same bridge.
    Vm,
    /// From the guest to its tap and back, one at a time.
    Rr,
}

impl Work {
    /// Each kind, in the order of reports.
    pub const ALL: [Self; 5] = [Self::Tx, Self::Rx, Self::Both, Self::Vm, Self::Rr];

    /// Whether it takes two guests.
    pub fn is_between_guests(self) -> bool {
        self == Self::Vm
    }

    /// Whether it can be done with frames of this kind by so many pairs: who asks one by one has one, and asks by short frames.
    pub fn suits(self, size: Size, pairs: u16) -> bool {
        self != Self::Rr || (pairs == 1 && matches!(size, Size::Wire(_)))
    }

    /// As reports have it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Tx => "guest to tap",
            Self::Rx => "tap to guest",
            Self::Both => "both ways at once",
            Self::Vm => "guest to guest over a bridge",
            Self::Rr => "guest to tap and back",
        }
    }
}

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
    if work == Work::Rr {
        return echoed(tap, [&to_host[0], &to_guest[0]], || ask(nic, span));
    }
    let out = match work {
        Work::Rx => {
            introduce(nic);
            None
        }
        _ => Some(Out::begin(nic, tap, &to_host)?),
    };
    if work == Work::Tx {
        return Load::new(nic, out, None).run(&pids, span);
    }
    fed(tap, to_guest, |feed| {
        Load::new(nic, out, Some(feed)).run(&pids, span)
    })
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
        check_each(nic, tap, patterns)?;
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

/// Sends a few of which every one is looked at.
fn check_each(nic: &mut Nic, tap: &IfName, patterns: &[Pattern]) -> Result<(), WorkError> {
    let next = nic.pairs.iter().map(|(_, transmitq)| transmitq.sent);
    let streams: Vec<(Pattern, u64)> = patterns.iter().cloned().zip(next).collect();
    let first: Vec<u64> = streams.iter().map(|(_, next)| *next).collect();
    let count = match patterns[0].size() {
        Size::Wire(_) | Size::Imix => CHECKED,
        Size::Gso => CHECKED / 10,
    };
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
struct Load<'a> {
    sending: Vec<&'a mut Transmitq>,
    receiving: Vec<&'a mut Receiveq>,
    /// To the host, if anything is.
    out: Option<Out<'a>>,
    /// From the host, if anything is.
    feed: Option<&'a Feed>,
    /// When the tap was told last which queue each flow is of.
    reminded: Option<Instant>,
}

impl<'a> Load<'a> {
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
        let usage = || Usage::of_all(pids);
        let mut stopwatch = Stopwatch::new(span, &usage);
        let sample = loop {
            if self.turn()? == 0 {
                thread::sleep(NAP);
            }
            if stopwatch.is_due()
                && let Some(sample) = stopwatch.tick(self.progress())?
            {
                break sample;
            }
        };
        if let Some(feed) = self.feed {
            let sent = feed.end();
            drain(&mut self.receiving, &sent)?;
        }
        if let Some(out) = &mut self.out {
            out.end(&mut self.sending)?;
        }
        Ok(sample)
    }

    /// Has each queue do what it can; how many frames that moved.
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

    /// A guest that sends of each flow has the tap know its queue.
    fn remind(&mut self) {
        if self.reminded.is_none_or(|it| it.elapsed() >= REMINDER) {
            self.reminded = Some(Instant::now());
            for transmitq in &mut self.sending {
                transmitq.turn(transmitq.sent + 1);
            }
        }
    }

    fn progress(&mut self) -> Progress {
        let sent = self.sending.iter().map(|it| it.done);
        let sent: u64 = sent.filter(|_| self.out.is_some()).sum();
        let received: u64 = self.receiving.iter().map(|it| it.tally.whole).sum();
        progress(sent + received, &mut self.sending, &mut self.receiving)
    }
}

/// How far the work is, once `count` frames are moved, and how often either side has told the other.
fn progress(
    count: u64,
    sending: &mut [&mut Transmitq],
    receiving: &mut [&mut Receiveq],
) -> Progress {
    let told = sending.iter_mut().map(|it| it.told());
    let told = told.chain(receiving.iter_mut().map(|it| it.told()));
    let start = Progress {
        count,
        ..Progress::default()
    };
    told.fold(start, |sum, [kicks, calls]| Progress {
        kicks: sum.kicks + kicks,
        calls: sum.calls + calls,
        ..sum
    })
}

/// Takes what is under way, until of each stream as many have come as were `sent`.
fn drain(receiving: &mut [&mut Receiveq], sent: &[u64]) -> Result<(), WorkError> {
    let end = Instant::now() + LAST;
    for (receiveq, sent) in receiving.iter_mut().zip(sent) {
        while receiveq.tally.whole < *sent && Instant::now() < end {
            receiveq.turn();
            thread::sleep(NAP);
        }
        let settled = receiveq.tally.settle(*sent, *sent);
        settled.map_err(WorkError::Void)?;
    }
    Ok(())
}

/// Has a guest send of each flow, so that a bridge knows where it is, and its tap which queue the flow is of.
fn introduce(nic: &mut Nic) {
    for (_, transmitq) in &mut nic.pairs {
        transmitq.turn(transmitq.sent + 1);
    }
    thread::sleep(SILENCE);
}

/// Frames from the guest of the first NIC to that of the second, for `span`, as many as go.
///
/// # Errors
/// See [`WorkError`].
pub fn between(
    from: &mut Nic,
    to: &mut Nic,
    size: Size,
    span: Duration,
) -> Result<Sample, WorkError> {
    let mut pids = vec![from.back_end, to.back_end];
    pids.dedup();
    introduce(to);
    let window = match size {
        Size::Wire(_) | Size::Imix => BETWEEN,
        Size::Gso => BETWEEN_GSO,
    } / from.pairs.len() as u64;
    let mut sending: Vec<&mut Transmitq> = from.pairs.iter_mut().map(|(_, tx)| tx).collect();
    let mut receiving: Vec<&mut Receiveq> = to.pairs.iter_mut().map(|(rx, _)| rx).collect();
    let usage = || Usage::of_all(&pids);
    let mut stopwatch = Stopwatch::new(span, &usage);
    let sample = loop {
        let mut moved = 0;
        for (transmitq, receiveq) in sending.iter_mut().zip(&mut receiving) {
            moved += transmitq.turn(receiveq.tally.whole + window) + receiveq.turn();
        }
        if moved == 0 {
            thread::sleep(NAP);
        }
        if stopwatch.is_due() {
            let count = receiving.iter().map(|it| it.tally.whole).sum();
            let now = progress(count, &mut sending, &mut receiving);
            if let Some(sample) = stopwatch.tick(now)? {
                break sample;
            }
        }
    };
    let sent: Vec<u64> = sending.iter().map(|it| it.sent).collect();
    drain(&mut receiving, &sent)?;
    Ok(sample)
}

/// One frame at a time to the host and back. All sleep in between, the host's end as well.
fn ask(nic: &mut Nic, span: Duration) -> Result<Sample, WorkError> {
    let pids = [nic.back_end];
    let (receiveq, transmitq) = &mut nic.pairs[0];
    let mut times = Times::new();
    let usage = || Usage::of_all(&pids);
    let mut stopwatch = Stopwatch::new(span, &usage);
    loop {
        let start = Instant::now();
        let number = transmitq.sent + 1;
        transmitq.turn(number);
        while receiveq.tally.whole < number {
            receiveq.sleep(LAST.saturating_sub(start.elapsed()))?;
            receiveq.turn();
            if start.elapsed() >= LAST {
                settle(receiveq, number)?;
            }
        }
        if stopwatch.runs() {
            times.add(start.elapsed());
        }
        if stopwatch.is_due() {
            let now = progress(number, &mut [&mut *transmitq], &mut [&mut *receiveq]);
            if let Some(mut sample) = stopwatch.tick(now)? {
                settle(receiveq, number)?;
                sample.latency = Some(times.latency());
                return Ok(sample);
            }
        }
    }
}

fn settle(receiveq: &Receiveq, sent: u64) -> Result<(), WorkError> {
    let settled = receiveq.tally.settle(sent, sent);
    settled.map_err(WorkError::Void)
}
