//! The file: one TOML text that describes networks and guests, read into values that are valid.
//!
//! [`Config::load`] reads the file and walks its tree by hand (`reader`) rather than through serde, so that
//! every problem is reported at once, each with its line, key, cause and remedy ([`Problems`]). Networks are
//! read first, guests second (their NICs name networks), and what concerns several of them last: overlapping
//! subnets, addresses given twice, link names that collide. A `Config` exists only if there was no problem.
//!
//! Used by the network and the guest half; touches nothing but the one file it is told to read.

mod addresses;
mod cloud_init;
mod dhcp;
mod dhcp_option;
mod disk;
mod dns;
mod forward;
mod given;
mod guard;
mod guest;
mod host;
mod host_access;
mod network;
mod problem;
mod reader;
mod route;
mod switch;
mod tenant;
mod uplink;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;
use toml::de::DeTable;

use crate::types::{Family, IfName, MacAddr, Name};
use addresses::Addresses;
pub use cloud_init::{CloudInit, SshKey, UserData};
pub use dhcp::{Dhcp, LeaseTime, StaticLease};
pub use dhcp_option::DhcpOption;
pub use disk::{Disk, Format, Image};
pub use dns::{Dns, DnsName, Forwarder, Srv, Text};
pub use forward::{Forward, Ports, Protocol, Target};
pub use given::Given;
pub use guard::Guard;
pub use guest::{Accel, Firmware, Guest, Nic, NicVlans, Restart};
pub use host::{BridgeNfCall, HostSettings};
pub use host_access::HostAccess;
pub use network::{Ipv4, LanBridge, MacvtapMode, Mode, Network, Rates};
use problem::suggest;
pub use problem::{Problem, Problems};
use reader::{At, Reader, Section, line_of};
pub use route::StaticRoute;
pub use switch::{Datapath, Switch};
pub use tenant::TenantNet;
pub use uplink::{Base, Bond, BondMode, Uplink};
pub use values::{DhcpRange, DiskSize, Domain, Memory, Prefix, Subnet};

/// The file where the person names none.
pub const USUAL_FILE: &str = "/etc/ringtap.toml";

/// What the file says.
#[derive(Debug, Clone)]
pub struct Config {
    /// The host's own settings.
    pub host: HostSettings,
    /// The networks by name.
    pub networks: BTreeMap<Name, Network>,
    /// The guests by name.
    pub guests: BTreeMap<Name, Guest>,
    file: PathBuf,
    text: String,
}

