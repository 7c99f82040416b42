//! A virtio-net driver in this process: the front-end of any vhost-user-net back-end, with buffers that are ready before the
//! load begins.
//!
//! It does what Linux's driver does (one chain a frame, mergeable buffers, no call wanted while it looks by itself) where a [`Driver`]
//! does not say otherwise, and looks at its rings when it is told to, so that whoever drives it can leave the CPU to others in
//! between.

mod features;
mod queue;

use std::collections::BTreeSet;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use thiserror::Error;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vmm_sys_util::poll::PollContext;

use super::driver::Driver;
use super::memory::Memory;
use super::pattern::{HEADER, Party, Pattern, Size, Verdict};
use super::ring::Direction;
use super::tally::Tally;
use features::{PROTOCOL_FEATURES, accept};
use queue::{Outline, Plan, Queue, SHORT_HEADER, shorten};

/// How long a back-end may take to appear.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a back-end can't be driven.
#[derive(Debug, Error)]
pub enum NicError {
    /// Nobody listens there.
    #[error("{0}: no vhost-user back-end listens there")]
    Connect(PathBuf, #[source] io::Error),
    /// It refuses a message, or is gone.
    #[error("the back-end refuses {what}")]
    Refused {
        /// The message.
        what: &'static str,
        /// Its answer.
        #[source]
        cause: vhost::Error,
    },
    /// It lacks a feature.
    #[error(
        "the back-end does not offer {0}: leave out the --size, --pairs, --ring or --features that needs it"
    )]
    Lacks(&'static str),
    /// The driver is to do without one that it needs.
    #[error("without {0}, which --features leaves out, there is no such --size or --ring")]
    Forgone(&'static str),
    /// No memory, or no more descriptors.
    #[error("memory and events for the driver")]
    Kernel(#[from] io::Error),
}

/// What a NIC is to be like.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// What its driver is like.
    pub driver: Driver,
    /// Pairs of queues.
    pub pairs: u16,
    /// Frames of either direction.
    pub size: Size,
    /// Whose it is.
    pub owner: Party,
}

impl Wish {
    /// What pair `pair` moves, in this direction: a stream of its own.
    pub fn pattern(&self, pair: u16, direction: Direction) -> Pattern {
        let (owner, other) = (self.owner, self.owner.other());
        // A connection's answers may come by any pair.
        let pair = if self.size == Size::Connection {
            0
        } else {
            pair
        };
        match direction {
            Direction::Readable => Pattern::new(self.size, pair, owner, other),
            Direction::Writable => Pattern::new(self.size, pair, other, owner),
        }
    }

    fn is_gso(&self) -> bool {
        self.size == Size::Gso
    }
}

/// A NIC whose back-end is ready.
pub struct Nic {
    /// Keeps the connection; without it the back-end stops.
    _front_end: Frontend,
    /// The pid of the process that was listening.
    pub back_end: u32,
    /// Its queues.
    pub pairs: Vec<(Receiveq, Transmitq)>,
}

impl Nic {
    /// Connects to the back-end that listens on `socket`, and starts its rings.
    ///
    /// # Errors
    /// See [`NicError`].
    pub fn connect(socket: &Path, wish: Wish) -> Result<Self, NicError> {
        let rings = 2 * u64::from(wish.pairs);
        let stream = reach(socket).map_err(|cause| NicError::Connect(socket.to_owned(), cause))?;
        let peer = socket_peercred(&stream).map_err(io::Error::from)?;
        let mut front_end = Frontend::from_stream(stream, rings);
        let features = negotiate(&mut front_end, wish)?;

        let both = [Direction::Writable, Direction::Readable];
        let outlines = both.map(|direction| Outline::of(wish, direction, features));
        let bytes: usize = outlines.iter().map(Outline::bytes).sum();
        let mut memory = Memory::new(bytes * usize::from(wish.pairs))?;
        let outlines = (0..wish.pairs).flat_map(|_| &outlines);
        let plans: Vec<Plan> = outlines.map(|it| Plan::take(&mut memory, it)).collect();
        let memory = Arc::new(memory);
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: memory.len() as u64,
            userspace_addr: memory.user_address(),
            mmap_offset: 0,
            mmap_handle: memory.fd(),
        };
        refused("SET_MEM_TABLE", front_end.set_mem_table(&[region]))?;

        let mut queues = Vec::new();
        for (index, plan) in plans.into_iter().enumerate() {
            queues.push(plan.start(&mut front_end, &memory, index, wish.driver.batch)?);
        }
        let mut pairs = Vec::new();
        let mut queues = queues.into_iter();
        while let (Some(rx), Some(tx)) = (queues.next(), queues.next()) {
            let pattern = |direction| wish.pattern(pairs.len() as u16, direction);
            let (to_guest, to_host) = (pattern(Direction::Writable), pattern(Direction::Readable));
            pairs.push((Receiveq::new(rx, to_guest), Transmitq::new(tx, to_host)));
        }
        for ring in 0..2 * usize::from(wish.pairs) {
            refused("SET_VRING_ENABLE", front_end.set_vring_enable(ring, true))?;
        }
        // Answered in order: all of the above is done.
        refused("GET_FEATURES", front_end.get_features())?;
        Ok(Self {
            _front_end: front_end,
            back_end: peer.pid.as_raw_nonzero().get() as u32,
            pairs,
        })
    }

    /// What it sends, by each pair.
    pub fn sends(&self) -> Vec<Pattern> {
        let pairs = self.pairs.iter();
        pairs.map(|(_, tx)| tx.pattern.clone()).collect()
    }

    /// Of which of `patterns` a whole frame has come, by whichever pair: who has sent nothing gets frames by any.
    pub fn heard(&mut self, patterns: &[Pattern]) -> BTreeSet<usize> {
        let mut heard = BTreeSet::new();
        for (receiveq, _) in &mut self.pairs {
            receiveq.frames(|_, frame| {
                let is_whole = |pattern: &Pattern| {
                    frame.is_some_and(|it| matches!(pattern.check(it), Verdict::Whole(_)))
                };
                heard.extend((0..patterns.len()).filter(|it| is_whole(&patterns[*it])));
            });
        }
        heard
    }
}

