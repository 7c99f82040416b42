//! Live migration between two QEMU processes, each with a backend of its own on one bridge: a TCP stream goes on,
//! and a migration cancelled half way is as if it had never been.

mod support;

use serde_json::{Value, json};
use support::bytes::sha256;
use support::console::Console;
use support::lab::{Lab, Qemu, WWW};
use support::machine::{MAC, Machine, Qmp};
use support::netns::{BOUND, bounded, until};
use support::web::WebServer;

/// Waits until the migration is in a state that `done` knows.
fn migration(qmp: &mut Qmp, done: impl Fn(&Value) -> bool) {
    until("the migration", || {
        let state = qmp.run("query-migrate", json!({}));
        let failed = state["status"] == "failed";
        assert!(!failed, "{state}");
        done(&state)
    });
}

/// A network, a stand-in internet with a blob, and a machine that fetches it.
struct World {
    lab: Lab,
    web: WebServer,
    sum: String,
}

impl World {
    fn new(qemu: Qemu) -> Self {
        let lab = Lab::with_qemu(qemu);
        lab.configure("");
        assert!(bounded(&mut lab.ringtap("up"), "").status.success());
        let web = WebServer::start(&lab.internet);
        let blob: Vec<u8> = (0..256 << 20)
            .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 11) as u8)
            .collect();
        let sum = sha256(&blob);
        web.put("blob", blob);
        Self { lab, web, sum }
    }

    fn moved(&self) -> usize {
        let bytes = self
            .lab
            .host
            .run("cat /sys/class/net/up0/statistics/rx_bytes");
        bytes.trim().parse().unwrap()
    }

    /// Lets the machine fetch the blob, and waits until it is well under way.
    fn fetch(&self, machine: &mut Machine) {
        let start = self.moved();
        machine
            .console
            .begin(&format!("wget -q -O - http://{WWW}/blob | sha256sum"));
        until("some of the transfer", || self.moved() > start + (16 << 20));
    }

    fn expect_blob(&self, console: &mut Console) {
        let (code, got) = console.finish(BOUND);
        assert_eq!((code, &got[..64]), (0, &self.sum[..]));
        assert_eq!(self.web.gets(), 1, "the same connection all the way");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = bounded(&mut self.lab.ringtap("down"), "");
    }
}

#[test]
fn a_tcp_stream_survives_a_live_migration() {
    migrated(Qemu::Own);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn a_tcp_stream_survives_a_live_migration_under_qemu_10() {
    migrated(Qemu::Ten);
}

fn migrated(qemu: Qemu) {
    let world = World::new(qemu);
    let mut source = Machine::bridged(&world.lab, "m0", false);
    let mut target = Machine::bridged(&world.lab, "m1", true);
    let socket = format!("unix:{}", world.lab.dir.path().join("migration").display());
    target.qmp.run("migrate-incoming", json!({ "uri": socket }));
    world.fetch(&mut source);
    source.qmp.run(
        "migrate-set-parameters",
        json!({ "max-bandwidth": 1 << 30, "downtime-limit": 1000 }),
    );
    source.qmp.run("migrate", json!({ "uri": socket }));
    migration(&mut source.qmp, |state| state["status"] == "completed");
    until("the switch to know the new port", || {
        world
            .lab
            .host
            .run("bridge fdb show br rt-default")
            .contains(&format!("{MAC} dev m1"))
    });
    target.console.go_on_from(&mut source.console);
    world.expect_blob(&mut target.console);
    target.console.run(&format!("ping -c 2 {WWW}"));
}

#[test]
fn a_cancelled_migration_leaves_the_guest_where_it_is() {
    cancelled(Qemu::Own);
}

#[test]
#[ignore = "in full runs: scripts/test --full"]
fn a_cancelled_migration_leaves_the_guest_where_it_is_under_qemu_10() {
    cancelled(Qemu::Ten);
}

fn cancelled(qemu: Qemu) {
    let world = World::new(qemu);
    let mut source = Machine::bridged(&world.lab, "m0", false);
    let mut target = Machine::bridged(&world.lab, "m1", true);
    let socket = format!("unix:{}", world.lab.dir.path().join("migration").display());
    target.qmp.run("migrate-incoming", json!({ "uri": socket }));
    world.fetch(&mut source);
    source.qmp.run(
        "migrate-set-parameters",
        json!({ "max-bandwidth": 4 << 20 }),
    );
    source.qmp.run("migrate", json!({ "uri": socket }));
    migration(&mut source.qmp, |state| {
        state["ram"]["transferred"].as_u64() > Some(4 << 20)
    });
    source.qmp.run("migrate_cancel", json!({}));
    migration(&mut source.qmp, |state| state["status"] == "cancelled");
    world.expect_blob(&mut source.console);
    source.console.run(&format!("ping -c 2 {WWW}"));
}
