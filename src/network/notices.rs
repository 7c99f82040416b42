//! The kernel's notices that something has changed: netlink's multicast groups (netlink(7), rtnetlink(7)).
//!
//! What they say is not read. Each is a reason to look, and so is that some were lost. A look waits a moment for what comes along
//! (`SETTLE`), and longer where the last one was just now (`GAP`): a host on which something changes all the time is looked at
//! twice a second ([`Soon`]).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events};
use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with,
};
use vmm_sys_util::timerfd::TimerFd;

use super::netns;
use super::plan::namespace;
use crate::types::Name;

/// How long a look waits for what belongs together.
const SETTLE: Duration = Duration::from_millis(50);

/// The least time from one look to the next.
const GAP: Duration = Duration::from_millis(500);

/// Notices of some kind; readable when one has come.
#[derive(Debug)]
pub struct Notices(OwnedFd);

impl Notices {
    /// Those of links, addresses and routes.
    ///
    /// # Errors
    /// Those of `socket` and `bind`.
    pub fn of_links() -> io::Result<Self> {
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE;
        // NETLINK_ROUTE is 0, netlink's default.
        Self::subscribe(None, groups as u32)
    }

    /// Those of links, and nothing else of theirs.
    ///
    /// # Errors
    /// Those of `socket` and `bind`.
    pub fn of_links_alone() -> io::Result<Self> {
        Self::subscribe(None, libc::RTMGRP_LINK as u32)
    }

    /// Those of nftables, one a transaction at least.
    ///
    /// # Errors
    /// Those of `socket` and `bind`.
    pub fn of_tables() -> io::Result<Self> {
        // Groups count from 1, bits from 0.
        Self::subscribe(Some(NETFILTER), 1 << (libc::NFNLGRP_NFTABLES - 1))
    }

    fn subscribe(protocol: Option<Protocol>, groups: u32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self(socket))
    }

    /// Takes what has come, so that only what comes later is news.
    ///
    /// # Errors
    /// Those of `recv`, but for notices that were lost.
    pub fn drain(&self) -> io::Result<()> {
        loop {
            match recv(&self.0, &mut [0_u8; 64], RecvFlags::empty()) {
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::NOBUFS | Errno::INTR) | Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsRawFd for Notices {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Notices in the namespaces of tenants. Of one that is gone nothing may be held: the kernel would keep it.
#[derive(Debug)]
pub struct TenantNotices {
    subscribe: fn() -> io::Result<Vec<Notices>>,
    /// What tells them from others in an event loop.
    event: u32,
    heard: BTreeMap<Name, Elsewhere>,
}

/// Those of one namespace.
#[derive(Debug)]
struct Elsewhere {
    id: netns::Id,
    notices: Vec<Notices>,
}

impl TenantNotices {
    /// What `subscribe` gives in each namespace, as `event`; of none yet.
    pub fn new(event: u32, subscribe: fn() -> io::Result<Vec<Notices>>) -> Self {
        Self {
            subscribe,
            event,
            heard: BTreeMap::new(),
        }
    }

    /// Listens in the namespaces of `tenants`, and in no others. Whether there is one of each.
    ///
    /// # Errors
    /// A namespace can't be entered, or the kernel has no socket to give.
    pub fn hear(&mut self, tenants: BTreeSet<Name>, ops: &mut EventOps) -> io::Result<bool> {
        let mut all = true;
        for (tenant, elsewhere) in std::mem::take(&mut self.heard) {
            if tenants.contains(&tenant) && netns::id(&namespace(&tenant)) == Some(elsewhere.id) {
                self.heard.insert(tenant, elsewhere);
                continue;
            }
            for notices in &elsewhere.notices {
                let _ = ops.remove(Events::empty(notices)); // it was added
            }
        }
        for tenant in tenants {
            let Entry::Vacant(place) = self.heard.entry(tenant) else {
                continue;
            };
            let name = namespace(place.key());
            let Some(id) = netns::id(&name) else {
                all = false;
                continue;
            };
            let notices = netns::within(&name, self.subscribe)??;
            for notices in &notices {
                let event = Events::with_data(notices, self.event, EventSet::IN);
                ops.add(event).map_err(io::Error::other)?;
            }
            place.insert(Elsewhere { id, notices });
        }
        Ok(all)
    }

    /// Takes what has come, as [`Notices::drain`].
    ///
    /// # Errors
    /// Those of `recv`.
    pub fn drain(&self) -> io::Result<()> {
        let mut all = self.heard.values().flat_map(|it| &it.notices);
        all.try_for_each(Notices::drain)
    }
}

/// A look that is due soon; readable when it is.
#[derive(Debug)]
pub struct Soon {
    timer: TimerFd,
    /// Whether the timer is set.
    due: bool,
    /// When the last look ended.
    looked: Option<Instant>,
}

impl Soon {
    /// One that is not due.
    ///
    /// # Errors
    /// Those of `timerfd_create`.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            timer: TimerFd::new()?,
            due: false,
            looked: None,
        })
    }

    /// There is a reason to look.
    ///
    /// # Errors
    /// Those of `timerfd_settime`.
    pub fn ask(&mut self) -> io::Result<()> {
        let since = self.looked.map_or(GAP, |looked| looked.elapsed());
        self.ask_in(SETTLE.max(GAP.saturating_sub(since)))
    }

    /// There is a reason to look in so much time, unless the next look is set already.
    ///
    /// # Errors
    /// Those of `timerfd_settime`.
    pub fn ask_in(&mut self, time: Duration) -> io::Result<()> {
        if !self.due {
            self.timer.reset(time, None)?;
            self.due = true;
        }
        Ok(())
    }

    /// The time has come.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn take(&mut self) -> io::Result<()> {
        self.timer.wait()?;
        self.due = false;
        Ok(())
    }

    /// A look has ended; whether it was the first one.
    pub fn looked(&mut self) -> bool {
        self.looked.replace(Instant::now()).is_none()
    }
}

impl AsRawFd for Soon {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}
