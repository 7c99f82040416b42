//! A real guest that lies: frames of its own making, from its own kernel, on a NIC with the guard that every NIC has and on one
//! without. What the guard refuses is seen nowhere behind the tap, and would have been seen without it.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use support::claims::{Claim, forged, honest};
use support::console::Console;
use support::host::Host;
use support::lab::tiny_guest;
use support::netns::{BOUND, Netns, bounded, require};
use support::wire::Wire;

/// The addresses are those of `support::claims`.
const NETWORKS: &str = r#"
[networks.kept]
mode = "isolated"
subnet = "10.0.0.0/24"
ipv6 = "fd00::/80"

[networks.plain]
mode = "isolated"
subnet = "10.9.0.0/24"
guard = false
"#;

/// What ends each frame, before its number: behind the packet, where nobody looks.
const MARK: &[u8] = b"of a liar";

/// Sends lines of hexadecimal bytes as frames: by perl, which every Debian has, since the guest's own programs send no such.
const SENDER: &str = r#"
my ($link) = @ARGV;
open(my $file, "<", "/sys/class/net/$link/ifindex") or die "$link: $!";
my $index = <$file>;
my $to = pack("S n i S C C a8", 17, 0, $index, 0, 0, 6, ""); # sockaddr_ll of packet(7)
socket(my $socket, 17, 3, 0) or die "socket: $!"; # AF_PACKET, SOCK_RAW
while (<STDIN>) {
  chomp;
  defined send($socket, pack("H*", $_), 0, $to) or die "frame $.: $!";
  select(undef, undef, undef, 0.005);
}
"#;

/// The numbers of the first forged frame and of the first honest one.
const FORGED: usize = 0;
const HONEST: usize = 1000;

/// Those of `claims` that a guest's own kernel can send, numbered from `first` on.
fn numbered(claims: &[Claim], first: usize) -> impl DoubleEndedIterator<Item = (usize, &Claim)> {
    let numbered = claims.iter().enumerate();
    let numbered = numbered.map(move |(index, claim)| (first + index, claim));
    numbered.filter(|(_, claim)| can_send(claim))
}

/// The marked frames, a line each.
fn lines(claims: &[Claim], first: usize) -> String {
    let line = |(number, claim): (usize, &Claim)| {
        let frame = [&claim.frame, MARK, &(number as u16).to_be_bytes()].concat();
        let bytes: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{bytes}\n")
    };
    numbered(claims, first).map(line).collect()
}

/// Headers with checksums to be made, and frames larger than the MTU, are for a guest that has its rings to itself; what is too
/// short is not with a mark.
fn can_send(claim: &Claim) -> bool {
    claim.header == [0; 10]
        && claim.name != "an ARP that is cut off"
        && claim.frame.len() + MARK.len() + 2 <= 1514
}

/// The initramfs of the tiny guest with perl, its libraries and the frames, in the folder `liar`.
fn initrd(dir: &Path, tiny: &str, forged: &[Claim], honest: &[Claim]) -> String {
    for program in ["cpio", "ldd", "perl"] {
        require(program, "cpio, libc-bin or perl-base");
    }
    let liar = dir.join("root/liar");
    fs::create_dir_all(&liar).unwrap();
    let perl = "/usr/bin/perl";
    fs::copy(perl, liar.join("perl")).unwrap();
    let listed = bounded(Command::new("ldd").arg(perl), "");
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for library in libraries.map(Path::new) {
        fs::copy(library, liar.join(library.file_name().unwrap())).unwrap();
    }
    fs::write(liar.join("send.pl"), SENDER).unwrap();
    fs::write(liar.join("forged"), lines(forged, FORGED)).unwrap();
    fs::write(liar.join("honest"), lines(honest, HONEST)).unwrap();
    let files = bounded(
        Command::new("find").arg(".").current_dir(dir.join("root")),
        "",
    );
    let mut pack = Command::new("cpio");
    pack.args(["--quiet", "-o", "-H", "newc"])
        .current_dir(dir.join("root"));
    let archive = bounded(&mut pack, &String::from_utf8(files.stdout).unwrap());
    assert!(archive.status.success());
    // The kernel unpacks archives one after another, each from a multiple of four bytes on.
    let mut whole = fs::read(tiny).unwrap();
    whole.resize(whole.len().next_multiple_of(4), 0);
    whole.extend(archive.stdout);
    let path = dir.join("initrd");
    fs::write(&path, whole).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Those that no bridge passes on: from an address that nobody can have, or to one that is for bridges alone (IEEE 802.1D).
const KEPT_BY_BRIDGES: &[&str] = &[
    "a multicast MAC address as source",
    "broadcast as source",
    "LLDP",
];

/// A machine on a bridge, to which all is passed that the bridge passes at all.
struct Neighbour(Wire);

impl Neighbour {
    fn of(netns: &Netns, bridge: &str, name: &str) -> Self {
        let wire = Wire::open(netns, name);
        netns.run(&format!(
            "ip link set {name} addrgenmode none master {bridge} up"
        ));
        // A bridge that learns nothing passes everything to all of its ports.
        netns.run(&format!(
            "ip link set {bridge} type bridge ageing_time 0 mcast_snooping 0"
        ));
        Self(wire)
    }

    /// The numbers of the marked frames that have come, up to `last`, which is sent after the others.
    fn seen(&self, last: usize) -> BTreeSet<usize> {
        let mut seen = BTreeSet::new();
        while !seen.contains(&last) {
            let frame = self.0.frames.recv_timeout(BOUND).expect("the last frame");
            let Some((rest, number)) = frame.split_last_chunk() else {
                continue;
            };
            if rest.ends_with(MARK) {
                seen.insert(usize::from(u16::from_be_bytes(*number)));
            }
        }
        seen
    }
}

/// The names of those of `claims` that are not in `seen`.
fn missing(claims: &[Claim], first: usize, seen: &BTreeSet<usize>) -> Vec<&'static str> {
    let unseen = numbered(claims, first).filter(|(number, _)| !seen.contains(number));
    unseen.map(|(_, claim)| claim.name).collect()
}

