//! Ports of a network's bridge: the launcher's end of a guest's tap.

use super::apply::netlink::{Netlink, NetlinkError};
use crate::types::{IfName, Mtu};

/// Makes the tap `tap`, which exists, a port of `bridge`: of the MTU given (bytes), and up.
///
/// # Errors
/// Either link is missing, or the kernel refuses.
pub fn attach(tap: &IfName, bridge: &IfName, mtu: Option<Mtu>) -> Result<(), NetlinkError> {
    Netlink::open()?.attach(tap, bridge, mtu)
}

/// Deletes `link`; that it is absent is fine.
///
/// # Errors
/// The kernel refuses.
pub fn delete(link: &IfName) -> Result<(), NetlinkError> {
    Netlink::open()?.delete_link(link)
}
