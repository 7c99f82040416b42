//! A pretend host that runs ringtap, and a pretend internet behind its uplink.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::netns::{self, Netns, require};

/// The stand-in internet's address and name.
pub const INTERNET: &str = "198.51.100.1";
pub const WWW: &str = "www.example.test";

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs a recipe, which does nothing where its product is there; unless that was done outside of this machine, where
/// packages can be had.
fn make(recipe: &str) {
    if super::kernel::is_test_host() {
        return;
    }
    netns::run(Path::new(ROOT).join(recipe).to_str().unwrap(), &[]);
}

/// The tiny guest's kernel, initramfs and command line, made if need be.
pub fn tiny_guest() -> [String; 3] {
    make("guests/tiny/build");
    let made = Path::new(ROOT).join("target/guests/tiny");
    let append = fs::read_to_string(made.join("append")).unwrap();
    let path = |name: &str| made.join(name).to_str().unwrap().to_owned();
    [path("vmlinuz"), path("initrd"), append.trim().to_owned()]
}

/// The lines of a file that describe a tiny guest, 192.168.100.`host`.
pub fn tiny(name: &str, host: u8, qemu_args: &[&str]) -> String {
    let [kernel, initrd, append] = tiny_guest();
    let qemu_args: Vec<_> = ["-no-reboot"].iter().chain(qemu_args).collect();
    format!(
        "[guests.{name}]\ncpus = 1\nmemory = \"256M\"\nkernel = {kernel:?}\ninitrd = {initrd:?}\n\
         append = {append:?}\nqemu-args = {qemu_args:?}\n\
         nics = [{{ network = \"default\", ip = \"192.168.100.{host}\" }}]\n"
    )
}

/// The disk of the Debian guest, made if need be: a base for others.
pub fn debian_guest() -> PathBuf {
    make("guests/debian/build");
    Path::new(ROOT).join("target/guests/debian/debian.qcow2")
}

/// Which QEMU the guests run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qemu {
    /// The distribution's.
    Own,
    /// 10 or newer, made aside where the distribution's is older.
    Ten,
}

/// Host and internet, joined by a veth pair, with a web and DNS server behind it. All of it goes with this value.
pub struct Lab {
    pub host: Netns,
    pub internet: Netns,
    pub dir: tempfile::TempDir,
    servers: Vec<Child>,
    qemu: Qemu,
}

impl Lab {
    pub fn new() -> Self {
        Self::with_qemu(Qemu::Own)
    }

    pub fn with_qemu(qemu: Qemu) -> Self {
        if qemu == Qemu::Ten {
            make("guests/qemu10/build");
        }
        require("dnsmasq", "dnsmasq-base");
        let (host, internet) = (Netns::new("host"), Netns::new("internet"));
        host.join("up0", &internet, "up0");
        host.run("ip address add 198.51.100.2/24 dev up0");
        host.run("ip route add default via 198.51.100.1");
        internet.run(&format!("ip address add {INTERNET}/24 dev up0"));
        // dnsmasq, which is not root, reads its files below.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        let dir = tempfile::Builder::new()
            .permissions(open)
            .tempdir()
            .unwrap();
        fs::write(
            dir.path().join("resolv.conf"),
            format!("nameserver {INTERNET}\n"),
        )
        .unwrap();
        fs::create_dir(dir.path().join("qemu10")).unwrap();
        fs::create_dir_all(Path::new(ROOT).join("target/qemu10")).unwrap();
        // Addresses that are being checked for duplicates would change a snapshot by themselves.
        host.settle();
        let mut lab = Self {
            host,
            internet,
            dir,
            servers: Vec::new(),
            qemu,
        };
        lab.serve(
            "dnsmasq",
            &[
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--pid-file=",
                "--user=root",
                "--bind-interfaces",
                "--interface=up0",
                "--local=/example.test/",
                &format!("--host-record={WWW},{INTERNET}"),
            ],
        );
        lab
    }

    /// Starts a server on the internet; it ends with the lab.
    pub fn serve(&mut self, program: &str, args: &[&str]) {
        let mut command = self.internet.command(program);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.servers.push(command.spawn().unwrap());
    }

    /// Lets the internet lease addresses, 198.51.100.100 to .199, to whoever is on its link.
    pub fn serve_leases(&mut self) {
        let leases = format!(
            "--dhcp-leasefile={}",
            self.dir.path().join("leases").display()
        );
        self.serve(
            "dnsmasq",
            &[
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--pid-file=",
                "--user=root",
                "--port=0", // another one answers questions about names
                "--interface=up0",
                "--bind-interfaces",
                "--no-ping",
                "--dhcp-authoritative",
                "--dhcp-range=198.51.100.100,198.51.100.199,1h",
                &format!("--dhcp-option=option:dns-server,{INTERNET}"),
                &leases,
            ],
        );
    }

