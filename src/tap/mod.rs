//! Taps, macvtaps and ipvtaps: make or open one, set its offloads, read and write frames.
//!
//! A tap is a link whose other end is this process. Each open of `/dev/net/tun` that is attached to the link
//! is one queue: a [`TapQueue`]. A macvtap sits on another link, and each open of its own `/dev/tapN` is a queue.
//! Settings go through every queue: a tap has them once for the device, a macvtap the header's length for each of
//! its queues. Every frame carries a virtio-net header before it (`IFF_VNET_HDR`), which is how offloads cross the boundary
//! untouched: the kernel and the guest's driver agree on that header's layout.
//!
//! May touch: `/dev/net/tun`, `/dev/tapN`, tun ioctls, an abstract socket that claims a tap, `/sys/class/net` to find
//! a macvtap's device and to explain a refusal. This file is a home of unsafe code: ioctls, inherited descriptors,
//! and vectored I/O on memory that a guest may change meanwhile.

#![allow(unsafe_code)]

mod burst;

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use thiserror::Error;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use crate::types::{IfName, QueuePairs};
pub use burst::DEPTH;
use burst::WriteRing;

/// The most buffers one frame may be scattered over (the kernel's `UIO_MAXIOV`).
pub const MAX_BUFFERS: usize = libc::UIO_MAXIOV as usize;

const TUN_DEVICE: &str = "/dev/net/tun";

/// What ringtap needs of a tap: Ethernet frames, no packet-information prefix, the virtio-net header, and
/// queues that can be attached and detached.
const NEEDED_FLAGS: libc::c_int =
    libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;

/// What is needed of queues that somebody else attached: as many as are passed are there, so they can't lack
/// `IFF_MULTI_QUEUE`.
const INHERITED_FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Why a tap can't be had; each names the tap, what is in the way and the remedy.
#[derive(Debug, Error)]
pub enum TapError {
    /// The host has no tun driver.
    #[error("no {TUN_DEVICE}: load the tun module (modprobe tun)")]
    NoDriver(#[source] io::Error),
    /// The caller may neither make taps nor use this one.
    #[error(
        "not permitted to use tap {0}: run as root, or give the tap to this user \
         (ip tuntap add dev {0} mode tap multi_queue vnet_hdr user USER)"
    )]
    NotPermitted(IfName),
    /// Another process has the tap's queues.
    #[error(
        "tap {0} is busy: another process is attached to it; stop that one, or name another tap"
    )]
    Busy(IfName),
    /// The link exists and is no tap at all.
    #[error("link {0} exists and is not a tap: name another, or delete it (ip link delete {0})")]
    NotATap(IfName),
    /// The tap was made with other flags than are needed.
    #[error(
        "tap {name} has {has}, and ringtap needs tap, multi_queue and vnet_hdr: make it anew \
         (ip tuntap del dev {name} mode {mode}{mq}; ip tuntap add dev {name} mode tap multi_queue vnet_hdr)"
    )]
    WrongFlags {
        /// The tap.
        name: IfName,
        /// The flags it has, as iproute2 calls them.
        has: String,
        /// The mode to delete it by: `tap` or `tun`.
        mode: &'static str,
        /// ` multi_queue` where it has that, since deleting needs the same flag.
        mq: &'static str,
    },
    /// There is no link of the name given for a macvtap.
    #[error(
        "no link {0}: make the macvtap (ip link add link LINK name {0} type macvtap mode bridge; \
         ip link set {0} up), or name another"
    )]
    NoMacvtap(IfName),
    /// The link exists and is no macvtap.
    #[error(
        "link {0} exists and is not a macvtap: name another, or make one \
         (ip link add link {0} name NAME type macvtap mode bridge; ip link set NAME up)"
    )]
    NotAMacvtap(IfName),
    /// The macvtap's character device may not be opened.
    #[error(
        "not permitted to use macvtap {name}: run as root, or give its device to this user \
         (chown USER {node})"
    )]
    MacvtapNotPermitted {
        /// The macvtap.
        name: IfName,
        /// Its device.
        node: PathBuf,
    },
    /// The macvtap has no device in `/dev`, and this process may not make one.
    #[error(
        "macvtap {name} has no {node}: run as root, or make it \
         (rm -f {node}; mknod -m 600 {node} c {major} {minor}; chown USER {node})"
    )]
    NoNode {
        /// The macvtap.
        name: IfName,
        /// Where its device should be.
        node: PathBuf,
        /// The device's numbers.
        major: u32,
        /// The second one.
        minor: u32,
        /// Why it can't be made.
        #[source]
        cause: io::Error,
    },
    /// An inherited descriptor is no queue of a tap.
    #[error(
        "inherited descriptor {number} of --tap-fd is not an attached queue: pass one that did TUNSETIFF, or an open \
         of a macvtap's /dev/tapN"
    )]
    NotAQueue {
        /// Which one, counted from 0.
        number: usize,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// An inherited queue was attached with other flags than are needed.
    #[error(
        "the inherited queue of {name} has {has}, and ringtap needs mode tap and vnet_hdr, and no pi: attach it with \
         IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"
    )]
    WrongQueue {
        /// The link.
        name: IfName,
        /// The flags it has, as iproute2 calls them.
        has: String,
    },
    /// Inherited queues are of two links.
    #[error("inherited queues belong to {0} and {1}: pass queues of one tap")]
    TwoTaps(IfName, IfName),
    /// The kernel refused a step.
    #[error("tap {name}: {step}")]
    Kernel {
        /// The tap.
        name: IfName,
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
}

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
            .map(|_| TapQueue::of(name, node.open(name)?))
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
                queue_of(&fd).map_err(|cause| TapError::NotAQueue { number, cause })?;
            if flags & INHERITED_FLAGS != INHERITED_FLAGS {
                let has = flag_names(flags);
                return Err(TapError::WrongQueue { name, has });
            }
            let mut queue = TapQueue::from_fd(fd)
                .map_err(|cause| kernel(&name, "make a queue non-blocking", cause))?;
            // The one queue of a tap without multi_queue can't be detached, and need not be; a macvtap's can
            // whatever its flags say.
            let detachable = count > 1 || flags & libc::IFF_MULTI_QUEUE != 0;
            queue.attached = detachable.then_some(flags & libc::IFF_DETACH_QUEUE == 0);
            queues.push(queue);
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
            .map(|queue| queue.fd.try_clone().map(File::from))
            .collect::<Result<_, _>>()
            .map_err(|cause| kernel(&name, "duplicate a queue", cause))?;
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
        // SAFETY: TUNSETPERSIST takes its argument by value; the file is an attached tun queue.
        let done =
            unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) };
        check(done)
            .map(drop)
            .map_err(|cause| kernel(name, "make it persistent", cause))
    }
}

