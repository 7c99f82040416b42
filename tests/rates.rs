//! Limits that the file sets: of all that passes a network's gateway, tried with floods between namespaces, and of each NIC,
//! tried with a real guest.

mod support;

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::console::Console;
use support::host::Host;
use support::lab::{Lab, WWW, tiny};
use support::netns::{Netns, require};
use support::party::{Party, reaches};

/// How long a flood lasts: long against the second that may pass at once.
const FLOOD: Duration = Duration::from_secs(4);

/// The payload of a datagram, which with its headers is an IP packet of 1000 bytes.
const PAYLOAD: usize = 972;
const PACKET: u64 = 1000;

const NETWORKS: &str = r#"
[networks.slow]
mode = "nat"
subnet = "10.1.0.0/24"
rate-out = "8mbit"
rate-in = "16mbit"

[networks.few]
mode = "routed"
subnet = "10.2.0.0/24"
rate-out = "1kpps"

[networks.free]
mode = "routed"
subnet = "10.3.0.0/24"

[networks.narrow]
mode = "nat"
subnet = "10.4.0.0/24"
rate-in = "16kbit"
"#;

/// A machine on a network's bridge, number 10, with the gateway as its way out.
fn on_bridge(host: &Host, network: &str, prefix: &str) -> Party {
    let netns = Netns::new(network);
    host.netns.join(network, &netns, "eth0");
    host.netns
        .run(&format!("ip link set {network} master rt-{network}"));
    netns.run(&format!("ip address add {prefix}10/24 dev eth0"));
    netns.run(&format!("ip route add default via {prefix}1"));
    Party::new(netns, &[format!("{prefix}10")])
}

/// The world beyond the uplink, which knows a way to everybody.
fn outside(host: &Host) -> Party {
    let outside = Netns::new("outside");
    host.netns.join("uplink", &outside, "eth0");
    host.netns.run("ip address add 198.51.100.2/24 dev uplink");
    outside.run("ip address add 198.51.100.1/24 dev eth0");
    outside.run("ip route add 10.0.0.0/8 via 198.51.100.2");
    Party::new(outside, &["198.51.100.1".to_owned()])
}

/// A socket that packets from `to` come to, by way of any masquerading: `to` has sent one first.
struct Way {
    from: UdpSocket,
    to: UdpSocket,
}

impl Way {
    /// From `from` to `to`, one of which is behind the gateway and opens the way.
    fn open(from: &Party, to: &Party, opener_is_from: bool) -> Self {
        let bind = |party: &Party| {
            let ip = party.ip(false);
            party.netns.within(|| UdpSocket::bind((ip, 0)).unwrap())
        };
        let (from, to) = (bind(from), bind(to));
        let (opener, other) = if opener_is_from {
            (&from, &to)
        } else {
            (&to, &from)
        };
        opener.connect(other.local_addr().unwrap()).unwrap();
        opener.send(b"open").unwrap();
        other
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let (_, seen_as) = other.recv_from(&mut [0; 16]).unwrap();
        other.connect(seen_as).unwrap();
        Self { from, to }
    }

    /// Floods it; gives how many packets were sent and how many came through, in how many seconds.
    fn flood(&self) -> (u64, u64, f64) {
        let patience = Some(Duration::from_millis(500));
        self.to.set_read_timeout(patience).unwrap();
        let start = Instant::now();
        thread::scope(|scope| {
            let received = scope.spawn(|| {
                let mut bytes = [0; 2048];
                let mut received = 0;
                while self.to.recv(&mut bytes).is_ok() {
                    received += 1;
                }
                received
            });
            let mut sent = 0;
            while start.elapsed() < FLOOD {
                sent += u64::from(self.from.send(&[0; PAYLOAD]).is_ok());
            }
            let seconds = start.elapsed().as_secs_f64();
            (sent, received.join().unwrap(), seconds)
        })
    }
}

#[test]
fn a_flood_through_the_gateway_is_cut_to_the_limit() {
    let host = Host::new(NETWORKS);
    let before = host.everything();
    let outside = outside(&host);
    host.ringtap(&["up"]).succeeded();
    host.ringtap(&["status"]).succeeded();
    let slow = on_bridge(&host, "slow", "10.1.0.");
    let few = on_bridge(&host, "few", "10.2.0.");
    let free = on_bridge(&host, "free", "10.3.0.");
    for (who, way, a_second) in [
        (
            "8mbit out",
            Way::open(&slow, &outside, true),
            1_000_000 / PACKET,
        ),
        (
            "16mbit in",
            Way::open(&outside, &slow, false),
            2_000_000 / PACKET,
        ),
        ("1kpps out", Way::open(&few, &outside, true), 1000),
    ] {
        let (sent, received, seconds) = way.flood();
        let allowed = a_second as f64 * seconds;
        assert!(sent as f64 > 4. * allowed, "{who}: {sent} sent is no flood");
        let share = received as f64 / allowed;
        assert!(
            (0.5..2.).contains(&share),
            "{who}: {received} in {seconds} s, {share} of it"
        );
    }
    // It is the limits that cut it.
    for way in [
        Way::open(&free, &outside, true),
        Way::open(&outside, &few, false),
    ] {
        let (sent, received, seconds) = way.flood();
        let rate = received as f64 / seconds;
        assert!(rate > 5000., "{received} of {sent} in {seconds} s");
    }
    for link in ["slow", "few", "free", "uplink"] {
        host.netns.run(&format!("ip link delete {link}"));
    }
    host.ringtap(&["down"]).succeeded();
    host.is_as(&before);
}

/// Else everybody could cut a network off that has a limit.
#[test]
fn what_is_refused_uses_no_limit_up() {
    let host = Host::new(NETWORKS);
    let outside = outside(&host);
    host.ringtap(&["up"]).succeeded();
    let narrow = on_bridge(&host, "narrow", "10.4.0.");
    let over = AtomicBool::new(false);
    let guest: IpAddr = narrow.ip(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let socket = outside
                .netns
                .within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            while !over.load(Ordering::Relaxed) {
                // As small as can be: one that is larger than what is left would leave it to others.
                let _ = socket.send_to(&[], (guest, 9));
            }
        });
        let reached = (0..3).map(|_| reaches(&narrow.netns, outside.ip(false)));
        let reached: Vec<[bool; 3]> = reached.collect();
        over.store(true, Ordering::Relaxed);
        assert_eq!(reached, [[true; 3]; 3]);
    });
    host.netns.run("ip link delete narrow");
    host.ringtap(&["down"]).succeeded();
}

#[test]
fn a_nic_has_its_own_limits_or_those_of_its_network() {
    require("iperf3", "iperf3");
    let mut lab = Lab::new();
    let guest = tiny("web1", 10, &[]);
    let nic = "ip = \"192.168.100.10\"";
    assert!(guest.contains(nic));
    let guest = guest.replace(nic, &format!("{nic}, rx-rate = \"20mbit\""));
    lab.configure(&format!(
        "rx-rate = \"1mbit\"\ntx-rate = \"10mbit\"\n{guest}"
    ));
    lab.serve("iperf3", &["--server"]);
    lab.internet_listens(5201);
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    for (direction, limit) in [("", 10e6), ("-R", 20e6)] {
        let json = guest.run(&format!("iperf3 -c {WWW} -t 4 -J {direction}"));
        let report: serde_json::Value = serde_json::from_str(&json).expect(&json);
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        let share = rate.expect(&json) / limit;
        assert!((0.5..2.).contains(&share), "{direction} {share} of {limit}");
    }
    assert!(guest.power_off().success());
}
