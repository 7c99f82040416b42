//! A person at a terminal: a command whose standard streams are a pseudo-terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};

use super::netns::{BOUND, wait};

/// The command, and the person's end.
pub struct Person {
    child: Child,
    keyboard: File,
    /// The command's end, to look at how it is set.
    terminal: File,
    screen: Receiver<Vec<u8>>,
    text: String,
}

impl Person {
    pub fn start(mut command: Command) -> Self {
        let pty = openpty(None, None).unwrap();
        let terminal = File::from(pty.slave);
        let end = || terminal.try_clone().unwrap();
        command.stdin(end()).stdout(end()).stderr(end());
        let child = command.spawn().unwrap();
        let keyboard = File::from(pty.master);
        let mut reader = keyboard.try_clone().unwrap();
        let (send, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if send.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            keyboard,
            terminal,
            screen,
            text: String::new(),
        }
    }

    pub fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `mark` is on the screen.
    pub fn wait_for(&mut self, mark: &str) {
        self.wait_for_by(BOUND, mark);
    }

    /// As [`Self::wait_for`], for what takes longer.
    pub fn wait_for_by(&mut self, bound: Duration, mark: &str) {
        let deadline = Instant::now() + bound;
        while !self.text.contains(mark) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("{mark:?} is not on the screen:\n{}", self.text),
            }
        }
    }

    /// Whether each key goes to the command at once, unseen by the terminal.
    pub fn has_raw_terminal(&self) -> bool {
        let flags = tcgetattr(self.terminal.as_fd()).unwrap().local_flags;
        !flags.intersects(LocalFlags::ICANON | LocalFlags::ISIG | LocalFlags::ECHO)
    }

    /// How the command ends.
    pub fn ends(&mut self) -> ExitStatus {
        wait(&mut self.child, BOUND).expect("the command ends")
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
