//! `ringtap run` where it can't: one clear error, the right exit code, and nothing half made.

mod support;

use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::console::Console;
use support::host::said;
use support::lab::{Lab, tiny_guest};
use support::netns::{bounded, difference, until};
use support::terminal::Person;

/// Runs `ringtap run web1` with this file, which must fail and change nothing; returns what it said.
fn refusal(lab: &Lab, code: i32, change: impl FnOnce(&mut Command)) -> String {
    let before = lab.host.snapshot();
    let mut command = lab.ringtap("run web1");
    change(&mut command);
    let output = bounded(&mut command, "");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(difference(&before, &lab.host.snapshot()), "", "{said}");
    assert!(!lab.run_dir().exists());
    assert!(lab.host.pids().is_empty());
    said
}

fn guest(more: &str) -> String {
    format!(
        "[guests.web1]\ncpus = 1\nmemory = \"256M\"\nnics = [{{ network = \"default\" }}]\n{more}\n"
    )
}

#[test]
fn an_unknown_guest_is_named_with_the_nearest() {
    let lab = Lab::new();
    lab.configure(&guest("").replace("web1", "web2"));
    let said = refusal(&lab, 2, |_| {});
    assert!(said.contains("web1") && said.contains("web2"), "{said}");
}

#[test]
fn a_kernel_that_is_not_there_is_named() {
    let lab = Lab::new();
    lab.configure(&guest("kernel = \"/nowhere/vmlinuz\""));
    let said = refusal(&lab, 1, |_| {});
    assert!(
        said.contains("kernel /nowhere/vmlinuz can't be read"),
        "{said}"
    );
}

#[test]
fn kvm_is_refused_where_it_would_hang() {
    let lab = Lab::new();
    lab.configure(&guest("accel = \"kvm\""));
    // On a host whose KVM works this guest would start: hide the device there.
    let said = refusal(&lab, 1, |command| {
        *command = hidden(&lab, "/dev/kvm");
    });
    assert!(said.contains("accel = \"tcg\""), "{said}");
}

#[test]
fn a_missing_qemu_is_named_with_its_package() {
    let lab = Lab::new();
    lab.configure(&guest(""));
    let said = refusal(&lab, 1, |command| {
        *command = hidden(&lab, "/usr/bin/qemu-system-x86_64");
    });
    assert!(
        said.contains("install the package qemu-system-x86"),
        "{said}"
    );
}

#[test]
fn a_host_without_tun_is_told_and_its_network_goes_again() {
    let lab = Lab::new();
    lab.configure(&guest(""));
    let said = refusal(&lab, 1, |command| {
        *command = hidden(&lab, "/dev/net/tun");
    });
    assert!(
        said.contains("NIC 0") && said.contains("modprobe tun"),
        "{said}"
    );
}

/// Its log stays, for a person to look at, until that person has done so.
#[test]
fn what_qemu_refuses_reaches_the_person_and_all_but_its_log_goes_again() {
    let lab = Lab::new();
    lab.configure(&guest("qemu-args = [\"-nonsense\"]"));
    let before = lab.host.snapshot();
    let log = lab.run_dir().join("guests/web1/qemu.log");
    let said = bounded(&mut lab.ringtap("run web1"), "");
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    let line = format!(
        "-nonsense: invalid option (exit status: 1); its log is {}",
        log.display()
    );
    assert!(said.contains(&line), "{said}");
    assert_eq!(difference(&before, &lab.host.snapshot()), "", "{said}");
    assert!(log.exists());
    assert!(bounded(&mut lab.ringtap("rm web1"), "").status.success());
    assert!(!lab.run_dir().exists());
}

fn with_disk(disk: &str) -> String {
    guest(&format!("disks = [{disk}]"))
}

