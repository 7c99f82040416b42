//! What happens to a host under a guest that runs: links are deleted or set down, a disk is full. Each is set right or named,
//! and the guest runs on.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use support::console::Console;
use support::lab::INTERNET;
use support::netns::{Netns, until};
use support::world::{BACKEND, SUPERVISOR, World};

impl World {
    /// The link of web1's NIC.
    fn link(&self) -> String {
        self.web1()["nics"][0]["link"].as_str().unwrap().to_owned()
    }

    fn link_index(&self) -> String {
        self.lab
            .host
            .run(&format!("cat /sys/class/net/{}/ifindex", self.link()))
    }

    /// Waits until `ringtap status web1` has these words.
    fn names(&self, words: &str) {
        until(words, || self.ringtap("status web1").out.contains(words));
    }

    fn is_reached(&self) {
        until("an answer of the guest's", || self.answers());
    }

    /// What the supervisor has said.
    fn log(&self) -> String {
        fs::read_to_string(self.lab.run_dir().join("guests/web1/supervisor.log")).unwrap()
    }
}

fn booted(world: &World) -> Console {
    world.ringtap("start web1").succeeded();
    let mut console = world.console();
    console.run(&format!("ping -c 1 {INTERNET}"));
    console
}

#[test]
fn links_that_go_come_again_and_what_somebody_meant_is_named() {
    let world = World::new("");
    let mut console = booted(&world);
    let (link, first) = (world.link(), world.link_index());
    let host = &world.lab.host;

    host.run(&format!("ip link delete {link}"));
    world.is_reached();
    assert_ne!(world.link_index(), first);
    console.run(&format!("ping -c 1 {INTERNET}"));
    assert!(world.log().contains(&format!("{link} was deleted")));

    host.run("ip link delete rt-default");
    world.names(&format!(
        "{link} is plugged into nothing, for there is no rt-default"
    ));
    world.ringtap("up default").succeeded();
    world.is_reached();

    // Both at once, and whoever serves the guest as well; the next supervisor finds it so.
    world.kill(&SUPERVISOR);
    host.run(&format!("ip link delete {link}"));
    host.run("ip link delete rt-default");
    until("the backend's end", || world.lab.pids(&BACKEND).is_empty());
    world.ringtap("up default").succeeded();
    world.ringtap("list").succeeded();
    world.is_reached();
    world.console().run(&format!("ping -c 1 {INTERNET}"));

    host.run(&format!("ip link set {link} nomaster"));
    world.is_reached();

    let meant = world.link_index();
    for (done, undone) in [
        (
            format!("ip link set {link} down"),
            format!("{link} is down: ip link set {link} up"),
        ),
        (
            format!("ip link set {link} master other"),
            format!("{link} is no port of rt-default: ip link set {link} master rt-default"),
        ),
        (
            "ip link set rt-default down".to_owned(),
            format!("rt-default, which {link} is plugged into, is down: ip link set rt-default up"),
        ),
    ] {
        host.run("ip link add other type bridge");
        host.run(&done);
        world.names(&undone);
        until("its word in the log", || world.log().contains(&undone));
        assert!(!world.answers());
        host.run(undone.split(": ").nth(1).unwrap());
        world.is_reached();
        host.run("ip link delete other");
    }
    assert_eq!(world.link_index(), meant);
    world.ringtap("stop web1").succeeded();
    world.ringtap("down").succeeded();
    world.nothing_is_left();
}

/// A macvtap goes with its uplink, without a word to whoever reads from it.
#[test]
fn a_macvtap_comes_again_with_its_uplink() {
    const MAC: &str = "52:54:00:00:00:10";
    let mut world = World::new("");
    world.change(
        "network = \"default\", ip = \"192.168.100.10\"",
        &format!("network = \"lan\", mac = \"{MAC}\", addresses = [\"10.9.0.5\"]"),
    );
    world.add("[networks.lan]\nmode = \"macvtap\"\nuplink = \"v0\"\n");
    let street = Netns::new("street");
    let pave = |world: &World| {
        world.lab.host.join("v0", &street, "v0");
        street.run("ip address add 10.9.0.1/24 dev v0");
    };
    pave(&world);
    world.lab.host.settle();
    world.before = world.lab.host.snapshot();
    world.ringtap("start web1").succeeded();
    let mut console = world.console();
    console.run("ip address add 10.9.0.5/24 dev eth0");
    let reached = |what: &str| {
        until(what, || {
            street
                .attempt("ping -n -c 1 -W 1 10.9.0.5")
                .status
                .success()
        });
    };
    reached("the guest");
    let link = world.link();

    world.lab.host.run(&format!("ip link delete {link}"));
    reached("the next macvtap");
    world.lab.host.run("ip link set v0 down");
    world.names(&format!(
        "v0, which {link} is plugged into, is down: ip link set v0 up"
    ));
    let status = world.ringtap("status lan").out;
    assert!(status.contains("v0 is down: ip link set v0 up"), "{status}");
    world.lab.host.run("ip link set v0 up");
    reached("the guest behind an uplink that is up again");
    world.lab.host.run("ip link delete v0");
    world.names(&format!(
        "{link} was deleted, and there is no v0 to make it on again"
    ));
    pave(&world);
    reached("one on the next uplink");
    console.run("ping -c 1 10.9.0.1");
    world.ringtap("stop web1").succeeded();
    assert_eq!(world.lab.host.pids(), [0; 0]);
}

