//! What keeps this process from having a tap, in the words of who has to help.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::TUN_DEVICE;
use crate::types::IfName;

/// Why a tap can't be had; each names the tap, what is in the way and the remedy.
#[derive(Debug, Error)]
pub enum TapError {
    /// The host has no tun driver.
    #[error("no {TUN_DEVICE}: load the tun module (modprobe tun)")]
    NoDriver(#[source] io::Error),
    /// The caller may neither make taps nor use this one.
    #[error(
        "not permitted to use tap {0}: run as root, or give the tap to this user \
         (ip tuntap add dev {0} mode tap multi_queue vnet_hdr user USER)"
    )]
    NotPermitted(IfName),
    /// Another process has the tap's queues.
    #[error(
        "tap {0} is busy: another process is attached to it; stop that one, or name another tap"
    )]
    Busy(IfName),
    /// The link exists and is no tap at all.
    #[error("link {0} exists and is not a tap: name another, or delete it (ip link delete {0})")]
    NotATap(IfName),
    /// The tap was made with other flags than are needed.
    #[error(
        "tap {name} has {has}, and ringtap needs tap, multi_queue and vnet_hdr: make it anew \
         (ip tuntap del dev {name} mode {mode}{mq}; ip tuntap add dev {name} mode tap multi_queue vnet_hdr)"
    )]
    WrongFlags {
        /// The tap.
        name: IfName,
        /// The flags it has, as iproute2 calls them.
        has: String,
        /// The mode to delete it by: `tap` or `tun`.
        mode: &'static str,
        /// ` multi_queue` where it has that, since deleting needs the same flag.
        mq: &'static str,
    },
    /// There is no link of the name given for a macvtap.
    #[error(
        "no link {0}: make the macvtap (ip link add link LINK name {0} type macvtap mode bridge; \
         ip link set {0} up), or name another"
    )]
    NoMacvtap(IfName),
    /// The link exists and is no macvtap.
    #[error(
        "link {0} exists and is not a macvtap: name another, or make one \
         (ip link add link {0} name NAME type macvtap mode bridge; ip link set NAME up)"
    )]
    NotAMacvtap(IfName),
    /// The macvtap's character device may not be opened.
    #[error(
        "not permitted to use macvtap {name}: run as root, or give its device to this user \
         (chown USER {node})"
    )]
    MacvtapNotPermitted {
        /// The macvtap.
        name: IfName,
        /// Its device.
        node: PathBuf,
    },
    /// The macvtap has no device in `/dev`, and this process may not make one.
    #[error(
        "macvtap {name} has no {node}: run as root, or make it \
         (rm -f {node}; mknod -m 600 {node} c {major} {minor}; chown USER {node})"
    )]
    NoNode {
        /// The macvtap.
        name: IfName,
        /// Where its device should be.
        node: PathBuf,
        /// The device's numbers.
        major: u32,
        /// The second one.
        minor: u32,
        /// Why it can't be made.
        #[source]
        cause: io::Error,
    },
    /// An inherited descriptor is no queue of a tap.
    #[error(
        "inherited descriptor {number} of --tap-fd is not an attached queue: pass one that did TUNSETIFF, or an open \
         of a macvtap's /dev/tapN"
    )]
    NotAQueue {
        /// Which one, counted from 0.
        number: usize,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// An inherited queue was attached with other flags than are needed.
    #[error(
        "the inherited queue of {name} has {has}, and ringtap needs mode tap and vnet_hdr, and no pi: attach it with \
         IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"
    )]
    WrongQueue {
        /// The link.
        name: IfName,
        /// The flags it has, as iproute2 calls them.
        has: String,
    },
    /// Inherited queues are of two links.
    #[error("inherited queues belong to {0} and {1}: pass queues of one tap")]
    TwoTaps(IfName, IfName),
    /// The kernel refused a step.
    #[error("tap {name}: {step}")]
    Kernel {
        /// The tap.
        name: IfName,
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
}

impl TapError {
    /// The kernel refused `step` of what was done with `name`.
    pub(super) fn kernel(name: &IfName, step: &'static str, cause: io::Error) -> Self {
        Self::Kernel {
            name: name.clone(),
            step,
            cause,
        }
    }
}
