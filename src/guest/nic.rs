//! A guest's NIC on the host: its tap on the network's bridge, and the backend process that serves it.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::process::{Process, background, last_line};
use super::qemu::Wiring;
use crate::backend::{BackendArgs, Endpoint, HostLink, StatsAddr};
use crate::config::{Guest, Mode, Network};
use crate::network::ipvtap::{Ipvtap, IpvtapError};
use crate::network::port::{self, Attached, PortError, beside};
use crate::tap::{Tap, TapError};
use crate::types::{IfName, MacAddr, Mtu, Name};

/// How long a backend may take until front-ends can connect.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// What Ethernet has, in bytes.
const USUAL_MTU: u32 = 1500;

/// Why a NIC can't be had.
#[derive(Debug, Error)]
pub enum NicError {
    /// Its tap can't be made.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// Its tap can't be plugged into the bridge.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The namespace of the network's tenant can't be entered.
    #[error("the network namespace of the tenant can't be entered (which needs CAP_SYS_ADMIN)")]
    Namespace(#[source] io::Error),
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

/// Where the backend of NIC number `index` serves its counters, in a guest's directory.
pub fn stats_socket(dir: &Path, index: usize) -> PathBuf {
    dir.join(format!("nic{index}.stats"))
}

/// A link that is deleted when this value is dropped.
#[derive(Debug)]
struct Link(port::Port);

impl Drop for Link {
    fn drop(&mut self) {
        if let Err(error) = self.0.delete() {
            tracing::warn!("tap {} stays: {error}", self.0.link);
        }
    }
}

/// What a NIC is plugged into its network by; it goes away with this value.
#[derive(Debug)]
enum Port {
    /// A tap or macvtap.
    Link(Link),
    /// An ipvtap, in a namespace of its own.
    Ipvtap(Ipvtap),
}

impl Port {
    /// Makes what plugs the NIC number `index` of `guest` into `network`, for the ringtap with this run directory. Gives it
    /// with what the backend opens it by, and what it is like.
    fn make(
        guest: &Guest,
        index: usize,
        network: &Network,
        run_dir: &Path,
    ) -> Result<(Self, HostLink, Attached), NicError> {
        let nic = &guest.nics[index];
        let tap = guest.tap(index);
        if let Mode::Ipvtap { uplink, .. } = &network.mode {
            let told: Vec<IpAddr> = nic.told().collect();
            let pairs = nic.queue_pairs;
            let ipvtap = Ipvtap::make(&tap, &uplink.link(), &told, pairs, network.mtu)?;
            let link = HostLink::TapFds(ipvtap.queues());
            let attached = Attached {
                mtu: ipvtap.mtu(),
                checksums: true,
            };
            return Ok((Self::Ipvtap(ipvtap), link, attached));
        }
        let link = match network.mode {
            Mode::Macvtap { .. } => HostLink::Macvtap(tap.clone()),
            _ => {
                Tap::make_persistent(&tap)?;
                HostLink::Tap(tap.clone())
            }
        };
        let port = Link(port::Port::new(&tap, nic, network, run_dir));
        let attached = port.0.attach(nic, network)?;
        Ok((Self::Link(port), link, attached))
    }

    /// The tenant in whose namespace it is, if it is one's.
    fn tenant(&self) -> Option<&Name> {
        match self {
            Self::Link(link) => link.0.tenant.as_ref(),
            Self::Ipvtap(_) => None,
        }
    }

    fn name(&self) -> &IfName {
        match self {
            Self::Link(link) => &link.0.link,
            Self::Ipvtap(ipvtap) => ipvtap.name(),
        }
    }

    /// The MAC address that the guest must have, if not its own.
    fn mac(&self) -> Option<MacAddr> {
        match self {
            Self::Link(_) => None,
            Self::Ipvtap(ipvtap) => Some(ipvtap.mac()),
        }
    }
}

/// A NIC with its backend at work. Everything of it goes away with this value: the process first, then the tap.
#[derive(Debug)]
pub struct HostNic {
    backend: Process,
    args: BackendArgs,
    log: PathBuf,
    wiring: Wiring,
    port: Port,
}

impl HostNic {
    /// Makes the tap of `guest`'s NIC number `index` on `network`, for the ringtap with this run directory, and starts its backend in `dir`. Returns when
    /// front-ends can connect.
    ///
    /// # Errors
    /// See [`NicError`]; nothing is left behind then.
    pub fn start(
        guest: &Guest,
        index: usize,
        network: &Network,
        run_dir: &Path,
        dir: &Path,
    ) -> Result<Self, NicError> {
        let start = || Self::start_here(guest, index, network, run_dir, dir);
        beside(network.tenant.as_ref(), start).map_err(NicError::Namespace)?
    }

    /// As [`HostNic::start`], where the network's bridge is.
    fn start_here(
        guest: &Guest,
        index: usize,
        network: &Network,
        run_dir: &Path,
        dir: &Path,
    ) -> Result<Self, NicError> {
        let nic = &guest.nics[index];
        let (port, link, attached) = Port::make(guest, index, network, run_dir)?;
        let socket = dir.join(format!("nic{index}.sock"));
        let args = BackendArgs {
            queue_pairs: nic.queue_pairs,
            rx_rate: nic.rates.rx,
            tx_rate: nic.rates.tx,
            stats: Some(StatsAddr::Unix(stats_socket(dir, index))),
            ..BackendArgs::new(Endpoint::Listen(socket.clone()), link)
        };
        let log = dir.join(format!("nic{index}.log"));
        let backend = start_and_wait(&args, &port, &log)?;
        let wiring = Wiring {
            socket,
            mac: port.mac().unwrap_or(nic.mac),
            queue_pairs: nic.queue_pairs,
            mtu: host_mtu(network, attached.mtu),
            checksums: attached.checksums,
        };
        Ok(Self {
            backend,
            args,
            log,
            wiring,
            port,
        })
    }

    /// What QEMU needs to know.
    pub fn wiring(&self) -> &Wiring {
        &self.wiring
    }

    /// The process that serves it.
    pub fn backend(&mut self) -> &mut Process {
        &mut self.backend
    }

    /// The tap, for messages.
    pub fn tap(&self) -> &IfName {
        self.port.name()
    }

    /// What the backend said last.
    pub fn last_words(&self) -> String {
        last_line(&self.log)
    }

    /// Starts the backend anew after it has ended. The tap has stayed on its bridge, and QEMU connects again by itself.
    ///
    /// # Errors
    /// Where the process can't be started.
    pub fn restart(&mut self) -> Result<(), NicError> {
        let spawn = || spawn(&self.args, &self.port, &self.log, None);
        self.backend = beside(self.port.tenant(), spawn).map_err(NicError::Namespace)??;
        Ok(())
    }
}

/// What the guest is told of the MTU that its link has: nothing where that is what it takes for granted.
fn host_mtu(network: &Network, found: u32) -> Option<Mtu> {
    let told = network.mtu.is_some() || found < USUAL_MTU;
    Mtu::try_from(found).ok().filter(|_| told)
}

/// Starts a backend and waits for its word that it is ready (sd_notify(3)).
fn start_and_wait(args: &BackendArgs, port: &Port, log: &Path) -> Result<Process, NicError> {
    let path = log.with_extension("ready");
    let run_dir = |cause| NicError::RunDir {
        path: path.clone(),
        cause,
    };
    let socket = UnixDatagram::bind(&path).map_err(run_dir)?;
    socket.set_nonblocking(true).map_err(run_dir)?;
    let mut backend = spawn(args, port, log, Some(&path))?;
    let ready = wait_until_ready(&mut backend, socket).map_err(run_dir)?;
    std::fs::remove_file(&path).map_err(run_dir)?;
    if !ready {
        return Err(NicError::NotReady {
            tap: port.name().clone(),
            said: last_line(&log.to_owned()),
        });
    }
    Ok(backend)
}

/// True once `backend` has said so; false where it ended or the time ran out.
fn wait_until_ready(backend: &mut Process, socket: UnixDatagram) -> io::Result<bool> {
    let end = Instant::now() + READY_LIMIT;
    let reader = socket.try_clone()?;
    let socket = OwnedFd::from(socket);
    let mut message = [0; 256];
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        backend.wait_with(Some(&socket), left)?;
        match reader.recv(&mut message) {
            Ok(bytes) if is_ready(&message[..bytes]) => return Ok(true),
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if backend.exit_status()?.is_some() {
            return Ok(false);
        }
    }
    Ok(false)
}

fn is_ready(message: &[u8]) -> bool {
    message
        .split(|byte| *byte == b'\n')
        .any(|line| line == b"READY=1")
}

fn spawn(
    args: &BackendArgs,
    port: &Port,
    log: &Path,
    ready: Option<&Path>,
) -> Result<Process, NicError> {
    let run_dir = |cause| NicError::RunDir {
        path: log.to_owned(),
        cause,
    };
    // The program that runs, even if its file has been replaced meanwhile.
    let mut command = background(Path::new("/proc/self/exe"), log).map_err(run_dir)?;
    command.args(args.to_argv());
    match ready {
        Some(path) => command.env("NOTIFY_SOCKET", path),
        None => command.env_remove("NOTIFY_SOCKET"),
    };
    let mut start = || Process::spawn(&mut command);
    let started = match port {
        Port::Link(_) => start(),
        Port::Ipvtap(ipvtap) => ipvtap.handing_over(start).and_then(|started| started),
    };
    started.map_err(NicError::Spawn)
}
