//! Several queue pairs with a real guest, which changes their number under load and loses no flow.
mod support;

use support::console::Console;
use support::lab::{Lab, Qemu, WWW, tiny};
use support::netns::{BOUND, until};
use support::web::WebServer;

const RING_PACKED: u64 = 1 << 34;
const PACKED: &[&str] = &["-global", "virtio-net-pci.packed=on"];

/// A guest of two CPUs and so many pairs.
fn configure(lab: &Lab, pairs: usize, qemu_args: &[&str]) {
    let guest = tiny("web1", 10, qemu_args)
        .replace("cpus = 1", "cpus = 2")
        .replace("ip = ", &format!("queue-pairs = {pairs}, ip = "));
    lab.configure(&guest);
}

/// The queues of the guest's tap that are attached, as the kernel counts them.
fn attached(lab: &Lab) -> usize {
    let queues = lab.host.run("ls /sys/class/net/tap-web1-0/queues");
    queues.matches("rx-").count()
}

#[test]
fn a_guest_changes_its_number_of_pairs_under_load() {
    changes(Qemu::Own, 4, &[]);
}

#[test]
fn a_guest_with_packed_rings_changes_its_number_of_pairs_under_load() {
    changes(Qemu::Ten, 4, PACKED);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn a_guest_changes_its_number_of_pairs_under_load_under_qemu_10() {
    changes(Qemu::Ten, 4, &[]);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn a_guest_with_packed_rings_changes_its_number_of_pairs_under_load_under_the_own_qemu() {
    changes(Qemu::Own, 4, PACKED);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn a_guest_changes_between_two_pairs_and_one_under_load() {
    changes(Qemu::Own, 2, &[]);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn a_guest_with_packed_rings_changes_between_two_pairs_and_one_under_load() {
    changes(Qemu::Ten, 2, PACKED);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn a_guest_with_sixteen_pairs_changes_their_number_under_load() {
    changes(Qemu::Ten, 16, &[]);
}

fn changes(qemu: Qemu, most: usize, qemu_args: &[&str]) {
    let lab = Lab::with_qemu(qemu);
    configure(&lab, most, qemu_args);
    let web = WebServer::start(&lab.internet);
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    let packed = lab.accepted("web1").last().expect("features") & RING_PACKED != 0;
    assert_eq!(packed, qemu_args == PACKED);
    let here = guest.run("ethtool -l eth0");
    assert!(here.contains(&format!("Combined:\t{most}")), "{here}");
    for pairs in [most, 1, most - most / 4, most / 2] {
        guest.run(&format!("ethtool -L eth0 combined {pairs}"));
        until("as many queues attached as enabled", || {
            attached(&lab) == pairs
        });
        guest.run(&format!("ping -c 3 -i 0.1 {WWW}"));
    }

    let blob: Vec<u8> = (0..64 << 20)
        .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let sum = support::bytes::sha256(&blob);
    web.put("blob", blob);
    let change = format!(
        "(while :; do for n in 1 {most} {}; do ethtool -L eth0 combined $n; sleep 0.3; done; done) & c=$!",
        most / 2
    );
    let get = format!("wget -q -O - http://{WWW}/blob | sha256sum");
    let (code, said) = guest.attempt(
        &format!("{change}; for i in 1 2 3; do {get}; done; kill $c"),
        BOUND,
    );
    assert_eq!(code, 0, "{said}");
    assert_eq!(said.matches(&sum[..]).count(), 3, "{said}");
    assert_eq!(web.gets(), 3, "no connection was repeated");
    assert!(guest.power_off().success());
}
