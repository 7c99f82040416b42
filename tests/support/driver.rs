//! A virtio-net driver in this process: rings and buffers in a memfd, laid out by the `virtio-queue` crate's mock.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};
use ringtap::backend::memory::{GuestMemory, Region};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where the front-end pretends to see guest memory: different from the guest-physical address, as in life.
pub const USER_BASE: u64 = 0x7f00_0000_0000;
/// Bytes of guest memory.
pub const MEMORY: u64 = 32 << 20;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Guest memory in a memfd; the file goes to the back-end.
pub fn guest_memory() -> (Arc<GuestMemory>, File) {
    let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(MEMORY).unwrap();
    let region = Region {
        guest_addr: 0,
        len: MEMORY,
        user_addr: USER_BASE,
        offset: 0,
    };
    let shared = file.try_clone().unwrap();
    (
        Arc::new(GuestMemory::map(&[(region, file)]).unwrap()),
        shared,
    )
}

/// A tap's two ends: the one for the back-end, and the host's.
pub fn tap_pair() -> (OwnedFd, HostEnd) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (tap, host) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    for end in [&tap, &host] {
        setsockopt(end, sockopt::SndBuf, &(1 << 20)).unwrap();
    }
    (tap, HostEnd(host))
}

/// The host's end of a tap.
pub struct HostEnd(OwnedFd);

impl HostEnd {
    pub fn send(&self, frame: &[u8]) {
        assert_eq!(
            send(self.0.as_raw_fd(), frame, MsgFlags::empty()),
            Ok(frame.len())
        );
    }

    /// The next frame, or `None` if there is none.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 70_000];
        let bytes = recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()).ok()?;
        frame.truncate(bytes);
        Some(frame)
    }
}

/// A frame of `len` bytes behind a 12-byte header of zeroes; `seed` makes contents differ.
pub fn frame(len: usize, seed: u8) -> Vec<u8> {
    let payload = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed));
    [0; 12].into_iter().chain(payload).collect()
}

/// One buffer of a chain: where, how long, which flags beside NEXT.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
}

/// The driver's side of one split ring.
pub struct DriverRing<'m> {
    pub mem: &'m GuestMemoryMmap,
    pub queue: MockSplitQueue<'m, GuestMemoryMmap>,
    pub size: u16,
    free: VecDeque<u16>,
    /// The descriptors behind the first of each chain that is out.
    tails: BTreeMap<u16, Vec<u16>>,
    next_buffer: u64,
    avail: u16,
    used: u16,
}

impl<'m> DriverRing<'m> {
    /// A ring at `base`; its buffers come from the `MEMORY / 4` bytes after it.
    pub fn new(mem: &'m GuestMemoryMmap, base: u64, size: u16) -> Self {
        // The mock gives an avail ring one byte an entry, and so lets the used ring begin amid it, where the second
        // half of the entries would be written over it. Asked for more than twice the size it leaves room, also for
        // `used_event`.
        let queue = MockSplitQueue::create(mem, GuestAddress(base), size * 2 + 2);
        let avail_end = queue.avail_addr().0 + 6 + u64::from(size) * 2;
        assert!(avail_end <= queue.used_addr().0);
        let used_end = queue.used_addr().0 + 6 + u64::from(size) * 8;
        Self {
            mem,
            next_buffer: used_end.next_multiple_of(4096),
            queue,
            size,
            free: (0..size).collect(),
            tails: BTreeMap::new(),
            avail: 0,
            used: 0,
        }
    }

    /// Lets both indices start at `base` instead of 0.
    pub fn start_at(&mut self, base: u16) {
        (self.avail, self.used) = (base, base);
        self.queue.avail().idx().store(base);
        self.queue.used().idx().store(base);
    }

    /// Descriptor table, avail ring, used ring.
    pub fn parts(&self) -> [GuestAddress; 3] {
        [
            self.queue.desc_table_addr(),
            self.queue.avail_addr(),
            self.queue.used_addr(),
        ]
    }

    /// Fresh memory of `len` bytes.
    pub fn alloc(&mut self, len: usize) -> u64 {
        let addr = self.next_buffer;
        self.next_buffer += (len as u64).next_multiple_of(64);
        assert!(self.next_buffer < MEMORY);
        addr
    }

