//! Links that networks on the LAN leave by and may share: bonds, and VLANs of links.

use std::collections::BTreeSet;

use super::link_step::{Kind, LinkStep, Master};
use super::step::Step;
use super::{Owner, Planned, sysctl};
use crate::config::{Base, Bond, Network, Uplink};
use crate::network::inventory::{Inventory, Link, link_key};
use crate::types::{Family, IfName, VlanId};

/// The steps that make the links of `networks`' uplinks, each once.
pub(super) fn steps(networks: &[&Network], inventory: &Inventory) -> Vec<Planned> {
    let mut done = BTreeSet::new();
    let mut planned = Vec::new();
    for uplink in networks.iter().filter_map(|network| network.uplink()) {
        let base = uplink.base_link();
        if let Base::Bond(bond) = &uplink.base {
            if done.insert(base.clone()) {
                let steps = bond_steps(bond, inventory);
                planned.extend(Planned::all(&Owner::Link(base.clone()), steps));
            }
        }
        let link = uplink.link();
        if let Some(id) = uplink.vlan.filter(|_| done.insert(link.clone())) {
            let owner = Owner::Link(link.clone());
            planned.extend(Planned::all(&owner, vlan_steps(link, base, id, inventory)));
        }
    }
    planned
}

/// A bond has the first link's address, and takes over what the host has on its links, which lose it when they are set
/// down.
fn bond_steps(bond: &Bond, inventory: &Inventory) -> Vec<Step> {
    let name = bond.name();
    let found = inventory.link(name.as_str());
    let mut steps: Vec<Step> = Vec::new();
    if found.is_none() {
        let add = LinkStep::Add {
            link: name.clone(),
            kind: Kind::Bond(bond.mode),
            mac: first_mac(bond, inventory),
        };
        steps.push(add.into());
        steps.extend(bond_mtu(bond, inventory));
        let first = bond.links.first();
        let first = first.and_then(|link| inventory.link(link.as_str()));
        steps.extend(first.and_then(|first| heed_routers(&name, first, inventory)));
    }
    if !found.is_some_and(|found| found.up) {
        let link = name.clone();
        steps.push(LinkStep::SetUp { link }.into());
    }
    for link in &bond.links {
        let Some(found) = inventory.link(link.as_str()) else {
            continue; // refused before
        };
        if found.master.as_deref() == Some(name.as_str()) {
            continue;
        }
        steps.extend(take_over(found, link, &name, inventory));
        let enslave = LinkStep::Enslave {
            port: link.clone(),
            master: name.clone(),
            to: Master::Bond,
            was_up: found.up,
        };
        steps.push(enslave.into());
    }
    steps
}

/// A bond gives its own MTU to its links: it is to be theirs instead, the least of them.
fn bond_mtu(bond: &Bond, inventory: &Inventory) -> Option<Step> {
    let links = bond.links.iter();
    let mtus = links.filter_map(|link| Some(inventory.link(link.as_str())?.mtu));
    let (link, mtu, was) = (bond.name(), mtus.min()?, super::DEFAULT_MTU);
    (mtu != was).then(|| LinkStep::SetMtu { link, mtu, was }.into())
}

fn first_mac(bond: &Bond, inventory: &Inventory) -> Option<crate::types::MacAddr> {
    inventory.link(bond.links.first()?.as_str())?.mac
}

/// What the host has on link `from` goes to link `to`; nothing if there is nothing.
pub(super) fn take_over(
    found: &Link,
    from: &IfName,
    to: &IfName,
    inventory: &Inventory,
) -> Option<Step> {
    let routes = inventory.routes_over(&found.name);
    let something = !found.addresses.is_empty() || !routes.is_empty();
    something.then(|| Step::MoveAddresses {
        from: from.clone(),
        to: to.clone(),
        addresses: found.addresses.clone(),
        routes,
    })
}

