//! What the guest may call itself besides: addresses that DHCP servers give it, and prefixes of which it makes itself addresses
//! because a router says so (SLAAC, RFC 4862), as seen on their way to it. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};

use crate::types::MacAddr;

/// The first bytes of a frame that `may_give` looks at.
pub const GLANCE: usize = 58;

/// The first bytes of a frame that an answer is read from: as many as DHCP's fixed part with the options behind it that come first.
pub const ANSWER: usize = 1024;

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const DHCP: [u8; 4] = [0, 67, 0, 68];
const DHCPV6: [u8; 4] = [2, 35, 2, 34];

/// What is given, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The address, or all addresses of a prefix.
    pub net: IpNet,
    /// How long it may be used, from now on.
    pub time: Duration,
}

/// Whether a frame that begins so could give something: a cheap question, for every frame.
pub fn may_give(glance: &[u8; GLANCE]) -> bool {
    match [glance[12], glance[13]] {
        IPV4 => {
            let ports = 14 + usize::from(glance[14] & 0xf) * 4;
            glance[23] == UDP && glance.get(ports..ports + 4).is_none_or(|it| it == DHCP)
        }
        IPV6 => match glance[20] {
            UDP => glance[54..58] == DHCPV6,
            ICMPV6 => glance[54] == ROUTER_ADVERTISEMENT,
            _ => false,
        },
        _ => false,
    }
}

/// Whether a frame that begins so could be a word of another about the address that a guest is about to take.
pub fn may_contest(glance: &[u8; GLANCE]) -> bool {
    [glance[12], glance[13]] == IPV6
        && glance[20] == ICMPV6
        && (NEIGHBOR_SOLICITATION..=NEIGHBOR_ADVERTISEMENT).contains(&glance[54])
}

/// The address that another says it has, or is about to take itself (RFC 4862 §5.4.3, §5.4.4). What comes from `mac` is no other's.
pub fn contested(frame: &[u8], mac: Option<MacAddr>) -> Option<Ipv6Addr> {
    if !may_contest(frame.first_chunk()?) {
        return None;
    }
    let source = frame.get(22..38)?;
    let others = mac.is_none_or(|mac| frame[6..12] != mac.octets());
    let is_word = frame[54] == NEIGHBOR_ADVERTISEMENT || source == [0; 16];
    let target: [u8; 16] = frame.get(62..78)?.try_into().ok()?;
    (others && is_word).then_some(target.into())
}

