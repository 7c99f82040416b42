//! What a backend process is told: the one value both halves share, as typed fields and as an argv.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::types::{IfName, QueuePairs};

/// Arguments of `ringtap backend`, the vhost-user back-end program.
///
/// The control plane writes them with [`BackendArgs::to_argv`]; the backend reads them back through clap.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct BackendArgs {
    /// Listen on this unix socket for a vhost-user front-end, one at a time
    #[arg(long, value_name = "PATH")]
    pub socket_path: PathBuf,

    /// Move frames through this tap; it is made if absent and then goes away with the process
    #[arg(long, value_name = "NAME")]
    pub tap: IfName,

    /// How many pairs of queues the device offers
    #[arg(long, value_name = "N", default_value_t = QueuePairs::ONE)]
    pub queue_pairs: QueuePairs,

    /// Spin for up to N µs before sleeping, where that has paid lately; 0 never spins
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub poll_us: u32,
}

impl BackendArgs {
    /// The words after the program's name that make `ringtap` read these arguments back.
    pub fn to_argv(&self) -> Vec<OsString> {
        vec![
            "backend".into(),
            "--socket-path".into(),
            self.socket_path.clone().into(),
            "--tap".into(),
            self.tap.as_str().into(),
            "--queue-pairs".into(),
            self.queue_pairs.to_string().into(),
            "--poll-us".into(),
            self.poll_us.to_string().into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    #[test]
    fn an_argv_reads_back_as_what_was_written() {
        let args = BackendArgs {
            socket_path: "/run/a b/c.sock".into(),
            tap: "web1-0".parse().unwrap(),
            queue_pairs: QueuePairs::try_from(4).unwrap(),
            poll_us: 50,
        };
        let argv = std::iter::once("ringtap".into()).chain(args.to_argv());
        let command = Cli::try_parse_from(argv).unwrap().command;
        assert!(matches!(command, Command::Backend(read) if read == args));
    }
}
