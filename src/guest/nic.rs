//! A guest's NIC on the host: its tap on the network's bridge, and the backend process that serves it.
//!
//! What a NIC is made of is written down ([`NicRecord`]) before it is made: whoever takes over from a supervisor that died
//! takes over its backends, or deletes what is left of them.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use command_fds::CommandFdExt;
use rustix::fs::Mode as FileMode;
use rustix::process::umask;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::process::{Process, background, last_line};
use super::qemu::Wiring;
use super::readiness::Readiness;
use super::{claims, user};
use crate::backend::guard::Policy;
use crate::backend::{BackendArgs, Endpoint, HostLink, Sandbox, StatsAddr};
use crate::config::{Mode, Network, Nic};
use crate::network::Addresses;
use crate::network::ipvtap::{Ipvtap, IpvtapError, IpvtapWish};
use crate::network::port::{self, Attached, Found, Port, PortError, beside};
use crate::programs;
use crate::report::causes;
use crate::types::{IfName, MacAddr, Mtu, Name, QueuePairs};

/// How long a backend may take until front-ends can connect.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// What Ethernet has, in bytes.
const USUAL_MTU: u32 = 1500;

/// Why a NIC can't be had.
#[derive(Debug, Error)]
pub enum NicError {
    /// Its link can't be made, or not plugged in.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Its link was deleted, and what it was plugged into as well.
    #[error("{0}")]
    Lost(String),
    /// The namespace of the network's tenant can't be entered.
    #[error("the network namespace of the tenant can't be entered (which needs CAP_SYS_ADMIN)")]
    Namespace(#[source] io::Error),
    /// Its MTU is more than that of the network it is on.
    #[error("mtu = {wanted}, but its network carries {link} bytes: write {link} or less")]
    Mtu {
        /// What the file says.
        wanted: Mtu,
        /// What the link has.
        link: u32,
    },
    /// Its ipvtap can't be made.
    #[error(transparent)]
    Ipvtap(#[from] IpvtapError),
    /// Its backend can't be started.
    #[error("the backend can't be started")]
    Spawn(#[source] io::Error),
    /// Its backend ended at once, or does not get ready.
    #[error("the backend of {tap} did not get ready: {said}")]
    NotReady {
        /// The tap.
        tap: IfName,
        /// The last line of the backend's log.
        said: String,
    },
    /// Files and sockets of the run directory.
    #[error("{path}")]
    RunDir {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
}

/// Where the backend of NIC number `index` listens, in a guest's directory.
pub fn socket(dir: &Path, index: usize) -> PathBuf {
    dir.join(format!("nic{index}.sock"))
}

/// Where it serves its counters.
pub fn stats_socket(dir: &Path, index: usize) -> PathBuf {
    dir.join(format!("nic{index}.stats"))
}

/// Where its guard keeps what the guest was given on `network`, as long as the guest runs: a NIC that comes back there has what
/// it had.
fn leases(dir: &Path, index: usize, network: &Name) -> PathBuf {
    dir.join(format!("nic{index}.{network}.leases"))
}

/// The sockets of a backend, whose files it can't remove itself; they go with this value.
#[derive(Debug)]
struct Sockets([PathBuf; 2]);

impl Sockets {
    fn of(index: usize, dir: &Path) -> Self {
        Self([socket(dir, index), stats_socket(dir, index)])
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path); // it never was there, or goes with its directory
        }
    }
}

/// What a NIC is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicRecord {
    /// The network that it is plugged into.
    pub network: Name,
    /// Pairs of queues.
    pub queue_pairs: QueuePairs,
    /// The guest's MAC address on it.
    pub mac: MacAddr,
    /// Those addresses of the guest's that nobody leases; records of older versions have none.
    #[serde(default)]
    static_addresses: Vec<IpAddr>,
    /// The words after the program's name that make ringtap its backend; none while it is being made.
    backend: Vec<String>,
    /// What plugs it in.
    plug: Plug,
    /// How QEMU sees it; none while it is being made.
    wiring: Option<Wiring>,
}

/// What a NIC is plugged into its network by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Plug {
    /// A tap or macvtap.
    Port(Port),
    /// An ipvtap, in a namespace of its own.
    Ipvtap(IpvtapWish),
}

