//! Sysctls of links in a plan: their names, and the step to a value.

use super::step::Step;
use crate::network::inventory::{Inventory, link_key};
use crate::types::{Family, IfName};

/// The step that sets `name` of `link` to `value`, unless it is that; `usual` is what the kernel gives to a new link.
pub(super) fn set(
    family: Family,
    link: &IfName,
    name: &str,
    (usual, value): (&str, &str),
    inventory: &Inventory,
) -> Option<Step> {
    let key = link_key(family, link.as_str(), name);
    let was = inventory.sysctls.get(&key).map_or(usual, String::as_str);
    (was != value).then(|| Step::SetSysctl {
        value: value.to_owned(),
        was: was.to_owned(),
        key,
    })
}
