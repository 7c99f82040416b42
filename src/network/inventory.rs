//! What a host has, as a value: the plan's second argument. Data only; `observe` fills it in.
//!
//! It goes through serde whole, so that `plan --json` of any host can become a test case.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::ovs::Ovs;
use crate::config::{Protocol, StaticRoute};
use crate::types::{Family, IfName, MacAddr, Name, VlanId};

/// The sysctl that makes a host forward.
pub fn forwarding_key(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "net.ipv4.ip_forward",
        Family::Ipv6 => "net.ipv6.conf.all.forwarding",
    }
}

/// The sysctl `name` of `link`, whose dots are written as slashes (sysctl(8)).
pub fn link_key(family: Family, link: &str, name: &str) -> String {
    let family = match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    };
    format!("net.{family}.conf.{}.{name}", link.replace('.', "/"))
}

/// Where the servers are named that the host asks for names (resolv.conf(5)).
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The sysctl of how many instances of inotify a user may have.
pub const INOTIFY_INSTANCES: &str = "fs.inotify.max_user_instances";

/// The sysctls that make the kernel show bridged frames to iptables and its sisters; each is there only where the kernel's
/// br_netfilter is.
pub const BRIDGE_NF_CALL: [&str; 3] = [
    "net.bridge.bridge-nf-call-iptables",
    "net.bridge.bridge-nf-call-ip6tables",
    "net.bridge.bridge-nf-call-arptables",
];

/// What a host has that a plan may depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Where ringtap keeps its files on this host.
    pub run_dir: PathBuf,
    /// Its links, with their addresses.
    pub links: Vec<Link>,
    /// Its routes, those to its own addresses aside.
    pub routes: Vec<Route>,
    /// The sysctls that plans may depend on or change along with others, by name.
    pub sysctls: BTreeMap<String, String>,
    /// The host's own servers, and dnsmasq's on ringtap's bridges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Listener>,
    /// The links that ringtap has made for several networks to share.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub shared_links: BTreeSet<IfName>,
    /// Chains of others that let not everything pass, and Docker's for a person's rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chains: Vec<Chain>,
    /// Open vSwitch.
    #[serde(default)]
    pub ovs: Ovs,
    /// What ringtap has there already, by network.
    #[serde(default)]
    pub networks: BTreeMap<Name, Held>,
    /// The file that names servers for names which others than the host itself can ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolv_conf: Option<PathBuf>,
    /// The names of network namespaces.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub namespaces: BTreeSet<String>,
    /// What the namespaces of tenants have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<Name, Inventory>,
}

impl Inventory {
    /// What ringtap has of each network, those of tenants included.
    pub fn all_held(&self) -> impl Iterator<Item = (&Name, &Held)> {
        let of_tenants = self.tenants.values().flat_map(|it| &it.networks);
        self.networks.iter().chain(of_tenants)
    }

    /// What ringtap has of network `name`, whosever it is.
    pub fn held(&self, name: &Name) -> Option<&Held> {
        self.all_held()
            .find_map(|(its, held)| (its == name).then_some(held))
    }

    /// As it is once link `name` is gone.
    pub fn without(&self, name: &IfName) -> Self {
        let mut rest = self.clone();
        rest.links.retain(|link| link.name != name.as_str());
        rest.routes
            .retain(|route| route.link.as_deref() != Some(name.as_str()));
        for family in Family::BOTH {
            let of_link = link_key(family, name.as_str(), "");
            rest.sysctls.retain(|key, _| !key.starts_with(&of_link));
        }
        rest
    }

    /// Whose network `name` is, as ringtap has it: no tenant's where it is the host's own, and none where it is not up.
    pub fn tenant_of(&self, name: &Name) -> Option<Option<&Name>> {
        let here = self.networks.contains_key(name).then_some(None);
        let mut tenants = self.tenants.iter();
        here.or_else(|| {
            let tenant = tenants.find(|(_, it)| it.networks.contains_key(name));
            tenant.map(|(tenant, _)| Some(tenant))
        })
    }