impl Plug {
    /// What plugs `nic` into `network` by the name of `link`, for the ringtap with this run directory.
    fn new(link: IfName, nic: &Nic, network: &Network, run_dir: &Path) -> Self {
        match &network.mode {
            Mode::Ipvtap { uplink, .. } => Self::Ipvtap(IpvtapWish {
                name: link,
                uplink: uplink.link(),
                addresses: nic.told().collect(),
                pairs: nic.queue_pairs,
                mtu: network.mtu,
            }),
            _ => Self::Port(Port::new(&link, nic, network, run_dir)),
        }
    }

    fn link(&self) -> &IfName {
        match self {
            Self::Port(port) => &port.link,
            Self::Ipvtap(wish) => &wish.name,
        }
    }

    /// The tenant in whose namespace it is, if it is one's.
    fn tenant(&self) -> Option<&Name> {
        match self {
            Self::Port(port) => port.tenant.as_ref(),
            Self::Ipvtap(_) => None,
        }
    }

    /// What the backend opens it by.
    fn host_link(&self) -> HostLink {
        match self {
            Self::Port(port) if port.is_macvtap() => HostLink::Macvtap(port.link.clone()),
            Self::Port(port) => HostLink::Tap(port.link.clone()),
            Self::Ipvtap(wish) => HostLink::TapFds(wish.queues().collect()),
        }
    }
}

/// Deletes a link that outlives those who use it; that it is absent is fine.
fn delete(port: &Port) {
    if let Err(error) = port.delete() {
        tracing::warn!("{} stays: {}", port.link, causes(&error));
    }
}

impl NicRecord {
    /// That of `nic`, with its link on the host, on `network`, for the ringtap with this run directory.
    pub fn new(link: IfName, nic: &Nic, network: &Network, run_dir: &Path) -> Self {
        Self {
            network: network.name.clone(),
            queue_pairs: nic.queue_pairs,
            mac: nic.mac,
            static_addresses: network.static_addresses(nic),
            backend: Vec::new(),
            plug: Plug::new(link, nic, network, run_dir),
            wiring: None,
        }
    }

    /// How the backend of `nic` is started, number `index` of the guest with this directory, which may claim what `guard` says.
    fn backend_args(
        &self,
        nic: &Nic,
        guard: Option<Policy>,
        index: usize,
        dir: &Path,
    ) -> BackendArgs {
        BackendArgs {
            queue_pairs: nic.queue_pairs,
            rx_rate: nic.rates.rx,
            tx_rate: nic.rates.tx,
            stats: Some(StatsAddr::Unix(stats_socket(dir, index))),
            guard_leases: guard.as_ref().map(|_| leases(dir, index, &self.network)),
            guard,
            sandbox: Sandbox::On(Some(user::of_backend(self.link()))),
            ..BackendArgs::new(Endpoint::Listen(socket(dir, index)), self.plug.host_link())
        }
    }

    /// The tenant in whose namespace its link is, if it is one's.
    pub fn tenant(&self) -> Option<&Name> {
        self.plug.tenant()
    }

    /// The guest's addresses on it: its static ones, and what the host knows besides.
    pub fn addresses(&self, known: &Addresses) -> BTreeSet<IpAddr> {
        let known = known.of(&self.network, self.mac);
        known.chain(self.static_addresses.iter().copied()).collect()
    }

    /// Its link on the host.
    pub fn link(&self) -> &IfName {
        self.plug.link()
    }

