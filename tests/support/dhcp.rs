//! A machine that asks for a lease as guests do.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::netns::{Netns, require};

/// What is done with a lease: its address and its router are used, and all that the server said is told.
const USE: &str = "#!/bin/sh
[ \"$1\" = bound ] || exit 0
set -e
ip address flush dev $interface
ip address add $ip/$mask dev $interface
[ -z \"$router\" ] || ip route replace default via $router
set
";

/// Gets a lease for `machine` by its link `eth0`, asking for `options` besides (as udhcpc calls them), and uses it. Gives what
/// the server said, a line `name='value'` each.
pub fn lease(machine: &Netns, options: &[&str]) -> String {
    require("busybox", "busybox-static");
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("udhcpc.sh");
    fs::write(&script, USE).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let options: String = options.iter().map(|it| format!(" -O {it}")).collect();
    let line = "busybox udhcpc -i eth0 -n -q -f -t 20 -T 1";
    machine.run(&format!("{line}{options} -s {}", script.display()))
}