    /// The links beside those of a network of `tenant`.
    pub fn links_of(&self, tenant: Option<&Name>) -> &[Link] {
        match tenant {
            None => &self.links,
            Some(tenant) => self.tenants.get(tenant).map_or(&[], |it| &it.links),
        }
    }

    /// The routes over link `name` that somebody made.
    pub fn routes_over(&self, name: &str) -> Vec<Route> {
        let routes = self.routes.iter();
        let over = routes.filter(|route| !route.kernel && route.link.as_deref() == Some(name));
        over.cloned().collect()
    }

    /// The link called `name`.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Whether the host has `route` over `link`.
    pub fn has(&self, route: &StaticRoute, link: &IfName) -> bool {
        self.routes.iter().any(|found| {
            found.link.as_deref() == Some(link.as_str())
                && (found.to, found.via, found.metric) == (route.to, route.via, route.metric)
        })
    }

    /// Whether the host forwards packets of `family`.
    pub fn forwards(&self, family: Family) -> bool {
        let value = self.sysctls.get(forwarding_key(family));
        value.is_some_and(|value| value == "1")
    }

    /// Whether the kernel shows bridged frames of `family` to the chains of what is forwarded.
    pub fn shows_bridged(&self, family: Family) -> bool {
        let key = match family {
            Family::Ipv4 => BRIDGE_NF_CALL[0],
            Family::Ipv6 => BRIDGE_NF_CALL[1],
        };
        self.sysctls.get(key).is_some_and(|value| value == "1")
    }

    /// Whether the kernel has IPv6.
    pub fn has_ipv6(&self) -> bool {
        self.sysctls.contains_key(forwarding_key(Family::Ipv6))
    }
}

/// A link of the host. Its name is a plain text: the kernel allows what `IfName` doesn't.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its kind as `ip -d link` shows it, such as `bridge`; none for hardware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its address, if it is a unicast one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up.
    pub up: bool,
    /// The bridge or other link it is a port of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    /// The VLAN of another link that it is, with that link's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<(String, VlanId)>,
    /// Whether it is a bridge that heeds the VLANs of its ports.
    #[serde(default, skip_serializing_if = "is_false")]
    pub vlan_filtering: bool,
    /// The VLANs that it is in as a port of such a bridge.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub vlans: BTreeSet<VlanId>,
    /// Addresses of others for which the host answers there.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub proxies: BTreeSet<IpAddr>,
    /// Whether it is a wireless station, whose access point takes its own address alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub wireless: bool,
    /// Its addresses with their prefix lengths, those that every link has (fe80::) aside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpNet>,
    /// Whether an IPv4 address of it ends some day: a DHCP client looks after it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub leased: bool,
    /// Whether the host has a default route over it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub default_route: bool,
    /// Whether a router advertisement that came in here gave the host a default route.
    #[serde(default, skip_serializing_if = "is_false")]
    pub by_ra: bool,
}

impl Link {
    /// One that nobody has done anything to, with an MTU of that many bytes.
    pub fn new(name: &str, mtu: u32) -> Self {
        Self {
            name: name.to_owned(),
            kind: None,
            mac: None,
            mtu,
            up: false,
            master: None,
            vlan: None,
            vlan_filtering: false,
            vlans: BTreeSet::new(),
            proxies: BTreeSet::new(),
            wireless: false,
            addresses: Vec::new(),
            leased: false,
            default_route: false,
            by_ra: false,
        }
    }
}

fn is_false(truth: &bool) -> bool {
    !truth
}

/// A route of the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// Where it leads; of prefix length 0 to wherever no other does.
    pub to: IpNet,
    /// The link it leaves by, if it is that kind of route.
    pub link: Option<String>,
    /// The router it leads over, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
    /// Of several to one place that with the lowest is taken.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub metric: u32,
    /// Whether the kernel made it by itself, along with an address.
    #[serde(default, skip_serializing_if = "is_false")]
    pub kernel: bool,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Route {
    /// Whether it is a default route.
    pub fn is_default(&self) -> bool {
        self.to.prefix_len() == 0
    }
}

