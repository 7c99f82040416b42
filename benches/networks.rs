//! What many networks cost: `up`, `status`, a one-line change and `down`, beside `ip -batch`, `nft -f` and `sysctl -p` that
//! do the same raw work in the same run. As root; in a namespace of its own.
//!
//! `cargo bench --bench networks [-- NETWORKS...]`. The starts and ends of dnsmasq are told apart by the lines that `up` and
//! `down` print before each step, and left out of the ratio. Medians of five, ours and the raw work alternating.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::host::Host;
use support::netns::bounded;

const ROUNDS: usize = 5;
const PORTS_A_NETWORK: usize = 5;

fn main() {
    let words = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse().ok());
    let mut counts: Vec<usize> = words.collect();
    if counts.is_empty() {
        counts = vec![50, 100, 200];
    }
    println!(
        "{:>8} {:>6} {:>9} {:>9} {:>6} {:>9} {:>9} {:>9} {:>9} {:>6} {:>9}",
        "networks",
        "ports",
        "up ms",
        "raw ms",
        "ratio",
        "dnsmasq",
        "status",
        "change",
        "down ms",
        "ratio",
        "raw ms"
    );
    for count in counts {
        println!("{}", measure(count));
    }
}

/// Median times of one count of networks.
#[derive(Default)]
struct Times {
    up: Vec<Duration>,
    dnsmasq: Vec<Duration>,
    raw_up: Vec<Duration>,
    status: Vec<Duration>,
    change: Vec<Duration>,
    down: Vec<Duration>,
    raw_down: Vec<Duration>,
}

fn measure(count: usize) -> String {
    let mut times = Times::default();
    for _ in 0..ROUNDS {
        let host = Host::new(&file(count, ""));
        let raw = Raw::of(&host);
        raw.up(&host, &mut times);
        raw.down(&host, &mut times);

        let (whole, dnsmasq) = timed(&host, "up", "dnsmasq ");
        times.up.push(whole - dnsmasq);
        times.dnsmasq.push(dnsmasq);
        plug(&host, count);
        let start = Instant::now();
        host.ringtap(&["status"]).succeeded();
        times.status.push(start.elapsed());
        host.configure(&file(count, "isolate-guests = true\n"));
        let start = Instant::now();
        host.ringtap(&["up"]).succeeded();
        times.change.push(start.elapsed());
        unplug(&host, count);
        let (whole, dnsmasq) = timed(&host, "down", "kill ");
        times.down.push(whole - dnsmasq);
    }
    let ms = |times: &[Duration]| {
        let mut times = times.to_vec();
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e3
    };
    let (up, raw_up) = (ms(&times.up), ms(&times.raw_up));
    let (down, raw_down) = (ms(&times.down), ms(&times.raw_down));
    format!(
        "{count:>8} {:>6} {up:>9.0} {raw_up:>9.0} {:>6.2} {:>9.0} {:>9.0} {:>9.0} {down:>9.0} {:>6.2} {raw_down:>9.0}",
        count * PORTS_A_NETWORK,
        up / raw_up,
        ms(&times.dnsmasq),
        ms(&times.status),
        ms(&times.change),
        down / raw_down,
    )
}

/// `count` NAT networks of both families; `more` is in the first.
fn file(count: usize, more: &str) -> String {
    let mut text = String::new();
    for number in 0..count {
        let more = if number == 0 { more } else { "" };
        let _ = write!(
            text,
            "[networks.n{number}]\nmode = \"nat\"\nsubnet = \"10.{}.{}.0/24\"\nipv6 = \"fd00:{number:x}::/64\"\n{more}",
            100 + number / 256,
            number % 256
        );
    }
    text
}

/// How long a command takes, and how much of it goes to steps that begin with `word`.
fn timed(host: &Host, command: &str, word: &str) -> (Duration, Duration) {
    let start = Instant::now();
    let mut child = host
        .command(&[command])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut within = Duration::ZERO;
    let mut since = None;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let step = line.rsplit("] ").next().unwrap();
        if let Some(since) = since.take() {
            within += Instant::now() - since;
        }
        if step.starts_with(word) {
            since = Some(Instant::now());
        }
    }
    assert!(child.wait().unwrap().success());
    (start.elapsed(), within)
}

/// The plan's commands, by who does them.
struct Raw {
    ip: String,
    nft: String,
    sysctl: String,
    bridges: usize,
}

impl Raw {
    fn of(host: &Host) -> Self {
        let plan = host.ringtap(&["plan"]).succeeded();
        let (mut ip, mut nft, mut sysctl) = (String::new(), String::new(), String::new());
        let mut here = None;
        for line in plan.lines() {
            match here {
                Some(_) if line == "EOF" => here = None,
                Some(true) => nft += &format!("{line}\n"),
                Some(false) => {}
                None if line.ends_with("<<'EOF'") => here = Some(line.starts_with("nft")),
                None => {
                    if let Some(words) = line.strip_prefix("ip ") {
                        ip += &format!("{words}\n");
                    } else if let Some(words) = line.strip_prefix("sysctl -w net.") {
                        sysctl += &format!("net.{words}\n");
                    }
                }
            }
        }
        let bridges = ip.matches("type bridge").count();
        Self {
            ip,
            nft,
            sysctl,
            bridges,
        }
    }

    fn up(&self, host: &Host, times: &mut Times) {
        // Links first: sysctls are theirs.
        let (links, rest): (Vec<&str>, Vec<&str>) = self
            .ip
            .lines()
            .partition(|line| line.starts_with("link add"));
        let start = Instant::now();
        run(host, "ip", &["-batch", "-"], &(links.join("\n") + "\n"));
        run(host, "sysctl", &["-q", "-p", "-"], &self.sysctl);
        run(host, "nft", &["-f", "-"], &self.nft);
        run(host, "ip", &["-batch", "-"], &(rest.join("\n") + "\n"));
        times.raw_up.push(start.elapsed());
    }

    fn down(&self, host: &Host, times: &mut Times) {
        let tables: String = (0..self.bridges)
            .map(|number| format!("delete table inet ringtap_n{number}\n"))
            .collect();
        let links: String = (0..self.bridges)
            .map(|number| format!("link delete rt-n{number}\n"))
            .collect();
        let start = Instant::now();
        run(host, "nft", &["-f", "-"], &tables);
        run(host, "ip", &["-batch", "-"], &links);
        times.raw_down.push(start.elapsed());
        run(
            host,
            "sysctl",
            &["-q", "-p", "-"],
            "net.ipv4.ip_forward=0\nnet.ipv6.conf.all.forwarding=0\n",
        );
    }
}

fn run(host: &Host, program: &str, args: &[&str], input: &str) {
    let mut command: Command = host.netns.command(program);
    let output = bounded(command.args(args), input);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {errors}");
}

/// Ports, as guests have them.
fn plug(host: &Host, count: usize) {
    let mut batch = String::new();
    for number in 0..count * PORTS_A_NETWORK {
        let bridge = number / PORTS_A_NETWORK;
        let _ = writeln!(batch, "tuntap add t{number} mode tap");
        let _ = writeln!(batch, "link set t{number} master rt-n{bridge} up");
    }
    run(host, "ip", &["-batch", "-"], &batch);
}

fn unplug(host: &Host, count: usize) {
    let lines = (0..count * PORTS_A_NETWORK).map(|number| format!("link delete t{number}\n"));
    run(host, "ip", &["-batch", "-"], &lines.collect::<String>());
}
