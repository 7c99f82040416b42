//! dnsmasq's files for a network, and the steps that make it serve them.
//!
//! One dnsmasq a network, which listens on the network's bridge alone. What changes often (machines, their
//! addresses and names) is in the two hosts files, which it reads again on SIGHUP; the rest needs a restart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::step::{Step, files};
use super::{DEFAULT_MTU, mtu, network_dir};
use crate::config::{Config, DnsName, Ipv4, Mode, Network, Prefix, Srv, Text};
use crate::network::inventory::{Dnsmasq, DnsmasqFiles, Inventory, RESOLV_CONF};
use crate::network::policy::Policy;
use crate::types::{Family, MacAddr, Name};

/// No dnsmasq needs to remember more leases than this.
const MOST_LEASES: u32 = 65536;

/// The steps from `found` to a dnsmasq that serves `files`.
///
/// One with another configuration is stopped before its files are written: at no moment does a running
/// dnsmasq have a configuration on disk that it has not read, so a ringtap killed in between is mended.
pub(super) fn steps(dir: &Path, wanted: DnsmasqFiles, found: Option<&Dnsmasq>) -> Vec<Step> {
    let dir = dir.to_owned();
    let start = Step::StartDnsmasq {
        dir: dir.clone(),
        files: wanted.clone(),
    };
    let Some(found) = found else {
        return vec![start];
    };
    match found.files.clone() {
        Some(was) if was == wanted => Vec::new(),
        Some(was) if was.conf == wanted.conf => vec![Step::ReloadDnsmasq {
            dir,
            files: wanted,
            was,
        }],
        was => vec![Step::StopDnsmasq { dir, was }, start],
    }
}

/// The steps from `found` to no dnsmasq, in a directory that guests can still be plugged in by.
pub(super) fn none(dir: &Path, found: Option<&Dnsmasq>) -> Vec<Step> {
    let stop = |found: &Dnsmasq| Step::StopDnsmasq {
        dir: dir.to_owned(),
        was: found.files.clone(),
    };
    found.map(stop).into_iter().collect()
}

/// The files of `network` on the host, or behind the router, of `inventory`.
pub(super) fn texts(config: &Config, network: &Network, inventory: &Inventory) -> DnsmasqFiles {
    DnsmasqFiles {
        conf: conf(config, network, inventory),
        dhcp_hosts: dhcp_hosts(config, network),
        hosts: hosts(config, network),
    }
}

fn conf(config: &Config, network: &Network, inventory: &Inventory) -> String {
    let dir = network_dir(&inventory.run_dir, &network.name);
    let mtu = mtu::of(config, network, inventory);
    let file = |name| dir.join(name).display().to_string();
    let mut lines = vec![
        format!(
            "# Of ringtap, for network {}; `ringtap up` writes it anew.",
            network.name
        ),
        "strict-order".into(),
        // On the bridge alone: others may serve DNS and DHCP elsewhere on this host.
        "bind-dynamic".into(),
        "except-interface=lo".into(),
        format!("interface={}", network.own_bridge()),
        format!("pid-file={}", file(files::PID)),
        // Names: guests' from the files below, never the host's own /etc/hosts; others from upstream.
        "no-hosts".into(),
        format!("addn-hosts={}", file(files::HOSTS)),
        "expand-hosts".into(),
        format!("domain={}", network.domain),
        format!("local=/{}/", network.domain),
        "domain-needed".into(),
        "dhcp-no-override".into(),
        "dhcp-authoritative".into(),
        format!("dhcp-lease-max={}", most_leases(network)),
        format!("dhcp-leasefile={}", file(files::LEASES)),
        format!("dhcp-hostsfile={}", file(files::DHCP_HOSTS)),
        // Clones of a disk image share a client id, but not a MAC address.
        "dhcp-ignore-clid".into(),
        // A guest's name is what the file says; a guest must not be able to take another's.
        "dhcp-ignore-names=tag:!known".into(),
    ];
    lines.extend(upstream(network, inventory));
    lines.extend(records(network));
    if let Some(ipv4) = network.ipv4 {
        lines.extend(dhcpv4(config, network, ipv4, mtu));
    }
    if let Some(prefix) = network.ipv6 {
        lines.extend(dhcpv6(config, network, prefix));
    }
    // The last of its kind is the one that is given: the file's word goes before what is said above.
    let options = network.dhcp.options.iter();
    lines.extend(options.map(|option| format!("dhcp-option={option}")));
    lines.join("\n") + "\n"
}

/// Whether the servers that the host asks for names are asked for those from outside: not where the file names others, nor
/// where what is beyond is not for the guests, its names included.
pub(super) fn asks_the_hosts_servers(network: &Network) -> bool {
    let mut forwarders = network.dns.forwarders.iter();
    let others = forwarders.any(|it| it.domain.is_none());
    !others && !matches!(network.mode, Mode::Isolated { .. })
}

/// Whom to ask for names from outside. Behind a router the host's own loopback is not to be had.
fn upstream(network: &Network, inventory: &Inventory) -> Vec<String> {
    let forwarders = &network.dns.forwarders;
    let reachable = inventory.resolv_conf.as_deref();
    let how = match (asks_the_hosts_servers(network), &network.tenant) {
        (true, Some(_)) => match reachable {
            Some(path) if path == Path::new(RESOLV_CONF) => None,
            Some(path) => Some(format!("resolv-file={}", path.display())),
            None => Some("no-resolv".to_owned()),
        },
        (true, None) => None,
        (false, _) => Some("no-resolv".to_owned()),
    };
    let servers = forwarders.iter().map(|forwarder| match &forwarder.domain {
        Some(domain) => format!("server=/{domain}/{}", forwarder.address),
        None => format!("server={}", forwarder.address),
    });
    how.into_iter().chain(servers).collect()
}

