//! The work itself: frames one way or the other for a while, and whether all of them have arrived.

mod ask;
mod churn;
mod guests;
mod host;

use std::thread;
use std::time::{Duration, Instant};

use super::WorkError;
use super::cpu::Usage;
use super::nic::{Receiveq, Transmitq};
use super::pattern::{EXCHANGES, Size};
use super::sample::{Progress, Sample, Stopwatch};
use super::wire::NAP;

pub use guests::between;
pub use host::with_host;

/// How long frames may take that are under way when the load ends.
const LAST: Duration = Duration::from_secs(2);
/// What is sent twice comes within that after the last.
const SILENCE: Duration = Duration::from_millis(50);

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// From the guest to its tap.
    Tx,
    /// From the tap to its guest.
    Rx,
    /// Both at once.
    Both,
    /// From a guest to another on the same bridge.
    Vm,
    /// Connections from a guest to another on the same bridge.
    Churn,
    /// From the guest to its tap and back, one at a time.
    Rr,
    /// Nothing, by a guest whose rings are ready.
    Idle,
}

impl Work {
    /// Each kind, in the order of reports.
    pub const ALL: [Self; 7] = [
        Self::Tx,
        Self::Rx,
        Self::Both,
        Self::Vm,
        Self::Churn,
        Self::Rr,
        Self::Idle,
    ];

    /// Whether it takes two guests.
    pub fn is_between_guests(self) -> bool {
        matches!(self, Self::Vm | Self::Churn)
    }

    /// What frames are like, if the work says that and not a person.
    pub fn size(self) -> Option<Size> {
        match self {
            Self::Churn => Some(Size::Connection),
            Self::Idle => Some(Size::Nothing),
            _ => None,
        }
    }

    /// What is counted.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Churn => "connection",
            Self::Idle => "millisecond",
            _ => "frame",
        }
    }

    /// Whether it can be done with frames of this kind by so many pairs: who asks one by one has one, and asks by short frames.
    pub fn suits(self, size: Size, pairs: u16) -> bool {
        match self {
            Self::Rr => pairs == 1 && matches!(size, Size::Wire(_)),
            _ => true,
        }
    }

    /// Bytes of that, on average.
    pub fn bytes(self, size: Size) -> f64 {
        let frames = match self {
            Self::Churn => 2 * EXCHANGES,
            _ => 1,
        };
        size.mean() * frames as f64
    }

    /// As reports have it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Tx => "guest to tap",
            Self::Rx => "tap to guest",
            Self::Both => "both ways at once",
            Self::Vm => "guest to guest over a bridge",
            Self::Churn => "connections, guest to guest over a bridge",
            Self::Rr => "guest to tap and back",
            Self::Idle => "an idle guest",
        }
    }
}

/// What goes on for as long as it is measured.
trait Load {
    /// Does what can be done now; how many frames that moved.
    fn turn(&mut self) -> Result<u64, WorkError>;

    /// How far it is.
    fn progress(&mut self) -> Progress;

    /// Has it go on until there is a sample of `span`; `pids` are the back-ends that work for it.
    fn measure(&mut self, pids: &[u32], span: Duration) -> Result<Sample, WorkError> {
        let usage = || Usage::of_all(pids);
        let mut stopwatch = Stopwatch::new(span, &usage);
        loop {
            if self.turn()? == 0 {
                thread::sleep(NAP);
            }
            if stopwatch.is_due()
                && let Some(sample) = stopwatch.tick(self.progress())?
            {
                return Ok(sample);
            }
        }
    }
}

/// How far the work is, once `count` frames are moved, and how often either side has told the other.
fn progress(
    count: u64,
    sending: &mut [&mut Transmitq],
    receiving: &mut [&mut Receiveq],
) -> Progress {
    let told = sending.iter_mut().map(|it| it.told());
    let told = told.chain(receiving.iter_mut().map(|it| it.told()));
    let start = Progress {
        count,
        ..Progress::default()
    };
    told.fold(start, |sum, [kicks, calls]| Progress {
        kicks: sum.kicks + kicks,
        calls: sum.calls + calls,
        ..sum
    })
}

/// Takes what is under way, until of each stream as many have come as were `sent`.
fn drain(receiving: &mut [&mut Receiveq], sent: &[u64]) -> Result<(), WorkError> {
    let end = Instant::now() + LAST;
    for (receiveq, sent) in receiving.iter_mut().zip(sent) {
        while receiveq.tally.whole < *sent && Instant::now() < end {
            receiveq.turn();
            thread::sleep(NAP);
        }
        let settled = receiveq.tally.settle(*sent, *sent);
        settled.map_err(WorkError::Void)?;
    }
    Ok(())
}
