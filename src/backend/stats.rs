//! Counters and addresses for Prometheus: text over HTTP on a unix socket or a loopback address.
//!
//! # Theory of operation
//! The main loop accepts, asks the workers for what they have seen, and hands connection and text to a thread that lives
//! for this one answer: at most `DEADLINE`, whatever the client does, and at most `MOST_CLIENTS` of them. So a
//! slow client harms neither the loop nor anybody else. Any request is answered alike; it is read only so that the
//! connection can be closed in order.
//!
//! [`render`] is pure: the format is Prometheus' text exposition format 0.0.4. `queue` is `receiveq` or `transmitq`
//! as virtio names them, `pair` counts from 0.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use thiserror::Error;

use super::chain::BadChain;
use super::counters::Counters;
use super::guard::Reason;
use super::socket::{Socket, SocketError};
use super::worker::Report;
use crate::types::InvalidValue;

/// How long one answer may take in all.
const DEADLINE: Duration = Duration::from_secs(2);
/// How many clients are answered at once; more are hung up on.
const MOST_CLIENTS: usize = 8;
/// A request that is longer is no scraper's.
const MOST_REQUEST: usize = 8 << 10;

/// Where counters are served: `unix:PATH`, or an address of the loopback such as `127.0.0.1:9100` or `[::1]:9100`.
///
/// Only there: the answer is not protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatsAddr {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP address that is a loopback's; port 0 lets the kernel choose.
    Loopback(SocketAddr),
}

impl FromStr for StatsAddr {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let path = text.strip_prefix("unix:").filter(|path| !path.is_empty());
        if let Some(path) = path {
            return Ok(Self::Unix(path.into()));
        }
        text.parse::<SocketAddr>()
            .ok()
            .filter(|addr| addr.ip().is_loopback())
            .map(Self::Loopback)
            .ok_or_else(|| {
                InvalidValue::new(
                    text,
                    "unix:PATH or a loopback address and port, such as 127.0.0.1:9100",
                )
            })
    }
}

impl fmt::Display for StatsAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Loopback(addr) => addr.fmt(f),
        }
    }
}

/// Why counters can't be served.
#[derive(Debug, Error)]
pub enum StatsError {
    /// The unix socket can't be had.
    #[error("--stats")]
    Socket(#[from] SocketError),
    /// There are too many open files, as a rule.
    #[error("no scraper can be accepted")]
    Accept(#[source] io::Error),
    /// The address can't be had.
    #[error("--stats {addr}: it can't be listened on")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
}

/// A listener for scrapers, which never blocks.
#[derive(Debug)]
pub struct StatsServer {
    listener: Listener,
    /// One for each client that is being answered, beside this one.
    clients: Arc<()>,
}

#[derive(Debug)]
enum Listener {
    Unix(Socket),
    Tcp(TcpListener),
}

impl StatsServer {
    /// Listens on `addr`.
    ///
    /// # Errors
    /// See [`StatsError`].
    pub fn listen(addr: &StatsAddr) -> Result<Self, StatsError> {
        let listener = match addr {
            StatsAddr::Unix(path) => Listener::Unix(Socket::listen(path)?),
            StatsAddr::Loopback(addr) => Listener::Tcp(
                listen_tcp(*addr).map_err(|cause| StatsError::Listen { addr: *addr, cause })?,
            ),
        };
        Ok(Self {
            listener,
            clients: Arc::new(()),
        })
    }

    /// Answers the next client with what `text` gives, in a thread of its own. `text` is not asked where there is no
    /// client, or too many.
    ///
    /// # Errors
    /// What `text` fails with, and that no client can be accepted, who is still there then. One that can't be answered is logged.
    pub fn serve<E: From<StatsError>>(
        &self,
        text: impl FnOnce() -> Result<String, E>,
    ) -> Result<(), E> {
        let client = match self.listener.accept() {
            Ok(client) => client,
            Err(error) => {
                return match error.kind() {
                    // It has left again.
                    io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted => Ok(()),
                    _ => Err(StatsError::Accept(error).into()),
                };
            }
        };
        if Arc::strong_count(&self.clients) > MOST_CLIENTS {
            tracing::warn!("more than {MOST_CLIENTS} scrapers at once: one is hung up on");
            return Ok(());
        }
        let (text, token) = (text()?, Arc::clone(&self.clients));
        let answering = std::thread::Builder::new()
            .name("stats".into())
            .spawn(move || {
                if let Err(error) = answer(client, &text) {
                    tracing::debug!("a scraper was not answered: {error}");
                }
                drop(token);
            });
        if let Err(error) = answering {
            tracing::warn!("a scraper was not answered: {error}");
        }
        Ok(())
    }
}

impl AsRawFd for StatsServer {
    fn as_raw_fd(&self) -> RawFd {
        match &self.listener {
            Listener::Unix(socket) => socket.as_raw_fd(),
            Listener::Tcp(listener) => listener.as_raw_fd(),
        }
    }
}

impl Listener {
    fn accept(&self) -> io::Result<Client> {
        match self {
            Self::Unix(socket) => socket.accept().map(Client::Unix),
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| Client::Tcp(stream)),
        }
    }
}

fn listen_tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    tracing::info!("counters on http://{}/metrics", listener.local_addr()?);
    Ok(listener)
}

