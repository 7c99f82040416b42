//! Small values that are valid because they exist: parsing is the only way to make one.
//!
//! A leaf: every other module may use it, it uses none of them and does no I/O.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU64;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text is not the value it was meant to be; names the text and what would be valid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{value:?} is not {expected}")]
pub struct InvalidValue {
    value: String,
    expected: &'static str,
}

impl InvalidValue {
    /// Says that `value` should have been `expected` (a noun phrase: "a MAC address, such as …").
    pub fn new(value: impl Into<String>, expected: &'static str) -> Self {
        Self {
            value: value.into(),
            expected,
        }
    }
}

/// An IP family.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    #[default]
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Both, in the order in which they are shown.
    pub const BOTH: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// That of an address.
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

/// A unicast Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// QEMU's and libvirt's prefix for guests and their bridges.
    const PREFIX: [u8; 3] = [0x52, 0x54, 0x00];

    /// A stable address of QEMU's prefix for `seed`, the same on every host and at every start.
    pub fn derived_from(seed: &str) -> Self {
        let hash = fnv1a(seed).to_be_bytes();
        let [a, b, c] = Self::PREFIX;
        Self([a, b, c, hash[5], hash[6], hash[7]])
    }

    /// The address of these bytes, in the order of the wire, if it is a unicast one.
    pub fn from_octets(octets: &[u8]) -> Option<Self> {
        let octets: [u8; 6] = octets.try_into().ok()?;
        let unicast = octets[0] & 1 == 0 && octets != [0; 6];
        unicast.then_some(Self(octets))
    }

    /// The six bytes in the order of the wire.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }

    /// The link-local address that IPv6 makes of it (RFC 4291 appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let words = [[a ^ 2, b], [c, 0xff], [0xfe, d], [e, f]];
        let [a, b, c, d] = words.map(u16::from_be_bytes);
        Ipv6Addr::new(0xfe80, 0, 0, 0, a, b, c, d)
    }
}

