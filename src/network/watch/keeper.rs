//! Keeps networks as they were brought up: one look at a time, under the run directory's lock.
//!
//! What is no fault of the host's drifting is left alone and named once: a network that is not up, one that something stands
//! in the way of, one that could not be set right just now.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use super::patience::Patience;
use crate::cli::NetworkArgs;
use crate::config::Config;
use crate::network::apply::dnsmasq;
use crate::network::apply::netlink::Netlink;
use crate::network::inventory::Inventory;
use crate::network::journal::{Journal, RunDir};
use crate::network::mended::By;
use crate::network::observe::observe;
use crate::network::plan::{self, network_dir};
use crate::network::{Error, change, drift, list, origin};
use crate::programs::Process;
use crate::report::{causes, say};
use crate::types::Name;

/// What came of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looked {
    /// Another ringtap is at work: there was none.
    Locked,
    /// Nothing had drifted that could be set right.
    Quiet,
    /// Something was set right, or tried to.
    Busy,
}

/// The networks that are kept, and what is known of them from one look to the next.
pub struct Keeper {
    args: NetworkArgs,
    run_dir: PathBuf,
    netlink: Netlink,
    /// The networks of the file that are meant.
    chosen: BTreeSet<Name>,
    /// Those that are left alone, and why, as has been said.
    left_alone: BTreeMap<Name, String>,
    patience: BTreeMap<Name, Patience>,
}

impl Keeper {
    /// A keeper of the networks that `args` mean, in the network namespace that this process is in.
    ///
    /// # Errors
    /// The file has problems, or no socket can be had.
    pub fn new(args: &NetworkArgs, run_dir: PathBuf) -> Result<Self, Error> {
        Ok(Self {
            chosen: chosen(args)?,
            args: args.clone(),
            run_dir,
            netlink: Netlink::open()?,
            left_alone: BTreeMap::new(),
            patience: BTreeMap::new(),
        })
    }

    /// Reads the file again; one with problems is none, and all stays as it was.
    pub fn reload(&mut self) {
        match chosen(&self.args) {
            Ok(chosen) => {
                self.chosen = chosen;
                self.left_alone.retain(|name, _| self.chosen.contains(name));
                say(format_args!("watching {}", list(&self.chosen)));
            }
            Err(error) => tracing::error!(
                "what the file was before is what counts: {}",
                causes(&error)
            ),
        }
    }

    /// The networks that are meant.
    pub fn chosen(&self) -> &BTreeSet<Name> {
        &self.chosen
    }

    /// The dnsmasqs that serve them, held so that their end can be waited for.
    pub fn servers(&self) -> Vec<Process> {
        let dirs = self
            .chosen
            .iter()
            .map(|name| network_dir(&self.run_dir, name));
        let up = dirs.filter(|dir| dir.is_dir());
        up.filter_map(|dir| dnsmasq::running(&dir)).collect()
    }

    /// The tenants whose networks are up.
    ///
    /// # Errors
    /// The journal can't be read.
    pub fn tenants(&self) -> Result<BTreeSet<Name>, Error> {
        let journal = Journal::read(&self.run_dir)?;
        Ok(journal.tenants().into_iter().cloned().collect())
    }

    /// Looks at the host and sets right what has drifted.
    ///
    /// # Errors
    /// The host can't be looked at, or the run directory not be used. That a network can't be set right is said, and no
    /// error.
    pub fn look(&mut self) -> Result<Looked, Error> {
        // Where nothing is up there is perhaps no run directory, and none to be made.
        if Journal::read(&self.run_dir)?.is_empty() {
            let down = self.chosen.iter().map(not_up).collect();
            self.leave_alone(down);
            return Ok(Looked::Quiet);
        }
        let Some(mut run_dir) = RunDir::try_lock(&self.run_dir)? else {
            return Ok(Looked::Locked);
        };
        let done = self.keep(&mut run_dir);
        let closed = run_dir.close();
        let looked = done?;
        closed?;
        Ok(looked)
    }

