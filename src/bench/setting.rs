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

    /// The command as a shell takes it.
    pub fn command_line(&self) -> String {
        let words = self.command.iter().map(String::as_str);
        // Only a NUL can't be quoted, which no word of a command has.
        shlex::try_join(words).unwrap_or_else(|_| self.command.join(" "))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_a_command_in_it_can_be_given_to_a_shell() {
        let mut setting = Setting::of(Vec::new(), &[]);
        let words = [
            "echo",
            "--vs-run",
            "one=# a comment\nexec it \"iface=$SOCKET\"",
        ];
        setting.command = words.map(str::to_owned).to_vec();
        let line = setting.command_line();
        let said = Command::new("sh").args(["-c", &line]).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        assert_eq!(said.trim_end(), words[1..].join(" "), "{line}");
    }
}
