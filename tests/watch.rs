//! `ringtap watch` on pretend hosts: what drifts is set right because of an event and not of a clock, and what is not drift is
//! left alone.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::host::Host;
use support::netns::{BOUND, Netns, difference, require, until, wait};

const DEFAULT: &str = r#"
[networks.default]
mode = "nat"
subnet = "192.168.100.0/24"
"#;

const LAB: &str = r#"
[networks.lab]
mode = "isolated"
subnet = "10.66.0.0/24"
"#;

/// A second, and what this machine may take longer; half of the time from one regular look to the next at most.
const SOON: Duration = Duration::from_secs(10);

/// Long enough for several looks.
const LOOKS: Duration = Duration::from_secs(2);

/// A `ringtap watch` that runs, and is killed with this value.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn start(host: &Host) -> Self {
        Self::of(&mut host.command(&["watch"]))
    }

    fn of(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let watch = Self { child, lines };
        watch.says("watching ");
        watch
    }

    /// Waits until it says a line that begins like this; gives it and how long it took.
    #[track_caller]
    fn says(&self, beginning: &str) -> (String, Duration) {
        let start = Instant::now();
        let mut said = Vec::new();
        loop {
            match self.lines.recv_timeout(SOON) {
                Ok(line) if line.starts_with(beginning) => return (line, start.elapsed()),
                Ok(line) => said.push(line),
                Err(error) => panic!("{error}: not {beginning:?}, but {said:#?}"),
            }
        }
    }

    /// What it says within [`LOOKS`].
    fn babble(&self) -> Vec<String> {
        let deadline = Instant::now() + LOOKS;
        let mut said = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => said.push(line),
                Err(RecvTimeoutError::Timeout) => return said,
                Err(error) => panic!("{error} after {said:#?}"),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Ends it by `signal`; it must end well.
    #[track_caller]
    fn end(mut self, signal: Signal) {
        self.signal(signal);
        let status = wait(&mut self.child, SOON).expect("it ends");
        assert_eq!(status.code(), Some(0));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn status(host: &Host) -> Value {
    serde_json::from_str(&host.ringtap(&["status", "--json"]).out).unwrap()
}

/// A command on `host` for which `program` is `script`, which ends in what the real one does.
fn with_wrapper(host: &Host, program: &str, script: &str, words: &[&str]) -> Command {
    let bin = host.dir.path().join("bin");
    fs::create_dir_all(&bin).unwrap();
    let path = std::env::var("PATH").unwrap();
    let text = format!("#!/bin/sh\n{script}\nPATH={path} exec {program} \"$@\"\n");
    fs::write(bin.join(program), text).unwrap();
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(bin.join(program), executable).unwrap();
    let mut command = host.netns.command("env");
    command.arg(format!("PATH={}:{path}", bin.display()));
    command.args(host.words(words));
    command
}

#[test]
fn what_drifts_is_set_right_soon() {
    let host = Host::new(DEFAULT);
    let before = host.everything();
    host.ringtap(&["up"]).succeeded();
    let ready = host.dir.path().join("ready");
    let socket = UnixDatagram::bind(&ready).unwrap();
    socket.set_read_timeout(Some(BOUND)).unwrap();
    let watch = Watch::of(host.command(&["watch"]).env("NOTIFY_SOCKET", &ready));
    let mut word = [0; 32];
    let length = socket.recv(&mut word).unwrap();
    assert_eq!(&word[..length], b"READY=1\n");
    fs::remove_file(&ready).unwrap();

    let pid = host.dnsmasq("default");
    let harms = [
        "nft flush ruleset",
        "nft delete rule inet ringtap_default forward handle 2",
        "ip link set rt-default down",
        "ip address delete 192.168.100.1/24 dev rt-default",
        "ip link set rt-default mtu 1400",
        "ip link delete rt-default",
        &format!("kill {pid}"),
        &format!("kill -9 {pid}"),
    ];
    for harm in harms {
        let harm = harm.replace(&pid.to_string(), &host.dnsmasq("default").to_string());
        let harm = match harm.rsplit_once("handle ") {
            Some((rule, _)) => format!("{rule} handle {}", a_handle(&host)),
            None => harm,
        };
        if harm.starts_with("kill") {
            // Or the look that follows on the last harm would find it.
            assert_eq!(watch.babble(), [""; 0]);
        }
        let wanted = host.netns.snapshot();
        host.netns.run(&harm);
        let (_, time) = watch.says("set right: default");
        println!("{harm}: {time:?}");
        host.ringtap(&["status"]).succeeded();
        // A bridge made anew has another index and its addresses other ages.
        if !harm.contains("link") {
            let now = host.netns.snapshot();
            assert_eq!(difference(&wanted, &now), "", "after {harm}");
        }
    }
    // A sysctl goes without notice: it is found with what comes next.
    host.netns.run("sysctl -w net.ipv4.ip_forward=0");
    host.netns.run("ip link set lo mtu 1500");
    watch.says("set right: default");
    host.netns.run("ip link set lo mtu 65536");
    assert_eq!(host.netns.run("sysctl -n net.ipv4.ip_forward").trim(), "1");

    let mended = status(&host)["networks"][0]["mended"].clone();
    let mended = mended.as_array().unwrap();
    assert_eq!(mended.len(), harms.len() + 1);
    assert!(mended.iter().all(|one| one["by"] == "ringtap watch"));
    assert_eq!(watch.babble(), [""; 0]);
    watch.end(Signal::SIGTERM);
    host.ringtap(&["status"]).succeeded();
    host.ringtap(&["down"]).succeeded();
    host.is_as(&before);
}

/// The handle of a rule of the network's.
fn a_handle(host: &Host) -> u64 {
    let json = host
        .netns
        .run("nft -j -a list chain inet ringtap_default forward");
    let json: Value = serde_json::from_str(&json).unwrap();
    let mut objects = json["nftables"].as_array().unwrap().iter();
    let rule = objects.find_map(|object| object.get("rule")).unwrap();
    rule["handle"].as_u64().unwrap()
}

#[test]
#[ignore = "waits for half a minute"]
fn what_goes_without_notice_is_found_by_the_clock() {
    let host = Host::new(DEFAULT);
    host.ringtap(&["up"]).succeeded();
    let watch = Watch::start(&host);
    assert_eq!(watch.babble(), [""; 0]);
    host.netns.run("sysctl -w net.ipv4.ip_forward=0");
    until("it forwards again", || {
        host.netns.run("sysctl -n net.ipv4.ip_forward").trim() == "1"
    });
    watch.end(Signal::SIGINT);
    host.ringtap(&["down"]).succeeded();
}

/// Each look lists the one table that is not ringtap's by `nft`, whose runs are counted.
#[test]
fn what_it_does_itself_makes_it_look_once_more() {
    let host = Host::new(DEFAULT);
    host.netns.run("nft add table inet other");
    host.ringtap(&["up"]).succeeded();
    let log = host.dir.path().join("nft.log");
    let count = format!("echo >> {}", log.display());
    let watch = Watch::of(&mut with_wrapper(&host, "nft", &count, &["watch"]));
    let runs = || fs::read_to_string(&log).unwrap_or_default().len();
    until("the first look", || runs() > 0);
    // The kernel tells of a link's carrier a second late.
    assert_eq!(watch.babble(), [""; 0]);
    let before = runs();
    assert_eq!(watch.babble(), [""; 0]);
    assert_eq!(runs(), before, "it looks without a reason");
    host.netns.run("ip link set rt-default down");
    watch.says("set right: default");
    assert_eq!(watch.babble(), [""; 0]);
    // That it has drifted, that it is right again, what the notices of that were about, and the carrier.
    let after = runs() - before;
    assert!((3..=4).contains(&after), "{after} looks");
    assert_eq!(watch.babble(), [""; 0]);
    assert_eq!(runs() - before, after, "it goes on looking");
    watch.end(Signal::SIGTERM);
    host.ringtap(&["down"]).succeeded();
}

#[test]
fn notices_that_were_lost_are_a_reason_to_look() {
    let host = Host::new(DEFAULT);
    host.ringtap(&["up"]).succeeded();
    let watch = Watch::start(&host);
    assert_eq!(watch.babble(), [""; 0]);
    watch.signal(Signal::SIGSTOP);
    // More than a socket holds, and the harm after it.
    let batch = host.dir.path().join("batch");
    let lines = (0..2000).map(|number| format!("link set lo mtu {}\n", 2000 + number % 2));
    fs::write(&batch, lines.collect::<String>()).unwrap();
    host.netns.run(&format!("ip -batch {}", batch.display()));
    host.netns.run("ip link set rt-default down");
    watch.signal(Signal::SIGCONT);
    watch.says("set right: default");
    watch.end(Signal::SIGTERM);
    host.ringtap(&["down"]).succeeded();
}

/// Docker that comes, or starts anew, makes its chains while networks are up.
#[test]
fn rules_in_dockers_chain_are_made_as_docker_comes_and_again_when_they_go() {
    require("iptables", "iptables");
    let host = Host::new(DEFAULT);
    host.ringtap(&["up"]).succeeded();
    let watch = Watch::start(&host);
    assert_eq!(watch.babble(), [""; 0]);
    host.netns.run("iptables -w -N DOCKER-USER");
    host.netns.run("iptables -w -P FORWARD DROP");
    watch.says("set right: default");
    let rules = host.netns.run("iptables -w -S DOCKER-USER");
    assert_eq!(rules.matches("ringtap default").count(), 2, "{rules}");
    host.netns.run("iptables -w -F DOCKER-USER");
    watch.says("set right: default");
    assert_eq!(host.netns.run("iptables -w -S DOCKER-USER"), rules);
    assert_eq!(watch.babble(), [""; 0]);
    watch.end(Signal::SIGTERM);
    host.ringtap(&["down"]).succeeded();
    let left = host.netns.run("iptables -w -S DOCKER-USER");
    assert_eq!(left, "-N DOCKER-USER\n");
}

#[test]
fn networks_are_kept_as_they_were_brought_up_and_not_as_the_file_is_now() {
    let host = Host::new(DEFAULT);
    host.ringtap(&["up"]).succeeded();
    let watch = Watch::start(&host);
    let addresses = || host.netns.run("ip -4 address show dev rt-default");

    // A changed file is a person's to apply, also where something has drifted meanwhile.
    host.configure(&DEFAULT.replace("192.168.100", "192.168.101"));
    watch.signal(Signal::SIGHUP);
    watch.says("watching default");
    host.netns.run("ip link set rt-default down");
    watch.says("set right: default");
    assert!(addresses().contains("192.168.100.1/24"), "{}", addresses());

    // Once it is applied, that is what is kept, whatever the watcher has read.
    host.ringtap(&["up"]).succeeded();
    assert_eq!(watch.babble(), [""; 0]);
    host.netns
        .run("ip address delete 192.168.101.1/24 dev rt-default");
    watch.says("set right: default");
    assert!(addresses().contains("192.168.101.1/24"), "{}", addresses());
    let copy = host.run_dir().join("networks/default/ringtap.toml");
    let mode = fs::metadata(&copy).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "guests' words for QEMU may be secret");

    // One that was brought up by a ringtap that kept no copy.
    fs::remove_file(copy).unwrap();
    host.netns.run("ip link set rt-default down");
    let (line, _) = watch.says("default is left alone");
    assert!(line.contains("run `ringtap up default`"), "{line}");
    host.ringtap(&["up"]).succeeded();
    watch.says("default is kept as it is from now on");
    watch.end(Signal::SIGINT);
    host.ringtap(&["down"]).succeeded();
}

#[test]
fn what_is_not_up_or_hindered_is_left_alone_and_named_once() {
    let host = Host::new(&format!("{DEFAULT}{LAB}"));
    let before = host.netns.snapshot();
    // Nothing is up, and nothing is made.
    let watch = Watch::start(&host);
    watch.says("default is left alone: it is not up; `ringtap up default`");
    watch.says("lab is left alone");
    assert_eq!(difference(&before, &host.netns.snapshot()), "");
    assert!(!host.run_dir().exists());

    host.ringtap(&["up", "default"]).succeeded();
    watch.says("default is kept");
    // Somebody else's bridge of that name is not to be touched, and not to be talked of all the time.
    host.netns.run("ip link delete rt-default");
    host.netns.run("ip link add rt-default type bridge");
    let (line, _) = watch.says("default is left alone");
    assert!(line.contains("ip link delete rt-default"), "{line}");
    host.netns.run("ip link set rt-default up");
    assert_eq!(watch.babble(), [""; 0]);
    host.netns.run("ip link delete rt-default");
    watch.says("set right: default");

    // What `down` takes back stays so.
    host.ringtap(&["down"]).succeeded();
    watch.says("default is left alone: it is not up");
    assert_eq!(watch.babble(), [""; 0]);
    assert!(!host.netns.run("ip link").contains("rt-default"));

    // A file that is wrong is not read; another network in it is.
    host.configure("[networks.default]\nmode = 7\n");
    watch.signal(Signal::SIGHUP);
    assert_eq!(watch.babble(), [""; 0]);
    host.configure(&format!(
        "{DEFAULT}{LAB}{}",
        LAB.replace("lab", "labor").replace("66", "67")
    ));
    watch.signal(Signal::SIGHUP);
    watch.says("watching default, lab, labor");
    watch.says("labor is left alone");
    watch.end(Signal::SIGTERM);
    assert_eq!(difference(&before, &host.netns.snapshot()), "");
}

#[test]
fn it_waits_for_the_lock_and_can_be_ended_meanwhile() {
    let host = Host::new(DEFAULT);
    host.ringtap(&["up"]).succeeded();
    let watch = Watch::start(&host);
    assert_eq!(watch.babble(), [""; 0]);
    let file = fs::File::open(host.run_dir().join("lock")).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusive).unwrap();
    host.netns.run("ip link set rt-default down");
    assert_eq!(watch.babble(), [""; 0]);
    assert!(!host.netns.run("ip link show rt-default").contains(",UP"));
    let ended = Watch::start(&host);
    ended.end(Signal::SIGTERM);
    drop(lock);
    watch.says("set right: default");
    watch.end(Signal::SIGTERM);
    host.ringtap(&["down"]).succeeded();
}