    fn keep(&mut self, run_dir: &mut RunDir) -> Result<Looked, Error> {
        let up = &run_dir.journal.networks;
        let (up, down): (Vec<&Name>, Vec<&Name>) =
            self.chosen.iter().partition(|name| up.contains_key(name));
        let mut left_alone: BTreeMap<_, _> = down.into_iter().map(not_up).collect();
        let (origins, unknown) = origin::read(run_dir.path(), up);
        left_alone.extend(unknown.iter().map(of_unknown_origin));
        let mut looked = Looked::Quiet;
        for (config, names) in origins {
            let inventory = observe(&self.netlink, run_dir.path(), &run_dir.journal)?;
            let names = unhindered(&config, names, &inventory, &mut left_alone);
            let drifted = drift(&config, &names, &inventory).into_keys();
            let names: BTreeSet<Name> = drifted
                .filter(|name| self.has_patience(name, &mut left_alone))
                .collect();
            if !names.is_empty() {
                say(format_args!("drifted: {}", list(&names)));
                self.set_right(run_dir, &config, &names, &inventory, &mut left_alone);
                looked = Looked::Busy;
            }
        }
        self.leave_alone(left_alone);
        Ok(looked)
    }

    /// Sets `names` right, together if possible: one that can't be is not to keep the others down.
    fn set_right(
        &mut self,
        run_dir: &mut RunDir,
        config: &Config,
        names: &BTreeSet<Name>,
        inventory: &Inventory,
        left_alone: &mut BTreeMap<Name, String>,
    ) {
        let netlink = &self.netlink;
        let error = match change(run_dir, netlink, config, names, inventory, By::Watch) {
            Ok(()) => {
                say(format_args!("set right: {}", list(names)));
                for name in names {
                    self.patience_with(name).draw(Instant::now());
                }
                return;
            }
            Err(error) => error,
        };
        let (Some(name), None) = (names.first(), names.iter().nth(1)) else {
            for name in names {
                let alone = [name.clone()].into();
                match observe(&self.netlink, run_dir.path(), &run_dir.journal) {
                    Ok(now) => self.set_right(run_dir, config, &alone, &now, left_alone),
                    Err(error) => tracing::error!("{}", causes(&error)),
                }
            }
            return;
        };
        self.patience_with(name).end(Instant::now());
        let why = format!("it could not be set right: {}", causes(&error));
        left_alone.insert(name.clone(), why);
    }

    fn patience_with(&mut self, name: &Name) -> &mut Patience {
        self.patience.entry(name.clone()).or_default()
    }

    fn has_patience(&mut self, name: &Name, left_alone: &mut BTreeMap<Name, String>) -> bool {
        let is_left = self.patience_with(name).is_left(Instant::now());
        if !is_left {
            let known = self.left_alone.get(name).cloned();
            let why = "something else changes it again and again; `ringtap status` shows what";
            left_alone.insert(name.clone(), known.unwrap_or_else(|| why.to_owned()));
        }
        is_left
    }

    /// Says what is new about the networks that are left alone.
    fn leave_alone(&mut self, left_alone: BTreeMap<Name, String>) {
        for (name, why) in &left_alone {
            if self.left_alone.get(name) != Some(why) {
                say(format_args!("{name} is left alone: {why}"));
            }
        }
        for name in self.left_alone.keys() {
            if !left_alone.contains_key(name) {
                say(format_args!("{name} is kept as it is from now on"));
            }
        }
        self.left_alone = left_alone;
    }
}

fn chosen(args: &NetworkArgs) -> Result<BTreeSet<Name>, Error> {
    Ok(Config::load(&args.host.config)?.chosen(&args.names)?)
}

fn not_up(name: &Name) -> (Name, String) {
    let why = format!("it is not up; `ringtap up {name}` brings it up");
    (name.clone(), why)
}

fn of_unknown_origin(name: &Name) -> (Name, String) {
    let why = format!(
        "the file that another version of ringtap brought it up from is not known; run `ringtap up {name}`"
    );
    (name.clone(), why)
}

/// Those of `names` that nothing stands in the way of.
fn unhindered(
    config: &Config,
    mut names: BTreeSet<Name>,
    inventory: &Inventory,
    left_alone: &mut BTreeMap<Name, String>,
) -> BTreeSet<Name> {
    // Each round takes one out at least: the bridges of the chosen ones are in nobody's way, those of others are.
    while let Err(clashes) = plan::plan(config, &names, inventory) {
        for clash in clashes.iter() {
            names.remove(clash.network());
            left_alone.insert(clash.network().clone(), clash.to_string());
        }
    }
    names
}
