//! What stands in the way of networks: found before anything is touched, each with its remedy.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{bridge, lan, mtu, ovs, rules, tenant};
use crate::config::{Config, Forward, Network, Protocol, Switch, overlap};
use crate::network::inventory::{Inventory, Link, Listener, Route};
use crate::types::{Family, MacAddr, Name};

/// Something on the host that a network can't be made beside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clash {
    network: Name,
    cause: String,
    remedy: String,
}

/// All that stands in the way; prints one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clashes(pub(super) Vec<Clash>);

impl Clash {
    /// The network that can't be made.
    pub fn network(&self) -> &Name {
        &self.network
    }
}

/// The cause and the remedy.
impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause, self.remedy)
    }
}

impl Clashes {
    /// Each of them: one a network at most.
    pub fn iter(&self) -> impl Iterator<Item = &Clash> {
        self.0.iter()
    }
}

impl fmt::Display for Clashes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, clash) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "network {}: {clash}", clash.network)?;
        }
        Ok(())
    }
}

impl std::error::Error for Clashes {}

/// All that stands in the way of `networks`, the worst of each.
pub(super) fn clashes(config: &Config, networks: &[&Network], inventory: &Inventory) -> Vec<Clash> {
    let mut clashes = Vec::new();
    let strangers = strangers(config, inventory);
    let own = networks.iter().filter(|network| network.has_own_bridge());
    // The chosen networks' own bridges may hold an old address until this plan is done.
    let bridges = own.map(|network| network.own_bridge().to_string());
    let others = Others::of(inventory, &bridges.collect());
    for network in networks {
        let cause = if network.is_lan() {
            lan::clash(config, network, inventory)
        } else {
            no_ipv6(network, inventory)
                .or_else(|| no_proxy(network, networks, inventory))
                .or_else(|| taken_single(network, inventory))
                .or_else(|| taken_bridge(network, bridge::bridge_mac(network), inventory))
                .or_else(|| tenant::taken_namespace(network, inventory))
                .or_else(|| taken_port(config, network, inventory, &strangers))
                .or_else(|| taken_service(network, inventory))
                .or_else(|| mtu::clash(config, network, inventory))
                .or_else(|| taken_addresses(network, &others))
        };
        if let Some((cause, remedy)) = cause {
            clashes.push(Clash {
                network: network.name.clone(),
                cause,
                remedy,
            });
        }
    }
    clashes
}

/// Those of `networks` that are up with another gateway: they can't move along with their guests.
pub(super) fn moves(networks: &[&Network], host: &Inventory) -> Vec<Clash> {
    let moves = networks.iter().filter_map(|network| {
        let tenant = host.tenant_of(&network.name)?;
        if tenant == network.tenant.as_ref() {
            return None;
        }
        let now = match tenant {
            Some(tenant) => format!("is up as tenant {tenant}'s"),
            None => "is up as the host's own".to_owned(),
        };
        Some(Clash {
            network: network.name.clone(),
            cause: format!("it {now}, and can't move with its guests"),
            remedy: format!("take it down first: ringtap down {}", network.name),
        })
    });
    moves.collect()
}

/// A network with IPv6 on a host without.
fn no_ipv6(network: &Network, inventory: &Inventory) -> Option<(String, String)> {
    let lacking = network.ipv6.is_some() && !inventory.has_ipv6();
    lacking.then(|| {
        (
            "the kernel has no IPv6".to_owned(),
            "boot without ipv6.disable=1, or leave ipv6 out".to_owned(),
        )
    })
}

/// What the network's own link is, as `ip -d link` calls it.
fn own_kind(network: &Network) -> &'static str {
    match network.router_of() {
        Some(_) => "veth",
        None => "bridge",
    }
}

/// A link to answer on that is not there, or is or becomes the port of a bridge, which then sees who asks in its place.
fn no_proxy(
    network: &Network,
    networks: &[&Network],
    inventory: &Inventory,
) -> Option<(String, String)> {
    let link = network.proxy.as_ref()?;
    let on_lan = networks.iter().filter(|it| it.is_lan());
    let mut bridged = on_lan.filter(|it| it.has_own_bridge());
    let found = inventory.link(link.as_str());
    if found.is_none() && !bridged.clone().any(|it| it.own_bridge() == *link) {
        return Some((
            format!("the host has no link `{link}` to answer on"),
            "name the link that the provider's cable is in".to_owned(),
        ));
    }
    let over_it = bridged.find(|it| it.uplink().is_some_and(|uplink| uplink.link() == *link));
    let master = match over_it {
        Some(it) => it.own_bridge().to_string(),
        None => found?.master.clone()?,
    };
    Some((
        format!("`{link}` is a port of `{master}`, which gets the frames of those who ask"),
        format!("write proxy = \"{master}\""),
    ))
}

