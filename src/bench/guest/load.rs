//! What a guest is measured by: iperf3, whose server it runs, and pings.

use std::io;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::ping;
use super::{GuestBenchError, Subject};
use crate::bench::cpu;
use crate::bench::sample::{Latency, Times};
use crate::signals::end_is_asked;

/// Who answers no ping within that has lost it.
const LOST: Duration = Duration::from_secs(1);

/// For so long iperf3's server may not be ready.
const BETWEEN: Duration = Duration::from_secs(10);

/// Bytes of a packet of UDP, without headers.
const UDP_BYTES: u32 = 1448;

/// Packets a second, where that is fixed; a guest that QEMU translates does not send as many.
const PACE: u32 = 100_000;

/// What is sent, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// TCP by so many streams.
    Tcp {
        /// Who sends.
        from: From,
        /// Streams.
        streams: u16,
    },
    /// UDP as fast as it goes, in packets of [`UDP_BYTES`].
    Udp {
        /// Who sends.
        from: From,
    },
    /// UDP, at most [`PACE`] packets a second, for what they cost.
    Paced {
        /// Who sends.
        from: From,
    },
    /// Pings by the host, the next when the last is answered.
    Ping,
}

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// The guest.
    Guest,
    /// The host.
    Host,
}

/// What was seen in a while.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Measured {
    /// Bits a second that have arrived, without headers.
    pub bits_per_second: f64,
    /// The part of packets, of UDP or of pings, that has not.
    pub lost: f64,
    /// Segments that TCP has sent again.
    pub retransmits: u64,
    /// Bytes of those.
    pub bytes: f64,
    /// Nanoseconds of CPU that the whole host was busy meanwhile.
    pub cpu_ns: u64,
    /// Nanoseconds of CPU of what moves the NIC's frames, without the guest's own CPUs; none where they can't be told apart.
    pub device_ns: Option<u64>,
    /// How long pings took.
    pub latency: Option<Latency>,
}

impl Load {
    /// Each kind, with so many streams where there are several.
    pub fn all(streams: u16) -> [Self; 9] {
        let tcp = |from, streams| Self::Tcp { from, streams };
        [
            tcp(From::Guest, 1),
            tcp(From::Host, 1),
            tcp(From::Guest, streams),
            tcp(From::Host, streams),
            Self::Udp { from: From::Guest },
            Self::Udp { from: From::Host },
            Self::Paced { from: From::Guest },
            Self::Paced { from: From::Host },
            Self::Ping,
        ]
    }

    /// As reports have it.
    pub fn title(self) -> String {
        let way = |from| match from {
            From::Guest => "guest to host",
            From::Host => "host to guest",
        };
        match self {
            Self::Tcp { from, streams: 1 } => format!("TCP, {}", way(from)),
            Self::Tcp { from, streams } => format!("TCP, {}, {streams} streams", way(from)),
            Self::Udp { from } => format!("UDP, {}", way(from)),
            Self::Paced { from } => format!("UDP, {}, at most {} kpps", way(from), PACE / 1000),
            Self::Ping => "pings".to_owned(),
        }
    }

    /// Loads `subject` for `span`.
    ///
    /// # Errors
    /// See [`GuestBenchError`].
    pub fn sample(self, subject: &Subject, span: Duration) -> Result<Measured, GuestBenchError> {
        match self {
            Self::Tcp { from, streams } => {
                let streams = streams.to_string();
                iperf(subject, span, from, &["--parallel", &streams])
            }
            Self::Udp { from } => udp(subject, span, from, 0),
            Self::Paced { from } => udp(subject, span, from, PACE * UDP_BYTES * 8),
            Self::Ping => ping(subject, span),
        }
    }
}

/// CPU that was used up to some moment.
struct Used {
    machine: u64,
    device: Option<u64>,
}

impl Used {
    fn so_far(subject: &Subject) -> io::Result<Self> {
        Ok(Self {
            machine: cpu::of_machine()?,
            device: subject.device.cpu()?,
        })
    }

    /// What has been used since, of the machine and of the device.
    fn since(&self, subject: &Subject) -> io::Result<(u64, Option<u64>)> {
        let now = Self::so_far(subject)?;
        let device = now.device.zip(self.device);
        Ok((
            now.machine.saturating_sub(self.machine),
            device.map(|(now, before)| now.saturating_sub(before)),
        ))
    }
}

impl Measured {
    /// Nanoseconds of the host's CPU for each packet of UDP that has arrived.
    pub fn cpu_a_packet(&self) -> f64 {
        self.cpu_ns as f64 * f64::from(UDP_BYTES) / self.bytes
    }

    /// Likewise, of what moves its frames alone; not a number where that is not known.
    pub fn device_a_packet(&self) -> f64 {
        let device_ns = self.device_ns.map_or(f64::NAN, |ns| ns as f64);
        device_ns * f64::from(UDP_BYTES) / self.bytes
    }
}

/// UDP of so many bits a second, or as many as go where that is 0.
fn udp(
    subject: &Subject,
    span: Duration,
    from: From,
    bits: u32,
) -> Result<Measured, GuestBenchError> {
    let (bits, bytes) = (bits.to_string(), UDP_BYTES.to_string());
    let words = ["--udp", "--bitrate", &bits, "--length", &bytes];
    iperf(subject, span, from, &words)
}

/// What of iperf3's report is used.
#[derive(Debug, Deserialize)]
struct Told {
    error: Option<String>,
    #[serde(default)]
    end: End,
}

