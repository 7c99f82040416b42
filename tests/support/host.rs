//! A pretend host with a configuration file, on which tests run ringtap's commands for networks.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringtap::config::{Config, Guard, Nic, NicVlans, Rates};
use ringtap::types::{MacAddr, QueuePairs};
use tempfile::TempDir;

use super::netns::{BOUND, Netns, bounded_by, difference, require, wait};

/// A pretend host with a file and a place for the run directory.
pub struct Host {
    pub netns: Netns,
    pub dir: TempDir,
}

/// What a run of ringtap said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    #[track_caller]
    pub fn succeeded(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// Failed with `code`, with each of `words` in its message.
    #[track_caller]
    pub fn failed(self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in:\n{}", self.err);
        }
    }
}

impl Host {
    pub fn new(config: &str) -> Self {
        require("nft", "nftables");
        require("dnsmasq", "dnsmasq-base");
        let open = fs::Permissions::from_mode(0o755);
        let dir = tempfile::Builder::new()
            .permissions(open)
            .tempdir()
            .unwrap();
        let host = Self {
            netns: Netns::new("host"),
            dir,
        };
        host.configure(config);
        host
    }

    pub fn configure(&self, config: &str) {
        fs::write(self.dir.path().join("ringtap.toml"), config).unwrap();
    }

    /// What its file says.
    pub fn config(&self) -> Config {
        Config::load(&self.dir.path().join("ringtap.toml")).unwrap()
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The words of a ringtap command on this host.
    pub fn words(&self, words: &[&str]) -> Vec<String> {
        let mut all = vec![env!("CARGO_BIN_EXE_ringtap").to_owned()];
        all.extend(words.iter().map(|&word| word.to_owned()));
        all.push(format!(
            "--config={}",
            self.dir.path().join("ringtap.toml").display()
        ));
        all.push(format!("--run-dir={}", self.run_dir().display()));
        all
    }

    /// A ringtap command with other options than this host's.
    pub fn ringtap_with(&self, words: &[&str]) -> Said {
        said(
            self.netns
                .command(env!("CARGO_BIN_EXE_ringtap"))
                .args(words),
        )
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let words = self.words(words);
        let mut command = self.netns.command_that_mounts(&words[0]);
        command.args(&words[1..]);
        command
    }

    pub fn ringtap(&self, words: &[&str]) -> Said {
        said(&mut self.command(words))
    }

    /// As [`Host::ringtap`], by way of `wrapper`, which ends in a program that runs its arguments.
    pub fn ringtap_by(&self, wrapper: &[&str], words: &[&str]) -> Said {
        let mut command = self.netns.command(wrapper[0]);
        command.args(&wrapper[1..]).args(self.words(words));
        said(&mut command)
    }

    /// All that ringtap may change: the kernel's state, processes and files.
    pub fn everything(&self) -> String {
        let files = tree(self.dir.path());
        format!(
            "{}pids {:?}\n{files}",
            self.netns.snapshot(),
            self.netns.pids()
        )
    }

    #[track_caller]
    pub fn is_as(&self, before: &str) {
        let difference = difference(before, &self.everything());
        assert_eq!(difference, "", "the host is not as it was");
    }

    pub fn dnsmasq(&self, network: &str) -> i32 {
        let file = self
            .run_dir()
            .join(format!("networks/{network}/dnsmasq.pid"));
        fs::read_to_string(file).unwrap().trim().parse().unwrap()
    }
}

/// A NIC as files have them that say nothing but its network.
pub fn nic(network: &str, mac: MacAddr) -> Nic {
    Nic {
        network: network.parse().unwrap(),
        ip: None,
        ipv6: None,
        addresses: Vec::new(),
        mac,
        mtu: None,
        queue_pairs: QueuePairs::ONE,
        vlans: NicVlans::default(),
        rates: Rates::default(),
        guard: Guard::default(),
    }
}

pub fn said(command: &mut Command) -> Said {
    said_by(BOUND, command)
}

/// As [`said`], for what takes longer.
pub fn said_by(bound: Duration, command: &mut Command) -> Said {
    let output = bounded_by(bound, command, "");
    Said {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The paths and texts under `dir`.
fn tree(dir: &Path) -> String {
    let mut entries: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    let mut text = String::new();
    for path in entries {
        text.push_str(&format!("{}\n", path.display()));
        if path.is_dir() {
            text.push_str(&tree(&path));
        } else {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
    text
}

/// Kills what `command` starts, `delay` after it has said this many lines.
pub fn kill_after(command: &mut Command, lines: usize, delay: Duration) {
    let mut child = after_lines(command, lines);
    thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Sends `signal` to what `command` starts once it has said this many lines, or is done; how it ended.
pub fn interrupt_after(command: &mut Command, lines: usize, signal: Signal) -> ExitStatus {
    let mut child = after_lines(command, lines);
    let _ = kill(Pid::from_raw(child.id() as i32), signal);
    wait(&mut child, BOUND).expect("its end")
}

/// What `command` starts, once it has said this many lines; nobody listens to the others.
fn after_lines(command: &mut Command, lines: usize) -> Child {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..lines {
        said.next().expect("another line").unwrap();
    }
    child
}
