//! Looks at the host and changes nothing: fills an [`Inventory`].
//!
//! Links with their sysctls, addresses and routes come through rtnetlink, other sysctls from `/proc`, tables from the kernel,
//! chains of others from `nft` and `iptables`, processes from `/proc`, bridges of Open vSwitch's from `ovs-vsctl`. What ringtap
//! made is what its journal says, as far as the host confirms it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::{fs, io};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecBridge, AfSpecInet, AfSpecInet6, AfSpecUnspec, InfoBridge, InfoData, InfoVlan,
    LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};
use thiserror::Error;

use super::apply::netlink::{Netlink, NetlinkError, is_up, own_address};
use super::apply::tables::Tables;
use super::apply::{dnsmasq, nft, ovs, sysctl};
use super::inventory::{
    BRIDGE_NF_CALL, Dnsmasq, Held, Inventory, Link, RESOLV_CONF, Route, Table, link_key,
};
use super::journal::{Journal, Record};
use super::ovs::{Ovs, OvsBridge};
use super::plan::{NAMESPACE_PREFIX, files, namespace, network_dir, table_name};
use super::{chains, listeners, netns};
use crate::programs::ToolError;
use crate::types::{Family, IfName, MacAddr, Name, VlanId};

/// The host can't be looked at.
#[derive(Debug, Error)]
pub enum ObserveError {
    /// Links, addresses or routes.
    #[error("cannot look at the host's links")]
    Links(#[from] NetlinkError),
    /// Tables.
    #[error("cannot look at the host's nftables (which needs the kernel's module nf_tables)")]
    Tables(#[source] io::Error),
    /// What is in those of others.
    #[error("cannot list the rules of other firewalls")]
    Chains(#[from] ToolError),
    /// Tenants.
    #[error("cannot look into network namespace {name} (which needs CAP_SYS_ADMIN)")]
    Namespace {
        /// Its name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Namespaces.
    #[error("cannot read the names of network namespaces")]
    Namespaces(#[source] io::Error),
    /// Servers.
    #[error("cannot read who listens from /proc/net")]
    Listeners(#[source] io::Error),
    /// Sysctls.
    #[error("cannot read sysctls under /proc/sys/net")]
    Sysctls(#[source] io::Error),
}

/// What the host has, and what of it ringtap made according to `journal`.
///
/// # Errors
/// The host can't be looked at.
pub fn observe(
    netlink: &Netlink,
    run_dir: &Path,
    journal: &Journal,
) -> Result<Inventory, ObserveError> {
    let mut host = observe_here(netlink, run_dir, journal, None)?;
    host.namespaces = netns::names().map_err(ObserveError::Namespaces)?;
    host.namespaces
        .retain(|name| name.starts_with(NAMESPACE_PREFIX));
    for tenant in journal.tenants() {
        let name = namespace(tenant);
        let inventory = netns::within(&name, || {
            observe_here(&Netlink::open()?, run_dir, journal, Some(tenant))
        });
        let inventory = inventory.map_err(|source| ObserveError::Namespace { name, source })?;
        host.tenants.insert(tenant.clone(), inventory?);
    }
    Ok(host)
}

/// What there is in the network namespace of this thread, which is that of `tenant` or the host's.
fn observe_here(
    netlink: &Netlink,
    run_dir: &Path,
    journal: &Journal,
    tenant: Option<&Name>,
) -> Result<Inventory, ObserveError> {
    let records = || {
        let all = journal.networks.iter();
        all.filter(|(_, record)| record.tenant.as_ref() == tenant)
    };
    let messages = link_messages(netlink)?;
    let (mut links, names) = links(netlink, &messages)?;
    // Open vSwitch has its bridges on the host.
    let ovs = match tenant {
        None => ovs::look(),
        Some(_) => Ovs::default(),
    };
    note_masters(&mut links, &ovs.bridges);
    let routes = routes(netlink)?;
    for link in &mut links {
        let over = |message: &&RouteMessage| is_default_over(message, &link.name, &names);
        let defaults: Vec<_> = routes.iter().filter(over).collect();
        link.default_route = defaults.iter().any(|message| is_usual(message));
        let by_ra = |message: &&RouteMessage| message.header.protocol == RouteProtocol::Ra;
        link.by_ra = defaults.iter().any(by_ra);
    }
    let tables = Tables::look().map_err(ObserveError::Tables)?;
    let networks = records()
        .map(|(name, record)| (name.clone(), held(run_dir, name, record, &tables)))
        .collect();
    let own_links = records().filter_map(|(_, record)| record.own_link());
    let own_links: Vec<&IfName> = own_links.chain(journal.links.keys()).collect();
    Ok(Inventory {
        run_dir: run_dir.to_owned(),
        sysctls: sysctls(&messages, &links, &own_links).map_err(ObserveError::Sysctls)?,
        links,
        routes: worth_knowing(&routes, &names),
        listeners: listeners::listeners().map_err(ObserveError::Listeners)?,
        shared_links: journal.links.keys().cloned().collect(),
        chains: chains::chains(&nft::objects(tables.others())?),
        ovs,
        networks,
        resolv_conf: resolv_conf(),
        namespaces: BTreeSet::new(),
        tenants: BTreeMap::new(),
    })
}

/// Forwarding, limits, whether bridged frames are shown to iptables, and what is done by itself on ringtap's bridges and on
/// links that may become a part of one.
fn sysctls(
    messages: &[LinkMessage],
    links: &[Link],
    own_links: &[&IfName],
) -> io::Result<BTreeMap<String, String>> {
    let mut values = sysctl::of_all_links()?;
    values.append(&mut sysctl::limits()?);
    values.append(&mut sysctl::values(BRIDGE_NF_CALL.map(str::to_owned))?);
    let alone = links.iter().filter(|link| link.master.is_none());
    let names: BTreeSet<&str> = own_links
        .iter()
        .map(|link| link.as_str())
        .chain(alone.map(|link| link.name.as_str()))
        .filter(|name| *name != "lo")
        .collect();
    for message in messages {
        let Some(link) = link_name(message) else {
            continue;
        };
        for (family, name, value) in link_sysctls(message) {
            if name == "forwarding" || names.contains(link.as_str()) {
                values.insert(link_key(family, &link, name), value.to_string());
            }
        }
    }
    Ok(values)
}

/// The sysctls of a link that plans may depend on. The kernel tells of them along with the link: to read their files takes a
/// hundred times as long.
fn link_sysctls(message: &LinkMessage) -> Vec<(Family, &'static str, i32)> {
    let specs = message.attributes.iter().filter_map(|it| match it {
        LinkAttribute::AfSpecUnspec(specs) => Some(specs),
        _ => None,
    });
    let mut values = Vec::new();
    for spec in specs.flatten() {
        match spec {
            AfSpecUnspec::Inet(specs) => values.extend(specs.iter().flat_map(of_ipv4)),
            AfSpecUnspec::Inet6(specs) => values.extend(specs.iter().flat_map(of_ipv6)),
            _ => {}
        }
    }
    values
}

fn of_ipv4(spec: &AfSpecInet) -> Vec<(Family, &'static str, i32)> {
    let AfSpecInet::DevConf(conf) = spec else {
        return Vec::new();
    };
    vec![
        (Family::Ipv4, "forwarding", conf.forwarding),
        (Family::Ipv4, "route_localnet", conf.route_localnet),
    ]
}

fn of_ipv6(spec: &AfSpecInet6) -> Vec<(Family, &'static str, i32)> {
    let AfSpecInet6::DevConf(conf) = spec else {
        return Vec::new();
    };
    vec![
        (Family::Ipv6, "forwarding", conf.forwarding),
        (Family::Ipv6, "accept_ra", conf.accept_ra),
        (Family::Ipv6, "disable_ipv6", conf.disable_ipv6),
        (Family::Ipv6, "proxy_ndp", conf.proxy_ndp),
    ]
}

/// Notes which bridge of Open vSwitch's a link is a port of; the kernel says another, or none.
fn note_masters(links: &mut [Link], bridges: &BTreeMap<String, OvsBridge>) {
    for (name, bridge) in bridges {
        let ports = links.iter_mut();
        let ports = ports.filter(|it| it.name != *name && bridge.ports.contains_key(&it.name));
        ports.for_each(|port| port.master = Some(name.clone()));
    }
}

/// Who uses a link, by the link's name.
#[derive(Debug, Default)]
pub struct Users {
    /// The ports of each bridge. On one of Open vSwitch's a port of ringtap's whose link is gone is none.
    pub ports: BTreeMap<String, Vec<String>>,
    /// The macvtaps and ipvtaps on top of each link, which go with it.
    pub taps: BTreeMap<String, Vec<String>>,
}

/// Who uses the links of this namespace.
///
/// # Errors
/// The kernel can't be asked.
pub fn users(netlink: &Netlink) -> Result<Users, NetlinkError> {
    let messages = link_messages(netlink)?;
    let (mut links, names) = links(netlink, &messages)?;
    // Where it does not answer, its bridges can't be taken away either.
    let bridges = ovs::bridges_if_any();
    note_masters(&mut links, &bridges);
    let mut ports: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (bridge, it) in bridges {
        // Such as tunnels and cables between bridges, which are no links of the kernel's.
        let without_link = it.ports.into_iter().filter(|(name, port)| {
            let is_link = links.iter().any(|link| link.name == *name);
            port.mark.is_none() && !is_link && *name != bridge
        });
        let names = without_link.map(|(name, _)| name).collect();
        ports.insert(bridge, names);
    }
    let mut taps: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (link, message) in links.into_iter().zip(&messages) {
        if matches!(link.kind.as_deref(), Some("macvtap" | "ipvtap"))
            && let Some(below) = below(message, &names)
        {
            taps.entry(below).or_default().push(link.name.clone());
        }
        if let Some(master) = link.master {
            ports.entry(master).or_default().push(link.name);
        }
    }
    Ok(Users { ports, taps })
}

/// The link of this namespace that another is on top of.
fn below(message: &LinkMessage, names: &LinkNames) -> Option<String> {
    let elsewhere = |it: &LinkAttribute| matches!(it, LinkAttribute::LinkNetNsId(_));
    if message.attributes.iter().any(elsewhere) {
        return None;
    }
    message.attributes.iter().find_map(|it| match it {
        LinkAttribute::Link(index) => names.get(index).cloned(),
        _ => None,
    })
}

/// As [`users`], in the namespace of `tenant`.
///
/// # Errors
/// The kernel can't be asked.
pub fn users_within(tenant: &Name) -> Result<Users, ObserveError> {
    let name = namespace(tenant);
    let users = netns::within(&name, || users(&Netlink::open()?));
    let users = users.map_err(|source| ObserveError::Namespace { name, source })?;
    Ok(users?)
}

fn held(run_dir: &Path, name: &Name, record: &Record, tables: &Tables) -> Held {
    let dir = network_dir(run_dir, name);
    let fingerprint = tables.fingerprint(&table_name(name));
    Held {
        dir: dir.is_dir(),
        own_link: record.own_link().is_some(),
        addresses: record.addresses(),
        routes: record.routes(),
        proxies: record.proxies(),
        table: nft::loaded(&dir.join(files::TABLE)).map(|table| Table {
            intact: fingerprint == Some(table.fingerprint),
            rules: table.rules,
        }),
        dnsmasq: dnsmasq::running(&dir).map(|process| Dnsmasq {
            pid: process.pid,
            // One in a namespace that is gone serves nobody.
            files: dnsmasq::served(&dir).filter(|_| netns::has(process.pid)),
        }),
    }
}

/// What systemd-resolved, which is on the host's loopback, knows of servers itself (systemd-resolved.service(8)).
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// The file that names a server which a tenant's router can ask.
fn resolv_conf() -> Option<PathBuf> {
    let files = [RESOLV_CONF, RESOLVED].into_iter();
    let mut files =
        files.filter(|path| fs::read_to_string(path).is_ok_and(|it| names_a_server(&it)));
    files.next().map(PathBuf::from)
}

/// Whether `resolv_conf` names one beyond the host (resolv.conf(5)).
fn names_a_server(resolv_conf: &str) -> bool {
    let mut servers = resolv_conf
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse::<IpAddr>().ok());
    servers.any(|address| !address.is_loopback())
}

type LinkNames = BTreeMap<u32, String>;

fn link_messages(netlink: &Netlink) -> Result<Vec<LinkMessage>, NetlinkError> {
    let doing = "list links";
    let messages: Vec<LinkMessage> = netlink.ask(doing, |handle: Handle| async move {
        handle.link().get().execute().try_collect().await
    })?;
    if messages.is_empty() {
        return Err(NetlinkError::no_answer(doing)); // there is a loopback always
    }
    Ok(messages)
}

fn links(
    netlink: &Netlink,
    messages: &[LinkMessage],
) -> Result<(Vec<Link>, LinkNames), NetlinkError> {
    let addresses: Vec<AddressMessage> = netlink
        .ask("list addresses", |handle: Handle| async move {
            handle.address().get().execute().try_collect().await
        })?;
    let names: LinkNames = messages
        .iter()
        .filter_map(|link| Some((link.header.index, link_name(link)?)))
        .collect();
    let mut links: Vec<Link> = messages
        .iter()
        .filter_map(|message| link(message, &names, &addresses))
        .collect();
    if links.iter().any(|link| link.vlan_filtering) {
        let mut vlans = port_vlans(netlink)?;
        for (link, message) in links.iter_mut().zip(messages) {
            link.vlans = vlans.remove(&message.header.index).unwrap_or_default();
        }
    }
    let mut proxies = proxies(netlink)?;
    for (link, message) in links.iter_mut().zip(messages) {
        link.proxies = proxies.remove(&message.header.index).unwrap_or_default();
    }
    Ok((links, names))
}

/// For whom the host answers on each link, by index.
fn proxies(netlink: &Netlink) -> Result<BTreeMap<u32, BTreeSet<IpAddr>>, NetlinkError> {
    let messages: Vec<NeighbourMessage> =
        netlink.ask("list proxies", |handle: Handle| async move {
            let get = handle.neighbours().get().proxies();
            get.execute().try_collect().await
        })?;
    let mut by_link: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
    for message in &messages {
        let address = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                    Some(IpAddr::V4(*ip))
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                    Some(IpAddr::V6(*ip))
                }
                // The kernel says nothing of the family here.
                NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => ip_of(bytes),
                _ => None,
            });
        by_link
            .entry(message.header.ifindex)
            .or_default()
            .extend(address);
    }
    Ok(by_link)
}

fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(bytes));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn link_name(message: &LinkMessage) -> Option<String> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })
}

