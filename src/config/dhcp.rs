//! DHCP of a network: the range, leases of machines that are no guests of the file, options, and for how long.

use std::fmt;
use std::str::FromStr;

use super::addresses::Addresses;
use super::all;
use super::dhcp_option::DhcpOption;
use super::network::Network;
use super::reader::{At, Reader, Section};
use super::values::{DhcpRange, Subnet};
use crate::types::{Family, InvalidValue, MacAddr, Name};

/// What DHCP gives on a network besides its guests' addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dhcp {
    /// Machines that are no guests of the file.
    pub hosts: Vec<StaticLease>,
    /// What else machines are told.
    pub options: Vec<DhcpOption>,
    /// For how long an address is given; dnsmasq's default where there is none.
    pub lease: Option<LeaseTime>,
}

/// A machine that is known by its MAC address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticLease {
    /// By which it is known.
    pub mac: MacAddr,
    /// Its name on the network.
    pub name: Name,
    /// The address DHCP gives it; one of the range where there is none.
    pub ip: Option<std::net::Ipv4Addr>,
    /// The address DHCPv6 gives it; one of its range where there is none.
    pub ipv6: Option<std::net::Ipv6Addr>,
}

impl StaticLease {
    pub(super) fn addresses(&self) -> Addresses {
        Addresses {
            ip: self.ip,
            ipv6: self.ipv6,
        }
    }
}

/// For how long an address is given: `45m`, `12h`, `7d` or `infinite`; two minutes at least, which is dnsmasq's least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseTime(String);

impl FromStr for LeaseTime {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let minutes = || {
            let unit = match text.as_bytes().last()? {
                b'm' => 1,
                b'h' => 60,
                b'd' => 24 * 60,
                _ => return None,
            };
            let count = &text[..text.len() - 1];
            let digits = count.bytes().all(|byte| byte.is_ascii_digit());
            let count: u32 = count.parse().ok().filter(|_| digits)?;
            count.checked_mul(unit)
        };
        // 10 years: beyond that `infinite` is meant.
        let valid = minutes().is_some_and(|minutes| (2..=5_256_000).contains(&minutes));
        if !valid && text != "infinite" {
            let expected = "the time of a lease, such as 45m, 12h, 7d (2m to 3650d) or infinite";
            return Err(InvalidValue::new(text, expected));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for LeaseTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The `dhcp` of `network`, if all of it is valid: the range, and the rest.
pub(super) fn read<'t>(
    reader: &Reader<'t>,
    network: &Section<'t>,
    subnet: Option<&At<Subnet>>,
) -> Option<(Option<DhcpRange>, Dhcp)> {
    let Some(table) = reader.table(network, "dhcp") else {
        return (!network.has("dhcp")).then_some((None, Dhcp::default()));
    };
    reader.known_keys(&table, &["range", "hosts", "options", "lease"]);
    let range = read_range(reader, &table, subnet);
    let hosts = reader.table_list(&table, "hosts");
    let hosts = all(hosts.iter().map(|host| read_lease(reader, host)));
    let options = reader.text_list(&table, "options");
    let options = all(options.iter().enumerate().map(|(index, text)| {
        let place = format!("{}[{index}]", table.key("options"));
        let problem = |(cause, remedy)| reader.problem(&text.span, place, cause, remedy);
        DhcpOption::parse(text.value).map_err(problem).ok()
    }));
    let lease = reader.parsed::<LeaseTime>(&table, "lease", "write it as \"12h\"");
    let dhcp = Dhcp {
        hosts: hosts?,
        options: options?,
        lease: lease.map(|lease| lease.value),
    };
    Some((range, dhcp))
}

fn read_range<'t>(
    reader: &Reader<'t>,
    table: &Section<'t>,
    subnet: Option<&At<Subnet>>,
) -> Option<DhcpRange> {
    let remedy = "write first and last address as \"192.168.100.50-192.168.100.99\"";
    let range = reader.parsed::<DhcpRange>(table, "range", remedy)?;
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

fn read_lease<'t>(reader: &Reader<'t>, table: &Section<'t>) -> Option<StaticLease> {
    reader.known_keys(table, &["mac", "name", "ip", "ipv6"]);
    let mac = reader.required(table, "mac", "\"52:54:00:12:34:56\"");
    let mac = mac.and_then(|text| {
        let remedy = "write it as \"52:54:00:12:34:56\"";
        reader.parse::<MacAddr>(&text, table.key("mac"), remedy)
    });
    // Without a name of the file's it could take a guest's.
    let name = reader.required(table, "name", "\"printer\"");
    let name =
        name.and_then(|text| reader.parse::<Name>(&text, table.key("name"), "choose such a name"));
    let Addresses { ip, ipv6 } = Addresses::read(reader, table);
    Some(StaticLease {
        mac: mac?.value,
        name: name?.value,
        ip,
        ipv6,
    })
}

/// Notes what can't be given on `network`, whose table is `section`.
pub(super) fn check(reader: &Reader<'_>, section: &Section<'_>, network: &Network) {
    let Some(table) = section.table("dhcp") else {
        return;
    };
    for (index, lease) in network.dhcp.hosts.iter().enumerate() {
        if let Some(host) = table.item("hosts", index) {
            lease.addresses().check(reader, &host, network);
        }
    }
    for (index, option) in network.dhcp.options.iter().enumerate() {
        let family = option.family();
        if network.prefix(family).is_none() {
            let cause = format!("network {} has no {family} addresses", network.name);
            let place = format!("{}[{index}]", table.key("options"));
            let remedy = match family {
                Family::Ipv4 => "leave it out, or give the network subnet = \"…\"",
                Family::Ipv6 => "leave it out, or give the network ipv6 = \"…\"",
            };
            reader.problem(&table.span_of_item("options", index), place, cause, remedy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_have_units_and_bounds() {
        for good in ["2m", "45m", "12h", "7d", "3650d", "infinite"] {
            assert_eq!(good.parse::<LeaseTime>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "h",
            "1m",
            "0h",
            "12",
            "12s",
            "-1h",
            "+1h",
            "3651d",
            "99999999d",
            "é",
        ] {
            assert!(bad.parse::<LeaseTime>().is_err(), "{bad}");
        }
    }
}
