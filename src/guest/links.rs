//! When to look at the links of a guest's NICs, and what there was to say of them.
//!
//! The kernel tells that links have changed ([`notices`](crate::network::notices)), where the host's are and where those of the
//! tenants are on whose networks the guest is; a look is due soon after. That they can't be listened to is no reason to end a
//! guest: it is logged, and they are looked at every [`UNHEARD`] instead. What a look finds is kept by NIC, and so is said
//! once.
//!
//! Nothing of a link is changed here: [`supervise`](super::supervise) does that.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events};

use super::nic::HostNic;
use crate::network::notices::{Notices, Soon, TenantNotices};

/// How often links are looked at while nothing can be heard of some.
const UNHEARD: Duration = Duration::from_secs(5);

const HOST: u32 = 0;
const TENANTS: u32 = 1;
const LOOK: u32 = 2;
/// How many kinds of events there are.
pub const EVENTS: u32 = 3;

/// Watches over the links of one guest's NICs.
#[derive(Debug)]
pub struct LinkWatch {
    /// Its first event.
    event: u32,
    host: Notices,
    tenants: TenantNotices,
    /// When the links are to be looked at.
    look: Soon,
    /// What there was to say, by the number of the NIC.
    complaints: BTreeMap<usize, String>,
}

impl LinkWatch {
    /// One whose [`EVENTS`] are numbered from `event` on.
    ///
    /// # Errors
    /// Those of `socket`, `bind` and `timerfd_create`.
    pub fn open(event: u32) -> io::Result<Self> {
        Ok(Self {
            event,
            host: Notices::of_links_alone()?,
            tenants: TenantNotices::new(event + TENANTS, || Ok(vec![Notices::of_links_alone()?])),
            look: Soon::new()?,
            complaints: BTreeMap::new(),
        })
    }

    /// Adds its events to the loop. A look is due: things may have changed while nobody watched.
    ///
    /// # Errors
    /// Those of `epoll_ctl` and `timerfd_settime`.
    pub fn watch(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let mut add = |fd: &dyn AsRawFd, event| {
            let events = Events::with_data_raw(fd.as_raw_fd(), event, EventSet::IN);
            ops.add(events).map_err(io::Error::other)
        };
        add(&self.host, self.event + HOST)?;
        add(&self.look, self.event + LOOK)?;
        self.look.ask()
    }

    /// Takes an event of its own. Whether it is time to look.
    ///
    /// # Errors
    /// The timer's.
    pub fn handle(&mut self, event: u32) -> io::Result<bool> {
        match event - self.event {
            LOOK => {
                self.look.take()?;
                return Ok(true);
            }
            TENANTS => told_alone(self.tenants.drain()),
            _ => told_alone(self.host.drain()),
        };
        self.look.ask()?;
        Ok(false)
    }

    /// Has a look be due.
    ///
    /// # Errors
    /// Those of `timerfd_settime`.
    pub fn ask(&mut self) -> io::Result<()> {
        self.look.ask()
    }

    /// Listens where the links of `nics` are before these are looked at: what changes meanwhile is another look's.
    pub fn hear(&mut self, nics: &BTreeMap<usize, HostNic>, ops: &mut EventOps) -> Heard {
        self.complaints.retain(|index, _| nics.contains_key(index));
        let tenants = nics.values().filter_map(|nic| nic.record().tenant());
        let heard = self.tenants.hear(tenants.cloned().collect(), ops);
        // Nothing is heard of a namespace that is to come.
        Heard {
            all: told_alone(heard).unwrap_or(false),
        }
    }

    /// The links have been looked at.
    ///
    /// # Errors
    /// Those of `timerfd_settime`.
    pub fn looked(&mut self, heard: Heard) -> io::Result<()> {
        self.look.looked();
        match heard.all {
            true => Ok(()),
            false => self.look.ask_in(UNHEARD),
        }
    }

    /// Listens to tenants no more, whose namespaces may go: the kernel would keep them.
    pub fn let_go(&mut self, ops: &mut EventOps) {
        told_alone(self.tenants.hear(BTreeSet::new(), ops));
    }

    /// What there is to say of them, by the number of the NIC.
    pub fn complaints(&self) -> &BTreeMap<usize, String> {
        &self.complaints
    }

    /// What to tell a person now that there is `complaint` about NIC `index`, or no more; nothing where that was said.
    pub fn news(&mut self, index: usize, complaint: Option<String>) -> Option<String> {
        let before = match &complaint {
            Some(complaint) => self.complaints.insert(index, complaint.clone()),
            None => self.complaints.remove(&index),
        };
        (before != complaint)
            .then(|| complaint.unwrap_or_else(|| format!("NIC {index} is as it should be again")))
    }
}

/// Whether something is heard of all links.
#[derive(Debug)]
pub struct Heard {
    all: bool,
}

/// What `done` gives. That it could not be done is told, and that is all.
fn told_alone<T>(done: io::Result<T>) -> Option<T> {
    done.inspect_err(|error| tracing::warn!("links can't be listened to: {error}"))
        .ok()
}
