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
use std::time::Duration;

use rustix::process::{Signal, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::GuestError;
use super::control::{Conversation, Outcome, Request};
use super::launch::{adopt, clean, launch};
use super::machine::Machine;
use super::process::{Ended, Process};
use super::run_dir::{GuestDir, files, read_record};
use super::supervise::{self as watch, Guarded, Sockets, UNSEEN};
use crate::cli::{GivenArgs, HostArgs, SuperviseArgs};
use crate::config::{Config, Given, Restart};
use crate::network;
use crate::report::say;
use crate::signals::EndRequests;
use crate::types::Name;

/// What a supervisor says once its guest runs.
const READY: &str = "ready";

/// After this a wait is begun again; what is waited for has bounds of its own.
const LIMIT: Duration = Duration::from_secs(3600);

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
            mut process,
            mut word,
            ..
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
                Some(ended) => return Ok(Started::Over(exit_code(ended))),
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

fn exit_code(ended: Ended) -> ExitCode {
    match ended {
        Ended::With(status) => ExitCode::from(status.code().map_or(1, |code| code as u8)),
        Ended::Unseen => ExitCode::FAILURE,
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
    if read_record(&dir).is_none() {
        return Ok(None);
    }
    let mut signals = EndRequests::catch().map_err(GuestError::Supervision)?;
    match Starting::new(host, guest, &Wish::Adopt)?.wait(&mut signals)? {
        Started::Watching(process) => process.leave(),
        Started::Over(_) => {}
    }
    Ok(is_watched(&dir).then_some(dir))
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

/// Whether somebody listens for commands in a guest's directory.
pub fn is_watched(dir: &Path) -> bool {
    Conversation::begin(&dir.join(files::CONTROL), &Request::State).is_ok()
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

/// The guest, taken over or started; none where there is nothing to take over and no more is wanted.
fn begin(args: &SuperviseArgs) -> Result<Option<Begun>, GuestError> {
    let (host, name, only_adopt) = (&args.guest.host, &args.guest.guest, args.adopt);
    let run_dir = network::run_dir_path(&host.run_dir)?;
    let mut dir = None;
    if GuestDir::of(&run_dir, name).exists() {
        let locked = GuestDir::lock(&run_dir, name)?;
        let qemu = Machine::running(locked.path());
        if let Some(record) = locked.record()
            && (qemu.is_some() || only_adopt)
        {
            if let Some(qemu) = &qemu {
                say(format_args!(
                    "guest {name} runs already (QEMU's pid is {}): watching over it again",
                    qemu.pid
                ));
            }
            let runs = qemu.is_some();
            let (guarded, serial) = adopt(host, name, locked, record, qemu)?;
            if !runs && guarded.relaunch.policy() == Restart::No {
                guarded.end_keeping_logs(UNSEEN);
                return Ok(None);
            }
            return Ok(Some((guarded, serial)));
        }
        if only_adopt {
            locked.leave(); // the logs of one that has failed, say
            return Ok(None);
        }
        drop(qemu.map(Process::from)); // one without a record, which is of no use
        clean(host, &locked)?;
        dir = Some(locked);
    }
    let config = match args.given.guest(name) {
        Some(given) => Config::load_with(&host.config, &given)?,
        None => Config::load(&host.config)?,
    };
    let dir = || match dir {
        Some(dir) => Ok(dir),
        None => Ok(GuestDir::lock(&run_dir, name)?),
    };
    let (guarded, serial) = launch(host, &config, name, dir)?;
    Ok(Some((guarded, Some(serial))))
}

/// Says that the guest runs, and lets go of what is the command's.
fn go_on_alone(log: &Path) -> io::Result<()> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    let log = File::options().create(true).append(true).open(log)?;
    let word = io::stdin().as_fd().try_clone_to_owned()?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&log)?;
    dup2_stderr(&log)?;
    // Who waits for it may be gone.
    let _ = UnixStream::from(word).write_all(READY.as_bytes());
    Ok(())
}
