//! A link of the host as the kernel's packet sockets have it (packet(7)): frames put on it and taken from it, past everything
//! else that the host does with them. The bench's end of the wire, and nobody else's; a leaf.

#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::net::{MMsgHdr, RecvFlags, SendAncillaryBuffer, SendFlags, sendmmsg};

use crate::types::IfName;

/// A packet socket on one link.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

/// What a socket gets to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// Nothing: it is there to send.
    Nothing,
    /// Frames of this EtherType that come in by the link.
    EtherType(u16),
    /// Those, and of them only such as have none of these bits in the byte at that place of the frame.
    Sample {
        /// The EtherType.
        ether_type: u16,
        /// Where the byte is, from the first of the frame.
        at: u32,
        /// The bits.
        mask: u8,
    },
}

impl PacketSocket {
    /// A socket on `link`, which never blocks.
    ///
    /// # Errors
    /// Those of socket(2), bind(2) and setsockopt(2): it takes CAP_NET_RAW.
    pub fn on(link: &IfName, take: Take) -> io::Result<Self> {
        let protocol = match take {
            Take::Nothing => 0,
            Take::EtherType(kind)
            | Take::Sample {
                ether_type: kind, ..
            } => kind.to_be(),
        };
        let index = index_of(link)?;
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // Of no protocol until it is bound, so that it sees nothing of other links.
        // SAFETY: socket(2) takes plain numbers.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        // SAFETY: the kernel has just returned this descriptor, and nobody else owns it.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        if let Take::Sample { at, mask, .. } = take {
            socket.sample(at, mask)?;
        }
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(64 << 20))?;
        // SAFETY: a sockaddr_ll is plain C data, for which all zeroes is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the kernel reads `len` bytes through the pointer, which is that of a sockaddr_ll that lives over the call.
        check(unsafe { libc::bind(socket.0.as_raw_fd(), (&raw const address).cast(), len) })?;
        Ok(socket)
    }

    /// Has frames begin with a virtio-net header of ten bytes, either way, so that they need not be segmented.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn with_headers(self) -> io::Result<Self> {
        self.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1)?;
        Ok(self)
    }

    /// Keeps all frames away that have one of the bits of `mask` in the byte at `at`.
    fn sample(&self, at: u32, mask: u8) -> io::Result<()> {
        let step = |code: u32, jt, jf, k| libc::sock_filter {
            code: code as u16,
            jt,
            jf,
            k,
        };
        let mut program = [
            step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, at),
            step(
                libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K,
                1,
                0,
                mask.into(),
            ),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        ];
        let program = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_mut_ptr(),
        };
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }

    fn set<T>(&self, level: i32, option: i32, value: &T) -> io::Result<()> {
        let len = size_of::<T>() as libc::socklen_t;
        let fd = self.0.as_raw_fd();
        // SAFETY: the kernel reads `len` bytes through the pointer, which is that of a `T` that lives over the call; the filter
        // that a sock_fprog points to lives as long in `sample`.
        check(unsafe { libc::setsockopt(fd, level, option, (&raw const *value).cast(), len) })?;
        Ok(())
    }

    /// Puts frames on the link; how many. Fewer than all where it has no room.
    ///
    /// # Errors
    /// Those of sendmmsg(2), `WouldBlock` where it has room for none.
    pub fn send(&self, frames: &[&[u8]]) -> io::Result<usize> {
        let slices: Vec<[IoSlice<'_>; 1]> = frames.iter().map(|it| [IoSlice::new(it)]).collect();
        let mut buffers: Vec<_> = frames
            .iter()
            .map(|_| SendAncillaryBuffer::default())
            .collect();
        let pairs = slices.iter().zip(&mut buffers);
        let mut messages: Vec<_> = pairs
            .map(|(slice, none)| MMsgHdr::new(slice, none))
            .collect();
        match sendmmsg(&self.0, &mut messages, SendFlags::empty()) {
            Ok(sent) => Ok(sent),
            // The link's queue is full.
            Err(rustix::io::Errno::NOBUFS) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// The next frame, in the beginning of `buffer`; its length.
    ///
    /// # Errors
    /// Those of recv(2), `WouldBlock` where there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (bytes, _) = rustix::net::recv(&self.0, buffer, RecvFlags::TRUNC)?;
        Ok(bytes)
    }

    /// How many frames it has had no room for since this was last asked.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub fn missed(&self) -> io::Result<u32> {
        // SAFETY: a tpacket_stats is plain C data, for which all zeroes is a value.
        let mut stats: libc::tpacket_stats = unsafe { std::mem::zeroed() };
        let mut len = size_of_val(&stats) as libc::socklen_t;
        let (fd, option) = (self.0.as_raw_fd(), libc::PACKET_STATISTICS);
        // SAFETY: the kernel writes at most `len` bytes through the pointer, which is that of a tpacket_stats that lives over the
        // call, and the length through the other.
        check(unsafe {
            libc::getsockopt(
                fd,
                libc::SOL_PACKET,
                option,
                (&raw mut stats).cast(),
                &raw mut len,
            )
        })?;
        Ok(stats.tp_drops)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn index_of(link: &IfName) -> io::Result<u32> {
    // Any socket will do: the names are those of this thread's namespace.
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    Ok(rustix::net::netdevice::name_to_index(
        socket,
        link.as_str(),
    )?)
}

fn check(returned: libc::c_int) -> io::Result<libc::c_int> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(returned)
}
