//! One guest's supervisor: an event-manager loop over its processes, QEMU's monitor, its console, commands and signals.
//!
//! # Theory of operation
//! - QEMU ends. By [`Patience`] and the guest's policy it is started anew after a pause, with the same backends, or the
//!   loop is over.
//! - A backend ends, and is started anew, at once if it had worked for a while and otherwise after [`BACKEND_PAUSE`]; the guest
//!   runs on.
//! - Links change on the host (`links`). Those of the NICs are looked at: one that was deleted is made
//!   again, and one whose bridge was deleted is plugged into its successor. What somebody has done on purpose is noted.
//! - A command or a signal asks for the end: the guest's power button is pressed, again and again since a guest that boots
//!   does not hear it. When its time is up, or a second signal comes, QEMU gets SIGTERM and, [`GRACE`] later, SIGKILL.
//! - QEMU tells of the guest: a panic, its watchdog, a power-off. It is kept for the moment when QEMU ends.
//!
//! Nothing here polls, but for the size of QEMU's log, which costs little. All that a guest is made of is a part of
//! [`Guarded`], whose drop takes it back in the right order: however the loop ends, nothing stays but what a SIGKILL leaves,
//! which the next supervisor takes over.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use qapi::qmp::{self, Event, ShutdownCause};
use rustix::process::Signal;
use vmm_sys_util::timerfd::TimerFd;

use super::control::{Answer, Control, Outcome, Phase, Request, State};
use super::guarded::{BACKEND_PAUSE, Guarded};
use super::hotplug::HotplugError;
use super::hub::Hub;
use super::links::{self, LinkWatch};
use super::nic::NicError;
use super::patience::{Ending, Patience};
use super::process::{Ended, GRACE, last_line};
use super::run_dir::{GuestDir, files};
use crate::cli;
use crate::log;
use crate::network::apply::execute::absent_is_fine;
use crate::network::port::Found;
use crate::report::causes;
use crate::signals::EndRequests;

/// How long a guest may take to power off that was asked by a signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(cli::STOP_TIMEOUT as u64);

/// How often QEMU's log is looked at, which a guest can make grow.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// Why a guest has failed that was to be taken over.
pub const UNSEEN: &str = "QEMU ended while nobody watched over it";

/// How often the power button is pressed.
const PRESS: Duration = Duration::from_secs(5);

const SIGNALS: u32 = 0;
const QEMU: u32 = 1;
const MONITOR: u32 = 2;
const DEADLINE: u32 = 3;
const RETRY: u32 = 4;
const AGAIN: u32 = 5;
const LOG: u32 = 6;
/// The first of those that tell of links.
const LINKS: u32 = 7;
const LINKS_END: u32 = LINKS + links::EVENTS;
/// The backend of NIC 0; the others follow.
const BACKENDS: u32 = 16;
/// The console's.
const HUB: u32 = 1 << 16;
/// Those of the commands' socket.
const CONTROL: u32 = 1 << 24;

/// The sockets of a supervisor.
#[derive(Debug)]
pub struct Sockets {
    hub: Hub,
    control: Control,
}

impl Sockets {
    /// Listens in the guest's directory.
    ///
    /// # Errors
    /// Those of `bind`, and the file system's.
    pub fn open(dir: &GuestDir) -> io::Result<Self> {
        Ok(Self {
            hub: Hub::open(
                HUB,
                &dir.file(files::CONSOLE),
                &dir.file(files::CONSOLE_LOG),
            )?,
            control: Control::open(CONTROL, &dir.file(files::CONTROL))?,
        })
    }
}

