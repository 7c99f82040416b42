//! Guests on macvtaps, without a bridge or anything else of the host's between them and the network of its uplink:
//! they get their leases from it, and their bytes arrive.

mod support;

use support::bytes::{noise, sha256};
use support::lab::{Lab, WWW};
use support::machine::{Machine, Wish};
use support::netns::{BOUND, fresh_index};
use support::transfer;
use support::web::WebServer;

const SIZE: usize = 8 << 20;

/// A lab whose internet leases addresses to whoever is on its link.
fn leasing() -> Lab {
    let mut lab = Lab::new();
    lab.serve_leases();
    lab
}

/// A guest on a macvtap of the uplink, with the macvtap's address.
fn guest(lab: &Lab, name: &str, mode: &str, mac: &str) -> Machine {
    let index = fresh_index();
    lab.host.run(&format!(
        "ip link add link up0 name {name} index {index} address {mac} type macvtap mode {mode}"
    ));
    lab.host.run(&format!("ip link set {name} up"));
    let wish = Wish {
        name,
        backend: &format!("--macvtap {name}"),
        mac,
        incoming: false,
    };
    Machine::start(lab, &wish)
}

/// The address it was leased.
fn lease(machine: &mut Machine) -> String {
    let said = machine.console.run("ip -o -4 address show eth0");
    let address = said.split("inet ").nth(1).expect(&said);
    let address = address.split('/').next().unwrap();
    assert!(address.starts_with("198.51.100.1"), "{said}");
    address.to_owned()
}

fn alone_on(mode: &str) {
    const MAC: &str = "52:54:00:6d:76:01";
    let lab = leasing();
    let web = WebServer::start(&lab.internet);
    let mut machine = guest(&lab, "m0", mode, MAC);
    let address = lease(&mut machine);
    let leases = std::fs::read_to_string(lab.dir.path().join("leases")).unwrap();
    assert!(leases.contains(&format!("{MAC} {address} ")), "{leases}");
    let ping = machine.console.run(&format!("ping -c 3 {WWW}"));
    assert!(ping.contains("3 packets received"), "{ping}");
    transfer::both_ways(&mut machine.console, &web, SIZE, 1);
    // And from there to the guest.
    lab.internet.run(&format!("ping -c 1 -W 5 {address}"));
}

#[test]
fn bridge() {
    alone_on("bridge");
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn vepa() {
    alone_on("vepa");
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn private() {
    alone_on("private");
}

#[test]
fn passthru() {
    alone_on("passthru");
}

/// In bridge mode frames between two macvtaps do not leave the host.
#[test]
fn two_guests_of_one_uplink_reach_each_other() {
    let lab = leasing();
    let web = WebServer::start(&lab.internet);
    let blob = noise(SIZE, 5);
    web.put("blob", blob.clone());
    let mut first = guest(&lab, "m0", "bridge", "52:54:00:6d:76:01");
    let mut second = guest(&lab, "m1", "bridge", "52:54:00:6d:76:02");
    let (here, there) = (lease(&mut first), lease(&mut second));
    assert_ne!(here, there);
    first.console.run(&format!("ping -c 2 {there}"));
    second.console.run(&format!("ping -c 2 {here}"));

    first
        .console
        .run(&format!("wget -q -O /tmp/blob http://{WWW}/blob"));
    second.console.begin("nc -l -p 7000 | sha256sum");
    let send = format!("until nc {there} 7000 < /tmp/blob; do sleep 0.2; done");
    let (code, said) = first.console.attempt(&send, BOUND);
    assert_eq!(code, 0, "{said}");
    let (_, got) = second.console.finish(BOUND);
    assert_eq!(got[..64], sha256(&blob));
}
