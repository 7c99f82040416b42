//! Who may open connections to whom through a network's gateway: decided here once, from the file alone, for the rules
//! that a plan loads and for the table that `ringtap reach` prints.

use ipnet::IpNet;

use crate::config::{Mode, Network};
use crate::types::Family;

/// What the gateway of a network lets through in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Guests may open connections to what is beyond.
    pub outbound: bool,
    /// What is beyond may open connections to guests.
    pub inbound: bool,
    /// Beyond, guests show up with the host's address.
    pub masquerade: bool,
}

impl Policy {
    const CLOSED: Self = Self {
        outbound: false,
        inbound: false,
        masquerade: false,
    };
    const ROUTED: Self = Self {
        outbound: true,
        inbound: true,
        masquerade: false,
    };

    /// That of `network`; none where the host is not its gateway, or its guests have no addresses of that family.
    pub fn of(network: &Network, family: Family) -> Option<Self> {
        Self::of_net(network, network.prefix(family)?)
    }

    /// That of `net` on `network`, its own or behind a machine there; none where the host is not its gateway.
    pub fn of_net(network: &Network, net: IpNet) -> Option<Self> {
        Some(match &network.mode {
            Mode::Bridge { .. } | Mode::Macvtap { .. } | Mode::Ipvtap { .. } => return None,
            Mode::Nat { nat66 } => Self::nat(net, *nat66),
            // What the router translates has the router's own address, and the rest is known beyond.
            Mode::Router { .. } => Self::nat(net, network.prefix(Family::Ipv6) == Some(net)),
            Mode::Routed | Mode::Open => Self::ROUTED,
            Mode::Isolated { .. } => Self::CLOSED,
        })
    }

    /// IPv6 has addresses enough: guests keep theirs, unless the file says otherwise. Unique local ones mean nothing
    /// beyond, so that guests had better not try.
    fn nat(net: IpNet, nat66: bool) -> Self {
        let (masquerade, local) = match net {
            IpNet::V4(_) => (true, false),
            IpNet::V6(net) => (nat66, net.addr().is_unique_local()),
        };
        Self {
            outbound: masquerade || !local,
            inbound: false,
            masquerade,
        }
    }
}
