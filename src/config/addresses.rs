//! Addresses that the file gives to machines: how they are read, and checked against the network they are on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::network::Network;
use super::reader::{At, Reader, Section};

/// What a machine on a network may have, at the keys `ip` and `ipv6`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Addresses {
    pub ip: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
}

impl Addresses {
    /// Those in `table`; what is wrong there is noted, and counts as absent.
    pub(super) fn read(reader: &Reader<'_>, table: &Section<'_>) -> Self {
        let text = |key| Some((reader.text(table, key)?, table.key(key)));
        Self {
            ip: text("ip").and_then(|(text, key)| {
                parse(reader, &text, key, "an IPv4 address", "192.168.100.10")
            }),
            ipv6: text("ipv6").and_then(|(text, key)| {
                parse(reader, &text, key, "an IPv6 address", "fd00:100::10")
            }),
        }
    }

    /// Each with its key.
    pub(super) fn each(self) -> impl Iterator<Item = (&'static str, IpAddr)> {
        let ip = self.ip.map(|ip| ("ip", IpAddr::V4(ip)));
        let ipv6 = self.ipv6.map(|ip| ("ipv6", IpAddr::V6(ip)));
        ip.into_iter().chain(ipv6)
    }

    /// Notes what keeps a machine on `network` from having them, at `table`.
    pub(super) fn check(self, reader: &Reader<'_>, table: &Section<'_>, network: &Network) {
        let problems = [
            ("ip", self.ip.and_then(|ip| refuse_ip(ip, network))),
            ("ipv6", self.ipv6.and_then(|ip| refuse_ipv6(ip, network))),
        ];
        for (key, problem) in problems {
            if let Some((cause, remedy)) = problem {
                reader.problem(&table.span_of(key), table.key(key), cause, remedy);
            }
        }
    }
}

/// `text` as an address that is `kind`, if valid.
pub(super) fn parse<T: FromStr>(
    reader: &Reader<'_>,
    text: &At<&str>,
    key: String,
    kind: &str,
    example: &str,
) -> Option<T> {
    let value = text.value.parse().ok();
    if value.is_none() {
        let cause = format!("{:?} is not {kind}", text.value);
        let remedy = format!("write it as {example:?}");
        reader.problem(&text.span, key, cause, remedy);
    }
    value
}

fn refuse_ip(ip: Ipv4Addr, network: &Network) -> Option<(String, String)> {
    let Some(ipv4) = network.ipv4 else {
        let cause = format!("network {} has no IPv4 addresses", network.name);
        return Some((cause, no_such_addresses(network, "subnet")));
    };
    let guests = ipv4.subnet.guests();
    let remedy = format!("write one of {}-{}", guests.first, guests.last);
    Some((ipv4.subnet.refusal(ip)?, remedy))
}

fn refuse_ipv6(ip: Ipv6Addr, network: &Network) -> Option<(String, String)> {
    let Some(prefix) = network.ipv6 else {
        let cause = format!("network {} has no IPv6 addresses", network.name);
        return Some((cause, no_such_addresses(network, "ipv6")));
    };
    Some((
        prefix.refusal(ip)?,
        format!("write another one of {prefix}"),
    ))
}

/// What to do about an address that its network does not have because it lacks `key`.
pub(super) fn no_such_addresses(network: &Network, key: &str) -> String {
    match network.is_lan() {
        true => "leave it out: the LAN gives it; what the guest gives itself goes into addresses"
            .to_owned(),
        false => format!("give the network {key} = \"…\", or leave the address out"),
    }
}
