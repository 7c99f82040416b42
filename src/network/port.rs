//! A NIC's link on the host: a tap on the network's bridge, or a macvtap on its uplink. Those of a tenant's network are in the
//! tenant's namespace, and so is who serves them.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use rtnetlink::packet_route::link::LinkMessage;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::apply::netlink::{Netlink, NetlinkError, controller, is_up};
use super::apply::ovs::{self, OvsError};
use super::apply::sysctl;
use super::inventory::link_key;
use super::netns;
use super::ovs::GuestPort;
use super::plan::namespace;
use crate::config::{Datapath, MacvtapMode, Mode, Network, Nic, NicVlans};
use crate::tap::{Tap, TapError};
use crate::types::{Family, IfName, MacAddr, Mtu, Name};

/// Why a link can't be attached or deleted.
#[derive(Debug, Error)]
pub enum PortError {
    /// A tap can't be made.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The kernel's links.
    #[error(transparent)]
    Link(#[from] NetlinkError),
    /// The namespace of the network's tenant.
    #[error("the network namespace of the tenant can't be entered (which needs CAP_SYS_ADMIN)")]
    Namespace(#[source] io::Error),
    /// Open vSwitch.
    #[error(transparent)]
    Ovs(#[from] OvsError),
    /// Sysctls.
    #[error("cannot keep the kernel from answering on a tap")]
    Sysctl(#[from] io::Error),
}

/// What a link is like that has been attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether a checksum that the guest leaves to others is made by them.
    pub checksums: bool,
}

/// The link of a NIC, by its name and what it is a port of: all that it takes to make it, and to make it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its name.
    pub link: IfName,
    /// The tenant in whose namespace it is, if it is one's.
    pub tenant: Option<Name>,
    /// What it is plugged into: a bridge, or a macvtap's uplink.
    trunk: IfName,
    kind: Kind,
    /// Its MTU, if not that of the trunk as it is.
    mtu: Option<Mtu>,
    vlans: NicVlans,
    /// Whether it is kept from other guests.
    isolated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    /// A tap on a bridge of the kernel's.
    Tap,
    /// One on a bridge of Open vSwitch's.
    OnOvs(GuestPort),
    /// A macvtap, of this address.
    Macvtap { peers: MacvtapMode, mac: MacAddr },
}

/// What has become of a link that was attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing: it is as it was.
    Attached,
    /// It was deleted, and can be made again or not: what it is plugged into is there, or it is not.
    Deleted {
        /// Whether that is there.
        trunk: bool,
    },
    /// It is plugged into nothing, as when its bridge was deleted, which may be there again.
    Unplugged {
        /// Whether that is there.
        trunk: bool,
    },
    /// Somebody has made it a port of something else.
    Elsewhere,
    /// Somebody has set it down.
    Down,
    /// Somebody has set down what it is plugged into.
    CutOff,
}

impl Found {
    /// What to tell a person of `link`, which is plugged into `trunk`; nothing where all is well.
    pub fn complaint(self, link: &IfName, trunk: &IfName) -> Option<String> {
        Some(match self {
            Self::Attached => return None,
            Self::Deleted { trunk: true } => format!("{link} was deleted"),
            Self::Deleted { trunk: false } => {
                format!("{link} was deleted, and there is no {trunk} to make it on again")
            }
            Self::Unplugged { trunk: true } => format!("{link} is plugged into nothing"),
            Self::Unplugged { trunk: false } => {
                format!("{link} is plugged into nothing, for there is no {trunk}")
            }
            Self::Elsewhere => {
                format!("{link} is no port of {trunk}: ip link set {link} master {trunk}")
            }
            Self::Down => format!("{link} is down: ip link set {link} up"),
            Self::CutOff => {
                format!("{trunk}, which {link} is plugged into, is down: ip link set {trunk} up")
            }
        })
    }
}

impl Port {
    /// That of `nic` on `network`, by the name `link`, for the ringtap with this run directory. Nothing is done yet.
    pub fn new(link: &IfName, nic: &Nic, network: &Network, run_dir: &Path) -> Self {
        let on_ovs = GuestPort::of(link, nic, network, run_dir);
        Self {
            link: link.clone(),
            tenant: network.tenant.clone(),
            trunk: network.trunk(),
            kind: match (&network.mode, on_ovs) {
                (Mode::Macvtap { peers, .. }, _) => Kind::Macvtap {
                    peers: *peers,
                    mac: nic.mac,
                },
                (_, Some(port)) => Kind::OnOvs(port),
                (_, None) => Kind::Tap,
            },
            // What a bridge of ringtap's has is what the network was brought up with.
            mtu: network.mtu.filter(|_| network.is_lan()),
            vlans: nic.vlans.clone(),
            isolated: network.isolate_guests,
        }
    }

    /// Whether it is a macvtap, and no tap.
    pub fn is_macvtap(&self) -> bool {
        matches!(self.kind, Kind::Macvtap { .. })
    }

    /// Makes the link, and attaches it. A tap that is there already is taken.
    ///
    /// # Errors
    /// As [`Port::attach`]; what was made stays then.
    pub fn make(&self) -> Result<Attached, PortError> {
        if !self.is_macvtap() {
            Tap::make_persistent(&self.link)?;
        }
        self.attach()
    }

    /// Attaches the link, from where its bridge is ([`beside`]): a tap, which exists, becomes a port of the bridge; a macvtap
    /// is made. It has the MTU of the bridge or uplink as it is, or on a LAN what the file says; it is in its VLANs, is kept
    /// from other guests if they are to be, and is up, and that last.
    ///
    /// # Errors
    /// A link is missing, or the kernel or Open vSwitch refuses; a tap is no port of a bridge of the kernel's then.
    pub fn attach(&self) -> Result<Attached, PortError> {
        let netlink = Netlink::open()?;
        let attached = self.attach_by(&netlink);
        if attached.is_err() && matches!(self.kind, Kind::Tap) {
            let _ = netlink.release(&self.link); // or it would be on the bridge without its VLANs
        }
        attached
    }

