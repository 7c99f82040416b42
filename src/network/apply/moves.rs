//! Moves what the host has on one link to another: addresses, routes and neighbours as the kernel has them at that moment,
//! with their lifetimes, metrics and tables.
//!
//! Nothing is taken away before its like is there: the new link has each address and route in addition, and only then the old
//! one loses them. Nor is a neighbour asked for anew, who may answer to the old one. Connections go on meanwhile. IPv6
//! link-local addresses stay, since every link has its own.

use std::net::Ipv4Addr;

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Netlink, NetlinkError, mac_of};
use crate::network::observe;
use crate::types::IfName;

/// The kernel's own table, of the host's addresses (rtnetlink(7)).
const TABLE_LOCAL: u8 = 255;

/// A link as messages name it.
#[derive(Debug, Clone, Copy)]
struct End<'a> {
    index: u32,
    name: &'a IfName,
}

/// What the host has on a link.
pub struct Belongings {
    link: IfName,
    index: u32,
    mac: Option<Vec<u8>>,
    addresses: Vec<AddressMessage>,
    routes: Vec<RouteMessage>,
    neighbours: Vec<NeighbourMessage>,
}

impl Belongings {
    /// Those on `link`; none if it is not there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(netlink: &Netlink, link: &IfName) -> Result<Option<Self>, NetlinkError> {
        let Some(there) = netlink.link(link)? else {
            return Ok(None);
        };
        let index = there.header.index;
        let end = End { index, name: link };
        let addresses = addresses_of(netlink, end)?;
        Ok(Some(Self {
            routes: routes_over(netlink, end, &addresses)?,
            neighbours: neighbours_on(netlink, end)?,
            link: link.clone(),
            index,
            mac: mac_of(&there).map(<[u8]>::to_vec),
            addresses,
        }))
    }

    /// Gives them to link `to`, and takes them from where they are; nothing if `to` is not there.
    ///
    /// # Errors
    /// The kernel's: what had not moved by then has not.
    pub fn hand_over(self, netlink: &Netlink, to: &IfName) -> Result<(), NetlinkError> {
        let Some(there) = netlink.link(to)? else {
            return Ok(());
        };
        // Neighbours that know the host by another MAC address are to hear of the new one: they are asked again, by which
        // all others hear of it too.
        let is_known = self.mac.as_deref() == mac_of(&there);
        let (neighbours, strangers): (Vec<_>, Vec<_>) = self
            .neighbours
            .into_iter()
            .partition(|neighbour| is_known || is_by_hand(neighbour));
        let (addresses, routes) = (self.addresses, self.routes);
        let doing = format!("move {}'s addresses to {to}", self.link);
        let old = End {
            index: self.index,
            name: &self.link,
        };
        let new = End {
            index: there.header.index,
            name: to,
        };
        // One that is there already, as after a move that was broken off, stays what it was.
        let there = addresses_of(netlink, new)?;
        let is_new = |address: &&AddressMessage| !there.iter().any(|it| is_same(it, address));
        let missing: Vec<_> = addresses.iter().filter(is_new).cloned().collect();
        netlink.ask(&doing, |handle| async move {
            for address in &missing {
                give(&handle, moved_address(address, old, new)).await?;
            }
            for neighbour in &neighbours {
                introduce(&handle, neighbour, new).await?;
            }
            for route in &routes {
                append(&handle, moved_route(route, old, new)).await?;
            }
            for route in routes {
                absent_is_fine(handle.route().del(route).execute().await)?;
            }
            for neighbour in neighbours.into_iter().filter(is_by_hand) {
                absent_is_fine(handle.neighbours().del(neighbour).execute().await)?;
            }
            // The last first: a primary address takes its secondary ones with it.
            for address in addresses.into_iter().rev() {
                absent_is_fine(handle.address().del(address).execute().await)?;
            }
            for neighbour in &strangers {
                ask_for(&handle, neighbour, new).await?;
            }
            Ok(())
        })?;
        match addresses_of(netlink, old)?[..] {
            [] => Ok(()),
            _ => Err(NetlinkError::no_answer(doing)),
        }
    }
}

