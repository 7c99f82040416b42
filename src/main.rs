//! The `ringtap` program: parse, dispatch, print the chain of causes, exit.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use ringtap::cli::{Cli, Command};
use ringtap::{backend, bench, config, guest, log, network};

/// Bad usage or a bad configuration file; clap exits with the same for a bad command line.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log::to_stderr();
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) => {
            print_chain(error.as_ref());
            ExitCode::from(exit_code(error.as_ref()))
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Backend(command) => backend::run(&command)?,
        Command::Plan(args) => network::plan(&args)?,
        Command::Up(args) => network::up(&args)?,
        Command::Confirm(args) => network::confirm(&args)?,
        Command::TakeBackUnconfirmed(args) => network::take_back_unconfirmed(&args)?,
        Command::Down(args) => network::down(&args)?,
        Command::Watch(args) => network::watch(&args)?,
        Command::Status(args) => return Ok(guest::status(&args)?),
        Command::Reach(args) => network::reach(&args)?,
        Command::Leases(args) => network::leases(&args)?,
        Command::Run(args) => return Ok(guest::run(&args)?),
        Command::Start(args) => return Ok(guest::start(&args)?),
        Command::Stop(args) => return Ok(guest::stop(&args)?),
        Command::Restart(args) => return Ok(guest::restart(&args)?),
        Command::List(args) => guest::list(&args)?,
        Command::Console(args) => return Ok(guest::console(&args)?),
        Command::Ssh(args) => return Err(guest::ssh(&args).into()),
        Command::Nic(args) => return Ok(guest::nic(&args)?),
        Command::Rm(args) => return Ok(guest::rm(&args)?),
        Command::Bench(command) => return Ok(bench::run(&command)),
        Command::Supervise(args) => return Ok(guest::supervise(&args)?),
    }
    Ok(ExitCode::SUCCESS)
}

/// 2 where the person's file is at fault, 1 where the host is.
fn exit_code(error: &(dyn Error + 'static)) -> u8 {
    let mut causes = std::iter::successors(Some(error), |&cause| cause.source());
    if causes.any(|cause| cause.is::<config::Problems>()) {
        EXIT_USAGE
    } else {
        1
    }
}

/// One line of cause after another.
fn print_chain(error: &dyn Error) {
    let mut stderr = std::io::stderr().lock();
    // Where nobody can be told, the exit code says it.
    let _ = writeln!(stderr, "ringtap: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = writeln!(stderr, "  because: {error}");
        cause = error.source();
    }
}
