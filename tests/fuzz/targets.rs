//! What is fed with whatever somebody may send: bytes in, and nothing may panic, hang or grow. Used by cargo-fuzz's programs beside
//! this file, and by `tests/fuzzing.rs` with a corpus and a short burst.

#![allow(dead_code)] // Each program uses its part.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ringtap::backend::features::Features;
use ringtap::backend::guard::{ANSWER, Frame, GLANCE, Guard, HEAD, LeaseFile, Policy};
use ringtap::backend::memory::{GuestMemory, Region};
use ringtap::backend::message::Connection;
use ringtap::backend::queue_pair::{FrameFormat, QueuePair, Side};
use ringtap::backend::ring::{RingLayout, RingPosition};
use ringtap::backend::session::{Device, Limits};
use ringtap::backend::vring::Started;
use ringtap::backend::worker::Worker;
use ringtap::config::Config;
use ringtap::network;
use ringtap::tap::{HeaderLen, Offloads, TapQueue, TapSettings};
use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType,
};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// An input that is taken from the front; zeroes beyond its end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A policy's words, a byte's length before them, then frames, each behind its direction and length.
pub fn guard(input: &[u8]) {
    let mut input = Input(input);
    let length = input.byte().into();
    let words = String::from_utf8_lossy(input.bytes(length)).into_owned();
    let policy: Policy = match words.parse() {
        Ok(policy) => policy,
        Err(_) => "mac=52:54:00:00:00:05,ip,ip=10.0.0.5,not=10.0.0.1,services,vlan,only-ip"
            .parse()
            .expect("these are words of a guard"),
    };
    let mac = policy.mac;
    // What is written is what is read again.
    let again: Policy = policy.to_string().parse().unwrap_or_default();
    assert!(policy == again || policy == Policy::default());
    let mut guard = Guard::new(policy, None);
    while !input.is_empty() {
        let [outwards, high, low] = input.array();
        let header = input.array();
        let frame = input.bytes(u16::from_be_bytes([high, low]).into());
        guard.refresh();
        if outwards & 1 == 1 {
            let head = &frame[..frame.len().min(HEAD - header.len())];
            let claim = Frame {
                header,
                head,
                len: frame.len(),
            };
            let judged = guard.judge(&claim);
            assert_eq!(judged, guard.examine(&claim), "what has passed before");
            if let (Ok(()), Some(mac)) = (judged, mac) {
                assert_eq!(frame.get(6..12), Some(&mac.octets()[..]));
            }
        } else if let Some(glance) = frame.first_chunk::<GLANCE>()
            && guard.wants_to_hear(glance)
        {
            let mut answer = [0; ANSWER];
            let known = frame.len().min(ANSWER);
            answer[..known].copy_from_slice(&frame[..known]);
            guard.hear(&answer);
        }
    }
}

/// Bytes of guest memory for rings.
const MEMORY: u64 = 64 << 10;

/// Both rings lie in the first pages; buffers and tables may be anywhere, the rings included.
const RINGS: [[u64; 3]; 2] = [[0, 0x200, 0x400], [0x800, 0xa00, 0xc00]];
const RING_SIZE: u16 = 16;

fn memory() -> &'static (Arc<GuestMemory>, File) {
    static MADE: OnceLock<(Arc<GuestMemory>, File)> = OnceLock::new();
    MADE.get_or_init(|| {
        let file = memfd(MEMORY);
        let region = Region {
            guest_addr: 0,
            len: MEMORY,
            user_addr: 0,
            offset: 0,
        };
        let shared = file.try_clone().expect("a descriptor");
        let memory = GuestMemory::map(&[(region, Arc::new(file))], None).expect("a mapping");
        (Arc::new(memory), shared)
    })
}

fn memfd(length: u64) -> File {
    let file = rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a memfd");
    let file = File::from(file);
    file.set_len(length).expect("memory");
    file
}

fn packets() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .expect("a socketpair")
}

