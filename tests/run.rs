//! `ringtap run` where it can't: one clear error, the right exit code, and nothing half made.

mod support;

use std::process::Command;

use support::lab::Lab;
use support::netns::{bounded, difference};

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

#[test]
fn what_qemu_refuses_reaches_the_person_and_everything_goes_again() {
    let lab = Lab::new();
    lab.configure(&guest("qemu-args = [\"-nonsense\"]"));
    let said = refusal(&lab, 1, |_| {});
    assert!(said.contains("-nonsense: invalid option"), "{said}");
    assert!(said.contains("QEMU ended with"), "{said}");
}

#[test]
fn a_disk_that_is_no_image_ends_with_qemus_reason() {
    let lab = Lab::new();
    let disk = lab.dir.path().join("disk.qcow2");
    std::fs::write(&disk, "not an image").unwrap();
    lab.configure(&guest(&format!("disks = [{disk:?}]")));
    let said = refusal(&lab, 1, |_| {});
    assert!(said.contains("not in qcow2 format"), "{said}");
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
