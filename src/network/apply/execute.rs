//! Does steps: those on links, tables and Open vSwitch many at once, the others one by one.

use std::fs::{self, File};
use std::io;
use std::iter;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::netlink::{Netlink, NetlinkError};
use super::ovs::{self, OvsError};
use super::{dnsmasq, iptables, links, moves, nft, sysctl};
use crate::network::inventory::forwarding_key;
use crate::network::journal::make_dir;
use crate::network::netns;
use crate::network::plan::{
    LinkStep, OvsStep, Owner, Planned, Step, files, namespace, network_dir,
};
use crate::programs::ToolError;

/// Why a step failed.
#[derive(Debug, Error)]
pub enum StepError {
    /// A link or an address.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Open vSwitch.
    #[error(transparent)]
    Ovs(#[from] OvsError),
    /// nft or dnsmasq.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A file, a sysctl or a signal.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// dnsmasq is not there though it said it started.
    #[error("dnsmasq ended right after its start; see the system's log for why")]
    DnsmasqEnded,
    /// One that was to be done with it could not be.
    #[error("it was not tried")]
    NotTried,
    /// There is no dnsmasq to be told of new hosts.
    #[error("dnsmasq is not running")]
    NoDnsmasq,
}

/// What steps are done with.
pub struct Hands<'a> {
    /// The run directory.
    pub run_dir: PathBuf,
    /// Its lock, for programs to hold.
    pub lock: &'a File,
    /// The kernel's links.
    pub netlink: &'a Netlink,
}

impl Hands<'_> {
    /// Does a batch of steps, which are all the host's or all of one tenant's namespace; gives the outcome of each, in their
    /// order.
    pub fn execute(&self, batch: &[&Planned]) -> Vec<Result<(), StepError>> {
        let Some(tenant) = batch.first().and_then(|planned| planned.tenant.as_ref()) else {
            return self.here(batch);
        };
        let (run_dir, lock) = (self.run_dir.clone(), self.lock);
        let outcomes = netns::within(&namespace(tenant), || {
            let netlink = &Netlink::open()?;
            let hands = Hands {
                run_dir,
                lock,
                netlink,
            };
            Ok(hands.here(batch))
        });
        match outcomes.map_err(StepError::from).and_then(|done| done) {
            Ok(outcomes) => outcomes,
            Err(error) => none_done(error, batch.len()),
        }
    }

    fn here(&self, batch: &[&Planned]) -> Vec<Result<(), StepError>> {
        let on_links: Vec<&LinkStep> = batch.iter().filter_map(|p| p.step.on_link()).collect();
        if on_links.len() == batch.len() {
            return links::execute(self.netlink, &on_links);
        }
        let on_ovs: Vec<&OvsStep> = batch.iter().filter_map(|p| p.step.on_ovs()).collect();
        if on_ovs.len() == batch.len() {
            return ovs::execute(self.netlink, &on_ovs, self.lock);
        }
        let tables: Vec<_> = batch.iter().filter_map(|p| self.change_of(p)).collect();
        if tables.len() == batch.len() {
            let outcomes = nft::change(&tables, self.lock);
            return outcomes.into_iter().map(|it| Ok(it?)).collect();
        }
        batch
            .iter()
            .map(|planned| self.alone(&planned.step))
            .collect()
    }

    fn change_of<'p>(&self, planned: &'p Planned) -> Option<nft::Change<'p>> {
        let (table, rules) = match &planned.step {
            Step::ReplaceTable { table, rules, .. } => (table, Some(rules.as_str())),
            Step::DeleteTable { table, .. } => (table, None),
            _ => return None,
        };
        let Owner::Network(name) = &planned.owner else {
            return None;
        };
        let dir = network_dir(&self.run_dir, name);
        Some(nft::Change {
            table,
            rules,
            note: dir.join(files::TABLE),
        })
    }

    fn alone(&self, step: &Step) -> Result<(), StepError> {
        match step {
            Step::InsertRule { rule } => iptables::insert(rule, self.lock)?,
            Step::DeleteRule { rule } => iptables::delete(rule, self.lock)?,
            Step::SetSysctl { key, value, .. } => sysctl::set(key, value)?,
            Step::EnableForwarding { family, .. } => sysctl::set(forwarding_key(*family), "1")?,
            Step::RestoreForwarding { family, before } => {
                sysctl::restore_forwarding(*family, before)?;
            }
            Step::AddNamespace { name } => netns::add(name)?,
            Step::DeleteNamespace { name } => netns::delete(name)?,
            Step::MakeDir { dir } => {
                for dir in dir.parent().into_iter().chain([dir.as_path()]) {
                    make_dir(dir)?;
                }
            }
            Step::RemoveDir { dir } => remove_dir(dir)?,
            Step::MoveAddresses { from, to, .. } => {
                if let Some(belongings) = moves::Belongings::of(self.netlink, from)? {
                    belongings.hand_over(self.netlink, to)?;
                }
            }
            Step::StartDnsmasq { dir, files } => dnsmasq::start(dir, files, self.lock)?,
            Step::ReloadDnsmasq { dir, files, .. } => dnsmasq::reload(dir, files)?,
            Step::StopDnsmasq { dir, .. } => dnsmasq::stop(dir)?,
            // Done in batches, above.
            Step::Link(_) | Step::Ovs(_) | Step::ReplaceTable { .. } | Step::DeleteTable { .. } => {
            }
        }
        Ok(())
    }
}

/// The outcomes of `count` steps that come to nothing because of `error`.
pub fn none_done(error: StepError, count: usize) -> Vec<Result<(), StepError>> {
    let others = (1..count).map(|_| Err(StepError::NotTried));
    iter::once(Err(error)).chain(others).collect()
}

/// Removes the files that ringtap and dnsmasq made in `dir`, and `dir`; a file of someone else keeps it.
fn remove_dir(dir: &Path) -> io::Result<()> {
    for name in files::ALL {
        absent_is_fine(fs::remove_file(dir.join(name)))?;
        absent_is_fine(fs::remove_file(dir.join(format!("{name}.new"))))?;
    }
    absent_is_fine(fs::remove_dir(dir))
}

/// That what is to be removed is not there is no failure.
pub fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
