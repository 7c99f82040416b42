//! Frames of a guest that claims what is its own, and of one that claims what is not.
//!
//! The guest is [`GUEST`] with 10.0.0.5 and fd00::5; its gateway has 10.0.0.1, fd00::1 and fe80::1, its neighbour 10.0.0.6 and
//! fd00::6.

use std::net::{Ipv4Addr, Ipv6Addr};

use ringtap::backend::guard::Reason;

pub const GUEST: [u8; 6] = [0x52, 0x54, 0, 0, 0, 5];
pub const GATEWAY: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
pub const NEIGHBOUR: [u8; 6] = [0x52, 0x54, 0, 0, 0, 6];
const BROADCAST: [u8; 6] = [0xff; 6];
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// The words of a guard that lets the guest be itself.
pub const POLICY: &str = "mac=52:54:00:00:00:05,ip=10.0.0.5,ip=fd00::5,not=10.0.0.1,not=fd00::1,not=fe80::1,services,vlan,only-ip";

/// A frame behind its virtio-net header.
#[derive(Clone)]
pub struct Claim {
    pub name: &'static str,
    pub header: [u8; 10],
    pub frame: Vec<u8>,
}

impl Claim {
    fn new(name: &'static str, frame: Vec<u8>) -> Self {
        Self {
            name,
            header: [0; 10],
            frame,
        }
    }

    /// As one whose checksum somebody is to make, of all from `start` on, and write `offset` behind that.
    fn with_checksum(mut self, start: usize, offset: usize) -> Self {
        self.header[0] = 1;
        self.header[6..8].copy_from_slice(&(start as u16).to_le_bytes());
        self.header[8..10].copy_from_slice(&(offset as u16).to_le_bytes());
        self
    }
}

pub fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &kind.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

pub fn arp(operation: u16, mac: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let kind = [0, 1, 8, 0, 6, 4];
    let packet = [
        &kind[..],
        &operation.to_be_bytes(),
        &mac,
        &sender,
        &[0; 6],
        &target,
    ]
    .concat();
    ethernet(BROADCAST, GUEST, 0x0806, &packet)
}

/// Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let word = |it: &[u8]| u32::from(it[0]) << 8 | u32::from(*it.get(1).unwrap_or(&0));
    let mut sum: u32 = words.map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A packet with `options` in its header, and what says which fragment it is.
fn ipv4_with(
    source: [u8; 4],
    fragment: u16,
    options: &[u8],
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let header = 20 + options.len();
    let mut packet = vec![0x40 | (header / 4) as u8, 0];
    packet.extend(((header + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 7]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(source);
    packet.extend([10, 0, 0, 6]);
    packet.extend(options);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    ethernet(NEIGHBOUR, GUEST, 0x0800, &packet)
}

pub fn ipv4(source: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_with(source, 0, &[], protocol, payload)
}

pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let head = [from, to, length, 0].map(u16::to_be_bytes).concat();
    [&head[..], payload].concat()
}

pub fn tcp() -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[..4].copy_from_slice(&[0x30, 0x39, 0, 80]);
    segment[12] = 0x50;
    segment[13] = 2;
    segment
}

/// A DHCP message of this operation, of the client with `mac`.
pub fn dhcp(operation: u8, mac: [u8; 6]) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[operation, 1, 6, 0]);
    message[28..34].copy_from_slice(&mac);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, 1, 255]);
    message
}

fn address(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

pub fn ipv6(source: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 255]);
    packet.extend(address(source));
    packet.extend(address("ff02::1"));
    packet.extend(payload);
    ethernet(ALL_NODES, GUEST, 0x86dd, &packet)
}

/// An extension header of `eights` times eight bytes.
fn extension(next: u8, eights: u8) -> Vec<u8> {
    let mut header = vec![0; usize::from(eights) * 8];
    header[..4].copy_from_slice(&[
        next,
        eights - 1,
        1,
        eights.saturating_mul(8).saturating_sub(4),
    ]);
    header
}

/// The header of a fragment at `offset`, in bytes.
fn fragment(next: u8, offset: u16, more: bool) -> Vec<u8> {
    let place = (offset | u16::from(more)).to_be_bytes();
    [&[next, 0][..], &place, &[0, 0, 0, 9]].concat()
}

