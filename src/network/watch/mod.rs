//! `ringtap watch`: networks that drift are set right within a second.
//!
//! # Theory of operation
//! One event loop. The kernel's notices of links, addresses, routes and nftables ([`notices`]) and the end of a dnsmasq (a
//! pidfd) are reasons to look, and nothing more: a look ([`keeper`]) is what any other command does, observe and plan, and
//! goes on to apply what the plan has. It waits a moment for what comes along ([`SETTLE`]), and longer where the last look
//! was just now ([`GAP`]): a host on which something changes all the time is looked at twice a second. What is set right makes
//! notices as well, so that a look follows, which finds nothing.
//!
//! Tenants' namespaces are listened in as the host's own. A sysctl changes without notice, and so do the tables of
//! iptables-legacy and the names of namespaces; a dnsmasq that another ringtap starts is not held
//! before the next look. For those the host is looked at every [`REGULARLY`].
//!
//! While another ringtap holds the run directory's lock, there is no look; it waits by a timer and not in the kernel, so that
//! it can be ended meanwhile.
//!
//! Networks are kept as the file had them when they were brought up ([`origin`](super::origin)). The file itself is read at
//! the start and on SIGHUP, and only for which networks are meant.

mod keeper;
mod notices;
mod patience;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::timerfd::TimerFd;

use super::plan::namespace;
use super::{Error, list, netns, ready};
use crate::cli::NetworkArgs;
use crate::programs::Process;
use crate::report::{causes, say};
use crate::signals::{EndRequests, ReloadRequests};
use crate::types::Name;
use keeper::{Keeper, Looked};
use notices::Notices;

/// How long a look waits for what belongs together.
const SETTLE: Duration = Duration::from_millis(50);

/// The least time from one look to the next.
const GAP: Duration = Duration::from_millis(500);

/// How long it waits before it tries the lock again.
const RETRY: Duration = Duration::from_millis(100);

/// How often it looks without a reason.
const REGULARLY: Duration = Duration::from_secs(30);

const END: u32 = 0;
const RELOAD: u32 = 1;
const LINKS: u32 = 2;
const TABLES: u32 = 3;
const SOON: u32 = 4;
const REGULAR: u32 = 5;
const TENANTS: u32 = 6;
/// The dnsmasq of pid 0; there is none, but the others follow.
const SERVERS: u32 = 16;

/// `ringtap watch`: sets networks right as they drift, until SIGINT or SIGTERM.
///
/// # Errors
/// The file has problems, or the host's events can't be watched.
pub fn watch(args: &NetworkArgs) -> Result<(), Error> {
    let run_dir = ready(&args.host)?;
    let watcher = Watcher::new(Keeper::new(args, run_dir)?).map_err(Error::Watch)?;
    say(format_args!("watching {}", list(watcher.keeper.chosen())));
    run(watcher).map_err(Error::Watch)
}

fn run(watcher: Watcher) -> io::Result<()> {
    let mut manager = EventManager::new().map_err(io::Error::other)?;
    let id = manager.add_subscriber(watcher);
    loop {
        manager.run().map_err(io::Error::other)?;
        let watcher = manager.subscriber_mut(id).map_err(io::Error::other)?;
        if let Some(end) = watcher.end.take() {
            return end;
        }
    }
}

/// Notices of a namespace of a tenant's.
struct Elsewhere {
    id: netns::Id,
    notices: [Notices; 2],
}

impl Elsewhere {
    /// None where there is no such namespace.
    fn of(tenant: &Name) -> io::Result<Option<Self>> {
        let name = namespace(tenant);
        let Some(id) = netns::id(&name) else {
            return Ok(None);
        };
        let notices = || Ok([Notices::of_links()?, Notices::of_tables()?]);
        let notices: io::Result<_> = netns::within(&name, notices)?;
        Ok(Some(Self {
            id,
            notices: notices?,
        }))
    }
}

struct Watcher {
    keeper: Keeper,
    end_requests: EndRequests,
    reload_requests: ReloadRequests,
    links: Notices,
    tables: Notices,
    /// When there is a reason to look.
    soon: TimerFd,
    /// When there is none.
    regular: TimerFd,
    /// Whether `soon` is set.
    due: bool,
    /// When the last look ended.
    looked: Option<Instant>,
    servers: Vec<Process>,
    /// What is heard of the namespaces of tenants.
    tenants: BTreeMap<Name, Elsewhere>,
    end: Option<io::Result<()>>,
}

impl Watcher {
    fn new(keeper: Keeper) -> io::Result<Self> {
        Ok(Self {
            keeper,
            end_requests: EndRequests::catch_but_hangups()?,
            reload_requests: ReloadRequests::catch()?,
            links: Notices::of_links()?,
            tables: Notices::of_tables()?,
            soon: TimerFd::new()?,
            regular: TimerFd::new()?,
            due: false,
            looked: None,
            servers: Vec::new(),
            tenants: BTreeMap::new(),
            end: None,
        })
    }

