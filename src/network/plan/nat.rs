//! What a NAT network needs: a bridge with the gateway's address, rules, forwarding, dnsmasq.

use super::step::Step;
use super::{desired_mtu, dnsmasq, network_dir, table_name};
use crate::config::{Config, Network};
use crate::network::inventory::{Held, Inventory, Link};
use crate::types::MacAddr;

/// The steps that make `network` of what is there. Rules come before the bridge is up, so that there is no
/// moment in which the network is open.
pub(super) fn steps(config: &Config, network: &Network, inventory: &Inventory) -> Vec<Step> {
    let nothing = Held::default();
    let held = inventory.networks.get(&network.name).unwrap_or(&nothing);
    let dir = network_dir(&inventory.run_dir, &network.name);
    let mut steps = Vec::new();
    bridge(network, held, inventory, &mut steps);
    let wanted = rules(network);
    let was = held.table.as_ref();
    if !was.is_some_and(|table| table.intact && table.rules == wanted) {
        steps.push(Step::ReplaceTable {
            table: table_name(&network.name),
            rules: wanted,
            was: was.map(|table| table.rules.clone()),
        });
    }
    let link = network.bridge();
    if !inventory.link(link.as_str()).is_some_and(|link| link.up) {
        steps.push(Step::SetUp { link });
    }
    let files = dnsmasq::texts(config, network, &dir);
    steps.extend(dnsmasq::steps(&dir, files, held.dnsmasq.as_ref()));
    steps
}

/// The bridge and its address.
fn bridge(network: &Network, held: &Held, inventory: &Inventory, steps: &mut Vec<Step>) {
    let name = network.bridge();
    let fresh = Link {
        name: name.to_string(),
        kind: None,
        mac: None,
        mtu: 1500,
        up: false,
        master: None,
        addresses: Vec::new(),
    };
    let found = inventory.link(name.as_str());
    if found.is_none() {
        steps.push(Step::AddBridge {
            link: name.clone(),
            mac: bridge_mac(network),
        });
    }
    let found = found.unwrap_or(&fresh);
    let mtu = desired_mtu(network);
    if found.mtu != mtu {
        steps.push(Step::SetMtu {
            link: name.clone(),
            mtu,
            was: found.mtu,
        });
    }
    let address = network.subnet.gateway_net().into();
    // Only addresses of ours go: a person may have added one.
    for &old in &held.addresses {
        if old != address && found.addresses.contains(&old) {
            steps.push(Step::DeleteAddress {
                link: name.clone(),
                address: old,
            });
        }
    }
    if !found.addresses.contains(&address) {
        steps.push(Step::AddAddress {
            link: name,
            address,
        });
    }
}

/// The bridge's own address. A bridge without one takes the lowest of its ports', and changes it as guests
/// come and go.
pub(super) fn bridge_mac(network: &Network) -> MacAddr {
    MacAddr::derived_from(&format!("network/{}", network.name))
}

/// The whole nft table of `network`.
///
/// Forwarding: among guests (which are forwarded only where br_netfilter makes the bridge ask), from the
/// subnet to anywhere, replies to it, and nothing else in either direction; IPv6 has no address here yet, so
/// all of it is refused. Another NAT network's table refuses what comes in from this one: every table has its say.
fn rules(network: &Network) -> String {
    let table = table_name(&network.name);
    let bridge = network.bridge();
    let subnet = network.subnet;
    format!(
        r#"table inet {table} {{
	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname "{bridge}" oifname "{bridge}" accept
		iifname "{bridge}" ip saddr {subnet} accept
		oifname "{bridge}" ip daddr {subnet} ct state established,related accept
		iifname "{bridge}" reject with icmpx admin-prohibited
		oifname "{bridge}" reject with icmpx admin-prohibited
	}}

	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr {subnet} ip daddr 224.0.0.0/24 return
		ip saddr {subnet} ip daddr 255.255.255.255 return
		ip saddr {subnet} ip daddr != {subnet} meta l4proto {{ tcp, udp }} masquerade to :1024-65535
		ip saddr {subnet} ip daddr != {subnet} masquerade
	}}
}}
"#
    )
}
