//! Options that DHCP gives to machines, by number or by dnsmasq's names for them (`dnsmasq --help dhcp`, `dhcp6`).
//!
//! Written `ntp-server,192.168.100.1` or `42,192.168.100.1`, for DHCPv6 with `6:` before it. What dnsmasq would refuse is
//! refused here as far as it can be told from the text: a dnsmasq that does not start leaves guests without names.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::problem::suggest;
use crate::types::Family;

/// An option with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DhcpOption {
    family: Family,
    /// A name or number that dnsmasq knows.
    name: String,
    /// What follows it, with the comma; nothing where the option is to be left out of what dnsmasq gives by itself.
    value: String,
}

/// What an option's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Addresses, one or more.
    Addresses,
    /// Anything.
    Other,
    /// What the file says elsewhere: the key.
    Elsewhere(&'static str),
}

use Kind::{Addresses, Elsewhere, Other};

type Known = (u16, &'static str, Kind);

const DHCPV4: &[Known] = &[
    (1, "netmask", Elsewhere("subnet")),
    (2, "time-offset", Other),
    (3, "router", Addresses),
    (6, "dns-server", Addresses),
    (7, "log-server", Addresses),
    (9, "lpr-server", Addresses),
    (13, "boot-file-size", Other),
    (15, "domain-name", Elsewhere("domain")),
    (16, "swap-server", Addresses),
    (17, "root-path", Other),
    (18, "extension-path", Other),
    (19, "ip-forward-enable", Other),
    (20, "non-local-source-routing", Other),
    (21, "policy-filter", Addresses),
    (22, "max-datagram-reassembly", Other),
    (23, "default-ttl", Other),
    (26, "mtu", Elsewhere("mtu")),
    (27, "all-subnets-local", Other),
    (31, "router-discovery", Other),
    (32, "router-solicitation", Addresses),
    (33, "static-route", Addresses),
    (34, "trailer-encapsulation", Other),
    (35, "arp-timeout", Other),
    (36, "ethernet-encap", Other),
    (37, "tcp-ttl", Other),
    (38, "tcp-keepalive", Other),
    (40, "nis-domain", Other),
    (41, "nis-server", Addresses),
    (42, "ntp-server", Addresses),
    (44, "netbios-ns", Addresses),
    (45, "netbios-dd", Addresses),
    (46, "netbios-nodetype", Other),
    (47, "netbios-scope", Other),
    (48, "x-windows-fs", Addresses),
    (49, "x-windows-dm", Addresses),
    (51, "lease-time", Elsewhere("lease")),
    (58, "T1", Other),
    (59, "T2", Other),
    (60, "vendor-class", Other),
    (64, "nis+-domain", Other),
    (65, "nis+-server", Addresses),
    (66, "tftp-server", Other),
    (67, "bootfile-name", Other),
    (68, "mobile-ip-home", Addresses),
    (69, "smtp-server", Addresses),
    (70, "pop3-server", Addresses),
    (71, "nntp-server", Addresses),
    (74, "irc-server", Addresses),
    (77, "user-class", Other),
    (80, "rapid-commit", Other),
    (93, "client-arch", Other),
    (94, "client-interface-id", Other),
    (97, "client-machine-id", Other),
    (100, "posix-timezone", Other),
    (101, "tzdb-timezone", Other),
    (119, "domain-search", Other),
    (120, "sip-server", Other),
    (121, "classless-static-route", Other),
    (125, "vendor-id-encap", Other),
    (150, "tftp-server-address", Addresses),
];

const DHCPV6: &[Known] = &[
    (21, "sip-server-domain", Other),
    (22, "sip-server", Addresses),
    (23, "dns-server", Addresses),
    (24, "domain-search", Other),
    (27, "nis-server", Addresses),
    (28, "nis+-server", Addresses),
    (29, "nis-domain", Other),
    (30, "nis+-domain", Other),
    (31, "sntp-server", Addresses),
    (32, "information-refresh-time", Other),
    (41, "posix-timezone", Other),
    (42, "tzdb-timezone", Other),
    (56, "ntp-server", Addresses),
    (59, "bootfile-url", Other),
    (60, "bootfile-param", Other),
];

impl DhcpOption {
    /// The longest that a packet of DHCPv4 has room for, in bytes.
    const MOST: usize = 255;

    /// Which of the two protocols gives it.
    pub fn family(&self) -> Family {
        self.family
    }

    /// `text` as an option; cause and remedy where it is none.
    pub(super) fn parse(text: &str) -> Result<Self, (String, String)> {
        let (family, option) = match text.strip_prefix("6:") {
            Some(option) => (Family::Ipv6, option),
            None => (Family::Ipv4, text),
        };
        let (name, value) = option.split_at(option.find(',').unwrap_or(option.len()));
        match kind(family, name)? {
            Elsewhere(key) => {
                let cause = format!("{text:?} is for {key} to say");
                return Err((cause, format!("write {key} = … instead")));
            }
            Addresses if !are_addresses(family, value) => {
                let cause = format!("{text:?} does not go on with {family} addresses");
                let remedy = match family {
                    Family::Ipv4 => format!("write it as \"{name},192.168.100.1\""),
                    Family::Ipv6 => format!("write it as \"6:{name},[fd00:100::1]\""),
                };
                return Err((cause, remedy));
            }
            Addresses | Other => {}
        }
        // Nothing that could end dnsmasq's line, or what it takes for this option.
        let plain =
            |b: u8| (b.is_ascii_graphic() || b == b' ') && !matches!(b, b'"' | b'\\' | b'#');
        if value.len() > Self::MOST || !value.bytes().all(plain) {
            let remedy = "write up to 255 printable ASCII characters without \", \\ and #";
            return Err((format!("dnsmasq can't read {text:?}"), remedy.to_owned()));
        }
        Ok(Self {
            family,
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

impl fmt::Display for DhcpOption {
    /// As dnsmasq's `dhcp-option` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbered = self.name.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = match (self.family, numbered) {
            (Family::Ipv4, true) => "",
            (Family::Ipv4, false) => "option:",
            (Family::Ipv6, _) => "option6:",
        };
        write!(f, "{prefix}{}{}", self.name, self.value)
    }
}

/// What the value of the option called `name` is; cause and remedy where there is no such option.
fn kind(family: Family, name: &str) -> Result<Kind, (String, String)> {
    let (known, most) = match family {
        Family::Ipv4 => (DHCPV4, 254),
        Family::Ipv6 => (DHCPV6, u16::MAX),
    };
    let digits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    let number = name.parse::<u16>().ok().filter(|_| digits);
    let found = known
        .iter()
        .find(|(own, called, _)| number == Some(*own) || *called == name);
    match (found, number) {
        (Some((.., kind)), _) => Ok(*kind),
        (None, Some(number)) if (1..=most).contains(&number) => Ok(Other),
        (None, _) => {
            let names = known.iter().map(|(_, called, _)| *called);
            let cause = format!("{name:?} is no option's name, nor a number from 1 to {most}");
            Err((cause, suggest(name, names)))
        }
    }
}

/// Whether `value` is a list of addresses, each after a comma; an empty one keeps dnsmasq's own from being given.
fn are_addresses(family: Family, value: &str) -> bool {
    let is_address = |word: &str| match family {
        Family::Ipv4 => word.parse::<Ipv4Addr>().is_ok(),
        Family::Ipv6 => {
            let inside = word.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
            inside.is_some_and(|inside| inside.parse::<Ipv6Addr>().is_ok())
        }
    };
    value.split(',').skip(1).all(is_address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_what_dnsmasq_reads() {
        for (text, line) in [
            (
                "ntp-server,192.168.100.1",
                "option:ntp-server,192.168.100.1",
            ),
            ("42,10.0.0.1,10.0.0.2", "42,10.0.0.1,10.0.0.2"),
            ("router", "option:router"),
            ("6:ntp-server,[fd00::1]", "option6:ntp-server,[fd00::1]"),
            ("6:99,a", "option6:99,a"),
            ("252,http://wpad/a b.dat", "252,http://wpad/a b.dat"),
        ] {
            assert_eq!(DhcpOption::parse(text).unwrap().to_string(), line);
        }
    }

    #[test]
    fn what_dnsmasq_would_refuse_or_take_for_more_is_refused() {
        for (text, says) in [
            ("", "no option's name"),
            ("ntp-servers,1.1.1.1", "did you mean `ntp-server`?"),
            ("0,1", "no option's name"),
            ("255,1", "no option's name"),
            ("6:70000,1", "no option's name"),
            ("+42,1.1.1.1", "no option's name"),
            ("tag:x,42,1.1.1.1", "no option's name"),
            ("ntp-server,time.example", "IPv4 addresses"),
            ("42,fd00::1", "IPv4 addresses"),
            ("6:ntp-server,fd00::1", "IPv6 addresses"),
            ("mtu,1400", "for mtu to say"),
            ("26,1400", "for mtu to say"),
            ("51,60", "for lease to say"),
            ("252,a\nport=0", "can't read"),
            ("252,a #b", "can't read"),
            ("252,\"a\"", "can't read"),
            (&format!("252,{}", "x".repeat(255)), "can't read"),
        ] {
            let (cause, remedy) = DhcpOption::parse(text).unwrap_err();
            let said = format!("{cause}; {remedy}");
            assert!(said.contains(says), "{text:?}: {said}");
        }
    }

    #[test]
    fn the_tables_are_in_order_and_without_doubles() {
        for known in [DHCPV4, DHCPV6] {
            assert!(known.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
    }
}
