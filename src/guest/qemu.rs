//! QEMU's command line, as a pure function of the guest and its wiring.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::accel::Accelerator;
use crate::config::{Format, Guest};
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
    pub fn crashes_with_vectors(self, accel: Accelerator) -> bool {
        accel == Accelerator::Tcg && self.major < 10
    }

    /// A front-end that lost its back-end tries again this often. Since 9.2 in milliseconds, before in seconds.
    fn reconnect(self) -> (&'static str, u32) {
        if self >= (Self { major: 9, minor: 2 }) {
            ("reconnect-ms", 100)
        } else {
            ("reconnect", 1)
        }
    }
}

/// The files that QEMU inherits open, each by its descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// A kernel to boot directly.
    pub kernel: Option<RawFd>,
    /// Its initial RAM disk.
    pub initrd: Option<RawFd>,
    /// The disks, in order.
    pub disks: Vec<DiskFiles>,
    /// UEFI's code, and the guest's variables of it.
    pub firmware: Option<[RawFd; 2]>,
    /// What cloud-init reads.
    pub seed: Option<RawFd>,
}

/// The files of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFiles {
    /// Its image and, each after that over which it is an overlay, those beneath.
    pub layers: Vec<Layer>,
    /// Whether it is only read.
    pub readonly: bool,
}

/// An image of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its descriptor.
    pub fd: RawFd,
    /// What is in it.
    pub format: Format,
    /// Whether it is a block device.
    pub is_device: bool,
}

/// The descriptors of the sockets that QEMU listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketFds {
    /// Of its monitor.
    pub monitor: RawFd,
    /// Of the serial line.
    pub serial: RawFd,
}

/// What a guest's command line is made of besides the guest.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Its NICs, by number.
    pub nics: &'a BTreeMap<usize, Wiring>,
    /// Its files.
    pub files: &'a Files,
    /// Its sockets.
    pub sockets: SocketFds,
    /// What runs its CPUs.
    pub accel: Accelerator,
    /// Whose command line it is.
    pub version: Version,
}

/// What QEMU can't do: whatever has no use any more, becoming another user, starting programs, taking more of the CPUs.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The port of VNC's first display.
const VNC: u16 = 5900;

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

/// The words after the program's name that run `guest`: stopped until the monitor says otherwise.
pub fn argv(guest: &Guest, parts: &Parts<'_>) -> Vec<OsString> {
    let mut args = Args::default();
    args.machine(guest, parts);
    args.boot(guest, parts.files);
    for (index, disk) in parts.files.disks.iter().enumerate() {
        // A machine that has disks does not ask the network what to boot. The first place is that of a kernel given.
        let device = format!("virtio-blk-pci,drive=disk{index},bootindex={}", index + 1);
        args.disk(&format!("disk{index}"), disk, device);
    }
    if let Some(fd) = parts.files.seed {
        args.seed(fd);
    }
    let last = parts.nics.keys().next_back();
    args.ports(last.map_or(0, |last| last + 1) + SPARE_PORTS);
    for (index, nic) in parts.nics {
        args.nic(*index, nic, guest, parts);
    }
    args.screen(guest.vnc);
    args.sockets(parts.sockets);
    args.randomness();
    args.0.extend(guest.qemu_args.iter().map(OsString::from));
    args.0
}

/// What a NIC is to the guest.
const NIC_DRIVER: &str = "virtio-net-pci";

/// A NIC's properties, as QEMU's device model has them.
fn nic_properties(
    index: usize,
    nic: &Wiring,
    accel: Accelerator,
    version: Version,
) -> Vec<(&'static str, Value)> {
    let mut properties = vec![
        ("netdev", json!(format!("net{index}"))),
        ("mac", json!(nic.mac.to_string())),
        ("id", json!(format!("nic{index}"))),
        ("bus", json!(format!("port{index}"))),
    ];
    let several = nic.queue_pairs.get() > 1;
    if several {
        properties.push(("mq", json!(true)));
    }
    if version.crashes_with_vectors(accel) {
        properties.push(("vectors", json!(0)));
    } else if several {
        // One a queue, one for the control queue, one for changes of the configuration.
        properties.push(("vectors", json!(nic.queue_pairs.vrings() + 2)));
    }
    if let Some(mtu) = nic.mtu {
        properties.push(("host_mtu", json!(u32::from(mtu))));
    }
    if !nic.checksums {
        properties.push(("csum", json!(false))); // and with it segments, which need them
    }
    properties
}

