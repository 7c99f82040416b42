//! Guests in the background: started, listed, used, stopped; their supervisors killed and taken over from.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::console::Console;
use support::host::{Said, said};
use support::lab::tiny_guest;
use support::netns::until;
use support::world::{ADDRESS, BACKEND, QEMU, SUPERVISOR, World};

#[test]
fn a_guest_is_started_listed_used_and_stopped() {
    let world = World::new("");
    assert_eq!(world.web1()["state"], "stopped");
    world
        .ringtap("console web1")
        .failed(1, &["does not run", "ringtap start web1"]);
    world.ringtap("start web1").succeeded();
    assert!(
        world
            .ringtap("start web1")
            .succeeded()
            .contains("runs already")
    );
    world
        .ringtap("run web1")
        .failed(1, &["guest web1 is running already"]);

    let mut console = world.console();
    console.run(&format!("ping -c 1 -s 1000 {}", support::lab::INTERNET));
    let web1 = world.web1();
    assert_eq!(web1["state"], "running");
    assert_eq!(web1["pid"], world.lab.pids(&QEMU)[0]);
    let nic = &web1["nics"][0];
    assert_eq!(
        (&nic["network"], &nic["queue_pairs"]),
        (&"default".into(), &1.into())
    );
    assert_eq!(nic["addresses"], serde_json::json!([ADDRESS]));
    assert_eq!(web1["pid"], world.lab.pids(&QEMU)[0]);
    assert_eq!(nic["backend"], world.lab.pids(&BACKEND)[0]);
    assert!(nic["rx_bytes"].as_u64() > Some(1000), "{nic}");
    assert!(nic["tx_bytes"].as_u64() > Some(1000), "{nic}");
    let mut files = 0;
    for entry in fs::read_dir(world.lab.run_dir().join("guests/web1")).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        if metadata.is_file() {
            files += 1;
            // The directory is open to QEMU, whose guest may have broken into it.
            let mode = metadata.permissions().mode();
            assert_eq!(mode & 0o022, 0, "{entry:?} is {mode:o}");
        }
    }
    assert!(files > 4, "{files}");
    let table = world.ringtap("list").succeeded();
    for word in ["GUEST", "web1", "running", "default", ADDRESS] {
        assert!(table.contains(word), "no {word} in\n{table}");
    }

    // Another person sees what the console has said before, and both see what it says now.
    let mut other = world.console();
    other.run("echo to-''both");
    console.wait_for("to-both", Duration::from_secs(30));
    drop(other);
    console.run("true");

    let said = world.ringtap("stop web1").succeeded();
    assert!(said.contains("web1: powered off"), "{said}");
    console.ends();
    assert!(
        world
            .ringtap("stop web1")
            .succeeded()
            .contains("does not run")
    );
    world.nothing_is_left();
}

/// Ctrl-] leaves a console, and all other keys are the guest's.
#[test]
fn a_terminal_is_the_guests_but_for_one_key() {
    let world = World::new("");
    world.ringtap("start web1").succeeded();
    drop(world.console());
    let mut person = support::terminal::Person::start(world.lab.ringtap("console web1"));
    person.wait_for("tiny: ready");
    // Ctrl-C is for what runs in the foreground, so that has to be there first: a shell that is
    // still on its way to it would ignore the key.
    person.types("sh -c 'echo it-\"\"runs; sleep 1000'\r");
    person.wait_for("it-runs");
    person.types("\x03");
    person.types("echo still-''here\r");
    person.wait_for("still-here");
    assert!(person.has_raw_terminal());
    person.types("\x1d");
    assert!(person.ends().success());
    assert!(!person.has_raw_terminal());
    assert!(world.answers());
    world.ringtap("stop web1").succeeded();

    let mut person = support::terminal::Person::start(world.lab.ringtap("run web1"));
    person.wait_for("tiny: ready");
    person.types("\x1d");
    assert!(person.ends().success());
    person.wait_for("ringtap console web1");
    assert!(world.answers());
    world.ringtap("stop web1").succeeded();
    world.nothing_is_left();
}

