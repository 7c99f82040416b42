//! What a backend gives up once it serves, so that whoever gets into it from a guest finds nothing to go on with.
//!
//! # Theory of operation
//! Three stages, none of which can be taken back, each as soon as nothing needs any more what it drops:
//!
//! 1. [`limit`], first of all: no new privileges by whatever is executed, no look into its memory by others of its user (not
//!    dumpable, no core), so much memory and so many descriptors.
//! 2. [`leave_the_host`], when tap and sockets are open: no file system and no new TCP connections (Landlock), a user and a group
//!    that are nobody else's, no capability.
//! 3. [`only_serve`], before a worker has seen its first frame: the system calls that serving takes, some with these arguments
//!    alone (seccomp). Anything else ends the process, and whoever watches over it hears of SIGSYS; but libraries that look
//!    for files where they can do without are told that they may not.
//!
//! All of it holds for threads that are started later, so a process must have none before the second stage. Rings of io_uring,
//! which seccomp does not see through, are good for writes to the tap alone (`tap::burst`), and no new ones can be made.
//!
//! A backend that keeps its user, since nobody gave it another, may remove files where its sockets are: its own, in the end.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use nix::unistd::{Gid, Uid};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use thiserror::Error;

use crate::types::{InvalidValue, QueuePairs};

/// Why a backend can't give something up.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The kernel refused a step.
    #[error("sandbox: {step}; --no-sandbox does without, for debugging")]
    Kernel {
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// Another user was asked for by somebody who may not become one.
    #[error("--user {user}: only root can become another user")]
    User {
        /// The one asked for.
        user: UserIds,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// Landlock.
    #[error("sandbox: leave the file system; --no-sandbox does without, for debugging")]
    Landlock(#[from] RulesetError),
    /// Seccomp.
    #[error("sandbox: filter system calls; --no-sandbox does without, for debugging")]
    Seccomp(#[source] seccompiler::Error),
}

/// A user and a group, by their numbers: a backend looks nobody up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserIds {
    /// The user's.
    pub uid: u32,
    /// The group's.
    pub gid: u32,
}

impl FromStr for UserIds {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        // The highest number means "none" to the kernel.
        let number = |text: &str| text.parse().ok().filter(|id| *id != u32::MAX);
        let ids = text.split_once(':');
        ids.and_then(|(uid, gid)| {
            Some(Self {
                uid: number(uid)?,
                gid: number(gid)?,
            })
        })
        .ok_or_else(|| InvalidValue::new(text, "the numbers of a user and a group, UID:GID"))
    }
}

impl fmt::Display for UserIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// What a backend still needs of the host when it serves.
#[derive(Debug, Default)]
pub struct Needs {
    /// As whom it goes on, if not as it was started.
    pub user: Option<UserIds>,
    /// The files of sockets that it listens on.
    pub sockets: Vec<PathBuf>,
    /// It looks for a front-end that listens.
    pub dials: bool,
}

impl Needs {
    /// Where it removes the files of its sockets in the end; nowhere if as another user it could not.
    fn removes(&self) -> impl Iterator<Item = &Path> {
        let sockets = self.sockets.iter().filter(|_| self.user.is_none());
        sockets.filter_map(|socket| match socket.parent() {
            Some(here) if here.as_os_str().is_empty() => Some(Path::new(".")),
            parent => parent,
        })
    }
}

fn kernel<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> SandboxError {
    move |cause| SandboxError::Kernel {
        step,
        cause: cause.into(),
    }
}

/// The first stage, for a backend with so many pairs of queues.
///
/// # Errors
/// The kernel refuses.
pub fn limit(pairs: QueuePairs) -> Result<(), SandboxError> {
    nix::sys::prctl::set_no_new_privs().map_err(kernel("do without new privileges"))?;
    nix::sys::prctl::set_dumpable(false).map_err(kernel("hide the memory"))?;
    let pairs = u64::from(pairs.get());
    let limits = [
        (Resource::Core, 0),
        (Resource::Data, MEMORY + pairs * MEMORY_OF_PAIR),
        (Resource::Nofile, DESCRIPTORS + pairs * DESCRIPTORS_OF_PAIR),
    ];
    for (resource, most) in limits {
        // Not beyond what somebody else has set.
        let most = rustix::process::getrlimit(resource)
            .maximum
            .map_or(most, |maximum| maximum.min(most));
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(resource, limit).map_err(kernel("set limits"))?;
    }
    Ok(())
}

/// Memory of its own in bytes (RLIMIT_DATA), whatever it maps of guests'.
const MEMORY: u64 = 128 << 20;
/// The thread's stack, and frames.
const MEMORY_OF_PAIR: u64 = 4 << 20;

/// Each region of the largest memory table twice, as it changes, and what else a process has open.
const DESCRIPTORS: u64 = 640;
/// Tap, io_uring, epoll, timers, kicks and calls.
const DESCRIPTORS_OF_PAIR: u64 = 16;

/// The second stage: tap and sockets are open, and no other thread has been started.
///
/// # Errors
/// The kernel refuses. One that has no Landlock is warned of, and what users and seccomp keep out stays out.
pub fn leave_the_host(needs: &Needs) -> Result<(), SandboxError> {
    leave_files(needs)?;
    drop_bounding_set()?;
    if let Some(user) = needs.user {
        become_user(user).map_err(|errno| SandboxError::User {
            user,
            cause: errno.into(),
        })?;
        // To become another user makes a process dumpable again or not, as the host's settings say.
        nix::sys::prctl::set_dumpable(false).map_err(kernel("hide the memory"))?;
    }
    rustix::thread::clear_ambient_capability_set().map_err(kernel("drop capabilities"))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(kernel("drop capabilities"))
}

/// No file can be opened, made or removed by its name, but for its own sockets.
fn leave_files(needs: &Needs) -> Result<(), SandboxError> {
    // The newest by which unix sockets can still be connected to, as a client does.
    let abi = ABI::V6;
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?;
    let remove = |ruleset: RulesetCreated, place: &Path| match PathFd::new(place) {
        Ok(place) => ruleset.add_rule(PathBeneath::new(place, AccessFs::RemoveFile)),
        Err(_) => Ok(ruleset), // then nothing can be removed there
    };
    let status = needs.removes().try_fold(ruleset, remove)?.restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        tracing::warn!(
            "the kernel has no Landlock (5.13, CONFIG_SECURITY_LANDLOCK, lsm=landlock): users and seccomp alone keep this process from files"
        );
    }
    Ok(())
}

