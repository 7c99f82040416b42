//! `ringtap bench`: how fast a vhost-user-net back-end moves frames, beside others and beside what the kernel allows.
//!
//! # Theory of operation
//! A `nic` is the driver of a guest that does not exist: it speaks vhost-user as a front-end, has rings of its own
//! (`ring`) in a `memory` that it shares with the back-end, and so loads any back-end without a guest, without huge pages, and from
//! less than a core. At the other end of the wire are packet sockets on the back-end's tap (`crate::packet`).
//!
//! Each frame tells its number (`pattern`); whatever is lost, doubled, out of order or damaged is counted (`tally`) and makes
//! the sample void. A `subject` is who is measured, a `work` what it does; subjects take turns (A B A B), so that
//! whatever else happens on the machine happens to all of them, and medians are compared (`report`).

mod args;
mod cpu;
mod link;
mod memory;
mod nic;
mod pattern;
mod report;
mod ring;
mod subject;
mod tally;
mod work;

use std::error::Error as _;
use std::process::ExitCode;

pub use args::BenchCommand;

use nic::Wish;
use pattern::{Frames, Size};
use report::{Chapter, Samples};
use subject::{Subject, Work, Yardstick};
use work::WorkError;

use crate::report::print_json;

/// `ringtap bench`. Exit code 1 where a sample was void or could not be taken.
pub fn run(command: &BenchCommand) -> ExitCode {
    let chapters: Vec<Chapter> = command
        .works()
        .flat_map(|work| command.sizes().map(move |size| (work, size)))
        .filter(|(work, size)| *work != Work::Rr || *size != Size::Gso)
        .map(|(work, size)| chapter(command, work, size))
        .collect();
    if command.json {
        print_json(&chapters);
    } else {
        chapters.iter().for_each(Chapter::print);
    }
    let mut subjects = chapters.iter().flat_map(|chapter| &chapter.subjects);
    let failed = subjects.any(|subject| subject.failure.is_some());
    ExitCode::from(u8::from(failed))
}

fn chapter(command: &BenchCommand, work: Work, size: Size) -> Chapter {
    let frames = Frames::new(size);
    let wish = Wish {
        layout: command.ring,
        ring: command.queue_size.get(),
        pairs: 1,
        gso: size == Size::Gso,
    };
    let subjects = subjects(command, work);
    let mut results: Vec<Samples> = subjects
        .iter()
        .map(|subject| Samples {
            name: subject.name(),
            samples: Vec::new(),
            failure: None,
        })
        .collect();
    for _ in 0..command.samples {
        for (subject, result) in subjects.iter().zip(&mut results) {
            if result.failure.is_some() {
                continue;
            }
            match subject.sample(work, wish, &frames, command.span()) {
                Ok(sample) => result.samples.push(sample),
                Err(error) => result.failure = Some(chain(&error)),
            }
        }
    }
    Chapter {
        work,
        size,
        bytes: size.bytes(),
        subjects: results,
    }
}

fn subjects(command: &BenchCommand, work: Work) -> Vec<Subject> {
    let first = match &command.socket {
        Some(socket) => Subject::of_socket(socket, command.tap.clone()),
        None => Subject::Ringtap,
    };
    let running = command.vs.iter().map(Subject::of_named);
    let started = command.vs_run.iter().cloned().map(Subject::Started);
    let raw = Yardstick::of(work).iter().copied().map(Subject::Raw);
    let others = running.chain(started).chain(raw);
    std::iter::once(first).chain(others).collect()
}

fn chain(error: &WorkError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