#[test]
fn a_guest_whose_supervisor_was_killed_runs_on_and_is_taken_over() {
    let world = World::new("");
    world.ringtap("start web1").succeeded();
    drop(world.console());
    let qemu = world.lab.pids(&QEMU);

    // By a command that looks.
    world.kill(&SUPERVISOR);
    assert!(world.answers());
    assert_eq!(world.web1()["state"], "running");
    assert_eq!(world.lab.pids(&SUPERVISOR).len(), 1);

    // With a backend that died meanwhile.
    world.kill(&SUPERVISOR);
    world.kill(&BACKEND);
    assert!(!world.answers());
    let said = world.ringtap("start web1").succeeded();
    assert!(said.contains("watching over it again"), "{said}");
    until("the guest answers again", || world.answers());
    world.kill(&BACKEND);
    until("the guest answers again", || world.answers());

    // The console goes on, with what it said before.
    let mut console = world.console();
    console.run("true");
    assert_eq!(world.lab.pids(&QEMU), qemu);

    // By the command that stops it.
    world.kill(&SUPERVISOR);
    console.ends();
    let said = world.ringtap("stop web1").succeeded();
    assert!(said.contains("web1: powered off"), "{said}");
    world.nothing_is_left();
}

#[test]
fn what_a_guest_has_left_that_ended_unseen_goes() {
    let world = World::new("");
    for words in ["status", "rm web1", "stop web1"] {
        world.ringtap("start web1").succeeded();
        world.kill(&SUPERVISOR);
        world.ringtap("rm --all").succeeded();
        assert_eq!(world.lab.pids(&QEMU).len(), 1);
        world.kill(&QEMU);
        world.ringtap(words);
        world.ringtap("rm --all").succeeded(); // the logs of what has failed
        world.nothing_is_left();
    }
    world.ringtap("start web1").succeeded();
    world.kill(&SUPERVISOR);
    world.kill(&QEMU);
    world.kill(&BACKEND);
    world.ringtap("start web1").succeeded();
    drop(world.console());
    assert!(world.answers());
    world.ringtap("stop web1").succeeded();
    world.nothing_is_left();
}

#[test]
fn a_guest_that_is_always_to_run_is_started_anew() {
    let world = World::new("restart = \"always\"");
    world.ringtap("start web1").succeeded();
    drop(world.console());
    world.kill(&QEMU);
    until("another QEMU", || world.lab.pids(&QEMU).len() == 1);
    until("the guest answers again", || world.answers());
    // Also when it powers itself off.
    let before = world.lab.pids(&QEMU);
    let mut console = Console::start(&mut world.lab.ringtap("console web1"));
    console.type_line("poweroff");
    until("another QEMU", || {
        let now = world.lab.pids(&QEMU);
        now.len() == 1 && now != before
    });
    until("the guest answers again", || world.answers());
    let said = world.ringtap("stop web1").succeeded();
    assert!(said.contains("web1: powered off"), "{said}");
    world.nothing_is_left();
}

#[test]
fn one_that_fails_leaves_its_reason_and_its_logs() {
    let world = World::new("");
    let [kernel, ..] = tiny_guest();
    let bad = format!(
        "[guests.web1]\nmemory = \"256M\"\nkernel = {kernel:?}\nqemu-args = [\"-nonsense\"]\nnics = [{{ network = \"default\" }}]\n"
    );
    world.lab.configure(&bad);
    let log = world.lab.run_dir().join("guests/web1/qemu.log");
    let path = log.to_str().unwrap();
    world
        .ringtap("start web1")
        .failed(1, &["-nonsense: invalid option", path]);
    assert!(fs::read_to_string(&log).unwrap().contains("-nonsense"));
    let web1 = world.web1();
    assert_eq!(web1["state"], "failed");
    assert!(web1["failure"].as_str().unwrap().contains("-nonsense"));
    assert!(world.ringtap("list").succeeded().contains("failed"));
    world.ringtap("rm web1").succeeded();
    world.nothing_is_left();
}

