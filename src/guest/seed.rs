//! What cloud-init in a guest reads: a small disk with the label `CIDATA` (cloud-init's NoCloud data source).
//!
//! Three files, each YAML, for which JSON passes: `meta-data` names the instance, `user-data` is a cloud-config or the
//! person's own file, and `network-config` (version 2) is made from the networks that the guest is on.

use std::fs::{self, File};
use std::io::{self, Cursor, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::config::{CloudInit, Config, Guest, Network, Nic, SshKey, UserData};
use crate::types::Family;

/// Room for what a person may write, and the least that is a sound FAT.
const SIZE: usize = 1 << 20;

/// Why a guest can't be told.
#[derive(Debug, Error)]
pub enum SeedError {
    /// A file that is named there.
    #[error("cloud-init: {} can't be read: name a file that exists", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// A file for keys without any.
    #[error("cloud-init: there is no public key in {}: name a file such as ~/.ssh/id_ed25519.pub", .0.display())]
    NoKey(PathBuf),
    /// The disk.
    #[error("cloud-init's disk can't be made (user-data of more than {} KiB does not fit)", SIZE / 1024)]
    Make(#[source] io::Error),
}

/// The disk for `guest` of `config`, open for reading; none where the guest is told nothing.
///
/// # Errors
/// See [`SeedError`].
pub fn make(config: &Config, guest: &Guest) -> Result<Option<File>, SeedError> {
    let Some(cloud_init) = &guest.cloud_init else {
        return Ok(None);
    };
    let files = [
        ("meta-data", meta_data(guest, cloud_init)),
        ("user-data", user_data(&cloud_init.user_data)?),
        ("network-config", network_config(config, guest).to_string()),
    ];
    let image = image(&files).map_err(SeedError::Make)?;
    sealed(&image).map(Some).map_err(SeedError::Make)
}

fn meta_data(guest: &Guest, cloud_init: &CloudInit) -> String {
    // The instance stays the same as long as the guest has its name: what is done once a boot is not done again.
    json!({ "instance-id": guest.name.as_str(), "local-hostname": cloud_init.hostname }).to_string()
}

fn user_data(user_data: &UserData) -> Result<String, SeedError> {
    match user_data {
        UserData::File(path) => read(path),
        UserData::Keys {
            user,
            ssh_keys,
            packages,
            run,
        } => {
            let keys = keys(ssh_keys)?;
            let config = cloud_config(user.as_deref(), &keys, packages, run);
            Ok(format!("#cloud-config\n{config}\n"))
        }
    }
}

/// The public keys of all, from files or as they are.
fn keys(ssh_keys: &[SshKey]) -> Result<Vec<String>, SeedError> {
    let mut keys = Vec::new();
    for key in ssh_keys {
        match key {
            SshKey::Text(text) => keys.push(text.clone()),
            SshKey::File(path) => {
                let text = read(path)?;
                let lines = text.lines().map(str::trim);
                let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
                let before = keys.len();
                // A private key would be told to the guest otherwise.
                keys.extend(lines.filter(|line| is_public_key(line)).map(str::to_owned));
                if keys.len() == before {
                    return Err(SeedError::NoKey(path.clone()));
                }
            }
        }
    }
    Ok(keys)
}

fn is_public_key(line: &str) -> bool {
    let kinds = ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"];
    kinds.iter().any(|kind| line.starts_with(kind)) && line.split_whitespace().count() >= 2
}

fn read(path: &PathBuf) -> Result<String, SeedError> {
    fs::read_to_string(path).map_err(|cause| SeedError::Read {
        path: path.clone(),
        cause,
    })
}

fn cloud_config(user: Option<&str>, keys: &[String], packages: &[String], run: &[String]) -> Value {
    let mut config = Map::new();
    match user {
        Some(name) => {
            let user = json!({
                "name": name,
                "groups": "sudo",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "shell": "/bin/bash",
                "lock_passwd": true,
                "ssh_authorized_keys": keys,
            });
            config.insert("users".to_owned(), json!([user]));
        }
        None if !keys.is_empty() => {
            config.insert("ssh_authorized_keys".to_owned(), json!(keys));
        }
        None => {}
    }
    if !packages.is_empty() {
        config.insert("package_update".to_owned(), json!(true));
        config.insert("packages".to_owned(), json!(packages));
    }
    if !run.is_empty() {
        config.insert("runcmd".to_owned(), json!(run));
    }
    Value::Object(config)
}

/// What the guest is told of its networks, by the MAC addresses of its NICs.
fn network_config(config: &Config, guest: &Guest) -> Value {
    let nics = guest.nics.iter().enumerate();
    let ethernets: Map<String, Value> = nics
        .filter_map(|(index, nic)| {
            let network = config.networks.get(&nic.network)?;
            Some((format!("nic{index}"), ethernet(network, nic)))
        })
        .collect();
    json!({ "version": 2, "ethernets": ethernets })
}

/// A NIC with single addresses of its own has them statically, and its way out by the host, which is on none of their
/// subnets: an on-link gateway. Others ask DHCP, and listen for routers.
fn ethernet(network: &Network, nic: &Nic) -> Value {
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
    set("match", json!({ "macaddress": nic.mac.to_string() }));
    // On a LAN they are what the guest gives itself, whoever tells it.
    let told = match network.is_lan() && !network.is_told_addresses() {
        true => Vec::new(),
        false => network.static_addresses(nic),
    };
    let (mut addresses, mut routes, mut servers) = (Vec::new(), Vec::new(), Vec::new());
    for family in Family::BOTH {
        let mut singles = told
            .iter()
            .filter(|ip| Family::of(**ip) == family)
            .peekable();
        let is_static = singles.peek().is_some();
        addresses.extend(singles.map(|ip| match ip {
            IpAddr::V4(ip) => format!("{ip}/32"),
            IpAddr::V6(ip) => format!("{ip}/128"),
        }));
        let mut gateways = network.gateways().into_iter().map(|net| net.addr());
        let gateway = gateways.find(|ip| Family::of(*ip) == family);
        if is_static && let Some(gateway) = gateway {
            let to = match family {
                Family::Ipv4 => "0.0.0.0/0",
                Family::Ipv6 => "::/0",
            };
            routes.push(json!({ "to": to, "via": gateway, "on-link": true }));
            servers.push(gateway);
        }
        let served = network.is_lan() || network.prefix(family).is_some();
        let asks = served && !is_static && !network.is_told_addresses();
        match family {
            Family::Ipv4 => set("dhcp4", json!(asks)),
            // Whether there is DHCPv6 as well, the router says.
            Family::Ipv6 => set("accept-ra", json!(asks)),
        };
    }
    if !addresses.is_empty() {
        set("addresses", json!(addresses));
    }
    if !routes.is_empty() {
        set("routes", json!(routes));
    }
    if !servers.is_empty() {
        set("nameservers", json!({ "addresses": servers }));
    }
    Value::Object(config)
}

/// A FAT of these files.
fn image(files: &[(&str, String)]) -> io::Result<Vec<u8>> {
    let mut disk = Cursor::new(vec![0; SIZE]);
    let options = FormatVolumeOptions::new().volume_label(*b"CIDATA     ");
    fatfs::format_volume(&mut disk, options)?;
    let system = FileSystem::new(&mut disk, FsOptions::new())?;
    for (name, text) in files {
        let mut file = system.root_dir().create_file(name)?;
        file.write_all(text.as_bytes())?;
    }
    system.unmount()?;
    Ok(disk.into_inner())
}

/// `bytes` as a file that is nowhere, open for reading alone.
fn sealed(bytes: &[u8]) -> io::Result<File> {
    let memory = rustix::fs::memfd_create("cloud-init", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(bytes)?;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::path::Path;

    use super::*;

    const FILE: &str = r#"
[networks.default]
mode = "nat"
subnet = "192.168.100.0/24"
[networks.public]
mode = "routed"
subnet = "10.67.0.0/24"
ipv6 = "fd00:67::/64"
[networks.lan]
mode = "bridge"
bridge = "br0"
[guests.web1]
memory = "1G"
nics = [
  { network = "default" },
  { network = "public", addresses = ["203.0.113.7"] },
  { network = "lan" },
]
[guests.web1.cloud-init]
hostname = "www"
user = "admin"
ssh-keys = ["ssh-ed25519 AAAA me@here"]
packages = ["nginx"]
run = ["echo hello"]
"#;

    fn config() -> Config {
        Config::parse(FILE, Path::new("/srv/test.toml")).unwrap()
    }

    #[test]
    fn each_nic_is_told_what_its_network_does() {
        let config = config();
        let guest = &config.guests.values().next().unwrap();
        let told = network_config(&config, guest);
        let nics = &told["ethernets"];
        assert_eq!(told["version"], 2);
        assert_eq!(nics["nic0"]["dhcp4"], true);
        assert_eq!(nics["nic0"]["accept-ra"], false);
        assert_eq!(
            nics["nic0"]["match"]["macaddress"],
            guest.nics[0].mac.to_string()
        );
        let public = &nics["nic1"];
        assert_eq!(public["dhcp4"], false);
        assert_eq!(public["accept-ra"], true);
        assert_eq!(public["addresses"], json!(["203.0.113.7/32"]));
        let route = json!([{ "to": "0.0.0.0/0", "via": "10.67.0.1", "on-link": true }]);
        assert_eq!(public["routes"], route);
        assert_eq!(public["nameservers"]["addresses"], json!(["10.67.0.1"]));
        assert_eq!(nics["nic2"]["dhcp4"], true);
    }

    #[test]
    fn the_disk_is_a_fat_with_three_files() {
        let config = config();
        let guest = config.guests.values().next().unwrap();
        let mut disk = make(&config, guest).unwrap().unwrap();
        let mut bytes = Vec::new();
        disk.read_to_end(&mut bytes).unwrap();
        assert!(disk.write(b"x").is_err());
        let system = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
        assert_eq!(system.volume_label(), "CIDATA");
        let read = |name: &str| {
            let mut text = String::new();
            let mut file = system.root_dir().open_file(name).unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        };
        let meta: Value = serde_json::from_str(&read("meta-data")).unwrap();
        assert_eq!(meta["local-hostname"], "www");
        let user = read("user-data");
        let user = user.strip_prefix("#cloud-config\n").unwrap();
        let user: Value = serde_json::from_str(user).unwrap();
        assert_eq!(user["users"][0]["name"], "admin");
        let keys = json!(["ssh-ed25519 AAAA me@here"]);
        assert_eq!(user["users"][0]["ssh_authorized_keys"], keys);
        assert_eq!(user["packages"], json!(["nginx"]));
        assert_eq!(user["runcmd"], json!(["echo hello"]));
        assert!(read("network-config").contains("\"version\":2"));
    }

    #[test]
    fn a_private_key_is_told_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        let write = |text| fs::write(&path, text).unwrap();
        let read = || keys(&[SshKey::File(path.clone())]);
        write("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNz\n-----END OPENSSH PRIVATE KEY-----\n");
        assert!(matches!(read(), Err(SeedError::NoKey(_))));
        write("# mine\n\nssh-ed25519 AAAA me\necdsa-sha2-nistp256 BBBB\n");
        assert_eq!(
            read().unwrap(),
            ["ssh-ed25519 AAAA me", "ecdsa-sha2-nistp256 BBBB"]
        );
    }
}
