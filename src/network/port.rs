//! A NIC's link on the host: a tap on the network's bridge, or a macvtap on its uplink. Those of a tenant's network are in the
//! tenant's namespace, and so is who serves them.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::apply::netlink::{Netlink, NetlinkError};
use super::apply::ovs::{self, OvsError};
use super::apply::sysctl;
use super::inventory::link_key;
use super::netns;
use super::ovs::GuestPort;
use super::plan::namespace;
use crate::config::{Datapath, Mode, Network, Nic};
use crate::types::{Family, IfName, Name};

/// Why a link can't be attached or deleted.
#[derive(Debug, Error)]
pub enum PortError {
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

/// The link of a NIC, by its name and what it is a port of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its name.
    pub link: IfName,
    /// The tenant in whose namespace it is, if it is one's.
    pub tenant: Option<Name>,
    /// What it is on a bridge of Open vSwitch's.
    on_ovs: Option<GuestPort>,
}

impl Port {
    /// That of `nic` on `network`, by the name `link`, for the ringtap with this run directory. Nothing is done yet.
    pub fn new(link: &IfName, nic: &Nic, network: &Network, run_dir: &Path) -> Self {
        Self {
            link: link.clone(),
            tenant: network.tenant.clone(),
            on_ovs: GuestPort::of(link, nic, network, run_dir),
        }
    }

    /// Attaches `nic` to `network`, from where its bridge is ([`beside`]): a tap, which exists, becomes a port of the bridge; a macvtap is made. It has the MTU of the
    /// bridge or uplink as it is, or on a LAN what the file says; it is in its VLANs, is kept from other guests if they are to
    /// be, and is up.
    ///
    /// # Errors
    /// A link is missing, or the kernel or Open vSwitch refuses.
    pub fn attach(&self, nic: &Nic, network: &Network) -> Result<Attached, PortError> {
        let netlink = Netlink::open()?;
        let (name, trunk) = (&self.link, network.trunk());
        // What a bridge of ringtap's has is what the network was brought up with.
        let mtu = network.mtu.filter(|_| network.is_lan());
        if let Some(port) = &self.on_ovs {
            // A port that is smaller would shrink the bridge's.
            netlink.fit(name, &trunk, mtu)?;
            let datapath = ovs::attach(port)?;
            // ovs-vswitchd then reads frames from a packet socket, and passes them on as they are.
            let by_socket = datapath == Datapath::Netdev.name();
            if by_socket {
                keep_quiet(name)?;
            }
            netlink.set_up(name)?;
            return Ok(Attached {
                mtu: netlink.mtu(name)?,
                checksums: !by_socket,
            });
        }
        match network.mode {
            Mode::Macvtap { peers, .. } => {
                netlink.delete_link(name)?; // one that a killed supervisor left
                netlink.add_macvtap(name, &trunk, peers, nic.mac)?;
                // Or its neighbours would not be found that ask for it: IPv6 asks by multicast.
                netlink.take_all_multicast(name)?;
            }
            _ => netlink.attach(name, &trunk, mtu)?,
        }
        if let (Mode::Macvtap { .. }, Some(mtu)) = (&network.mode, network.mtu) {
            netlink.set_mtu(name, mtu.into())?;
        }
        if !nic.vlans.is_default() {
            netlink.set_vlans(name, &nic.vlans)?;
        }
        if network.isolate_guests {
            netlink.isolate(name)?;
        }
        netlink.set_up(name)?;
        Ok(Attached {
            mtu: netlink.mtu(name)?,
            checksums: true,
        })
    }

    /// Deletes the link, and its port of Open vSwitch's first, which would outlive it; that they are absent is fine.
    ///
    /// # Errors
    /// The kernel or Open vSwitch refuses; the link is gone all the same if only the latter did.
    pub fn delete(&self) -> Result<(), PortError> {
        let detached = self.on_ovs.as_ref().map_or(Ok(()), ovs::detach);
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
