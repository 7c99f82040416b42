//! Linux as front-end with less than it could have: every property of QEMU's device that changes how frames are laid
//! out or announced, switched off one at a time, with transfers in both directions whose bytes are checked; and two
//! guests of one network, whose TCP segments stay large all the way.

mod support;

use support::bridged::counters;
use support::bytes::{noise, sha256};
use support::console::Console;
use support::lab::{Lab, Qemu, tiny};
use support::netns::BOUND;
use support::transfer;
use support::web::WebServer;

const SIZE: usize = 8 << 20;

const MRG_RXBUF: u64 = 1 << 15;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const RING_PACKED: u64 = 1 << 34;
/// CSUM, GUEST_CSUM, GUEST_TSO4, 6 and ECN, HOST_TSO4, 6 and ECN.
const OFFLOADS: u64 = 0b11 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13;
const ALL: u64 = MRG_RXBUF | INDIRECT_DESC | EVENT_IDX | VERSION_1 | OFFLOADS;

/// Boots a guest whose NIC has these properties, and moves bytes both ways. Of [`ALL`] the driver must have accepted all
/// but `without`, and packed rings where `packed=on` is among the properties. Returns the backend's log.
fn prove(properties: &[&str], without: u64) -> String {
    prove_with(Qemu::Own, properties, without)
}

fn prove_with(qemu: Qemu, properties: &[&str], without: u64) -> String {
    let lab = Lab::with_qemu(qemu);
    let globals: Vec<_> = properties
        .iter()
        .map(|property| format!("virtio-net-pci.{property}"))
        .collect();
    let args: Vec<_> = globals.iter().flat_map(|it| ["-global", it]).collect();
    lab.configure(&tiny("web1", 10, &args));
    let web = WebServer::start(&lab.internet);
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    let features = *lab.accepted("web1").last().expect("features");
    assert_eq!(features & ALL, ALL & !without, "{features:#x}");
    let packed = properties.contains(&"packed=on");
    assert_eq!(features & RING_PACKED != 0, packed, "{features:#x}");
    transfer::both_ways(&mut guest, &web, SIZE, 1);
    println!("{qemu:?} {properties:?}: features {features:#x}");
    let log = lab.backend_log("web1");
    assert!(guest.power_off().success());
    log
}

#[test]
fn with_all_that_is_offered() {
    prove(&[], 0);
}

/// With MSI-X, which older ones can't have under TCG.
#[test]
#[ignore = "in full runs: scripts/test --full"]
fn with_all_that_is_offered_under_qemu_10() {
    prove_with(Qemu::Ten, &[], 0);
}

#[test]
fn without_mergeable_buffers() {
    prove(&["mrg_rxbuf=off"], MRG_RXBUF);
}

#[test]
fn without_mergeable_buffers_and_large_frames() {
    // Now the driver posts buffers of one small frame each.
    let off = "guest_tso4=off guest_tso6=off guest_ecn=off mrg_rxbuf=off";
    let off: Vec<_> = off.split(' ').collect();
    prove(&off, MRG_RXBUF | 1 << 7 | 1 << 8 | 1 << 9);
}

#[test]
fn without_event_idx() {
    prove(&["event_idx=off"], EVENT_IDX);
}

#[test]
fn without_indirect_descriptors() {
    prove(&["indirect_desc=off"], INDIRECT_DESC);
}

#[test]
fn without_any_offload() {
    let off = "csum=off guest_csum=off gso=off guest_tso4=off guest_tso6=off guest_ecn=off \
               host_tso4=off host_tso6=off host_ecn=off";
    let off: Vec<_> = off.split_whitespace().collect();
    prove(&off, OFFLOADS);
}

