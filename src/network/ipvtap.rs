//! A guest's ipvtap: a link on an uplink that shares its MAC address with it and with all of its like.
//!
//! The kernel tells what comes in apart by its IP addresses: each ipvtap gets what is for the addresses that are
//! configured on it (`ipvlan_addr4_event`, `ipvlan_addr_lookup`). Those are the guest's, and on a link of the host's they
//! would be the host's as well: it would deliver to itself what it sends there, count what comes from there as forged, and
//! answer in the guest's place while no queue is attached (`tap_handle_frame` then passes frames on to the host). So an
//! ipvtap lives in a network namespace of its own, without a name, where no route leads an answer out. Its queues were
//! opened before it moved there, and stay attached.
//!
//! The namespace is kept by descriptors that the supervisor and the backend hold, and goes with the last of them: what one of
//! them has is enough for the other to be started anew.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::thread;
use std::time::Duration;

use command_fds::FdMapping;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::apply::netlink::{Netlink, NetlinkError, is_up};
use super::apply::sysctl;
use super::inventory::link_key;
use super::netns::Namespace;
use super::port::Found;
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
    /// The uplink is another than the guest was told.
    #[error("{uplink} has MAC address {mac} now, and the guest {before}: restart the guest")]
    OtherMac {
        /// The uplink.
        uplink: IfName,
        /// What it has.
        mac: MacAddr,
        /// What the guest has.
        before: MacAddr,
    },
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

/// The first descriptor that is handed over has this number; those before it are the standard ones.
const HANDED_OVER: RawFd = 3;

/// An ipvtap with its queues; it is deleted with this value.
#[derive(Debug)]
pub struct Ipvtap {
    wish: IpvtapWish,
    namespace: Namespace,
    queues: Vec<OwnedFd>,
    mac: MacAddr,
    mtu: u32,
}

/// What an ipvtap is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvtapWish {
    /// Its name.
    pub name: IfName,
    /// The link that it is on.
    pub uplink: IfName,
    /// It gets what is for these.
    pub addresses: Vec<IpAddr>,
    /// It has a queue for each pair.
    pub pairs: QueuePairs,
    /// Its MTU, if not the uplink's.
    pub mtu: Option<Mtu>,
}

impl IpvtapWish {
    /// The numbers that the descriptors of its queues have in the process that they are handed over to.
    pub fn queues(&self) -> impl Iterator<Item = RawFd> {
        (HANDED_OVER..).take(self.pairs.get().into())
    }

    /// The number that its namespace's has there.
    fn namespace(&self) -> RawFd {
        HANDED_OVER + RawFd::from(self.pairs.get())
    }
}

impl Ipvtap {
    /// Makes an ipvtap, up.
    ///
    /// # Errors
    /// See [`IpvtapError`]; nothing is left behind then.
    pub fn make(wish: &IpvtapWish) -> Result<Self, IpvtapError> {
        let name = &wish.name;
        let failed = |cause| wish.failed(cause);
        let netlink = Netlink::open()?;
        let namespace = Namespace::unnamed().map_err(failed)?;
        netlink.delete_link(name)?; // one that was left on its way to a namespace
        let mac = netlink.mac(&wish.uplink)?;
        netlink.add_ipvtap(name, &wish.uplink)?;
        let open_and_move = || {
            let queues = tap::open_queues(name, wish.pairs)?;
            netlink.move_to(name, namespace.as_fd())?;
            Ok::<_, IpvtapError>(queues)
        };
        let queues = open_and_move().inspect_err(|_| {
            let _ = netlink.delete_link(name);
        })?;
        let mut ipvtap = Self {
            wish: wish.clone(),
            namespace,
            queues,
            mac,
            mtu: 0,
        };
        let inside = || settle(wish);
        ipvtap.mtu = ipvtap.namespace.within(inside).map_err(failed)??;
        Ok(ipvtap)
    }

