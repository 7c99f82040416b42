//! The MTU of a network: one value for the bridge, its ports, its guests and what they are told, and never above that of the
//! link by which the host leads out. What is larger would be lost on the way, or cut and refused and sent again.

use super::{DEFAULT_MTU, passes};
use crate::config::{Config, Network};
use crate::network::inventory::{Inventory, Link};
use crate::types::Family;

/// The least that carries IPv6 (RFC 8200, 5), in bytes.
const LEAST_FOR_IPV6: u32 = 1280;

/// What `network` has, in bytes: what the file says, or else the kernel's default as far as the uplink carries that.
pub(super) fn of(config: &Config, network: &Network, inventory: &Inventory) -> u32 {
    let usual = || match uplink(config, network, inventory) {
        Some(link) => link.mtu.min(DEFAULT_MTU),
        None => DEFAULT_MTU,
    };
    network.mtu.map_or_else(usual, u32::from)
}

/// What keeps the network from having that: cause and remedy.
pub(super) fn clash(
    config: &Config,
    network: &Network,
    inventory: &Inventory,
) -> Option<(String, String)> {
    let link = uplink(config, network, inventory)?;
    let mtu = of(config, network, inventory);
    let way = format!("`{}`, over which the host has its default route", link.name);
    if mtu > link.mtu {
        let cause = format!("its MTU of {mtu} is above the {} of {way}", link.mtu);
        return Some((
            cause,
            "lower it, leave it out, or raise the link's".to_owned(),
        ));
    }
    (network.ipv6.is_some() && mtu < LEAST_FOR_IPV6).then(|| {
        let cause = format!("IPv6 needs an MTU of {LEAST_FOR_IPV6}, and {way}, has {mtu}");
        (cause, "raise the link's, or leave ipv6 out".to_owned())
    })
}

/// The link that packets of `network` leave by, if any do; the narrowest, if there are several.
fn uplink<'i>(config: &Config, network: &Network, inventory: &'i Inventory) -> Option<&'i Link> {
    let leads_out = |family| passes(config, network, family);
    if !Family::BOTH.into_iter().any(leads_out) {
        return None;
    }
    let own = network.own_bridge();
    let links = inventory.links.iter();
    let ways = links.filter(|link| link.default_route && link.name != own.as_str());
    ways.min_by_key(|link| link.mtu)
}