/// A guest's single address that the host has itself, or sends elsewhere. That it is of a subnet of the host's is why
/// there are such.
fn taken_single(network: &Network, inventory: &Inventory) -> Option<(String, String)> {
    let bridge = network.own_bridge();
    let remedy = || "choose another address for the guest".to_owned();
    network.singles.iter().find_map(|single| {
        let ip = single.to.addr();
        let mut links = inventory.links.iter();
        if let Some(link) = links.find(|link| link.addresses.iter().any(|net| net.addr() == ip)) {
            return Some((
                format!("{ip} is the host's own, on link `{}`", link.name),
                remedy(),
            ));
        }
        let elsewhere = |link: &String| link != bridge.as_str();
        let mut routes = inventory
            .routes
            .iter()
            .filter(|route| route.to == single.to);
        let link = routes.find_map(|route| route.link.as_ref().filter(|link| elsewhere(link)))?;
        Some((format!("{ip} is routed over link `{link}`"), remedy()))
    })
}

/// The host's own servers: dnsmasq's on the bridges are for guests.
fn strangers<'a>(config: &Config, inventory: &'a Inventory) -> Vec<&'a Listener> {
    let gateways = config.networks.values().flat_map(Network::gateways);
    let gateways: BTreeSet<IpAddr> = gateways.map(|gateway| gateway.addr()).collect();
    let listeners = inventory.listeners.iter();
    let others = listeners.filter(|listener| !gateways.contains(&listener.address));
    others.collect()
}

/// A server of the host's own, whose port a forward is about to take. One that came later finds the port taken.
fn taken_port(
    config: &Config,
    network: &Network,
    inventory: &Inventory,
    strangers: &[&Listener],
) -> Option<(String, String)> {
    let held = inventory.networks.get(&network.name);
    let loaded = held.and_then(|held| held.table.as_ref());
    if loaded.map(|table| &table.rules) == rules::table(config, network).as_ref() {
        return None;
    }
    strangers.iter().find_map(|listener| {
        let Listener {
            protocol,
            address,
            port,
            ..
        } = listener;
        let takes = |forward: &&Forward| forward.takes(*protocol, *address, *port);
        let forward = network.forwards.iter().find(takes)?;
        let cause = format!("a program of the host listens on {protocol} port {port} ({address}), which the forward `{forward}` takes");
        let remedy = "choose another port, or an address of the host's that the program is not bound to";
        Some((cause, remedy.to_owned()))
    })
}

/// Servers of DHCP that let others have its port beside them, or bind it for a link of theirs.
const SHARING: [&str; 3] = ["dnsmasq", "dhcpd", "systemd-network"];

/// A server of DNS or DHCP where the network's dnsmasq is still to find its place.
fn taken_service(network: &Network, inventory: &Inventory) -> Option<(String, String)> {
    let held = inventory.networks.get(&network.name);
    if !network.has_services() || held.is_some_and(|held| held.dnsmasq.is_some()) {
        return None;
    }
    let mut listeners = inventory.listeners.iter();
    let listener = listeners.find(|listener| leaves_none(network, listener))?;
    let Listener {
        protocol,
        address,
        port,
        program,
    } = listener;
    let who = match program {
        Some(program) => format!("`{program}`"),
        None => "a program of the host".to_owned(),
    };
    let cause = format!(
        "{who} listens on {protocol} port {port} ({address}), and leaves none of it to the network's dnsmasq"
    );
    let how = match (program.as_deref(), port) {
        (Some("dnsmasq"), _) => "write bind-dynamic into its configuration".to_owned(),
        (Some("systemd-resolve"), _) => {
            "write addresses of the host's into DNSStubListenerExtra= (resolved.conf(5))".to_owned()
        }
        (_, 53) => "let it listen on addresses of its own alone".to_owned(),
        _ => "let it bind the port for links of its own alone, or stop it".to_owned(),
    };
    let remedy = format!("{how} (`ss -lnp 'sport = :{port}'` shows it)");
    Some((cause, remedy))
}

