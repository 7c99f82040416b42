//! Rate limits: how much a NIC may move in one direction, in bits and in packets a second.
//!
//! # Theory of operation
//! A [`Bucket`] holds at most a burst and fills at the rate. Whoever finds something in it may move that much, and
//! one frame may take more than is there: the bucket then owes, and is closed until the debt is paid. So no frame
//! is too large for a burst, and over time the rate is exact. The bucket is one number, the time at which it will be
//! full again (the generic cell rate algorithm's "theoretical arrival time"), so all queue pairs of a NIC share it
//! by one atomic operation a burst of frames, without a lock. Two pairs may find the same content at once; both then
//! pay for it.
//!
//! A [`Limiter`] is a direction's buckets; each worker has its own [`Pacer`] on it: a [`Quota`] before each
//! burst, the bill after it, and a timer that tells the worker's loop when to go on. Nothing is ever dropped here: what
//! the guest sends stays in its ring, what it is to receive stays in the tap, whose own queue is the one that
//! overflows.
//!
//! Bytes are those of the Ethernet frame, without the virtio-net header, as `tc` counts them. A GSO frame counts
//! its bytes and is one packet. Pure but for the clock and the timer of [`Pacer`].

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::counters::Counters;
use crate::types::{Rate, RateLimit};

const NANOS: u128 = 1_000_000_000;

/// A closed bucket is waited for until so much of its burst is there, or it has filled for so long: a wake-up a
/// frame would cost more than it gives.
const REOPEN_PART: u64 = 4;
const REOPEN_NANOS: u64 = 1_000_000;

/// A token bucket. Units are bytes or packets, times nanoseconds since some fixed moment.
#[derive(Debug)]
pub struct Bucket {
    /// Units that come in `per` nanoseconds.
    rate: u64,
    per: u128,
    /// How long an empty bucket takes to fill, in nanoseconds.
    burst: u64,
    /// When the bucket will be full, if nothing more is taken.
    full_at: AtomicU64,
}

impl Bucket {
    /// A full bucket of `burst` units, into which `rate` units come in `per` nanoseconds.
    fn new(rate: NonZeroU64, per: u128, burst: u64) -> Self {
        let nanos = u128::from(burst) * per / u128::from(rate.get());
        Self {
            rate: rate.get(),
            per,
            burst: u64::try_from(nanos).unwrap_or(u64::MAX / 2).max(1),
            full_at: AtomicU64::new(0),
        }
    }

    /// What may be taken at `now`, at least 1.
    ///
    /// # Errors
    /// How many nanoseconds to wait where that is nothing.
    fn content(&self, now: u64) -> Result<u64, u64> {
        let missing = self.full_at.load(Ordering::Relaxed).saturating_sub(now);
        if missing < self.burst {
            let units = u128::from(self.burst - missing) * u128::from(self.rate) / self.per;
            return Ok(u64::try_from(units).unwrap_or(u64::MAX).max(1));
        }
        let reopen = (self.burst / REOPEN_PART).clamp(1, REOPEN_NANOS);
        Err(missing - self.burst + reopen)
    }

    /// Takes `units` out, whether they are there or not.
    fn take(&self, now: u64, units: u64) {
        let cost = (u128::from(units) * self.per).div_ceil(u128::from(self.rate));
        let cost = u64::try_from(cost).unwrap_or(u64::MAX / 2);
        // Only the number itself is shared, so no ordering with other memory is needed.
        let _ = self
            .full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                Some(full_at.max(now).saturating_add(cost))
            });
    }
}

/// One direction's limit, shared by all pairs of a NIC.
#[derive(Debug)]
pub struct Limiter {
    started: Instant,
    bytes: Option<Bucket>,
    packets: Option<Bucket>,
}

