//! What a network serves besides addresses for its guests, on pretend hosts: records and forwarders of DNS, static leases
//! and options of DHCP. Asked for by namespaces on the bridge, as guests would.

mod support;

use support::dhcp;
use support::host::Host;
use support::netns::{Netns, until};

const NETWORK: &str = r#"
[networks.default]
mode = "nat"
subnet = "192.168.100.0/24"
ipv6 = "fd00:100::/64"
domain = "vm.internal"

[networks.default.dns]
hosts = { db = ["192.168.100.20", "fd00:100::20"], "www.example.test" = ["192.168.100.21"] }
cname = { www = "db", "blog.example.test" = "www", mail = "printer" }
txt   = { "_dmarc" = ["v=DMARC1; p=\"none\", # \\"] }
srv   = [{ service = "_sip._tcp", target = "db", port = 5060, priority = 10, weight = 60 }]
forwarders = ["198.51.100.53", "corp.example: 198.51.100.54"]

[networks.default.dhcp]
range   = "192.168.100.100-192.168.100.199"
lease   = "45m"
options = ["ntp-server,192.168.100.7", "252,http://wpad/wpad.dat", "6:ntp-server,[fd00:100::7]"]
hosts   = [{ mac = "52:54:00:00:00:30", name = "printer", ip = "192.168.100.30", ipv6 = "fd00:100::30" }]

[guests.web1]
memory = "256M"
nics = [{ network = "default", ip = "192.168.100.10" }]
"#;

/// Somebody on the bridge, with that MAC address.
fn machine(host: &Host, label: &str, mac: &str) -> Netns {
    let machine = Netns::new(label);
    host.netns.join(label, &machine, "eth0");
    machine.run(&format!("ip link set eth0 address {mac}"));
    host.netns
        .run(&format!("ip link set {label} master rt-default"));
    machine
}

/// What the network's server answers; the question's kind is one of nslookup's.
fn lookup(netns: &Netns, kind: &str, name: &str) -> String {
    let line = format!("busybox nslookup -type={kind} {name} 192.168.100.1");
    String::from_utf8_lossy(&netns.attempt(&line).stdout).into_owned()
}

/// DNS servers outside, at .53 and .54, that answer for any name, each with an address of its own.
fn internet(host: &Host) -> Netns {
    let internet = Netns::new("internet");
    host.netns.join("uplink", &internet, "eth0");
    host.netns.run("ip address add 198.51.100.2/24 dev uplink");
    for last in [53, 54] {
        internet.run(&format!("ip address add 198.51.100.{last}/24 dev eth0"));
        internet.run(&format!(
            "dnsmasq --conf-file=/dev/null --no-resolv --no-hosts --pid-file= --user=root \
             --bind-interfaces --listen-address=198.51.100.{last} --address=/#/203.0.113.{last}"
        ));
    }
    internet
}

/// What is asked for besides an address.
const OPTIONS: [&str; 2] = ["ntpsrv", "wpad"];

#[test]
fn records_are_answered_and_other_names_asked_for_where_the_file_says() {
    let host = Host::new(NETWORK);
    let _internet = internet(&host);
    host.ringtap(&["up"]).succeeded();
    let printer = machine(&host, "printer", "52:54:00:00:00:30");
    dhcp::lease(&printer, &OPTIONS);
    for (kind, name, answer) in [
        ("a", "db", "192.168.100.20"),
        ("a", "db.vm.internal", "192.168.100.20"),
        ("aaaa", "db.vm.internal", "fd00:100::20"),
        ("a", "www.example.test", "192.168.100.21"),
        ("a", "www.vm.internal", "192.168.100.20"),
        ("a", "blog.example.test", "192.168.100.20"),
        ("a", "mail.vm.internal", "192.168.100.30"),
        ("a", "printer.vm.internal", "192.168.100.30"),
        ("ptr", "20.100.168.192.in-addr.arpa", "db.vm.internal"),
        (
            "txt",
            "_dmarc.vm.internal",
            "\"v=DMARC1; p=\"none\", # \\\"",
        ),
        ("srv", "_sip._tcp.vm.internal", "10 60 5060 db.vm.internal"),
        ("a", "www.elsewhere.test", "203.0.113.53"),
        ("a", "intranet.corp.example", "203.0.113.54"),
    ] {
        let said = lookup(&printer, kind, name);
        assert!(said.contains(answer), "{kind} {name}: {said}");
    }
    // What is not there of the network's own domain is asked nobody.
    let said = lookup(&printer, "a", "nobody.vm.internal");
    assert!(!said.contains("203.0.113"), "{said}");
    host.netns.run("ip link delete printer");
    host.ringtap(&["down"]).succeeded();
}