/// Features, the memory's first bytes, and then rounds: bytes that change, and a frame for the guest.
pub fn rings(input: &[u8]) {
    let mut input = Input(input);
    let (memory, _) = memory();
    let [features, length, base] = input.array();
    // A packed ring starts with both of its wrap counters set (vhost-user "Ring states").
    let base = if base == 0x80 {
        0x8000_8000
    } else {
        base.into()
    };
    let bit = |number: u8, feature: u64| u64::from(features >> number & 1) << feature;
    let bits = bit(0, 34) | bit(1, 28) | bit(2, 29) | bit(3, 15) | 1 << 32;
    let offered = Features::offered(true, &[]);
    let features = offered.accept(bits).expect("these are offered");
    let zero = vec![0; MEMORY as usize];
    let all = memory.mem();
    all.write_slice(&zero, GuestAddress(0)).expect("its size");
    let image = input.bytes(usize::from(length) * 16);
    all.write_slice(image, GuestAddress(0)).expect("its start");

    let (tap, host) = packets();
    let mut pair = QueuePair::new(TapQueue::from_fd(tap).expect("a queue")).expect("memory");
    pair.set_format(FrameFormat {
        header: features.header_len(),
        mergeable: features.mergeable_buffers(),
        mtu: None,
    });
    let words = "mac=52:54:00:00:00:05,ip,services,vlan,only-ip";
    let guard = Guard::new(words.parse().expect("words"), None);
    pair.set_guard(guard).expect("memory");
    for (side, parts) in [Side::Rx, Side::Tx].into_iter().zip(RINGS) {
        let parts = parts.map(GuestAddress);
        let Ok(layout) = RingLayout::new(all, RING_SIZE, parts, features) else {
            return;
        };
        let Ok(position) = RingPosition::resume(all, &layout, base) else {
            return;
        };
        let vring = pair.vring(side);
        vring.enabled = true;
        vring.started = Some(Started {
            memory: Arc::clone(memory),
            layout,
            position,
            kick: None,
        });
    }
    for _ in 0..4 {
        let frame = [0; 200];
        let length = usize::from(input.byte()) % frame.len();
        let _ = rustix::net::send(&host, &frame[..length], SendFlags::empty());
        for _ in 0..4 {
            pair.process_tx();
            pair.process_rx();
        }
        let mut sink = [0; 256];
        while rustix::net::recv(&host, &mut sink, RecvFlags::empty()).is_ok() {}
        for _ in 0..input.byte() % 32 {
            let [high, low, value] = input.array();
            let at = GuestAddress(u16::from_be_bytes([high, low]).into());
            all.write_obj(value, at).expect("within it");
        }
    }
}

struct NoSettings;

impl TapSettings for NoSettings {
    fn set_offloads(&self, _: Offloads) -> std::io::Result<()> {
        Ok(())
    }

    fn set_header_len(&self, _: HeaderLen) -> std::io::Result<()> {
        Ok(())
    }
}

/// Messages of a front-end: each its number, flags, descriptors by kind, and body.
pub fn messages(input: &[u8]) {
    let mut input = Input(input);
    let (tap, _host) = packets();
    let pair = QueuePair::new(TapQueue::from_fd(tap).expect("a queue")).expect("memory");
    let lost = Arc::new(EventFd::new(0).expect("an eventfd"));
    let worker = Worker::spawn("fuzz".into(), pair, Duration::ZERO, lost).expect("a thread");
    let mut device = Device::new(Box::new(NoSettings), vec![worker], Limits::default());
    let (ours, theirs) = UnixStream::pair().expect("a socketpair");
    let connection = Connection::new(theirs).expect("a connection");
    ours.set_nonblocking(true).expect("a flag");
    for _ in 0..32 {
        if input.is_empty() {
            break;
        }
        let [code, flags, kinds, length] = input.array();
        let body = input.bytes(length.into());
        send(&ours, code, flags, kinds, body);
        match device.serve_message(&connection) {
            Ok(true) => {}
            Ok(false) | Err(_) => break,
        }
        let mut sink = [0; 4096];
        while rustix::net::recv(&ours, &mut sink, RecvFlags::empty()).is_ok() {}
    }
    drop(ours);
    device.reset().expect("its worker");
}

/// Sends a message whose descriptors are of these kinds, two bits each, the first that is none the last.
fn send(socket: &UnixStream, code: u8, flags: u8, kinds: u8, body: &[u8]) {
    let kinds = [0, 2, 4, 6].map(|at| kinds >> at & 3);
    let kinds = kinds.into_iter().take_while(|kind| *kind != 0);
    let fds: Vec<OwnedFd> = kinds.map(descriptor).collect();
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let words = [
        u32::from(code),
        u32::from(flags & 0xf) ^ 1,
        body.len() as u32,
    ];
    let mut message: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    message.extend(body);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    let parts = [IoSlice::new(&message)];
    let _ = rustix::net::sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL);
}

/// Memory, an event, or what is neither.
fn descriptor(kind: u8) -> OwnedFd {
    match kind {
        1 => memfd(MEMORY).into(),
        2 => rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("an eventfd"),
        _ => packets().0,
    }
}

/// A file for `--config`.
pub fn config(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let path = Path::new("/etc/ringtap.toml");
    match Config::parse(&text, path) {
        // What is kept of a guest's definition can be read again.
        Ok(config) => drop(Config::parse(config.text(), path).expect("the same text")),
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
}

/// Lists of leases: dnsmasq's, and a guard's own.
pub fn leases(input: &[u8]) {
    let name = "default".parse().expect("a name");
    let _ = network::leases::read(&name, &String::from_utf8_lossy(input));
    let mut file = memfd(0);
    file.write_all(input).expect("memory");
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let kept = LeaseFile::open(Path::new(&path)).expect("a file");
    let all = kept.kept().to_vec();
    kept.write(all.iter().copied()).expect("memory");
    let again = LeaseFile::open(Path::new(&path)).expect("a file");
    assert_eq!(again.kept(), all);
}
