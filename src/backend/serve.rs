//! The process around a device: where it meets its front-ends, its signals, one front-end at a time.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::args::{BackendArgs, BackendCommand, Endpoint, HostLink, Sandbox};
use super::capabilities::capabilities;
use super::guard::{Guard, LeaseFile};
use super::memory;
use super::message::Connection;
use super::queue_pair::QueuePair;
use super::rate::{Limiter, Pacer};
use super::sandbox::{self, Needs, SandboxError};
use super::session::{Device, Limits, SessionError};
use super::socket::{Socket, SocketError};
use super::stats::{StatsAddr, StatsError, StatsServer, render};
use super::worker::{Worker, WorkerError};
use crate::report::causes;
use crate::signals::EndRequests;
use crate::tap::{self, Tap, TapError, TapQueue};
use crate::types::RateLimit;

const DOOR: u32 = 0;
const FRONT_END: u32 = 1;
const SIGNALS: u32 = 2;
const STATS: u32 = 3;
const LOST: u32 = 4;
const STATS_PAUSE: u32 = 5;

/// How long a client waits before it looks again for a front-end that listens.
const RETRY: Duration = Duration::from_millis(100);

/// How long no scraper is accepted after one could not be.
const STATS_RETRY: Duration = Duration::from_secs(1);

