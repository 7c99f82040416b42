//! Tenants: customers whose networks know nothing of each other, so that two of them may have equal subnets.
//!
//! A tenant's networks have a router of their own, and the host has one more network for each tenant, on which that router
//! is alone: [`add_routers`]. To the host it is a network like others, whose one machine shares the host's addresses and is
//! where the tenant's port forwards lead. Its addresses are of [`TenantNet`], one small subnet a tenant, by the tenant's name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::reader::{Reader, Section};
use super::{
    Config, Dhcp, Dns, Forward, Guard, HostAccess, Ipv4, Mode, Network, Prefix, Rates, ReadMap,
    StaticRoute, Subnet, Switch, Target, overlap,
};
use crate::types::{Family, Name, fnv1a};

/// The IPv6 addresses that the routers of tenants have: unique local ones (RFC 4193), which nobody beyond the host sees.
const ROUTERS_IPV6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd72, 0x7467, 0x7470, 0, 0, 0, 0, 0), 48);

/// The IPv4 addresses that the routers of tenants have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenantNet(Ipv4Net);

impl TenantNet {
    /// How large a tenant's part is: the smallest size of a network.
    const PART: u8 = 29;

    /// How many tenants there can be.
    fn parts(self) -> u32 {
        1 << (Self::PART - self.0.prefix_len())
    }

    /// Part `number`, counted from 0, of each family.
    fn part(self, number: u32) -> Option<(Subnet, Prefix)> {
        let first = u32::from(self.0.network()) + (number << (32 - Self::PART));
        let ipv4 = Ipv4Net::new(Ipv4Addr::from(first), Self::PART).ok()?;
        let id = u16::try_from(number).ok()?;
        let first = u128::from(ROUTERS_IPV6.network()) + (u128::from(id) << 64);
        let ipv6 = Ipv6Net::new(first.into(), 64).ok()?;
        Some((
            ipv4.to_string().parse().ok()?,
            ipv6.to_string().parse().ok()?,
        ))
    }

    /// The part of each of `tenants`: by its name, so that it stays the same as others come and go.
    fn parts_of(self, tenants: &BTreeSet<&Name>) -> BTreeMap<Name, (Subnet, Prefix)> {
        let mut taken = BTreeSet::new();
        let parts = u64::from(self.parts());
        let mut of_tenant = |name: &&Name| {
            let first = fnv1a(name.as_str()) % parts;
            let all = (first..parts).chain(0..first);
            let number = all.into_iter().find(|number| taken.insert(*number))?;
            Some(((*name).clone(), self.part(u32::try_from(number).ok()?)?))
        };
        tenants.iter().filter_map(&mut of_tenant).collect()
    }
}

/// What link-local addresses are for (RFC 3927), without the half in which clouds have servers of their own.
impl Default for TenantNet {
    fn default() -> Self {
        Self(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 17))
    }
}

impl FromStr for TenantNet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let subnet: Subnet = text.parse()?;
        let net = subnet.net();
        if !(13..=24).contains(&net.prefix_len()) {
            return Err(format!("{text} is no size for tenants: /13 to /24 are"));
        }
        Ok(Self(net))
    }
}

/// What the router is called on the host by which network of its own.
fn router_name(tenant: &Name) -> Option<Name> {
    format!("tenant-{tenant}").parse().ok()
}

/// The tenant of a network, if it says so; none outside where what it says is wrong.
pub(super) fn read<'t>(
    reader: &Reader<'t>,
    section: &Section<'t>,
    mode: Option<&Mode>,
    switch: &Switch,
) -> Option<Option<Name>> {
    if !section.has("tenant") {
        return Some(None);
    }
    let refuse = |cause: String, remedy: &str| {
        let span = section.span_of("tenant");
        reader.problem(&span, section.key("tenant"), cause, remedy);
    };
    let tenant = reader.parsed::<Name>(section, "tenant", "choose such a name")?;
    let tenant = tenant.value;
    if router_name(&tenant).is_none() {
        refuse(format!("{tenant} is too long"), "choose up to 56 letters");
        return None;
    }
    if switch.is_ovs() {
        let cause = "Open vSwitch has its bridges on the host, and a tenant's are elsewhere";
        refuse(cause.to_owned(), "leave out tenant, or switch");
        return None;
    }
    let (cause, remedy) = match mode {
        None | Some(Mode::Nat { .. } | Mode::Isolated { host: true }) => return Some(Some(tenant)),
        Some(Mode::Isolated { host: false }) => (
            "a network without a gateway meets nobody's",
            "leave out tenant",
        ),
        Some(_) => (
            "only goes with mode = \"nat\" or \"isolated\": others share addresses with the host's neighbours",
            "leave it out",
        ),
    };
    refuse(cause.to_owned(), remedy);
    None
}

