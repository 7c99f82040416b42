//! `ringtap plan`, `up`, `down` and `status` on pretend hosts: real kernel, nft and dnsmasq, in network
//! namespaces of each test's own. Checked with `ip`, `nft`, `sysctl` and packets, never by what ringtap says of itself.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use ringtap::network::inventory::Inventory;
use ringtap::network::port::Port;
use support::dhcp::lease;
use support::host::{self, Host, kill_after, nic};
use support::netns::{self, Netns, difference, require, until};

const DEFAULT: &str = r#"
[networks.default]
mode = "nat"
subnet = "192.168.100.0/24"
domain = "vm.internal"
mtu = 1400

[guests.web1]
memory = "256M"
nics = [{ network = "default", ip = "192.168.100.10", mac = "52:54:00:00:00:01" }]

[guests.web2]
memory = "256M"
nics = [{ network = "default", mac = "52:54:00:00:00:02" }]
"#;

const LAB: &str = r#"
[networks.lab]
mode = "nat"
subnet = "10.66.0.0/24"
ipv6 = "fd00:66::/64"
nat66 = true
"#;

#[test]
fn up_twice_changes_nothing_and_down_restores_the_host() {
    let host = Host::new(&format!("{DEFAULT}{LAB}"));
    let internet = Netns::new("internet");
    // What others have set on the host, and what the kernel would reset along with ip_forward.
    host.netns.join("uplink", &internet, "eth0");
    host.netns.run("ip address add 198.51.100.2/24 dev uplink");
    host.netns.run("ip route add default via 198.51.100.1");
    host.netns
        .run("sysctl -w net.ipv4.conf.all.accept_redirects=0");
    host.netns
        .run("sysctl -w net.ipv4.conf.uplink.forwarding=1");
    host.netns.run("nft add table inet other");
    host.netns.run("nft add chain inet other c");
    until("the uplink's link-local address is ready", || {
        !host
            .netns
            .run("ip address show dev uplink")
            .contains("tentative")
    });
    let before = host.everything();

    let plan = host.ringtap(&["plan"]).succeeded();
    assert!(plan.contains("ip link add rt-default address"), "{plan}");
    let json: serde_json::Value =
        serde_json::from_str(&host.ringtap(&["plan", "--json"]).succeeded()).unwrap();
    let command = json["steps"][1]["command"].as_str().unwrap();
    assert!(command.starts_with("ip link add rt-default"), "{command}");
    serde_json::from_value::<Inventory>(json["inventory"].clone()).unwrap();
    host.is_as(&before);
    assert_eq!(host.ringtap(&["status"]).code, Some(1));
    host.is_as(&before);

    host.ringtap(&["up"]).succeeded();
    let links = host.netns.run("ip -br address");
    assert!(
        links.contains("192.168.100.1/24") && links.contains("10.66.0.1/24"),
        "{links}"
    );
    assert!(
        host.netns
            .run("ip link show rt-default")
            .contains("mtu 1400")
    );
    assert_eq!(host.netns.run("sysctl -n net.ipv4.ip_forward").trim(), "1");
    host.ringtap(&["status"]).succeeded();
    let json: serde_json::Value =
        serde_json::from_str(&host.ringtap(&["status", "--json"]).succeeded()).unwrap();
    assert_eq!(json["networks"][1]["state"], "up");
    assert_eq!(json["networks"][1]["dnsmasq_pid"], host.dnsmasq("lab"));
    let is_up = host.everything();
    let again = host.ringtap(&["up"]).succeeded();
    assert!(again.contains("nothing to do"), "{again}");
    assert_eq!(host.ringtap(&["plan"]).succeeded(), "# nothing to do\n");
    host.is_as(&is_up);

    // The first to go leaves what they share; the last does not. The file is not needed.
    host.ringtap(&["down", "lab"]).succeeded();
    assert_eq!(host.netns.run("sysctl -n net.ipv4.ip_forward").trim(), "1");
    assert!(!host.netns.run("ip link").contains("rt-lab"));
    fs::rename(
        host.dir.path().join("ringtap.toml"),
        host.dir.path().join("gone"),
    )
    .unwrap();
    host.ringtap(&["down"]).succeeded();
    fs::rename(
        host.dir.path().join("gone"),
        host.dir.path().join("ringtap.toml"),
    )
    .unwrap();
    host.is_as(&before);
    assert!(
        host.ringtap(&["down"])
            .succeeded()
            .contains("nothing to take back")
    );
    host.is_as(&before);
}