fn link(message: &LinkMessage, names: &LinkNames, addresses: &[AddressMessage]) -> Option<Link> {
    let index = message.header.index;
    let mut link = Link {
        up: is_up(message),
        addresses: addresses
            .iter()
            .filter_map(|address| address_of(address, index))
            .collect(),
        leased: addresses.iter().any(|address| is_leased(address, index)),
        ..Link::new(&link_name(message)?, 0)
    };
    link.wireless = is_wireless(&link.name);
    let (mut over, mut vlan) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.master = names.get(index).cloned(),
            LinkAttribute::Address(bytes) => link.mac = unicast(bytes),
            LinkAttribute::Link(index) => over = names.get(index).cloned(),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(kind);
                vlan = infos.iter().find_map(vlan_id);
                link.vlan_filtering = infos.iter().any(heeds_vlans);
            }
            _ => {}
        }
    }
    link.vlan = over.zip(vlan);
    Some(link)
}

fn unicast(bytes: &[u8]) -> Option<MacAddr> {
    let text: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    text.join(":").parse().ok()
}

fn kind(info: &LinkInfo) -> Option<String> {
    match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}

fn vlan_id(info: &LinkInfo) -> Option<VlanId> {
    let LinkInfo::Data(InfoData::Vlan(data)) = info else {
        return None;
    };
    let id = |info: &InfoVlan| match info {
        InfoVlan::Id(id) => VlanId::try_from(*id).ok(),
        _ => None,
    };
    data.iter().find_map(id)
}

