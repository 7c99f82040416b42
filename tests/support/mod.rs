//! What several integration tests share. Each test binary uses a part of it.
#![allow(dead_code)]

pub mod console;
pub mod driver;
pub mod front_end;
pub mod lab;
pub mod netns;
pub mod web;

use std::io::Write;
use std::process::Command;

/// As coreutils sees it, which is not what the guest's busybox computes with.
pub fn sha256(bytes: &[u8]) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let output = netns::bounded(Command::new("sha256sum").arg(file.path()), "");
    String::from_utf8_lossy(&output.stdout)[..64].to_owned()
}