/// On a terminal, that is: `script` gives the command one.
#[test]
fn a_plan_has_colours_for_people_alone() {
    require("script", "bsdutils");
    let host = Host::new(DEFAULT);
    let plain = host.ringtap(&["plan"]).succeeded();
    let command = host.words(&["plan"]).join(" ");
    let on_terminal = |variables: &[&str]| {
        let mut command_line = host.netns.command("env");
        command_line
            .args(["-u", "NO_COLOR", "TERM=xterm"])
            .args(variables);
        command_line.args(["script", "-qec", &command, "/dev/null"]);
        let said = host::said(&mut command_line).succeeded();
        said.replace("\r\n", "\n")
    };
    let coloured = on_terminal(&[]);
    let line = "\x1b[32mip address add 192.168.100.1/24 brd + dev rt-default\x1b[0m\n";
    assert!(coloured.contains(line), "{coloured}");
    assert!(coloured.contains("\x1b[2m# network default"), "{coloured}");
    assert!(coloured.contains("\nsysctl -w net.ipv4"), "{coloured}");
    assert_eq!(on_terminal(&["NO_COLOR=1"]), plain);
    assert!(!plain.contains('\x1b'), "{plain}");
}

#[test]
fn a_host_that_forwards_already_still_does_after_down() {
    let host = Host::new(DEFAULT);
    host.netns.run("sysctl -w net.ipv4.ip_forward=1");
    let before = host.everything();
    host.ringtap(&["up"]).succeeded();
    host.ringtap(&["down"]).succeeded();
    host.is_as(&before);
}

#[test]
fn drift_is_noticed_and_mended() {
    let host = Host::new(DEFAULT);
    let before = host.everything();
    host.ringtap(&["up"]).succeeded();
    let pid = host.dnsmasq("default").to_string();
    for harm in [
        "nft flush ruleset",
        "nft add rule inet ringtap_default forward accept",
        "ip link set rt-default down",
        "ip address delete 192.168.100.1/24 dev rt-default",
        "ip link set rt-default mtu 1500",
        "sysctl -w net.ipv4.ip_forward=0",
        "ip link delete rt-default",
        &format!("kill {pid}"),
    ] {
        let wanted = host.netns.snapshot();
        host.netns.run(harm);
        until("the harm is done", || {
            host.ringtap(&["status"]).code == Some(1)
        });
        host.ringtap(&["up"]).succeeded();
        host.ringtap(&["status"]).succeeded();
        let now = host.netns.snapshot();
        // A bridge made anew has another index and its addresses other ages: compare by the plan alone.
        if !harm.contains("link") {
            assert_eq!(difference(&wanted, &now), "", "after {harm}");
        }
    }
    // What was set right, and by whom, is known afterwards.
    let status = host.ringtap(&["status"]).succeeded();
    assert_eq!(
        status.matches("ago by `ringtap up`:\n").count(),
        3,
        "{status}"
    );
    assert!(status.contains("    dnsmasq --conf-file="), "{status}");
    let json = host.ringtap(&["status", "--json"]).succeeded();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let mended = json["networks"][0]["mended"].as_array().unwrap();
    let steps: Vec<_> = mended
        .iter()
        .map(|one| one["steps"].as_array().unwrap())
        .collect();
    assert_eq!(steps.len(), 8, "{json}");
    assert_eq!(*steps[0], ["nft -f - # table inet ringtap_default"]);
    assert_eq!(*steps[2], ["ip link set rt-default up"]);
    assert_eq!(*steps[5], ["sysctl -w net.ipv4.ip_forward=1"]);
    host.ringtap(&["down"]).succeeded();
    host.is_as(&before);
}

/// A restart of nftables may load what it saved: the kernel gives other handles then.
#[test]
fn a_table_that_is_loaded_again_is_what_it_was_unless_a_set_in_it_has_changed() {
    let host = Host::new(DEFAULT);
    let before = host.everything();
    host.ringtap(&["up"]).succeeded();
    let is_up = host.ringtap(&["status"]).succeeded();
    let saved = host.netns.run("nft list ruleset");
    let load = |text: &str| {
        let mut nft = host.netns.command("nft");
        let output = netns::bounded(nft.args(["-f", "-"]), text);
        assert!(output.status.success(), "{output:?}");
    };
    host.netns.run("nft add table inet another");
    for flush in ["flush ruleset", "flush table inet ringtap_default"] {
        host.netns.run(&format!("nft {flush}"));
        load(&saved);
        assert_eq!(host.ringtap(&["status"]).succeeded(), is_up, "{flush}");
    }
    let other = saved.replace("{ tcp, udp }", "{ tcp, sctp }");
    assert_ne!(other, saved);
    host.netns.run("nft flush ruleset");
    load(&other);
    host.ringtap(&["status"]).failed(1, &[]);
    host.netns.run("nft flush ruleset");
    load(&saved);
    host.ringtap(&["status"]).succeeded();
    host.ringtap(&["down"]).succeeded();
    host.is_as(&before);
}

