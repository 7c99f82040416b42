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
    Up(UpArgs),
    /// Keep what an `up` has changed that is taken back otherwise
    Confirm(ConfirmArgs),
    /// Wait, and take back what was not confirmed; `up` starts it
    #[command(hide = true)]
    TakeBackUnconfirmed(GuardArgs),
    /// Take back what `up` did
    Down(NetworkArgs),
    /// Set networks right as they drift, in the foreground; SIGINT or SIGTERM ends it
    Watch(NetworkArgs),
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
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    pub run_dir: PathBuf,
}

/// Arguments of `up`.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Networks, file and run directory.
    #[command(flatten)]
    pub network: NetworkArgs,

    /// Take all of it back unless `ringtap confirm` comes within so many seconds; 0 for never [default: 60 where the link
    /// moves by which your SSH session comes, else 0]
    #[arg(long, value_name = "SECONDS")]
    pub confirm: Option<u32>,
}

/// Arguments of `confirm`.
#[derive(Debug, Clone, Args)]
pub struct ConfirmArgs {
    /// The run directory of that `up`
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    pub run_dir: PathBuf,
}

/// Arguments of `take-back-unconfirmed`.
#[derive(Debug, Clone, Args)]
pub struct GuardArgs {
    /// How long to wait, in seconds
    pub seconds: u32,

    /// The run directory
    #[arg(long, value_name = "DIR")]
    pub run_dir: PathBuf,
}

/// Where state is kept unless the person says otherwise.
const RUN_DIR: &str = "/run/ringtap";

/// Arguments of `down` and `watch`, and a part of `up`'s.
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
