//! Uplinks: by which link of the host a network's frames leave it, and how they are read.

use std::str::FromStr;

use super::problem::suggest;
use super::reader::{At, Reader, Section};
use crate::types::{IfName, VlanId};

/// Where a network leaves the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// The link, or the links that are bonded to one.
    pub base: Base,
    /// The VLAN whose tag the network's frames have there.
    pub vlan: Option<VlanId>,
}

/// What an uplink is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// A link of the host.
    Link(IfName),
    /// A bond that ringtap makes of links of the host.
    Bond(Bond),
}

/// Links that act as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bond {
    /// The links, two or more.
    pub links: Vec<IfName>,
    /// How they share the work.
    pub mode: BondMode,
}

impl Bond {
    /// The bond's own name.
    pub fn name(&self) -> IfName {
        IfName::for_bond(&self.links)
    }
}

impl Uplink {
    /// The link or bond as a whole.
    pub fn base_link(&self) -> IfName {
        match &self.base {
            Base::Link(link) => link.clone(),
            Base::Bond(bond) => bond.name(),
        }
    }

    /// The link that the network's frames leave by: the whole, or the link of its VLAN.
    pub fn link(&self) -> IfName {
        let base = self.base_link();
        match self.vlan {
            Some(vlan) => IfName::for_vlan(&base, vlan),
            None => base,
        }
    }

    /// The links of the host that must be there for it.
    pub fn hardware(&self) -> &[IfName] {
        match &self.base {
            Base::Link(link) => std::slice::from_ref(link),
            Base::Bond(bond) => &bond.links,
        }
    }

    /// The links that ringtap makes for it, in the order in which they come about.
    pub fn made(&self) -> Vec<IfName> {
        let bond = matches!(self.base, Base::Bond(_)).then(|| self.base_link());
        let tagged = self.vlan.map(|_| self.link());
        bond.into_iter().chain(tagged).collect()
    }
}

/// How bonded links share the work: the kernel's names (bonding.rst, "mode").
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum BondMode {
    /// One works, the others wait for its failure.
    #[serde(rename = "active-backup")]
    ActiveBackup,
    /// Frames go round in turn.
    #[serde(rename = "balance-rr")]
    BalanceRr,
    /// By a hash of the addresses.
    #[serde(rename = "balance-xor")]
    BalanceXor,
    /// By all at once.
    #[serde(rename = "broadcast")]
    Broadcast,
    /// LACP, with the switch.
    #[serde(rename = "802.3ad")]
    Lacp,
    /// By load on the way out.
    #[serde(rename = "balance-tlb")]
    BalanceTlb,
    /// By load both ways.
    #[serde(rename = "balance-alb")]
    BalanceAlb,
}

impl BondMode {
    const ALL: [(&str, Self); 7] = [
        ("active-backup", Self::ActiveBackup),
        ("balance-rr", Self::BalanceRr),
        ("balance-xor", Self::BalanceXor),
        ("broadcast", Self::Broadcast),
        ("802.3ad", Self::Lacp),
        ("balance-tlb", Self::BalanceTlb),
        ("balance-alb", Self::BalanceAlb),
    ];

    /// As `ip link` has it.
    pub fn name(self) -> &'static str {
        let named = Self::ALL.into_iter().find(|(_, mode)| *mode == self);
        named.map_or("", |(name, _)| name)
    }
}

impl FromStr for BondMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|(name, _)| *name == text);
        named
            .map(|(_, mode)| mode)
            .ok_or_else(|| format!("{text:?} is no mode of bonds"))
    }
}

/// `uplink` and `vlan` of a network: `"eno1"`, or `{ bond = ["eno1", "eno2"], mode = "active-backup" }`.
pub(super) fn read<'t>(reader: &Reader<'t>, section: &Section<'t>) -> Option<Uplink> {
    let vlan = read_vlan(reader, section);
    let base = if section.is_table("uplink") {
        read_bond(reader, &reader.table(section, "uplink")?).map(Base::Bond)
    } else {
        let name = reader.required(section, "uplink", "\"eno1\"")?;
        read_link(reader, &name, section.key("uplink")).map(Base::Link)
    };
    Some(Uplink {
        base: base?,
        vlan: vlan?,
    })
}

/// The VLAN at `vlan`, if there is one; none where it is a wrong one.
pub(super) fn read_vlan(reader: &Reader<'_>, section: &Section<'_>) -> Option<Option<VlanId>> {
    if !section.has("vlan") {
        return Some(None);
    }
    let number = reader.integer(section, "vlan")?;
    as_vlan_id(reader, &number, section.key("vlan")).map(Some)
}

/// `number` as a VLAN id, if it is one.
pub(super) fn as_vlan_id(reader: &Reader<'_>, number: &At<i64>, key: String) -> Option<VlanId> {
    let id = u16::try_from(number.value).ok();
    let id = id.and_then(|id| VlanId::try_from(id).ok());
    if id.is_none() {
        let cause = format!("{} is no VLAN id", number.value);
        reader.problem(&number.span, key, cause, "write 1 to 4094");
    }
    id
}

fn read_link(reader: &Reader<'_>, name: &At<&str>, key: String) -> Option<IfName> {
    let link = reader.parse(name, key, "name a link of the host")?;
    Some(link.value)
}

fn read_bond<'t>(reader: &Reader<'t>, table: &Section<'t>) -> Option<Bond> {
    reader.known_keys(table, &["bond", "mode"]);
    let names = reader.text_list(table, "bond");
    if names.len() < 2 {
        reader.problem(
            &table.span_of("bond"),
            table.key("bond"),
            "a bond has two links or more",
            "write bond = [\"eno1\", \"eno2\"], or uplink = \"eno1\"",
        );
        return None;
    }
    let links: Option<Vec<IfName>> = names
        .iter()
        .enumerate()
        .map(|(index, name)| read_link(reader, name, format!("{}[{index}]", table.key("bond"))))
        .collect();
    let mode = match reader.text(table, "mode") {
        Some(text) => {
            let remedy = suggest(text.value, BondMode::ALL.map(|(name, _)| name));
            reader.parse(&text, table.key("mode"), &remedy)?.value
        }
        None => BondMode::ActiveBackup,
    };
    Some(Bond {
        links: links?,
        mode,
    })
}
