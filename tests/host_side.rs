//! The backend's host side as a program, in namespaces of the test's own: how it meets front-ends, what frames go through,
//! how fast they may, and what it counts.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::driver::guest_memory;
use support::front_end::{RawFrontEnd, wait_for};
use support::netns::{BOUND, Netns, bounded, fresh_index, until, wait};
use support::served::{
    BROADCAST, Backend, CHAINS, GUEST_MAC, Guest, RINGTAP, World, refusal_of, test_frame,
};
use support::wire::Wire;
use vhost::vhost_user::message::FrontendReq as Req;

fn add_macvtap(world: &World, mode: &str, index: u32) {
    world.ip(&format!(
        "link add link v0 name m0 index {index} address 52:54:00:00:00:01 type macvtap mode {mode}"
    ));
    world.ip("link set m0 up");
}

/// Frames through the macvtap `m0` on `v0`, from and to the wire, by each of two pairs.
fn exchange(wire: &Wire, guest: &mut Guest<'_>) {
    let buffers = guest.fill(4);
    for pair in 0..guest.rings.len() / 2 {
        let sent = test_frame(BROADCAST, GUEST_MAC, 100, pair as u8);
        guest.send(pair, &sent);
        wire.expect(&sent[12..]);
    }
    for to in [BROADCAST, GUEST_MAC] {
        let mut answer = test_frame(to, [0x52, 0x54, 0, 0, 0, 9], 300, 77);
        wire.tap.send(&answer[12..]).unwrap();
        answer[10] = 1; // num_buffers
        wait_for("the answer", || {
            for (pair, buffers) in buffers.iter().enumerate() {
                let (ring, _) = &mut guest.rings[2 * pair];
                // Buffers are taken in order and not given again: four are enough for a quiet wire.
                ring.completed();
                if buffers
                    .iter()
                    .any(|buffer| ring.read(*buffer, answer.len()) == answer)
                {
                    return Some(());
                }
            }
            None
        });
    }
}

#[test]
fn a_macvtap_moves_frames_in_every_mode_on_every_queue() {
    for mode in ["bridge", "vepa", "private", "passthru"] {
        let world = World::new();
        let wire = world.far_end("v0");
        world.ip("link set far0 addrgenmode none");
        add_macvtap(&world, mode, fresh_index());
        let backend = world.serve("--macvtap m0 --queue-pairs 2");
        let memory = guest_memory();
        let mut guest = Guest::start(world.connect(), &memory, 2);
        exchange(&wire, &mut guest);
        assert_eq!(backend.end(), Some(0), "{mode}");
        assert!(
            world.ip("-o link").contains("m0@"),
            "{mode}: the link stays"
        );
    }
}

/// `/dev` is one for all namespaces: of two links with one index only the first has its node there.
#[test]
fn a_macvtap_whose_node_is_another_links_is_not_mistaken_for_it() {
    let (first, second) = (World::new(), World::new());
    let index = fresh_index();
    for world in [&first, &second] {
        world.ip("link add v0 type veth peer name v1");
        world.ip("link set v1 up");
    }
    second.ip("link delete v0");
    let wire = second.far_end("v0");
    for world in [&first, &second] {
        world.ip("link set v0 up");
        add_macvtap(world, "bridge", index);
    }
    let backend = second.serve("--macvtap m0");
    let memory = guest_memory();
    let mut guest = Guest::start(second.connect(), &memory, 1);
    exchange(&wire, &mut guest);
    let private = format!(".ringtap-{}-tap{index}", backend.0.id());
    assert!(!Path::new("/dev").join(private).exists());
    assert_eq!(backend.end(), Some(0));
}

#[test]
fn what_is_no_macvtap_is_named_with_the_command_that_makes_one() {
    let world = World::new();
    let said = world.refusal("--macvtap m0");
    assert!(said.contains("no link m0"), "{said}");
    assert!(
        said.contains("ip link add link LINK name m0 type macvtap mode bridge"),
        "{said}"
    );
    world.ip("link add m0 type bridge");
    let said = world.refusal("--macvtap m0");
    assert!(said.contains("m0 exists and is not a macvtap"), "{said}");
    assert!(!world.socket().exists());
}

