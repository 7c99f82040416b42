//! Several queue pairs with a real guest, which changes their number under load and loses no flow.
mod support;

use std::time::Duration;

use support::console::Console;
use support::lab::{Lab, WWW};
use support::netns::until;
use support::web::WebServer;

const TRANSFER: Duration = Duration::from_secs(120);

/// A guest of two CPUs and four pairs.
fn configure(lab: &Lab) {
    lab.configure_guest("");
    let path = lab.dir.path().join("ringtap.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text
        .replace("cpus = 1", "cpus = 2")
        .replace("ip = ", "queue-pairs = 4, ip = ");
    std::fs::write(path, text).unwrap();
}

/// The queues of the guest's tap that are attached, as the kernel counts them.
fn attached(lab: &Lab) -> usize {
    let queues = lab.host.run("ls /sys/class/net/tap-web1-0/queues");
    queues.matches("rx-").count()
}

#[test]
fn a_guest_changes_its_number_of_pairs_under_load() {
    let lab = Lab::new();
    configure(&lab);
    let web = WebServer::start(&lab.internet);
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    assert!(guest.run("ethtool -l eth0").contains("Combined:\t4"));
    for pairs in [4, 1, 3, 2] {
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
    let change = "(while :; do for n in 1 4 2 3; do ethtool -L eth0 combined $n; sleep 0.3; done; done) & c=$!";
    let get = format!("wget -q -O - http://{WWW}/blob | sha256sum");
    let (code, said) = guest.attempt(
        &format!("{change}; for i in 1 2 3; do {get}; done; kill $c"),
        TRANSFER,
    );
    assert_eq!(code, 0, "{said}");
    assert_eq!(said.matches(&sum[..]).count(), 3, "{said}");
    assert_eq!(web.gets(), 3, "no connection was repeated");
    assert!(guest.power_off().success());
}