#[test]
fn a_changed_file_changes_only_what_it_must() {
    let host = Host::new(DEFAULT);
    let before = host.everything();
    host.ringtap(&["up"]).succeeded();
    let (bridge, pid) = (
        host.netns.run("ip link show rt-default"),
        host.dnsmasq("default"),
    );
    let lookup = |name: &str| {
        let line = format!("busybox nslookup -type=a {name} 192.168.100.1");
        String::from_utf8_lossy(&host.netns.attempt(&line).stdout).into_owned()
    };
    assert!(lookup("web1.vm.internal").contains("192.168.100.10"));

    host.configure(&DEFAULT.replace("192.168.100.10", "192.168.100.20"));
    let out = host.ringtap(&["up"]).succeeded();
    assert_eq!(out.lines().count(), 2, "one step and the verdict: {out}");
    assert!(out.starts_with("[1/1] kill -HUP "), "{out}");
    assert_eq!(
        host.dnsmasq("default"),
        pid,
        "only its hosts files are read again"
    );
    until("the new address is served", || {
        lookup("web1.vm.internal").contains("192.168.100.20")
    });

    host.configure(&DEFAULT.replace("192.168.100", "192.168.101"));
    host.ringtap(&["up"]).succeeded();
    let addresses = host.netns.run("ip -4 address show dev rt-default");
    assert!(addresses.contains("192.168.101.1/24") && !addresses.contains("192.168.100"));
    assert_eq!(
        host.netns.run("ip link show rt-default"),
        bridge,
        "the bridge lives on"
    );
    assert_ne!(host.dnsmasq("default"), pid);

    // A network that left the file is named, and goes by name.
    host.configure(LAB);
    let status = host.ringtap(&["status"]);
    assert!(status.out.contains("ringtap down default"), "{status:?}");
    host.ringtap(&["down", "default"]).succeeded();
    host.configure(DEFAULT);
    host.is_as(&before);
}

/// dnsmasq reads guests' names as an ordinary user.
/// The bridge stays, whatever the file makes of the network, and in the end nothing of any of it is left.
#[test]
fn a_network_changes_its_mode_under_its_guests() {
    let v4 = "subnet = \"10.66.0.0/24\"\n";
    let v6 = "ipv6 = \"fd00:66::/64\"\n";
    let other_v6 = "ipv6 = \"2001:db8:66::/80\"\n";
    let host = Host::new(&format!("[networks.lab]\nmode = \"nat\"\n{v4}"));
    let before = host.everything();
    let index = || host.netns.run("cat /sys/class/net/rt-lab/ifindex");
    let mut first = None;
    for network in [
        format!("mode = \"nat\"\n{v4}"),
        format!("mode = \"nat\"\nnat66 = true\n{v4}{v6}"),
        format!("mode = \"nat\"\n{v4}{v6}forwards = [\"tcp:2222 -> 10.66.0.5:22\"]\n"),
        format!("mode = \"isolated\"\n{v4}{v6}"),
        "mode = \"isolated\"\nhost = false\n".to_owned(),
        format!("mode = \"routed\"\n{other_v6}"),
        format!("mode = \"open\"\n{v4}"),
        format!("mode = \"nat\"\nisolate-guests = true\n{v4}"),
    ] {
        host.configure(&format!("[networks.lab]\n{network}"));
        host.ringtap(&["up"]).succeeded();
        host.ringtap(&["status"]).succeeded();
        assert_eq!(*first.get_or_insert_with(index), index(), "{network}");
        let is_up = host.everything();
        let again = host.ringtap(&["up"]).succeeded();
        assert!(again.contains("nothing to do"), "{network}{again}");
        host.is_as(&is_up);
    }
    host.ringtap(&["down"]).succeeded();
    host.configure(&format!("[networks.lab]\nmode = \"nat\"\n{v4}"));
    host.is_as(&before);
}

