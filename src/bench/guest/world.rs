//! Where guests are measured: one of the bench's own, on networks of its own, or one that runs.
//!
//! May touch: a folder of its own among temporary ones, and by ringtap's command line whatever that does.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tempfile::TempDir;

use super::ping::Pinger;
use super::{Device, GuestBenchError, NetworkMode, Subject};
use crate::bench::link;
use crate::bench::setting::Origin;
use crate::cli::HostArgs;
use crate::guest::nics_have_vectors;
use crate::signals::end_is_asked;
use crate::types::{IfName, Name, QueuePairs};

/// What the bench's own is called.
const GUEST: &str = "bench";

/// The kernel's part of virtio-net.
const VHOST_NET: &str = "/dev/vhost-net";

/// How long an emulated guest may take until it answers.
const PATIENCE: Duration = Duration::from_secs(180);

/// Whose a NIC of the bench's guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Back {
    Ringtap,
    Tap,
    Vhost,
}

impl Back {
    /// Those that this host has.
    pub fn all() -> Vec<Self> {
        match Path::new(VHOST_NET).exists() {
            true => vec![Self::Ringtap, Self::Tap, Self::Vhost],
            false => vec![Self::Ringtap, Self::Tap],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ringtap => "ringtap",
            Self::Tap => "QEMU's tap",
            Self::Vhost => "vhost-net",
        }
    }

    /// Each has a network, of addresses that are kept for benchmarks (RFC 2544), and a link.
    fn number(self) -> u8 {
        self as u8
    }

    fn network(self) -> String {
        format!("rtbench{}", self.number())
    }

    fn bridge(self) -> IfName {
        format!("rt-{}", self.network())
            .parse()
            .expect("a link's name")
    }

    fn tap(self) -> IfName {
        format!("rt-bench-{}", self.number())
            .parse()
            .expect("a link's name")
    }

    fn address(self) -> IpAddr {
        Ipv4Addr::new(198, 18, self.number(), 10).into()
    }

    fn mac(self) -> String {
        format!("52:54:00:72:74:{:02x}", self.number())
    }
}

/// A guest, and networks for each of its NICs.
pub struct World {
    dir: TempDir,
    backs: Vec<Back>,
    origins: Vec<Origin>,
}

impl World {
    /// Writes what it is to be like.
    ///
    /// # Errors
    /// The guest's files are not there, or there is no room.
    pub fn new(tiny: &Path, mode: NetworkMode, pairs: QueuePairs) -> Result<Self, GuestBenchError> {
        let backs = Back::all();
        let has_vectors = nics_have_vectors()?;
        let text = file(&Tiny::find(tiny)?, &backs, mode, pairs, has_vectors);
        let origin = |back: &Back| Origin {
            name: format!("{}, {}, pairs: {pairs}", back.name(), mode.word()),
            origin: match back {
                Back::Ringtap => nic(pairs),
                Back::Tap | Back::Vhost => qemu_args(*back, pairs, has_vectors).join(" "),
            },
        };
        let origins = backs.iter().map(origin).collect();
        // dnsmasq, which is not root, reads its files below.
        let open = fs::Permissions::from_mode(0o755);
        let dir = tempfile::Builder::new()
            .prefix("ringtap-bench-")
            .permissions(open)
            .tempdir()?;
        fs::write(dir.path().join("ringtap.toml"), text)?;
        Ok(Self {
            dir,
            backs,
            origins,
        })
    }

    /// What its NICs are.
    pub fn origins(&self) -> Vec<Origin> {
        self.origins.clone()
    }

