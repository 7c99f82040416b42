//! A real guest on networks of other modes than NAT: its addresses of both families, its names, and its row of the table.

mod support;

use support::console::Console;
use support::lab::{INTERNET, Lab, WWW, tiny};
use support::netns::until;

/// A lab with IPv6 between host and internet, which knows the way to the guests, and one network.
fn lab(network: &str) -> Lab {
    let lab = Lab::new();
    for (netns, last) in [(&lab.host, 2), (&lab.internet, 1)] {
        netns.run(&format!(
            "ip address add 2001:db8:ff::{last}/64 nodad dev up0"
        ));
    }
    let internet = &lab.internet;
    internet.run("ip route add 192.168.100.0/24 via 198.51.100.2");
    internet.run("ip route add 2001:db8:1::/64 via 2001:db8:ff::2");
    lab.host.run("ip route add default via 2001:db8:ff::1");
    let guest = tiny("web1", 10, &[]);
    let text = format!("[networks.default]\n{network}\n{guest}");
    std::fs::write(lab.dir.path().join("ringtap.toml"), text).unwrap();
    lab
}

/// The address that the guest made from the prefix that was advertised to it.
fn slaac(guest: &mut Console, prefix: &str) -> String {
    let mut own = None;
    until("an address by router advertisement", || {
        let addresses = guest.run("ip -o -6 address show eth0");
        let mut words = addresses.split_whitespace();
        own = words
            .find(|word| word.starts_with(prefix) && !addresses.contains("tentative"))
            .map(|word| word.split('/').next().unwrap().to_owned());
        own.is_some()
    });
    own.unwrap()
}

#[test]
fn a_routed_guest_is_reached_at_its_own_addresses() {
    let lab = lab("mode = \"routed\"\nsubnet = \"192.168.100.0/24\"\nipv6 = \"2001:db8:1::/64\"");
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    let own = slaac(&mut guest, "2001:db8:1:");
    guest.run(&format!("ping -c 1 {INTERNET}"));
    // Neighbours that have to be found may cost a packet.
    guest.run("ping -c 3 2001:db8:ff::1");
    lab.internet.run("ping -c 1 -W 5 192.168.100.10");
    lab.internet.run(&format!("ping -c 3 -W 5 {own}"));
    let name = guest.run(&format!("nslookup {WWW}"));
    assert!(name.contains(INTERNET), "{name}");
    // The guest is known by its name at both of its addresses.
    until("the guest's name at its own address", || {
        let (_, said) = guest.attempt("nslookup web1.default.internal", support::netns::BOUND);
        said.contains("192.168.100.10") && said.contains(&own)
    });
    assert!(guest.power_off().success());
}

#[test]
fn an_isolated_guest_reaches_the_host_and_nobody_else() {
    let lab = lab("mode = \"isolated\"\nsubnet = \"192.168.100.0/24\"\nipv6 = \"2001:db8:1::/64\"");
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    let own = slaac(&mut guest, "2001:db8:1:");
    let address = guest.run("ip -o -4 address show eth0");
    assert!(address.contains("192.168.100.10/24"), "{address}");
    guest.run("ping -c 1 192.168.100.1");
    guest.run("ping -c 3 2001:db8:1::1");
    lab.host.run(&format!("ping -c 3 -W 5 {own}"));
    assert!(
        guest
            .run("nslookup web1.default.internal")
            .contains("192.168.100.10")
    );
    let outside = format!("nslookup {WWW}");
    let (code, said) = guest.attempt(&outside, support::netns::BOUND);
    assert!(code != 0 || !said.contains(INTERNET), "{said}");
    // It has been told of no way out, and gets none by making one up.
    for family in ["-4", "-6"] {
        let routes = guest.run(&format!("ip {family} route"));
        assert!(!routes.contains("default"), "{routes}");
    }
    guest.run("ip route add default via 192.168.100.1");
    guest.run("ip -6 route add default via 2001:db8:1::1");
    for ip in [INTERNET, "2001:db8:ff::1"] {
        let (code, said) = guest.attempt(&format!("ping -c 1 -W 1 {ip}"), support::netns::BOUND);
        assert_ne!(code, 0, "{said}");
    }
    assert!(guest.power_off().success());
}

#[test]
fn an_open_guest_has_addresses_and_names_and_no_rules_between_it_and_others() {
    let lab = lab("mode = \"open\"\nsubnet = \"192.168.100.0/24\"\nipv6 = \"2001:db8:1::/64\"");
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    let own = slaac(&mut guest, "2001:db8:1:");
    let rules = lab.host.run("nft list ruleset");
    assert!(!rules.contains("ringtap"), "{rules}");
    guest.run(&format!("ping -c 1 {INTERNET}"));
    guest.run("ping -c 3 2001:db8:ff::1");
    lab.internet.run("ping -c 1 -W 5 192.168.100.10");
    lab.internet.run(&format!("ping -c 3 -W 5 {own}"));
    let name = guest.run(&format!("nslookup {WWW}"));
    assert!(name.contains(INTERNET), "{name}");
    // What the admin says holds.
    lab.host.run("nft add table inet admin");
    lab.host.run(
        "nft add chain inet admin forward { type filter hook forward priority 0 ; policy drop ; }",
    );
    let (code, said) = guest.attempt(&format!("ping -c 1 -W 1 {INTERNET}"), support::netns::BOUND);
    assert_ne!(code, 0, "{said}");
    assert!(guest.power_off().success());
}
