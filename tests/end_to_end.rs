//! The whole way: ringtap brings a NAT network up and runs QEMU with the tiny guest on it, every frame through the
//! vhost-user backend; a stand-in internet is behind the host. Everything is in namespaces of the test's own.

mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::bridged::counters;
use support::bytes::{noise, sha256};
use support::console::Console;
use support::lab::{INTERNET, Lab, Qemu, WWW};
use support::netns::{BOUND, bounded, difference, require, until};
use support::transfer;
use support::web::WebServer;

/// What iperf3 calls sent and may still leave on the way: its sender says "over" on another connection than the one
/// that carries the bytes, and its receiver stops reading there and then. More than both sockets' buffers that can't be.
const IN_FLIGHT: u64 = 8 << 20;

/// What iperf3 says it moved: sent and received, in bytes.
fn iperf_bytes(json: &str) -> [u64; 2] {
    let report: serde_json::Value = serde_json::from_str(json).expect(json);
    ["sum_sent", "sum_received"].map(|sum| report["end"][sum]["bytes"].as_u64().expect(json))
}

#[test]
fn a_guest_gets_its_address_resolves_names_and_reaches_the_internet() {
    address_names_and_internet(Qemu::Own);
}

#[test]
fn a_guest_gets_its_address_resolves_names_and_reaches_the_internet_under_qemu_10() {
    address_names_and_internet(Qemu::Ten);
}

fn address_names_and_internet(qemu: Qemu) {
    require("iperf3", "iperf3");
    let mut lab = Lab::with_qemu(qemu);
    lab.configure_guest("");
    lab.serve("iperf3", &["--server"]);
    lab.internet_listens(5201);
    let before = lab.host.snapshot();
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    let version = lab.running_qemu();
    assert!(qemu == Qemu::Own || version >= 10, "{version}");

    let address = guest.run("ip -o -4 address show eth0");
    assert!(address.contains("192.168.100.10/24"), "{address}");
    assert!(guest.run("cat /proc/sys/kernel/hostname").contains("web1"));
    let name = guest.run("nslookup web1 192.168.100.1");
    assert!(name.contains("192.168.100.10"), "{name}");
    let name = guest.run(&format!("nslookup {WWW}"));
    assert!(name.contains(INTERNET), "{name}");
    let ping = guest.run(&format!("ping -c 3 {WWW}"));
    assert!(ping.contains("3 packets received"), "{ping}");

    let wanted = 64 << 20;
    // What went into the guest's tap, and what came out of it, headers and all.
    let tap = |what| counters(&lab.host, "tap-web1-0", what).1;
    let moved = [("-R", "tx"), ("", "rx")].map(|(direction, what)| {
        let before = tap(what);
        let json = guest.run(&format!("iperf3 -c {WWW} -n {wanted} -J {direction}"));
        let [sent, arrived] = iperf_bytes(&json);
        assert!(sent >= wanted, "{sent} bytes sent");
        assert!(arrived <= sent, "{arrived} of {sent} bytes arrived");
        assert!(
            arrived + IN_FLIGHT >= sent,
            "{arrived} of {sent} bytes arrived"
        );
        let carried = tap(what) - before;
        assert!(
            carried >= arrived,
            "{arrived} bytes through a tap that carried {carried}"
        );
        arrived
    });
    assert_eq!(
        lab.internet
            .attempt("ping -c 1 -W 1 192.168.100.10")
            .status
            .code(),
        Some(2),
        "no way in"
    );

    check_counters(&lab, moved);

    assert!(guest.power_off().success());
    assert_eq!(difference(&before, &lab.host.snapshot()), "");
    assert!(!lab.run_dir().exists());
    assert_eq!(lab.host.pids(), [0; 0]);
}

