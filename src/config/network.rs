//! Networks of the file: their types, and how they are read.

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::dhcp::{self, Dhcp};
use super::dns::{self, Dns};
use super::forward::Forward;
use super::guard::Guard;
use super::host_access::{self, HostAccess};
use super::problem::suggest;
use super::reader::{At, Reader, Section};
use super::route::{self, StaticRoute};
use super::switch::{self, Switch};
use super::tenant;
use super::uplink::{self, Uplink};
use super::values::{DhcpRange, Domain, Prefix, Subnet};
use super::{Nic, Read, ReadMap, parse_each, section_name};
use crate::types::{Family, IfName, Mtu, Name, Rate, RateLimit};

/// A network that guests' NICs are plugged into.
///
/// It has a bridge of its own, on which the host is the gateway with the first address of each family, and serves DHCP
/// and DNS: at least one of `ipv4` and `ipv6` is there. Where the host keeps off (`isolated`, `host = false`) both
/// may be missing, and are but what guests' addresses are checked against. On somebody else's bridge both are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its name in the file.
    pub name: Name,
    /// How it meets the world.
    pub mode: Mode,
    /// Whose it is, if its gateway is not the host itself but a router of that tenant's.
    pub tenant: Option<Name>,
    /// What its bridge is.
    pub switch: Switch,
    /// Its IPv4 addresses.
    pub ipv4: Option<Ipv4>,
    /// Its IPv6 addresses.
    pub ipv6: Option<Prefix>,
    /// The domain that guests' names are in; `NAME.internal` unless the file says otherwise.
    pub domain: Domain,
    /// What DHCP gives besides guests' addresses.
    pub dhcp: Dhcp,
    /// What is resolved besides guests' names.
    pub dns: Dns,
    /// What is behind machines on it.
    pub routes: Vec<StaticRoute>,
    /// Single addresses of its guests, beyond its own.
    pub singles: Vec<StaticRoute>,
    /// The link on which the host answers for them, as if they were its own.
    pub proxy: Option<IfName>,
    /// Ports of the host that lead to guests; only on a NAT network.
    pub forwards: Vec<Forward>,
    /// What of the host's own services its guests reach.
    pub host_access: HostAccess,
    /// Whether its guests are kept from each other.
    pub isolate_guests: bool,
    /// Whether its bridge, one of the kernel's, heeds the VLANs of its ports.
    pub vlan_filtering: bool,
    /// The MTU of the bridge, the taps and the guests; where there is none, the kernel's default as far as the uplink has it.
    pub mtu: Option<Mtu>,
    /// How much each NIC on it may move, unless the file says so of the NIC.
    pub nic_rates: Rates,
    /// Which claims of guests are checked, unless the file says so of the NIC.
    pub guard: Guard,
    /// How much may come in by the gateway, to all of its guests together.
    pub rate_in: Option<RateLimit>,
    /// How much may leave by the gateway, of all of its guests together.
    pub rate_out: Option<RateLimit>,
}

/// How much a NIC may move; what there is no limit for is without one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// What the guest receives.
    pub rx: Option<RateLimit>,
    /// What the guest sends.
    pub tx: Option<RateLimit>,
}

impl Rates {
    /// Those in `table`; what is wrong there is noted, and counts as absent.
    pub(super) fn read<'t>(reader: &Reader<'t>, table: &Section<'t>) -> Self {
        Self {
            rx: read_rate(reader, table, "rx-rate"),
            tx: read_rate(reader, table, "tx-rate"),
        }
    }

    /// With those of `other` where it has none.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            rx: self.rx.or(other.rx),
            tx: self.tx.or(other.tx),
        }
    }
}

/// The IPv4 addresses of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4 {
    /// All of them.
    pub subnet: Subnet,
    /// Those that DHCP hands out; all that guests may have unless the file says less.
    pub dhcp: DhcpRange,
}

impl Network {
    /// What the link is called that ringtap makes for the network, if it makes one: a bridge, but for [`Network::has_shim`].
    pub fn own_bridge(&self) -> IfName {
        IfName::derived_from("rt-", &self.name)
    }