    /// What there is to say of its link, as far as that can be seen from outside: an ipvtap is where nobody can look.
    pub fn complaint(&self) -> Option<String> {
        let Plug::Port(port) = &self.plug else {
            return None;
        };
        match port.look() {
            Ok(found) => port.complaint(found),
            Err(error) => Some(causes(&error)),
        }
    }

    /// Ends and deletes what is there of it.
    pub fn clean(&self, index: usize, dir: &Path) {
        drop(self.running_backend(index, dir).map(Process::from));
        drop(Sockets::of(index, dir));
        if let Plug::Port(port) = &self.plug {
            delete(port); // an ipvtap has gone with its namespace, which the backend was the last to hold
        }
    }

    /// The backend that a supervisor has left, if it runs.
    fn running_backend(&self, index: usize, dir: &Path) -> Option<programs::Process> {
        let socket = socket(dir, index);
        programs::Process::with_arguments(&["--socket-path", socket.to_str()?])
    }
}

/// A NIC with its backend at work. Everything of it goes away with this value: the process first, then its sockets and the tap.
#[derive(Debug)]
pub struct HostNic {
    index: usize,
    record: NicRecord,
    backend: Process,
    _sockets: Sockets,
    log: PathBuf,
    link: Link,
}

/// A link that goes with this value.
#[derive(Debug)]
enum Link {
    Port(Port),
    Ipvtap(Ipvtap),
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Self::Port(port) = self {
            delete(port);
        }
    }
}

impl HostNic {
    /// Makes what `record` says of `nic` on `network`, number `index` of the guest with this directory, and starts its backend.
    /// Returns when front-ends can connect.
    ///
    /// # Errors
    /// See [`NicError`]; nothing is left behind then.
    pub fn start(
        record: NicRecord,
        index: usize,
        nic: &Nic,
        network: &Network,
        dir: &Path,
    ) -> Result<Self, NicError> {
        let tenant = record.plug.tenant().cloned();
        let start = || Self::start_here(record, index, nic, network, dir);
        beside(tenant.as_ref(), start).map_err(NicError::Namespace)?
    }

    /// As [`HostNic::start`], where the network's bridge is.
    fn start_here(
        mut record: NicRecord,
        index: usize,
        nic: &Nic,
        network: &Network,
        dir: &Path,
    ) -> Result<Self, NicError> {
        let (link, attached) = make(&record.plug)?;
        if let Some(wanted) = nic.mtu.filter(|mtu| u32::from(*mtu) > attached.mtu) {
            return Err(NicError::Mtu {
                wanted,
                link: attached.mtu,
            });
        }
        if let Link::Ipvtap(ipvtap) = &link {
            record.mac = ipvtap.mac();
        }
        let host = port::host_addresses(network)?;
        let guard = claims::policy(nic, network, record.mac, &host);
        let words = record.backend_args(nic, guard, index, dir).to_argv();
        let words = words.iter().map(|word| word.to_string_lossy());
        record.backend = words.map(Cow::into_owned).collect();
        let log = dir.join(format!("nic{index}.log"));
        let backend = start_and_wait(&record, &link, &log)?;
        record.wiring = Some(Wiring {
            socket: socket(dir, index),
            mac: record.mac,
            queue_pairs: record.queue_pairs,
            mtu: nic.mtu.or_else(|| host_mtu(network, attached.mtu)),
            checksums: attached.checksums,
        });
        Ok(Self {
            index,
            record,
            backend,
            _sockets: Sockets::of(index, dir),
            log,
            link,
        })
    }

