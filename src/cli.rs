//! The command line: text to typed arguments, no I/O. Scripts outside the project rely on what is here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::backend::BackendCommand;
use crate::bench::BenchCommand;
use crate::config::{Given, Memory, USUAL_FILE};
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
    /// Show networks, or those of guests, as they are and as the file wants them; exit code 1 where they differ
    Status(ReportArgs),
    /// Print who can open connections to whom, as the file has it
    Reach(ReportArgs),
    /// Print the addresses that DHCP has given out
    Leases(ReportArgs),
    /// Run a guest in the foreground, its serial console on the terminal; Ctrl-] leaves it running
    Run(RunArgs),
    /// Start guests in the background, with their networks
    Start(StartArgs),
    /// Power guests off: ask them to, wait, and then use force
    Stop(StopArgs),
    /// Stop guests and start them as the file has them now
    Restart(StopArgs),
    /// Print the guests and how they are
    List(ListArgs),
    /// Get at a guest's serial console; Ctrl-] leaves
    Console(GuestArgs),
    /// Log in to a guest by ssh, at the address that it has
    Ssh(SshArgs),
    /// Add, remove or move a NIC of a guest that runs, until that stops
    Nic(NicArgs),
    /// Remove what guests that have ended have left in the run directory; never a disk
    Rm(GuestsArgs),
    /// Measure a vhost-user-net back-end, beside others and what the kernel allows
    Bench(Box<BenchCommand>),
    /// Watch over a guest; `start` and `run` start it
    #[command(hide = true)]
    Supervise(SuperviseArgs),
}

/// Where the control plane reads its file and keeps its state.
#[derive(Debug, Clone, Args)]
pub struct HostArgs {
    /// The file that describes networks and guests
    #[arg(
        long,
        value_name = "FILE",
        default_value = USUAL_FILE,
        global = true
    )]
    pub config: PathBuf,

    /// Where state, sockets and logs are kept; one directory is one (pretend) host
    #[arg(long, value_name = "DIR", default_value = RUN_DIR, global = true)]
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
    /// The guest to run [default: as its first --disk is called]
    #[arg(value_name = "GUEST", required_unless_present = "disks")]
    guest: Option<Name>,

    /// What it is, if the file does not have it.
    #[command(flatten)]
    given: GivenArgs,

    /// File and run directory.
    #[command(flatten)]
    pub host: HostArgs,

    /// How long the guest may take to power off when this command is asked to end, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = STOP_TIMEOUT)]
    pub timeout: u32,
}

impl RunArgs {
    /// The guest meant.
    pub fn guest(&self) -> Name {
        self.guest.clone().unwrap_or_else(|| self.given.name())
    }

    /// What it is, if the person has said so.
    pub fn given(&self) -> Option<Given> {
        self.given.guest(&self.guest())
    }
}

/// A guest that is not in the file; none without disks.
#[derive(Debug, Clone, Args)]
pub struct GivenArgs {
    /// Make a guest of this image, without a word in the file; further ones are further disks
    #[arg(long = "disk", value_name = "IMAGE")]
    disks: Vec<String>,

    /// A network that the guest is on; further ones are further NICs. `default` there is without a file
    #[arg(
        long = "network",
        value_name = "NETWORK",
        requires = "disks",
        default_value = "default"
    )]
    networks: Vec<Name>,

    /// Its memory
    #[arg(long, value_name = "SIZE", requires = "disks", default_value = "1G")]
    memory: Memory,

    /// Its virtual CPUs
    #[arg(long, value_name = "N", requires = "disks", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=255))]
    cpus: u16,
}

impl GivenArgs {
    /// What the first disk is called, as far as a guest can be called so.
    fn name(&self) -> Name {
        let stem = self
            .disks
            .first()
            .and_then(|disk| Path::new(disk).file_stem());
        let near = stem.and_then(|stem| Name::near(&stem.to_string_lossy()));
        near.unwrap_or_else(|| "guest".parse().expect("a name"))
    }