/// The commands, with their arguments, that put a NIC into a machine that runs.
pub fn hotplug(
    index: usize,
    nic: &Wiring,
    accel: Accelerator,
    version: Version,
) -> [(&'static str, Value); 3] {
    let (id, net) = (format!("nic{index}"), format!("net{index}"));
    let (name, value) = version.reconnect();
    let path = nic.socket.to_string_lossy();
    let mut socket = json!({
        "addr": { "type": "unix", "data": { "path": path } },
        "server": false,
    });
    socket[name] = json!(value);
    let mut device = json!({ "driver": NIC_DRIVER });
    for (name, value) in nic_properties(index, nic, accel, version) {
        device[name] = value;
    }
    let pairs = nic.queue_pairs.get();
    [
        (
            "chardev-add",
            json!({ "id": id, "backend": { "type": "socket", "data": socket } }),
        ),
        (
            "netdev_add",
            json!({ "type": "vhost-user", "id": net, "chardev": id, "queues": pairs }),
        ),
        ("device_add", device),
    ]
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    /// `-nodefaults`: what the guest has is what the file says. Memory is a memfd that backends map as well.
    fn machine(&mut self, guest: &Guest, parts: &Parts<'_>) {
        let (memory, accel) = (guest.memory.bytes(), parts.accel);
        self.0
            .extend(["-nodefaults", "-no-user-config"].map(OsString::from));
        // With debug-threads each thread has a name of its own, so that `top -H` tells a vCPU from what works for it.
        let name = format!("guest={0},process=qemu-{0},debug-threads=on", guest.name);
        self.option("-name", name);
        let mut machine = "q35,memory-backend=memory".to_owned();
        if let Some([code, variables]) = parts.files.firmware {
            self.add_fd(code);
            self.add_fd(variables);
            for (name, fd, readonly) in [("code", code, "on"), ("variables", variables, "off")] {
                let file = format!(
                    "driver=file,node-name={name},filename=/dev/fdset/{fd},read-only={readonly}"
                );
                self.option("-blockdev", file);
            }
            machine.push_str(",pflash0=code,pflash1=variables");
        }
        self.option("-machine", machine);
        self.option("-sandbox", SANDBOX);
        match accel {
            Accelerator::Kvm => {
                self.option("-accel", "kvm");
                self.option("-cpu", "host");
            }
            Accelerator::Tcg => self.option("-accel", "tcg"),
        }
        self.option("-smp", cpus(guest.cpus, accel));
        self.option("-m", format!("{}M", memory >> 20));
        // Of huge pages there may be none left later: the guest gets all of them before it starts.
        let huge = match guest.hugepages {
            true => ",hugetlb=on,prealloc=on",
            false => "",
        };
        self.option(
            "-object",
            format!("memory-backend-memfd,id=memory,size={memory},share=on{huge}"),
        );
        // By which the guest's kernel tells that it has panicked.
        self.option("-device", "pvpanic-pci");
    }

    /// The kernel is opened again by the name of its descriptor.
    fn boot(&mut self, guest: &Guest, files: &Files) {
        for (option, fd) in [("-kernel", files.kernel), ("-initrd", files.initrd)] {
            if let Some(fd) = fd {
                self.option(option, format!("/proc/self/fd/{fd}"));
            }
        }
        if let Some(append) = &guest.append {
            self.option("-append", append);
        }
    }

    /// Lets block devices open `/dev/fdset/FD`.
    fn add_fd(&mut self, fd: RawFd) {
        self.option("-add-fd", format!("fd={fd},set={fd}"));
    }

    /// From the lowest layer up: each names the one beneath.
    fn disk(&mut self, id: &str, disk: &DiskFiles, device: String) {
        let mut beneath = None;
        for (depth, layer) in disk.layers.iter().enumerate().rev() {
            let name = match depth {
                0 => id.to_owned(),
                _ => format!("{id}-base{depth}"),
            };
            let readonly = match depth == 0 && !disk.readonly {
                true => "off,discard=unmap",
                false => "on",
            };
            let driver = match layer.is_device {
                true => "host_device",
                false => "file",
            };
            let fd = layer.fd;
            self.add_fd(fd);
            let file = format!(
                "driver={driver},node-name={name}-file,filename=/dev/fdset/{fd},read-only={readonly}"
            );
            self.option("-blockdev", file);
            let mut image = format!(
                "driver={},node-name={name},file={name}-file,read-only={readonly}",
                layer.format.name()
            );
            if let Some(beneath) = beneath {
                image.push_str(&format!(",backing={beneath}"));
            }
            self.option("-blockdev", image);
            beneath = Some(name);
        }
        self.option("-device", device);
    }

    fn seed(&mut self, fd: RawFd) {
        let layer = Layer {
            fd,
            format: Format::Raw,
            is_device: false,
        };
        let disk = DiskFiles {
            layers: vec![layer],
            readonly: true,
        };
        self.disk("seed", &disk, "virtio-blk-pci,drive=seed".to_owned());
    }

    fn nic(&mut self, index: usize, nic: &Wiring, guest: &Guest, parts: &Parts<'_>) {
        let (accel, version) = (parts.accel, parts.version);
        let (name, value) = version.reconnect();
        let mut socket = OsString::from(format!("socket,id=nic{index},{name}={value},path="));
        socket.push(escaped(&nic.socket));
        self.option("-chardev", socket);
        let pairs = nic.queue_pairs.get();
        self.option(
            "-netdev",
            format!("vhost-user,id=net{index},chardev=nic{index},queues={pairs}"),
        );
        let mut device = NIC_DRIVER.to_owned();
        for (name, value) in nic_properties(index, nic, accel, version) {
            match value {
                Value::Bool(true) => device.push_str(&format!(",{name}=on")),
                Value::Bool(false) => device.push_str(&format!(",{name}=off")),
                Value::String(text) => device.push_str(&format!(",{name}={text}")),
                other => device.push_str(&format!(",{name}={other}")),
            }
        }
        if guest.kernel.is_some() {
            device.push_str(",romfile="); // there is a kernel: no boot ROM need look for one
        }
        self.option("-device", device);
    }

    /// Slots for NICs: only what is in one of its own can be taken out of a running machine.
    fn ports(&mut self, count: usize) {
        for index in 0..count {
            let port = format!("pcie-root-port,id=port{index},chassis={}", index + 1);
            self.option("-device", port);
        }
    }

    /// A screen, a keyboard and a pointer where somebody can see and use them.
    fn screen(&mut self, vnc: Option<SocketAddr>) {
        self.option("-display", "none");
        if let Some(address) = vnc {
            let display = address.port().saturating_sub(VNC);
            let ip = match address.ip() {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            };
            self.option("-vnc", format!("{ip}:{display}"));
            for device in ["VGA", "qemu-xhci", "usb-tablet", "usb-kbd"] {
                self.option("-device", device);
            }
        }
    }

    /// What firmware and kernels draw keys and numbers from; QEMU's own source is the host's getrandom. A CPU that QEMU
    /// translates has no instruction for it, and without either OVMF (since 2024) does not so much as ask for an address.
    /// Its place is away from those that are given in order, of which another device's name in the guest may depend.
    fn randomness(&mut self) {
        self.option("-object", "rng-builtin,id=rng");
        self.option("-device", "virtio-rng-pci,rng=rng,addr=0x1e");
    }

    /// The supervisor listens to what these say.
    fn sockets(&mut self, fds: SocketFds) {
        for (id, fd) in [("monitor", fds.monitor), ("console", fds.serial)] {
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
        let layer = |fd| Layer {
            fd,
            format: Format::Qcow2,
            is_device: false,
        };
        let files = Files {
            disks: vec![DiskFiles {
                layers: vec![layer(5), layer(6)],
                readonly: false,
            }],
            ..Files::default()
        };
        let parts = Parts {
            nics: &[(0, nic)].into(),
            files: &files,
            sockets: SocketFds {
                monitor: 3,
                serial: 4,
            },
            accel,
            version,
        };
        let words = argv(guest, &parts);
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
    fn a_nic_that_comes_later_is_as_one_of_the_start() {
        let nic = Wiring {
            socket: "/run/a,b/nic1.sock".into(),
            mac: "52:54:00:00:00:01".parse().unwrap(),
            queue_pairs: QueuePairs::try_from(2).unwrap(),
            mtu: Some(Mtu::try_from(1400).unwrap()),
            checksums: false,
        };
        let [chardev, netdev, device] = hotplug(1, &nic, Accelerator::Kvm, NEW).map(|it| it.1);
        let data = &chardev["backend"]["data"];
        assert_eq!(data["addr"]["data"]["path"], "/run/a,b/nic1.sock");
        assert_eq!(data["reconnect-ms"], 100);
        assert_eq!(
            (&netdev["chardev"], &netdev["queues"]),
            (&json!("nic1"), &json!(2))
        );
        let expected = json!({
            "driver": "virtio-net-pci", "netdev": "net1", "mac": "52:54:00:00:00:01", "id": "nic1",
            "bus": "port1", "mq": true, "vectors": 6, "host_mtu": 1400, "csum": false,
        });
        assert_eq!(device, expected);
    }

    #[test]
    fn a_comma_in_a_path_stays_in_the_path() {
        let line = line(&guest(""), 1, Accelerator::Tcg, OLD);
        assert!(line.contains("path=/run/a,,b/nic0.sock"), "{line}");
    }

    #[test]
    fn an_overlay_names_what_is_beneath_and_no_file_is_opened_by_name() {
        let line = line(&guest(""), 1, Accelerator::Tcg, OLD);
        let beneath = "driver=qcow2,node-name=disk0-base1,file=disk0-base1-file,read-only=on ";
        assert!(line.contains(beneath), "{line}");
        let top = "driver=qcow2,node-name=disk0,file=disk0-file,read-only=off,discard=unmap,backing=disk0-base1 ";
        assert!(line.contains(top), "{line}");
        for fd in [5, 6] {
            assert!(
                line.contains(&format!("-add-fd fd={fd},set={fd} ")),
                "{line}"
            );
            assert!(
                line.contains(&format!("filename=/dev/fdset/{fd},")),
                "{line}"
            );
        }
    }

    #[test]
    fn huge_pages_are_had_before_the_guest_starts() {
        let line = line(&guest("hugepages = true"), 1, Accelerator::Kvm, NEW);
        assert!(line.contains("hugetlb=on,prealloc=on"), "{line}");
    }

    #[test]
    fn a_screen_is_there_where_somebody_can_see_it() {
        assert!(!line(&guest(""), 1, Accelerator::Kvm, NEW).contains("vnc"));
        let line = line(&guest("vnc = \"[::1]:5903\""), 1, Accelerator::Kvm, NEW);
        assert!(line.contains("-vnc [::1]:3 -device VGA"), "{line}");
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
