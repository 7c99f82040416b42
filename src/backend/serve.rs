//! The process around a device: its socket, its signals, one front-end at a time.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use thiserror::Error;

use super::args::BackendArgs;
use super::message::Connection;
use super::queue_pair::QueuePair;
use super::session::Device;
use super::worker::{Worker, WorkerError};
use crate::signals::EndRequests;
use crate::tap::{Tap, TapError};

const LISTENER: u32 = 0;
const FRONT_END: u32 = 1;
const SIGNALS: u32 = 2;

/// Why a backend can't serve, or can't go on.
#[derive(Debug, Error)]
pub enum BackendError {
    /// No tap, no backend.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// Another process listens on the socket.
    #[error(
        "socket {0} is in use: another process listens there; stop that one, or name another path"
    )]
    SocketInUse(PathBuf),
    /// The socket can't be made.
    #[error("socket {path}: {step}")]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// A worker can't be started or has ended.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The process's own loop failed.
    #[error("event loop: {0}")]
    Loop(#[from] event_manager::Error),
    /// The kernel gave no memory, signal descriptor or the like.
    #[error("backend set-up")]
    SetUp(#[from] io::Error),
}

/// Serves one device until SIGTERM, SIGINT or SIGHUP, one front-end after another.
///
/// Says `READY=1` to a service manager (`NOTIFY_SOCKET`, sd_notify(3)) once front-ends can connect.
///
/// # Errors
/// See [`BackendError`]. The socket is removed in any case.
pub fn serve(args: &BackendArgs) -> Result<(), BackendError> {
    let signals = EndRequests::catch()?;
    let (tap, queues) = Tap::open(&args.tap, args.queue_pairs)?;
    let poll = Duration::from_micros(args.poll_us.into());
    let mut workers = Vec::with_capacity(queues.len());
    for (index, mut queue) in queues.into_iter().enumerate() {
        queue.set_attached(false)?; // until a front-end enables the pair
        workers.push(Worker::spawn(
            format!("pair{index}"),
            QueuePair::new(queue)?,
            poll,
        )?);
    }
    let device = Device::new(Box::new(tap), workers);
    let socket = Socket::listen(&args.socket_path)?;
    notify_ready();
    tracing::info!("serving {} on {}", args.tap, args.socket_path.display());

    let mut manager = EventManager::new()?;
    let id = manager.add_subscriber(Server {
        device,
        socket,
        signals,
        front_end: None,
        end: None,
    });
    loop {
        manager.run()?;
        if let Some(end) = manager.subscriber_mut(id)?.end.take() {
            return end;
        }
    }
}

/// The main loop's subscriber.
struct Server {
    device: Device,
    socket: Socket,
    signals: EndRequests,
    front_end: Option<Connection>,
    /// Set when the process is to end.
    end: Option<Result<(), BackendError>>,
}

impl Server {
    /// One front-end at a time: the next waits in the listener's backlog.
    fn accept(&mut self, ops: &mut EventOps) -> Result<(), BackendError> {
        let connection = self.socket.accept()?;
        ops.remove(Events::empty(&self.socket.listener))?;
        ops.add(Events::with_data(&connection, FRONT_END, EventSet::IN))?;
        self.front_end = Some(connection);
        tracing::info!("front-end connected");
        Ok(())
    }

    fn serve_message(&mut self, ops: &mut EventOps) -> Result<(), BackendError> {
        let Some(connection) = &self.front_end else {
            return Ok(());
        };
        match self.device.serve_message(connection) {
            Ok(true) => return Ok(()),
            Ok(false) => tracing::info!("front-end left"),
            Err(error) => tracing::warn!("front-end disconnected: {error}"),
        }
        self.device.reset()?;
        self.device.log_counters()?;
        ops.remove(Events::empty(connection))?;
        self.front_end = None;
        ops.add(Events::with_data(
            &self.socket.listener,
            LISTENER,
            EventSet::IN,
        ))?;
        Ok(())
    }
}

impl MutEventSubscriber for Server {
    fn init(&mut self, ops: &mut EventOps) {
        let watched = [
            Events::with_data(&self.socket.listener, LISTENER, EventSet::IN),
            Events::with_data(&self.signals, SIGNALS, EventSet::IN),
        ];
        for events in watched {
            if let Err(error) = ops.add(events) {
                self.end = Some(Err(error.into()));
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let done = match events.data() {
            LISTENER => self.accept(ops),
            FRONT_END => self.serve_message(ops),
            _ => {
                self.end = Some(self.device.log_counters().map_err(BackendError::from));
                return;
            }
        };
        if let Err(error) = done {
            self.end = Some(Err(error));
        }
    }
}

/// A listening socket whose file goes away with it.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Listens on `path`. A socket that a dead process left there is replaced.
    fn listen(path: &Path) -> Result<Self, BackendError> {
        let failed = |step, cause| BackendError::Socket {
            path: path.to_owned(),
            step,
            cause,
        };
        match UnixStream::connect(path) {
            Ok(_) => return Err(BackendError::SocketInUse(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(|cause| failed("remove a dead one", cause))?;
            }
            Err(_) => {} // nothing there, or something that bind() will name
        }
        let listener = UnixListener::bind(path).map_err(|cause| failed("listen", cause))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    fn accept(&self) -> io::Result<Connection> {
        let (stream, _) = self.listener.accept()?;
        Connection::new(stream)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Best effort: a dead socket is replaced at the next start anyway.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn notify_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!("the service manager could not be told: {error}");
    }
}
