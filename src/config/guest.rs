//! Guests of the file: their types, and how they are read.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::addresses::{Addresses, no_such_addresses};
use super::cloud_init::CloudInit;
use super::disk::Disk;
use super::guard::Guard;
use super::network::{Mode, Network, Rates, read_mtu};
use super::problem::suggest;
use super::reader::{Reader, Section};
use super::values::Memory;
use super::{Read, ReadMap, all, parse_each, read_count, section_name};
use super::{cloud_init, disk, uplink};
use crate::types::{Family, IfName, MacAddr, Mtu, Name, QueuePairs, VlanId};

/// So many pairs of queues a NIC has at most, unless the file says otherwise.
const MOST_PAIRS: u16 = 8;

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its name in the file, and its host name on its networks.
    pub name: Name,
    /// Virtual CPUs, 1 to 255.
    pub cpus: u16,
    /// RAM.
    pub memory: Memory,
    /// Whether the memory is made of the host's huge pages.
    pub hugepages: bool,
    /// Disks, in order.
    pub disks: Vec<Disk>,
    /// What starts before what is on the disks.
    pub firmware: Firmware,
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
    /// Where its screen can be seen, by VNC; it has one only then.
    pub vnc: Option<SocketAddr>,
    /// What cloud-init in it is told, if it is told anything.
    pub cloud_init: Option<CloudInit>,
    /// As whom QEMU runs, if not as somebody of its own.
    pub user: Option<String>,
    /// Whether it is started anew when it has ended.
    pub restart: Restart,
    /// Whether it is one of those that are started when the host is.
    pub autostart: bool,
    /// Words put at the end of QEMU's command line as they are.
    pub qemu_args: Vec<String>,
}

impl Guest {
    /// How many pairs of queues its NICs have of which the file does not say.
    pub fn usual_pairs(&self) -> QueuePairs {
        usual_pairs(Some(self.cpus))
    }

    /// The name of the tap on the host behind NIC number `index`, counted from 0.
    pub fn tap(&self, index: usize) -> IfName {
        IfName::for_tap(&self.name, index)
    }
}

/// What starts a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// OVMF.
    Uefi,
}

impl FromStr for Firmware {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "bios" => Ok(Self::Bios),
            "uefi" => Ok(Self::Uefi),
            _ => Err(format!("unknown firmware {text:?}")),
        }
    }
}

/// What QEMU's `-serial` leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ConsoleKind {
    #[default]
    Serial,
}

impl FromStr for ConsoleKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "serial" => Ok(Self::Serial),
            _ => Err(format!("unknown console {text:?}")),
        }
    }
}

/// A guest's network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// The network it is plugged into; there is one of that name.
    pub network: Name,
    /// The address DHCP gives it; one of the range where there is none.
    pub ip: Option<Ipv4Addr>,
    /// The address DHCPv6 gives it; one of its range where there is none.
    pub ipv6: Option<Ipv6Addr>,
    /// Addresses that the host routes to it besides, beyond those of the network; on an ipvtap, that it gets besides; on
    /// another LAN, that its guest gives itself.
    pub addresses: Vec<IpAddr>,
    /// Its MAC address; derived from the guest's name and the NIC's number unless the file has one. An ipvtap has its
    /// uplink's instead.
    pub mac: MacAddr,
    /// The largest packet that the guest is told, if not its network's.
    pub mtu: Option<Mtu>,
    /// How many pairs of queues it has.
    pub queue_pairs: QueuePairs,
    /// How much it may move, by its own word or by its network's.
    pub rates: Rates,
    /// The VLANs of the network's bridge that it is in.
    pub vlans: NicVlans,
    /// Which claims of its guest are checked.
    pub guard: Guard,
}

impl Nic {
    /// Every address that the file gives it.
    pub fn told(&self) -> impl Iterator<Item = IpAddr> {
        let ip = self.ip.map(IpAddr::V4);
        let ipv6 = self.ipv6.map(IpAddr::V6);
        ip.into_iter()
            .chain(ipv6)
            .chain(self.addresses.iter().copied())
    }
}

/// The VLANs that a NIC is in; none of both for what the bridge gives to every port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicVlans {
    /// The one whose frames the guest has without a tag.
    pub untagged: Option<VlanId>,
    /// Those whose frames the guest tags.
    pub tagged: BTreeSet<VlanId>,
}

impl NicVlans {
    /// Whether the file says nothing of them.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = VlanId> {
        self.untagged.into_iter().chain(self.tagged.iter().copied())
    }
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

