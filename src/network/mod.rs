//! Networks: what a file wants, made so on the host, and taken back.
//!
//! ```text
//! Config (a value) ┐
//!                  ├→ plan::plan → steps → apply::up → the host → observe again: nothing left to do?
//! host → observe → Inventory ┘                │ one fails: undo in reverse
//!                                             ↓
//!                                  journal, written ahead → apply::down
//! ```
//!
//! [`plan()`] and [`status()`] look and compare; they change nothing, not even the run directory. [`up`] holds the
//! run directory's lock, refuses before it touches anything where something stands in the way, and verifies by
//! looking again; what it had to set right on a network that was up is kept for [`status()`]. [`watch()`] does the same
//! again and again, as something changes. [`down`] works from the journal alone, so it takes back what was done even
//! if the file has changed since. The host is touched under [`apply`] and nowhere else, but for namespaces (`netns`), which
//! threads enter: a tenant's networks are planned, applied and looked at in one as others are on the host, in the same plan
//! and the same journal. Who can't confirm what moved their own way in is put back by [`confirm()`]'s other half.

mod addresses;
pub mod apply;
mod chains;
mod confirm;
pub mod inventory;
pub mod ipvtap;
pub mod journal;
pub mod leases;
mod listeners;
mod mended;
mod netns;
pub mod notices;
pub mod observe;
mod origin;
pub mod ovs;
pub mod plan;
mod plug;
pub mod policy;
pub mod port;
mod reach;
mod script;
mod status;
mod watch;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::fs;
use std::io;
use std::path::{Path, PathBuf, absolute};

use serde::Serialize;
use thiserror::Error;

use crate::cli::{HostArgs, NetworkArgs, ReportArgs, UpArgs};
use crate::config::{Config, Problems};
use crate::programs::{DNSMASQ, NFT, ToolError, require};
use crate::report::{print_json, say, say_in_colour};
use crate::types::{IfName, Name};
use apply::UpError;
use apply::netlink::{Netlink, NetlinkError};
use inventory::Inventory;
use journal::{Journal, Record, RunDir, RunDirError};
use mended::By;
use observe::{ObserveError, Users, observe};
use plan::{Clashes, Owner, Planned, Remark};

pub use addresses::Addresses;
pub use confirm::{confirm, take_back_unconfirmed};
pub use leases::leases;
pub use plug::{Plugged, leave_unused, plug, plugged_again};
pub use reach::reach;
pub use script::script;
pub use status::{StatusReport, status};
pub use watch::watch;

