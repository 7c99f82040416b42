//! DPDK's virtio-user as front-end: testpmd drives `ringtap backend` on a real tap, and frames are counted at both
//! ends and compared byte for byte.

mod support;

use std::thread::sleep;
use std::time::{Duration, Instant};

use support::bridged::Bridged;
use support::bytes::{broadcast, ipv4, udp};
use support::front_end::PATIENCE;
use support::netns::until;
use support::testpmd::Testpmd;

/// A device as DPDK is to drive it.
struct Row {
    /// virtio-user's arguments.
    device: &'static str,
    /// testpmd's own.
    app: &'static [&'static str],
    pairs: u64,
    /// Feature bits that the backend must offer and DPDK accept.
    features: &'static [u32],
    /// And those that must be off.
    without: &'static [u32],
    /// What DPDK says about its way to receive: that it is the one meant.
    receives: &'static str,
}

const MRG_RXBUF: u32 = 15;
const INDIRECT_DESC: u32 = 28;
const VERSION_1: u32 = 32;
const RING_PACKED: u32 = 34;
const IN_ORDER: u32 = 35;

const MERGEABLE: Row = Row {
    device: "queue_size=256,mrg_rxbuf=1,in_order=0",
    app: &[],
    pairs: 1,
    features: &[MRG_RXBUF, INDIRECT_DESC, VERSION_1],
    without: &[],
    receives: "using mergeable buffer Rx path",
};

#[test]
fn mergeable_buffers() {
    prove(&MERGEABLE);
}

#[test]
fn one_buffer_a_frame() {
    prove(&Row {
        device: "queue_size=256,mrg_rxbuf=0,in_order=0",
        features: &[VERSION_1],
        without: &[MRG_RXBUF],
        receives: "using standard Rx path",
        // Only offloads keep DPDK from its vectorized path here.
        app: &["--rx-offloads=0x8"],
        ..MERGEABLE
    });
}

#[test]
fn vectorized() {
    prove(&Row {
        device: "queue_size=256,mrg_rxbuf=0,in_order=0,vectorized=1",
        features: &[VERSION_1],
        without: &[MRG_RXBUF],
        receives: "using vectorized Rx path",
        ..MERGEABLE
    });
}

#[test]
fn queues_of_1024() {
    prove(&Row {
        device: "queue_size=1024,mrg_rxbuf=1,in_order=0",
        app: &["--rxd=1024", "--txd=1024"],
        ..MERGEABLE
    });
}

#[test]
fn queues_of_1024_vectorized() {
    prove(&Row {
        device: "queue_size=1024,mrg_rxbuf=0,in_order=0,vectorized=1",
        app: &["--rxd=1024", "--txd=1024"],
        features: &[VERSION_1],
        without: &[MRG_RXBUF],
        receives: "using vectorized Rx path",
        ..MERGEABLE
    });
}

#[test]
fn four_pairs() {
    prove(&Row {
        pairs: 4,
        ..MERGEABLE
    });
}

#[test]
fn in_order() {
    prove(&Row {
        device: "queue_size=256,mrg_rxbuf=1,in_order=1",
        features: &[MRG_RXBUF, IN_ORDER, VERSION_1],
        receives: "using inorder Rx path",
        ..MERGEABLE
    });
}

const PACKED: Row = Row {
    device: "queue_size=256,packed_vq=1,mrg_rxbuf=1,in_order=0",
    features: &[RING_PACKED, MRG_RXBUF, VERSION_1],
    receives: "using packed ring mergeable buffer Rx path",
    ..MERGEABLE
};

#[test]
fn packed() {
    prove(&PACKED);
}

#[test]
fn packed_four_pairs() {
    prove(&Row { pairs: 4, ..PACKED });
}

#[test]
fn packed_in_order_one_buffer_a_frame() {
    prove(&Row {
        device: "queue_size=256,packed_vq=1,mrg_rxbuf=0,in_order=1",
        features: &[RING_PACKED, IN_ORDER, VERSION_1],
        without: &[MRG_RXBUF],
        receives: "using packed ring standard Rx path",
        ..MERGEABLE
    });
}

