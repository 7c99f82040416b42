//! The host's forwarding, which networks share.

use std::collections::BTreeMap;

use super::passes;
use super::step::Step;
use crate::config::{Config, Network};
use crate::network::inventory::{Inventory, forwarding_key, link_key};
use crate::types::Family;

/// The steps after which the host forwards what `networks` need. They come last, once every network has its rules: they
/// open the host as a whole.
pub(super) fn steps(config: &Config, networks: &[&Network], inventory: &Inventory) -> Vec<Step> {
    let forwards = |family| {
        let mut networks = networks.iter();
        networks.any(|network| passes(config, network, family))
    };
    let lacks = |family: &Family| forwards(*family) && !inventory.forwards(*family);
    let mut steps = Vec::new();
    for family in Family::BOTH.into_iter().filter(lacks) {
        if family == Family::Ipv6 {
            steps.extend(keep_listening(inventory));
        }
        steps.push(Step::EnableForwarding {
            family,
            before: along_with(family, inventory),
        });
    }
    steps
}

/// A host that forwards IPv6 no longer heeds router advertisements, and forgets the routes that it has from them, except
/// on links with `accept_ra=2` (ip-sysctl.rst): those that it has its way out from get that.
fn keep_listening(inventory: &Inventory) -> Vec<Step> {
    let listening = inventory.links.iter().filter(|link| link.by_ra);
    let keys = listening.map(|link| link_key(Family::Ipv6, &link.name, "accept_ra"));
    let steps = keys.filter_map(|key| {
        let was = inventory.sysctls.get(&key)?.clone();
        (was == "1").then(|| Step::SetSysctl {
            key,
            value: "2".to_owned(),
            was,
        })
    });
    steps.collect()
}

/// The sysctls that the kernel changes when it is made to forward, as they are.
fn along_with(family: Family, inventory: &Inventory) -> BTreeMap<String, String> {
    let of_family = match family {
        Family::Ipv4 => "net.ipv4.",
        Family::Ipv6 => "net.ipv6.",
    };
    let changes = |key: &str| {
        key == forwarding_key(family)
            || (key.starts_with(of_family)
                && (key.ends_with(".forwarding") || key.ends_with(".all.accept_redirects")))
    };
    let all = inventory.sysctls.iter();
    all.filter(|(key, _)| changes(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}