/// How many frames the guard of NIC `index` has refused, by reason; what none was refused for is left out.
fn refused(host: &Host, index: usize) -> BTreeMap<String, u64> {
    let socket = host.run_dir().join(format!("guests/liar/nic{index}.stats"));
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let counters = text.lines().filter_map(|line| {
        let line = line.strip_prefix("ringtap_refused_total{")?;
        let (labels, count) = line.split_once("} ")?;
        let (_, reason) = labels.split_once("reason=\"")?;
        let reason = reason.trim_end_matches('"').to_owned();
        Some((reason, count.parse().unwrap()))
    });
    counters.filter(|(_, count)| *count > 0).collect()
}

#[test]
fn what_a_real_guest_forges_is_seen_by_nobody_and_would_be_without_the_guard() {
    let (forged, reasons): (Vec<_>, Vec<_>) = forged().into_iter().unzip();
    let honest = honest();
    let [kernel, tiny, append] = tiny_guest();
    let dir = tempfile::tempdir().unwrap();
    let initrd = initrd(dir.path(), &tiny, &forged, &honest);
    let host = Host::new(&format!(
        "{NETWORKS}\n[guests.liar]\nmemory = \"256M\"\nkernel = {kernel:?}\ninitrd = {initrd:?}\nappend = {append:?}\n\
         nics = [\n  {{ network = \"kept\", mac = \"52:54:00:00:00:05\", ip = \"10.0.0.5\", ipv6 = \"fd00::5\" }},\n  \
         {{ network = \"plain\" }},\n]\n"
    ));
    host.ringtap(&["up"]).succeeded();
    host.netns
        .run("ip address add fe80::1/64 dev rt-kept nodad");
    let kept = Neighbour::of(&host.netns, "rt-kept", "w0");
    let plain = Neighbour::of(&host.netns, "rt-plain", "w1");
    let mut command = host.command(&["run", "liar"]);
    let mut console = Console::boot(command.stdin(Stdio::piped()));
    console.run("stty -echo");
    let mut send = |link: &str, which: &str| {
        let perl = "/liar/ld-linux-x86-64.so.2 --library-path /liar /liar/perl";
        console.run(&format!("{perl} /liar/send.pl {link} </liar/{which}"));
    };
    let last = |claims: &[Claim], first| numbered(claims, first).next_back().unwrap().0;

    send("eth0", "forged");
    send("eth0", "honest");
    let seen = kept.seen(last(&honest, HONEST));
    assert_eq!(missing(&honest, HONEST, &seen), [""; 0]);
    let got_through: Vec<_> = seen.range(..HONEST).map(|it| forged[*it].name).collect();
    assert_eq!(got_through, [""; 0]);
    let mut expected = BTreeMap::new();
    for (number, _) in numbered(&forged, FORGED) {
        *expected.entry(reasons[number].to_string()).or_insert(0) += 1;
    }
    assert_eq!(
        refused(&host, 0),
        expected,
        "what its own kernel sends is honest"
    );

    let status = host.ringtap(&["status", "liar"]).succeeded();
    for words in [
        "guest liar",
        "refused.arp_sender 7",
        " s ago (",
        "52:54:00:00:00:05 > ",
    ] {
        assert!(status.contains(words), "no {words:?} in {status}");
    }

    send("eth1", "forged");
    let unseen = missing(&forged, FORGED, &plain.seen(last(&forged, FORGED)));
    assert_eq!(refused(&host, 1), BTreeMap::new());
    assert_eq!(unseen, KEPT_BY_BRIDGES, "a bridge itself keeps back");
    assert!(numbered(&forged, FORGED).count() - unseen.len() > 60);
    console.power_off();
}