#[test]
fn a_macvtap_that_another_backend_has_is_busy() {
    let world = World::new();
    let _wire = world.far_end("v0");
    add_macvtap(&world, "bridge", fresh_index());
    let _first = world.serve("--macvtap m0");
    let socket = world.path("other.sock");
    let mut second = world.backend("--macvtap m0");
    let said = refusal_of(second.arg("--socket-path").arg(socket));
    assert!(said.contains("tap m0 is busy"), "{said}");
}

#[test]
fn a_user_without_rights_to_a_macvtap_is_told_how_to_get_them() {
    let worlds = [World::new(), World::new()];
    let index = fresh_index();
    for (world, says) in worlds.iter().zip([
        format!("(chown USER /dev/tap{index})"),
        format!("mknod -m 600 /dev/tap{index} c "), // the first has the node
    ]) {
        let _wire = world.far_end("v0");
        add_macvtap(world, "bridge", index);
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(world.dir.path(), open).unwrap();
        // The program lies where that user may not look; a copy is readable.
        let copy = world.path("ringtap");
        std::fs::copy(RINGTAP, &copy).unwrap();
        let mut command = world.netns.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command
            .arg(&copy)
            .args(["backend", "--macvtap", "m0", "--socket-path"]);
        let said = refusal_of(command.arg(world.socket()));
        assert!(said.contains(&says), "{said}");
        assert!(said.contains("run as root"), "{said}");
    }
}

/// A queue of `name`, as a launcher would open it to pass it on.
fn tap_queue(netns: &Netns, name: &str, flags: i32) -> OwnedFd {
    netns.within(|| {
        let open = || File::options().read(true).write(true).open("/dev/net/tun");
        let file = open().unwrap();
        // SAFETY: an ifreq is plain C data, for which all zeroes is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq through the pointer, which lives over the call.
        let attached = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(attached, 0, "{}", std::io::Error::last_os_error());
        file.into()
    })
}

/// `ringtap backend` with `first` as descriptor 5, and 6 where there is a second. They come as standard streams, which no
/// other test's child inherits.
fn with_descriptors(
    world: &World,
    options: &str,
    first: OwnedFd,
    second: Option<OwnedFd>,
) -> Command {
    let mut command = world.netns.command("sh");
    let redirect = if second.is_some() {
        "5<&0 6<&1"
    } else {
        "5<&0"
    };
    let script = format!("exec \"$@\" {redirect} </dev/null >/dev/null");
    command.args(["-c", &script, "sh", RINGTAP, "backend"]);
    command.args(options.split_whitespace());
    command.stdin(first).stderr(Stdio::piped());
    if let Some(second) = second {
        command.stdout(second);
    }
    command
}

/// What a command says that has its standard streams already.
fn said_by(mut command: Command) -> (Option<i32>, String) {
    let mut child = command.spawn().unwrap();
    let status = wait(&mut child, BOUND).expect("its end");
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    (status.code(), said)
}

const TAP: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE;

#[test]
fn inherited_queues_of_a_tap_are_served_one_a_pair() {
    let world = World::new();
    world.ip("tuntap add dev t0 mode tap multi_queue vnet_hdr");
    let wire = world.bridged("t0", "lo");
    let queue = || tap_queue(&world.netns, "t0", TAP | libc::IFF_VNET_HDR);
    let options = format!("--tap-fd 5,6 --socket-path {}", world.socket().display());
    let mut command = with_descriptors(&world, &options, queue(), Some(queue()));
    let backend = Backend(command.stderr(Stdio::null()).spawn().unwrap());
    drop(command); // its copies of the queues
    let memory = guest_memory();
    let front_end = world.connect();
    assert_eq!(front_end.get_u64(Req::GET_QUEUE_NUM), 2);
    let mut guest = Guest::start(front_end, &memory, 2);
    exchange(&wire, &mut guest);
    assert_eq!(backend.end(), Some(0));
}