impl Config {
    /// Reads `file`.
    ///
    /// # Errors
    /// Everything that is wrong with the file, or that it can't be read.
    pub fn load(file: &Path) -> Result<Self, Problems> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            Problems::whole(
                file,
                format!("cannot read the file: {error}"),
                "write one, or name yours with --config FILE".to_owned(),
            )
        })?;
        Self::parse(&text, file)
    }

    /// Reads `text`, which messages call `file`; relative paths in it start at `file`'s directory.
    ///
    /// # Errors
    /// Everything that is wrong with the text.
    pub fn parse(text: &str, file: &Path) -> Result<Self, Problems> {
        let (document, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            return Err(not_toml(text, file, &errors));
        }
        let directory = file.parent().unwrap_or(Path::new(""));
        let reader = Reader::new(text, directory);
        let root = Section::root(&document);
        reader.known_keys(&root, &["host", "networks", "guests"]);
        let host = host::read(&reader, &root);
        let networks = network::read_all(&reader, &root);
        let guests = guest::read_all(&reader, &root, &networks);
        let mut networks = networks;
        check_singles(&reader, &networks, &guests);
        add_singles(&mut networks, &guests);
        check_subnets(&reader, &networks);
        check_machines(&reader, &networks, &guests);
        dns::check(&reader, &networks, &guests);
        check_forwards(&reader, &networks, &guests);
        check_links(&reader, &networks, &guests);
        check_uplinks(&reader, &networks);
        tenant::check(&reader, host.tenant_net, &networks);
        let mut config = Self {
            host,
            networks: valid(networks, |network| network.value),
            guests: valid(guests, |guest| guest.value),
            file: file.to_owned(),
            text: text.to_owned(),
        };
        match reader.into_problems(file) {
            Some(problems) => Err(problems),
            None => {
                tenant::add_routers(&mut config);
                Ok(config)
            }
        }
    }

    /// The text that it was read from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// The network called `name`.
    ///
    /// # Errors
    /// There is none; names the nearest.
    pub fn network(&self, name: &Name) -> Result<&Network, Problems> {
        let known = self.networks.keys();
        self.networks
            .get(name)
            .ok_or_else(|| self.unknown("network", name, known))
    }

    /// The guest called `name`.
    ///
    /// # Errors
    /// There is none; names the nearest.
    pub fn guest(&self, name: &Name) -> Result<&Guest, Problems> {
        let known = self.guests.keys();
        self.guests
            .get(name)
            .ok_or_else(|| self.unknown("guest", name, known))
    }

    /// The addresses that a forward of `network` leads to, one a family at most.
    pub fn targets(&self, network: &Network, forward: &Forward) -> Vec<IpAddr> {
        let all = match &forward.to {
            Target::Address(ip) => vec![*ip],
            Target::Guest(name) => match self.guests.get(name) {
                Some(guest) => fixed_ips(guest, &network.name),
                None => Vec::new(),
            },
        };
        all.into_iter().filter(|ip| forward.suits(*ip)).collect()
    }

    /// The NICs that are on `network`, each with its guest.
    pub fn nics_on(&self, network: &Network) -> impl Iterator<Item = (&Guest, &Nic)> {
        let guests = self.guests.values();
        let all = guests.flat_map(|guest| guest.nics.iter().map(move |nic| (guest, nic)));
        all.filter(|(_, nic)| nic.network == network.name)
    }

    /// Whether a port forward of `network` leads to an address of `family`.
    pub fn has_forwards(&self, network: &Network, family: Family) -> bool {
        let mut targets = network
            .forwards
            .iter()
            .flat_map(|forward| self.targets(network, forward));
        targets.any(|ip| Family::of(ip) == family)
    }

    /// The networks that a person meant by `names`: all, if they named none. A tenant's network brings its router's.
    ///
    /// # Errors
    /// One of them is not in the file.
    pub fn chosen(&self, names: &[Name]) -> Result<BTreeSet<Name>, Problems> {
        if names.is_empty() {
            return Ok(self.networks.keys().cloned().collect());
        }
        let names = names.iter();
        let known = names.map(|name| Ok(self.network(name)?.name.clone()));
        Ok(self.with_routers(known.collect::<Result<_, _>>()?))
    }

    fn unknown<'a>(
        &self,
        kind: &str,
        name: &Name,
        known: impl Iterator<Item = &'a Name>,
    ) -> Problems {
        Problems::whole(
            &self.file,
            format!("no {kind} is called `{name}`"),
            suggest(name.as_str(), known.map(Name::as_str)),
        )
    }
}

/// A network or guest as read: `value` is there only if all of it is valid.
struct Read<'t, T> {
    section: Section<'t>,
    value: Option<T>,
}

type ReadMap<'t, T> = BTreeMap<Name, Read<'t, T>>;

fn valid<T>(read: ReadMap<'_, T>, value: fn(Read<'_, T>) -> Option<T>) -> BTreeMap<Name, T> {
    read.into_iter()
        .filter_map(|(name, read)| Some((name, value(read)?)))
        .collect()
}

/// Each of `read`, if all are valid. All are read even so: every problem is to be noted.
fn all<T>(read: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let read: Vec<Option<T>> = read.collect();
    read.into_iter().collect()
}

/// The texts in the list at `key` as `T`s, if all are valid.
fn parse_each<T: FromStr<Err: Display>>(
    reader: &Reader<'_>,
    section: &Section<'_>,
    key: &str,
    remedy: &str,
) -> Option<Vec<T>> {
    let texts = reader.text_list(section, key);
    all(texts.iter().enumerate().map(|(index, text)| {
        let place = format!("{}[{index}]", section.key(key));
        Some(reader.parse(text, place, remedy)?.value)
    }))
}