    /// The link of the host that NICs are attached to: a bridge, or the uplink of macvtaps.
    pub fn trunk(&self) -> IfName {
        match &self.mode {
            Mode::Bridge {
                bridge: LanBridge::There(bridge),
            } => bridge.clone(),
            Mode::Macvtap { uplink, .. } | Mode::Ipvtap { uplink, .. } => uplink.link(),
            _ => self.own_bridge(),
        }
    }

    /// The link of the host that it leaves by, if the file names one.
    pub fn uplink(&self) -> Option<&Uplink> {
        match &self.mode {
            Mode::Bridge {
                bridge: LanBridge::Over { uplink, .. },
            }
            | Mode::Macvtap { uplink, .. }
            | Mode::Ipvtap { uplink, .. } => Some(uplink),
            _ => None,
        }
    }

    /// Whether ringtap makes a macvlan or ipvlan for it, so that the host and guests on macvtaps or ipvtaps can talk.
    pub fn has_shim(&self) -> bool {
        matches!(
            self.mode,
            Mode::Macvtap { shim: true, .. } | Mode::Ipvtap { shim: true, .. }
        )
    }

    /// Whether its NICs are links of their own on an uplink, and no ports of a bridge.
    pub fn taps_uplink(&self) -> bool {
        self.mode.taps_uplink()
    }

    /// Whether its NICs are ipvtaps, which get what is for their addresses alone.
    pub fn is_told_addresses(&self) -> bool {
        matches!(self.mode, Mode::Ipvtap { .. })
    }

    /// Those addresses of `nic`, which is on it, that nobody leases: its guest must know them.
    pub fn static_addresses(&self, nic: &Nic) -> Vec<IpAddr> {
        match self.is_told_addresses() {
            true => nic.told().collect(),
            false => nic.addresses.clone(),
        }
    }

    /// Whether ringtap makes a bridge for it.
    pub fn has_own_bridge(&self) -> bool {
        self.trunk() == self.own_bridge()
    }

    /// Whether NICs on it can be in VLANs.
    pub fn heeds_vlans(&self) -> bool {
        self.vlan_filtering || self.switch.is_ovs()
    }

    /// Whether its guests are on somebody else's network, and ringtap brings no more than their ports.
    pub fn is_lan(&self) -> bool {
        self.mode.is_lan()
    }

    /// Its addresses of one family.
    pub fn prefix(&self, family: Family) -> Option<IpNet> {
        match family {
            Family::Ipv4 => self.ipv4.map(|ipv4| ipv4.subnet.net().into()),
            Family::Ipv6 => self.ipv6.map(|prefix| prefix.net().into()),
        }
    }

    /// Its addresses of one family and what is behind machines on it, none of them in two.
    pub fn nets(&self, family: Family) -> Vec<IpNet> {
        let routes = self.all_routes().filter(|route| route.family() == family);
        let behind = IpNet::aggregate(&routes.map(|route| route.to).collect());
        self.prefix(family).into_iter().chain(behind).collect()
    }

    /// The host's routes to its guests and over them.
    pub fn all_routes(&self) -> impl Iterator<Item = &StaticRoute> {
        self.routes.iter().chain(&self.singles)
    }

    /// Whether ringtap gives the host addresses on it.
    pub fn has_host(&self) -> bool {
        self.mode.has_host()
    }

    /// Whether ringtap serves DHCP and DNS on it.
    pub fn has_services(&self) -> bool {
        self.has_host() && self.router_of().is_none()
    }

    /// The tenant whose router is all that is on it, if it is such a network.
    pub fn router_of(&self) -> Option<&Name> {
        match &self.mode {
            Mode::Router { tenant } => Some(tenant),
            _ => None,
        }
    }

    /// The host's own addresses on it.
    pub fn gateways(&self) -> Vec<IpNet> {
        let ipv4 = self.ipv4.map(|ipv4| ipv4.subnet.gateway_net().into());
        let ipv6 = self.ipv6.map(|prefix| prefix.gateway_net().into());
        let all = ipv4.into_iter().chain(ipv6);
        all.filter(|_| self.has_host()).collect()
    }
}

