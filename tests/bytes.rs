//! The bytes: whatever goes in at one end of a NIC comes out at the other as it was, in both directions, with every
//! combination of header and ring. Frames of every size and unusual kinds go over a real tap and bridge; GSO frames
//! to 64 KB over a socketpair, where the header can be seen as well.

mod support;

use std::os::unix::net::UnixStream;

use support::bridged::Bridged;
use support::bytes::{broadcast, checksum, ethernet, ipv4, noise, udp};
use support::driver::guest_memory;
use support::front_end::{Served, wait_for};
use support::nic::*;

const MTU: usize = 1500;

/// Every combination of header and ring.
fn formats() -> Vec<u64> {
    let mut formats = Vec::new();
    for header in [0, MRG_RXBUF, VERSION_1, MRG_RXBUF | VERSION_1] {
        for ring in [0, INDIRECT_DESC, EVENT_IDX, INDIRECT_DESC | EVENT_IDX] {
            formats.push(header | ring);
        }
    }
    formats
}

/// Sends `frames` from the NIC to the wire and from the wire to the NIC.
fn over_the_bridge(world: &Bridged, features: u64, frames: &[Vec<u8>]) {
    let (memory, file) = guest_memory();
    let connect = || UnixStream::connect(world.socket()).ok();
    let stream = wait_for("a connection", connect);
    let mut nic = Nic::start(stream, &memory, &file, features);
    let header = vec![0; nic.header()];
    world.wire.drain();
    for (i, frame) in frames.iter().enumerate() {
        let piece = [usize::MAX, 700, header.len()][i % 3].max(frame.len().div_ceil(20));
        nic.send(&[&header[..], frame].concat(), piece);
        let came = world.wire.next("from the NIC");
        assert!(
            came == *frame,
            "{features:#x}, sent {frame:x?}, came {came:x?}"
        );
    }
    for frame in frames {
        world.wire.send(frame);
        let came = nic.receive();
        let (head, came) = came.split_at(header.len());
        assert_eq!(head[..10], [0; 10], "{features:#x}: no offload");
        assert!(
            came == frame,
            "{features:#x}, sent {frame:x?}, came {came:x?}"
        );
    }
}

#[test]
fn frames_of_every_size_cross_a_real_bridge_unchanged() {
    let world = Bridged::new(MTU, &[]);
    let every: Vec<_> = (14..=MTU + 14).map(|len| broadcast(len, 1)).collect();
    let some: Vec<_> = every.iter().step_by(59).cloned().collect();
    for features in formats() {
        over_the_bridge(&world, features, &some);
    }
    over_the_bridge(&world, MRG_RXBUF | VERSION_1 | EVENT_IDX, &every);
    over_the_bridge(&world, 0, &every);
}

#[test]
fn frames_of_a_jumbo_mtu_cross_a_real_bridge_unchanged() {
    let mtu = 9000;
    let world = Bridged::new(mtu, &[]);
    let every = (1400..=mtu + 14).step_by(97).chain([mtu + 14]);
    let every: Vec<_> = every.map(|len| broadcast(len, 2)).collect();
    for features in [0, VERSION_1 | EVENT_IDX, MRG_RXBUF | VERSION_1 | EVENT_IDX] {
        over_the_bridge(&world, features, &every);
    }
}

#[test]
fn frames_of_unusual_kinds_cross_a_real_bridge_unchanged() {
    let world = Bridged::new(MTU, &[]);
    let frames: Vec<_> = [
        vlan(&[0x8100]),
        vlan(&[0x88a8, 0x8100]),
        udp_without_checksum(),
        tcp_with_a_wrong_checksum(),
        fragment(0, true),
        fragment(185, false),
        ipv6_with_extension_headers(),
        ipv6_fragment(),
        ethernet([0x86, 0xdd], &[]),
        ethernet([0x00, 0x2e], &noise(46, 3)), // 802.3, a length for a type
    ]
    .into();
    for features in formats() {
        over_the_bridge(&world, features | OFFLOADS, &frames);
        over_the_bridge(&world, features, &frames);
    }
}

/// A broadcast frame behind these tags, all of VLAN 100 and priority 1.
fn vlan(tags: &[u16]) -> Vec<u8> {
    let mut inner = broadcast(200, 4);
    for tag in tags.iter().rev() {
        let [a, b] = tag.to_be_bytes();
        inner.splice(12..12, [a, b, 0x20, 100]);
    }
    inner
}

fn udp_without_checksum() -> Vec<u8> {
    ipv4(17, 0, &udp(12345, 333))
}

fn tcp_with_a_wrong_checksum() -> Vec<u8> {
    let mut header = vec![
        0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff,
    ];
    header.extend([0xba, 0xad, 0, 0]);
    ipv4(6, 0, &[header, noise(99, 6)].concat())
}

/// At `place`, in units of 8 bytes.
fn fragment(place: u16, more: bool) -> Vec<u8> {
    ipv4(17, place | u16::from(more) << 13, &noise(1480, 7))
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    let mut header = vec![0x60, 0, 0, 0, len[0], len[1], next, 64];
    for host in [1, 2] {
        header.extend([
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host,
        ]);
    }
    ethernet([0x86, 0xdd], &[&header, payload].concat())
}

