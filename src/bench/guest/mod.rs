//! `ringtap bench guest`: how fast real guests are, to the host and from it, by iperf3 and by pings.
//!
//! A guest of the bench's own (`world`) has a NIC of ringtap's and, each on a network of the same mode, one of QEMU's tap and one of
//! vhost-net where the host has that: the same kernel and the same QEMU, asked in turn. Guests that run already are measured by the
//! NIC by which the host reaches them. This drives ringtap by its command line, as a person would; `load` is what is measured.

mod load;
mod ping;
mod table;
mod world;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use thiserror::Error;

use super::args::seconds;
use super::link::LinkError;
use crate::cli::HostArgs;
use crate::guest::GuestError;
use crate::report::{causes, print_json};
use crate::types::{Name, QueuePairs};

use load::{Load, Measured};
use world::{Running, World};

/// Arguments of `bench guest`.
#[derive(Debug, Clone, Args)]
pub struct GuestBench {
    /// Guests that run, with `iperf3 -s` in them [default: one of the bench's own, with NICs of QEMU's as well]
    guests: Vec<Name>,

    /// File and run directory of guests that run.
    #[command(flatten)]
    host: HostArgs,

    /// The folder of the bench's guest: vmlinuz, initrd, append, as guests/tiny/build makes them
    #[arg(long, value_name = "FOLDER", default_value = "target/guests/tiny")]
    tiny: PathBuf,

    /// Modes of its networks
    #[arg(
        long,
        value_name = "MODE",
        value_delimiter = ',',
        default_value = "isolated"
    )]
    mode: Vec<NetworkMode>,

    /// Pairs of queues of its NICs
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1")]
    pairs: Vec<QueuePairs>,

    /// How many streams there are where several are sent at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..=128))]
    streams: u16,

    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,

    /// For how long, each time
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,

    /// Print JSON, with every sample, for programs
    #[arg(long)]
    json: bool,
}

/// The modes in which guests and the host reach each other by a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Behind the host's address.
    Nat,
    /// With addresses of their own.
    Routed,
    /// With each other and the host alone.
    Isolated,
    /// As routed, without a firewall.
    Open,
}

impl NetworkMode {
    /// As the file has it.
    fn word(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Routed => "routed",
            Self::Isolated => "isolated",
            Self::Open => "open",
        }
    }
}

/// Why a guest can't be measured.
#[derive(Debug, Error)]
pub enum GuestBenchError {
    /// The files of the bench's guest.
    #[error(
        "{0}: the bench's guest is not there; make it (guests/tiny/build), or name a folder, --tiny FOLDER"
    )]
    NoTiny(PathBuf, #[source] std::io::Error),
    /// A command of ringtap's has failed, and has said why.
    #[error("ringtap {0}: {1}")]
    Ringtap(String, String),
    /// A guest has no address.
    #[error("guest {0} runs nowhere that is known, or has no address: ringtap list")]
    NoAddress(Name),
    /// The guest does not answer.
    #[error("{0} answers no ping within {1} s")]
    Silent(IpAddr, u64),
    /// A link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// iperf3 has failed, and has said why.
    #[error("iperf3: {0}; the guest is to run `iperf3 -s`")]
    Iperf(String),
    /// No QEMU.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The kernel.
    #[error("the host")]
    Host(#[from] std::io::Error),
}

/// One whose network is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    name: String,
    address: IpAddr,
}

/// What was measured of all of them, by one load.
#[derive(Debug, Serialize)]
struct Chapter {
    /// The mode of their networks, where it is the bench's choice.
    mode: Option<NetworkMode>,
    /// Pairs of queues, likewise.
    pairs: Option<u16>,
    load: Load,
    subjects: Vec<Samples>,
}

/// The samples of one.
#[derive(Debug, Serialize)]
struct Samples {
    name: String,
    samples: Vec<Measured>,
    failure: Option<String>,
}

/// `ringtap bench guest`. Exit code 1 where something could not be measured.
pub fn run(command: &GuestBench) -> ExitCode {
    match measure(command) {
        Ok(chapters) => {
            if command.json {
                print_json(&chapters);
            } else {
                chapters.iter().for_each(table::print);
            }
            let mut subjects = chapters.iter().flat_map(|it| &it.subjects);
            ExitCode::from(u8::from(subjects.any(|it| it.failure.is_some())))
        }
        Err(error) => {
            eprintln!("ringtap: {}", causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn measure(command: &GuestBench) -> Result<Vec<Chapter>, GuestBenchError> {
    if !command.guests.is_empty() {
        let subjects = command.guests.iter();
        let subjects = subjects.map(|guest| world::running(&command.host, guest));
        return Ok(chapters(
            command,
            &subjects.collect::<Result<Vec<_>, _>>()?,
            None,
        ));
    }
    let mut all = Vec::new();
    for mode in &command.mode {
        for pairs in &command.pairs {
            let world = World::new(&command.tiny, *mode, *pairs)?;
            let running: Running<'_> = world.start()?;
            let of = Some((*mode, pairs.get()));
            all.extend(chapters(command, &running.subjects, of));
        }
    }
    Ok(all)
}

/// Each kind of load, of all subjects in turn.
fn chapters(
    command: &GuestBench,
    subjects: &[Subject],
    of: Option<(NetworkMode, u16)>,
) -> Vec<Chapter> {
    let span = Duration::from_secs_f64(command.seconds);
    let loads = Load::all(command.streams).into_iter();
    let chapter = |load: Load| {
        let none = |subject: &Subject| Samples {
            name: subject.name.clone(),
            samples: Vec::new(),
            failure: None,
        };
        let mut results: Vec<Samples> = subjects.iter().map(none).collect();
        for _ in 0..command.samples {
            for (subject, result) in subjects.iter().zip(&mut results) {
                if result.failure.is_some() {
                    continue;
                }
                match load.sample(subject.address, span) {
                    Ok(measured) => result.samples.push(measured),
                    Err(error) => result.failure = Some(causes(&error)),
                }
            }
        }
        Chapter {
            mode: of.map(|(mode, _)| mode),
            pairs: of.map(|(_, pairs)| pairs),
            load,
            subjects: results,
        }
    };
    loads.map(chapter).collect()
}
