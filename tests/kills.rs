//! `kill -9` at random moments: of supervisors, backends, QEMU and dnsmasq, while guests start, run and stop. Whatever it
//! hits, the next `start` and `stop` work, and nothing stays behind.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::console::Console;
use support::dice::{Dice, seed};
use support::host::{Said, said};
use support::kernel::is_test_host;
use support::lab::{INTERNET, Lab, tiny};
use support::netns::{Netns, difference, until};

/// A guest that boots, with each policy in turn.
const BOOTS: &str = "boots";
const ADDRESS: &str = "192.168.100.10";

/// Guests without anything to boot, so that a round takes a second or two: one of each policy, on networks of all kinds that
/// have a bridge, and on those of a tenant.
const MACHINES: [&str; 3] = ["once", "again", "always"];
const POLICIES: [&str; 3] = ["no", "on-failure", "always"];

/// One round in as many has a guest that boots, and looks at its traffic.
const BOOTING: usize = 20;

/// The longest that a kill waits after the command before it, in milliseconds: more than a start or a stop takes. Most wait
/// for less than a third of it.
const LATEST: usize = 900;

/// What is killed, by words of its command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Supervisor,
    Backend,
    Qemu,
    Dnsmasq,
}

impl Victim {
    const ALL: [Self; 4] = [Self::Supervisor, Self::Backend, Self::Qemu, Self::Dnsmasq];

    fn words(self) -> &'static str {
        match self {
            Self::Supervisor => " supervise ",
            Self::Backend => " backend --socket-path ",
            Self::Qemu => "memory-backend-memfd",
            Self::Dnsmasq => "dnsmasq --",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Start,
    Run,
    Stop,
}

/// What is done after the kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Start,
    Stop,
    /// A look at the guests takes over what runs, and then it is stopped.
    List,
}

/// What a round does.
#[derive(Debug)]
struct Round {
    guest: &'static str,
    policy: &'static str,
    moment: Moment,
    delay: Duration,
    victims: Vec<Victim>,
    next: Next,
}

impl Round {
    fn of(number: usize, dice: &mut Dice) -> Self {
        if number % BOOTING == BOOTING / 2 {
            return Self {
                guest: BOOTS,
                policy: POLICIES[number / BOOTING % POLICIES.len()],
                moment: Moment::Run,
                delay: Duration::ZERO,
                victims: vec![dice.one_of(&Victim::ALL)],
                next: Next::Start,
            };
        }
        let which = dice.below(MACHINES.len());
        let moment = dice.one_of(&[Moment::Start, Moment::Run, Moment::Stop]);
        let latest = 1 + dice.below(LATEST);
        let delay = dice.below(latest);
        let mut victims = vec![dice.one_of(&Victim::ALL)];
        if dice.below(4) == 0 {
            victims.push(dice.one_of(&Victim::ALL));
            victims.dedup();
        }
        Self {
            guest: MACHINES[which],
            policy: POLICIES[which],
            moment,
            delay: Duration::from_millis(delay as u64),
            victims,
            next: dice.one_of(&[Next::Start, Next::Stop, Next::List]),
        }
    }
}

struct World {
    lab: Lab,
    /// Where a tenant's network is.
    inside: Netns,
    before: String,
    disks: String,
}

impl World {
    fn new() -> Self {
        let lab = Lab::new();
        let tenant = format!("k{}", process::id());
        fs::create_dir(lab.dir.path().join("disks")).unwrap();
        for (name, seed) in MACHINES.iter().zip(1..) {
            let mut dice = Dice::new(seed, 0);
            let bytes: Vec<u8> = (0..1 << 16).map(|_| dice.below(251) as u8).collect();
            fs::write(lab.dir.path().join(format!("disks/{name}.raw")), bytes).unwrap();
        }
        let mut world = Self {
            inside: Netns::of_program(&format!("rt-{tenant}")),
            before: lab.host.snapshot(),
            disks: String::new(),
            lab,
        };
        world.disks = world.disks();
        world
    }

