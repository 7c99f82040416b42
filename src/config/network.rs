//! Networks of the file: their types, and how they are read.

use std::str::FromStr;

use super::problem::suggest;
use super::reader::{At, Reader, Section};
use super::values::{DhcpRange, Domain, Subnet};
use super::{Read, ReadMap, section_name};
use crate::types::{IfName, Mtu, Name};

/// A network that guests' NICs are plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its name in the file.
    pub name: Name,
    /// How it meets the world.
    pub mode: Mode,
    /// Its IPv4 addresses; the gateway is the first.
    pub subnet: Subnet,
    /// The addresses that DHCP hands out; all that guests may have unless the file says less.
    pub dhcp: DhcpRange,
    /// The domain that guests' names are in; `NAME.internal` unless the file says otherwise.
    pub domain: Domain,
    /// The MTU of the bridge, the taps and the guests; the kernel's default where there is none.
    pub mtu: Option<Mtu>,
}

impl Network {
    /// The name of the network's bridge on the host.
    pub fn bridge(&self) -> IfName {
        IfName::derived_from("rt-", &self.name)
    }
}

/// How a network meets the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Guests share the host's address.
    Nat,
}

impl Mode {
    /// What the file calls modes that exist.
    const SUPPORTED: [&str; 1] = ["nat"];
    /// What the file will call those to come: refused, but known not to be a slip of the keyboard.
    const PLANNED: [&str; 5] = ["bridge", "routed", "isolated", "open", "macvtap"];
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "nat" => Ok(Self::Nat),
            _ if Self::PLANNED.contains(&text) => {
                Err(format!("mode {text:?} is not supported yet"))
            }
            _ => Err(format!("unknown mode {text:?}")),
        }
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
    reader.known_keys(&section, &["mode", "subnet", "dhcp", "domain", "mtu"]);
    let mode = reader
        .required(&section, "mode", "\"nat\"")
        .and_then(|text| read_mode(reader, &section, &text));
    let subnet = reader
        .required(&section, "subnet", "\"192.168.100.0/24\"")
        .and_then(|text| {
            let remedy = match text.value.parse::<ipnet::Ipv4Net>() {
                Ok(net) if net.trunc() != net => format!("write \"{}\"", net.trunc()),
                _ => "write it as \"192.168.100.0/24\"".to_owned(),
            };
            reader.parse::<Subnet>(&text, section.key("subnet"), &remedy)
        });
    let dhcp = read_dhcp(reader, &section, subnet.as_ref());
    let domain = reader.parsed::<Domain>(&section, "domain", "write it as \"vm.internal\"");
    let mtu = reader
        .integer(&section, "mtu")
        .and_then(|number| read_mtu(reader, &section, &number));
    let value = mode.zip(subnet).and_then(|(mode, subnet)| {
        let subnet = subnet.value;
        Some(Network {
            mode,
            subnet,
            dhcp: dhcp.unwrap_or_else(|| subnet.guests()),
            domain: match domain {
                Some(domain) => domain.value,
                None => format!("{name}.internal").parse().ok()?,
            },
            mtu,
            name,
        })
    });
    Read { section, value }
}

fn read_mode<'t>(reader: &Reader<'t>, section: &Section<'t>, text: &At<&str>) -> Option<Mode> {
    let remedy = if Mode::PLANNED.contains(&text.value) {
        format!("supported: {}", Mode::SUPPORTED.join(", "))
    } else {
        let known = Mode::SUPPORTED.iter().chain(&Mode::PLANNED).copied();
        suggest(text.value, known)
    };
    let mode = reader.parse(text, section.key("mode"), &remedy)?;
    Some(mode.value)
}

fn read_dhcp<'t>(
    reader: &Reader<'t>,
    section: &Section<'t>,
    subnet: Option<&At<Subnet>>,
) -> Option<DhcpRange> {
    let table = reader.table(section, "dhcp")?;
    reader.known_keys(&table, &["range"]);
    let remedy = "write first and last address as \"192.168.100.50-192.168.100.99\"";
    let range = reader.parsed::<DhcpRange>(&table, "range", remedy)?;
    let guests = subnet?.value.guests();
    for end in [range.value.first, range.value.last] {
        if let Some(refusal) = subnet?.value.refusal(end) {
            reader.problem(
                &range.span,
                table.key("range"),
                refusal,
                format!("stay within {}-{}", guests.first, guests.last),
            );
            return None;
        }
    }
    Some(range.value)
}

fn read_mtu<'t>(reader: &Reader<'t>, section: &Section<'t>, number: &At<i64>) -> Option<Mtu> {
    let mtu = u32::try_from(number.value)
        .ok()
        .and_then(|mtu| Mtu::try_from(mtu).ok());
    if mtu.is_none() {
        reader.problem(
            &number.span,
            section.key("mtu"),
            format!("{} is not an MTU", number.value),
            "write 1280 to 65521 (bytes), or leave it out for 1500",
        );
    }
    mtu
}
