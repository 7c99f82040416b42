//! A NIC's link as the guest sees it: its state, which QEMU's monitor changes, and its MTU, which the file names.

mod support;

use serde_json::json;
use support::console::Console;
use support::lab::{Lab, Qemu, tiny};
use support::machine::Machine;
use support::netns::bounded;

const GATEWAY: &str = "192.168.100.1";

#[test]
fn a_link_taken_down_carries_nothing_and_comes_back() {
    let lab = Lab::with_qemu(Qemu::Ten);
    lab.configure("");
    assert!(bounded(&mut lab.ringtap("up"), "").status.success());
    let mut machine = Machine::bridged(&lab, "m0", false);
    // Done at the first answer; a link that has just come up may lose what comes before it.
    let ping = format!("for i in $(seq 10); do ping -c 1 -W 2 {GATEWAY} && break; done");
    let silence = format!("! ping -c 2 -W 2 {GATEWAY}");
    let carrier = |machine: &mut Machine, state: u8| {
        let wait = format!(
            "for i in $(seq 50); do [ $(cat /sys/class/net/eth0/carrier) = {state} ] && exit; sleep 0.1; done; exit 1"
        );
        machine.console.run(&format!("({wait})"));
    };
    machine.console.run(&ping);
    for _ in 0..2 {
        let link = |up| json!({ "name": "net", "up": up });
        machine.qmp.run("set_link", link(false));
        carrier(&mut machine, 0);
        machine.console.run(&silence);
        machine.qmp.run("set_link", link(true));
        carrier(&mut machine, 1);
        machine.console.run(&ping);
    }
    drop(machine);
    lab.host.run("ip link delete m0");
    assert!(bounded(&mut lab.ringtap("down"), "").status.success());
}

/// From the file to bridge, tap, DHCP, QEMU's `host_mtu` and, by NET_SET_MTU, the backend.
#[test]
fn the_networks_mtu_is_the_guests() {
    let lab = Lab::new();
    let file = lab.configure("mtu = 1400\n");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text + &tiny("web1", 10, &[])).unwrap();
    let mut ringtap = lab.ringtap("run web1");
    let mut guest = Console::boot(ringtap.env("RINGTAP_LOG", "debug"));
    assert_eq!(guest.run("cat /sys/class/net/eth0/mtu").trim(), "1400");
    assert!(lab.backend_log("web1").contains("NetSetMtu(1400)"));
    guest.run(&format!("ping -c 1 -s {} {GATEWAY}", 1400 - 28));
    let (code, _) = guest.attempt("ip link set eth0 mtu 1401", support::netns::BOUND);
    assert_ne!(code, 0, "the device's limit");
    assert!(guest.power_off().success());
}
