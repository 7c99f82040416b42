//! Changes that somebody must confirm, or they are taken back.
//!
//! Who moves the link that his own session comes by may lock himself out. Before the first step of such an [`up`] a process
//! is started that belongs to no session, and the journal gets what undoes the steps. Unless [`confirm`] comes
//! in time, that process takes all of it back, whatever has become of the `up`.
//!
//! [`up`]: super::up

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;

use super::apply;
use super::apply::netlink::Netlink;
use super::inventory::Inventory;
use super::journal::{Journal, Pending, RunDir, RunDirError};
use super::plan::{Planned, Step};
use super::{Error, run_dir_path};
use crate::cli::{ConfirmArgs, GuardArgs};
use crate::clock::since_boot;
use crate::programs::Process;
use crate::report::say;

/// How long a change to the way of one's own session may stay unconfirmed unless one says otherwise, in seconds.
const DEFAULT_SECONDS: u32 = 60;

/// What the process that waits writes about it, in the run directory.
pub const LOG: &str = "unconfirmed.log";

/// The word by which that process is known.
const GUARD: &str = "take-back-unconfirmed";

/// How many seconds `steps` have to be confirmed in; none if they need not be.
pub fn seconds(asked: Option<u32>, steps: &[Planned], inventory: &Inventory) -> Option<u32> {
    let own_way = || moves_way_of(session_peer()?, steps, inventory).then_some(DEFAULT_SECONDS);
    asked.or_else(own_way).filter(|seconds| *seconds > 0)
}

/// Whether `steps` move the link by which packets go to `peer`.
pub fn moves_way_of(peer: IpAddr, steps: &[Planned], inventory: &Inventory) -> bool {
    let moved: BTreeSet<&str> = steps
        .iter()
        .filter_map(|planned| match &planned.step {
            Step::MoveAddresses { from, .. } => Some(from.as_str()),
            _ => None,
        })
        .collect();
    let to_peer = IpNet::from(peer);
    let leads = inventory
        .routes
        .iter()
        .filter(|route| route.to.contains(&to_peer));
    let best = leads.max_by_key(|route| route.to.prefix_len());
    let link = best.and_then(|route| route.link.as_deref());
    link.is_some_and(|link| moved.contains(link))
}

/// Where the person is who started this process by way of SSH. What SSH says of it may be hidden by sudo, but not
/// from root.
pub fn session_peer() -> Option<IpAddr> {
    let mut pid = std::process::id();
    while pid > 1 {
        let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let mut words = environ.split(|byte| *byte == 0);
        let connection = words.find_map(|word| word.strip_prefix(b"SSH_CONNECTION="));
        if let Some(connection) = connection {
            let text = String::from_utf8_lossy(connection);
            return text.split_whitespace().next()?.parse().ok();
        }
        // The name, in parentheses, may hold anything.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let after_name = stat.rsplit(')').next()?;
        pid = after_name.split_whitespace().nth(1)?.parse().ok()?;
    }
    None
}

/// Starts the process that takes `steps` back unless they are confirmed within `seconds`, and notes what it needs.
///
/// # Errors
/// It can't be started: then nothing had better be done.
pub fn guard(run_dir: &mut RunDir, steps: &[Planned], seconds: u32) -> Result<(), RunDirError> {
    let path = run_dir.path().join(LOG);
    let failed = |source| RunDirError::new("write", &path, source);
    let log = File::create(&path).map_err(failed)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(GUARD)
        .arg(seconds.to_string())
        .arg("--run-dir")
        .arg(run_dir.path())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log);
    let child = command.spawn().map_err(failed)?;
    run_dir.journal.pending = Some(Pending {
        before: Box::new(run_dir.journal.clone()),
        steps: steps.to_vec(),
        deadline: since_boot().as_secs() + u64::from(seconds),
        guard: child.id(),
    });
    Ok(())
}

/// Tells the person to confirm; the time starts now.
///
/// # Errors
/// The journal can't be written.
pub fn ask(run_dir: &mut RunDir, seconds: u32) -> Result<(), RunDirError> {
    if let Some(pending) = &mut run_dir.journal.pending {
        pending.deadline = since_boot().as_secs() + u64::from(seconds);
        run_dir.save()?;
        say(format_args!(
            "run `ringtap confirm --run-dir {}` within {seconds} s, or all of it is taken back",
            run_dir.path().display()
        ));
    }
    Ok(())
}

/// Nothing is to be taken back any more; whether something was.
pub fn settle(run_dir: &mut RunDir) -> bool {
    let Some(pending) = run_dir.journal.pending.take() else {
        return false;
    };
    if let Some(process) = Process::hold(pending.guard, &[GUARD]) {
        let _ = process.stop(); // by itself it finds nothing to take back
    }
    let _ = fs::remove_file(run_dir.path().join(LOG));
    true
}

/// `ringtap confirm`: keeps what an `up` has changed.
///
/// # Errors
/// Nothing waits for it, or the run directory can't be used.
pub fn confirm(args: &ConfirmArgs) -> Result<(), Error> {
    let path = run_dir_path(&args.run_dir)?;
    if !path.exists() {
        return Err(Error::NothingToConfirm);
    }
    let mut run_dir = RunDir::lock(&path)?;
    let settled = settle(&mut run_dir);
    if settled {
        run_dir.save()?;
    }
    run_dir.close()?;
    if !settled {
        return Err(Error::NothingToConfirm);
    }
    say("confirmed");
    Ok(())
}

/// The process that waits, and takes back what was not confirmed.
///
/// # Errors
/// The run directory can't be used, or some could not be taken back.
pub fn take_back_unconfirmed(args: &GuardArgs) -> Result<(), Error> {
    let _ = rustix::process::setsid(); // it must outlive the session that it is there for
    let path = run_dir_path(&args.run_dir)?;
    let mut wait = u64::from(args.seconds);
    loop {
        thread::sleep(Duration::from_secs(wait));
        // The lock is taken by an `up` that is still at work: then there is more time.
        let mut run_dir = RunDir::lock(&path)?;
        wait = match &run_dir.journal.pending {
            None => return Ok(run_dir.close()?),
            Some(pending) => pending.deadline.saturating_sub(since_boot().as_secs()),
        };
        if wait == 0 {
            let failures = take_back(&mut run_dir)?;
            run_dir.close()?;
            return match &failures[..] {
                [] => Ok(()),
                failures => Err(Error::Down(failures.join("\n"))),
            };
        }
    }
}

fn take_back(run_dir: &mut RunDir) -> Result<Vec<String>, Error> {
    let Some(Pending { before, steps, .. }) = run_dir.journal.pending.take() else {
        return Ok(Vec::new());
    };
    say("not confirmed in time: taking it back");
    let netlink = Netlink::open()?;
    Ok(apply::roll_back(run_dir, &netlink, &steps, &before))
}

/// How many seconds there are left to confirm in, if something waits for it.
pub fn seconds_left(journal: &Journal) -> Option<u64> {
    let pending = journal.pending.as_ref()?;
    Some(pending.deadline.saturating_sub(since_boot().as_secs()))
}
