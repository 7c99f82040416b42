//! Steps on links, addresses and routes, many at once: each is sent without waiting for the answer to the one before.

use std::collections::BTreeMap;

use rtnetlink::packet_route::link::LinkMessage;

use super::execute::{StepError, none_done};
use super::moves::Belongings;
use super::netlink::{Netlink, NetlinkError, Request, is_bond, is_made, is_port_of};
use crate::config::NicVlans;
use crate::network::plan::{Kind, LinkStep};
use crate::types::IfName;

/// Does `steps`, which are on links and what belongs to them and don't depend on links that others of them make. Gives the
/// outcome of each.
pub fn execute(netlink: &Netlink, steps: &[&LinkStep]) -> Vec<Result<(), StepError>> {
    let links = match netlink.links() {
        Ok(links) => links,
        Err(error) => return none_done(error.into(), steps.len()),
    };
    if let [step @ LinkStep::Release { port, master, .. }] = steps {
        if is_last_link(&links, master, port) {
            return vec![leave_bond(netlink, &links, step, master, port)];
        }
    }
    let requests = steps.iter().map(|step| request(&links, step)).collect();
    let outcomes = netlink.do_all(requests).into_iter();
    let mut outcomes: Vec<Result<(), StepError>> = outcomes.map(|it| Ok(it?)).collect();
    if steps.iter().any(|step| takes_away(step)) {
        look_again(netlink, steps, &mut outcomes);
    }
    outcomes
}

fn takes_away(step: &LinkStep) -> bool {
    matches!(step, LinkStep::Delete { .. } | LinkStep::Release { .. })
}

/// A request that is lost on its way seems done. What is not taken away though it seems so must not be forgotten.
fn look_again(netlink: &Netlink, steps: &[&LinkStep], outcomes: &mut [Result<(), StepError>]) {
    let links = netlink.links();
    for (step, outcome) in steps.iter().zip(outcomes) {
        let still_there = match &links {
            Ok(links) => !matches!(request(links, step), Ok(None)),
            Err(_) => true,
        };
        if outcome.is_ok() && takes_away(step) && still_there {
            *outcome = Err(NetlinkError::no_answer(step.to_string()).into());
        }
    }
}

/// Whether `port` is all that is left of bond `name`.
fn is_last_link(links: &BTreeMap<String, LinkMessage>, name: &IfName, port: &IfName) -> bool {
    let Some(bond) = links.get(name.as_str()).filter(|link| is_bond(link)) else {
        return false;
    };
    let mut ports = links.iter().filter(|(_, link)| is_port_of(link, bond));
    ports.next().is_some_and(|(name, _)| name == port.as_str()) && ports.next().is_none()
}

/// The last link takes with it what the host has on the bond, which forgets a part of that when it is without links.
fn leave_bond(
    netlink: &Netlink,
    links: &BTreeMap<String, LinkMessage>,
    step: &LinkStep,
    bond: &IfName,
    port: &IfName,
) -> Result<(), StepError> {
    let belongings = Belongings::of(netlink, bond)?;
    let mut outcomes = netlink.do_all(vec![request(links, step)]);
    outcomes.pop().unwrap_or(Ok(()))?;
    match belongings {
        Some(belongings) => Ok(belongings.hand_over(netlink, port)?),
        None => Ok(()),
    }
}

/// What `step` asks of the kernel; nothing where what it takes back is not there.
fn request(
    links: &BTreeMap<String, LinkMessage>,
    step: &LinkStep,
) -> Result<Option<Request>, NetlinkError> {
    let found = |link: &IfName| links.get(link.as_str());
    let there = |link: &IfName| found(link).ok_or_else(|| NetlinkError::no_link(link));
    let request = match step {
        LinkStep::Add { link, kind, mac } => match kind {
            Kind::Bridge { vlan_filtering } => Request::add_bridge(link, *mac, *vlan_filtering),
            Kind::Bond(mode) => Request::add_bond(link, *mac, *mode),
            Kind::Vlan { link: over, id } => Request::add_vlan(link, there(over)?, *id),
            Kind::Veth { peer, namespace } => Request::add_veth(link, *mac, peer, namespace)?,
            Kind::Macvlan { link: over } => Request::add_macvlan(link, there(over)?, *mac),
            Kind::Ipvlan { link: over } => Request::add_ipvlan(link, there(over)?),
        },
        LinkStep::Delete { link, kind, mac } => match found(link) {
            Some(there) if is_made(there, kind, *mac) => Request::delete(link, there),
            _ => return Ok(None),
        },
        LinkStep::Enslave {
            port, master, to, ..
        } => Request::enslave(port, there(port)?, there(master)?, *to),
        LinkStep::Release {
            port,
            master,
            was_up,
            ..
        } => match (found(port), found(master)) {
            (Some(there), Some(master)) if is_port_of(there, master) => {
                Request::release(port, there, *was_up)
            }
            _ => return Ok(None),
        },
        LinkStep::SetVlanFiltering { link, on } => {
            Request::set_vlan_filtering(link, there(link)?, *on)
        }
        LinkStep::AddVlan { link, id } => {
            let tagged = NicVlans {
                tagged: [*id].into(),
                ..NicVlans::default()
            };
            Request::add_vlans(link, there(link)?, &tagged)
        }
        LinkStep::DeleteVlan { link, id } => match found(link) {
            Some(there) => Request::delete_vlan(link, there, *id),
            None => return Ok(None),
        },
        LinkStep::SetMtu { link, mtu, .. } => Request::set_mtu(link, there(link)?, *mtu),
        LinkStep::SetUp { link } => Request::set_up(link, there(link)?),
        LinkStep::SetDown { link } => match found(link) {
            Some(there) => Request::set_down(link, there),
            None => return Ok(None),
        },
        LinkStep::AddAddress { link, address } => {
            Request::add_address(link, there(link)?, *address)
        }
        LinkStep::DeleteAddress { link, address } => match found(link) {
            Some(there) => Request::delete_address(link, there, *address),
            None => return Ok(None),
        },
        LinkStep::AddProxy { link, address } => Request::add_proxy(link, there(link)?, *address),
        LinkStep::DeleteProxy { link, address } => match found(link) {
            Some(there) => Request::delete_proxy(link, there, *address),
            None => return Ok(None),
        },
        LinkStep::AddRoute { link, route } => Request::add_route(link, there(link)?, route),
        LinkStep::DeleteRoute { link, route } => match found(link) {
            Some(there) => Request::delete_route(link, there, route),
            None => return Ok(None),
        },
    };
    Ok(Some(request))
}
