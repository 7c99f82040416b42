//! The file: one TOML text that describes networks and guests, read into values that are valid.
//!
//! [`Config::load`] reads the file and walks its tree by hand (`reader`) rather than through serde, so that
//! every problem is reported at once, each with its line, key, cause and remedy ([`Problems`]). Networks are
//! read first, guests second (their NICs name networks), and what concerns several of them last: overlapping
//! subnets, addresses given twice, link names that collide. A `Config` exists only if there was no problem.
//!
//! Used by the network and the guest half; touches nothing but the one file it is told to read.

mod problem;
mod reader;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::de::DeTable;

use crate::types::{IfName, MacAddr, Mtu, Name, QueuePairs};
use problem::suggest;
pub use problem::{Problem, Problems};
use reader::{At, Reader, Section, line_of};
pub use values::{DhcpRange, Domain, Memory, Subnet};

/// What the file says.
#[derive(Debug, Clone)]
pub struct Config {
    /// The networks by name.
    pub networks: BTreeMap<Name, Network>,
    /// The guests by name.
    pub guests: BTreeMap<Name, Guest>,
    file: PathBuf,
}

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

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its name in the file, and its host name on its networks.
    pub name: Name,
    /// Virtual CPUs, 1 to 255.
    pub cpus: u16,
    /// RAM.
    pub memory: Memory,
    /// Disk images, in order.
    pub disks: Vec<PathBuf>,
    /// A kernel to boot directly.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk of `kernel`.
    pub initrd: Option<PathBuf>,
    /// The command line of `kernel`.
    pub append: Option<String>,
    /// Network cards, in order.
    pub nics: Vec<Nic>,
    /// What runs the virtual CPUs.
    pub accel: Accel,
    /// Words put at the end of QEMU's command line as they are.
    pub qemu_args: Vec<String>,
}

impl Guest {
    /// The name of the tap on the host behind NIC number `index`, counted from 0.
    pub fn tap(&self, index: usize) -> IfName {
        IfName::for_tap(&self.name, index)
    }
}

/// A guest's network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// The network it is plugged into; there is one of that name.
    pub network: Name,
    /// The address DHCP gives it; one of the range where there is none.
    pub ip: Option<Ipv4Addr>,
    /// Its MAC address; derived from the guest's name and the NIC's number unless the file has one.
    pub mac: MacAddr,
    /// How many pairs of queues it has.
    pub queue_pairs: QueuePairs,
}

/// What runs a guest's virtual CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accel {
    /// KVM where the host has it and can use it, else TCG.
    #[default]
    Auto,
    /// The host's CPUs.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl FromStr for Accel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(format!("unknown accelerator {text:?}")),
        }
    }
}