/// Watches over a guest until it ends, takes it down, and tells those who wait for it.
///
/// # Errors
/// Where the loop itself fails; the guest is taken down then, too.
pub fn supervise(
    guarded: Guarded,
    serial: Option<UnixStream>,
    sockets: Sockets,
    signals: EndRequests,
) -> io::Result<Outcome> {
    let supervisor = Supervisor {
        serial,
        signals,
        deadline: TimerFd::new()?,
        retry: TimerFd::new()?,
        again: TimerFd::new()?,
        log: TimerFd::new()?,
        links: LinkWatch::open(LINKS)?,
        waiting: Vec::new(),
        stopping: None,
        seen: Seen::default(),
        patience: Patience::default(),
        since: Instant::now(),
        watchers: Vec::new(),
        outcome: None,
        sockets,
        guarded,
    };
    let mut manager = EventManager::new().map_err(io::Error::other)?;
    let id = manager.add_subscriber(supervisor);
    loop {
        manager.run().map_err(io::Error::other)?;
        let supervisor = manager.subscriber_mut(id).map_err(io::Error::other)?;
        if let Some(outcome) = supervisor.outcome.take() {
            let supervisor = manager.remove_subscriber(id).map_err(io::Error::other)?;
            return supervisor.finish(outcome?);
        }
    }
}

/// A guest's end that was asked for.
#[derive(Debug, Clone, Copy)]
struct Stopping {
    /// When force is used.
    deadline: Instant,
    /// Whether the guest's power button was pressed.
    asked: bool,
    /// Whether force has been used.
    forced: bool,
}

/// What QEMU has told of its guest since it was started.
#[derive(Debug, Default)]
struct Seen {
    shutdown: Option<ShutdownCause>,
    panicked: bool,
}

struct Supervisor {
    /// QEMU's end of the serial line, until the loop begins.
    serial: Option<UnixStream>,
    signals: EndRequests,
    /// When the guest's power button is pressed again, or force is used.
    deadline: TimerFd,
    /// When the backends in `waiting` are to be started.
    retry: TimerFd,
    waiting: Vec<usize>,
    /// When QEMU is to be started.
    again: TimerFd,
    /// When QEMU's log is looked at.
    log: TimerFd,
    links: LinkWatch,
    stopping: Option<Stopping>,
    seen: Seen,
    patience: Patience,
    /// When QEMU was started, or taken over.
    since: Instant,
    /// The clients of the control socket who wait for the end.
    watchers: Vec<u32>,
    outcome: Option<io::Result<Outcome>>,
    sockets: Sockets,
    guarded: Guarded,
}

impl Supervisor {
    fn handle(&mut self, events: Events, ops: &mut EventOps) -> io::Result<()> {
        match events.data() {
            SIGNALS => self.signalled(ops),
            QEMU => self.qemu_ended(ops),
            MONITOR => self.heard(ops),
            DEADLINE => {
                self.deadline.wait()?;
                self.go_on_stopping(ops)
            }
            RETRY => {
                self.retry.wait()?;
                let waiting = std::mem::take(&mut self.waiting);
                let mut waiting = waiting.into_iter();
                waiting.try_for_each(|index| self.restart_backend(index, ops))?;
                self.links.ask()
            }
            AGAIN => {
                self.again.wait()?;
                self.start_anew(ops)
            }
            LOG => {
                self.log.wait()?;
                self.limit_log();
                Ok(())
            }
            link @ LINKS..LINKS_END => match self.links.handle(link)? {
                true => self.look_at_links(ops),
                false => Ok(()),
            },
            CONTROL.. => {
                let request = self.sockets.control.handle(events, ops)?;
                match request {
                    Some((client, request)) => self.requested(client, request, ops),
                    None => Ok(()),
                }
            }
            HUB.. => self.sockets.hub.handle(events, ops),
            backend => self.backend_ended((backend - BACKENDS) as usize, ops),
        }
    }

    /// Tells the log and those who watch.
    fn note(&mut self, text: &str, ops: &mut EventOps) {
        tracing::info!("guest {}: {text}", self.guarded.relaunch.name());
        for client in &self.watchers {
            let note = Answer::Note(text.to_owned());
            self.sockets.control.answer(*client, &note, ops);
        }
    }

