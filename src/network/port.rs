//! Ports of a network's bridge: the launcher's end of a guest's tap.

use super::apply::netlink::{Netlink, NetlinkError};
use crate::config::Network;
use crate::types::IfName;

/// Makes the tap `tap`, which exists, a port of the bridge of `network`: with the network's MTU, kept from other guests
/// if they are to be, and up.
///
/// # Errors
/// Either link is missing, or the kernel refuses.
pub fn attach(tap: &IfName, network: &Network) -> Result<(), NetlinkError> {
    let netlink = Netlink::open()?;
    netlink.attach(tap, &network.bridge(), network.mtu)?;
    if network.isolate_guests {
        netlink.isolate(tap)?;
    }
    netlink.set_up(tap)
}

/// Deletes `link`; that it is absent is fine.
///
/// # Errors
/// The kernel refuses.
pub fn delete(link: &IfName) -> Result<(), NetlinkError> {
    Netlink::open()?.delete_link(link)
}
