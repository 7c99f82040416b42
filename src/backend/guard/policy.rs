//! What a guest may claim, as words of a command line have it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::types::{InvalidValue, MacAddr, VlanId};

/// What a guest may claim. Of what has no word nothing is checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// `mac=MAC`: the only Ethernet address that frames come from.
    pub mac: Option<MacAddr>,
    /// `ip=NET`: the addresses that packets come from, besides those that any host makes itself on a link.
    pub addresses: Option<Vec<IpNet>>,
    /// `ip`: those, and what DHCP and routers give the NIC.
    pub learns: bool,
    /// `not=IP`: others' addresses, even if they are among those.
    pub others: Vec<IpAddr>,
    /// `services`: no DHCP server's answers, no router's advertisements and redirects.
    pub no_services: bool,
    /// `vlan` and `vlan=ID`: the VLANs that it may tag frames for.
    pub vlans: Option<BTreeSet<VlanId>>,
    /// `only-ip`: no Ethernet protocols but ARP, RARP, IPv4 and IPv6.
    pub only_ip: bool,
}

impl FromStr for Policy {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let mut policy = Self::default();
        for word in text.split(',') {
            policy.add(word).ok_or_else(|| {
                InvalidValue::new(
                    word,
                    "mac=MAC, ip, ip=ADDRESS[/PREFIX], not=ADDRESS, services, vlan, vlan=ID or only-ip",
                )
            })?;
        }
        Ok(policy)
    }
}

impl Policy {
    fn add(&mut self, word: &str) -> Option<()> {
        match word.split_once('=').unwrap_or((word, "")) {
            ("mac", mac) => self.mac = Some(mac.parse().ok()?),
            ("ip", "") => {
                self.addresses.get_or_insert_default();
                self.learns = true;
            }
            ("ip", net) => {
                let host = || net.parse::<IpAddr>().ok().map(IpNet::from);
                let net = net.parse().ok().or_else(host)?;
                self.addresses.get_or_insert_default().push(net);
            }
            ("not", address) => self.others.push(address.parse().ok()?),
            ("services", "") => self.no_services = true,
            ("vlan", "") => drop(self.vlans.get_or_insert_default()),
            ("vlan", id) => {
                let id = VlanId::try_from(id.parse::<u16>().ok()?).ok()?;
                self.vlans.get_or_insert_default().insert(id);
            }
            ("only-ip", "") => self.only_ip = true,
            _ => return None,
        }
        Some(())
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        words.extend(self.mac.map(|mac| format!("mac={mac}")));
        words.extend(self.learns.then(|| "ip".to_owned()));
        let addresses = self.addresses.iter().flatten();
        words.extend(addresses.map(|net| format!("ip={net}")));
        words.extend(self.others.iter().map(|ip| format!("not={ip}")));
        words.extend(self.no_services.then(|| "services".to_owned()));
        if let Some(vlans) = &self.vlans {
            words.push("vlan".to_owned());
            words.extend(vlans.iter().map(|id| format!("vlan={id}")));
        }
        words.extend(self.only_ip.then(|| "only-ip".to_owned()));
        f.write_str(&words.join(","))
    }
}