/// A message about `target`, with `mac` in an option of this kind.
pub fn discovery(kind: u8, target: &str, option: u8, mac: [u8; 6]) -> Vec<u8> {
    let option = [&[option, 1][..], &mac].concat();
    [
        &[kind, 0, 0, 0, 0x60, 0, 0, 0][..],
        &address(target),
        &option,
    ]
    .concat()
}

fn solicit_routers(mac: [u8; 6]) -> Vec<u8> {
    [&[133, 0, 0, 0, 0, 0, 0, 0, 1, 1][..], &mac].concat()
}

fn advertise_router() -> Vec<u8> {
    vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]
}

fn tagged(tags: &[[u8; 4]]) -> Vec<u8> {
    let plain = ipv4([10, 0, 0, 5], 17, &udp(1000, 1000, b"vlan"));
    let (addresses, rest) = plain.split_at(12);
    [addresses, &tags.concat(), rest].concat()
}

const LLADDR: &str = "fe80::5054:ff:fe00:5";
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const OWN: [u8; 4] = [10, 0, 0, 5];
const GATEWAYS: [u8; 4] = [10, 0, 0, 1];
const OTHERS: [u8; 4] = [10, 0, 0, 6];

/// What a guest may send.
pub fn honest() -> Vec<Claim> {
    let udp_payload = udp(1000, 2000, b"hello, world");
    [
        ("an ARP request", arp(1, GUEST, OWN, GATEWAYS)),
        ("an ARP reply", arp(2, GUEST, OWN, GATEWAYS)),
        ("a gratuitous ARP", arp(1, GUEST, OWN, OWN)),
        ("an ARP probe for its address", arp(1, GUEST, [0; 4], OWN)),
        (
            "an ARP of a link-local address",
            arp(1, GUEST, [169, 254, 7, 7], GATEWAYS),
        ),
        (
            "a reverse ARP request",
            ethernet(
                BROADCAST,
                GUEST,
                0x8035,
                &[
                    &[0, 1, 8, 0, 6, 4, 0, 3][..],
                    &GUEST,
                    &[0; 4],
                    &GUEST,
                    &[0; 4],
                ]
                .concat(),
            ),
        ),
        ("TCP", ipv4(OWN, 6, &tcp())),
        ("UDP", ipv4(OWN, UDP, &udp_payload)),
        ("a ping", ipv4(OWN, ICMP, &[8, 0, 0, 0, 0, 1, 0, 1])),
        (
            "UDP with options of IP",
            ipv4_with(OWN, 0, &[148, 4, 0, 0], UDP, &udp_payload),
        ),
        (
            "a first fragment",
            ipv4_with(OWN, 0x2000, &[], UDP, &udp_payload),
        ),
        (
            "a later fragment",
            ipv4_with(OWN, 2, &[], UDP, b"any eight"),
        ),
        (
            "a DHCP request",
            ipv4([0; 4], UDP, &udp(68, 67, &dhcp(1, GUEST))),
        ),
        ("a renewal", ipv4(OWN, UDP, &udp(68, 67, &dhcp(1, GUEST)))),
        (
            "a membership report without an address",
            ipv4([0; 4], 2, &[0x16, 0, 0, 0, 224, 0, 0, 251]),
        ),
        ("an encapsulated packet", ipv4(OWN, 47, &[0; 40])),
        ("TCP over IPv6", ipv6("fd00::5", 6, &tcp())),
        (
            "a ping over IPv6",
            ipv6("fd00::5", ICMPV6, &[128, 0, 0, 0, 0, 1, 0, 1]),
        ),
        (
            "a ping from a link-local address",
            ipv6(LLADDR, ICMPV6, &[128, 0, 0, 0, 0, 1, 0, 1]),
        ),
        (
            "a question for a neighbour",
            ipv6(LLADDR, ICMPV6, &discovery(135, "fd00::6", 1, GUEST)),
        ),
        (
            "an answer to one",
            ipv6("fd00::5", ICMPV6, &discovery(136, "fd00::5", 2, GUEST)),
        ),
        (
            "a question whether its address is another's",
            ipv6("::", ICMPV6, &discovery(135, "fd00::5", 14, GUEST)),
        ),
        (
            "a question for routers",
            ipv6(LLADDR, ICMPV6, &solicit_routers(GUEST)),
        ),
        (
            "a listener report",
            ipv6(
                "::",
                0,
                &[extension(ICMPV6, 1), vec![143, 0, 0, 0, 0, 0, 0, 0]].concat(),
            ),
        ),
        ("DHCPv6", ipv6(LLADDR, UDP, &udp(546, 547, &[1, 0, 0, 1]))),
        (
            "a first fragment of IPv6",
            ipv6(
                "fd00::5",
                44,
                &[fragment(UDP, 0, true), udp_payload.clone()].concat(),
            ),
        ),
        (
            "a later fragment of IPv6",
            ipv6(
                "fd00::5",
                44,
                &[fragment(UDP, 64, false), vec![0; 9]].concat(),
            ),
        ),
        (
            "options of IPv6",
            ipv6(
                "fd00::5",
                60,
                &[extension(UDP, 2), udp_payload.clone()].concat(),
            ),
        ),
    ]
    .map(|(name, frame)| Claim::new(name, frame))
    .into_iter()
    .chain([
        Claim::new("TCP without its checksum", ipv4(OWN, 6, &tcp())).with_checksum(34, 16),
        Claim::new("UDP without its checksum", ipv4(OWN, UDP, &udp_payload)).with_checksum(34, 6),
        Claim::new(
            "TCP over IPv6 without its checksum",
            ipv6("fd00::5", 6, &tcp()),
        )
        .with_checksum(54, 16),
        Claim::new(
            "TCP in a tunnel without its checksum",
            ipv4(OWN, UDP, &udp(5000, 4789, &[0; 80])),
        )
        .with_checksum(84, 16),
    ])
    .collect()
}

