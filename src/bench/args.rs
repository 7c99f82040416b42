//! The words of `ringtap bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::driver::Driver;
use super::guest::GuestBench;
use super::pattern::Size;
use super::subject::{Named, Own, Running, Subject};
use super::work::Work;
use crate::types::{IfName, QueuePairs};

/// What else can be measured.
#[derive(Debug, Clone, Subcommand)]
pub enum OtherBench {
    /// Measure guests by iperf3 and pings: those that run, or one of the bench's own beside QEMU's tap and vhost-net
    Guest(GuestBench),
}

/// How samples are taken and told, of whatever is measured.
#[derive(Debug, Clone, Args)]
pub struct Sampling {
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub samples: u32,

    /// For how long, each time
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,

    /// Print JSON, with every sample, for programs
    #[arg(long)]
    pub json: bool,

    /// Write results.json, report.html and throughput.svg into this folder as well
    #[arg(long, value_name = "FOLDER")]
    pub report: Option<PathBuf>,
}

impl Sampling {
    /// How long a sample is taken.
    pub fn span(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// Arguments of `bench`.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchCommand {
    /// Something else than a back-end by itself.
    #[command(subcommand)]
    pub other: Option<OtherBench>,

    /// The back-end that listens there, instead of one of ringtap's own; given again, the one of another guest on its bridge
    #[arg(long, value_name = "PATH")]
    socket: Vec<PathBuf>,

    /// That back-end's tap [default: the one that it has open]
    #[arg(long, value_name = "NAME", requires = "socket")]
    tap: Option<IfName>,

    /// Another back-end to compare with, such as dpdk=/run/dpdk.sock, and that of another guest: dpdk=SOCKET,SOCKET; can be
    /// given again
    #[arg(long, value_name = "NAME=SOCKET")]
    vs: Vec<Named>,

    /// Another one, started for each sample by a line of shell, which has it listen on $SOCKET, and on $PEER for another guest;
    /// can be given again
    #[arg(long, value_name = "NAME=COMMAND")]
    vs_run: Vec<Named>,

    /// ringtap's own as well, with --poll-us; can be given again
    #[arg(long, value_name = "MICROSECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    poll_us: Vec<u32>,

    /// ringtap's own as well, with a guard that looks at what its guest claims
    #[arg(long)]
    guarded: bool,

    /// What is done: tx, from the guest, rx, to it, both at once, vm, to another guest, churn,
    /// TCP connections to another guest, rr, there and back one by one,
    /// idle, nothing [default: each]
    #[arg(long, value_name = "WORK", value_delimiter = ',')]
    work: Vec<Work>,

    /// Pairs of queues
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1")]
    pairs: Vec<QueuePairs>,

    /// Bytes of a frame from its first address on, 64 to 9014, or imix, or 64k for one that is to be segmented
    #[arg(
        long,
        value_name = "BYTES",
        value_delimiter = ',',
        default_value = "64,1514,64k"
    )]
    size: Vec<Size>,

    /// What the driver is like.
    #[command(flatten)]
    pub driver: Driver,

    /// How often, how long, and how it is told.
    #[command(flatten)]
    pub sampling: Sampling,
}

/// A time, in seconds.
///
/// # Errors
/// What it may be.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|it| (0.05..=3600.0).contains(it));
    seconds.ok_or_else(|| "0.05 to 3600 seconds".to_owned())
}

impl BenchCommand {
    /// Each kind of work with each size of frames and number of pairs with which it can be done.
    pub fn matrix(&self) -> Vec<(Work, Size, u16)> {
        let works = match self.work.is_empty() {
            true => &Work::ALL[..],
            false => &self.work,
        };
        let sizes = works.iter().flat_map(|work| {
            let own = work.size().map(|size| vec![size]);
            let sizes = own.unwrap_or_else(|| self.size.clone());
            sizes.into_iter().map(move |size| (*work, size))
        });
        let all = sizes.flat_map(|(work, size)| {
            let pairs = self.pairs.iter();
            pairs.map(move |pairs| (work, size, pairs.get()))
        });
        all.filter(|(work, size, pairs)| work.suits(*size, *pairs))
            .collect()
    }

    /// Who takes part, the one in question first, but for yardsticks.
    pub fn subjects(&self) -> Vec<Subject> {
        let first = Running::of_sockets(&self.socket, self.tap.clone());
        let first = first.map_or(Subject::Ringtap(Own::default()), Subject::Running);
        let polling = self.poll_us.iter().map(|poll_us| Own {
            poll_us: *poll_us,
            ..Own::default()
        });
        let guarded = self.guarded.then_some(Own {
            guarded: true,
            ..Own::default()
        });
        let own = polling.chain(guarded).map(Subject::Ringtap);
        let running = self.vs.iter().map(Running::of_named).map(Subject::Running);
        let started = self.vs_run.iter().cloned().map(Subject::Started);
        std::iter::once(first)
            .chain(own)
            .chain(running)
            .chain(started)
            .collect()
    }
}
