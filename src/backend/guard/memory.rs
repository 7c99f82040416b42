//! What a NIC was given, in a file that the next process which serves it reads: a DHCP client that has its address does not ask
//! again because a backend has died.
//!
//! The file is held open, and written whole by one call: a line a lease, as `10.0.0.9/32 86400`, with the second since boot at
//! which it ends, and blanks up to a size that has room for all of them.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use super::MOST_LEASES;

/// The longest line: a prefix of IPv6, a blank, a number of 64 bits, and the line's end.
const LINE: usize = 43 + 1 + 20 + 1;

/// A file of leases.
#[derive(Debug)]
pub struct LeaseFile {
    file: File,
    kept: Vec<(IpNet, Duration)>,
}

impl LeaseFile {
    /// Opens the file at `path`, and makes it where there is none, its owner's alone: who writes there says what a guest may claim.
    /// What is no lease there is passed over.
    ///
    /// # Errors
    /// Those of `open` and `read`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).open(path)?;
        let mut text = String::new();
        // Some other file may be without end.
        let mut start = (&file).take((LINE * MOST_LEASES) as u64);
        let kept = match start.read_to_string(&mut text) {
            Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
            _ => text.lines().filter_map(parse).collect(),
        };
        Ok(Self { file, kept })
    }

    /// What was there when it was opened, each until when, since boot.
    pub fn kept(&self) -> &[(IpNet, Duration)] {
        &self.kept
    }

    /// Writes `leases`, at most `MOST_LEASES`, in the place of what is there.
    ///
    /// # Errors
    /// Those of `pwrite`.
    pub fn write(&self, leases: impl Iterator<Item = (IpNet, Duration)>) -> io::Result<()> {
        let mut text = String::new();
        for (net, until) in leases {
            // To a String, which takes everything.
            let _ = writeln!(text, "{net} {}", until.as_secs());
        }
        let blanks = (LINE * MOST_LEASES).saturating_sub(text.len() + 1);
        text.extend(std::iter::repeat_n(' ', blanks));
        text.push('\n');
        self.file.write_all_at(text.as_bytes(), 0)
    }
}

fn parse(line: &str) -> Option<(IpNet, Duration)> {
    let (net, until) = line.split_once(' ')?;
    Some((net.parse().ok()?, Duration::from_secs(until.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_whatever_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nic0.leases");
        let until = Duration::from_secs(4_000_000_000);
        let all: Vec<_> = (0..MOST_LEASES as u8)
            .map(|last| (format!("2001:db8::{last}/128").parse().unwrap(), until))
            .collect();
        let first = LeaseFile::open(&path).unwrap();
        assert_eq!(first.kept(), []);
        first.write(all.iter().copied()).unwrap();
        assert_eq!(LeaseFile::open(&path).unwrap().kept(), all);
        first.write(all[..1].iter().copied()).unwrap();
        assert_eq!(LeaseFile::open(&path).unwrap().kept(), &all[..1]);

        std::fs::write(&path, "10.0.0.9/32 12\n10.0.0.9\n\nx 1\n10.0.0.9/33 1\n").unwrap();
        let odd = LeaseFile::open(&path).unwrap();
        assert_eq!(odd.kept().len(), 1);
        std::fs::write(&path, [0xff; 9000]).unwrap();
        assert_eq!(LeaseFile::open(&path).unwrap().kept(), []);
    }
}