/// A machine without anything to boot has nobody who hears its power button.
#[test]
fn one_that_does_not_power_off_is_killed_and_that_is_said() {
    let world = World::new("");
    world
        .lab
        .configure("[guests.web1]\nmemory = \"256M\"\nnics = [{ network = \"default\" }]\n");
    world.ringtap("start web1").succeeded();
    world.ringtap("rm web1").failed(1, &["is running already"]);
    let said = world.ringtap("stop web1 --timeout 2").succeeded();
    assert!(
        said.contains("web1: killed") && said.contains("2 s"),
        "{said}"
    );
    world.nothing_is_left();
}

/// `ringtap start` that is asked to end before its guest runs leaves nothing of it.
#[test]
fn a_start_that_is_interrupted_leaves_nothing() {
    let world = World::new("");
    for lines in [1, 6, 12] {
        let mut command: Command = world.lab.ringtap("start web1");
        let ended = support::host::interrupt_after(&mut command, lines, Signal::SIGTERM);
        let started = ended.code() == Some(0);
        if started {
            world.ringtap("stop web1 --timeout 0").succeeded();
        }
        world.nothing_is_left();
    }
}

/// A host may be so slow that QEMU answers nothing for longer than anybody would wait for that.
#[test]
fn a_guest_whose_qemu_hangs_for_a_while_has_its_time_to_power_off() {
    let world = World::new("");
    world.ringtap("start web1").succeeded();
    drop(world.console());
    let qemu = Pid::from_raw(world.lab.pids(&QEMU)[0]);
    kill(qemu, Signal::SIGSTOP).unwrap();
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| world.ringtap("stop web1 --timeout 60"));
        until("it is being stopped", || {
            world.web1()["state"] == "stopping"
        });
        // Its supervisor does not hang with it.
        let end = Instant::now() + Duration::from_secs(11);
        while Instant::now() < end {
            assert_eq!(world.web1()["state"], "stopping");
        }
        kill(qemu, Signal::SIGCONT).unwrap();
        let said = stop.join().unwrap().succeeded();
        assert!(said.contains("web1: powered off"), "{said}");
    });
    world.nothing_is_left();
}

/// Whoever stops a guest that another is just starting waits until there is something to stop.
#[test]
fn a_stop_during_a_start_stops_the_guest() {
    let world = World::new("");
    world
        .lab
        .configure("[guests.web1]\nmemory = \"256M\"\nnics = [{ network = \"default\" }]\n");
    std::thread::scope(|scope| {
        let start = scope.spawn(|| world.ringtap("start web1"));
        until("its supervisor is at work", || {
            world.lab.run_dir().join("guests/web1").exists()
        });
        let said = world.ringtap("stop web1 --timeout 0").succeeded();
        assert!(said.contains("web1: killed"), "{said}");
        let said = start.join().unwrap().succeeded();
        assert!(said.contains("web1: started"), "{said}");
    });
    world.nothing_is_left();
}

const LAB: &str = "[networks.lab]\nmode = \"isolated\"\nsubnet = \"10.66.0.0/24\"\n";