fn not_toml(text: &str, file: &Path, errors: &[toml::de::Error]) -> Problems {
    let problem = |error: &toml::de::Error| Problem {
        line: error.span().map(|span| line_of(text, span.start)),
        key: String::new(),
        cause: error.message().to_owned(),
        remedy: "write it as TOML (https://toml.io)".to_owned(),
    };
    Problems::new(file, errors.iter().map(problem).collect())
}

/// A count from 1 to `most`.
fn read_count(reader: &Reader<'_>, number: &At<i64>, key: String, most: u16) -> Option<u16> {
    let count = u16::try_from(number.value)
        .ok()
        .filter(|count| (1..=most).contains(count));
    if count.is_none() {
        reader.problem(
            &number.span,
            key,
            format!("{} is out of range", number.value),
            format!("write 1 to {most}"),
        );
    }
    count
}

/// The name of `[kind.NAME]`, if valid.
fn section_name(
    reader: &Reader<'_>,
    root: &Section<'_>,
    kind: &str,
    name: &At<&str>,
) -> Option<Name> {
    let key = format!("{}.{}", root.key(kind), name.value);
    let name = reader.parse::<Name>(name, key, "choose such a name")?;
    Some(name.value)
}

/// Addresses that are a network's, by its own or by what is behind a machine there.
struct Claim<'a> {
    network: &'a Network,
    net: IpNet,
    /// The route's metric, if it is one.
    metric: Option<u32>,
    place: String,
    span: Range<usize>,
}

fn claims<'a>(read: &'a Read<'_, Network>) -> impl Iterator<Item = Claim<'a>> {
    let Read { section, value } = read;
    value.iter().flat_map(|network| {
        let own = [("subnet", Family::Ipv4), ("ipv6", Family::Ipv6)];
        let own = own.into_iter().filter_map(|(key, family)| {
            Some(Claim {
                network,
                net: network.prefix(family)?,
                metric: None,
                place: section.key(key),
                span: section.span_of(key),
            })
        });
        let routes = network.routes.iter().enumerate();
        own.chain(routes.map(|(index, route)| Claim {
            network,
            net: route.to,
            metric: Some(route.metric),
            place: format!("{}[{index}]", section.key("routes")),
            span: section.span_of_item("routes", index),
        }))
    })
}

impl Claim<'_> {
    /// Whether anybody has a way to both: a tenant's router to what is the tenant's, the host to the others.
    fn meets(&self, other: &Self) -> bool {
        let shows = [self, other].map(|it| it.network.shows_the_host(it.net));
        self.network.tenant == other.network.tenant || shows == [true, true]
    }

    /// Why it can't be beside an earlier one, if so. Of a network's routes one may go a part of the way of another.
    fn refusal(&self, first: &Self) -> Option<(String, &'static str)> {
        let (net, with) = (self.net, first.net);
        let same_network = self.network.name == first.network.name;
        if same_network && self.metric.is_some() && first.metric.is_some() {
            let same = net == with && self.metric == first.metric;
            let cause = format!("the way to {net} is that of {} already", first.place);
            return same.then_some((cause, "leave one out, or give it another metric"));
        }
        if !self.meets(first) {
            return None;
        }
        let cause = format!("{net} overlaps {with} of networks.{}", first.network.name);
        overlap(net, with).then_some((cause, "give each network addresses of its own"))
    }
}

fn check_subnets(reader: &Reader<'_>, networks: &ReadMap<'_, Network>) {
    let mut seen: Vec<Claim<'_>> = Vec::new();
    for claim in networks.values().flat_map(claims) {
        for (cause, remedy) in seen.iter().filter_map(|first| claim.refusal(first)) {
            reader.problem(&claim.span, claim.place.clone(), cause, remedy);
        }
        seen.push(claim);
    }
}

