//! DNS of a network: the records that the file gives, and whom dnsmasq asks for what it does not know.
//!
//! A name of one label is in the network's domain, and so is one whose other labels are a service's: `db` is
//! `db.vm.internal`, and `_sip._tcp` is `_sip._tcp.vm.internal`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::addresses;
use super::network::{Mode, Network};
use super::problem::suggest;
use super::reader::{Reader, Section};
use super::values::Domain;
use super::{Guest, ReadMap, all, parse_each};
use crate::types::InvalidValue;

/// What dnsmasq answers on a network besides the names of the machines there, and whom it asks for the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Names with their addresses.
    pub hosts: BTreeMap<DnsName, Vec<IpAddr>>,
    /// Other names of machines on the network, or of `hosts`.
    pub cname: BTreeMap<DnsName, DnsName>,
    /// Names with what is said of them, each a TXT record.
    pub txt: BTreeMap<DnsName, Vec<Text>>,
    /// Where services are.
    pub srv: Vec<Srv>,
    /// Whom dnsmasq asks. Without one for all names those are whom the host asks.
    pub forwarders: Vec<Forwarder>,
}

/// A name of a record, in lower case and without a dot at its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DnsName(String);

impl DnsName {
    /// The whole name on a network of `domain`.
    pub fn within(&self, domain: &Domain) -> String {
        match self.labels_of_hosts().count() {
            0 | 1 => format!("{self}.{domain}"),
            _ => self.0.clone(),
        }
    }

    /// Whether it begins as that of a service: `_sip._tcp`.
    fn is_of_service(&self) -> bool {
        self.0.split('.').count() >= self.labels_of_hosts().count() + 2
    }

    fn labels_of_hosts(&self) -> impl Iterator<Item = &str> {
        self.0.split('.').skip_while(|label| label.starts_with('_'))
    }
}

impl FromStr for DnsName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let inner =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() > 253 || !text.split('.').all(label) {
            let expected = "a DNS name in lower case, such as db or db.vm.internal";
            return Err(InvalidValue::new(text, expected));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text of a TXT record: printable ASCII. dnsmasq cuts it into the strings of 255 bytes that such a record has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text(String);

impl Text {
    /// With a name of any length, what dnsmasq reads as one line (1024 bytes).
    const MOST: usize = 700;

    /// The text in quotes, as dnsmasq's configuration has it.
    pub fn quoted(&self) -> String {
        format!("\"{}\"", escaped(&self.0))
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

impl FromStr for Text {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let printable = text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        if !printable || !(1..=Self::MOST).contains(&escaped(text).len()) {
            let expected = "1 to 700 printable ASCII characters, of which \" and \\ count twice";
            return Err(InvalidValue::new(text, expected));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Where a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srv {
    /// Service and protocol, such as `_sip._tcp`, and the domain if it is another than the network's.
    pub service: DnsName,
    /// The machine that has it.
    pub target: DnsName,
    /// Its port there.
    pub port: u16,
    /// Those with the lowest are tried first.
    pub priority: u16,
    /// The share of clients among those of one priority.
    pub weight: u16,
}

/// Whom dnsmasq asks: `198.51.100.53` for all names, `corp.example: 10.1.1.53` for those of one domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarder {
    /// The domain; all where there is none.
    pub domain: Option<Domain>,
    /// The server.
    pub address: IpAddr,
}

impl FromStr for Forwarder {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let of_domain = || {
            let (domain, address) = text.split_once(':')?;
            Some(Self {
                domain: Some(domain.trim().parse().ok()?),
                address: address.trim().parse().ok()?,
            })
        };
        match text.trim().parse() {
            Ok(address) => Ok(Self {
                domain: None,
                address,
            }),
            Err(_) => of_domain().ok_or_else(|| {
                InvalidValue::new(text, "the address of a DNS server, after a domain or not")
            }),
        }
    }
}

/// The `dns` of `network`, if all of it is valid.
pub(super) fn read<'t>(reader: &Reader<'t>, network: &Section<'t>) -> Option<Dns> {
    let Some(table) = reader.table(network, "dns") else {
        return (!network.has("dns")).then(Dns::default);
    };
    reader.known_keys(&table, &["hosts", "cname", "txt", "srv", "forwarders"]);
    let hosts = named(reader, &table, "hosts", addresses);
    let cname = named(reader, &table, "cname", |reader, names, key| {
        Some(reader.parsed::<DnsName>(names, key, NAME)?.value)
    });
    let txt = named(reader, &table, "txt", |reader, names, key| {
        parse_each::<Text>(reader, names, key, "write it as [\"v=spf1 -all\"]")
    });
    let services = reader.table_list(&table, "srv");
    let srv = all(services.iter().map(|service| read_srv(reader, service)));
    let remedy = "write it as \"198.51.100.53\", or \"corp.example: 10.1.1.53\" for one domain";
    let forwarders = parse_each::<Forwarder>(reader, &table, "forwarders", remedy);
    Some(Dns {
        hosts: hosts?,
        cname: cname?,
        txt: txt?,
        srv: srv?,
        forwarders: forwarders?,
    })
}

const NAME: &str = "write one such as \"db\" or \"db.vm.internal\"";

/// The table at `key`, whose keys are names, with the value that `read` gives of each.
fn named<'t, T>(
    reader: &Reader<'t>,
    table: &Section<'t>,
    key: &str,
    read: impl Fn(&Reader<'t>, &Section<'t>, &str) -> Option<T>,
) -> Option<BTreeMap<DnsName, T>> {
    let Some(names) = reader.table(table, key) else {
        return (!table.has(key)).then(BTreeMap::new);
    };
    let entries = all(names.names().into_iter().map(|name| {
        let value = read(reader, &names, name.value);
        let name = reader.parse::<DnsName>(&name, names.key(name.value), NAME);
        Some((name?.value, value?))
    }));
    Some(entries?.into_iter().collect())
}

fn addresses<'t>(reader: &Reader<'t>, names: &Section<'t>, key: &str) -> Option<Vec<IpAddr>> {
    let texts = reader.text_list(names, key);
    all(texts.iter().enumerate().map(|(index, text)| {
        let place = format!("{}[{index}]", names.key(key));
        addresses::parse(reader, text, place, "an address", "192.168.100.20")
    }))
}