/// Adds the networks of the tenants' routers.
pub(super) fn add_routers(config: &mut Config) {
    let tenants = config.networks.values().filter_map(|it| it.tenant.as_ref());
    let parts = config.host.tenant_net.parts_of(&tenants.collect());
    let routers: Vec<Network> = parts
        .into_iter()
        .filter_map(|(tenant, part)| router(config, tenant, part))
        .collect();
    let routers = routers.into_iter().map(|it| (it.name.clone(), it));
    config.networks.extend(routers);
}

fn router(config: &Config, tenant: Name, (subnet, prefix): (Subnet, Prefix)) -> Option<Network> {
    let networks = config.networks_of(&tenant);
    let has = |family| networks.iter().any(|it| it.prefix(family).is_some());
    let router = [router_ipv4(subnet).into(), router_ipv6(prefix).into()];
    let forwards = networks.iter().flat_map(|network| {
        let forwards = network.forwards.iter();
        forwards.flat_map(|forward| {
            let families = config.targets(network, forward);
            let at = families.into_iter().map(Family::of);
            at.filter_map(|family| to_router(forward, family, &router))
        })
    });
    let global = networks.iter().flat_map(|network| global_nets(network));
    let routes = global.map(|to| StaticRoute {
        to: to.into(),
        via: Some(router[1]),
        ..StaticRoute::to_guest(router[1])
    });
    let largest = networks.iter().filter_map(|network| network.mtu);
    Some(Network {
        name: router_name(&tenant)?,
        mode: Mode::Router { tenant },
        tenant: None,
        switch: Switch::Linux,
        ipv4: has(Family::Ipv4).then(|| Ipv4 {
            subnet,
            dhcp: subnet.guests(),
        }),
        ipv6: Some(prefix).filter(|_| has(Family::Ipv6)),
        domain: "internal".parse().ok()?,
        dhcp: Dhcp::default(),
        dns: Dns::default(),
        routes: routes.collect(),
        singles: Vec::new(),
        proxy: None,
        forwards: forwards.collect(),
        host_access: HostAccess::together(networks.iter().map(|it| &it.host_access)),
        isolate_guests: false,
        vlan_filtering: false,
        mtu: largest.max_by_key(|mtu| u32::from(*mtu)),
        nic_rates: Rates::default(),
        guard: Guard::default(),
        rate_in: None,
        rate_out: None,
    })
}

/// `forward` as far as the router, which passes it on to the same port.
fn to_router(forward: &Forward, family: Family, router: &[IpAddr; 2]) -> Option<Forward> {
    let address = router.iter().find(|ip| Family::of(**ip) == family)?;
    Some(Forward {
        to: Target::Address(*address),
        to_ports: forward.ports,
        ..forward.clone()
    })
}

/// What of `network` the host routes to its tenant, since it is translated nowhere.
fn global_nets(network: &Network) -> Vec<Ipv6Net> {
    if network.mode != (Mode::Nat { nat66: false }) {
        return Vec::new();
    }
    let nets = network.nets(Family::Ipv6).into_iter();
    let ipv6 = nets.filter_map(|net| match net {
        IpNet::V6(net) => Some(net),
        IpNet::V4(_) => None,
    });
    ipv6.filter(|net| !net.addr().is_unique_local()).collect()
}

fn router_ipv4(subnet: Subnet) -> Ipv4Addr {
    subnet.guests().first
}

fn router_ipv6(prefix: Prefix) -> Ipv6Addr {
    prefix.dhcp()[0]
}

impl Network {
    /// The addresses of the router on this, its network.
    pub fn router_nets(&self) -> Vec<IpNet> {
        let ipv4 = self.ipv4.map(|Ipv4 { subnet, .. }| {
            let length = subnet.net().prefix_len();
            IpNet::new(router_ipv4(subnet).into(), length)
        });
        let ipv6 = self.ipv6.map(|prefix| {
            let length = prefix.net().prefix_len();
            IpNet::new(router_ipv6(prefix).into(), length)
        });
        ipv4.into_iter().chain(ipv6).flatten().collect()
    }

    /// Whether the host has a way to `net`, one of the network's: what is a tenant's own is behind its router.
    pub(super) fn shows_the_host(&self, net: IpNet) -> bool {
        let global = global_nets(self);
        self.tenant.is_none() || global.iter().any(|own| IpNet::from(*own).contains(&net))
    }
}

impl Config {
    /// The networks of `tenant`, its router's aside.
    pub fn networks_of(&self, tenant: &Name) -> Vec<&Network> {
        let networks = self.networks.values();
        networks
            .filter(|network| network.tenant.as_ref() == Some(tenant))
            .collect()
    }

    /// The network of the router of `tenant`.
    pub fn router_of(&self, tenant: &Name) -> Option<&Network> {
        let mut networks = self.networks.values();
        networks.find(|network| network.router_of() == Some(tenant))
    }