    /// Waits until something listens on the internet's TCP `port`.
    pub fn internet_listens(&self, port: u16) {
        netns::until("a server listens", || {
            let sockets = self.internet.run("ss -Htln");
            sockets.contains(&format!(":{port} "))
        });
    }

    /// Writes the host's file, with a NAT network `default` and these lines after it.
    pub fn configure(&self, more: &str) -> PathBuf {
        let path = self.dir.path().join("ringtap.toml");
        let network = "[networks.default]\nmode = \"nat\"\nsubnet = \"192.168.100.0/24\"\n";
        fs::write(&path, format!("{network}{more}")).unwrap();
        path
    }

    /// A file with one tiny guest `web1`, 192.168.100.10.
    pub fn configure_guest(&self, more: &str) {
        let guest = tiny("web1", 10, &[]);
        self.configure(&format!("{guest}{more}"));
    }

    /// The major version of the QEMU that runs; there must be one.
    pub fn running_qemu(&self) -> u32 {
        let pids = self.pids(&["memory-backend-memfd"]);
        let mut command = Command::new(format!("/proc/{}/exe", pids[0]));
        let output = netns::bounded(command.arg("--version"), "");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = said.split("version ").nth(1).expect(&said);
        version.split('.').next().unwrap().parse().expect(&said)
    }

    /// The log of the backend of a guest's first NIC, which `ringtap run` keeps while the guest runs.
    pub fn backend_log(&self, guest: &str) -> String {
        let log = self.run_dir().join(format!("guests/{guest}/nic0.log"));
        fs::read_to_string(log).unwrap()
    }

    /// Each set of features that a front-end of that NIC accepted.
    pub fn accepted(&self, guest: &str) -> Vec<u64> {
        let log = self.backend_log(guest);
        let lines = log.lines();
        let words = lines.filter_map(|line| line.split("features 0x").nth(1));
        words
            .map(|word| u64::from_str_radix(word.trim(), 16).expect(word))
            .collect()
    }

    /// The QEMU that the guests run in, on the host.
    pub fn qemu_command(&self) -> Command {
        let mut command = self.host.command("qemu-system-x86_64");
        self.choose_qemu(&mut command, &Path::new(ROOT).join("target"));
        command
    }

    /// Lets `command` find the QEMU that the guests are to run in, in `beneath`, before any other.
    fn choose_qemu(&self, command: &mut Command, beneath: &Path) {
        if self.qemu == Qemu::Ten {
            let path = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}/qemu10:{path}", beneath.display()));
        }
    }

    /// `ringtap` with `words`, on the host, with the host's resolv.conf, file and run directory.
    pub fn ringtap(&self, words: &str) -> Command {
        let mut command = self.ringtap_without_file(words);
        command
            .arg("--config")
            .arg(self.dir.path().join("ringtap.toml"));
        command
    }

    /// As [`Lab::ringtap`], without a word of a file.
    pub fn ringtap_without_file(&self, words: &str) -> Command {
        let mut command = self.host.command("sh");
        let dir = self.dir.path();
        // In the mount namespace that `ip netns exec` has just made. A QEMU that is not root can't get at what lies in
        // somebody's home.
        let script = format!(
            "mount --bind {dir}/resolv.conf /etc/resolv.conf && mount --bind {ROOT}/target/qemu10 {dir}/qemu10 && exec \"$@\"",
            dir = dir.display()
        );
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_ringtap")]);
        command.args(words.split_whitespace());
        self.choose_qemu(&mut command, dir);
        command.env("RINGTAP_LOG", "info"); // backends inherit it
        command.arg("--run-dir").arg(self.run_dir());
        command
    }

    /// As [`Lab::ringtap`], in the mount namespace of the test, with the machine's own resolv.conf and QEMU: what a ringtap
    /// mounts, such as a tenant's namespace, outlives it then as it does elsewhere.
    pub fn ringtap_that_mounts(&self, words: &str) -> Command {
        let program = env!("CARGO_BIN_EXE_ringtap");
        let mut command = self.host.command_that_mounts(program);
        command.args(words.split_whitespace());
        command
            .arg("--config")
            .arg(self.dir.path().join("ringtap.toml"));
        command.arg("--run-dir").arg(self.run_dir());
        command
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The pids of processes on the host whose command line has all of `words`.
    pub fn pids(&self, words: &[&str]) -> Vec<i32> {
        let matches = |pid: &i32| {
            let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
            words.iter().all(|word| cmdline.contains(word))
        };
        self.host.pids().into_iter().filter(matches).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