fn refused<T>(what: &'static str, done: vhost::Result<T>) -> Result<T, NicError> {
    done.map_err(|cause| NicError::Refused { what, cause })
}

/// Settles features, and returns those that are taken.
fn negotiate(front_end: &mut Frontend, wish: Wish) -> Result<u64, NicError> {
    refused("SET_OWNER", front_end.set_owner())?;
    let offered = refused("GET_FEATURES", front_end.get_features())?;
    let accepted = accept(offered, wish)?;
    if accepted >> PROTOCOL_FEATURES & 1 == 1 {
        let offered = refused("GET_PROTOCOL_FEATURES", front_end.get_protocol_features())?;
        let known = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
        // The crate takes GET_QUEUE_NUM's pairs for rings: it is not asked.
        refused(
            "SET_PROTOCOL_FEATURES",
            front_end.set_protocol_features(offered & known),
        )?;
    }
    refused("SET_FEATURES", front_end.set_features(accepted))?;
    Ok(accepted)
}

/// Frames to the host.
pub struct Transmitq {
    queue: Queue,
    pattern: Pattern,
    /// Chains that the device does not have.
    free: Vec<u16>,
    /// Frames sent, which is the number of the next one where they are sent in turn.
    pub sent: u64,
    /// Frames that the device is done with.
    pub done: u64,
}

impl Transmitq {
    fn new(mut queue: Queue, pattern: Pattern) -> Self {
        let ids = 0..queue.chains.len() as u16;
        for id in ids.clone() {
            let frame = pattern.frame(id.into());
            let place = queue.start_of(id, frame.len());
            place.copy_from(frame);
            // A short header ends where a long one does.
            let header = place.offset(queue.skip).expect("in a frame's place");
            header.copy_from(&frame[..HEADER - queue.skip]);
            shorten(&mut queue.chains[usize::from(id)], frame.len() - queue.skip);
        }
        Self {
            queue,
            pattern,
            free: ids.rev().collect(),
            sent: 0,
            done: 0,
        }
    }

    /// See [`Queue::told`].
    pub fn told(&mut self) -> [u64; 2] {
        self.queue.told()
    }

    /// Takes back what the device is done with, and sends as many as there is room for, up to number `limit`; how many.
    pub fn turn(&mut self, limit: u64) -> u64 {
        self.reap();
        let before = self.sent;
        while self.sent < limit && self.put(self.sent) {}
        self.queue.publish();
        self.sent - before
    }

