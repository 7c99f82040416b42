//! What the kernel limits and many networks need more of.

use super::step::Step;
use crate::config::Network;
use crate::network::inventory::{INOTIFY_INSTANCES, Inventory};

/// Left for others of the same user, and for networks to come.
const SPARE: usize = 128;

/// Each dnsmasq watches for changes of its files by an instance of inotify, of which a user has 128 as a rule
/// (inotify(7)).
pub(super) fn steps(networks: &[&Network], inventory: &Inventory) -> Option<Step> {
    let was = inventory.sysctls.get(INOTIFY_INSTANCES)?;
    let served = |name| {
        inventory
            .held(name)
            .is_some_and(|held| held.dnsmasq.is_some())
    };
    let new = networks
        .iter()
        .filter(|network| network.has_services() && !served(&network.name));
    let new = new.count();
    let running = inventory
        .all_held()
        .filter(|(_, held)| held.dnsmasq.is_some());
    let wanted = running.count() + new + SPARE / 2;
    let there: usize = was.parse().ok()?;
    (new > 0 && wanted > there).then(|| Step::SetSysctl {
        key: INOTIFY_INSTANCES.to_owned(),
        value: (wanted + SPARE / 2).to_string(),
        was: was.clone(),
    })
}
