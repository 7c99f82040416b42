//! One queue of a tap: reads frames and writes them, one by one or in bursts.
//!
//! This file is a home of unsafe code: vectored I/O on memory that a guest may change meanwhile.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::burst::{DEPTH, WriteRing};
use super::error::TapError;
use super::sys;
use crate::types::IfName;

/// The most buffers one frame may be scattered over (the kernel's `UIO_MAXIOV`).
pub const MAX_BUFFERS: usize = libc::UIO_MAXIOV as usize;

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
    /// By a ring that is at rest, for it is to be that of the thread that writes first.
    Made(Box<WriteRing>),
    /// By the ring of the thread that writes.
    Ring(Box<WriteRing>),
    /// One by one.
    No,
}

impl Bursts {
    /// Those to `tap`, as far as the host allows.
    fn of(tap: &OwnedFd) -> Self {
        if !sys::always_has_room(tap) {
            return Self::No;
        }
        let ring = WriteRing::new(tap).inspect_err(one_by_one);
        ring.map_or(Self::No, |ring| Self::Made(Box::new(ring)))
    }

    /// From here on by the calling thread.
    fn enabled(self) -> Self {
        match self {
            Self::Made(ring) => match ring.enable().inspect_err(one_by_one) {
                Ok(()) => Self::Ring(ring),
                Err(_) => Self::No,
            },
            other => other,
        }
    }
}

fn one_by_one(cause: &io::Error) {
    tracing::debug!("frames are written one by one, without io_uring: {cause}");
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
        Ok(Self {
            bursts: Bursts::of(&fd),
            fd,
            attached: None,
        })
    }

    /// A queue of `name`. `attached` tells whether the link gives frames to it; none where it can't be detached.
    pub(super) fn of(name: &IfName, fd: OwnedFd, attached: Option<bool>) -> Result<Self, TapError> {
        let queue = Self::from_fd(fd);
        let queue =
            queue.map_err(|cause| TapError::kernel(name, "make a queue non-blocking", cause))?;
        Ok(Self { attached, ..queue })
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
        sys::set_queue(&self.fd, attach)?;
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

    /// The ring; none where frames are written one by one.
    fn ring(&mut self) -> Option<&mut WriteRing> {
        if let Bursts::Made(_) = self.bursts {
            self.bursts = std::mem::replace(&mut self.bursts, Bursts::No).enabled();
        }
        match &mut self.bursts {
            Bursts::Ring(ring) => Some(ring),
            Bursts::Made(_) | Bursts::No => None,
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

pub(super) fn iovec<B: BitmapSlice>(buffer: &VolatileSlice<'_, B>) -> libc::iovec {
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
