//! A NIC's driver in this process: one pair of rings on a vhost-user socket, frames in and out.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::net::UnixStream;

use ringtap::backend::memory::GuestMemory;
use vhost::vhost_user::message::FrontendReq as Req;

use super::driver::{Buffer, DriverRing, MEMORY};
use super::front_end::{Events, RawFrontEnd, wait_for};

pub const MRG_RXBUF: u64 = 1 << 15;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
pub const VERSION_1: u64 = 1 << 32;
/// CSUM, GUEST_CSUM, GUEST_TSO4, 6, ECN, HOST_TSO4, 6, ECN.
pub const OFFLOADS: u64 = 0b11 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13;

const SIZE: u16 = 256;
/// More than the largest frame and its header.
const WHOLE: usize = 66_000;
/// A mergeable buffer, smaller than most frames.
const ROOM: usize = 1536;

/// A NIC that has been started with some features.
pub struct Nic<'m> {
    rx: DriverRing<'m>,
    tx: DriverRing<'m>,
    rx_events: Events,
    tx_events: Events,
    features: u64,
    posted: BTreeMap<u16, Vec<Buffer>>,
    done: VecDeque<(u16, u32)>,
    /// Where frames to be sent are put.
    area: u64,
    _front_end: RawFrontEnd,
}

impl<'m> Nic<'m> {
    /// Starts both rings with these features beside vhost-user's own, and posts buffers to receive into.
    pub fn start(
        stream: UnixStream,
        memory: &'m GuestMemory,
        file: &File,
        features: u64,
    ) -> Nic<'m> {
        let front_end = RawFrontEnd(stream);
        let mut rx = DriverRing::new(memory.mem(), 0, SIZE);
        let mut tx = DriverRing::new(memory.mem(), MEMORY / 2, SIZE);
        for ring in [&mut rx, &mut tx] {
            ring.start_at(0);
        }
        front_end.u64(Req::SET_PROTOCOL_FEATURES, 1 << 3);
        front_end.u64(Req::SET_FEATURES, features | PROTOCOL_FEATURES);
        assert_eq!(front_end.set_mem_table(file), 0);
        let (rx_events, tx_events) = (Events::new(), Events::new());
        front_end.set_up_ring(0, &rx, 0, &rx_events);
        front_end.set_up_ring(1, &tx, 0, &tx_events);
        for ring in [0, 1] {
            front_end.state(Req::SET_VRING_ENABLE, ring, 1);
        }
        front_end.get_u64(Req::GET_FEATURES); // answered in order, so all of the above is done
        let area = tx.alloc(WHOLE);
        let mut nic = Nic {
            rx,
            tx,
            rx_events,
            tx_events,
            features,
            posted: BTreeMap::new(),
            done: VecDeque::new(),
            area,
            _front_end: front_end,
        };
        nic.post_all();
        nic
    }

    /// The virtio-net header's length with these features.
    pub fn header(&self) -> usize {
        if self.features & (MRG_RXBUF | VERSION_1) != 0 {
            12
        } else {
            10
        }
    }

    fn has(&self, bit: u64) -> bool {
        self.features & bit != 0
    }

    /// Mergeable buffers of one piece; whole ones of two, the header apart from the frame.
    fn post_all(&mut self) {
        for _ in 0..if self.has(MRG_RXBUF) { 100 } else { 20 } {
            let buffers = if self.has(MRG_RXBUF) {
                vec![self.rx.writable(ROOM)]
            } else {
                vec![self.rx.writable(self.header()), self.rx.writable(WHOLE)]
            };
            self.post(buffers);
        }
        self.rx_events.kick();
    }

    fn post(&mut self, buffers: Vec<Buffer>) {
        let head = if self.has(INDIRECT_DESC) && buffers.len() > 1 {
            let table = self.rx.indirect(&buffers);
            self.rx.add(&[table])
        } else {
            self.rx.add(&buffers)
        };
        self.posted.insert(head, buffers);
    }

    /// Sends `bytes`, header and all, in pieces of at most `piece` bytes; waits until the device has taken them.
    pub fn send(&mut self, bytes: &[u8], piece: usize) {
        use vm_memory::{Bytes, GuestAddress};
        let memory = self.tx.mem;
        memory.write_slice(bytes, GuestAddress(self.area)).unwrap();
        let mut buffers: Vec<Buffer> = (0..bytes.len())
            .step_by(piece)
            .map(|at| Buffer {
                addr: self.area + at as u64,
                len: piece.min(bytes.len() - at) as u32,
                flags: 0,
            })
            .collect();
        if self.has(INDIRECT_DESC) && buffers.len() > 1 {
            buffers = vec![self.tx.indirect(&buffers)];
        }
        let head = self.tx.add(&buffers);
        self.tx_events.kick();
        let done = wait_for("the frame to be taken", || self.tx.completed().pop());
        assert_eq!(done, (head, 0));
    }

    /// The next frame, with its header.
    pub fn receive(&mut self) -> Vec<u8> {
        let mut bytes = self.next_buffer();
        if self.header() == 12 {
            let count = u16::from_le_bytes([bytes[10], bytes[11]]);
            assert!(count == 1 || self.has(MRG_RXBUF), "{count} buffers");
            for _ in 1..count {
                bytes.extend(self.next_buffer());
            }
        }
        self.rx_events.kick();
        bytes
    }

    /// What is in the next completed chain, which is posted again.
    fn next_buffer(&mut self) -> Vec<u8> {
        if self.done.is_empty() {
            let done = wait_for("a frame", || {
                let done = self.rx.completed();
                (!done.is_empty()).then_some(done)
            });
            self.done.extend(done);
        }
        let (head, len) = self.done.pop_front().unwrap();
        let buffers = self.posted.remove(&head).expect("a head that was posted");
        let mut left = len as usize;
        let mut bytes = Vec::with_capacity(left);
        for buffer in &buffers {
            let part = left.min(buffer.len as usize);
            bytes.extend(self.rx.read(*buffer, part));
            left -= part;
        }
        assert_eq!(left, 0, "{len} bytes are more than the chain holds");
        self.post(buffers);
        bytes
    }
}