/// A scraper's connection.
enum Client {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Client {
    /// Lets the next read or write take no longer than until `end`.
    fn limit(&self, end: Instant) -> io::Result<()> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(left))?;
                stream.set_write_timeout(Some(left))
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(left))?;
                stream.set_write_timeout(Some(left))
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buffer),
            Self::Tcp(stream) => stream.write(buffer),
        }
    }
}

/// Reads a request as far as its empty line, and answers it (HTTP/1.0, RFC 1945).
fn answer(mut client: Client, text: &str) -> io::Result<()> {
    let end = Instant::now() + DEADLINE;
    read_request(&mut client, end)?;
    let head = format!(
        "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        text.len()
    );
    for part in [head.as_bytes(), text.as_bytes()] {
        let mut left = part;
        while !left.is_empty() {
            client.limit(end)?;
            let written = client.write(left)?;
            left = &left[written..];
        }
    }
    Ok(())
}

fn read_request(client: &mut Client, end: Instant) -> io::Result<()> {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !is_whole(&request) {
        if request.len() > MOST_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        client.limit(end)?;
        let bytes = client.read(&mut chunk)?;
        if bytes == 0 {
            return Ok(()); // a client that only listens from here on
        }
        request.extend_from_slice(&chunk[..bytes]);
    }
    Ok(())
}

/// Whether a request's empty line is there.
fn is_whole(request: &[u8]) -> bool {
    [&b"\r\n\r\n"[..], b"\n\n"]
        .iter()
        .any(|end| request.windows(end.len()).any(|window| window == *end))
}

/// A counter's name without `ringtap_` and `_total`, what it says, and where it is kept.
type Metric = (&'static str, &'static str, fn(&Counters) -> u64);

const METRICS: &[Metric] = &[
    ("frames", "Frames moved.", |c| c.frames),
    (
        "bytes",
        "Bytes of frames moved, without virtio-net headers.",
        |c| c.bytes,
    ),
    (
        "gso_frames",
        "Frames moved that are yet to be segmented.",
        |c| c.gso_frames,
    ),
    (
        "bad_index",
        "Looks at a ring whose avail index made no sense.",
        |c| c.bad_index,
    ),
    ("kicks", "Kicks taken from the driver.", |c| c.kicks),
    ("calls", "Notifications sent to the driver.", |c| c.calls),
    ("spins", "Looks for more work instead of sleeping.", |c| {
        c.spins
    }),
    ("syscalls", "Reads and writes of the tap.", |c| c.syscalls),
    (
        "throttled",
        "Bursts ended or put off by the rate limit.",
        |c| c.throttled,
    ),
];

