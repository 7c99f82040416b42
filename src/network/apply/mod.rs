//! Does the steps of a plan, one after another, and takes them back where one fails.
//!
//! Around each step stands the journal: what takes the step back is on disk before the step is done
//! ([`up`]), and leaves the disk after it is taken back ([`down`]). What a step does is in the files beside
//! this one.

pub mod netlink;
pub mod nft;
pub mod sysctl;

use std::fs::{self, File};
use std::io;
use std::path::Path;

use thiserror::Error;

use super::inventory::{DnsmasqFiles, forwarding_key};
use super::journal::{Journal, LoadedTable, RunDir, RunDirError, make_dir, write_whole};
use super::observe;
use super::plan::{Planned, Step, conf_option, files, take_back};
use crate::programs::{self, DNSMASQ, ToolError};
use crate::report::say;
use crate::types::Name;
use netlink::{Netlink, NetlinkError};

/// Why a step failed.
#[derive(Debug, Error)]
pub enum StepError {
    /// A link or an address.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// nft or dnsmasq.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A file, a sysctl or a signal.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The journal, without which no step is taken.
    #[error(transparent)]
    Journal(#[from] RunDirError),
    /// dnsmasq is not there though it said it started.
    #[error("dnsmasq ended right after its start; see the system's log for why")]
    DnsmasqEnded,
    /// There is no dnsmasq to be told of new hosts.
    #[error("dnsmasq is not running")]
    NoDnsmasq,
}

/// A step that failed, with what became of those before it.
#[derive(Debug, Error)]
#[error("`{step}` failed; {outcome}")]
pub struct UpError {
    step: String,
    outcome: String,
    source: StepError,
}

/// Does `steps` in order, saying each on stdout.
///
/// # Errors
/// One fails; those before it are then taken back, in reverse.
pub fn up(run_dir: &mut RunDir, netlink: &Netlink, steps: &[Planned]) -> Result<(), UpError> {
    let before = run_dir.journal.clone();
    for (index, planned) in steps.iter().enumerate() {
        say(planned.step.line());
        if let Err(source) = journaled(run_dir, netlink, planned) {
            let left = roll_back(run_dir, netlink, &steps[..index], before);
            return Err(UpError {
                step: planned.step.line(),
                outcome: outcome(index, &left),
                source,
            });
        }
    }
    Ok(())
}

fn outcome(done: usize, left: &[String]) -> String {
    match (left, done) {
        ([], 0) => "nothing was changed".to_owned(),
        ([], _) => "what had been done was taken back".to_owned(),
        _ => format!("of what had been done, this is left: {}", left.join("; ")),
    }
}

/// A step between the two writes of the journal that let `down` take it back.
fn journaled(run_dir: &mut RunDir, netlink: &Netlink, planned: &Planned) -> Result<(), StepError> {
    let network = planned.network.as_ref();
    run_dir.journal.before(network, &planned.step);
    run_dir.save()?;
    execute(run_dir, netlink, network, &planned.step)?;
    run_dir.journal.after(network, &planned.step);
    run_dir.save()?;
    Ok(())
}

/// Takes `done` back in reverse, then what the failed step may have left; gives what could not be taken back.
fn roll_back(
    run_dir: &mut RunDir,
    netlink: &Netlink,
    done: &[Planned],
    before: Journal,
) -> Vec<String> {
    let mut left = Vec::new();
    let mut take_back = |run_dir: &mut RunDir, undo: Planned| {
        say(format_args!("undo: {}", undo.step.line()));
        if let Err(error) = journaled(run_dir, netlink, &undo) {
            left.push(failure(&undo.step, &error));
        }
    };
    for planned in done.iter().rev() {
        if let Some(step) = planned.step.undo() {
            let network = planned.network.clone();
            take_back(run_dir, Planned { network, step });
        }
    }
    for undo in new_teardown(&before, &run_dir.journal) {
        take_back(run_dir, undo);
    }
    // A network that was not there before is gone if all of its list is.
    let journal = &mut run_dir.journal;
    journal
        .networks
        .retain(|name, record| before.networks.contains_key(name) || !record.teardown.is_empty());
    if let Err(error) = run_dir.save() {
        left.push(error.to_string());
    }
    left
}

/// What `now` has to take back that `before` had not.
fn new_teardown(before: &Journal, now: &Journal) -> Vec<Planned> {
    let new = |old: &[Step], now: &[Step]| -> Vec<Step> {
        now.iter()
            .filter(|step| !old.contains(step))
            .cloned()
            .collect()
    };
    let of_networks = now.networks.iter().flat_map(|(name, record)| {
        let old = before
            .networks
            .get(name)
            .map_or(&[][..], |record| &record.teardown);
        let steps = take_back(&new(old, &record.teardown));
        steps.into_iter().map(move |step| Planned {
            network: Some(name.clone()),
            step,
        })
    });
    let shared = take_back(&new(&before.shared, &now.shared));
    let shared = shared.into_iter().map(|step| Planned {
        network: None,
        step,
    });
    shared.chain(of_networks).collect()
}

/// Takes back all that the journal has of `names`, and what networks share if none is left; goes on where a
/// step fails. Gives the failures.
///
/// # Errors
/// The journal can't be written.
pub fn down(
    run_dir: &mut RunDir,
    netlink: &Netlink,
    names: &[Name],
) -> Result<Vec<String>, RunDirError> {
    let mut failures = Vec::new();
    for name in names {
        let Some(record) = run_dir.journal.networks.get(name) else {
            continue;
        };
        let steps = record.teardown.clone();
        let failed = take_back_each(run_dir, netlink, Some(name), &steps, &mut failures);
        if failed.is_empty() {
            run_dir.journal.networks.remove(name);
        } else if let Some(record) = run_dir.journal.networks.get_mut(name) {
            record.teardown = failed;
        }
        run_dir.save()?;
    }
    if run_dir.journal.networks.is_empty() {
        let steps = run_dir.journal.shared.clone();
        run_dir.journal.shared = take_back_each(run_dir, netlink, None, &steps, &mut failures);
        run_dir.save()?;
    }
    Ok(failures)
}

/// Gives the steps that failed, in the order of `teardown`.
fn take_back_each(
    run_dir: &mut RunDir,
    netlink: &Netlink,
    network: Option<&Name>,
    teardown: &[Step],
    failures: &mut Vec<String>,
) -> Vec<Step> {
    let mut failed = Vec::new();
    for step in take_back(teardown) {
        say(step.line());
        if let Err(error) = execute(run_dir, netlink, network, &step) {
            failures.push(failure(&step, &error));
            failed.insert(0, step);
        }
    }
    failed
}

fn failure(step: &Step, error: &StepError) -> String {
    let mut text = format!("`{}`: {error}", step.line());
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Does one step, and notes in the journal what later plans compare with.
fn execute(
    run_dir: &mut RunDir,
    netlink: &Netlink,
    network: Option<&Name>,
    step: &Step,
) -> Result<(), StepError> {
    let RunDir { journal, lock, .. } = run_dir;
    let mut no_network = Default::default();
    let record = match network {
        Some(name) => journal.networks.entry(name.clone()).or_default(),
        None => &mut no_network,
    };
    match step {
        Step::AddBridge { link, mac } => netlink.add_bridge(link, *mac)?,
        Step::DeleteBridge { link, mac } => netlink.delete_bridge(link, *mac)?,
        Step::SetMtu { link, mtu, .. } => netlink.set_mtu(link, *mtu)?,
        Step::SetUp { link } => netlink.set_up(link)?,
        Step::SetDown { link } => netlink.set_down(link)?,
        Step::AddAddress { link, address } => netlink.add_address(link, *address)?,
        Step::DeleteAddress { link, address } => netlink.delete_address(link, *address)?,
        Step::ReplaceTable { table, rules, .. } => {
            record.table = Some(LoadedTable {
                listing: nft::replace(table, rules, lock)?,
                rules: rules.clone(),
            });
        }
        Step::DeleteTable { table, .. } => {
            nft::delete(table, lock)?;
            record.table = None;
        }
        Step::SetSysctl { key, value, .. } => sysctl::set(key, value)?,
        Step::EnableForwarding { family, .. } => sysctl::set(forwarding_key(*family), "1")?,
        Step::RestoreForwarding { family, before } => sysctl::restore_forwarding(*family, before)?,
        Step::MakeDir { dir } => {
            for dir in dir.parent().into_iter().chain([dir.as_path()]) {
                make_dir(dir)?;
            }
        }
        Step::StartDnsmasq { dir, files } => {
            start_dnsmasq(dir, files, lock)?;
            record.served = Some(files.clone());
        }
        Step::ReloadDnsmasq { dir, files, .. } => {
            // Unknown until it is done: a ringtap killed here leaves a dnsmasq to be started anew.
            record.served = None;
            write_files(dir, files)?;
            observe::dnsmasq(dir)
                .ok_or(StepError::NoDnsmasq)?
                .reload()?;
            record.served = Some(files.clone());
        }
        Step::StopDnsmasq { dir, .. } => {
            if let Some(process) = observe::dnsmasq(dir) {
                process.stop()?;
            }
            record.served = None;
        }
        Step::RemoveDir { dir } => remove_dir(dir)?,
    }
    Ok(())
}

fn start_dnsmasq(dir: &Path, files: &DnsmasqFiles, lock: &File) -> Result<(), StepError> {
    write_files(dir, files)?;
    programs::wait_for_ending(DNSMASQ)?; // one that was killed just now has the addresses still
    // It goes to the background once its sockets are bound, and fails before that: success means it serves.
    programs::run_holding(DNSMASQ, &[&conf_option(dir)], "", lock)?;
    observe::dnsmasq(dir)
        .map(drop)
        .ok_or(StepError::DnsmasqEnded)
}

fn write_files(dir: &Path, files: &DnsmasqFiles) -> io::Result<()> {
    write_whole(&dir.join(files::CONF), &files.conf)?;
    write_whole(&dir.join(files::DHCP_HOSTS), &files.dhcp_hosts)?;
    write_whole(&dir.join(files::HOSTS), &files.hosts)
}

/// Removes the files that ringtap and dnsmasq made in `dir`, and `dir`; a file of someone else keeps it.
fn remove_dir(dir: &Path) -> io::Result<()> {
    let absent_is_fine = |done: io::Result<()>| match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    };
    for name in files::ALL {
        absent_is_fine(fs::remove_file(dir.join(name)))?;
        absent_is_fine(fs::remove_file(dir.join(format!("{name}.new"))))?;
    }
    absent_is_fine(fs::remove_dir(dir))
}
