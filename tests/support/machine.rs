//! QEMU processes started by hand, each with a backend of its own: what `ringtap run` would not do.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::console::Console;
use super::kernel::Feature;
use super::lab::{Lab, tiny_guest};
use super::netns::until;

/// QEMU's monitor.
pub struct Qmp(BufReader<UnixStream>);

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

    pub fn run(&mut self, command: &str, arguments: Value) -> Value {
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
}

/// What a machine's NIC is, and whether it waits for another's state.
pub struct Wish<'a> {
    /// Names the machine's files.
    pub name: &'a str,
    /// The backend's options but for its socket, words between spaces.
    pub backend: &'a str,
    pub mac: &'a str,
    pub incoming: bool,
}

/// A QEMU process with the tiny guest, and its NIC's backend. Fields drop in order: the guest ends first.
pub struct Machine {
    pub console: Console,
    pub qmp: Qmp,
    _backend: Backend,
}

struct Backend {
    child: Child,
    log: PathBuf,
}

/// The address of a machine on the network's bridge.
pub const MAC: &str = "52:54:00:4d:49:47";

impl Machine {
    /// A machine whose backend is on the tap `name`, on the bridge of the network `default`.
    pub fn bridged(lab: &Lab, name: &str, incoming: bool) -> Self {
        let host = &lab.host;
        host.run(&format!(
            "ip tuntap add dev {name} mode tap multi_queue vnet_hdr"
        ));
        host.run(&format!("ip link set {name} master rt-default"));
        host.run(&format!("ip link set {name} up"));
        let wish = Wish {
            name,
            backend: &format!("--tap {name}"),
            mac: MAC,
            incoming,
        };
        Self::start(lab, &wish)
    }

    /// Starts both on the lab's host. Unless it waits for another's state, the guest has booted.
    pub fn start(lab: &Lab, wish: &Wish<'_>) -> Self {
        let host = &lab.host;
        let file = |what: &str| lab.dir.path().join(format!("{}.{what}", wish.name));
        let (socket, monitor, log) = (file("sock"), file("qmp"), file("log"));
        let mut backend = host.command(env!("CARGO_BIN_EXE_ringtap"));
        backend
            .env("RINGTAP_LOG", "info")
            .arg("backend")
            .args(wish.backend.split_whitespace())
            .arg("--socket-path")
            .arg(&socket);
        backend
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap());
        let child = backend.spawn().unwrap();
        let backend = Backend { child, log };
        until("the backend's socket", || socket.exists());

        let [kernel, initrd, append] = tiny_guest();
        let mut qemu = lab.qemu_command();
        qemu.args(["-nodefaults", "-no-user-config", "-accel"]);
        if Feature::Kvm.is_here() {
            qemu.args(["kvm", "-cpu", "host"]);
        } else {
            // With one CPU at most QEMU would not keep the order of the guest's memory accesses.
            qemu.args(["tcg", "-smp", "1,maxcpus=2"]);
        }
        qemu.args(["-m", "256M", "-machine", "q35,memory-backend=memory"]);
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
            &format!(
                "virtio-net-pci,netdev=net,mac={},vectors=0,romfile=",
                wish.mac
            ),
        ]);
        qemu.arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()));
        qemu.args(["-display", "none", "-serial", "stdio", "-no-reboot"]);
        if wish.incoming {
            qemu.args(["-incoming", "defer"]);
        }
        let console = if wish.incoming {
            Console::start(&mut qemu)
        } else {
            Console::boot(&mut qemu)
        };
        let qmp = Qmp::connect(&monitor);
        Self {
            console,
            qmp,
            _backend: backend,
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("the backend's log:\n{log}");
        }
    }
}
