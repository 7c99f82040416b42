//! Those who open connections to each other: namespaces with addresses, and servers that tell who they see.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use super::netns::Netns;

/// Where everybody serves.
pub const PORT: u16 = 7777;

/// What is allowed is done well within this; what is dropped is waited for as long.
const PATIENCE: Duration = Duration::from_secs(2);

/// Somebody with addresses.
pub struct Party {
    pub netns: Netns,
    pub ips: Vec<IpAddr>,
}

impl Party {
    pub fn new(netns: Netns, ips: &[String]) -> Self {
        serve(&netns);
        let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        Self { netns, ips }
    }

    pub fn ip(&self, ipv6: bool) -> IpAddr {
        let ip = self.ips.iter().find(|ip| ip.is_ipv6() == ipv6);
        *ip.unwrap()
    }
}

/// Serves TCP (which tells the client its own address) and UDP (which echoes), until the test's process ends.
pub fn serve(netns: &Netns) {
    let any = (Ipv6Addr::UNSPECIFIED, PORT);
    let (tcp, udp) = netns.within(|| {
        (
            TcpListener::bind(any).unwrap(),
            UdpSocket::bind(any).unwrap(),
        )
    });
    thread::spawn(move || {
        for mut stream in tcp.incoming().map_while(Result::ok) {
            if let Ok(peer) = stream.peer_addr() {
                let _ = write!(stream, "{}", peer.ip().to_canonical());
            }
        }
    });
    thread::spawn(move || {
        let mut bytes = [0; 16];
        while let Ok((len, from)) = udp.recv_from(&mut bytes) {
            let _ = udp.send_to(&bytes[..len], from);
        }
    });
}

/// Whom `to` sees at the other end of a TCP connection from `from`, if there can be one.
pub fn seen_by(to: SocketAddr, from: &Netns) -> Option<IpAddr> {
    let connected = from.within(|| TcpStream::connect_timeout(&to, PATIENCE));
    let mut stream = connected.ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.parse().ok()
}

/// Whether a UDP datagram gets there and back.
pub fn is_echoed(to: SocketAddr, from: &Netns) -> bool {
    let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = from.within(|| UdpSocket::bind(any).unwrap());
    let exchange = || -> std::io::Result<usize> {
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(b"x")?;
        socket.recv(&mut [0; 16])
    };
    exchange().is_ok()
}

/// Whether `to` is reached by TCP, UDP and ICMP.
pub fn reaches(from: &Netns, to: IpAddr) -> [bool; 3] {
    let ping = from.attempt(&format!("ping -n -c 1 -W 2 {to}"));
    [
        seen_by((to, PORT).into(), from).is_some(),
        is_echoed((to, PORT).into(), from),
        ping.status.success(),
    ]
}