fn heeds_vlans(info: &LinkInfo) -> bool {
    let LinkInfo::Data(InfoData::Bridge(data)) = info else {
        return false;
    };
    data.contains(&InfoBridge::VlanFiltering(true))
}

/// The VLANs of each port of a bridge that heeds them, by index.
fn port_vlans(netlink: &Netlink) -> Result<BTreeMap<u32, BTreeSet<VlanId>>, NetlinkError> {
    let messages: Vec<LinkMessage> =
        netlink.ask("list VLANs of ports", |handle: Handle| async move {
            let mask = vec![LinkExtentMask::Brvlan];
            let get = handle.link().get();
            let get = get.set_filter_mask(AddressFamily::Bridge, mask);
            get.execute().try_collect().await
        })?;
    let ids = |attribute: &LinkAttribute| -> BTreeSet<VlanId> {
        let LinkAttribute::AfSpecBridge(specs) = attribute else {
            return BTreeSet::new();
        };
        let id = |spec: &AfSpecBridge| match spec {
            AfSpecBridge::VlanInfo(info) => VlanId::try_from(info.vid).ok(),
            _ => None,
        };
        specs.iter().filter_map(id).collect()
    };
    let of_port = |message: &LinkMessage| {
        let ids = message.attributes.iter().flat_map(ids).collect();
        (message.header.index, ids)
    };
    Ok(messages.iter().map(of_port).collect())
}