/// A guest's single address is on no network, and nobody else's.
fn check_singles(
    reader: &Reader<'_>,
    networks: &ReadMap<'_, Network>,
    guests: &ReadMap<'_, Guest>,
) {
    let nets: Vec<Claim<'_>> = networks.values().flat_map(claims).collect();
    let mut seen: BTreeMap<IpAddr, String> = BTreeMap::new();
    for read in guests.values() {
        let nics = read.value.iter().flat_map(|guest| &guest.nics);
        for (index, nic) in nics.enumerate() {
            let span = &read.section.span_of_item("nics", index);
            let place = format!("{}[{index}].addresses", read.section.key("nics"));
            for ip in &nic.addresses {
                let within = nets.iter().find(|claim| claim.net.contains(ip));
                if let Some(Claim { net, network, .. }) = within {
                    let cause = format!("{ip} is one of {net} of networks.{}", network.name);
                    let remedy = "write it as the NIC's ip there, or choose another";
                    reader.problem(span, place.clone(), cause, remedy);
                }
                if let Some(first) = seen.insert(*ip, place.clone()) {
                    let cause = format!("{ip} is already an address of {first}");
                    let remedy = "give each NIC addresses of its own";
                    reader.problem(span, place.clone(), cause, remedy);
                }
            }
        }
    }
}

fn add_singles(networks: &mut ReadMap<'_, Network>, guests: &ReadMap<'_, Guest>) {
    let guests = guests.values().filter_map(|read| read.value.as_ref());
    for nic in guests.flat_map(|guest| &guest.nics) {
        let network = networks.get_mut(&nic.network);
        let network = network.and_then(|read| read.value.as_mut());
        if let Some(network) = network.filter(|network| !network.is_lan()) {
            let routes = nic.addresses.iter().map(|ip| StaticRoute::to_guest(*ip));
            network.singles.extend(routes);
        }
    }
}

/// Whether the two have an address in common.
pub fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// A machine as the file knows it, by a guest's NIC or by a static lease.
struct Machine<'a> {
    place: String,
    span: Range<usize>,
    network: &'a Name,
    mac: MacAddr,
    addresses: Addresses,
}

fn nics<'a>(guests: &'a ReadMap<'_, Guest>) -> impl Iterator<Item = Machine<'a>> {
    guests.values().flat_map(|read| {
        let nics = read.value.iter().flat_map(|guest| &guest.nics);
        nics.enumerate().map(|(index, nic)| Machine {
            place: format!("{}[{index}]", read.section.key("nics")),
            span: read.section.span_of_item("nics", index),
            network: &nic.network,
            mac: nic.mac,
            addresses: Addresses {
                ip: nic.ip,
                ipv6: nic.ipv6,
            },
        })
    })
}

fn leases<'a>(networks: &'a ReadMap<'_, Network>) -> impl Iterator<Item = Machine<'a>> {
    networks.values().flat_map(|read| {
        let networks = read.value.iter().zip(read.section.table("dhcp"));
        networks.flat_map(|(network, table)| {
            let leases = network.dhcp.hosts.iter().enumerate();
            leases.map(move |(index, lease)| Machine {
                place: format!("{}[{index}]", table.key("hosts")),
                span: table.span_of_item("hosts", index),
                network: &network.name,
                mac: lease.mac,
                addresses: lease.addresses(),
            })
        })
    })
}

/// No address may be on a network twice. No MAC address may be on two NICs, nor be leased to on a network twice; a machine
/// that is no guest may well have a lease on several.
fn check_machines(
    reader: &Reader<'_>,
    networks: &ReadMap<'_, Network>,
    guests: &ReadMap<'_, Guest>,
) {
    let mut ips: BTreeMap<(&Name, IpAddr), String> = BTreeMap::new();
    let mut macs: BTreeMap<(Option<&Name>, MacAddr), String> = BTreeMap::new();
    let nics = nics(guests).map(|machine| (None, machine));
    let leases = leases(networks).map(|machine| (Some(machine.network), machine));
    for (only_on, machine) in nics.chain(leases) {
        let Machine {
            place,
            span,
            network,
            mac,
            addresses,
        } = machine;
        for (key, ip) in addresses.each() {
            if let Some(first) = ips.insert((network, ip), place.clone()) {
                let cause = format!("{ip} is already the address of {first}");
                let remedy = "give each NIC an address of its own";
                reader.problem(&span, format!("{place}.{key}"), cause, remedy);
            }
        }
        let first = [None, only_on].iter().find_map(|on| macs.get(&(*on, mac)));
        if let Some(first) = first {
            let cause = format!("{mac} is already the MAC address of {first}");
            let remedy = "write a mac = \"52:54:00:…\" that no other NIC has";
            reader.problem(&span, format!("{place}.mac"), cause, remedy);
        }
        macs.insert((only_on, mac), place);
    }
}