    /// Makes the frame of this number ready, if there is room for it.
    pub fn put(&mut self, number: u64) -> bool {
        let Some(id) = self.free.pop() else {
            return false;
        };
        let frame = self.pattern.frame(id.into()).len();
        let frame = self.queue.start_of(id, frame);
        self.pattern.stamp_in(frame, number);
        self.queue.offer(id);
        self.sent += 1;
        true
    }

    /// Sends what is ready, and takes back what the device is done with.
    pub fn flush(&mut self) {
        self.queue.publish();
        self.reap();
    }

    fn reap(&mut self) {
        while let Some(used) = self.queue.ring.take_used() {
            self.free.push(used.id);
            self.done += 1;
        }
    }
}

/// Frames from the host.
pub struct Receiveq {
    queue: Queue,
    pattern: Pattern,
    /// A frame as far as it is there, virtio-net's header included, and how many more chains it is in.
    frame: Vec<u8>,
    rest: u16,
    /// What has come.
    pub tally: Tally,
}

impl Receiveq {
    fn new(queue: Queue, pattern: Pattern) -> Self {
        let mut new = Self {
            queue,
            pattern,
            frame: Vec::with_capacity(1 << 17),
            rest: 0,
            tally: Tally::default(),
        };
        for id in 0..new.queue.chains.len() as u16 {
            new.queue.offer(id);
        }
        new.queue.publish();
        new
    }

    /// Adds what has come to the tally, and gives its buffers back; how many frames.
    pub fn turn(&mut self) -> u64 {
        let mut tally = self.tally;
        let mut frames = 0;
        self.take(|verdict| {
            tally.add(verdict);
            frames += 1;
        });
        self.tally = tally;
        frames
    }

    /// Looks at what has come, and gives its buffers back.
    pub fn take(&mut self, mut see: impl FnMut(Verdict)) {
        self.frames(|pattern, frame| {
            see(match frame {
                Some(frame) => pattern.check(frame),
                None => Verdict::Damaged,
            });
        });
    }

    /// Has `see` look at each frame that has come, without its header if it is longer than that, beside what is to come here; gives
    /// the buffers back.
    fn frames(&mut self, mut see: impl FnMut(&Pattern, Option<&[u8]>)) {
        while let Some(used) = self.queue.ring.take_used() {
            let len = (used.len as usize + self.queue.skip).min(self.queue.chain);
            let start = self.frame.len();
            self.frame.resize(start + len, 0);
            let bytes = self.queue.start_of(used.id, len);
            bytes.copy_to(&mut self.frame[start..]);
            self.queue.offer(used.id);
            if self.rest == 0 {
                self.rest = self.buffers().saturating_sub(1);
            } else {
                self.rest -= 1;
            }
            if self.rest == 0 {
                see(&self.pattern, self.frame.get(HEADER..));
                self.frame.clear();
            }
        }
        self.queue.publish();
    }

    /// How many chains the frame that has begun is in, by its header if that says so.
    fn buffers(&self) -> u16 {
        match self.frame.get(SHORT_HEADER..HEADER) {
            Some(&[low, high]) if self.queue.skip == 0 => u16::from_le_bytes([low, high]),
            _ => 1,
        }
    }

    /// Sleeps, as a guest does, until the device tells of a buffer that it has filled, or has filled one; `limit` at most.
    ///
    /// # Errors
    /// Those of epoll.
    pub fn sleep(&mut self, limit: Duration) -> io::Result<()> {
        if !self.queue.ring.want_call(true) {
            let calls: PollContext<u32> = PollContext::new()?;
            calls.add(&self.queue.call, 0)?;
            calls.wait_timeout(limit)?;
        }
        self.queue.told();
        self.queue.ring.want_call(false);
        Ok(())
    }

    /// See [`Queue::told`].
    pub fn told(&mut self) -> [u64; 2] {
        self.queue.told()
    }
}

/// Connects to `socket`. Its file is there a moment before somebody listens.
fn reach(socket: &Path) -> io::Result<UnixStream> {
    const MOMENT: Duration = Duration::from_secs(1);
    let end = Instant::now() + MOMENT;
    loop {
        match UnixStream::connect(socket) {
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < end =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            connected => return connected,
        }
    }
}

/// Waits until there is a `socket`.
pub fn wait_for(socket: &Path) {
    let end = Instant::now() + PATIENCE;
    while !socket.exists() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
}
