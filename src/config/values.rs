//! Values that only the file has: subnets, DHCP ranges, domains, memory sizes. Valid because they exist.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::types::InvalidValue;

/// A network's IPv4 subnet, /8 to /29, written as its network address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet(Ipv4Net);

impl Subnet {
    /// The subnet as a network address and prefix length.
    pub fn net(self) -> Ipv4Net {
        self.0
    }

    /// The host's own address on the network: the first one.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.0.network()) + 1)
    }

    /// The gateway with the subnet's prefix length, as it is put on the bridge.
    pub fn gateway_net(self) -> Ipv4Net {
        // The prefix comes from a valid net, so the fallback is never taken.
        Ipv4Net::new(self.gateway(), self.0.prefix_len()).unwrap_or(self.0)
    }

    /// Every address a guest may have: all but the network's, the gateway's and the broadcast address.
    pub fn guests(self) -> DhcpRange {
        DhcpRange {
            first: Ipv4Addr::from(u32::from(self.gateway()) + 1),
            last: Ipv4Addr::from(u32::from(self.0.broadcast()) - 1),
        }
    }

    /// Why no guest can have `address`, if so.
    pub fn refusal(self, address: Ipv4Addr) -> Option<String> {
        let net = self.0;
        if !net.contains(&address) {
            Some(format!("{address} is outside the subnet {net}"))
        } else if address == self.gateway() {
            Some(format!("{address} is the gateway of {net}"))
        } else if address == net.network() {
            Some(format!("{address} is the network address of {net}"))
        } else if address == net.broadcast() {
            Some(format!("{address} is the broadcast address of {net}"))
        } else {
            None
        }
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net: Ipv4Net = text
            .parse()
            .map_err(|_| format!("{text:?} is not an IPv4 subnet, such as 192.168.100.0/24"))?;
        if !(8..=29).contains(&net.prefix_len()) {
            return Err(format!(
                "a /{} is no size for a network: /8 to /29 are",
                net.prefix_len()
            ));
        }
        if net.addr() != net.network() {
            return Err(format!(
                "{text} has host bits set: the subnet is {}",
                net.trunc()
            ));
        }
        if net.addr().octets()[0] == 0 || net.addr().is_loopback() || net.addr().octets()[0] >= 224
        {
            return Err(format!("{text} is not a range that hosts can have"));
        }
        Ok(Self(net))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A network's IPv6 prefix, /64 to /112, written as its network address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(Ipv6Net);

impl Prefix {
    /// The length that guests need to make addresses of their own (SLAAC, RFC 4862).
    const SLAAC: u8 = 64;

    /// The prefix as a network address and length.
    pub fn net(self) -> Ipv6Net {
        self.0
    }

    /// The host's own address on the network: the first one.
    pub fn gateway(self) -> Ipv6Addr {
        self.nth(1)
    }

    /// The gateway with the prefix's length, as it is put on the bridge.
    pub fn gateway_net(self) -> Ipv6Net {
        // The length comes from a valid net, so the fallback is never taken.
        Ipv6Net::new(self.gateway(), self.0.prefix_len()).unwrap_or(self.0)
    }

    /// The first and the last address that DHCPv6 gives out: those whose last 16 bits alone differ from the prefix's.
    pub fn dhcp(self) -> [Ipv6Addr; 2] {
        [self.nth(2), self.nth(0xffff)]
    }

    /// Whether guests can make addresses of their own.
    pub fn has_slaac(self) -> bool {
        self.0.prefix_len() == Self::SLAAC
    }

    /// Whether it is of fc00::/7 (RFC 4193), which nobody beyond knows a way to.
    pub fn is_unique_local(self) -> bool {
        self.0.addr().is_unique_local()
    }

    /// Why no guest can have `address`, if so.
    pub fn refusal(self, address: Ipv6Addr) -> Option<String> {
        let net = self.0;
        if !net.contains(&address) {
            Some(format!("{address} is outside the prefix {net}"))
        } else if address == self.gateway() {
            Some(format!("{address} is the gateway of {net}"))
        } else if address == net.network() {
            Some(format!(
                "{address} is the routers' anycast address of {net}"
            ))
        } else {
            None
        }
    }

    fn nth(self, number: u128) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.0.network()) + number)
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net: Ipv6Net = text
            .parse()
            .map_err(|_| format!("{text:?} is not an IPv6 prefix, such as fd00:100::/64"))?;
        if !(Self::SLAAC..=112).contains(&net.prefix_len()) {
            return Err(format!(
                "a /{} is no size for a network: /64 to /112 are",
                net.prefix_len()
            ));
        }
        if net.addr() != net.network() {
            return Err(format!(
                "{text} has host bits set: the prefix is {}",
                net.trunc()
            ));
        }
        let global = net.addr().segments()[0] & 0xe000 == 0x2000;
        if !global && !net.addr().is_unique_local() {
            return Err(format!("{text} is not a range that hosts can have"));
        }
        Ok(Self(net))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The addresses that DHCP gives to guests that have none in the file, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DhcpRange {
    /// The first address.
    pub first: Ipv4Addr,
    /// The last address, not below the first.
    pub last: Ipv4Addr,
}

