//! Who can open connections to whom: computed from the file alone, by the same [`Policy`] that the rules are made of.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::Error;
use super::policy::Policy;
use crate::cli::ReportArgs;
use crate::config::{Config, Forward, HostAccess, MacvtapMode, Mode, Network};
use crate::report::{print_json, say};
use crate::types::{Family, Name};

/// `ringtap reach`: prints who can open connections to whom.
///
/// # Errors
/// The file has problems.
pub fn reach(args: &ReportArgs) -> Result<(), Error> {
    let config = Config::load(&args.network.host.config)?;
    let chosen = config.chosen(&args.network.names)?;
    let matrices = Family::BOTH.map(|family| Matrix::of(&config, &chosen, family));
    let forwards = forwards(&config, &chosen);
    if args.json {
        let [ipv4, ipv6] = matrices;
        print_json(&serde_json::json!({
            "ipv4": ipv4.cells,
            "ipv6": ipv6.cells,
            "forwards": forwards,
        }));
    } else {
        matrices.iter().for_each(say);
        say(
            "yes: can open connections; no: refused; admin: as the host's other rules say; \
             -: has no such addresses",
        );
        let doors = chosen.iter().filter_map(|name| config.networks.get(name));
        let doors: Vec<String> = doors.filter_map(doors_of).collect();
        if !doors.is_empty() {
            say("\nBesides its DHCP and DNS, guests reach of the host:");
            doors
                .iter()
                .for_each(|doors| say(format_args!("  {doors}")));
        }
        if !forwards.is_empty() {
            say("\nBesides, to everybody who reaches the host:");
            forwards
                .iter()
                .for_each(|forward| say(format_args!("  {forward}")));
        }
    }
    Ok(())
}

fn forwards(config: &Config, chosen: &BTreeSet<Name>) -> Vec<String> {
    let networks = chosen.iter().filter_map(|name| config.networks.get(name));
    let networks = networks.filter(|network| network.router_of().is_none());
    let all = networks.flat_map(|network| &network.forwards);
    all.map(Forward::to_string).collect()
}

/// What guests of `network` reach of the host by the file's word alone.
fn doors_of(network: &Network) -> Option<String> {
    let HostAccess::Only(ports) = &network.host_access else {
        return None;
    };
    let ports: Vec<String> = ports
        .iter()
        .map(|(protocol, ports)| format!("{protocol}:{ports}"))
        .collect();
    (!ports.is_empty()).then(|| format!("{} {}", network.name, ports.join(" ")))
}

/// Somebody who opens connections, or to whom they are opened.
#[derive(Debug, Clone, Copy)]
enum Party<'a> {
    Guests(&'a Network),
    Host,
    /// The LAN and the internet.
    Outside,
}

impl Party<'_> {
    /// As the host's gateways see it: guests on the LAN are a part of that.
    fn as_routed(self) -> Self {
        match self {
            Party::Guests(network) if network.is_lan() => Party::Outside,
            party => party,
        }
    }
}

impl fmt::Display for Party<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Party::Guests(network) => network.name.fmt(f),
            // What no network can be called.
            Party::Host => f.write_str("(host)"),
            Party::Outside => f.write_str("(outside)"),
        }
    }
}

/// Whether one party can open connections to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Yes,
    No,
    /// No rule of ringtap's speaks against it; the admin's may.
    Admin,
}

impl Verdict {
    /// That of gateways one after another: each has its say.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Admin, _) | (_, Self::Admin) => Self::Admin,
            (Self::Yes, Self::Yes) => Self::Yes,
        }
    }

    /// That of the gateway of `network`, whose rules pass the packet or not.
    fn at(network: &Network, passes: bool) -> Self {
        match (&network.mode, passes) {
            (Mode::Open, _) => Self::Admin,
            (_, true) => Self::Yes,
            (_, false) => Self::No,
        }
    }
}

/// Whether `from` can open connections to `to`; none where one of them has no addresses of the family, or where it is
/// nothing of ringtap's.
fn verdict(from: Party<'_>, to: Party<'_>, family: Family) -> Option<Verdict> {
    if let Some(verdict) = on_lan(from, to) {
        return Some(verdict);
    }
    let (from, to) = (from.as_routed(), to.as_routed());
    let leaves = |network: &Network| {
        let policy = Policy::of(network, family)?;
        Some(Verdict::at(network, policy.outbound))
    };
    let enters = |network: &Network| {
        let policy = Policy::of(network, family)?;
        Some(Verdict::at(network, policy.inbound))
    };
    match (from, to) {
        (Party::Guests(from), Party::Guests(to)) if from.name == to.name => {
            from.prefix(family)?;
            Some(if from.isolate_guests {
                Verdict::No
            } else {
                Verdict::Yes
            })
        }
        (Party::Guests(from), Party::Guests(to)) => Some(leaves(from)?.and(enters(to)?)),
        // Between them and the host is the tenant's router.
        (Party::Guests(network), Party::Host) if network.tenant.is_some() => {
            let is_open = network.host_access == HostAccess::All;
            Some(leaves(network)?.and(Verdict::at(network, is_open)))
        }
        (Party::Host, Party::Guests(network)) if network.tenant.is_some() => enters(network),
        (Party::Guests(network), Party::Host) | (Party::Host, Party::Guests(network)) => {
            network.prefix(family)?;
            let from_guests = matches!(from, Party::Guests(_));
            let is_open = network.has_host()
                && (!from_guests
                    || network.mode == Mode::Open
                    || network.host_access == HostAccess::All);
            Some(match is_open {
                true => Verdict::Yes,
                false => Verdict::No,
            })
        }
        (Party::Guests(network), Party::Outside) => leaves(network),
        (Party::Outside, Party::Guests(network)) => enters(network),
        (Party::Host | Party::Outside, Party::Host | Party::Outside) => None,
    }
}

