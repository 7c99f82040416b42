//! Guests on the LAN, by a bridge of the host's and by macvtaps: the LAN's own DHCP server gives them their addresses, another
//! machine reaches them, and the host is afterwards as it was.

mod support;

use serde_json::Value;
use support::console::Console;
use support::host::said;
use support::lab::{INTERNET, Lab, tiny};
use support::netns::{difference, until};

/// A lab whose file has a network `lan` with these lines, and a guest `web1` on it, of whose NIC it says `nic` besides.
fn lab(network: &str, nic: &str) -> Lab {
    let mut lab = Lab::new();
    lab.serve_leases();
    let guest = tiny("web1", 10, &[]);
    let (on_default, on_lan) = (
        "network = \"default\", ip = \"192.168.100.10\"",
        &format!("network = \"lan\"{nic}"),
    );
    assert!(guest.contains(on_default), "{guest}");
    let guest = guest.replace(on_default, on_lan);
    lab.configure(&format!("[networks.lan]\n{network}\n{guest}"));
    lab
}

/// The address that the LAN leased to the guest; both must be able to reach each other.
fn peer_on_the_lan(lab: &Lab, guest: &mut Console) -> String {
    let address = guest.run("ip -o -4 address show eth0");
    let ip = address.split_whitespace().nth(3).expect(&address);
    let ip = ip.split('/').next().unwrap().to_owned();
    let last: u8 = ip.strip_prefix("198.51.100.").unwrap().parse().unwrap();
    assert!((100..=199).contains(&last), "{ip}");
    lab.internet.run(&format!("ping -c 1 -W 5 {ip}"));
    guest.run(&format!("ping -c 1 {INTERNET}"));
    ip
}

/// The guest's addresses, as the host lists them.
fn listed(lab: &Lab) -> Vec<String> {
    let list = said(&mut lab.ringtap("list --json")).succeeded();
    let list: Value = serde_json::from_str(&list).unwrap();
    serde_json::from_value(list[0]["nics"][0]["addresses"].clone()).unwrap()
}

fn status(lab: &Lab) -> String {
    lab.host.run(&format!(
        "{} status lan --config {} --run-dir {}",
        env!("CARGO_BIN_EXE_ringtap"),
        lab.dir.path().join("ringtap.toml").display(),
        lab.run_dir().display()
    ))
}

#[test]
fn a_guest_on_a_bridge_that_is_there_is_a_peer_on_the_lan() {
    let lab = lab("mode = \"bridge\"\nbridge = \"br0\"", "");
    // The host's uplink is a port of the admin's bridge, which has the host's address.
    let host = &lab.host;
    host.run("ip link add br0 type bridge");
    host.run("ip link set up0 mtu 1400");
    host.run("ip link set up0 master br0");
    host.run("ip address flush dev up0");
    host.run("ip address add 198.51.100.2/24 dev br0");
    host.run("ip link set br0 up");
    host.run("ip route add default via 198.51.100.1");
    until("the bridge's carrier and address", || {
        let link = host.run("ip address show br0");
        let settled = host.run("ip -6 address show tentative").is_empty();
        link.contains("LOWER_UP") && link.contains("fe80::") && settled
    });
    let before = host.snapshot();
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    let ip = peer_on_the_lan(&lab, &mut guest);
    assert_eq!(listed(&lab), [ip]);
    guest.run("ping -c 1 198.51.100.2");
    // The port has not shrunk the bridge, nor would a larger one be cut at it.
    let mtus = host.run("cat /sys/class/net/br0/mtu /sys/class/net/tap-web1-0/mtu");
    assert_eq!(mtus, "1400\n1400\n");
    let status = status(&lab);
    assert!(status.starts_with("lan: up\n  bridge br0\n"), "{status}");

    assert!(guest.power_off().success());
    let change = difference(&before, &host.snapshot());
    assert_eq!(change, "", "the host is not as it was");
}

#[test]
fn a_guest_on_a_macvtap_is_a_peer_on_the_lan_and_not_the_hosts() {
    let lab = lab(
        "mode = \"macvtap\"\nuplink = \"up0\"\nmtu = 1400",
        // What the guest gives itself on a LAN, its guard must know.
        ", addresses = [\"2001:db8::9:1234\"]",
    );
    let host = &lab.host;
    let before = host.snapshot();
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    let ip = peer_on_the_lan(&lab, &mut guest);
    let link = host.run("ip -d link show tap-web1-0");
    assert!(link.contains("macvtap mode bridge"), "{link}");
    assert!(link.contains("mtu 1400"), "{link}");
    let ping = host.attempt(&format!("ping -c 1 -W 1 {ip}"));
    assert!(
        !ping.status.success(),
        "the host's own link sees a macvtap's frames"
    );
    // Who looks for an IPv6 neighbour asks a group by multicast that the guest alone knows it is in.
    let internet = &lab.internet;
    internet.run("ip address add 2001:db8::1/64 dev up0 nodad");
    guest.run("ip address add 2001:db8::9:1234/64 dev eth0");
    until("a neighbour that is found", || {
        let ping = internet.attempt("ping -c 1 -W 1 2001:db8::9:1234");
        ping.status.success()
    });
    // Neither has the host leased anything here nor can it ask: its backend has heard the guest speak of itself.
    assert_eq!(listed(&lab), [&ip, "2001:db8::9:1234"]);
    let status = status(&lab);
    assert!(status.starts_with("lan: up\n  uplink up0\n"), "{status}");

    assert!(guest.power_off().success());
    let change = difference(&before, &host.snapshot());
    assert_eq!(change, "", "the host is not as it was");
}