fn read_srv<'t>(reader: &Reader<'t>, table: &Section<'t>) -> Option<Srv> {
    reader.known_keys(table, &["service", "target", "port", "priority", "weight"]);
    let example = "\"_sip._tcp\"";
    let service = reader.required(table, "service", example).and_then(|text| {
        let service =
            reader.parse::<DnsName>(&text, table.key("service"), "write \"_sip._tcp\"")?;
        if !service.value.is_of_service() {
            let cause = format!("{:?} is not a service and its protocol", text.value);
            let remedy = format!("write it as {example}");
            reader.problem(&text.span, table.key("service"), cause, remedy);
        }
        Some(service.value)
    });
    let target = reader
        .required(table, "target", "\"web1\"")
        .and_then(|text| {
            let target = reader.parse::<DnsName>(&text, table.key("target"), NAME)?;
            Some(target.value)
        });
    if !table.has("port") {
        reader.missing(table, "port", "5060");
    }
    Some(Srv {
        port: number(reader, table, "port", 1)?,
        priority: number(reader, table, "priority", 0)?,
        weight: number(reader, table, "weight", 0)?,
        service: service?,
        target: target?,
    })
}

/// The number at `key`, 0 where there is none.
fn number<'t>(reader: &Reader<'t>, table: &Section<'t>, key: &str, least: u16) -> Option<u16> {
    if !table.has(key) {
        return Some(0);
    }
    let number = reader.integer(table, key)?;
    let value = u16::try_from(number.value).ok().filter(|it| *it >= least);
    if value.is_none() {
        reader.problem(
            &number.span,
            table.key(key),
            format!("{} is out of range", number.value),
            format!("write {least} to 65535"),
        );
    }
    value
}

/// No name may be two machines', other names must lead to one, and dnsmasq must not ask itself.
pub(super) fn check(
    reader: &Reader<'_>,
    networks: &ReadMap<'_, Network>,
    guests: &ReadMap<'_, Guest>,
) {
    for read in networks.values() {
        let Some(network) = &read.value else { continue };
        let guests = guests.values().filter_map(|guest| guest.value.as_ref());
        let names = check_names(reader, &read.section, network, guests);
        let Some(table) = read.section.table("dns") else {
            continue;
        };
        check_cnames(reader, &table, network, &names);
        check_forwarders(reader, &table, network);
    }
}

/// The whole names of machines and records, each with the place it is from.
type Names = BTreeMap<String, String>;

/// Notes each name of a lease or record that is somebody else's already; gives all names.
fn check_names<'a>(
    reader: &Reader<'_>,
    section: &Section<'_>,
    network: &Network,
    guests: impl Iterator<Item = &'a Guest>,
) -> Names {
    let domain = &network.domain;
    let here = guests.filter(|guest| guest.nics.iter().any(|nic| nic.network == network.name));
    let mut names: Names = here
        .map(|guest| {
            let name = format!("{}.{domain}", guest.name);
            (name, format!("guests.{}", guest.name))
        })
        .collect();
    let mut claim = |name: String, span: &std::ops::Range<usize>, place: String| {
        if let Some(first) = names.get(&name) {
            let cause = format!("{name} is already the name of {first}");
            reader.problem(span, place, cause, "choose another name");
        } else {
            names.insert(name, place);
        }
    };
    for (index, lease) in network.dhcp.hosts.iter().enumerate() {
        let Some(table) = section
            .table("dhcp")
            .and_then(|dhcp| dhcp.item("hosts", index))
        else {
            continue;
        };
        let name = format!("{}.{domain}", lease.name);
        claim(name, &table.span_of("name"), table.key("name"));
    }
    let records = network.dns.hosts.keys().map(|name| ("hosts", name));
    for (key, name) in records.chain(network.dns.cname.keys().map(|name| ("cname", name))) {
        let table = section.table("dns").and_then(|dns| dns.table(key));
        if let Some(table) = table {
            let span = table.span_of(&name.to_string());
            claim(name.within(domain), &span, table.key(&name.to_string()));
        }
    }
    names
}

