//! What listens on the host: `/proc/thread-self/net/tcp`, `udp` and their IPv6 sisters (proc(5)). A port forward would take
//! such a port over, and with it perhaps the way by which its admin came.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::inventory::Listener;
use crate::config::Protocol;
use crate::programs;

/// The state of a TCP socket that listens.
const LISTEN: &str = "0A";
/// From here on ports are those of clients (ip_local_port_range), which use UDP without being servers.
const FIRST_EPHEMERAL: u16 = 32768;

/// DNS, of which a server on every address is in the way of dnsmasq.
const DNS: u16 = 53;
/// DHCP and DHCPv6, of which any server is.
const DHCP: [u16; 2] = [67, 547];

/// The TCP sockets that listen, and the UDP sockets that take packets from anybody at a server's port.
///
/// # Errors
/// `/proc` is not readable.
pub fn listeners() -> io::Result<Vec<Listener>> {
    let mut all = Vec::new();
    for (file, protocol) in [
        ("tcp", Protocol::Tcp),
        ("tcp6", Protocol::Tcp),
        ("udp", Protocol::Udp),
        ("udp6", Protocol::Udp),
    ] {
        let text = match fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // no IPv6
            text => text?,
        };
        all.extend(text.lines().filter_map(|line| listener(protocol, line)));
    }
    let mut all = with_programs(all);
    all.sort();
    all.dedup();
    Ok(all)
}

/// The listeners of `all`, with the programs of those that are in the way of dnsmasq.
fn with_programs(mut all: Vec<(Listener, u64)>) -> Vec<Listener> {
    let matters =
        |it: &Listener| DHCP.contains(&it.port) || it.port == DNS && it.address.is_unspecified();
    let inodes: BTreeSet<u64> = all
        .iter()
        .filter(|(listener, _)| matters(listener))
        .map(|(_, inode)| *inode)
        .collect();
    let programs = programs::holders(&inodes);
    for (listener, inode) in &mut all {
        listener.program = programs.get(inode).cloned();
    }
    all.into_iter().map(|(listener, _)| listener).collect()
}

/// A line is a number, the local and the remote address, the state, five more words, the socket's inode, and more.
fn listener(protocol: Protocol, line: &str) -> Option<(Listener, u64)> {
    let mut words = line.split_whitespace().skip(1);
    let (address, port) = socket(words.next()?)?;
    let (_, remote_port) = socket(words.next()?)?;
    let state = words.next()?;
    let serves = match protocol {
        Protocol::Tcp => state == LISTEN,
        Protocol::Udp => remote_port == 0 && port < FIRST_EPHEMERAL,
    };
    let listener = Listener {
        protocol,
        address,
        port,
        program: None,
    };
    let inode = words.nth(5)?.parse().ok()?;
    serves.then_some((listener, inode))
}

/// `0100007F:0035`: the address in words of 32 bits, each as this machine has it in memory, and the port.
fn socket(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = address.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        _ => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn servers_are_told_from_clients() {
        let rest = "00000000:00000000 00:00000000 00000000 0 0 4711 1 0";
        let read = |protocol, line: &str| {
            let (it, inode) = listener(protocol, &format!("{line} {rest}"))?;
            assert_eq!(inode, 4711);
            Some((it.address.to_string(), it.port))
        };
        let some = |address: &str, port| Some((address.to_owned(), port));
        let listens = "0: 0100007F:1F90 00000000:0000 0A";
        assert_eq!(read(Protocol::Tcp, listens), some("127.0.0.1", 8080));
        let connected = "1: 0100007F:1F90 0100007F:8000 01";
        assert_eq!(read(Protocol::Tcp, connected), None);
        let six =
            "0: 0000000000000000FFFF00000100007F:0016 00000000000000000000000000000000:0000 0A";
        assert_eq!(read(Protocol::Tcp, six), some("::ffff:127.0.0.1", 22));
        let dns = "5: 00000000:0035 00000000:0000 07";
        assert_eq!(read(Protocol::Udp, dns), some("0.0.0.0", 53));
        let client = "5: 00000000:8001 00000000:0000 07";
        assert_eq!(read(Protocol::Udp, client), None);
        assert_eq!(
            read(Protocol::Tcp, "  sl  local_address rem_address   st"),
            None
        );
    }
}
