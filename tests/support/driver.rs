//! A virtio-net driver in this process: rings of both kinds, and buffers, in a memfd.
//!
//! The `virtio-queue` crate's mock driver does not serve: it lays the used ring over the avail ring's second half.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};
use ringtap::backend::memory::Mem;
use ringtap::backend::memory::{GuestMemory, Region};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

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
        Arc::new(GuestMemory::map(&[(region, Arc::new(file))], None).unwrap()),
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

impl AsFd for HostEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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

/// The kinds of ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Split,
    Packed,
}

/// The driver's side of one ring.
pub struct DriverRing<'m> {
    pub mem: &'m Mem,
    pub size: u16,
    next_buffer: u64,
    format: Format<'m>,
}

enum Format<'m> {
    Split(SplitDriver<'m>),
    Packed(PackedDriver<'m>),
}

impl<'m> DriverRing<'m> {
    /// A split ring at `base`; its buffers come from the memory after it.
    pub fn new(mem: &'m Mem, base: u64, size: u16) -> Self {
        Self::of_kind(Kind::Split, mem, base, size)
    }

    pub fn of_kind(kind: Kind, mem: &'m Mem, base: u64, size: u16) -> Self {
        let format = match kind {
            Kind::Split => Format::Split(SplitDriver::new(mem, base, size)),
            Kind::Packed => Format::Packed(PackedDriver::new(mem, base, size)),
        };
        Self {
            mem,
            size,
            next_buffer: base + 64 * 1024,
            format,
        }
    }

    /// Starts `done` descriptors after the beginning, as if so many had been used.
    pub fn start_at(&mut self, done: u16) {
        match &mut self.format {
            Format::Split(ring) => ring.start_at(done),
            Format::Packed(ring) => ring.start_at(done),
        }
    }

    /// What SET_VRING_BASE says of a ring of which `done` descriptors have been used.
    pub fn base(&self, done: u16) -> u32 {
        match &self.format {
            Format::Split(_) => done.into(),
            Format::Packed(ring) => {
                let place = u32::from(Place::after(done, ring.size).encode());
                place | place << 16
            }
        }
    }

    /// The addresses of the three parts.
    pub fn parts(&self) -> [GuestAddress; 3] {
        match &self.format {
            Format::Split(ring) => [ring.desc, ring.avail_ring, ring.used_ring],
            Format::Packed(ring) => [ring.ring, ring.driver_event, ring.device_event],
        }
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
            let at = GuestAddress(addr + i as u64 * 16);
            match self.format {
                Format::Split(_) => {
                    let next = if i + 1 < buffers.len() { NEXT } else { 0 };
                    let flags = buffer.flags | next;
                    let descriptor = Descriptor::new(buffer.addr, buffer.len, flags, i as u16 + 1);
                    self.mem.write_obj(descriptor, at).unwrap();
                }
                Format::Packed(_) => {
                    let descriptor = packed(*buffer, 0xdead, buffer.flags);
                    self.mem.write_slice(&descriptor, at).unwrap();
                }
            }
        }
        Buffer {
            addr,
            len: buffers.len() as u32 * 16,
            flags: INDIRECT,
        }
    }

    /// Makes a chain of `buffers` available; returns its head or id.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        match &mut self.format {
            Format::Split(ring) => ring.add(buffers),
            Format::Packed(ring) => ring.add(buffers),
        }
    }

    /// What the device completed since the last call: head or id, and length.
    pub fn completed(&mut self) -> Vec<(u16, u32)> {
        match &mut self.format {
            Format::Split(ring) => ring.completed(),
            Format::Packed(ring) => ring.completed(),
        }
    }

    /// Asks to be notified when this descriptor has been used, counted from the beginning (EVENT_IDX).
    pub fn set_used_event(&self, done: u16) {
        match &self.format {
            Format::Split(ring) => {
                let place = at(ring.avail_ring, 4 + u64::from(self.size) * 2);
                self.mem.write_obj(done, place).unwrap();
            }
            Format::Packed(ring) => {
                let place = Place::after(done, self.size).encode();
                write_u16s(self.mem, [place, 2], ring.driver_event);
            }
        }
    }

    /// Whether the device wants to be kicked for the chain that is made available after `done` descriptors (EVENT_IDX).
    pub fn wants_kick_after(&self, done: u16) -> bool {
        match &self.format {
            Format::Split(ring) => {
                let place = at(ring.used_ring, 4 + u64::from(self.size) * 8);
                self.mem.read_obj::<u16>(place).unwrap() == done
            }
            Format::Packed(ring) => {
                let [place, flags] = read_u16s(self.mem, ring.device_event);
                let here = Place::after(done, self.size).encode();
                flags == 0 || flags == 2 && place == here
            }
        }
    }

    /// Asks for notifications, or for none.
    pub fn want_notifications(&self, wanted: bool) {
        let off = u16::from(!wanted);
        match &self.format {
            Format::Split(ring) => self.mem.write_obj(off, ring.avail_ring).unwrap(),
            Format::Packed(ring) => write_u16s(self.mem, [0, off], ring.driver_event),
        }
    }

    /// Whether the device asks for kicks.
    pub fn kicks_wanted(&self) -> bool {
        match &self.format {
            Format::Split(ring) => self.mem.read_obj::<u16>(ring.used_ring).unwrap() == 0,
            Format::Packed(ring) => read_u16s(self.mem, ring.device_event)[1] != 1,
        }
    }

    /// The bytes of a buffer.
    pub fn read(&self, buffer: Buffer, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem
            .read_slice(&mut bytes, GuestAddress(buffer.addr))
            .unwrap();
        bytes
    }

    /// What only split rings have.
    pub fn split(&mut self) -> &mut SplitDriver<'m> {
        match &mut self.format {
            Format::Split(ring) => ring,
            Format::Packed(_) => panic!("a packed ring"),
        }
    }
}