/// The kernel shows it nowhere but in sysfs, that of the network namespace that it was mounted in.
fn is_wireless(link: &str) -> bool {
    Path::new("/sys/class/net")
        .join(link)
        .join("phy80211")
        .exists()
}

/// Whether `message` is of an IPv4 address of link `index` that ends some day.
fn is_leased(message: &AddressMessage, index: u32) -> bool {
    let header = &message.header;
    let ends = |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::CacheInfo(info) if info.ifa_valid != u32::MAX);
    header.index == index
        && header.family == AddressFamily::Inet
        && message.attributes.iter().any(ends)
}

/// The address of `message`, if it is one of link `index` and not one that every link has.
fn address_of(message: &AddressMessage, index: u32) -> Option<IpNet> {
    let own = own_address(message);
    let own = own.filter(|ip| message.header.index == index && !is_link_local(*ip))?;
    IpNet::new(own, message.header.prefix_len).ok()
}

/// fe80::/10, of which every link has its own.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// Every route of both families.
///
/// # Errors
/// The kernel can't be asked.
pub fn routes(netlink: &Netlink) -> Result<Vec<RouteMessage>, NetlinkError> {
    let all = [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ];
    let mut messages = Vec::new();
    for all in all {
        let mut of_family: Vec<RouteMessage> = netlink
            .ask("list routes", |handle: Handle| async move {
                handle.route().get(all).execute().try_collect().await
            })?;
        messages.append(&mut of_family);
    }
    Ok(messages)
}

