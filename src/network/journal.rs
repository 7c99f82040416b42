//! The run directory: a lock, and a journal of what must be taken back one day.
//!
//! The journal is written *ahead*: before the first step is done, what takes them all back is on disk, so that `down` finds
//! everything even if ringtap was killed in between; taking back what was never done is harmless. It is replaced by rename, so
//! it is whole at any moment. One ringtap at a time holds the lock; others wait. When nothing is left to take back, the files
//! ringtap made here go, and the directory too if ringtap made it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::confirm;
use super::plan::{LinkStep, OvsStep, Owner, Planned, Step};
use crate::config::{Network, StaticRoute, Uplink};
use crate::types::{IfName, Name};

const JOURNAL: &str = "state.json";
const LOCK: &str = "lock";
const NETWORKS: &str = "networks";

/// What ringtap has made on this host and not taken back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The kernel's id of this boot: what was made before the last one is gone.
    boot: String,
    /// Whether ringtap made the run directory.
    made_run_dir: bool,
    /// What goes with the last network, in the order in which it came about.
    pub shared: Vec<Step>,
    /// What goes with the last network that leaves by a link that ringtap made, likewise.
    #[serde(default)]
    pub links: BTreeMap<IfName, Vec<Step>>,
    /// What goes with each network.
    pub networks: BTreeMap<Name, Record>,
    /// What is taken back unless it is confirmed.
    #[serde(default)]
    pub pending: Option<Pending>,
}

/// Steps that wait to be confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The journal before the first of them.
    pub before: Box<Journal>,
    /// The steps, done or not.
    pub steps: Vec<Planned>,
    /// When they are taken back, in seconds since this boot.
    pub deadline: u64,
    /// The process that does so.
    pub guard: u32,
}

/// What ringtap has made for a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What takes it back, in the order in which it came about.
    pub teardown: Vec<Step>,
    /// The links of the journal that it leaves by.
    #[serde(default)]
    pub links: BTreeSet<IfName>,
    /// The tenant whose it is, in whose namespace it is.
    #[serde(default)]
    pub tenant: Option<Name>,
    /// The tenant whose router is on it: it goes with the last of the tenant's networks.
    #[serde(default)]
    pub router_of: Option<Name>,
    /// Whether it is up for guests alone, and goes with the last of them; `up` makes it stay.
    #[serde(default)]
    pub for_guests: bool,
}

impl Record {
    /// The name of the link ringtap made: a bridge, or a macvlan for the host.
    pub fn own_link(&self) -> Option<&IfName> {
        self.teardown.iter().find_map(Step::deletes)
    }

    /// The link by which the bridge leaves the host.
    pub fn uplink(&self) -> Option<&IfName> {
        self.teardown.iter().find_map(|step| match step {
            Step::Link(LinkStep::Release { port, .. })
            | Step::Ovs(OvsStep::RemoveUplink { port, .. }) => Some(port),
            _ => None,
        })
    }

    /// The addresses ringtap gave to the bridge.
    pub fn addresses(&self) -> Vec<IpNet> {
        let address = |step: &Step| match step {
            Step::Link(LinkStep::DeleteAddress { address, .. }) => Some(*address),
            _ => None,
        };
        self.teardown.iter().filter_map(address).collect()
    }

    /// The addresses for which ringtap had the host answer, each with the link.
    pub fn proxies(&self) -> Vec<(IfName, IpAddr)> {
        let proxy = |step: &Step| match step {
            Step::Link(LinkStep::DeleteProxy { link, address }) => Some((link.clone(), *address)),
            _ => None,
        };
        self.teardown.iter().filter_map(proxy).collect()
    }

    /// The routes ringtap made over the bridge.
    pub fn routes(&self) -> Vec<StaticRoute> {
        let route = |step: &Step| match step {
            Step::Link(LinkStep::DeleteRoute { route, .. }) => Some(*route),
            _ => None,
        };
        self.teardown.iter().filter_map(route).collect()
    }
}