/// Why a command on networks failed; the causes are in its chain of sources.
#[derive(Debug, Error)]
pub enum Error {
    /// The file, or a name on the command line.
    #[error("nothing was done: the configuration has problems")]
    Config(#[from] Problems),
    /// The run directory's name.
    #[error(
        "--run-dir {}: {reason}; choose one of letters, digits and any of /._-+@:=~",
        path.display()
    )]
    RunDirName {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// dnsmasq, which gives up root, would not get at its files.
    #[error(
        "dnsmasq, which runs as an ordinary user, could not read its files in {}, since {} is closed to \
         others; run chmod o+x {}, or choose another --run-dir", .run_dir.display(), .closed.display(), .closed.display()
    )]
    RunDirClosed {
        /// The run directory.
        run_dir: PathBuf,
        /// It, or the directory above it, that is closed.
        closed: PathBuf,
    },
    /// No CAP_NET_ADMIN.
    #[error(
        "networks need root (CAP_NET_ADMIN), even to look at nftables; run it as root, or through sudo"
    )]
    Privilege,
    /// nft or dnsmasq.
    #[error("a program that networks need is missing")]
    Tool(#[from] ToolError),
    /// The run directory.
    #[error("the run directory can't be used")]
    RunDir(#[from] RunDirError),
    /// The kernel can't be asked.
    #[error("the kernel's links can't be had")]
    Netlink(#[from] NetlinkError),
    /// The host can't be looked at.
    #[error("the host can't be looked at; nothing was changed")]
    Observe(#[from] ObserveError),
    /// Something on the host is in the way.
    #[error("something on this host stands in the way; nothing was changed")]
    Clashes(#[from] Clashes),
    /// A step failed.
    #[error("the networks could not be brought up")]
    Up(#[from] UpError),
    /// All steps went well and yet the host is not as it should be.
    #[error(
        "every step went well, but the host is not as the file wants it; something else changes it. Left:\n{0}"
    )]
    Unverified(String),
    /// Guests are plugged into a network that was to go.
    #[error(
        "network {network} is in use: {} on its links; stop the guests first (nothing was changed)",
        users.join(", ")
    )]
    InUse {
        /// The network.
        network: Name,
        /// The links on its own.
        users: Vec<String>,
    },
    /// The kernel's notices, signals or timers.
    #[error("what happens on this host can't be watched")]
    Watch(#[source] io::Error),
    /// dnsmasq's file.
    #[error("cannot read the leases in {}", path.display())]
    Leases {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What an earlier `up` did is not confirmed yet.
    #[error(
        "what the last `ringtap up` changed is taken back in {seconds} s; run `ringtap confirm` to keep it, or wait"
    )]
    Unconfirmed {
        /// How many are left.
        seconds: u64,
    },
    /// There is no such thing.
    #[error("nothing waits to be confirmed (or it was taken back already: see `ringtap status`)")]
    NothingToConfirm,
    /// A guest's network would move the way of the person's session.
    #[error(
        "a network of this guest moves the link that your SSH session comes by; bring it up with `ringtap up` first, \
         which takes it back unless you confirm it"
    )]
    MovesOwnWay,
    /// Some of it could not be taken back.
    #[error("not all could be taken back; run `ringtap down` again once this is mended:\n{0}")]
    Down(String),
}

/// `ringtap plan`: prints what [`up`] would do.
///
/// # Errors
/// The file has problems, the host can't be looked at, or something stands in the way.
pub fn plan(args: &ReportArgs) -> Result<(), Error> {
    let host = &args.network.host;
    let config = Config::load(&host.config)?;
    let chosen = config.chosen(&args.network.names)?;
    let (_, inventory) = look(host)?;
    let steps = plan::plan(&config, &chosen, &inventory)?;
    let remarks = plan::remarks(&config, &chosen, &inventory);
    if args.json {
        print_json(&PlanReport {
            remarks,
            steps: steps.iter().map(Described::new).collect(),
            inventory,
        });
        return Ok(());
    }
    let mut text = script::styled(&remarks, &steps);
    if steps.is_empty() {
        text.push_str(&script::comment("nothing to do"));
    }
    say_in_colour(text.trim_end());
    Ok(())
}

/// `ringtap up`: brings networks up, printing each step on stdout; does nothing where they are.
///
/// # Errors
/// Something stands in the way, or a step failed: then what had been done is taken back.
pub fn up(args: &UpArgs) -> Result<(), Error> {
    let NetworkArgs { host, names } = &args.network;
    let config = Config::load(&host.config)?;
    let chosen = config.chosen(names)?;
    with_run_dir(host, |run_dir, netlink| {
        let seconds = |steps: &[Planned], inventory: &Inventory| {
            Ok(confirm::seconds(args.confirm, steps, inventory))
        };
        make_so(run_dir, netlink, &config, &chosen, By::Up, seconds)?;
        for record in records_of(&mut run_dir.journal, &chosen) {
            record.for_guests = false;
        }
        Ok(run_dir.save()?)
    })
}

/// Does `work` with the run directory locked, once it is clear that networks can be had here at all.
fn with_run_dir<T>(
    host: &HostArgs,
    work: impl FnOnce(&mut RunDir, &Netlink) -> Result<T, Error>,
) -> Result<T, Error> {
    let path = ready(host)?;
    let netlink = Netlink::open()?;
    let mut run_dir = RunDir::lock(&path)?;
    let done = work(&mut run_dir, &netlink);
    let closed = run_dir.close();
    let value = done?;
    closed?;
    Ok(value)
}

