//! QEMU's monitor: QMP over a socket (QEMU's docs/interop/qmp-spec, qemu-qmp-ref).
//!
//! A line is a message. Commands wait for their answers, which QEMU gives at once unless it hangs; events that come
//! meanwhile are kept for [`Monitor::events`]. A command has a number that its answer has too, so that one which comes too
//! late for the command is not taken for that of the next. QEMU serves one client at a time, and the next once that has gone.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use qapi::qmp::{Event, QapiCapabilities, qmp_capabilities};
use qapi::{Command, Execute};
use serde_json::Value;
use thiserror::Error;

use super::process::Process;

/// QEMU answers within milliseconds, unless the host is very busy or QEMU is stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer is longer than this only if QEMU has gone mad.
const LINE_LIMIT: usize = 16 << 20;

/// Why QEMU did not do something.
#[derive(Debug, Error)]
pub enum MonitorError {
    /// It has refused.
    #[error("QEMU refuses {command}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// In its own words.
        reason: String,
    },
    /// It does not answer, or has ended.
    #[error("QEMU's monitor does not answer")]
    Silent(#[from] io::Error),
}

/// Waits until one of the descriptors is readable, at most for so long, or until something else is a reason to look again;
/// false where the time ran out.
pub type Wait<'a> = dyn FnMut(&[BorrowedFd<'_>], Duration) -> io::Result<bool> + 'a;

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub struct Monitor {
    stream: UnixStream,
    /// What has come of lines that nobody has looked at yet.
    bytes: Vec<u8>,
    events: VecDeque<Event>,
    /// Commands sent so far: the number of the last.
    sent: u64,
}

impl Monitor {
    /// Connects to the socket of `qemu`, and waits (by `wait`) for as long as `limit` until its machine is made: only then
    /// does it greet.
    ///
    /// # Errors
    /// QEMU ends before that, or takes longer.
    pub fn connect(
        path: &Path,
        qemu: &Process,
        limit: Duration,
        wait: &mut Wait<'_>,
    ) -> Result<Self, MonitorError> {
        let stream = UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        let mut monitor = Self::on(stream);
        let end = Instant::now() + limit;
        let greeting = monitor.early_line(end, qemu, wait)?;
        let _: QapiCapabilities = serde_json::from_slice(&greeting).map_err(io::Error::from)?;
        // QEMU greets before its machine is made, and answers after that.
        let begin = qmp_capabilities { enable: None };
        monitor.tell(&begin)?;
        loop {
            let line = monitor.early_line(end, qemu, wait)?;
            if let Some(answer) = monitor.sort(&line)? {
                accepted(qmp_capabilities::NAME, answer)?;
                return Ok(monitor);
            }
        }
    }

    fn on(stream: UnixStream) -> Self {
        Self {
            stream,
            bytes: Vec::new(),
            events: VecDeque::new(),
            sent: 0,
        }
    }

    /// Has QEMU do `command`.
    ///
    /// # Errors
    /// It refuses, or does not answer.
    pub fn execute<C: Command>(&mut self, command: &C) -> Result<C::Ok, MonitorError> {
        self.tell(command)?;
        let answer = self.answer(C::NAME)?;
        Ok(serde_json::from_value(answer).map_err(io::Error::from)?)
    }

    /// Tells QEMU to do `command` once it can. Nobody waits for its answer, so that a refusal is not heard of.
    ///
    /// # Errors
    /// QEMU has ended, or has not read for so long that no more can be sent.
    pub fn tell<C: Command>(&mut self, command: &C) -> io::Result<()> {
        let command = Execute::<&C>::from(command);
        self.send(serde_json::to_value(&command)?)
    }

    /// Has QEMU do a command of this name with these arguments: for those that no type has as every version of QEMU takes them.
    ///
    /// # Errors
    /// As [`Monitor::execute`].
    pub fn execute_raw(
        &mut self,
        command: &'static str,
        arguments: &Value,
    ) -> Result<(), MonitorError> {
        self.send(serde_json::json!({ "execute": command, "arguments": arguments }))?;
        self.answer(command).map(drop)
    }

