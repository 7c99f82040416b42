//! Pretend hosts: network namespaces that a test makes for itself and that go with it, also when it fails.
//!
//! Everything a test does happens inside its namespaces, with addresses that lead nowhere else. Whatever it
//! runs has a bound of time.

#![allow(dead_code)] // Each test binary uses its part.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// More than anything here takes, be it on an emulated machine whose host is busy: what has not happened by then hangs.
pub const BOUND: Duration = Duration::from_secs(120);

/// A network namespace, deleted with everything in it when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    /// Whether it is there until this value goes.
    stays: bool,
}

impl Netns {
    /// A new one with nothing but a loopback that is up; `label` tells it from others in messages.
    pub fn new(label: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        require("ip", "iproute2");
        let name = format!("ringtap-test-{}-{number}-{label}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let this = Self { name, stays: true };
        this.run("ip link set lo up");
        this
    }

    /// That called `name`, which a program under test makes; deleted as the others if it is still there then.
    pub fn of_program(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            stays: false,
        }
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        let listed = bounded(Command::new("ip").args(["netns", "list"]), "");
        let names = String::from_utf8_lossy(&listed.stdout).into_owned();
        let mut names = names
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        names.any(|name| name == self.name)
    }

    /// Its name, for `ip`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// As [`Netns::command`], in the mount namespace of the test: what is mounted there is so for all.
    pub fn command_that_mounts(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args([&format!("--net=/run/netns/{}", self.name), program]);
        command
    }

    /// Runs `line`, words between spaces, and gives its stdout; it must succeed.
    pub fn run(&self, line: &str) -> String {
        let output = self.attempt(line);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "`{line}` in {}: {errors}",
            self.name
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `line`, words between spaces, whether it succeeds or not.
    pub fn attempt(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().expect("a program"));
        command.args(words);
        bounded(&mut command, "")
    }

    /// Waits until no address is being checked for duplicates any more, which would change a snapshot by itself.
    pub fn settle(&self) {
        until("settled addresses", || {
            self.run("ip -6 address show tentative").is_empty()
        });
    }

    /// Joins the two by a veth pair whose ends have the names given; both ends are set up.
    pub fn join(&self, here: &str, other: &Netns, there: &str) {
        let name = &other.name;
        self.run(&format!(
            "ip link add {here} type veth peer name {there} netns {name}"
        ));
        self.run(&format!("ip link set {here} up"));
        other.run(&format!("ip link set {there} up"));
    }

    /// What `act` gives when done by a thread inside: sockets it opens belong here.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).expect("the namespace");
        let inside = || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
            act()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The pids of the processes inside.
    pub fn pids(&self) -> Vec<i32> {
        let output = bounded(Command::new("ip").args(["netns", "pids", &self.name]), "");
        let text = String::from_utf8_lossy(&output.stdout);
        text.split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect()
    }