    /// A buffer that holds `bytes`, for the device to read.
    pub fn readable(&mut self, bytes: &[u8]) -> Buffer {
        let addr = self.alloc(bytes.len());
        self.mem.write_slice(bytes, GuestAddress(addr)).unwrap();
        Buffer {
            addr,
            len: bytes.len() as u32,
            flags: 0,
        }
    }

    /// A buffer for the device to write.
    pub fn writable(&mut self, len: usize) -> Buffer {
        let addr = self.alloc(len);
        Buffer {
            addr,
            len: len as u32,
            flags: WRITE,
        }
    }

    /// A table elsewhere that holds `buffers` as a chain.
    pub fn indirect(&mut self, buffers: &[Buffer]) -> Buffer {
        let addr = self.alloc(buffers.len() * 16);
        for (i, buffer) in buffers.iter().enumerate() {
            let next = if i + 1 < buffers.len() { NEXT } else { 0 };
            let descriptor =
                Descriptor::new(buffer.addr, buffer.len, buffer.flags | next, i as u16 + 1);
            self.mem
                .write_obj(descriptor, GuestAddress(addr + i as u64 * 16))
                .unwrap();
        }
        Buffer {
            addr,
            len: buffers.len() as u32 * 16,
            flags: INDIRECT,
        }
    }

    /// Makes a chain of `buffers` available; returns its head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let indices: Vec<_> = buffers
            .iter()
            .map(|_| self.free.pop_front().unwrap())
            .collect();
        for (i, buffer) in buffers.iter().enumerate() {
            let next = indices.get(i + 1).copied();
            let flags = buffer.flags | if next.is_some() { NEXT } else { 0 };
            self.write_descriptor(
                indices[i],
                Descriptor::new(buffer.addr, buffer.len, flags, next.unwrap_or(0)),
            );
        }
        self.tails.insert(indices[0], indices[1..].to_vec());
        self.make_available(indices[0]);
        indices[0]
    }

    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        self.queue
            .desc_table()
            .store(index, RawDescriptor::from(descriptor))
            .unwrap();
    }

    /// Puts `head` into the avail ring, whatever it is.
    pub fn make_available(&mut self, head: u16) {
        let slot = usize::from(self.avail % self.size);
        self.queue.avail().ring().ref_at(slot).unwrap().store(head);
        self.avail = self.avail.wrapping_add(1);
        self.queue.avail().idx().store(self.avail);
    }

    /// What the device completed since the last call: head and length.
    pub fn completed(&mut self) -> Vec<(u16, u32)> {
        let mut done = Vec::new();
        while self.used != self.queue.used().idx().load() {
            let slot = usize::from(self.used % self.size);
            let element = self.queue.used().ring().ref_at(slot).unwrap().load();
            let head = element.id() as u16;
            done.push((head, element.len()));
            self.free.push_back(head);
            self.free
                .extend(self.tails.remove(&head).unwrap_or_default());
            self.used = self.used.wrapping_add(1);
        }
        done
    }

    /// `used_event`: after which used index the driver wants to be notified (EVENT_IDX).
    pub fn set_used_event(&self, index: u16) {
        let addr = self.queue.avail_addr().0 + 4 + u64::from(self.size) * 2;
        self.mem.write_obj(index, GuestAddress(addr)).unwrap();
    }

    /// `avail_event`: after which avail index the device wants a kick (EVENT_IDX).
    pub fn avail_event(&self) -> u16 {
        let addr = self.queue.used_addr().0 + 4 + u64::from(self.size) * 8;
        self.mem.read_obj(GuestAddress(addr)).unwrap()
    }

    /// The avail ring's flags: 1 asks for no notifications.
    pub fn set_avail_flags(&self, flags: u16) {
        self.mem.write_obj(flags, self.queue.avail_addr()).unwrap();
    }

    /// The used ring's flags: 1 asks for no kicks.
    pub fn used_flags(&self) -> u16 {
        self.mem.read_obj(self.queue.used_addr()).unwrap()
    }

    /// The bytes of a buffer.
    pub fn read(&self, buffer: Buffer, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem
            .read_slice(&mut bytes, GuestAddress(buffer.addr))
            .unwrap();
        bytes
    }
}