/// QEMU says what a guest makes it say, and appends it to a file.
#[test]
fn what_qemu_says_fills_no_run_directory() {
    let world = World::new("");
    let mut console = booted(&world);
    let log = world.lab.run_dir().join("guests/web1/qemu.log");
    let qemu = world.lab.pids(&["qemu-system-x86_64"])[0];
    assert_eq!(
        fs::read_link(format!("/proc/{qemu}/fd/2")).unwrap(),
        log.canonicalize().unwrap()
    );
    let append = |bytes: usize| {
        let file = File::options().append(true).open(&log);
        file.unwrap().write_all(&vec![b'x'; bytes]).unwrap();
    };
    append(2 << 20);
    until("the log's new beginning", || {
        fs::metadata(&log).unwrap().len() < 1 << 20
    });
    // Who goes on to append leaves no hole.
    append(100);
    assert_eq!(fs::metadata(&log).unwrap().len(), 100);
    let flags = fs::read_to_string(format!("/proc/{qemu}/fdinfo/2")).unwrap();
    let flags = flags.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
    assert_ne!(flags & libc::O_APPEND, 0, "QEMU appends");
    console.run(&format!("ping -c 1 {INTERNET}"));
    world.ringtap("stop web1").succeeded();
}

/// A small file system in the place of a directory, as long as this value lives.
struct Mounted(PathBuf);

impl Mounted {
    fn on(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let options = Some("size=1m,mode=0755");
        mount(Some("none"), dir, Some("tmpfs"), MsFlags::empty(), options).unwrap();
        Self(dir.to_owned())
    }

    /// Fills it to the last byte.
    fn fill(&self) {
        let file = File::options()
            .create(true)
            .append(true)
            .open(self.filling());
        let mut file = file.unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
    }

    fn filling(&self) -> PathBuf {
        self.0.join("filling")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_run_directory_without_room_costs_no_guest() {
    let world = World::new("");
    let mounted = Mounted::on(&world.lab.run_dir());
    let mut console = booted(&world);
    mounted.fill();

    // What dies is started anew, and what is asked for and can't be had changes nothing.
    world.kill(&BACKEND);
    world.is_reached();
    world
        .lab
        .host
        .run(&format!("ip link delete {}", world.link()));
    world.is_reached();
    let nics = world.web1()["nics"].clone();
    world
        .ringtap("nic add web1 default")
        .failed(1, &["No space left on device"]);
    assert_eq!(
        world.web1()["nics"].as_array().unwrap().len(),
        nics.as_array().unwrap().len()
    );
    assert!(world.ringtap("status").out.contains("guest web1"));
    console.run(&format!("ping -c 1 {INTERNET}"));

    // And it can be stopped: what there is to write down then is less than before.
    world.ringtap("stop web1").succeeded();
    mounted.fill();
    world
        .ringtap("start web1")
        .failed(1, &["No space left on device"]);
    assert_eq!(world.lab.host.pids(), [0; 0]);
    fs::remove_file(mounted.filling()).unwrap();
    world.ringtap("start web1").succeeded();
    world.ringtap("stop web1 --timeout 0").succeeded();
    drop(mounted);
    fs::remove_dir(world.lab.run_dir()).unwrap();
    world.nothing_is_left();
}

/// What it asks for and does not get it does without; the next one has its own limits.
#[test]
fn a_backend_at_its_limits_costs_no_guest() {
    let world = World::new("");
    let mut console = booted(&world);
    let backend = world.lab.pids(&BACKEND)[0];
    let status = fs::read_to_string(format!("/proc/{backend}/status")).unwrap();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let uid = uid.unwrap().split_whitespace().next().unwrap();
    // A root without CAP_SYS_RESOURCE may not do it, and whose process it is may; its group has the same number.
    world.lab.host.run(&format!(
        "setpriv --reuid {uid} --regid {uid} --clear-groups prlimit --pid {backend} --data=1 --nofile=1"
    ));
    world.ringtap("status web1");
    until("its word", || {
        let said = world.lab.backend_log("web1");
        said.contains("no scraper can be accepted: Too many open files")
    });
    world.is_reached();
    console.run(
        "ip link set eth0 down; ip link set eth0 up; killall -q udhcpc; ip address flush dev eth0; \
         udhcpc -n -q -S -i eth0 -s /etc/udhcpc -t 10 -T 1 >/dev/null 2>&1",
    );
    world.is_reached();
    world.kill(&BACKEND);
    until("counters", || {
        !world.ringtap("status web1").out.contains("does not answer")
    });
    world.ringtap("stop web1").succeeded();
    world.nothing_is_left();
}