/// The records that the hosts files have no form for.
fn records(network: &Network) -> Vec<String> {
    let whole = |name: &DnsName| name.within(&network.domain);
    let dns = &network.dns;
    let cname = dns.cname.iter();
    let cname = cname.map(|(name, target)| format!("cname={},{}", whole(name), whole(target)));
    let txt = dns.txt.iter().flat_map(|(name, texts)| {
        let record = move |text: &Text| format!("txt-record={},{}", whole(name), text.quoted());
        texts.iter().map(record)
    });
    let srv = dns.srv.iter().map(|srv| {
        let Srv {
            service,
            target,
            port,
            priority,
            weight,
        } = srv;
        let (service, target) = (whole(service), whole(target));
        format!("srv-host={service},{target},{port},{priority},{weight}")
    });
    cname.chain(txt).chain(srv).collect()
}

/// The end of a `dhcp-range`: for how long its addresses are given.
fn lease(network: &Network) -> String {
    let lease = network.dhcp.lease.as_ref();
    lease.map_or(String::new(), |lease| format!(",{lease}"))
}

/// Both families share the limit.
fn most_leases(network: &Network) -> u32 {
    match (network.ipv4, network.ipv6) {
        (Some(ipv4), None) => ipv4.subnet.guests().count().min(MOST_LEASES),
        _ => MOST_LEASES,
    }
}

fn dhcpv4(config: &Config, network: &Network, ipv4: Ipv4, mtu: u32) -> Vec<String> {
    let Ipv4 { subnet, dhcp } = ipv4;
    let mask = subnet.net().netmask();
    let lease = lease(network);
    let mut lines = vec![format!(
        "dhcp-range={},{},{mask}{lease}",
        dhcp.first, dhcp.last
    )];
    if !leads_out(config, network, Family::Ipv4) {
        lines.push("dhcp-option=option:router".into()); // none
    }
    // Nobody needs to be told what they have anyway.
    if network.mtu.is_some() || mtu != DEFAULT_MTU {
        lines.push(format!("dhcp-option=option:mtu,{mtu}"));
    }
    lines
}

/// Router advertisements, which give the bridge's MTU as well, and DHCPv6.
fn dhcpv6(config: &Config, network: &Network, prefix: Prefix) -> Vec<String> {
    let [first, last] = prefix.dhcp();
    // With addresses of their own making guests get their name from the one they have by DHCPv4.
    let slaac = if prefix.has_slaac() {
        "slaac,ra-names,"
    } else {
        ""
    };
    let (length, lease) = (prefix.net().prefix_len(), lease(network));
    let mut lines = vec![
        "enable-ra".into(),
        format!("dhcp-range={first},{last},{slaac}{length}{lease}"),
    ];
    if !leads_out(config, network, Family::Ipv6) {
        // A router for no time at all is one that guests don't send other packets to (RFC 4861, 6.2.3).
        lines.push(format!("ra-param={},600,0", network.own_bridge()));
    }
    lines
}

/// Whether guests need a router: for what they begin, or to answer who comes by a port forward.
fn leads_out(config: &Config, network: &Network, family: Family) -> bool {
    Policy::of(network, family).is_some_and(|policy| policy.outbound)
        || config.has_forwards(network, family)
}

/// Which MAC address gets which addresses and name.
fn dhcp_hosts(config: &Config, network: &Network) -> String {
    let mut text = String::new();
    for machine in machines(config, network) {
        let mut words = vec![machine.mac.to_string()];
        words.extend(machine.ip.map(|ip| ip.to_string()));
        words.extend(machine.ipv6.map(|ip| format!("[{ip}]")));
        words.push(machine.name.to_string());
        text.push_str(&(words.join(",") + "\n"));
    }
    text
}

/// Names of machines that have an address before they ask for one, and those of no machine in particular.
fn hosts(config: &Config, network: &Network) -> String {
    let machines = machines(config, network).flat_map(|machine| {
        let ips = [machine.ip.map(IpAddr::V4), machine.ipv6.map(IpAddr::V6)];
        let ips = ips.into_iter().flatten();
        ips.map(move |ip| format!("{ip} {}\n", machine.name))
    });
    let records = network.dns.hosts.iter().flat_map(|(name, ips)| {
        let line = move |ip| format!("{ip} {name}\n");
        ips.iter().map(line)
    });
    machines.chain(records).collect()
}

/// Whom the file knows on a network.
struct Machine<'a> {
    name: &'a Name,
    mac: MacAddr,
    ip: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
}

/// Guests by their NICs, and who else has a lease by the file.
fn machines<'a>(config: &'a Config, network: &'a Network) -> impl Iterator<Item = Machine<'a>> {
    let nics = config.nics_on(network);
    let guests = nics.map(|(guest, nic)| Machine {
        name: &guest.name,
        mac: nic.mac,
        ip: nic.ip,
        ipv6: nic.ipv6,
    });
    let others = network.dhcp.hosts.iter().map(|lease| Machine {
        name: &lease.name,
        mac: lease.mac,
        ip: lease.ip,
        ipv6: lease.ipv6,
    });
    guests.chain(others)
}