/// Whether a guest is started anew when it has ended though nobody asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// When QEMU or its kernel has failed.
    OnFailure,
    /// Also when it has powered itself off.
    Always,
}

impl FromStr for Restart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "no" => Ok(Self::No),
            "on-failure" => Ok(Self::OnFailure),
            "always" => Ok(Self::Always),
            _ => Err(format!("{text:?} is no restart policy")),
        }
    }
}

/// Every `[guests.NAME]`, whose NICs are on `networks`.
pub(super) fn read_all<'t>(
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
        "hugepages",
        "disks",
        "firmware",
        "kernel",
        "initrd",
        "append",
        "nics",
        "accel",
        "console",
        "vnc",
        "cloud-init",
        "user",
        "restart",
        "autostart",
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
    let disks = disk::read_all(reader, &section);
    let truth = |key| reader.boolean(&section, key).is_some_and(|it| it.value);
    let firmware = read_choice(reader, &section, "firmware", &["bios", "uefi"]);
    let _: ConsoleKind = read_choice(reader, &section, "console", &["serial"]);
    let vnc = read_vnc(reader, &section);
    let cloud_init = cloud_init::read(reader, &section, name.as_str());
    let user = reader.text(&section, "user");
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
    let accel = read_choice(reader, &section, "accel", &["auto", "kvm", "tcg"]);
    let restart = read_choice(reader, &section, "restart", &["no", "on-failure", "always"]);
    let qemu_args = reader
        .text_list(&section, "qemu-args")
        .iter()
        .map(|word| word.value.to_owned())
        .collect();
    let tables = reader.table_list(&section, "nics");
    let nic = |(index, table)| {
        let seed = format!("{name}/{index}");
        read_nic(reader, table, &seed, usual_pairs(cpus), networks)
    };
    let nics = all(tables.iter().enumerate().map(nic));
    let value = (|| {
        Some(Guest {
            name,
            cpus: cpus?,
            memory: memory?.value,
            hugepages: truth("hugepages"),
            disks: disks?,
            firmware,
            kernel,
            initrd,
            append: append.map(|text| text.value.to_owned()),
            nics: nics?,
            accel,
            vnc,
            cloud_init,
            user: user.map(|text| text.value.to_owned()),
            restart,
            autostart: truth("autostart"),
            qemu_args,
        })
    })();
    Read { section, value }
}

/// One of `words`, or the usual.
fn read_choice<'t, T: FromStr<Err = String> + Default>(
    reader: &Reader<'t>,
    section: &Section<'t>,
    key: &'static str,
    words: &[&'static str],
) -> T {
    let read = reader.text(section, key).and_then(|text| {
        let remedy = suggest(text.value, words.iter().copied());
        reader.parse(&text, section.key(key), &remedy)
    });
    read.map_or_else(T::default, |read| read.value)
}

/// The first port of VNC's.
const VNC: u16 = 5900;

/// Where the guest's screen is shown: to this host alone, since nobody is asked for a password there.
fn read_vnc(reader: &Reader<'_>, section: &Section<'_>) -> Option<SocketAddr> {
    let remedy = "write it as \"127.0.0.1:5901\"";
    let address = reader.parsed::<SocketAddr>(section, "vnc", remedy)?;
    let cause = if !address.value.ip().is_loopback() {
        "would show the guest's screen to everybody who reaches this host"
    } else if address.value.port() < VNC {
        "is none of the ports of VNC, which begin at 5900"
    } else {
        return Some(address.value);
    };
    let remedy = format!("{remedy}, and let others come by ssh -L");
    reader.problem(&address.span, section.key("vnc"), cause, remedy);
    None
}

/// How many pairs of queues a NIC of a guest with so many CPUs has: one a CPU, as each can then use its own; beyond some the
/// host has no CPUs to serve them.
fn usual_pairs(cpus: Option<u16>) -> QueuePairs {
    let pairs = cpus.unwrap_or(1).min(MOST_PAIRS);
    QueuePairs::try_from(pairs).unwrap_or(QueuePairs::ONE)
}

