//! How often a network is set right before it is left alone for a while.

use std::time::{Duration, Instant};

/// Whoever changes a network more often than this, and at once again, would keep us both busy for ever.
const TIMES: u32 = 10;

/// For how long a network is left alone then, or after it could not be set right.
const WHILE: Duration = Duration::from_secs(30);

/// The patience that is left with a network.
#[derive(Debug, Default)]
pub struct Patience {
    /// When it was drawn on first.
    since: Option<Instant>,
    /// How often it was since.
    times: u32,
}

impl Patience {
    /// Whether there is any at the time `now`.
    pub fn is_left(&mut self, now: Instant) -> bool {
        if self.since.is_some_and(|since| now - since >= WHILE) {
            *self = Self::default();
        }
        self.times < TIMES
    }

    /// The network was set right.
    pub fn draw(&mut self, now: Instant) {
        self.since.get_or_insert(now);
        self.times += 1;
    }

    /// The network could not be set right.
    pub fn end(&mut self, now: Instant) {
        self.since = Some(now);
        self.times = TIMES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_with_many_times_or_one_failure_and_comes_back() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut patience = Patience::default();
        for _ in 0..TIMES {
            assert!(patience.is_left(after(1)));
            patience.draw(after(1));
        }
        assert!(!patience.is_left(after(2)));
        assert!(!patience.is_left(after(30)));
        assert!(patience.is_left(after(31)));
        patience.draw(after(31));
        assert!(patience.is_left(after(31)));
        patience.end(after(40));
        assert!(!patience.is_left(after(69)));
        assert!(patience.is_left(after(70)));
    }
}