impl TapSettings for Tap {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let bits = libc::c_ulong::from(offloads.0);
        self.controls.iter().try_for_each(|queue| {
            // SAFETY: TUNSETOFFLOAD takes its argument by value; the file is an attached queue.
            check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETOFFLOAD, bits) }).map(drop)
        })
    }

    fn set_header_len(&self, len: HeaderLen) -> io::Result<()> {
        let bytes = len.bytes() as libc::c_int;
        self.controls.iter().try_for_each(|queue| {
            let fd = queue.as_raw_fd();
            // SAFETY: TUNSETVNETHDRSZ reads one int through the pointer, which lives over the call.
            check(unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const bytes) }).map(drop)
        })
    }
}

/// One queue of a tap: frames, each behind its virtio-net header, one a call, never blocking.
#[derive(Debug)]
pub struct TapQueue {
    fd: OwnedFd,
    /// Whether the link gives frames to this queue; `None` where it always does, for it is no tap's.
    attached: Option<bool>,
    bursts: Bursts,
}

/// How several frames are written at once.
#[derive(Debug)]
enum Bursts {
    /// By a ring, which is made by the thread that writes first.
    Wanted,
    Ring(Box<WriteRing>),
    /// One by one.
    No,
}

impl TapQueue {
    /// A queue from any descriptor that keeps frame boundaries, such as a `SOCK_SEQPACKET` socket in a test. It is
    /// made non-blocking.
    ///
    /// # Errors
    /// Those of `fcntl`.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        let bursts = match always_has_room(&fd) {
            true => Bursts::Wanted,
            false => Bursts::No,
        };
        Ok(Self {
            fd,
            attached: None,
            bursts,
        })
    }

    /// An attached queue of `name`.
    fn of(name: &IfName, file: File) -> Result<Self, TapError> {
        let queue = Self::from_fd(file.into());
        let queue = queue.map_err(|cause| kernel(name, "make a queue non-blocking", cause))?;
        Ok(Self {
            attached: Some(true),
            ..queue
        })
    }

    /// Lets the link give frames to this queue, or to its others alone. Frames that wait in a queue are lost when it
    /// is detached; one that stayed attached without a reader would swallow the flows that hash to it.
    ///
    /// # Errors
    /// Those of `TUNSETQUEUE`.
    pub fn set_attached(&mut self, attach: bool) -> io::Result<()> {
        if self.attached.is_none_or(|attached| attached == attach) {
            return Ok(());
        }
        set_queue(&self.fd, attach)?;
        self.attached = Some(attach);
        Ok(())
    }

    /// Reads one frame into `buffers`, in order; returns its length in bytes, header included.
    ///
    /// A frame longer than the buffers is cut off by the kernel; callers append a buffer to notice.
    ///
    /// # Errors
    /// `WouldBlock` where there is no frame.
    pub fn readv<B: BitmapSlice>(&self, buffers: &[VolatileSlice<'_, B>]) -> io::Result<usize> {
        let mut iovecs = [const { MaybeUninit::uninit() }; MAX_BUFFERS];
        let (iov, count) = fill(&mut iovecs, buffers)?;
        // SAFETY: `iov` holds `count` entries, each a VolatileSlice that is alive over this call and so a mapped,
        // writable range; nobody holds a Rust reference into it, for guest memory is only reached by volatile
        // access.
        retry(|| unsafe { libc::syscall(libc::SYS_readv, self.fd.as_raw_fd(), iov, count) })
    }

    /// Writes one frame, header first, from `buffers` in order.
    ///
    /// # Errors
    /// `WouldBlock` where the kernel has no room; `InvalidInput` where it does not accept the header or frame;
    /// others (a tap that is down) as the kernel gives them.
    pub fn writev<B: BitmapSlice>(&self, buffers: &[VolatileSlice<'_, B>]) -> io::Result<usize> {
        let mut iovecs = [const { MaybeUninit::uninit() }; MAX_BUFFERS];
        let (iov, count) = fill(&mut iovecs, buffers)?;
        // SAFETY: as in readv; the kernel only reads through these entries. A guest that changes the bytes meanwhile
        // changes its own frame.
        retry(|| unsafe { libc::syscall(libc::SYS_writev, self.fd.as_raw_fd(), iov, count) })
    }

    /// Writes `frames`, each as [`Self::writev`] does, in their order, by as few system calls as the host allows; tells what
    /// became of each. Returns before the first for which there is no room, and says how many came before it.
    pub fn write_burst<B: BitmapSlice>(
        &mut self,
        frames: &[&[VolatileSlice<'_, B>]],
        mut written: impl FnMut(io::Result<usize>),
    ) -> Burst {
        let mut burst = Burst::default();
        while frames.len() - burst.frames > 1
            && let Some(ring) = self.ring()
        {
            let next = frames[burst.frames..]
                .chunks(DEPTH)
                .next()
                .unwrap_or_default();
            burst.calls += 1;
            if let Err(error) = ring.write(next, &mut written) {
                tracing::warn!("frames are written one by one, for io_uring fails: {error}");
                self.bursts = Bursts::No;
                break;
            }
            burst.frames += next.len();
        }
        for frame in &frames[burst.frames..] {
            burst.calls += 1;
            match self.writev(frame) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                result => written(result),
            }
            burst.frames += 1;
        }
        burst
    }

    /// The ring, which the kernel wants to be made by the thread that writes; none where frames are written one by one.
    fn ring(&mut self) -> Option<&mut WriteRing> {
        if let Bursts::Wanted = self.bursts {
            self.bursts = WriteRing::new(&self.fd).map_or_else(
                |error| {
                    tracing::debug!("frames are written one by one, without io_uring: {error}");
                    Bursts::No
                },
                |ring| Bursts::Ring(Box::new(ring)),
            );
        }
        match &mut self.bursts {
            Bursts::Ring(ring) => Some(ring),
            Bursts::Wanted | Bursts::No => None,
        }
    }

    /// Whether the kernel has room for a frame now. Where it has not, it has hereby been asked to tell when it will: tun
    /// and macvtap wake only those who have polled since they had no room, and a watch by edges does not.
    ///
    /// # Errors
    /// Those of `poll`.
    pub fn has_room(&self) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        let now = rustix::event::Timespec::default();
        Ok(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&now)))? > 0)
    }
}