#[test]
fn one_that_cannot_be_set_right_is_tried_once_and_keeps_no_other_down() {
    let host = Host::new(&format!("{DEFAULT}{LAB}"));
    host.ringtap(&["up"]).succeeded();
    let (broken, tries) = (
        host.dir.path().join("broken"),
        host.dir.path().join("tries"),
    );
    let script = format!(
        "case $1 in */lab/*) if [ -e {} ]; then echo >> {}; echo broken >&2; exit 3; fi;; esac",
        broken.display(),
        tries.display()
    );
    let watch = Watch::of(&mut with_wrapper(&host, "dnsmasq", &script, &["watch"]));
    assert_eq!(watch.babble(), [""; 0]);
    fs::write(&broken, "").unwrap();
    host.netns.run(&format!(
        "kill {} {}",
        host.dnsmasq("lab"),
        host.dnsmasq("default")
    ));
    let (line, _) = watch.says("lab is left alone: it could not be set right");
    assert!(line.ends_with("broken"), "{line}");
    until("the other is served", || {
        status(&host)["networks"][0]["state"] == "up"
    });
    host.netns.run("ip link set rt-default down");
    watch.says("set right: default");
    assert_eq!(watch.babble(), [""; 0]);
    // Together with the other, and alone.
    let tried = fs::read_to_string(&tries).unwrap().len();
    assert!((1..=2).contains(&tried), "{tried} tries");
    fs::remove_file(&broken).unwrap();
    host.ringtap(&["up"]).succeeded();
    host.netns.run("ip link set lo mtu 1500"); // that a dnsmasq started is no notice
    watch.says("lab is kept as it is from now on");
    watch.end(Signal::SIGTERM);
    host.ringtap(&["down"]).succeeded();
}