/// Whether both are of one address, on whatever link.
fn is_same(one: &AddressMessage, other: &AddressMessage) -> bool {
    let own = |message: &AddressMessage| {
        let mut ips = message
            .attributes
            .iter()
            .filter_map(|attribute| match attribute {
                AddressAttribute::Local(ip) | AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
        let first = ips.next();
        ips.next().or(first)
    };
    one.header.prefix_len == other.header.prefix_len && own(one) == own(other)
}

fn addresses_of(netlink: &Netlink, link: End<'_>) -> Result<Vec<AddressMessage>, NetlinkError> {
    let all: Vec<AddressMessage> = netlink.ask("list addresses", |handle: Handle| async move {
        let get = handle.address().get().set_link_index_filter(link.index);
        get.execute().try_collect().await
    })?;
    let moves = |message: &AddressMessage| {
        message.header.index == link.index && message.header.scope != AddressScope::Link
    };
    Ok(all.into_iter().filter(moves).collect())
}

/// Those that are known, and those for whom the host answers.
fn neighbours_on(netlink: &Netlink, link: End<'_>) -> Result<Vec<NeighbourMessage>, NetlinkError> {
    let list = |family: AddressFamily, proxies: bool| {
        netlink.ask("list neighbours", move |handle: Handle| async move {
            let get = handle.neighbours().get().set_address_family(family);
            let get = if proxies { get.proxies() } else { get };
            get.execute().try_collect::<Vec<NeighbourMessage>>().await
        })
    };
    let moves = |neighbour: &NeighbourMessage| {
        use NeighbourState::{Delay, Permanent, Probe, Reachable, Stale};
        let known = [Reachable, Stale, Delay, Probe, Permanent].contains(&neighbour.header.state);
        neighbour.header.ifindex == link.index && (known || is_proxy(neighbour))
    };
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for proxies in [false, true] {
            let listed = list(family, proxies)?.into_iter().filter(moves);
            all.extend(listed.map(|mut neighbour| {
                neighbour.header.family = family; // which the kernel does not tell of proxies
                neighbour
            }));
        }
    }
    Ok(all)
}

fn is_proxy(neighbour: &NeighbourMessage) -> bool {
    neighbour.header.flags.contains(NeighbourFlags::Proxy)
}

/// What somebody entered, in contrast to what the kernel found out.
fn is_by_hand(neighbour: &NeighbourMessage) -> bool {
    is_proxy(neighbour) || neighbour.header.state == NeighbourState::Permanent
}

/// Makes `neighbour` known on `link`. What was found out is in use and asked once more, so that a neighbour that knows the
/// host by another link's MAC address hears of this one.
async fn introduce(
    handle: &Handle,
    neighbour: &NeighbourMessage,
    link: End<'_>,
) -> Result<(), rtnetlink::Error> {
    let mut known = neighbour.clone();
    known.header.ifindex = link.index;
    if !is_by_hand(neighbour) {
        known.header.state = NeighbourState::Probe;
    }
    known.attributes.retain(|attribute| {
        use NeighbourAttribute::{Destination, LinkLayerAddress};
        matches!(attribute, Destination(_) | LinkLayerAddress(_))
    });
    let unspecified = Ipv4Addr::UNSPECIFIED.into();
    let mut request = handle.neighbours().add(link.index, unspecified).replace();
    *request.message_mut() = known;
    request.execute().await
}

/// Has the kernel find out who `neighbour` is on `link`.
async fn ask_for(
    handle: &Handle,
    neighbour: &NeighbourMessage,
    link: End<'_>,
) -> Result<(), rtnetlink::Error> {
    let mut unknown = neighbour.clone();
    unknown.header.ifindex = link.index;
    unknown.header.state = NeighbourState::None;
    unknown.header.flags = NeighbourFlags::Use;
    let is_address =
        |attribute: &NeighbourAttribute| matches!(attribute, NeighbourAttribute::Destination(_));
    unknown.attributes.retain(is_address);
    let unspecified = Ipv4Addr::UNSPECIFIED.into();
    let mut request = handle.neighbours().add(link.index, unspecified).replace();
    *request.message_mut() = unknown;
    request.execute().await
}

/// Those that somebody made; the kernel makes the others along with the addresses, unless an address is to have none.
fn routes_over(
    netlink: &Netlink,
    link: End<'_>,
    addresses: &[AddressMessage],
) -> Result<Vec<RouteMessage>, NetlinkError> {
    let by_hand = addresses.iter().any(|address| {
        let no_route = |attribute: &AddressAttribute| match attribute {
            AddressAttribute::Flags(flags) => flags.contains(AddressFlags::Noprefixroute),
            _ => false,
        };
        address.attributes.iter().any(no_route)
    });
    let moves = |route: &RouteMessage| {
        let own = route.header.protocol == RouteProtocol::Kernel;
        let local = route.header.table == TABLE_LOCAL;
        leads_over(route, link) && !local && !is_link_local(route) && (!own || by_hand)
    };
    let mut routes: Vec<RouteMessage> = observe::routes(netlink)?;
    routes.retain(moves);
    // A gateway must be within reach before there is a route over it.
    routes.sort_by_key(|route| {
        let over = |attribute: &RouteAttribute| {
            matches!(
                attribute,
                RouteAttribute::Gateway(_) | RouteAttribute::MultiPath(_)
            )
        };
        route.attributes.iter().any(over)
    });
    Ok(routes)
}

fn leads_over(route: &RouteMessage, link: End<'_>) -> bool {
    route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Oif(index) => *index == link.index,
        RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| hop.interface_index == link.index),
        _ => false,
    })
}

