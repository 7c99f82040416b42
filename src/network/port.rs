//! A NIC's link on the host: a tap on the network's bridge, or a macvtap on its uplink.

use super::apply::netlink::{Netlink, NetlinkError};
use crate::config::{Mode, Network};
use crate::types::{IfName, MacAddr};

/// Attaches a NIC with address `mac` to `network` by the link `name`: a tap, which exists, becomes a port of the bridge;
/// a macvtap is made. It has the network's MTU, is kept from other guests if they are to be, and is up.
///
/// # Errors
/// A link is missing, or the kernel refuses.
pub fn attach(name: &IfName, mac: MacAddr, network: &Network) -> Result<(), NetlinkError> {
    let netlink = Netlink::open()?;
    let trunk = network.trunk();
    match network.mode {
        Mode::Macvtap { peers, .. } => {
            netlink.delete_link(name)?; // one that a killed launcher left
            netlink.add_macvtap(name, &trunk, peers, mac)?;
        }
        _ => netlink.attach(name, &trunk, network.mtu)?,
    }
    if let (Mode::Macvtap { .. }, Some(mtu)) = (&network.mode, network.mtu) {
        netlink.set_mtu(name, mtu.into())?;
    }
    if network.isolate_guests {
        netlink.isolate(name)?;
    }
    netlink.set_up(name)
}

/// Deletes `link`; that it is absent is fine.
///
/// # Errors
/// The kernel refuses.
pub fn delete(link: &IfName) -> Result<(), NetlinkError> {
    Netlink::open()?.delete_link(link)
}
