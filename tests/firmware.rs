//! Firmware as front-end: drivers that are not Linux's, polled, with few buffers, without a kernel to help. Each boots
//! from the network through `ringtap run`, and the lease that dnsmasq gave shows that it got through.

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use support::console::Console;
use support::kernel::is_test_host;
use support::lab::{Lab, Qemu};
use support::netns::{require_file, until};

/// Firmware under emulation takes its time.
const BOOT: Duration = Duration::from_secs(90);

/// The test host's CPU is emulated, and QEMU's emulation of SVM comes to an end of its own (bql_locked) when a guest writes
/// CR8 while an interrupt is pending, as OVMF does all the time. There OVMF's CPU is emulated by an emulated one.
const OVMF_BOOT: Duration = Duration::from_secs(900);

/// A guest without a kernel.
fn boot(lab: &Lab, accel: &str, disks: &[&Path], qemu_args: &[&str]) -> Console {
    lab.configure(&format!(
        "[guests.pxe]\ncpus = 1\nmemory = \"256M\"\naccel = {accel:?}\ndisks = {disks:?}\nqemu-args = {qemu_args:?}\n\
         nics = [{{ network = \"default\", ip = \"192.168.100.77\" }}]\n"
    ));
    // Firmware does not hear the power button.
    Console::start(&mut lab.ringtap("run pxe --timeout 1"))
}

/// The lease of the guest's address, as dnsmasq's file has it.
fn lease(lab: &Lab) -> String {
    let file = lab.run_dir().join("networks/default/leases");
    let has = || fs::read_to_string(&file).unwrap_or_default();
    until("a lease", || has().contains(" 192.168.100.77 "));
    has()
}

#[test]
fn ipxe_boots_from_the_network() {
    ipxe(Qemu::Own);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn ipxe_boots_from_the_network_under_qemu_10() {
    ipxe(Qemu::Ten);
}

fn ipxe(qemu: Qemu) {
    let lab = Lab::with_qemu(qemu);
    // Without graphics SeaBIOS prints what is meant for a screen on the serial port.
    let mut console = boot(&lab, "auto", &[], &["-machine", "graphics=off"]);
    console.wait_for("iPXE", BOOT);
    console.wait_for("net0: 192.168.100.77/255.255.255.0 gw 192.168.100.1", BOOT);
    lease(&lab);
    println!("iPXE: {:x?}", lab.accepted("pxe"));
}

#[test]
fn ovmf_has_an_address_and_pings() {
    ovmf(Qemu::Own);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn ovmf_has_an_address_and_pings_under_qemu_10() {
    ovmf(Qemu::Ten);
}

/// OVMF takes no offer that names no file to boot, so its shell is what asks for an address. A ping shows both ways.
fn ovmf(qemu: Qemu) {
    const FIRMWARE: &str = "/usr/share/ovmf/OVMF.fd";
    const PROMPT: &str = "Shell> ";
    require_file(FIRMWARE, "ovmf");
    let lab = Lab::with_qemu(qemu);
    // An empty disk to boot from, and so no attempts at the network before the shell.
    let disk = lab.dir.path().join("empty");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let (accel, bound) = match is_test_host() {
        true => ("tcg", OVMF_BOOT),
        false => ("auto", BOOT),
    };
    let mut console = boot(
        &lab,
        accel,
        &[&disk],
        &[
            "-bios",
            FIRMWARE,
            "-global",
            "virtio-net-pci.romfile=", // the driver is OVMF's own
        ],
    );
    console.wait_for(PROMPT, bound);
    // Only what it boots from has its driver by then.
    console.ask("connect -r\r", PROMPT, bound);
    console.ask("ifconfig -s eth0 dhcp\r", PROMPT, bound);
    // The shell does not wait for it.
    let deadline = Instant::now() + bound;
    while !console
        .ask("ifconfig -l eth0\r", PROMPT, bound)
        .contains("192.168.100.77")
    {
        assert!(Instant::now() < deadline, "no lease: {}", console.text);
    }
    lease(&lab);
    let said = console.ask("ping -n 3 192.168.100.1\r", PROMPT, bound);
    assert!(said.contains("3 packets transmitted, 3 received"), "{said}");
    println!("OVMF: {:x?}", lab.accepted("pxe"));
}