/// What tells an address of the guest, as the label `address`.
pub const GUEST_ADDRESS: &str = "ringtap_guest_address";

/// What tells one of the last frames that the guard has refused, as the labels `reason` and `frame`, and when, in seconds since
/// 1970.
pub const REFUSED_FRAME: &str = "ringtap_refused_frame_timestamp_seconds";

/// Why frames were dropped, as the label `reason`, and where they are counted.
type Drop = (&'static str, fn(&Counters) -> u64);

const DROPS: &[Drop] = &[
    ("not_taken", |c| c.dropped),
    ("over_mtu", |c| c.over_mtu),
    ("disabled", |c| c.disabled),
];

/// What every pair has seen as Prometheus text; `tap` is what frames go through.
pub fn render(tap: &str, pairs: &[Report]) -> String {
    let mut text = Exposition {
        text: String::new(),
        tap: escape(tap),
        pairs,
    };
    for (name, help, value) in METRICS {
        text.head(name, help);
        text.lines(name, "", value);
    }
    text.head(
        "dropped",
        "Frames dropped: not taken by tap or receiveq, larger than the MTU, of a disabled transmitq.",
    );
    for (reason, value) in DROPS {
        text.lines("dropped", &format!(",reason=\"{reason}\""), value);
    }
    text.head(
        "refused",
        "Frames that claim what the guest has no right to.",
    );
    for reason in Reason::ALL {
        let label = format!(",reason=\"{reason}\"");
        text.lines("refused", &label, |c| c.refused.of(reason));
    }
    text.head(
        "bad_chains",
        "Descriptor chains given back unused, by kind.",
    );
    for kind in BadChain::ALL {
        let label = format!(",kind=\"{}\"", snake_case(&format!("{kind:?}")));
        text.lines("bad_chains", &label, |c| c.bad_chains.of(kind));
    }
    text.addresses();
    text.refusals();
    text.text
}

struct Exposition<'a> {
    text: String,
    tap: String,
    pairs: &'a [Report],
}

impl Exposition<'_> {
    fn head(&mut self, name: &str, help: &str) {
        // Writing to a String can't fail.
        let _ = writeln!(self.text, "# HELP ringtap_{name}_total {help}");
        let _ = writeln!(self.text, "# TYPE ringtap_{name}_total counter");
    }

    /// A line for every queue; `label` is one more, with a comma before it.
    fn lines(&mut self, name: &str, label: &str, value: impl Fn(&Counters) -> u64) {
        for (pair, report) in self.pairs.iter().enumerate() {
            for (queue, counters) in [("receiveq", &report.rx), ("transmitq", &report.tx)] {
                let _ = writeln!(
                    self.text,
                    "ringtap_{name}_total{{tap=\"{}\",pair=\"{pair}\",queue=\"{queue}\"{label}}} {}",
                    self.tap,
                    value(counters)
                );
            }
        }
    }

    /// A line for every refused frame that is kept.
    fn refusals(&mut self) {
        let help = "When the last refused frames came.";
        let _ = writeln!(self.text, "# HELP {REFUSED_FRAME} {help}");
        let _ = writeln!(self.text, "# TYPE {REFUSED_FRAME} gauge");
        for (pair, report) in self.pairs.iter().enumerate() {
            for (number, refusal) in report.refusals.iter().enumerate() {
                let since = refusal.at.duration_since(UNIX_EPOCH).unwrap_or_default();
                let _ = writeln!(
                    self.text,
                    "{REFUSED_FRAME}{{tap=\"{}\",pair=\"{pair}\",number=\"{number}\",reason=\"{}\",frame=\"{refusal}\"}} {:.3}",
                    self.tap,
                    refusal.reason,
                    since.as_secs_f64()
                );
            }
        }
    }

    /// A line for every address of the guest, whichever queue it was heard on.
    fn addresses(&mut self) {
        let of_all = self.pairs.iter().flat_map(|pair| pair.heard.addresses());
        let addresses: BTreeSet<IpAddr> = of_all.collect();
        let help = "Addresses by which the guest has made itself heard of late.";
        let _ = writeln!(self.text, "# HELP {GUEST_ADDRESS} {help}");
        let _ = writeln!(self.text, "# TYPE {GUEST_ADDRESS} gauge");
        for address in addresses {
            let tap = &self.tap;
            let _ = writeln!(
                self.text,
                "{GUEST_ADDRESS}{{tap=\"{tap}\",address=\"{address}\"}} 1"
            );
        }
    }
}

