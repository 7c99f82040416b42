//! DPDK's testpmd with its virtio-user front-end, driven as a person would: by its prompt.

use std::path::Path;
use std::time::Duration;

use super::console::Console;
use super::netns::{BOUND, Netns, require};

const PROMPT: &str = "testpmd> ";

/// A running testpmd with one port.
pub struct Testpmd(Console);

/// What a port has counted: packets and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortStats {
    pub received: (u64, u64),
    pub sent: (u64, u64),
}

impl Testpmd {
    /// Connects to the back-end at `socket` with these device arguments, and waits for the prompt.
    pub fn start(netns: &Netns, socket: &Path, device: &str, app: &[&str]) -> Self {
        require("dpdk-testpmd", "dpdk-dev");
        let vdev = format!("net_virtio_user0,path={},{device}", socket.display());
        // Its log goes to standard error, and standard output would wait in a buffer.
        let mut command = netns.command("stdbuf");
        command
            .args(["-o0", "sh", "-c", "exec \"$@\" 2>&1", "sh", "dpdk-testpmd"])
            .args(["-l", "0,1", "--main-lcore", "1", "--no-pci", "--no-huge"])
            .args(["-m", "512", "--no-shconf", "--no-telemetry"])
            .args(["--force-max-simd-bitwidth=512"])
            .args(["--log-level=pmd.net.virtio.init:info", "--vdev", &vdev])
            .args(["--", "--interactive", "--total-num-mbufs=16384"])
            .args(app);
        let mut console = Console::start(&mut command);
        console.wait_for(PROMPT, BOUND);
        Self(console)
    }

    /// All that it has printed.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// Types `line` and returns what it prints.
    pub fn run(&mut self, line: &str) -> String {
        let said = self.0.ask(line, PROMPT, BOUND);
        assert!(!said.contains("Bad arguments"), "{said}");
        assert!(!said.contains("Command not found"), "{said}");
        said
    }

    /// The port's counters, from the start.
    pub fn stats(&mut self) -> PortStats {
        let said = self.run("show port stats 0");
        let field = |name: &str| -> u64 {
            let value = said.split(name).nth(1).expect(&said);
            let value = value.split_whitespace().next().expect(&said);
            value.parse().expect(&said)
        };
        PortStats {
            received: (field("RX-packets:"), field("RX-bytes:")),
            sent: (field("TX-packets:"), field("TX-bytes:")),
        }
    }

    /// Types `quit` and waits for its end.
    pub fn quit(mut self) {
        self.0.type_line("quit");
        self.0.wait_for("Bye...", Duration::from_secs(20));
    }
}