/// A socket that takes connections or packets from anybody.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listener {
    /// Its protocol.
    pub protocol: Protocol,
    /// The address it is bound to, or 0.0.0.0 or ::.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The program behind it, as far as it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
}

/// A chain of somebody else's firewall.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The program that lists and changes it; nft where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Iptables>,
    /// The family of its table: `ip`, `ip6` or `inet`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where packets come to it; none where only other chains lead there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<Hook>,
    /// What becomes of packets that no rule before the last one has decided on.
    pub end: End,
    /// The links that its rules speak of, and those of the chains that it leads to, but for ringtap's own.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub links: BTreeSet<String>,
    /// The chains and targets that it leads to.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub leads_to: BTreeSet<String>,
    /// ringtap's own rules in it, as iptables prints them after its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own_rules: Vec<String>,
}

/// Where a chain is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// By what the host forwards.
    Forward,
    /// By what is meant for the host.
    Input,
}

/// How a chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// What comes to its end passes.
    Accept,
    /// Its policy is to drop.
    Policy,
    /// Its last rule drops all.
    Drop,
    /// Its last rule rejects all.
    Reject,
}

/// A program for the chains of one family in one kind of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Iptables {
    /// IPv4, in nftables.
    #[serde(rename = "iptables")]
    Ipv4,
    /// IPv6, in nftables.
    #[serde(rename = "ip6tables")]
    Ipv6,
    /// IPv4, in the kernel's older tables.
    #[serde(rename = "iptables-legacy")]
    LegacyIpv4,
    /// IPv6, in the kernel's older tables.
    #[serde(rename = "ip6tables-legacy")]
    LegacyIpv6,
}

impl Iptables {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ipv4, Self::Ipv6, Self::LegacyIpv4, Self::LegacyIpv6];

    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "iptables",
            Self::Ipv6 => "ip6tables",
            Self::LegacyIpv4 => "iptables-legacy",
            Self::LegacyIpv6 => "ip6tables-legacy",
        }
    }

    /// Which packets it is for.
    pub fn family(self) -> Family {
        match self {
            Self::Ipv4 | Self::LegacyIpv4 => Family::Ipv4,
            Self::Ipv6 | Self::LegacyIpv6 => Family::Ipv6,
        }
    }

    /// Whether its tables are not nftables'.
    pub fn is_legacy(self) -> bool {
        matches!(self, Self::LegacyIpv4 | Self::LegacyIpv6)
    }
}

/// What ringtap made for a network, as its journal has it and as the host confirms.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Whether the network's directory is there.
    #[serde(default)]
    pub dir: bool,
    /// Whether ringtap made (or was about to make) the network's bridge, or whatever link it has of its own.
    pub own_link: bool,
    /// The addresses ringtap put on it.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
    /// The addresses for which ringtap had the host answer, each with the link.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proxies: Vec<(IfName, IpAddr)>,
    /// The routes ringtap made over it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<StaticRoute>,
    /// The nft table ringtap loaded last.
    #[serde(default)]
    pub table: Option<Table>,
    /// The dnsmasq that serves it.
    #[serde(default)]
    pub dnsmasq: Option<Dnsmasq>,
}

/// An nft table that ringtap loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The text it was loaded from.
    pub rules: String,
    /// Whether the kernel still lists it as it did right after.
    pub intact: bool,
}

/// A running dnsmasq.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dnsmasq {
    /// Its process.
    pub pid: u32,
    /// The files it has read; none if that is not known, or they are no longer as it read them.
    pub files: Option<DnsmasqFiles>,
}

/// The texts that dnsmasq reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsmasqFiles {
    /// Its configuration, read once.
    pub conf: String,
    /// `dhcp-hostsfile`, read again on SIGHUP: which MAC address gets which address and name.
    pub dhcp_hosts: String,
    /// `addn-hosts`, read again on SIGHUP: names of addresses.
    pub hosts: String,
}
