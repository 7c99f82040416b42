//! What a frame claims, and which claim its sender has no right to. Pure: a function of the policy, of what servers and
//! routers gave, and of the frame's bytes.
//!
//! Only the frame's head is at hand, a copy that its sender can't change any more. Whatever must be seen has to be in it: a frame
//! with so many VLAN tags, options or extension headers that it is not is refused, for what can't be seen may be anything.
//! So are headers that contradict each other, whatever parts the policy has. What lies behind a packet's end in its frame says
//! nothing: whoever gets the packet cuts it off.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::policy::Policy;
use super::reason::Reason;
use crate::types::MacAddr;

/// The virtio-net header's flag for a checksum that is yet to be made, and where it says of what and where to (virtio 1.3 §5.1.6).
const NEEDS_CSUM: u8 = 1;
const CSUM_START: usize = 6;
const CSUM_OFFSET: usize = 8;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const RARP: u16 = 0x8035;
const IPV6: u16 = 0x86dd;
/// EtherTypes that announce a VLAN tag: customer's, service provider's, and the latter's before it was standardised.
const TAG: u16 = 0x8100;
const SERVICE_TAG: u16 = 0x88a8;
const OLD_SERVICE_TAG: u16 = 0x9100;

/// IP protocol numbers.
mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const IGMP: u8 = 2;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION: u8 = 60;
    pub const MOBILITY: u8 = 135;
    pub const HIP: u8 = 139;
    pub const SHIM6: u8 = 140;
}

/// ICMP types (RFC 792, RFC 1256) and ICMPv6's (RFC 4861, RFC 2710, RFC 3810).
mod icmp {
    pub const REDIRECT: u8 = 5;
    pub const ROUTER_ADVERTISEMENT: u8 = 9;
    pub const V6_LISTENER_REPORT: u8 = 131;
    pub const V6_LISTENER_DONE: u8 = 132;
    pub const V6_ROUTER_SOLICITATION: u8 = 133;
    pub const V6_ROUTER_ADVERTISEMENT: u8 = 134;
    pub const V6_NEIGHBOR_SOLICITATION: u8 = 135;
    pub const V6_NEIGHBOR_ADVERTISEMENT: u8 = 136;
    pub const V6_REDIRECT: u8 = 137;
    pub const V6_LISTENER_REPORT_2: u8 = 143;
}

/// UDP ports of DHCP (RFC 2131) and DHCPv6 (RFC 8415).
mod port {
    pub const DHCP_SERVER: u16 = 67;
    pub const DHCP_CLIENT: u16 = 68;
    pub const DHCPV6_SERVER: u16 = 547;
}

/// Extension headers that are followed at most.
const MOST_EXTENSIONS: usize = 8;

/// A frame on its way from a guest.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// The virtio-net header, without `num_buffers`.
    pub header: [u8; 10],
    /// Its first bytes, from the destination address on.
    pub head: &'a [u8],
    /// How many it has in all.
    pub len: usize,
}

/// What is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Rights<'a> {
    /// What the guest is told it may claim.
    pub policy: &'a Policy,
    /// What servers and routers gave it besides: addresses, and prefixes that it may make itself addresses of.
    pub leased: &'a [IpNet],
}

/// The virtio-net header's word for a frame that is yet to be cut into packets (virtio 1.3 §5.1.6).
const GSO_TYPE: usize = 1;

type Verdict = Result<(), Reason>;