/// The driver's side of a split ring (virtio 1.3 §2.7).
pub struct SplitDriver<'m> {
    mem: &'m Mem,
    size: u16,
    desc: GuestAddress,
    avail_ring: GuestAddress,
    used_ring: GuestAddress,
    free: VecDeque<u16>,
    /// The descriptors behind the first of each chain that is out.
    tails: BTreeMap<u16, Vec<u16>>,
    avail: u16,
    used: u16,
}

impl<'m> SplitDriver<'m> {
    fn new(mem: &'m Mem, base: u64, size: u16) -> Self {
        let avail_ring = base + u64::from(size) * 16;
        let used_ring = (avail_ring + 6 + u64::from(size) * 2).next_multiple_of(4);
        let bytes = (used_ring - base) as usize + 6 + usize::from(size) * 8;
        mem.write_slice(&vec![0; bytes], GuestAddress(base))
            .unwrap();
        Self {
            mem,
            size,
            desc: GuestAddress(base),
            avail_ring: GuestAddress(avail_ring),
            used_ring: GuestAddress(used_ring),
            free: (0..size).collect(),
            tails: BTreeMap::new(),
            avail: 0,
            used: 0,
        }
    }

    fn start_at(&mut self, done: u16) {
        (self.avail, self.used) = (done, done);
        self.set_avail_index(done);
        self.mem.write_obj(done, at(self.used_ring, 2)).unwrap();
    }

    /// Shows the device this avail index, whatever it is.
    pub fn set_avail_index(&self, index: u16) {
        self.mem
            .store(index, at(self.avail_ring, 2), Ordering::Release)
            .unwrap();
    }

    fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let indices: Vec<_> = buffers
            .iter()
            .map(|_| self.free.pop_front().unwrap())
            .collect();
        for (i, buffer) in buffers.iter().enumerate() {
            let next = indices.get(i + 1).copied();
            let flags = buffer.flags | if next.is_some() { NEXT } else { 0 };
            let descriptor = Descriptor::new(buffer.addr, buffer.len, flags, next.unwrap_or(0));
            self.write_descriptor(indices[i], descriptor);
        }
        self.make_available(indices[0]);
        self.tails.insert(indices[0], indices[1..].to_vec());
        indices[0]
    }

    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        let place = at(self.desc, u64::from(index) * 16);
        self.mem.write_obj(descriptor, place).unwrap();
    }

    /// Puts `head` into the avail ring, whatever it is.
    pub fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.avail % self.size);
        self.mem
            .write_obj(head, at(self.avail_ring, 4 + slot * 2))
            .unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.set_avail_index(self.avail);
    }

    fn completed(&mut self) -> Vec<(u16, u32)> {
        let mut done = Vec::new();
        let shown: u16 = self
            .mem
            .load(at(self.used_ring, 2), Ordering::Acquire)
            .unwrap();
        while self.used != shown {
            let slot = u64::from(self.used % self.size);
            let element = [0, 4].map(|offset| {
                let place = at(self.used_ring, 4 + slot * 8 + offset);
                self.mem.read_obj::<u32>(place).unwrap()
            });
            let [id, len] = element;
            done.push((id as u16, len));
            self.free.push_back(id as u16);
            self.free
                .extend(self.tails.remove(&(id as u16)).unwrap_or_default());
            self.used = self.used.wrapping_add(1);
        }
        done
    }
}

fn at(base: GuestAddress, offset: u64) -> GuestAddress {
    GuestAddress(base.0 + offset)
}

