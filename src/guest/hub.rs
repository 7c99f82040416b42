//! A guest's serial console, for any number of people at once, and what it has said of late.
//!
//! QEMU serves one client on its serial socket: the supervisor, which hands on what comes to everybody on `console.sock` and
//! keeps the last of it in a file. Who comes later gets that first. What one of them types goes to the guest; while the
//! guest takes nothing, nothing is read from them. One who does not read for long is let go.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use event_manager::{EventOps, EventSet, Events};

use super::peer::{Peer, interest, is_for_now, listen, pour};

/// What is typed waits for the guest up to this many bytes; more stays with who types it.
const TYPED_LIMIT: usize = 64 << 10;
/// What the guest says waits for each listener up to this many bytes.
const SAID_LIMIT: usize = 4 << 20;
/// The file keeps at most this many bytes, and half as many once it was full.
const KEPT_LIMIT: u64 = 1 << 20;

const LISTENER: u32 = 0;
const SERIAL: u32 = 1;
const CLIENTS: u32 = 2;

/// The console of a guest, with who listens to it.
#[derive(Debug)]
pub struct Hub {
    /// The events of this value have the numbers from here on.
    base: u32,
    listener: UnixListener,
    /// QEMU's end; none while it does not run.
    serial: Option<UnixStream>,
    typed: VecDeque<u8>,
    clients: BTreeMap<u32, Peer>,
    next: u32,
    kept: Kept,
}

impl Hub {
    /// Listens at `socket`, and keeps what is said in `file`, to whose end it is added. Its events have numbers from `base` on.
    ///
    /// # Errors
    /// Those of `bind`, and the file's.
    pub fn open(base: u32, socket: &Path, file: &Path) -> io::Result<Self> {
        Ok(Self {
            base,
            listener: listen(socket)?,
            serial: None,
            typed: VecDeque::new(),
            clients: BTreeMap::new(),
            next: CLIENTS,
            kept: Kept::open(file)?,
        })
    }

    /// Has `ops` watch who comes.
    ///
    /// # Errors
    /// Those of `epoll_ctl`.
    pub fn watch(&self, ops: &mut EventOps) -> io::Result<()> {
        let events = Events::with_data(&self.listener, self.base + LISTENER, EventSet::IN);
        ops.add(events).map_err(io::Error::other)
    }

    /// From here on the guest's end is `serial`.
    ///
    /// # Errors
    /// Those of `epoll_ctl`.
    pub fn connect(&mut self, serial: UnixStream, ops: &mut EventOps) -> io::Result<()> {
        self.disconnect(ops);
        serial.set_nonblocking(true)?;
        let events = Events::with_data(&serial, self.base + SERIAL, EventSet::IN);
        ops.add(events).map_err(io::Error::other)?;
        self.serial = Some(serial);
        Ok(())
    }

    /// Takes what the guest has said last, and lets go of its end.
    pub fn disconnect(&mut self, ops: &mut EventOps) {
        while self.hear(ops) {}
    }

    /// Something has happened to one of the descriptors of this value.
    ///
    /// # Errors
    /// Those of `accept` and `epoll_ctl`.
    pub fn handle(&mut self, events: Events, ops: &mut EventOps) -> io::Result<()> {
        match events.data() - self.base {
            LISTENER => self.welcome(ops)?,
            SERIAL => {
                self.hear(ops);
                self.type_on();
            }
            client => self.serve(client, events.event_set(), ops),
        }
        self.update(ops);
        Ok(())
    }

    /// Sends what still waits for those who listen, for as long as they take it.
    pub fn finish(&mut self) {
        for client in self.clients.values_mut() {
            client.finish();
        }
    }

    fn welcome(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let Some(mut client) = Peer::accept(&self.listener)? else {
            return Ok(());
        };
        let number = self.next;
        self.next += 1;
        if client.send(&self.kept.all()?) {
            let events = Events::with_data(&client, self.base + number, EventSet::IN);
            ops.add(events).map_err(io::Error::other)?;
            self.clients.insert(number, client);
        }
        Ok(())
    }

