//! How long to spin before sleeping, as a pure decision (`--poll-us`).
//!
//! Spinning pays where the next frame comes sooner than a sleeper would wake. So a budget grows when a sleep turned out to
//! be short enough that spinning would have caught its end, and shrinks when a spin finds nothing: an idle guest
//! soon costs nothing, and a busy one gets its whole budget back within a few frames.

use std::time::Duration;

/// Below this a spin ends before anything can happen.
const LEAST: Duration = Duration::from_micros(4);

/// How long the next spin may take.
#[derive(Debug, Clone, Copy)]
pub struct Spin {
    most: Duration,
    budget: Duration,
}

impl Spin {
    /// At most `most`; zero never spins.
    pub fn new(most: Duration) -> Self {
        Self { most, budget: most }
    }

    /// How long to spin now; zero is not at all.
    pub fn budget(&self) -> Duration {
        self.budget
    }

    /// A spin found nothing.
    pub fn in_vain(&mut self) {
        self.budget /= 2;
        if self.budget < LEAST {
            self.budget = Duration::ZERO;
        }
    }

    /// A sleep ended after `slept`.
    pub fn woke_after(&mut self, slept: Duration) {
        if slept <= self.most {
            self.budget = (self.budget * 2).clamp(LEAST.min(self.most), self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);

    #[test]
    fn zero_never_spins() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.woke_after(Duration::ZERO);
        assert_eq!(spin.budget(), Duration::ZERO);
    }

    #[test]
    fn spins_that_find_nothing_soon_stop() {
        let mut spin = Spin::new(MOST);
        for _ in 0..5 {
            spin.in_vain();
        }
        assert_eq!(spin.budget(), Duration::ZERO);
        spin.woke_after(MOST * 100);
        assert_eq!(
            spin.budget(),
            Duration::ZERO,
            "a long sleep is no reason to spin"
        );
    }

    #[test]
    fn short_sleeps_bring_spinning_back() {
        let mut spin = Spin::new(MOST);
        for _ in 0..5 {
            spin.in_vain();
        }
        for _ in 0..5 {
            spin.woke_after(MOST / 2);
        }
        assert_eq!(spin.budget(), MOST);
    }
}
