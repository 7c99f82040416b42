//! Why a frame is refused.

use std::fmt;

/// A claim that a guest has no right to, or a form that could hide one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The Ethernet source is not the NIC's.
    SourceMac,
    /// An ARP packet speaks for another's address.
    ArpSender,
    /// The source of an IPv4 packet is another's.
    Ipv4Source,
    /// The source of an IPv6 packet is another's.
    Ipv6Source,
    /// Neighbor Discovery speaks for another's address.
    Neighbor,
    /// A DHCP or RARP server's answer.
    DhcpServer,
    /// A DHCP client asks for another NIC.
    DhcpClient,
    /// A router's advertisement.
    RouterAdvertisement,
    /// A router's redirect.
    Redirect,
    /// A VLAN tag that the NIC does not have.
    Vlan,
    /// Neither IP nor what it needs.
    Protocol,
    /// A checksum that is to be written over what was looked at.
    Checksum,
    /// What must be seen is behind too many headers, or in fragments.
    Hidden,
    /// The frame is shorter than its headers say, or they contradict each other.
    Malformed,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 14] = [
        Self::SourceMac,
        Self::ArpSender,
        Self::Ipv4Source,
        Self::Ipv6Source,
        Self::Neighbor,
        Self::DhcpServer,
        Self::DhcpClient,
        Self::RouterAdvertisement,
        Self::Redirect,
        Self::Vlan,
        Self::Protocol,
        Self::Checksum,
        Self::Hidden,
        Self::Malformed,
    ];

    /// As counters have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SourceMac => "source_mac",
            Self::ArpSender => "arp_sender",
            Self::Ipv4Source => "ipv4_source",
            Self::Ipv6Source => "ipv6_source",
            Self::Neighbor => "neighbor",
            Self::DhcpServer => "dhcp_server",
            Self::DhcpClient => "dhcp_client",
            Self::RouterAdvertisement => "router_advertisement",
            Self::Redirect => "redirect",
            Self::Vlan => "vlan",
            Self::Protocol => "protocol",
            Self::Checksum => "checksum",
            Self::Hidden => "hidden",
            Self::Malformed => "malformed",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
