//! The commands on guests but for the listings: each asks a supervisor, and starts one where there is none.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use super::GuestError;
use super::control::{Answer, Conversation, Outcome, Request};
use super::launch::clean;
use super::machine::Machine;
use super::run_dir::{GuestDir, GuestDirError, files, read_failure, read_record};
use super::supervisor::{Started, Starting, Wish, is_watched, watched, watched_in_the_end};
use super::terminal::{Console, Heard, Left, hear};
use crate::cli::{
    GuestArgs, GuestsArgs, HostArgs, NicArgs, NicChange, RunArgs, StartArgs, StopArgs,
};
use crate::config::Config;
use crate::network;
use crate::report::say;
use crate::signals::EndRequests;
use crate::types::Name;

/// `ringtap run`: starts a guest and stays at its console until it ends. Leaves nothing of it behind, unless the person leaves
/// before that.
///
/// # Errors
/// See [`GuestError`].
pub fn run(args: &RunArgs) -> Result<ExitCode, GuestError> {
    let (guest, host) = (&args.guest(), &args.host);
    let mut signals = EndRequests::catch().map_err(GuestError::Terminal)?;
    let dir = dir_of(host, guest)?;
    if is_watched(&dir) {
        return Err(GuestDirError::Running(guest.clone()).into());
    }
    let starting = Starting::new(host, guest, &Wish::Start(args.given()))?;
    let supervisor = match starting.wait(&mut signals)? {
        Started::Watching(process) => process,
        Started::Over(code) => return Ok(code),
    };
    let left = attend(guest, &dir, &mut signals);
    let outcome = match left {
        Ok(Left::Detached) => {
            supervisor.leave();
            say(format_args!(
                "\r\nguest {guest} runs on: `ringtap console {guest}` gets back, `ringtap stop {guest}` ends it"
            ));
            return Ok(ExitCode::SUCCESS);
        }
        Ok(Left::Asked) => {
            let request = Request::Stop {
                timeout: args.timeout,
            };
            let asked = Conversation::begin(&dir.join(files::CONTROL), &request);
            end_of(asked, guest, &mut signals, &dir)
        }
        Ok(Left::Ended(outcome)) => Ok(outcome),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(outcome) => {
            let _ = supervisor.wait_with(&[], std::time::Duration::from_secs(60));
            told(guest, outcome)
        }
        Err(error) => {
            supervisor.leave();
            Err(error)
        }
    }
}

/// Stays at the console of `guest` until something ends that.
fn attend(guest: &Name, dir: &Path, signals: &mut EndRequests) -> Result<Left, GuestError> {
    let supervisor = Conversation::begin(&dir.join(files::CONTROL), &Request::Watch);
    let (mut supervisor, mut stream) =
        match (supervisor, UnixStream::connect(dir.join(files::CONSOLE))) {
            (Ok(supervisor), Ok(stream)) => (supervisor, stream),
            _ => return gone(guest, dir).map(Left::Ended),
        };
    let mut console = Console {
        stream: &mut stream,
        supervisor: &mut supervisor,
        signals,
    };
    match console.attend().map_err(GuestError::Terminal)? {
        Some(left) => Ok(left),
        None => gone(guest, dir).map(Left::Ended),
    }
}

/// How a guest has ended whose supervisor does not listen any more.
///
/// # Errors
/// It has not: its supervisor has died.
fn gone(guest: &Name, dir: &Path) -> Result<Outcome, GuestError> {
    match read_failure(dir) {
        Some(reason) => Ok(Outcome::Failed(reason)),
        None if dir.exists() => Err(GuestError::Lost(guest.clone())),
        None => Ok(Outcome::PoweredOff),
    }
}

/// Waits for the end that was asked for; asks for force when `signals` come.
fn end_of(
    asked: io::Result<Conversation>,
    guest: &Name,
    signals: &mut EndRequests,
    dir: &Path,
) -> Result<Outcome, GuestError> {
    let Ok(mut supervisor) = asked else {
        return gone(guest, dir);
    };
    loop {
        super::terminal::either(&supervisor, signals).map_err(GuestError::Terminal)?;
        if signals.take().map_err(GuestError::Terminal)? > 0 {
            let force = Request::Stop { timeout: 0 };
            let _ = Conversation::begin(&dir.join(files::CONTROL), &force);
            continue;
        }
        match hear(&mut supervisor).map_err(GuestError::Terminal)? {
            Heard::Ended(outcome) => return Ok(outcome),
            // It may have been about to end, and not have heard the request any more.
            Heard::Lost => return gone(guest, dir),
            Heard::Notes => {}
        }
    }
}

