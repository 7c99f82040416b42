//! One question at a time.

use std::time::{Duration, Instant};

use super::{LAST, progress};
use crate::bench::WorkError;
use crate::bench::cpu::Usage;
use crate::bench::nic::{Nic, Receiveq};
use crate::bench::sample::{Sample, Stopwatch, Times};

/// The kernel's scheduler takes so long to find where three threads that sleep by turns run best; until then a round trip may take
/// twice its time.
const SETTLED: Duration = Duration::from_secs(1);

/// One frame at a time to the host and back. All sleep in between, the host's end as well.
pub(super) fn ask(nic: &mut Nic, span: Duration) -> Result<Sample, WorkError> {
    let pids = [nic.back_end];
    let (receiveq, transmitq) = &mut nic.pairs[0];
    let mut times = Times::new();
    let usage = || Usage::of_all(&pids);
    let mut stopwatch = Stopwatch::new(span, &usage).after(SETTLED);
    loop {
        let start = Instant::now();
        let number = transmitq.sent + 1;
        transmitq.turn(number);
        while receiveq.tally.whole < number {
            receiveq.sleep(LAST.saturating_sub(start.elapsed()))?;
            receiveq.turn();
            if start.elapsed() >= LAST {
                settle(receiveq, number)?;
            }
        }
        if stopwatch.runs() {
            times.add(start.elapsed());
        }
        if stopwatch.is_due() {
            let now = progress(number, &mut [&mut *transmitq], &mut [&mut *receiveq]);
            if let Some(mut sample) = stopwatch.tick(now)? {
                settle(receiveq, number)?;
                sample.latency = Some(times.latency());
                return Ok(sample);
            }
        }
    }
}

fn settle(receiveq: &Receiveq, sent: u64) -> Result<(), WorkError> {
    let settled = receiveq.tally.settle(sent, sent);
    settled.map_err(WorkError::Void)
}
