//! What a burst of frames costs the backend by itself: ring, chains and guards, without a tap that does anything.
//!
//! `cargo bench --bench paths`. Times of a noisy machine; `instructions` counts what noise does not change.

#[path = "../tests/support/mod.rs"]
mod support;

mod bursts;

use std::time::{Duration, Instant};

use bursts::{Bursts, CHAINS, FRAMES};
use criterion::{Criterion, Throughput};
use support::driver::Kind;

fn bursts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bursts");
    group.throughput(Throughput::Elements(FRAMES.into()));
    for kind in [Kind::Split, Kind::Packed] {
        for chains in CHAINS {
            let mut bursts = Bursts::new(kind, chains);
            group.bench_function(format!("{kind:?}, {chains:?}"), |bencher| {
                bencher.iter_custom(|times| (0..times).map(|_| timed(&mut bursts)).sum());
            });
        }
    }
}

/// The device's part of a burst; the driver's is not measured.
fn timed(bursts: &mut Bursts) -> Duration {
    bursts.offer();
    let start = Instant::now();
    bursts.process();
    start.elapsed()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    bursts(&mut criterion);
    criterion.final_summary();
}