/// Why a backend can't serve, or can't go on.
#[derive(Debug, Error)]
pub enum BackendError {
    /// No tap, no backend.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The socket can't be listened on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A descriptor that should have been inherited was not.
    #[error("descriptor {fd} was not inherited: whoever starts this process must pass it on open")]
    NotInherited {
        /// Its number.
        fd: RawFd,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// The descriptor of `--fd` is no connection.
    #[error("descriptor {fd} of --fd is not a connected unix stream socket")]
    NotConnected {
        /// Its number.
        fd: RawFd,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// There is nothing left to serve.
    #[error("{0} was deleted; start this backend again once it has been made again")]
    Lost(String),
    /// The one front-end of an inherited connection can't be served.
    #[error("the front-end was disconnected")]
    Session(#[from] SessionError),
    /// The guard's file can't be had.
    #[error("--guard-leases {path}")]
    Leases {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// What serving does not take can't be given up.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Counters can't be served.
    #[error(transparent)]
    Stats(#[from] StatsError),
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

/// Does what `ringtap backend` was asked to.
///
/// # Errors
/// See [`BackendError`].
pub fn run(command: &BackendCommand) -> Result<(), BackendError> {
    match command {
        BackendCommand::PrintCapabilities => Ok(writeln!(io::stdout(), "{}", capabilities())?),
        BackendCommand::Serve(args) => serve(args),
    }
}

/// Serves one device until SIGTERM, SIGINT or SIGHUP, one front-end after another; on an inherited connection until its
/// front-end leaves.
///
/// Says `READY=1` to a service manager (`NOTIFY_SOCKET`, sd_notify(3)) once front-ends can connect, or, as a client, once
/// it looks for one. By then it has given up what serving does not take ([`sandbox`]): this is for a process that does nothing
/// else.
///
/// # Errors
/// See [`BackendError`]. The socket is removed in any case, unless as another user the process may not.
pub fn serve(args: &BackendArgs) -> Result<(), BackendError> {
    if let Sandbox::On(_) = args.sandbox {
        sandbox::limit(args.queue_pairs)?;
    }
    let inherited = Inherited::take(args)?; // before anything else gets a descriptor's number
    let signals = EndRequests::catch()?;
    memory::report_loss()?;
    let (tap, queues) = match &args.link {
        HostLink::Tap(name) => Tap::open(name, args.queue_pairs)?,
        HostLink::Macvtap(name) => Tap::open_macvtap(name, args.queue_pairs)?,
        HostLink::TapFds(_) => Tap::from_fds(inherited.queues)?,
    };
    let name = tap.name().to_string();
    let limits = Limits {
        queue_size: args.queue_size,
        mtu: args.mtu,
        extras: args.offer.clone(),
    };
    let pairs = queue_pairs(queues, args)?;
    let stats = args.stats.as_ref().map(StatsServer::listen).transpose()?;
    let door = Door::open(&args.endpoint)?;
    let front_end = inherited.front_end.map(Connection::new).transpose()?;
    let manager = ServiceManager::connect();
    if let Sandbox::On(_) = args.sandbox {
        let needs = needs(args);
        sandbox::leave_the_host(&needs)?;
        sandbox::only_serve(&needs)?;
    }

    let poll = Duration::from_micros(args.poll_us.into());
    let lost = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    let workers = start_workers(pairs, poll, &lost)?;
    let mut device = Device::new(Box::new(tap), workers, limits);
    if matches!(&door, Door::Listener(socket) if socket.replaces_dead_one()) {
        device.succeed_a_dead_one();
    }
    manager.notify_ready();
    tracing::info!("serving {} on {}", args.link, args.endpoint);

    let mut manager = EventManager::new()?;
    let id = manager.add_subscriber(Server {
        device,
        name,
        door,
        signals,
        stats,
        stats_pause: TimerFd::new().map_err(io::Error::from)?,
        lost,
        front_end,
        end: None,
    });
    loop {
        if let Some(end) = manager.subscriber_mut(id)?.end.take() {
            return end;
        }
        manager.run()?;
    }
}

/// A pair a queue of the tap; all share the limits and the guard.
fn queue_pairs(queues: Vec<TapQueue>, args: &BackendArgs) -> Result<Vec<QueuePair>, BackendError> {
    let limiter = |limit: Option<RateLimit>| limit.map(Limiter::new).map(Arc::new);
    let (rx, tx) = (limiter(args.rx_rate), limiter(args.tx_rate));
    let pacer = |limiter: &Option<Arc<Limiter>>| limiter.clone().map(Pacer::new).transpose();
    let guard = guard(args)?;
    let mut pairs = Vec::with_capacity(queues.len());
    for mut queue in queues {
        queue.set_attached(false)?; // until a front-end enables the pair
        let mut pair = QueuePair::new(queue)?;
        pair.rx_pacer = pacer(&rx)?;
        pair.tx_pacer = pacer(&tx)?;
        if let Some(guard) = &guard {
            pair.set_guard(guard.clone())?;
        }
        pairs.push(pair);
    }
    Ok(pairs)
}

fn guard(args: &BackendArgs) -> Result<Option<Guard>, BackendError> {
    let open = |path: &PathBuf| {
        LeaseFile::open(path).map_err(|cause| BackendError::Leases {
            path: path.clone(),
            cause,
        })
    };
    let leases = args.guard_leases.as_ref().map(open).transpose()?;
    Ok(args.guard.clone().map(|policy| Guard::new(policy, leases)))
}

fn start_workers(
    pairs: Vec<QueuePair>,
    poll: Duration,
    lost: &Arc<EventFd>,
) -> Result<Vec<Worker>, WorkerError> {
    let start = |(index, pair)| {
        let name = format!("pair{index}");
        Worker::spawn(name, pair, poll, Arc::clone(lost))
    };
    pairs.into_iter().enumerate().map(start).collect()
}

/// What is needed of the host from there on.
fn needs(args: &BackendArgs) -> Needs {
    let door = match &args.endpoint {
        Endpoint::Listen(socket) => Some(socket.clone()),
        Endpoint::Connect(_) | Endpoint::Inherited(_) => None,
    };
    let stats = match &args.stats {
        Some(StatsAddr::Unix(socket)) => Some(socket.clone()),
        Some(StatsAddr::Loopback(_)) | None => None,
    };
    Needs {
        user: args.sandbox.user(),
        sockets: door.into_iter().chain(stats).collect(),
        dials: matches!(args.endpoint, Endpoint::Connect(_)),
    }
}

/// What the process that started this one passed on.
struct Inherited {
    front_end: Option<UnixStream>,
    queues: Vec<OwnedFd>,
}

impl Inherited {
    fn take(args: &BackendArgs) -> Result<Self, BackendError> {
        let inherit =
            |fd| tap::inherit(fd).map_err(|cause| BackendError::NotInherited { fd, cause });
        let front_end = match args.endpoint {
            Endpoint::Inherited(fd) => Some(connection(fd, inherit(fd)?)?),
            Endpoint::Listen(_) | Endpoint::Connect(_) => None,
        };
        let fds = match &args.link {
            HostLink::TapFds(fds) => &fds[..],
            HostLink::Tap(_) | HostLink::Macvtap(_) => &[],
        };
        let queues = fds.iter().copied().map(inherit).collect::<Result<_, _>>()?;
        Ok(Self { front_end, queues })
    }
}

/// `socket`, inherited as `fd`, if it is what a front-end speaks through.
fn connection(fd: RawFd, socket: OwnedFd) -> Result<UnixStream, BackendError> {
    let not_connected = |cause| BackendError::NotConnected { fd, cause };
    let kind =
        rustix::net::sockopt::socket_type(&socket).map_err(|errno| not_connected(errno.into()))?;
    let stream = UnixStream::from(socket);
    stream.peer_addr().map_err(not_connected)?; // fails too where it is of another family
    if kind == SocketType::STREAM {
        Ok(stream)
    } else {
        Err(not_connected(io::ErrorKind::InvalidInput.into()))
    }
}

/// Where front-ends come from.
enum Door {
    Listener(Socket),
    Dialer(Dialer),
    /// There is one front-end, from the start.
    Shut,
}

impl Door {
    fn open(endpoint: &Endpoint) -> Result<Self, BackendError> {
        Ok(match endpoint {
            Endpoint::Listen(path) => Self::Listener(Socket::listen(path)?),
            Endpoint::Connect(path) => Self::Dialer(Dialer::new(path)?),
            Endpoint::Inherited(_) => Self::Shut,
        })
    }

    /// Begins to wait for the next front-end.
    fn watch(&self, ops: &mut EventOps) -> Result<(), BackendError> {
        let events = match self {
            Self::Listener(socket) => Events::with_data(socket, DOOR, EventSet::IN),
            Self::Dialer(dialer) => Events::with_data(&dialer.timer, DOOR, EventSet::IN),
            Self::Shut => return Ok(()),
        };
        Ok(ops.add(events)?)
    }

    fn unwatch(&self, ops: &mut EventOps) -> Result<(), BackendError> {
        let events = match self {
            Self::Listener(socket) => Events::empty(socket),
            Self::Dialer(dialer) => Events::empty(&dialer.timer),
            Self::Shut => return Ok(()),
        };
        Ok(ops.remove(events)?)
    }

    /// The front-end that is there, if any.
    fn next(&mut self) -> io::Result<Option<UnixStream>> {
        match self {
            Self::Listener(socket) => match socket.accept() {
                Ok(stream) => Ok(Some(stream)),
                Err(error) => match error.kind() {
                    // Whoever was there has left again.
                    io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted => Ok(None),
                    _ => Err(error),
                },
            },
            Self::Dialer(dialer) => dialer.dial(),
            Self::Shut => Ok(None),
        }
    }

    /// After a front-end has gone.
    fn reopen(&mut self) -> io::Result<()> {
        match self {
            Self::Dialer(dialer) => dialer.redial(),
            Self::Listener(_) | Self::Shut => Ok(()),
        }
    }
}

/// Connects to a front-end that listens, when its timer says so.
struct Dialer {
    path: PathBuf,
    timer: TimerFd,
    /// It was said that nobody listens, and need not be said again.
    complained: bool,
}

impl Dialer {
    /// Dials at once.
    fn new(path: &Path) -> io::Result<Self> {
        let mut timer = TimerFd::new()?;
        timer.reset(Duration::from_nanos(1), None)?;
        Ok(Self {
            path: path.to_owned(),
            timer,
            complained: false,
        })
    }

    /// Sets the timer for the next attempt.
    fn redial(&mut self) -> io::Result<()> {
        Ok(self.timer.reset(RETRY, None)?)
    }

    /// Connects; `None` where nobody listens, and then the timer runs.
    fn dial(&mut self) -> io::Result<Option<UnixStream>> {
        match connect(&self.path) {
            Ok(stream) => {
                self.complained = false;
                self.timer.clear()?;
                Ok(Some(stream))
            }
            Err(error) => {
                if !std::mem::replace(&mut self.complained, true) {
                    let path = self.path.display();
                    tracing::info!("no front-end on {path} yet, trying on: {error}");
                }
                self.redial()?;
                Ok(None)
            }
        }
    }
}

/// Connects to `path` without ever waiting, not even for a listener whose backlog is full.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// The main loop's subscriber.
struct Server {
    device: Device,
    /// The link that frames go through, for the counters' label.
    name: String,
    door: Door,
    signals: EndRequests,
    stats: Option<StatsServer>,
    /// When scrapers are accepted again.
    stats_pause: TimerFd,
    /// Readable once the tap has been deleted.
    lost: Arc<EventFd>,
    front_end: Option<Connection>,
    /// Set when the process is to end.
    end: Option<Result<(), BackendError>>,
}

impl Server {
    fn watch_all(&mut self, ops: &mut EventOps) -> Result<(), BackendError> {
        ops.add(Events::with_data(&self.signals, SIGNALS, EventSet::IN))?;
        ops.add(Events::with_data(&*self.lost, LOST, EventSet::IN))?;
        if let Some(stats) = &self.stats {
            ops.add(Events::with_data(stats, STATS, EventSet::IN))?;
        }
        let pause = Events::with_data(&self.stats_pause, STATS_PAUSE, EventSet::IN);
        ops.add(pause)?;
        match &self.front_end {
            Some(connection) => {
                Ok(ops.add(Events::with_data(connection, FRONT_END, EventSet::IN))?)
            }
            None => self.door.watch(ops),
        }
    }

    /// One front-end at a time: the next waits in the listener's backlog.
    fn meet(&mut self, ops: &mut EventOps) -> Result<(), BackendError> {
        let Some(stream) = self.door.next()? else {
            return Ok(());
        };
        let connection = Connection::new(stream)?;
        self.door.unwatch(ops)?;
        ops.add(Events::with_data(&connection, FRONT_END, EventSet::IN))?;
        self.front_end = Some(connection);
        tracing::info!("front-end connected");
        Ok(())
    }

    fn serve_message(&mut self, ops: &mut EventOps) -> Result<(), BackendError> {
        let Some(connection) = &self.front_end else {
            return Ok(());
        };
        let left = match self.device.serve_message(connection) {
            Ok(true) => return Ok(()),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        match &left {
            Ok(()) => tracing::info!("front-end left"),
            Err(error) => tracing::warn!("front-end disconnected: {error}"),
        }
        self.device.reset()?;
        self.device.log_counters()?;
        ops.remove(Events::empty(connection))?;
        self.front_end = None;
        if matches!(self.door, Door::Shut) {
            self.end = Some(left.map_err(BackendError::from));
            return Ok(());
        }
        self.door.reopen()?;
        self.door.watch(ops)
    }

    fn serve_stats(&mut self, ops: &mut EventOps) -> Result<(), BackendError> {
        let Some(stats) = &self.stats else {
            return Ok(());
        };
        match stats.serve(|| Ok(render(&self.name, &self.device.report()?))) {
            // It stays there, and would have the loop try for ever; that is no reason to leave the guest alone.
            Err(BackendError::Stats(error @ StatsError::Accept(_))) => {
                tracing::warn!("{}", causes(&error));
                ops.remove(Events::empty(stats))?;
                Ok(self
                    .stats_pause
                    .reset(STATS_RETRY, None)
                    .map_err(io::Error::from)?)
            }
            served => served,
        }
    }

    fn serve_stats_again(&mut self, ops: &mut EventOps) -> Result<(), BackendError> {
        self.stats_pause.wait().map_err(io::Error::from)?;
        match &self.stats {
            Some(stats) => Ok(ops.add(Events::with_data(stats, STATS, EventSet::IN))?),
            None => Ok(()),
        }
    }
}

impl MutEventSubscriber for Server {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = self.watch_all(ops) {
            self.end = Some(Err(error));
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let done = match events.data() {
            DOOR => self.meet(ops),
            FRONT_END => self.serve_message(ops),
            STATS => self.serve_stats(ops),
            STATS_PAUSE => self.serve_stats_again(ops),
            LOST => Err(BackendError::Lost(self.name.clone())),
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

/// Who waits to hear that this process is ready (`NOTIFY_SOCKET`, sd_notify(3)): connected to while that is still possible.
struct ServiceManager(Option<UnixDatagram>);

impl ServiceManager {
    fn connect() -> Self {
        let connect = |socket: OsString| {
            let address = match socket.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
                path => SocketAddr::from_pathname(OsStr::from_bytes(path)),
            };
            let connection = UnixDatagram::unbound()?;
            connection.connect_addr(&address?)?;
            Ok(connection)
        };
        let connected: Option<io::Result<_>> = std::env::var_os("NOTIFY_SOCKET").map(connect);
        Self(connected.and_then(|connected| connected.inspect_err(not_told).ok()))
    }

    fn notify_ready(self) {
        if let Some(socket) = self.0
            && let Err(error) = socket.send(b"READY=1")
        {
            not_told(&error);
        }
    }
}

fn not_told(error: &io::Error) {
    tracing::warn!("the service manager could not be told: {error}");
}