/// A place in a packed ring, with the wrap counter there.
#[derive(Clone, Copy)]
struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    /// `done` descriptors after the beginning.
    fn after(done: u16, size: u16) -> Self {
        Self {
            index: done % size,
            wrap: (done / size) % 2 == 0,
        }
    }

    fn encode(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    fn advance(&mut self, slots: u16, size: u16) {
        self.index += slots;
        if self.index >= size {
            self.index -= size;
            self.wrap = !self.wrap;
        }
    }
}

/// The driver's side of a packed ring (virtio 1.3 §2.8).
struct PackedDriver<'m> {
    mem: &'m Mem,
    size: u16,
    ring: GuestAddress,
    driver_event: GuestAddress,
    device_event: GuestAddress,
    avail: Place,
    used: Place,
    free_ids: VecDeque<u16>,
    /// How many descriptors the chain of an id has.
    slots: BTreeMap<u16, u16>,
}

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

impl<'m> PackedDriver<'m> {
    fn new(mem: &'m Mem, base: u64, size: u16) -> Self {
        let start = Place::after(0, size);
        let events = base + u64::from(size) * 16;
        mem.write_slice(&vec![0; usize::from(size) * 16 + 8], GuestAddress(base))
            .unwrap();
        Self {
            mem,
            size,
            ring: GuestAddress(base),
            driver_event: GuestAddress(events),
            device_event: GuestAddress(events + 4),
            avail: start,
            used: start,
            free_ids: (0..size).map(|id| id + 1000).collect(), // ids are not indices
            slots: BTreeMap::new(),
        }
    }

    fn start_at(&mut self, done: u16) {
        let place = Place::after(done, self.size);
        (self.avail, self.used) = (place, place);
        // Descriptors that have been used have both flags as the wrap counter was.
        for index in 0..self.size {
            let wrapped = index < place.index;
            let flags = if wrapped == place.wrap {
                AVAIL | USED
            } else {
                0
            };
            self.mem.write_obj(flags, self.at(index, 14)).unwrap();
        }
    }

    fn at(&self, index: u16, offset: u64) -> GuestAddress {
        GuestAddress(self.ring.0 + u64::from(index) * 16 + offset)
    }

    fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let id = self.free_ids.pop_front().unwrap();
        let first = self.avail;
        let mut first_flags = 0;
        for (i, buffer) in buffers.iter().enumerate() {
            let next = if i + 1 < buffers.len() { NEXT } else { 0 };
            let owner = if self.avail.wrap { AVAIL } else { USED };
            let flags = buffer.flags | next | owner;
            let bytes = packed(*buffer, id, flags);
            let at = self.at(self.avail.index, 0);
            if i == 0 {
                first_flags = flags; // written last: they make the chain available
                self.mem.write_slice(&bytes[..14], at).unwrap();
            } else {
                self.mem.write_slice(&bytes, at).unwrap();
            }
            self.avail.advance(1, self.size);
        }
        self.slots.insert(id, buffers.len() as u16);
        self.mem
            .write_obj(first_flags, self.at(first.index, 14))
            .unwrap();
        id
    }

    fn completed(&mut self) -> Vec<(u16, u32)> {
        let mut done = Vec::new();
        loop {
            let at = self.used.index;
            let flags: u16 = self.mem.read_obj(self.at(at, 14)).unwrap();
            let theirs = [AVAIL, USED].map(|flag| (flags & flag != 0) == self.used.wrap);
            if theirs != [true, true] {
                return done;
            }
            let id: u16 = self.mem.read_obj(self.at(at, 12)).unwrap();
            let len: u32 = self.mem.read_obj(self.at(at, 8)).unwrap();
            let Some(slots) = self.slots.remove(&id) else {
                return done; // used before this driver started
            };
            self.used.advance(slots, self.size);
            self.free_ids.push_back(id);
            let written = flags & WRITE != 0;
            assert_eq!(written, len > 0, "a length counts where the flag says so");
            done.push((id, len));
        }
    }
}

/// A packed descriptor's bytes.
fn packed(buffer: Buffer, id: u16, flags: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&buffer.addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&buffer.len.to_le_bytes());
    bytes[12..14].copy_from_slice(&id.to_le_bytes());
    bytes[14..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

/// An event suppression structure: place, flags.
fn read_u16s(mem: &Mem, at: GuestAddress) -> [u16; 2] {
    [0, 2].map(|offset| mem.read_obj(GuestAddress(at.0 + offset)).unwrap())
}

fn write_u16s(mem: &Mem, values: [u16; 2], at: GuestAddress) {
    for (value, offset) in values.into_iter().zip([0, 2]) {
        mem.write_obj(value, GuestAddress(at.0 + offset)).unwrap();
    }
}