/// The addresses that the file gives to a guest on a network, by its first NIC there.
fn fixed_ips(guest: &Guest, network: &Name) -> Vec<IpAddr> {
    let nic = guest.nics.iter().find(|nic| nic.network == *network);
    let ips = nic.map(|nic| [nic.ip.map(IpAddr::V4), nic.ipv6.map(IpAddr::V6)]);
    ips.into_iter().flatten().flatten().collect()
}

/// A forward must lead somewhere on its network, and none may take what another does.
fn check_forwards(
    reader: &Reader<'_>,
    networks: &ReadMap<'_, Network>,
    guests: &ReadMap<'_, Guest>,
) {
    let mut seen: Vec<(&Forward, String)> = Vec::new();
    for read in networks.values() {
        let Some(network) = &read.value else { continue };
        for (index, forward) in network.forwards.iter().enumerate() {
            let place = format!("{}[{index}]", read.section.key("forwards"));
            let span = read.section.span_of_item("forwards", index);
            let trouble = leads_nowhere(network, forward, guests).or_else(|| own_service(forward));
            if let Some((cause, remedy)) = trouble {
                reader.problem(&span, place.clone(), cause, remedy);
            }
            if let Some((_, first)) = seen.iter().find(|(other, _)| other.collides(forward)) {
                let cause = format!("takes a port that {first} takes");
                reader.problem(&span, place.clone(), cause, "choose another port");
            }
            seen.push((forward, place));
        }
    }
}

/// Guests ask the gateway for addresses and names.
fn own_service(forward: &Forward) -> Option<(String, String)> {
    use Protocol::{Tcp, Udp};
    let services = [(Tcp, 53), (Udp, 53), (Udp, 67), (Udp, 547)];
    let everywhere = services
        .iter()
        .find(|(protocol, port)| forward.protocol == *protocol && forward.ports.contain(*port));
    let (protocol, port) = everywhere.filter(|_| forward.address.is_none())?;
    let cause = format!("guests need {protocol} port {port} of the host for DHCP or DNS");
    let remedy = format!("write the address to be forwarded: {protocol}:198.51.100.2:{port} -> …");
    Some((cause, remedy))
}

fn leads_nowhere(
    network: &Network,
    forward: &Forward,
    guests: &ReadMap<'_, Guest>,
) -> Option<(String, String)> {
    let name = match &forward.to {
        Target::Address(ip) => {
            let prefixes = Family::BOTH.map(|family| network.prefix(family));
            let within = prefixes.iter().flatten().any(|net| net.contains(ip));
            let cause = format!("{ip} is not on network {}", network.name);
            return (!within).then(|| (cause, "write an address of the network".to_owned()));
        }
        Target::Guest(name) => name,
    };
    let Some(guest) = guests.get(name) else {
        let known = guests.keys().map(Name::as_str);
        let cause = format!("no guest is called `{name}`");
        return Some((cause, suggest(name.as_str(), known)));
    };
    // A guest with problems of its own has been told of.
    let ips = fixed_ips(guest.value.as_ref()?, &network.name);
    (!ips.iter().any(|ip| forward.suits(*ip))).then(|| {
        let cause = format!(
            "{name} has no address of its own on network {}",
            network.name
        );
        let remedy = "give its NIC there an ip (or ipv6) in the file".to_owned();
        (cause, remedy)
    })
}