/// A label's value as the format wants it.
fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// `TooLong` as `too_long`.
fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for (i, c) in name.char_indices() {
        if c.is_ascii_uppercase() && i > 0 {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::guard::{Refusal, Refusals};
    use super::super::heard::Heard;
    use super::*;

    #[test]
    fn only_unix_sockets_and_the_loopback_are_accepted() {
        for text in [
            "unix:/run/a b.sock",
            "127.0.0.1:9100",
            "[::1]:0",
            "127.1.2.3:1",
        ] {
            assert_eq!(text.parse::<StatsAddr>().unwrap().to_string(), text);
        }
        for text in [
            "unix:",
            "0.0.0.0:9100",
            "192.0.2.1:80",
            "[::]:80",
            "9100",
            "localhost:9100",
            "",
        ] {
            assert!(text.parse::<StatsAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_queue_has_a_line_of_every_counter() {
        let mut rx = Counters {
            frames: 7,
            dropped: 2,
            ..Counters::default()
        };
        rx.bad_chains.add(BadChain::Size);
        let tx = Counters {
            frames: 8,
            bytes: 640,
            disabled: 3,
            ..Counters::default()
        };
        let mut heard = Heard::default();
        heard.remember("192.0.2.5".parse().unwrap());
        let mut refusals = Refusals::default();
        let mut refusal = Refusal::new(Reason::Vlan, &[0x81; 60]);
        refusal.at = UNIX_EPOCH + Duration::from_millis(12_345);
        refusals.add(refusal);
        let report = Report {
            rx,
            tx,
            heard,
            refusals,
        };
        let text = render("t\"0", &[report, Default::default()]);
        for line in [
            "# TYPE ringtap_frames_total counter",
            r#"ringtap_frames_total{tap="t\"0",pair="0",queue="receiveq"} 7"#,
            r#"ringtap_frames_total{tap="t\"0",pair="0",queue="transmitq"} 8"#,
            r#"ringtap_bytes_total{tap="t\"0",pair="0",queue="transmitq"} 640"#,
            r#"ringtap_frames_total{tap="t\"0",pair="1",queue="transmitq"} 0"#,
            r#"ringtap_dropped_total{tap="t\"0",pair="0",queue="receiveq",reason="not_taken"} 2"#,
            r#"ringtap_dropped_total{tap="t\"0",pair="0",queue="transmitq",reason="disabled"} 3"#,
            r#"ringtap_bad_chains_total{tap="t\"0",pair="0",queue="receiveq",kind="size"} 1"#,
            r#"ringtap_refused_total{tap="t\"0",pair="1",queue="transmitq",reason="vlan"} 0"#,
            r#"ringtap_guest_address{tap="t\"0",address="192.0.2.5"} 1"#,
            r#"ringtap_refused_frame_timestamp_seconds{tap="t\"0",pair="0",number="0",reason="vlan",frame="81:81:81:81:81:81 > 81:81:81:81:81:81, EtherType 0x8181"} 12.345"#,
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
        let samples = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(
            samples,
            4 * (METRICS.len() + DROPS.len() + BadChain::ALL.len() + Reason::ALL.len()) + 2
        );
    }

    #[test]
    fn a_request_ends_with_an_empty_line() {
        assert!(is_whole(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert!(is_whole(b"GET /\n\n"));
        assert!(!is_whole(b"GET / HTTP/1.0\r\nHost: x\r\n"));
    }
}
