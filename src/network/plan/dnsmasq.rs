//! dnsmasq's files for a network, and the steps that make it serve them.
//!
//! One dnsmasq a network, which listens on the network's bridge alone. What changes often (guests, their
//! addresses and names) is in the two hosts files, which it reads again on SIGHUP; the rest needs a restart.

use std::fmt::Write;
use std::path::Path;

use super::step::{Step, files};
use crate::config::{Config, Guest, Network, Nic};
use crate::network::inventory::{Dnsmasq, DnsmasqFiles};

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

/// The files of `network`, whose directory is `dir`.
pub(super) fn texts(config: &Config, network: &Network, dir: &Path) -> DnsmasqFiles {
    DnsmasqFiles {
        conf: conf(network, dir),
        dhcp_hosts: dhcp_hosts(config, network),
        hosts: hosts(config, network),
    }
}

fn conf(network: &Network, dir: &Path) -> String {
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
        format!("interface={}", network.bridge()),
        format!("pid-file={}", file(files::PID)),
        // Names: guests' from the files below, never the host's own /etc/hosts; others from upstream.
        "no-hosts".into(),
        format!("addn-hosts={}", file(files::HOSTS)),
        "expand-hosts".into(),
        format!("domain={}", network.domain),
        format!("local=/{}/", network.domain),
        "domain-needed".into(),
        format!(
            "dhcp-range={},{},{}",
            network.dhcp.first,
            network.dhcp.last,
            network.subnet.net().netmask()
        ),
        "dhcp-no-override".into(),
        "dhcp-authoritative".into(),
        format!(
            "dhcp-lease-max={}",
            network.subnet.guests().count().min(MOST_LEASES)
        ),
        format!("dhcp-leasefile={}", file(files::LEASES)),
        format!("dhcp-hostsfile={}", file(files::DHCP_HOSTS)),
        // Clones of a disk image share a client id, but not a MAC address.
        "dhcp-ignore-clid".into(),
        // A guest's name is what the file says; a guest must not be able to take another's.
        "dhcp-ignore-names=tag:!known".into(),
    ];
    if let Some(mtu) = network.mtu {
        lines.push(format!("dhcp-option=option:mtu,{mtu}"));
    }
    lines.join("\n") + "\n"
}

/// Which MAC address gets which address and name.
fn dhcp_hosts(config: &Config, network: &Network) -> String {
    let mut text = String::new();
    for (guest, nic) in nics_on(config, network) {
        // Writing to a String can't fail.
        let _ = match nic.ip {
            Some(ip) => writeln!(text, "{},{ip},{}", nic.mac, guest.name),
            None => writeln!(text, "{},{}", nic.mac, guest.name),
        };
    }
    text
}

/// Names of guests that have an address before they ask for one.
fn hosts(config: &Config, network: &Network) -> String {
    let mut text = String::new();
    for (guest, nic) in nics_on(config, network) {
        if let Some(ip) = nic.ip {
            let _ = writeln!(text, "{ip} {}", guest.name);
        }
    }
    text
}

fn nics_on<'a>(
    config: &'a Config,
    network: &'a Network,
) -> impl Iterator<Item = (&'a Guest, &'a Nic)> {
    let all = config
        .guests
        .values()
        .flat_map(|guest| guest.nics.iter().map(move |nic| (guest, nic)));
    all.filter(|(_, nic)| nic.network == network.name)
}
