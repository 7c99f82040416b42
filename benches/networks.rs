//! What many networks cost: `up`, `status`, a one-line change and `down`, each beside the same raw work in the same run. As
//! root; in a namespace of its own.
//!
//! `cargo bench --bench networks [-- NETWORKS...]`. The raw work is
//! - of `up`: `ip -batch`, `sysctl -p` and `nft -f` with the commands of `ringtap plan`, all of them but dnsmasq's;
//! - of `status`: to list what it compares, links, addresses, routes and tables, by `ip -j` and `nft -j`;
//! - of the change, which is of one network's rules: `nft -f` with its table, and the listing again, without which nobody knows
//!   that nothing else has changed;
//! - of `down`: `nft -f` and `ip -batch` with the deletions.
//!
//! Each is one shell script. The starts and ends of dnsmasq are told apart by the lines that `up` and `down` print before each
//! step, and left out. Files are in memory, as they are in /run. While `status` and the change are timed, the bridges have as
//! many taps as a network has guests. Medians of five, ours and the raw work alternating. Nothing else may run dnsmasq
//! meanwhile: the kernel's limit of inotify's instances, which `up` raises and `down` restores, is the machine's.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::host::Host;
use support::netns::bounded;

const ROUNDS: usize = 5;
const PORTS_A_NETWORK: usize = 5;
/// That of the ports.
const GROUP: u32 = 7;
const WORKS: [&str; 4] = ["up", "status", "change", "down"];

/// The line that is the change.
const CHANGE: &str = "isolate-guests = true\n";

fn main() {
    let words = std::env::args().skip(1);
    let mut counts: Vec<usize> = words.filter_map(|word| word.parse().ok()).collect();
    if counts.is_empty() {
        counts = vec![20, 100, 200];
    }
    tempfile::env::override_temp_dir(Path::new("/dev/shm")).unwrap();
    println!("networks  ports  work     ringtap ms   raw ms  ratio");
    for count in counts {
        measure(count);
    }
}

/// Times of some kind of work, the raw one's as well.
#[derive(Default)]
struct Times {
    ours: Vec<Duration>,
    raw: Vec<Duration>,
}

fn measure(count: usize) {
    let mut times: [Times; 4] = Default::default();
    let mut servers = Vec::new();
    for _ in 0..ROUNDS {
        let host = Host::new(&file(count, ""));
        for (times, time) in times.iter_mut().zip(raw(&host, count)) {
            times.raw.push(time);
        }
        let (ours, of_servers) = ours(&host, count);
        for (times, time) in times.iter_mut().zip(ours) {
            times.ours.push(time);
        }
        servers.push(of_servers);
    }
    let ports = count * PORTS_A_NETWORK;
    for (work, times) in WORKS.iter().zip(&times) {
        let (ours, raw) = (median(&times.ours), median(&times.raw));
        let ratio = ours / raw;
        println!("{count:>8}  {ports:>5}  {work:<7} {ours:>11.0} {raw:>8.0} {ratio:>6.2}");
    }
    let servers = median(&servers);
    println!("{count:>8}  {ports:>5}  dnsmasq {servers:>11.0}");
}

