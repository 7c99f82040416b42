//! What needs a kernel with more than some have: guests under KVM, and the kernel's own back-end beside this one.

mod support;

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use support::bridged::{Bridged, counters};
use support::console::Console;
use support::kernel::{Feature, run, trial};
use support::lab::{Lab, tiny};
use support::netns::{self, BOUND, until};
use support::testpmd::Testpmd;
use support::transfer;
use support::web::WebServer;
use support::world::{BACKEND, World};

fn main() {
    run(vec![
        trial(
            "a_guest_under_kvm_moves_bytes_both_ways",
            &[Feature::Kvm],
            guest_under_kvm,
        ),
        trial(
            "a_guest_under_kvm_has_a_nic_of_vhost_net_beside_its_own",
            &[Feature::Kvm, Feature::VhostNet],
            vhost_net_in_a_guest,
        ),
        trial(
            "dpdk_drives_vhost_net_beside_the_backend",
            &[Feature::VhostNet],
            dpdk_on_vhost_net,
        ),
        trial(
            "a_clock_that_jumps_costs_a_guest_nothing",
            &[Feature::Kvm, Feature::OwnClock],
            clock_jumps,
        ),
    ]);
}

fn guest_under_kvm() {
    let lab = Lab::new();
    lab.configure_guest("");
    let web = WebServer::start(&lab.internet);
    let started = Instant::now();
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    println!("a shell after {:.1} s", started.elapsed().as_secs_f64());
    assert_eq!(lab.pids(&["qemu-system-x86_64", "-accel kvm"]).len(), 1);
    let started = Instant::now();
    transfer::both_ways(&mut guest, &web, 16 << 20, 2);
    println!("64 MiB in {:.1} s", started.elapsed().as_secs_f64());
    assert!(guest.power_off().success());
}

/// The same guest, the same bridge: ringtap's NIC is eth0, QEMU's tap with vhost=on is eth1.
fn vhost_net_in_a_guest() {
    const ARGS: [&str; 4] = [
        "-netdev",
        "tap,id=beside,ifname=vn0,script=no,downscript=no,vhost=on",
        "-device",
        "virtio-net-pci,netdev=beside,mac=52:54:00:00:00:99",
    ];
    let lab = Lab::new();
    // Who makes a tap is root.
    let guest = tiny("web1", 10, &ARGS);
    lab.configure(&guest.replace("[guests.web1]\n", "[guests.web1]\nuser = \"root\"\n"));
    let mut guest = Console::start(&mut lab.ringtap("run web1"));
    until("QEMU's tap", || {
        lab.host
            .attempt("ip link set vn0 master rt-default up")
            .status
            .success()
    });
    guest.wait_for("tiny: ready", BOUND);
    guest.run("stty -echo");
    for nic in ["eth0", "eth1"] {
        until("a lease", || {
            guest
                .run(&format!("ip -4 address show {nic}"))
                .contains("inet 192.168.100.")
        });
        guest.run(&format!("ping -c 3 -I {nic} 192.168.100.1"));
    }
    let (frames, _) = counters(&lab.host, "vn0", "rx");
    assert!(frames > 3, "{frames} frames through vhost-net");
    assert!(guest.power_off().success());
}

const FRAMES: u64 = 100_000;

/// virtio-user on ringtap's socket and on the kernel's vhost-net: every frame is counted at either tap. The rates are
/// printed for comparison with those of another day, and prove nothing.
fn dpdk_on_vhost_net() {
    let world = Bridged::new(1500, &[]);
    let app = ["--rxq=1", "--txq=1", "--nb-cores=1"];
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..3 {
        let ours = Testpmd::start(
            &world.netns,
            &world.socket(),
            "queues=1,queue_size=256",
            &app,
        );
        rates[0].push(frames_all_arrive(&world, "t0", ours));
        let device = "queues=1,queue_size=256,iface=vn0";
        let kernel = Testpmd::start(&world.netns, Path::new("/dev/vhost-net"), device, &app);
        world.netns.run("ip link set vn0 master br0 up");
        rates[1].push(frames_all_arrive(&world, "vn0", kernel));
    }
    let [ours, kernel] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[1] / 1e3
    });
    println!(
        "64 bytes, kpps, of a build for tests: ours {ours:.0}, vhost-net {kernel:.0}, ratio {:.2}",
        ours / kernel
    );
}

/// Sends at least [`FRAMES`]; what testpmd has sent is what the tap has taken. Returns frames a second.
fn frames_all_arrive(world: &Bridged, tap: &str, mut testpmd: Testpmd) -> f64 {
    let taken = || counters(&world.netns, tap, "rx");
    let before = taken();
    let sent_before = testpmd.stats().sent;
    testpmd.run("set fwd txonly");
    testpmd.run("set txpkts 64");
    let started = Instant::now();
    testpmd.run("start");
    until("the frames", || taken().0 >= before.0 + FRAMES);
    let rate = (taken().0 - before.0) as f64 / started.elapsed().as_secs_f64();
    testpmd.run("stop");
    let sent = testpmd.stats().sent;
    until("all that was sent", || {
        taken().0 - before.0 >= sent.0 - sent_before.0
    });
    let taken = taken();
    assert_eq!(
        (taken.0 - before.0, taken.1 - before.1),
        (sent.0 - sent_before.0, sent.1 - sent_before.1)
    );
    testpmd.quit();
    rate
}

/// A host that has started in the past is set right by NTP, and one that was set wrong is set back: what a guest was given is
/// known to the next backend, and a guest has run for as long as it has.
fn clock_jumps() {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    let set = |time: SystemTime| {
        let seconds = time.duration_since(UNIX_EPOCH).unwrap().as_secs();
        netns::run("date", &["--set", &format!("@{seconds}")]);
    };
    let world = World::new("");
    world.change(", ip = \"192.168.100.10\"", ""); // what it has is what DHCP gives it
    let start = Instant::now();
    world.ringtap("start web1").succeeded();
    drop(world.console());
    let address = world.web1()["nics"][0]["addresses"][0].clone();
    let ping = format!("ping -n -c 1 -W 1 {}", address.as_str().unwrap());
    for jump in [
        |now| now + 2 * YEAR,
        |now| now - 4 * YEAR,
        |now| now + 2 * YEAR,
    ] {
        set(jump(SystemTime::now()));
        world.kill(&BACKEND);
        until("an answer of the guest's", || {
            world.lab.host.attempt(&ping).status.success()
        });
        let uptime = world.web1()["uptime"].as_u64().unwrap();
        assert!(uptime <= start.elapsed().as_secs() + 1, "{uptime}");
    }
    world.ringtap("stop web1").succeeded();
    world.nothing_is_left();
}