/// What no program that it executes could have. Those who may not say so have no capabilities to give.
fn drop_bounding_set() -> Result<(), SandboxError> {
    for capability in CapabilitySet::all().iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) | Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(kernel("drop capabilities")(errno)),
        }
    }
    Ok(())
}

fn become_user(user: UserIds) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)
}

/// The third stage: everything is open, and threads are yet to be started.
///
/// # Errors
/// The kernel refuses.
pub fn only_serve(needs: &Needs) -> Result<(), SandboxError> {
    let mut allowed = allowed(needs)?;
    let mut refused = vec![
        (libc::EACCES, LOOKS_FOR_FILES),
        // The C library and the standard library then use older calls, of which a filter can read the arguments.
        (libc::ENOSYS, &[libc::SYS_clone3, libc::SYS_statx]),
    ];
    match needs.removes().next() {
        Some(_) => allowed.extend(always(REMOVE)),
        None => refused.push((libc::EACCES, REMOVE)),
    }
    for (errno, calls) in refused {
        allowed.extend(always(calls));
        let refuse = SeccompAction::Errno(errno as u32);
        apply(always(calls).collect(), SeccompAction::Allow, refuse)?;
    }
    apply(allowed, SeccompAction::KillProcess, SeccompAction::Allow)
}

/// System calls, each with the arguments that it may have; any where there is no rule.
type Calls = BTreeMap<i64, Vec<SeccompRule>>;

fn always(calls: &[i64]) -> impl Iterator<Item = (i64, Vec<SeccompRule>)> {
    calls.iter().map(|call| (*call, Vec::new()))
}

fn apply(calls: Calls, others: SeccompAction, these: SeccompAction) -> Result<(), SandboxError> {
    let arch = std::env::consts::ARCH.try_into();
    let filter = arch
        .and_then(|arch| SeccompFilter::new(calls, others, these, arch))
        .and_then(BpfProgram::try_from);
    let filter = filter.map_err(|cause| SandboxError::Seccomp(cause.into()))?;
    seccompiler::apply_filter(&filter).map_err(SandboxError::Seccomp)
}

/// What a panic's report or an allocator asks for, and does without.
const LOOKS_FOR_FILES: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
];

