//! A step on a link: what `ip` would do, done through rtnetlink.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::step::Effect;
use crate::config::{BondMode, StaticRoute};
use crate::types::{IfName, MacAddr, VlanId};

/// How often the links of a bond are asked for their carrier, in milliseconds (bonding.rst recommends it).
pub const MIIMON: u32 = 100;

/// One change to a link or to what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum LinkStep {
    /// Make a link.
    Add {
        /// Its name.
        link: IfName,
        /// What it is.
        kind: Kind,
        /// Its own address; the kernel's choice where there is none.
        mac: Option<MacAddr>,
    },
    /// Delete a link that [`LinkStep::Add`] made; one of another kind or address is left alone.
    Delete {
        /// Its name.
        link: IfName,
        /// What it was made as.
        kind: Kind,
        /// The address it was made with.
        mac: Option<MacAddr>,
    },
    /// Make a link a port of a bridge or bond; it is up then.
    Enslave {
        /// The link.
        port: IfName,
        /// The bridge or bond.
        master: IfName,
        /// Which of them.
        to: Master,
        /// Whether it was up before.
        was_up: bool,
    },
    /// Undo [`LinkStep::Enslave`]; a port of another one is left alone.
    Release {
        /// The link.
        port: IfName,
        /// The bridge or bond.
        master: IfName,
        /// Which of them.
        to: Master,
        /// Whether it is to be up.
        was_up: bool,
    },
    /// Have a bridge heed the VLANs of its ports, or not.
    SetVlanFiltering {
        /// The bridge.
        link: IfName,
        /// Whether it heeds them.
        on: bool,
    },
    /// Let frames of a VLAN, with its tag, through a port of a bridge.
    AddVlan {
        /// The port.
        link: IfName,
        /// The VLAN.
        id: VlanId,
    },
    /// Undo [`LinkStep::AddVlan`].
    DeleteVlan {
        /// The port.
        link: IfName,
        /// The VLAN.
        id: VlanId,
    },
    /// Have the host answer on a link for an address that is another's.
    AddProxy {
        /// The link.
        link: IfName,
        /// The address.
        address: IpAddr,
    },
    /// Undo [`LinkStep::AddProxy`].
    DeleteProxy {
        /// The link.
        link: IfName,
        /// The address.
        address: IpAddr,
    },
    /// Set a link's MTU.
    SetMtu {
        /// The link.
        link: IfName,
        /// The MTU in bytes.
        mtu: u32,
        /// What it was before.
        was: u32,
    },
    /// Set a link up.
    SetUp {
        /// The link.
        link: IfName,
    },
    /// Set a link down.
    SetDown {
        /// The link.
        link: IfName,
    },
    /// Give a link an address.
    AddAddress {
        /// The link.
        link: IfName,
        /// The address with its prefix length.
        address: IpNet,
    },
    /// Take an address from a link.
    DeleteAddress {
        /// The link.
        link: IfName,
        /// The address with its prefix length.
        address: IpNet,
    },
    /// Route what is behind a machine on a link to it, in place of another way to there.
    AddRoute {
        /// The link.
        link: IfName,
        /// Where to, and by which machine.
        route: StaticRoute,
    },
    /// Take back a route that [`LinkStep::AddRoute`] made.
    DeleteRoute {
        /// The link.
        link: IfName,
        /// Where to, and by which machine.
        route: StaticRoute,
    },
}

/// A kind of link that ringtap makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A bridge, without spanning tree.
    Bridge {
        /// Whether it heeds the VLANs of its ports.
        vlan_filtering: bool,
    },
    /// A bond.
    Bond(BondMode),
    /// A VLAN of another link.
    Vlan {
        /// The other link.
        link: IfName,
        /// The VLAN.
        id: VlanId,
    },
    /// A cable to a namespace.
    Veth {
        /// The link at its other end.
        peer: IfName,
        /// The namespace that has it.
        namespace: String,
    },
    /// A macvlan of another link, which exchanges frames with its like.
    Macvlan {
        /// The other link.
        link: IfName,
    },
    /// An ipvlan of another link, whose MAC address it shares.
    Ipvlan {
        /// The other link.
        link: IfName,
    },
}

/// What a port is one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Master {
    /// A bridge.
    Bridge,
    /// A bond, which takes links that are down, and sets them up.
    Bond,
}

impl LinkStep {
    /// The step that takes this one back, where a later one of the same `up` fails.
    pub fn undo(&self) -> Option<Self> {
        let step = match self.clone() {
            Self::Add { link, kind, mac } => Self::Delete { link, kind, mac },
            Self::Enslave {
                port,
                master,
                to,
                was_up,
            } => Self::Release {
                port,
                master,
                to,
                was_up,
            },
            Self::SetMtu { link, mtu, was } => Self::SetMtu {
                link,
                mtu: was,
                was: mtu,
            },
            Self::SetVlanFiltering { link, on } => Self::SetVlanFiltering { link, on: !on },
            Self::AddVlan { link, id } => Self::DeleteVlan { link, id },
            Self::DeleteVlan { link, id } => Self::AddVlan { link, id },
            Self::SetUp { link } => Self::SetDown { link },
            Self::SetDown { link } => Self::SetUp { link },
            Self::AddAddress { link, address } => Self::DeleteAddress { link, address },
            Self::DeleteAddress { link, address } => Self::AddAddress { link, address },
            Self::AddProxy { link, address } => Self::DeleteProxy { link, address },
            Self::DeleteProxy { link, address } => Self::AddProxy { link, address },
            Self::AddRoute { link, route } => Self::DeleteRoute { link, route },
            Self::DeleteRoute { link, route } => Self::AddRoute { link, route },
            // Steps of `down` only: it goes on where one fails, and never back.
            Self::Delete { .. } | Self::Release { .. } => return None,
        };
        Some(step)
    }