    fn attach_by(&self, netlink: &Netlink) -> Result<Attached, PortError> {
        let (name, trunk) = (&self.link, &self.trunk);
        let mut checksums = true;
        match &self.kind {
            Kind::Tap => {
                netlink.set_down(name)?; // until all of it is so
                netlink.attach(name, trunk, self.mtu)?;
            }
            Kind::OnOvs(port) => {
                // A port that is smaller would shrink the bridge's.
                netlink.fit(name, trunk, self.mtu)?;
                // ovs-vswitchd then reads frames from a packet socket, and passes them on as they are.
                if ovs::attach(port)? == Datapath::Netdev.name() {
                    keep_quiet(name)?;
                    checksums = false;
                }
            }
            Kind::Macvtap { peers, mac } => {
                netlink.delete_link(name)?; // one that a killed supervisor left
                netlink.add_macvtap(name, trunk, *peers, *mac)?;
                // Or its neighbours would not be found that ask for it: IPv6 asks by multicast.
                netlink.take_all_multicast(name)?;
                if let Some(mtu) = self.mtu {
                    netlink.set_mtu(name, mtu.into())?;
                }
            }
        }
        if !matches!(self.kind, Kind::OnOvs(_)) {
            if !self.vlans.is_default() {
                netlink.set_vlans(name, &self.vlans)?;
            }
            if self.isolated {
                netlink.isolate(name)?;
            }
        }
        netlink.set_up(name)?;
        Ok(Attached {
            mtu: netlink.mtu(name)?,
            checksums,
        })
    }

    /// What has become of it since it was attached.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn look(&self) -> Result<Found, PortError> {
        let look = || {
            let netlink = Netlink::open()?;
            let (link, trunk) = (netlink.link(&self.link)?, netlink.link(&self.trunk)?);
            Ok(self.found(link.as_ref(), trunk.as_ref()))
        };
        beside(self.tenant.as_ref(), look).map_err(PortError::Namespace)?
    }

    fn found(&self, link: Option<&LinkMessage>, trunk: Option<&LinkMessage>) -> Found {
        let Some(link) = link else {
            return Found::Deleted {
                trunk: trunk.is_some(),
            };
        };
        let is_plugged = match (&self.kind, controller(link)) {
            // It goes with its uplink. What is a port of Open vSwitch's, that knows: `up` and `watch` ask it.
            (Kind::Macvtap { .. } | Kind::OnOvs(_), _) => true,
            (Kind::Tap, None) => {
                return Found::Unplugged {
                    trunk: trunk.is_some(),
                };
            }
            (Kind::Tap, Some(master)) => trunk.is_some_and(|trunk| trunk.header.index == master),
        };
        // Open vSwitch passes frames on also while its bridge's own link is down.
        let is_cut_off =
            !matches!(self.kind, Kind::OnOvs(_)) && trunk.is_some_and(|trunk| !is_up(trunk));
        match (is_plugged, is_up(link)) {
            (false, _) => Found::Elsewhere,
            (true, false) => Found::Down,
            (true, true) if is_cut_off => Found::CutOff,
            (true, true) => Found::Attached,
        }
    }

    /// What to tell a person of what was found; nothing where all is well.
    pub fn complaint(&self, found: Found) -> Option<String> {
        found.complaint(&self.link, &self.trunk)
    }

    /// Deletes the link, and its port of Open vSwitch's first, which would outlive it; that they are absent is fine.
    ///
    /// # Errors
    /// The kernel or Open vSwitch refuses; the link is gone all the same if only the latter did.
    pub fn delete(&self) -> Result<(), PortError> {
        let detached = match &self.kind {
            Kind::OnOvs(port) => ovs::detach(port),
            Kind::Tap | Kind::Macvtap { .. } => Ok(()),
        };
        let delete = || Netlink::open()?.delete_link(&self.link);
        beside(self.tenant.as_ref(), delete).map_err(PortError::Namespace)??;
        Ok(detached?)
    }
}

/// The addresses that the host has where the guests of `network` are, from where that is ([`beside`]): nobody else's.
///
/// # Errors
/// A link is missing, or the kernel refuses.
pub fn host_addresses(network: &Network) -> Result<Vec<IpAddr>, PortError> {
    let netlink = Netlink::open()?;
    let shim = network.has_shim().then(|| network.own_bridge());
    let mut all = Vec::new();
    for link in shim.into_iter().chain([network.trunk()]) {
        all.extend(netlink.addresses(&link)?);
        if network.has_host() {
            // A bridge gets it with its first port.
            all.push(netlink.mac(&link)?.link_local().into());
        }
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// What `work` gives where the networks of `tenant` are: in its namespace, or right here for those of none.
///
/// # Errors
/// The namespace can't be entered.
pub fn beside<T: Send>(tenant: Option<&Name>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    match tenant {
        Some(tenant) => netns::within(&namespace(tenant), work),
        None => Ok(work()),
    }
}

/// The kernel sees what comes out of the tap as well, and would answer for the host's addresses with the tap's own.
fn keep_quiet(tap: &IfName) -> io::Result<()> {
    let key = |family, name| link_key(family, tap.as_str(), name);
    sysctl::set(&key(Family::Ipv4, "arp_ignore"), "8")?;
    sysctl::set(&key(Family::Ipv6, "disable_ipv6"), "1")
}