fn qemu_img(words: &[&str]) {
    let output = bounded(Command::new("qemu-img").args(words), "");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn an_image_that_is_not_there_is_named_and_what_would_make_it() {
    let lab = Lab::new();
    let path = lab.dir.path().join("disk.qcow2");
    lab.configure(&with_disk(&format!("{path:?}")));
    let said = refusal(&lab, 1, |_| {});
    assert!(said.contains("disk.qcow2 does not exist"), "{said}");
    assert!(said.contains("give it a base or a size"), "{said}");

    lab.configure(&with_disk(&format!(
        "{{ path = {path:?}, base = \"/nowhere/debian.qcow2\" }}"
    )));
    let said = refusal(&lab, 1, |_| {});
    assert!(
        said.contains("base /nowhere/debian.qcow2 can't be read"),
        "{said}"
    );

    lab.configure(&with_disk(
        "{ path = \"/nowhere/web1.qcow2\", size = \"1G\" }",
    ));
    let said = refusal(&lab, 1, |_| {});
    assert!(said.contains("there is no directory /nowhere"), "{said}");
}

#[test]
fn an_image_of_another_format_is_refused_with_the_reason() {
    let lab = Lab::new();
    let path = lab.dir.path().join("disk.qcow2");
    std::fs::write(&path, "not an image").unwrap();
    lab.configure(&with_disk(&format!("{path:?}")));
    let said = refusal(&lab, 1, |_| {});
    assert!(said.contains("is no sound qcow2 image"), "{said}");
    assert!(said.contains("not in qcow2 format"), "{said}");
}

/// What a guest has written to a disk of its own is never taken for an image: it could name any file of the host's as what
/// it is an overlay over.
#[test]
fn a_raw_disk_with_an_image_in_it_stays_raw() {
    let lab = Lab::new();
    let secret = lab.dir.path().join("secret.img");
    std::fs::write(&secret, vec![b'x'; 1 << 20]).unwrap();
    let path = lab.dir.path().join("disk.img");
    let [secret, disk] = [&secret, &path].map(|path| path.to_str().unwrap());
    qemu_img(&[
        "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", disk,
    ]);
    let [kernel, initrd, append] = tiny_guest();
    lab.configure(&with_disk(&format!("{disk:?}")).replace(
        "cpus = 1",
        &format!("cpus = 1\nkernel = {kernel:?}\ninitrd = {initrd:?}\nappend = {append:?}"),
    ));
    let mut guest = Console::boot(&mut lab.ringtap("run web1"));
    assert!(guest.run("head -c 3 /dev/vda").contains("QFI"));
    assert!(guest.power_off().success());
}

#[test]
fn an_image_in_use_is_refused() {
    let lab = Lab::new();
    let path = lab.dir.path().join("disk.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "16M"]);
    let disk = with_disk(&format!("{path:?}"));
    let two = disk.replace("[guests.web1]", "[guests.web2]");
    lab.configure(&format!("{disk}{two}"));
    let other = bounded(&mut lab.ringtap("start web2"), "");
    assert!(other.status.success(), "{other:?}");
    let said = bounded(&mut lab.ringtap("run web1"), "");
    assert_eq!(said.status.code(), Some(1));
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(
        said.contains("disk.qcow2 is in use by another process"),
        "{said}"
    );
    assert!(
        bounded(&mut lab.ringtap("stop web2 --timeout 0"), "")
            .status
            .success()
    );
    assert!(!lab.run_dir().exists());
}

/// An overlay is made whole or not at all, and never again.
#[test]
fn an_overlay_is_made_once_over_its_base_alone() {
    let lab = Lab::new();
    let file = |name: &str| lab.dir.path().join(name);
    let [base, other, full] = ["base.qcow2", "other.qcow2", "full"].map(file);
    for base in [&base, &other] {
        qemu_img(&["create", "-q", "-f", "qcow2", base.to_str().unwrap(), "16M"]);
    }
    // No room: a file system of a few pages.
    std::fs::create_dir(&full).unwrap();
    let overlay = full.join("web1.qcow2");
    let disk = |base: &Path| {
        with_disk(&format!(
            "{{ path = {overlay:?}, base = {base:?}, size = \"32M\" }}"
        ))
    };
    lab.configure(&disk(&base));
    let said = refusal(&lab, 1, |command| {
        let words: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let mut covered = lab.host.command("sh");
        let script = format!(
            "mount -t tmpfs -o size=64k tmpfs {} && exec \"$@\"",
            full.display()
        );
        covered.args(["-c", &script, "sh"]);
        covered.args(words.into_iter().skip_while(|word| word != "sh"));
        *command = covered;
    });
    assert!(said.contains("its file system is full"), "{said}");

    let start = || {
        assert!(bounded(&mut lab.ringtap("start web1"), "").status.success());
        assert!(
            bounded(&mut lab.ringtap("stop web1 --timeout 0"), "")
                .status
                .success()
        );
    };
    start();
    let made = std::fs::metadata(&overlay).unwrap();
    assert_eq!(std::fs::read_dir(&full).unwrap().count(), 1);
    start();
    assert_eq!(std::fs::metadata(&overlay).unwrap().ino(), made.ino());
    lab.configure(&disk(&other));
    let said = refusal(&lab, 1, |_| {});
    assert!(said.contains("base.qcow2, not over"), "{said}");
}

#[test]
fn memory_that_the_host_lacks_is_refused() {
    let lab = Lab::new();
    lab.configure(&guest("").replace("256M", "1000G"));
    let said = refusal(&lab, 1, |_| {});
    assert!(
        said.contains("1024000M") && said.contains("has to spare"),
        "{said}"
    );
    lab.configure(&guest("hugepages = true"));
    let said = refusal(&lab, 1, |_| {});
    assert!(said.contains("vm.nr_hugepages="), "{said}");
}

#[test]
fn what_the_file_says_wrong_is_told_before_anything_is_touched() {
    let lab = Lab::new();
    for (wrong, expected) in [
        ("nics = [{ network = \"defalt\" }]", "did you mean"),
        (
            "nics = [{ network = \"default\", ip = \"192.168.101.10\" }]",
            "192.168.101.10",
        ),
        (
            "nics = [{ network = \"default\", mac = \"52:54:00:00:00:01\" }, { network = \"default\", mac = \"52:54:00:00:00:01\" }]",
            "is already the MAC address of",
        ),
        ("vnc = \"0.0.0.0:5900\"", "everybody"),
        ("restart = \"allways\"", "always"),
        ("disks = [{ base = \"/srv/debian.qcow2\" }]", "path"),
    ] {
        let usual = "nics = [{ network = \"default\" }]";
        let text = match wrong.starts_with("nics") {
            true => guest("").replace(usual, wrong),
            false => guest(wrong),
        };
        lab.configure(&text);
        let said = refusal(&lab, 2, |_| {});
        assert!(said.contains(expected), "{wrong}:\n{said}");
    }
    let forwards = "forwards = [\"tcp:2222 -> web1:22\", \"tcp:2222 -> web1:23\"]\n";
    let web1 = guest("").replace("\"default\" }", "\"default\", ip = \"192.168.100.10\" }");
    lab.configure(&format!("{forwards}{web1}"));
    let said = refusal(&lab, 2, |_| {});
    assert!(said.contains("takes a port that"), "{said}");
}

#[test]
fn a_port_that_a_program_has_is_not_forwarded_away_from_it() {
    let lab = Lab::new();
    let web1 = guest("").replace("\"default\" }", "\"default\", ip = \"192.168.100.10\" }");
    lab.configure(&format!("forwards = [\"tcp:2222 -> web1:22\"]\n{web1}"));
    let listener = lab.host.within(|| TcpListener::bind("0.0.0.0:2222"));
    let _listener = listener.unwrap();
    let said = refusal(&lab, 1, |_| {});
    assert!(
        said.contains("listens on tcp port 2222") && said.contains("choose another port"),
        "{said}"
    );
}

/// `ringtap run web1` where `path` is not there: covered up in the mount namespace of the command.
fn hidden(lab: &Lab, path: &str) -> Command {
    let ringtap = lab.ringtap("run web1");
    let words: Vec<_> = ringtap.get_args().collect();
    let mut command = lab.host.command("sh");
    let dir = std::path::Path::new(path).parent().unwrap().display();
    // The directory without that one file: links to all others, over a bind mount of the real one.
    let script = format!(
        "mkdir -p {0}/hide/real {0}/hide/shown && mount --bind {dir} {0}/hide/real && \
         for f in {0}/hide/real/*; do [ \"${{f##*/}}\" = \"${{0##*/}}\" ] || \
           ln -s \"$f\" {0}/hide/shown/; done; mount --bind {0}/hide/shown {dir} && exec \"$@\"",
        lab.dir.path().display()
    );
    command.args(["-c", &script, path]);
    command.args(words.into_iter().skip_while(|word| *word != "sh"));
    command
}

/// The firmware of a machine with an empty disk asks the network for something to boot, and so has an address.
#[test]
fn a_disk_alone_makes_a_guest() {
    let lab = Lab::new();
    assert!(!Path::new("/etc/ringtap.toml").exists());
    let before = lab.host.snapshot();
    let path = lab.dir.path().join("Old disk.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "16M"]);
    let mut run = lab.ringtap_without_file("run --memory 128M --cpus 2 --network default");
    run.arg("--disk").arg(&path);
    let mut person = Person::start(run);
    until("a guest that has an address", || {
        let said = said(&mut lab.ringtap_without_file("list --json")).succeeded();
        let guests: Value = serde_json::from_str(&said).unwrap();
        let nic = &guests[0]["nics"][0];
        let address = nic["addresses"][0].as_str().unwrap_or_default();
        guests[0]["name"] == "old-disk"
            && guests[0]["state"] == "running"
            && nic["network"] == "default"
            && nic["queue_pairs"] == 2
            && address.starts_with("192.168.100.")
    });
    // What the file does not have can't be started again, and is not stopped for that.
    said(&mut lab.ringtap_without_file("restart old-disk"))
        .failed(2, &["/etc/ringtap.toml", "cannot read the file"]);
    person.types("\x1d");
    person.wait_for("guest old-disk runs on");
    assert!(person.ends().success());
    said(&mut lab.ringtap_without_file("stop old-disk --timeout 0")).succeeded();
    assert_eq!(difference(&before, &lab.host.snapshot()), "");
    assert!(!lab.run_dir().exists());
}

#[test]
fn a_given_guest_is_refused_where_the_file_does_not_suit_it() {
    let lab = Lab::new();
    lab.configure(&guest(""));
    let run = |words: &str| said(&mut lab.ringtap(words));
    run("run web1 --disk x.qcow2").failed(2, &["guest `web1` in it already"]);
    run("run --disk x.qcow2 --network defualt").failed(2, &["did you mean `default`?"]);
    run("run web2 --network default").failed(2, &["--disk"]);
    run("run --disk nowhere.qcow2").failed(1, &["nowhere.qcow2 does not exist"]);
    assert!(!lab.run_dir().exists());
}