/// What a frame gives to the NIC with address `mac`. Without one nobody knows whose a DHCP server's answer is: bridges flood.
pub fn leases(frame: &[u8], mac: Option<MacAddr>) -> Vec<Lease> {
    match frame.get(12..14) {
        Some(kind) if kind == IPV4 => dhcp(frame, mac).into_iter().collect(),
        Some(kind) if kind == IPV6 => match frame.get(20) {
            Some(&UDP) => dhcpv6(frame, mac).unwrap_or_default(),
            Some(&ICMPV6) => advertised(frame),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// A DHCPACK (RFC 2131, RFC 2132).
fn dhcp(frame: &[u8], mac: Option<MacAddr>) -> Option<Lease> {
    const REPLY: u8 = 2;
    const COOKIE: [u8; 4] = [99, 130, 83, 99];
    const LEASE_TIME: u8 = 51;
    const MESSAGE_TYPE: u8 = 53;
    const ACK: [u8; 1] = [5];
    let udp = 14 + usize::from(frame.get(14)? & 0xf) * 4;
    let message = frame.get(udp + 8..)?;
    let is_ours = message.first() == Some(&REPLY) && message.get(28..34)? == mac?.octets();
    let options = message.get(240..)?;
    if !is_ours || message.get(236..240)? != COOKIE {
        return None;
    }
    if option(options, MESSAGE_TYPE)? != ACK {
        return None;
    }
    let address: [u8; 4] = message.get(16..20)?.try_into().ok()?;
    let seconds: [u8; 4] = option(options, LEASE_TIME)?.try_into().ok()?;
    Some(Lease {
        net: IpAddr::from(Ipv4Addr::from(address)).into(),
        time: Duration::from_secs(u32::from_be_bytes(seconds).into()),
    })
}

/// One of DHCP's options.
fn option(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    const PAD: u8 = 0;
    const END: u8 = 255;
    loop {
        match options {
            [PAD, rest @ ..] => options = rest,
            [END, ..] | [] | [_] => return None,
            [code, length, rest @ ..] => {
                let value = rest.get(..usize::from(*length))?;
                if *code == wanted {
                    return Some(value);
                }
                options = &rest[value.len()..];
            }
        }
    }
}

/// The addresses of the associations of a Reply to this NIC (RFC 8415 §18.2.10), which does not name its client's hardware.
fn dhcpv6(frame: &[u8], mac: Option<MacAddr>) -> Option<Vec<Lease>> {
    const REPLY: u8 = 7;
    const IA_NA: u16 = 3;
    const IA_TA: u16 = 4;
    const IAADDR: u16 = 5;
    let message = frame.get(14 + 40 + 8..)?;
    if message.first() != Some(&REPLY) || frame.get(..6)? != mac?.octets() {
        return None;
    }
    let mut leases = Vec::new();
    for (code, association) in options_of_v6(message.get(4..)?) {
        let fixed = match code {
            IA_NA => 12,
            IA_TA => 4,
            _ => continue,
        };
        let addresses = options_of_v6(association.get(fixed..).unwrap_or_default());
        for (_, address) in addresses.filter(|(code, _)| *code == IAADDR) {
            leases.extend(iaaddr(address));
        }
    }
    Some(leases)
}

/// Address, preferred and valid lifetime.
fn iaaddr(option: &[u8]) -> Option<Lease> {
    let address: [u8; 16] = option.get(..16)?.try_into().ok()?;
    let valid: [u8; 4] = option.get(20..24)?.try_into().ok()?;
    Some(Lease {
        net: IpAddr::from(Ipv6Addr::from(address)).into(),
        time: Duration::from_secs(u32::from_be_bytes(valid).into()),
    })
}

/// DHCPv6's options, as far as they are whole.
fn options_of_v6(mut options: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d, rest @ ..] = options else {
            return None;
        };
        let value = rest.get(..usize::from(u16::from_be_bytes([*c, *d])))?;
        options = &rest[value.len()..];
        Some((u16::from_be_bytes([*a, *b]), value))
    })
}

/// The prefixes of a router's advertisement that addresses are made of (RFC 4861 §4.6.2).
fn advertised(frame: &[u8]) -> Vec<Lease> {
    const OPTIONS: usize = 14 + 40 + 16;
    const PREFIX: u8 = 3;
    const AUTONOMOUS: u8 = 0x40;
    let mut leases = Vec::new();
    let mut options = frame.get(OPTIONS..).unwrap_or_default();
    while let [kind, eights, ..] = options {
        let length = usize::from(*eights) * 8;
        let Some(option) = options.get(..length).filter(|option| !option.is_empty()) else {
            break;
        };
        if *kind == PREFIX && option.get(3).is_some_and(|flags| flags & AUTONOMOUS != 0) {
            leases.extend(prefix(option));
        }
        options = &options[option.len()..];
    }
    leases
}

/// One that an interface identifier of 64 bits fits behind: there are no others.
fn prefix(option: &[u8]) -> Option<Lease> {
    let length = *option.get(2)?;
    let valid: [u8; 4] = option.get(4..8)?.try_into().ok()?;
    let address: [u8; 16] = option.get(16..32)?.try_into().ok()?;
    let net = Ipv6Net::new(address.into(), length).ok()?.trunc();
    (length == 64).then_some(Lease {
        net: net.into(),
        time: Duration::from_secs(u32::from_be_bytes(valid).into()),
    })
}