    /// Takes some of what the guest has said; false where there is no more, now or ever.
    fn hear(&mut self, ops: &mut EventOps) -> bool {
        let Some(serial) = &mut self.serial else {
            return false;
        };
        let mut bytes = [0; 16 << 10];
        match serial.read(&mut bytes) {
            Ok(count @ 1..) => {
                self.say(&bytes[..count], ops);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            _ => {
                let _ = ops.remove(Events::empty(serial));
                self.serial = None;
                self.typed.clear();
                false
            }
        }
    }

    /// Everybody hears `bytes`.
    fn say(&mut self, bytes: &[u8], ops: &mut EventOps) {
        if let Err(error) = self.kept.add(bytes) {
            tracing::warn!("what the guest says on its console can't be kept: {error}");
        }
        self.clients.retain(|_, client| {
            let stays = client.send(bytes) && client.waiting() <= SAID_LIMIT;
            if !stays {
                let _ = ops.remove(Events::empty(client));
            }
            stays
        });
    }

    /// One of them reads, types or goes.
    fn serve(&mut self, number: u32, events: EventSet, ops: &mut EventOps) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        let mut stays = client.send(&[]);
        if self.typed.len() < TYPED_LIMIT {
            let mut bytes = [0; 4096];
            match client.read(&mut bytes) {
                Ok(0) => stays = false,
                Ok(count) => self.typed.extend(&bytes[..count]),
                Err(error) => stays &= is_for_now(&error),
            }
        } else if events.contains(EventSet::HANG_UP) {
            stays = false; // what it typed last is not read any more
        }
        if !stays && let Some(client) = self.clients.remove(&number) {
            let _ = ops.remove(Events::empty(&client));
        }
        self.type_on();
    }

    /// Gives the guest what was typed, as far as it takes it; nobody gets what was typed while it did not run.
    fn type_on(&mut self) {
        match &mut self.serial {
            Some(serial) => drop(pour(&mut self.typed, serial)),
            None => self.typed.clear(),
        }
    }

    /// Tells the loop what to wait for.
    fn update(&self, ops: &mut EventOps) {
        let read = self.typed.len() < TYPED_LIMIT;
        for (number, client) in &self.clients {
            let events = interest(read, client.waiting() > 0);
            let _ = ops.modify(Events::with_data(client, self.base + number, events));
        }
        if let Some(serial) = &self.serial {
            let events = interest(true, !self.typed.is_empty());
            let _ = ops.modify(Events::with_data(serial, self.base + SERIAL, events));
        }
    }
}

/// The last of what was said, in a file, so that it outlives the supervisor.
#[derive(Debug)]
struct Kept {
    file: File,
    len: u64,
}

impl Kept {
    fn open(path: &Path) -> io::Result<Self> {
        let mut options = fs::OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let file = options.open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }

    fn all(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.len + bytes.len() as u64 > KEPT_LIMIT {
            let all = self.all()?;
            let from = all.len().saturating_sub(KEPT_LIMIT as usize / 2);
            self.file.set_len(0)?;
            self.len = 0;
            self.append(&all[from..])?;
        }
        self.append(bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_keeps_the_last_of_what_was_said_and_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut kept = Kept::open(&path).unwrap();
        let line = |number: usize| format!("line {number}\n");
        for number in 0..300_000 {
            kept.add(line(number).as_bytes()).unwrap();
            assert!(kept.len <= KEPT_LIMIT);
        }
        drop(kept);
        let text = String::from_utf8(Kept::open(&path).unwrap().all().unwrap()).unwrap();
        assert!(text.len() as u64 >= KEPT_LIMIT / 2);
        let end: String = (290_000..300_000).map(line).collect();
        assert!(text.ends_with(&end));
    }
}
