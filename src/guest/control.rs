//! What is said between ringtap's commands and a guest's supervisor, on `control.sock`: a line of JSON a message.
//!
//! A command sends one [`Request`]; the supervisor answers with notes, as things happen, and one of the others last.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use event_manager::{EventOps, EventSet, Events};
use serde::{Deserialize, Serialize};

use crate::types::Name;

use super::peer::{Peer, interest, is_for_now, listen};
use super::run_dir::files;

/// A request is shorter than this.
const REQUEST_LIMIT: usize = 64 << 10;

const LISTENER: u32 = 0;
const CLIENTS: u32 = 1;

/// What a command wants of a supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// To know how the guest is.
    State,
    /// To hear what happens, until the guest has ended.
    Watch,
    /// The guest's end: by its power button and, `timeout` seconds later, by force.
    Stop {
        /// Seconds.
        timeout: u32,
    },
    /// Another NIC.
    AddNic {
        /// On this network.
        network: Name,
    },
    /// A NIC to go.
    RemoveNic {
        /// Its number.
        index: usize,
    },
    /// A NIC to be on another network.
    MoveNic {
        /// Its number.
        index: usize,
        /// That network.
        network: Name,
    },
}

/// What a supervisor says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// How the guest is.
    State(State),
    /// Something has happened.
    Note(String),
    /// The guest has ended, and nothing of it is left.
    Ended(Outcome),
    /// What was wanted is done.
    Done(String),
    /// The request can't be granted.
    Refused(String),
}

/// How a guest has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It powered itself off, by its own will.
    PoweredOff,
    /// It was asked to, and powered itself off.
    Stopped,
    /// It was asked to, did not, and was ended by force.
    Killed,
    /// It failed, for this reason.
    Failed(String),
}

/// How a guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct State {
    /// What it does.
    pub phase: Phase,
    /// QEMU's pid, while it runs.
    pub pid: Option<u32>,
    /// Its NICs' backends' pids, by the NIC's number.
    #[serde(default)]
    pub backends: BTreeMap<usize, u32>,
    /// What there is to say of its NICs' links, by number.
    #[serde(default)]
    pub complaints: BTreeMap<usize, String>,
}

impl State {
    /// What the supervisor says that watches over the guest in directory `dir`, if one does.
    pub fn of(dir: &Path) -> Option<Self> {
        let asked = Conversation::begin(&dir.join(files::CONTROL), &Request::State);
        match asked.ok()?.next().ok()?? {
            Answer::State(state) => Some(state),
            _ => None,
        }
    }
}

/// What a guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It runs.
    Running,
    /// It has been asked to power off.
    Stopping,
    /// It has ended, and is started anew in a while.
    Restarting,
}

/// The supervisor's end.
#[derive(Debug)]
pub struct Control {
    /// The events of this value have the numbers from here on.
    base: u32,
    listener: UnixListener,
    clients: BTreeMap<u32, Client>,
    next: u32,
}

#[derive(Debug)]
struct Client {
    peer: Peer,
    /// What has come of its request.
    bytes: Vec<u8>,
}

impl Control {
    /// Listens at `socket`. Its events have numbers from `base` on.
    ///
    /// # Errors
    /// Those of `bind`.
    pub fn open(base: u32, socket: &Path) -> io::Result<Self> {
        Ok(Self {
            base,
            listener: listen(socket)?,
            clients: BTreeMap::new(),
            next: CLIENTS,
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

    /// Something has happened to one of the descriptors of this value; gives a request that is whole, with who sent it.
    ///
    /// # Errors
    /// Those of `accept` and `epoll_ctl`.
    pub fn handle(
        &mut self,
        events: Events,
        ops: &mut EventOps,
    ) -> io::Result<Option<(u32, Request)>> {
        let number = events.data() - self.base;
        if number == LISTENER {
            self.welcome(ops)?;
            return Ok(None);
        }
        Ok(self.serve(number, ops).map(|request| (number, request)))
    }

    fn welcome(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let Some(peer) = Peer::accept(&self.listener)? else {
            return Ok(());
        };
        let events = Events::with_data(&peer, self.base + self.next, EventSet::IN);
        ops.add(events).map_err(io::Error::other)?;
        let client = Client {
            peer,
            bytes: Vec::new(),
        };
        self.clients.insert(self.next, client);
        self.next += 1;
        Ok(())
    }

    /// Hears client `number`, and sends it what waits; one that has gone or says nonsense is let go.
    fn serve(&mut self, number: u32, ops: &mut EventOps) -> Option<Request> {
        let client = self.clients.get_mut(&number)?;
        let heard = client.hear();
        let stays = client.peer.send(&[]);
        match heard {
            Ok(request) if stays => {
                self.update(number, ops);
                request
            }
            heard => {
                if let Err(error) = heard {
                    tracing::debug!("a client of the control socket is gone: {error}");
                }
                self.let_go(number, ops);
                None
            }
        }
    }

    /// Says `answer` to client `number`, if that is still there.
    pub fn answer(&mut self, number: u32, answer: &Answer, ops: &mut EventOps) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        if client.peer.send(&line(answer)) {
            self.update(number, ops);
        } else {
            self.let_go(number, ops);
        }
    }

    /// Says `answer` to client `number` as the last that it hears, and waits for it to be taken.
    pub fn finish(&mut self, number: u32, answer: &Answer) {
        if let Some(client) = self.clients.get_mut(&number) {
            client.peer.send(&line(answer));
            client.peer.finish();
        }
    }

    fn update(&self, number: u32, ops: &mut EventOps) {
        if let Some(client) = self.clients.get(&number) {
            let events = interest(true, client.peer.waiting() > 0);
            let _ = ops.modify(Events::with_data(&client.peer, self.base + number, events));
        }
    }

    fn let_go(&mut self, number: u32, ops: &mut EventOps) {
        if let Some(client) = self.clients.remove(&number) {
            let _ = ops.remove(Events::empty(&client.peer));
        }
    }
}

impl Client {
    /// Its request, once it has come whole.
    fn hear(&mut self) -> io::Result<Option<Request>> {
        let mut some = [0; 4096];
        match self.peer.read(&mut some) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => self.bytes.extend_from_slice(&some[..count]),
            Err(error) if is_for_now(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        if self.bytes.len() > REQUEST_LIMIT {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        let line: Vec<u8> = self.bytes.drain(..=end).collect();
        Ok(Some(serde_json::from_slice(&line)?))
    }
}

/// The command's end.
#[derive(Debug)]
pub struct Conversation(BufReader<UnixStream>);

impl Conversation {
    /// Asks the supervisor that listens at `socket`.
    ///
    /// # Errors
    /// None listens there: of kind `NotFound` or `ConnectionRefused`.
    pub fn begin(socket: &Path, request: &Request) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.write_all(&line(request))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// What it says next; none where it is gone.
    ///
    /// # Errors
    /// Those of `read`; what can't be understood.
    pub fn next(&mut self) -> io::Result<Option<Answer>> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
            Ok(_) => Ok(Some(serde_json::from_str(&line)?)),
        }
    }

    /// The stream, for waiting; what [`Conversation::next`] gives after it was readable comes at once.
    pub fn stream(&self) -> &UnixStream {
        self.0.get_ref()
    }

    /// Whether an answer has come with the one before.
    pub fn has_more(&self) -> bool {
        !self.0.buffer().is_empty()
    }
}

fn line(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(message).expect("such messages have no maps with odd keys");
    bytes.push(b'\n');
    bytes
}
