//! A person at a guest's console: what is typed goes to `console.sock`, and what comes from there to standard output.
//!
//! On a terminal every key is the guest's, Ctrl-C among them, but for Ctrl-], which leaves. Without one, as in a pipe, bytes
//! are only passed on, and the end of the input ends nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

use super::control::{Answer, Conversation, Outcome};
use crate::signals::EndRequests;

/// Ctrl-].
const LEAVE: u8 = 0x1d;

/// Why a person is not at the console any more.
#[derive(Debug)]
pub enum Left {
    /// By Ctrl-].
    Detached,
    /// A signal asks this command to end.
    Asked,
    /// The guest has ended so.
    Ended(Outcome),
}

/// What a supervisor has said.
#[derive(Debug)]
pub enum Heard {
    /// Notes, which the person has been told.
    Notes,
    /// That the guest has ended so.
    Ended(Outcome),
    /// Nothing, and it will say nothing any more.
    Lost,
}

/// What a person at a console sees and uses.
#[derive(Debug)]
pub struct Console<'a> {
    /// The console.
    pub stream: &'a mut UnixStream,
    /// What the supervisor tells.
    pub supervisor: &'a mut Conversation,
    /// Requests to end.
    pub signals: &'a mut EndRequests,
}

impl Console<'_> {
    /// Passes bytes on until the person leaves or the guest ends; none where the supervisor is gone without a word.
    ///
    /// # Errors
    /// The terminal's.
    pub fn attend(&mut self) -> io::Result<Option<Left>> {
        let raw = Raw::enter()?;
        let mut typing = true;
        let mut listening = true;
        loop {
            let stdin = io::stdin();
            let ready = wait(&[
                Some(self.supervisor.stream().as_fd()),
                Some(self.signals.as_fd()),
                Some(self.stream.as_fd()).filter(|_| listening),
                Some(stdin.as_fd()).filter(|_| typing),
            ])?;
            if ready[2] {
                listening = self.show()?;
            }
            if ready[3] {
                match self.pass_on(raw.is_some())? {
                    Typed::Some => {}
                    Typed::End => typing = false,
                    Typed::Leave => return Ok(Some(Left::Detached)),
                }
            }
            if ready[1] && self.signals.take()? > 0 {
                return Ok(Some(Left::Asked));
            }
            // Last, since what the guest has said comes before its end.
            if ready[0] {
                while listening && readable_now(self.stream.as_fd())? {
                    listening = self.show()?;
                }
                match hear(self.supervisor)? {
                    Heard::Notes => {}
                    Heard::Ended(outcome) => return Ok(Some(Left::Ended(outcome))),
                    Heard::Lost => return Ok(None),
                }
            }
        }
    }

    /// Shows what the guest has said; false where there is no more.
    fn show(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => Ok(false),
            Ok(count) => {
                let mut stdout = io::stdout().lock();
                // That nobody looks any more does not concern the guest.
                let _ = stdout
                    .write_all(&bytes[..count])
                    .and_then(|()| stdout.flush());
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Passes on what was typed, up to Ctrl-] on a terminal.
    fn pass_on(&mut self, terminal: bool) -> io::Result<Typed> {
        let mut bytes = [0; 4096];
        let count = match rustix::io::read(io::stdin(), &mut bytes) {
            Ok(0) => return Ok(Typed::End),
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => return Ok(Typed::Some),
            Err(_) => return Ok(Typed::End), // a terminal that is gone
        };
        let leave = bytes[..count].iter().position(|byte| *byte == LEAVE);
        let end = leave.filter(|_| terminal);
        let typed = &bytes[..end.unwrap_or(count)];
        // A console that is gone shows in what it says.
        let _ = self.stream.write_all(typed);
        Ok(if end.is_some() {
            Typed::Leave
        } else {
            Typed::Some
        })
    }
}

enum Typed {
    Some,
    End,
    Leave,
}

/// Tells the person what the supervisor says.
///
/// # Errors
/// Those of `read`.
pub fn hear(supervisor: &mut Conversation) -> io::Result<Heard> {
    loop {
        match supervisor.next()? {
            Some(Answer::Note(text)) => eprint!("ringtap: {text}\r\n"),
            Some(Answer::Ended(outcome)) => return Ok(Heard::Ended(outcome)),
            Some(_) => {}
            None => return Ok(Heard::Lost),
        }
        if !supervisor.has_more() {
            return Ok(Heard::Notes);
        }
    }
}

/// Which of these are readable, or at their end; waits until one is.
fn wait<const N: usize>(fds: &[Option<BorrowedFd<'_>>; N]) -> io::Result<[bool; N]> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .flatten()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    rustix::io::retry_on_intr(|| poll(&mut polled, None))?;
    let mut polled = polled.iter();
    Ok(fds.map(|fd| {
        let its = fd.and_then(|_| polled.next());
        its.is_some_and(|fd| !fd.revents().is_empty())
    }))
}

/// Waits until the supervisor has said something, or a signal has come.
///
/// # Errors
/// Those of `poll`.
pub fn either(supervisor: &Conversation, signals: &EndRequests) -> io::Result<()> {
    if supervisor.has_more() {
        return Ok(());
    }
    let fds = [Some(supervisor.stream().as_fd()), Some(signals.as_fd())];
    wait(&fds).map(drop)
}

fn readable_now(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let none = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    Ok(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&none)))? > 0)
}

/// The terminal that is standard input, passing on each key as it is; as it was before once this value is gone.
struct Raw(Termios);

impl Raw {
    /// None where standard input is no terminal.
    fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
