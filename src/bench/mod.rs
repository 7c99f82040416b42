//! `ringtap bench`: how fast a vhost-user-net back-end moves frames, beside others and beside what the kernel allows.
//!
//! # Theory of operation
//! A `nic` is the driver of a guest that does not exist: it speaks vhost-user as a front-end, has rings of its own
//! (`ring`) in a `memory` that it shares with the back-end, and so loads any back-end without a guest and without huge pages. At
//! the other end of the `wire` are packet sockets on the back-end's tap (`crate::packet`), or there is a second NIC, behind a bridge.
//!
//! Each frame tells its number (`pattern`); whatever is lost, doubled, out of order or damaged is counted (`tally`) and makes
//! the sample void. A `subject` is who is measured, a back-end or a `raw` loop, a `work` what it does, and a `sample` what was measured of that; subjects
//! take turns (A B A B), so that whatever else happens on the machine happens to all of them, and medians are compared (`report`).
//! `guest` does the like with guests that exist.

mod args;
mod chart;
mod cpu;
mod guest;
mod html;
mod link;
mod memory;
mod nic;
mod pattern;
mod raw;
mod report;
mod ring;
mod sample;
mod subject;
mod tally;
mod wire;
mod work;

use std::io;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use thiserror::Error;

pub use args::BenchCommand;

use args::OtherBench;
use link::LinkError;
use nic::{NicError, Wish};
use pattern::{Party, Size};
use report::{Chapter, Report, Samples};
use work::Work;

use crate::report::{causes, print_json};

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
    /// A back-end of which only one guest's is known.
    #[error("another guest's back-end, on the same bridge, is to be named as well")]
    NoPeer,
    /// A loop that is to do what only a back-end can.
    #[error("there is no raw loop for that")]
    NoPart,
}

/// `ringtap bench`. Exit code 1 where a sample was void or could not be taken.
pub fn run(command: &BenchCommand) -> ExitCode {
    if let Some(OtherBench::Guest(guest)) = &command.other {
        return guest::run(guest);
    }
    let matrix = command.matrix();
    let bar = progress(command, &matrix);
    let chapters = matrix.into_iter();
    let chapters = chapters.map(|(work, size, pairs)| chapter(command, work, size, pairs, &bar));
    let report = Report::new(command, chapters.collect());
    bar.finish_and_clear();
    if command.json {
        print_json(&report);
    } else {
        report.print();
    }
    let written = command.report.as_ref().map(|dir| report.write(dir));
    if let (Some(dir), Some(Err(error))) = (&command.report, written) {
        eprintln!(
            "ringtap: cannot write the report into {}: {error}",
            dir.display()
        );
        return ExitCode::FAILURE;
    }
    ExitCode::from(u8::from(report.has_failures()))
}

/// How far the run is, on a terminal.
fn progress(command: &BenchCommand, matrix: &[(Work, Size, u16)]) -> ProgressBar {
    let subjects = command.subjects().len();
    let of_each = matrix
        .iter()
        .map(|(work, ..)| subjects + subject::yardsticks(*work).len());
    let samples = of_each.sum::<usize>() as u64 * u64::from(command.samples);
    let style =
        ProgressStyle::with_template("{bar:30} {pos}/{len} samples, {eta} left: {wide_msg}");
    ProgressBar::new(samples).with_style(style.expect("a template of the bar's own words"))
}

fn chapter(
    command: &BenchCommand,
    work: Work,
    size: Size,
    pairs: u16,
    bar: &ProgressBar,
) -> Chapter {
    let wish = Wish {
        layout: command.ring,
        ring: command.queue_size.get(),
        pairs,
        size,
        owner: Party::GUEST,
    };
    let mut subjects = command.subjects();
    subjects.extend(subject::yardsticks(work));
    let mut results: Vec<Samples> = subjects
        .iter()
        .map(|subject| Samples::none(subject.name()))
        .collect();
    for _ in 0..command.samples {
        for (subject, result) in subjects.iter().zip(&mut results) {
            bar.set_message(format!("{}, {size}: {}", work.title(), result.name));
            bar.inc(1);
            if result.failure.is_some() {
                continue;
            }
            match subject.sample(work, wish, command.span()) {
                Ok(sample) => result.samples.push(sample),
                Err(error) => result.failure = Some(causes(&error)),
            }
        }
    }
    Chapter {
        work,
        size,
        pairs,
        bytes: work.bytes(size),
        subjects: results,
    }
}
