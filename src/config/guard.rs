//! Which of a guest's claims are checked: `guard`, of a network or a NIC.
//!
//! All of them unless the file says otherwise: `guard = false` checks none, `guard = { ip = false }` the others. What a NIC
//! does not say of it is as its network has it.

use super::reader::{Reader, Section};

/// Which claims are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// `mac`: frames come from the NIC's own MAC address.
    pub mac: bool,
    /// `ip`: packets come from addresses that the file, DHCP or a router gave the NIC, and its neighbours are told no others.
    pub ip: bool,
    /// `services`: nobody but the network serves DHCP, advertises routers or redirects.
    pub services: bool,
    /// `vlan`: no tags but of VLANs that the NIC is in.
    pub vlan: bool,
    /// `protocols`: nothing but IP and what it needs.
    pub protocols: bool,
}

impl Default for Guard {
    fn default() -> Self {
        Self::all(true)
    }
}

impl Guard {
    const PARTS: [&str; 5] = ["mac", "ip", "services", "vlan", "protocols"];

    fn all(checked: bool) -> Self {
        Self {
            mac: checked,
            ip: checked,
            services: checked,
            vlan: checked,
            protocols: checked,
        }
    }

    fn part(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "mac" => &mut self.mac,
            "ip" => &mut self.ip,
            "services" => &mut self.services,
            "vlan" => &mut self.vlan,
            "protocols" => &mut self.protocols,
            _ => return None,
        })
    }

    /// What `section` says, and otherwise as is `usual`; what is wrong there is noted.
    pub(super) fn read<'t>(reader: &Reader<'t>, section: &Section<'t>, usual: Self) -> Self {
        const KEY: &str = "guard";
        if !section.is_table(KEY) {
            let truth = reader.boolean(section, KEY);
            return truth.map_or(usual, |truth| Self::all(truth.value));
        }
        let mut guard = usual;
        let Some(parts) = reader.table(section, KEY) else {
            return guard;
        };
        reader.known_keys(&parts, &Self::PARTS);
        for name in Self::PARTS {
            let said = reader.boolean(&parts, name);
            if let (Some(said), Some(part)) = (said, guard.part(name)) {
                *part = said.value;
            }
        }
        if guard.ip && !guard.mac {
            let cause = "an address that DHCP gives is known as a NIC's by its MAC address";
            let remedy = "write ip = false as well, or leave mac to true";
            reader.problem(&section.span_of(KEY), section.key(KEY), cause, remedy);
        }
        guard
    }
}