#[test]
fn a_legacy_device_with_a_short_header() {
    let legacy = ["disable-modern=on", "disable-legacy=off", "mrg_rxbuf=off"];
    prove(&legacy, VERSION_1 | MRG_RXBUF);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn a_legacy_device_with_mergeable_buffers() {
    prove(&["disable-modern=on", "disable-legacy=off"], VERSION_1);
}

#[test]
fn queues_of_1024() {
    let log = prove(&["rx_queue_size=1024", "tx_queue_size=1024"], 0);
    for ring in ["ring 0", "ring 1"] {
        let started = format!("{ring} started: 1024 descriptors");
        assert!(log.contains(&started), "{log}");
    }
}

#[test]
fn packed_rings() {
    prove(&["packed=on"], 0);
}

#[test]
fn packed_rings_under_qemu_10() {
    prove_with(Qemu::Ten, &["packed=on"], 0);
}

#[test]
fn packed_rings_without_mergeable_buffers() {
    prove(&["packed=on", "mrg_rxbuf=off"], MRG_RXBUF);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn packed_rings_without_mergeable_buffers_under_qemu_10() {
    prove_with(Qemu::Ten, &["packed=on", "mrg_rxbuf=off"], MRG_RXBUF);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn packed_rings_without_event_idx() {
    prove(&["packed=on", "event_idx=off"], EVENT_IDX);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn packed_rings_without_event_idx_under_qemu_10() {
    prove_with(Qemu::Ten, &["packed=on", "event_idx=off"], EVENT_IDX);
}

#[test]
fn offloads_that_the_guest_switches_off_and_on() {
    let lab = Lab::new();
    lab.configure_guest("");
    let web = WebServer::start(&lab.internet);
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    for [state, other] in [["off", "on"], ["on", "off"], ["off", "on"]] {
        guest.run(&format!(
            "ethtool -K eth0 tx {state} sg {state} tso {state} gso {state} gro {state}"
        ));
        let now = guest.run("ethtool -k eth0");
        for feature in [
            "tx-checksumming",
            "tcp-segmentation-offload",
            "generic-receive-offload",
        ] {
            let line = |state| format!("{feature}: {state}");
            assert!(now.contains(&line(state)), "{now}");
            assert!(!now.contains(&line(other)), "{now}");
        }
        transfer::both_ways(&mut guest, &web, SIZE, 1);
    }
}

/// The frames that go into the second guest's tap are those that came out of the first's, each many times the MTU:
/// nobody on the way has cut them.
#[test]
fn segments_between_two_guests_stay_whole() {
    let lab = Lab::new();
    lab.configure(&(tiny("web1", 10, &[]) + &tiny("web2", 11, &[])));
    let mut web1 = Console::boot(&mut lab.ringtap("run web1"));
    let mut web2 = Console::boot(&mut lab.ringtap("run web2"));
    let blob = noise(64 << 20, 7);
    let web = WebServer::start(&lab.internet);
    web.put("blob", blob.clone());
    web1.run("wget -q -O /tmp/blob http://www.example.test/blob");

    web2.begin("nc -l -p 7000 | sha256sum");
    let out = || counters(&lab.host, "tap-web1-0", "rx");
    let into = || counters(&lab.host, "tap-web2-0", "tx");
    let (out_before, into_before) = (out(), into());
    let send = "until nc 192.168.100.11 7000 < /tmp/blob; do sleep 0.2; done";
    let (code, said) = web1.attempt(send, BOUND);
    assert_eq!(code, 0, "{said}");
    let (_, got) = web2.finish(BOUND);
    assert_eq!(got[..64], sha256(&blob));

    let more = |now: (u64, u64), then: (u64, u64)| (now.0 - then.0, now.1 - then.1);
    let (sent, arrived) = (more(out(), out_before), more(into(), into_before));
    println!("web1's tap {sent:?}, web2's tap {arrived:?} (frames, bytes)");
    let average = arrived.1 / arrived.0;
    assert!(average > 3 * 1500, "{average} bytes a frame");
    // A broadcast of the host's may be among them.
    assert!(arrived.0 <= sent.0 + sent.0 / 100 + 10, "{arrived:?}");
}

/// QEMU would let the guest reset a ring without a word to the backend, which is why that is not offered: a guest that
/// tries is told, and keeps its network.
#[test]
fn a_guest_that_can_not_resize_its_rings_keeps_its_network() {
    let lab = Lab::with_qemu(Qemu::Ten);
    lab.configure_guest("");
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    let (code, said) = guest.attempt("ethtool -G eth0 rx 128 tx 128", BOUND);
    assert_ne!(code, 0, "{said}");
    guest.run("ping -c 2 192.168.100.1");
}
