//! A virtio-net driver in this process: the front-end of any vhost-user-net back-end, with buffers that are ready before the
//! load begins.
//!
//! It does what Linux's driver does (one chain a frame, mergeable buffers, no call wanted while it looks by itself), and looks
//! at its rings when it is told to, so that whoever drives it can leave the CPU to others in between.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use thiserror::Error;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::poll::PollContext;

use super::memory::Memory;
use super::pattern::{HEADER, Party, Pattern, Size, Verdict};
use super::ring::{Direction, DriverRing, Layout, Part, Places, Shape};
use super::tally::Tally;

/// Says that there are protocol features (vhost-user "Feature bits").
const PROTOCOL_FEATURES: u32 = 30;

/// Large frames are in pieces of a page, as Linux has them.
const PIECE: usize = 4096;

/// A receive buffer holds an Ethernet frame of the usual MTU.
const RECEIVE: usize = 1536;

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
        "the back-end does not offer {0}: leave out the --size, --pairs or --ring that needs it"
    )]
    Lacks(&'static str),
    /// No memory, or no more descriptors.
    #[error("memory and events for the driver")]
    Kernel(#[from] io::Error),
}

/// What a NIC is to be like.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// How its rings are laid out.
    pub layout: Layout,
    /// Descriptors a ring.
    pub ring: u16,
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

/// What is taken where it is offered.
const LIKED: u64 =
    1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_NET_F_MRG_RXBUF | 1 << PROTOCOL_FEATURES;
const GSO: [(u32, &str); 4] = [
    (VIRTIO_NET_F_CSUM, "VIRTIO_NET_F_CSUM"),
    (VIRTIO_NET_F_HOST_TSO4, "VIRTIO_NET_F_HOST_TSO4"),
    (VIRTIO_NET_F_GUEST_CSUM, "VIRTIO_NET_F_GUEST_CSUM"),
    (VIRTIO_NET_F_GUEST_TSO4, "VIRTIO_NET_F_GUEST_TSO4"),
];

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
        let event_idx = negotiate(&mut front_end, wish)?;

        let mut memory = Memory::new(Queue::bytes(wish) * usize::from(2 * wish.pairs))?;
        let plans = (0..2 * wish.pairs).map(|ring| {
            let direction = match ring % 2 {
                0 => Direction::Writable,
                _ => Direction::Readable,
            };
            Plan::take(&mut memory, wish, direction, event_idx)
        });
        let plans: Vec<Plan> = plans.collect();
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
            queues.push(plan.start(&mut front_end, &memory, index)?);
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
}

fn refused<T>(what: &'static str, done: vhost::Result<T>) -> Result<T, NicError> {
    done.map_err(|cause| NicError::Refused { what, cause })
}

/// Settles features; whether EVENT_IDX is one of them.
fn negotiate(front_end: &mut Frontend, wish: Wish) -> Result<bool, NicError> {
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
    Ok(accepted >> VIRTIO_RING_F_EVENT_IDX & 1 == 1)
}

/// Which of the features `offered` are taken for a NIC of this kind.
fn accept(offered: u64, wish: Wish) -> Result<u64, NicError> {
    let mut needed = vec![(VIRTIO_F_VERSION_1, "VIRTIO_F_VERSION_1")];
    if !fits_one_buffer(wish.size) {
        needed.push((VIRTIO_NET_F_MRG_RXBUF, "VIRTIO_NET_F_MRG_RXBUF"));
    }
    if wish.is_gso() {
        needed.extend(GSO);
    }
    if wish.pairs > 1 {
        needed.push((VIRTIO_NET_F_MQ, "VIRTIO_NET_F_MQ"));
    }
    if wish.layout == Layout::Packed {
        needed.push((VIRTIO_F_RING_PACKED, "VIRTIO_F_RING_PACKED"));
    }
    let mut accepted = offered & LIKED;
    for (bit, name) in needed {
        if offered >> bit & 1 == 0 {
            return Err(NicError::Lacks(name));
        }
        accepted |= 1 << bit;
    }
    Ok(accepted)
}

