//! Sysctls: what plans depend on, and forwarding with all that the kernel changes along with it.
//!
//! Making a host forward sets `forwarding` of every link, and for IPv4 flips `accept_redirects` of `all` (ip-sysctl.rst:
//! "changing its value resets all configuration parameters to their default state"), so those are read
//! before and put back after.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::{fs, io};

use crate::network::inventory::{INOTIFY_INSTANCES, forwarding_key, link_key};
use crate::types::Family;

/// Where sysctls are; their names have slashes for dots.
const ROOT: &str = "/proc/sys";

/// What IPv4 forwarding flips.
const ACCEPT_REDIRECTS: &str = "net.ipv4.conf.all.accept_redirects";

/// What makes the host forward packets of `family` and what changes along with it, by name; nothing where the kernel does
/// not have the family.
fn forwarding(family: Family) -> io::Result<BTreeMap<String, String>> {
    let (per_link, mut names) = match family {
        Family::Ipv4 => ("net.ipv4.conf", vec![ACCEPT_REDIRECTS.to_owned()]),
        Family::Ipv6 => ("net.ipv6.conf", Vec::new()),
    };
    names.push(forwarding_key(family).to_owned());
    let links = match fs::read_dir(file(per_link)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        links => links?,
    };
    for entry in links {
        if let Ok(link) = entry?.file_name().into_string() {
            names.push(link_key(family, &link, "forwarding"));
        }
    }
    values(names)
}

/// What is limited and plans may raise, by name.
///
/// # Errors
/// `/proc` is not readable.
pub fn limits() -> io::Result<BTreeMap<String, String>> {
    values([INOTIFY_INSTANCES.to_owned()])
}

/// What makes the host forward and what changes along with it, by name, but for what each link has of its own; nothing of a
/// family that the kernel does not have.
///
/// # Errors
/// `/proc` is not readable.
pub fn of_all_links() -> io::Result<BTreeMap<String, String>> {
    let forwarding = |link| Family::BOTH.map(|family| link_key(family, link, "forwarding"));
    let switches = Family::BOTH.map(|family| forwarding_key(family).to_owned());
    let names = [switches, forwarding("all"), forwarding("default")].concat();
    values(names.into_iter().chain([ACCEPT_REDIRECTS.to_owned()]))
}

/// The values of those of `names` that are there.
///
/// # Errors
/// `/proc` is not readable.
pub fn values(names: impl IntoIterator<Item = String>) -> io::Result<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    for name in names {
        match fs::read_to_string(file(&name)) {
            Ok(value) => values.insert(name, value.trim().to_owned()),
            // A link that went away in between.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
    }
    Ok(values)
}

/// Sets `key`; that its link is gone is fine.
///
/// # Errors
/// It can't be written.
pub fn set(key: &str, value: &str) -> io::Result<()> {
    match fs::write(file(key), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Puts `before` back: the switch first, then what the kernel did not reset by itself.
///
/// # Errors
/// One of them can't be written.
pub fn restore_forwarding(family: Family, before: &BTreeMap<String, String>) -> io::Result<()> {
    let switch = forwarding_key(family);
    let now = forwarding(family)?;
    if let Some(value) = before.get(switch) {
        if now.get(switch) != Some(value) {
            set(switch, value)?;
        }
    }
    for (name, value) in forwarding(family)? {
        if let Some(old) = before.get(&name).filter(|old| **old != value) {
            set(&name, old)?;
        }
    }
    Ok(())
}

fn file(name: &str) -> PathBuf {
    let path: String = name
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            c => c,
        })
        .collect();
    PathBuf::from(ROOT).join(path)
}
