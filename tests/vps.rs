//! Debian as a virtual server that is lent out, by the words of README's section about it: its commands and its file are read
//! from there, and what they promise is tried. The guests boot as those of clouds do, from an overlay over an image, told by
//! cloud-init who they are.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::bytes::{noise, sha256};
use support::host::{Said, said_by};
use support::lab::{Lab, WWW, debian_guest};
use support::netns::{Netns, difference, require, run, until_by};
use support::terminal::Person;
use support::web::WebServer;

const SECTION: &str = "### Lend out a VPS in five minutes\n";

/// An emulated Debian boots in a minute, beside other work in several.
const PATIENCE: Duration = Duration::from_secs(600);

/// Of what guests download, in bytes.
const SIZE: usize = 4 << 20;

/// The section's blocks.
struct Readme {
    file: String,
    set_up: String,
    boot: String,
    come_by_port: String,
    come_by_address: String,
    stop: String,
}

impl Readme {
    fn read() -> Self {
        let readme = fs::read_to_string("README.md").unwrap();
        let section = readme.split(SECTION).nth(1).expect(SECTION);
        let section = section.split("\n### ").next().unwrap();
        // What is between two fences, and not around them; the first line says of which kind it is.
        let blocks: Vec<&str> = section.split("\n```").skip(1).step_by(2).collect();
        let of_kind = |kind: &str| -> Vec<String> {
            let blocks = blocks.iter().filter_map(|block| block.strip_prefix(kind));
            blocks.map(|block| block.trim().to_owned()).collect()
        };
        let [file] = of_kind("toml").try_into().expect("one file");
        let commands = of_kind("console").try_into().expect("five blocks");
        let [set_up, boot, come_by_port, come_by_address, stop] = commands;
        Self {
            file,
            set_up,
            boot,
            come_by_port,
            come_by_address,
            stop,
        }
    }
}

/// A host from which `guest` is lent out, an admin there, and a customer on the internet.
struct World {
    lab: Lab,
    web: WebServer,
    readme: Readme,
    guest: &'static str,
    /// What the host was like before the guest's first start.
    before: String,
}

impl World {
    /// All that README says up to the first start.
    fn new(guest: &'static str) -> Self {
        require("ssh", "openssh-client");
        let lab = Lab::new();
        for (netns, number) in [(&lab.host, 2), (&lab.internet, 1)] {
            let address = format!("2001:db8:ff::{number}/64");
            netns.run(&format!("ip address add {address} dev up0 nodad"));
        }
        let world = Self {
            web: WebServer::start(&lab.internet),
            before: lab.host.snapshot(),
            readme: Readme::read(),
            guest,
            lab,
        };
        world.have_programs();
        world.have_customers_key();
        world.follow(&world.readme.set_up);
        let file = world.here(&world.readme.file);
        fs::write(world.path("ringtap.toml"), file).unwrap();
        world
    }

    /// README's words with all that has to differ here.
    fn here(&self, words: &str) -> String {
        let ringtap = env!("CARGO_BIN_EXE_ringtap").to_owned();
        let image = debian_guest().display().to_string();
        let path = |name| self.path(name).display().to_string();
        let done = || "true".to_owned();
        let replaced = [
            // The lab has its own.
            ("/usr/local/bin", path("installed")),
            ("/srv", path("srv")),
            ("/root/.ssh", path("admin")),
            // Whoever runs tests has done so, and the image was made just now if need be.
            ("scripts/setup tests", done()),
            ("cargo build --release", done()),
            ("target/release/ringtap", ringtap),
            ("guests/debian/build", done()),
            ("target/guests/debian/debian.qcow2", image),
            // An emulated guest may take more than a minute to power off.
            ("ringtap stop", "ringtap stop --timeout 300".to_owned()),
        ];
        let replace = |words: String, (theirs, ours): &(&str, String)| words.replace(theirs, ours);
        replaced.iter().fold(words.to_owned(), replace)
    }

    /// What `ringtap` and `ssh` are to the admin and the customer: ringtap has the lab's file and run directory, and ssh a key of
    /// their own. It refuses a host that comes back with another key.
    fn have_programs(&self) {
        for folder in ["admin", "customer", "installed", "srv"] {
            fs::create_dir(self.path(folder)).unwrap();
        }
        let dir = self.lab.dir.path().display();
        let options = format!("--config {dir}/ringtap.toml --run-dir {dir}/run");
        let ringtap =
            format!("word=$1; shift; exec {dir}/installed/ringtap $word {options} \"$@\"");
        self.have_program("admin/ringtap", &ringtap);
        for who in ["admin", "customer"] {
            let config = format!(
                "IdentityFile {dir}/{who}/id_ed25519\nUserKnownHostsFile {dir}/{who}/known_hosts\n\
                 StrictHostKeyChecking accept-new\nBatchMode yes\n\
                 ConnectTimeout 10\nServerAliveInterval 15\nServerAliveCountMax 8\n"
            );
            fs::write(self.path(&format!("{who}/config")), config).unwrap();
            let ssh = format!("exec /usr/bin/ssh -F {dir}/{who}/config \"$@\"");
            self.have_program(&format!("{who}/ssh"), &ssh);
        }
    }