impl DhcpRange {
    /// How many addresses the range has.
    pub fn count(self) -> u32 {
        (u32::from(self.last) - u32::from(self.first)).saturating_add(1)
    }

    /// Whether `address` lies in the range.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }
}

impl FromStr for DhcpRange {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let range = || {
            let (first, last) = text.split_once('-')?;
            Some(Self {
                first: first.trim().parse().ok()?,
                last: last.trim().parse().ok()?,
            })
        };
        range()
            .filter(|range| range.first <= range.last)
            .ok_or_else(|| {
                InvalidValue::new(text, "a range, such as 192.168.100.50-192.168.100.99")
            })
    }
}

/// A DNS domain in lower case, without a dot at its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(String);

impl Domain {
    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Domain {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let label = |label: &str| label.parse::<crate::types::Name>().is_ok();
        if text.len() > 253 || !text.split('.').all(label) {
            return Err(InvalidValue::new(
                text,
                "a DNS domain in lower case, such as vm.internal",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A guest's memory, a whole number of MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Memory(u64);

impl Memory {
    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Memory {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        // 1 TiB: beyond that it is a slip of the keyboard on the hosts ringtap is for.
        parse_size(text, b"MG")
            .filter(|bytes| (1 << 24..=1 << 40).contains(bytes))
            .map(Self)
            .ok_or_else(|| {
                InvalidValue::new(text, "a memory size, such as 512M or 2G (16M to 1024G)")
            })
    }
}

/// The size of a disk, a whole number of MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskSize(u64);

impl DiskSize {
    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for DiskSize {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        parse_size(text, b"MGT")
            .filter(|bytes| (1 << 20..=64 << 40).contains(bytes))
            .map(Self)
            .ok_or_else(|| InvalidValue::new(text, "a size, such as 20G or 1T (1M to 64T)"))
    }
}

/// Bytes, from a whole number and one of these units, each 1024 times the one before.
fn parse_size(text: &str, units: &[u8]) -> Option<u64> {
    let (unit, digits) = text.as_bytes().split_last()?;
    let shift = 20 + 10 * units.iter().position(|it| it == unit)?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    count.checked_mul(1 << shift)
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}M", self.0 >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_gives_its_gateway_and_the_rest_to_guests() {
        let subnet: Subnet = "192.168.100.0/29".parse().unwrap();
        assert_eq!(subnet.gateway_net().to_string(), "192.168.100.1/29");
        assert_eq!(
            subnet.guests(),
            "192.168.100.2-192.168.100.6".parse().unwrap()
        );
        assert_eq!(subnet.guests().count(), 5);
    }

    #[test]
    fn a_prefix_gives_its_first_addresses_and_knows_what_guests_can_make_of_it() {
        let prefix: Prefix = "fd00:66::/64".parse().unwrap();
        assert_eq!(prefix.gateway_net().to_string(), "fd00:66::1/64");
        let [first, last] = prefix.dhcp().map(|ip| ip.to_string());
        assert_eq!((&*first, &*last), ("fd00:66::2", "fd00:66::ffff"));
        assert!(prefix.has_slaac() && prefix.is_unique_local());
        let carved: Prefix = "2001:db8:0:0:5::/112".parse().unwrap();
        assert!(!carved.has_slaac() && !carved.is_unique_local());
        assert_eq!(carved.dhcp()[1].to_string(), "2001:db8::5:0:0:ffff");
        for bad in [
            "fd00::/63",
            "fd00::/113",
            "::1/64",
            "ff02::/64",
            "::ffff:0:0/96",
        ] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn memory_has_units_and_bounds() {
        assert_eq!("2G".parse::<Memory>().unwrap().bytes(), 2 << 30);
        assert_eq!("512M".parse::<Memory>().unwrap().to_string(), "512M");
        for bad in [
            "",
            "G",
            "2",
            "2g",
            "-1G",
            "+1G",
            "0G",
            "2T",
            "99999999999G",
            "8M",
            "é",
        ] {
            assert!(bad.parse::<Memory>().is_err(), "{bad}");
        }
        assert_eq!("2T".parse::<DiskSize>().unwrap().bytes(), 2 << 40);
        assert_eq!("1M".parse::<DiskSize>().unwrap().bytes(), 1 << 20);
        for bad in ["0M", "65T", "1K", "1P", "18446744073709551615T"] {
            assert!(bad.parse::<DiskSize>().is_err(), "{bad}");
        }
    }
}