/// In milliseconds.
fn median(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// How long each work takes, and that of dnsmasq in it.
fn ours(host: &Host, count: usize) -> ([Duration; 4], Duration) {
    let (up, starts) = without_servers(host, "up", "dnsmasq ");
    plug(host, count);
    let (status, _) = without_servers(host, "status", "dnsmasq ");
    host.configure(&file(count, CHANGE));
    let (change, _) = without_servers(host, "up", "dnsmasq ");
    unplug(host);
    let (down, ends) = without_servers(host, "down", "kill ");
    ([up, status, change, down], starts + ends)
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

/// How long a command takes but for steps that begin with `word`, and how long those take.
fn without_servers(host: &Host, command: &str, word: &str) -> (Duration, Duration) {
    let start = Instant::now();
    let mut command = host.command(&[command]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
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
    (start.elapsed() - within, within)
}

/// How long each raw work takes.
fn raw(host: &Host, count: usize) -> [Duration; 4] {
    let wanted = Plan::of(host);
    host.configure(&file(count, CHANGE));
    let changed = Plan::of(host);
    host.configure(&file(count, ""));
    // Links first: sysctls are theirs.
    let ip = wanted.ip.iter();
    let (links, rest): (Vec<&String>, Vec<&String>) =
        ip.partition(|line| line.starts_with("link add"));
    let text = |lines: &[&String]| lines.iter().map(|line| format!("{line}\n")).collect();
    let numbers = || 0..count;
    let files: [(&str, String); 6] = [
        ("links", text(&links)),
        ("rest", text(&rest)),
        ("sysctls", wanted.sysctls.concat()),
        ("tables", wanted.tables.concat()),
        ("table", changed.tables[0].clone()),
        (
            "gone",
            numbers()
                .map(|number| format!("link delete rt-n{number}\n"))
                .collect(),
        ),
    ];
    for (name, text) in files {
        fs::write(host.dir.path().join(name), text).unwrap();
    }
    let tables = numbers().map(|number| format!("delete table inet ringtap_n{number}\n"));
    fs::write(
        host.dir.path().join("no-tables"),
        tables.collect::<String>(),
    )
    .unwrap();

    let list = "{ ip -j -d link; ip -j -d address; ip -j route; ip -j -6 route; nft -j list ruleset; } > listing";
    let up = script(
        host,
        "ip -batch links && sysctl -q -p sysctls && nft -f tables && ip -batch rest",
    );
    plug(host, count);
    let status = script(host, list);
    let change = script(host, &format!("nft -f table && {list}"));
    unplug(host);
    let down = script(host, "nft -f no-tables && ip -batch gone");
    let off = "sysctl -q net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0";
    script(host, off);
    fs::remove_file(host.dir.path().join("listing")).unwrap();
    [up, status, change, down]
}

/// How long a shell takes with `text`, in the directory of the files.
fn script(host: &Host, text: &str) -> Duration {
    let mut command = host.netns.command("sh");
    command.args(["-c", text]).current_dir(host.dir.path());
    let start = Instant::now();
    let output = bounded(&mut command, "");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}: {errors}");
    start.elapsed()
}

/// The plan's commands, by who does them, but for dnsmasq's.
#[derive(Default)]
struct Plan {
    ip: Vec<String>,
    sysctls: Vec<String>,
    tables: Vec<String>,
}

impl Plan {
    fn of(host: &Host) -> Self {
        let text = host.ringtap(&["plan"]).succeeded();
        let mut plan = Self::default();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if line.ends_with("<<'EOF'") {
                let file = lines.by_ref().take_while(|line| *line != "EOF");
                let file: String = file.map(|line| format!("{line}\n")).collect();
                if line.starts_with("nft") {
                    plan.tables.push(file);
                }
            } else if let Some(words) = line.strip_prefix("ip ") {
                plan.ip.push(words.to_owned());
            } else if let Some(words) = line.strip_prefix("sysctl -w net.") {
                plan.sysctls.push(format!("net.{words}\n"));
            }
        }
        plan
    }
}

/// Ports, as guests have them.
fn plug(host: &Host, count: usize) {
    let mut batch = String::new();
    for number in 0..count * PORTS_A_NETWORK {
        let bridge = number / PORTS_A_NETWORK;
        let _ = writeln!(batch, "tuntap add t{number} mode tap");
        let _ = writeln!(
            batch,
            "link set t{number} master rt-n{bridge} group {GROUP} up"
        );
    }
    ip(host, &batch);
}

/// All at once: one by one, the kernel takes a minute for them.
fn unplug(host: &Host) {
    ip(host, &format!("link delete group {GROUP}\n"));
}

fn ip(host: &Host, batch: &str) {
    let mut command = host.netns.command("ip");
    let output = bounded(command.args(["-batch", "-"]), batch);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}
