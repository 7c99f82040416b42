//! Who has connected to one of a supervisor's sockets: a stream that never makes it wait, with what it has not taken yet.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use event_manager::EventSet;

/// One who is to get the last words and does not take them is left after this.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A connection.
#[derive(Debug)]
pub struct Peer {
    stream: UnixStream,
    waiting: VecDeque<u8>,
}

impl Peer {
    /// The next who has come to `listener`, if any.
    ///
    /// # Errors
    /// Those of `accept`.
    pub fn accept(listener: &UnixListener) -> io::Result<Option<Self>> {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if is_for_now(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        Ok(Some(Self {
            stream,
            waiting: VecDeque::new(),
        }))
    }

    /// Sends `bytes` after what waits, as far as it takes them; false where nobody is there any more.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.waiting.extend(bytes);
        pour(&mut self.waiting, &mut self.stream)
    }

    /// Sends what waits to one who does take it.
    pub fn finish(&mut self) {
        let _ = self.stream.set_nonblocking(false);
        let _ = self.stream.set_write_timeout(Some(LAST_WORDS));
        pour(&mut self.waiting, &mut self.stream);
    }

    /// How many bytes it has not taken yet.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

impl Read for Peer {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.read(bytes)
    }
}

impl AsRawFd for Peer {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

/// Listens at `path`, in the place of one who did before, without ever waiting for anybody.
///
/// # Errors
/// Those of `bind`.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Writes as much of `bytes` as `stream` takes; false where it takes nothing any more.
pub fn pour(bytes: &mut VecDeque<u8>, stream: &mut UnixStream) -> bool {
    while !bytes.is_empty() {
        match stream.write(bytes.as_slices().0) {
            Ok(count) => drop(bytes.drain(..count)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return is_for_now(&error),
        }
    }
    true
}

/// Whether another try may succeed.
pub fn is_for_now(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), Interrupted | WouldBlock)
}

/// What to wait for.
pub fn interest(read: bool, write: bool) -> EventSet {
    let mut events = EventSet::empty();
    events.set(EventSet::IN, read);
    events.set(EventSet::OUT, write);
    events
}
