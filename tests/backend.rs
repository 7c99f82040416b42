//! The backend as a program, on real taps in namespaces of the test's own: what it serves, and what it says where it
//! can't.

mod support;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use ringtap::tap::Tap;
use ringtap::types::QueuePairs;
use support::driver::{DriverRing, MEMORY, USER_BASE, guest_memory};
use support::front_end::{Events, mem_region, vring_addr, wait_for};
use support::netns::{BOUND, bounded, wait};
use support::served::{
    BROADCAST, Backend, GUEST_MAC, Guest, PROTOCOL_FEATURES, RINGTAP, VERSION_1, World, refusal_of,
    test_frame,
};
use support::wire::Wire;
use vhost::vhost_user::message::FrontendReq as Req;

/// `ringtap backend` on the tap `t0`, to be run by `before` where that says more than nothing.
fn on_t0(world: &World, before: &[&str]) -> Command {
    let words = [before, &[RINGTAP]].concat();
    let mut command = world.netns.command(words[0]);
    command
        .args(&words[1..])
        .args(["backend", "--tap", "t0", "--socket-path"])
        .arg(world.socket());
    command
}

/// What a backend that can't serve says; it leaves no socket.
fn refusal(world: &World, before: &[&str]) -> String {
    let said = refusal_of(&mut on_t0(world, before));
    assert!(!world.socket().exists());
    said
}

/// A broadcast frame of an EtherType that nobody has.
fn broadcast(seed: u8) -> Vec<u8> {
    test_frame(BROADCAST, GUEST_MAC, 100, seed)
}

/// Frames go over a bridge to a plain tap, the other end of the wire; and the backend listens again after a front-end
/// has gone, in the middle of things or not.
#[test]
fn one_front_end_after_another_is_served_on_a_real_tap() {
    let world = World::new();
    let ip = |words: &str| world.netns.run(&format!("ip {words}"));
    ip("tuntap add dev t0 mode tap multi_queue vnet_hdr");
    ip("link add br0 type bridge mcast_snooping 0");
    let wire = Wire::open(&world.netns, "w0");
    for link in ["t0", "w0"] {
        ip(&format!("link set {link} master br0"));
        ip(&format!("link set {link} up"));
    }
    ip("link set br0 up");
    let backend = world.serve("--tap t0");
    let (memory, file) = guest_memory();
    for round in 0..3u8 {
        let front_end = world.connect();
        let mut rx = DriverRing::new(memory.mem(), 0, 64);
        let mut tx = DriverRing::new(memory.mem(), MEMORY / 2, 64);
        for ring in [&mut rx, &mut tx] {
            ring.start_at(0);
        }
        let (rx_events, tx_events) = (Events::new(), Events::new());
        front_end.u64(Req::SET_PROTOCOL_FEATURES, 1 << 3);
        front_end.u64(Req::SET_FEATURES, VERSION_1 | PROTOCOL_FEATURES);
        assert_eq!(front_end.set_mem_table(&file), 0);
        let room = rx.writable(2048);
        rx.add(&[room]);
        front_end.set_up_ring(0, &rx, 0, &rx_events);
        front_end.set_up_ring(1, &tx, 0, &tx_events);
        front_end.state(Req::SET_VRING_ENABLE, 0, 1);
        front_end.state(Req::SET_VRING_ENABLE, 1, 1);
        front_end.get_u64(Req::GET_FEATURES); // answered in order, so all of the above is done

        let bytes = broadcast(round);
        let buffer = tx.readable(&bytes);
        tx.add(&[buffer]);
        tx_events.kick();
        wire.expect(&bytes[12..]);

        let mut answered = broadcast(round + 100);
        wire.tap.send(&answered[12..]).unwrap();
        answered[10] = 1; // num_buffers
        wait_for("the answer", || {
            for (_, len) in rx.completed() {
                if rx.read(room, len as usize) == answered {
                    return Some(());
                }
                rx.add(&[room]); // a frame of the kernel's own
                rx_events.kick();
            }
            None
        });
    } // the front-end leaves with its rings running
    assert_eq!(backend.end(), Some(0));
    assert!(!world.socket().exists());
    assert!(ip("-o link").contains("t0"), "a tap that was there stays");
}

