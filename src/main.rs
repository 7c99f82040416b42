//! The `ringtap` program: parse, dispatch, print the chain of causes, exit.

use std::error::Error;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use ringtap::backend;
use ringtap::cli::{Cli, Command};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) => {
            print_chain(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Backend(args) => backend::serve(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// One line of cause after another.
fn print_chain(error: &dyn Error) {
    eprintln!("ringtap: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
}

/// Logs at `info` unless `RINGTAP_LOG` says otherwise (a filter such as `ringtap::backend=debug`).
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("RINGTAP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}