/// How far [`TapQueue::write_burst`] has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Burst {
    /// Frames of which was told what became of them.
    pub frames: usize,
    /// System calls that it took.
    pub calls: u64,
}

/// Whether the kernel takes whatever is written to `queue`: a tap's send buffer has no limit, unless somebody gave it one.
fn always_has_room(queue: &OwnedFd) -> bool {
    let mut limit: libc::c_int = 0;
    // SAFETY: TUNGETSNDBUF writes one int through the pointer, which lives over the call; no other driver takes this number
    // for something that is larger.
    let asked = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETSNDBUF, &raw mut limit) };
    check(asked).is_ok() && limit == libc::c_int::MAX
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for TapQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn iovec<B: BitmapSlice>(buffer: &VolatileSlice<'_, B>) -> libc::iovec {
    libc::iovec {
        iov_base: buffer.ptr_guard_mut().as_ptr().cast(),
        iov_len: buffer.len(),
    }
}

/// Writes `buffers` as iovecs into `iovecs`; returns what `readv` and `writev` take.
fn fill<B: BitmapSlice>(
    iovecs: &mut [MaybeUninit<libc::iovec>; MAX_BUFFERS],
    buffers: &[VolatileSlice<'_, B>],
) -> io::Result<(*const libc::iovec, libc::c_int)> {
    if buffers.len() > MAX_BUFFERS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, buffer) in iovecs.iter_mut().zip(buffers) {
        place.write(iovec(buffer));
    }
    Ok((iovecs.as_ptr().cast(), buffers.len() as libc::c_int))
}

