//! Live migration between two QEMU processes, each with a backend of its own on one bridge: a TCP stream goes on,
//! and a migration cancelled half way is as if it had never been.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::bytes::sha256;
use support::console::Console;
use support::lab::{Lab, WWW, tiny_guest};
use support::netns::{bounded, until};
use support::web::WebServer;

const TRANSFER: Duration = Duration::from_secs(120);
const MAC: &str = "52:54:00:4d:49:47";

/// QEMU's monitor.
struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn connect(path: &PathBuf) -> Self {
        let mut stream = None;
        until("QEMU's monitor", || {
            stream = UnixStream::connect(path).ok();
            stream.is_some()
        });
        let stream = stream.unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut qmp = Self(BufReader::new(stream));
        qmp.line(); // the greeting
        qmp.run("qmp_capabilities", json!({}));
        qmp
    }

    fn run(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.0.get_mut(), "{request}").unwrap();
        loop {
            let answer = self.line();
            if answer.get("event").is_none() {
                assert!(answer.get("error").is_none(), "{command}: {answer}");
                return answer["return"].clone();
            }
        }
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("QEMU's monitor");
        serde_json::from_str(&line).expect(&line)
    }

    /// Waits until the migration is in a state that `done` knows.
    fn migration(&mut self, done: impl Fn(&Value) -> bool) -> Value {
        let mut state = Value::Null;
        until("the migration", || {
            state = self.run("query-migrate", json!({}));
            let failed = state["status"] == "failed";
            assert!(!failed, "{state}");
            done(&state)
        });
        state
    }
}

/// A QEMU process with a backend on the tap `name`.
struct Machine {
    console: Console,
    qmp: Qmp,
    backend: Child,
}

impl Machine {
    fn start(lab: &Lab, name: &str, incoming: bool) -> Self {
        let host = &lab.host;
        host.run(&format!(
            "ip tuntap add dev {name} mode tap multi_queue vnet_hdr"
        ));
        host.run(&format!("ip link set {name} master rt-default"));
        host.run(&format!("ip link set {name} up"));
        let file = |what: &str| lab.dir.path().join(format!("{name}.{what}"));
        let (socket, monitor) = (file("sock"), file("qmp"));
        let mut backend = host.command(env!("CARGO_BIN_EXE_ringtap"));
        backend
            .args(["backend", "--tap", name, "--socket-path"])
            .arg(&socket);
        let backend = backend.stdin(Stdio::null()).spawn().unwrap();
        until("the backend's socket", || socket.exists());

        let [kernel, initrd, append] = tiny_guest();
        let mut qemu = host.command("qemu-system-x86_64");
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-accel",
            "tcg",
            "-m",
            "256M",
        ]);
        qemu.args(["-machine", "q35,memory-backend=memory"]);
        qemu.args([
            "-object",
            "memory-backend-memfd,id=memory,size=256M,share=on",
        ]);
        qemu.args(["-kernel", &kernel, "-initrd", &initrd, "-append", &append]);
        qemu.arg("-chardev")
            .arg(format!("socket,id=nic,path={}", socket.display()));
        qemu.args(["-netdev", "vhost-user,id=net,chardev=nic"]);
        qemu.args([
            "-device",
            &format!("virtio-net-pci,netdev=net,mac={MAC},vectors=0,romfile="),
        ]);
        qemu.arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()));
        qemu.args(["-display", "none", "-serial", "stdio", "-no-reboot"]);
        if incoming {
            qemu.args(["-incoming", "defer"]);
        }
        let console = if incoming {
            Console::start(&mut qemu)
        } else {
            Console::boot(&mut qemu)
        };
        let qmp = Qmp::connect(&monitor);
        Self {
            console,
            qmp,
            backend,
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.backend.kill();
        let _ = self.backend.wait();
    }
}

/// A network, a stand-in internet with a blob, and a machine that fetches it.
struct World {
    lab: Lab,
    web: WebServer,
    sum: String,
}

impl World {
    fn new() -> Self {
        let lab = Lab::new();
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
        let (code, got) = console.finish(TRANSFER);
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
    let world = World::new();
    let mut source = Machine::start(&world.lab, "m0", false);
    let mut target = Machine::start(&world.lab, "m1", true);
    let socket = format!("unix:{}", world.lab.dir.path().join("migration").display());
    target.qmp.run("migrate-incoming", json!({ "uri": socket }));
    world.fetch(&mut source);
    source.qmp.run(
        "migrate-set-parameters",
        json!({ "max-bandwidth": 1 << 30, "downtime-limit": 1000 }),
    );
    source.qmp.run("migrate", json!({ "uri": socket }));
    source.qmp.migration(|state| state["status"] == "completed");
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
    let world = World::new();
    let mut source = Machine::start(&world.lab, "m0", false);
    let mut target = Machine::start(&world.lab, "m1", true);
    let socket = format!("unix:{}", world.lab.dir.path().join("migration").display());
    target.qmp.run("migrate-incoming", json!({ "uri": socket }));
    world.fetch(&mut source);
    source.qmp.run(
        "migrate-set-parameters",
        json!({ "max-bandwidth": 4 << 20 }),
    );
    source.qmp.run("migrate", json!({ "uri": socket }));
    source
        .qmp
        .migration(|state| state["ram"]["transferred"].as_u64() > Some(4 << 20));
    source.qmp.run("migrate_cancel", json!({}));
    source.qmp.migration(|state| state["status"] == "cancelled");
    world.expect_blob(&mut source.console);
    source.console.run(&format!("ping -c 2 {WWW}"));
}
