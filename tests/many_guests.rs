//! Ten guests at once on four networks: each opens connections to whom `ringtap reach` says, and to nobody else.

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use support::console::Console;
use support::lab::{INTERNET, Lab, tiny};
use support::netns::{self, Netns, difference, until};
use support::party::{PORT, serve};

/// Ten emulated guests that boot on one CPU take minutes.
const LONG: Duration = Duration::from_secs(600);

/// What is dropped is waited for as long.
const PATIENCE: Duration = Duration::from_secs(3);

/// A network, what its addresses begin with, and the guests on it.
struct Kind {
    network: &'static str,
    file: &'static str,
    prefix: &'static str,
    guests: &'static [usize],
}

const KINDS: [Kind; 4] = [
    Kind {
        network: "default", // which the lab's file has
        file: "",
        prefix: "192.168.100",
        guests: &[0, 1, 2],
    },
    Kind {
        network: "public",
        file: "mode = \"routed\"\nsubnet = \"10.67.0.0/24\"",
        prefix: "10.67.0",
        guests: &[3, 4, 5],
    },
    Kind {
        network: "lab",
        file: "mode = \"isolated\"\nsubnet = \"10.66.0.0/24\"",
        prefix: "10.66.0",
        guests: &[6, 7],
    },
    Kind {
        network: "dark",
        file: "mode = \"isolated\"\nhost = false\nsubnet = \"10.68.0.0/24\"",
        prefix: "10.68.0",
        guests: &[8, 9],
    },
];

const HOST: &str = "(host)";
const OUTSIDE: &str = "(outside)";

/// Those that are started by one command; each of the others is by one of its own, at the same time.
const TOGETHER: usize = 6;

fn kind_of(guest: usize) -> &'static Kind {
    let mut kinds = KINDS.iter();
    kinds.find(|kind| kind.guests.contains(&guest)).unwrap()
}

fn address(guest: usize) -> String {
    format!("{}.{}", kind_of(guest).prefix, 10 + guest)
}

/// An address of the host that guests of `kind` would find it at.
fn host_for(kind: &Kind) -> String {
    match kind.network {
        "dark" => "198.51.100.2".to_owned(), // it has none there
        _ => format!("{}.1", kind.prefix),
    }
}

/// Somebody who opens connections: the host, the outside, or a guest.
#[derive(Debug, Clone, Copy)]
enum From {
    Namespace(&'static str),
    Guest(usize),
}

impl From {
    /// What the table calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Namespace(name) => name,
            Self::Guest(guest) => kind_of(guest).network,
        }
    }
}

/// Somebody to whom connections are opened, and at which address.
#[derive(Debug, Clone)]
struct To {
    name: &'static str,
    address: String,
}

impl To {
    fn guest(guest: usize) -> Self {
        Self {
            name: kind_of(guest).network,
            address: address(guest),
        }
    }

    fn host(kind: &Kind) -> Self {
        Self {
            name: HOST,
            address: host_for(kind),
        }
    }

    fn outside() -> Self {
        Self {
            name: OUTSIDE,
            address: INTERNET.to_owned(),
        }
    }
}

/// Whom a guest tries: the host, the outside, and one guest of each network, which is not itself.
fn tried_by(guest: usize) -> Vec<To> {
    let kind = kind_of(guest);
    let mut all = vec![To::host(kind), To::outside()];
    // One of each network stands for the others.
    if kind.guests[0] == guest {
        let last = KINDS.iter().map(|kind| *kind.guests.last().unwrap());
        all.extend(last.map(To::guest));
    }
    all
}

struct World {
    lab: Lab,
    before: String,
    /// What `ringtap reach` says of IPv4.
    allowed: BTreeMap<(String, String), bool>,
}

impl World {
    fn new() -> Self {
        let lab = Lab::new();
        let networks = KINDS.iter().filter(|kind| !kind.file.is_empty());
        let networks = networks.map(|kind| format!("[networks.{}]\n{}\n", kind.network, kind.file));
        let guests = (0..10).map(|guest| {
            let text = tiny(&format!("g{guest}"), 0, &[]);
            let nic = "network = \"default\", ip = \"192.168.100.0\"";
            assert!(text.contains(nic), "{text}");
            let network = kind_of(guest).network;
            let nic_here = format!("network = {network:?}, ip = {:?}", address(guest));
            text.replace("256M", "192M").replace(nic, &nic_here)
        });
        lab.configure(&networks.chain(guests).collect::<String>());
        // It knows a way to every guest, so that only the host's rules keep it off.
        for kind in &KINDS {
            let subnet = format!("{}.0/24", kind.prefix);
            lab.internet
                .run(&format!("ip route add {subnet} via 198.51.100.2"));
        }
        serve(&lab.internet);
        serve(&lab.host);
        let before = lab.host.snapshot();
        let mut world = Self {
            lab,
            before,
            allowed: BTreeMap::new(),
        };
        world.allowed = world.said();
        world
    }