/// `ringtap status` has what the backend counted: at least the bytes that were `moved` to the guest and from it.
fn check_counters(lab: &Lab, moved: [u64; 2]) {
    let status = |words: &str| {
        let output = bounded(&mut lab.ringtap(words), "");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let json = status("status --json");
    let report: serde_json::Value = serde_json::from_str(&json).expect(&json);
    let nic = &report["guests"][0]["nics"][0];
    assert_eq!(nic["tap"], "tap-web1-0", "{json}");
    for (index, name) in ["receiveq", "transmitq"].into_iter().enumerate() {
        let queue = &nic["queues"][index];
        assert_eq!((&queue["queue"], &queue["pair"]), (&name.into(), &0.into()));
        let bytes = queue["counters"]["bytes"].as_u64().expect(&json);
        let moved = moved[index];
        assert!(bytes > moved, "{name}: {bytes} bytes of {moved}");
    }
    let text = status("status default");
    assert!(text.contains("tap-web1-0 on default"), "{text}");
    assert!(text.contains("transmitq 0: bytes "), "{text}");
}

#[test]
fn twenty_large_transfers_arrive_unchanged() {
    transfers(Qemu::Own, 10);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn large_transfers_arrive_unchanged_with_qemu_10() {
    transfers(Qemu::Ten, 3);
}

fn transfers(qemu: Qemu, rounds: u64) {
    let lab = Lab::with_qemu(qemu);
    lab.configure_guest("");
    let web = WebServer::start(&lab.internet);
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    transfer::both_ways(&mut guest, &web, 16 << 20, rounds);
}

#[test]
fn a_killed_backend_is_replaced_and_the_same_tcp_connection_goes_on() {
    backend_killed(Qemu::Own);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn a_killed_backend_is_replaced_and_the_same_tcp_connection_goes_on_under_qemu_10() {
    backend_killed(Qemu::Ten);
}

fn backend_killed(qemu: Qemu) {
    const SIZE: usize = 256 << 20;
    let lab = Lab::with_qemu(qemu);
    lab.configure_guest("");
    let web = WebServer::start(&lab.internet);
    let blob = noise(SIZE, 99);
    let sum = sha256(&blob);
    web.put("blob", blob);
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    guest.begin(&format!("wget -q -O - http://{WWW}/blob | sha256sum"));
    let moved = || -> usize {
        let bytes = lab.host.run("cat /sys/class/net/up0/statistics/rx_bytes");
        bytes.trim().parse().unwrap()
    };
    let start = moved();
    for round in 1..=3 {
        until("some of the transfer", || {
            moved() > start + round * (20 << 20)
        });
        let backends = lab.pids(&["backend --socket-path"]);
        assert_eq!(backends.len(), 1, "{backends:?}");
        kill(Pid::from_raw(backends[0]), Signal::SIGKILL).unwrap();
        assert!(
            moved() < start + SIZE,
            "the transfer was over before the kill"
        );
        until("another backend", || {
            let now = lab.pids(&["backend --socket-path"]);
            now.len() == 1 && now != backends
        });
    }
    let (code, got) = guest.finish(BOUND);
    assert_eq!((code, &got[..64]), (0, &sum[..]));
    assert_eq!(web.gets(), 1, "the same connection all the way");
    assert!(guest.power_off().success());
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    let lab = Lab::new();
    lab.configure_guest("");
    let before = lab.host.snapshot();
    let guest = Console::boot(&mut lab.ringtap("run web1"));
    assert_eq!(guest.signal(Signal::SIGINT).code(), Some(0));
    assert_eq!(difference(&before, &lab.host.snapshot()), "");
    assert!(!lab.run_dir().exists());
    assert_eq!(lab.host.pids(), [0; 0]);
}

#[test]
fn a_network_that_was_up_stays_up() {
    let lab = Lab::new();
    lab.configure_guest("");
    let ringtap = |words| bounded(&mut lab.ringtap(words), "").status.code();
    assert_eq!(ringtap("up"), Some(0));
    assert!(
        Console::boot(&mut lab.ringtap("run web1"))
            .power_off()
            .success()
    );
    assert_eq!(ringtap("status"), Some(0));
    assert!(!lab.host.run("ip -o link").contains("tap-web1"));
    assert_eq!(ringtap("down"), Some(0));
    assert!(!lab.run_dir().exists());
}

#[test]
fn the_same_guest_does_not_start_twice() {
    let lab = Lab::new();
    lab.configure_guest("");
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    let second = bounded(&mut lab.ringtap("run web1"), "");
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("guest web1 is running already"), "{said}");
    guest.run("ping -c 1 192.168.100.1");
}