    /// What it makes of what is there.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Add { .. }
            | Self::AddAddress { .. }
            | Self::AddRoute { .. }
            | Self::AddProxy { .. }
            | Self::AddVlan { .. } => Effect::Adds,
            Self::Delete { .. }
            | Self::DeleteAddress { .. }
            | Self::DeleteRoute { .. }
            | Self::DeleteProxy { .. }
            | Self::DeleteVlan { .. } => Effect::Removes,
            Self::Enslave { .. }
            | Self::Release { .. }
            | Self::SetVlanFiltering { .. }
            | Self::SetMtu { .. }
            | Self::SetUp { .. }
            | Self::SetDown { .. } => Effect::Changes,
        }
    }

    /// What `down` must do because of this step.
    pub fn teardown(&self) -> Option<Self> {
        match self {
            Self::Add { .. }
            | Self::Enslave { .. }
            | Self::AddAddress { .. }
            | Self::AddProxy { .. }
            | Self::AddRoute { .. } => self.undo(),
            _ => None,
        }
    }
}

impl fmt::Display for LinkStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add { link, kind, mac } => {
                f.write_str("ip link add ")?;
                if let Kind::Vlan { link: over, .. }
                | Kind::Macvlan { link: over }
                | Kind::Ipvlan { link: over } = kind
                {
                    write!(f, "link {over} name ")?;
                }
                write!(f, "{link}")?;
                if let Some(mac) = mac {
                    write!(f, " address {mac}")?;
                }
                match kind {
                    Kind::Bridge { vlan_filtering } => {
                        f.write_str(" type bridge stp_state 0")?;
                        f.write_str(if *vlan_filtering {
                            " vlan_filtering 1"
                        } else {
                            ""
                        })
                    }
                    Kind::Bond(mode) => {
                        write!(f, " type bond mode {} miimon {MIIMON}", mode.name())
                    }
                    Kind::Vlan { id, .. } => write!(f, " type vlan id {id}"),
                    Kind::Veth { peer, namespace } => {
                        write!(f, " type veth peer name {peer} netns {namespace}")
                    }
                    Kind::Macvlan { .. } => f.write_str(" type macvlan mode bridge"),
                    Kind::Ipvlan { .. } => f.write_str(" type ipvlan mode l2"),
                }
            }
            Self::Delete { link, .. } => write!(f, "ip link delete {link}"),
            Self::Enslave {
                port,
                master,
                to,
                was_up,
            } => match (to, was_up) {
                (Master::Bridge, true) => write!(f, "ip link set {port} master {master}"),
                (Master::Bridge, false) => write!(f, "ip link set {port} up master {master}"),
                (Master::Bond, true) => {
                    write!(
                        f,
                        "ip link set {port} down\nip link set {port} master {master}"
                    )
                }
                (Master::Bond, false) => write!(f, "ip link set {port} master {master}"),
            },
            Self::Release { port, was_up, .. } => {
                let state = if *was_up { "up" } else { "down" };
                write!(f, "ip link set {port} nomaster {state}")
            }
            Self::SetVlanFiltering { link, on } => {
                let on = u8::from(*on);
                write!(f, "ip link set {link} type bridge vlan_filtering {on}")
            }
            Self::AddProxy { link, address } => {
                write!(f, "ip neigh add proxy {address} dev {link}")
            }
            Self::DeleteProxy { link, address } => {
                write!(f, "ip neigh delete proxy {address} dev {link}")
            }
            Self::AddVlan { link, id } => write!(f, "bridge vlan add dev {link} vid {id}"),
            Self::DeleteVlan { link, id } => write!(f, "bridge vlan delete dev {link} vid {id}"),
            Self::SetMtu { link, mtu, .. } => write!(f, "ip link set {link} mtu {mtu}"),
            Self::SetUp { link } => write!(f, "ip link set {link} up"),
            Self::SetDown { link } => write!(f, "ip link set {link} down"),
            Self::AddAddress { link, address } => {
                // No other host has the gateway's address: guests need not wait until that is found out.
                let option = match address {
                    IpNet::V4(_) => "brd +",
                    IpNet::V6(_) => "nodad",
                };
                write!(f, "ip address add {address} {option} dev {link}")
            }
            Self::DeleteAddress { link, address } => {
                write!(f, "ip address delete {address} dev {link}")
            }
            Self::AddRoute { link, route } => {
                write!(f, "ip route replace {route} dev {link} proto static")
            }
            Self::DeleteRoute { link, route } => write!(f, "ip route delete {route} dev {link}"),
        }
    }
}