#[test]
fn guests_have_names_under_a_closed_umask_too() {
    require("busybox", "busybox-static");
    let host = Host::new(DEFAULT);
    let closed = ["sh", "-c", "umask 077; exec \"$@\"", "sh"];
    host.ringtap_by(&closed, &["up"]).succeeded();
    let answer = host
        .netns
        .run("busybox nslookup -type=a web1.vm.internal 192.168.100.1");
    assert!(answer.contains("192.168.100.10"), "{answer}");
    host.ringtap(&["down"]).succeeded();
}

#[test]
fn killed_at_any_step_down_still_restores_the_host() {
    let host = Host::new(DEFAULT);
    let before = host.everything();
    let up = host.ringtap(&["up"]).succeeded();
    host.ringtap(&["down"]).succeeded();
    let steps = up.lines().count();
    assert!(steps > 5, "{steps}");
    // Each line tells how far it has come, but for the verdict.
    for (index, line) in up.lines().take(steps - 1).enumerate() {
        let progress = format!(
            "[{:>2$}/{}] ",
            index + 1,
            steps - 1,
            (steps - 1).to_string().len()
        );
        assert!(line.starts_with(&progress), "no {progress:?} in {line}");
    }
    // Twice: right after a step is announced, and a little later.
    for (step, delay) in (0..steps).flat_map(|step| [(step, 0), (step, 3)]) {
        kill_after(
            &mut host.command(&["up"]),
            step + 1,
            Duration::from_millis(delay),
        );
        // Half of the times, an `up` comes first and finds the pieces.
        if delay == 0 {
            host.ringtap(&["up"]).succeeded();
            host.ringtap(&["status"]).succeeded();
        }
        host.ringtap(&["down"]).succeeded();
        host.is_as(&before);
    }
}

/// A program that `up` was running outlives it: `down` must not overtake it.
#[test]
fn down_waits_for_what_a_killed_up_left_running() {
    let host = Host::new(DEFAULT);
    let bin = host.dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let path = std::env::var("PATH").unwrap();
    let slow = format!("PATH={}:{path}", bin.display());
    for program in ["nft", "dnsmasq"] {
        let wrapper = bin.join(program);
        let text = format!("#!/bin/sh\nsleep 0.5\nPATH={path} exec {program} \"$@\"\n");
        fs::write(&wrapper, text).unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        let before = host.everything();

        let mut command = host.netns.command("env");
        command.arg(&slow).args(host.words(&["up"]));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let start = lines
            .map(Result::unwrap)
            .find(|line| line.contains(&format!("] {program} ")));
        assert!(start.is_some());
        thread::sleep(Duration::from_millis(200));
        child.kill().unwrap();
        child.wait().unwrap();
        host.ringtap(&["down"]).succeeded();
        thread::sleep(Duration::from_millis(700));
        // The wrapper and its `sleep` are gone by now, and so must be what they ran.
        host.is_as(&before);
        fs::remove_file(&wrapper).unwrap();
    }
}

#[test]
fn a_failed_step_takes_back_those_before_it() {
    let host = Host::new(DEFAULT);
    let before = host.everything();
    // A network that is up beside it goes on as it was.
    host.ringtap(&["up"]).succeeded();
    let is_up = host.netns.snapshot();
    host.configure(&format!("{DEFAULT}{LAB}"));
    let taken = host
        .netns
        .within(|| TcpListener::bind("10.66.0.1:53").is_err());
    assert!(taken, "the address is not there yet");
    host.netns.run("sysctl -w net.ipv4.ip_nonlocal_bind=1");
    let taken = host
        .netns
        .within(|| TcpListener::bind("10.66.0.1:53").unwrap());
    host.netns.run("sysctl -w net.ipv4.ip_nonlocal_bind=0");
    host.ringtap(&["up"]).failed(
        1,
        &[
            "dnsmasq",
            "taken back",
            "Address already in use",
            "another DNS or DHCP server",
        ],
    );
    drop(taken);
    assert_eq!(difference(&is_up, &host.netns.snapshot()), "");
    host.ringtap(&["status", "default"]).succeeded();
    host.ringtap(&["down"]).succeeded();
    host.configure(DEFAULT);
    host.is_as(&before);
}

