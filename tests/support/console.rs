//! A guest's serial console, driven as a person would: `ringtap run` with pipes for a terminal.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::netns;

/// A running guest and its console. Dropped, it is ended as by Ctrl-C.
pub struct Console {
    child: Child,
    stdin: ChildStdin,
    output: Receiver<Vec<u8>>,
    /// All that was printed so far.
    pub text: String,
    /// The number of the last command that was typed.
    command: usize,
}

impl Console {
    /// Starts `command`, which runs a guest in the foreground, and waits until the guest's shell is there.
    pub fn boot(command: &mut Command) -> Self {
        Self::boot_within(command, netns::BOUND)
    }

    /// As [`Self::boot`], for a guest that may take as long as `bound`.
    pub fn boot_within(command: &mut Command, bound: Duration) -> Self {
        let mut console = Self::start(command);
        console.wait_for("tiny: ready", bound);
        console.run("stty -echo"); // or the shell would wrap the echo, and ask for the cursor after each prompt
        console
    }

    /// Starts `command` and waits for nothing.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut stdout = child.stdout.take().expect("a pipe");
        let (send, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(bytes @ 1..) = stdout.read(&mut buffer) {
                if send.send(buffer[..bytes].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            stdin: child.stdin.take().expect("a pipe"),
            child,
            output,
            text: String::new(),
            command: 0,
        }
    }

    /// Goes on where another console of the same guest, migrated since, has ended.
    pub fn go_on_from(&mut self, other: &mut Self) {
        while let Ok(bytes) = other.output.try_recv() {
            other.text.push_str(&String::from_utf8_lossy(&bytes));
        }
        self.text.insert_str(0, &other.text);
        self.command = other.command;
    }

    /// Types `line`, waits until the guest has done it, and returns what it printed; it must succeed.
    pub fn run(&mut self, line: &str) -> String {
        let (code, text) = self.attempt(line, netns::BOUND);
        assert_eq!(code, 0, "`{line}` in the guest printed: {text}");
        text
    }

    /// Types `line`; returns its exit code and what it printed within `bound`.
    pub fn attempt(&mut self, line: &str, bound: Duration) -> (i32, String) {
        self.begin(line);
        self.finish(bound)
    }

    /// Types `line` and does not wait.
    pub fn begin(&mut self, line: &str) {
        // Another console of the same guest may have been there before, whose marks are told again.
        static COMMANDS: AtomicUsize = AtomicUsize::new(1);
        self.command = COMMANDS.fetch_add(1, Ordering::Relaxed);
        // The terminal may echo what is typed: only what the shell makes of it is the mark.
        let line = format!(
            "echo begin''-{0}:; {line}; echo end''-{0}:$?:\n",
            self.command
        );
        self.stdin
            .write_all(line.as_bytes())
            .expect("the guest's console");
    }

    /// Types `line` into whatever reads there, and does not wait.
    pub fn type_line(&mut self, line: &str) {
        let line = format!("{line}\n");
        self.stdin
            .write_all(line.as_bytes())
            .expect("the program's standard input");
    }

    /// Types `line`; returns what is printed until the next `prompt`.
    pub fn ask(&mut self, line: &str, prompt: &str, bound: Duration) -> String {
        let from = self.text.len();
        let deadline = Instant::now() + bound;
        self.type_line(line);
        while !self.text[from..].contains(prompt) {
            self.read(deadline, prompt);
        }
        self.text[from..].to_owned()
    }

    /// Waits for the end of what [`Self::begin`] typed.
    pub fn finish(&mut self, bound: Duration) -> (i32, String) {
        let (begin, end) = (
            format!("begin-{}:", self.command),
            format!("end-{}:", self.command),
        );
        self.wait_for(&end, bound);
        self.wait_for(":", Duration::ZERO);
        let from = self.text.rfind(&begin).expect("the begin mark") + begin.len();
        let to = self.text.rfind(&end).expect("the end mark");
        let printed = self.text[from..to].replace('\r', "");
        let tail = end.len() + to;
        loop {
            if let Some((code, _)) = self.text[tail..].split_once(':') {
                return (
                    code.parse().expect("an exit code"),
                    printed.trim().to_owned(),
                );
            }
            self.read(Instant::now() + bound, &end);
        }
    }

    /// Reads on until `mark` has been printed.
    pub fn wait_for(&mut self, mark: &str, bound: Duration) {
        let deadline = Instant::now() + bound;
        while !self.text.contains(mark) {
            self.read(deadline, mark);
        }
    }

    fn read(&mut self, deadline: Instant, mark: &str) {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.output.recv_timeout(left) {
            Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
            Err(RecvTimeoutError::Timeout) => {
                panic!(
                    "{mark:?} did not come in time; the console so far:\n{}",
                    self.text
                )
            }
            Err(RecvTimeoutError::Disconnected) => {
                panic!(
                    "the guest ended before {mark:?}; the console so far:\n{}",
                    self.text
                )
            }
        }
    }

    /// Types `poweroff` and waits for ringtap to end.
    pub fn power_off(mut self) -> ExitStatus {
        self.stdin
            .write_all(b"poweroff\n")
            .expect("the guest's console");
        self.wait()
    }

    /// Sends `signal` to ringtap and waits for it to end.
    pub fn signal(mut self, signal: Signal) -> ExitStatus {
        kill(self.pid(), signal).expect("ringtap runs");
        self.wait()
    }

    /// Waits for ringtap to end by itself.
    pub fn ends(mut self) {
        self.wait();
    }

    /// The process started: ringtap, for `ip netns exec` becomes what it runs.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    fn wait(&mut self) -> ExitStatus {
        netns::wait(&mut self.child, netns::BOUND)
            .unwrap_or_else(|| panic!("ringtap did not end; the console so far:\n{}", self.text))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = kill(self.pid(), Signal::SIGTERM);
            let _ = netns::wait(&mut self.child, netns::BOUND);
        }
    }
}
