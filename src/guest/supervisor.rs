//! The supervisor as a process: how commands start one, and what it does before its loop begins.
//!
//! A supervisor's standard input is a socket whose other end the command holds: it says there that the guest runs. Until
//! then its outputs are the command's, and its exit code becomes the command's; then it goes on by itself, with a log.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::GuestError;
use super::control::{Outcome, State};
use super::guarded::Guarded;
use super::launch::{adopt, clean, clean_but_logs, launch};
use super::machine::Machine;
use super::process::{Ended, Process};
use super::run_dir::{GuestDir, GuestDirError, files, read_failure, read_record};
use super::supervise::{self as watch, Sockets, UNSEEN};
use crate::cli::{GivenArgs, HostArgs, SuperviseArgs};
use crate::config::{Config, Given, Restart};
use crate::log;
use crate::network;
use crate::report::say;
use crate::signals::EndRequests;
use crate::types::Name;

/// What a supervisor says once its guest runs.
const READY: &str = "ready";

/// After this a wait is begun again; what is waited for has bounds of its own.
const LIMIT: Duration = Duration::from_secs(3600);

/// Who takes a guest down, or looks after what is left of one, is done within this.
const SHORT: Duration = Duration::from_secs(10);

/// One that is being started is there within this.
const LONG: Duration = Duration::from_secs(120);

/// Nothing tells when a lock is given back.
const PAUSE: Duration = Duration::from_millis(50);

/// A supervisor that is on its way.
#[derive(Debug)]
pub struct Starting {
    guest: Name,
    process: Process,
    word: UnixStream,
}

/// What a supervisor is to do.
#[derive(Debug)]
pub enum Wish {
    /// To take over a guest that runs, if there is one.
    Adopt,
    /// That, or to start it, as the file has it unless it is given.
    Start(Option<Given>),
}

/// A supervisor that was started.
#[derive(Debug)]
pub enum Started {
    /// It watches over its guest.
    Watching(Process),
    /// There was nothing to watch over, or the guest has not started, which it has told.
    Over(ExitCode),
}

impl Starting {
    /// Starts the supervisor of `guest`, which takes over what is there or, unless it is to do no more than that, starts it.
    ///
    /// # Errors
    /// Those of `exec`.
    pub fn new(host: &HostArgs, guest: &Name, wish: &Wish) -> Result<Self, GuestError> {
        let start = || {
            let (word, theirs) = UnixStream::pair()?;
            word.set_nonblocking(true)?;
            let mut command = Command::new("/proc/self/exe");
            command.args(["supervise", guest.as_str(), "--config"]);
            command
                .arg(&host.config)
                .arg("--run-dir")
                .arg(&host.run_dir);
            command.stdin(OwnedFd::from(theirs));
            match wish {
                Wish::Adopt => {
                    command.arg("--adopt");
                    // What the command itself has to say may be for programs.
                    command.stdout(io::stderr().as_fd().try_clone_to_owned()?);
                }
                Wish::Start(given) => {
                    command.args(given.iter().flat_map(GivenArgs::words));
                }
            }
            let process = Process::spawn(&mut command)?;
            Ok(Self {
                guest: guest.clone(),
                process,
                word,
            })
        };
        start().map_err(|cause| GuestError::Supervisor {
            guest: guest.clone(),
            cause,
        })
    }

    /// Waits until the guest runs. When `signals` come, it is not to.
    ///
    /// # Errors
    /// Those of `poll` and `read`.
    pub fn wait(self, signals: &mut EndRequests) -> Result<Started, GuestError> {
        let guest = self.guest.clone();
        self.hear(signals)
            .map_err(|cause| GuestError::Supervisor { guest, cause })
    }