/// The old server must not take the new one's address for its own, nor the kernel refuse the old addresses.
#[test]
fn a_failed_change_of_addresses_puts_the_old_ones_and_their_server_back() {
    let host = Host::new(LAB);
    let before = host.everything();
    host.ringtap(&["up"]).succeeded();
    let ipv4_alone = "[networks.lab]\nmode = \"nat\"\nsubnet = \"10.67.0.0/24\"\n";
    host.configure(ipv4_alone);
    host.netns.run("sysctl -w net.ipv4.ip_nonlocal_bind=1");
    let taken = host
        .netns
        .within(|| UdpSocket::bind("10.67.0.1:53").unwrap());
    host.netns.run("sysctl -w net.ipv4.ip_nonlocal_bind=0");
    host.ringtap(&["up"])
        .failed(1, &["10.67.0.1: Address already in use", "taken back"]);
    drop(taken);
    // As the old file wants it, that is: addresses, rules and the server.
    host.configure(LAB);
    host.ringtap(&["status"]).succeeded();
    host.ringtap(&["down"]).succeeded();
    host.is_as(&before);
}

/// As after an `up` that was killed between dnsmasq's start and the note of it.
#[test]
fn a_server_that_nothing_is_known_of_is_started_anew_and_goes_with_the_network() {
    let host = Host::new(DEFAULT);
    let before = host.everything();
    host.ringtap(&["up"]).succeeded();
    let pid = host.dnsmasq("default");
    fs::remove_file(host.run_dir().join("networks/default/served.json")).unwrap();
    host.ringtap(&["up"]).succeeded();
    assert_ne!(host.dnsmasq("default"), pid);
    host.ringtap(&["down"]).succeeded();
    host.is_as(&before);
}

/// One that listens everywhere leaves no place for dnsmasq: that is known before anything is done.
#[test]
fn a_dns_or_dhcp_server_on_every_address_is_named_and_nothing_is_touched() {
    let host = Host::new(DEFAULT);
    let own_name = fs::read_to_string("/proc/self/comm").unwrap();
    let own_name = format!("`{}`", own_name.trim());
    let udp = |address: &str| host.netns.within(|| UdpSocket::bind(address).unwrap());
    let tcp = |address: &str| host.netns.within(|| TcpListener::bind(address).unwrap());
    let refused = |words: &[&str]| {
        let before = host.everything();
        let words = [words, &[&own_name, "ss -lnp", "nothing was changed"]].concat();
        host.ringtap(&["up"]).failed(1, &words);
        host.ringtap(&["plan"]).failed(1, &words);
        assert!(host.ringtap(&["status"]).out.contains("in the way"));
        host.is_as(&before);
    };
    let taken = udp("0.0.0.0:53");
    refused(&["udp port 53", "0.0.0.0"]);
    drop(taken);
    let taken = tcp("[::]:53");
    refused(&["tcp port 53", "::"]);
    drop(taken);
    for address in ["0.0.0.0:67", "127.0.0.1:67"] {
        let taken = udp(address);
        refused(&["udp port 67"]);
        drop(taken);
    }

    // DNS on other addresses, such as systemd-resolved's, is in nobody's way, and nor is another dnsmasq.
    let _stub = (udp("127.0.0.53:53"), tcp("127.0.0.53:53"));
    host.ringtap(&["up"]).succeeded();
    host.configure(&format!("{DEFAULT}{LAB}"));
    host.ringtap(&["up"]).succeeded();
    host.ringtap(&["down"]).succeeded();
}

#[test]
fn what_stands_in_the_way_is_named_and_nothing_is_touched() {
    let host = Host::new(DEFAULT);
    let refused = |code: i32, words: &[&str]| {
        let before = host.everything();
        host.ringtap(&["up"]).failed(code, words);
        host.is_as(&before);
    };

    host.netns.run("ip link add rt-default type bridge");
    refused(1, &["a link `rt-default`", "ip link delete rt-default"]);
    host.netns.run("ip link delete rt-default");

    host.netns
        .run("ip link add uplink type veth peer name other");
    host.netns.run("ip link set uplink up");
    host.netns.run("ip address add 192.168.0.7/16 dev uplink");
    refused(1, &["192.168.0.7/16", "`uplink`", "choose another subnet"]);
    host.netns.run("ip address flush dev uplink");
    host.netns.run("ip address add 198.51.100.2/24 dev uplink");
    host.netns
        .run("ip route add 192.168.100.128/25 via 198.51.100.1");
    refused(1, &["192.168.100.128/25", "`uplink`"]);
    host.netns.run("ip link delete uplink");

    host.configure(
        &DEFAULT
            .replace("\"nat\"", "\"natt\"")
            .replace("memory", "memroy"),
    );
    refused(
        2,
        &[
            "ringtap.toml:3: networks.default.mode",
            "did you mean `nat`?",
            "`memory`",
        ],
    );
    host.configure(DEFAULT);
    let before = host.everything();
    host.ringtap(&["up", "defualt"])
        .failed(2, &["did you mean `default`?"]);
    host.ringtap(&["down", "defualt"])
        .failed(2, &["did you mean `default`?"]);
    host.ringtap_with(&["up", "--config=/absent.toml"])
        .failed(2, &["/absent.toml", "--config FILE"]);
    host.is_as(&before);
}

