//! A lab with a guest in the background.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::console::Console;
use super::host::{Said, said};
use super::lab::{Lab, tiny};
use super::netns::{difference, until};

/// Its address.
pub const ADDRESS: &str = "192.168.100.10";

/// Words of the command lines of its processes.
pub const SUPERVISOR: [&str; 2] = ["supervise", "web1"];
pub const BACKEND: [&str; 1] = ["backend --socket-path"];
pub const QEMU: [&str; 1] = ["memory-backend-memfd"];

/// A lab whose host is to be as it was when the test is over.
pub struct World {
    pub lab: Lab,
    pub before: String,
}

impl World {
    /// With a guest `web1`, whose section has `more` in it.
    pub fn new(more: &str) -> Self {
        let lab = Lab::new();
        lab.configure(
            &tiny("web1", 10, &[]).replace("[guests.web1]\n", &format!("[guests.web1]\n{more}\n")),
        );
        let before = lab.host.snapshot();
        Self { lab, before }
    }

    /// Adds to the file.
    pub fn add(&self, more: &str) {
        let file = self.lab.dir.path().join("ringtap.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text + more).unwrap();
    }

    /// Has the file say something else.
    pub fn change(&self, this: &str, that: &str) {
        let file = self.lab.dir.path().join("ringtap.toml");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(this), "no {this:?} in:\n{text}");
        fs::write(&file, text.replace(this, that)).unwrap();
    }

    pub fn ringtap(&self, words: &str) -> Said {
        said(&mut self.lab.ringtap(words))
    }

    pub fn list(&self) -> Vec<Value> {
        serde_json::from_str(&self.ringtap("list --json").succeeded()).unwrap()
    }

    /// What `list` says of web1.
    pub fn web1(&self) -> Value {
        let mut all = self.list();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// At the console of web1, once that has booted.
    pub fn console(&self) -> Console {
        Console::boot(&mut self.lab.ringtap("console web1"))
    }

    pub fn kill(&self, words: &[&str]) {
        let pids = self.lab.pids(words);
        assert_eq!(pids.len(), 1, "{words:?}: {pids:?}");
        kill(Pid::from_raw(pids[0]), Signal::SIGKILL).unwrap();
        until("its end", || !self.lab.pids(words).contains(&pids[0]));
    }

    pub fn answers(&self) -> bool {
        let ping = self
            .lab
            .host
            .attempt(&format!("ping -n -c 1 -W 1 {ADDRESS}"));
        ping.status.success()
    }

    #[track_caller]
    pub fn nothing_is_left(&self) {
        assert_eq!(difference(&self.before, &self.lab.host.snapshot()), "");
        assert_eq!(self.lab.host.pids(), [0; 0]);
        assert!(!self.lab.run_dir().exists());
    }
}
