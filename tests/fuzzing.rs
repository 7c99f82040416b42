//! A short burst on everything that reads what others send: each target of `tests/fuzz` over its corpus, and over inputs that are
//! made of it by chance, from a seed that a failure names. `scripts/fuzz` goes further, led by coverage and with a sanitizer.

mod support;
#[path = "fuzz/targets.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::claims::{POLICY, forged, honest};
use support::dice::{Dice, seed};

/// How long each target gets.
const BURST: Duration = Duration::from_secs(5);

/// The longest input.
const MOST: usize = 4096;

/// What is in the target's folder; files that other tests read are good ones to start from as well.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folders = match name {
        "config" => vec!["tests/configs".into(), "tests/plans".into()],
        _ => vec![format!("tests/fuzz/corpus/{name}")],
    };
    let mut paths: Vec<PathBuf> = folders.iter().flat_map(|it| files(Path::new(it))).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{folders:?} are empty");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// All files in `folder` and in those within it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let paths = entries.map(|entry| entry.unwrap().path());
    let inside = |path: PathBuf| match path.is_dir() {
        true => files(&path),
        false => vec![path],
    };
    paths.flat_map(inside).collect()
}

/// One of `corpus` with some of its bytes changed, copied, cut out, or another's in between.
fn mutated(corpus: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let pick = |dice: &mut Dice| corpus[dice.below(corpus.len())].clone();
    let mut input = pick(dice);
    for _ in 0..=dice.below(8) {
        let at = dice.below(input.len() + 1);
        match dice.below(5) {
            0 => input.insert(at, dice.below(256) as u8),
            1 if at < input.len() => input[at] ^= 1 << dice.below(8),
            2 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff][dice.below(5)],
            3 => {
                let end = (at + dice.below(16)).min(input.len());
                input.drain(at..end);
            }
            _ => {
                let other = pick(dice);
                let from = dice.below(other.len() + 1);
                let to = (from + dice.below(64)).min(other.len());
                input.splice(at..at, other[from..to].iter().copied());
            }
        }
        input.truncate(MOST);
    }
    input
}

/// Has `target` read the corpus called `name`, and more.
fn burst(name: &str, target: fn(&[u8])) {
    let corpus = corpus(name);
    let mut dice = Dice::new(seed(), 0);
    let end = Instant::now() + BURST;
    let mut count = 0;
    let mut inputs = corpus.iter().cloned();
    while count < corpus.len() || Instant::now() < end {
        let input = inputs.next().unwrap_or_else(|| mutated(&corpus, &mut dice));
        let run = catch_unwind(AssertUnwindSafe(|| target(&input)));
        assert!(run.is_ok(), "{name}, input {count}: {input:02x?}");
        count += 1;
    }
    println!("{name}: {count} inputs");
}

#[test]
fn frames_into_the_guard() {
    burst("guard", targets::guard);
}

#[test]
fn rings_of_both_kinds() {
    burst("rings", targets::rings);
}

#[test]
fn messages_of_front_ends() {
    burst("messages", targets::messages);
}

#[test]
fn configuration_files() {
    burst("config", targets::config);
}

#[test]
fn lists_of_leases() {
    burst("leases", targets::leases);
}

/// The guard's corpus is what is claimed in other tests; `UPDATE_GOLDEN=1` writes it.
#[test]
fn the_corpus_has_every_claim() {
    let claims = honest().into_iter();
    let claims = claims.chain(forged().into_iter().map(|(claim, _)| claim));
    let folder = Path::new("tests/fuzz/corpus/guard");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1");
    for claim in claims.filter(|claim| claim.frame.len() < 400) {
        let length = (claim.frame.len() as u16).to_be_bytes();
        let head = [&[POLICY.len() as u8], POLICY.as_bytes(), &[1], &length].concat();
        let input = [&head[..], &claim.header, &claim.frame].concat();
        let name: String = claim
            .name
            .chars()
            .map(|letter| {
                if letter.is_alphanumeric() {
                    letter
                } else {
                    '-'
                }
            })
            .collect();
        let path = folder.join(name);
        if update {
            fs::write(&path, &input).unwrap();
        }
        assert_eq!(
            fs::read(&path).ok(),
            Some(input),
            "{path:?}: UPDATE_GOLDEN=1 writes it"
        );
    }
}
