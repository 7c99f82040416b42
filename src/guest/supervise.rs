//! One guest's supervisor: an event-manager loop over its processes and this one's signals.
//!
//! # Theory of operation
//! Four kinds of event: QEMU ends, and with it the launch; a backend ends, and is started anew, at once if it had worked
//! for a while and otherwise after [`PAUSE`]; a signal asks for the end, and QEMU gets SIGTERM; QEMU has not
//! obeyed within [`GRACE`], or a second signal comes, and it gets SIGKILL. Nothing here polls.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rustix::process::Signal;
use vmm_sys_util::timerfd::TimerFd;

use super::nic::HostNic;
use super::process::{GRACE, Process};
use crate::signals::EndRequests;

/// How long a backend that ends as soon as it has started waits for its next try.
const PAUSE: Duration = Duration::from_secs(1);

const SIGNALS: u32 = 0;
const QEMU: u32 = 1;
const DEADLINE: u32 = 2;
const RETRY: u32 = 3;
/// The backend of NIC 0; the others follow.
const BACKENDS: u32 = 16;

/// How a launch ended.
#[derive(Debug)]
pub enum End {
    /// QEMU ended by itself: the guest powered off, or QEMU failed.
    Qemu(ExitStatus),
    /// Somebody asked for it.
    Asked,
}

/// Watches over a running guest until it ends.
///
/// # Errors
/// Where the loop itself fails; QEMU is then ended with its [`Process`].
pub fn supervise(qemu: Process, nics: Vec<HostNic>, signals: EndRequests) -> io::Result<End> {
    let supervisor = Supervisor {
        deadline: TimerFd::new()?,
        retry: TimerFd::new()?,
        waiting: Vec::new(),
        asked: false,
        end: None,
        qemu,
        nics,
        signals,
    };
    let mut manager = EventManager::new().map_err(io::Error::other)?;
    let id = manager.add_subscriber(supervisor);
    loop {
        manager.run().map_err(io::Error::other)?;
        let supervisor = manager.subscriber_mut(id).map_err(io::Error::other)?;
        if let Some(end) = supervisor.end.take() {
            return end;
        }
    }
}

/// Fields drop in order: QEMU ends before its backends, and those before their taps.
struct Supervisor {
    qemu: Process,
    nics: Vec<HostNic>,
    signals: EndRequests,
    /// When QEMU is to be killed.
    deadline: TimerFd,
    /// When the backends in `waiting` are to be started.
    retry: TimerFd,
    waiting: Vec<usize>,
    /// A signal has come.
    asked: bool,
    end: Option<io::Result<End>>,
}

impl Supervisor {
    fn handle(&mut self, event: u32, ops: &mut EventOps) -> io::Result<()> {
        match event {
            SIGNALS => self.signalled(),
            QEMU => self.qemu_ended(),
            DEADLINE => {
                self.deadline.wait()?;
                tracing::warn!(
                    "QEMU has not ended within {} s of being asked: killing it",
                    GRACE.as_secs()
                );
                self.qemu.signal(Signal::KILL);
                Ok(())
            }
            RETRY => {
                self.retry.wait()?;
                let waiting = std::mem::take(&mut self.waiting);
                waiting
                    .into_iter()
                    .try_for_each(|index| self.restart(index, ops))
            }
            backend => self.backend_ended((backend - BACKENDS) as usize, ops),
        }
    }

    fn signalled(&mut self) -> io::Result<()> {
        for _ in 0..self.signals.take()? {
            let signal = if self.asked {
                Signal::KILL
            } else {
                Signal::TERM
            };
            self.qemu.signal(signal);
            self.asked = true;
            self.deadline.reset(GRACE, None)?;
        }
        Ok(())
    }

    fn qemu_ended(&mut self) -> io::Result<()> {
        if let Some(status) = self.qemu.exit_status()? {
            let end = if self.asked {
                End::Asked
            } else {
                End::Qemu(status)
            };
            self.end = Some(Ok(end));
        }
        Ok(())
    }

    fn backend_ended(&mut self, index: usize, ops: &mut EventOps) -> io::Result<()> {
        let nic = &mut self.nics[index];
        let Some(status) = nic.backend().exit_status()? else {
            return Ok(());
        };
        ops.remove(Events::empty(nic.backend()))
            .map_err(io::Error::other)?;
        let tap = nic.tap().clone();
        if nic.backend().age() >= PAUSE {
            tracing::warn!("the backend of {tap} ended ({status}): starting it anew");
            return self.restart(index, ops);
        }
        tracing::error!(
            "the backend of {tap} ended ({status}): {}",
            nic.last_words()
        );
        self.wait_for_retry(index)
    }

    fn restart(&mut self, index: usize, ops: &mut EventOps) -> io::Result<()> {
        let nic = &mut self.nics[index];
        match nic.restart() {
            Ok(()) => ops
                .add(Events::with_data(
                    nic.backend(),
                    backend_event(index),
                    EventSet::IN,
                ))
                .map_err(io::Error::other),
            Err(error) => {
                tracing::error!("the backend of {} can't be started: {error}", nic.tap());
                self.wait_for_retry(index)
            }
        }
    }

    fn wait_for_retry(&mut self, index: usize) -> io::Result<()> {
        self.waiting.push(index);
        Ok(self.retry.reset(PAUSE, None)?)
    }

    fn watch(&mut self, ops: &mut EventOps) -> Result<(), event_manager::Error> {
        ops.add(Events::with_data(&self.signals, SIGNALS, EventSet::IN))?;
        ops.add(Events::with_data(&self.qemu, QEMU, EventSet::IN))?;
        ops.add(Events::with_data(&self.deadline, DEADLINE, EventSet::IN))?;
        ops.add(Events::with_data(&self.retry, RETRY, EventSet::IN))?;
        for (index, nic) in self.nics.iter_mut().enumerate() {
            ops.add(Events::with_data(
                nic.backend(),
                backend_event(index),
                EventSet::IN,
            ))?;
        }
        Ok(())
    }
}

fn backend_event(index: usize) -> u32 {
    BACKENDS + index as u32
}

impl MutEventSubscriber for Supervisor {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = self.watch(ops) {
            self.end = Some(Err(io::Error::other(error)));
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if let Err(error) = self.handle(events.data(), ops) {
            self.end = Some(Err(error));
        }
    }
}
