//! What has become of the frames of a stream: which are there, and what is wrong with the others.

use serde::Serialize;

use super::pattern::Verdict;

/// What was seen of a stream so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Frames that are whole.
    pub whole: u64,
    /// Frames that have come after one with a higher number, or twice.
    pub reordered: u64,
    /// Frames with other bytes than were sent.
    pub damaged: u64,
    /// Numbers below the highest seen that are not there.
    pub missing: u64,
    /// Frames of others.
    pub foreign: u64,
    /// The number that comes next.
    next: u64,
}

impl Tally {
    /// That of a stream of which `number` comes next.
    pub fn from(number: u64) -> Self {
        Self {
            next: number,
            ..Self::default()
        }
    }

    /// Adds a frame.
    pub fn add(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Whole(number) => self.add_whole(number),
            Verdict::Damaged => self.damaged += 1,
            Verdict::Foreign => self.foreign += 1,
        }
    }

    fn add_whole(&mut self, number: u64) {
        self.whole += 1;
        match number.checked_sub(self.next) {
            Some(skipped) => {
                self.missing += skipped;
                self.next = number + 1;
            }
            None => {
                self.reordered += 1;
                self.missing = self.missing.saturating_sub(1);
            }
        }
    }

    /// What is wrong, if `sent` frames were sent, up to number `next`, and have all had their time.
    ///
    /// # Errors
    /// One line of what is.
    pub fn settle(&self, sent: u64, next: u64) -> Result<(), String> {
        let lost = self.missing + next.saturating_sub(self.next);
        let Self {
            reordered, damaged, ..
        } = self;
        if (lost, *reordered, *damaged) == (0, 0, 0) && self.whole == sent {
            return Ok(());
        }
        let whole = self.whole;
        Err(format!(
            "of {sent} frames {whole} are whole: {lost} lost, {reordered} out of order, {damaged} damaged"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(numbers: &[u64]) -> Tally {
        let mut tally = Tally::default();
        for number in numbers {
            tally.add(Verdict::Whole(*number));
        }
        tally
    }

    #[test]
    fn all_in_order_are_fine() {
        assert_eq!(tally(&[0, 1, 2]).settle(3, 3), Ok(()));
        let mut later = Tally::from(7);
        later.add(Verdict::Whole(7));
        assert_eq!(later.settle(1, 8), Ok(()));
        assert_eq!(tally(&[]).settle(0, 0), Ok(()));
    }

    #[test]
    fn each_kind_of_harm_is_told() {
        let wrong = |tally: Tally, sent| tally.settle(sent, sent).unwrap_err();
        assert!(wrong(tally(&[0, 2]), 3).contains(" 1 lost, 0 out of order"));
        assert!(wrong(tally(&[0, 1]), 4).contains(" 2 lost"));
        assert!(wrong(tally(&[1, 0]), 2).contains(" 0 lost, 1 out of order"));
        assert!(wrong(tally(&[0, 0, 1]), 2).contains(" 1 out of order"));
        let mut damaged = tally(&[0]);
        damaged.add(Verdict::Damaged);
        assert!(wrong(damaged, 2).contains(" 1 lost, 0 out of order, 1 damaged"));
    }
}
