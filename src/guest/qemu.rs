//! QEMU's command line, as a pure function of the guest and its wiring.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::accel::Accelerator;
use crate::config::Guest;
use crate::types::{MacAddr, Mtu, QueuePairs};

/// QEMU's version, as far as ringtap cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 7 of 7.2.22.
    pub major: u32,
    /// 2 of 7.2.22.
    pub minor: u32,
}

impl Version {
    /// Reads what `qemu-system-x86_64 --version` prints.
    pub fn parse(output: &str) -> Option<Self> {
        let version = output.split_once("version ")?.1;
        let mut numbers = version.split(|c: char| !c.is_ascii_digit());
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }

    /// QEMU before 10 crashes under TCG as soon as a vhost-user NIC uses MSI-X (it asks a KVM that is not there
    /// to route the interrupt); without vectors the NIC uses its interrupt line.
    fn crashes_with_vectors(self, accel: Accelerator) -> bool {
        accel == Accelerator::Tcg && self.major < 10
    }

    /// A front-end that lost its back-end tries again this often. Since 9.2 in milliseconds, before in seconds.
    fn reconnect(self) -> &'static str {
        if self >= (Self { major: 9, minor: 2 }) {
            "reconnect-ms=100"
        } else {
            "reconnect=1"
        }
    }
}

/// The descriptor by which QEMU has the socket of its monitor.
pub const MONITOR_FD: RawFd = 3;
/// The descriptor by which it has the socket of its serial line.
pub const SERIAL_FD: RawFd = 4;

/// So many NICs can be added while the guest runs.
const SPARE_PORTS: usize = 4;

/// How one NIC of the guest is wired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wiring {
    /// The backend's socket.
    pub socket: PathBuf,
    /// What the guest sees as its address.
    pub mac: MacAddr,
    /// Pairs of queues.
    pub queue_pairs: QueuePairs,
    /// The largest packet, where that is not the usual.
    pub mtu: Option<Mtu>,
    /// Whether the guest may leave checksums to others.
    pub checksums: bool,
}

/// The words after the program's name that run `guest` with these NICs, by number: stopped until the monitor says otherwise.
pub fn argv(
    guest: &Guest,
    nics: &BTreeMap<usize, Wiring>,
    accel: Accelerator,
    version: Version,
) -> Vec<OsString> {
    let mut args = Args::default();
    args.machine(guest, accel);
    args.boot(guest);
    for (index, disk) in guest.disks.iter().enumerate() {
        args.disk(index, disk);
    }
    let ports = nics.keys().next_back().map_or(0, |last| last + 1) + SPARE_PORTS;
    args.ports(ports);
    for (index, nic) in nics {
        args.nic(*index, nic, guest, accel, version);
    }
    args.console();
    args.0.extend(guest.qemu_args.iter().map(OsString::from));
    args.0
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    /// `-nodefaults`: what the guest has is what the file says. Memory is a memfd that backends map as well.
    fn machine(&mut self, guest: &Guest, accel: Accelerator) {
        let memory = guest.memory.bytes();
        self.0
            .extend(["-nodefaults", "-no-user-config"].map(OsString::from));
        self.option("-name", format!("guest={0},process=qemu-{0}", guest.name));
        self.option("-machine", "q35,memory-backend=memory");
        match accel {
            Accelerator::Kvm => {
                self.option("-accel", "kvm");
                self.option("-cpu", "host");
            }
            Accelerator::Tcg => self.option("-accel", "tcg"),
        }
        self.option("-smp", cpus(guest.cpus, accel));
        self.option("-m", format!("{}M", memory >> 20));
        self.option(
            "-object",
            format!("memory-backend-memfd,id=memory,size={memory},share=on"),
        );
    }

    fn boot(&mut self, guest: &Guest) {
        if let Some(kernel) = &guest.kernel {
            self.option("-kernel", kernel);
        }
        if let Some(initrd) = &guest.initrd {
            self.option("-initrd", initrd);
        }
        if let Some(append) = &guest.append {
            self.option("-append", append);
        }
    }

    fn disk(&mut self, index: usize, path: &Path) {
        let driver = match path.extension() {
            Some(extension) if extension == "qcow2" => "qcow2",
            _ => "raw",
        };
        let mut blockdev = OsString::from(format!(
            "driver={driver},node-name=disk{index},file.driver=file,file.filename="
        ));
        blockdev.push(escaped(path));
        self.option("-blockdev", blockdev);
        self.option("-device", format!("virtio-blk-pci,drive=disk{index}"));
    }

    fn nic(
        &mut self,
        index: usize,
        nic: &Wiring,
        guest: &Guest,
        accel: Accelerator,
        version: Version,
    ) {
        let mut socket = OsString::from(format!(
            "socket,id=nic{index},{},path=",
            version.reconnect()
        ));
        socket.push(escaped(&nic.socket));
        self.option("-chardev", socket);
        let pairs = nic.queue_pairs.get();
        self.option(
            "-netdev",
            format!("vhost-user,id=net{index},chardev=nic{index},queues={pairs}"),
        );
        let mut device = format!("virtio-net-pci,netdev=net{index},mac={}", nic.mac);
        if pairs > 1 {
            device.push_str(",mq=on");
        }
        if version.crashes_with_vectors(accel) {
            device.push_str(",vectors=0");
        } else if pairs > 1 {
            // One a queue, one for the control queue, one for changes of the configuration.
            device.push_str(&format!(",vectors={}", nic.queue_pairs.vrings() + 2));
        }
        if let Some(mtu) = nic.mtu {
            device.push_str(&format!(",host_mtu={mtu}"));
        }
        if !nic.checksums {
            device.push_str(",csum=off"); // and with it segments, which need them
        }
        if guest.kernel.is_some() {
            device.push_str(",romfile="); // there is a kernel: no boot ROM need look for one
        }
        device.push_str(&format!(",id=nic{index},bus=port{index}"));
        self.option("-device", device);
    }

    /// Slots for NICs: only what is in one of its own can be taken out of a running machine.
    fn ports(&mut self, count: usize) {
        for index in 0..count {
            let port = format!("pcie-root-port,id=port{index},chassis={}", index + 1);
            self.option("-device", port);
        }
    }

    /// The supervisor listens to what these say.
    fn console(&mut self) {
        self.option("-display", "none");
        for (id, fd) in [("monitor", MONITOR_FD), ("console", SERIAL_FD)] {
            let socket = format!("socket,id={id},fd={fd},server=on,wait=off");
            self.option("-chardev", socket);
        }
        self.option("-mon", "chardev=monitor,mode=control");
        self.option("-serial", "chardev:console");
        self.0.push("-S".into());
    }
}