    fn hear(self, signals: &mut EndRequests) -> io::Result<Started> {
        let Self {
            guest,
            mut process,
            mut word,
        } = self;
        let mut interrupted = false;
        loop {
            process.wait_with(&[word.as_fd(), signals.as_fd()], LIMIT)?;
            if signals.take()? > 0 {
                interrupted = true;
                process.signal(Signal::TERM);
            }
            match process.ended()? {
                Some(_) if interrupted => return Ok(Started::Over(ExitCode::FAILURE)),
                Some(ended) => return Ok(Started::Over(exit_code(&guest, ended))),
                None => {}
            }
            let mut bytes = [0; 16];
            match word.read(&mut bytes) {
                Ok(count @ 1..) if !interrupted && bytes[..count] == *READY.as_bytes() => {
                    return Ok(Started::Watching(process));
                }
                Ok(_) => {
                    // Its end follows.
                    process.wait_with(&[signals.as_fd()], LIMIT)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// That of a supervisor, which has said why it failed unless it was killed.
fn exit_code(guest: &Name, ended: Ended) -> ExitCode {
    match ended {
        Ended::With(status) if status.code().is_some() => {
            ExitCode::from(status.code().map_or(1, |code| code as u8))
        }
        ended => {
            tracing::error!(
                "guest {guest}: its supervisor was killed on its way ({ended}); `ringtap start {guest}` tries again"
            );
            ExitCode::FAILURE
        }
    }
}

/// The directory of a guest whose supervisor listens, if there is one: should one have died, another takes over.
///
/// # Errors
/// A supervisor can't be started.
pub fn watched(host: &HostArgs, guest: &Name) -> Result<Option<PathBuf>, GuestError> {
    let run_dir = network::run_dir_path(&host.run_dir)?;
    let dir = GuestDir::of(&run_dir, guest);
    if is_watched(&dir) {
        return Ok(Some(dir));
    }
    // Of one that has failed there are the logs, and no more.
    if !dir.exists() || (read_record(&dir).is_none() && read_failure(&dir).is_some()) {
        return Ok(None);
    }
    let mut signals = EndRequests::catch().map_err(GuestError::Supervision)?;
    match Starting::new(host, guest, &Wish::Adopt)?.wait(&mut signals)? {
        Started::Watching(process) => process.leave(),
        Started::Over(_) => {}
    }
    Ok(is_watched(&dir).then_some(dir))
}

/// As [`watched`], but one that is on its way up or down is waited for, until `signals` come.
///
/// # Errors
/// Those of [`watched`]; it takes too long.
pub fn watched_in_the_end(
    host: &HostArgs,
    guest: &Name,
    signals: &mut EndRequests,
) -> Result<Option<PathBuf>, GuestError> {
    let dir = GuestDir::of(&network::run_dir_path(&host.run_dir)?, guest);
    let end = Instant::now() + LONG;
    loop {
        let watched = watched(host, guest)?;
        if watched.is_some() || !dir.exists() || read_failure(&dir).is_some() {
            return Ok(watched);
        }
        let interrupted = signals.take().map_err(GuestError::Supervision)? > 0;
        if interrupted || Instant::now() > end {
            return Err(GuestError::Busy(guest.clone()));
        }
        thread::sleep(PAUSE);
    }
}

/// Sees to it that each guest that runs is watched over.
///
/// # Errors
/// A supervisor can't be started.
pub fn watch_all(host: &HostArgs) -> Result<(), GuestError> {
    let run_dir = network::run_dir_path(&host.run_dir)?;
    for guest in GuestDir::all(&run_dir) {
        watched(host, &guest)?;
    }
    Ok(())
}

/// Whether somebody answers commands in a guest's directory: one that is about to end does not any more.
pub fn is_watched(dir: &Path) -> bool {
    State::of(dir).is_some()
}

/// `ringtap supervise`: starts a guest, or takes it over, and watches over it until it ends.
///
/// # Errors
/// See [`GuestError`].
pub fn supervise(args: &SuperviseArgs) -> Result<ExitCode, GuestError> {
    let name = &args.guest.guest;
    // So that nothing that happens to the person's terminal happens to the guest.
    let _ = setsid();
    let signals = EndRequests::catch().map_err(GuestError::Supervision)?;
    let Some((guarded, serial)) = begin(args)? else {
        return Ok(ExitCode::SUCCESS);
    };
    let sockets = Sockets::open(&guarded.dir).map_err(GuestError::Supervision)?;
    go_on_alone(&guarded.dir.file(files::SUPERVISOR_LOG)).map_err(GuestError::Supervision)?;
    let outcome = watch::supervise(guarded, serial, sockets, signals);
    match outcome.map_err(GuestError::Supervision)? {
        Outcome::Failed(reason) => Err(GuestError::Failed {
            guest: name.clone(),
            reason,
        }),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// A guest to watch over, with QEMU's serial line if that runs.
type Begun = (Guarded, Option<UnixStream>);

/// What somebody else has left in a guest's directory.
enum Left {
    /// The guest.
    Guest(Box<Begun>),
    /// Nothing that whoever only adopts has to do with.
    Nothing,
    /// What was half made or half taken down, and is gone: the directory is free.
    Room(GuestDir),
}

/// The guest, taken over or started; none where there is nothing to take over and no more is wanted.
fn begin(args: &SuperviseArgs) -> Result<Option<Begun>, GuestError> {
    let (host, name, only_adopt) = (&args.guest.host, &args.guest.guest, args.adopt);
    let run_dir = network::run_dir_path(&host.run_dir)?;
    let mut room = None;
    if GuestDir::of(&run_dir, name).exists() {
        match take_over(host, &run_dir, name, only_adopt)? {
            Left::Guest(begun) => return Ok(Some(*begun)),
            Left::Nothing => return Ok(None),
            Left::Room(dir) => room = Some(dir),
        }
    }
    let config = match args.given.guest(name) {
        Some(given) => Config::load_with(&host.config, &given)?,
        None => Config::load(&host.config)?,
    };
    let dir = || room.map_or_else(|| lock(&run_dir, name), Ok);
    let (guarded, serial) = launch(host, &config, name, dir)?;
    Ok(Some((guarded, Some(serial))))
}

/// Takes over a guest that runs, or is to run again by its policy; takes away what else there is of it.
fn take_over(
    host: &HostArgs,
    run_dir: &Path,
    name: &Name,
    only_adopt: bool,
) -> Result<Left, GuestError> {
    let mut dir = match GuestDir::lock(run_dir, name) {
        Err(GuestDirError::Running(_)) if only_adopt => return Ok(Left::Nothing), // it is looked after
        Err(GuestDirError::Running(_)) => lock(run_dir, name)?,
        locked => locked?,
    };
    let qemu = Machine::running(dir.path());
    match (dir.record(), qemu) {
        (Some(mut record), Some(qemu)) => {
            say(format_args!(
                "guest {name} runs already (QEMU's pid is {}): watching over it again",
                qemu.pid
            ));
            record.ends &= only_adopt; // who starts it wants it to go on
            let begun = adopt(host, name, dir, record, Some(qemu))?;
            Ok(Left::Guest(Box::new(begun)))
        }
        (Some(record), None) if only_adopt && record.started > 0 && !record.ends => {
            let (guarded, serial) = adopt(host, name, dir, record, None)?;
            if guarded.relaunch.policy() == Restart::No {
                guarded.end_keeping_logs(UNSEEN);
                return Ok(Left::Nothing);
            }
            Ok(Left::Guest(Box::new((guarded, serial))))
        }
        (_, qemu) => {
            drop(qemu.map(Process::from)); // one without a record, which is of no use
            if only_adopt {
                clean_but_logs(host, &mut dir)?;
                return Ok(Left::Nothing);
            }
            clean(host, &dir)?;
            Ok(Left::Room(dir))
        }
    }
}

/// The directory of the guest, once those who take the guest down, or look whether there is one, are done.
///
/// # Errors
/// The guest has a supervisor, or is being started.
fn lock(run_dir: &Path, name: &Name) -> Result<GuestDir, GuestError> {
    let end = Instant::now() + SHORT;
    loop {
        match GuestDir::lock(run_dir, name) {
            Err(GuestDirError::Running(_))
                if Instant::now() < end && !is_watched(&GuestDir::of(run_dir, name)) => {}
            locked => return Ok(locked?),
        }
        thread::sleep(PAUSE);
    }
}

/// Says that the guest runs, and lets go of what is the command's.
fn go_on_alone(path: &Path) -> io::Result<()> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    let file = File::options().create(true).append(true).open(path)?;
    let word = io::stdin().as_fd().try_clone_to_owned()?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&file)?;
    dup2_stderr(&file)?;
    log::is_kept();
    // Who waits for it may be gone.
    let _ = UnixStream::from(word).write_all(READY.as_bytes());
    Ok(())
}