#[test]
fn what_drifts_behind_a_tenants_router_is_set_right_too() {
    let tenant = format!("w{}", std::process::id());
    let host = Host::new(&format!(
        "[networks.red]\nmode = \"nat\"\ntenant = \"{tenant}\"\nsubnet = \"192.168.1.0/24\"\n"
    ));
    let before = host.everything();
    host.ringtap(&["up"]).succeeded();
    let watch = Watch::start(&host);
    assert_eq!(watch.babble(), [""; 0]);
    let inside = Netns::of_program(&format!("rt-{tenant}"));
    let dnsmasq = format!("kill -9 {}", host.dnsmasq("red"));
    for harm in [
        "nft flush ruleset",
        "ip link delete rt-red",
        "ip route delete default",
        "ip link delete uplink",
        &dnsmasq,
    ] {
        inside.run(harm);
        let (_, time) = watch.says("set right: ");
        println!("{harm}: {time:?}");
        // What it has set right for one of them may be the other's as well.
        until("nothing left to do", || {
            host.ringtap(&["status"]).code == Some(0)
        });
        watch.babble();
    }
    // Nothing that it holds keeps a namespace that is to go.
    host.ringtap(&["down"]).succeeded();
    assert!(!inside.exists());
    until("its links to be gone", || {
        !host.netns.run("ip -j link").contains("rt-tenant-")
    });
    watch.end(Signal::SIGTERM);
    host.is_as(&before);
}
