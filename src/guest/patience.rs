//! Whether QEMU is started anew after it has ended, and when.

use std::time::Duration;

use crate::config::Restart;

/// The first pause; each further one is twice as long.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);
/// A guest that ran for this long has started well.
const WELL: Duration = Duration::from_secs(60);

/// How a guest's QEMU came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// A person wanted it.
    Asked,
    /// The guest powered itself off.
    PoweredOff,
    /// QEMU or the guest's kernel failed, for this reason.
    Failed(String),
}

/// What is left of the patience with a guest.
#[derive(Debug, Default)]
pub struct Patience {
    /// How often in a row it has ended soon after its start.
    times: u32,
}

impl Patience {
    /// After which pause a guest with this policy is started anew that has ended so, `lived` after its start; not at all where
    /// there is none.
    pub fn pause(&mut self, policy: Restart, ending: &Ending, lived: Duration) -> Option<Duration> {
        let again = match (policy, ending) {
            (Restart::No, _) | (_, Ending::Asked) => false,
            (Restart::OnFailure, ending) => matches!(ending, Ending::Failed(_)),
            (Restart::Always, _) => true,
        };
        if !again {
            return None;
        }
        if lived >= WELL {
            self.times = 0;
        }
        let pause = FIRST.saturating_mul(1 << self.times.min(16));
        self.times += 1;
        Some(pause.min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_says_which_endings_matter() {
        let failed = Ending::Failed("killed".to_owned());
        for (policy, ending, expected) in [
            (Restart::No, &failed, false),
            (Restart::No, &Ending::PoweredOff, false),
            (Restart::OnFailure, &failed, true),
            (Restart::OnFailure, &Ending::PoweredOff, false),
            (Restart::OnFailure, &Ending::Asked, false),
            (Restart::Always, &failed, true),
            (Restart::Always, &Ending::PoweredOff, true),
            (Restart::Always, &Ending::Asked, false),
        ] {
            let pause = Patience::default().pause(policy, ending, Duration::ZERO);
            assert_eq!(pause.is_some(), expected, "{policy:?} {ending:?}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_minute_until_a_start_goes_well() {
        let mut patience = Patience::default();
        let mut pause = |lived| {
            let failed = Ending::Failed(String::new());
            let pause = patience.pause(Restart::Always, &failed, Duration::from_secs(lived));
            pause.unwrap().as_secs()
        };
        let pauses: Vec<_> = (0..8).map(|_| pause(3)).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pause(60), 1);
        assert_eq!(pause(59), 2);
    }
}
