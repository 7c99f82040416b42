//! What guests of a network reach of the host's own services: `host-access`, a list such as `["tcp:22", "udp:5000-5009"]`, or
//! `["all"]`.

use std::str::FromStr;

use super::forward::{Ports, Protocol};
use super::network::Mode;
use super::parse_each;
use super::reader::{Reader, Section};

/// What guests may open to the host, besides the network's own DHCP and DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostAccess {
    /// These.
    Only(Vec<(Protocol, Ports)>),
    /// Everything that listens there.
    All,
}

impl Default for HostAccess {
    fn default() -> Self {
        Self::Only(Vec::new())
    }
}

impl HostAccess {
    /// What any of `all` opens.
    pub(super) fn together<'a>(all: impl Iterator<Item = &'a Self>) -> Self {
        let mut ports = Vec::new();
        for one in all {
            match one {
                Self::All => return Self::All,
                Self::Only(more) => ports.extend(more.iter().copied()),
            }
        }
        Self::Only(ports)
    }
}

/// One word of the list.
enum Word {
    All,
    Ports(Protocol, Ports),
}

impl FromStr for Word {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ports = |text: &str| {
            let (protocol, ports) = text.split_once(':')?;
            Some(Self::Ports(protocol.parse().ok()?, ports.parse().ok()?))
        };
        match text {
            "all" => Ok(Self::All),
            _ => ports(text).ok_or_else(|| format!("{text:?} is not a port of the host")),
        }
    }
}

/// That of a network of `mode`; what is wrong with it is noted.
pub(super) fn read<'t>(
    reader: &Reader<'t>,
    section: &Section<'t>,
    mode: Option<&Mode>,
) -> HostAccess {
    const KEY: &str = "host-access";
    let words = parse_each::<Word>(reader, section, KEY, "write it as \"tcp:22\", or \"all\"");
    let cause = match mode {
        Some(Mode::Open) => Some("an open network has no rules of ringtap's"),
        Some(Mode::Isolated { host: false }) => Some("the host keeps off (host = false)"),
        Some(mode) if mode.is_lan() => Some("the LAN reaches the host as the host's rules say"),
        _ => None,
    };
    if let Some(cause) = cause.filter(|_| section.has(KEY)) {
        let remedy = "leave it out";
        reader.problem(&section.span_of(KEY), section.key(KEY), cause, remedy);
    }
    let mut only = Vec::new();
    for word in words.unwrap_or_default() {
        match word {
            Word::All => return HostAccess::All,
            Word::Ports(protocol, ports) => only.push((protocol, ports)),
        }
    }
    HostAccess::Only(only)
}