impl Limiter {
    /// Full buckets for `limit`.
    pub fn new(limit: RateLimit) -> Self {
        // `bits` bits are `bits` bytes in eight seconds.
        let bytes = |rate: Rate| Bucket::new(rate.a_second, 8 * NANOS, rate.burst);
        let packets = |rate: Rate| Bucket::new(rate.a_second, NANOS, rate.burst);
        Self {
            started: Instant::now(),
            bytes: limit.bits().map(bytes),
            packets: limit.packets().map(packets),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Bytes and frames that may be moved at `now`.
    ///
    /// # Errors
    /// How many nanoseconds to wait where that is nothing.
    fn content(&self, now: u64) -> Result<(u64, u64), u64> {
        let content =
            |bucket: &Option<Bucket>| bucket.as_ref().map_or(Ok(u64::MAX), |b| b.content(now));
        match (content(&self.bytes), content(&self.packets)) {
            (Ok(bytes), Ok(packets)) => Ok((bytes, packets)),
            (Err(wait), Ok(_)) | (Ok(_), Err(wait)) => Err(wait),
            (Err(a), Err(b)) => Err(a.max(b)),
        }
    }

    fn take(&self, now: u64, bytes: u64, packets: u64) {
        for (bucket, units) in [(&self.bytes, bytes), (&self.packets, packets)] {
            if let Some(bucket) = bucket {
                bucket.take(now, units);
            }
        }
    }
}

/// What a direction may still move in the burst at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    frames: u64,
    bytes: u64,
}

impl Quota {
    /// Without a limit: all that costs are two comparisons and two subtractions a frame.
    pub const UNLIMITED: Self = Self {
        frames: u64::MAX,
        bytes: u64::MAX,
    };

    /// Whether no more may be moved.
    pub fn is_used_up(&self) -> bool {
        self.frames == 0 || self.bytes == 0
    }

    /// Takes a frame of `bytes`, which may be larger than what is left.
    pub fn take(&mut self, bytes: usize) {
        self.frames = self.frames.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }
}

/// A worker's way to a direction's limit.
#[derive(Debug)]
pub struct Pacer {
    limiter: Arc<Limiter>,
    timer: TimerFd,
}

impl Pacer {
    /// A pacer of its own for each worker that shares `limiter`.
    ///
    /// # Errors
    /// Those of `timerfd_create`.
    pub fn new(limiter: Arc<Limiter>) -> std::io::Result<Self> {
        Ok(Self {
            limiter,
            timer: TimerFd::new()?,
        })
    }

    /// What may be moved now; `None` where that is nothing.
    pub fn quota(&self) -> Option<Quota> {
        let (bytes, frames) = self.limiter.content(self.limiter.now()).ok()?;
        Some(Quota { frames, bytes })
    }

    /// Takes what was moved between `before` and `after` out of the buckets.
    pub fn bill(&self, before: &Counters, after: &Counters) {
        let frames = after.frames - before.frames;
        if frames > 0 {
            let bytes = after.bytes - before.bytes;
            self.limiter.take(self.limiter.now(), bytes, frames);
        }
    }

    /// Sets the timer to when there will be something to take; false where there is already.
    ///
    /// # Errors
    /// Those of `timerfd_settime`.
    pub fn wait(&mut self) -> std::io::Result<bool> {
        let Err(nanos) = self.limiter.content(self.limiter.now()) else {
            return Ok(false);
        };
        self.timer.reset(Duration::from_nanos(nanos), None)?;
        Ok(true)
    }

    /// Silences the timer.
    pub fn clear(&mut self) {
        // Setting a timer of this process's own to zero has no way to fail; were it to, the loop would look again.
        let _ = self.timer.clear();
    }

