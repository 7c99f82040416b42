//! Many frames by one system call: writes through io_uring, with the tap as a fixed file, which spares looking it up for
//! each frame. The price is that the kernel lets go of the tap some time after a process was killed, not at once.
//!
//! A burst is submitted and waited for in one call. A tap never makes a writer wait, so each write is done within that call, in
//! the order of the entries, and nothing is under way between calls. That holds only for a queue that always has room: where one
//! frame finds none and the next does, they would change places. Such queues, and hosts without io_uring (kernel before 6.1,
//! `kernel.io_uring_disabled`, a seccomp filter), are written to frame by frame.
//!
//! A ring is good for writes to its tap and for nothing else, whoever gets hold of it: io_uring can open files and sockets past any
//! seccomp filter, unless it is told once for all which operations it takes.
//!
//! This file is a home of unsafe code: entries that point into memory which a guest may change meanwhile.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::register::Restriction;
use io_uring::squeue::{self, SubmissionQueue};
use io_uring::{IoUring, opcode, types};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::queue::{MAX_BUFFERS, iovec};

/// The most frames of one system call.
pub const DEPTH: usize = 64;

/// `IORING_UNREGISTER_FILES` of `linux/io_uring.h`.
const UNREGISTER_FILES: u8 = 3;

/// The tap's place among fixed files.
const TAP: types::Fixed = types::Fixed(0);

/// A ring for writes to one tap.
pub(super) struct WriteRing {
    ring: IoUring,
    /// The buffers of frames that have more than one.
    iovecs: Vec<libc::iovec>,
    /// What became of each frame of the last burst: bytes, or a negated error number.
    results: [i32; DEPTH],
}

// SAFETY: the pointers in `iovecs` are not followed but in `write`, which has put them there itself.
unsafe impl Send for WriteRing {}

impl WriteRing {
    /// A ring for `tap`, at rest until [`Self::enable`].
    ///
    /// # Errors
    /// The kernel has no io_uring with deferred task work (6.1), or does not let this process have it.
    pub(super) fn new(tap: &OwnedFd) -> io::Result<Self> {
        let ring = IoUring::builder()
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_r_disabled()
            .build(DEPTH as u32)?;
        let submitter = ring.submitter();
        submitter.register_files(&[tap.as_raw_fd()])?;
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Write::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()),
            Restriction::register_op(UNREGISTER_FILES),
        ])?;
        Ok(Self {
            ring,
            iovecs: Vec::with_capacity(MAX_BUFFERS),
            results: [0; DEPTH],
        })
    }

    /// Makes it the calling thread's: no other can write through it from here on.
    ///
    /// # Errors
    /// A seccomp filter that does not know of it.
    pub(super) fn enable(&self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()
    }

    /// Writes each of `frames`, at most [`DEPTH`], and tells in their order what became of them.
    ///
    /// # Errors
    /// The kernel takes no entries; nothing was written.
    pub(super) fn write<B: BitmapSlice>(
        &mut self,
        frames: &[&[VolatileSlice<'_, B>]],
        written: &mut impl FnMut(io::Result<usize>),
    ) -> io::Result<()> {
        self.iovecs.clear();
        let several = frames.iter().filter(|frame| frame.len() > 1);
        self.iovecs
            .extend(several.flat_map(|frame| frame.iter()).map(iovec));
        let mut next = self.iovecs.as_ptr();
        let mut entries = self.ring.submission();
        for (number, frame) in frames.iter().enumerate() {
            // SAFETY: buffers are VolatileSlices that are alive over this call, and so mapped; iovecs are not touched before
            // the next one. `complete` does not return before the kernel is done with all entries.
            let mut push = |entry: squeue::Entry| unsafe { push(&mut entries, entry, number) };
            // Each kind is put there by itself: an entry that could be either is laid out elsewhere and copied, for which the CPU
            // waits until its own stores are done.
            match frame {
                [buffer] => {
                    let iovec = iovec(buffer);
                    let (start, len) = (iovec.iov_base.cast(), iovec.iov_len as u32);
                    push(opcode::Write::new(TAP, start, len).build());
                }
                buffers => {
                    push(opcode::Writev::new(TAP, next, buffers.len() as u32).build());
                    next = next.wrapping_add(buffers.len());
                }
            }
        }
        drop(entries);
        self.complete(frames.len())?;
        for result in &self.results[..frames.len()] {
            written(usize::try_from(*result).map_err(|_| io::Error::from_raw_os_error(-result)));
        }
        Ok(())
    }

    /// Submits the `count` entries that are in the ring, and waits for all of them.
    fn complete(&mut self, count: usize) -> io::Result<()> {
        let mut done = 0;
        while done < count {
            let entered = self.ring.submit_and_wait(count - done);
            for entry in self.ring.completion() {
                self.results[entry.user_data() as usize] = entry.result();
                done += 1;
            }
            match entered {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if done == 0 && self.ring.submission().len() == count => {
                    return Err(error);
                }
                Err(error) => {
                    // Entries may be under way, whose memory this process may unmap once it goes on.
                    tracing::error!("io_uring fails in the middle of a burst: {error}");
                    std::process::abort();
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

/// Puts an entry into the ring, as the one of frame `number`.
///
/// # Safety
/// What it points to is there and is not changed by this process until the kernel is done with it.
#[inline(always)]
unsafe fn push(entries: &mut SubmissionQueue<'_>, entry: squeue::Entry, number: usize) {
    // SAFETY: as the caller says.
    let pushed = unsafe { entries.push(&entry.user_data(number as u64)) };
    pushed.expect("the ring is empty between calls, and as deep as a burst is long");
}

impl Drop for WriteRing {
    /// Lets go of the tap: the kernel takes a ring itself apart behind the process.
    fn drop(&mut self) {
        // Where another thread than its own drops it, it keeps the tap for that while.
        let _ = self.ring.submitter().unregister_files();
    }
}

impl std::fmt::Debug for WriteRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteRing").finish_non_exhaustive()
    }
}
