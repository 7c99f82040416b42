//! Networks whose switch is Open vSwitch, on a pretend host with a database and a daemon of its own. Frames are moved in
//! ovs-vswitchd itself, which any kernel can, and in the kernel's module, which some lack.

mod support;

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::console::Console;
use support::host::{Host, Said, kill_after, said};
use support::kernel::{Feature, is_test_host, run, trial};
use support::lab::{Lab, tiny};
use support::netns::{Netns, difference, until};
use support::ovs::{ADMINS, Ovs};
use support::wire::Wire;

const KERNEL: &[Feature] = &[Feature::OpenVswitch];

fn main() {
    run(vec![
        trial(
            "guests_are_in_their_vlans_and_the_admins_flows_stay",
            &[],
            || vlans("netdev"),
        ),
        trial(
            "guests_are_in_their_vlans_and_the_admins_flows_stay_in_the_kernel",
            KERNEL,
            || vlans("system"),
        ),
        trial("what_drifts_is_set_right", &[], || drift("netdev")),
        trial("what_drifts_is_set_right_in_the_kernel", KERNEL, || {
            drift("system")
        }),
        trial("killed_at_any_step_all_goes", &[], || killed("netdev")),
        trial("killed_at_any_step_all_goes_in_the_kernel", KERNEL, || {
            killed("system")
        }),
        trial("the_uplink_moves_and_comes_back", &[], || uplink("netdev")),
        trial(
            "the_uplink_moves_and_comes_back_in_the_kernel",
            KERNEL,
            || uplink("system"),
        ),
        trial("a_bridge_that_is_there_keeps_what_is_its_own", &[], || {
            foreign_bridge("netdev")
        }),
        trial(
            "a_bridge_that_is_there_keeps_what_is_its_own_in_the_kernel",
            KERNEL,
            || foreign_bridge("system"),
        ),
        trial("what_is_missing_is_named", &[], missing),
        trial("a_guest_gets_a_lease_and_leaves_no_port", &[], || {
            guest("netdev")
        }),
        trial(
            "a_guest_gets_a_lease_and_leaves_no_port_in_the_kernel",
            KERNEL,
            || guest("system"),
        ),
    ]);
}

struct World {
    // Before the host, in whose namespace its daemons run.
    ovs: Ovs,
    host: Host,
    before: (String, String),
}

impl World {
    fn new(datapath: &'static str, file: impl FnOnce(&str) -> String) -> Self {
        let switch = format!("switch = \"ovs\"\ndatapath = \"{datapath}\"\n");
        let host = Host::new(&file(&switch));
        let ovs = Ovs::start(&host.netns, datapath);
        let mut world = Self {
            ovs,
            host,
            before: Default::default(),
        };
        world.note();
        world
    }

    /// Notes how things are, for [`World::is_as_before`].
    fn note(&mut self) {
        self.host.netns.settle();
        self.before = (self.host.everything(), self.ovs.snapshot());
    }

    #[track_caller]
    fn is_as_before(&self, what: &str) {
        let (host, ovs) = &self.before;
        let change = difference(host, &self.host.everything());
        assert_eq!(change, "", "{what}: the host is not as it was");
        let change = difference(ovs, &self.ovs.snapshot());
        assert_eq!(change, "", "{what}: Open vSwitch is not as it was");
    }

    fn ringtap(&self, words: &[&str]) -> Said {
        let mut command = self.host.command(words);
        self.ovs.set(&mut command);
        said(&mut command)
    }

    /// A stand-in for a guest, a namespace whose end of a pair has the name of the tap of the guest's first NIC.
    fn guest(&self, name: &str, address: &str) -> Netns {
        let guest = Netns::new(name);
        self.host
            .netns
            .join(&format!("tap-{name}-0"), &guest, "eth0");
        guest.run(&format!("ip address add {address}/24 dev eth0"));
        guest
    }

    /// Takes a guest's link away, as the end of a guest does.
    fn unplug(&self, guest: &str) {
        self.host
            .netns
            .run(&format!("ip link delete tap-{guest}-0"));
    }

    fn port(&self, column: &str, port: &str) -> String {
        let said = self.ovs.run(&format!("ovs-vsctl get Port {port} {column}"));
        said.trim().to_owned()
    }
}

fn reaches(from: &Netns, to: &str) -> bool {
    let ping = from.attempt(&format!("ping -c 1 -W 1 {to}"));
    ping.status.success()
}

