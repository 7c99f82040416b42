//! Tenants: each has a namespace that is its router, as a host of its own. What is planned for networks on a host is planned
//! there for the tenant's, by what the namespace has.
//!
//! On the host the router is a machine on a network of its own ([`Mode::Router`](crate::config::Mode)), at the end of a
//! cable. This file has what comes between: the cable's other end, by which the router leaves.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::clash::{self, Clash};
use super::link_step::{Kind, LinkStep};
use super::step::Step;
use super::{DEFAULT_MTU, Owner, Planned, Remark, dnsmasq, mtu, side_by_side};
use crate::config::{Config, Network, StaticRoute};
use crate::network::inventory::{BRIDGE_NF_CALL, Inventory, Link, forwarding_key};
use crate::types::{Family, IfName, Name};

/// What the router calls the link by which it leaves.
const UPLINK: &str = "uplink";

/// How the names of tenants' namespaces begin.
pub const NAMESPACE_PREFIX: &str = "rt-";

/// The namespace of `tenant`.
pub fn namespace(tenant: &Name) -> String {
    format!("{NAMESPACE_PREFIX}{tenant}")
}

/// `commands` that are for the namespace of `tenant`, as they are typed on the host. Files are everybody's.
pub(super) fn commands_within(tenant: &Name, commands: &str) -> String {
    let namespace = namespace(tenant);
    let command = |line: &str| {
        let (program, rest) = line.split_once(' ').unwrap_or((line, ""));
        match program {
            "ip" | "bridge" => format!("{program} -n {namespace} {rest}"),
            "nft" | "sysctl" | "dnsmasq" => format!("ip netns exec {namespace} {line}"),
            _ => line.to_owned(),
        }
    };
    let lines: Vec<String> = commands.lines().map(command).collect();
    lines.join("\n")
}

/// The cable to the router whose network `network` is, if it is one; the host's end is the network's own link.
pub(super) fn cable(network: &Network) -> Option<Kind> {
    Some(Kind::Veth {
        peer: uplink()?,
        namespace: namespace(network.router_of()?),
    })
}

/// The steps to a namespace for the router whose network `network` is. The host's end of a cable to one that is gone goes,
/// which it does by itself only once nothing runs there any more.
pub(super) fn namespace_steps(network: &Network, inventory: &Inventory) -> Vec<Step> {
    let missing = network.router_of().map(namespace);
    let missing = missing.filter(|name| !inventory.namespaces.contains(name));
    let Some((name, kind)) = missing.zip(cable(network)) else {
        return Vec::new();
    };
    let link = network.own_bridge();
    let mac = Some(super::bridge::bridge_mac(network));
    let end = inventory.link(link.as_str());
    let end = end.map(|_| LinkStep::Delete { link, kind, mac }.into());
    end.into_iter()
        .chain([Step::AddNamespace { name }])
        .collect()
}

/// A namespace of another's with the name of the router's.
pub(super) fn taken_namespace(
    network: &Network,
    inventory: &Inventory,
) -> Option<(String, String)> {
    let tenant = network.router_of()?;
    let name = namespace(tenant);
    let own = inventory.networks.contains_key(&network.name);
    (!own && inventory.namespaces.contains(&name)).then(|| {
        let cause =
            format!("the host has a network namespace `{name}` that this ringtap did not make");
        let remedy = format!("rename the tenant, or delete it: ip netns delete {name}");
        (cause, remedy)
    })
}

/// A tenant as its router sees it.
pub(super) struct View<'a> {
    tenant: Name,
    /// The network of the router on the host.
    router: &'a Network,
    /// The tenant's networks, and which of them are meant.
    config: Config,
    chosen: BTreeSet<Name>,
    /// What the namespace has, with the uplink as it is to be.
    inventory: Inventory,
    /// The uplink as it is.
    uplink: Link,
}

/// The tenants of `networks`, with those of their networks that are among them.
pub(super) fn views<'a>(
    config: &'a Config,
    networks: &[&Network],
    host: &Inventory,
) -> Vec<View<'a>> {
    let mut chosen: BTreeMap<&Name, BTreeSet<Name>> = BTreeMap::new();
    for network in networks {
        if let Some(tenant) = network.tenant.as_ref().or(network.router_of()) {
            let names = chosen.entry(tenant).or_default();
            names.insert(network.name.clone());
        }
    }
    let chosen = chosen.into_iter();
    let views = chosen.filter_map(|(tenant, chosen)| View::of(config, tenant, chosen, host));
    views.collect()
}