    /// Writes the file, in which the guest that boots has this policy.
    fn configure(&self, policy: &str) {
        let tenant = self.inside.name().trim_start_matches("rt-");
        let dir = self.lab.dir.path().display();
        let networks = format!(
            "[networks.lab]\nmode = \"isolated\"\nsubnet = \"10.66.0.0/24\"\n\
             [networks.theirs]\nmode = \"nat\"\ntenant = \"{tenant}\"\nsubnet = \"10.67.0.0/24\"\n"
        );
        let nics = [
            &["default", "lab"][..],
            &["lab", "lab"],
            &["theirs", "default"],
        ];
        let machines = (0..MACHINES.len()).map(|which| {
            let (name, policy) = (MACHINES[which], POLICIES[which]);
            let nics = nics[which].iter();
            let nics: Vec<_> = nics.map(|it| format!("{{ network = {it:?} }}")).collect();
            format!(
                "[guests.{name}]\nmemory = \"64M\"\nrestart = {policy:?}\nnics = [{}]\n\
                 disks = [{{ path = \"{dir}/disks/{name}.raw\", format = \"raw\" }}, {{ path = \"{dir}/disks/{name}.qcow2\", size = \"1G\" }}]\n",
                nics.join(", ")
            )
        });
        let boots = tiny(BOOTS, 10, &[]).replace("cpus", &format!("restart = {policy:?}\ncpus"));
        let machines: String = machines.collect();
        self.lab.configure(&format!("{networks}{machines}{boots}"));
    }

    fn ringtap(&self, words: &str) -> Said {
        said(&mut self.lab.ringtap_that_mounts(words))
    }

    /// The processes of the host and of the tenant's router whose command line has `words` in it.
    fn pids(&self, words: &str) -> Vec<i32> {
        let mut all = self.lab.host.pids();
        all.extend(self.inside.pids());
        all.retain(|pid| command_line(*pid).contains(words));
        all
    }