/// The page is nowhere: whoever touches it ends, and nobody else.
#[test]
fn memory_that_is_cut_short_ends_one_process_with_a_word() {
    let world = World::new();
    let log = world.dir.path().join("log");
    let (memory, file) = guest_memory();
    let mut tx = DriverRing::new(memory.mem(), MEMORY / 2, 64);
    tx.start_at(0);
    let events = Events::new();
    let start = || {
        let mut command = on_t0(&world, &[]);
        command.stderr(std::fs::File::create(&log).unwrap());
        let backend = Backend(command.spawn().unwrap());
        let front_end = world.connect();
        front_end.u64(Req::SET_PROTOCOL_FEATURES, 1 << 3);
        front_end.u64(Req::SET_FEATURES, VERSION_1 | PROTOCOL_FEATURES);
        (backend, front_end)
    };
    let (mut backend, front_end) = start();
    assert_eq!(front_end.set_mem_table(&file), 0);
    front_end.set_up_ring(1, &tx, 0, &events);
    front_end.state(Req::SET_VRING_ENABLE, 1, 1);
    front_end.get_u64(Req::GET_FEATURES);
    file.set_len(0).unwrap();
    events.kick();
    let ended = wait(&mut backend.0, BOUND).expect("its end");
    assert_eq!(ended.signal(), Some(Signal::SIGBUS as i32));
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("guest memory is gone"), "{said}");
    drop(front_end);

    // The next one is told of the same memory, and does not take it.
    let (backend, front_end) = start();
    assert_ne!(front_end.set_mem_table(&file), 0);
    assert_eq!(front_end.get_u64(Req::GET_QUEUE_NUM), 1);
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("of a file of 0"), "{said}");
    drop(backend);
}

/// By the process that serves guests, with all the limits that it has: and afterwards it serves the next as if nothing had been.
#[test]
fn no_game_with_memory_and_rings_ends_the_backend() {
    const PAGE: u64 = 4096;
    let world = World::new();
    let backend = world.serve("--tap t0");
    let wire = world.bridged("t0", "t0");
    let (memory, file) = guest_memory();
    let front_end = world.connect();
    front_end.u64(Req::SET_PROTOCOL_FEATURES, 1 << 3 | 1 << 15); // REPLY_ACK, CONFIGURE_MEM_SLOTS
    front_end.u64(Req::SET_FEATURES, VERSION_1 | PROTOCOL_FEATURES);
    let slot = |slot: u64| mem_region([slot * PAGE, PAGE, USER_BASE + slot * PAGE, 0]);
    let adds =
        |slot: &[u8], fd: &dyn AsRawFd| front_end.acknowledged(Req::ADD_MEM_REG, slot, &[fd]) == 0;

    let path = world.path("memory");
    std::fs::write(&path, [0; PAGE as usize]).unwrap();
    let read_only = File::open(&path).unwrap();
    let no_memory: [(&str, &dyn AsRawFd); 6] = [
        ("a socket", &UnixStream::pair().unwrap().0),
        ("a pipe", &std::io::pipe().unwrap().0),
        ("an eventfd", &Events::new().kick),
        ("a device", &File::open("/dev/zero").unwrap()),
        ("a directory", &File::open("/").unwrap()),
        ("a file that can't be written", &read_only),
    ];
    for (what, fd) in no_memory {
        assert!(!adds(&slot(0), fd), "{what}");
    }

    let most = front_end.get_u64(Req::GET_MAX_MEM_SLOTS);
    let added = (0..2000).filter(|it| adds(&slot(*it), &file)).count() as u64;
    assert_eq!(added, most);
    let removed = front_end.acknowledged(Req::REM_MEM_REG, &slot(1), &[]);
    assert_eq!(removed, 0);
    assert!(adds(&slot(3000), &file), "there is a place again");

    let event = Events::new();
    let ring = DriverRing::new(memory.mem(), 0, 64);
    // The field at such a place in the message, which has the descriptors' first, then the used and the available ring's.
    let moved = |field: usize, change: u64| {
        let mut body = vring_addr(0, &ring);
        let address: [u8; 8] = body[field..field + 8].try_into().unwrap();
        let address = u64::from_ne_bytes(address).wrapping_add(change);
        body[field..field + 8].copy_from_slice(&address.to_ne_bytes());
        body
    };
    let before_the_end = 0u64.wrapping_sub(USER_BASE + 16);
    for (field, change) in [(8, 1 << 40), (16, 1 << 63), (24, before_the_end)] {
        front_end.state(Req::SET_VRING_NUM, 0, 64);
        front_end.acknowledged(Req::SET_VRING_ADDR, &moved(field, change), &[]);
        let kick = 0u64.to_ne_bytes();
        let started = front_end.acknowledged(Req::SET_VRING_KICK, &kick, &[&event.kick]);
        assert_ne!(started, 0, "{field} {change:#x}");
    }
    drop(front_end);
    for (field, change) in [(8, 8), (16, 1), (24, 1)] {
        let front_end = world.connect();
        front_end.send(Req::SET_VRING_ADDR, 0, &moved(field, change), &[]);
        let answer = front_end.reply(Req::SET_VRING_ADDR);
        assert!(answer.is_none(), "{field} {change}: the session ends");
    }

    let memory = (memory, file);
    let mut guest = Guest::start(world.connect(), &memory, 1);
    let frame = broadcast(1);
    guest.send(0, &frame);
    wire.expect(&frame[12..]);
    drop(guest);
    assert_eq!(backend.end(), Some(0));
}