/// Hop-by-hop options, a routing header with no segments left, destination options, then UDP.
fn ipv6_with_extension_headers() -> Vec<u8> {
    let hop_by_hop = [43, 0, 1, 4, 0, 0, 0, 0];
    let routing = [60, 0, 4, 0, 0, 0, 0, 0];
    let options = [17, 0, 1, 4, 0, 0, 0, 0];
    ipv6(
        0,
        &[&hop_by_hop[..], &routing, &options, &udp(12345, 64)].concat(),
    )
}

fn ipv6_fragment() -> Vec<u8> {
    let header = [17, 0, 0, 1, 0, 0, 0, 9];
    ipv6(44, &[&header[..], &udp(12345, 1200)].concat())
}

/// A TCP segment of `len` bytes in an IPv4 packet. Its checksum is that of the pseudo-header, as a sender leaves it who
/// lets others finish it.
fn tcp_to_be_finished(len: usize) -> Vec<u8> {
    let mut tcp = vec![
        0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff,
    ];
    let sum = checksum(&pseudo_header(20 + len));
    tcp.extend([!sum[0], !sum[1], 0, 0]);
    tcp.extend(noise(len, len as u64));
    ipv4(6, 0, &tcp)
}

/// Of TCP between the addresses that [`ipv4`] uses.
fn pseudo_header(len: usize) -> Vec<u8> {
    let len = (len as u16).to_be_bytes();
    vec![192, 0, 2, 1, 192, 0, 2, 2, 0, 6, len[0], len[1]]
}

/// The wire's tap takes no large frames, so the host's kernel cuts them as the header says: what comes out is the payload
/// in segments with right checksums, which shows that it read the header that the NIC sent.
#[test]
fn large_frames_from_the_nic_are_cut_as_their_header_says() {
    const HEADERS: usize = 54;
    let world = Bridged::new(MTU, &[]);
    let (memory, file) = guest_memory();
    for features in formats() {
        let connect = || UnixStream::connect(world.socket()).ok();
        let stream = wait_for("a connection", connect);
        let mut nic = Nic::start(stream, &memory, &file, features | OFFLOADS);
        for (len, size) in [(1, 1448), (1448, 1448), (20_000, 1000), (65_495, 1448)] {
            let frame = tcp_to_be_finished(len);
            let gso = if len > size { 1 } else { 0 };
            let mut sent = offload(1, gso, [HEADERS as u16, size as u16, 34, 16]);
            sent.resize(nic.header(), 0);
            sent.extend(&frame);
            world.wire.drain();
            nic.send(&sent, 5000);
            let mut payload = Vec::new();
            while payload.len() < len {
                let segment = world.wire.next("a segment");
                let (tcp, data) = (&segment[34..], &segment[HEADERS..]);
                assert_eq!(data.len(), size.min(len - payload.len()));
                assert_eq!(checksum(&[&pseudo_header(tcp.len()), tcp].concat()), [0; 2]);
                payload.extend_from_slice(data);
            }
            assert!(payload == frame[HEADERS..], "{features:#x}, {len} bytes");
        }
    }
}

/// The ways to announce what is left to the receiver (virtio 1.3 §5.1.6): flags, type of GSO, header's length, size of a
/// segment, where the checksum starts and where it goes.
fn offload(flags: u8, gso: u8, [hdr_len, size, start, offset]: [u16; 4]) -> Vec<u8> {
    let fields = [hdr_len, size, start, offset].map(u16::to_le_bytes);
    [&[flags, gso][..], &fields.concat()].concat()
}

#[test]
fn frames_up_to_64_kilobytes_keep_header_and_bytes() {
    const LARGEST: usize = 65535 + 14 + 8;
    let headers = [
        offload(0, 0, [0; 4]),
        offload(1, 0, [0, 0, 34, 16]),     // a checksum to be made
        offload(2, 0, [0; 4]),             // a checksum that was seen to be right
        offload(1, 1, [54, 1448, 34, 16]), // TCP over IPv4
        offload(1, 4, [74, 1428, 54, 16]), // TCP over IPv6
        offload(1, 1 | 0x80, [54, 1448, 34, 16]), // with congestion marked
        offload(1, 4 | 0x80, [74, 1428, 54, 16]),
        offload(1, 5, [42, 1472, 34, 6]), // UDP segments
    ];
    let lengths = [14, 60, 1514, 1525, 4096, 16_383, 32_768, 65_549, LARGEST];
    for features in formats() {
        let (memory, file) = guest_memory();
        let mut served = Served::start();
        let stream = served.stream.take().unwrap();
        let mut nic = Nic::start(stream, &memory, &file, features | OFFLOADS);
        for (i, header) in headers.iter().enumerate() {
            for len in lengths {
                let mut sent = header.clone();
                sent.resize(nic.header(), 0);
                sent.extend(noise(len, (len + i) as u64));
                let piece = [usize::MAX, 4096, 1000, 13_000][i % 4];
                nic.send(&sent, piece.min(sent.len()));
                let came = wait_for("the frame", || served.host.receive());
                assert!(came == sent, "from the NIC, {features:#x}, {len} bytes");

                served.host.send(&sent);
                let came = nic.receive();
                assert_eq!(came.len(), sent.len(), "{features:#x}");
                assert_eq!(came[..10], sent[..10], "{features:#x}, {len} bytes");
                let from = nic.header();
                assert!(came[from..] == sent[from..], "{features:#x}, {len} bytes");
            }
        }
        drop(nic);
        served.end().unwrap();
    }
}
