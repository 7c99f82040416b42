//! What the host's Open vSwitch has, as a value, and how a guest's port on it looks. Data only; `apply::ovs` fills it in.
//!
//! What is ringtap's is known by a [`Mark`] that it has in the database (ovs-vswitchd.conf.db(5), `external_ids`): that
//! outlives a boot, which ringtap's journal does not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{Network, Nic, NicVlans};
use crate::types::{IfName, Name, VlanId};

/// Open vSwitch on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ovs {
    /// What it lacks to be of use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lack: Option<Lack>,
    /// Whether the kernel has its part, the module openvswitch.
    #[serde(default)]
    pub kernel: bool,
    /// Its bridges.
    #[serde(default)]
    pub bridges: BTreeMap<String, OvsBridge>,
}

/// None, that is.
impl Default for Ovs {
    fn default() -> Self {
        Self {
            lack: Some(Lack::Programs),
            kernel: false,
            bridges: BTreeMap::new(),
        }
    }
}

/// What keeps Open vSwitch from working.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lack {
    /// It is not installed.
    Programs,
    /// ovsdb-server does not answer.
    Database,
    /// ovs-vswitchd does not answer.
    Daemon,
}

/// A bridge of Open vSwitch's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OvsBridge {
    /// Where its frames are moved: `system` or `netdev`.
    pub datapath: String,
    /// By which ringtap it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
    /// Who says by OpenFlow what it does.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub controllers: BTreeSet<String>,
    /// Its ports, that of its own name among them, which is the host's.
    #[serde(default)]
    pub ports: BTreeMap<String, OvsPort>,
    /// Its flows, as ovs-ofctl prints them; none where they can't be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows: Option<Vec<String>>,
}

/// A port of a bridge of Open vSwitch's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OvsPort {
    /// Its VLANs.
    #[serde(flatten)]
    pub vlans: PortVlans,
    /// Whether it exchanges frames with no other such port.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub protected: bool,
    /// By which ringtap it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
    /// The MTU that somebody asked for, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu_request: Option<u32>,
    /// Why it does not work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What shows that something of Open vSwitch's is ringtap's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The network that it is for.
    pub network: String,
    /// The run directory of the ringtap that made it.
    pub run_dir: String,
}

impl Mark {
    /// The key of the network's name.
    pub const NETWORK: &'static str = "ringtap";
    /// The key of the run directory.
    pub const RUN_DIR: &'static str = "ringtap-run-dir";

    /// That of network `name` of the ringtap with this run directory.
    pub fn new(name: &Name, run_dir: &Path) -> Self {
        Self {
            network: name.to_string(),
            run_dir: run_dir.display().to_string(),
        }
    }

    /// As ovs-vsctl takes it.
    pub fn words(&self) -> [String; 2] {
        [
            format!("external_ids:{}={}", Self::NETWORK, self.network),
            format!("external_ids:{}={}", Self::RUN_DIR, self.run_dir),
        ]
    }
}

/// The VLANs of a port, as the database has them (ovs-vswitchd.conf.db(5), "VLAN Configuration").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortVlans {
    /// What the others mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan_mode: Option<String>,
    /// The VLAN of frames without a tag; 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<u16>,
    /// The VLANs of frames with one; all, where none is said.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub trunks: BTreeSet<u16>,
}

impl PortVlans {
    /// Those of a NIC. One of which the file says nothing is in no VLAN, rather than in all, as a port is of which the database
    /// says nothing.
    pub fn of(vlans: &NicVlans) -> Self {
        let trunks: BTreeSet<u16> = vlans.tagged.iter().copied().map(VlanId::get).collect();
        let (mode, tag) = match (vlans.untagged, trunks.is_empty()) {
            (untagged, true) => ("access", Some(untagged.map_or(0, VlanId::get))),
            (None, false) => ("trunk", None),
            (Some(untagged), false) => ("native-untagged", Some(untagged.get())),
        };
        Self {
            vlan_mode: Some(mode.to_owned()),
            tag,
            trunks,
        }
    }
}

/// A guest's port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestPort {
    /// The tap.
    pub name: IfName,
    /// The bridge.
    pub bridge: IfName,
    /// Its VLANs.
    #[serde(flatten)]
    pub vlans: PortVlans,
    /// Whether it is kept from other such ports.
    pub protected: bool,
    /// By which ringtap it is made.
    pub mark: Mark,
}

impl GuestPort {
    /// What `nic`, whose tap is `name`, is on `network`, if Open vSwitch is what switches there.
    pub fn of(name: &IfName, nic: &Nic, network: &Network, run_dir: &Path) -> Option<Self> {
        network.switch.is_ovs().then(|| Self {
            name: name.clone(),
            bridge: network.trunk(),
            vlans: PortVlans::of(&nic.vlans),
            protected: network.isolate_guests,
            mark: Mark::new(&network.name, run_dir),
        })
    }
}

impl Ovs {
    /// The bridge that has a port `name`, and the port.
    pub fn port(&self, name: &str) -> Option<(&str, &OvsPort)> {
        let mut bridges = self.bridges.iter();
        bridges.find_map(|(bridge, it)| Some((bridge.as_str(), it.ports.get(name)?)))
    }
}