/// One that is there and is that VLAN will do, whoever made it. The host itself has nothing to do there.
fn vlan_steps(link: IfName, over: IfName, id: VlanId, inventory: &Inventory) -> Vec<Step> {
    let found = inventory.link(link.as_str());
    let mut steps = Vec::new();
    if found.is_none() {
        let add = LinkStep::Add {
            link: link.clone(),
            kind: Kind::Vlan { link: over, id },
            mac: None,
        };
        steps.push(add.into());
    }
    steps.extend(without_ipv6(&link, inventory));
    if !found.is_some_and(|found| found.up) {
        steps.push(LinkStep::SetUp { link }.into());
    }
    steps
}

/// The new link `name` heeds router advertisements as the link below does: also when the host forwards, if it has its way
/// out from them.
pub(super) fn heed_routers(name: &IfName, below: &Link, inventory: &Inventory) -> Option<Step> {
    let key = link_key(Family::Ipv6, &below.name, "accept_ra");
    let value = match below.by_ra {
        true => "2",
        false => inventory.sysctls.get(&key)?,
    };
    sysctl::set(Family::Ipv6, name, "accept_ra", ("1", value), inventory)
}

/// Keeps the host from giving itself an address on a link that is for guests alone.
pub(super) fn without_ipv6(link: &IfName, inventory: &Inventory) -> Option<Step> {
    let step = || sysctl::set(Family::Ipv6, link, "disable_ipv6", ("0", "1"), inventory);
    inventory.has_ipv6().then(step).flatten()
}

/// What stands in the way of an uplink: cause and remedy. `master` is what its link is to be a port of.
pub(super) fn clash(
    uplink: &Uplink,
    master: Option<&IfName>,
    inventory: &Inventory,
) -> Option<(String, String)> {
    let bond = matches!(uplink.base, Base::Bond(_)).then(|| uplink.base_link());
    let hardware = uplink.hardware().iter();
    let of_base = bond.as_ref().or(master.filter(|_| uplink.vlan.is_none()));
    hardware
        .map(|link| (link, inventory.link(link.as_str())))
        .find_map(|(link, found)| match found {
            None => Some(missing(link)),
            Some(found) => unfit(found, of_base, uplink),
        })
        .or_else(|| taken(uplink, inventory))
}

fn missing(link: &IfName) -> (String, String) {
    (
        format!("the host has no link `{link}`"),
        "make it (ip link add, or the distribution's way), or name another".to_owned(),
    )
}

/// A link that can't be bonded, bridged or divided. One with VLANs alone may be anything's port.
fn unfit(found: &Link, master: Option<&IfName>, uplink: &Uplink) -> Option<(String, String)> {
    let name = &found.name;
    if name == "lo" {
        let cause = "the loopback link has no peers".to_owned();
        return Some((cause, "name another link".to_owned()));
    }
    if let (Some(of), false) = (&found.master, uplink.vlan.is_some() && master.is_none()) {
        if master.map(IfName::as_str) != Some(of) {
            return Some((
                format!("`{name}` is a port of `{of}`, which gets its frames"),
                format!("use mode = \"bridge\" with bridge = \"{of}\", or name another link"),
            ));
        }
    }
    None
}

/// A link that has the name of one to be made, and is another.
fn taken(uplink: &Uplink, inventory: &Inventory) -> Option<(String, String)> {
    let base = uplink.base_link();
    let fits = |name: &IfName, found: &Link| {
        let is_vlan = uplink
            .vlan
            .is_some_and(|id| found.vlan == Some((base.to_string(), id)));
        inventory.shared_links.contains(name) || (*name != base && is_vlan)
    };
    uplink.made().iter().find_map(|name| {
        let found = inventory.link(name.as_str())?;
        (!fits(name, found)).then(|| {
            (
                format!("the host has a link `{name}` that this ringtap did not make"),
                format!("delete or rename it: ip link delete {name}"),
            )
        })
    })
}