    fn have_program(&self, name: &str, script: &str) {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn have_customers_key(&self) {
        let key = self.path("customer/id_ed25519");
        let words = ["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()];
        run("ssh-keygen", &words);
        fs::copy(key.with_extension("pub"), self.path("srv/customer.pub")).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.lab.dir.path().join(name)
    }

    /// Somebody's shell on a machine, for `line`.
    fn shell(&self, who: &str, netns: &Netns, line: &str) -> Command {
        // In the mount namespace that `ip netns exec` has just made.
        let resolver = self.path("resolv.conf");
        let resolver = format!("mount --bind {} /etc/resolv.conf", resolver.display());
        let mut command = netns.command("sh");
        command.args(["-c", &format!("{resolver} && eval \"$0\""), line]);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.path(who).display()));
        command
    }

    fn admin(&self, line: &str) -> Command {
        self.shell("admin", &self.lab.host, line)
    }

    fn customer(&self, line: &str) -> Command {
        self.shell("customer", &self.lab.internet, line)
    }

    /// Does what README says, for this world's guest; all must succeed. Gives what was printed.
    fn follow(&self, block: &str) -> String {
        let mut printed = String::new();
        for line in self.here(block).replace("web1", self.guest).lines() {
            let said = match line.split_at(2) {
                ("# ", line) if line.starts_with("ringtap console") => {
                    self.watch_boot(line);
                    continue;
                }
                ("# ", line) => said_by(PATIENCE, &mut self.admin(line)),
                ("$ ", line) => said_by(PATIENCE, &mut self.customer(line)),
                _ => panic!("whose prompt is that: {line}"),
            };
            printed.push_str(&said.succeeded());
        }
        printed
    }

    /// Stays at the console until cloud-init has finished.
    fn watch_boot(&self, line: &str) {
        let mut person = Person::start(self.admin(line));
        person.wait_for_by(PATIENCE, "finished at");
        person.types("\x1d");
        assert!(person.ends().success());
    }

    /// The guest's first start, or another one.
    fn boot(&self) {
        let start = Instant::now();
        self.follow(&self.readme.boot);
        self.tell("a start, and cloud-init's end", start);
    }

    /// For who wonders how long tests take; nothing depends on it.
    fn tell(&self, after: &str, since: Instant) {
        let seconds = since.elapsed().as_secs();
        println!("{}: ssh {seconds} s after {after}", self.guest);
    }

    /// What the guest says to `line`.
    fn ask(&self, line: &str) -> Said {
        let line = format!("ringtap ssh {} -- '{line}'", self.guest);
        said_by(PATIENCE, &mut self.admin(&line))
    }

    /// Which boot of its the guest is in, if ssh gets there.
    fn boot_id(&self) -> Option<String> {
        let said = self.ask("cat /proc/sys/kernel/random/boot_id");
        (said.code == Some(0)).then_some(said.out)
    }

    /// The guest comes again after `act`, with all that it had written.
    fn comes_again(&self, after: &str, act: impl FnOnce()) {
        // Synced: what is in memory alone, such as host keys of a first boot, does not outlive a power cut.
        let word = format!("written before {after}");
        self.ask(&format!("echo {word} >word && sync")).succeeded();
        let boot = self.boot_id().expect("ssh");
        let since = Instant::now();
        act();
        until_by(PATIENCE, &format!("ssh after {after}"), || {
            self.boot_id().is_some_and(|now| now != boot)
        });
        self.tell(after, since);
        assert_eq!(self.ask("cat word").succeeded().trim(), word);
    }

    /// Stopped as README says, nothing is left of the guest but its disk.
    fn stop(&self) {
        let said = self.follow(&self.readme.stop);
        assert_eq!(said, format!("{}: powered off\n", self.guest));
        let after = self.lab.host.snapshot();
        assert_eq!(difference(&self.before, &after), "");
        assert_eq!(self.lab.host.pids(), [0; 0]);
        assert!(!self.lab.run_dir().exists());
        assert!(self.disk().exists());
    }

    fn disk(&self) -> PathBuf {
        self.path(&format!("srv/{}.qcow2", self.guest))
    }
}

impl Drop for World {
    /// Where a test fails, what the guest and its supervisor have said last.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let dir = self.lab.run_dir().join("guests").join(self.guest);
        for name in ["console.log", "supervisor.log", "qemu.log"] {
            let text = fs::read(dir.join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            eprintln!("the end of {name}:\n{}", last.join("\n"));
        }
    }
}