    /// What a ringtap command says that ends well, which may take long.
    fn ringtap(&self, words: &str) -> String {
        let child = self.begin(words);
        finish(words, child)
    }

    fn begin(&self, words: &str) -> Child {
        let mut command = self.lab.ringtap(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.spawn().unwrap()
    }

    fn said(&self) -> BTreeMap<(String, String), bool> {
        let table: Value = serde_json::from_str(&self.ringtap("reach --json")).unwrap();
        let word = |cell: &Value, key: &str| cell[key].as_str().map(str::to_owned);
        let cells = table["ipv4"].as_array().unwrap().iter();
        let cells = cells.filter_map(|cell| {
            let allowed = word(cell, "allowed")?;
            Some(((word(cell, "from")?, word(cell, "to")?), allowed != "no"))
        });
        cells.collect()
    }

    /// Whether the table lets `from` reach `to`.
    fn is_allowed(&self, from: From, to: &To) -> bool {
        let cell = (from.name().to_owned(), to.name.to_owned());
        *self
            .allowed
            .get(&cell)
            .unwrap_or_else(|| panic!("{cell:?}"))
    }

    fn start_all(&self) {
        let together = (0..TOGETHER).map(|guest| format!(" g{guest}"));
        let mut commands = vec![format!("start{}", together.collect::<String>())];
        commands.extend((TOGETHER..10).map(|guest| format!("start g{guest}")));
        let children: Vec<_> = commands.iter().map(|words| self.begin(words)).collect();
        for (words, child) in commands.iter().zip(children) {
            let said = finish(words, child);
            for guest in words.split_whitespace().skip(1) {
                assert!(said.contains(&format!("{guest}: started")), "{said}");
            }
        }
    }

    /// At the console of a guest that has booted, and serves.
    fn console(&self, guest: usize) -> Console {
        let mut command = self.lab.ringtap(&format!("console g{guest}"));
        let mut console = Console::boot_within(&mut command, LONG);
        let kind = kind_of(guest);
        let (has, _) = console.attempt(
            &format!("ip address show eth0 | grep -F {}/", address(guest)),
            LONG,
        );
        // Nobody leases addresses where the host is not, or a way out where there is none; who tries to get out has both.
        assert_eq!(has == 0, kind.network != "dark", "g{guest} has its lease");
        if kind.network == "dark" {
            let bridge = self.lab.host.run("cat /sys/class/net/rt-dark/address");
            console.run(&format!(
                "killall udhcpc; ip address add {}/24 dev eth0; arp -s {}.1 {}",
                address(guest),
                kind.prefix,
                bridge.trim()
            ));
        }
        console.run(&format!("ip route replace default via {}.1", kind.prefix));
        console.run(&format!(
            "mkdir /tmp/www; echo g{guest} >/tmp/www/index.html; httpd -p {PORT} -h /tmp/www"
        ));
        console
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        until("no process", || self.lab.host.pids().is_empty());
        assert_eq!(difference(&self.before, &self.lab.host.snapshot()), "");
        assert!(!self.lab.run_dir().exists());
    }
}

/// What `child`, a ringtap that does `words`, says, which ends well.
fn finish(words: &str, mut child: Child) -> String {
    let mut stdout = child.stdout.take().unwrap();
    let said = thread::spawn(move || {
        let mut text = String::new();
        let _ = stdout.read_to_string(&mut text);
        text
    });
    let status = netns::wait(&mut child, LONG);
    let status = status.unwrap_or_else(|| panic!("`{words}` was not done within {LONG:?}"));
    let said = said.join().unwrap();
    assert!(status.success(), "`{words}`: {status}\n{said}");
    said
}

/// Whether pings and TCP get from a namespace to `address`.
fn reaches(from: &Netns, address: &str) -> [bool; 2] {
    let ping = from.attempt(&format!("ping -n -c 1 -W 3 {address}"));
    let to = SocketAddr::new(address.parse().unwrap(), PORT);
    let connected = from.within(|| TcpStream::connect_timeout(&to, PATIENCE));
    let hears = |mut stream: TcpStream| {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
        let mut text = String::new();
        stream
            .read_to_string(&mut text)
            .is_ok_and(|count| count > 0)
    };
    [ping.status.success(), connected.is_ok_and(hears)]
}

/// Whether they get from a guest there.
fn reaches_from(console: &mut Console, address: &str) -> [bool; 2] {
    let (ping, _) = console.attempt(&format!("ping -c 1 -W 3 {address}"), LONG);
    let get = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {address} {PORT} | grep -q .");
    let (tcp, _) = console.attempt(&get, LONG);
    [ping == 0, tcp == 0]
}

/// A try that came out otherwise than the table says.
type Wrong = (String, To, [bool; 2]);

impl World {
    fn tried_from(&self, guest: usize, console: &mut Console) -> Vec<Wrong> {
        let from = From::Guest(guest);
        let tries = tried_by(guest).into_iter().filter_map(|to| {
            let allowed = self.is_allowed(from, &to);
            // A host that is there answers pings, whatever else of it is kept from guests.
            let answers = to.name == HOST && kind_of(guest).network != "dark";
            let expected = [allowed || answers, allowed];
            let tried = reaches_from(console, &to.address);
            (tried != expected).then(|| (format!("g{guest}"), to, tried))
        });
        tries.collect()
    }

