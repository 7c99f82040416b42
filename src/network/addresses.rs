//! The addresses that guests use: those that DHCP has given them, and those that the host has seen on its bridges.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};

use super::apply::netlink::{Netlink, NetlinkError};
use super::journal::Journal;
use super::observe::ObserveError;
use super::plan::namespace;
use super::port::beside;
use super::{Error, leases, run_dir_path};
use crate::cli::HostArgs;
use crate::types::{MacAddr, Name};

/// The addresses of machines on networks, link-local ones aside.
#[derive(Debug, Default)]
pub struct Addresses(BTreeMap<(Name, MacAddr), BTreeSet<IpAddr>>);

impl Addresses {
    /// Those of machines on `networks`, as far as they are up and the host can know.
    ///
    /// # Errors
    /// The run directory or the kernel can't be asked.
    pub fn on(host: &HostArgs, networks: &BTreeSet<Name>) -> Result<Self, Error> {
        let run_dir = run_dir_path(&host.run_dir)?;
        let journal = Journal::read(&run_dir)?;
        let mut known = Self::default();
        let mut seen = BTreeMap::new();
        for network in networks {
            for lease in leases::of_network(&run_dir, network)? {
                if let Some(mac) = lease.mac {
                    known.add(network, mac, lease.ip);
                }
            }
            let record = journal.networks.get(network);
            let tenant = record.and_then(|record| record.tenant.as_ref());
            let seen = match seen.entry(tenant) {
                Entry::Occupied(seen) => seen.into_mut(),
                Entry::Vacant(place) => place.insert(neighbours_of(tenant)?),
            };
            for (mac, ip) in seen {
                known.add(network, *mac, *ip);
            }
        }
        Ok(known)
    }

    /// Those of the machine with this MAC address on a network.
    pub fn of(&self, network: &Name, mac: MacAddr) -> impl Iterator<Item = IpAddr> {
        let known = self.0.get(&(network.clone(), mac));
        known.into_iter().flatten().copied()
    }

    fn add(&mut self, network: &Name, mac: MacAddr, ip: IpAddr) {
        let key = (network.clone(), mac);
        self.0.entry(key).or_default().insert(ip);
    }
}

/// As [`neighbours`], in the namespace of `tenant`, if the network is one's.
fn neighbours_of(tenant: Option<&Name>) -> Result<Vec<(MacAddr, IpAddr)>, Error> {
    let name = tenant.map(namespace);
    let heard = beside(tenant, neighbours).map_err(|source| ObserveError::Namespace {
        name: name.unwrap_or_default(),
        source,
    })?;
    Ok(heard?)
}

/// Whom this host has heard of on its links of late, link-local addresses aside.
fn neighbours() -> Result<Vec<(MacAddr, IpAddr)>, NetlinkError> {
    let netlink = Netlink::open()?;
    let messages: Vec<NeighbourMessage> = netlink
        .ask("list neighbours", |handle: Handle| async move {
            handle.neighbours().get().execute().try_collect().await
        })?;
    Ok(messages.iter().filter_map(neighbour).collect())
}

fn neighbour(message: &NeighbourMessage) -> Option<(MacAddr, IpAddr)> {
    use NeighbourState::{Delay, Permanent, Probe, Reachable, Stale};
    if !matches!(
        message.header.state,
        Delay | Permanent | Probe | Reachable | Stale
    ) {
        return None;
    }
    let (mut mac, mut ip) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = MacAddr::from_octets(bytes),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(it)) => {
                ip = Some(IpAddr::V4(*it))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(it)) => {
                ip = Some(IpAddr::V6(*it)).filter(|_| !it.is_unicast_link_local());
            }
            _ => {}
        }
    }
    Some((mac?, ip?))
}
