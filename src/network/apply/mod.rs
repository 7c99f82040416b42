//! Does the steps of a plan and takes them back where one fails.
//!
//! Around them stands the journal: what takes the steps back is on disk before the first is done ([`up`]), and leaves the
//! disk after all is taken back ([`down`]). In which order and which together is `schedule`'s to say; what a step does is
//! in `execute` and the files beside it.

pub mod dnsmasq;
pub mod execute;
pub mod iptables;
mod links;
mod moves;
pub mod netlink;
pub mod nft;
pub mod ovs;
mod schedule;
pub mod sysctl;
pub mod tables;

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::journal::{Journal, Needed, RunDir, RunDirError};
use super::plan::{Owner, Planned, Step, take_back};
use crate::report::{causes, say};
use crate::types::Name;
use execute::Hands;
pub use execute::StepError;
use netlink::Netlink;

/// Why steps were not done, with what became of those that were.
#[derive(Debug, Error)]
pub enum UpError {
    /// One of them failed.
    #[error("`{step}` failed; {outcome}")]
    Step {
        /// The step.
        step: String,
        /// What became of those before it.
        outcome: String,
        /// Why.
        source: StepError,
    },
    /// The journal, without which no step is taken.
    #[error(transparent)]
    Journal(#[from] RunDirError),
}

/// Does `steps`, saying each on stdout.
///
/// # Errors
/// One fails; those before it are then taken back, in reverse.
pub fn up(run_dir: &mut RunDir, netlink: &Netlink, steps: &[Planned]) -> Result<(), UpError> {
    let before = run_dir.journal.clone();
    run_dir.journal.ahead(steps);
    run_dir.save()?;
    let mut done = Vec::new();
    let mut progress = Progress::of(steps.len());
    for batch in schedule::forwards(steps) {
        let mut failed = None;
        let prefix = || progress.prefix();
        for (planned, outcome) in batch.iter().zip(execute(run_dir, netlink, &batch, prefix)) {
            match outcome {
                Ok(()) => done.push((*planned).clone()),
                Err(source) => failed = failed.or(Some((planned.line(), source))),
            }
        }
        if let Some((step, source)) = failed {
            let left = roll_back(run_dir, netlink, &done, &before);
            let outcome = outcome(done.len(), &left);
            return Err(UpError::Step {
                step,
                outcome,
                source,
            });
        }
    }
    let needed = Needed::after(steps);
    for planned in steps {
        run_dir.journal.done(planned, &needed);
    }
    Ok(run_dir.save()?)
}

/// How far it has come: `[ 3/12] ` before the third of twelve steps.
struct Progress {
    announced: usize,
    all: usize,
}

impl Progress {
    fn of(all: usize) -> Self {
        Self { announced: 0, all }
    }