    /// Kills one of `victim`'s processes, once there is one; none if none has come by the time that `over` holds.
    fn strike(&self, victim: Victim, dice: &mut Dice, over: impl Fn() -> bool) -> Option<i32> {
        loop {
            let was_over = over();
            let pids = self.pids(victim.words());
            if !pids.is_empty() {
                let pid = dice.one_of(&pids);
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL); // it may have ended by itself
                return Some(pid);
            }
            if was_over {
                return None;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills what the round says, while `words` are done, if any are.
    fn strike_during(&self, round: &Round, dice: &mut Dice, words: Option<&str>) {
        thread::scope(|scope| {
            let command = words.map(|words| scope.spawn(|| self.ringtap(words)));
            let over = || command.as_ref().is_none_or(|it| it.is_finished());
            thread::sleep(round.delay);
            for victim in &round.victims {
                let killed = self.strike(*victim, dice, over);
                println!("  killed {victim:?}: {killed:?}");
            }
            let Some(command) = command else {
                return;
            };
            let said = command
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            println!("  {}: {:?} {}", words.unwrap(), said.code, said.err.trim());
            assert!(
                said.code == Some(0) || !said.err.is_empty(),
                "it does not say why it failed: {said:?}"
            );
        });
    }

    /// What a round does.
    fn play(&self, round: &Round, dice: &mut Dice) {
        let guest = round.guest;
        self.configure(round.policy);
        if round.moment != Moment::Start {
            self.ringtap(&format!("start {guest}")).succeeded();
        }
        if guest == BOOTS {
            let mut console =
                Console::boot(&mut self.lab.ringtap_that_mounts(&format!("console {guest}")));
            console.run(&format!("ping -c 1 {INTERNET}"));
            drop(console);
        }
        let (start, stop) = (
            format!("start {guest}"),
            format!("stop {guest} --timeout 0"),
        );
        let during = match round.moment {
            Moment::Start => Some(&start[..]),
            Moment::Run => None,
            Moment::Stop => Some(&stop[..]),
        };
        self.strike_during(round, dice, during);
        match round.next {
            Next::Start => self.starts_and_stops(round),
            Next::Stop => {}
            Next::List => drop(self.state(guest)),
        }
        self.ringtap("stop --all --timeout 0").succeeded();
        // The logs of one that has failed.
        self.ringtap("rm --all").succeeded();
        self.nothing_is_left();
    }

    fn starts_and_stops(&self, round: &Round) {
        let guest = round.guest;
        // While nobody has noticed that the kill has ended it, it runs for all that is known.
        until("the guest runs", || {
            self.ringtap(&format!("start {guest}")).succeeded();
            self.state(guest) == "running" && (guest != BOOTS || self.answers())
        });
        if guest == BOOTS {
            let said = self.ringtap(&format!("stop {guest}")).succeeded();
            assert!(said.contains("powered off"), "{said}");
            return;
        }
        self.ringtap(&format!("stop {guest} --timeout 0"))
            .succeeded();
    }

    fn state(&self, guest: &str) -> String {
        let list = self.ringtap("list --json").succeeded();
        let list: Vec<Value> = serde_json::from_str(&list).unwrap();
        let guest = list.into_iter().find(|it| it["name"] == guest).unwrap();
        guest["state"].as_str().unwrap().to_owned()
    }

    fn answers(&self) -> bool {
        let ping = format!("ping -n -c 1 -W 1 {ADDRESS}");
        self.lab.host.attempt(&ping).status.success()
    }

    /// The disks that the test has made, as they are; those that ringtap has made go, and have to be whole.
    fn disks(&self) -> String {
        for name in MACHINES {
            let path = self.lab.dir.path().join(format!("disks/{name}.qcow2"));
            if path.exists() {
                support::netns::run("qemu-img", &["check", "-q", path.to_str().unwrap()]);
                fs::remove_file(path).unwrap();
            }
        }
        let mut all: Vec<_> = fs::read_dir(self.lab.dir.path().join("disks"))
            .unwrap()
            .map(|entry| described(&entry.unwrap().path()))
            .collect();
        all.sort();
        all.concat()
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        until("no process", || self.pids("").is_empty());
        assert!(!self.inside.exists(), "the tenant's namespace is there");
        let run_dir = self.lab.run_dir();
        assert!(!run_dir.exists(), "{}", tree(&run_dir));
        assert_eq!(difference(&self.before, &self.lab.host.snapshot()), "");
        assert_eq!(difference(&self.disks, &self.disks()), "");
    }
}

impl Drop for World {
    /// Says what there was when it failed.
    fn drop(&mut self) {
        if thread::panicking() {
            for pid in self.pids("") {
                eprintln!("{pid}: {}", command_line(pid));
            }
            eprintln!("{}", tree(&self.lab.run_dir()));
        }
    }
}

fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// A file with what must not change of it.
fn described(path: &Path) -> String {
    let about = fs::metadata(path).unwrap();
    let sum = support::bytes::sha256(&fs::read(path).unwrap());
    let mode = format!("{:o} {}:{}", about.mode(), about.uid(), about.gid());
    format!("{} {mode} {sum}\n", path.display())
}

/// The files beneath `dir`, with what logs and records say.
fn tree(dir: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        text.push_str(&format!("{}\n", path.display()));
        if path.is_dir() {
            text.push_str(&tree(&path));
        } else if path
            .extension()
            .is_some_and(|it| it == "log" || it == "json")
        {
            let said = fs::read_to_string(&path).unwrap_or_default();
            let last: Vec<_> = said.lines().rev().take(20).collect();
            let last = last.iter().rev().map(|line| format!("    {line}\n"));
            text.extend(last);
        }
    }
    text
}

fn rounds(count: usize) {
    // On an emulated CPU each takes many times as long.
    let count = if is_test_host() { 10 } else { count };
    let seed = seed();
    let world = World::new();
    for number in 1..=count {
        let mut dice = Dice::new(seed, number as u64);
        let round = Round::of(number, &mut dice);
        println!("round {number}: {round:?}");
        let begun = Instant::now();
        world.play(&round, &mut dice);
        println!("  {:?}", begun.elapsed());
    }
}

#[test]
fn ten_kills_leave_nothing() {
    rounds(10);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn a_hundred_kills_leave_nothing() {
    rounds(100);
}