impl Config {
    /// Reads `file`.
    ///
    /// # Errors
    /// Everything that is wrong with the file, or that it can't be read.
    pub fn load(file: &Path) -> Result<Self, Problems> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            Problems::whole(
                file,
                format!("cannot read the file: {error}"),
                "write one, or name yours with --config FILE".to_owned(),
            )
        })?;
        Self::parse(&text, file)
    }

    /// Reads `text`, which messages call `file`; relative paths in it start at `file`'s directory.
    ///
    /// # Errors
    /// Everything that is wrong with the text.
    pub fn parse(text: &str, file: &Path) -> Result<Self, Problems> {
        let (document, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            return Err(not_toml(text, file, &errors));
        }
        let directory = file.parent().unwrap_or(Path::new(""));
        let reader = Reader::new(text, directory);
        let root = Section::root(&document);
        reader.known_keys(&root, &["networks", "guests"]);
        let networks = read_networks(&reader, &root);
        let guests = read_guests(&reader, &root, &networks);
        check_subnets(&reader, &networks);
        check_nics(&reader, &guests);
        check_links(&reader, &networks, &guests);
        let config = Self {
            networks: valid(networks, |network| network.value),
            guests: valid(guests, |guest| guest.value),
            file: file.to_owned(),
        };
        match reader.into_problems(file) {
            Some(problems) => Err(problems),
            None => Ok(config),
        }
    }

    /// The network called `name`.
    ///
    /// # Errors
    /// There is none; names the nearest.
    pub fn network(&self, name: &Name) -> Result<&Network, Problems> {
        let known = self.networks.keys();
        self.networks
            .get(name)
            .ok_or_else(|| self.unknown("network", name, known))
    }

    /// The guest called `name`.
    ///
    /// # Errors
    /// There is none; names the nearest.
    pub fn guest(&self, name: &Name) -> Result<&Guest, Problems> {
        let known = self.guests.keys();
        self.guests
            .get(name)
            .ok_or_else(|| self.unknown("guest", name, known))
    }

    /// The networks that a person meant by `names`: all, if they named none.
    ///
    /// # Errors
    /// One of them is not in the file.
    pub fn chosen(&self, names: &[Name]) -> Result<BTreeSet<Name>, Problems> {
        if names.is_empty() {
            return Ok(self.networks.keys().cloned().collect());
        }
        names
            .iter()
            .map(|name| Ok(self.network(name)?.name.clone()))
            .collect()
    }

    fn unknown<'a>(
        &self,
        kind: &str,
        name: &Name,
        known: impl Iterator<Item = &'a Name>,
    ) -> Problems {
        Problems::whole(
            &self.file,
            format!("no {kind} is called `{name}`"),
            suggest(name.as_str(), known.map(Name::as_str)),
        )
    }
}

/// A network or guest as read: `value` is there only if all of it is valid.
struct Read<'t, T> {
    section: Section<'t>,
    value: Option<T>,
    /// Where the keys stand that later checks are about: a network's subnet, a guest's NICs.
    spans: Vec<Range<usize>>,
}

type ReadMap<'t, T> = BTreeMap<Name, Read<'t, T>>;

fn valid<T>(read: ReadMap<'_, T>, value: fn(Read<'_, T>) -> Option<T>) -> BTreeMap<Name, T> {
    read.into_iter()
        .filter_map(|(name, read)| Some((name, value(read)?)))
        .collect()
}

fn not_toml(text: &str, file: &Path, errors: &[toml::de::Error]) -> Problems {
    let problem = |error: &toml::de::Error| Problem {
        line: error.span().map(|span| line_of(text, span.start)),
        key: String::new(),
        cause: error.message().to_owned(),
        remedy: "write it as TOML (https://toml.io)".to_owned(),
    };
    Problems::new(file, errors.iter().map(problem).collect())
}

fn read_networks<'t>(reader: &Reader<'t>, root: &Section<'t>) -> ReadMap<'t, Network> {
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
    let spans = subnet.iter().map(|subnet| subnet.span.clone()).collect();
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
    Read {
        section,
        value,
        spans,
    }
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

fn read_guests<'t>(
    reader: &Reader<'t>,
    root: &Section<'t>,
    networks: &ReadMap<'t, Network>,
) -> ReadMap<'t, Guest> {
    reader
        .tables(root, "guests")
        .into_iter()
        .filter_map(|(name, section)| {
            let name = section_name(reader, root, "guests", &name)?;
            Some((name.clone(), read_guest(reader, section, name, networks)))
        })
        .collect()
}