    /// What to wait for in an event loop.
    pub fn timer(&self) -> &TimerFd {
        &self.timer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(text: &str) -> RateLimit {
        text.parse().unwrap()
    }

    const SECOND: u64 = 1_000_000_000;

    fn bucket(rate: u64, burst: u64) -> Bucket {
        Bucket::new(NonZeroU64::new(rate).unwrap(), NANOS, burst)
    }

    #[test]
    fn a_bucket_starts_full_and_fills_at_its_rate() {
        let bucket = bucket(1000, 100);
        assert_eq!(bucket.content(SECOND), Ok(100));
        bucket.take(SECOND, 100);
        assert!(bucket.content(SECOND).is_err());
        assert_eq!(bucket.content(SECOND + SECOND / 100), Ok(10));
        assert_eq!(bucket.content(9 * SECOND), Ok(100), "no more than a burst");
    }

    #[test]
    fn a_frame_larger_than_the_burst_passes_and_is_paid_for() {
        let bucket = bucket(1000, 10);
        bucket.take(0, 1000);
        let wait = bucket.content(0).unwrap_err();
        assert!((SECOND * 99 / 100..SECOND).contains(&wait), "{wait}");
        assert!(bucket.content(SECOND * 98 / 100).is_err());
        assert!(bucket.content(wait).is_ok());
    }

    /// Whatever is taken whenever there is something, by however many at once: never more than the rate and one burst
    /// and a last take each; and a taker who waits as told is always let in, and loses nothing to the waiting.
    #[test]
    fn over_time_the_rate_is_kept_and_used() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        for _ in 0..200 {
            let rate = 1 + next(10_000_000_000);
            let burst = 1 + next(rate / 10 + 1);
            let largest = 1 + next(70_000);
            let bucket = bucket(rate, burst);
            let (mut now, mut taken) = (next(SECOND), 0u128);
            let start = now;
            for _ in 0..1000 {
                match bucket.content(now) {
                    Ok(units) => {
                        assert!((1..=burst.max(1)).contains(&units));
                        let take = next(units.saturating_add(largest)) + 1;
                        bucket.take(now, take);
                        taken += u128::from(take);
                    }
                    Err(wait) => {
                        now += wait;
                        assert!(bucket.content(now).is_ok(), "waited as told");
                    }
                }
            }
            let elapsed = u128::from(now - start);
            let earned = elapsed * u128::from(rate) / NANOS;
            // A nanosecond is the clock's grain: each take may be billed one too many.
            let grain = 1000 * u128::from(rate) / NANOS + 1000;
            let overdraft = u128::from(burst + largest);
            assert!(taken <= earned + overdraft + 1, "{taken} of {earned}");
            // It only waits for debts, and a quarter of a burst at most.
            assert!(
                taken + u128::from(burst) + grain >= earned,
                "{taken} of {earned}"
            );
        }
    }

    #[test]
    fn both_limits_hold_at_once() {
        let limiter = Limiter::new(limit("8mbit,burst=1kb,100pps,burst=10p"));
        assert_eq!(limiter.content(0), Ok((1024, 10)));
        limiter.take(0, 100, 10);
        assert!(limiter.content(0).is_err(), "packets are used up");
        assert!(limiter.content(SECOND / 10).is_ok());
        limiter.take(SECOND, 4096, 1);
        assert!(limiter.content(SECOND).is_err(), "bytes are used up");
    }

    #[test]
    fn bits_are_eight_to_a_byte() {
        let limit = limit("8mbit");
        let limiter = Limiter::new(limit);
        limiter.take(0, 1_000_000 + limit.bits().unwrap().burst, 1);
        assert!(limiter.content(SECOND - 1).is_err());
        assert!(limiter.content(SECOND + 2000).is_ok());
    }

    #[test]
    fn a_quota_ends_with_its_frames_or_its_bytes() {
        let mut quota = Quota {
            frames: 2,
            bytes: 1000,
        };
        quota.take(500);
        assert!(!quota.is_used_up());
        let (mut frames, mut bytes) = (quota, quota);
        frames.take(0);
        assert!(frames.is_used_up());
        bytes.take(1500); // a frame may take more than is left
        assert!(bytes.is_used_up());
    }
}
