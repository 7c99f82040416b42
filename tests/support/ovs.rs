//! An Open vSwitch of a pretend host's own: its database and its daemon, in the host's namespace.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::netns::{self, Netns, bounded, require, until};

/// The bridge that the host's admin has, so that what Open vSwitch has beside bridges is there throughout.
pub const ADMINS: &str = "ovsbr0";

/// The daemons, which end with this value.
pub struct Ovs {
    netns: String,
    dir: TempDir,
    /// Where frames are moved: `system` or `netdev`.
    pub datapath: &'static str,
    pub database: Child,
    pub switch: Child,
}

impl Ovs {
    /// Starts the daemons on the host `netns`, with one bridge, [`ADMINS`].
    pub fn start(netns: &Netns, datapath: &'static str) -> Self {
        require("ovs-vswitchd", "openvswitch-switch");
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        netns::run("ovsdb-tool", &["create", &path("conf.db"), schema]);
        let start = |words: &[&str]| start(netns, dir.path(), words);
        let remote = format!("--remote=punix:{}", path("db.sock"));
        let database = start(&["ovsdb-server", &path("conf.db"), &remote]);
        until("the database", || dir.path().join("db.sock").exists());
        let words = ["ovs-vsctl", "--no-wait", "--timeout=10", "init"];
        netns::wait(&mut start(&words), netns::BOUND).unwrap();
        let remote = format!("unix:{}", path("db.sock"));
        let pid_file = format!("--pidfile={}", path("ovs-vswitchd.pid"));
        let switch = start(&["ovs-vswitchd", &remote, &pid_file]);
        let this = Self {
            netns: netns.name().to_owned(),
            dir,
            datapath,
            database,
            switch,
        };
        until("the daemon", || {
            this.dir.path().join("ovs-vswitchd.pid").exists()
        });
        this.run(&format!(
            "ovs-vsctl --timeout=30 add-br {ADMINS} -- set Bridge {ADMINS} datapath_type={datapath}"
        ));
        this
    }

    /// The variable by which programs find it.
    pub fn variable(&self) -> String {
        format!("OVS_RUNDIR={}", self.dir.path().display())
    }

    pub fn set(&self, command: &mut Command) {
        command.env("OVS_RUNDIR", self.dir.path());
    }

    /// Runs `line`, one of Open vSwitch's programs, which must succeed.
    pub fn run(&self, line: &str) -> String {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns]);
        command.args(line.split_whitespace());
        self.set(&mut command);
        let output = bounded(&mut command, "");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`{line}`: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// All that somebody may have set, in an order that is always the same.
    pub fn snapshot(&self) -> String {
        let tables = [
            "show",
            "--columns=name,datapath_type,external_ids,other_config,fail_mode list Bridge",
            "--columns=name,tag,trunks,vlan_mode,protected,external_ids list Port",
            "--columns=name,type,mtu_request,external_ids list Interface",
        ];
        let text = tables.map(|table| self.run(&format!("ovs-vsctl --timeout=10 {table}")));
        let mut blocks: Vec<String> = text.join("\n").split("\n\n").map(str::to_owned).collect();
        let show = &mut blocks[0];
        let mut lines: Vec<&str> = show.lines().collect();
        lines.sort_unstable();
        *show = lines.join("\n");
        blocks.sort_unstable();
        blocks.join("\n\n")
    }

    /// What the daemons have said.
    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

fn start(netns: &Netns, dir: &Path, words: &[&str]) -> Child {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"));
    let mut command = netns.command(words[0]);
    command.args(&words[1..]).env("OVS_RUNDIR", dir);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(log.unwrap()).spawn().unwrap()
}

impl Drop for Ovs {
    fn drop(&mut self) {
        for child in [&mut self.switch, &mut self.database] {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            eprintln!("Open vSwitch's log:\n{}", last.join("\n"));
        }
    }
}
