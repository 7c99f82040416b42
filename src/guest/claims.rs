//! What a guest may claim on a NIC, as its backend's guard is told: who it is by the file, and who it is not by the host.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::backend::guard::Policy;
use crate::config::{Network, Nic};
use crate::types::MacAddr;

/// What the guest of `nic`, which is on `network` with this MAC address, may claim, where the host has the addresses `host`;
/// none where it may claim anything.
pub fn policy(nic: &Nic, network: &Network, mac: MacAddr, host: &[IpAddr]) -> Option<Policy> {
    let guard = nic.guard;
    let policy = Policy {
        mac: guard.mac.then_some(mac),
        addresses: guard.ip.then(|| addresses(nic, network)),
        // On an ipvtap the MAC address is that of many, and so does not tell whose a lease is.
        learns: guard.ip && !network.is_told_addresses(),
        others: host.iter().copied().filter(|_| guard.ip).collect(),
        no_services: guard.services,
        vlans: guard.vlan.then(|| nic.vlans.tagged.clone()),
        only_ip: guard.protocols,
    };
    (policy != Policy::default()).then_some(policy)
}

/// Those that the file gives it, and those that it says are behind it.
fn addresses(nic: &Nic, network: &Network) -> Vec<IpNet> {
    let own: Vec<IpAddr> = nic.told().collect();
    let behind = network.routes.iter();
    let behind = behind.filter(|route| route.via.is_some_and(|via| own.contains(&via)));
    let behind: Vec<IpNet> = behind.map(|route| route.to).collect();
    own.iter()
        .map(|ip| IpNet::from(*ip))
        .chain(behind)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    /// The guard of the only NIC of guest `g` that the file's text has; the host is at 10.6.0.1.
    fn words(network: &str, nic: &str) -> String {
        let text = format!(
            "[networks.n]\n{network}\n[guests.g]\nmemory = \"64M\"\nnics = [{{ network = \"n\", {nic} }}]\n"
        );
        let config = Config::parse(&text, Path::new("/etc/ringtap.toml")).unwrap();
        let nic = &config.guests.values().next().unwrap().nics[0];
        let network = config.network(&nic.network).unwrap();
        let host = ["10.6.0.1".parse().unwrap()];
        let policy = policy(nic, network, nic.mac, &host);
        policy.map_or_else(String::new, |policy| policy.to_string())
    }

    const NAT: &str = "mode = \"nat\"\nsubnet = \"10.6.0.0/24\"";
    const MAC: &str = "mac = \"52:54:00:00:00:05\"";

    #[test]
    fn a_guest_is_who_the_file_says() {
        assert_eq!(
            words(NAT, MAC),
            "mac=52:54:00:00:00:05,ip,not=10.6.0.1,services,vlan,only-ip"
        );
        let nic = format!("{MAC}, ip = \"10.6.0.9\"");
        let routes = "routes = [\"10.9.0.0/16 via 10.6.0.9\", \"10.8.0.0/16 via 10.6.0.8\"]";
        assert_eq!(
            words(&format!("{NAT}\n{routes}"), &nic),
            "mac=52:54:00:00:00:05,ip,ip=10.6.0.9/32,ip=10.9.0.0/16,not=10.6.0.1,services,vlan,only-ip"
        );
        let ipvtap = "mode = \"ipvtap\"\nuplink = \"eth0\"";
        let said = words(ipvtap, "ip = \"192.0.2.9\"");
        assert!(said.contains(",ip=192.0.2.9/32,"), "{said}");
        assert!(!said.contains(",ip,"), "{said}");
        let vlans = "vlan-filtering = true";
        let said = words(&format!("{NAT}\n{vlans}"), "vlans = [7, 8]");
        assert!(said.ends_with(",vlan,vlan=7,vlan=8,only-ip"), "{said}");
    }

    #[test]
    fn parts_are_left_out_as_the_network_and_then_the_nic_say() {
        let off = format!("{NAT}\nguard = false");
        assert_eq!(words(&off, MAC), "");
        assert_eq!(words(NAT, "guard = false"), "");
        assert_eq!(
            words(&off, "guard = { services = true, vlan = true }"),
            "services,vlan"
        );
        let parts = format!("{NAT}\nguard = {{ ip = false, mac = false }}");
        assert_eq!(words(&parts, MAC), "services,vlan,only-ip");
        assert_eq!(
            words(&parts, "guard = { vlan = false }"),
            "services,only-ip"
        );
    }
}
