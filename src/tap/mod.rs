//! Taps, macvtaps and ipvtaps: make or open one, set its offloads, read and write frames.
//!
//! A tap is a link whose other end is this process. Each open of `/dev/net/tun` that is attached to the link
//! is one queue: a [`TapQueue`]. A macvtap sits on another link, and each open of its own `/dev/tapN` is a queue.
//! Settings go through every queue: a tap has them once for the device, a macvtap the header's length for each of
//! its queues. Every frame carries a virtio-net header before it (`IFF_VNET_HDR`), which is how offloads cross the boundary
//! untouched: the kernel and the guest's driver agree on that header's layout.
//!
//! This file says whose a tap is and how one is had; `macvtap` finds the device of one that is a link on a link, `queue` and
//! `burst` move frames, `sys` asks the kernel by ioctls, `attached` by netlink. May touch: `/dev/net/tun`, `/dev/tapN`, tun ioctls,
//! an abstract socket that claims a tap, `/sys/class/net` to find a macvtap's device and to explain a refusal.

mod attached;
mod burst;
mod error;
mod macvtap;
mod queue;
mod sys;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::types::{IfName, QueuePairs};
use attached::attached_queues;
pub use burst::DEPTH;
pub use error::TapError;
use macvtap::MacvtapNode;
pub use macvtap::{attach_again, open_queues};
pub use queue::{Burst, MAX_BUFFERS, TapQueue};
pub use sys::inherit;

const TUN_DEVICE: &str = "/dev/net/tun";

/// What ringtap needs of a tap: Ethernet frames, no packet-information prefix, the virtio-net header, and
/// queues that can be attached and detached.
const NEEDED_FLAGS: libc::c_int =
    libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;

/// What is needed of queues that somebody else attached: as many as are passed are there, so they can't lack
/// `IFF_MULTI_QUEUE`.
const INHERITED_FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Offloads a tap may leave to whoever reads from it, as `TUN_F_*` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads(libc::c_uint);

impl Offloads {
    /// Frames may come with a partial checksum. The others need this one.
    pub const CSUM: Self = Self(libc::TUN_F_CSUM);
    /// TCP over IPv4 may come unsegmented.
    pub const TSO4: Self = Self(libc::TUN_F_TSO4);
    /// TCP over IPv6 may come unsegmented.
    pub const TSO6: Self = Self(libc::TUN_F_TSO6);
    /// Unsegmented TCP may carry ECN.
    pub const TSO_ECN: Self = Self(libc::TUN_F_TSO_ECN);

    /// UDP may come unsegmented, over IPv4 and IPv6.
    pub const USO: Self = Self(libc::TUN_F_USO4 | libc::TUN_F_USO6);

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The length of the virtio-net header before each frame, in bytes (virtio 1.3 §5.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderLen {
    /// Ten bytes: legacy, without `num_buffers`.
    Short,
    /// Twelve bytes: with `num_buffers`.
    Long,
}

impl HeaderLen {
    /// In bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Short => 10,
            Self::Long => 12,
        }
    }
}

/// A tap's settings, common to all its queues.
pub trait TapSettings: Send {
    /// Which offloads the kernel may leave to the reader of frames. Fails where the kernel lacks one.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;
    /// How long the header before each frame is, in both directions.
    fn set_header_len(&self, len: HeaderLen) -> io::Result<()>;

    /// Whether the kernel can segment UDP. Asked by trying; offloads are all off after it.
    fn has_uso(&self) -> bool {
        let has = self
            .set_offloads(Offloads::CSUM.with(Offloads::USO))
            .is_ok();
        let _ = self.set_offloads(Offloads::default()); // what fails here fails again when it counts
        has
    }
}

/// A tap or macvtap that this process is attached to.
#[derive(Debug)]
pub struct Tap {
    name: IfName,
    /// One a queue, for settings.
    controls: Vec<File>,
    /// Tells other backends that the tap is taken, also while all its queues are detached and so not to be seen.
    /// None for inherited queues, which are their giver's to share out.
    _claim: Option<UnixDatagram>,
}