/// Whether dnsmasq could not have the port of this server beside it: DNS on the bridge's addresses, DHCP on all.
fn leaves_none(network: &Network, listener: &Listener) -> bool {
    // One on :: has IPv4 as well, as a rule.
    let is_everywhere = match listener.address {
        IpAddr::V4(ip) => ip.is_unspecified() && network.ipv4.is_some(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    let shares = listener.program.as_deref();
    let shares = shares.is_none_or(|program| SHARING.contains(&program));
    match (listener.protocol, listener.port) {
        (_, 53) => is_everywhere,
        (Protocol::Udp, 67) => network.ipv4.is_some() && !shares,
        (Protocol::Udp, 547) => network.ipv6.is_some() && !shares,
        _ => false,
    }
}

/// Something that has the name of the network's own bridge, of address `mac`, and is not that.
pub(super) fn taken_bridge(
    network: &Network,
    mac: MacAddr,
    inventory: &Inventory,
) -> Option<(String, String)> {
    let by_another_switch = ovs::clash(network, inventory);
    by_another_switch.or_else(|| match network.switch {
        Switch::Ovs(_) => None,
        Switch::Linux => taken_name(network, own_kind(network), mac, inventory),
    })
}

/// A link that has the name of the network's own and is not that of `kind` and address `mac` that ringtap made.
pub(super) fn taken_name(
    network: &Network,
    kind: &str,
    mac: MacAddr,
    inventory: &Inventory,
) -> Option<(String, String)> {
    let name = network.own_bridge();
    let found = inventory.link(name.as_str())?;
    let held = inventory.networks.get(&network.name);
    let is_it = found.kind.as_deref() == Some(kind) && found.mac == Some(mac);
    if held.is_some_and(|held| held.own_link) && is_it {
        return None;
    }
    Some((
        format!("the host has a link `{name}` that this ringtap did not make"),
        format!("rename the network, or delete the link: ip link delete {name}"),
    ))
}

/// What the host has on links that are not ringtap's.
struct Others<'i> {
    addresses: Vec<(&'i Link, IpNet)>,
    routes: Vec<&'i Route>,
}

impl<'i> Others<'i> {
    /// But for default routes, and what is on the links `ours`.
    fn of(inventory: &'i Inventory, ours: &BTreeSet<String>) -> Self {
        let links = inventory.links.iter();
        let links = links.filter(|link| !link.addresses.is_empty() && !ours.contains(&link.name));
        let addresses = links.flat_map(|link| link.addresses.iter().map(move |net| (link, *net)));
        let is_ours = |route: &&Route| route.link.as_ref().is_some_and(|link| ours.contains(link));
        let routes = inventory.routes.iter();
        let routes = routes.filter(|route| !route.is_default() && !is_ours(route));
        Self {
            addresses: addresses.collect(),
            routes: routes.collect(),
        }
    }
}

/// An address or route of another link that shares addresses with the network or what is behind machines on it.
fn taken_addresses(network: &Network, others: &Others<'_>) -> Option<(String, String)> {
    let prefixes = Family::BOTH.map(|family| network.prefix(family));
    let prefixes = prefixes.into_iter().flatten();
    let own = prefixes.map(|net| (net, format!("choose another subnet than {net}")));
    let behind = network.routes.iter().map(|route| {
        let remedy = format!("leave out the route `{route}`, or what it overlaps");
        (route.to, remedy)
    });
    own.chain(behind).find_map(|(net, remedy)| {
        let mut addresses = others.addresses.iter();
        if let Some((link, address)) = addresses.find(|(_, address)| overlap(net, *address)) {
            let cause = format!("{net} overlaps {address} on link `{}`", link.name);
            return Some((cause, remedy));
        }
        let mut routes = others.routes.iter();
        let route = routes.find(|route| overlap(net, route.to))?;
        let over = match &route.link {
            Some(link) => format!("over link `{link}`"),
            None => "of the host".to_owned(),
        };
        let cause = format!("{net} overlaps the route to {} {over}", route.to);
        Some((cause, remedy))
    })
}