#[test]
fn inherited_descriptors_that_are_not_what_they_should_be_are_named() {
    let world = World::new();
    world.ip("tuntap add dev t0 mode tap multi_queue");
    world.ip("tuntap add dev t1 mode tap multi_queue vnet_hdr");
    world.ip("tuntap add dev t2 mode tap multi_queue vnet_hdr");
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let unattached = || {
        OwnedFd::from(
            File::options()
                .read(true)
                .write(true)
                .open("/dev/net/tun")
                .unwrap(),
        )
    };
    let plain = tap_queue(&world.netns, "t0", TAP);
    let vnet = |name| tap_queue(&world.netns, name, TAP | libc::IFF_VNET_HDR);
    let socket = world.socket();
    let listen = format!("--socket-path {}", socket.display());
    for (options, first, second, says) in [
        (
            format!("--tap-fd 77 {listen}"),
            null(),
            None,
            "descriptor 77 was not inherited",
        ),
        (
            format!("--tap-fd 5 {listen}"),
            null(),
            None,
            "not an attached queue",
        ),
        (
            format!("--tap-fd 5 {listen}"),
            unattached(),
            None,
            "not an attached queue",
        ),
        (
            format!("--tap-fd 5 {listen}"),
            plain,
            None,
            "t0 has mode tap multi_queue, and",
        ),
        (
            format!("--tap-fd 5,6 {listen}"),
            vnet("t1"),
            Some(vnet("t2")),
            "t1 and t2",
        ),
        (
            "--tap t1 --fd 3".into(),
            null(),
            None,
            "descriptor 3 was not inherited",
        ),
        (
            "--tap t1 --fd 5".into(),
            null(),
            None,
            "not a connected unix stream socket",
        ),
    ] {
        let (code, said) = said_by(with_descriptors(&world, &options, first, second));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(says), "{options}: {said}");
        assert!(!socket.exists());
    }
}

#[test]
fn an_inherited_connection_is_served_until_its_end() {
    let world = World::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = with_descriptors(&world, "--tap t0 --fd 5", theirs.into(), None);
    let mut backend = Backend(command.stderr(Stdio::null()).spawn().unwrap());
    drop(command);
    let front_end = RawFrontEnd(ours);
    assert_eq!(front_end.get_u64(Req::GET_QUEUE_NUM), 1);
    drop(front_end);
    assert_eq!(backend.ended(), Some(0));
    assert!(!world.netns.attempt("ip link show t0").status.success());
}

/// The front-end's socket appears late, goes, and comes again.
#[test]
fn a_client_finds_its_front_end_again_and_again() {
    let world = World::new();
    let mut command = world.backend("--tap t0 --client");
    let backend = Backend(
        command
            .arg("--socket-path")
            .arg(world.socket())
            .spawn()
            .unwrap(),
    );
    until("the tap", || {
        world.netns.attempt("ip link show t0").status.success()
    });
    for _ in 0..3 {
        let listener = UnixListener::bind(world.socket()).unwrap();
        listener.set_nonblocking(true).unwrap();
        for _ in 0..2 {
            let accepted = || listener.accept().ok();
            let front_end = RawFrontEnd(wait_for("the client", accepted).0);
            front_end.0.set_nonblocking(false).unwrap();
            assert_eq!(front_end.get_u64(Req::GET_QUEUE_NUM), 1);
        }
        std::fs::remove_file(world.socket()).unwrap();
    }
    assert_eq!(backend.end(), Some(0));
}

