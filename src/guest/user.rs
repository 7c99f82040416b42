//! As whom QEMU runs.
//!
//! Each guest's QEMU runs as a user of its own, without a name and derived from the guest's: what breaks out of one can
//! neither signal nor trace another, and owns no file. The numbers are of a range that no distribution and no container
//! manager gives to anybody (systemd's "Users, Groups, UIDs and GIDs on systemd Systems": 1879048192 to 2147483647).

#![allow(unsafe_code)] // Command::pre_exec; nothing else.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Gid, Uid};
use thiserror::Error;

use super::accel::Accelerator;
use crate::backend::UserIds;
use crate::types::{IfName, Name, fnv1a};

/// The first number of the range.
const FIRST: u32 = 0x7000_0000;
/// So many of them are used.
const COUNT: u64 = 1 << 24;

/// The device that KVM is used by.
const KVM: &str = "/dev/kvm";

/// Why QEMU can't run as whom it is to.
#[derive(Debug, Error)]
pub enum UserError {
    /// There is no such user.
    #[error(
        "there is no user {0:?}: make one, or leave user out, for QEMU to run as one of its own"
    )]
    Unknown(String),
    /// Users can't be looked up.
    #[error("users can't be looked up")]
    Lookup(#[source] io::Error),
    /// It may not open /dev/kvm, by whatever group.
    #[error("QEMU, which is not root, may not open {KVM}: chgrp kvm {KVM} && chmod g+rw {KVM}")]
    Kvm,
}

/// A user to run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl User {
    /// As whom the QEMU of `guest` runs: the user of that name or, where there is none, one of its own.
    ///
    /// # Errors
    /// See [`UserError`].
    pub fn of(guest: &Name, name: Option<&str>, accel: Accelerator) -> Result<Self, UserError> {
        let mut user = match name {
            None => Self::own(guest),
            Some(name) => {
                let found = nix::unistd::User::from_name(name);
                let found = found.map_err(|errno| UserError::Lookup(errno.into()))?;
                let found = found.ok_or_else(|| UserError::Unknown(name.to_owned()))?;
                Self {
                    uid: found.uid,
                    gid: found.gid,
                    groups: Vec::new(),
                }
            }
        };
        if accel == Accelerator::Kvm && !user.is_root() {
            user.groups.extend(group_of_kvm()?);
        }
        Ok(user)
    }

    /// One of the guest's own.
    fn own(guest: &Name) -> Self {
        let number = FIRST + (fnv1a(guest.as_str()) % COUNT) as u32;
        Self {
            uid: Uid::from_raw(number),
            gid: Gid::from_raw(number),
            groups: Vec::new(),
        }
    }

    /// Whether it may do anything.
    pub fn is_root(&self) -> bool {
        self.uid.is_root()
    }

    /// Its group, for what it is to have of others.
    pub fn group(&self) -> u32 {
        self.gid.as_raw()
    }

    /// Has `command` run as this user, without a way to become another.
    pub fn runs(&self, command: &mut Command) {
        let Self { uid, gid, groups } = self.clone();
        let become_it = move || {
            nix::unistd::setgroups(&groups)?;
            nix::unistd::setgid(gid)?;
            nix::unistd::setuid(uid)?;
            nix::sys::prctl::set_no_new_privs()?;
            Ok(())
        };
        // SAFETY: between fork and exec only what is safe in a signal handler may be done. The closure makes four system
        // calls by thin wrappers that allocate nothing: `groups` was made before, and the errors are numbers.
        unsafe { command.pre_exec(become_it) };
    }
}

/// As whom the backend of the NIC with this tap goes on: nobody else either, not even its guest's QEMU.
pub fn of_backend(tap: &IfName) -> UserIds {
    let number = FIRST + COUNT as u32 + (fnv1a(tap.as_str()) % COUNT) as u32;
    UserIds {
        uid: number,
        gid: number,
    }
}

/// The group that lets its members open /dev/kvm; none where everybody may.
fn group_of_kvm() -> Result<Option<Gid>, UserError> {
    let there = Path::new(KVM).metadata().map_err(UserError::Lookup)?;
    let mode = there.permissions().mode();
    if mode & 0o006 == 0o006 {
        Ok(None)
    } else if mode & 0o060 == 0o060 && there.gid() != 0 {
        Ok(Some(Gid::from_raw(there.gid())))
    } else {
        Err(UserError::Kvm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_have_users_of_their_own_that_stay_the_same() {
        let user = |name: &str| User::of(&name.parse().unwrap(), None, Accelerator::Tcg).unwrap();
        assert_eq!(user("web1"), user("web1"));
        assert_ne!(user("web1"), user("web2"));
        let number = user("web1").group();
        assert!((0x7000_0000..0x7100_0000).contains(&number));
        let backend = |tap: &str| of_backend(&tap.parse().unwrap()).uid;
        assert_ne!(backend("web1-0"), backend("web1-1"));
        assert!((0x7100_0000..0x7200_0000).contains(&backend("web1-0")));
        assert!(!user("web1").is_root());
    }

    #[test]
    fn named_users_are_looked_up() {
        let user = |name| User::of(&"web1".parse().unwrap(), Some(name), Accelerator::Tcg);
        assert!(user("root").unwrap().is_root());
        assert!(matches!(user("no-such-user"), Err(UserError::Unknown(_))));
    }
}
