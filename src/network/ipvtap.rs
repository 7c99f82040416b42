//! A guest's ipvtap: a link on an uplink that shares its MAC address with it and with all of its like.
//!
//! The kernel tells what comes in apart by its IP addresses: each ipvtap gets what is for the addresses that are
//! configured on it (`ipvlan_addr4_event`, `ipvlan_addr_lookup`). Those are the guest's, and on a link of the host's they
//! would be the host's as well: it would deliver to itself what it sends there, count what comes from there as forged, and
//! answer in the guest's place while no queue is attached (`tap_handle_frame` then passes frames on to the host). So an
//! ipvtap lives in a network namespace of its own, without a name, where no route leads an answer out. Its queues were
//! opened before it moved there, and stay attached.
//!
//! The namespace is kept by descriptors that the launcher and the backend hold, and goes with the last of them.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_setfd};
use thiserror::Error;

use super::apply::netlink::{Netlink, NetlinkError};
use super::apply::sysctl;
use super::inventory::link_key;
use super::netns::Namespace;
use crate::tap::{self, TapError};
use crate::types::{Family, IfName, MacAddr, Mtu, QueuePairs};

/// Why an ipvtap can't be had.
#[derive(Debug, Error)]
pub enum IpvtapError {
    /// The link, its addresses or its move.
    #[error(transparent)]
    Link(#[from] NetlinkError),
    /// Its queues.
    #[error(transparent)]
    Queues(#[from] TapError),
    /// The namespace that it lives in.
    #[error("cannot make or enter the network namespace of {link}: run as root")]
    Namespace {
        /// The ipvtap.
        link: IfName,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
}

/// An ipvtap with its queues; it is deleted with this value.
#[derive(Debug)]
pub struct Ipvtap {
    name: IfName,
    namespace: Namespace,
    queues: Vec<OwnedFd>,
    mac: MacAddr,
    mtu: u32,
}

impl Ipvtap {
    /// Makes an ipvtap on `uplink`, up, that gets what is for `addresses`, with a queue a pair; its MTU is the uplink's unless
    /// there is one given.
    ///
    /// # Errors
    /// See [`IpvtapError`]; nothing is left behind then.
    pub fn make(
        name: &IfName,
        uplink: &IfName,
        addresses: &[IpAddr],
        pairs: QueuePairs,
        mtu: Option<Mtu>,
    ) -> Result<Self, IpvtapError> {
        let failed = |cause| IpvtapError::Namespace {
            link: name.clone(),
            cause,
        };
        let netlink = Netlink::open()?;
        let namespace = Namespace::unnamed().map_err(failed)?;
        netlink.delete_link(name)?; // one that was left on its way to a namespace
        let mac = netlink.mac(uplink)?;
        netlink.add_ipvtap(name, uplink)?;
        let open_and_move = || {
            let queues = tap::open_queues(name, pairs)?;
            netlink.move_to(name, namespace.as_fd())?;
            Ok::<_, IpvtapError>(queues)
        };
        let queues = open_and_move().inspect_err(|_| {
            let _ = netlink.delete_link(name);
        })?;
        let mut ipvtap = Self {
            name: name.clone(),
            namespace,
            queues,
            mac,
            mtu: 0,
        };
        let inside = || settle(name, addresses, mtu);
        ipvtap.mtu = ipvtap.namespace.within(inside).map_err(failed)??;
        Ok(ipvtap)
    }

    /// Its name, within its namespace.
    pub fn name(&self) -> &IfName {
        &self.name
    }

    /// The uplink's MAC address, which the guest must have too.
    pub fn mac(&self) -> MacAddr {
        self.mac
    }

    /// Its MTU in bytes.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// The numbers of its queues' descriptors, which a process inherits that [`Ipvtap::handing_over`] starts.
    pub fn queues(&self) -> Vec<RawFd> {
        self.queues.iter().map(AsRawFd::as_raw_fd).collect()
    }

    /// Does `start`, which starts one process: that inherits the queues, all of them attached, and keeps the namespace. No
    /// other thread may start one meanwhile.
    ///
    /// # Errors
    /// Those of `fcntl` and `TUNSETQUEUE`.
    pub fn handing_over<T>(&self, start: impl FnOnce() -> T) -> io::Result<T> {
        // One that came to an end may have left them detached.
        self.queues.iter().try_for_each(tap::attach_again)?;
        self.set_flags(FdFlags::empty())?;
        let started = start();
        self.set_flags(FdFlags::CLOEXEC)?;
        Ok(started)
    }

    fn set_flags(&self, flags: FdFlags) -> io::Result<()> {
        let queues = self.queues.iter().map(AsFd::as_fd);
        let mut all = queues.chain([self.namespace.as_fd()]);
        Ok(all.try_for_each(|fd| fcntl_setfd(fd, flags))?)
    }
}

impl Drop for Ipvtap {
    fn drop(&mut self) {
        // The kernel deletes what is in a namespace some time after it; until then the addresses would be taken.
        let delete = || Netlink::open()?.delete_link(&self.name);
        match self.namespace.within(delete) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("ipvtap {} stays: {error}", self.name),
            Err(error) => tracing::warn!("ipvtap {} stays: {error}", self.name),
        }
    }
}

/// Makes the ipvtap what it is to be, from within its namespace. Gives its MTU in bytes.
fn settle(name: &IfName, addresses: &[IpAddr], mtu: Option<Mtu>) -> Result<u32, IpvtapError> {
    let netlink = Netlink::open()?;
    // It has no addresses but the guest's, and sends nothing.
    for (key, value) in [("addr_gen_mode", "1"), ("accept_ra", "0")] {
        let key = link_key(Family::Ipv6, name.as_str(), key);
        let failed = |cause| IpvtapError::Namespace {
            link: name.clone(),
            cause,
        };
        sysctl::set(&key, value).map_err(failed)?;
    }
    netlink.add_addresses(name, addresses)?;
    if let Some(mtu) = mtu {
        netlink.set_mtu(name, mtu.into())?;
    }
    netlink.set_up(name)?;
    Ok(netlink.mtu(name)?)
}