#[test]
fn a_tap_that_the_backend_made_goes_with_it() {
    let world = World::new();
    let backend = world.serve("--tap t0");
    assert!(
        world
            .netns
            .run("ip -d link show t0")
            .contains("tun type tap")
    );
    assert_eq!(backend.end_by(Signal::SIGINT), Some(0));
    assert!(!world.netns.attempt("ip link show t0").status.success());
}

/// With a front-end and without, in the sandbox as always.
#[test]
fn a_tap_that_is_deleted_ends_the_backend_with_a_word() {
    let world = World::new();
    let log = world.dir.path().join("log");
    for has_front_end in [false, true] {
        let mut command = on_t0(&world, &[]);
        command.stderr(std::fs::File::create(&log).unwrap());
        let mut backend = Backend(command.spawn().unwrap());
        let stream = world.connect();
        let front_end = has_front_end.then_some(stream);
        if let Some(front_end) = &front_end {
            front_end.get_u64(Req::GET_FEATURES);
        }
        world.netns.run("ip link delete t0");
        let ended = wait(&mut backend.0, BOUND).expect("its end");
        assert_eq!(ended.code(), Some(1));
        let said = std::fs::read_to_string(&log).unwrap();
        assert!(
            said.contains("t0 was deleted; start this backend again"),
            "{said}"
        );
    }
}

/// A front-end that comes and goes has a line each time; where the log is kept for it, it does not grow for ever.
#[test]
fn a_log_that_is_kept_is_kept_short() {
    const LIMIT: u64 = 2000;
    let world = World::new();
    let path = world.dir.path().join("log");
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&path);
    let mut command = on_t0(&world, &[]);
    command.stderr(log.unwrap());
    command.env("RINGTAP_LOG_LIMIT", LIMIT.to_string());
    let backend = Backend(command.spawn().unwrap());
    let len = || std::fs::metadata(&path).unwrap().len();
    let (mut before, mut cuts) = (0, 0);
    for _ in 0..100 {
        let front_end = world.connect();
        front_end.get_u64(Req::GET_FEATURES);
        let now = len();
        assert!(now <= LIMIT, "{now}");
        cuts += usize::from(now < before);
        before = now;
    }
    assert!(cuts >= 2, "{cuts} of {before} bytes");
    assert_eq!(backend.end(), Some(0));
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let world = World::new();
    let backend = world.serve("--tap t0");
    assert_eq!(backend.end_by(Signal::SIGKILL), None);
    assert!(world.socket().exists(), "kill -9 leaves the socket's file");
    let mut command = on_t0(&world, &[]);
    let backend = Backend(command.stderr(Stdio::null()).spawn().unwrap());
    let stream = world.connect();
    world
        .netns
        .run("ip tuntap add dev t1 mode tap multi_queue vnet_hdr");
    let mut second = world.netns.command(RINGTAP);
    second
        .args(["backend", "--tap", "t1", "--socket-path"])
        .arg(world.socket());
    let said = refusal_of(&mut second);
    assert!(said.contains("is in use"), "{said}");
    drop((stream, backend));
}

#[test]
fn a_busy_tap_is_named() {
    let world = World::new();
    let backend = world.serve("--tap t0");
    let elsewhere = tempfile::tempdir().unwrap();
    let mut second = world.netns.command(RINGTAP);
    let socket = elsewhere.path().join("other.sock");
    second
        .args(["backend", "--tap", "t0", "--socket-path"])
        .arg(&socket);
    let said = refusal_of(&mut second);
    assert!(said.contains("tap t0 is busy"), "{said}");
    assert!(!socket.exists());
    drop(backend);

    // By somebody who is no backend, and claims nothing.
    let open = || Tap::open(&"t0".parse().unwrap(), QueuePairs::ONE).unwrap();
    let (tap, queues) = world.netns.within(open);
    drop(tap);
    let said = refusal_of(&mut second);
    assert!(said.contains("tap t0 is busy"), "{said}");
    assert!(!socket.exists());
    drop(queues);
}

