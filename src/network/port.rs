//! A NIC's link on the host: a tap on the network's bridge, or a macvtap on its uplink. Those of a tenant's network are in the
//! tenant's namespace, and so is who serves them.

use std::io;

use super::apply::netlink::{Netlink, NetlinkError};
use super::netns;
use super::plan::namespace;
use crate::config::{Mode, Network, Nic};
use crate::types::{IfName, Name};

/// Attaches `nic` to `network` by the link `name`: a tap, which exists, becomes a port of the bridge; a macvtap is made. It
/// has the MTU of the bridge or uplink as it is, or on a LAN what the file says; it is in its VLANs, is kept from other guests
/// if they are to be, and is up. Gives its MTU in bytes.
///
/// # Errors
/// A link is missing, or the kernel refuses.
pub fn attach(name: &IfName, nic: &Nic, network: &Network) -> Result<u32, NetlinkError> {
    let netlink = Netlink::open()?;
    let trunk = network.trunk();
    match network.mode {
        Mode::Macvtap { peers, .. } => {
            netlink.delete_link(name)?; // one that a killed launcher left
            netlink.add_macvtap(name, &trunk, peers, nic.mac)?;
        }
        // What a bridge of ringtap's has is what the network was brought up with.
        _ => netlink.attach(name, &trunk, network.mtu.filter(|_| network.is_lan()))?,
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
    netlink.mtu(name)
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

/// Deletes `link`; that it is absent is fine.
///
/// # Errors
/// The kernel refuses.
pub fn delete(link: &IfName) -> Result<(), NetlinkError> {
    Netlink::open()?.delete_link(link)
}