#[test]
fn a_machine_that_is_no_guest_has_its_lease_and_the_options() {
    let host = Host::new(NETWORK);
    let before = host.everything();
    host.ringtap(&["up"]).succeeded();
    let printer = machine(&host, "printer", "52:54:00:00:00:30");
    let said = dhcp::lease(&printer, &OPTIONS);
    for words in [
        "ip='192.168.100.30'",
        "hostname='printer'",
        "lease='2700'",
        "ntpsrv='192.168.100.7'",
        "wpad='http://wpad/wpad.dat'",
    ] {
        assert!(said.contains(words), "no {words} in {said}");
    }
    let stranger = machine(&host, "stranger", "52:54:00:00:00:99");
    let said = dhcp::lease(&stranger, &OPTIONS);
    let in_range = |last| said.contains(&format!("ip='192.168.100.{last}'"));
    assert!((100..=199).any(in_range), "{said}");
    let leases = host.ringtap(&["leases"]).succeeded();
    assert!(leases.contains("52:54:00:00:00:30  printer"), "{leases}");
    for link in ["printer", "stranger"] {
        host.netns.run(&format!("ip link delete {link}"));
    }
    host.ringtap(&["down"]).succeeded();
    host.is_as(&before);
}

/// Who serves, and what guests are plugged into and pass through.
fn serving(host: &Host) -> (i32, String, String) {
    let bridge = host.netns.run("ip address show rt-default");
    (
        host.dnsmasq("default"),
        bridge,
        host.netns.run("nft -a list ruleset"),
    )
}

#[test]
fn changing_hosts_restarts_nothing() {
    let host = Host::new(NETWORK);
    host.ringtap(&["up"]).succeeded();
    let laptop = machine(&host, "laptop", "52:54:00:00:00:31");
    let said = dhcp::lease(&laptop, &OPTIONS);
    assert!(!said.contains("192.168.100.31'"), "{said}");
    let before = serving(&host);

    let record = NETWORK.replace("192.168.100.20", "192.168.100.22");
    let lease =
        "hosts   = [{ mac = \"52:54:00:00:00:31\", name = \"laptop\", ip = \"192.168.100.31\" }, ";
    let both = record.replace("hosts   = [", lease);
    assert_ne!(both, record);
    host.configure(&both);
    let out = host.ringtap(&["up"]).succeeded();
    assert_eq!(out.lines().count(), 2, "one step and the verdict: {out}");
    until("the hosts files are read again", || {
        lookup(&laptop, "a", "db.vm.internal").contains("192.168.100.22")
    });
    let said = dhcp::lease(&laptop, &OPTIONS);
    assert!(said.contains("ip='192.168.100.31'"), "{said}");
    assert!(lookup(&laptop, "a", "laptop.vm.internal").contains("192.168.100.31"));
    assert_eq!(serving(&host), before);
    host.ringtap(&["status"]).succeeded();

    // Other records are read at dnsmasq's start: it alone is another one.
    host.configure(&both.replace("DMARC1", "DMARC2"));
    host.ringtap(&["up"]).succeeded();
    let (pid, bridge, rules) = serving(&host);
    assert_ne!(pid, before.0);
    assert_eq!((bridge, rules), (before.1, before.2));
    assert!(lookup(&laptop, "txt", "_dmarc.vm.internal").contains("DMARC2"));
    host.netns.run("ip link delete laptop");
    host.ringtap(&["down"]).succeeded();
}

/// Its configuration is read by lines of 1024 bytes.
#[test]
fn dnsmasq_reads_the_longest_record_whole() {
    let label = "a".repeat(63);
    let name = [&*label, &label, &label, &label[2..]].join(".");
    assert_eq!(name.len(), 253);
    let text = "x".repeat(700);
    let record = format!("dns = {{ txt = {{ \"{name}\" = [\"{text}\"] }} }}");
    let network = "[networks.lab]\nmode = \"isolated\"\nsubnet = \"10.66.0.0/24\"\n";
    let host = Host::new(&format!("{network}{record}\n"));
    host.ringtap(&["up"]).succeeded();
    host.ringtap(&["down"]).succeeded();
}