fn read_nic<'t>(
    reader: &Reader<'t>,
    table: &Section<'t>,
    mac_seed: &str,
    usual_pairs: QueuePairs,
    networks: &ReadMap<'t, Network>,
) -> Option<Nic> {
    let known = [
        "network",
        "ip",
        "ipv6",
        "mac",
        "mtu",
        "queue-pairs",
        "vlan",
        "vlans",
        "addresses",
        "rx-rate",
        "tx-rate",
        "guard",
    ];
    reader.known_keys(table, &known);
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
    let addresses = Addresses::read(reader, table);
    let mac = reader.parsed::<MacAddr>(table, "mac", "or leave it out for a stable one");
    let queue_pairs = match reader.integer(table, "queue-pairs") {
        Some(number) => read_count(reader, &number, table.key("queue-pairs"), 256)?
            .try_into()
            .ok()?,
        None => usual_pairs,
    };
    let mtu = read_mtu(reader, table);
    let vlans = read_vlans(reader, table)?;
    let remedy = "write single addresses as \"203.0.113.7\"";
    let singles = parse_each::<IpAddr>(reader, table, "addresses", remedy)?;
    let own = Rates::read(reader, table);
    let (name, network) = network?;
    let usual = network.value.as_ref().map(|network| network.guard);
    let guard = Guard::read(reader, table, usual.unwrap_or_default());
    if let Some(network) = &network.value {
        if !vlans.is_default() && !network.heeds_vlans() {
            let key = if vlans.untagged.is_some() {
                "vlan"
            } else {
                "vlans"
            };
            reader.problem(
                &table.span_of(key),
                table.key(key),
                format!("the bridge of network {name} does not heed VLANs"),
                format!("write vlan-filtering = true at networks.{name}, or leave it out"),
            );
        }
        if network.is_told_addresses() {
            let none = addresses.each().next().is_none() && singles.is_empty();
            check_ipvtap(reader, table, none);
        } else {
            addresses.check(reader, table, network);
        }
        let takes_singles = network.is_lan() || matches!(network.mode, Mode::Routed | Mode::Open);
        if !singles.is_empty() && !takes_singles {
            reader.problem(
                &table.span_of("addresses"),
                table.key("addresses"),
                format!("network {name} routes nobody's addresses"),
                "leave it out, or put the NIC on a network with mode = \"routed\"",
            );
        } else if !network.is_lan() {
            check_singles(reader, table, &singles, network);
        }
    }
    if let (Some(mtu), Some(network)) = (mtu, &network.value)
        && network.mtu.is_some_and(|largest| mtu > largest)
    {
        reader.problem(
            &table.span_of("mtu"),
            table.key("mtu"),
            format!("{mtu} is more than what network {name} carries"),
            "write less, or a larger mtu there",
        );
    }
    let usual = network.value.as_ref().map(|network| network.nic_rates);
    Some(Nic {
        network: name.clone(),
        addresses: singles,
        ip: addresses.ip,
        ipv6: addresses.ipv6,
        mac: mac.map_or_else(|| MacAddr::derived_from(mac_seed), |mac| mac.value),
        mtu,
        queue_pairs,
        rates: own.or(usual.unwrap_or_default()),
        vlans,
        guard,
    })
}

/// The gateway of a single address is the network's, of its family.
fn check_singles(reader: &Reader<'_>, table: &Section<'_>, singles: &[IpAddr], network: &Network) {
    let mut refused = singles.iter().map(|ip| Family::of(*ip));
    let Some(family) = refused.find(|family| network.prefix(*family).is_none()) else {
        return;
    };
    let key = match family {
        Family::Ipv4 => "subnet",
        Family::Ipv6 => "ipv6",
    };
    reader.problem(
        &table.span_of("addresses"),
        table.key("addresses"),
        format!("network {} has no {family} gateway for them", network.name),
        no_such_addresses(network, key),
    );
}

/// An ipvtap has the uplink's MAC address, and gets what is for addresses that are known beforehand.
fn check_ipvtap(reader: &Reader<'_>, table: &Section<'_>, without_addresses: bool) {
    if table.has("mac") {
        reader.problem(
            &table.span_of("mac"),
            table.key("mac"),
            "an ipvtap has its uplink's MAC address",
            "leave it out",
        );
    }
    if without_addresses {
        let cause = "missing: an ipvtap gets what is for its addresses alone";
        let remedy =
            "write ip = \"192.0.2.10\" (or ipv6, or addresses), as the guest is configured";
        reader.problem(&table.span, table.key("ip"), cause, remedy);
    }
}

/// `vlan` and `vlans` of a NIC.
fn read_vlans(reader: &Reader<'_>, table: &Section<'_>) -> Option<NicVlans> {
    let tagged: Option<BTreeSet<VlanId>> = reader
        .integer_list(table, "vlans")
        .iter()
        .map(|number| uplink::as_vlan_id(reader, number, table.key("vlans")))
        .collect();
    Some(NicVlans {
        untagged: uplink::read_vlan(reader, table)?,
        tagged: tagged?,
    })
}
