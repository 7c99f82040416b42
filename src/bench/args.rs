//! The words of `ringtap bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::pattern::Size;
use super::ring::Layout;
use super::subject::{Named, Work};
use crate::types::{IfName, QueueSize};

/// Arguments of `bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchCommand {
    /// The back-end that listens there, instead of one of ringtap's own
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// That back-end's tap [default: the one that it has open]
    #[arg(long, value_name = "NAME", requires = "socket")]
    pub tap: Option<IfName>,

    /// Another back-end to compare with, such as dpdk=/run/dpdk.sock; can be given again
    #[arg(long, value_name = "NAME=SOCKET")]
    pub vs: Vec<Named>,

    /// Another one, started for each sample by a line of shell, which has it listen on $SOCKET; can be given again
    #[arg(long, value_name = "NAME=COMMAND")]
    pub vs_run: Vec<Named>,

    /// What is done: tx, from the guest, rx, to it, rr, there and back one by one [default: each]
    #[arg(long, value_name = "WORK", value_delimiter = ',')]
    work: Vec<Work>,

    /// Bytes of a frame from its first address on, 60 to 9014, or 64k for one that is to be segmented
    #[arg(
        long,
        value_name = "BYTES",
        value_delimiter = ',',
        default_value = "64,1514,64k"
    )]
    size: Vec<Size>,

    /// How the rings are laid out
    #[arg(long, value_name = "LAYOUT", default_value = "split")]
    pub ring: Layout,

    /// Descriptors a ring
    #[arg(long, value_name = "N", default_value_t = QueueSize::MAX)]
    pub queue_size: QueueSize,

    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub samples: u32,

    /// For how long, each time
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,

    /// Print JSON, with every sample, for programs
    #[arg(long)]
    pub json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|it| (0.05..=3600.0).contains(it));
    seconds.ok_or_else(|| "0.05 to 3600 seconds".to_owned())
}

impl BenchCommand {
    /// What is done.
    pub fn works(&self) -> impl Iterator<Item = Work> {
        match self.work.is_empty() {
            true => vec![Work::Tx, Work::Rx, Work::Rr],
            false => self.work.clone(),
        }
        .into_iter()
    }

    /// Frames' sizes.
    pub fn sizes(&self) -> impl Iterator<Item = Size> {
        self.size.iter().copied()
    }

    /// How long a sample is taken.
    pub fn span(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}