/// The run directory, once it is clear that networks can be had here at all.
fn ready(host: &HostArgs) -> Result<PathBuf, Error> {
    require_privilege()?;
    require(NFT)?;
    require(DNSMASQ)?;
    let path = run_dir_path(&host.run_dir)?;
    require_open(&path)?;
    Ok(path)
}

fn records_of<'j>(
    journal: &'j mut Journal,
    names: &'j BTreeSet<Name>,
) -> impl Iterator<Item = &'j mut Record> {
    let networks = journal.networks.iter_mut();
    networks.filter_map(|(name, record)| names.contains(name).then_some(record))
}

/// Makes `names` as the file wants them, has the person confirm it within as many seconds as `seconds` makes of the steps,
/// and says so.
fn make_so(
    run_dir: &mut RunDir,
    netlink: &Netlink,
    config: &Config,
    names: &BTreeSet<Name>,
    by: By,
    seconds: impl FnOnce(&[Planned], &Inventory) -> Result<Option<u32>, Error>,
) -> Result<(), Error> {
    if let Some(seconds) = confirm::seconds_left(&run_dir.journal) {
        return Err(Error::Unconfirmed { seconds });
    }
    let inventory = observe(netlink, run_dir.path(), &run_dir.journal)?;
    let steps = plan::plan(config, names, &inventory)?;
    if steps.is_empty() {
        origin::keep(run_dir.path(), config, names)?;
        say(format_args!("nothing to do: {} up", list(names)));
        return Ok(());
    }
    let seconds = seconds(&steps, &inventory)?;
    if let Some(seconds) = seconds {
        confirm::guard(run_dir, &steps, seconds)?;
    }
    let done = change(run_dir, netlink, config, names, &inventory, by);
    // What a failed step has left is taken back already.
    if matches!(done, Err(Error::Up(_))) && confirm::settle(run_dir) {
        run_dir.save()?;
    }
    done?;
    say(format_args!("up and verified: {}", list(names)));
    match seconds {
        Some(seconds) => Ok(confirm::ask(run_dir, seconds)?),
        None => Ok(()),
    }
}

/// Does what is left to do for `names` on the host of `inventory`, and verifies it by looking again.
fn change(
    run_dir: &mut RunDir,
    netlink: &Netlink,
    config: &Config,
    names: &BTreeSet<Name>,
    inventory: &Inventory,
    by: By,
) -> Result<(), Error> {
    let steps = plan::plan(config, names, inventory)?;
    for network in names.iter().filter_map(|name| config.networks.get(name)) {
        run_dir.journal.comes_up(network, by == By::Run);
    }
    apply::up(run_dir, netlink, &steps)?;
    mended::keep(run_dir.path(), by, &drift(config, names, inventory))?;
    origin::keep(run_dir.path(), config, names)?;
    let now = observe(netlink, run_dir.path(), &run_dir.journal)?;
    let left = plan::plan(config, names, &now)?;
    if !left.is_empty() {
        return Err(Error::Unverified(script(&[], &left)));
    }
    Ok(())
}

/// What must be done to those of `names` that are up, a line a step: what they share is each one's.
fn drift(
    config: &Config,
    names: &BTreeSet<Name>,
    inventory: &Inventory,
) -> BTreeMap<Name, Vec<String>> {
    let up = names.iter().filter(|name| inventory.held(name).is_some());
    let steps = up.map(|name| {
        let alone = plan::plan(config, &[name.clone()].into(), inventory);
        let steps = alone.unwrap_or_default();
        let lines = steps.iter().map(Planned::line).collect();
        (name.clone(), lines)
    });
    steps
        .filter(|(_, lines): &(_, Vec<_>)| !lines.is_empty())
        .collect()
}

