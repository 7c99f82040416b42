//! Network namespaces with a name, as ip-netns(8) keeps them: each tenant's router has one.
//!
//! A thread enters one, and does there what this program does elsewhere: sockets that it opens, sysctls under `/proc/sys/net`
//! and programs that it starts are the namespace's. The program's other threads stay where they are. Touches `/run/netns`.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use super::apply::execute::absent_is_fine;

/// Where they are.
const DIR: &str = "/run/netns";

/// The namespace of the thread that asks.
const OWN: &str = "/proc/thread-self/ns/net";

/// The file of the namespace called `name`.
fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// The names of those that there are. A file alone, as one leaves who is killed while a namespace is made, is none.
///
/// # Errors
/// The directory can't be read.
pub fn names() -> io::Result<BTreeSet<String>> {
    let entries = match fs::read_dir(DIR) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let name = |entry: io::Result<fs::DirEntry>| {
        let name = entry?.file_name().into_string().ok();
        Ok(name.filter(|name| matches!(open(&path(name)), Ok(Some(_)))))
    };
    entries
        .filter_map(|entry| name(entry).transpose())
        .collect()
}

/// Makes a namespace called `name`; one that is there already is fine.
///
/// # Errors
/// The kernel's, for want of CAP_SYS_ADMIN as a rule.
pub fn add(name: &str) -> io::Result<()> {
    share_dir()?;
    let path = path(name);
    if open(&path)?.is_some() {
        return Ok(());
    }
    File::create(&path)?;
    let made = in_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(mount(
            Some(OWN),
            &path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?)
    });
    if made.is_err() {
        fs::remove_file(&path)?;
    }
    made
}

/// Deletes the namespace called `name`, which may be absent. The kernel keeps it for as long as processes are in it.
///
/// # Errors
/// The kernel's.
pub fn delete(name: &str) -> io::Result<()> {
    let path = path(name);
    if open(&path)?.is_some() {
        umount2(&path, MntFlags::MNT_DETACH)?;
    }
    absent_is_fine(fs::remove_file(&path))
}

/// A namespace, kept for as long as it is held.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// A new one, without a name.
    ///
    /// # Errors
    /// The kernel's, for want of CAP_SYS_ADMIN as a rule.
    pub fn unnamed() -> io::Result<Self> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open(OWN).map(Self)
        })
    }

    /// What `work` gives inside.
    ///
    /// # Errors
    /// It can't be entered.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        in_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
    }
}

/// Of a descriptor that is a namespace's.
impl From<OwnedFd> for Namespace {
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What `work` gives in the namespace called `name`. Where there is none it has an empty one, in which there is nothing to
/// find and nothing to take back.
///
/// # Errors
/// The namespace can't be entered.
pub fn within<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    match open(&path(name))? {
        Some(namespace) => Namespace(namespace).within(work),
        None => Namespace::unnamed()?.within(work),
    }
}

/// The namespace called `name`, for the kernel to put links into.
///
/// # Errors
/// There is none.
pub fn file(name: &str) -> io::Result<File> {
    let there = open(&path(name))?;
    there.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no namespace {name}")))
}

/// What tells a namespace from every other that there is, whatever they are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id {
    device: u64,
    inode: u64,
}

impl Id {
    fn of(path: &Path) -> Option<Self> {
        let there = fs::metadata(path).ok()?;
        Some(Self {
            device: there.dev(),
            inode: there.ino(),
        })
    }
}

/// Which namespace is called `name`, if one is.
pub fn id(name: &str) -> Option<Id> {
    let path = path(name);
    open(&path).ok()??;
    Id::of(&path)
}

/// Whether process `pid` is in the namespace of this thread.
pub fn has(pid: u32) -> bool {
    let own = Id::of(Path::new(OWN));
    own.is_some() && own == Id::of(&PathBuf::from(format!("/proc/{pid}/ns/net")))
}

/// None where there is no namespace at `path`: a file alone is none.
fn open(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let is_namespace = fstatfs(&file)?.filesystem_type() == NSFS_MAGIC;
    Ok(is_namespace.then_some(file))
}

/// As `ip netns add` does: what is mounted there shows in other mount namespaces as well.
fn share_dir() -> io::Result<()> {
    let made = DirBuilder::new().mode(0o755).recursive(true).create(DIR);
    made?;
    let nothing = None::<&str>;
    let share = || {
        mount(
            nothing,
            DIR,
            nothing,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            nothing,
        )
    };
    if share().is_err() {
        mount(
            Some(DIR),
            DIR,
            nothing,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            nothing,
        )?;
        share()?;
    }
    Ok(())
}

/// What `work` gives in a thread of its own: a namespace is entered by one thread, and not to be left.
fn in_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}