    fn requested(&mut self, client: u32, request: Request, ops: &mut EventOps) -> io::Result<()> {
        match request {
            Request::State => {
                let state = Answer::State(self.state());
                self.sockets.control.answer(client, &state, ops);
                Ok(())
            }
            Request::Watch => {
                self.watchers.push(client);
                Ok(())
            }
            Request::Stop { timeout } => {
                self.watchers.push(client);
                self.stop(Duration::from_secs(timeout.into()), ops)
            }
            Request::AddNic { network } => {
                let added = self.guarded.add_nic(&network);
                let answer = match added {
                    Ok(index) => {
                        self.watch_backend(index, ops)?;
                        self.links.ask()?; // in its tenant's namespace, too
                        Answer::Done(format!("NIC {index} is on {network}"))
                    }
                    Err(error) => Answer::Refused(causes(&error)),
                };
                self.sockets.control.answer(client, &answer, ops);
                Ok(())
            }
            Request::RemoveNic { index } => {
                let done = format!("NIC {index} is gone");
                self.change_nic(client, index, done, ops, |it| it.remove_nic(index))
            }
            Request::MoveNic { index, network } => {
                let done = format!("NIC {index} is on {network}");
                self.change_nic(client, index, done, ops, |it| it.move_nic(index, &network))
            }
        }
    }

    /// Does `change` to NIC `index`, whose backend may be another then, and tells `client`.
    fn change_nic(
        &mut self,
        client: u32,
        index: usize,
        done: String,
        ops: &mut EventOps,
        change: impl FnOnce(&mut Guarded) -> Result<(), HotplugError>,
    ) -> io::Result<()> {
        if let Some(nic) = self.guarded.nics.get_mut(&index) {
            let _ = ops.remove(Events::empty(nic.backend()));
        }
        // The network may go, and a namespace with it.
        self.links.let_go(ops);
        let changed = change(&mut self.guarded);
        self.watch_backend(index, ops)?;
        self.links.ask()?;
        let answer = match changed {
            Ok(()) => Answer::Done(done),
            Err(error) => Answer::Refused(causes(&error)),
        };
        self.sockets.control.answer(client, &answer, ops);
        Ok(())
    }

    fn watch_backend(&mut self, index: usize, ops: &mut EventOps) -> io::Result<()> {
        match self.guarded.nics.get_mut(&index) {
            Some(nic) => watch(ops, nic.backend(), backend_event(index)),
            None => Ok(()),
        }
    }

    fn state(&self) -> State {
        let machine = self.guarded.machine.as_ref();
        let phase = match (machine, self.stopping) {
            (None, _) => Phase::Restarting,
            (Some(_), Some(_)) => Phase::Stopping,
            (Some(_), None) => Phase::Running,
        };
        let backends = self.guarded.nics.iter();
        State {
            phase,
            pid: machine.map(|machine| machine.process.pid()),
            backends: backends
                .filter_map(|(index, nic)| Some((*index, nic.backend_pid()?)))
                .collect(),
            complaints: self.links.complaints().clone(),
        }
    }

    fn signalled(&mut self, ops: &mut EventOps) -> io::Result<()> {
        for _ in 0..self.signals.take()? {
            let timeout = match self.stopping {
                None => STOP_TIMEOUT,
                Some(_) => Duration::ZERO,
            };
            self.stop(timeout, ops)?;
        }
        Ok(())
    }