/// What serving takes.
const SERVING: &[i64] = &[
    // frames, messages, eventfds, timers, logs, the guard's leases
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_io_uring_enter,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_close,
    // waiting
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    // memory, of guests and its own
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_getrandom,
    // threads and their ends
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sigaltstack,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What `linux/if_tun.h` calls by these names, which change how the tap works and not which it is.
const TAP_REQUESTS: [u64; 3] = [
    libc::TUNSETQUEUE,
    libc::TUNSETOFFLOAD,
    libc::TUNSETVNETHDRSZ,
];

/// `IORING_REGISTER_ENABLE_RINGS` and `IORING_UNREGISTER_FILES` of `linux/io_uring.h`.
const RING_REQUESTS: [u64; 2] = [12, 3];

/// `PR_SET_VMA` of `linux/prctl.h`, by which the C library names memory.
const PR_SET_VMA: u64 = 0x5356_4d41;

fn allowed(needs: &Needs) -> Result<Calls, SandboxError> {
    let not_executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    let a_thread = SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64);
    let ioctls = TAP_REQUESTS
        .into_iter()
        .chain([libc::FIONBIO, libc::TCGETS]);
    let fcntls = [
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD, // which the standard library checks closes by, where it is built to check
    ];
    let timeouts = [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO];
    let mut calls: Calls = always(SERVING).collect();
    let own = u64::from(std::process::id());
    let some = [
        (libc::SYS_mmap, vec![when(2, not_executable.clone(), 0)?]),
        (libc::SYS_mprotect, vec![when(2, not_executable, 0)?]),
        (
            libc::SYS_clone,
            vec![when(0, a_thread, libc::CLONE_THREAD as u64)?],
        ),
        (libc::SYS_ioctl, one_of(1, ioctls)?),
        (libc::SYS_fcntl, one_of(1, fcntls.map(|word| word as u64))?),
        (
            libc::SYS_setsockopt,
            one_of(2, timeouts.map(|word| word as u64))?,
        ),
        (
            libc::SYS_prctl,
            one_of(0, [libc::PR_SET_NAME as u64, PR_SET_VMA])?,
        ),
        (libc::SYS_io_uring_register, one_of(1, RING_REQUESTS)?),
        // its log, which begins anew when it is long
        (
            libc::SYS_ftruncate,
            vec![rule(vec![
                condition(0, SeccompCmpOp::Eq, libc::STDERR_FILENO as u64)?,
                condition(1, SeccompCmpOp::Eq, 0)?,
            ])?],
        ),
        (libc::SYS_tgkill, one_of(0, [own])?),
    ];
    calls.extend(some);
    if needs.dials {
        calls.insert(libc::SYS_socket, one_of(0, [libc::AF_UNIX as u64])?);
        calls.extend(always(&[libc::SYS_connect]));
    }
    Ok(calls)
}

/// How a socket's file is removed.
const REMOVE: &[i64] = &[
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// A rule that holds where the argument of this number is one of `values`.
fn one_of(
    argument: u8,
    values: impl IntoIterator<Item = u64>,
) -> Result<Vec<SeccompRule>, SandboxError> {
    let rule = |value| when(argument, SeccompCmpOp::Eq, value);
    values.into_iter().map(rule).collect()
}

/// A rule that holds where the argument of this number is so.
fn when(argument: u8, is: SeccompCmpOp, value: u64) -> Result<SeccompRule, SandboxError> {
    rule(vec![condition(argument, is, value)?])
}

/// A rule that holds where all of these do.
fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, SandboxError> {
    SeccompRule::new(conditions).map_err(|cause| SandboxError::Seccomp(cause.into()))
}

/// Arguments are compared as the kernel takes most of them: by their lower half.
fn condition(argument: u8, is: SeccompCmpOp, value: u64) -> Result<SeccompCondition, SandboxError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, is, value)
        .map_err(|cause| SandboxError::Seccomp(cause.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_two_numbers() {
        let ids: UserIds = "7:8".parse().unwrap();
        assert_eq!((ids.uid, ids.gid, ids.to_string()), (7, 8, "7:8".into()));
        for text in ["", "7", "7:", "root:root", "-1:7", "4294967295:0", "1:2:3"] {
            assert!(text.parse::<UserIds>().is_err(), "{text}");
        }
    }

    #[test]
    fn who_keeps_its_user_removes_its_sockets() {
        let mut needs = Needs {
            sockets: vec!["/run/x/a.sock".into(), "b.sock".into()],
            ..Needs::default()
        };
        assert!(needs.removes().eq([Path::new("/run/x"), Path::new(".")]));
        needs.user = Some(UserIds { uid: 1, gid: 1 });
        assert_eq!(needs.removes().count(), 0);
    }
}
