//! A step on Open vSwitch: what `ovs-vsctl` does.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::step::Effect;
use crate::config::Datapath;
use crate::network::ovs::{GuestPort, Mark, PortVlans};
use crate::types::{IfName, MacAddr};

/// One change to Open vSwitch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum OvsStep {
    /// Make a bridge, with a port of its name for the host.
    AddSwitch {
        /// Its name.
        bridge: IfName,
        /// Where its frames are moved.
        datapath: Datapath,
        /// Its own address.
        mac: MacAddr,
        /// What shows that it is ringtap's.
        mark: Mark,
    },
    /// Delete a bridge that has this mark, and all its ports; another one is left alone.
    DeleteSwitch {
        /// Its name.
        bridge: IfName,
        /// What shows that it is ringtap's.
        mark: Mark,
    },
    /// Set the MTU of the host's port of a bridge, which otherwise is the least of the others'.
    SetSwitchMtu {
        /// The bridge.
        bridge: IfName,
        /// The MTU in bytes; none for the least.
        mtu: Option<u32>,
        /// What it was before.
        was: Option<u32>,
    },
    /// Make a link of the host a port of a bridge; it is up then.
    AddUplink {
        /// The link.
        port: IfName,
        /// The bridge.
        bridge: IfName,
        /// What shows that the port is ringtap's.
        mark: Mark,
        /// Whether it was up before.
        was_up: bool,
    },
    /// Undo [`OvsStep::AddUplink`]; a port without this mark is left alone.
    RemoveUplink {
        /// The link.
        port: IfName,
        /// The bridge.
        bridge: IfName,
        /// What shows that the port is ringtap's.
        mark: Mark,
        /// Whether it is to be up.
        was_up: bool,
    },
    /// Make a guest's port, or set it right.
    SetPort {
        /// The port.
        port: GuestPort,
        /// What it was before, if it was there.
        was: Option<GuestPort>,
    },
    /// Delete a guest's port; one without its mark is left alone.
    DeletePort {
        /// The port.
        port: GuestPort,
    },
}

impl OvsStep {
    /// The step that takes this one back, where a later one of the same `up` fails.
    pub fn undo(&self) -> Option<Self> {
        let step = match self.clone() {
            Self::AddSwitch { bridge, mark, .. } => Self::DeleteSwitch { bridge, mark },
            Self::SetSwitchMtu { bridge, mtu, was } => Self::SetSwitchMtu {
                bridge,
                mtu: was,
                was: mtu,
            },
            Self::AddUplink {
                port,
                bridge,
                mark,
                was_up,
            } => Self::RemoveUplink {
                port,
                bridge,
                mark,
                was_up,
            },
            Self::SetPort { port, was } => match was {
                Some(was) => Self::SetPort {
                    port: was,
                    was: Some(port),
                },
                None => Self::DeletePort { port },
            },
            Self::DeletePort { port } => Self::SetPort { port, was: None },
            // Steps of `down` only: it goes on where one fails, and never back.
            Self::DeleteSwitch { .. } | Self::RemoveUplink { .. } => return None,
        };
        Some(step)
    }

    /// What `down` must do because of this step. A guest's port goes with the guest.
    pub fn teardown(&self) -> Option<Self> {
        match self {
            Self::AddSwitch { .. } | Self::AddUplink { .. } => self.undo(),
            _ => None,
        }
    }

    /// What it makes of what is there.
    pub fn effect(&self) -> Effect {
        match self {
            Self::AddSwitch { .. } | Self::SetPort { was: None, .. } => Effect::Adds,
            Self::DeleteSwitch { .. } | Self::DeletePort { .. } => Effect::Removes,
            Self::SetSwitchMtu { .. }
            | Self::AddUplink { .. }
            | Self::RemoveUplink { .. }
            | Self::SetPort { was: Some(_), .. } => Effect::Changes,
        }
    }

    /// The words of the command that it equals, after `ovs-vsctl`.
    pub fn words(&self) -> Vec<String> {
        let line = match self {
            Self::AddSwitch {
                bridge,
                datapath,
                mac,
                mark,
            } => {
                let mark = mark.words().join(" ");
                format!(
                    "--may-exist add-br {bridge} -- set Bridge {bridge} datapath_type={} other_config:hwaddr={mac} {mark}",
                    datapath.name()
                )
            }
            Self::DeleteSwitch { bridge, .. } => format!("--if-exists del-br {bridge}"),
            Self::SetSwitchMtu { bridge, mtu, .. } => {
                format!("set Interface {bridge} mtu_request={}", or_none(*mtu))
            }
            Self::AddUplink {
                port, bridge, mark, ..
            } => {
                let mark = mark.words().join(" ");
                format!("--may-exist add-port {bridge} {port} -- set Port {port} {mark}")
            }
            Self::RemoveUplink { port, bridge, .. } => {
                format!("--if-exists del-port {bridge} {port}")
            }
            Self::SetPort { port, was: None } => {
                let GuestPort { name, bridge, .. } = port;
                let [network, run_dir] = port.mark.words();
                let (vlans, protected) = (vlans(&port.vlans, false), protected(port, false));
                format!(
                    "--may-exist add-port {bridge} {name} -- set Port {name} {vlans}{protected} {network} {run_dir}"
                )
            }
            Self::SetPort { port, was: Some(_) } => {
                let (vlans, protected) = (vlans(&port.vlans, true), protected(port, true));
                format!("set Port {} {vlans}{protected}", port.name)
            }
            Self::DeletePort { port } => {
                format!("--if-exists del-port {} {}", port.bridge, port.name)
            }
        };
        line.split(' ').map(str::to_owned).collect()
    }
}

/// A number as the database takes it, `[]` for none.
fn or_none(number: Option<impl fmt::Display>) -> String {
    number.map_or_else(|| "[]".to_owned(), |it| it.to_string())
}

/// Those of a port, what is not set among them if they were set before.
fn vlans(vlans: &PortVlans, before: bool) -> String {
    let mode = or_none(vlans.vlan_mode.as_ref());
    let trunks: Vec<String> = vlans.trunks.iter().map(u16::to_string).collect();
    let trunks = (!trunks.is_empty()).then(|| trunks.join(","));
    let set = [
        ("tag", vlans.tag.map(|tag| tag.to_string())),
        ("trunks", trunks),
    ];
    let set = set.into_iter().filter(|(_, it)| before || it.is_some());
    let words = set.map(|(name, it)| format!(" {name}={}", or_none(it)));
    format!("vlan_mode={mode}{}", words.collect::<String>())
}

fn protected(port: &GuestPort, before: bool) -> String {
    match port.protected || before {
        true => format!(" protected={}", port.protected),
        false => String::new(),
    }
}

impl fmt::Display for OvsStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ovs-vsctl {}", self.words().join(" "))?;
        match self {
            Self::AddUplink {
                port,
                was_up: false,
                ..
            } => write!(f, "\nip link set {port} up"),
            Self::RemoveUplink {
                port,
                was_up: false,
                ..
            } => write!(f, "\nip link set {port} down"),
            _ => Ok(()),
        }
    }
}