/// A client for whom nobody listens waits between attempts.
#[test]
fn a_client_without_a_front_end_does_not_spin() {
    let world = World::new();
    let mut command = world.backend("--tap t0 --client");
    let backend = Backend(
        command
            .arg("--socket-path")
            .arg(world.socket())
            .spawn()
            .unwrap(),
    );
    until("the tap", || {
        world.netns.attempt("ip link show t0").status.success()
    });
    let spent = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", backend.0.id())).unwrap();
        let fields: Vec<_> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = spent();
    std::thread::sleep(Duration::from_millis(500)); // the measurement itself
    assert!(spent() - before < 10, "ticks of 10 ms in half a second");
}

/// As a management program does it: the file names a program, which says what it is.
#[test]
fn a_management_program_finds_the_backend_and_its_capabilities() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/vhost-user");
    let text = std::fs::read_to_string(shipped.join("50-ringtap.json")).unwrap();
    let descriptor: serde_json::Value = serde_json::from_str(&text).unwrap();
    let keys: Vec<_> = descriptor.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["binary", "description", "type"]);
    assert_eq!(descriptor["type"], "net");
    let binary = Path::new(descriptor["binary"].as_str().unwrap());
    assert!(binary.is_absolute());

    let mut command = Command::new(shipped.join(binary.file_name().unwrap()));
    command.env("PATH", Path::new(RINGTAP).parent().unwrap());
    let output = bounded(command.arg("--print-capabilities"), "");
    assert_eq!(output.status.code(), Some(0));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said, serde_json::json!({"type": "net", "features": []}));
}

/// The answer's head and body.
fn get(mut stream: impl Read + Write) -> (String, String) {
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("an empty line");
    (head.to_owned(), body.to_owned())
}

/// One sample: `queue` is receiveq or transmitq; all labels are checked elsewhere.
fn sample(body: &str, name: &str, pair: usize, queue: &str) -> u64 {
    let start = format!("ringtap_{name}_total{{tap=\"t0\",pair=\"{pair}\",queue=\"{queue}\"");
    let values = body
        .lines()
        .filter(|line| line.starts_with(&start))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
    values.reduce(|a, b| a + b).expect(name)
}

/// Every line is a comment or a sample, every sample's name has a type that suits it, and no line comes twice.
fn check_exposition(body: &str) {
    let mut seen = std::collections::HashSet::new();
    let mut typed = String::new();
    for line in body.lines() {
        if let Some(name) = line.strip_prefix("# TYPE ") {
            let (name, kind) = name.split_once(' ').expect(line);
            let is_total = name.ends_with("_total");
            assert_eq!(kind, if is_total { "counter" } else { "gauge" }, "{line}");
            typed = name.to_owned();
        } else if !line.starts_with("# HELP ") {
            let (name, rest) = line.split_once('{').expect(line);
            let (labels, value) = rest.split_once("} ").expect(line);
            assert_eq!(name, typed);
            assert!(
                labels.starts_with("tap=\"t0\",") && labels.ends_with('"'),
                "{line}"
            );
            value.parse::<u64>().expect(line);
            assert!(seen.insert(format!("{name}{labels}")), "{line}");
        }
    }
    assert!(body.ends_with('\n') && !seen.is_empty());
}