impl Frame<'_> {
    /// Whether it may pass.
    ///
    /// # Errors
    /// Why it may not.
    pub fn judge(&self, rights: Rights<'_>) -> Verdict {
        if !self.comes_from(rights.policy.mac) {
            return Err(Reason::SourceMac);
        }
        let (ether_type, at) = self.payload(rights.policy)?;
        match ether_type {
            ARP => self.arp(at, rights),
            RARP => self.rarp(at, rights),
            IPV4 => self.ipv4(at, rights),
            IPV6 => self.ipv6(at, rights),
            _ if rights.policy.only_ip => Err(Reason::Protocol),
            _ => Ok(()),
        }
    }

    /// Whether its source is `mac`, where it matters.
    pub fn comes_from(&self, mac: Option<MacAddr>) -> bool {
        mac.is_none_or(|mac| self.at(6) == Ok(mac.octets()))
    }

    /// The source of an ordinary packet: a whole one of TCP or UDP, untagged and without options. It claims an Ethernet address and
    /// this, and nothing else: [`Frame::judge`] lets it pass if the guest owns both.
    pub fn ordinary_source(&self) -> Option<IpAddr> {
        let be = |at: usize| u16::from_be_bytes([self.head[at], self.head[at + 1]]);
        // EtherType, version and IPv4's header length; then where each header has what.
        let (source, protocol, at, end) = match self.at::<3>(12).ok()? {
            [0x08, 0x00, 0x45] => {
                let head = self.head.first_chunk::<38>()?;
                if be(20) & 0x3fff != 0 {
                    return None; // a fragment
                }
                let source = Ipv4Addr::from(self.at::<4>(26).ok()?);
                let end = 14 + usize::from(be(16));
                (IpAddr::from(source), head[23], 34, end)
            }
            [0x86, 0xdd, 0x60..=0x6f] => {
                let head = self.head.first_chunk::<58>()?;
                let source = Ipv6Addr::from(self.at::<16>(22).ok()?);
                let end = 54 + usize::from(be(18));
                (IpAddr::from(source), head[20], 54, end)
            }
            _ => return None,
        };
        let upper = Upper {
            protocol,
            at,
            is_first: true,
        };
        let says_nothing = match upper.protocol {
            protocol::TCP => true,
            protocol::UDP => !is_service(be(upper.at)) && !is_service(be(upper.at + 2)),
            _ => false,
        };
        let is_whole = upper.at + 8 <= end && end <= self.len;
        (says_nothing && is_whole && self.checksum_is_behind(Some(&upper)).is_ok())
            .then_some(source)
    }

    /// What is behind the Ethernet header and its tags, and where.
    fn payload(&self, policy: &Policy) -> Result<(u16, usize), Reason> {
        let mut at = 12;
        loop {
            let ether_type = u16::from_be_bytes(self.at(at)?);
            at += 2;
            if !is_tag(ether_type) {
                return Ok((ether_type, at));
            }
            if let Some(allowed) = &policy.vlans {
                let id = u16::from_be_bytes(self.at(at)?) & 0xfff;
                let is_own = allowed.iter().any(|vlan| vlan.get() == id);
                // A tag within a tag is for a bridge that would take off the outer one.
                if ether_type != TAG || at != 14 || !is_own {
                    return Err(Reason::Vlan);
                }
            }
            at += 2;
        }
    }

    /// RFC 826: hardware type, protocol type, both lengths, operation, sender, target.
    fn arp(&self, at: usize, rights: Rights<'_>) -> Verdict {
        const IPV4_OVER_ETHERNET: [u8; 6] = [0, 1, 8, 0, 6, 4];
        self.checksum_is_behind(None)?;
        if !rights.checks_neighbors() {
            return Ok(());
        }
        if self.at(at)? != IPV4_OVER_ETHERNET {
            return Err(Reason::Malformed);
        }
        rights.owns_mac(self.at(at + 8)?, Reason::ArpSender)?;
        let sender = Ipv4Addr::from(self.at::<4>(at + 14)?);
        // A probe names nobody as its sender, and would take the address that it asks for from whoever is about to have it
        // (RFC 5227).
        let claimed = match sender.is_unspecified() {
            true => Ipv4Addr::from(self.at::<4>(at + 24)?),
            false => sender,
        };
        rights.owns(claimed.into(), Reason::ArpSender)
    }

    /// RFC 903: a request by the sender for its own address, as live migration makes; an answer is a server's.
    fn rarp(&self, at: usize, rights: Rights<'_>) -> Verdict {
        const REQUEST: [u8; 2] = [0, 3];
        self.checksum_is_behind(None)?;
        if rights.policy.no_services && self.at(at + 6)? != REQUEST {
            return Err(Reason::DhcpServer);
        }
        rights.owns_mac(self.at(at + 8)?, Reason::ArpSender)
    }

    fn ipv4(&self, at: usize, rights: Rights<'_>) -> Verdict {
        let [version_and_length] = self.at(at)?;
        let header = usize::from(version_and_length & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes(self.at(at + 2)?));
        let is_whole = total == 0 && self.is_gso();
        if version_and_length >> 4 != 4 || header < 20 || (total < header && !is_whole) {
            return Err(Reason::Malformed);
        }
        match is_whole {
            true => self.packet_of_ipv4(at, header, rights),
            false => self.up_to(at + total)?.packet_of_ipv4(at, header, rights),
        }
    }

    fn packet_of_ipv4(&self, at: usize, header: usize, rights: Rights<'_>) -> Verdict {
        let [protocol] = self.at(at + 9)?;
        let offset = u16::from_be_bytes(self.at(at + 6)?) & 0x1fff;
        let upper = Upper {
            protocol,
            at: at + header,
            is_first: offset == 0,
        };
        let source = Ipv4Addr::from(self.at::<4>(at + 12)?);
        if !(source.is_unspecified() && self.may_lack_ipv4(&upper)?) {
            rights.owns(source.into(), Reason::Ipv4Source)?;
        }
        self.checksum_is_behind(Some(&upper))?;
        self.services_of_ipv4(&upper, rights.policy)
    }

    /// Whether this is of what a host sends that has no address yet.
    fn may_lack_ipv4(&self, upper: &Upper) -> Result<bool, Reason> {
        Ok(match upper.protocol {
            protocol::IGMP => true,
            protocol::UDP if upper.is_first => {
                self.at(upper.at)? == port::DHCP_CLIENT.to_be_bytes()
                    && self.at(upper.at + 2)? == port::DHCP_SERVER.to_be_bytes()
            }
            _ => false,
        })
    }

    fn services_of_ipv4(&self, upper: &Upper, policy: &Policy) -> Verdict {
        if !upper.is_first {
            return Ok(()); // it says nothing; the first one, without which it is nothing, does
        }
        match upper.protocol {
            protocol::UDP => {
                let [from, to]: [u16; 2] = self.ports(upper)?;
                if policy.no_services && from == port::DHCP_SERVER {
                    return Err(Reason::DhcpServer);
                }
                if to == port::DHCP_SERVER {
                    self.dhcp_client(upper.at + 8, policy)?;
                }
                Ok(())
            }
            protocol::ICMP if policy.no_services => match self.at(upper.at)? {
                [icmp::REDIRECT] => Err(Reason::Redirect),
                [icmp::ROUTER_ADVERTISEMENT] => Err(Reason::RouterAdvertisement),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// A client that asks for others would be given their leases, or all that there are.
    fn dhcp_client(&self, at: usize, policy: &Policy) -> Verdict {
        const HARDWARE_ADDRESS: usize = 28;
        match policy.mac {
            Some(mac) if self.at(at + HARDWARE_ADDRESS)? != mac.octets() => Err(Reason::DhcpClient),
            _ => Ok(()),
        }
    }

    fn ipv6(&self, at: usize, rights: Rights<'_>) -> Verdict {
        let [version] = self.at(at)?;
        if version >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        let payload = usize::from(u16::from_be_bytes(self.at(at + 4)?));
        // A jumbogram says its length in an option (RFC 2675).
        let is_whole =
            payload == 0 && (self.is_gso() || self.at(at + 6)? == [protocol::HOP_BY_HOP]);
        match is_whole {
            true => self.packet_of_ipv6(at, rights),
            false => self.up_to(at + 40 + payload)?.packet_of_ipv6(at, rights),
        }
    }

    fn packet_of_ipv6(&self, at: usize, rights: Rights<'_>) -> Verdict {
        let (upper, is_fragment) = self.upper_of_ipv6(at)?;
        let source = Ipv6Addr::from(self.at::<16>(at + 8)?);
        if !(source.is_unspecified() && self.may_lack_ipv6(&upper)?) {
            rights.owns(source.into(), Reason::Ipv6Source)?;
        }
        self.checksum_is_behind(Some(&upper))?;
        if !upper.is_first {
            return Ok(());
        }
        match upper.protocol {
            protocol::UDP if rights.policy.no_services => {
                let [from, _] = self.ports(&upper)?;
                match from {
                    port::DHCPV6_SERVER => Err(Reason::DhcpServer),
                    _ => Ok(()),
                }
            }
            protocol::ICMPV6 => self.icmpv6(upper.at, source, is_fragment, rights),
            _ => Ok(()),
        }
    }

    /// What is behind all extension headers, and whether they make this a fragment.
    fn upper_of_ipv6(&self, at: usize) -> Result<(Upper, bool), Reason> {
        let [mut protocol] = self.at(at + 6)?;
        let mut at = at + 40;
        let mut is_fragment = false;
        for _ in 0..=MOST_EXTENSIONS {
            let length = match protocol {
                protocol::HOP_BY_HOP
                | protocol::ROUTING
                | protocol::DESTINATION
                | protocol::MOBILITY
                | protocol::HIP
                | protocol::SHIM6 => 8 + usize::from(self.at::<1>(at + 1)?[0]) * 8,
                protocol::AUTHENTICATION => 8 + usize::from(self.at::<1>(at + 1)?[0]) * 4,
                protocol::FRAGMENT => {
                    is_fragment = true;
                    if u16::from_be_bytes(self.at(at + 2)?) >> 3 != 0 {
                        let [protocol] = self.at(at)?;
                        let upper = Upper {
                            protocol,
                            at: at + 8,
                            is_first: false,
                        };
                        return Ok((upper, true));
                    }
                    8
                }
                protocol => {
                    let upper = Upper {
                        protocol,
                        at,
                        is_first: true,
                    };
                    return Ok((upper, is_fragment));
                }
            };
            [protocol] = self.at(at)?;
            at += length;
        }
        Err(Reason::Hidden)
    }

    /// Whether this is of what a host sends that has no address yet.
    fn may_lack_ipv6(&self, upper: &Upper) -> Result<bool, Reason> {
        if upper.protocol != protocol::ICMPV6 || !upper.is_first {
            return Ok(false);
        }
        let [kind] = self.at(upper.at)?;
        Ok(matches!(
            kind,
            icmp::V6_ROUTER_SOLICITATION
                | icmp::V6_NEIGHBOR_SOLICITATION
                | icmp::V6_LISTENER_REPORT
                | icmp::V6_LISTENER_DONE
                | icmp::V6_LISTENER_REPORT_2
        ))
    }

    /// Neighbor Discovery (RFC 4861), which is never in fragments (RFC 6980).
    fn icmpv6(
        &self,
        at: usize,
        source: Ipv6Addr,
        is_fragment: bool,
        rights: Rights<'_>,
    ) -> Verdict {
        const TARGET: usize = 8;
        let [kind] = self.at(at)?;
        let is_discovery = (icmp::V6_ROUTER_SOLICITATION..=icmp::V6_REDIRECT).contains(&kind);
        if is_discovery && is_fragment {
            return Err(Reason::Hidden);
        }
        match kind {
            icmp::V6_ROUTER_ADVERTISEMENT if rights.policy.no_services => {
                Err(Reason::RouterAdvertisement)
            }
            icmp::V6_REDIRECT if rights.policy.no_services => Err(Reason::Redirect),
            icmp::V6_ROUTER_SOLICITATION => self.link_layer_options(at + 8, rights),
            icmp::V6_NEIGHBOR_SOLICITATION => {
                // Who asks without an address is about to take the one it asks for.
                if source.is_unspecified() {
                    let target = Ipv6Addr::from(self.at::<16>(at + TARGET)?);
                    rights.may_ask_for(target)?;
                }
                self.link_layer_options(at + TARGET + 16, rights)
            }
            icmp::V6_NEIGHBOR_ADVERTISEMENT => {
                let target = Ipv6Addr::from(self.at::<16>(at + TARGET)?);
                rights.owns(target.into(), Reason::Neighbor)?;
                self.link_layer_options(at + TARGET + 16, rights)
            }
            _ => Ok(()),
        }
    }

    /// Where neighbours are told that the sender is to be found.
    fn link_layer_options(&self, mut at: usize, rights: Rights<'_>) -> Verdict {
        const LINK_LAYER: [u8; 2] = [1, 2];
        if !rights.checks_neighbors() {
            return Ok(());
        }
        while at < self.len {
            let [kind, eights]: [u8; 2] = self.at(at)?;
            if eights == 0 {
                return Err(Reason::Malformed);
            }
            if LINK_LAYER.contains(&kind) {
                rights.owns_mac(self.at(at + 2)?, Reason::Neighbor)?;
            }
            at += usize::from(eights) * 8;
        }
        Ok(())
    }

    /// The address of which the sender asks whether anybody has it, for it is about to take it (RFC 4862 §5.4), in the form that
    /// hosts send.
    pub fn question(&self) -> Option<Ipv6Addr> {
        const NEXT_HEADER: usize = 6;
        const SOURCE: usize = 8;
        const TARGET: usize = 40 + 8;
        let mut at = 14;
        while is_tag(u16::from_be_bytes(self.at(at - 2).ok()?)) {
            at += 4;
        }
        let is_question = self.at(at - 2) == Ok(IPV6.to_be_bytes())
            && self.at(at + NEXT_HEADER) == Ok([protocol::ICMPV6])
            && self.at(at + 40) == Ok([icmp::V6_NEIGHBOR_SOLICITATION])
            && self.at(at + SOURCE) == Ok([0; 16]);
        let target = is_question.then(|| self.at::<16>(at + TARGET).ok())?;
        target.map(Ipv6Addr::from)
    }

    fn ports(&self, upper: &Upper) -> Result<[u16; 2], Reason> {
        let [a, b, c, d] = self.at(upper.at)?;
        Ok([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])])
    }

    /// A checksum that somebody makes later on is written where the sender says, of bytes that the sender chooses: it could put any
    /// address, port or type where another was looked at. So its place is to be behind all of those.
    fn checksum_is_behind(&self, upper: Option<&Upper>) -> Verdict {
        if self.header[0] & NEEDS_CSUM == 0 {
            return Ok(());
        }
        let field =
            |at: usize| usize::from(u16::from_le_bytes([self.header[at], self.header[at + 1]]));
        let place = field(CSUM_START) + field(CSUM_OFFSET);
        let upper = upper.ok_or(Reason::Checksum)?;
        let first = match upper.protocol {
            protocol::UDP => upper.at + 6,
            protocol::TCP => upper.at + 16,
            protocol::ICMPV6 | protocol::ICMP => match place == upper.at + 2 {
                true => place,
                false => return Err(Reason::Checksum),
            },
            _ => upper.at,
        };
        match place >= first {
            true => Ok(()),
            false => Err(Reason::Checksum),
        }
    }

    fn is_gso(&self) -> bool {
        self.header[GSO_TYPE] != 0
    }

    /// The frame as far as a packet goes.
    fn up_to(&self, end: usize) -> Result<Self, Reason> {
        match end <= self.len {
            true => Ok(Self {
                head: &self.head[..end.min(self.head.len())],
                len: end,
                ..*self
            }),
            false => Err(Reason::Malformed),
        }
    }

    /// The bytes at `at`.
    fn at<const N: usize>(&self, at: usize) -> Result<[u8; N], Reason> {
        let end = at + N;
        match self.head.get(at..end) {
            Some(bytes) => Ok(bytes.try_into().expect("as many as were asked for")),
            None if end > self.len => Err(Reason::Malformed),
            None => Err(Reason::Hidden),
        }
    }
}