fn read_guest<'t>(
    reader: &Reader<'t>,
    section: Section<'t>,
    name: Name,
    networks: &ReadMap<'t, Network>,
) -> Read<'t, Guest> {
    let known = [
        "cpus",
        "memory",
        "disks",
        "kernel",
        "initrd",
        "append",
        "nics",
        "accel",
        "qemu-args",
    ];
    reader.known_keys(&section, &known);
    let cpus = match reader.integer(&section, "cpus") {
        Some(number) => read_count(reader, &number, section.key("cpus"), 255),
        None => Some(1),
    };
    let memory = reader
        .required(&section, "memory", "\"512M\"")
        .and_then(|text| reader.parse(&text, section.key("memory"), "write it as \"512M\""));
    let disks = reader
        .text_list(&section, "disks")
        .iter()
        .filter_map(|disk| reader.resolve(disk, section.key("disks")))
        .collect();
    let kernel = reader.path(&section, "kernel");
    let initrd = reader.path(&section, "initrd");
    let append = reader.text(&section, "append");
    for (key, there) in [("initrd", initrd.is_some()), ("append", append.is_some())] {
        if there && kernel.is_none() {
            reader.problem(
                &section.span,
                section.key(key),
                "only goes with a kernel",
                "add kernel = \"…\", or leave it out",
            );
        }
    }
    let accel = reader
        .text(&section, "accel")
        .and_then(|text| {
            let remedy = suggest(text.value, ["auto", "kvm", "tcg"]);
            reader.parse(&text, section.key("accel"), &remedy)
        })
        .map_or(Accel::Auto, |accel| accel.value);
    let qemu_args = reader
        .text_list(&section, "qemu-args")
        .iter()
        .map(|word| word.value.to_owned())
        .collect();
    let tables = reader.table_list(&section, "nics");
    let nics: Vec<Option<Nic>> = tables
        .iter()
        .enumerate()
        .map(|(index, table)| read_nic(reader, table, &format!("{name}/{index}"), networks))
        .collect();
    let spans = tables.into_iter().map(|table| table.span).collect();
    let nics: Option<Vec<Nic>> = nics.into_iter().collect();
    let value = (|| {
        Some(Guest {
            name,
            cpus: cpus?,
            memory: memory?.value,
            disks,
            kernel,
            initrd,
            append: append.map(|text| text.value.to_owned()),
            nics: nics?,
            accel,
            qemu_args,
        })
    })();
    Read {
        section,
        value,
        spans,
    }
}

fn read_nic<'t>(
    reader: &Reader<'t>,
    table: &Section<'t>,
    mac_seed: &str,
    networks: &ReadMap<'t, Network>,
) -> Option<Nic> {
    reader.known_keys(table, &["network", "ip", "mac", "queue-pairs"]);
    let network = reader
        .required(table, "network", "\"default\"")
        .and_then(|text| {
            let found = networks.get_key_value(&text.value.parse::<Name>().ok()?);
            found.or_else(|| {
                reader.problem(
                    &text.span,
                    table.key("network"),
                    format!("no network is called {:?}", text.value),
                    suggest(text.value, networks.keys().map(Name::as_str)),
                );
                None
            })
        });
    let ip = read_ip(reader, table);
    let mac = reader.parsed::<MacAddr>(table, "mac", "or leave it out for a stable one");
    let queue_pairs = match reader.integer(table, "queue-pairs") {
        Some(number) => read_count(reader, &number, table.key("queue-pairs"), 256)?
            .try_into()
            .ok()?,
        None => QueuePairs::ONE,
    };
    let (name, network) = network?;
    if let (Some(ip), Some(network)) = (&ip, &network.value) {
        if let Some(refusal) = network.subnet.refusal(ip.value) {
            let guests = network.subnet.guests();
            reader.problem(
                &ip.span,
                table.key("ip"),
                refusal,
                format!("write one of {}-{}", guests.first, guests.last),
            );
        }
    }
    Some(Nic {
        network: name.clone(),
        ip: ip.map(|ip| ip.value),
        mac: mac.map_or_else(|| MacAddr::derived_from(mac_seed), |mac| mac.value),
        queue_pairs,
    })
}

fn read_ip(reader: &Reader<'_>, table: &Section<'_>) -> Option<At<Ipv4Addr>> {
    let text = reader.text(table, "ip")?;
    let value = text.value.parse().ok();
    if value.is_none() {
        let cause = format!("{:?} is not an IPv4 address", text.value);
        let remedy = "write it as \"192.168.100.10\"";
        reader.problem(&text.span, table.key("ip"), cause, remedy);
    }
    Some(At {
        value: value?,
        span: text.span,
    })
}