#[test]
fn a_forward_does_not_take_the_port_of_a_server_on_the_host() {
    let host = Host::new(&format!(
        "{LAB}forwards = [\"tcp:2222-2230 -> 10.66.0.5\"]\n"
    ));
    let ssh = host
        .netns
        .within(|| TcpListener::bind("[::]:2223").unwrap());
    let before = host.everything();
    let words = [
        "tcp port 2223",
        "tcp:2222-2230 -> 10.66.0.5",
        "another port",
    ];
    host.ringtap(&["up"]).failed(1, &words);
    host.is_as(&before);
    drop(ssh);
    host.ringtap(&["up"]).succeeded();
    // One that comes later does not stand in the way of anything but itself.
    let _late = host
        .netns
        .within(|| TcpListener::bind("[::]:2223").unwrap());
    assert!(host.ringtap(&["up"]).succeeded().contains("nothing to do"));
    host.ringtap(&["down"]).succeeded();
}

#[test]
fn missing_programs_and_privilege_are_named_and_nothing_is_touched() {
    let host = Host::new(DEFAULT);
    require("setpriv", "util-linux");
    for (program, missing, package) in [
        ("nft", "dnsmasq", "dnsmasq-base"),
        ("dnsmasq", "nft", "nftables"),
    ] {
        let bin = host.dir.path().join(missing);
        fs::create_dir(&bin).unwrap();
        let path = std::env::var_os("PATH").unwrap();
        let real = std::env::split_paths(&path).map(|dir| dir.join(program));
        symlink(
            real.into_iter().find(|file| file.is_file()).unwrap(),
            bin.join(program),
        )
        .unwrap();
        let before = host.netns.snapshot();
        let path = format!("PATH={}", bin.display());
        let remedy = format!("install the package {package}");
        host.ringtap_by(&["env", &path], &["up"])
            .failed(1, &[missing, &remedy]);
        assert_eq!(difference(&before, &host.netns.snapshot()), "");
        assert!(!host.run_dir().exists());
        fs::remove_dir_all(&bin).unwrap();
    }

    // The program itself may be out of an ordinary user's reach.
    let nobody = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let before = host.everything();
    for command in ["up", "plan", "status"] {
        host.ringtap_by(&nobody, &[command])
            .failed(1, &["CAP_NET_ADMIN", "sudo"]);
    }
    host.is_as(&before);

    let closed = fs::Permissions::from_mode(0o700);
    fs::set_permissions(host.dir.path(), closed).unwrap();
    host.ringtap(&["up"]).failed(1, &["chmod o+x", "--run-dir"]);
    fs::set_permissions(host.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!(
        "--config={}",
        host.dir.path().join("ringtap.toml").display()
    );
    host.ringtap_with(&["up", &config, "--run-dir=/absent/run"])
        .failed(1, &["/absent/run"]);
    host.is_as(&before);
}

#[test]
fn a_network_in_use_is_not_taken_down() {
    let host = Host::new(DEFAULT);
    let before = host.everything();
    host.ringtap(&["up"]).succeeded();
    host.netns.run("ip tuntap add tap-web1-0 mode tap");
    let tap = "tap-web1-0".parse().unwrap();
    let nic = nic("default", "52:54:00:00:00:01".parse().unwrap());
    let config = host.config();
    let network = config.networks.values().next().unwrap();
    let port = Port::new(&tap, &nic, network, &host.run_dir());
    host.netns.within(|| port.attach()).unwrap();
    let link = host.netns.run("ip link show tap-web1-0");
    assert!(
        link.contains("master rt-default") && link.contains("mtu 1400"),
        "{link}"
    );
    assert!(link.contains(",UP"), "{link}");
    host.ringtap(&["status"]).succeeded();

    let is_up = host.everything();
    host.ringtap(&["down"])
        .failed(1, &["tap-web1-0", "stop the guests first"]);
    host.is_as(&is_up);
    host.netns.within(|| port.delete()).unwrap();
    host.netns.within(|| port.delete()).expect("absent is fine");
    let missing = host.netns.within(|| port.attach()).unwrap_err();
    assert!(missing.to_string().contains("tap-web1-0"), "{missing}");
    host.ringtap(&["down"]).succeeded();
    host.is_as(&before);
}

#[test]
fn a_second_ringtap_waits_and_says_so() {
    let host = Host::new(DEFAULT);
    fs::create_dir(host.run_dir()).unwrap();
    let file = fs::File::create(host.run_dir().join("lock")).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusive).unwrap();
    let mut child = host
        .command(&["up"])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    errors.read_line(&mut line).unwrap();
    assert!(line.contains("waiting"), "{line}");
    assert!(!host.netns.run("ip link").contains("rt-default"));
    // As a `down` before it would: the lock's file is gone when it is given back.
    fs::remove_file(host.run_dir().join("lock")).unwrap();
    drop(lock);
    assert!(netns::wait(&mut child, netns::BOUND).unwrap().success());
    host.ringtap(&["status"]).succeeded();
    host.ringtap(&["down"]).succeeded();
}

