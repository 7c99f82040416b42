//! What switches frames between the ports of a network: the kernel's bridge or Open vSwitch.

use serde::{Deserialize, Serialize};

use super::network::{LanBridge, Mode};
use super::problem::suggest;
use super::reader::{Reader, Section};

/// What a network's bridge is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Switch {
    /// The kernel's own.
    #[default]
    Linux,
    /// One of Open vSwitch's.
    Ovs(Datapath),
}

impl Switch {
    /// Whether it is Open vSwitch's.
    pub fn is_ovs(self) -> bool {
        matches!(self, Self::Ovs(_))
    }
}

/// Where Open vSwitch moves the frames of a bridge (ovs-vswitchd.conf.db(5), `datapath_type`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Datapath {
    /// In the kernel, by its module openvswitch.
    #[default]
    System,
    /// In ovs-vswitchd itself.
    Netdev,
}

impl Datapath {
    /// As Open vSwitch has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Netdev => "netdev",
        }
    }
}

/// `switch` and `datapath` of a network of `mode`; what is wrong with them is noted.
pub(super) fn read<'t>(reader: &Reader<'t>, section: &Section<'t>, mode: Option<&Mode>) -> Switch {
    let switch = match one_of(reader, section, "switch", ["linux", "ovs"]) {
        Some("ovs") => Switch::Ovs(Datapath::default()),
        _ => Switch::Linux,
    };
    let problem = |key: &str, cause: &str, remedy: &str| {
        if section.has(key) {
            reader.problem(&section.span_of(key), section.key(key), cause, remedy);
        }
    };
    if matches!(mode, Some(Mode::Macvtap { .. })) {
        let cause = "macvtaps are no ports of a switch of the host";
        problem("switch", cause, "leave it out, or write mode = \"bridge\"");
    }
    if !switch.is_ovs() {
        problem(
            "datapath",
            "only goes with switch = \"ovs\"",
            "leave it out",
        );
        return switch;
    }
    problem(
        "vlan-filtering",
        "Open vSwitch heeds VLANs anyway",
        "leave it out",
    );
    let there = |mode: &Mode| {
        matches!(
            mode,
            Mode::Bridge {
                bridge: LanBridge::There(_)
            }
        )
    };
    if mode.is_some_and(there) {
        let cause = "a bridge that is there has its own";
        problem("datapath", cause, "leave it out");
    }
    match one_of(reader, section, "datapath", ["system", "netdev"]) {
        Some("netdev") => Switch::Ovs(Datapath::Netdev),
        _ => switch,
    }
}

/// The word at `key`, if it is one of `known`; another one is noted.
fn one_of<'t>(
    reader: &Reader<'t>,
    section: &Section<'t>,
    key: &str,
    known: [&'static str; 2],
) -> Option<&'static str> {
    let text = reader.text(section, key)?;
    let found = known.into_iter().find(|word| *word == text.value);
    if found.is_none() {
        let cause = format!("unknown {key} {:?}", text.value);
        let remedy = suggest(text.value, known);
        reader.problem(&text.span, section.key(key), cause, remedy);
    }
    found
}
