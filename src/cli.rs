//! The command line: text to typed arguments, no I/O. Scripts outside the project rely on what is here.

use clap::{Parser, Subcommand};

use crate::backend::BackendArgs;

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
    /// Serve one guest NIC: a vhost-user-net back-end on a tap
    Backend(BackendArgs),
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