/// Long names are shortened with a hash to fit a link name; two of them may meet.
fn check_links(reader: &Reader<'_>, networks: &ReadMap<'_, Network>, guests: &ReadMap<'_, Guest>) {
    let bridges = networks.values().filter_map(|read| {
        let network = read.value.as_ref();
        let network = network.filter(|it| it.has_own_bridge() || it.has_shim())?;
        Some((network.own_bridge(), &read.section))
    });
    let taps = guests.values().flat_map(|read| {
        let guest = read.value.as_ref();
        let count = guest.map_or(0, |guest| guest.nics.len());
        (0..count).filter_map(move |index| Some((guest?.tap(index), &read.section)))
    });
    let mut seen: BTreeMap<IfName, &Section<'_>> = BTreeMap::new();
    for (link, section) in bridges.chain(taps) {
        if let Some(other) = seen.insert(link.clone(), section) {
            reader.problem(
                &section.span,
                section.path.clone(),
                format!(
                    "its link on the host would be `{link}`, as that of {}",
                    other.path
                ),
                "choose a shorter name for one of them",
            );
        }
    }
}

/// A link can be a port of one bridge or bond only, and carries no macvtaps then.
fn check_uplinks(reader: &Reader<'_>, networks: &ReadMap<'_, Network>) {
    let with_uplink = networks.values().filter_map(|read| {
        let network = read.value.as_ref()?;
        Some((&read.section, network, network.uplink()?))
    });
    let mut seen: Vec<(&Network, &Uplink)> = Vec::new();
    for (section, network, uplink) in with_uplink {
        for (other, its) in &seen {
            if let Some((cause, remedy)) = quarrel((network, uplink), (other, its)) {
                reader.problem(
                    &section.span_of("uplink"),
                    section.key("uplink"),
                    cause,
                    remedy,
                );
            }
        }
        seen.push((network, uplink));
    }
}

/// Why two networks can't have these uplinks: cause and remedy.
fn quarrel(one: (&Network, &Uplink), other: (&Network, &Uplink)) -> Option<(String, String)> {
    let ((network, uplink), (other, its)) = (one, other);
    let bonded = |uplink: &Uplink| matches!(uplink.base, Base::Bond(_));
    let share = uplink
        .hardware()
        .iter()
        .find(|link| its.hardware().contains(link));
    if uplink.base != its.base && (bonded(uplink) || bonded(its)) {
        let link = share?;
        let cause = format!(
            "`{link}` is a part of another uplink of networks.{}",
            other.name
        );
        return Some((cause, "write the same uplink for both".to_owned()));
    }
    if uplink.link() == its.link() && network.has_shim() && other.has_shim() {
        let cause = format!("networks.{} has a shim on `{}`", other.name, its.link());
        return Some((cause, "one is enough: leave out the other".to_owned()));
    }
    let bridges = [network, other].map(Network::has_own_bridge);
    let kinds = [network, other].map(Network::is_told_addresses);
    if uplink.link() != its.link() || !bridges.contains(&true) && kinds[0] == kinds[1] {
        return None;
    }
    let cause = format!(
        "`{}` is the uplink of networks.{} too",
        uplink.link(),
        other.name
    );
    let remedy = match bridges {
        [true, true] => format!("write bridge = \"{}\" instead", other.own_bridge()),
        [false, false] => "a link carries macvtaps or ipvtaps: choose one mode for both".to_owned(),
        _ => "a bridge over a link gets all of its frames: choose one mode for both".to_owned(),
    };
    Some((cause, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nets_overlap_whichever_is_larger_and_within_a_family() {
        for (one, other, expected) in [
            ("10.66.0.0/24", "10.66.0.0/24", true),
            ("10.66.0.0/24", "10.66.0.128/25", true),
            ("10.66.0.0/24", "10.0.0.0/8", true),
            ("10.66.0.0/24", "10.66.1.0/24", false),
            ("fd00:66::/64", "fd00:66::5/128", true),
            ("fd00:66::/64", "fd00:67::/64", false),
            ("0.0.0.0/0", "::/0", false),
        ] {
            let [a, b] = [one, other].map(|net| net.parse().unwrap());
            assert_eq!(overlap(a, b), expected, "{one} {other}");
            assert_eq!(overlap(b, a), expected, "{other} {one}");
        }
    }
}