/// Where a queue and its buffers are.
struct Plan {
    places: Places,
    shape: Shape,
    /// Bytes of a chain's buffers, which are behind one another.
    chain: usize,
    buffers: usize,
}

/// Virtqueue descriptors that a chain of `bytes` takes.
fn pieces(bytes: usize) -> u16 {
    bytes.div_ceil(PIECE) as u16
}

impl Plan {
    fn take(memory: &mut Memory, wish: Wish, direction: Direction, event_idx: bool) -> Self {
        let chain = chain_bytes(direction, wish.size);
        let shape = Shape {
            layout: wish.layout,
            size: wish.ring,
            parts: pieces(chain),
            direction,
            event_idx,
        };
        Self {
            places: Places::take(memory, wish.ring),
            shape,
            chain,
            buffers: memory.take(usize::from(shape.chains()) * room(chain), 4096),
        }
    }

    fn start(
        self,
        front_end: &mut Frontend,
        memory: &Arc<Memory>,
        index: usize,
    ) -> Result<Queue, NicError> {
        let Self { places, shape, .. } = self;
        let ring = DriverRing::new(memory, places, shape);
        let address = |at: usize| memory.user_address() + at as u64;
        let config = VringConfigData {
            queue_max_size: shape.size,
            queue_size: shape.size,
            flags: 0,
            desc_table_addr: address(places.descriptors),
            used_ring_addr: address(places.device),
            avail_ring_addr: address(places.driver),
            log_addr: None,
        };
        let (kick, call) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
        refused("SET_VRING_NUM", front_end.set_vring_num(index, shape.size))?;
        let base = shape.layout.base();
        refused("SET_VRING_BASE", front_end.set_vring_base(index, base))?;
        refused("SET_VRING_ADDR", front_end.set_vring_addr(index, &config))?;
        refused("SET_VRING_CALL", front_end.set_vring_call(index, &call))?;
        refused("SET_VRING_KICK", front_end.set_vring_kick(index, &kick))?;
        let parts = |id: u16| {
            let at = self.buffers + usize::from(id) * room(self.chain);
            let pieces = (0..self.chain).step_by(PIECE).map(move |from| Part {
                at: at + from,
                len: PIECE.min(self.chain - from) as u32,
            });
            pieces.collect()
        };
        Ok(Queue {
            memory: Arc::clone(memory),
            ring,
            chains: (0..shape.chains()).map(parts).collect(),
            chain: self.chain,
            kick,
            call,
            kicks: 0,
            calls: 0,
        })
    }
}

/// From a chain's buffers to the next one's, so that no two are in one line of a cache.
fn room(chain: usize) -> usize {
    chain.next_multiple_of(64)
}

/// Bytes of buffers that a chain has.
fn chain_bytes(direction: Direction, size: Size) -> usize {
    match direction {
        Direction::Readable => HEADER + size.most(),
        Direction::Writable => match fits_one_buffer(size) {
            true => RECEIVE,
            false => PIECE,
        },
    }
}

/// Whether a frame never takes more than one of a receiveq's chains.
fn fits_one_buffer(size: Size) -> bool {
    size.most() <= RECEIVE - HEADER
}

/// What both kinds of queues have.
struct Queue {
    memory: Arc<Memory>,
    ring: DriverRing,
    /// The buffers of each chain, by its id.
    chains: Vec<Vec<Part>>,
    chain: usize,
    kick: EventFd,
    call: EventFd,
    /// How often either was signalled.
    kicks: u64,
    calls: u64,
}

impl Queue {
    /// Bytes that a queue and its buffers may take.
    fn bytes(wish: Wish) -> usize {
        let ring = usize::from(wish.ring);
        let both = [Direction::Readable, Direction::Writable];
        let buffers = both.map(|direction| {
            let chain = chain_bytes(direction, wish.size);
            ring / usize::from(pieces(chain)) * room(chain)
        });
        buffers[0].max(buffers[1]) + 32 * ring + 16384
    }