    /// What host and outside find out about each guest.
    fn tried_to_guests(&self) -> Vec<Wrong> {
        let namespaces = [(HOST, &self.lab.host), (OUTSIDE, &self.lab.internet)];
        let one = |name: &'static str, netns: &Netns, guest| {
            let to = To::guest(guest);
            let expected = [self.is_allowed(From::Namespace(name), &to); 2];
            let tried = reaches(netns, &to.address);
            (tried != expected).then(|| (name.to_owned(), to, tried))
        };
        let all = namespaces
            .iter()
            .flat_map(|(name, netns)| (0..10).filter_map(|guest| one(name, netns, guest)));
        all.collect()
    }
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn ten_guests_reach_whom_the_table_says_and_nobody_else() {
    let world = World::new();
    let is_allowed = |cell: &(&(String, String), &bool)| *cell.1;
    let (yes, no): (Vec<_>, Vec<_>) = world.allowed.iter().partition(is_allowed);
    assert!(yes.len() > 10 && no.len() > 10, "{:?}", world.allowed);
    world.start_all();
    let list = world.ringtap("list");
    assert_eq!(list.matches(" running ").count(), 10, "{list}");

    // The host knows a way to those that it keeps off.
    let host = &world.lab.host;
    host.run("ip route add 10.68.0.0/24 dev rt-dark");
    // Every refusal is to be told, so that nobody waits for it.
    let limit = host.run("sysctl -n net.ipv4.icmp_ratelimit");
    host.run("sysctl -w net.ipv4.icmp_ratelimit=0");
    let mut consoles: Vec<_> = (0..10).map(|guest| world.console(guest)).collect();
    let mut wrong: Vec<Wrong> = thread::scope(|scope| {
        let world = &world;
        let guests = consoles.iter_mut().enumerate();
        let tries: Vec<_> = guests
            .map(|(guest, console)| scope.spawn(move || world.tried_from(guest, console)))
            .collect();
        let tries = tries.into_iter().map(|it| it.join());
        tries
            .flat_map(|wrong| wrong.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    wrong.extend(world.tried_to_guests());
    assert!(wrong.is_empty(), "{wrong:#?}");

    // A tap set down, and its guest is not reached; without the rules, others are: both ways a try can fail.
    host.run("ip link set tap-g0-0 down");
    assert_eq!(reaches(host, &address(0)), [false; 2]);
    host.run("ip link set tap-g0-0 up");
    let outside = &world.lab.internet;
    assert_eq!(reaches(outside, &address(6)), [false; 2]);
    host.run("nft flush ruleset");
    until("the outside gets in", || {
        reaches(outside, &address(6)) == [true; 2]
    });

    drop(consoles);
    host.run(&format!(
        "sysctl -w net.ipv4.icmp_ratelimit={}",
        limit.trim()
    ));
    let said = world.ringtap(&format!("stop --all --timeout {}", LONG.as_secs()));
    assert_eq!(said.matches(": powered off").count(), 10, "{said}");
    world.nothing_is_left();
}