    /// The words that give `guest` to another `ringtap`.
    pub fn words(guest: &Given) -> Vec<String> {
        let disks = guest.disks.iter().map(|disk| format!("--disk={disk}"));
        let networks = guest.networks.iter();
        let networks = networks.map(|network| format!("--network={network}"));
        let (cpus, memory) = (guest.cpus, guest.memory);
        let sizes = [format!("--cpus={cpus}"), format!("--memory={memory}")];
        disks.chain(networks).chain(sizes).collect()
    }

    /// The guest of this name, as it is given.
    pub fn guest(&self, name: &Name) -> Option<Given> {
        (!self.disks.is_empty()).then(|| Given {
            name: name.clone(),
            cpus: self.cpus,
            memory: self.memory,
            disks: self.disks.clone(),
            networks: self.networks.clone(),
        })
    }
}

/// How long a guest may take to power off unless the person says otherwise, in seconds.
pub const STOP_TIMEOUT: u32 = 60;

/// Arguments of commands on one guest.
#[derive(Debug, Clone, Args)]
pub struct GuestArgs {
    /// The guest
    #[arg(value_name = "GUEST")]
    pub guest: Name,

    /// File and run directory.
    #[command(flatten)]
    pub host: HostArgs,
}

/// Arguments of `rm`, and a part of others'.
#[derive(Debug, Clone, Args)]
pub struct GuestsArgs {
    /// The guests meant
    #[arg(value_name = "GUEST", required_unless_present = "all")]
    pub guests: Vec<Name>,

    /// All of them
    #[arg(long, conflicts_with = "guests")]
    pub all: bool,

    /// File and run directory.
    #[command(flatten)]
    pub host: HostArgs,
}

/// Arguments of `start`.
#[derive(Debug, Clone, Args)]
pub struct StartArgs {
    /// The guests meant
    #[arg(value_name = "GUEST", required_unless_present = "autostart")]
    pub guests: Vec<Name>,

    /// Those of the file that have autostart = true
    #[arg(long, conflicts_with = "guests")]
    pub autostart: bool,

    /// File and run directory.
    #[command(flatten)]
    pub host: HostArgs,
}

/// Arguments of `stop` and `restart`.
#[derive(Debug, Clone, Args)]
pub struct StopArgs {
    /// Which guests.
    #[command(flatten)]
    pub guests: GuestsArgs,

    /// How long a guest may take to power off, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = STOP_TIMEOUT)]
    pub timeout: u32,
}

/// Arguments of `list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// File and run directory.
    #[command(flatten)]
    pub host: HostArgs,

    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `ssh`.
#[derive(Debug, Clone, Args)]
pub struct SshArgs {
    /// The guest.
    #[command(flatten)]
    pub guest: GuestArgs,

    /// Who logs in [default: the user of its cloud-init, or who ssh says]
    #[arg(long, short = 'l', value_name = "NAME")]
    pub user: Option<String>,

    /// Words for ssh: options, or a command to run there
    #[arg(last = true, value_name = "WORD")]
    pub words: Vec<OsString>,
}

/// Arguments of `nic`.
#[derive(Debug, Clone, Args)]
pub struct NicArgs {
    /// What to do.
    #[command(subcommand)]
    pub change: NicChange,

    /// File and run directory.
    #[command(flatten)]
    pub host: HostArgs,
}

/// What may be done to NICs.
#[derive(Debug, Clone, Subcommand)]
pub enum NicChange {
    /// Add one, as the file has it if it has one more by now
    Add {
        /// The guest
        guest: Name,
        /// The network that it is to be on
        network: Name,
    },
    /// Remove one
    Remove {
        /// The guest
        guest: Name,
        /// Which, counted from 0
        #[arg(value_name = "NIC")]
        index: usize,
    },
    /// Plug one into another network; the guest sees its link go down and up
    Move {
        /// The guest
        guest: Name,
        /// Which, counted from 0
        #[arg(value_name = "NIC")]
        index: usize,
        /// The network that it is to be on
        network: Name,
    },
}

/// Arguments of `supervise`.
#[derive(Debug, Clone, Args)]
pub struct SuperviseArgs {
    /// The guest.
    #[command(flatten)]
    pub guest: GuestArgs,

    /// Only if it runs already, and nobody watches over it
    #[arg(long)]
    pub adopt: bool,

    /// What it is, if the file does not have it.
    #[command(flatten)]
    pub given: GivenArgs,
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