/// What it may not, and why.
pub fn forged() -> Vec<(Claim, Reason)> {
    use Reason::*;
    let from = |mac: [u8; 6]| {
        let mut frame = ipv4(OWN, UDP, &udp(1000, 2000, b"hello"));
        frame[6..12].copy_from_slice(&mac);
        frame
    };
    let offer = udp(67, 68, &dhcp(2, NEIGHBOUR));
    let unspecified = [0; 4];
    let rarp = |operation: u8, mac: [u8; 6]| {
        let packet = [
            &[0, 1, 8, 0, 6, 4, 0, operation][..],
            &mac,
            &[0; 4],
            &mac,
            &[0; 4],
        ]
        .concat();
        ethernet(BROADCAST, GUEST, 0x8035, &packet)
    };
    let mut long_arp = arp(2, GUEST, GATEWAYS, OWN);
    long_arp[18] = 8;
    let mut short_arp = arp(2, GUEST, OWN, OWN);
    short_arp.truncate(30);
    let mut short_header = ipv4(OTHERS, UDP, &offer);
    short_header[14] = 0x44;
    let mut sixth = ipv4(OTHERS, UDP, &offer);
    sixth[14] = 0x65;
    let many = |headers: usize, next: u8| {
        let mut all: Vec<u8> = (1..headers).flat_map(|_| extension(60, 1)).collect();
        all.extend(extension(next, 1));
        all
    };
    let snap = [
        &[0, 36, 0xaa, 0xaa, 3, 0, 0, 0, 8, 6][..],
        &arp(2, GUEST, GATEWAYS, OWN)[14..],
    ]
    .concat();
    let all = vec![
        ("the neighbour's MAC address", from(NEIGHBOUR), SourceMac),
        ("the gateway's MAC address", from(GATEWAY), SourceMac),
        (
            "a multicast MAC address as source",
            from([1, 0, 0x5e, 0, 0, 1]),
            SourceMac,
        ),
        ("broadcast as source", from(BROADCAST), SourceMac),
        (
            "an ARP reply for the gateway",
            arp(2, GUEST, GATEWAYS, OTHERS),
            ArpSender,
        ),
        (
            "an ARP reply for the neighbour",
            arp(2, GUEST, OTHERS, GATEWAYS),
            ArpSender,
        ),
        (
            "a gratuitous ARP for the neighbour",
            arp(1, GUEST, OTHERS, OTHERS),
            ArpSender,
        ),
        (
            "an ARP request as the gateway",
            arp(1, GUEST, GATEWAYS, OTHERS),
            ArpSender,
        ),
        (
            "an ARP of another MAC address",
            arp(2, NEIGHBOUR, OWN, GATEWAYS),
            ArpSender,
        ),
        (
            "an ARP probe for the neighbour's address",
            arp(1, GUEST, unspecified, OTHERS),
            ArpSender,
        ),
        ("an ARP of addresses of other lengths", long_arp, Malformed),
        ("an ARP that is cut off", short_arp, Malformed),
        (
            "a reverse ARP of another MAC address",
            rarp(3, NEIGHBOUR),
            ArpSender,
        ),
        ("a reverse ARP server's answer", rarp(4, GUEST), DhcpServer),
        (
            "the neighbour's IPv4 address",
            ipv4(OTHERS, UDP, &udp(1, 2, b"")),
            Ipv4Source,
        ),
        (
            "the gateway's IPv4 address",
            ipv4(GATEWAYS, ICMP, &[8, 0, 0, 0]),
            Ipv4Source,
        ),
        (
            "an address of the internet",
            ipv4([198, 51, 100, 7], 6, &tcp()),
            Ipv4Source,
        ),
        (
            "IPv4's broadcast as source",
            ipv4([255; 4], UDP, &udp(1, 2, b"")),
            Ipv4Source,
        ),
        (
            "an IPv4 multicast address as source",
            ipv4([224, 0, 0, 1], 2, &[0x11, 0, 0, 0]),
            Ipv4Source,
        ),
        (
            "IPv4's loopback as source",
            ipv4([127, 0, 0, 1], UDP, &udp(1, 2, b"")),
            Ipv4Source,
        ),
        (
            "no IPv4 address, but for DHCP",
            ipv4(unspecified, UDP, &udp(1, 67, b"")),
            Ipv4Source,
        ),
        (
            "no IPv4 address, by TCP",
            ipv4(unspecified, 6, &tcp()),
            Ipv4Source,
        ),
        (
            "the neighbour's address in a later fragment",
            ipv4_with(OTHERS, 4, &[], UDP, &[0; 16]),
            Ipv4Source,
        ),
        ("an IPv4 header that is too short", short_header, Malformed),
        ("IPv6 that is called IPv4", sixth, Malformed),
        ("a DHCP server's offer", ipv4(OWN, UDP, &offer), DhcpServer),
        (
            "a DHCP server's offer behind options",
            ipv4_with(OWN, 0, &[1; 40], UDP, &offer),
            DhcpServer,
        ),
        (
            "a DHCP server's offer in fragments",
            ipv4_with(OWN, 0x2000, &[], UDP, &offer[..16]),
            DhcpServer,
        ),
        (
            "a DHCP server's offer in fragments too short for its ports",
            ipv4_with(OWN, 0x2000, &[1; 24], UDP, &[]),
            Malformed,
        ),
        (
            "a DHCP request for another",
            ipv4(unspecified, UDP, &udp(68, 67, &dhcp(1, NEIGHBOUR))),
            DhcpClient,
        ),
        (
            "an ICMP redirect",
            ipv4(OWN, ICMP, &[5, 1, 0, 0, 10, 0, 0, 5]),
            Redirect,
        ),
        (
            "an ICMP router advertisement",
            ipv4(OWN, ICMP, &[9, 0, 0, 0, 1, 2, 0, 30]),
            RouterAdvertisement,
        ),
        (
            "the neighbour's IPv6 address",
            ipv6("fd00::6", UDP, &udp(1, 2, b"")),
            Ipv6Source,
        ),
        (
            "the gateway's IPv6 address",
            ipv6("fd00::1", UDP, &udp(1, 2, b"")),
            Ipv6Source,
        ),
        (
            "the gateway's link-local address",
            ipv6("fe80::1", ICMPV6, &[128, 0, 0, 0]),
            Ipv6Source,
        ),
        (
            "an IPv6 address of the internet",
            ipv6("2001:db8::7", 6, &tcp()),
            Ipv6Source,
        ),
        (
            "an IPv6 multicast address as source",
            ipv6("ff02::1", UDP, &udp(1, 2, b"")),
            Ipv6Source,
        ),
        (
            "no IPv6 address",
            ipv6("::", UDP, &udp(1, 2, b"")),
            Ipv6Source,
        ),
        (
            "the neighbour's IPv6 address in a later fragment",
            ipv6(
                "fd00::6",
                44,
                &[fragment(UDP, 64, false), vec![0; 8]].concat(),
            ),
            Ipv6Source,
        ),
        (
            "a router advertisement",
            ipv6(LLADDR, ICMPV6, &advertise_router()),
            RouterAdvertisement,
        ),
        (
            "a router advertisement behind hop-by-hop options",
            ipv6(
                LLADDR,
                0,
                &[extension(ICMPV6, 1), advertise_router()].concat(),
            ),
            RouterAdvertisement,
        ),
        (
            "a router advertisement behind four headers",
            ipv6(LLADDR, 60, &[many(4, ICMPV6), advertise_router()].concat()),
            RouterAdvertisement,
        ),
        (
            "a router advertisement behind more headers than are followed",
            ipv6(LLADDR, 60, &[many(12, ICMPV6), advertise_router()].concat()),
            Hidden,
        ),
        (
            "a router advertisement behind a header that is too long",
            ipv6(
                LLADDR,
                60,
                &[extension(ICMPV6, 30), advertise_router()].concat(),
            ),
            Hidden,
        ),
        (
            "a router advertisement in fragments",
            ipv6(
                LLADDR,
                44,
                &[fragment(ICMPV6, 0, true), advertise_router()].concat(),
            ),
            Hidden,
        ),
        (
            "a router advertisement in one fragment",
            ipv6(
                LLADDR,
                44,
                &[fragment(ICMPV6, 0, false), advertise_router()].concat(),
            ),
            Hidden,
        ),
        (
            "a router advertisement in fragments that begin before it",
            ipv6(
                LLADDR,
                44,
                &[fragment(60, 0, true), extension(ICMPV6, 1)].concat(),
            ),
            Malformed,
        ),
        (
            "an ICMPv6 redirect",
            ipv6(LLADDR, ICMPV6, &discovery(137, "fd00::1", 2, GUEST)),
            Redirect,
        ),
        (
            "a neighbour advertisement for the gateway",
            ipv6("fd00::5", ICMPV6, &discovery(136, "fd00::1", 2, GUEST)),
            Neighbor,
        ),
        (
            "a neighbour advertisement for the neighbour",
            ipv6(LLADDR, ICMPV6, &discovery(136, "fd00::6", 2, GUEST)),
            Neighbor,
        ),
        (
            "a neighbour advertisement for the gateway's link-local address",
            ipv6(LLADDR, ICMPV6, &discovery(136, "fe80::1", 2, GUEST)),
            Neighbor,
        ),
        (
            "a neighbour advertisement of another MAC address",
            ipv6(LLADDR, ICMPV6, &discovery(136, "fd00::5", 2, NEIGHBOUR)),
            Neighbor,
        ),
        (
            "a neighbour solicitation of another MAC address",
            ipv6(LLADDR, ICMPV6, &discovery(135, "fd00::6", 1, GATEWAY)),
            Neighbor,
        ),
        (
            "a question whether the neighbour's address is free",
            ipv6("::", ICMPV6, &discovery(135, "fd00::6", 14, GUEST)),
            Neighbor,
        ),
        (
            "a router solicitation of another MAC address",
            ipv6(LLADDR, ICMPV6, &solicit_routers(NEIGHBOUR)),
            Neighbor,
        ),
        (
            "an option of Neighbor Discovery without length",
            ipv6(
                LLADDR,
                ICMPV6,
                &[
                    &discovery(135, "fd00::6", 1, GUEST)[..24],
                    &[1, 0, 0, 0, 0, 0, 0, 0],
                ]
                .concat(),
            ),
            Malformed,
        ),
        (
            "a DHCPv6 server's reply",
            ipv6(LLADDR, UDP, &udp(547, 546, &[7, 0, 0, 1])),
            DhcpServer,
        ),
        (
            "a DHCPv6 server's reply behind options",
            ipv6(
                LLADDR,
                60,
                &[extension(UDP, 2), udp(547, 546, &[7, 0, 0, 1])].concat(),
            ),
            DhcpServer,
        ),
        ("a VLAN tag", tagged(&[[0x81, 0, 0, 7]]), Vlan),
        ("a tag of no VLAN", tagged(&[[0x81, 0, 0xe0, 0]]), Vlan),
        (
            "a service provider's VLAN tag",
            tagged(&[[0x88, 0xa8, 0, 7]]),
            Vlan,
        ),
        (
            "two VLAN tags",
            tagged(&[[0x81, 0, 0, 1], [0x81, 0, 0, 7]]),
            Vlan,
        ),
        (
            "a spanning tree's root",
            ethernet(
                [1, 0x80, 0xc2, 0, 0, 0],
                GUEST,
                38,
                &[0x42, 0x42, 3, 0, 0, 0, 0, 0],
            ),
            Protocol,
        ),
        (
            "LLDP",
            ethernet([1, 0x80, 0xc2, 0, 0, 0xe], GUEST, 0x88cc, &[2, 7, 4]),
            Protocol,
        ),
        (
            "a PPPoE server's offer",
            ethernet(NEIGHBOUR, GUEST, 0x8863, &[0x11, 7, 0, 1, 0, 0]),
            Protocol,
        ),
        (
            "ARP by SNAP",
            [&BROADCAST[..], &GUEST, &snap].concat(),
            Protocol,
        ),
    ];
    let all = all.into_iter();
    let with_checksums = [
        (
            Claim::new(
                "a checksum in place of IPv4's source",
                ipv4(OWN, UDP, &udp(1, 2, &[7; 32])),
            )
            .with_checksum(20, 6),
            Checksum,
        ),
        (
            Claim::new(
                "a checksum in place of IPv6's source",
                ipv6("fd00::5", UDP, &udp(1, 2, &[7; 32])),
            )
            .with_checksum(22, 6),
            Checksum,
        ),
        (
            Claim::new(
                "a checksum in place of UDP's source port",
                ipv4(OWN, UDP, &udp(1, 2, &[7; 32])),
            )
            .with_checksum(34, 0),
            Checksum,
        ),
        (
            Claim::new(
                "a checksum in place of ICMPv6's type",
                ipv6(LLADDR, ICMPV6, &[128, 0, 0, 0, 9, 9, 9, 9]),
            )
            .with_checksum(54, 0),
            Checksum,
        ),
        (
            Claim::new(
                "a checksum in place of a neighbour advertisement's target",
                ipv6(LLADDR, ICMPV6, &discovery(136, "fd00::5", 2, GUEST)),
            )
            .with_checksum(54, 22),
            Checksum,
        ),
        (
            Claim::new(
                "a checksum in place of ARP's sender",
                arp(2, GUEST, OWN, GATEWAYS),
            )
            .with_checksum(14, 14),
            Checksum,
        ),
        (
            Claim::new(
                "a checksum in place of the MAC address",
                ipv4(OWN, 6, &tcp()),
            )
            .with_checksum(0, 6),
            Checksum,
        ),
    ];
    all.map(|(name, frame, reason)| (Claim::new(name, frame), reason))
        .chain(with_checksums)
        .collect()
}