/// A count from 1 to `most`.
fn read_count(reader: &Reader<'_>, number: &At<i64>, key: String, most: u16) -> Option<u16> {
    let count = u16::try_from(number.value)
        .ok()
        .filter(|count| (1..=most).contains(count));
    if count.is_none() {
        reader.problem(
            &number.span,
            key,
            format!("{} is out of range", number.value),
            format!("write 1 to {most}"),
        );
    }
    count
}

/// The name of `[kind.NAME]`, if valid.
fn section_name(
    reader: &Reader<'_>,
    root: &Section<'_>,
    kind: &str,
    name: &At<&str>,
) -> Option<Name> {
    let key = format!("{}.{}", root.key(kind), name.value);
    let name = reader.parse::<Name>(name, key, "choose such a name")?;
    Some(name.value)
}

fn check_subnets(reader: &Reader<'_>, networks: &ReadMap<'_, Network>) {
    let mut seen: Vec<&Network> = Vec::new();
    for read in networks.values() {
        let (Some(network), [span]) = (&read.value, read.spans.as_slice()) else {
            continue;
        };
        for other in &seen {
            if network.subnet.overlaps(other.subnet.net()) {
                reader.problem(
                    span,
                    read.section.key("subnet"),
                    format!(
                        "{} overlaps {} of networks.{}",
                        network.subnet, other.subnet, other.name
                    ),
                    "give each network addresses of its own",
                );
            }
        }
        seen.push(network);
    }
}

/// No address may be on a network twice, no MAC address anywhere twice.
fn check_nics(reader: &Reader<'_>, guests: &ReadMap<'_, Guest>) {
    let mut ips: BTreeMap<(&Name, Ipv4Addr), String> = BTreeMap::new();
    let mut macs: BTreeMap<MacAddr, String> = BTreeMap::new();
    for read in guests.values() {
        let nics = read.value.iter().flat_map(|guest| &guest.nics);
        for (index, (nic, span)) in nics.zip(&read.spans).enumerate() {
            let place = format!("{}[{index}]", read.section.key("nics"));
            if let Some(ip) = nic.ip {
                if let Some(first) = ips.insert((&nic.network, ip), place.clone()) {
                    let cause = format!("{ip} is already the address of {first}");
                    let remedy = "give each NIC an address of its own";
                    reader.problem(span, format!("{place}.ip"), cause, remedy);
                }
            }
            if let Some(first) = macs.insert(nic.mac, place.clone()) {
                let cause = format!("{} is already the MAC address of {first}", nic.mac);
                let remedy = "write a mac = \"52:54:00:…\" that no other NIC has";
                reader.problem(span, format!("{place}.mac"), cause, remedy);
            }
        }
    }
}

/// Long names are shortened with a hash to fit a link name; two of them may meet.
fn check_links(reader: &Reader<'_>, networks: &ReadMap<'_, Network>, guests: &ReadMap<'_, Guest>) {
    let bridges = networks.values().filter_map(|read| {
        let network = read.value.as_ref()?;
        Some((network.bridge(), &read.section))
    });
    let taps = guests.values().flat_map(|read| {
        let guest = read.value.as_ref();
        let count = guest.map_or(0, |guest| guest.nics.len());
        (0..count).filter_map(move |index| Some((guest?.tap(index), &read.section)))
    });
    let mut seen: BTreeMap<IfName, &Section<'_>> = BTreeMap::new();
    for (link, section) in bridges.chain(taps) {
        if let Some(other) = seen.insert(link.clone(), section) {
            reader.problem(
                &section.span,
                section.path.clone(),
                format!(
                    "its link on the host would be `{link}`, as that of {}",
                    other.path
                ),
                "choose a shorter name for one of them",
            );
        }
    }
}
