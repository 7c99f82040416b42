//! A step on a link: what `ip` would do, done through rtnetlink.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::types::{IfName, MacAddr};

/// One change to a link or to what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum LinkStep {
    /// Make a bridge.
    AddBridge {
        /// Its name.
        link: IfName,
        /// Its own address, so that it does not change with its ports.
        mac: MacAddr,
    },
    /// Delete a bridge that [`Step::AddBridge`] made; a link with another address is left alone.
    DeleteBridge {
        /// Its name.
        link: IfName,
        /// The address it was made with.
        mac: MacAddr,
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
}

impl LinkStep {
    /// The step that takes this one back, where a later one of the same `up` fails.
    pub fn undo(&self) -> Option<Self> {
        let step = match self.clone() {
            Self::AddBridge { link, mac } => Self::DeleteBridge { link, mac },
            Self::SetMtu { link, mtu, was } => Self::SetMtu {
                link,
                mtu: was,
                was: mtu,
            },
            Self::SetUp { link } => Self::SetDown { link },
            Self::SetDown { link } => Self::SetUp { link },
            Self::AddAddress { link, address } => Self::DeleteAddress { link, address },
            Self::DeleteAddress { link, address } => Self::AddAddress { link, address },
            // A step of `down` only: it goes on where one fails, and never back.
            Self::DeleteBridge { .. } => return None,
        };
        Some(step)
    }

    /// What `down` must do because of this step.
    pub fn teardown(&self) -> Option<Self> {
        match self {
            Self::AddBridge { .. } | Self::AddAddress { .. } => self.undo(),
            _ => None,
        }
    }
}

impl fmt::Display for LinkStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddBridge { link, mac } => {
                write!(
                    f,
                    "ip link add {link} address {mac} type bridge stp_state 0"
                )
            }
            Self::DeleteBridge { link, .. } => write!(f, "ip link delete {link}"),
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
        }
    }
}