/// A system call, until no signal interrupts it. Calls are made past libc's own functions: those are points at which a thread
/// can be cancelled, which in a process with several takes a tenth of a frame's time.
fn retry(mut call: impl FnMut() -> libc::c_long) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(bytes) => return Ok(bytes),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
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
    let queues = (0..pairs.get()).map(|_| TapQueue::of(name, attach(name)?));
    let queues = queues.collect::<Result<Vec<_>, _>>()?;
    let attached =
        attached_queues(name).map_err(|cause| kernel(name, "count its queues", cause))?;
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
    let mut request = ifreq(name);
    request.ifr_ifru.ifru_flags = NEEDED_FLAGS as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq through the pointer, which lives over the call.
    let attached = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    match check(attached) {
        Ok(_) => Ok(file),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::EPERM) => TapError::NotPermitted(name.clone()),
            Some(libc::EBUSY | libc::E2BIG) => TapError::Busy(name.clone()),
            Some(libc::EINVAL) => TapError::NotATap(name.clone()),
            _ => kernel(name, "attach a queue", error),
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

/// Attaches or detaches `queue`.
fn set_queue(queue: &OwnedFd, attach: bool) -> io::Result<()> {
    let flag = if attach {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    };
    // SAFETY: an ifreq is plain C data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = flag as libc::c_short;
    // SAFETY: TUNSETQUEUE reads one ifreq through the pointer, which lives over the call.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETQUEUE, &raw mut request) })?;
    Ok(())
}

/// Opens a queue a pair of the macvtap or ipvtap `name`, for other processes to take over by [`Tap::from_fds`].
///
/// # Errors
/// See [`TapError`].
pub fn open_queues(name: &IfName, pairs: QueuePairs) -> Result<Vec<OwnedFd>, TapError> {
    let node = MacvtapNode::find(name)?;
    let queues = (0..pairs.get()).map(|_| node.open(name).map(OwnedFd::from));
    queues.collect()
}

/// Attaches a queue of a macvtap or ipvtap that a process may have detached: such a queue does not tell.
///
/// # Errors
/// Those of `TUNSETQUEUE`.
pub fn attach_again(queue: &OwnedFd) -> io::Result<()> {
    match set_queue(queue, true) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()), // it is attached
        done => done,
    }
}

/// Takes descriptor `fd` over from whoever started this process: the result is a copy that children of this process
/// don't inherit. The number itself stays open until the process ends, but no longer for its children.
///
/// To be called before this process opens anything, since a number tells nothing of where it comes from.
///
/// # Errors
/// `EBADF` where nothing was inherited under this number; `InvalidInput` for the standard streams.
pub fn inherit(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= libc::STDERR_FILENO {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let above = libc::STDERR_FILENO + 1;
    // SAFETY: F_DUPFD_CLOEXEC takes plain numbers, and changes nothing where `fd` is not open.
    let copy = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, above) })?;
    // SAFETY: `copy` was just returned by the kernel and nobody else owns it.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    // SAFETY: F_SETFD takes plain numbers, and has no effect within this process.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(copy)
}

/// The link that `queue` is attached to, and its flags (TUNGETIFF).
fn queue_of(queue: &OwnedFd) -> io::Result<(IfName, libc::c_int)> {
    // SAFETY: an ifreq is plain C data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq through the pointer, which lives over the call; no other driver takes this
    // number for something that is larger.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    let name: Vec<u8> = request
        .ifr_name
        .iter()
        .map(|byte| *byte as u8)
        .take_while(|byte| *byte != 0)
        .collect();
    let name = String::from_utf8_lossy(&name)
        .parse()
        .map_err(io::Error::other)?;
    // SAFETY: the kernel has written this field, and any bits are a value of it.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((name, libc::c_int::from(flags)))
}

