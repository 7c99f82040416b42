//! The command line: text to typed arguments, no I/O. Scripts outside the project rely on what is here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::backend::BackendCommand;
use crate::types::Name;

/// VM networking for one small host: a vhost-user-net backend, and a launcher for QEMU guests.
#[derive(Debug, Parser)]
#[command(name = "ringtap", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// ringtap's commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve one guest NIC: a vhost-user-net back-end on a tap or macvtap
    Backend(BackendCommand),
    /// Print what `up` would do, as commands, and change nothing
    Plan(ReportArgs),
    /// Bring networks up; a second time changes nothing
    Up(NetworkArgs),
    /// Take back what `up` did
    Down(NetworkArgs),
    /// Show networks as they are and as the file wants them; exit code 1 where they differ
    Status(ReportArgs),
    /// Print who can open connections to whom, as the file has it
    Reach(ReportArgs),
    /// Print the addresses that DHCP has given out
    Leases(ReportArgs),
    /// Run a guest in the foreground, with its networks; Ctrl-C ends it
    Run(RunArgs),
}

/// Where the control plane reads its file and keeps its state.
#[derive(Debug, Clone, Args)]
pub struct HostArgs {
    /// The file that describes networks and guests
    #[arg(long, value_name = "FILE", default_value = "/etc/ringtap.toml")]
    pub config: PathBuf,

    /// Where state, sockets and logs are kept; one directory is one (pretend) host
    #[arg(long, value_name = "DIR", default_value = "/run/ringtap")]
    pub run_dir: PathBuf,
}

/// Arguments of `up` and `down`.
#[derive(Debug, Clone, Args)]
pub struct NetworkArgs {
    /// File and run directory.
    #[command(flatten)]
    pub host: HostArgs,

    /// The networks meant; all in the file if none is named
    #[arg(value_name = "NAME")]
    pub names: Vec<Name>,
}

/// Arguments of `plan`, `status`, `reach` and `leases`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Networks, file and run directory.
    #[command(flatten)]
    pub network: NetworkArgs,

    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The guest to run
    #[arg(value_name = "GUEST")]
    pub guest: Name,

    /// File and run directory.
    #[command(flatten)]
    pub host: HostArgs,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