    /// Makes the networks, starts the guest, and waits until it answers by each of its NICs.
    ///
    /// # Errors
    /// See [`GuestBenchError`]. Nothing is left.
    pub fn start(&self) -> Result<Running<'_>, GuestBenchError> {
        let mut running = Running {
            world: self,
            subjects: Vec::new(),
        };
        self.ringtap(&["up"])?;
        self.ringtap(&["start", GUEST])?;
        let (qemu, nics) = look(&self.host(), &GUEST.parse().expect("a guest's name"))?;
        // That of ringtap's own is the only one that ringtap knows of.
        let backend = nics.first().and_then(|nic| nic.backend);
        let subject = |back: &Back| Subject {
            name: back.name().to_owned(),
            address: back.address(),
            device: Device {
                qemu,
                backend: backend.filter(|_| *back == Back::Ringtap),
            },
        };
        running.subjects = self.backs.iter().map(subject).collect();
        for back in self.backs.iter().filter(|back| **back != Back::Ringtap) {
            link::add_port(&back.bridge(), &back.tap())?;
        }
        for subject in &running.subjects {
            wait_for(subject.address)?;
        }
        Ok(running)
    }

    fn host(&self) -> HostArgs {
        HostArgs {
            config: self.dir.path().join("ringtap.toml"),
            run_dir: self.dir.path().join("run"),
        }
    }

    fn ringtap(&self, words: &[&str]) -> Result<Vec<u8>, GuestBenchError> {
        ringtap(&self.host(), words)
    }
}

/// A [`World`] whose guest runs; with this value it ends, and so do its networks.
pub struct Running<'a> {
    world: &'a World,
    /// The guest by each of its NICs.
    pub subjects: Vec<Subject>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        for words in [&["stop", "--timeout", "10", GUEST][..], &["down"]] {
            if let Err(error) = self.world.ringtap(words) {
                tracing::warn!("{error}");
            }
        }
    }
}

/// What the bench's guest boots.
struct Tiny {
    kernel: PathBuf,
    initrd: PathBuf,
    append: String,
}

impl Tiny {
    fn find(dir: &Path) -> Result<Self, GuestBenchError> {
        let missing = |error| GuestBenchError::NoTiny(dir.to_owned(), error);
        let dir = dir.canonicalize().map_err(missing)?;
        let file = |name: &str| dir.join(name).canonicalize().map_err(missing);
        Ok(Self {
            kernel: file("vmlinuz")?,
            initrd: file("initrd")?,
            append: fs::read_to_string(dir.join("append")).map_err(missing)?,
        })
    }
}

/// The file that describes all of it.
fn file(
    tiny: &Tiny,
    backs: &[Back],
    mode: NetworkMode,
    pairs: QueuePairs,
    has_vectors: bool,
) -> String {
    let mode = mode.word();
    let mut text = String::new();
    for back in backs {
        let (network, mac, address) = (back.network(), back.mac(), back.address());
        let subnet = format!("198.18.{}.0/24", back.number());
        text += &format!("[networks.{network}]\nmode = {mode:?}\nsubnet = {subnet:?}\n");
        if *back != Back::Ringtap {
            text += &format!(
                "dhcp.hosts = [{{ mac = {mac:?}, name = \"qemu\", ip = \"{address}\" }}]\n"
            );
        }
    }
    let nics = backs.iter().filter(|back| **back != Back::Ringtap);
    let qemu_args: Vec<String> = nics
        .flat_map(|back| qemu_args(*back, pairs, has_vectors))
        .collect();
    // Who makes a tap is root.
    text += &format!(
        "[guests.{GUEST}]\nuser = \"root\"\ncpus = {cpus}\nmemory = \"512M\"\n\
         kernel = {kernel:?}\ninitrd = {initrd:?}\nappend = \"{append} ringtap.iperf3\"\nqemu-args = {qemu_args:?}\n\
         nics = [{nic}]\n",
        nic = nic(pairs),
        cpus = pairs.get(),
        kernel = tiny.kernel,
        initrd = tiny.initrd,
        append = tiny.append.trim(),
    );
    text
}

/// ringtap's own, as the file has it.
fn nic(pairs: QueuePairs) -> String {
    let (network, address) = (Back::Ringtap.network(), Back::Ringtap.address());
    format!("{{ network = {network:?}, ip = \"{address}\", queue-pairs = {pairs} }}")
}

/// A NIC that QEMU moves frames for, or has the kernel do it; with queues of the usual length, as ringtap's are.
fn qemu_args(back: Back, pairs: QueuePairs, has_vectors: bool) -> [String; 4] {
    let vhost = if back == Back::Vhost { "on" } else { "off" };
    let (tap, mac, id) = (back.tap(), back.mac(), back.network());
    let mut netdev = format!("tap,id={id},ifname={tap},script=no,downscript=no,vhost={vhost}");
    let mut device = format!("virtio-net-pci,netdev={id},mac={mac}");
    if pairs > QueuePairs::ONE {
        netdev += &format!(",queues={pairs}");
        device += ",mq=on";
    }
    // As many as ringtap's have.
    match has_vectors {
        true => device += &format!(",vectors={}", pairs.vrings() + 2),
        false => device += ",vectors=0",
    }
    ["-netdev".to_owned(), netdev, "-device".to_owned(), device]
}

