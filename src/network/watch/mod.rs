//! `ringtap watch`: networks that drift are set right within a second.
//!
//! # Theory of operation
//! One event loop. The kernel's notices of links, addresses, routes and nftables ([`notices`](super::notices)) and the end of a
//! dnsmasq (a pidfd) are reasons to look, and nothing more: a look ([`keeper`]) is what any other command does, observe and
//! plan, and goes on to apply what the plan has. What is set right makes notices as well, so that a look follows, which finds
//! nothing.
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
mod patience;

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::timerfd::TimerFd;

use super::notices::{Notices, Soon, TenantNotices};
use super::{Error, list, ready};
use crate::cli::NetworkArgs;
use crate::programs::Process;
use crate::report::{causes, say};
use crate::signals::{EndRequests, ReloadRequests};
use keeper::{Keeper, Looked};

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

struct Watcher {
    keeper: Keeper,
    end_requests: EndRequests,
    reload_requests: ReloadRequests,
    links: Notices,
    tables: Notices,
    /// When there is a reason to look.
    soon: Soon,
    /// When there is none.
    regular: TimerFd,
    servers: Vec<Process>,
    /// What is heard of the namespaces of tenants.
    tenants: TenantNotices,
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
            soon: Soon::new()?,
            regular: TimerFd::new()?,
            servers: Vec::new(),
            tenants: TenantNotices::new(TENANTS, || {
                Ok(vec![Notices::of_links()?, Notices::of_tables()?])
            }),
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
                self.soon.ask()
            }
            LINKS => {
                self.links.drain()?;
                self.soon.ask()
            }
            TABLES => {
                self.tables.drain()?;
                self.soon.ask()
            }
            TENANTS => {
                self.tenants.drain()?;
                self.soon.ask()
            }
            SOON => {
                self.soon.take()?;
                self.look(ops)
            }
            REGULAR => {
                self.regular.wait()?;
                self.soon.ask()
            }
            server => {
                self.ended(server - SERVERS, ops)?;
                self.soon.ask()
            }
        }
    }

    fn look(&mut self, ops: &mut EventOps) -> io::Result<()> {
        // Held before the look: one that ends after it has been seen is heard of.
        self.hold_servers(ops)?;
        let tenants = self.keeper.tenants().map_err(io::Error::other)?;
        self.tenants.hear(tenants, ops)?;
        let looked = self.keeper.look();
        let first = self.soon.looked();
        match looked {
            Ok(Looked::Locked) => self.soon.ask_in(RETRY)?,
            // One that was started ends unheard until the next look holds it.
            Ok(Looked::Busy) => self.soon.ask()?,
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
        self.soon.ask()
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
