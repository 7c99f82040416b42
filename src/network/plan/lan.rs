//! What a network on somebody else's bridge needs: the bridge, which must be there, and nothing else.

use super::network_dir;
use super::step::Step;
use crate::config::Network;
use crate::network::inventory::Inventory;

/// The steps: a directory, by which guests show that they use the network.
pub(super) fn steps(network: &Network, inventory: &Inventory) -> Vec<Step> {
    let held = inventory.networks.get(&network.name);
    let dir = network_dir(&inventory.run_dir, &network.name);
    match held.is_some_and(|held| held.dir) {
        true => Vec::new(),
        false => vec![Step::MakeDir { dir }],
    }
}

/// What stands in the way: cause and remedy.
pub(super) fn clash(network: &Network, inventory: &Inventory) -> Option<(String, String)> {
    let name = network.bridge();
    let held = inventory.networks.get(&network.name);
    if held.is_some_and(|held| held.bridge) {
        let cause = "it is up with a bridge of its own".to_owned();
        return Some((cause, format!("run `ringtap down {}` first", network.name)));
    }
    let Some(found) = inventory.link(name.as_str()) else {
        let cause = format!("the host has no bridge `{name}`");
        let remedy = "make it (ip link add, or the distribution's way), or name another".to_owned();
        return Some((cause, remedy));
    };
    if found.kind.as_deref() != Some("bridge") {
        let cause = format!("`{name}` is no bridge");
        return Some((cause, "name a bridge that it is a port of".to_owned()));
    }
    let mtu = network.mtu.map(u32::from);
    mtu.filter(|mtu| *mtu > found.mtu).map(|mtu| {
        let cause = format!("its MTU of {mtu} is above the {} of `{name}`", found.mtu);
        (cause, "lower it, or raise the bridge's".to_owned())
    })
}