/// The guest's CPUs.
///
/// QEMU translates for a machine that can only ever have one CPU as if nobody else saw its memory: a locked instruction
/// becomes a plain one (up to 7.2 a fence becomes nothing), so that the guest's "tell me from here on" can reach memory
/// after it has looked whether anything came. The backend is another CPU to the guest: with both sides missing each
/// other's word, a queue stops for good. Room for a second CPU makes QEMU keep the guest's order.
fn cpus(count: u16, accel: Accelerator) -> String {
    match accel {
        Accelerator::Tcg if count == 1 => "1,maxcpus=2".to_owned(),
        _ => count.to_string(),
    }
}

/// QEMU's option parser takes a comma for the end of a value unless it is doubled.
fn escaped(path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        bytes.push(*byte);
        if *byte == b',' {
            bytes.push(b',');
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const OLD: Version = Version { major: 7, minor: 2 };
    const NEW: Version = Version {
        major: 10,
        minor: 0,
    };

    fn guest(more: &str) -> Guest {
        let text = format!(
            "[networks.default]\nmode = \"nat\"\nsubnet = \"192.168.100.0/24\"\n\
             [guests.web1]\ncpus = 2\nmemory = \"1G\"\nnics = [{{ network = \"default\" }}]\n{more}"
        );
        let config = Config::parse(&text, Path::new("/srv/test.toml")).unwrap();
        config.guests.into_values().next().unwrap()
    }

    fn line(guest: &Guest, pairs: u16, accel: Accelerator, version: Version) -> String {
        let nic = Wiring {
            socket: "/run/a,b/nic0.sock".into(),
            mac: guest.nics[0].mac,
            queue_pairs: QueuePairs::try_from(pairs).unwrap(),
            mtu: None,
            checksums: true,
        };
        let words = argv(guest, &[(0, nic)].into(), accel, version);
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn memory_is_shared_and_as_large_as_the_file_says() {
        let line = line(&guest(""), 1, Accelerator::Tcg, OLD);
        assert!(line.contains("-m 1024M"), "{line}");
        assert!(
            line.contains("memory-backend-memfd,id=memory,size=1073741824,share=on"),
            "{line}"
        );
    }

    #[test]
    fn vectors_are_left_out_where_they_crash_qemu() {
        let guest = guest("");
        for (accel, version, without) in [
            (Accelerator::Tcg, OLD, true),
            (Accelerator::Tcg, NEW, false),
            (Accelerator::Kvm, OLD, false),
        ] {
            let line = line(&guest, 1, accel, version);
            assert_eq!(line.contains("vectors=0"), without, "{line}");
        }
    }

    #[test]
    fn a_translated_guest_of_one_cpu_keeps_the_order_of_its_memory() {
        let mut guest = guest("");
        assert!(line(&guest, 1, Accelerator::Tcg, OLD).contains("-smp 2 "));
        guest.cpus = 1;
        assert!(line(&guest, 1, Accelerator::Tcg, OLD).contains("-smp 1,maxcpus=2 "));
        assert!(line(&guest, 1, Accelerator::Kvm, OLD).contains("-smp 1 "));
    }

    #[test]
    fn more_pairs_need_mq_and_a_vector_a_queue() {
        let line = line(&guest(""), 4, Accelerator::Kvm, NEW);
        assert!(line.contains("queues=4"), "{line}");
        assert!(line.contains("mq=on,vectors=10"), "{line}");
    }

    #[test]
    fn a_comma_in_a_path_stays_in_the_path() {
        let guest = guest("disks = [\"/srv/a,b.qcow2\"]");
        let line = line(&guest, 1, Accelerator::Tcg, OLD);
        assert!(line.contains("path=/run/a,,b/nic0.sock"), "{line}");
        assert!(line.contains("driver=qcow2"), "{line}");
        assert!(line.contains("file.filename=/srv/a,,b.qcow2"), "{line}");
    }

    #[test]
    fn the_files_own_words_come_last() {
        let guest = guest("qemu-args = [\"-no-reboot\"]");
        assert!(line(&guest, 1, Accelerator::Tcg, OLD).ends_with(" -no-reboot"));
    }

    #[test]
    fn versions_are_read_from_what_qemu_prints() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright …";
        assert_eq!(Version::parse(debian), Some(OLD));
        assert_eq!(Version::parse("QEMU emulator version 10.0.2"), Some(NEW));
        assert_eq!(Version::parse("something else"), None);
    }
}