/// Waits until it is there.
fn wait_for(address: IpAddr) -> Result<(), GuestBenchError> {
    let end = Instant::now() + PATIENCE;
    let mut pinger = Pinger::to(address)?;
    while Instant::now() < end && !end_is_asked() {
        // Where nobody has the address the host says so, as an error.
        match pinger.ask(Duration::from_secs(1)) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {}
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
    Err(GuestBenchError::Silent(address, PATIENCE.as_secs()))
}

/// A guest of `ringtap list --json`, as far as it is of use here.
#[derive(Debug, Deserialize)]
struct Listed {
    name: Name,
    pid: Option<u32>,
    nics: Vec<ListedNic>,
}

#[derive(Debug, Deserialize)]
struct ListedNic {
    backend: Option<u32>,
    addresses: Vec<IpAddr>,
}

/// A guest that runs: QEMU's pid, and its NICs.
fn look(host: &HostArgs, name: &Name) -> Result<(u32, Vec<ListedNic>), GuestBenchError> {
    let said = ringtap(host, &["list", "--json"])?;
    let listed: Vec<Listed> = serde_json::from_slice(&said).map_err(io::Error::from)?;
    let guest = listed.into_iter().find(|guest| guest.name == *name);
    guest
        .and_then(|guest| Some((guest.pid?, guest.nics)))
        .ok_or_else(|| GuestBenchError::NoAddress(name.clone()))
}

/// Guest `name`, which runs already.
///
/// # Errors
/// It does not, has no address that is known, or does not answer.
pub fn running(host: &HostArgs, name: &Name) -> Result<Subject, GuestBenchError> {
    let (qemu, nics) = look(host, name)?;
    // iperf3's client has no way to name the link that a link-local address is of.
    let has_no_link = |it: &&IpAddr| !matches!(it, IpAddr::V6(it) if it.is_unicast_link_local());
    let of_nic = |nic: &ListedNic| Some((*nic.addresses.iter().find(has_no_link)?, nic.backend));
    let found = nics.iter().find_map(of_nic);
    let (address, backend) = found.ok_or_else(|| GuestBenchError::NoAddress(name.clone()))?;
    wait_for(address)?;
    Ok(Subject {
        name: name.to_string(),
        address,
        device: Device { qemu, backend },
    })
}

/// Runs this program's command `words`; what it has printed.
fn ringtap(host: &HostArgs, words: &[&str]) -> Result<Vec<u8>, GuestBenchError> {
    let mut command = Command::new("/proc/self/exe");
    command.args(words).stdin(Stdio::null());
    command.arg("--config").arg(&host.config);
    command.arg("--run-dir").arg(&host.run_dir);
    let done = command.output()?;
    match done.status.success() {
        true => Ok(done.stdout),
        false => {
            let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
            Err(GuestBenchError::Ringtap(words.join(" "), said))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_file_is_one_that_ringtap_takes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ringtap.toml");
        let tiny = Tiny {
            kernel: "/boot/vmlinuz".into(),
            initrd: "/boot/initrd".into(),
            append: "console=ttyS0\n".to_owned(),
        };
        let backs = [Back::Ringtap, Back::Tap, Back::Vhost];
        for mode in [
            NetworkMode::Nat,
            NetworkMode::Routed,
            NetworkMode::Isolated,
            NetworkMode::Open,
        ] {
            for pairs in [1, 2] {
                let pairs = QueuePairs::try_from(pairs).unwrap();
                fs::write(&path, file(&tiny, &backs, mode, pairs, true)).unwrap();
                let config = Config::load(&path).unwrap();
                assert_eq!(config.networks.len(), 3);
                let guest = config.guests.values().next().unwrap();
                assert_eq!(guest.nics[0].queue_pairs, pairs);
                let words = guest.qemu_args.join(" ");
                assert!(words.contains("vhost=off") && words.contains("vhost=on"));
                assert_eq!(words.contains("queues=2"), pairs.get() == 2);
            }
        }
    }
}
