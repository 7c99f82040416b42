//! What a network on the LAN needs: the link that guests are attached to, which must be there, and nothing else.

use super::network_dir;
use super::step::Step;
use crate::config::{Mode, Network};
use crate::network::inventory::{Inventory, Link};

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
    let name = network.trunk();
    let held = inventory.networks.get(&network.name);
    if held.is_some_and(|held| held.bridge) {
        let cause = "it is up with a bridge of its own".to_owned();
        return Some((cause, format!("run `ringtap down {}` first", network.name)));
    }
    let Some(found) = inventory.link(name.as_str()) else {
        let cause = format!("the host has no link `{name}`");
        let remedy = "make it (ip link add, or the distribution's way), or name another".to_owned();
        return Some((cause, remedy));
    };
    unfit(network, found).or_else(|| {
        let mtu = network.mtu.map(u32::from);
        mtu.filter(|mtu| *mtu > found.mtu).map(|mtu| {
            let cause = format!("its MTU of {mtu} is above the {} of `{name}`", found.mtu);
            (cause, "lower it, or raise the link's".to_owned())
        })
    })
}

/// Why NICs can't be attached to the link that is there.
fn unfit(network: &Network, found: &Link) -> Option<(String, String)> {
    let name = &found.name;
    match (&network.mode, &found.master) {
        (Mode::Bridge { .. }, _) if found.kind.as_deref() != Some("bridge") => {
            let remedy = match &found.master {
                Some(master) => format!("name `{master}`, which it is a port of"),
                None => "name a bridge".to_owned(),
            };
            Some((format!("`{name}` is no bridge"), remedy))
        }
        (Mode::Macvtap { .. }, Some(master)) => Some((
            format!("`{name}` is a port of `{master}`, which gets its frames"),
            format!("use mode = \"bridge\" with bridge = \"{master}\", or name another link"),
        )),
        (Mode::Macvtap { .. }, None) if name == "lo" => Some((
            "the loopback link has no peers".to_owned(),
            "name another link".to_owned(),
        )),
        _ => None,
    }
}
