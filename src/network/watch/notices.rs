//! The kernel's notices that something has changed: netlink's multicast groups (netlink(7), rtnetlink(7)).
//!
//! What they say is not read. Each is a reason to look, and so is that some were lost.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with,
};

/// Notices of some kind; readable when one has come.
#[derive(Debug)]
pub struct Notices(OwnedFd);

impl Notices {
    /// Those of links, addresses and routes.
    ///
    /// # Errors
    /// Those of `socket` and `bind`.
    pub fn of_links() -> io::Result<Self> {
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE;
        // NETLINK_ROUTE is 0, netlink's default.
        Self::subscribe(None, groups as u32)
    }

    /// Those of nftables, one a transaction at least.
    ///
    /// # Errors
    /// Those of `socket` and `bind`.
    pub fn of_tables() -> io::Result<Self> {
        // Groups count from 1, bits from 0.
        Self::subscribe(Some(NETFILTER), 1 << (libc::NFNLGRP_NFTABLES - 1))
    }

    fn subscribe(protocol: Option<Protocol>, groups: u32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self(socket))
    }

    /// Takes what has come, so that only what comes later is news.
    ///
    /// # Errors
    /// Those of `recv`, but for notices that were lost.
    pub fn drain(&self) -> io::Result<()> {
        loop {
            match recv(&self.0, &mut [0_u8; 64], RecvFlags::empty()) {
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::NOBUFS | Errno::INTR) | Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsRawFd for Notices {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
