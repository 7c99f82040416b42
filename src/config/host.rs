//! What the file says of the host itself: `[host]`.

use super::problem::suggest;
use super::reader::{Reader, Section};
use super::tenant::TenantNet;

/// The host's settings, all of which have a default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSettings {
    /// Whether frames between the ports of a bridge go through iptables.
    pub bridge_nf_call: BridgeNfCall,
    /// Where the addresses of tenants' routers are from.
    pub tenant_net: TenantNet,
}

/// What becomes of `net.bridge.bridge-nf-call-*`, by which the kernel shows frames between the ports of a bridge to
/// iptables, ip6tables and arptables, and so to rules that were made for what is routed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BridgeNfCall {
    /// They are set to 0 while networks are up.
    #[default]
    Off,
    /// They stay, and guests' frames are accepted where iptables would drop them.
    Accept,
    /// They stay, and so does what iptables does.
    Leave,
}

impl BridgeNfCall {
    /// What the file calls them.
    const NAMES: [(&str, Self); 3] = [
        ("off", Self::Off),
        ("accept", Self::Accept),
        ("leave", Self::Leave),
    ];
}

/// `[host]`, with the defaults where it is not there.
pub(super) fn read<'t>(reader: &Reader<'t>, root: &Section<'t>) -> HostSettings {
    let settings = HostSettings::default();
    let Some(section) = reader.table(root, "host") else {
        return settings;
    };
    reader.known_keys(&section, &["bridge-nf-call", "tenant-net"]);
    let remedy = "write it as \"169.254.0.0/17\"";
    let tenant_net = reader.parsed::<TenantNet>(&section, "tenant-net", remedy);
    HostSettings {
        bridge_nf_call: read_bridge_nf_call(reader, &section).unwrap_or_default(),
        tenant_net: tenant_net.map(|at| at.value).unwrap_or_default(),
    }
}

fn read_bridge_nf_call<'t>(reader: &Reader<'t>, section: &Section<'t>) -> Option<BridgeNfCall> {
    let text = reader.text(section, "bridge-nf-call")?;
    let mut known = BridgeNfCall::NAMES.iter();
    let found = known.find(|(name, _)| *name == text.value);
    if found.is_none() {
        let cause = format!("unknown value {:?}", text.value);
        let remedy = suggest(text.value, BridgeNfCall::NAMES.map(|(name, _)| name));
        reader.problem(&text.span, section.key("bridge-nf-call"), cause, remedy);
    }
    found.map(|(_, value)| *value)
}