/// `ringtap down`: takes back what [`up`] did.
///
/// # Errors
/// Guests are still plugged in, or some of it could not be taken back.
pub fn down(args: &NetworkArgs) -> Result<(), Error> {
    let path = run_dir_path(&args.host.run_dir)?;
    if !path.exists() {
        return nothing_to_take_back(args, &Journal::default());
    }
    require_privilege()?;
    let netlink = Netlink::open()?;
    let mut run_dir = RunDir::lock(&path)?;
    let done = take_down(&mut run_dir, &netlink, args);
    let closed = run_dir.close();
    done?;
    Ok(closed?)
}

fn take_down(run_dir: &mut RunDir, netlink: &Netlink, args: &NetworkArgs) -> Result<(), Error> {
    let journal = &run_dir.journal;
    let named = args.names.iter();
    let routers = named.filter_map(|name| journal.router_on(name));
    let behind: Vec<&Name> = routers.flat_map(|it| journal.networks_of(it)).collect();
    let meant =
        |name: &&Name| args.names.is_empty() || args.names.contains(name) || behind.contains(name);
    let names: Vec<Name> = journal.networks.keys().filter(meant).cloned().collect();
    // Without a network, what they shared may still be left of a `down` that failed.
    if names.is_empty() && (journal.is_empty() || !journal.networks.is_empty()) {
        return nothing_to_take_back(args, journal);
    }
    refuse_in_use(journal, netlink, &names)?;
    // Who can say so has not been locked out.
    confirm::settle(run_dir);
    let failures = apply::down(run_dir, netlink, &names)?;
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Error::Down(failures.join("\n")))
    }
}

/// That there is nothing to do is success, unless a name on the command line is nobody's.
fn nothing_to_take_back(args: &NetworkArgs, journal: &Journal) -> Result<(), Error> {
    let unknown = args
        .names
        .iter()
        .any(|name| !journal.networks.contains_key(name));
    if unknown {
        Config::load(&args.host.config)?.chosen(&args.names)?;
    }
    say("nothing to take back");
    Ok(())
}

fn refuse_in_use(journal: &Journal, netlink: &Netlink, names: &[Name]) -> Result<(), Error> {
    let mut known = UsersByPlace::new(netlink);
    for name in names {
        let users = users_of(journal, known.beside(journal, name)?, name, names);
        if !users.is_empty() {
            return Err(Error::InUse {
                network: name.clone(),
                users,
            });
        }
    }
    Ok(())
}

/// Who uses the links of the host and of namespaces of tenants, each looked up once.
struct UsersByPlace<'a> {
    netlink: &'a Netlink,
    known: BTreeMap<Option<Name>, Users>,
}

impl<'a> UsersByPlace<'a> {
    fn new(netlink: &'a Netlink) -> Self {
        Self {
            netlink,
            known: BTreeMap::new(),
        }
    }

    /// Who uses the links where network `name` is.
    fn beside(&mut self, journal: &Journal, name: &Name) -> Result<&Users, Error> {
        let tenant = journal.tenant_of(&Owner::Network(name.clone())).cloned();
        Ok(match self.known.entry(tenant.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(match &tenant {
                None => observe::users(self.netlink)?,
                Some(tenant) => observe::users_within(tenant)?,
            }),
        })
    }
}

/// Who would lose a link that ringtap made for network `name` if all of `going` went: the ports of its bridge, its uplink aside,
/// and macvtaps and ipvtaps on what is below. What other networks need as well stays.
fn users_of(journal: &Journal, users: &Users, name: &Name, going: &[Name]) -> Vec<String> {
    let Some(record) = journal.networks.get(name) else {
        return Vec::new();
    };
    let uplink = record.uplink().map(IfName::as_str);
    let bridge = record.own_link().into_iter();
    let ports = bridge.filter_map(|bridge| users.ports.get(bridge.as_str()));
    let ports = ports.flatten().filter(|port| Some(port.as_str()) != uplink);
    let stays = |link: &IfName| {
        let mut others = journal.networks.iter();
        others.any(|(other, record)| !going.contains(other) && record.links.contains(link))
    };
    let below = record.links.iter().filter(|link| !stays(link));
    let taps = below.filter_map(|link| users.taps.get(link.as_str()));
    ports.chain(taps.flatten()).cloned().collect()
}