#[test]
fn a_guest_behind_nat_is_lent_out() {
    let world = World::new("web1");
    world.boot();
    world.follow(&world.readme.come_by_port);
    has_what_cloud_init_was_told(&world);
    installs_a_package(&world);
    world.stop();
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn a_guest_keeps_its_disk_over_reboots_and_stops() {
    let world = World::new("web1");
    world.boot();
    world.comes_again("a reboot", || {
        world.ask("sudo reboot"); // whose connection may end before it does
    });
    let disk = fs::metadata(world.disk()).unwrap().ino();
    world.comes_again("a stop and a start", || {
        world.stop();
        world.boot();
    });
    assert_eq!(fs::metadata(world.disk()).unwrap().ino(), disk);
    world.stop();
}

fn has_what_cloud_init_was_told(world: &World) {
    let says = |line| world.ask(line).succeeded().trim().to_owned();
    assert_eq!(says("hostname --fqdn"), "web1.example.com");
    assert_eq!(says("id --user --name"), "admin");
    assert_eq!(says("sudo id --user --name"), "root");
    assert_eq!(says("cat /etc/motd"), "Welcome to web1.");
    let addresses = says("ip -4 address show scope global");
    let leased = addresses.contains("inet 192.168.100.10/24") && addresses.contains("dynamic");
    assert!(leased, "{addresses}");
    // The root has grown to the disk's size, less a little for tables.
    let gigabytes: u32 = says("df --output=size -BG / | tail -n 1 | tr -d G")
        .parse()
        .unwrap();
    assert!((19..=20).contains(&gigabytes), "{gigabytes}");
}

/// By apt, from a repository on the internet.
fn installs_a_package(world: &World) {
    let blob = noise(SIZE, 1);
    let package = make_package(world, &blob);
    let index = format!(
        "Package: blob\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: noise\n\
         Filename: apt/blob.deb\nSize: {}\nSHA256: {}\n",
        package.len(),
        sha256(&package)
    );
    world.web.put("apt/Packages", index.into_bytes());
    world.web.put("apt/blob.deb", package);
    let source = format!("deb [trusted=yes] http://{WWW} apt/");
    world
        .ask(&format!(
            "echo \"{source}\" | sudo tee /etc/apt/sources.list"
        ))
        .succeeded();
    world
        .ask("sudo apt-get -q update && sudo apt-get -q install -y blob")
        .succeeded();
    let installed = world.ask("sha256sum /usr/share/blob").succeeded();
    assert_eq!(installed[..64], sha256(&blob));
}

/// A Debian package with one file.
fn make_package(world: &World, blob: &[u8]) -> Vec<u8> {
    require("dpkg-deb", "dpkg");
    let (root, package) = (world.path("blob"), world.path("blob.deb"));
    for folder in ["DEBIAN", "usr/share"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    let control =
        "Package: blob\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: noise\n";
    fs::write(root.join("DEBIAN/control"), control).unwrap();
    fs::write(root.join("usr/share/blob"), blob).unwrap();
    let [root, to] = [&root, &package].map(|path| path.to_str().unwrap());
    let words = ["-Znone", "--root-owner-group", "--build", root, to];
    run("dpkg-deb", &words);
    fs::read(package).unwrap()
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn a_guest_with_addresses_of_its_own_comes_back_after_a_power_cut() {
    let world = World::new("web2");
    let internet = &world.lab.internet;
    internet.run("ip route add 203.0.113.7 via 198.51.100.2");
    internet.run("ip route add 2001:db8:7::7 via 2001:db8:ff::2");
    world.boot();
    world.follow(&world.readme.come_by_address);
    has_its_addresses_alone(&world);
    downloads(&world);
    world.comes_again("a power cut", || {
        let pids = world.lab.pids(&["memory-backend-memfd"]);
        assert_eq!(pids.len(), 1);
        kill(Pid::from_raw(pids[0]), Signal::SIGKILL).unwrap();
    });
    world.follow(&world.readme.come_by_address);
    world.stop();
}

/// Statically, with a gateway that is on none of their subnets.
fn has_its_addresses_alone(world: &World) {
    let addresses = world.ask("ip -brief address show scope global").succeeded();
    let addresses: Vec<&str> = addresses.split_whitespace().skip(2).collect();
    assert_eq!(addresses, ["203.0.113.7/32", "2001:db8:7::7/128"]);
    for (family, gateway) in [("-4", "10.67.0.1"), ("-6", "fd00:67::1")] {
        let route = world.ask(&format!("ip {family} route show default"));
        let route = route.succeeded();
        let expected = format!("default via {gateway} dev ");
        assert!(route.starts_with(&expected), "{route}");
        assert!(
            route.contains(" proto static") && route.contains(" onlink"),
            "{route}"
        );
    }
}

/// By name, which the gateway looks up.
fn downloads(world: &World) {
    let blob = noise(SIZE, 2);
    world.web.put("blob", blob.clone());
    let line = format!("curl --silent --fail http://{WWW}/blob | sha256sum");
    let downloaded = world.ask(&line).succeeded();
    assert_eq!(downloaded[..64], sha256(&blob));
}