    /// Takes over what another has made by `record`; none where that had not come so far.
    ///
    /// # Errors
    /// Its backend is gone, and can't be started anew.
    pub fn adopt(record: NicRecord, index: usize, dir: &Path) -> Result<Option<Self>, NicError> {
        if record.wiring.is_none() {
            record.clean(index, dir);
            return Ok(None);
        }
        let mut running = record.running_backend(index, dir);
        let link = match &record.plug {
            Plug::Ipvtap(wish) => {
                let there = running.as_ref();
                let there = there.map(|backend| Ipvtap::adopt(wish, backend.pidfd.as_fd()));
                Link::Ipvtap(match there {
                    Some(Ok(ipvtap)) => ipvtap,
                    // It was deleted under its backend, which holds what is left of it.
                    Some(Err(_)) => {
                        drop(running.take().map(Process::from));
                        Ipvtap::make_when_free(wish)?
                    }
                    None => Ipvtap::make_when_free(wish)?,
                })
            }
            Plug::Port(port) => Link::Port(port.clone()),
        };
        let log = dir.join(format!("nic{index}.log"));
        let backend = match running {
            Some(backend) => backend.into(),
            // Whatever its link is like: the supervisor looks at that, and starts another where it has to.
            None => link.serve(&record, &log)?,
        };
        Ok(Some(Self {
            index,
            record,
            backend,
            _sockets: Sockets::of(index, dir),
            log,
            link,
        }))
    }

    /// Its number, counted from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// What it is made of.
    pub fn record(&self) -> &NicRecord {
        &self.record
    }

    /// What QEMU needs to know.
    pub fn wiring(&self) -> Option<&Wiring> {
        self.record.wiring.as_ref()
    }

    /// The same to the guest as one with this wiring: the device stays as it was made.
    pub fn told_as(mut self, wiring: Option<Wiring>) -> Self {
        self.record.wiring = wiring.or(self.record.wiring);
        self
    }

    /// The process that serves it.
    pub fn backend(&mut self) -> &mut Process {
        &mut self.backend
    }

    /// Its pid, while it is not known to have ended.
    pub fn backend_pid(&self) -> Option<u32> {
        self.runs().then(|| self.backend.pid())
    }

    /// Whether that is not known to have ended.
    pub fn runs(&self) -> bool {
        self.backend.runs()
    }

    /// The tap, for messages.
    pub fn tap(&self) -> &IfName {
        self.record.link()
    }

    /// What the backend said last.
    pub fn last_words(&self) -> String {
        last_line(&self.log)
    }

    /// Starts the backend anew after it has ended. The link has stayed where it was, or is made again if it was deleted, and QEMU
    /// connects again by itself.
    ///
    /// # Errors
    /// Where the link can't be made, or the process can't be started.
    pub fn restart(&mut self) -> Result<(), NicError> {
        self.backend = self.link.served(&self.record, &self.log)?;
        Ok(())
    }

    /// What has become of its link.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn look(&self) -> Result<Found, NicError> {
        self.link.look()
    }

    /// What to tell a person of that.
    pub fn complaint(&self, found: Found) -> Option<String> {
        self.link.complaint(found)
    }

    /// Plugs the link in again, which is plugged into nothing.
    ///
    /// # Errors
    /// See [`NicError`].
    pub fn plug_in(&self) -> Result<(), NicError> {
        self.link.plug_in()
    }
}

impl Link {
    fn look(&self) -> Result<Found, NicError> {
        match self {
            Self::Port(port) => Ok(port.look()?),
            Self::Ipvtap(ipvtap) => Ok(ipvtap.look()?),
        }
    }

    fn complaint(&self, found: Found) -> Option<String> {
        match self {
            Self::Port(port) => port.complaint(found),
            Self::Ipvtap(ipvtap) => ipvtap.complaint(found),
        }
    }

    /// Starts what serves it, and makes it again before if it was deleted: without it a backend would make a tap that is a port of
    /// nothing.
    fn served(&mut self, record: &NicRecord, log: &Path) -> Result<Process, NicError> {
        match self.look()? {
            Found::Deleted { trunk: true } => self.make_again()?,
            found @ Found::Deleted { trunk: false } => {
                let complaint = self.complaint(found);
                return Err(NicError::Lost(complaint.unwrap_or_default()));
            }
            _ => {}
        }
        self.serve(record, log)
    }