/// What has changed in the file counts from the restart on, and not before; what is on a disk stays.
#[test]
fn a_restart_takes_the_file_as_it_is_now() {
    const OTHER: &str = "192.168.100.20";
    let world = World::new("");
    let disk = world.lab.dir.path().join("data.raw");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let memory = "memory = \"256M\"";
    world.change(memory, &format!("{memory}\ndisks = [{disk:?}]"));
    let has = |console: &mut Console| {
        let meminfo = console.run("grep MemTotal /proc/meminfo");
        let kilobytes = meminfo.split_whitespace().nth(1).unwrap();
        let address = console.run("ip -4 address show eth0");
        (kilobytes.parse::<u32>().unwrap() >> 10, address)
    };
    world.ringtap("start web1").succeeded();
    let mut console = world.console();
    console.run("printf kept >/dev/vda; sync");
    world.change(memory, "memory = \"384M\"");
    world.change(ADDRESS, OTHER);
    let (before, address) = has(&mut console);
    assert!(address.contains(&format!("{ADDRESS}/24")), "{address}");

    // A file that is wrong ends nothing.
    world.change("cpus = 1", "cpus = 0");
    world.ringtap("restart web1").failed(2, &["cpus"]);
    console.run("true");
    world.change("cpus = 0", "cpus = 1");

    let said = world.ringtap("restart web1").succeeded();
    for line in ["web1: powered off", "web1: started"] {
        assert!(said.contains(line), "no {line:?} in:\n{said}");
    }
    console.ends();
    let mut console = world.console();
    let (after, address) = has(&mut console);
    assert!((100..140).contains(&(after - before)), "{before}, {after}");
    assert!(address.contains(&format!("{OTHER}/24")), "{address}");
    assert_eq!(console.run("head -c 4 /dev/vda"), "kept");
    world.ringtap("stop web1").succeeded();
    world.nothing_is_left();
}

/// Has the guest ask for a lease on `nic` again, as a DHCP client does that minds its link, and waits until it has one of
/// these addresses.
fn ask_again(console: &mut Console, nic: &str, addresses: &str) {
    console.run(&format!(
        "ip link set {nic} up; killall -q udhcpc; ip address flush dev {nic}; udhcpc -n -q -S -i {nic} -s /etc/udhcpc -t 10 -T 1 >/dev/null 2>&1"
    ));
    let now = console.run(&format!("ip -4 address show {nic}"));
    assert!(now.contains(&format!("inet {addresses}")), "{now}");
}

#[test]
fn a_nic_moves_between_networks_while_its_guest_pings() {
    let world = World::new("");
    world.add(LAB);
    world.ringtap("start web1").succeeded();
    let mut console = world.console();
    let internet = support::lab::INTERNET;
    let flaps = |console: &mut Console| -> u32 {
        let count = console.run("cat /sys/class/net/eth0/carrier_changes");
        count.trim().parse().unwrap()
    };
    let before = flaps(&mut console);
    console.run(&format!("ping -c 1 {internet}"));
    console.run(&format!("(ping {internet} >/tmp/pings 2>&1 &)"));

    let said = world.ringtap("nic move web1 0 lab").succeeded();
    assert!(said.contains("web1: NIC 0 is on lab"), "{said}");
    world
        .ringtap("nic move web1 0 lab")
        .failed(1, &["NIC 0 is on network lab already"]);
    until("the link goes and comes", || {
        flaps(&mut console) >= before + 2
    });
    // The row of an isolated network: the host, and nobody else.
    ask_again(&mut console, "eth0", "10.66.0.");
    console.run("ping -c 1 10.66.0.1");
    for there in [internet, "192.168.100.1"] {
        let (code, _) = console.attempt(&format!("ping -c 1 -W 1 {there}"), support::netns::BOUND);
        assert_ne!(code, 0, "{there}");
    }
    assert_eq!(world.web1()["nics"][0]["network"], "lab");
    // The network that it has left is gone, and comes again with it.
    assert!(!world.lab.host.run("ip -o link").contains("rt-default"));
    world
        .ringtap("nic move web1 0 nowhere")
        .failed(1, &["nowhere"]);
    world
        .ringtap("nic move web1 7 default")
        .failed(1, &["no NIC 7"]);
    world.ringtap("nic move web1 0 default").succeeded();
    ask_again(&mut console, "eth0", ADDRESS);
    console.run(&format!("ping -c 1 {internet}"));
    world.ringtap("stop web1").succeeded();
    world.nothing_is_left();
}