/// How a network meets the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Guests share the host's IPv4 address, and with `nat66` its IPv6 address.
    Nat {
        /// Whether IPv6 is translated as well.
        nat66: bool,
    },
    /// Guests are reached at their own addresses, through the host.
    Routed,
    /// Guests reach each other and the host, and nobody else.
    Isolated {
        /// Whether they reach the host.
        host: bool,
    },
    /// As routed, with the firewall left to the admin.
    Open,
    /// Guests are peers on the LAN, by a bridge.
    Bridge {
        /// Whose it is.
        bridge: LanBridge,
    },
    /// Nobody is on it but the router of a tenant: not for a file to say, but of every tenant in it.
    Router {
        /// The tenant.
        tenant: Name,
    },
    /// Guests are peers on the LAN, by macvtaps on an uplink.
    Macvtap {
        /// The uplink.
        uplink: Uplink,
        /// Whom they exchange frames with.
        peers: MacvtapMode,
        /// Whether the host gets a link beside them, to which what it has on the uplink moves.
        shim: bool,
        /// Whether they are made even where the LAN looks as if it took one MAC address alone.
        force: bool,
    },
    /// Guests are peers on the LAN, by ipvtaps on an uplink, whose MAC address all of them have.
    Ipvtap {
        /// The uplink.
        uplink: Uplink,
        /// Whether the host gets a link beside them, to which what it has on the uplink moves.
        shim: bool,
    },
}

/// A bridge on the LAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LanBridge {
    /// One that the host has.
    There(IfName),
    /// One that ringtap makes over an uplink, whose addresses and routes move there.
    Over {
        /// The uplink.
        uplink: Uplink,
        /// Whether it is made even where the LAN looks as if it took one MAC address alone.
        force: bool,
    },
}

/// Whom a macvtap exchanges frames with, besides whoever is beyond the uplink: the kernel's modes of macvlan links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MacvtapMode {
    /// Macvtaps of the same uplink.
    Bridge,
    /// Macvtaps of the same uplink if the switch beyond sends their frames back.
    Vepa,
    /// Nobody.
    Private,
    /// It is the only one, and takes the uplink over.
    Passthru,
}

impl FromStr for MacvtapMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "bridge" => Ok(Self::Bridge),
            "vepa" => Ok(Self::Vepa),
            "private" => Ok(Self::Private),
            "passthru" => Ok(Self::Passthru),
            _ => Err(format!("{text:?} is no mode of macvtaps")),
        }
    }
}

impl Mode {
    /// What the file calls them.
    const NAMES: [&str; 7] = [
        "nat", "routed", "isolated", "open", "bridge", "macvtap", "ipvtap",
    ];

    fn has_host(&self) -> bool {
        *self != Self::Isolated { host: false } && !self.is_lan()
    }

    pub(super) fn is_lan(&self) -> bool {
        matches!(self, Self::Bridge { .. }) || self.taps_uplink()
    }

    fn taps_uplink(&self) -> bool {
        matches!(self, Self::Macvtap { .. } | Self::Ipvtap { .. })
    }
}

/// Every `[networks.NAME]`.
pub(super) fn read_all<'t>(reader: &Reader<'t>, root: &Section<'t>) -> ReadMap<'t, Network> {
    reader
        .tables(root, "networks")
        .into_iter()
        .filter_map(|(name, section)| {
            let name = section_name(reader, root, "networks", &name)?;
            Some((name.clone(), read_network(reader, section, name)))
        })
        .collect()
}

