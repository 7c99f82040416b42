//! ICMP echo (RFC 792, RFC 4443 §4.1), one at a time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, connect, ipproto, recv, send, socket,
};

use crate::bench::pattern::folded;

/// Type, code, checksum, identifier, number.
const HEADER: usize = 8;

/// Who pings an address.
#[derive(Debug)]
pub struct Pinger {
    socket: OwnedFd,
    /// The type of a question, and of an answer.
    types: [u8; 2],
    /// What comes before an answer: of IPv4 the packet's header, as raw sockets have it.
    skipped: usize,
    number: u16,
}

impl Pinger {
    /// One for `address`.
    ///
    /// # Errors
    /// Those of socket(2) and connect(2): it takes CAP_NET_RAW.
    pub fn to(address: IpAddr) -> io::Result<Self> {
        let (family, protocol, types, skipped) = match address {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, [8, 0], 20),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, [128, 129], 0),
        };
        let socket = socket(family, SocketType::RAW, Some(protocol))?;
        connect(&socket, &SocketAddr::new(address, 0))?;
        Ok(Self {
            socket,
            types,
            skipped,
            number: 0,
        })
    }

    /// Asks once; how long the answer took, if there was one within `limit`.
    ///
    /// # Errors
    /// Those of send(2) and recv(2).
    pub fn ask(&mut self, limit: Duration) -> io::Result<Option<Duration>> {
        self.number = self.number.wrapping_add(1);
        let question = self.question();
        let start = Instant::now();
        send(&self.socket, &question, SendFlags::empty())?;
        let mut answer = [0; 128];
        loop {
            let left = limit.saturating_sub(start.elapsed());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            if poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&left))? == 0 {
                return Ok(None);
            }
            let (bytes, _) = recv(&self.socket, &mut answer, RecvFlags::empty())?;
            if self.is_answer(&answer[..bytes]) {
                return Ok(Some(start.elapsed()));
            }
        }
    }

    /// An echo request of 56 bytes of data, as ping(8) sends it. The kernel fills in IPv6's checksum.
    fn question(&self) -> [u8; HEADER + 56] {
        let mut packet = [0; HEADER + 56];
        packet[0] = self.types[0];
        packet[4..6].copy_from_slice(&self.identifier());
        packet[6..8].copy_from_slice(&self.number.to_be_bytes());
        let sum = !folded(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn is_answer(&self, packet: &[u8]) -> bool {
        packet.get(self.skipped..).is_some_and(|icmp| {
            icmp.len() >= HEADER
                && icmp[0] == self.types[1]
                && icmp[4..6] == self.identifier()
                && icmp[6..8] == self.number.to_be_bytes()
        })
    }

    fn identifier(&self) -> [u8; 2] {
        (std::process::id() as u16).to_be_bytes()
    }
}