/// A stand-in for a guest: a namespace on the bridge, with the NIC's MAC address.
fn guest(host: &Host, label: &str, mac: &str) -> Netns {
    let guest = Netns::new(label);
    let port = format!("port-{label}");
    host.netns.join(&port, &guest, "eth0");
    guest.run(&format!("ip link set eth0 address {mac}"));
    host.netns
        .run(&format!("ip link set {port} master rt-default"));
    guest
}

/// The address that a server at `address` sees when `client` connects.
fn seen_by(server: &Netns, address: &str, client: &Netns) -> Option<SocketAddr> {
    let listener = server.within(|| TcpListener::bind(address).unwrap());
    let serve = move || -> std::io::Result<SocketAddr> {
        let (mut stream, peer) = listener.accept()?;
        stream.write_all(b"hello")?;
        Ok(peer)
    };
    let address: SocketAddr = address.parse().unwrap();
    let connected = client.within(|| TcpStream::connect_timeout(&address, Duration::from_secs(3)));
    let mut stream = connected.ok()?;
    let peer = serve().unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    Some(peer)
}

#[test]
fn guests_get_addresses_names_and_the_way_out_and_nobody_gets_in() {
    require("busybox", "busybox-static");
    let host = Host::new(&format!("{DEFAULT}{LAB}"));
    let internet = Netns::new("internet");
    host.netns.join("uplink", &internet, "eth0");
    host.netns.run("ip address add 198.51.100.2/24 dev uplink");
    internet.run("ip address add 198.51.100.1/24 dev eth0");
    // The internet knows a way to the subnet, so that only the rules keep it out.
    internet.run("ip route add 192.168.100.0/24 via 198.51.100.2");
    internet.run(
        "dnsmasq --conf-file=/dev/null --no-resolv --no-hosts --pid-file= --user=root \
         --listen-address=198.51.100.1 --bind-interfaces --address=/www.example.test/198.51.100.80",
    );
    let resolv = host.dir.path().join("resolv.conf");
    fs::write(&resolv, "nameserver 198.51.100.1\n").unwrap();
    let bind = format!(
        "mount --bind {} /etc/resolv.conf; exec \"$@\"",
        resolv.display()
    );
    host.ringtap_by(&["unshare", "-m", "sh", "-c", &bind, "sh"], &["up"])
        .succeeded();

    let web1 = guest(&host, "web1", "52:54:00:00:00:01");
    let web2 = guest(&host, "web2", "52:54:00:00:00:02");
    let offer = lease(&web1, &["mtu"]);
    for words in [
        "ip='192.168.100.10'",
        "router='192.168.100.1'",
        "dns='192.168.100.1'",
    ] {
        assert!(offer.contains(words), "no {words} in {offer}");
    }
    assert!(
        offer.contains("mtu='1400'") && offer.contains("domain='vm.internal'"),
        "{offer}"
    );
    let offer = lease(&web2, &["mtu"]);
    let own = offer
        .lines()
        .find_map(|line| line.strip_prefix("ip="))
        .unwrap()
        .trim_matches('\'');
    let own: Ipv4Addr = own.parse().unwrap();
    assert_ne!(own.to_string(), "192.168.100.10");
    let leases = host.ringtap(&["leases", "default", "--json"]).succeeded();
    let leases: serde_json::Value = serde_json::from_str(&leases).unwrap();
    let of = |name: &str| {
        let mut all = leases.as_array().unwrap().iter();
        all.find(|lease| lease["name"] == name).unwrap().clone()
    };
    assert_eq!(of("web1")["ip"], "192.168.100.10");
    assert_eq!(of("web1")["mac"], "52:54:00:00:00:01");
    assert_eq!(of("web2")["ip"], own.to_string());
    assert_eq!(of("web2")["network"], "default");
    assert!(
        of("web2")["expires"].as_u64() > Some(1_700_000_000),
        "{leases}"
    );
    let printed = host.ringtap(&["leases"]).succeeded();
    assert!(
        printed.contains("192.168.100.10") && printed.contains("min left"),
        "{printed}"
    );

    let lookup = |name: &str| web1.run(&format!("busybox nslookup -type=a {name} 192.168.100.1"));
    assert!(lookup("web1.vm.internal").contains("192.168.100.10"));
    assert!(
        lookup("web2.vm.internal").contains(&own.to_string()),
        "{}",
        lookup("web2.vm.internal")
    );
    assert!(lookup("www.example.test").contains("198.51.100.80"));
    let unknown = web1.attempt("busybox nslookup -type=a nobody.vm.internal 192.168.100.1");
    assert!(
        !unknown.status.success(),
        "a name of the network's own domain never goes upstream"
    );

    // Out: as the host's address, from an unprivileged port.
    let peer = seen_by(&internet, "198.51.100.1:8080", &web1).expect("the internet is reached");
    assert_eq!(peer.ip().to_string(), "198.51.100.2");
    assert!(peer.port() >= 1024, "{peer}");
    web1.run("ping -c 1 -W 5 198.51.100.1");
    // Among guests: as themselves.
    let peer = seen_by(&web2, &format!("{own}:8080"), &web1).expect("guests reach each other");
    assert_eq!(peer.ip().to_string(), "192.168.100.10");
    // To the host: no more than what the network serves, at whichever of its addresses.
    for address in ["192.168.100.1:8080", "198.51.100.2:8080"] {
        assert_eq!(seen_by(&host.netns, address, &web1), None);
    }
    web1.run("ping -c 1 -W 5 192.168.100.1");
    // In: refused, and not for lack of a way. The host itself may.
    assert!(seen_by(&web1, "192.168.100.10:8080", &host.netns).is_some());
    assert_eq!(seen_by(&web1, "192.168.100.10:8081", &internet), None);
    let ping = internet.attempt("ping -c 1 -W 5 192.168.100.10");
    let answer = String::from_utf8_lossy(&ping.stdout).into_owned();
    assert!(
        answer.contains("From 198.51.100.2") && answer.contains("iltered"),
        "{answer}"
    );
    // A guest with an address that is not the network's gets nowhere.
    web2.run("ip address add 203.0.113.9/24 dev eth0");
    let ping = web2.attempt("ping -c 1 -W 5 -I 203.0.113.9 198.51.100.1");
    assert!(!ping.status.success());
    // Nothing listens for guests' requests outside the bridge.
    let outside = internet.attempt("busybox nslookup -type=a web1.vm.internal 198.51.100.2");
    assert!(!outside.status.success());

    // From one NAT network into another: refused by the other's rules.
    let lab = Netns::new("lab");
    host.netns.join("port-lab", &lab, "eth0");
    host.netns.run("ip link set port-lab master rt-lab");
    lease(&lab, &["mtu"]);
    assert!(seen_by(&internet, "198.51.100.1:8081", &lab).is_some());
    assert_eq!(seen_by(&web1, "192.168.100.10:8082", &lab), None);

    // Rules that are gone let the internet in: so those above are what keeps it out.
    host.netns.run("nft flush ruleset");
    assert!(seen_by(&web1, "192.168.100.10:8083", &internet).is_some());
    host.ringtap(&["up"]).succeeded();
    assert_eq!(seen_by(&web1, "192.168.100.10:8084", &internet), None);
    for port in ["port-web1", "port-web2", "port-lab"] {
        host.netns.run(&format!("ip link delete {port}"));
    }
    host.ringtap(&["down"]).succeeded();
}

#[test]
fn an_up_that_nobody_listens_to_is_done_all_the_same() {
    let host = Host::new(DEFAULT);
    let mut child = host
        .command(&["up"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(netns::wait(&mut child, netns::BOUND).unwrap().success());
    host.ringtap(&["status"]).succeeded();
    host.ringtap(&["down"]).succeeded();
}