/// What `plan --json` prints: with the inventory it is a test case.
#[derive(Serialize)]
struct PlanReport {
    remarks: Vec<Remark>,
    steps: Vec<Described>,
    inventory: Inventory,
}

/// A step with the command it equals.
#[derive(Serialize)]
struct Described {
    command: String,
    #[serde(flatten)]
    planned: Planned,
}

impl Described {
    fn new(planned: &Planned) -> Self {
        Self {
            command: planned.to_string(),
            planned: planned.clone(),
        }
    }
}

/// The journal and the host, without touching either.
fn look(host: &HostArgs) -> Result<(Journal, Inventory), Error> {
    require_privilege()?;
    let path = run_dir_path(&host.run_dir)?;
    let netlink = Netlink::open()?;
    let journal = Journal::read(&path)?;
    let inventory = observe(&netlink, &path, &journal)?;
    Ok((journal, inventory))
}

fn list(names: &BTreeSet<Name>) -> String {
    let names: Vec<&str> = names.iter().map(Name::as_str).collect();
    names.join(", ")
}

/// The run directory from the root, of characters that mean nothing to dnsmasq's file or a shell.
///
/// # Errors
/// It has others.
pub fn run_dir_path(given: &Path) -> Result<PathBuf, Error> {
    let refused = |reason| Error::RunDirName {
        path: given.to_owned(),
        reason,
    };
    let path = absolute(given).map_err(|_| refused("not a path"))?;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+@:=~".contains(byte);
    match path.as_os_str().as_encoded_bytes().iter().all(plain) {
        true => Ok(path),
        false => Err(refused("dnsmasq could not read such a path")),
    }
}

/// dnsmasq gives up root before it reads its hosts files: it must be able to get to them.
fn require_open(run_dir: &Path) -> Result<(), Error> {
    use std::os::unix::fs::MetadataExt;
    let closed = |dir: &&Path| fs::metadata(dir).is_ok_and(|there| there.mode() & 0o001 == 0);
    match run_dir.ancestors().find(closed) {
        None => Ok(()),
        Some(closed) => Err(Error::RunDirClosed {
            run_dir: run_dir.to_owned(),
            closed: closed.to_owned(),
        }),
    }
}

/// CAP_NET_ADMIN, for links, addresses and nftables alike, even to look at the latter.
fn require_privilege() -> Result<(), Error> {
    const CAP_NET_ADMIN: u64 = 12;
    match effective_capabilities() {
        Ok(set) if set & (1 << CAP_NET_ADMIN) == 0 => Err(Error::Privilege),
        // Without /proc to ask, what follows says what it may not do.
        _ => Ok(()),
    }
}

fn effective_capabilities() -> Result<u64, Box<dyn StdError>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    Ok(u64::from_str_radix(set.trim(), 16)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_on_a_shared_link_uses_it_once_nobody_else_keeps_it() {
        let on_vlan = Record {
            links: BTreeSet::from(["up0.20".parse().unwrap()]),
            ..Record::default()
        };
        let [one, two]: [Name; 2] = ["one", "two"].map(|name| name.parse().unwrap());
        let mut journal = Journal::default();
        for name in [&one, &two] {
            journal.networks.insert(name.clone(), on_vlan.clone());
        }
        let taps = [("up0.20", "tap0"), ("up0", "another")];
        let users = Users {
            taps: taps
                .map(|(link, tap)| (link.to_owned(), vec![tap.to_owned()]))
                .into(),
            ..Users::default()
        };
        let alone = users_of(&journal, &users, &one, std::slice::from_ref(&one));
        assert!(alone.is_empty(), "{alone:?}");
        let both = users_of(&journal, &users, &one, &[one.clone(), two]);
        assert_eq!(both, ["tap0"]);
    }
}