    /// As [`Link::served`], whatever has become of it.
    fn serve(&self, record: &NicRecord, log: &Path) -> Result<Process, NicError> {
        let spawn = || spawn(record, self, log, None);
        beside(record.plug.tenant(), spawn).map_err(NicError::Namespace)?
    }

    /// Makes it again, whole or not at all.
    fn make_again(&mut self) -> Result<(), NicError> {
        match self {
            Self::Port(port) => {
                let made = beside(port.tenant.as_ref(), || port.make());
                let made = made.map_err(NicError::Namespace)?;
                made.inspect_err(|_| delete(port))?;
                Ok(())
            }
            Self::Ipvtap(ipvtap) => Ok(ipvtap.make_again()?),
        }
    }

    /// Plugs it in again; an ipvtap is never out.
    fn plug_in(&self) -> Result<(), NicError> {
        if let Self::Port(port) = self {
            let attached = beside(port.tenant.as_ref(), || port.attach());
            attached.map_err(NicError::Namespace)??;
        }
        Ok(())
    }
}

impl AsFd for HostNic {
    /// Readable once its backend has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.backend.as_fd()
    }
}

/// Makes a link, plugged in.
fn make(plug: &Plug) -> Result<(Link, Attached), NicError> {
    match plug {
        Plug::Ipvtap(wish) => {
            let ipvtap = Ipvtap::make(wish)?;
            let attached = Attached {
                mtu: ipvtap.mtu(),
                checksums: true,
            };
            Ok((Link::Ipvtap(ipvtap), attached))
        }
        Plug::Port(port) => {
            let made = Link::Port(port.clone());
            let attached = port.make()?;
            Ok((made, attached))
        }
    }
}

/// What the guest is told of the MTU that its link has: nothing where that is what it takes for granted.
fn host_mtu(network: &Network, found: u32) -> Option<Mtu> {
    let told = network.mtu.is_some() || found < USUAL_MTU;
    Mtu::try_from(found).ok().filter(|_| told)
}

/// Starts a backend and waits for its word that it is ready (sd_notify(3)).
fn start_and_wait(record: &NicRecord, link: &Link, log: &Path) -> Result<Process, NicError> {
    let path = log.with_extension("ready");
    let run_dir = |cause| NicError::RunDir {
        path: path.clone(),
        cause,
    };
    let readiness = Readiness::bind(&path).map_err(run_dir)?;
    let mut backend = spawn(record, link, log, Some(&path))?;
    if !readiness.of(&mut backend, READY_LIMIT).map_err(run_dir)? {
        return Err(NicError::NotReady {
            tap: record.link().clone(),
            said: last_line(log),
        });
    }
    Ok(backend)
}

fn spawn(
    record: &NicRecord,
    link: &Link,
    log: &Path,
    ready: Option<&Path>,
) -> Result<Process, NicError> {
    let run_dir = |cause| NicError::RunDir {
        path: log.to_owned(),
        cause,
    };
    // The program that runs, even if its file has been replaced meanwhile.
    let mut command = background(Path::new("/proc/self/exe"), log).map_err(run_dir)?;
    command.args(&record.backend);
    crate::log::is_kept_by(&mut command);
    match ready {
        Some(path) => command.env("NOTIFY_SOCKET", path),
        None => command.env_remove("NOTIFY_SOCKET"),
    };
    if let Link::Ipvtap(ipvtap) = link {
        let handed = ipvtap.handed_over().map_err(NicError::Spawn)?;
        command
            .fd_mappings(handed)
            .map_err(|error| NicError::Spawn(io::Error::other(error)))?;
    }
    // Its sockets are its group's as well, by the directory: QEMU's.
    let usual = umask(FileMode::RWXO);
    let spawned = Process::spawn(&mut command);
    umask(usual);
    spawned.map_err(NicError::Spawn)
}