#[test]
fn counters_are_served_to_scrapers_also_beside_one_that_hangs() {
    let world = World::new();
    world.ip("tuntap add dev t0 mode tap multi_queue vnet_hdr");
    let wire = world.bridged("t0", "lo");
    let stats = world.path("stats.sock");
    let backend = world.serve(&format!("--tap t0 --stats unix:{}", stats.display()));
    let _hanging = UnixStream::connect(&stats).unwrap();
    let memory = guest_memory();
    let mut guest = Guest::start(world.connect(), &memory, 1);
    exchange(&wire, &mut guest);
    let (head, body) = get(UnixStream::connect(&stats).unwrap());
    assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
    assert!(
        head.contains("\r\nContent-Type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(
        head.contains(&format!("\r\nContent-Length: {}", body.len())),
        "{head}"
    );
    check_exposition(&body);
    assert_eq!(sample(&body, "frames", 0, "transmitq"), 1);
    assert_eq!(sample(&body, "bytes", 0, "transmitq"), 100);
    assert!(sample(&body, "frames", 0, "receiveq") >= 2);
    assert!(sample(&body, "syscalls", 0, "receiveq") >= 2);
    assert_eq!(sample(&body, "bad_chains", 0, "transmitq"), 0);
    assert_eq!(backend.end(), Some(0));
    assert!(!stats.exists());
}

#[test]
fn counters_are_served_on_the_loopback() {
    let world = World::new();
    let _backend = world.serve("--tap t0 --stats 127.0.0.1:9100");
    let connect = || std::net::TcpStream::connect("127.0.0.1:9100").unwrap();
    check_exposition(&get(world.netns.within(connect)).1);
}

/// How long rates are measured.
const MEASURED: Duration = Duration::from_secs(2);

/// That `count` is what a rate gives in the time since `start`: no more than it earned and a burst, and most of it. The
/// bucket keeps what a late wake-up did not use, up to the burst, so the lower bound is for very busy machines.
fn check_rate(count: usize, start: Instant, rate: f64, burst: f64) {
    let (count, earned) = (count as f64, start.elapsed().as_secs_f64() * rate);
    assert!(count <= earned + burst, "{count} with {earned} earned");
    assert!(count > 0.6 * earned, "{count} with {earned} earned");
}

/// Both transmitqs are kept full for a while: together they get the rate and a burst, and nothing is lost.
#[test]
fn two_pairs_share_the_transmit_rate_and_nothing_is_dropped() {
    let world = World::new();
    let stats = world.path("stats.sock");
    let options = "--tap t0 --queue-pairs 2 --tx-rate 1600kbit,burst=16kb --stats unix:";
    let backend = world.serve(&format!("{options}{}", stats.display()));
    world.ip("link set t0 up");
    let memory = guest_memory();
    let mut guest = Guest::start(world.connect(), &memory, 2);
    let start = Instant::now();
    let bytes = test_frame(BROADCAST, GUEST_MAC, 1000, 1);
    for index in [1, 3] {
        guest.fill_with(index, |ring| ring.readable(&bytes));
    }
    let sent = guest.completed_until(start + MEASURED, &[1, 3]);
    check_rate(sent, start, 200.0, 16.4 + 2.0); // and a last frame a pair on credit
    let (_, body) = get(UnixStream::connect(&stats).unwrap());
    for pair in [0, 1] {
        assert!(sample(&body, "throttled", pair, "transmitq") > 0);
        assert_eq!(sample(&body, "dropped", pair, "transmitq"), 0);
        assert!(sample(&body, "frames", pair, "transmitq") > 0);
    }
    assert_eq!(backend.end(), Some(0));
}

/// What a driver had made available before it disabled its ring is sent, limit or not, and owed.
#[test]
fn a_limit_loses_no_frame_of_a_ring_that_is_disabled() {
    let world = World::new();
    let stats = world.path("stats.sock");
    let options = "--tap t0 --tx-rate 1pps,burst=1p --stats unix:";
    let _backend = world.serve(&format!("{options}{}", stats.display()));
    world.ip("link set t0 up");
    let memory = guest_memory();
    let mut guest = Guest::start(world.connect(), &memory, 1);
    let bytes = test_frame(BROADCAST, GUEST_MAC, 100, 1);
    guest.fill_with(1, |ring| ring.readable(&bytes));
    let counters = || get(UnixStream::connect(&stats).unwrap()).1;
    until("the limit", || {
        sample(&counters(), "throttled", 0, "transmitq") > 0
    });
    let sent = sample(&counters(), "frames", 0, "transmitq");
    assert!(sent < 30, "{sent} with one a second");
    guest.front_end.state(Req::SET_VRING_ENABLE, 1, 0);
    guest.front_end.get_u64(Req::GET_FEATURES); // answered in order
    let body = counters();
    assert_eq!(sample(&body, "frames", 0, "transmitq"), CHAINS as u64);
    assert_eq!(sample(&body, "dropped", 0, "transmitq"), 0);
}

#[test]
fn the_receive_rate_holds_in_packets() {
    let world = World::new();
    world.ip("tuntap add dev t0 mode tap multi_queue vnet_hdr");
    let wire = world.bridged("t0", "lo");
    let backend = world.serve("--tap t0 --rx-rate 200pps,burst=20p");
    let memory = guest_memory();
    let mut guest = Guest::start(world.connect(), &memory, 1);
    guest.fill_with(0, |ring| ring.writable(2048));
    let (tap, done) = (Arc::clone(&wire.tap), Arc::new(AtomicBool::new(false)));
    let flood = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            let bytes = test_frame(BROADCAST, [0x52, 0x54, 0, 0, 0, 9], 200, 1);
            while !done.load(Ordering::Relaxed) {
                let _ = tap.send(&bytes[12..]);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    // The kernel lets the bridge know of the tap's carrier up to a second late.
    until("the first frame", || {
        !guest.rings[0].0.completed().is_empty()
    });
    let start = Instant::now();
    let received = guest.completed_until(start + MEASURED, &[0]);
    done.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    check_rate(received, start, 200.0, 20.0 + 1.0);
    assert_eq!(backend.end(), Some(0));
}

/// How often the thread of `backend`'s pair has gone to sleep.
fn sleeps(backend: &Backend) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", backend.0.id())).unwrap();
    let read = |task: &Path, name| std::fs::read_to_string(task.join(name)).unwrap();
    let pair = tasks
        .map(|task| task.unwrap().path())
        .find(|task| read(task, "comm").trim_end() == "pair0");
    let status = read(&pair.expect("a pair's thread"), "status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// For all of which there are buffers in the end.
const WAITING: usize = 100;

/// Sends [`WAITING`] frames to a guest that has no buffers, which is not to wake the worker each time; then does the rest.
fn with_frames_that_wait(
    options: &str,
    rest: impl FnOnce(&World, Backend, &mut Guest<'_>, &dyn Fn()),
) {
    let world = World::new();
    world.ip("tuntap add dev t0 mode tap multi_queue vnet_hdr");
    let wire = world.bridged("t0", "lo");
    let backend = world.serve(&format!("--tap t0 {options}"));
    let memory = guest_memory();
    let mut guest = Guest::start(world.connect(), &memory, 1);
    let bytes = test_frame(BROADCAST, [0x52, 0x54, 0, 0, 0, 9], 200, 1);
    let send = || {
        wire.tap.send(&bytes[12..]).unwrap();
    };
    guest.fill(1);
    // The kernel lets the bridge know of the tap's carrier up to a second late.
    until("the first frame", || {
        send();
        !guest.rings[0].0.completed().is_empty()
    });

    let before = sleeps(&backend);
    for _ in 0..WAITING {
        send();
        std::thread::sleep(Duration::from_millis(1)); // long enough to be woken by each
    }
    let woken = sleeps(&backend) - before;
    assert!(woken < 10, "{options}: woken {woken} times");
    rest(&world, backend, &mut guest, &send);
}

#[test]
fn frames_that_wait_for_buffers_wake_nobody_and_come_in_the_end() {
    for options in ["--poll-us 0", "--poll-us 50"] {
        with_frames_that_wait(options, |_, backend, guest, send| {
            let received = |guest: &mut Guest<'_>, count| {
                let mut left = count;
                until("the frames", || {
                    left -= guest.rings[0].0.completed().len().min(left);
                    left == 0
                });
            };
            guest.fill_with(0, |ring| ring.writable(2048));
            received(guest, WAITING);
            until("an empty tap", || guest.rings[0].0.completed().is_empty());
            send();
            received(guest, 1);
            assert_eq!(backend.end(), Some(0));
        });
    }
}

#[test]
fn a_tap_is_missed_also_while_its_frames_wait_for_buffers() {
    with_frames_that_wait("", |world, mut backend, _, _| {
        world.ip("link delete t0");
        assert_eq!(backend.ended(), Some(1));
    });
}