/// dnsmasq answers for another name of what it knows itself, and ends where such names lead in a circle.
fn check_cnames(reader: &Reader<'_>, dns: &Section<'_>, network: &Network, names: &Names) {
    let Some(table) = dns.table("cname") else {
        return;
    };
    let domain = &network.domain;
    let cname = network.dns.cname.iter();
    let targets: BTreeMap<String, String> = cname
        .map(|(name, target)| (name.within(domain), target.within(domain)))
        .collect();
    for (name, target) in &network.dns.cname {
        let target = target.within(domain);
        let mut way = std::iter::successors(Some(&target), |name| targets.get(*name));
        let (cause, remedy) = if !names.contains_key(&target) {
            let cause = format!("{target} is no name on network {}", network.name);
            (cause, suggest(&target, names.keys().map(String::as_str)))
        } else if way.nth(targets.len()).is_some() {
            let cause = format!("{target} leads back to itself");
            (cause, "name a machine, or one of dns.hosts".to_owned())
        } else {
            continue;
        };
        let key = name.to_string();
        reader.problem(&table.span_of(&key), table.key(&key), cause, remedy);
    }
}

fn check_forwarders(reader: &Reader<'_>, dns: &Section<'_>, network: &Network) {
    for (index, forwarder) in network.dns.forwarders.iter().enumerate() {
        let own = network.gateways();
        let own_domain = forwarder.domain.as_ref() == Some(&network.domain);
        let (cause, remedy) = if let Mode::Isolated { .. } = network.mode {
            let cause = "nothing from outside is resolved on an isolated network".to_owned();
            (cause, "leave it out, or choose another mode")
        } else if own.iter().any(|net| net.addr() == forwarder.address) {
            let cause = format!("dnsmasq itself is at {}", forwarder.address);
            (cause, "name another server")
        } else if own_domain {
            let cause = format!("names of {} are the network's own", network.domain);
            (cause, "leave it out, or choose another domain")
        } else {
            continue;
        };
        let place = format!("{}[{index}]", dns.key("forwarders"));
        let span = dns.span_of_item("forwarders", index);
        reader.problem(&span, place, cause, remedy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_label_are_in_the_networks_domain() {
        let domain: Domain = "vm.internal".parse().unwrap();
        for (name, whole) in [
            ("db", "db.vm.internal"),
            ("db.vm.internal", "db.vm.internal"),
            ("www.example", "www.example"),
            ("_dmarc", "_dmarc.vm.internal"),
            ("_sip._tcp", "_sip._tcp.vm.internal"),
            ("_sip._tcp.pbx", "_sip._tcp.pbx.vm.internal"),
            ("_sip._tcp.example.test", "_sip._tcp.example.test"),
        ] {
            let parsed: DnsName = name.parse().unwrap();
            assert_eq!(parsed.within(&domain), whole);
            assert_eq!(parsed.is_of_service(), name.starts_with("_sip"), "{name}");
        }
        for bad in ["", ".", "a..b", "-a", "a-", "A", "a b", "a\n", "a,b", "a#b"] {
            assert!(bad.parse::<DnsName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn texts_stay_one_quoted_word_of_one_line() {
        let text: Text = "a, \"b\" # c\\".parse().unwrap();
        assert_eq!(text.quoted(), "\"a, \\\"b\\\" # c\\\\\"");
        assert!("x".repeat(700).parse::<Text>().is_ok());
        for bad in ["", "a\nb", "a\tb", "ä", &"x".repeat(701), &"\"".repeat(351)] {
            assert!(bad.parse::<Text>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn forwarders_are_for_all_names_or_for_one_domain() {
        let read = |text: &str| {
            let forwarder: Forwarder = text.parse().unwrap();
            let domain = forwarder.domain.map(|domain| domain.to_string());
            (domain, forwarder.address.to_string())
        };
        assert_eq!(read("198.51.100.53"), (None, "198.51.100.53".to_owned()));
        assert_eq!(read("fd00::53"), (None, "fd00::53".to_owned()));
        let of_domain = |ip: &str| (Some("corp.example".to_owned()), ip.to_owned());
        assert_eq!(read("corp.example: 10.1.1.53"), of_domain("10.1.1.53"));
        assert_eq!(read("corp.example:fd00::53"), of_domain("fd00::53"));
        for bad in [
            "",
            "corp.example",
            "corp.example:",
            ": 10.1.1.53",
            "a b: 10.1.1.53",
        ] {
            assert!(bad.parse::<Forwarder>().is_err(), "{bad:?}");
        }
    }
}
