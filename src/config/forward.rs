//! Port forwards: what is sent to a port of the host goes to a guest.
//!
//! Written `tcp:2222 -> web1:22`, with the host's address before the port if not every address is meant, ranges as `5000-5009`, and
//! IPv6 addresses in brackets.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::types::Name;

/// A port forward of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// What is forwarded.
    pub protocol: Protocol,
    /// The host's address; all of the host's where there is none.
    pub address: Option<IpAddr>,
    /// The host's ports.
    pub ports: Ports,
    /// Where to.
    pub to: Target,
    /// The target's ports, as many as the host's.
    pub to_ports: Ports,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Ports one after another, both ends included; at least one, and never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The first port.
    pub first: u16,
    /// The last port, not below the first.
    pub last: u16,
}

impl Ports {
    /// Whether `port` is one of them.
    pub fn contain(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// How many.
    pub fn count(self) -> u16 {
        self.last - self.first + 1
    }

    /// Whether the two have a port in common.
    pub fn overlap(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Whom a forward leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A guest, at the addresses that the file gives it.
    Guest(Name),
    /// An address of the network.
    Address(IpAddr),
}

impl Forward {
    /// Whether it can lead to `ip`: an address of the host has a family, and packets keep theirs.
    pub fn suits(&self, ip: IpAddr) -> bool {
        self.address
            .is_none_or(|address| address.is_ipv4() == ip.is_ipv4())
    }

    /// Whether a packet for a server with `port` at `address`, on this host, would be taken.
    pub fn takes(&self, protocol: Protocol, address: IpAddr, port: u16) -> bool {
        let address = address.to_canonical();
        let one_address = self
            .address
            .is_none_or(|own| own == address || address.is_unspecified());
        self.protocol == protocol && one_address && self.ports.contain(port)
    }

    /// Whether a packet could be meant by both.
    pub fn collides(&self, other: &Self) -> bool {
        let one_address = match (self.address, other.address) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        self.protocol == other.protocol && one_address && self.ports.overlap(other.ports)
    }
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| format!("{text:?} is not a port forward"))
    }
}

fn parse(text: &str) -> Option<Forward> {
    let (from, to) = text.split_once("->")?;
    let (protocol, from) = from.trim().split_once(':')?;
    let (address, ports) = match from.rsplit_once(':') {
        Some((address, ports)) => (Some(unbracketed(address).parse().ok()?), ports),
        None => (None, from),
    };
    let ports: Ports = ports.parse().ok()?;
    let to = to.trim();
    // A port after the target's last colon, unless that is one of an address's own.
    let (target, to_ports) = match to.rsplit_once(':') {
        Some((target, to_ports)) if !to.ends_with(']') => (target, to_ports.parse().ok()?),
        _ => (to, ports),
    };
    let target = match unbracketed(target).parse() {
        Ok(address) => Target::Address(address),
        Err(_) => Target::Guest(target.parse().ok()?),
    };
    let same_count = to_ports.count() == ports.count();
    same_count.then_some(Forward {
        protocol: protocol.parse().ok()?,
        address,
        ports,
        to: target,
        to_ports,
    })
}

fn unbracketed(text: &str) -> &str {
    let inside = text.strip_prefix('[');
    inside
        .and_then(|inside| inside.strip_suffix(']'))
        .unwrap_or(text)
}

impl FromStr for Protocol {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(()),
        }
    }
}

impl FromStr for Ports {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
        let ends = port(first).zip(port(last));
        let (first, last) = ends.filter(|(first, last)| first <= last).ok_or(())?;
        Ok(Self { first, last })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count() {
            1 => write!(f, "{}", self.first),
            _ => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest(name) => name.fmt(f),
            Self::Address(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Address(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = match self.address {
            Some(IpAddr::V4(ip)) => format!("{ip}:"),
            Some(IpAddr::V6(ip)) => format!("[{ip}]:"),
            None => String::new(),
        };
        write!(
            f,
            "{}:{address}{} -> {}:{}",
            self.protocol, self.ports, self.to, self.to_ports
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_written_as_they_are_read() {
        for (text, shown) in [
            ("tcp:2222 -> web1:22", "tcp:2222 -> web1:22"),
            ("udp:53->web1", "udp:53 -> web1:53"),
            (
                "tcp:5000-5009 -> 10.0.0.2",
                "tcp:5000-5009 -> 10.0.0.2:5000-5009",
            ),
            (
                "tcp:198.51.100.2:80 -> web1:8080",
                "tcp:198.51.100.2:80 -> web1:8080",
            ),
            (
                "tcp:[2001:db8::2]:80 -> [fd00::5]:81",
                "tcp:[2001:db8::2]:80 -> [fd00::5]:81",
            ),
            ("tcp:80 -> [fd00::5]", "tcp:80 -> [fd00::5]:80"),
            ("udp:1-3 -> web1:11-13", "udp:1-3 -> web1:11-13"),
        ] {
            assert_eq!(
                text.parse::<Forward>().unwrap().to_string(),
                shown,
                "{text}"
            );
        }
        for bad in [
            "2222 -> web1:22",
            "sctp:1 -> web1",
            "tcp:0 -> web1",
            "tcp:70000 -> web1",
            "tcp:9-5 -> web1",
            "tcp:1-2 -> web1:1-3",
            "tcp:80 web1:80",
            "tcp:nowhere:80 -> web1",
            "tcp:80 -> ",
            "tcp:80 -> web1:",
        ] {
            assert!(bad.parse::<Forward>().is_err(), "{bad}");
        }
    }

    #[test]
    fn forwards_collide_where_a_packet_could_be_meant_by_both() {
        let collide = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| text.parse::<Forward>().unwrap());
            assert_eq!(one.collides(&other), other.collides(&one));
            one.collides(&other)
        };
        assert!(collide("tcp:80 -> a", "tcp:70-90 -> b"));
        assert!(collide("tcp:80 -> a", "tcp:10.0.0.1:80 -> b"));
        assert!(!collide("tcp:80 -> a", "udp:80 -> b"));
        assert!(!collide("tcp:80 -> a", "tcp:81-90 -> b"));
        assert!(!collide("tcp:10.0.0.2:80 -> a", "tcp:10.0.0.1:80 -> b"));
    }
}