    /// As [`Ipvtap::make`], where one that had the same addresses has just lost the last process that held it: the kernel
    /// deletes it a while after.
    ///
    /// # Errors
    /// As [`Ipvtap::make`], and it has not been deleted within seconds.
    pub fn make_when_free(wish: &IpvtapWish) -> Result<Self, IpvtapError> {
        let mut tries = 50;
        loop {
            match Self::make(wish) {
                Err(_) if tries > 0 => tries -= 1,
                made => return made,
            }
            // The kernel tells nobody when it has deleted what was in a namespace.
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Takes over the ipvtap that was handed over to the process of this pidfd.
    ///
    /// # Errors
    /// The process has ended, or its descriptors can't be had.
    pub fn adopt(wish: &IpvtapWish, holder: BorrowedFd<'_>) -> Result<Self, IpvtapError> {
        let take = |number| {
            let taken = pidfd_getfd(holder, number, PidfdGetfdFlags::empty());
            taken.map_err(|errno| wish.failed(errno.into()))
        };
        let queues = wish.queues().map(take).collect::<Result<_, _>>()?;
        let namespace = Namespace::from(take(wish.namespace())?);
        let look = || {
            let netlink = Netlink::open()?;
            Ok::<_, NetlinkError>((netlink.mac(&wish.name)?, netlink.mtu(&wish.name)?))
        };
        let looked = namespace.within(look);
        let (mac, mtu) = looked.map_err(|cause| wish.failed(cause))??;
        Ok(Self {
            wish: wish.clone(),
            namespace,
            queues,
            mac,
            mtu,
        })
    }

    /// What has become of it.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn look(&self) -> Result<Found, IpvtapError> {
        let name = &self.wish.name;
        let look = || Netlink::open()?.link(name);
        let looked = self.namespace.within(look);
        let link = looked.map_err(|cause| self.wish.failed(cause))??;
        let uplink = Netlink::open()?.link(&self.wish.uplink)?;
        Ok(match (link, uplink) {
            (None, uplink) => Found::Deleted {
                trunk: uplink.is_some(),
            },
            (Some(link), _) if !is_up(&link) => Found::Down,
            (Some(_), Some(uplink)) if !is_up(&uplink) => Found::CutOff,
            (Some(_), _) => Found::Attached,
        })
    }

    /// What to tell a person of that.
    pub fn complaint(&self, found: Found) -> Option<String> {
        found.complaint(&self.wish.name, &self.wish.uplink)
    }

    /// Makes it again after it was deleted.
    ///
    /// # Errors
    /// As [`Ipvtap::make`], and the uplink has another MAC address than the guest by now.
    pub fn make_again(&mut self) -> Result<(), IpvtapError> {
        let made = Self::make(&self.wish)?;
        if made.mac != self.mac {
            return Err(IpvtapError::OtherMac {
                uplink: self.wish.uplink.clone(),
                mac: made.mac,
                before: self.mac,
            });
        }
        *self = made;
        Ok(())
    }

    /// The uplink's MAC address, which the guest must have too.
    pub fn mac(&self) -> MacAddr {
        self.mac
    }

    /// Its MTU in bytes.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Its queues, all of them attached, and its namespace, for one process to inherit.
    ///
    /// # Errors
    /// Those of `dup` and `TUNSETQUEUE`.
    pub fn handed_over(&self) -> io::Result<Vec<FdMapping>> {
        // One that came to an end may have left them detached.
        self.queues.iter().try_for_each(tap::attach_again)?;
        let map = |(fd, child_fd): (BorrowedFd<'_>, RawFd)| {
            let parent_fd = fd.try_clone_to_owned()?;
            Ok(FdMapping {
                parent_fd,
                child_fd,
            })
        };
        let queues = self.queues.iter().map(AsFd::as_fd);
        let namespace = (self.namespace.as_fd(), self.wish.namespace());
        let all = queues.zip(self.wish.queues()).chain([namespace]);
        all.map(map).collect()
    }
}

impl Drop for Ipvtap {
    fn drop(&mut self) {
        // The kernel deletes what is in a namespace some time after it; until then the addresses would be taken.
        let delete = || Netlink::open()?.delete_link(&self.wish.name);
        match self.namespace.within(delete) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("ipvtap {} stays: {error}", self.wish.name),
            Err(error) => tracing::warn!("ipvtap {} stays: {error}", self.wish.name),
        }
    }
}

impl IpvtapWish {
    fn failed(&self, cause: io::Error) -> IpvtapError {
        IpvtapError::Namespace {
            link: self.name.clone(),
            cause,
        }
    }
}

/// Makes the ipvtap what it is to be, from within its namespace. Gives its MTU in bytes.
fn settle(wish: &IpvtapWish) -> Result<u32, IpvtapError> {
    let netlink = Netlink::open()?;
    let name = &wish.name;
    // It has no addresses but the guest's, and sends nothing.
    for (key, value) in [("addr_gen_mode", "1"), ("accept_ra", "0")] {
        let key = link_key(Family::Ipv6, name.as_str(), key);
        sysctl::set(&key, value).map_err(|cause| wish.failed(cause))?;
    }
    netlink.add_addresses(name, &wish.addresses)?;
    if let Some(mtu) = wish.mtu {
        netlink.set_mtu(name, mtu.into())?;
    }
    netlink.set_up(name)?;
    Ok(netlink.mtu(name)?)
}