fn told(guest: &Name, outcome: Outcome) -> Result<ExitCode, GuestError> {
    match outcome {
        Outcome::Failed(reason) => Err(GuestError::Failed {
            guest: guest.clone(),
            reason,
        }),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// `ringtap start`: starts guests in the background; one that runs is only watched over again, if nobody does.
///
/// # Errors
/// See [`GuestError`].
pub fn start(args: &StartArgs) -> Result<ExitCode, GuestError> {
    let host = &args.host;
    let guests = match args.autostart {
        true => {
            let config = Config::load(&host.config)?;
            let wanted = config.guests.values().filter(|guest| guest.autostart);
            wanted.map(|guest| guest.name.clone()).collect()
        }
        false => args.guests.clone(),
    };
    start_all(host, &guests)
}

fn start_all(host: &HostArgs, guests: &[Name]) -> Result<ExitCode, GuestError> {
    let mut signals = EndRequests::catch().map_err(GuestError::Terminal)?;
    let mut starting = Vec::new();
    for guest in guests {
        if is_watched(&dir_of(host, guest)?) {
            say(format_args!("{guest}: runs already"));
            continue;
        }
        starting.push((guest, Starting::new(host, guest, &Wish::Start(None))?));
    }
    let mut code = ExitCode::SUCCESS;
    for (guest, one) in starting {
        match one.wait(&mut signals)? {
            Started::Watching(supervisor) => {
                supervisor.leave();
                say(format_args!("{guest}: started"));
            }
            Started::Over(failed) => code = failed,
        }
    }
    Ok(code)
}

/// `ringtap stop`: asks guests to power off, and uses force on those that do not.
///
/// # Errors
/// See [`GuestError`].
pub fn stop(args: &StopArgs) -> Result<ExitCode, GuestError> {
    stop_all(&args.guests, args.timeout).map(|_| ExitCode::SUCCESS)
}

/// Stops them all at the same time; gives their names.
fn stop_all(args: &GuestsArgs, timeout: u32) -> Result<Vec<Name>, GuestError> {
    let guests = chosen(args)?;
    let mut signals = EndRequests::catch().map_err(GuestError::Terminal)?;
    let mut asked = Vec::new();
    for guest in &guests {
        let Some(dir) = watched_in_the_end(&args.host, guest, &mut signals)? else {
            say(format_args!("{guest}: does not run"));
            continue;
        };
        let conversation =
            Conversation::begin(&dir.join(files::CONTROL), &Request::Stop { timeout });
        asked.push((guest, dir, conversation));
    }
    for (guest, dir, conversation) in asked {
        let how = match end_of(conversation, guest, &mut signals, &dir)? {
            Outcome::Stopped | Outcome::PoweredOff => "powered off".to_owned(),
            Outcome::Killed => format!("killed: it had not powered off within {timeout} s"),
            Outcome::Failed(reason) => format!("had failed: {reason}"),
        };
        say(format_args!("{guest}: {how}"));
    }
    leave_unused_networks(&args.host)?;
    Ok(guests)
}

/// Takes down the networks that guests have left which were killed on their way up; not while there is one that may run and
/// that nobody watches over, which does not show on every kind of network.
fn leave_unused_networks(host: &HostArgs) -> Result<(), GuestError> {
    let run_dir = network::run_dir_path(&host.run_dir)?;
    let shows = |guest: &Name| {
        let dir = GuestDir::of(&run_dir, guest);
        read_record(&dir).is_none() || is_watched(&dir)
    };
    if GuestDir::all(&run_dir).iter().all(shows) {
        network::leave_unused(host)?;
    }
    Ok(())
}

/// `ringtap restart`: stops guests, and starts them as the file has them now.
///
/// # Errors
/// See [`GuestError`].
pub fn restart(args: &StopArgs) -> Result<ExitCode, GuestError> {
    // What could not be started again is not stopped.
    let config = Config::load(&args.guests.host.config)?;
    for guest in chosen(&args.guests)? {
        config.guest(&guest)?;
    }
    let guests = stop_all(&args.guests, args.timeout)?;
    start_all(&args.guests.host, &guests)
}

/// `ringtap console`: stays at a guest's console until the person leaves or the guest ends.
///
/// # Errors
/// See [`GuestError`].
pub fn console(args: &GuestArgs) -> Result<ExitCode, GuestError> {
    let GuestArgs { guest, host } = args;
    let Some(dir) = watched(host, guest)? else {
        return Err(not_running(host, guest));
    };
    let mut signals = EndRequests::catch().map_err(GuestError::Terminal)?;
    match attend(guest, &dir, &mut signals)? {
        Left::Detached | Left::Asked => Ok(ExitCode::SUCCESS),
        Left::Ended(outcome) => told(guest, outcome),
    }
}

/// `ringtap nic`: adds, removes and moves NICs of a guest that runs.
///
/// # Errors
/// See [`GuestError`].
pub fn nic(args: &NicArgs) -> Result<ExitCode, GuestError> {
    let (guest, request) = match args.change.clone() {
        NicChange::Add { guest, network } => (guest, Request::AddNic { network }),
        NicChange::Remove { guest, index } => (guest, Request::RemoveNic { index }),
        NicChange::Move {
            guest,
            index,
            network,
        } => (guest, Request::MoveNic { index, network }),
    };
    let Some(dir) = watched(&args.host, &guest)? else {
        return Err(not_running(&args.host, &guest));
    };
    let lost = |_| GuestError::Lost(guest.clone());
    let asked = Conversation::begin(&dir.join(files::CONTROL), &request);
    match asked.and_then(|mut asked| asked.next()).map_err(lost)? {
        Some(Answer::Done(text)) => {
            say(format_args!("{guest}: {text}"));
            Ok(ExitCode::SUCCESS)
        }
        Some(Answer::Refused(reason)) => Err(GuestError::Refused { guest, reason }),
        _ => Err(GuestError::Lost(guest)),
    }
}

/// `ringtap rm`: removes what guests that have ended have left in the run directory.
///
/// # Errors
/// One runs, or something can't be removed.
pub fn rm(args: &GuestsArgs) -> Result<ExitCode, GuestError> {
    let run_dir = network::run_dir_path(&args.host.run_dir)?;
    for guest in chosen(args)? {
        if !GuestDir::of(&run_dir, &guest).exists() {
            say(format_args!("{guest}: nothing is left of it"));
            continue;
        }
        let dir = match GuestDir::lock(&run_dir, &guest) {
            Err(GuestDirError::Running(_)) if args.all => continue,
            locked => locked?,
        };
        if Machine::running(dir.path()).is_some() {
            dir.leave(); // its supervisor alone has died
            if !args.all {
                return Err(GuestDirError::Running(guest).into());
            }
            continue;
        }
        clean(&args.host, &dir)?;
        drop(dir);
        say(format_args!("{guest}: removed what was left of it"));
    }
    leave_unused_networks(&args.host)?;
    Ok(ExitCode::SUCCESS)
}

/// The guests meant; all that have a directory where all are.
fn chosen(args: &GuestsArgs) -> Result<Vec<Name>, GuestError> {
    let run_dir = network::run_dir_path(&args.host.run_dir)?;
    let there = GuestDir::all(&run_dir);
    if args.all {
        return Ok(there);
    }
    for guest in &args.guests {
        if !there.contains(guest) {
            Config::load(&args.host.config)?.guest(guest)?;
        }
    }
    Ok(args.guests.clone())
}

/// Why a guest can't be used that nobody watches over: it does not run, or there is none of that name.
fn not_running(host: &HostArgs, guest: &Name) -> GuestError {
    let known = Config::load(&host.config).and_then(|config| config.guest(guest).cloned());
    match known {
        Ok(_) => GuestError::NotRunning(guest.clone()),
        Err(problems) => problems.into(),
    }
}

fn dir_of(host: &HostArgs, guest: &Name) -> Result<std::path::PathBuf, GuestError> {
    Ok(GuestDir::of(&network::run_dir_path(&host.run_dir)?, guest))
}
