//! The file: a good one read whole, and golden messages for bad ones (`tests/configs/bad/NAME.toml` and what
//! is said of it in `NAME.err`).

#[path = "support/golden.rs"]
mod golden;

use std::fs;
use std::path::Path;

use ringtap::config::{
    Accel, BridgeNfCall, Config, Firmware, Format, Image, Restart, SshKey, UserData,
};
use ringtap::types::{MacAddr, Name};

#[test]
fn bad_files_get_every_problem_named() {
    let mut failures = Vec::new();
    for file in golden::entries(Path::new("tests/configs/bad")) {
        if file
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            let text = fs::read_to_string(&file).unwrap();
            let name = Path::new(file.file_name().unwrap());
            let said = match Config::parse(&text, name) {
                Ok(_) => "no problem was found\n".to_owned(),
                Err(problems) => format!("{problems}\n"),
            };
            failures.extend(golden::compare(&file.with_extension("err"), &said).err());
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_good_file_is_read_whole() {
    let file = Path::new("tests/configs/good.toml");
    let config = Config::load(file).unwrap();
    let name = |text: &str| text.parse::<Name>().unwrap();

    assert_eq!(config.host.bridge_nf_call, BridgeNfCall::Accept);
    let default = config.network(&name("default")).unwrap();
    assert_eq!(default.trunk().as_str(), "rt-default");
    assert_eq!(
        default.ipv4.unwrap().subnet.gateway().to_string(),
        "192.168.100.1"
    );
    assert_eq!(default.ipv4.unwrap().dhcp.count(), 253);
    assert_eq!(default.domain.as_str(), "default.internal");
    assert_eq!(default.mtu, None);
    let lab = config.network(&name("lab")).unwrap();
    assert_eq!(lab.ipv4.unwrap().dhcp.first.to_string(), "10.66.0.50");
    assert_eq!(lab.domain.as_str(), "vm.internal");
    assert_eq!(lab.mtu.unwrap().get(), 9000);

    let web1 = config.guest(&name("web1")).unwrap();
    assert_eq!(web1.cpus, 2);
    assert_eq!(web1.memory.bytes(), 2 << 30);
    let images: Vec<_> = web1.disks.iter().map(|disk| &disk.image).collect();
    let image = |path: &str, format| Image {
        path: path.into(),
        format,
    };
    let expected = [
        image("/srv/web1.qcow2", Format::Qcow2),
        image("tests/configs/data.img", Format::Raw),
    ];
    assert_eq!(images, expected.each_ref());
    assert!(
        web1.disks
            .iter()
            .all(|disk| !disk.is_made() && !disk.readonly)
    );
    assert_eq!(
        web1.kernel.as_deref(),
        Some(Path::new("tests/configs/vmlinuz"))
    );
    assert_eq!(web1.append.as_deref(), Some("console=ttyS0"));
    assert_eq!(web1.accel, Accel::Tcg);
    assert_eq!(web1.qemu_args, ["-device", "virtio-rng-pci"]);
    assert_eq!(web1.tap(1).as_str(), "tap-web1-1");
    let [first, second] = web1.nics.as_slice() else {
        panic!("{:?}", web1.nics)
    };
    assert_eq!(first.ip.unwrap().to_string(), "192.168.100.10");
    assert_eq!(first.queue_pairs.get(), 2);
    assert_eq!(first.mac, MacAddr::derived_from("web1/0"));
    assert_eq!(second.mac.to_string(), "52:54:00:00:00:07");
    assert_eq!(second.queue_pairs.get(), 2);
    let rates = [first.rates.rx, second.rates.rx, second.rates.tx];
    let rates = rates.map(|rate| rate.map(|rate| rate.to_string()));
    let [none, usual, own] = rates.each_ref().map(Option::as_deref);
    assert_eq!((none, usual, own), (None, Some("100mbit"), Some("50kpps")));
    let small = config.guest(&name("small")).unwrap();
    assert_eq!((small.cpus, small.accel), (1, Accel::Auto));
    assert_eq!((small.restart, small.autostart), (Restart::No, false));

    let vps = config.guest(&name("vps")).unwrap();
    assert_eq!((vps.hugepages, vps.firmware), (true, Firmware::Uefi));
    let [disk, data] = &vps.disks[..] else {
        panic!("{:?}", vps.disks)
    };
    assert_eq!(disk.image.path, Path::new("tests/configs/vps.qcow2"));
    assert_eq!(disk.base, Some(image("/srv/debian.qcow2", Format::Qcow2)));
    assert_eq!(disk.size.unwrap().bytes(), 20 << 30);
    assert!(disk.is_made() && !data.is_made() && data.readonly);
    let [nic] = &vps.nics[..] else {
        panic!("{:?}", vps.nics)
    };
    assert_eq!((nic.queue_pairs.get(), nic.mtu.unwrap().get()), (8, 1500));
    assert_eq!(vps.vnc.unwrap().port(), 5901);
    assert_eq!((vps.restart, vps.autostart), (Restart::OnFailure, true));
    let told = vps.cloud_init.as_ref().unwrap();
    assert_eq!((&told.hostname[..], told.user()), ("vps", Some("admin")));
    let UserData::Keys { ssh_keys, .. } = &told.user_data else {
        panic!("{told:?}")
    };
    let text = SshKey::Text("ssh-ed25519 AAAA me@here".to_owned());
    let file = SshKey::File("tests/configs/me.pub".into());
    assert_eq!(*ssh_keys, [text, file]);
}

#[test]
fn unknown_names_get_the_nearest() {
    let config = Config::load(Path::new("tests/configs/good.toml")).unwrap();
    let unknown = config.guest(&"wbe1".parse().unwrap()).unwrap_err();
    assert!(
        unknown
            .to_string()
            .ends_with("no guest is called `wbe1`; did you mean `web1`?")
    );
    let unknown = config.chosen(&["zzz".parse().unwrap()]).unwrap_err();
    assert!(
        unknown
            .to_string()
            .ends_with("no network is called `zzz`; known: default, lab")
    );
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem_of_the_file() {
    let problems = Config::load(Path::new("tests/configs/absent.toml")).unwrap_err();
    let said = problems.to_string();
    assert!(
        said.starts_with("tests/configs/absent.toml: cannot read the file: "),
        "{said}"
    );
    assert!(said.ends_with("--config FILE"), "{said}");
}