impl<'a> View<'a> {
    fn of(
        config: &'a Config,
        tenant: &Name,
        chosen: BTreeSet<Name>,
        host: &Inventory,
    ) -> Option<Self> {
        let router = config.router_of(tenant)?;
        let there = host.tenants.get(tenant).cloned();
        let mut inventory = there.unwrap_or_else(|| empty_namespace(host));
        let uplink = match inventory.link(UPLINK) {
            Some(link) => link.clone(),
            None => Link::new(UPLINK, DEFAULT_MTU),
        };
        inventory.links.retain(|link| link.name != UPLINK);
        inventory.links.push(Link {
            mtu: mtu::of(config, router, host),
            default_route: true,
            ..uplink.clone()
        });
        Some(Self {
            tenant: tenant.clone(),
            router,
            config: config.behind_router_of(tenant),
            chosen,
            inventory,
            uplink,
        })
    }

    fn networks(&self) -> Vec<&Network> {
        super::of(&self.config, &self.chosen)
    }

    /// What stands in the way of the tenant's networks behind the router.
    pub(super) fn clashes(&self) -> Vec<Clash> {
        clash::clashes(&self.config, &self.networks(), &self.inventory)
    }

    /// The steps in the namespace: first the way out, then networks as on a host.
    pub(super) fn steps(&self) -> Vec<Planned> {
        let all = Owner::Tenant(self.tenant.clone());
        let mut planned = Planned::all(&all, self.uplink_steps());
        let networks = self.networks();
        planned.extend(side_by_side(&self.config, &networks, &self.inventory, &all));
        for planned in &mut planned {
            planned.tenant = Some(self.tenant.clone());
        }
        planned
    }

    fn uplink_steps(&self) -> Vec<Step> {
        let Some((uplink, lo)) = uplink().zip("lo".parse::<IfName>().ok()) else {
            return Vec::new();
        };
        let mut steps = Vec::new();
        let down = |link: &IfName| !self.inventory.link(link.as_str()).is_some_and(|it| it.up);
        if down(&lo) {
            steps.push(LinkStep::SetUp { link: lo });
        }
        let (mtu, was) = (mtu_of(&self.inventory), self.uplink.mtu);
        if mtu != was {
            let link = uplink.clone();
            steps.push(LinkStep::SetMtu { link, mtu, was });
        }
        let there = &self.uplink.addresses;
        let missing = self.router.router_nets().into_iter();
        steps.extend(missing.filter(|it| !there.contains(it)).map(|address| {
            let link = uplink.clone();
            LinkStep::AddAddress { link, address }
        }));
        if down(&uplink) {
            steps.push(LinkStep::SetUp {
                link: uplink.clone(),
            });
        }
        let routes = self.router.gateways().into_iter().map(default_route);
        let missing = routes.filter(|route| !self.inventory.has(route, &uplink));
        steps.extend(missing.map(|route| {
            let link = uplink.clone();
            LinkStep::AddRoute { link, route }
        }));
        steps.into_iter().map(Step::from).collect()
    }

    /// What a person should know of the tenant's networks behind the router.
    pub(super) fn remarks(&self) -> Vec<Remark> {
        let mut networks = self.networks().into_iter();
        let nobody_to_ask =
            self.inventory.resolv_conf.is_none() && networks.any(dnsmasq::asks_the_hosts_servers);
        let text = "guests of this tenant get no answer for names from outside: every server of /etc/resolv.conf \
                    is on the host's own loopback, where a router can't ask; write forwarders in dns";
        let remark = nobody_to_ask.then(|| Remark {
            network: Some(self.router.name.clone()),
            text: text.to_owned(),
        });
        remark.into_iter().collect()
    }
}

fn uplink() -> Option<IfName> {
    UPLINK.parse().ok()
}

fn mtu_of(inventory: &Inventory) -> u32 {
    let uplink = inventory.link(UPLINK);
    uplink.map_or(DEFAULT_MTU, |link| link.mtu)
}

/// Over the host, whose address on the router's network is `gateway`.
fn default_route(gateway: IpNet) -> StaticRoute {
    let everywhere = match gateway {
        IpNet::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpNet::V6(_) => IpNet::V6(Ipv6Net::default()),
    };
    StaticRoute {
        to: everywhere,
        via: Some(gateway.addr()),
        ..StaticRoute::to_guest(gateway.addr())
    }
}

/// What a namespace has that is not there yet: it forwards nothing, and shows bridged frames to iptables if the kernel can.
fn empty_namespace(host: &Inventory) -> Inventory {
    let forwarding = Family::BOTH.map(|family| (forwarding_key(family), "0"));
    let bridged = BRIDGE_NF_CALL.map(|key| (key, "1"));
    let sysctls = forwarding.into_iter().chain(bridged);
    let sysctls = sysctls.filter(|(key, _)| host.sysctls.contains_key(*key));
    Inventory {
        run_dir: host.run_dir.clone(),
        links: vec![Link::new("lo", 65536)],
        sysctls: sysctls
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        resolv_conf: host.resolv_conf.clone(),
        ..Inventory::default()
    }
}
