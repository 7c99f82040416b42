//! Frames between the ports of a bridge, which are the bridge's alone to pass or not unless `net.bridge.bridge-nf-call-*` say
//! otherwise: with them, a firewall that was made for what is routed (Docker's drops it) drops what guests of one network
//! send to each other.
//!
//! These sysctls belong to all bridges of the host, as long as the kernel's br_netfilter is there.

use super::Remark;
use super::step::Step;
use crate::config::{BridgeNfCall, Config, Network};
use crate::network::inventory::{BRIDGE_NF_CALL, Inventory};
use crate::types::Family;

/// The steps after which bridged frames go through no other's rules.
pub(super) fn steps(config: &Config, networks: &[&Network], inventory: &Inventory) -> Vec<Step> {
    if config.host.bridge_nf_call != BridgeNfCall::Off || !networks.iter().any(|it| is_bridged(it))
    {
        return Vec::new();
    }
    let keys = on(inventory).map(|key| Step::SetSysctl {
        key: key.to_owned(),
        value: "0".to_owned(),
        was: "1".to_owned(),
    });
    keys.collect()
}

/// That bridged frames go through iptables, and stay so.
pub(super) fn remark(
    config: &Config,
    networks: &[&Network],
    inventory: &Inventory,
) -> Option<Remark> {
    let left = config.host.bridge_nf_call == BridgeNfCall::Leave;
    let keys: Vec<&str> = on(inventory).collect();
    let said = left && !keys.is_empty() && networks.iter().any(|it| is_bridged(it));
    said.then(|| Remark {
        network: None,
        text: format!(
            "frames from guest to guest of one network go through iptables as well: {}=1",
            keys.join("=1, ")
        ),
    })
}

/// Whether frames of `family` from guest to guest of `network` are to be accepted where iptables would drop them.
pub(super) fn is_accepted(
    config: &Config,
    network: &Network,
    inventory: &Inventory,
    family: Family,
) -> bool {
    let accept = config.host.bridge_nf_call == BridgeNfCall::Accept;
    accept && is_bridged(network) && inventory.shows_bridged(family)
}

/// Whether the guests of `network` are ports of a bridge of the kernel's; others show no frames to iptables.
fn is_bridged(network: &Network) -> bool {
    !network.switch.is_ovs() && !network.taps_uplink()
}

/// The sysctls that show bridged frames to iptables.
fn on(inventory: &Inventory) -> impl Iterator<Item = &'static str> {
    let is_on = |key: &&str| inventory.sysctls.get(*key).is_some_and(|it| it == "1");
    BRIDGE_NF_CALL.into_iter().filter(is_on)
}
