//! Networks that a running guest is plugged into.
//!
//! A guest brings up the networks it needs. One that was down before is then up *for guests*: it goes when the
//! last guest has gone, unless `ringtap up` was called for it meanwhile. Who is plugged in shows in two ways: a
//! shared lock on the network's directory, which ends with its holder however that ends, and links on the network's own, such
//! as the ports of its bridge, which outlive a supervisor that was killed.

use std::collections::BTreeSet;
use std::fs::File;

use nix::fcntl::{Flock, FlockArg};

use super::apply;
use super::apply::netlink::Netlink;
use super::inventory::Inventory;
use super::journal::{Journal, Record, RunDir, RunDirError, has_no_more_than_a_lock};
use super::mended::By;
use super::plan::{Planned, network_dir};
use super::{Error, UsersByPlace, confirm, make_so, run_dir_path, users_of, with_run_dir};
use crate::cli::HostArgs;
use crate::config::Config;
use crate::types::Name;

/// Networks in use by a guest, for as long as this value lives.
#[derive(Debug)]
pub struct Plugged {
    host: HostArgs,
    locks: Vec<(Name, Flock<File>)>,
}

/// Brings the networks `names` of `config` up for a guest, printing each step on stdout; does nothing where they are.
///
/// # Errors
/// Something stands in the way, or a step failed: then what had been done is taken back.
pub fn plug(host: &HostArgs, config: &Config, names: &BTreeSet<Name>) -> Result<Plugged, Error> {
    let plugged = |locks| Plugged {
        host: host.clone(),
        locks,
    };
    if names.is_empty() {
        return Ok(plugged(Vec::new()));
    }
    let names = &config.with_routers(names.clone());
    with_run_dir(host, |run_dir, netlink| {
        make_so(run_dir, netlink, config, names, By::Run, unguarded)?;
        Ok(plugged(shared_locks(run_dir, names)?))
    })
}

/// Networks `names`, which a guest is on that another has brought up for it; those that are down by now are none of its any
/// more.
///
/// # Errors
/// The run directory can't be used.
pub fn plugged_again(host: &HostArgs, names: &BTreeSet<Name>) -> Result<Plugged, Error> {
    with_run_dir(host, |run_dir, _| {
        let names = with_routers(&run_dir.journal, names);
        Ok(Plugged {
            host: host.clone(),
            locks: shared_locks(run_dir, &names)?,
        })
    })
}

/// Those of `names` that are up, and the networks of their tenants' routers.
fn with_routers(journal: &Journal, names: &BTreeSet<Name>) -> BTreeSet<Name> {
    let networks = &journal.networks;
    let tenants: BTreeSet<_> = names
        .iter()
        .filter_map(|name| networks.get(name)?.tenant.as_ref())
        .collect();
    let is_router = |record: &Record| {
        let of = record.router_of.as_ref();
        of.is_some_and(|tenant| tenants.contains(tenant))
    };
    let there = networks.iter();
    let meant = there.filter(|(name, record)| names.contains(*name) || is_router(record));
    meant.map(|(name, _)| name.clone()).collect()
}

/// A guest does not wait for anybody to confirm its networks.
fn unguarded(steps: &[Planned], inventory: &Inventory) -> Result<Option<u32>, Error> {
    match confirm::seconds(None, steps, inventory) {
        Some(_) => Err(Error::MovesOwnWay),
        None => Ok(None),
    }
}

impl Plugged {
    /// Uses the networks of `other` as well.
    pub fn join(&mut self, mut other: Self) {
        self.locks.append(&mut other.locks);
    }

    /// Uses only these from here on.
    ///
    /// # Errors
    /// One that nobody uses any more can't be taken down.
    pub fn keep(&mut self, networks: &BTreeSet<Name>) -> Result<(), Error> {
        let journal = Journal::read(&run_dir_path(&self.host.run_dir)?)?;
        let wanted = with_routers(&journal, networks);
        let all = std::mem::take(&mut self.locks);
        let (kept, left) = all.into_iter().partition(|(name, _)| wanted.contains(name));
        self.locks = kept;
        self.leave(left)
    }

    fn unplug(&mut self) -> Result<(), Error> {
        let locks = std::mem::take(&mut self.locks);
        self.leave(locks)
    }

    fn leave(&self, locks: Vec<(Name, Flock<File>)>) -> Result<(), Error> {
        if locks.is_empty() {
            return Ok(());
        }
        with_run_dir(&self.host, |run_dir, netlink| {
            let (names, own): (Vec<_>, Vec<_>) = locks.into_iter().unzip();
            drop(own);
            take_down_unused(run_dir, netlink, &names)
        })
    }
}

/// Takes down what guests have brought up and none is on: a supervisor that was killed on its way leaves networks that are
/// nobody's. Guests that run must be watched over, or they don't show on every kind of network.
///
/// # Errors
/// One can't be taken down.
pub fn leave_unused(host: &HostArgs) -> Result<(), Error> {
    let for_guests = |journal: &Journal| -> Vec<Name> {
        let networks = journal.networks.iter();
        let meant = networks.filter(|(_, record)| record.for_guests);
        meant.map(|(name, _)| name.clone()).collect()
    };
    let path = run_dir_path(&host.run_dir)?;
    if for_guests(&Journal::read(&path)?).is_empty() && !has_no_more_than_a_lock(&path) {
        return Ok(()); // nobody is to wait for the lock then
    }
    with_run_dir(host, |run_dir, netlink| {
        let names = for_guests(&run_dir.journal);
        take_down_unused(run_dir, netlink, &names)
    })
}

impl Drop for Plugged {
    fn drop(&mut self) {
        if let Err(error) = self.unplug() {
            tracing::warn!("networks stay up: {error}");
        }
    }
}

/// Takes down those of `names` that are up for guests, if there are none.
fn take_down_unused(run_dir: &mut RunDir, netlink: &Netlink, names: &[Name]) -> Result<(), Error> {
    let left: Vec<Name> = names
        .iter()
        .filter(|name| is_left(run_dir, name))
        .cloned()
        .collect();
    let mut known = UsersByPlace::new(netlink);
    let mut unused = Vec::new();
    for name in &left {
        let users = known.beside(&run_dir.journal, name)?;
        if users_of(&run_dir.journal, users, name, &left).is_empty() {
            unused.push(name.clone());
        }
    }
    match &apply::down(run_dir, netlink, &unused)?[..] {
        [] => Ok(()),
        failures => Err(Error::Down(failures.join("\n"))),
    }
}

/// Whether the network is up for guests, and nobody says to be one of them.
fn is_left(run_dir: &RunDir, name: &Name) -> bool {
    let record = run_dir.journal.networks.get(name);
    // Who was killed while it brought the network up may not have come as far as its directory.
    record.is_some_and(|record| record.for_guests)
        && (!network_dir(run_dir.path(), name).exists()
            || lock(run_dir, name, FlockArg::LockExclusiveNonblock).is_ok())
}

fn shared_locks(
    run_dir: &RunDir,
    names: &BTreeSet<Name>,
) -> Result<Vec<(Name, Flock<File>)>, RunDirError> {
    let lock = |name: &Name| Ok((name.clone(), lock(run_dir, name, FlockArg::LockShared)?));
    names.iter().map(lock).collect()
}

fn lock(run_dir: &RunDir, name: &Name, how: FlockArg) -> Result<Flock<File>, RunDirError> {
    let path = network_dir(run_dir.path(), name);
    let failed = |source| RunDirError::new("lock", &path, source);
    let dir = File::open(&path).map_err(failed)?;
    Flock::lock(dir, how).map_err(|(_, errno)| failed(errno.into()))
}
