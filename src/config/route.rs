//! Static routes: what is behind a machine on a network, by which of its addresses.
//!
//! Written as iproute2 writes them: `10.9.0.0/16 via 192.168.100.5`, with `metric 100` at the end if there is another
//! way, and without a length where one address is meant. Single addresses of guests are routes that lead over no machine.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::network::Network;
use super::reader::{Reader, Section};
use crate::types::{Family, serde_as_text};

/// A route of the host to what is on a network or behind a machine there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StaticRoute {
    /// Where it leads.
    pub to: IpNet,
    /// The machine, by an address of the same family on the network; none where the address is a guest's own.
    pub via: Option<IpAddr>,
    /// Of several ways to one place that with the lowest is taken.
    pub metric: u32,
}

serde_as_text!(StaticRoute);

impl StaticRoute {
    /// What a route has that is given no metric, as `ip route` shows it.
    fn usual_metric(family: Family) -> u32 {
        match family {
            Family::Ipv4 => 0,
            Family::Ipv6 => 1024,
        }
    }

    /// The one to a guest's own address.
    pub fn to_guest(ip: IpAddr) -> Self {
        Self {
            to: ip.into(),
            via: None,
            metric: Self::usual_metric(Family::of(ip)),
        }
    }

    /// The family of what it is for.
    pub fn family(&self) -> Family {
        Family::of(self.to.addr())
    }
}

impl FromStr for StaticRoute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let no_route = || format!("{text:?} is not a route");
        let words: Vec<&str> = text.split_whitespace().collect();
        let (to, via, metric) = match words[..] {
            [to] => (to, None, None),
            [to, "via", via] => (to, Some(via), None),
            [to, "via", via, "metric", metric] => (to, Some(via), Some(metric)),
            _ => return Err(no_route()),
        };
        let address = |text: &str| text.parse::<IpAddr>().map_err(|_| no_route());
        let to = match to.parse::<IpNet>() {
            Ok(net) => net,
            Err(_) => address(to)?.into(),
        };
        let via = via.map(address).transpose()?;
        let is_single = to.prefix_len() == to.max_prefix_len();
        if via.is_none() && !is_single {
            return Err(no_route());
        }
        let family = Family::of(to.addr());
        if let Some(via) = via.filter(|via| Family::of(*via) != family) {
            return Err(format!("{to} and {via} are not of one family"));
        }
        if to.trunc() != to {
            return Err(format!(
                "{to} has host bits set: the prefix is {}",
                to.trunc()
            ));
        }
        if !is_everywhere(to) && !is_for_hosts(to) {
            return Err(format!("{to} is not a range that hosts can have"));
        }
        let metric = match metric {
            Some(metric) => metric.parse().map_err(|_| no_route())?,
            None => Self::usual_metric(family),
        };
        // The kernel takes it for none given.
        if metric == 0 && family == Family::Ipv6 {
            return Err("IPv6 has no metric 0".to_owned());
        }
        Ok(Self { to, via, metric })
    }
}

fn is_everywhere(net: IpNet) -> bool {
    net.prefix_len() == 0
}

/// Nothing that is no single machine's.
fn is_for_hosts(net: IpNet) -> bool {
    let (first, last) = (net.network(), net.broadcast());
    let reserved = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets()[0] == 0 || ip.is_loopback() || ip.octets()[0] >= 224,
        IpAddr::V6(ip) => ip.octets()[0] == 0 || ip.is_unicast_link_local() || ip.is_multicast(),
    };
    !reserved(first) && !reserved(last)
}

impl fmt::Display for StaticRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if self.metric != Self::usual_metric(self.family()) {
            write!(f, " metric {}", self.metric)?;
        }
        Ok(())
    }
}

/// Notes each route of `network`, whose table is `section`, that leads by no machine there.
pub(super) fn check(reader: &Reader<'_>, section: &Section<'_>, network: &Network) {
    for (index, route) in network.routes.iter().enumerate() {
        let refused = route.via.map(|via| refusal(network, via));
        let (cause, remedy) = match (network.prefix(route.family()), refused) {
            _ if is_everywhere(route.to) => (
                format!("the way to {} is the host's own", route.to),
                "write what is behind the machine",
            ),
            (_, None) => (
                format!("`{route}` leads over no machine"),
                "write it as \"10.9.0.0/16 via 192.168.100.5\", or give a NIC the address",
            ),
            (None, _) => {
                let family = route.family();
                let cause = format!("network {} has no {family} addresses", network.name);
                (
                    cause,
                    "leave the route out, or give the network such addresses",
                )
            }
            (Some(_), Some(Some(refusal))) => (refusal, "write the address of a machine there"),
            (Some(_), Some(None)) => continue,
        };
        let place = format!("{}[{index}]", section.key("routes"));
        let span = section.span_of_item("routes", index);
        reader.problem(&span, place, cause, remedy);
    }
}

/// Why no machine on `network` can have the address, if so.
fn refusal(network: &Network, ip: IpAddr) -> Option<String> {
    match ip {
        IpAddr::V4(ip) => network.ipv4?.subnet.refusal(ip),
        IpAddr::V6(ip) => network.ipv6?.refusal(ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_print_as_they_parse() {
        for text in [
            "10.9.0.0/16 via 192.168.100.5",
            "10.9.0.0/16 via 192.168.100.5 metric 100",
            "fd00:9::/48 via fd00:100::5",
            "fd00:9::/48 via fd00:100::5 metric 7",
        ] {
            assert_eq!(text.parse::<StaticRoute>().unwrap().to_string(), text);
        }
        for (text, same) in [
            ("10.9.0.7  via 10.1.0.5", "10.9.0.7/32 via 10.1.0.5"),
            (
                "fd00:9::/48 via fd00::5 metric 1024",
                "fd00:9::/48 via fd00::5",
            ),
        ] {
            assert_eq!(text.parse::<StaticRoute>().unwrap().to_string(), same);
        }
    }

    #[test]
    fn what_no_machine_can_be_behind_is_refused() {
        for bad in [
            "",
            "10.9.0.0/16",
            "10.9.0.0/16 dev eth0",
            "10.9.0.1/16 via 10.1.0.5",
            "10.9.0.0/16 via fd00::5",
            "10.9.0.0/16 via 10.1.0.5 metric",
            "10.9.0.0/16 via 10.1.0.5 metric -1",
            "fd00:9::/48 via fd00::5 metric 0",
            "0.0.0.0/1 via 10.1.0.5",
            "128.0.0.0/1 via 10.1.0.5",
            "127.0.0.0/8 via 10.1.0.5",
            "224.0.0.0/4 via 10.1.0.5",
            "fe80::/64 via fd00::5",
        ] {
            assert!(bad.parse::<StaticRoute>().is_err(), "{bad}");
        }
    }
}
