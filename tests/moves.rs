//! NICs that move between networks of different kinds while their guest runs: on, or with a clear word back to where they were.

mod support;

use std::process;

use support::console::Console;
use support::host::{Said, said};
use support::kernel::{Feature, run, trial};
use support::lab::{INTERNET, Lab, tiny};
use support::netns::{BOUND, Netns, difference, until};
use support::ovs::Ovs;

fn main() {
    run(vec![
        trial(
            "a_nic_moves_from_an_ipvtap_and_back",
            &[Feature::Ipvtap],
            from_an_ipvtap_and_back,
        ),
        trial(
            "one_with_a_mac_of_its_own_stays_off_ipvtaps",
            &[Feature::Ipvtap],
            not_to_an_ipvtap,
        ),
        trial(
            "a_nic_moves_from_open_vswitch_and_back",
            &[],
            from_ovs_and_back,
        ),
        trial(
            "one_that_leaves_checksums_to_others_stays_off_ovs_in_user_space",
            &[],
            not_to_ovs,
        ),
        trial(
            "a_nic_moves_to_a_tenants_network_and_back",
            &[],
            to_a_tenant_and_back,
        ),
    ]);
}

const DIRECT: &str = "[networks.direct]\nmode = \"ipvtap\"\nuplink = \"up0\"\n";
const SWITCHED: &str = "[networks.switched]\nmode = \"isolated\"\nsubnet = \"10.66.0.0/24\"\nswitch = \"ovs\"\ndatapath = \"netdev\"\n";

/// A host with a guest `web1` and another network than that of the lab.
struct World {
    // Before the host, in whose namespace its daemons run.
    ovs: Option<Ovs>,
    lab: Lab,
    before: (String, Option<String>),
    /// Whether ringtap's mounts are the test's.
    mounts: bool,
}

impl World {
    /// With the guest on `nic`, words of the file.
    fn new(network: &str, nic: &str) -> Self {
        let lab = Lab::new();
        let guest = tiny("web1", 10, &[]);
        let (usual, here) = (
            "network = \"default\", ip = \"192.168.100.10\"",
            format!("network = {nic}"),
        );
        assert!(guest.contains(usual), "{guest}");
        lab.configure(&format!("{network}{}", guest.replace(usual, &here)));
        let ovs = network
            .contains("ovs")
            .then(|| Ovs::start(&lab.host, "netdev"));
        lab.host.settle();
        let before = (lab.host.snapshot(), ovs.as_ref().map(Ovs::snapshot));
        Self {
            ovs,
            lab,
            before,
            mounts: network.contains("tenant"),
        }
    }

    fn command(&self, words: &str) -> process::Command {
        let mut command = match self.mounts {
            true => self.lab.ringtap_that_mounts(words),
            false => self.lab.ringtap(words),
        };
        if let Some(ovs) = &self.ovs {
            ovs.set(&mut command);
        }
        command
    }

    fn ringtap(&self, words: &str) -> Said {
        said(&mut self.command(words))
    }

    /// At the console of the guest, once that has booted.
    fn boot(&self) -> Console {
        self.ringtap("start web1").succeeded();
        Console::boot(&mut self.command("console web1"))
    }

    fn moves(&self, to: &str) {
        let said = self.ringtap(&format!("nic move web1 0 {to}")).succeeded();
        assert!(said.contains(&format!("NIC 0 is on {to}")), "{said}");
    }

    /// It does not, says why in a line, and the guest's connections go on as they were.
    #[track_caller]
    fn stays(&self, console: &mut Console, to: &str, why: &str) {
        let pings = format!("ping -c 1 -W 1 {INTERNET}");
        console.run(&pings);
        let said = self.ringtap(&format!("nic move web1 0 {to}"));
        let expected = format!("its NIC can't be on network {to} while it runs, since that {why}");
        let lines: Vec<_> = said.err.lines().collect();
        assert_eq!((said.code, lines.len()), (Some(1), 1), "{said:?}");
        assert!(lines[0].contains(&expected), "{said:?}");
        let list = self.ringtap("list").succeeded();
        assert!(list.contains(" default "), "{list}");
        until("the guest gets out again", || {
            console.attempt(&pings, BOUND).0 == 0
        });
    }

    #[track_caller]
    fn stops_and_leaves_nothing(&self) {
        let said = self.ringtap("stop web1").succeeded();
        assert!(said.contains("web1: powered off"), "{said}");
        let (host, ovs) = &self.before;
        assert_eq!(difference(host, &self.lab.host.snapshot()), "");
        if let Some((before, ovs)) = ovs.as_ref().zip(self.ovs.as_ref()) {
            assert_eq!(difference(before, &ovs.snapshot()), "");
        }
        assert!(!self.lab.run_dir().exists());
    }
}