    fn handle(&mut self, event: u32, ops: &mut EventOps) -> io::Result<()> {
        match event {
            END => {
                if self.end_requests.take()? > 0 {
                    self.end = Some(Ok(()));
                }
                Ok(())
            }
            RELOAD => {
                self.reload_requests.take()?;
                self.keeper.reload();
                self.look_soon()
            }
            LINKS => {
                self.links.drain()?;
                self.look_soon()
            }
            TABLES => {
                self.tables.drain()?;
                self.look_soon()
            }
            TENANTS => {
                let mut notices = self.tenants.values().flat_map(|it| &it.notices);
                notices.try_for_each(Notices::drain)?;
                self.look_soon()
            }
            SOON => {
                self.soon.wait()?;
                self.due = false;
                self.look(ops)
            }
            REGULAR => {
                self.regular.wait()?;
                self.look_soon()
            }
            server => {
                self.ended(server - SERVERS, ops)?;
                self.look_soon()
            }
        }
    }

    /// Sets the time of the next look, if it is not set.
    fn look_soon(&mut self) -> io::Result<()> {
        let since = self.looked.map_or(GAP, |looked| looked.elapsed());
        self.look_in(SETTLE.max(GAP.saturating_sub(since)))
    }

    fn look_in(&mut self, time: Duration) -> io::Result<()> {
        if !self.due {
            self.soon.reset(time, None)?;
            self.due = true;
        }
        Ok(())
    }

    fn look(&mut self, ops: &mut EventOps) -> io::Result<()> {
        // Held before the look: one that ends after it has been seen is heard of.
        self.hold_servers(ops)?;
        self.hear_of_tenants(ops)?;
        let looked = self.keeper.look();
        let first = self.looked.replace(Instant::now()).is_none();
        match looked {
            Ok(Looked::Locked) => self.look_in(RETRY)?,
            // One that was started ends unheard until the next look holds it.
            Ok(Looked::Busy) => self.look_soon()?,
            Ok(Looked::Quiet) => {}
            Err(error) => tracing::error!("{}; looking again soon", causes(&error)),
        }
        if first {
            notify_ready();
        }
        Ok(())
    }

    /// Waits for the end of each dnsmasq that there is. One that has ended is let go by its event.
    fn hold_servers(&mut self, ops: &mut EventOps) -> io::Result<()> {
        for server in self.keeper.servers() {
            if self.servers.iter().all(|held| held.pid != server.pid) {
                let event = Events::with_data(&server, SERVERS + server.pid, EventSet::IN);
                ops.add(event).map_err(io::Error::other)?;
                self.servers.push(server);
            }
        }
        Ok(())
    }

    /// Listens in the namespaces of tenants. Of one that is gone nothing may be held: the kernel would keep it.
    fn hear_of_tenants(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let up = self.keeper.tenants().map_err(io::Error::other)?;
        let heard = mem::take(&mut self.tenants);
        for (tenant, elsewhere) in heard {
            if up.contains(&tenant) && netns::id(&namespace(&tenant)) == Some(elsewhere.id) {
                self.tenants.insert(tenant, elsewhere);
                continue;
            }
            for notices in &elsewhere.notices {
                ops.remove(Events::empty(notices))
                    .map_err(io::Error::other)?;
            }
        }
        for tenant in up {
            let Entry::Vacant(place) = self.tenants.entry(tenant) else {
                continue;
            };
            if let Some(elsewhere) = Elsewhere::of(place.key())? {
                for notices in &elsewhere.notices {
                    let event = Events::with_data(notices, TENANTS, EventSet::IN);
                    ops.add(event).map_err(io::Error::other)?;
                }
                place.insert(elsewhere);
            }
        }
        Ok(())
    }

    fn ended(&mut self, pid: u32, ops: &mut EventOps) -> io::Result<()> {
        if let Some(index) = self.servers.iter().position(|held| held.pid == pid) {
            let server = self.servers.swap_remove(index);
            ops.remove(Events::empty(&server))
                .map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn begin(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let mut add = |source: &dyn AsRawFd, data| {
            let event = Events::with_data(&source.as_raw_fd(), data, EventSet::IN);
            ops.add(event).map_err(io::Error::other)
        };
        add(&self.end_requests, END)?;
        add(&self.reload_requests, RELOAD)?;
        add(&self.links, LINKS)?;
        add(&self.tables, TABLES)?;
        add(&self.soon, SOON)?;
        add(&self.regular, REGULAR)?;
        self.regular.reset(REGULARLY, Some(REGULARLY))?;
        self.look_soon()
    }
}

impl MutEventSubscriber for Watcher {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = self.begin(ops) {
            self.end = Some(Err(error));
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if let Err(error) = self.handle(events.data(), ops) {
            self.end = Some(Err(error));
        }
    }
}

fn notify_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!("the service manager could not be told: {error}");
    }
}