/// The verdict where the LAN decides; none where the host's gateways do.
fn on_lan(from: Party<'_>, to: Party<'_>) -> Option<Verdict> {
    match (from, to) {
        (Party::Guests(from), Party::Guests(to)) if from.is_lan() && to.is_lan() => {
            Some(if from.trunk() != to.trunk() {
                Verdict::Admin // they may be one LAN, or two
            } else {
                among_ports(from, to)
            })
        }
        (Party::Guests(network), Party::Host) | (Party::Host, Party::Guests(network)) => {
            match network.mode {
                // Whether the host has addresses there is not ringtap's doing.
                Mode::Bridge { .. }
                | Mode::Macvtap { shim: true, .. }
                | Mode::Ipvtap { shim: true, .. } => Some(Verdict::Admin),
                // What a macvtap or ipvtap sends leaves by the uplink, and the host's own link never sees it.
                Mode::Macvtap { .. } | Mode::Ipvtap { .. } => Some(Verdict::No),
                _ => None,
            }
        }
        (Party::Guests(network), Party::Outside) | (Party::Outside, Party::Guests(network)) => {
            network.is_lan().then_some(Verdict::Yes)
        }
        _ => None,
    }
}

/// The verdict on NICs that are attached to one link.
fn among_ports(from: &Network, to: &Network) -> Verdict {
    let passes = |network: &Network| match network.mode {
        Mode::Macvtap { peers, .. } => match peers {
            MacvtapMode::Bridge => Verdict::Yes,
            MacvtapMode::Vepa => Verdict::Admin, // the switch beyond decides
            MacvtapMode::Private | MacvtapMode::Passthru => Verdict::No,
        },
        _ => Verdict::Yes,
    };
    if from.isolate_guests && to.isolate_guests {
        return Verdict::No;
    }
    passes(from).and(passes(to))
}

/// Everybody's verdict on everybody in one family.
struct Matrix<'a> {
    family: Family,
    parties: Vec<Party<'a>>,
    cells: Vec<Cell>,
}

#[derive(Debug, Serialize)]
struct Cell {
    from: String,
    to: String,
    /// None where there is nothing to say.
    allowed: Option<Verdict>,
}

impl<'a> Matrix<'a> {
    fn of(config: &'a Config, chosen: &BTreeSet<Name>, family: Family) -> Self {
        let networks = chosen.iter().filter_map(|name| config.networks.get(name));
        let with_guests = networks.filter(|network| network.router_of().is_none());
        let parties: Vec<Party<'a>> = with_guests
            .map(Party::Guests)
            .chain([Party::Host, Party::Outside])
            .collect();
        let cells = parties.iter().flat_map(|from| {
            parties.iter().map(|to| Cell {
                from: from.to_string(),
                to: to.to_string(),
                allowed: verdict(*from, *to, family),
            })
        });
        Self {
            family,
            cells: cells.collect(),
            parties,
        }
    }
}

impl fmt::Display for Matrix<'_> {
    /// A row for each that opens connections, a column for each that they are opened to.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.parties.iter().map(Party::to_string).collect();
        let corner = format!("{} from \\ to", self.family);
        let first = names.iter().chain([&corner]).map(String::len).max();
        let first = first.unwrap_or_default();
        write!(f, "{corner:first$}")?;
        writeln!(f, "  {}", columns(&names, &names))?;
        for (name, row) in names.iter().zip(self.cells.chunks(names.len())) {
            let words = row.iter().map(|cell| match cell.allowed {
                Some(Verdict::Yes) => "yes",
                Some(Verdict::No) => "no",
                Some(Verdict::Admin) => "admin",
                None => "-",
            });
            let words: Vec<String> = words.map(str::to_owned).collect();
            writeln!(f, "{name:first$}  {}", columns(&words, &names))?;
        }
        Ok(())
    }
}

/// `words` as a line, each under its column's name.
fn columns(words: &[String], names: &[String]) -> String {
    let word =
        |(word, name): (&String, &String)| format!("{word:0$}", name.len().max("admin".len()));
    let all: Vec<String> = words.iter().zip(names).map(word).collect();
    all.join("  ").trim_end().to_owned()
}
