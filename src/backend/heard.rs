//! The addresses by which a guest makes itself heard: what it says of itself in ARP (RFC 826) and in Neighbor Discovery
//! (RFC 4861), without which nobody on its link could answer it.
//!
//! Looked at are frames that the tap has taken, at most three of their fields unless they are one of these. They are the
//! guest's words, for people to read: nothing is decided by them.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// So many are remembered, those heard last.
const MOST: usize = 16;

const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

/// Where things are in an ARP packet for IPv4 over Ethernet.
const ARP_PROTOCOL: usize = 2;
const ARP_SENDER: usize = 14;

/// Where things are in an IPv6 header, and behind it.
const NEXT_HEADER: usize = 6;
const SOURCE: usize = 8;
const ICMP_TYPE: usize = 40;
const ND_TARGET: usize = 48;

const ICMPV6: u8 = 58;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;

/// What was heard of a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard(VecDeque<IpAddr>);

/// The bytes of a packet, by their offset; zeroes beyond its end.
pub trait Packet {
    /// Those from `offset` on.
    fn at<const N: usize>(&self, offset: usize) -> [u8; N];
}

impl Heard {
    /// Looks at a packet behind an Ethernet header that calls it `ether_type`.
    pub fn listen(&mut self, ether_type: u16, packet: &impl Packet) {
        let says = match ether_type {
            ARP => by_arp(packet),
            IPV6 => by_neighbor_discovery(packet),
            _ => return,
        };
        if let Some(ip) = says.filter(is_told) {
            self.remember(ip);
        }
    }

    /// The addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.0.iter().copied()
    }

    /// As one that was heard just now.
    pub fn remember(&mut self, ip: IpAddr) {
        match self.0.iter().position(|known| *known == ip) {
            Some(0) => return,
            Some(place) => drop(self.0.remove(place)),
            None => self.0.truncate(MOST - 1),
        }
        self.0.push_front(ip);
    }
}

fn by_arp(packet: &impl Packet) -> Option<IpAddr> {
    const IPV4: [u8; 2] = [0x08, 0x00];
    let for_ipv4 = packet.at(ARP_PROTOCOL) == IPV4;
    for_ipv4.then(|| IpAddr::V4(Ipv4Addr::from(packet.at::<4>(ARP_SENDER))))
}

fn by_neighbor_discovery(packet: &impl Packet) -> Option<IpAddr> {
    if packet.at(NEXT_HEADER) != [ICMPV6] {
        return None;
    }
    let [kind] = packet.at(ICMP_TYPE);
    let place = match kind {
        NEIGHBOR_SOLICITATION => SOURCE,
        NEIGHBOR_ADVERTISEMENT => ND_TARGET,
        _ => return None,
    };
    Some(IpAddr::V6(Ipv6Addr::from(packet.at::<16>(place))))
}

/// Who has no address yet says so by an unspecified one; every guest has a link-local one, which tells nobody anything.
fn is_told(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_link_local() && !ip.is_multicast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_unicast_link_local() && !ip.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Packet for Vec<u8> {
        fn at<const N: usize>(&self, offset: usize) -> [u8; N] {
            std::array::from_fn(|i| self.get(offset + i).copied().unwrap_or_default())
        }
    }

    fn arp(sender: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 1, 2, 3];
        packet.extend(sender);
        packet.extend([0; 10]);
        packet
    }

    fn icmpv6(kind: u8, source: &str, target: &str) -> Vec<u8> {
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        let mut packet = vec![0x60, 0, 0, 0, 0, 32, ICMPV6, 255];
        packet.extend(address(source));
        packet.extend(address("ff02::1:ff00:1"));
        packet.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
        packet.extend(address(target));
        packet
    }

    fn heard(packets: &[(u16, Vec<u8>)]) -> Vec<String> {
        let mut heard = Heard::default();
        for (ether_type, packet) in packets {
            heard.listen(*ether_type, packet);
        }
        heard.addresses().map(|ip| ip.to_string()).collect()
    }

    #[test]
    fn a_guest_is_heard_of_by_arp_and_neighbor_discovery() {
        let all = [
            (ARP, arp([192, 0, 2, 5])),
            (
                IPV6,
                icmpv6(NEIGHBOR_SOLICITATION, "2001:db8::5", "2001:db8::1"),
            ),
            (
                IPV6,
                icmpv6(NEIGHBOR_ADVERTISEMENT, "fe80::1", "2001:db8::6"),
            ),
        ];
        assert_eq!(heard(&all), ["2001:db8::6", "2001:db8::5", "192.0.2.5"]);
    }

    #[test]
    fn what_tells_no_address_is_passed_over() {
        let mut appletalk = arp([192, 0, 2, 5]);
        appletalk[ARP_PROTOCOL] = 0x80;
        let all = [
            (ARP, arp([0; 4])),           // a probe
            (ARP, arp([169, 254, 3, 4])), // link-local
            (ARP, appletalk),
            (ARP, vec![0, 1, 8, 0, 6, 4]), // cut off
            (0x0800, arp([192, 0, 2, 5])),
            (IPV6, icmpv6(NEIGHBOR_SOLICITATION, "::", "2001:db8::5")), // is it somebody's?
            (IPV6, icmpv6(NEIGHBOR_ADVERTISEMENT, "fe80::1", "fe80::1")),
            (IPV6, icmpv6(128, "2001:db8::7", "2001:db8::8")), // a ping
        ];
        assert_eq!(heard(&all), [""; 0]);
    }

    #[test]
    fn those_heard_last_are_remembered() {
        let many: Vec<_> = (1..=40)
            .chain([30, 40])
            .map(|n| (ARP, arp([192, 0, 2, n])))
            .collect();
        let heard = heard(&many);
        assert_eq!(heard.len(), MOST);
        assert_eq!(heard[..3], ["192.0.2.40", "192.0.2.30", "192.0.2.39"]);
        assert_eq!(heard[MOST - 1], "192.0.2.25");
    }
}
