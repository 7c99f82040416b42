//! The host's end of a NIC: who looks at frames that come in by its tap, and who puts frames on it.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::WorkError;
use super::pattern::{HEADER, IPV4, Pattern, Size, Verdict};
use super::tally::Tally;
use crate::packet::{PacketSocket, Take};
use crate::types::IfName;

/// How long somebody with nothing to do leaves the CPU to others: a ring of 1024 lasts longer.
pub const NAP: Duration = Duration::from_micros(50);

/// A witness of many frames looks at one of so many.
pub const STRIDE: u64 = 64;

/// More than any frame.
const ROOM: usize = 1 << 17;

/// Frames that are put on a tap at once; a multiple of those of a mix.
const BATCH: usize = 60;

/// Who looks at all frames that come in by a tap, or at one of so many.
pub struct Witness {
    socket: PacketSocket,
    buffer: Vec<u8>,
    streams: Vec<Stream>,
    stride: u64,
}

struct Stream {
    pattern: Pattern,
    first: u64,
    tally: Tally,
}

impl Witness {
    /// Of the frames of these streams whose numbers are multiples of `stride`, a power of two up to 128, from those numbers on.
    ///
    /// # Errors
    /// Those of packet sockets.
    pub fn new(tap: &IfName, streams: Vec<(Pattern, u64)>, stride: u64) -> io::Result<Self> {
        let take = match (stride, streams.first()) {
            (2.., Some((pattern, _))) => Take::Sample {
                ether_type: IPV4,
                at: (pattern.number_at() + 7 - HEADER) as u32, // its lowest byte
                mask: stride as u8 - 1,
            },
            _ => Take::EtherType(IPV4),
        };
        let streams = streams.into_iter().map(|(pattern, next)| {
            let first = next.div_ceil(stride);
            let tally = Tally::from(first);
            Stream {
                pattern,
                first,
                tally,
            }
        });
        Ok(Self {
            socket: PacketSocket::on(tap, take)?,
            buffer: vec![0; ROOM],
            streams: streams.collect(),
            stride,
        })
    }

    /// Looks at what has come; how many frames.
    ///
    /// # Errors
    /// Those of packet sockets.
    pub fn look(&mut self) -> io::Result<u64> {
        let mut count = 0;
        loop {
            match self.socket.receive(&mut self.buffer) {
                Ok(bytes) => {
                    let bytes = bytes.min(self.buffer.len());
                    add(&mut self.streams, self.stride, &self.buffer[..bytes]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
                Err(error) => return Err(error),
            }
            count += 1;
        }
    }

    /// How many frames of a stream are there and whole.
    pub fn whole(&self, stream: usize) -> u64 {
        self.streams[stream].tally.whole
    }

    /// That nothing is wrong, once `sent` are the numbers of the streams' next frames.
    ///
    /// # Errors
    /// What is wrong.
    pub fn settle(&self, sent: &[u64]) -> Result<(), WorkError> {
        // That who looks has not been too slow is a condition of everything that it says.
        match self.socket.missed()? {
            0 => {}
            missed => {
                let why = format!("the bench itself was too slow for {missed} frames");
                return Err(WorkError::Void(why));
            }
        }
        for (stream, sent) in self.streams.iter().zip(sent) {
            let next = sent.div_ceil(self.stride);
            let settled = stream.tally.settle(next - stream.first, next);
            settled.map_err(|why| match self.stride {
                1 => WorkError::Void(why),
                _ => WorkError::Void(format!("of a sample {why}")),
            })?;
        }
        Ok(())
    }
}

/// Adds a frame to the stream that it is of, and otherwise to the first, as one of somebody else's.
fn add(streams: &mut [Stream], stride: u64, frame: &[u8]) {
    let verdicts = streams.iter().map(|stream| stream.pattern.check(frame));
    let mut verdicts = verdicts.enumerate();
    let verdict = verdicts.find(|(_, verdict)| *verdict != Verdict::Foreign);
    let (stream, verdict) = verdict.unwrap_or((0, Verdict::Foreign));
    streams[stream].tally.add(match verdict {
        Verdict::Whole(number) => Verdict::Whole(number / stride),
        other => other,
    });
}

/// Who puts frames on a tap, for those who take them.
pub struct Feed {
    streams: Vec<Fed>,
    ends: AtomicBool,
    done: AtomicBool,
}

struct Fed {
    pattern: Pattern,
    arrived: AtomicU64,
    sent: AtomicU64,
}

impl Feed {
    /// Says how many frames of a stream have arrived, so that no more are under way than the tap has room for.
    pub fn arrived(&self, stream: usize, frames: u64) {
        self.streams[stream]
            .arrived
            .store(frames, Ordering::Relaxed);
    }

    /// Has it send no more; how many it has sent of each stream.
    pub fn end(&self) -> Vec<u64> {
        self.ends.store(true, Ordering::Relaxed);
        while !self.done.load(Ordering::Acquire) {
            thread::sleep(NAP);
        }
        let sent = self
            .streams
            .iter()
            .map(|it| it.sent.load(Ordering::Relaxed));
        sent.collect()
    }

    /// Whether it can still send. Who is done before it was told to be has failed, and says itself why.
    ///
    /// # Errors
    /// It can't.
    pub fn is_well(&self) -> Result<(), WorkError> {
        match self.done.load(Ordering::Acquire) && !self.ends.load(Ordering::Relaxed) {
            true => Err(WorkError::Void("the bench can't send".to_owned())),
            false => Ok(()),
        }
    }

    fn run(&self, tap: &IfName) -> io::Result<()> {
        let mut streams = Vec::new();
        for fed in &self.streams {
            streams.push(Batch::new(tap, fed, self.streams.len())?);
        }
        while !self.ends.load(Ordering::Relaxed) {
            let mut count = 0;
            for stream in &mut streams {
                count += stream.send()?;
            }
            if count == 0 {
                thread::sleep(NAP);
            }
        }
        Ok(())
    }
}

/// Frames of a stream, ready to be sent.
struct Batch<'a> {
    fed: &'a Fed,
    socket: PacketSocket,
    frames: Vec<Vec<u8>>,
    /// Bytes of each that are not sent.
    skipped: usize,
    window: u64,
    sent: u64,
}

impl<'a> Batch<'a> {
    /// One of `streams` that share the tap's room.
    fn new(tap: &IfName, fed: &'a Fed, streams: usize) -> io::Result<Self> {
        let socket = PacketSocket::on(tap, Take::Nothing)?;
        let mut frames: Vec<Vec<u8>> = (0..BATCH)
            .map(|turn| fed.pattern.frame(turn).to_vec())
            .collect();
        let (socket, skipped) = match fed.pattern.size() {
            Size::Gso => {
                // A packet socket's headers are those of legacy devices, of ten bytes.
                for frame in &mut frames {
                    frame.copy_within(..10, 2);
                }
                (socket.with_headers()?, 2)
            }
            _ => (socket, HEADER),
        };
        Ok(Self {
            fed,
            socket,
            frames,
            skipped,
            window: fed.pattern.size().window() / streams as u64,
            sent: 0,
        })
    }