/// A DHCPACK of `ip` for the NIC with `mac`, by the gateway.
pub fn dhcp_ack(mac: [u8; 6], ip: [u8; 4], seconds: u32) -> Vec<u8> {
    let mut message = dhcp(2, mac);
    message.truncate(240);
    message[16..20].copy_from_slice(&ip);
    message.extend([53, 1, 5, 51, 4]);
    message.extend(seconds.to_be_bytes());
    message.push(255);
    let mut frame = ipv4(GATEWAYS, UDP, &udp(67, 68, &message));
    frame[..6].copy_from_slice(&mac);
    frame[6..12].copy_from_slice(&GATEWAY);
    frame
}

/// A DHCPv6 Reply that gives `ip`, to the NIC with `mac`.
pub fn dhcpv6_reply(mac: [u8; 6], ip: Ipv6Addr, seconds: u32) -> Vec<u8> {
    let lifetime = seconds.to_be_bytes();
    let address = [&[0, 5, 0, 24][..], &ip.octets(), &lifetime, &lifetime].concat();
    let association = [&[0, 3, 0, 40][..], &[0; 12], &address].concat();
    let client = [0, 1, 0, 4, 0, 3, 0, 1];
    let message = [&[7, 1, 2, 3][..], &client, &association].concat();
    let mut frame = ipv6("fe80::1", UDP, &udp(547, 546, &message));
    frame[..6].copy_from_slice(&mac);
    frame[6..12].copy_from_slice(&GATEWAY);
    frame
}

/// A router's advertisement of a prefix that addresses are made of, or not.
pub fn advertised(prefix: &str, autonomous: bool) -> Vec<u8> {
    let flags = if autonomous { 0xc0 } else { 0x80 };
    let option = [
        &[3, 4, 64, flags][..],
        &[0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0],
        &address(prefix),
    ]
    .concat();
    let mut frame = ipv6("fe80::1", ICMPV6, &[advertise_router(), option].concat());
    frame[6..12].copy_from_slice(&GATEWAY);
    frame
}

/// The source of an IPv4 packet in a frame.
pub fn source_of(frame: &[u8]) -> Ipv4Addr {
    Ipv4Addr::from(<[u8; 4]>::try_from(&frame[26..30]).unwrap())
}