    /// All that a program may change here, as a text: links, addresses, routes, rules, neighbours made by hand, nftables,
    /// sysctls. What changes by itself is left out.
    pub fn snapshot(&self) -> String {
        require("nft", "nftables");
        require("sysctl", "procps");
        let mut text = String::new();
        for line in [
            "ip -j -d link",
            "ip -j -d addr",
            "ip -j -d route show table all",
            "ip -j -6 -d route show table all",
            "ip -j -d rule",
            "ip -j neigh show proxy",
            "ip -j neigh show nud permanent",
            "nft -j list ruleset",
        ] {
            let mut value = serde_json::from_str(&self.run(line)).expect(line);
            drop_volatile(&mut value);
            if let Some(list) = value.as_array_mut() {
                list.sort_by_key(link_local_route);
            }
            text.push_str(&format!("{line}\n{value:#}\n"));
        }
        // The key is made up by the kernel when a program first listens with TCP fast open.
        let volatile = [
            "net.netfilter.nf_conntrack_count",
            "net.ipv4.tcp_fastopen_key",
        ];
        for line in self.run("sysctl -a --pattern ^net[.]").lines() {
            if !volatile.iter().any(|name| line.starts_with(name)) {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        for pid in self.pids() {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let deleted = bounded(Command::new("ip").args(["netns", "delete", &self.name]), "");
        if self.stays && !deleted.status.success() && !thread::panicking() {
            panic!("{} could not be deleted", self.name);
        }
    }
}

/// Which of the links' fe80::/64 and ff00::/8 is listed first is a matter of which link came up first: they are put behind all other
/// routes, whose order stays, and into an order of their own.
fn link_local_route(item: &serde_json::Value) -> Option<String> {
    let to = item["dst"].as_str()?;
    (to.starts_with("fe80::") || to.starts_with("ff00::")).then(|| item.to_string())
}

/// Timers of bridges run and they count what they learn, nft's handles count what was ever loaded and its counters what has
/// passed, and that a link has no carrier is known a second after it was set up.
fn drop_volatile(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Array(list) => {
            list.retain(|item| item != "NO-CARRIER" && item != "linkdown");
            list.iter_mut().for_each(drop_volatile);
        }
        serde_json::Value::Object(fields) => {
            let volatile = ["handle", "operstate", "packets", "bytes", "fdb_n_learned"];
            fields.retain(|key, _| !key.ends_with("_timer") && !volatile.contains(&key.as_str()));
            fields.values_mut().for_each(drop_volatile);
        }
        _ => {}
    }
}

/// Where two snapshots differ, line by line; empty where they don't.
pub fn difference(before: &str, after: &str) -> String {
    let missing = |of: &str, from: &str, sign: char| -> String {
        let there: std::collections::BTreeSet<&str> = from.lines().collect();
        let lines = of.lines().filter(|line| !there.contains(line));
        lines.map(|line| format!("{sign} {line}\n")).collect()
    };
    if before == after {
        return String::new();
    }
    let lines = missing(before, after, '-') + &missing(after, before, '+');
    if lines.is_empty() {
        let moved = before.lines().zip(after.lines()).position(|(a, b)| a != b);
        let from = moved.map_or(0, |moved| moved.saturating_sub(20));
        let around = |of: &str| -> String {
            let lines = of.lines().skip(from).take(40);
            lines.map(|line| format!("{line}\n")).collect()
        };
        let (before, after) = (around(before), around(after));
        format!("the order of lines, before:\n{before}after:\n{after}")
    } else {
        lines
    }
}

/// Fails the test if `program` is not installed: a test that is skipped proves nothing.
pub fn require(program: &str, package: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    assert!(
        found,
        "this test needs `{program}`: install the package {package}"
    );
}

/// Fails the test if a file of `package` is not there.
pub fn require_file(path: &str, package: &str) {
    assert!(
        std::path::Path::new(path).is_file(),
        "this test needs {path}: install the package {package}"
    );
}

/// An index that no other link of these tests has, in whatever namespace: `/dev/tapN` is named by it.
pub fn fresh_index() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    100_000 + (std::process::id() % 100_000) * 16 + number
}

/// Runs a program that must succeed.
pub fn run(program: &str, args: &[&str]) {
    let output = bounded(Command::new(program).args(args), "");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?}: {errors} (these tests need root)"
    );
}

/// Runs `command` with `input` to its end, which must come within [`BOUND`].
pub fn bounded(command: &mut Command, input: &str) -> Output {
    bounded_by(BOUND, command, input)
}

/// As [`bounded`], for what takes longer.
pub fn bounded_by(bound: Duration, command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    let stdout = reader(child.stdout.take());
    let stderr = reader(child.stderr.take());
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let status = wait(&mut child, bound);
    let status = status.unwrap_or_else(|| panic!("{command:?} was not done within {bound:?}"));
    Output {
        status,
        stdout: stdout.join().expect("stdout"),
        stderr: stderr.join().expect("stderr"),
    }
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.expect("a pipe").read_to_end(&mut bytes);
        bytes
    })
}

/// How `child` ended; none if it did not within `bound`, and was killed.
pub fn wait(child: &mut Child, bound: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + bound;
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(None) => thread::sleep(Duration::from_millis(2)),
            Ok(status) => return status,
            Err(_) => return Some(std::process::ExitStatus::from_raw(-1)),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// Waits until `check` holds; fails the test, saying `what`, if it does not within [`BOUND`].
pub fn until(what: &str, check: impl FnMut() -> bool) {
    until_by(BOUND, what, check);
}

/// As [`until`], for what takes longer.
pub fn until_by(bound: Duration, what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + bound;
    while !check() {
        assert!(Instant::now() < deadline, "not within {bound:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
