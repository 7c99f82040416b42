//! Instructions that the backend executes for a frame of 64 bytes, on its way from a ring to a tap that swallows it or from a
//! socket to a ring: a figure that is the same on a busy machine, for comparing two versions of the code.
//!
//! `cargo bench --bench instructions`. It runs itself under valgrind's callgrind, which counts within [`Bursts::process`], whatever
//! that calls; the kernel's are not among them.

#[path = "../tests/support/mod.rs"]
mod support;

mod bursts;

use std::process::{Command, ExitCode};

use bursts::{Bursts, CHAINS, Chains, FRAMES};
use support::driver::Kind;

const KINDS: [Kind; 2] = [Kind::Split, Kind::Packed];

/// Bursts of a short run and of a long one: what comes once is in both.
const BURSTS: [u64; 2] = [100, 1100];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|it| it != "--bench")
        .collect();
    let numbers: Vec<usize> = words.iter().filter_map(|word| word.parse().ok()).collect();
    if let [kind, chains, bursts] = numbers[..] {
        process(KINDS[kind], CHAINS[chains], bursts);
        return ExitCode::SUCCESS;
    }
    println!("instructions a frame of 64 bytes");
    for (kind, kind_name) in KINDS.iter().enumerate() {
        for (chains, chains_name) in CHAINS.iter().enumerate() {
            match BURSTS.map(|bursts| count(kind, chains, bursts)) {
                [Ok(short), Ok(long)] => {
                    let frames = (BURSTS[1] - BURSTS[0]) * u64::from(FRAMES);
                    let each = (long - short) as f64 / frames as f64;
                    println!("{kind_name:?}, {chains_name:?}: {each:.1}");
                }
                [Err(why), _] | [_, Err(why)] => {
                    eprintln!("instructions: {why}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    ExitCode::SUCCESS
}

fn process(kind: Kind, chains: Chains, count: usize) {
    let mut bursts = Bursts::new(kind, chains);
    for _ in 0..count {
        bursts.offer();
        bursts.process();
    }
}

/// Instructions of that many bursts.
fn count(kind: usize, chains: usize, bursts: u64) -> Result<u64, String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let done = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*Bursts*process*")
        .arg(this)
        .args([kind as u64, chains as u64, bursts].map(|number| number.to_string()))
        .output()
        .map_err(|error| format!("valgrind: {error}; apt install valgrind"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let collected = collected.and_then(|(_, count)| count.trim().parse().ok());
    collected
        .filter(|_| done.status.success())
        .ok_or_else(|| said.into_owned())
}
