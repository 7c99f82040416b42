//! Samples of several subjects, taken in turn (A B A B), so that whatever else happens on the machine happens to all of them.

use std::error::Error;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::table::median;
use crate::report::causes;
use crate::signals::end_is_asked;

/// The samples of one.
#[derive(Debug, Serialize)]
pub struct Samples<T> {
    /// Who.
    pub name: String,
    /// Each, in order.
    pub samples: Vec<T>,
    /// Why there are no more, if there are fewer than were asked for.
    pub failure: Option<String>,
}

impl<T> Samples<T> {
    /// The median of what they have of it; none where there is none.
    pub fn median(&self, value: impl Fn(&T) -> f64) -> Option<f64> {
        median(self.samples.iter().map(value))
    }
}

/// How often each is sampled; shows on a terminal how far the run is.
pub struct Turns {
    each: u32,
    bar: ProgressBar,
}

impl Turns {
    /// So many samples of each, of `subjects` altogether, counted again for all that they do.
    pub fn new(each: u32, subjects: usize) -> Self {
        let style =
            ProgressStyle::with_template("{bar:30} {pos}/{len} samples, {eta} left: {wide_msg}");
        let style = style.expect("a template of the bar's own words");
        let bar = ProgressBar::new(u64::from(each) * subjects as u64).with_style(style);
        Self { each, bar }
    }

    /// Has `subjects` take turns at what is called `title`. Who has failed once is not asked again, and nobody once all is to end.
    pub fn take<S, T, E: Error + 'static>(
        &self,
        title: &str,
        subjects: &[S],
        name: impl Fn(&S) -> String,
        sample: impl Fn(&S) -> Result<T, E>,
    ) -> Vec<Samples<T>> {
        let none = |subject: &S| Samples {
            name: name(subject),
            samples: Vec::new(),
            failure: None,
        };
        let mut results: Vec<Samples<T>> = subjects.iter().map(none).collect();
        for _ in 0..self.each {
            for (subject, result) in subjects.iter().zip(&mut results) {
                self.bar.set_message(format!("{title}: {}", result.name));
                self.bar.inc(1);
                if result.failure.is_some() || end_is_asked() {
                    continue;
                }
                match sample(subject) {
                    Ok(sample) => result.samples.push(sample),
                    Err(error) => result.failure = Some(causes(&error)),
                }
            }
        }
        results
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;

    use super::*;

    #[test]
    fn all_take_turns_and_who_fails_does_so_once() {
        let asked = RefCell::new(Vec::new());
        let sample = |subject: &u32| {
            asked.borrow_mut().push(*subject);
            match subject {
                2 => Err(io::Error::other("no")),
                _ => Ok(subject * 10),
            }
        };
        let results = Turns::new(2, 3).take("work", &[1, 2, 3], u32::to_string, sample);
        assert_eq!(asked.into_inner(), [1, 2, 3, 1, 3]);
        assert_eq!(results[0].samples, [10, 10]);
        assert_eq!(results[1].failure.as_deref(), Some("no"));
        assert_eq!(results[2].median(|it| f64::from(*it)), Some(30.0));
    }
}