#[derive(Debug, Default, Deserialize)]
struct End {
    /// TCP's, or UDP's where iperf3 is new enough.
    sum_received: Option<Sum>,
    sum_sent: Option<Sum>,
    /// UDP's, as the receiver has it.
    sum: Option<Sum>,
}

#[derive(Debug, Deserialize)]
struct Sum {
    bits_per_second: f64,
    bytes: f64,
    retransmits: Option<u64>,
    lost_percent: Option<f64>,
}

fn iperf(
    subject: &Subject,
    span: Duration,
    from: From,
    words: &[&str],
) -> Result<Measured, GuestBenchError> {
    let mut command = Command::new("iperf3");
    let seconds = span.as_secs_f64().ceil().to_string();
    command.args([
        "--client",
        &subject.address.to_string(),
        "--time",
        &seconds,
        "--json",
    ]);
    command.args(["--connect-timeout", "5000"]).args(words);
    if from == From::Guest {
        command.arg("--reverse");
    }
    command.stdin(Stdio::null());
    let end = Instant::now() + BETWEEN;
    loop {
        // Of a try that fails nothing is counted.
        let used = Used::so_far(subject)?;
        let done = command.output()?;
        let (cpu_ns, device_ns) = used.since(subject)?;
        let why = match read(&done.stdout, words.contains(&"--udp")) {
            Ok(measured) => {
                return Ok(Measured {
                    cpu_ns,
                    device_ns,
                    ..measured
                });
            }
            Err(why) if why.is_empty() => String::from_utf8_lossy(&done.stderr).trim().to_owned(),
            Err(why) => why,
        };
        if !is_between_tests(&why) || Instant::now() >= end || end_is_asked() {
            return Err(GuestBenchError::Iperf(why));
        }
        thread::sleep(BETWEEN / 50);
    }
}

/// Whether a server that says so, or nothing, may yet be ready: between two tests it does not listen.
fn is_between_tests(why: &str) -> bool {
    let words = [
        "unable to connect",
        "unable to receive control message",
        "busy",
    ];
    words.iter().any(|word| why.contains(word))
}

/// What iperf3's JSON says; why there is none.
fn read(json: &[u8], is_udp: bool) -> Result<Measured, String> {
    let told: Told = serde_json::from_slice(json).map_err(|_| String::new())?;
    if let Some(error) = told.error {
        return Err(error);
    }
    let End {
        sum_received,
        sum_sent,
        sum,
    } = told.end;
    let lost = sum.as_ref().and_then(|it| it.lost_percent).unwrap_or(0.0) / 100.0;
    let (received, arrived) = match (is_udp, sum_received, sum) {
        (false, Some(received), _) => (received, 1.0),
        // What the receiver has is told as what was sent, and the part of it that was lost.
        (true, _, Some(sum)) => (sum, 1.0 - lost),
        _ => return Err("its report has no sum".to_owned()),
    };
    Ok(Measured {
        bits_per_second: received.bits_per_second * arrived,
        bytes: received.bytes * arrived,
        lost,
        retransmits: sum_sent.and_then(|it| it.retransmits).unwrap_or(0),
        cpu_ns: 0,
        device_ns: None,
        latency: None,
    })
}

fn ping(subject: &Subject, span: Duration) -> Result<Measured, GuestBenchError> {
    let mut socket = ping::Pinger::to(subject.address)?;
    let mut times = Times::new();
    let (mut sent, mut lost) = (0u64, 0u64);
    let (start, used) = (Instant::now(), Used::so_far(subject)?);
    while start.elapsed() < span && !end_is_asked() {
        sent += 1;
        match socket.ask(LOST)? {
            Some(time) => times.add(time),
            None => lost += 1,
        }
    }
    if lost == sent {
        return Err(io::Error::from(io::ErrorKind::TimedOut).into());
    }
    let (cpu_ns, device_ns) = used.since(subject)?;
    Ok(Measured {
        bits_per_second: 0.0,
        bytes: 0.0,
        lost: lost as f64 / sent as f64,
        retransmits: 0,
        cpu_ns,
        device_ns,
        latency: Some(times.latency()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_tcp_is_read() {
        let json = br#"{"start":{},"end":{"sum_sent":{"bits_per_second":2e9,"bytes":3e9,"retransmits":7},"sum_received":{"bits_per_second":1.9e9,"bytes":2.9e9}}}"#;
        let measured = read(json, false).unwrap();
        assert_eq!(measured.bits_per_second, 1.9e9);
        assert_eq!(measured.bytes, 2.9e9);
        assert_eq!(measured.retransmits, 7);
    }

    #[test]
    fn of_udp_what_is_lost_does_not_count() {
        let json = br#"{"end":{"sum":{"bits_per_second":1e9,"bytes":4e9,"lost_percent":25.0}}}"#;
        let measured = read(json, true).unwrap();
        assert_eq!(measured.bits_per_second, 0.75e9);
        assert_eq!(measured.bytes, 3e9);
        assert_eq!(measured.lost, 0.25);
    }

    #[test]
    fn why_there_is_no_report_is_told() {
        let json = br#"{"start":{},"error":"unable to connect to server"}"#;
        assert_eq!(
            read(json, false).unwrap_err(),
            "unable to connect to server"
        );
        assert_eq!(read(b"", false).unwrap_err(), "");
        assert_eq!(read(b"{}", false).unwrap_err(), "its report has no sum");
    }
}