    /// Asks the guest to power off, and sees to it that it has ended `timeout` later.
    fn stop(&mut self, timeout: Duration, ops: &mut EventOps) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        let stopping = self.stopping.get_or_insert(Stopping {
            deadline,
            asked: false,
            forced: false,
        });
        stopping.deadline = stopping.deadline.min(deadline);
        self.guarded.note_end();
        if self.guarded.machine.is_none() {
            self.outcome = Some(Ok(Outcome::Stopped)); // it had ended, and was to be started anew
            return Ok(());
        }
        self.go_on_stopping(ops)
    }

    fn go_on_stopping(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let (Some(stopping), Some(machine)) = (&mut self.stopping, &mut self.guarded.machine)
        else {
            return Ok(());
        };
        let left = stopping.deadline.saturating_duration_since(Instant::now());
        if stopping.forced {
            machine.process.signal(Signal::KILL);
            return Ok(());
        }
        let mut again = left; // when to look after it
        if let Some(monitor) = &mut machine.monitor
            && !left.is_zero()
        {
            stopping.asked = true;
            again = left.min(PRESS);
            // On a slow host QEMU is long in answering, and a QEMU that has ended is seen as such: the guest has its time all the same.
            if let Err(error) = monitor.tell(&qmp::system_powerdown {}) {
                tracing::debug!("QEMU does not hear: {error}");
            }
        }
        if left.is_zero() || !stopping.asked {
            stopping.forced = true;
            // Lets QEMU write to its disks what it holds back.
            machine.process.signal(Signal::TERM);
            self.deadline.reset(GRACE, None)?;
            self.note("it has not powered off in its time: ended by force", ops);
            return Ok(());
        }
        Ok(self.deadline.reset(again, None)?)
    }

    /// QEMU tells of its guest.
    fn heard(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let Some(machine) = &mut self.guarded.machine else {
            return Ok(());
        };
        let Some(monitor) = &mut machine.monitor else {
            return Ok(());
        };
        let (events, heard) = monitor.events();
        if heard.is_err() {
            // QEMU has ended, or it has not and nothing is heard of it but its end.
            let _ = ops.remove(Events::empty(monitor));
            machine.monitor = None;
        }
        self.sort(events, ops);
        Ok(())
    }

    fn sort(&mut self, events: Vec<Event>, ops: &mut EventOps) {
        for event in events {
            match event {
                Event::SHUTDOWN { data, .. } => self.seen.shutdown = Some(data.reason),
                Event::RESET { data, .. } if data.guest => self.note("it reboots", ops),
                Event::GUEST_PANICKED { .. } => {
                    self.seen.panicked = true;
                    self.note("its kernel has panicked", ops);
                }
                Event::WATCHDOG { data, .. } => {
                    let text = format!("its watchdog has run out: {:?}", data.action);
                    self.note(&text, ops);
                }
                _ => {}
            }
        }
    }

    fn qemu_ended(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let Some(machine) = &mut self.guarded.machine else {
            return Ok(());
        };
        let Some(ended) = machine.process.ended()? else {
            return Ok(());
        };
        self.heard(ops)?;
        self.sockets.hub.disconnect(ops);
        if let Some(machine) = self.guarded.machine.take() {
            let _ = ops.remove(Events::empty(&machine.process));
            if let Some(monitor) = &machine.monitor {
                let _ = ops.remove(Events::empty(monitor));
            }
        }
        let ending = self.ending(ended);
        self.over(ending, ops)
    }

    /// What QEMU's end means.
    fn ending(&self, ended: Ended) -> Ending {
        use ShutdownCause::{guest_reset, guest_shutdown};
        // A reset ends a QEMU that was told so (`-no-reboot`).
        let by_itself = matches!(self.seen.shutdown, Some(guest_shutdown | guest_reset));
        if self.stopping.is_some() {
            Ending::Asked
        } else if self.seen.panicked {
            Ending::Failed("its kernel has panicked".to_owned())
        } else if by_itself && !ended.failed() {
            Ending::PoweredOff
        } else {
            let log = self.guarded.dir.file(files::QEMU_LOG);
            let said = last_line(&log);
            let text = format!(
                "QEMU ended with {ended}: {said}; its log is {}",
                log.display()
            );
            Ending::Failed(text)
        }
    }

    /// The guest has ended so: there is another start, or this was it.
    fn over(&mut self, ending: Ending, ops: &mut EventOps) -> io::Result<()> {
        let policy = self.guarded.relaunch.policy();
        let pause = self.patience.pause(policy, &ending, self.since.elapsed());
        if let Ending::Failed(reason) = &ending {
            self.note(reason, ops);
        }
        match pause {
            Some(pause) => {
                let text = format!("it is started anew in {} s", pause.as_secs());
                self.note(&text, ops);
                Ok(self.again.reset(pause, None)?)
            }
            None => {
                let forced = self.stopping.is_some_and(|stopping| stopping.forced);
                self.outcome = Some(Ok(match ending {
                    Ending::Asked if forced => Outcome::Killed,
                    Ending::Asked => Outcome::Stopped,
                    Ending::PoweredOff => Outcome::PoweredOff,
                    Ending::Failed(reason) => Outcome::Failed(reason),
                }));
                Ok(())
            }
        }
    }

    fn start_anew(&mut self, ops: &mut EventOps) -> io::Result<()> {
        self.since = Instant::now();
        self.seen = Seen::default();
        // Others may have taken the place of those that are watched.
        for nic in self.guarded.nics.values_mut() {
            let _ = ops.remove(Events::empty(nic.backend()));
        }
        let started = self.guarded.start();
        for nic in self.guarded.nics.values_mut() {
            let event = backend_event(nic.index());
            watch(ops, nic.backend(), event)?;
        }
        match started {
            Ok(serial) => self.watch_machine(Some(serial), ops),
            Err(error) => self.over(Ending::Failed(causes(&error)), ops),
        }
    }

    fn backend_ended(&mut self, index: usize, ops: &mut EventOps) -> io::Result<()> {
        let Some(nic) = self.guarded.nics.get_mut(&index) else {
            return Ok(());
        };
        let Some(ended) = nic.backend().ended()? else {
            return Ok(());
        };
        let removed = ops.remove(Events::empty(nic.backend()));
        removed.map_err(io::Error::other)?;
        let tap = nic.tap().clone();
        let said = match ended.gave_up() {
            true => format!(": {}", nic.last_words()),
            false => String::new(),
        };
        let text = format!("the backend of {tap} ended ({ended}){said}");
        if nic.backend().age() >= BACKEND_PAUSE {
            self.note(&format!("{text}; starting it anew"), ops);
            return self.restart_backend(index, ops);
        }
        self.note(&text, ops);
        self.wait_for_retry(index)
    }

    fn restart_backend(&mut self, index: usize, ops: &mut EventOps) -> io::Result<()> {
        let Some(nic) = self.guarded.nics.get_mut(&index) else {
            return Ok(());
        };
        if nic.backend().ended()?.is_none() {
            return Ok(()); // another has taken its place, since the NIC has moved
        }
        match nic.restart() {
            Ok(()) => {
                watch(ops, nic.backend(), backend_event(index))?;
                self.links.ask() // whether all is well with its link
            }
            // Notices tell when there is another try.
            Err(NicError::Lost(complaint)) => {
                self.complain(index, Some(complaint), ops);
                Ok(())
            }
            Err(error) => {
                let tap = nic.tap();
                let text = format!("the backend of {tap} can't be started: {}", causes(&error));
                self.complain(index, Some(text), ops);
                self.wait_for_retry(index)
            }
        }
    }

    /// Looks what has become of the NICs' links, but of those that wait for another try.
    fn look_at_links(&mut self, ops: &mut EventOps) -> io::Result<()> {
        let heard = self.links.hear(&self.guarded.nics, ops);
        let nics = self.guarded.nics.keys().copied();
        let indices: Vec<usize> = nics.filter(|it| !self.waiting.contains(it)).collect();
        for index in indices {
            self.look_at_link(index, ops)?;
        }
        self.links.looked(heard)
    }

    /// Sets right what has become of NIC `index`'s link, unless somebody has meant it: one that was deleted is made again, and
    /// gets a backend of its own; one whose bridge was deleted is plugged into the next of that name.
    fn look_at_link(&mut self, index: usize, ops: &mut EventOps) -> io::Result<()> {
        let Some(nic) = self.guarded.nics.get_mut(&index) else {
            return Ok(());
        };
        let found = match nic.look() {
            Ok(found) => found,
            Err(error) => {
                self.complain(index, Some(causes(&error)), ops);
                return Ok(());
            }
        };
        let complaint = nic.complaint(found);
        match found {
            Found::Deleted { trunk: true } => {
                let _ = ops.remove(Events::empty(nic.backend())); // it may have ended already
                nic.backend().end();
                self.complain(index, complaint, ops);
                self.restart_backend(index, ops)
            }
            Found::Unplugged { trunk: true } => match nic.plug_in() {
                Ok(()) => {
                    self.complain(index, complaint, ops);
                    self.complain(index, None, ops);
                    Ok(())
                }
                Err(error) => {
                    self.complain(index, Some(causes(&error)), ops);
                    self.wait_for_retry(index)
                }
            },
            _ => {
                self.complain(index, complaint, ops);
                Ok(())
            }
        }
    }

    /// Says what there is to say of NIC `index`'s link, once.
    fn complain(&mut self, index: usize, complaint: Option<String>, ops: &mut EventOps) {
        if let Some(news) = self.links.news(index, complaint) {
            self.note(&news, ops);
        }
    }

    fn wait_for_retry(&mut self, index: usize) -> io::Result<()> {
        // The timer runs already where others wait.
        if self.waiting.is_empty() {
            self.retry.reset(BACKEND_PAUSE, None)?;
        }
        if !self.waiting.contains(&index) {
            self.waiting.push(index);
        }
        Ok(())
    }

    /// Has QEMU's log begin anew once it has grown, as ringtap's own do.
    fn limit_log(&self) {
        let path = self.guarded.dir.file(files::QEMU_LOG);
        if let Err(error) = absent_is_fine(log::begin_anew_if_grown(&path)) {
            tracing::warn!("{}: {error}", path.display());
        }
    }

    fn begin(&mut self, ops: &mut EventOps) -> io::Result<()> {
        watch(ops, &self.signals, SIGNALS)?;
        watch(ops, &self.deadline, DEADLINE)?;
        watch(ops, &self.retry, RETRY)?;
        watch(ops, &self.again, AGAIN)?;
        watch(ops, &self.log, LOG)?;
        self.log.reset(LOG_PAUSE, Some(LOG_PAUSE))?;
        self.links.watch(ops)?;
        self.sockets.hub.watch(ops)?;
        self.sockets.control.watch(ops)?;
        for nic in self.guarded.nics.values_mut() {
            let event = backend_event(nic.index());
            watch(ops, nic.backend(), event)?;
        }
        match &self.guarded.machine {
            Some(_) => {
                let serial = self.serial.take();
                self.watch_machine(serial, ops)?;
                // Whoever has ended it while it was being started does not wait for it to boot.
                match self.signals.take()? {
                    0 if self.guarded.record.ends => self.stop(STOP_TIMEOUT, ops),
                    0 => Ok(()),
                    _ => self.stop(Duration::ZERO, ops),
                }
            }
            None => self.over(Ending::Failed(UNSEEN.to_owned()), ops),
        }
    }

    fn watch_machine(&mut self, serial: Option<UnixStream>, ops: &mut EventOps) -> io::Result<()> {
        if let Some(serial) = serial {
            self.sockets.hub.connect(serial, ops)?;
        }
        let Some(machine) = &self.guarded.machine else {
            return Ok(());
        };
        watch(ops, &machine.process, QEMU)?;
        match &machine.monitor {
            Some(monitor) => watch(ops, monitor, MONITOR)?,
            None => return Ok(()),
        }
        // Some may have come with an answer.
        self.heard(ops)
    }

    /// Takes down what is left of the guest, and tells those who wait for it.
    fn finish(mut self, outcome: Outcome) -> io::Result<Outcome> {
        self.sockets.hub.finish();
        drop(self.links); // the namespaces of tenants may go with the networks
        self.guarded.note_end();
        match &outcome {
            Outcome::Failed(reason) => self.guarded.end_keeping_logs(reason),
            _ => drop(self.guarded),
        }
        for client in &self.watchers {
            let last = Answer::Ended(outcome.clone());
            self.sockets.control.finish(*client, &last);
        }
        Ok(outcome)
    }
}

fn backend_event(index: usize) -> u32 {
    BACKENDS + index as u32
}

fn watch(ops: &mut EventOps, fd: &impl AsRawFd, event: u32) -> io::Result<()> {
    let events = Events::with_data(fd, event, EventSet::IN);
    ops.add(events).map_err(io::Error::other)
}

impl MutEventSubscriber for Supervisor {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = self.begin(ops) {
            self.outcome = Some(Err(error));
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if let Err(error) = self.handle(events, ops) {
            self.outcome = Some(Err(error));
        }
    }
}