    /// Waits for an event that is `meant`, at most `limit`; false where none came. [`Monitor::events`] gives it as well.
    ///
    /// # Errors
    /// QEMU has ended, or ended the connection.
    pub fn wait_for(
        &mut self,
        meant: impl Fn(&Event) -> bool,
        limit: Duration,
    ) -> io::Result<bool> {
        let end = Instant::now() + limit;
        while !self.events.iter().any(&meant) {
            let left = end.saturating_duration_since(Instant::now());
            let line = match self.line(left) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(false),
                line => line?,
            };
            self.sort(&line)?;
        }
        Ok(true)
    }

    /// The events that have come, and whether there may be more: an error says that QEMU has ended, or ended the connection, and
    /// what it has told last comes together with that.
    pub fn events(&mut self) -> (Vec<Event>, io::Result<()>) {
        let looked = self.look();
        (self.events.drain(..).collect(), looked)
    }

    /// Sorts all that has come.
    fn look(&mut self) -> io::Result<()> {
        while let Some(line) = self.try_line()? {
            self.sort(&line)?;
        }
        Ok(())
    }

    /// QEMU's answer to the `command` that was sent last.
    fn answer(&mut self, command: &'static str) -> Result<Value, MonitorError> {
        loop {
            let line = self.line(PATIENCE)?;
            match self.sort(&line)? {
                Some(answer) if answer["id"] == self.sent => return accepted(command, answer),
                Some(late) => tracing::debug!("an answer comes late: {late}"),
                None => {}
            }
        }
    }

    fn send(&mut self, mut request: Value) -> io::Result<()> {
        self.sent += 1;
        request["id"] = self.sent.into();
        let mut text = serde_json::to_vec(&request)?;
        text.push(b'\n');
        // A request is smaller than any socket's buffer.
        self.stream.write_all(&text)
    }

    /// The message of a line if it is an answer; an event is kept, and one that is not known is none of ours.
    fn sort(&mut self, line: &[u8]) -> io::Result<Option<Value>> {
        let message: Value = serde_json::from_slice(line)?;
        if message.get("event").is_none() {
            return Ok(Some(message));
        }
        match serde_json::from_value(message) {
            Ok(event) => self.events.push_back(event),
            Err(error) => tracing::debug!("an event of QEMU's is not known: {error}"),
        }
        Ok(None)
    }

    /// The next line of a `qemu` that may still be making its machine, once it is there; until `end`, or until it ends.
    fn early_line(
        &mut self,
        end: Instant,
        qemu: &Process,
        wait: &mut Wait<'_>,
    ) -> io::Result<Vec<u8>> {
        loop {
            if let Some(line) = self.try_line()? {
                return Ok(line);
            }
            let left = end.saturating_duration_since(Instant::now());
            if !wait(&[qemu.as_fd(), self.stream.as_fd()], left)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // A connection that QEMU has not taken yet outlives it.
            if qemu.wait_with(&[], Duration::ZERO)?
                && let Ok(None) = self.try_line()
            {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next line, once it is there.
    fn line(&mut self, limit: Duration) -> io::Result<Vec<u8>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(line) = self.try_line()? {
                return Ok(line);
            }
            let left = end.saturating_duration_since(Instant::now());
            if !readable(&[self.stream.as_fd()], left)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// The next line if it has come whole.
    fn try_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.bytes.drain(..=end).collect()));
            }
            let mut some = [0; 4096];
            match self.stream.read(&mut some) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.bytes.extend_from_slice(&some[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.bytes.len() > LINE_LIMIT {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }
}

/// What an answer to `command` gives.
fn accepted(command: &'static str, mut answer: Value) -> Result<Value, MonitorError> {
    if let Some(error) = answer.get("error") {
        let reason = error["desc"].as_str().unwrap_or("it does not say why");
        return Err(MonitorError::Refused {
            command,
            reason: reason.to_owned(),
        });
    }
    Ok(answer["return"].take())
}

impl AsRawFd for Monitor {
    /// Readable when events have come.
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

/// Waits until one of the descriptors is readable, at most `limit`; false where none is.
///
/// # Errors
/// Those of `poll`.
pub fn readable(fds: &[BorrowedFd<'_>], limit: Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    let mut fds: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::new(fd, PollFlags::IN))
        .collect();
    Ok(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit)))? > 0)
}

#[cfg(test)]
mod tests {
    use qapi::qmp::{query_version, system_powerdown};

    use super::*;

    /// A monitor, and QEMU's end of it.
    fn monitor() -> (Monitor, UnixStream) {
        let (stream, qemu) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        (Monitor::on(stream), qemu)
    }

    /// A guest that powers itself off: QEMU says so and is gone, before anybody has looked.
    #[test]
    fn what_qemu_says_last_is_heard() {
        let (mut monitor, mut qemu) = monitor();
        assert!(matches!(monitor.events(), (none, Ok(())) if none.is_empty()));
        let event = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN",
            "data": {"guest": true, "reason": "guest-shutdown"}}"#;
        writeln!(qemu, "{}", event.replace('\n', "")).unwrap();
        drop(qemu);
        let (events, ended) = monitor.events();
        assert!(matches!(events[..], [Event::SHUTDOWN { .. }]), "{events:?}");
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_answer_that_comes_late_is_not_the_next_commands() {
        let (mut monitor, mut qemu) = monitor();
        monitor.tell(&system_powerdown {}).unwrap();
        writeln!(qemu, r#"{{"return": {{}}, "id": 1}}"#).unwrap();
        let version = r#"{"qemu": {"major": 10, "minor": 2, "micro": 1}, "package": ""}"#;
        writeln!(qemu, r#"{{"return": {version}, "id": 2}}"#).unwrap();
        assert_eq!(monitor.execute(&query_version {}).unwrap().qemu.minor, 2);
    }

    /// QEMU has its power button pressed every few seconds, and does not read.
    #[test]
    fn no_command_waits_for_a_qemu_that_hangs() {
        let (mut monitor, _qemu) = monitor();
        let end = (0..100_000).find_map(|_| monitor.tell(&system_powerdown {}).err());
        assert_eq!(end.unwrap().kind(), io::ErrorKind::WouldBlock);
    }
}