impl Tap {
    /// Attaches to the tap `name` with a queue a pair; makes the tap if there is none, and it then goes away with
    /// the last queue.
    ///
    /// # Errors
    /// See [`TapError`]. Nothing is left behind after an error.
    pub fn open(name: &IfName, pairs: QueuePairs) -> Result<(Self, Vec<TapQueue>), TapError> {
        check_flags(name)?;
        let claim = claim(name)?;
        let queues = attach_alone(name, pairs)?;
        let tap = Self::of_queues(name.clone(), &queues, Some(claim))?;
        Ok((tap, queues))
    }

    /// Opens a queue a pair of the macvtap `name`, which must exist, in whatever mode. Its device in `/dev` may be missing,
    /// or be that of another namespace's link of the same index: then it is opened through a node of this
    /// process's own, which is gone when this returns.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open_macvtap(
        name: &IfName,
        pairs: QueuePairs,
    ) -> Result<(Self, Vec<TapQueue>), TapError> {
        let node = MacvtapNode::find(name)?;
        let claim = claim(name)?;
        let queues = (0..pairs.get())
            .map(|_| TapQueue::of(name, node.open(name)?.into(), Some(true)))
            .collect::<Result<Vec<_>, _>>()?;
        let tap = Self::of_queues(name.clone(), &queues, Some(claim))?;
        Ok((tap, queues))
    }

    /// Takes queues of one tap, macvtap or ipvtap that somebody else opened and attached, one a pair; see [`inherit`].
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn from_fds(fds: Vec<OwnedFd>) -> Result<(Self, Vec<TapQueue>), TapError> {
        let mut link: Option<IfName> = None;
        let count = fds.len();
        let mut queues = Vec::with_capacity(count);
        for (number, fd) in fds.into_iter().enumerate() {
            let (name, flags) =
                sys::link_of(&fd).map_err(|cause| TapError::NotAQueue { number, cause })?;
            if flags & INHERITED_FLAGS != INHERITED_FLAGS {
                let has = flag_names(flags);
                return Err(TapError::WrongQueue { name, has });
            }
            // The one queue of a tap without multi_queue can't be detached, and need not be; a macvtap's can
            // whatever its flags say.
            let detachable = count > 1 || flags & libc::IFF_MULTI_QUEUE != 0;
            let attached = detachable.then_some(flags & libc::IFF_DETACH_QUEUE == 0);
            queues.push(TapQueue::of(&name, fd, attached)?);
            match &link {
                Some(first) if *first != name => {
                    return Err(TapError::TwoTaps(first.clone(), name));
                }
                _ => link = Some(name),
            }
        }
        let name = link.ok_or_else(|| TapError::NotAQueue {
            number: 0,
            cause: io::ErrorKind::NotFound.into(),
        })?;
        let tap = Self::of_queues(name, &queues, None)?;
        Ok((tap, queues))
    }

    /// The link's name.
    pub fn name(&self) -> &IfName {
        &self.name
    }

    /// The settings of `name`, whose queues are `queues`.
    fn of_queues(
        name: IfName,
        queues: &[TapQueue],
        claim: Option<UnixDatagram>,
    ) -> Result<Self, TapError> {
        let controls = queues
            .iter()
            .map(|queue| queue.as_fd().try_clone_to_owned().map(File::from))
            .collect::<Result<_, _>>()
            .map_err(|cause| TapError::kernel(&name, "duplicate a queue", cause))?;
        Ok(Self {
            name,
            controls,
            _claim: claim,
        })
    }

    /// Makes a tap that stays until it is deleted, with the flags ringtap needs and no queue attached.
    ///
    /// # Errors
    /// See [`TapError`]; a tap that exists with the right flags is not an error.
    pub fn make_persistent(name: &IfName) -> Result<(), TapError> {
        check_flags(name)?;
        let file = attach(name)?;
        sys::persist(&file).map_err(|cause| TapError::kernel(name, "make it persistent", cause))
    }
}

impl TapSettings for Tap {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let mut queues = self.controls.iter();
        queues.try_for_each(|queue| sys::set_offloads(queue, offloads))
    }

    fn set_header_len(&self, len: HeaderLen) -> io::Result<()> {
        let mut queues = self.controls.iter();
        queues.try_for_each(|queue| sys::set_header_len(queue, len))
    }
}