fn read_network<'t>(reader: &Reader<'t>, section: Section<'t>, name: Name) -> Read<'t, Network> {
    let known = [
        "mode",
        "tenant",
        "subnet",
        "ipv6",
        "dhcp",
        "dns",
        "domain",
        "mtu",
        "rx-rate",
        "tx-rate",
        "rate-in",
        "rate-out",
        "host",
        "nat66",
        "forwards",
        "isolate-guests",
        "routes",
        "proxy",
        "bridge",
        "uplink",
        "vlan",
        "vlan-filtering",
        "force",
        "macvtap-mode",
        "shim",
        "switch",
        "datapath",
        "guard",
        "host-access",
    ];
    reader.known_keys(&section, &known);
    let mode = read_mode(reader, &section);
    let switch = switch::read(reader, &section, mode.as_ref());
    let tenant = tenant::read(reader, &section, mode.as_ref(), &switch);
    let subnet = read_net::<Subnet>(reader, &section, "subnet", "192.168.100.0/24");
    let prefix = read_net::<Prefix>(reader, &section, "ipv6", "fd00:100::/64");
    let served = mode.as_ref().is_none_or(Mode::has_host);
    let needs_addresses = served && (mode.is_some() || !section.has("mode"));
    if needs_addresses && subnet.is_none() && prefix.is_none() {
        reader.missing(&section, "subnet", "\"192.168.100.0/24\"");
    }
    if let Some(mode) = mode.as_ref().filter(|_| !served) {
        refuse_services(reader, &section, mode);
    }
    if mode == Some(Mode::Nat { nat66: true }) && prefix.is_none() {
        reader.missing(&section, "ipv6", "\"fd00:100::/64\"");
    }
    let dhcp = dhcp::read(reader, &section, subnet.as_ref().and_then(Option::as_ref));
    let dns = dns::read(reader, &section);
    let domain = reader.parsed::<Domain>(&section, "domain", "write it as \"vm.internal\"");
    let mtu = read_mtu(reader, &section);
    let nic_rates = Rates::read(reader, &section);
    let guard = Guard::read(reader, &section, Guard::default());
    let host_access = host_access::read(reader, &section, mode.as_ref());
    let rate_in = read_gateway_rate(reader, &section, mode.as_ref(), "rate-in");
    let rate_out = read_gateway_rate(reader, &section, mode.as_ref(), "rate-out");
    let truth = |key| reader.boolean(&section, key).is_some_and(|at| at.value);
    let (isolate_guests, vlan_filtering) = (truth("isolate-guests"), truth("vlan-filtering"));
    let apart = match mode {
        Some(Mode::Ipvtap { .. }) => "leave it out",
        _ => "write macvtap-mode = \"private\" instead",
    };
    for (key, there, remedy) in [
        ("isolate-guests", isolate_guests, apart),
        (
            "vlan-filtering",
            vlan_filtering,
            "write vlan = 20 for guests in one VLAN",
        ),
    ] {
        if there && mode.as_ref().is_some_and(Mode::taps_uplink) {
            let cause = "macvtaps and ipvtaps are no ports of a bridge";
            reader.problem(&section.span_of(key), section.key(key), cause, remedy);
        }
    }
    let forwards = parse_each::<Forward>(
        reader,
        &section,
        "forwards",
        "write it as \"tcp:2222 -> web1:22\"",
    );
    let remedy = "write it as \"10.9.0.0/16 via 192.168.100.5\"";
    let routes = parse_each::<StaticRoute>(reader, &section, "routes", remedy);
    let proxy = reader.parsed::<IfName>(&section, "proxy", "name a link of the host");
    let proxy = proxy.map(|proxy| proxy.value);
    // A key that is there and wrong leaves no network; one that is not there leaves none of that family.
    let value = (|| {
        let subnet = subnet.map_or(Some(None), |read| read.map(|at| Some(at.value)))?;
        let (range, dhcp) = dhcp?;
        Some(Network {
            mode: mode?,
            tenant: tenant?,
            switch,
            ipv4: subnet.map(|subnet| Ipv4 {
                subnet,
                dhcp: range.unwrap_or_else(|| subnet.guests()),
            }),
            ipv6: prefix.map_or(Some(None), |read| read.map(|at| Some(at.value)))?,
            domain: match domain {
                Some(domain) => domain.value,
                None => format!("{name}.internal").parse().ok()?,
            },
            dhcp,
            dns: dns?,
            routes: routes?,
            singles: Vec::new(), // guests are read later
            proxy,
            forwards: forwards?,
            host_access,
            isolate_guests,
            vlan_filtering,
            mtu,
            nic_rates,
            guard,
            rate_in,
            rate_out,
            name,
        })
    })();
    if let Some(network) = &value {
        dhcp::check(reader, &section, network);
        route::check(reader, &section, network);
    }
    Read { section, value }
}

fn read_rate<'t>(reader: &Reader<'t>, table: &Section<'t>, key: &str) -> Option<RateLimit> {
    let rate = reader.parsed::<RateLimit>(table, key, "write it as \"100mbit\"")?;
    Some(rate.value)
}