#[track_caller]
fn until_reaches(from: &Netns, to: &str) {
    until(&format!("{} reaches {to}", from.name()), || {
        reaches(from, to)
    });
}

/// A guest that tags its frames: what it asks for in a VLAN is answered with that VLAN's tag.
#[track_caller]
fn asks_in_vlan(wire: &Wire, vlan: u8, last: u8) -> bool {
    const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0x77];
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend([0x81, 0, 0, vlan, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(MAC);
    frame.extend([10, 66, 0, 77]);
    frame.extend([0; 6]);
    frame.extend([10, 66, 0, last]);
    frame.resize(64, 0);
    wire.drain();
    wire.send(&frame);
    let is_answer = |frame: &[u8]| {
        let tag = [0x81, 0, 0, vlan, 8, 6];
        frame.len() > 32 && frame[12..18] == tag && frame[24..26] == [0, 2]
    };
    wire.within(Duration::from_secs(1), is_answer)
}

/// `vlan` 10 for a and c, 20 for b; t has both with tags; d none.
fn lab(switch: &str) -> String {
    let guest = |name: &str, vlans: &str| {
        format!("[guests.{name}]\nmemory = \"64M\"\nnics = [{{ network = \"lab\"{vlans} }}]\n")
    };
    [
        format!("[networks.lab]\nmode = \"isolated\"\nsubnet = \"10.66.0.0/24\"\n{switch}"),
        guest("a", ", vlan = 10"),
        guest("b", ", vlan = 20"),
        guest("c", ", vlan = 10"),
        guest("t", ", vlans = [10, 20]"),
        guest("d", ""),
    ]
    .concat()
}

fn vlans(datapath: &'static str) {
    let world = World::new(datapath, lab);
    let plan = world.ringtap(&["plan"]).succeeded();
    let add = format!(
        "ovs-vsctl --may-exist add-br rt-lab -- set Bridge rt-lab datapath_type={datapath}"
    );
    assert!(plan.contains(&add), "{plan}");
    world.is_as_before("plan");
    world.ringtap(&["up"]).succeeded();
    let a = world.guest("a", "10.66.0.10");
    let _b = world.guest("b", "10.66.0.20");
    let c = world.guest("c", "10.66.0.30");
    let d = world.guest("d", "10.66.0.40");
    let trunk = Wire::open(&world.host.netns, "tap-t-0");
    world.host.netns.run("ip link set tap-t-0 up");
    let up = world.ringtap(&["up"]).succeeded();
    let add = "--may-exist add-port rt-lab tap-a-0 -- set Port tap-a-0 vlan_mode=access tag=10";
    assert!(up.contains(add), "{up}");
    let again = world.ringtap(&["up"]).succeeded();
    assert!(again.contains("nothing to do"), "{again}");
    world.ringtap(&["status"]).succeeded();

    until_reaches(&a, "10.66.0.30");
    until_reaches(&d, "10.66.0.1");
    assert!(!reaches(&a, "10.66.0.20"), "from VLAN 10 to VLAN 20");
    assert!(!reaches(&a, "10.66.0.1"), "from VLAN 10 to the host");
    assert!(!reaches(&d, "10.66.0.10"), "from no VLAN to VLAN 10");
    until("the trunk", || asks_in_vlan(&trunk, 10, 10));
    assert!(asks_in_vlan(&trunk, 20, 20));
    assert!(!asks_in_vlan(&trunk, 10, 20), "the trunk mixes VLANs");

    // The admin drops what c sends.
    let mac = c.run("cat /sys/class/net/eth0/address");
    let flow = format!("dl_src={}", mac.trim());
    let add = format!("ovs-ofctl add-flow rt-lab priority=100,{flow},actions=drop");
    world.ovs.run(&add);
    until("the flow", || !reaches(&c, "10.66.0.10"));
    let again = world.ringtap(&["up"]).succeeded();
    assert!(again.contains("nothing to do"), "{again}");
    let status = world.ringtap(&["status"]).succeeded();
    assert!(
        status.starts_with("lab: up\n  ovs-bridge rt-lab"),
        "{status}"
    );
    let shown = format!("somebody's flow on rt-lab, left alone: priority=100,{flow} actions=drop");
    assert!(status.contains(&shown), "{status}");
    assert!(!status.contains("NORMAL"), "{status}");
    let warned = status.contains("rt-lab has the datapath netdev");
    assert_eq!(warned, datapath == "netdev", "{status}");
    // Also where there is something to do.
    world.ovs.run("ovs-vsctl set Port tap-b-0 tag=10");
    until_reaches(&a, "10.66.0.20");
    world.ringtap(&["up"]).succeeded();
    until("b is where it was", || !reaches(&a, "10.66.0.20"));
    assert!(!reaches(&c, "10.66.0.10"));
    world.ovs.run(&format!("ovs-ofctl del-flows rt-lab {flow}"));
    until_reaches(&c, "10.66.0.10");

    world
        .ringtap(&["down"])
        .failed(1, &["in use", "tap-a-0", "stop the guests first"]);
    for guest in ["a", "b", "c", "d", "t"] {
        world.unplug(guest);
    }
    // Their ports outlive the links.
    world.ringtap(&["down"]).succeeded();
    world.is_as_before("down");
}

fn drift(datapath: &'static str) {
    let world = World::new(datapath, |switch| {
        lab(&format!("{switch}mtu = 1400\nisolate-guests = true\n"))
    });
    let (a, d) = (
        world.guest("a", "10.66.0.10"),
        world.guest("d", "10.66.0.40"),
    );
    world.ringtap(&["up"]).succeeded();
    until_reaches(&d, "10.66.0.1");
    let link = || world.host.netns.run("ip -4 address show rt-lab");
    assert!(link().contains("mtu 1400"), "{}", link());
    for (what, shown) in [
        ("del-port rt-lab tap-a-0", "add-port rt-lab tap-a-0"),
        ("set Port tap-d-0 tag=10", "set Port tap-d-0"),
        ("clear Port tap-d-0 tag", "set Port tap-d-0"),
        ("set Port tap-a-0 protected=false", "protected=true"),
        ("set Interface rt-lab mtu_request=1300", "mtu_request=1400"),
        ("del-br rt-lab", "add-br rt-lab"),
    ] {
        world.ovs.run(&format!("ovs-vsctl {what}"));
        let status = world.ringtap(&["status"]);
        assert!(
            status.code == Some(1) && status.out.contains(shown),
            "{what}: {status:?}"
        );
        world.ringtap(&["up"]).succeeded();
        world.ringtap(&["status"]).succeeded();
        until_reaches(&d, "10.66.0.1");
        assert!(link().contains("mtu 1400"), "{what}: {}", link());
    }
    assert_eq!(world.port("tag", "tap-a-0"), "10");
    assert_eq!(world.port("tag", "tap-d-0"), "0");
    assert_eq!(world.port("protected", "tap-d-0"), "true");
    // Kept from each other, also in one VLAN.
    world.ovs.run("ovs-vsctl set Port tap-a-0 tag=0");
    assert!(!reaches(&d, "10.66.0.10"));
    until_reaches(&a, "10.66.0.1");

    // A port that its guest has left goes; one of the admin's stays, and keeps the network from going.
    world.ovs.run(
        "ovs-vsctl add-port rt-lab cable -- set Interface cable type=patch options:peer=elbac",
    );
    world.unplug("a");
    let up = world.ringtap(&["up"]).succeeded();
    assert!(up.contains("--if-exists del-port rt-lab tap-a-0"), "{up}");
    assert!(!up.contains("cable"), "{up}");
    world.unplug("d");
    world.ringtap(&["down"]).failed(1, &["in use", "cable"]);
    world.ovs.run("ovs-vsctl del-port rt-lab cable");
    world.ringtap(&["down"]).succeeded();
    world.is_as_before("down");

    // What was not taken down before a boot is taken over after it: then there is a database, and no journal.
    world.ringtap(&["up"]).succeeded();
    let journal = world.host.run_dir().join("state.json");
    let text = fs::read_to_string(&journal).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let old = text
        .replace(&boot.trim().replace('-', ""), "0")
        .replace(boot.trim(), "0");
    assert_ne!(text, old);
    fs::write(&journal, old).unwrap();
    kill(Pid::from_raw(world.host.dnsmasq("lab")), Signal::SIGKILL).unwrap();
    world.host.netns.run("nft flush ruleset");
    world.ringtap(&["up"]).succeeded();
    world.ringtap(&["down"]).succeeded();
    world.is_as_before("down after a boot");
}

/// Right after each step is announced, and a little later.
fn killed(datapath: &'static str) {
    let mut world = World::new(datapath, |switch| {
        format!(
            "[networks.lab]\nmode = \"isolated\"\nsubnet = \"10.66.0.0/24\"\nmtu = 1400\n{switch}\
             [networks.lan]\nmode = \"bridge\"\nuplink = \"up0\"\n{switch}"
        )
    });
    let _lan = lan(&mut world);
    let steps = world.ringtap(&["up"]).succeeded().lines().count();
    world.ringtap(&["down"]).succeeded();
    world.is_as_before("no fault");
    assert!(steps > 9, "{steps}");
    // Each takes seconds by an emulated CPU: there one in some.
    let stride = if is_test_host() { 5 } else { 1 };
    let all = (0..steps - 1).flat_map(|step| [(step, 0), (step, 8)]);
    for (step, delay) in all.step_by(stride) {
        let mut command = world.host.command(&["up"]);
        world.ovs.set(&mut command);
        kill_after(&mut command, step + 1, Duration::from_millis(delay));
        if delay == 0 {
            world.ringtap(&["up"]).succeeded();
            world.ringtap(&["status"]).succeeded();
        }
        world.ringtap(&["down"]).succeeded();
        world.is_as_before(&format!("killed at step {step}, after {delay} ms"));
    }
}

/// A machine on the LAN that the host's uplink `up0` leads to.
fn lan(world: &mut World) -> Netns {
    let (host, lan) = (&world.host.netns, Netns::new("lan"));
    host.join("up0", &lan, "lan0");
    lan.run("ip address add 198.51.100.1/24 dev lan0");
    host.run("ip address add 198.51.100.2/24 dev up0");
    host.run("ip address add 2001:db8::2/64 dev up0 nodad");
    host.run("ip route add default via 198.51.100.1");
    host.settle();
    world.note();
    lan
}

fn uplink(datapath: &'static str) {
    let mut world = World::new(datapath, |switch| {
        format!(
            "[networks.lan]\nmode = \"bridge\"\nuplink = \"up0\"\n{switch}\
             [guests.a]\nmemory = \"64M\"\nnics = [{{ network = \"lan\" }}]\n"
        )
    });
    let lan = lan(&mut world);
    let host = &world.host.netns;
    let mac = host.run("cat /sys/class/net/up0/address");
    world.ringtap(&["up"]).succeeded();
    assert_eq!(host.run("cat /sys/class/net/rt-lan/address"), mac);
    let moved = host.run("ip -o address show dev rt-lan");
    assert!(
        moved.contains("198.51.100.2/24") && moved.contains("2001:db8::2/64"),
        "{moved}"
    );
    assert!(!host.run("ip -o -4 address show dev up0").contains("198"));
    until_reaches(host, "198.51.100.1");
    let guest = world.guest("a", "198.51.100.66");
    world.ringtap(&["up"]).succeeded();
    until_reaches(&guest, "198.51.100.1");
    until_reaches(&guest, "198.51.100.2");
    until_reaches(&lan, "198.51.100.66");
    // It is not ringtap's alone to say who is on the uplink.
    world.ovs.run("ovs-vsctl del-port rt-lan up0");
    world.ringtap(&["status"]).failed(1, &[]);
    world.ringtap(&["up"]).succeeded();
    until_reaches(&guest, "198.51.100.1");
    world.unplug("a");
    world.ringtap(&["down"]).succeeded();
    world.is_as_before("down");
    until_reaches(host, "198.51.100.1");
}

fn foreign_bridge(datapath: &'static str) {
    let mut world = World::new(datapath, |_| {
        let file = lab("").replace("mode = \"isolated\"\nsubnet = \"10.66.0.0/24\"\n", "");
        let bridge = format!("mode = \"bridge\"\nbridge = \"{ADMINS}\"\nswitch = \"ovs\"\n");
        file.replace("[networks.lab]\n", &format!("[networks.lab]\n{bridge}"))
    });
    // The admin's own guest has the name of the file's d, and is in VLAN 10.
    let theirs = world.guest("d", "10.66.0.40");
    world
        .ovs
        .run(&format!("ovs-vsctl add-port {ADMINS} tap-d-0 tag=10"));
    world.note();
    let a = world.guest("a", "10.66.0.10");
    let up = world.ringtap(&["up"]).succeeded();
    assert!(!up.contains("tap-d-0"), "{up}");
    until_reaches(&a, "10.66.0.40");
    world.ringtap(&["status"]).succeeded();
    assert_eq!(world.port("tag", "tap-d-0"), "10");
    world.unplug("a");
    world.ringtap(&["down"]).succeeded();
    world.is_as_before("down");
    drop(theirs);
}

fn missing() {
    let mut world = World::new("netdev", lab);
    let own = |variable: &str| {
        let mut command = world.host.netns.command("env");
        command.args([variable, &world.ovs.variable()]);
        command.args(world.host.words(&["up"]));
        said(&mut command)
    };
    let bin = world.host.dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    for program in ["nft", "dnsmasq"] {
        let output = support::netns::bounded(std::process::Command::new("which").arg(program), "");
        let path = String::from_utf8(output.stdout).unwrap();
        std::os::unix::fs::symlink(path.trim(), bin.join(program)).unwrap();
    }
    own(&format!("PATH={}", bin.display()))
        .failed(1, &["network lab", "not installed", "openvswitch-switch"]);
    fs::remove_dir_all(&bin).unwrap();
    world.is_as_before("not installed");

    if !Feature::OpenVswitch.is_here() {
        world.host.configure(&lab("switch = \"ovs\"\n"));
        let words = [
            "network lab",
            "the module openvswitch",
            "datapath = \"netdev\"",
        ];
        world.ringtap(&["up"]).failed(1, &words);
        world.ringtap(&["plan"]).failed(1, &words);
        world
            .host
            .configure(&lab("switch = \"ovs\"\ndatapath = \"netdev\"\n"));
        world.is_as_before("the kernel");
    }

    world.ovs.run("ovs-vsctl add-br rt-lab");
    let theirs = "Open vSwitch has a bridge `rt-lab` that this ringtap did not make";
    world.ringtap(&["up"]).failed(1, &[theirs]);
    world.ovs.run("ovs-vsctl del-br rt-lab");

    world.ovs.switch.kill().unwrap();
    world.ovs.switch.wait().unwrap();
    world
        .ringtap(&["up"])
        .failed(1, &["ovs-vswitchd does not answer", "openvswitch-switch"]);
    world.ovs.database.kill().unwrap();
    world.ovs.database.wait().unwrap();
    world
        .ringtap(&["up"])
        .failed(1, &["ovsdb-server does not answer", "openvswitch-switch"]);
    // Others than its networks don't mind.
    let plain = "[networks.plain]\nmode = \"isolated\"\nsubnet = \"10.67.0.0/24\"\n";
    world.host.configure(plain);
    world.ringtap(&["up"]).succeeded();
    world.ringtap(&["down"]).succeeded();
}

fn guest(datapath: &'static str) {
    let lab = Lab::new();
    let ovs = Ovs::start(&lab.host, datapath);
    let file = lab.configure(&tiny("web1", 10, &[]));
    let text = fs::read_to_string(&file).unwrap();
    let switch = format!("[networks.default]\nswitch = \"ovs\"\ndatapath = \"{datapath}\"\n");
    fs::write(&file, text.replace("[networks.default]\n", &switch)).unwrap();
    let before = (lab.host.snapshot(), ovs.snapshot());
    let run = || {
        let mut command = lab.ringtap("run web1");
        ovs.set(&mut command);
        command
    };
    let works = |guest: &mut Console| {
        let address = guest.run("ip -4 address show eth0");
        assert!(address.contains("192.168.100.10/24"), "{address}");
        guest.run("ping -c 1 192.168.100.1");
        let name = guest.run("nslookup web1.default.internal 192.168.100.1");
        assert!(name.contains("192.168.100.10"), "{name}");
    };
    let mut guest = Console::boot(&mut run());
    works(&mut guest);
    assert_eq!(
        ovs.run("ovs-vsctl list-ports rt-default").trim(),
        "tap-web1-0"
    );
    // A supervisor that is killed leaves the port, and the next guest of the name has it anew.
    for words in [
        ["supervise", "web1"],
        ["qemu-system-x86_64", "vhost-user"],
        ["backend", "tap-web1-0"],
    ] {
        for pid in lab.pids(&words) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        until("the guest's end", || lab.pids(&words).is_empty());
    }
    guest.ends();
    assert!(ovs.snapshot().contains("tap-web1-0"));
    let mut guest = Console::boot(&mut run());
    works(&mut guest);
    assert!(guest.power_off().success());
    let mut down = lab.ringtap("down");
    ovs.set(&mut down);
    said(&mut down).succeeded();
    assert_eq!(difference(&before.1, &ovs.snapshot()), "");
    assert_eq!(difference(&before.0, &lab.host.snapshot()), "");
}