/// Whether `message` is a default route over `link`, or over several of which that is one.
fn is_default_over(message: &RouteMessage, link: &str, names: &LinkNames) -> bool {
    let is_link = |index: &u32| names.get(index).is_some_and(|name| name == link);
    let over = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => is_link(index),
        RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| is_link(&hop.interface_index)),
        _ => false,
    };
    message.header.destination_prefix_length == 0 && message.attributes.iter().any(over)
}

/// Whether packets are sent by the route of `message`, without a rule that says so.
fn is_usual(message: &RouteMessage) -> bool {
    let header = &message.header;
    header.table == RouteHeader::RT_TABLE_MAIN && header.kind == RouteType::Unicast
}

fn worth_knowing(messages: &[RouteMessage], names: &LinkNames) -> Vec<Route> {
    let routes = messages.iter().filter_map(|message| route(message, names));
    let mut routes: Vec<Route> = routes.collect();
    routes.sort();
    routes.dedup();
    routes
}

/// The route of `message`, but for those the kernel makes for a link's own addresses and broadcasts.
fn route(message: &RouteMessage, names: &LinkNames) -> Option<Route> {
    let prefix = message.header.destination_prefix_length;
    let local = matches!(
        message.header.kind,
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast
    );
    if local {
        return None;
    }
    let mut to = match message.header.address_family {
        AddressFamily::Inet => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        AddressFamily::Inet6 => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        _ => None,
    };
    let (mut link, mut via, mut metric) = (None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Oif(index) => link = names.get(index).cloned(),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let to = to.filter(|ip| !is_link_local(*ip))?;
    Some(Route {
        to: IpNet::new(to, prefix).ok()?,
        link,
        via,
        metric,
        kernel: message.header.protocol == RouteProtocol::Kernel,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}