impl Journal {
    /// The journal in `run_dir`, empty if there is none of this boot.
    ///
    /// # Errors
    /// It can't be read, or is not a journal.
    pub fn read(run_dir: &Path) -> Result<Self, RunDirError> {
        let path = run_dir.join(JOURNAL);
        let failed = |source| RunDirError::new("read", &path, source);
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(failed)?;
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed(error)),
        };
        let empty = Self {
            boot,
            ..Self::default()
        };
        if text.is_empty() {
            return Ok(empty);
        }
        let journal: Self = serde_json::from_str(&text).map_err(|error| failed(error.into()))?;
        Ok(if journal.boot == empty.boot {
            journal
        } else {
            Self {
                made_run_dir: journal.made_run_dir,
                ..empty
            }
        })
    }

    /// Whether there is nothing to take back.
    pub fn is_empty(&self) -> bool {
        let nothing_made = self.networks.is_empty() && self.links.is_empty();
        nothing_made && self.shared.is_empty() && self.pending.is_none()
    }

    /// Whether the run directory was made for it.
    pub fn made_run_dir(&self) -> bool {
        self.made_run_dir
    }

    /// Notes by what links `network`, which is about to come up, leaves, and whose it is; one that was down comes up
    /// `for_guests` alone or not.
    pub fn comes_up(&mut self, network: &Network, for_guests: bool) {
        let links = network.uplink().map(Uplink::made).unwrap_or_default();
        let new = || Record {
            for_guests,
            ..Record::default()
        };
        let record = self.networks.entry(network.name.clone());
        let record = record.or_insert_with(new);
        record.links = links.into_iter().collect();
        record.tenant = network.tenant.clone();
        record.router_of = network.router_of().cloned();
    }

    /// The tenant in whose namespace the steps for `owner` are done, if it is one's.
    pub fn tenant_of(&self, owner: &Owner) -> Option<&Name> {
        match owner {
            Owner::Network(name) => self.networks.get(name)?.tenant.as_ref(),
            _ => None,
        }
    }

    /// The tenants that there are, or once were about to be.
    pub fn tenants(&self) -> BTreeSet<&Name> {
        let networks = self.networks.values();
        networks
            .filter_map(|record| record.tenant.as_ref().or(record.router_of.as_ref()))
            .collect()
    }

    /// The tenant whose router is on network `name`, if that is its network.
    pub fn router_on(&self, name: &Name) -> Option<&Name> {
        self.networks.get(name)?.router_of.as_ref()
    }

    /// The networks of `tenant`, its router's aside.
    pub fn networks_of(&self, tenant: &Name) -> impl Iterator<Item = &Name> {
        let networks = self.networks.iter();
        let of_tenant = networks.filter(move |(_, it)| it.tenant.as_ref() == Some(tenant));
        of_tenant.map(|(name, _)| name)
    }

    /// Notes what will take `steps` back.
    pub fn ahead(&mut self, steps: &[Planned]) {
        for Planned { owner, step, .. } in steps {
            let Some(list) = self.teardown_of(owner) else {
                continue;
            };
            // Of what takes something back, nothing is to be taken back.
            if list.contains(step) {
                continue;
            }
            for teardown in step.teardown() {
                // What was there before the first change is what goes back, not what a later one found.
                let known = list
                    .iter()
                    .any(|old| *old == teardown || old.restores_the_same_as(&teardown));
                if !known {
                    list.push(teardown);
                }
            }
        }
    }

    /// Notes that `planned` is done, one of those that `needed` is of: it is not to be done again by `down`, unless to take
    /// another of them back, such as the stop of a server that is then started anew.
    pub fn done(&mut self, Planned { owner, step, .. }: &Planned, needed: &Needed) {
        if needed.of(owner).contains(step) {
            return;
        }
        if let Some(list) = self.teardown_of(owner) {
            list.retain(|old| old != step);
        }
    }

    /// What is to be taken back for `owner`: nothing of what goes with a namespace.
    fn teardown_of(&mut self, owner: &Owner) -> Option<&mut Vec<Step>> {
        Some(match owner {
            Owner::Host => &mut self.shared,
            Owner::Link(name) => self.links.entry(name.clone()).or_default(),
            Owner::Network(name) => &mut self.networks.entry(name.clone()).or_default().teardown,
            Owner::Tenant(_) => return None,
        })
    }

    /// All that is to be taken back, by owner.
    pub fn teardowns(&self) -> impl Iterator<Item = (Owner, &[Step])> {
        let networks = self.networks.iter();
        let networks =
            networks.map(|(name, record)| (Owner::Network(name.clone()), &record.teardown[..]));
        let links = self.links.iter();
        let links = links.map(|(name, steps)| (Owner::Link(name.clone()), &steps[..]));
        networks
            .chain(links)
            .chain([(Owner::Host, &self.shared[..])])
    }

    /// Notes that of `those`, which `owner` had to take back, no more is left than `steps`, as far as they are still there.
    pub fn leave(&mut self, owner: &Owner, those: &[Step], steps: &[Step]) {
        if let Some(list) = self.teardown_of(owner) {
            list.retain(|step| !those.contains(step) || steps.contains(step));
        }
        self.forget_the_gone();
    }

    /// Forgets those of whom there is nothing to take back: they are not there.
    pub fn forget_the_gone(&mut self) {
        self.networks
            .retain(|_, record| !record.teardown.is_empty());
        self.links.retain(|_, steps| !steps.is_empty());
    }
}