    /// The first bytes of a chain's buffers.
    fn start_of(&self, id: u16, len: usize) -> vm_memory::VolatileSlice<'_> {
        self.memory.slice(self.chains[usize::from(id)][0].at, len)
    }

    fn publish(&mut self) {
        if self.ring.publish() {
            // It can only fail when nobody has taken 2^64 of them.
            let _ = self.kick.write(1);
            self.kicks += 1;
        }
    }

    /// How often the driver has told the device so far, and the device the driver.
    fn told(&mut self) -> [u64; 2] {
        self.calls += self.call.read().unwrap_or(0); // there may be none
        [self.kicks, self.calls]
    }
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
            queue.start_of(id, frame.len()).copy_from(frame);
            shorten(&mut queue.chains[usize::from(id)], frame.len());
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
        let chain = &self.queue.chains[usize::from(id)];
        self.queue.ring.offer(id, chain);
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

/// Leaves `bytes` of a chain's buffers.
fn shorten(parts: &mut Vec<Part>, bytes: usize) {
    let mut left = bytes as u32;
    for part in parts.iter_mut() {
        part.len = part.len.min(left);
        left -= part.len;
    }
    parts.retain(|part| part.len > 0);
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
            new.give(id);
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
        while let Some(used) = self.queue.ring.take_used() {
            let len = (used.len as usize).min(self.queue.chain);
            let start = self.frame.len();
            self.frame.resize(start + len, 0);
            let bytes = self.queue.start_of(used.id, len);
            bytes.copy_to(&mut self.frame[start..]);
            self.give(used.id);
            if self.rest == 0 {
                let buffers = self.frame.get(HEADER - 2..HEADER);
                let buffers = buffers.map_or(1, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
                self.rest = buffers.saturating_sub(1);
            } else {
                self.rest -= 1;
            }
            if self.rest == 0 {
                see(self.verdict());
                self.frame.clear();
            }
        }
        self.queue.publish();
    }

    fn verdict(&self) -> Verdict {
        match self.frame.get(HEADER..) {
            Some(frame) => self.pattern.check(frame),
            None => Verdict::Damaged,
        }
    }

    fn give(&mut self, id: u16) {
        let chain = &self.queue.chains[usize::from(id)];
        self.queue.ring.offer(id, chain);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::QueueSize;

    const LEAST: u64 = 1 << VIRTIO_F_VERSION_1;

    fn wish(size: Size) -> Wish {
        Wish {
            layout: Layout::Split,
            ring: QueueSize::MAX.get(),
            pairs: 1,
            size,
            owner: Party::GUEST,
        }
    }

    fn lacks(offered: u64, wish: Wish) -> &'static str {
        match accept(offered, wish) {
            Err(NicError::Lacks(name)) => name,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_back_end_without_extras_moves_plain_frames() {
        assert_eq!(accept(LEAST, wish(Size::Wire(1514))).unwrap(), LEAST);
        assert_eq!(
            lacks(LEAST, wish(Size::Wire(9014))),
            "VIRTIO_NET_F_MRG_RXBUF"
        );
        assert_eq!(lacks(0, wish(Size::Wire(64))), "VIRTIO_F_VERSION_1");
    }

    #[test]
    fn what_a_wish_needs_must_be_offered() {
        let merges = LEAST | 1 << VIRTIO_NET_F_MRG_RXBUF;
        assert_eq!(lacks(merges, wish(Size::Gso)), "VIRTIO_NET_F_CSUM");
        let pairs = Wish {
            pairs: 2,
            ..wish(Size::Wire(64))
        };
        assert_eq!(lacks(LEAST, pairs), "VIRTIO_NET_F_MQ");
        let packed = Wish {
            layout: Layout::Packed,
            ..wish(Size::Wire(64))
        };
        assert_eq!(lacks(LEAST, packed), "VIRTIO_F_RING_PACKED");
    }

    #[test]
    fn nothing_is_taken_that_the_driver_does_not_know() {
        let all = accept(u64::MAX, wish(Size::Wire(64))).unwrap();
        assert_eq!(all, LEAST | LIKED);
    }
}
