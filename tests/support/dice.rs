//! Dice whose falls can be repeated: what a test does at random it does again when it is given the same seed.

use std::hash::{BuildHasher, RandomState};

/// The variable that has the seed; without it each run has another one.
const SEED: &str = "RINGTAP_SEED";

/// The seed of this run, which is printed.
pub fn seed() -> u64 {
    let seed = match std::env::var(SEED) {
        Ok(text) => text.parse().expect(SEED),
        Err(_) => RandomState::new().hash_one(0),
    };
    println!("{SEED}={seed} repeats this run");
    seed
}

/// A sequence of falls (the generator SplitMix64).
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// The sequence with this number of those that belong to `seed`.
    pub fn new(seed: u64, number: u64) -> Self {
        let mut dice = Self(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        dice.fall();
        dice
    }

    fn fall(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.fall() % limit as u64) as usize
    }

    /// One of `all`.
    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}