#[test]
fn a_tap_without_a_needed_flag_is_named_with_the_command_that_mends_it() {
    for (made, has) in [
        (
            "ip tuntap add dev t0 mode tap vnet_hdr",
            "mode tap vnet_hdr",
        ),
        (
            "ip tuntap add dev t0 mode tap multi_queue",
            "mode tap multi_queue",
        ),
        (
            "ip tuntap add dev t0 mode tun multi_queue vnet_hdr",
            "mode tun multi_queue vnet_hdr",
        ),
    ] {
        let world = World::new();
        world.netns.run(made);
        let said = refusal(&world, &[]);
        assert!(said.contains(&format!("tap t0 has {has}")), "{said}");
        let remedy = said.split(['(', ')']).nth(1).expect("a remedy");
        for command in remedy.split("; ") {
            world.netns.run(command);
        }
        world.serve("--tap t0");
    }
}

#[test]
fn a_link_that_is_no_tap_is_named() {
    let world = World::new();
    world.netns.run("ip link add t0 type bridge");
    let said = refusal(&world, &[]);
    assert!(said.contains("link t0 exists and is not a tap"), "{said}");
}

#[test]
fn a_user_without_rights_is_told_how_to_get_them() {
    let world = World::new();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(world.dir.path(), open).unwrap();
    // The program lies where that user may not look; a copy is readable.
    let copy = world.dir.path().join("ringtap");
    std::fs::copy(RINGTAP, &copy).unwrap();
    let mut command = world.netns.command("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy);
    command
        .args(["backend", "--tap", "t0", "--socket-path"])
        .arg(world.socket());
    let said = refusal_of(&mut command);
    assert!(said.contains("not permitted to use tap t0"), "{said}");
    assert!(said.contains("run as root"), "{said}");
}

#[test]
fn a_host_without_tun_is_told_which_module_to_load() {
    let world = World::new();
    // In the mount namespace that `ip netns exec` has just made.
    let hide = "mount -t tmpfs none /dev/net && exec \"$@\"";
    let said = refusal(&world, &["sh", "-c", hide, "sh"]);
    assert!(
        said.contains("no /dev/net/tun") && said.contains("modprobe tun"),
        "{said}"
    );
}

#[test]
fn a_socket_in_a_directory_that_is_not_there_is_named() {
    let world = World::new();
    let mut command = world.netns.command(RINGTAP);
    let socket = Path::new("/nowhere/nic.sock");
    command
        .args(["backend", "--tap", "t0", "--socket-path"])
        .arg(socket);
    let said = refusal_of(&mut command);
    assert!(said.contains("/nowhere/nic.sock"), "{said}");
    assert!(
        !world.netns.attempt("ip link show t0").status.success(),
        "no tap stays"
    );
}

#[test]
fn bad_arguments_are_refused_with_2() {
    for args in [
        &["backend", "--tap", "t0"][..],
        &[
            "backend",
            "--socket-path",
            "/tmp/x",
            "--tap",
            "a-name-that-is-too-long",
        ],
        &[
            "backend",
            "--socket-path",
            "/tmp/x",
            "--tap",
            "t0",
            "--queue-pairs",
            "0",
        ],
    ] {
        let output = bounded(Command::new(RINGTAP).args(args), "");
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}

/// An idle backend must not spin: a front-end whose receiveq has no buffers, and frames that wait.
#[test]
fn frames_that_find_no_buffers_do_not_keep_the_backend_busy() {
    let world = World::new();
    world
        .netns
        .run("ip tuntap add dev t0 mode tap multi_queue vnet_hdr");
    let backend = world.serve("--tap t0");
    let (memory, file) = guest_memory();
    let front_end = world.connect();
    let rx = DriverRing::new(memory.mem(), 0, 64);
    front_end.u64(Req::SET_PROTOCOL_FEATURES, 1 << 3);
    front_end.u64(Req::SET_FEATURES, VERSION_1);
    assert_eq!(front_end.set_mem_table(&file), 0);
    front_end.set_up_ring(0, &rx, 0, &Events::new());
    front_end.get_u64(Req::GET_FEATURES);
    world.netns.run("ip link set t0 up");
    world.netns.run("ip address add 10.9.9.1/24 dev t0");
    world.netns.attempt("ping -c 3 -i 0.2 -W 1 10.9.9.2"); // ARP requests into the tap
    let before = cpu_time(&backend);
    std::thread::sleep(Duration::from_millis(500)); // the measurement itself
    let spent = cpu_time(&backend) - before;
    assert!(
        spent < Duration::from_millis(100),
        "{spent:?} of CPU in half a second"
    );
}

/// User and system time so far.
fn cpu_time(backend: &Backend) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", backend.0.id())).unwrap();
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