/// A limit that the network's rules keep.
fn read_gateway_rate<'t>(
    reader: &Reader<'t>,
    section: &Section<'t>,
    mode: Option<&Mode>,
    key: &str,
) -> Option<RateLimit> {
    let rate = read_rate(reader, section, key);
    let (cause, remedy) = match mode {
        None | Some(Mode::Nat { .. } | Mode::Routed) => match rate {
            Some(rate) if !is_countable(rate) => (
                "is more than nftables counts",
                "write up to 100gbit, 100mpps and bursts of 4095mb, or leave it out",
            ),
            rate => return rate,
        },
        Some(Mode::Open) => ("an open network has no rules of ringtap's", "leave it out"),
        Some(_) => (
            "nothing of this network passes the host's gateway",
            "leave it out; rx-rate and tx-rate are for each NIC",
        ),
    };
    if section.has(key) {
        reader.problem(&section.span_of(key), section.key(key), cause, remedy);
    }
    None
}

/// Whether nftables can keep the limit: it has 32 bits for a burst, and 64 for what comes in a second times its nanoseconds.
fn is_countable(limit: RateLimit) -> bool {
    let within = |rate: Option<Rate>, most: u64| {
        rate.is_none_or(|rate| rate.a_second.get() <= most && u32::try_from(rate.burst).is_ok())
    };
    within(limit.bits(), 100_000_000_000) && within(limit.packets(), 100_000_000)
}

/// Where the host serves nothing, the file can't say what.
fn refuse_services(reader: &Reader<'_>, section: &Section<'_>, mode: &Mode) {
    let (keys, cause): (&[&str], _) = match mode {
        Mode::Bridge { .. } | Mode::Macvtap { .. } | Mode::Ipvtap { .. } => (
            &["subnet", "ipv6", "dhcp", "dns", "domain", "routes"],
            "addresses, names and routes are the LAN's to give",
        ),
        _ => (
            &["dhcp", "dns", "domain", "routes"],
            "there is no DHCP, no DNS and no gateway where the host keeps off (host = false)",
        ),
    };
    for key in keys.iter().filter(|key| section.has(key)) {
        reader.problem(
            &section.span_of(key),
            section.key(key),
            cause,
            "leave it out",
        );
    }
}

/// The addresses at `key`: none where there is no such key, and none inside where there is no valid value.
fn read_net<T: FromStr<Err: Display>>(
    reader: &Reader<'_>,
    section: &Section<'_>,
    key: &str,
    example: &str,
) -> Option<Option<At<T>>> {
    let text = reader.text(section, key)?;
    let remedy = match text.value.parse::<IpNet>() {
        Ok(net) if net.trunc() != net => format!("write \"{}\"", net.trunc()),
        _ => format!("write it as {example:?}"),
    };
    Some(reader.parse(&text, section.key(key), &remedy))
}

fn read_mode<'t>(reader: &Reader<'t>, section: &Section<'t>) -> Option<Mode> {
    let text = reader.required(section, "mode", "\"nat\"")?;
    let truth = |key| reader.boolean(section, key).map(|truth| truth.value);
    let (host, nat66) = (truth("host"), truth("nat66"));
    let (force, shim) = (truth("force"), truth("shim"));
    let only_for = |key: &str, there: bool, mode: &str| {
        if there && text.value != mode {
            reader.problem(
                &section.span_of(key),
                section.key(key),
                format!("only goes with mode = {mode:?}"),
                "leave it out",
            );
        }
    };
    only_for("host", host.is_some(), "isolated");
    only_for("nat66", nat66.is_some(), "nat");
    only_for("forwards", section.has("forwards"), "nat");
    only_for("bridge", section.has("bridge"), "bridge");
    only_for("macvtap-mode", section.has("macvtap-mode"), "macvtap");
    only_for("proxy", section.has("proxy"), "routed");
    let on_uplinks: &[&str] = &["bridge", "macvtap", "ipvtap"];
    for (key, modes) in [
        ("uplink", on_uplinks),
        ("vlan", on_uplinks),
        ("force", &["bridge", "macvtap"]),
        ("shim", &["macvtap", "ipvtap"]),
    ] {
        if section.has(key) && !modes.contains(&text.value) {
            reader.problem(
                &section.span_of(key),
                section.key(key),
                format!("only goes with mode = {}", alternatives(modes)),
                "leave it out",
            );
        }
    }
    let mode = match text.value {
        "nat" => Mode::Nat {
            nat66: nat66.unwrap_or(false),
        },
        "routed" => Mode::Routed,
        "isolated" => Mode::Isolated {
            host: host.unwrap_or(true),
        },
        "open" => Mode::Open,
        "bridge" => Mode::Bridge {
            bridge: read_lan_bridge(reader, section, force == Some(true))?,
        },
        "ipvtap" => read_ipvtap(reader, section, shim == Some(true))?,
        "macvtap" => read_macvtap(reader, section, shim == Some(true), force == Some(true))?,
        _ => {
            let cause = format!("unknown mode {:?}", text.value);
            let remedy = suggest(text.value, Mode::NAMES);
            reader.problem(&text.span, section.key("mode"), cause, remedy);
            return None;
        }
    };
    Some(mode)
}

