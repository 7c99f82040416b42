//! A guest on the LAN, by a bridge of the host's: the LAN's own DHCP server gives it its address, another machine reaches it,
//! and the bridge is afterwards as it was.

mod support;

use support::console::Console;
use support::lab::{INTERNET, Lab, tiny};
use support::netns::{difference, until};

#[test]
fn a_guest_on_a_bridge_that_is_there_is_a_peer_on_the_lan() {
    let mut lab = Lab::new();
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
        link.contains("LOWER_UP") && link.contains("fe80::")
    });
    for netns in [&lab.host, &lab.internet] {
        until("settled addresses", || {
            netns.run("ip -6 address show tentative").is_empty()
        });
    }
    lab.serve(
        "dnsmasq",
        &[
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--port=0",
            "--pid-file=",
            "--user=root",
            "--interface=up0",
            "--dhcp-range=198.51.100.50,198.51.100.99",
            "--dhcp-leasefile=/dev/null",
        ],
    );
    let guest = tiny("web1", 10, &[]);
    let guest = guest.replace(
        "network = \"default\", ip = \"192.168.100.10\"",
        "network = \"lan\"",
    );
    lab.configure(&format!(
        "[networks.lan]\nmode = \"bridge\"\nbridge = \"br0\"\n{guest}"
    ));
    let before = lab.host.snapshot();
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));

    let address = guest.run("ip -o -4 address show eth0");
    let ip = address.split_whitespace().nth(3).expect(&address);
    let ip = ip.split('/').next().unwrap().to_owned();
    let last: u8 = ip.strip_prefix("198.51.100.").unwrap().parse().unwrap();
    assert!((50..=99).contains(&last), "{ip}");
    lab.internet.run(&format!("ping -c 1 -W 5 {ip}"));
    guest.run(&format!("ping -c 1 {INTERNET}"));
    // The port has not shrunk the bridge, nor would a larger one be cut at it.
    let mtus = lab
        .host
        .run("cat /sys/class/net/br0/mtu /sys/class/net/tap-web1-0/mtu");
    assert_eq!(mtus, "1400\n1400\n");
    let status = lab.host.run(&format!(
        "{} status lan --config {} --run-dir {}",
        env!("CARGO_BIN_EXE_ringtap"),
        lab.dir.path().join("ringtap.toml").display(),
        lab.run_dir().display()
    ));
    assert!(status.starts_with("lan: up\n  bridge br0\n"), "{status}");

    assert!(guest.power_off().success());
    let change = difference(&before, &lab.host.snapshot());
    assert_eq!(change, "", "the host is not as it was");
}