/// What takes steps back that are or will be done, by owner.
#[derive(Debug)]
pub struct Needed(BTreeMap<Owner, Vec<Step>>);

impl Needed {
    /// For `steps`.
    pub fn after(steps: &[Planned]) -> Self {
        let mut needed: BTreeMap<Owner, Vec<Step>> = BTreeMap::new();
        for Planned { owner, step, .. } in steps {
            let of_owner = needed.entry(owner.clone()).or_default();
            of_owner.extend(step.teardown());
        }
        Self(needed)
    }

    fn of(&self, owner: &Owner) -> &[Step] {
        self.0.get(owner).map_or(&[], Vec::as_slice)
    }
}

/// The run directory, locked.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// What is to be taken back; changes count once [`RunDir::save`]d.
    pub journal: Journal,
    /// Held as long as this value, and by programs that it is handed to.
    pub lock: Flock<File>,
}

impl RunDir {
    /// Makes `path` if it is not there, and waits for its lock.
    ///
    /// # Errors
    /// It can't be made, locked or read.
    pub fn lock(path: &Path) -> Result<Self, RunDirError> {
        let made = make_run_dir(path)?;
        let lock = lock(path)?;
        Self::locked(path, made, lock)
    }

    /// As [`RunDir::lock`]; none where another one holds the lock, or there is no directory.
    ///
    /// # Errors
    /// It can't be locked or read.
    pub fn try_lock(path: &Path) -> Result<Option<Self>, RunDirError> {
        let file = path.join(LOCK);
        let failed = |source| RunDirError::new("lock", &file, source);
        let file = match File::create(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) if is_there(&lock, path).map_err(failed)? => {
                Self::locked(path, false, lock).map(Some)
            }
            Ok(_) | Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }

    fn locked(path: &Path, made: bool, lock: Flock<File>) -> Result<Self, RunDirError> {
        let mut journal = Journal::read(path)?;
        // A ringtap killed at its start leaves a directory that it made, and no journal to say so.
        journal.made_run_dir |= made || holds_no_journal(path);
        Ok(Self {
            path: path.to_owned(),
            journal,
            lock,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the journal, whole or not at all.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self) -> Result<(), RunDirError> {
        let path = self.path.join(JOURNAL);
        let failed = |source| RunDirError::new("write", &path, source);
        let text =
            serde_json::to_string_pretty(&self.journal).map_err(|error| failed(error.into()))?;
        write_whole(&path, &text).map_err(failed)
    }

    /// Gives the lock back; removes what ringtap made here if there is nothing left to take back.
    ///
    /// # Errors
    /// A file of ringtap's can't be removed.
    pub fn close(self) -> Result<(), RunDirError> {
        if !self.journal.is_empty() {
            return Ok(());
        }
        let remove = |name: &str, how: fn(&Path) -> io::Result<()>| {
            let path = self.path.join(name);
            match how(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(RunDirError::new("remove", &path, error))
                }
                _ => Ok(()),
            }
        };
        remove(NETWORKS, |path| fs::remove_dir(path))?;
        remove(&temporary(JOURNAL), |path| fs::remove_file(path))?;
        remove(JOURNAL, |path| fs::remove_file(path))?;
        remove(confirm::LOG, |path| fs::remove_file(path))?;
        remove(LOCK, |path| fs::remove_file(path))?;
        if self.journal.made_run_dir {
            // Others, guests among them, may have files here: then it stays.
            let _ = fs::remove_dir(&self.path);
        }
        Ok(())
    }
}

/// Writes a file by renaming a whole one over it, readable by all whatever the umask: by dnsmasq, that is.
///
/// # Errors
/// The file system's.
pub fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    write(path, text, 0o644)
}

