//! `ringtap bench`: how fast a vhost-user-net back-end moves frames, beside others and beside what the kernel allows.
//!
//! # Theory of operation
//! A `nic` is the driver of a guest that does not exist: it speaks vhost-user as a front-end, has rings of its own (`ring`) in
//! a `memory` that it shares with the back-end, and so loads any back-end without a guest and without huge pages. At the other
//! end of the `wire` are packet sockets on the back-end's tap (`crate::packet`), or there is a second NIC, behind a bridge.
//!
//! Each frame tells its number (`pattern`); whatever is lost, doubled, out of order or damaged is counted (`tally`) and makes
//! the sample void. A `subject` is who is measured, a back-end or a `raw` loop, a `work` what it does, and a `sample` what was
//! measured of that; subjects take `turns`, and medians are compared (`report`). `guest` does the like with guests that exist.
//! Both tell their `findings` as a `table` or a `page` with `chart`s, and in what `setting` they were found.

mod args;
mod chart;
mod cpu;
mod driver;
mod findings;
mod guest;
mod html;
mod link;
mod memory;
mod nic;
mod page;
mod pattern;
mod raw;
mod report;
mod ring;
mod sample;
mod setting;
mod subject;
mod table;
mod tally;
mod turns;
mod wire;
mod work;

use std::io;
use std::process::ExitCode;

use thiserror::Error;

pub use args::BenchCommand;

use args::OtherBench;
use findings::Findings;
use link::LinkError;
use nic::{NicError, Wish};
use pattern::{Party, Size};
use report::{Chapter, Report};
use setting::{Origin, Setting};
use subject::Subject;
use turns::Turns;
use work::Work;

use crate::signals::note_end_requests;

/// Why there is no sample.
#[derive(Debug, Error)]
pub enum WorkError {
    /// Frames are not what they should be.
    #[error("void: {0}")]
    Void(String),
    /// The back-end.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// The host's end.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The kernel.
    #[error("the host's end of the wire")]
    Wire(#[from] io::Error),
    /// A back-end that was killed, or has failed.
    #[error("the back-end has ended meanwhile, process {0}")]
    Ended(u32),
    /// A back-end of which only one guest's is known.
    #[error("another guest's back-end, on the same bridge, is to be named as well")]
    NoPeer,
    /// A loop that is to do what only a back-end can.
    #[error("there is no raw loop for that")]
    NoPart,
}

/// `ringtap bench`. Exit code 1 where a sample was void or could not be taken, or a signal has asked for the end.
pub fn run(command: &BenchCommand) -> ExitCode {
    // What was made for the work is taken back then.
    if let Err(error) = note_end_requests() {
        eprintln!("ringtap: signals can't be caught: {error}");
        return ExitCode::FAILURE;
    }
    match &command.other {
        Some(OtherBench::Guest(guest)) => guest::run(guest),
        None => of_subjects(command),
    }
}

fn of_subjects(command: &BenchCommand) -> ExitCode {
    let subjects = command.subjects();
    let matrix = command.matrix();
    let of_each = matrix.iter();
    let of_each = of_each.map(|(work, ..)| subjects.len() + subject::yardsticks(*work).len());
    let turns = Turns::new(command.sampling.samples, of_each.sum());
    let chapters = matrix.into_iter();
    let chapters = chapters.map(|(work, size, pairs)| chapter(command, work, size, pairs, &turns));
    let chapters = chapters.collect();
    drop(turns);
    let origins = subjects.iter().map(|subject| Origin {
        name: subject.name(),
        origin: subject.origin(),
    });
    let setting = Setting::of(origins.collect(), &[]);
    Report { setting, chapters }.tell(&command.sampling)
}

fn chapter(command: &BenchCommand, work: Work, size: Size, pairs: u16, turns: &Turns) -> Chapter {
    let wish = Wish {
        driver: command.driver,
        pairs,
        size,
        owner: Party::GUEST,
    };
    let mut subjects = command.subjects();
    subjects.extend(subject::yardsticks(work));
    let title = format!("{}, {size}", work.title());
    let span = command.sampling.span();
    Chapter {
        work,
        size,
        pairs,
        bytes: work.bytes(size),
        subjects: turns.take(&title, &subjects, Subject::name, |subject| {
            subject.sample(work, wish, span)
        }),
    }
}
