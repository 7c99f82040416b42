//! What is measured of a while of work, and the watch that says when it begins and ends.

use std::io;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::cpu::Usage;
use crate::signals::end_is_asked;

/// What comes first is not measured.
const WARM_UP: Duration = Duration::from_millis(200);

/// A measured while.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    /// Frames that were moved, or connections.
    pub count: u64,
    /// How long that took.
    pub seconds: f64,
    /// What who moved them has used meanwhile.
    pub usage: Usage,
    /// Times that the driver has told the device of work: a guest's exits.
    pub kicks: u64,
    /// Times that the device has told the driver: a guest's interrupts.
    pub calls: u64,
    /// Bytes of memory that a NIC's back-end has for itself, at the end.
    pub memory: Option<u64>,
    /// How long round trips took.
    pub latency: Option<Latency>,
}

impl Sample {
    /// What was counted, a second.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.seconds
    }
}

/// Times of round trips, in nanoseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    /// Half of them took no longer.
    pub p50: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1000.
    pub p999: u64,
    /// Each part of [`QUANTILES`].
    pub curve: [u64; QUANTILES.len()],
}

/// Parts of all round trips of which the longest is told.
pub const QUANTILES: [f64; 12] = [
    0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999,
];

/// Many of them.
#[derive(Debug)]
pub struct Times(Histogram<u64>);

impl Times {
    /// None so far.
    pub fn new() -> Self {
        Self(Histogram::new(3).expect("three digits are a histogram's"))
    }

    /// One more.
    pub fn add(&mut self, time: Duration) {
        let recorded = self.0.record(time.as_nanos() as u64);
        recorded.expect("a histogram that grows has room for any time");
    }

    /// What they are together.
    pub fn latency(&self) -> Latency {
        let at = |part| self.0.value_at_quantile(part);
        Latency {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            curve: QUANTILES.map(at),
        }
    }
}

/// How far the work is, in numbers that only grow.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Frames that were moved, or connections.
    pub count: u64,
    /// Times that the driver has told the device of work.
    pub kicks: u64,
    /// Times that the device has told the driver.
    pub calls: u64,
}

/// What a sample is taken of, while it works.
pub struct Stopwatch<'a> {
    usage: &'a dyn Fn() -> io::Result<Usage>,
    begun: Option<(Instant, Progress, Usage)>,
    start: Instant,
    warm_up: Duration,
    span: Duration,
}

impl<'a> Stopwatch<'a> {
    /// Of work that begins now, by somebody who uses as much as `usage` says.
    pub fn new(span: Duration, usage: &'a dyn Fn() -> io::Result<Usage>) -> Self {
        Self {
            usage,
            begun: None,
            start: Instant::now(),
            warm_up: WARM_UP,
            span,
        }
    }

    /// That lets the work go on for so long before what happens counts.
    pub fn after(self, warm_up: Duration) -> Self {
        Self { warm_up, ..self }
    }

    /// Whether what happens counts.
    pub fn runs(&self) -> bool {
        self.begun.is_some()
    }

    /// Whether it is time to tell how far the work is.
    pub fn is_due(&self) -> bool {
        if end_is_asked() {
            return true;
        }
        match self.begun {
            None => self.start.elapsed() >= self.warm_up,
            Some((begun, ..)) => begun.elapsed() >= self.span,
        }
    }

    /// To be told how far the work is when that is due; gives the sample the second time.
    ///
    /// # Errors
    /// Use can't be looked up: who worked has ended. Or all is to end: `Interrupted`.
    pub fn tick(&mut self, now: Progress) -> io::Result<Option<Sample>> {
        if end_is_asked() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let (time, used) = (Instant::now(), (self.usage)()?);
        let Some((begun, first, before)) = self.begun else {
            self.begun = Some((time, now, used));
            return Ok(None);
        };
        Ok(Some(Sample {
            count: now.count - first.count,
            seconds: (time - begun).as_secs_f64(),
            usage: used - before,
            kicks: now.kicks - first.kicks,
            calls: now.calls - first.calls,
            memory: None,
            latency: None,
        }))
    }
}