/// `names` as a person would list them: `"a", "b" or "c"`.
fn alternatives(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// Either `bridge`, one that is there, or `uplink`, for one to be made over.
fn read_lan_bridge<'t>(
    reader: &Reader<'t>,
    section: &Section<'t>,
    force: bool,
) -> Option<LanBridge> {
    if !section.has("bridge") {
        if !section.has("uplink") {
            reader.missing(section, "uplink", "\"eno1\", or bridge = \"br0\"");
            return None;
        }
        let uplink = uplink::read(reader, section)?;
        return Some(LanBridge::Over { uplink, force });
    }
    for key in ["uplink", "vlan", "force"] {
        if section.has(key) {
            reader.problem(
                &section.span_of(key),
                section.key(key),
                "does not go with a bridge that is there",
                "leave it out, or leave bridge out: ringtap then makes one over the uplink",
            );
        }
    }
    let name = reader.text(section, "bridge")?;
    let bridge = reader.parse(&name, section.key("bridge"), "name a bridge of the host")?;
    Some(LanBridge::There(bridge.value))
}

fn read_macvtap<'t>(
    reader: &Reader<'t>,
    section: &Section<'t>,
    shim: bool,
    force: bool,
) -> Option<Mode> {
    let uplink = uplink::read(reader, section);
    let peers = match reader.text(section, "macvtap-mode") {
        Some(text) => {
            let remedy = suggest(text.value, ["bridge", "vepa", "private", "passthru"]);
            let key = section.key("macvtap-mode");
            reader.parse(&text, key, &remedy)?.value
        }
        None => MacvtapMode::Bridge,
    };
    let uplink = uplink?;
    let useless = match (peers, uplink.vlan) {
        (_, Some(_)) => Some("the host has nothing in the VLAN that could move there"),
        (MacvtapMode::Bridge, None) => None,
        (_, None) => Some("macvtaps reach it in no other mode than \"bridge\""),
    };
    if let Some(cause) = useless.filter(|_| shim) {
        let span = section.span_of("shim");
        reader.problem(&span, section.key("shim"), cause, "leave it out");
    }
    Some(Mode::Macvtap {
        uplink,
        peers,
        shim,
        force,
    })
}

fn read_ipvtap<'t>(reader: &Reader<'t>, section: &Section<'t>, shim: bool) -> Option<Mode> {
    let uplink = uplink::read(reader, section)?;
    if shim && uplink.vlan.is_some() {
        let cause = "the host has nothing in the VLAN that could move there";
        let span = section.span_of("shim");
        reader.problem(&span, section.key("shim"), cause, "leave it out");
    }
    Some(Mode::Ipvtap { uplink, shim })
}

/// The `mtu` of a network or NIC.
pub(super) fn read_mtu(reader: &Reader<'_>, section: &Section<'_>) -> Option<Mtu> {
    let number = reader.integer(section, "mtu")?;
    let mtu = u32::try_from(number.value)
        .ok()
        .and_then(|mtu| Mtu::try_from(mtu).ok());
    if mtu.is_none() {
        reader.problem(
            &number.span,
            section.key("mtu"),
            format!("{} is not an MTU", number.value),
            "write 1280 to 65521 (bytes), or leave it out",
        );
    }
    mtu
}
