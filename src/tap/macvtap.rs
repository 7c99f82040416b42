//! The character devices of macvtaps and ipvtaps, each open of which is a queue.
//!
//! May touch: `/dev/tapN`, nodes of its own beside it, `/sys/class/net` to find a link's device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::TapError;
use super::{NEEDED_FLAGS, sys};
use crate::types::{IfName, QueuePairs};

/// Opens a queue a pair of the macvtap or ipvtap `name`, for other processes to take over by
/// [`Tap::from_fds`](super::Tap::from_fds).
///
/// # Errors
/// See [`TapError`].
pub fn open_queues(name: &IfName, pairs: QueuePairs) -> Result<Vec<OwnedFd>, TapError> {
    let node = MacvtapNode::find(name)?;
    let queues = (0..pairs.get()).map(|_| node.open(name).map(OwnedFd::from));
    queues.collect()
}

/// Attaches a queue of a macvtap or ipvtap that a process may have detached: such a queue does not tell.
///
/// # Errors
/// Those of `TUNSETQUEUE`.
pub fn attach_again(queue: &OwnedFd) -> io::Result<()> {
    match sys::set_queue(queue, true) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()), // it is attached
        done => done,
    }
}

/// A macvtap's character device.
pub(super) struct MacvtapNode {
    path: PathBuf,
    /// Made by this process, and to be removed.
    private: bool,
}

impl MacvtapNode {
    /// The device of `name`. `/dev` is one for all namespaces, so a node there is told by its numbers.
    pub(super) fn find(name: &IfName) -> Result<Self, TapError> {
        let link = Path::new("/sys/class/net").join(name.as_str());
        let index = std::fs::read_to_string(link.join("ifindex"))
            .map_err(|_| TapError::NoMacvtap(name.clone()))?;
        let tap = format!("tap{}", index.trim());
        let (major, minor) = std::fs::read_to_string(link.join(&tap).join("dev"))
            .ok()
            .and_then(|text| device_numbers(&text))
            .ok_or_else(|| TapError::NotAMacvtap(name.clone()))?;
        let device = rustix::fs::makedev(major, minor);
        let path = Path::new("/dev").join(&tap);
        if std::fs::metadata(&path).is_ok_and(|node| node.rdev() == device) {
            return Ok(Self {
                path,
                private: false,
            });
        }
        let private = Path::new("/dev").join(format!(".ringtap-{}-{tap}", std::process::id()));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &private,
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            device,
        )
        .map_err(|cause| TapError::NoNode {
            name: name.clone(),
            node: path,
            major,
            minor,
            cause: cause.into(),
        })?;
        Ok(Self {
            path: private,
            private: true,
        })
    }

    /// Opens one more queue of the macvtap `name`.
    pub(super) fn open(&self, name: &IfName) -> Result<File, TapError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&self.path)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => TapError::MacvtapNotPermitted {
                    name: name.clone(),
                    node: self.path.clone(),
                },
                Some(libc::EBUSY | libc::E2BIG) => TapError::Busy(name.clone()),
                _ => TapError::kernel(name, "open its character device", error),
            })?;
        sys::attach(&file, name, NEEDED_FLAGS)
            .map_err(|cause| TapError::kernel(name, "set a queue's flags", cause))?;
        Ok(file)
    }
}

impl Drop for MacvtapNode {
    fn drop(&mut self) {
        if self.private {
            // Best effort: the node works for nobody without rights to it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// `MAJOR:MINOR` as sysfs writes it.
fn device_numbers(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