fn is_service(port: u16) -> bool {
    matches!(port, port::DHCP_SERVER | port::DHCPV6_SERVER)
}

fn is_tag(ether_type: u16) -> bool {
    matches!(ether_type, TAG | SERVICE_TAG | OLD_SERVICE_TAG)
}

/// What an IP header is followed by.
struct Upper {
    protocol: u8,
    at: usize,
    /// Of a packet that is in fragments, the one with the upper header.
    is_first: bool,
}

impl Rights<'_> {
    /// Whether it matters who is said to have an address.
    fn checks_neighbors(&self) -> bool {
        self.policy.mac.is_some()
            || self.policy.addresses.is_some()
            || !self.policy.others.is_empty()
    }

    fn owns_mac(&self, claimed: [u8; 6], otherwise: Reason) -> Verdict {
        match self.policy.mac {
            Some(mac) if mac.octets() != claimed => Err(otherwise),
            _ => Ok(()),
        }
    }

    fn owns(&self, claimed: IpAddr, otherwise: Reason) -> Verdict {
        let policy = self.policy;
        let is_others = policy.others.contains(&claimed);
        let is_own = match &policy.addresses {
            None => true,
            Some(addresses) => {
                addresses.iter().any(|net| net.contains(&claimed))
                    || self.leased.contains(&claimed.into())
                    || self.is_own_by_nature(claimed)
            }
        };
        match is_own && !is_others && (policy.addresses.is_none() || is_unicast(claimed)) {
            true => Ok(()),
            false => Err(otherwise),
        }
    }

    /// Whether it is an address that the guest need not be given: in IPv4 whichever link-local one it has found free (RFC 3927), in
    /// IPv6 what it makes of its own MAC address for its link and for the prefixes of routers (RFC 4862).
    fn is_own_by_nature(&self, claimed: IpAddr) -> bool {
        let claimed = match claimed {
            IpAddr::V4(claimed) => return claimed.is_link_local(),
            IpAddr::V6(claimed) => claimed,
        };
        let identifier = |address: Ipv6Addr| u128::from(address) as u64;
        let own = self.policy.mac.map(|mac| identifier(mac.link_local()));
        own == Some(identifier(claimed)) && self.may_be_made(claimed)
    }

    /// Whether a guest may make itself such an address at all, if nobody has it.
    fn may_be_made(&self, address: Ipv6Addr) -> bool {
        address.is_unicast_link_local()
            || self
                .leased
                .iter()
                .any(|net| net.contains(&IpAddr::V6(address)))
    }

    /// An address that is about to be taken is to be the guest's, or one that it may make itself.
    fn may_ask_for(&self, address: Ipv6Addr) -> Verdict {
        let is_others = self.policy.others.contains(&address.into());
        match !is_others && self.may_be_made(address) {
            true => Ok(()),
            false => self.owns(address.into(), Reason::Neighbor),
        }
    }
}

fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !address.is_multicast()
                && !address.is_broadcast()
                && !address.is_loopback()
                && !address.is_unspecified()
        }
        IpAddr::V6(address) => {
            !address.is_multicast() && !address.is_loopback() && !address.is_unspecified()
        }
    }
}