/// As [`write_whole`], readable by its owner alone.
///
/// # Errors
/// The file system's.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    write(path, text, 0o600)
}

/// Puts a hard link to `file`, which is one of those, in the place of `path`.
///
/// # Errors
/// The file system's.
pub fn link_whole(file: &Path, path: &Path) -> io::Result<()> {
    let new = beside(path);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::hard_link(file, &new)?,
    }
    fs::rename(&new, path)
}

/// Where the file is made that is to take the place of `path`.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(temporary(&name))
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let new = beside(path);
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(mode))?;
    fs::rename(&new, path)
}

fn temporary(name: &str) -> String {
    format!("{name}.new")
}

/// Makes directory `path`, open to all whatever the umask, if it is not there; whether it had to be made.
///
/// # Errors
/// The file system's.
pub fn make_dir(path: &Path) -> io::Result<bool> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        done => {
            done?;
            fs::set_permissions(path, Permissions::from_mode(0o755))?;
            Ok(true)
        }
    }
}

fn make_run_dir(path: &Path) -> Result<bool, RunDirError> {
    make_dir(path).map_err(|source| RunDirError::new("make run directory", path, source))
}

fn lock(dir: &Path) -> Result<Flock<File>, RunDirError> {
    let path = dir.join(LOCK);
    let failed = |source| RunDirError::new("lock", &path, source);
    loop {
        make_run_dir(dir)?;
        let file = File::create(&path).map_err(failed)?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((file, Errno::EWOULDBLOCK)) => {
                let text = format!("another ringtap is at work in {}: waiting", dir.display());
                let _ = writeln!(io::stderr(), "{text}");
                let locked = Flock::lock(file, FlockArg::LockExclusive);
                locked.map_err(|(_, errno)| failed(errno.into()))?
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        if is_there(&lock, dir).map_err(failed)? {
            return Ok(lock);
        }
    }
}

/// Whether `lock` is that of `dir`: who held it before may have removed the file, and then it locks nothing.
fn is_there(lock: &Flock<File>, dir: &Path) -> io::Result<bool> {
    let held = lock.metadata()?.ino();
    Ok(fs::metadata(dir.join(LOCK)).is_ok_and(|there| there.ino() == held))
}

/// Whether `dir` has nothing but what a ringtap leaves that is killed before its first journal is whole.
fn holds_no_journal(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else {
        return false;
    };
    let first = [LOCK.to_owned(), temporary(JOURNAL)];
    entries
        .flatten()
        .all(|entry| first.iter().any(|name| entry.file_name() == name.as_str()))
}

/// Whether `dir` has what a ringtap makes before its first journal is whole, and removes in the end unless it is killed.
pub fn has_no_more_than_a_lock(dir: &Path) -> bool {
    holds_no_journal(dir) || dir.join(LOCK).exists() && !dir.join(JOURNAL).exists()
}

/// The run directory can't be used.
#[derive(Debug, Error)]
#[error("cannot {doing} {}", path.display())]
pub struct RunDirError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl RunDirError {
    pub(super) fn new(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self {
            doing,
            path: path.to_owned(),
            source,
        }
    }
}