    fn prefix(&mut self) -> String {
        self.announced += 1;
        let all = self.all.to_string();
        format!("[{:>1$}/{all}] ", self.announced, all.len())
    }
}

fn outcome(done: usize, left: &[String]) -> String {
    match (left, done) {
        ([], 0) => "nothing was changed".to_owned(),
        ([], _) => "what had been done was taken back".to_owned(),
        _ => format!("of what had been done, this is left: {}", left.join("; ")),
    }
}

/// Says what is about to be done, each step after its `prefix`, and does it; gives the outcome of each step.
fn execute(
    run_dir: &RunDir,
    netlink: &Netlink,
    batch: &[&Planned],
    mut prefix: impl FnMut() -> String,
) -> Vec<Result<(), StepError>> {
    for planned in batch {
        say(format_args!("{}{}", prefix(), planned.line()));
    }
    let hands = Hands {
        run_dir: run_dir.path().to_owned(),
        lock: &run_dir.lock,
        netlink,
    };
    hands.execute(batch)
}

/// Takes `done` back in reverse, then what else has come about since `before`, and forgets that it was; gives what could not
/// be taken back.
pub fn roll_back(
    run_dir: &mut RunDir,
    netlink: &Netlink,
    done: &[Planned],
    before: &Journal,
) -> Vec<String> {
    let undo: Vec<Planned> = done.iter().rev().filter_map(Planned::undo).collect();
    run_dir.journal.ahead(&undo);
    let mut left = take_back_each(run_dir, netlink, &undo, "undo: ");
    let rest = new_teardown(before, &run_dir.journal);
    left.extend(take_back_all(run_dir, netlink, &rest, "undo: "));
    run_dir.journal.forget_the_gone();
    if let Err(error) = run_dir.save() {
        left.push(error.to_string());
    }
    left
}

/// Does `steps` in the order in which things are taken back; the journal forgets those that are done. Where one fails the
/// others are done all the same, unless that would lose what has not moved back to an uplink. Gives the failures.
fn take_back_each(
    run_dir: &mut RunDir,
    netlink: &Netlink,
    steps: &[Planned],
    prefix: &str,
) -> Vec<String> {
    let needed = Needed::after(steps);
    let mut failures = Vec::new();
    let mut stuck = BTreeSet::new();
    for batch in schedule::backwards(steps) {
        if batch.iter().any(|planned| is_stuck(&stuck, planned)) {
            continue; // one that concerns an uplink is alone in its batch
        }
        let prefix = || prefix.to_owned();
        for (planned, outcome) in batch.iter().zip(execute(run_dir, netlink, &batch, prefix)) {
            match outcome {
                Ok(()) => run_dir.journal.done(planned, &needed),
                Err(error) => {
                    failures.push(failure(planned, &error));
                    if matches!(planned.step, Step::MoveAddresses { .. }) {
                        stuck.insert(planned.owner.clone());
                    }
                }
            }
        }
    }
    failures
}

/// Whether the host's addresses are still on what `planned` would take away: on a network's bridge, or a link below one.
fn is_stuck(stuck: &BTreeSet<Owner>, planned: &Planned) -> bool {
    let below = matches!(planned.owner, Owner::Link(_)) && !stuck.is_empty();
    below || stuck.contains(&planned.owner)
}

/// What `now` has to take back that `before` had not, by owner.
fn new_teardown(before: &Journal, now: &Journal) -> Vec<(Owner, Vec<Step>)> {
    let old: BTreeMap<Owner, &[Step]> = before.teardowns().collect();
    let of_owner = |(owner, steps): (Owner, &[Step])| {
        let old = old.get(&owner).copied().unwrap_or_default();
        let new = steps.iter().filter(|step| !old.contains(step));
        let new = new.cloned().collect();
        (owner, new)
    };
    now.teardowns().map(of_owner).collect()
}

/// Takes back what each owner has to, in the order in which it came about; the journal keeps what failed. Gives the
/// failures.
fn take_back_all(
    run_dir: &mut RunDir,
    netlink: &Netlink,
    teardowns: &[(Owner, Vec<Step>)],
    prefix: &str,
) -> Vec<String> {
    let backwards = teardowns.iter().rev(); // a VLAN's link goes before the bond below it
    let planned: Vec<Planned> = backwards
        .flat_map(|(owner, steps)| {
            let tenant = run_dir.journal.tenant_of(owner);
            Planned::all_in(tenant, owner, take_back(steps))
        })
        .collect();
    let failures = take_back_each(run_dir, netlink, &planned, prefix);
    for (owner, steps) in teardowns {
        run_dir.journal.leave(owner, steps, &take_back(steps));
    }
    failures
}

/// Takes back all that the journal has of `names`, and what networks share if none is left that needs it, routers of tenants
/// among it; goes on where a step fails. Gives the failures.
///
/// # Errors
/// The journal can't be written.
pub fn down(
    run_dir: &mut RunDir,
    netlink: &Netlink,
    names: &[Name],
) -> Result<Vec<String>, RunDirError> {
    let mut failures = Vec::new();
    if let Err(error) = sweep(run_dir, netlink, names) {
        failures.push(format!("ports that guests have left: {}", causes(&error)));
    }
    let of_names = |owner: &Owner, journal: &Journal| match owner {
        Owner::Network(name) => names.contains(name) && journal.router_on(name).is_none(),
        _ => false,
    };
    let unused_routers = |owner: &Owner, journal: &Journal| match owner {
        Owner::Network(name) => journal
            .router_on(name)
            .is_some_and(|tenant| journal.networks_of(tenant).next().is_none()),
        _ => false,
    };
    let unused_links = |owner: &Owner, journal: &Journal| match owner {
        Owner::Link(link) => !journal.networks.values().any(|it| it.links.contains(link)),
        _ => false,
    };
    let host = |owner: &Owner, journal: &Journal| {
        *owner == Owner::Host && journal.networks.is_empty() && journal.links.is_empty()
    };
    for meant in [
        &of_names as &dyn Fn(&Owner, &Journal) -> bool,
        &unused_routers,
        &unused_links,
        &host,
    ] {
        let journal = &run_dir.journal;
        let teardowns: Vec<(Owner, Vec<Step>)> = journal
            .teardowns()
            .filter(|(owner, _)| meant(owner, journal))
            .map(|(owner, steps)| (owner, steps.to_vec()))
            .collect();
        failures.extend(take_back_all(run_dir, netlink, &teardowns, ""));
    }
    run_dir.save()?;
    Ok(failures)
}

/// Deletes what guests of `names` that were killed have left in Open vSwitch: what is there of a guest is in no journal.
fn sweep(run_dir: &RunDir, netlink: &Netlink, names: &[Name]) -> Result<(), StepError> {
    if names.is_empty() {
        return Ok(());
    }
    let links = netlink.links()?.into_keys().collect();
    Ok(ovs::sweep(names, run_dir.path(), &links)?)
}

fn failure(planned: &Planned, error: &StepError) -> String {
    format!("`{}`: {}", planned.line(), causes(error))
}
