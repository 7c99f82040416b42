//! From a guest to another on the same bridge.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use super::churn::churn;
use super::{LAST, Load, SILENCE, Work, drain, progress};
use crate::bench::WorkError;
use crate::bench::nic::{Nic, Receiveq, Transmitq};
use crate::bench::pattern::{Pattern, Size};
use crate::bench::sample::{Progress, Sample};
use crate::bench::wire::NAP;

/// Has the guest of the first NIC send to that of the second for `span`, as much as goes.
///
/// # Errors
/// See [`WorkError`].
pub fn between(
    work: Work,
    from: &mut Nic,
    to: &mut Nic,
    size: Size,
    span: Duration,
) -> Result<Sample, WorkError> {
    let mut pids = vec![from.back_end, to.back_end];
    pids.dedup();
    introduce(to, from)?;
    match work {
        Work::Churn => churn(from, to, &pids, span),
        _ => stream(from, to, size, &pids, span),
    }
}

/// Has a guest send of each flow until the other has heard each: then both back-ends forward, the bridge knows where that guest is,
/// and its tap which queue each flow is of.
fn introduce(guest: &mut Nic, to: &mut Nic) -> Result<(), WorkError> {
    let end = Instant::now() + LAST;
    let flows = guest.sends();
    let mut heard = BTreeSet::new();
    while heard.len() < flows.len() {
        if Instant::now() > end {
            let (flows, heard) = (flows.len(), heard.len());
            let why = format!("of {flows} flows from guest to guest {heard} arrive");
            return Err(WorkError::Void(why));
        }
        for (_, transmitq) in &mut guest.pairs {
            transmitq.turn(transmitq.sent + 1);
        }
        heard.append(&mut heard_until_silence(to, &flows));
    }
    Ok(())
}

/// See [`Nic::heard`]; nothing of that is under way any more.
fn heard_until_silence(nic: &mut Nic, flows: &[Pattern]) -> BTreeSet<usize> {
    let mut all = BTreeSet::new();
    let mut last = Instant::now();
    while last.elapsed() < SILENCE {
        let mut heard = nic.heard(flows);
        match heard.is_empty() {
            true => thread::sleep(NAP),
            false => last = Instant::now(),
        }
        all.append(&mut heard);
    }
    all
}

fn stream(
    from: &mut Nic,
    to: &mut Nic,
    size: Size,
    pids: &[u32],
    span: Duration,
) -> Result<Sample, WorkError> {
    let mut stream = Stream {
        window: size.window() / from.pairs.len() as u64,
        sending: from.pairs.iter_mut().map(|(_, tx)| tx).collect(),
        receiving: to.pairs.iter_mut().map(|(rx, _)| rx).collect(),
    };
    let sample = stream.measure(pids, span)?;
    let sent: Vec<u64> = stream.sending.iter().map(|it| it.sent).collect();
    drain(&mut stream.receiving, &sent)?;
    Ok(sample)
}

struct Stream<'a> {
    /// How many frames of each pair may be under way.
    window: u64,
    sending: Vec<&'a mut Transmitq>,
    receiving: Vec<&'a mut Receiveq>,
}

impl Load for Stream<'_> {
    fn turn(&mut self) -> Result<u64, WorkError> {
        let pairs = self.sending.iter_mut().zip(&mut self.receiving);
        let moved = pairs.map(|(transmitq, receiveq)| {
            transmitq.turn(receiveq.tally.whole + self.window) + receiveq.turn()
        });
        Ok(moved.sum())
    }

    fn progress(&mut self) -> Progress {
        let count = self.receiving.iter().map(|it| it.tally.whole).sum();
        progress(count, &mut self.sending, &mut self.receiving)
    }
}
