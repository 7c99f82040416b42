//! When a driver is told of the chains that its transmitq got back: notification coalescing, as of a device with
//! VIRTIO_NET_F_NOTF_COAL (virtio 1.3 §5.1.6.5), with limits of the device's own.
//!
//! # Theory of operation
//! Nobody waits for a frame to have left but a driver whose ring is full, or a sender that has used up its socket's buffer; yet
//! drivers ask to be told of nearly every one. Each call costs the guest an interrupt, and QEMU a wake-up where no kernel makes
//! one of it (KVM's irqfd). So a call goes at once if there was none for [`GAP`], and is held until then otherwise; less long
//! where so much was completed that somebody may be short of it, or where the guest is interrupted anyway for what it received.
//!
//! A [`Coalescer`] decides, remembers, and has the timer by which the worker's loop learns that a call was held for long enough.
//! Pure but for that and the clock.

use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::counters::Counters;

/// From one call to the next, where it can wait: 4000 a second, as Linux's e1000 has its interrupts under load. QEMU's own device
/// has 150 us with `tx=timer`. A longer one is worse for whoever is blocked by a small socket buffer; what this one does shows
/// `ringtap bench guest` by UDP from guest to host.
pub const GAP: Duration = Duration::from_micros(250);

/// No call waits that is of so many chains: a third of the frames of 1500 bytes that Linux lets a socket have under way.
const CHAINS: u64 = 32;

/// Nor one of so many bytes: with TCP small queues that may be all of a connection's that Linux has under way.
const BYTES: u64 = 64 << 10;

/// The calls of a transmitq.
#[derive(Debug)]
pub struct Coalescer {
    gap: Duration,
    untold: Untold,
    timer: TimerFd,
    /// It has been set, and has not told yet.
    timer_runs: bool,
}

impl Coalescer {
    /// Of a driver that was told of nothing yet, and is told once in `gap` where it can wait: [`GAP`], but in tests.
    ///
    /// # Errors
    /// Those of `timerfd_create`.
    pub fn new(gap: Duration) -> std::io::Result<Self> {
        Ok(Self {
            gap,
            untold: Untold::default(),
            timer: TimerFd::new()?,
            timer_runs: false,
        })
    }

    /// Adds what was completed between `before` and `after`, of which the driver wants to be told if `asked`. True where it is to
    /// be told now; it then counts as told.
    pub fn completed(&mut self, asked: bool, before: &Counters, after: &Counters) -> bool {
        self.untold.add(asked, before, after);
        self.is_due()
    }

    /// Whether a call was held and is due now; it then counts as made.
    fn is_due(&mut self) -> bool {
        if !self.untold.asked {
            return false;
        }
        let now = Instant::now();
        let wait = self.untold.wait(now, self.gap);
        // With no timer, tell early rather than never.
        if !wait.is_zero() && (self.timer_runs || self.timer.reset(wait, None).is_ok()) {
            self.timer_runs = true;
            return false;
        }
        self.untold = Untold::since(now);
        true
    }

    /// Takes a call that is held, whether it is due or not: true where there was one, which then counts as made.
    pub fn take(&mut self) -> bool {
        let held = self.untold.asked;
        if held {
            self.untold = Untold::since(Instant::now());
        }
        held
    }

    /// What to wait for in an event loop, by edges; then see [`Self::expired`].
    pub fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// The timer has told. True where a call was held and is due; it then counts as made.
    pub fn expired(&mut self) -> bool {
        self.timer_runs = false;
        self.is_due()
    }
}

/// What a driver was not told of.
#[derive(Debug, Default)]
struct Untold {
    /// When it was told last.
    since: Option<Instant>,
    /// It wants to be told.
    asked: bool,
    chains: u64,
    bytes: u64,
}

impl Untold {
    /// Nothing.
    fn since(now: Instant) -> Self {
        Self {
            since: Some(now),
            ..Self::default()
        }
    }

    fn add(&mut self, asked: bool, before: &Counters, after: &Counters) {
        self.asked |= asked;
        self.chains += after.taken() - before.taken();
        self.bytes += after.bytes - before.bytes;
    }

    /// How long the driver's being told can wait, with this gap.
    fn wait(&self, now: Instant, gap: Duration) -> Duration {
        if self.chains >= CHAINS || self.bytes >= BYTES {
            return Duration::ZERO;
        }
        self.since.map_or(Duration::ZERO, |since| {
            (since + gap).saturating_duration_since(now)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No test takes so long.
    const LONG: Duration = Duration::from_secs(3600);

    fn counters(frames: u64, bytes: u64) -> Counters {
        Counters {
            frames,
            bytes,
            ..Counters::default()
        }
    }

    fn untold(since: Instant, frames: u64, bytes: u64) -> Untold {
        let mut untold = Untold::since(since);
        untold.add(true, &counters(7, 700), &counters(7 + frames, 700 + bytes));
        untold
    }

    #[test]
    fn the_first_call_goes_at_once() {
        let mut untold = Untold::default();
        untold.add(true, &counters(0, 0), &counters(1, 60));
        assert_eq!(untold.wait(Instant::now(), GAP), Duration::ZERO);
    }

    #[test]
    fn a_call_waits_until_the_gap_is_over() {
        let told = Instant::now();
        let untold = untold(told, 1, 60);
        assert_eq!(untold.wait(told, GAP), GAP);
        let (early, late) = (told + GAP / 5, told + 2 * GAP);
        assert_eq!(untold.wait(early, GAP), GAP * 4 / 5);
        assert_eq!(untold.wait(late, GAP), Duration::ZERO);
    }

    #[test]
    fn much_does_not_wait() {
        let told = Instant::now();
        for (frames, bytes, waits) in [
            (CHAINS - 1, BYTES - 1, true),
            (CHAINS, 0, false),
            (1, BYTES, false),
        ] {
            let wait = untold(told, frames, bytes).wait(told, GAP);
            assert_eq!(!wait.is_zero(), waits, "{frames} frames, {bytes} bytes");
        }
    }

    #[test]
    fn a_driver_that_does_not_ask_is_not_told() {
        let mut calls = Coalescer::new(LONG).unwrap();
        let (none, much) = (counters(0, 0), counters(1000, 60_000));
        assert!(!calls.completed(false, &none, &much));
        assert!(!calls.is_due() && !calls.take());
    }

    #[test]
    fn a_held_call_is_made_once() {
        let mut calls = Coalescer::new(LONG).unwrap();
        let (none, one, two) = (counters(0, 0), counters(1, 60), counters(2, 120));
        assert!(calls.completed(true, &none, &one), "the first");
        assert!(!calls.completed(true, &one, &two), "held");
        assert!(calls.take());
        assert!(!calls.take() && !calls.expired());
    }

    #[test]
    fn the_timer_tells_of_a_held_call() {
        let mut calls = Coalescer::new(Duration::from_secs(1)).unwrap();
        let (none, one, two) = (counters(0, 0), counters(1, 60), counters(2, 120));
        calls.completed(true, &none, &one);
        assert!(!calls.completed(true, &one, &two), "held");
        calls.timer.wait().unwrap(); // it would hang here without one
        assert!(calls.expired());
        assert!(!calls.take());
    }
}