#[test]
fn a_nic_comes_and_goes_while_its_guest_runs() {
    let world = World::new("");
    world.add(LAB);
    world.ringtap("start web1").succeeded();
    let mut console = world.console();
    let nics = |console: &mut Console| console.run("ls /sys/class/net");
    let said = world.ringtap("nic add web1 lab").succeeded();
    assert!(said.contains("web1: NIC 1 is on lab"), "{said}");
    until("the NIC", || nics(&mut console).contains("eth1"));
    ask_again(&mut console, "eth1", "10.66.0.");
    console.run("ping -c 1 10.66.0.1");
    assert_eq!(world.web1()["nics"].as_array().unwrap().len(), 2);

    // Who takes over finds it, too.
    world.kill(&SUPERVISOR);
    world.kill(&["backend --socket-path", "nic1.sock"]);
    world.ringtap("start web1").succeeded();
    let mut console = world.console();
    until("the NIC works again", || {
        console
            .attempt("ping -c 1 -W 1 10.66.0.1", support::netns::BOUND)
            .0
            == 0
    });

    let said = world.ringtap("nic remove web1 1").succeeded();
    assert!(said.contains("web1: NIC 1 is gone"), "{said}");
    until("the NIC to go", || !nics(&mut console).contains("eth1"));
    assert!(!world.lab.host.run("ip -o link").contains("rt-lab"));
    world.ringtap("nic remove web1 1").failed(1, &["no NIC 1"]);
    console.run(&format!("ping -c 1 {}", support::lab::INTERNET));
    world.ringtap("stop web1").succeeded();
    world.nothing_is_left();
}

/// The guests here have no sshd: what stands in for ssh tells how it was called.
fn have_ssh(world: &World) {
    let bin = world.lab.dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let ssh = bin.join("ssh");
    fs::write(&ssh, "#!/bin/sh\necho ssh \"$@\"\n").unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
}

/// `ringtap ssh` with that.
fn ssh(world: &World, words: &str) -> Said {
    let mut command = world.lab.ringtap(&format!("ssh {words}"));
    let bin = world.lab.dir.path().join("bin");
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", bin.display()));
    said(&mut command)
}

#[test]
fn ssh_is_called_with_the_address_that_the_guest_has() {
    let world = World::new("cloud-init = { user = \"admin\" }");
    have_ssh(&world);
    ssh(&world, "web1").failed(1, &["guest web1 does not run"]);
    ssh(&world, "web2").failed(2, &["no guest is called `web2`"]);
    world.ringtap("start web1").succeeded();
    let mut console = world.console();
    // Who has not been heard of yet has no address.
    console.run("ping -c 1 192.168.100.1");
    let called = ssh(&world, "web1").succeeded();
    let expected = format!("ssh -o HostKeyAlias=web1.ringtap -l admin {ADDRESS}\n");
    assert_eq!(called, expected);
    world.ringtap("stop web1").succeeded();
    world.nothing_is_left();
}

#[test]
fn a_guest_with_addresses_that_nobody_leases_is_found_before_it_speaks() {
    let world = World::new("");
    have_ssh(&world);
    world.add(
        "[networks.public]\nmode = \"routed\"\nsubnet = \"10.67.0.0/24\"\nipv6 = \"fd00:67::/64\"\n\
         [guests.web2]\nmemory = \"256M\"\n\
         nics = [{ network = \"public\", addresses = [\"2001:db8::7\", \"203.0.113.7\"] }]\n",
    );
    world.ringtap("start web2").succeeded();
    let called = ssh(&world, "web2").succeeded();
    assert_eq!(called, "ssh -o HostKeyAlias=web2.ringtap 203.0.113.7\n");
    let web2 = &world.list()[1]["nics"][0];
    let addresses = serde_json::json!(["203.0.113.7", "2001:db8::7"]);
    assert_eq!(web2["addresses"], addresses);
    world.ringtap("stop web2 --timeout 0").succeeded();
    world.nothing_is_left();
}
