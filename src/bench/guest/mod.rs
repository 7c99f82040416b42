//! `ringtap bench guest`: how fast real guests are, to the host and from it, by iperf3 and by pings.
//!
//! A guest of the bench's own (`world`) has a NIC of ringtap's and, each on a network of the same mode, one of QEMU's tap and
//! one of vhost-net where the host has that: the same kernel and the same QEMU, asked in turn. Guests that run already are
//! measured by the NIC by which the host reaches them. This drives ringtap by its command line, as a person would; `load` is
//! what is measured.

mod device;
mod load;
mod ping;
mod report;
mod world;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use thiserror::Error;

use super::args::Sampling;
use super::findings::{self, Findings};
use super::link::LinkError;
use super::setting::{Origin, Setting};
use super::turns::Turns;
use crate::cli::HostArgs;
use crate::guest::GuestError;
use crate::programs::QEMU;
use crate::report::causes;
use crate::signals::end_is_asked;
use crate::types::{Name, QueuePairs};

use device::Device;
use load::Load;
use report::{Chapter, Report};
use world::{Back, World};

/// Who has a part in it besides ringtap.
const PROGRAMS: [&str; 2] = [QEMU.name, "iperf3"];

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

    /// How often, how long, and how it is told.
    #[command(flatten)]
    sampling: Sampling,
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
    device: Device,
}

/// `ringtap bench guest`. Exit code 1 where something could not be measured.
pub fn run(command: &GuestBench) -> ExitCode {
    match measure(command) {
        Ok(report) => report.tell(&command.sampling),
        Err(error) => findings::ended().unwrap_or_else(|| {
            eprintln!("ringtap: {}", causes(&error));
            ExitCode::FAILURE
        }),
    }
}

fn measure(command: &GuestBench) -> Result<Report, GuestBenchError> {
    match command.guests.is_empty() {
        true => of_worlds(command),
        false => of_running(command),
    }
}

/// Guests that run already.
fn of_running(command: &GuestBench) -> Result<Report, GuestBenchError> {
    let subjects = command.guests.iter();
    let subjects = subjects.map(|guest| world::running(&command.host, guest));
    let subjects = subjects.collect::<Result<Vec<_>, _>>()?;
    let origins = subjects.iter().map(|subject| Origin {
        name: subject.name.clone(),
        origin: format!("a guest that runs, at {}", subject.address),
    });
    let loads = Load::all(command.streams);
    let turns = Turns::new(command.sampling.samples, subjects.len() * loads.len());
    let chapters = chapters(command, &turns, &subjects, None);
    drop(turns);
    Ok(Report {
        setting: Setting::of(origins.collect(), &PROGRAMS),
        chapters,
    })
}

/// One of the bench's own, in each mode with each number of pairs.
fn of_worlds(command: &GuestBench) -> Result<Report, GuestBenchError> {
    let kinds = command
        .mode
        .iter()
        .flat_map(|mode| command.pairs.iter().map(|pairs| (*mode, *pairs)));
    let kinds: Vec<(NetworkMode, QueuePairs)> = kinds.collect();
    let of_each = Back::all().len() * Load::all(command.streams).len();
    let turns = Turns::new(command.sampling.samples, of_each * kinds.len());
    let (mut origins, mut all) = (Vec::new(), Vec::new());
    for (mode, pairs) in kinds {
        if end_is_asked() {
            break;
        }
        let world = World::new(&command.tiny, mode, pairs)?;
        let running = world.start()?;
        origins.extend(world.origins());
        let of = Some((mode, pairs.get()));
        all.extend(chapters(command, &turns, &running.subjects, of));
    }
    drop(turns);
    Ok(Report {
        setting: Setting::of(origins, &PROGRAMS),
        chapters: all,
    })
}

/// Each kind of load, of all subjects in turn.
fn chapters(
    command: &GuestBench,
    turns: &Turns,
    subjects: &[Subject],
    of: Option<(NetworkMode, u16)>,
) -> Vec<Chapter> {
    let span = command.sampling.span();
    let name = |subject: &Subject| subject.name.clone();
    let chapter = |load: Load| Chapter {
        mode: of.map(|(mode, _)| mode),
        pairs: of.map(|(_, pairs)| pairs),
        load,
        subjects: turns.take(&load.title(), subjects, name, |subject| {
            load.sample(subject, span)
        }),
    };
    Load::all(command.streams).map(chapter).into()
}
