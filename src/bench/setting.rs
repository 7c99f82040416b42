//! What one has to know to do a run again: machine, versions, command lines.

use std::fs;
use std::process::{Command, Stdio};

use serde::Serialize;

/// A run's.
#[derive(Debug, Serialize)]
pub struct Setting {
    /// The words of the command.
    pub command: Vec<String>,
    /// ringtap's version.
    pub version: &'static str,
    /// What it ran on.
    pub machine: Machine,
    /// Who took part, the one in question first.
    pub subjects: Vec<Origin>,
    /// Programs that took part, and their versions.
    pub programs: Vec<Origin>,
}

/// A machine, as far as figures depend on it.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Linux's release.
    pub kernel: String,
    /// The model of its CPUs, and how many there are.
    pub cpu: String,
    /// How many the bench may use.
    pub cpus: usize,
}

/// Who took part, and where it came from.
#[derive(Debug, Clone, Serialize)]
pub struct Origin {
    /// Its name.
    pub name: String,
    /// What started it, or how it was found; of a program, its version.
    pub origin: String,
}

impl Setting {
    /// Of this run, in which these `programs` take part.
    pub fn of(subjects: Vec<Origin>, programs: &[&str]) -> Self {
        Self {
            command: std::env::args().collect(),
            version: env!("CARGO_PKG_VERSION"),
            machine: Machine::this(),
            subjects,
            programs: programs.iter().map(|it| version(it)).collect(),
        }
    }
}

impl Machine {
    fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let model = model
            .unwrap_or_default()
            .trim_start_matches(['\t', ' ', ':']);
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: model.to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// What a program says of itself in its first line.
fn version(program: &str) -> Origin {
    let said = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    let line = said.ok().and_then(|said| {
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        text.lines().next().map(str::to_owned)
    });
    Origin {
        name: program.to_owned(),
        origin: line.unwrap_or_else(|| "of an unknown version".to_owned()),
    }
}
