//! Descriptors that a process inherits, each by a number that is known before it is started.

use std::os::fd::{OwnedFd, RawFd};
use std::process::Command;

use command_fds::{CommandFdExt, FdMapping};

/// Those before are the standard ones.
const FIRST: RawFd = 3;

/// What a process is to inherit.
#[derive(Debug, Default)]
pub struct Handed(Vec<OwnedFd>);

impl Handed {
    /// Adds one; gives its number in the process.
    pub fn add(&mut self, fd: impl Into<OwnedFd>) -> RawFd {
        self.0.push(fd.into());
        FIRST + self.0.len() as RawFd - 1
    }

    /// Has `command` hand them over. They are closed here with it.
    pub fn over(self, command: &mut Command) {
        let mappings = self.0.into_iter().zip(FIRST..);
        let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping {
            parent_fd,
            child_fd,
        });
        let mapped = command.fd_mappings(mappings.collect());
        mapped.expect("each has a number of its own");
    }
}