    /// Sends as many as there is room for, but not beyond the batch; how many.
    fn send(&mut self) -> io::Result<u64> {
        let room = self.fed.arrived.load(Ordering::Relaxed) + self.window - self.sent;
        let next = self.sent as usize % BATCH;
        let count = (BATCH - next).min(room as usize);
        let frames = &mut self.frames[next..next + count];
        for (number, frame) in (self.sent..).zip(frames.iter_mut()) {
            self.fed.pattern.stamp(frame, number);
        }
        let ready: Vec<&[u8]> = frames.iter().map(|frame| &frame[self.skipped..]).collect();
        let sent = match self.socket.send(&ready) {
            _ if count == 0 => 0,
            Ok(sent) => sent as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        self.sent += sent;
        self.fed.sent.store(self.sent, Ordering::Relaxed);
        Ok(sent)
    }
}

/// Runs `work` while a thread puts frames of these streams on `tap`.
///
/// # Errors
/// Those of `work`, and what keeps the thread from sending.
pub fn fed<T>(
    tap: &IfName,
    patterns: Vec<Pattern>,
    work: impl FnOnce(&Feed) -> Result<T, WorkError>,
) -> Result<T, WorkError> {
    let fed = |pattern| Fed {
        pattern,
        arrived: AtomicU64::new(0),
        sent: AtomicU64::new(0),
    };
    let feed = Feed {
        streams: patterns.into_iter().map(fed).collect(),
        ends: AtomicBool::new(false),
        done: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let feeding = scope.spawn(|| {
            let fed = feed.run(tap);
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

/// Runs `work` while a thread takes the frames of these streams that a [`Witness`] would look at.
///
/// # Errors
/// Those of `work`, and what keeps the thread from looking.
pub fn watched<T>(
    tap: &IfName,
    patterns: Vec<Pattern>,
    work: impl FnOnce() -> Result<T, WorkError>,
) -> Result<T, WorkError> {
    let streams = patterns.into_iter().map(|pattern| (pattern, 0));
    let mut witness = Witness::new(tap, streams.collect(), STRIDE)?;
    beside(
        |ends| {
            while !ends.load(Ordering::Relaxed) {
                if witness.look()? == 0 {
                    thread::sleep(NAP);
                }
            }
            Ok(())
        },
        work,
    )
}

/// Runs `work` while a thread does something else, until it is told to end.
///
/// # Errors
/// Those of either.
pub fn beside<T>(
    other: impl FnOnce(&AtomicBool) -> io::Result<()> + Send,
    work: impl FnOnce() -> Result<T, WorkError>,
) -> Result<T, WorkError> {
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| other(&ends));
        let worked = work();
        ends.store(true, Ordering::Relaxed);
        match other.join() {
            Ok(done) => done?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        worked
    })
}

/// Runs `work` while a thread answers each whole frame that comes in by `tap` by one of the same number. It sleeps in between.
///
/// # Errors
/// Those of `work`, and what keeps the thread from answering.
pub fn echoed<T>(
    tap: &IfName,
    [forth, back]: [&Pattern; 2],
    work: impl FnOnce() -> Result<T, WorkError>,
) -> Result<T, WorkError> {
    let socket = PacketSocket::on(tap, Take::EtherType(IPV4))?;
    beside(|ends| echo(&socket, forth, back, ends), work)
}

fn echo(
    socket: &PacketSocket,
    forth: &Pattern,
    back: &Pattern,
    ends: &AtomicBool,
) -> io::Result<()> {
    let mut buffer = vec![0; ROOM];
    let mut answer = back.frame(0).to_vec();
    while !ends.load(Ordering::Relaxed) {
        match socket.receive(&mut buffer) {
            Ok(bytes) => {
                let frame = &buffer[..bytes.min(ROOM)];
                if let Verdict::Whole(number) = forth.check(frame) {
                    back.stamp(&mut answer, number);
                    socket.send(&[&answer[HEADER..]])?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_for_frames(socket)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits for a frame, but not for long.
///
/// # Errors
/// Those of poll(2).
pub fn wait_for_frames(end: &impl AsFd) -> io::Result<()> {
    let limit = Timespec {
        tv_sec: 0,
        tv_nsec: 10_000_000,
    };
    poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&limit))?;
    Ok(())
}