/// A macvtap's character device.
struct MacvtapNode {
    path: PathBuf,
    /// Made by this process, and to be removed.
    private: bool,
}

impl MacvtapNode {
    /// The device of `name`. `/dev` is one for all namespaces, so a node there is told by its numbers.
    fn find(name: &IfName) -> Result<Self, TapError> {
        let link = Path::new("/sys/class/net").join(name.as_str());
        let index = std::fs::read_to_string(link.join("ifindex"))
            .map_err(|_| TapError::NoMacvtap(name.clone()))?;
        let tap = format!("tap{}", index.trim());
        let (major, minor) = std::fs::read_to_string(link.join(&tap).join("dev"))
            .ok()
            .and_then(|text| device_numbers(&text))
            .ok_or_else(|| TapError::NotAMacvtap(name.clone()))?;
        let device = rustix::fs::makedev(major, minor);
        let path = Path::new("/dev").join(&tap);
        if std::fs::metadata(&path).is_ok_and(|node| node.rdev() == device) {
            return Ok(Self {
                path,
                private: false,
            });
        }
        let private = Path::new("/dev").join(format!(".ringtap-{}-{tap}", std::process::id()));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &private,
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            device,
        )
        .map_err(|cause| TapError::NoNode {
            name: name.clone(),
            node: path,
            major,
            minor,
            cause: cause.into(),
        })?;
        Ok(Self {
            path: private,
            private: true,
        })
    }

    /// Opens one more queue of the macvtap `name`.
    fn open(&self, name: &IfName) -> Result<File, TapError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&self.path)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => TapError::MacvtapNotPermitted {
                    name: name.clone(),
                    node: self.path.clone(),
                },
                Some(libc::EBUSY | libc::E2BIG) => TapError::Busy(name.clone()),
                _ => kernel(name, "open its character device", error),
            })?;
        let mut request = ifreq(name); // the name has no effect: the device knows its link
        request.ifr_ifru.ifru_flags = NEEDED_FLAGS as libc::c_short;
        // SAFETY: TUNSETIFF reads one ifreq through the pointer, which lives over the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
            .map_err(|cause| kernel(name, "set a queue's flags", cause))?;
        Ok(file)
    }
}

impl Drop for MacvtapNode {
    fn drop(&mut self) {
        if self.private {
            // Best effort: the node works for nobody without rights to it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// `MAJOR:MINOR` as sysfs writes it.
fn device_numbers(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Claims the tap among backends: an abstract socket's name belongs to one process of a network namespace, as a
/// link's does, and is free again when that process has ended, however it did.
fn claim(name: &IfName) -> Result<UnixDatagram, TapError> {
    SocketAddr::from_abstract_name(format!("ringtap/tap/{name}"))
        .and_then(|address| UnixDatagram::bind_addr(&address))
        .map_err(|cause| match cause.kind() {
            io::ErrorKind::AddrInUse => TapError::Busy(name.clone()),
            _ => kernel(name, "claim it", cause),
        })
}

/// How many queues processes have attached to `name` (`ETHTOOL_GCHANNELS`: tun reports them as `combined`).
fn attached_queues(name: &IfName) -> io::Result<u32> {
    /// `struct ethtool_channels` of linux/ethtool.h.
    #[repr(C)]
    #[derive(Default)]
    struct Channels {
        cmd: u32,
        max: [u32; 4],
        rx: u32,
        tx: u32,
        other: u32,
        combined: u32,
    }
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    let mut channels = Channels {
        cmd: ETHTOOL_GCHANNELS,
        ..Channels::default()
    };
    // SAFETY: socket() takes plain values; the result is checked before it is owned.
    let socket =
        check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: `socket` was just returned by the kernel and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let mut request = ifreq(name);
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    // SAFETY: SIOCETHTOOL reads the ifreq and, by `cmd`, reads and writes one ethtool_channels behind
    // ifru_data; both live over the call and have the kernel's layout.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) })?;
    Ok(channels.combined)
}

fn ifreq(name: &IfName) -> libc::ifreq {
    // SAFETY: an ifreq is plain C data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from as libc::c_char; // an IfName leaves room for the terminating zero
    }
    request
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn kernel(name: &IfName, step: &'static str, cause: io::Error) -> TapError {
    TapError::Kernel {
        name: name.clone(),
        step,
        cause,
    }
}
