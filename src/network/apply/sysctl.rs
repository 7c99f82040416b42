//! Sysctls: IPv4 forwarding, with all that the kernel changes along with it.
//!
//! Setting `ip_forward` sets `forwarding` of every link and flips `accept_redirects` of `all`
//! (ip-sysctl.rst: "changing its value resets all configuration parameters to their default state"), so those are read
//! before and put back after.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::{fs, io};

use crate::network::inventory::IP_FORWARD;

/// Where sysctls are; their names have slashes for dots.
const ROOT: &str = "/proc/sys";
/// Of each link, and of `all` and `default`.
const PER_LINK: &str = "/proc/sys/net/ipv4/conf";

/// `ip_forward` and what changes along with it, by name.
///
/// # Errors
/// `/proc` is not readable.
pub fn forwarding() -> io::Result<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    let mut read = |name: String| -> io::Result<()> {
        match fs::read_to_string(file(&name)) {
            Ok(value) => values.insert(name, value.trim().to_owned()),
            // A link that went away in between.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(())
    };
    read(IP_FORWARD.to_owned())?;
    read("net.ipv4.conf.all.accept_redirects".to_owned())?;
    for entry in fs::read_dir(PER_LINK)? {
        if let Ok(link) = entry?.file_name().into_string() {
            // Dots in link names are written as slashes (sysctl(8)).
            read(format!(
                "net.ipv4.conf.{}.forwarding",
                link.replace('.', "/")
            ))?;
        }
    }
    Ok(values)
}

/// Sets `ip_forward`.
///
/// # Errors
/// It can't be written.
pub fn enable_forwarding() -> io::Result<()> {
    fs::write(file(IP_FORWARD), "1")
}

/// Puts `before` back: `ip_forward` first, then what the kernel did not reset by itself.
///
/// # Errors
/// One of them can't be written.
pub fn restore_forwarding(before: &BTreeMap<String, String>) -> io::Result<()> {
    let now = forwarding()?;
    if let Some(value) = before.get(IP_FORWARD) {
        if now.get(IP_FORWARD) != Some(value) {
            fs::write(file(IP_FORWARD), value)?;
        }
    }
    for (name, value) in forwarding()? {
        if let Some(old) = before.get(&name).filter(|old| **old != value) {
            fs::write(file(&name), old)?;
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
