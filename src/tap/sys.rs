//! What taps are asked by ioctl, each call a function of its own that answers as the kernel does.
//!
//! This file is a home of unsafe code: nothing that gets a pointer here keeps it, and none points into a guest's memory.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::{HeaderLen, Offloads};
use crate::types::IfName;

/// Attaches an open of a tun device to `name` as a queue with `flags`; a macvtap's knows its link, and only takes the flags
/// (TUNSETIFF).
pub(super) fn attach(file: &File, name: &IfName, flags: libc::c_int) -> io::Result<()> {
    let mut request = ifreq(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq through the pointer, which lives over the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(())
}

/// The link that `queue` is attached to, and its flags (TUNGETIFF).
pub(super) fn link_of(queue: &OwnedFd) -> io::Result<(IfName, libc::c_int)> {
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

/// Attaches or detaches `queue` (TUNSETQUEUE).
pub(super) fn set_queue(queue: &OwnedFd, attach: bool) -> io::Result<()> {
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

/// Keeps the link of `queue` until somebody deletes it (TUNSETPERSIST).
pub(super) fn persist(queue: &File) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value; the file is an attached tun queue.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) })?;
    Ok(())
}

/// What the kernel may leave to those who read from `queue`'s link (TUNSETOFFLOAD).
pub(super) fn set_offloads(queue: &File, offloads: Offloads) -> io::Result<()> {
    let bits = libc::c_ulong::from(offloads.0);
    // SAFETY: TUNSETOFFLOAD takes its argument by value; the file is an attached queue.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETOFFLOAD, bits) })?;
    Ok(())
}

/// How long the header before each frame of `queue` is (TUNSETVNETHDRSZ).
pub(super) fn set_header_len(queue: &File, len: HeaderLen) -> io::Result<()> {
    let bytes = len.bytes() as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int through the pointer, which lives over the call.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })?;
    Ok(())
}

/// Whether the kernel takes whatever is written to `queue`: a tap's send buffer has no limit, unless somebody gave it one.
pub(super) fn always_has_room(queue: &OwnedFd) -> bool {
    let mut limit: libc::c_int = 0;
    // SAFETY: TUNGETSNDBUF writes one int through the pointer, which lives over the call; no other driver takes this number
    // for something that is larger.
    let asked = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETSNDBUF, &raw mut limit) };
    check(asked).is_ok() && limit == libc::c_int::MAX
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