fn prove(row: &Row) {
    let pairs = row.pairs.to_string();
    let world = Bridged::new(1500, &["--queue-pairs", &pairs]);
    let (offered, most) = world.offers();
    for bit in row.features {
        assert!(offered & 1 << bit != 0, "bit {bit} is not in {offered:#x}");
    }
    assert!(most >= row.pairs, "{most} pairs");

    let device = format!("queues={pairs},{}", row.device);
    let queues = [format!("--rxq={pairs}"), format!("--txq={pairs}")];
    let mut app: Vec<&str> = queues.iter().map(String::as_str).collect();
    app.extend(["--nb-cores=1", "--tx-offloads=0x8000"]);
    app.extend(row.app);
    let mut testpmd = Testpmd::start(&world.netns, &world.socket(), &device, &app);
    assert!(testpmd.text().contains(row.receives), "{}", testpmd.text());
    let accepted = world.accepted();
    let has = |bit: &&u32| accepted & 1 << **bit != 0;
    assert!(row.features.iter().all(|bit| has(&bit)), "{accepted:#x}");
    assert!(!row.without.iter().any(|bit| has(&bit)), "{accepted:#x}");
    println!("{device}: features {accepted:#x}");

    for lengths in ["64", "1514", "100,300,700"] {
        every_frame_sent_comes_out_of_the_tap(&world, &mut testpmd, lengths);
    }
    every_frame_comes_back_unchanged(&world, &mut testpmd);
    every_queue_takes_part(&world, &mut testpmd, row.pairs);
    testpmd.quit();
    let log = world.log();
    assert!(log.contains("bad_chains 0 bad_index 0"), "{log}");
}

/// As fast as DPDK can, in frames of one segment or more.
fn every_frame_sent_comes_out_of_the_tap(world: &Bridged, testpmd: &mut Testpmd, lengths: &str) {
    let before = world.sent().0;
    testpmd.run("set fwd txonly");
    testpmd.run(&format!("set txpkts {lengths}"));
    testpmd.run("start");
    until("20000 frames", || world.sent().0 > before + 20_000);
    testpmd.run("stop");
    let sent = testpmd.stats().sent;
    let end = Instant::now() + PATIENCE;
    while world.sent().0 < sent.0 && Instant::now() < end {
        sleep(Duration::from_millis(20));
    }
    assert_eq!(world.sent(), sent, "frames and bytes, {lengths}");
}

/// testpmd sends back what it receives, and the wire sees each frame as it was, in order.
fn every_frame_comes_back_unchanged(world: &Bridged, testpmd: &mut Testpmd) {
    let before = testpmd.stats();
    testpmd.run("set fwd io");
    testpmd.run("start");
    world.wire.drain();
    let (mut frames, mut bytes) = (0, 0);
    // A tap holds 1000 frames; each lot is well below that.
    let sizes: Vec<usize> = (60..=1514).collect();
    for lot in sizes.chunks(200) {
        let lot: Vec<_> = lot.iter().map(|&len| broadcast(len, len as u64)).collect();
        for frame in &lot {
            world.wire.send(frame);
            frames += 1;
            bytes += frame.len() as u64;
        }
        for frame in &lot {
            let back = world.wire.next(&format!("{} bytes", frame.len()));
            assert!(back == *frame, "{} bytes: {back:x?}", frame.len());
        }
    }
    testpmd.run("stop");
    let after = testpmd.stats();
    let more = |now: (u64, u64), then: (u64, u64)| (now.0 - then.0, now.1 - then.1);
    assert_eq!(more(after.received, before.received), (frames, bytes));
    assert_eq!(more(after.sent, before.sent), (frames, bytes));
    assert_eq!(world.delivered(), (frames, bytes));
}

/// Many flows at once: each frame comes back, whatever queue it took, and no queue was left out.
fn every_queue_takes_part(world: &Bridged, testpmd: &mut Testpmd, pairs: u64) {
    testpmd.run("clear port xstats 0");
    testpmd.run("set fwd io");
    testpmd.run("start");
    world.wire.drain();
    for round in 0..10 {
        let frame = |flow: u16| ipv4(17, 0, &udp(40_000 + flow, 100 + round));
        let mut sent: Vec<_> = (0..64).map(frame).collect();
        sent.iter().for_each(|frame| world.wire.send(frame));
        let next = |_: &Vec<u8>| world.wire.next("one frame of each flow");
        let mut back: Vec<_> = sent.iter().map(next).collect();
        sent.sort();
        back.sort();
        assert!(sent == back);
    }
    testpmd.run("stop");
    let stats = testpmd.run("show port xstats 0");
    for queue in 0..pairs {
        for direction in ["rx", "tx"] {
            let idle = format!("{direction}_q{queue}_good_packets: 0\n");
            let named = stats.contains(&format!("{direction}_q{queue}_good_packets:"));
            assert!(named && !stats.replace('\r', "").contains(&idle), "{stats}");
        }
    }
}