/// Attaches a queue a pair to `name`, and nobody else's. A process that has just died may have its queues for a moment still, for
/// the kernel takes its io_uring apart behind it, and no event tells when that is done.
fn attach_alone(name: &IfName, pairs: QueuePairs) -> Result<Vec<TapQueue>, TapError> {
    const MOMENT: Duration = Duration::from_secs(1);
    let end = Instant::now() + MOMENT;
    loop {
        match try_attach_alone(name, pairs) {
            Err(TapError::Busy(_)) if Instant::now() < end => sleep(MOMENT / 200),
            done => return done,
        }
    }
}

/// A multi-queue tap lets a second process attach without a word, and then frames go to either of the two. The count of queues
/// gives away one that is no backend and so holds no claim.
fn try_attach_alone(name: &IfName, pairs: QueuePairs) -> Result<Vec<TapQueue>, TapError> {
    let queues = (0..pairs.get()).map(|_| TapQueue::of(name, attach(name)?.into(), Some(true)));
    let queues = queues.collect::<Result<Vec<_>, _>>()?;
    let attached =
        attached_queues(name).map_err(|cause| TapError::kernel(name, "count its queues", cause))?;
    match attached > u32::from(pairs.get()) {
        true => Err(TapError::Busy(name.clone())),
        false => Ok(queues),
    }
}

/// Opens `/dev/net/tun` and attaches it to `name` as a queue.
fn attach(name: &IfName) -> Result<File, TapError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN_DEVICE)
        .map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => TapError::NotPermitted(name.clone()),
            _ => TapError::NoDriver(error),
        })?;
    match sys::attach(&file, name, NEEDED_FLAGS) {
        Ok(()) => Ok(file),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::EPERM) => TapError::NotPermitted(name.clone()),
            Some(libc::EBUSY | libc::E2BIG) => TapError::Busy(name.clone()),
            Some(libc::EINVAL) => TapError::NotATap(name.clone()),
            _ => TapError::kernel(name, "attach a queue", error),
        }),
    }
}

/// Refuses a link that exists without the flags needed, before the kernel does so with a bare EINVAL, or
/// silently changes them.
fn check_flags(name: &IfName) -> Result<(), TapError> {
    let Ok(text) = std::fs::read_to_string(format!("/sys/class/net/{name}/tun_flags")) else {
        return Ok(()); // no such link, or none with tun flags: attach() tells
    };
    let flags = libc::c_int::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap_or(0);
    if flags & NEEDED_FLAGS == NEEDED_FLAGS {
        return Ok(());
    }
    let is_tap = flags & libc::IFF_TAP != 0;
    let multi_queue = flags & libc::IFF_MULTI_QUEUE != 0;
    Err(TapError::WrongFlags {
        name: name.clone(),
        has: flag_names(flags),
        mode: if is_tap { "tap" } else { "tun" },
        mq: if multi_queue { " multi_queue" } else { "" },
    })
}

/// `flags` as iproute2 calls them.
fn flag_names(flags: libc::c_int) -> String {
    let has = |flag| flags & flag != 0;
    let mode = if has(libc::IFF_TAP) {
        "mode tap"
    } else {
        "mode tun"
    };
    let named = [
        (true, mode),
        (has(libc::IFF_MULTI_QUEUE), "multi_queue"),
        (has(libc::IFF_VNET_HDR), "vnet_hdr"),
        (!has(libc::IFF_NO_PI), "pi"),
    ];
    let names: Vec<_> = named
        .iter()
        .filter(|(on, _)| *on)
        .map(|(_, name)| *name)
        .collect();
    names.join(" ")
}

/// Claims the tap among backends: an abstract socket's name belongs to one process of a network namespace, as a
/// link's does, and is free again when that process has ended, however it did.
fn claim(name: &IfName) -> Result<UnixDatagram, TapError> {
    SocketAddr::from_abstract_name(format!("ringtap/tap/{name}"))
        .and_then(|address| UnixDatagram::bind_addr(&address))
        .map_err(|cause| match cause.kind() {
            io::ErrorKind::AddrInUse => TapError::Busy(name.clone()),
            _ => TapError::kernel(name, "claim it", cause),
        })
}