    /// What the file says, as the router of `tenant` has it: its networks alone. To it comes what is forwarded by its own
    /// address alone, whatever address of the host that was sent to.
    pub fn behind_router_of(&self, tenant: &Name) -> Self {
        let mut config = self.clone();
        config
            .networks
            .retain(|_, network| network.tenant.as_ref() == Some(tenant));
        let networks = config.networks.values_mut();
        for forward in networks.flat_map(|network| &mut network.forwards) {
            forward.address = None;
        }
        config
    }

    /// `names` with what belongs to them: to a tenant's network its router, to a router all of its tenant's networks.
    pub fn with_routers(&self, names: BTreeSet<Name>) -> BTreeSet<Name> {
        let mut all = names.clone();
        for network in names.iter().filter_map(|name| self.networks.get(name)) {
            let tenant = network.tenant.as_ref();
            all.extend(
                tenant
                    .and_then(|it| self.router_of(it))
                    .map(|it| it.name.clone()),
            );
            let of_router = network.router_of().map(|tenant| self.networks_of(tenant));
            let of_router = of_router.into_iter().flatten();
            all.extend(of_router.map(|network| network.name.clone()));
        }
        all
    }
}

/// What the routers of tenants need: names and addresses that are free, and each port but once.
pub(super) fn check(reader: &Reader<'_>, net: TenantNet, networks: &ReadMap<'_, Network>) {
    check_addresses(reader, net, networks);
    let with_tenant = networks.values().filter_map(|read| {
        let network = read.value.as_ref()?;
        Some((&read.section, network, network.tenant.as_ref()?))
    });
    let mut seen: Vec<(&Name, &Forward, String)> = Vec::new();
    for (section, network, tenant) in with_tenant {
        let taken = router_name(tenant).filter(|name| networks.contains_key(name));
        if let Some(name) = taken {
            let cause = format!("networks.{name} has the name of this tenant's router");
            let span = section.span_of("tenant");
            reader.problem(&span, section.key("tenant"), cause, "rename one of them");
        }
        for (index, forward) in network.forwards.iter().enumerate() {
            let span = section.span_of_item("forwards", index);
            let place = format!("{}[{index}]", section.key("forwards"));
            let at_router = Forward {
                address: None,
                ..forward.clone()
            };
            let same = |(its, other, _): &&(&Name, &Forward, String)| {
                *its == tenant && at_router.collides(other) && !forward.collides(other)
            };
            if let Some((.., first)) = seen.iter().find(same) {
                let cause = format!(
                    "takes a port that {first} takes at another address, and a tenant's router has but one"
                );
                reader.problem(&span, place.clone(), cause, "choose another port");
            }
            seen.push((tenant, forward, place));
        }
    }
}

fn check_addresses(reader: &Reader<'_>, net: TenantNet, networks: &ReadMap<'_, Network>) {
    let valid = || {
        networks
            .values()
            .filter_map(|read| Some((&read.section, read.value.as_ref()?)))
    };
    let tenants: BTreeSet<&Name> = valid().filter_map(|(_, it)| it.tenant.as_ref()).collect();
    if let Some((section, _)) = valid().find(|(_, network)| network.tenant.is_some()) {
        let (count, parts) = (tenants.len(), net.parts());
        if u32::try_from(count).is_ok_and(|count| count > parts) {
            let cause = format!(
                "the routers of {count} tenants need addresses, and {} is enough for {parts}",
                net.0
            );
            let span = section.span_of("tenant");
            reader.problem(
                &span,
                section.key("tenant"),
                cause,
                "write a larger host.tenant-net",
            );
        }
    } else {
        return;
    }
    let routers = [IpNet::from(net.0), IpNet::from(ROUTERS_IPV6)];
    for (section, network) in valid() {
        for (key, family) in [("subnet", Family::Ipv4), ("ipv6", Family::Ipv6)] {
            let own = network.prefix(family);
            let Some(its) = own.and_then(|own| routers.iter().find(|its| overlap(own, **its)))
            else {
                continue;
            };
            let cause = format!("overlaps {its}, which the routers of tenants have");
            let remedy = "choose another, or write another host.tenant-net";
            reader.problem(&section.span_of(key), section.key(key), cause, remedy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_differ_and_stay_as_others_come() {
        let names: Vec<Name> = (0..200).map(|n| format!("t{n}").parse().unwrap()).collect();
        let net: TenantNet = "10.255.255.0/24".parse().unwrap();
        assert_eq!(net.parts(), 32);
        let all = TenantNet::default().parts_of(&names.iter().collect());
        let subnets: BTreeSet<_> = all.values().map(|(subnet, _)| *subnet).collect();
        assert_eq!(subnets.len(), names.len());
        let few = TenantNet::default().parts_of(&names[..3].iter().collect());
        assert!(few.iter().all(|(name, part)| all[name] == *part));
        let full = net.parts_of(&names[..32].iter().collect());
        assert_eq!(full.len(), 32);
    }
}