impl FromStr for MacAddr {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid =
            || InvalidValue::new(text, "a unicast MAC address, such as 52:54:00:12:34:56");
        let mut octets = [0u8; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let hex = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(hex).ok_or_else(invalid)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        let alone = parts.next().is_none();
        Self::from_octets(&octets)
            .filter(|_| alone)
            .ok_or_else(invalid)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A name the kernel accepts for a link: 1 to 15 bytes, no `/`, no white space, not `.` or `..`.
///
/// Stricter than the kernel in one point: only ASCII graphic characters, and none of `%` and `:`, which
/// the kernel or iproute2 read as something else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

impl IfName {
    /// Longest name in bytes (IFNAMSIZ less the terminating zero).
    pub const MAX: usize = 15;

    /// `prefix` and `name`, shortened with a hash of the whole where it would not fit.
    ///
    /// `prefix` must itself be a valid start of a link name of at most 6 bytes.
    pub fn derived_from(prefix: &'static str, name: &Name) -> Self {
        debug_assert!(prefix.len() <= 6);
        Self::shortened(format!("{prefix}{name}"))
    }

    /// The name of a guest's tap for its NIC number `index`: `tap-GUEST-INDEX`, shortened like the others.
    pub fn for_tap(guest: &Name, index: usize) -> Self {
        Self::shortened(format!("tap-{guest}-{index}"))
    }

    /// The name of the link for VLAN `id` of `link`: `LINK.ID`, shortened like the others.
    pub fn for_vlan(link: &Self, id: VlanId) -> Self {
        Self::shortened(format!("{link}.{id}"))
    }

    /// The name of the bond of `links`: `bond-LINK-LINK…`, shortened like the others.
    pub fn for_bond(links: &[Self]) -> Self {
        let names: Vec<&str> = links.iter().map(Self::as_str).collect();
        Self::shortened(format!("bond-{}", names.join("-")))
    }

    fn shortened(whole: String) -> Self {
        if whole.len() <= Self::MAX {
            return Self(whole);
        }
        let hash = format!("{:04x}", fnv1a(&whole) & 0xffff);
        let kept = Self::MAX - hash.len() - 1;
        Self(format!("{}-{hash}", &whole[..kept]))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let valid = (1..=Self::MAX).contains(&text.len())
            && text != "."
            && text != ".."
            && text
                .bytes()
                .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'));
        if !valid {
            return Err(InvalidValue::new(
                text,
                "a link name: 1 to 15 characters without spaces, '/', ':' or '%'",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a guest or a network: a DNS label in lower case, since guests are found by it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name that is nearest to `text`, if anything of it can be in one.
    pub fn near(text: &str) -> Option<Self> {
        let allowed = |c: char| match c {
            'a'..='z' | '0'..='9' => c,
            _ => '-',
        };
        let whole: String = text.to_ascii_lowercase().chars().map(allowed).collect();
        let whole = whole.trim_matches('-');
        let start = whole.get(..63).unwrap_or(whole); // all of it is ASCII by now
        start.trim_end_matches('-').parse().ok()
    }
}

impl FromStr for Name {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let valid = (1..=63).contains(&text.len())
            && text.bytes().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if !valid {
            return Err(InvalidValue::new(
                text,
                "a name: 1 to 63 of a-z, 0-9 and '-', with no '-' at either end",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How many pairs of receiveq and transmitq a NIC has, 1 to 256 (as many queues as a tap takes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct QueuePairs(u16);

impl From<QueuePairs> for u16 {
    fn from(pairs: QueuePairs) -> Self {
        pairs.0
    }
}

impl QueuePairs {
    /// One pair, what every driver can use.
    pub const ONE: Self = Self(1);

    /// The count.
    pub fn get(self) -> u16 {
        self.0
    }

    /// The count of vrings: a receiveq and a transmitq a pair.
    pub fn vrings(self) -> usize {
        usize::from(self.0) * 2
    }
}

impl TryFrom<u16> for QueuePairs {
    type Error = InvalidValue;

    fn try_from(count: u16) -> Result<Self, InvalidValue> {
        match count {
            1..=256 => Ok(Self(count)),
            _ => Err(InvalidValue::new(
                count.to_string(),
                "a number of queue pairs, 1 to 256",
            )),
        }
    }
}

impl FromStr for QueuePairs {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        text.parse::<u16>()
            .ok()
            .and_then(|count| Self::try_from(count).ok())
            .ok_or_else(|| InvalidValue::new(text, "a number of queue pairs, 1 to 256"))
    }
}

impl fmt::Display for QueuePairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many descriptors a ring may have: a power of two, 64 to 1024.
///
/// 1024 is QEMU's limit, and as many buffers as the kernel takes in one read or write; a driver that accepts
/// less than 64 has no room for a burst. A split ring's size must be a power of two (virtio 1.3 §2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueSize(u16);

impl QueueSize {
    /// The largest.
    pub const MAX: Self = Self(1024);

    /// The count.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for QueueSize {
    type Error = InvalidValue;

    fn try_from(count: u16) -> Result<Self, InvalidValue> {
        if (64..=1024).contains(&count) && count.is_power_of_two() {
            Ok(Self(count))
        } else {
            Err(InvalidValue::new(count.to_string(), QUEUE_SIZE))
        }
    }
}

impl FromStr for QueueSize {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        text.parse::<u16>()
            .ok()
            .and_then(|count| Self::try_from(count).ok())
            .ok_or_else(|| InvalidValue::new(text, QUEUE_SIZE))
    }
}

impl fmt::Display for QueueSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

const QUEUE_SIZE: &str = "a queue size: a power of two, 64 to 1024";

/// The largest IP packet a link carries, in bytes, 1280 to 65521.
///
/// Below 1280 a link can't carry IPv6; above 65521 a frame with its headers does not fit a tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Mtu(u16);

impl Mtu {
    /// The size in bytes.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u32> for Mtu {
    type Error = InvalidValue;

    fn try_from(bytes: u32) -> Result<Self, InvalidValue> {
        u16::try_from(bytes)
            .ok()
            .filter(|bytes| (1280..=65521).contains(bytes))
            .map(Self)
            .ok_or_else(|| InvalidValue::new(bytes.to_string(), "an MTU, 1280 to 65521 bytes"))
    }
}

impl From<Mtu> for u32 {
    fn from(mtu: Mtu) -> Self {
        mtu.0.into()
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A VLAN's id, 1 to 4094 (IEEE 802.1Q; 0 and 4095 are reserved).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct VlanId(u16);

impl VlanId {
    /// The one that bridges put their ports in by themselves (bridge(8), `default_pvid`).
    pub const DEFAULT: Self = Self(1);

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for VlanId {
    type Error = InvalidValue;

    fn try_from(id: u16) -> Result<Self, InvalidValue> {
        match id {
            1..=4094 => Ok(Self(id)),
            _ => Err(InvalidValue::new(id.to_string(), "a VLAN id, 1 to 4094")),
        }
    }
}

impl From<VlanId> for u16 {
    fn from(id: VlanId) -> Self {
        id.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

const RATE: &str = "a rate: bit, kbit, mbit or gbit a second, pps, kpps or mpps, and bursts in b, kb, mb or p \
     (packets), such as 100mbit or 1gbit,50kpps or 100mbit,burst=256kb";

/// A limit of one direction: bits a second, packets a second, or both.
///
/// Written as iproute2 writes rates and sizes: `100mbit`, `50kpps`, `100mbit,50kpps`, each once and in any order,
/// with `burst=256kb` for the bits and `burst=100p` for the packets. Rates count in thousands, sizes in 1024s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Bits a second, and the burst in bytes.
    bits: Option<(NonZeroU64, Option<NonZeroU64>)>,
    /// Packets a second, and the burst in packets.
    packets: Option<(NonZeroU64, Option<NonZeroU64>)>,
}

/// A rate with its burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bits or packets a second.
    pub a_second: NonZeroU64,
    /// Bytes or packets that may come at once.
    pub burst: u64,
}

impl RateLimit {
    /// The least default burst: a GSO frame, and the packets of a burst of the rings.
    const LEAST_BYTES: u64 = 64 << 10;
    const LEAST_PACKETS: u64 = 64;

    /// A default burst is what passes in a fiftieth of a second: more than a busy host is late.
    const BURSTS_A_SECOND: u64 = 50;

    /// The limit in bits a second, its burst in bytes.
    pub fn bits(self) -> Option<Rate> {
        let burst =
            |rate: NonZeroU64| (rate.get() / 8 / Self::BURSTS_A_SECOND).max(Self::LEAST_BYTES);
        Self::with_burst(self.bits, burst)
    }

    /// The limit in packets a second.
    pub fn packets(self) -> Option<Rate> {
        let burst =
            |rate: NonZeroU64| (rate.get() / Self::BURSTS_A_SECOND).max(Self::LEAST_PACKETS);
        Self::with_burst(self.packets, burst)
    }

    fn with_burst(
        limit: Option<(NonZeroU64, Option<NonZeroU64>)>,
        default: impl Fn(NonZeroU64) -> u64,
    ) -> Option<Rate> {
        let (a_second, burst) = limit?;
        let burst = burst.map_or_else(|| default(a_second), NonZeroU64::get);
        Some(Rate { a_second, burst })
    }
}

const BITS: &[(&str, u64)] = &[
    ("gbit", 1_000_000_000),
    ("mbit", 1_000_000),
    ("kbit", 1000),
    ("bit", 1),
];
const PACKETS: &[(&str, u64)] = &[("mpps", 1_000_000), ("kpps", 1000), ("pps", 1)];
const BYTES: &[(&str, u64)] = &[("mb", 1 << 20), ("kb", 1 << 10), ("b", 1)];
const COUNT: &[(&str, u64)] = &[("p", 1)];

impl FromStr for RateLimit {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid = || InvalidValue::new(text, RATE);
        let (mut bits, mut packets, mut bytes, mut count) = (None, None, None, None);
        for word in text.split(',') {
            let (place, value) = if let Some(burst) = word.strip_prefix("burst=") {
                match (quantity(burst, BYTES), quantity(burst, COUNT)) {
                    (Some(value), _) => (&mut bytes, value),
                    (None, Some(value)) => (&mut count, value),
                    (None, None) => return Err(invalid()),
                }
            } else {
                match (quantity(word, BITS), quantity(word, PACKETS)) {
                    (Some(value), _) => (&mut bits, value),
                    (None, Some(value)) => (&mut packets, value),
                    (None, None) => return Err(invalid()),
                }
            };
            if place.replace(value).is_some() {
                return Err(invalid());
            }
        }
        let burst_of_nothing =
            (bytes.is_some() && bits.is_none()) || (count.is_some() && packets.is_none());
        if burst_of_nothing {
            return Err(invalid());
        }
        Ok(Self {
            bits: bits.map(|rate| (rate, bytes)),
            packets: packets.map(|rate| (rate, count)),
        })
    }
}

/// A whole number with one of these units.
fn quantity(text: &str, units: &[(&str, u64)]) -> Option<NonZeroU64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    NonZeroU64::new(number.parse::<u64>().ok()?.checked_mul(*factor)?)
}

/// The number with the largest unit that gives it without a fraction.
fn in_units(value: NonZeroU64, units: &[(&str, u64)]) -> String {
    let unit = units.iter().find(|(_, factor)| value.get() % factor == 0);
    let (name, factor) = unit.unwrap_or(&("", 1));
    format!("{}{name}", value.get() / factor)
}

impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [(self.bits, BITS, BYTES), (self.packets, PACKETS, COUNT)];
        let mut words = Vec::new();
        for (limit, units, burst_units) in parts {
            let Some((rate, burst)) = limit else { continue };
            words.push(in_units(rate, units));
            words.extend(burst.map(|burst| format!("burst={}", in_units(burst, burst_units))));
        }
        f.write_str(&words.join(","))
    }
}

/// Values that go through serde as the text they print and parse.
macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <String as ::serde::Deserialize>::deserialize(deserializer)?
                    .parse()
                    .map_err(::serde::de::Error::custom)
            }
        }
    )*};
}

pub(crate) use serde_as_text;

serde_as_text!(MacAddr, IfName, Name);

/// 64-bit FNV-1a: names need a hash that stays the same over releases, which std's does not promise.
pub fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_print_as_they_parse() {
        let text = "52:54:00:12:34:ab";
        assert_eq!(text.parse::<MacAddr>().unwrap().to_string(), text);
    }

    #[test]
    fn multicast_zero_short_and_long_mac_addresses_are_refused() {
        for text in [
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:0:12:34:56",
            "+2:54:00:12:34:56",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn derived_mac_addresses_are_stable_and_differ() {
        let web1 = MacAddr::derived_from("web1/0");
        assert_eq!(web1, MacAddr::derived_from("web1/0"));
        assert_ne!(web1, MacAddr::derived_from("web1/1"));
        assert_eq!(web1.octets()[..3], [0x52, 0x54, 0x00]);
    }

    #[test]
    fn link_names_have_the_kernels_limits() {
        for good in ["eno1", "rt-default", "a23456789012345", "eth0.20"] {
            assert!(good.parse::<IfName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a234567890123456",
            "a b",
            "a/b",
            "tap%d",
            "eth0:1",
            "tüp",
        ] {
            assert!(bad.parse::<IfName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn long_link_names_are_shortened_and_stay_apart() {
        let derive = |name: &str| IfName::derived_from("rt-", &name.parse().unwrap());
        assert_eq!(derive("default").as_str(), "rt-default");
        let (a, b) = (derive("customer-network-a"), derive("customer-network-b"));
        assert_eq!(a.as_str().len(), IfName::MAX);
        assert_ne!(a, b);
    }

    #[test]
    fn names_are_dns_labels() {
        for good in ["web1", "a", "a-b"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "Web1", "a.b", "a_b", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
        let near = |text: &str| Name::near(text).map(|name| name.to_string());
        assert_eq!(near("Old Disk_2.").as_deref(), Some("old-disk-2"));
        assert_eq!(near(&"é9é".repeat(40)).map(|name| name.len()), Some(61));
        assert_eq!(near("--"), None);
    }

    #[test]
    fn taps_of_long_guest_names_fit_and_stay_apart() {
        let guest = "x".repeat(63).parse().unwrap();
        let (a, b) = (IfName::for_tap(&guest, 0), IfName::for_tap(&guest, 1));
        assert_eq!(a.as_str().len(), IfName::MAX);
        assert_ne!(a, b);
        let web1 = "web1".parse().unwrap();
        assert_eq!(IfName::for_tap(&web1, 0).as_str(), "tap-web1-0");
    }

    #[test]
    fn mtus_have_bounds() {
        assert_eq!(Mtu::try_from(1500).unwrap().get(), 1500);
        for bad in [0, 1279, 65522, 65536 + 1500] {
            assert!(Mtu::try_from(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn vlan_ids_have_bounds() {
        assert_eq!(VlanId::try_from(4094).unwrap().get(), 4094);
        for bad in [0, 4095] {
            assert!(VlanId::try_from(bad).is_err(), "{bad}");
        }
        let eno1 = "eno1".parse().unwrap();
        let tagged = IfName::for_vlan(&eno1, VlanId(20));
        assert_eq!(tagged.as_str(), "eno1.20");
    }

    #[test]
    fn queue_sizes_are_powers_of_two() {
        assert_eq!("256".parse::<QueueSize>().unwrap().get(), 256);
        for bad in ["32", "96", "2048", "0", "65536"] {
            assert!(bad.parse::<QueueSize>().is_err(), "{bad}");
        }
    }

    fn limit(text: &str) -> RateLimit {
        text.parse().unwrap()
    }

    #[test]
    fn rates_print_as_they_parse() {
        for text in [
            "100mbit",
            "50kpps",
            "1gbit,burst=256kb,50kpps,burst=100p",
            "1001bit,3pps",
            "8kbit,burst=1b",
        ] {
            assert_eq!(limit(text).to_string(), text);
        }
        assert_eq!(limit("1000kbit"), limit("1mbit"));
        assert_eq!(
            limit("burst=1mb,50kpps,1gbit"),
            limit("1gbit,50kpps,burst=1024kb")
        );
    }

    #[test]
    fn what_is_no_rate_is_refused_with_the_form() {
        for text in [
            "",
            "100",
            "mbit",
            "0mbit",
            "1mbit,",
            "1mbit,2mbit",
            "1mbps",
            "-1mbit",
            "1.5gbit",
            "burst=1kb",
            "1mbit,burst=10p",
            "10pps,burst=1kb",
            "1mbit,burst=0b",
            "99999999999999999999gbit",
            "9999999999999gbit",
            "1mbit,burst=1kb,burst=2kb",
        ] {
            let error = text.parse::<RateLimit>().expect_err(text).to_string();
            assert!(error.contains("100mbit,burst=256kb"), "{error}");
        }
    }

    #[test]
    fn a_burst_is_a_fiftieth_of_a_second_and_a_gso_frame_at_least() {
        let bits = |text| limit(text).bits().map(|rate| rate.burst);
        assert_eq!(bits("1gbit"), Some(2_500_000));
        assert_eq!(bits("1mbit"), Some(64 << 10));
        assert_eq!(bits("1mbit,burst=10b"), Some(10));
        assert_eq!(bits("50kpps"), None);
        let packets = |text| limit(text).packets().map(|rate| rate.burst);
        assert_eq!(packets("50kpps"), Some(1000));
        assert_eq!(packets("1pps"), Some(64));
        assert_eq!(packets("1gbit"), None);
    }

    #[test]
    fn queue_pairs_have_bounds() {
        assert_eq!("4".parse::<QueuePairs>().unwrap().vrings(), 8);
        for bad in ["0", "257", "-1", "two"] {
            assert!(bad.parse::<QueuePairs>().is_err(), "{bad}");
        }
    }
}