/// Has the guest ask for a lease, as a DHCP client does that minds its link, and waits until it has one that begins so.
fn leases(console: &mut Console, prefix: &str) {
    console.run(
        "ip link set eth0 up; killall -q udhcpc; ip address flush dev eth0; udhcpc -n -q -S -i eth0 -s /etc/udhcpc -t 10 -T 1 >/dev/null 2>&1",
    );
    let now = console.run("ip -4 address show eth0");
    assert!(now.contains(&format!("inet {prefix}")), "{now}");
}

fn from_an_ipvtap_and_back() {
    const ADDRESS: &str = "198.51.100.9";
    let world = World::new(DIRECT, &format!("\"direct\", ip = \"{ADDRESS}\""));
    let mut console = world.boot();
    let mac = console.run("cat /sys/class/net/eth0/address");
    let direct = |console: &mut Console| {
        console.run(&format!(
            "killall -q udhcpc; ip address flush dev eth0; ip address add {ADDRESS}/24 dev eth0"
        ));
        until("the internet", || {
            let ping = format!("ping -c 1 -W 1 {INTERNET}");
            console.attempt(&ping, BOUND).0 == 0
        });
        let ping = world
            .lab
            .internet
            .attempt(&format!("ping -n -c 1 -W 5 {ADDRESS}"));
        assert!(ping.status.success(), "{ping:?}");
    };
    direct(&mut console);
    world.moves("default");
    leases(&mut console, "192.168.100.");
    console.run(&format!("ping -c 1 {INTERNET}"));
    let ping = format!("ping -n -c 1 -W 1 {ADDRESS}");
    assert!(!world.lab.internet.attempt(&ping).status.success());
    world.moves("direct");
    direct(&mut console);
    assert_eq!(console.run("cat /sys/class/net/eth0/address"), mac);
    world.stops_and_leaves_nothing();
}

fn not_to_an_ipvtap() {
    let world = World::new(DIRECT, "\"default\"");
    let mut console = world.boot();
    let why = "has its uplink's MAC address for all";
    world.stays(&mut console, "direct", why);
    world.stops_and_leaves_nothing();
}

fn from_ovs_and_back() {
    let world = World::new(SWITCHED, "\"switched\"");
    let ports = || {
        let ovs = world.ovs.as_ref().unwrap();
        ovs.run("ovs-vsctl list-ports rt-switched")
    };
    let mut console = world.boot();
    let switched = |console: &mut Console| {
        leases(console, "10.66.0.");
        console.run("ping -c 1 10.66.0.1");
        assert_eq!(ports().trim(), "tap-web1-0");
    };
    switched(&mut console);
    world.moves("default");
    leases(&mut console, "192.168.100.");
    console.run(&format!("ping -c 1 {INTERNET}"));
    let bridges = world.ovs.as_ref().unwrap().run("ovs-vsctl list-br");
    assert!(!bridges.contains("rt-switched"), "{bridges}");
    world.moves("switched");
    switched(&mut console);
    world.stops_and_leaves_nothing();
}

fn not_to_ovs() {
    let world = World::new(SWITCHED, "\"default\"");
    let mut console = world.boot();
    let why = "passes on no checksums that are still to be made";
    world.stays(&mut console, "switched", why);
    world.stops_and_leaves_nothing();
}

fn to_a_tenant_and_back() {
    let tenant = format!("m{}", process::id());
    let inside = Netns::of_program(&format!("rt-{tenant}"));
    let network = format!(
        "[networks.theirs]\nmode = \"nat\"\ntenant = \"{tenant}\"\nsubnet = \"10.67.0.0/24\"\n"
    );
    let world = World::new(&network, "\"default\"");
    let mut console = world.boot();
    console.run(&format!("ping -c 1 {INTERNET}"));
    world.moves("theirs");
    leases(&mut console, "10.67.0.");
    console.run("ping -c 1 10.67.0.1");
    console.run(&format!("ping -c 1 {INTERNET}"));
    assert!(inside.run("ip -o link").contains("tap-web1-0"));
    let links = world.lab.host.run("ip -o link");
    assert!(!links.contains("tap-web1-0"), "{links}");
    world.moves("default");
    assert!(!inside.exists());
    leases(&mut console, "192.168.100.");
    console.run(&format!("ping -c 1 {INTERNET}"));
    world.stops_and_leaves_nothing();
}