fn is_link_local(route: &RouteMessage) -> bool {
    route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => {
            ip.is_unicast_link_local() || ip.is_multicast()
        }
        _ => false,
    })
}

fn moved_address(address: &AddressMessage, old: End<'_>, new: End<'_>) -> AddressMessage {
    let mut moved = address.clone();
    moved.header.index = new.index;
    for attribute in &mut moved.attributes {
        if let AddressAttribute::Label(label) = attribute {
            if let Some(rest) = label.strip_prefix(old.name.as_str()) {
                *label = format!("{}{rest}", new.name);
                label.truncate(IfName::MAX); // what the kernel takes; a long one is not what it was afterwards
            }
        }
    }
    moved
}

/// A route that ends by itself ends when it would have.
fn moved_route(route: &RouteMessage, old: End<'_>, new: End<'_>) -> RouteMessage {
    const TICKS: u32 = 100; // a second, as the kernel counts for user space (USER_HZ)
    let mut moved = route.clone();
    // The kernel tells by the others how things are at the moment, and does not want to hear it.
    moved.header.flags &= RouteFlags::Onlink;
    let mut expires = None;
    for attribute in &mut moved.attributes {
        match attribute {
            RouteAttribute::Oif(index) => *index = new.index,
            RouteAttribute::MultiPath(hops) => {
                for hop in hops
                    .iter_mut()
                    .filter(|hop| hop.interface_index == old.index)
                {
                    hop.interface_index = new.index;
                }
            }
            RouteAttribute::CacheInfo(info) if info.expires > 0 => {
                expires = Some(RouteAttribute::Expires(info.expires / TICKS));
            }
            _ => {}
        }
    }
    let told = |attribute: &RouteAttribute| {
        !matches!(
            attribute,
            RouteAttribute::CacheInfo(_) | RouteAttribute::Expires(_)
        )
    };
    moved.attributes.retain(told);
    moved.attributes.extend(expires);
    moved
}

/// Adds an address, which is in use at once: it has been this host's all the time. Afterwards it looks as it did.
async fn give(handle: &Handle, address: AddressMessage) -> Result<(), rtnetlink::Error> {
    let mut at_once = address.clone();
    at_once.header.flags |= AddressHeaderFlags::Nodad;
    for attribute in &mut at_once.attributes {
        if let AddressAttribute::Flags(flags) = attribute {
            *flags |= AddressFlags::Nodad;
        }
    }
    let unspecified = Ipv4Addr::UNSPECIFIED.into();
    for message in [at_once, address] {
        let mut request = handle
            .address()
            .add(message.header.index, unspecified, 0)
            .replace();
        *request.message_mut() = message;
        request.execute().await?;
    }
    Ok(())
}

/// Adds a route beside those that are there.
async fn append(handle: &Handle, route: RouteMessage) -> Result<(), rtnetlink::Error> {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(route));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
    let mut answers = handle.clone().request(request)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload {
            if error.raw_code() != -libc::EEXIST {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
        }
    }
    Ok(())
}

/// That what is to be deleted went along with something else is no failure.
fn absent_is_fine(done: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match done {
        Err(rtnetlink::Error::NetlinkError(error))
            if [-libc::EADDRNOTAVAIL, -libc::ESRCH, -libc::ENOENT].contains(&error.raw_code()) =>
        {
            Ok(())
        }
        done => done,
    }
}
