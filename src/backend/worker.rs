//! A worker: one thread, one event-manager loop, one queue pair.
//!
//! # Theory of operation
//! Events only set flags: the tap has frames, the receiveq has buffers, the transmitq has chains. After each
//! round of events a *turn* does one burst in either direction for which the flags allow it. While more can be done
//! at once, the next round does not wait; so a flood in one direction never starves the other, nor the session's
//! calls.
//!
//! The tap is watched edge-triggered: with no room in the receiveq a level-triggered watch would spin, and the
//! flag remembers what the edge said. So are kicks: each write to an eventfd is an edge, whatever it holds already, and to
//! leave it there until the ring stops is one system call less a kick.
//!
//! An edge comes with each frame, though, also while the guest has no buffers or its rate limit is used up, and it was known that
//! there are frames. The first that wakes the worker in vain has it stop listening for them until it has emptied the tap. It looks
//! once a second meanwhile, for a tap that is deleted wakes only those who listen for frames (`tun_detach_all`).
//!
//! What a driver is told of a transmitq's chains may be held back for a while; a timer of the pair's ends that (`coalesce`).
//!
//! With `--poll-us` a worker that has nothing to do spins for a while before it sleeps (`spin`), and kicks are off
//! meanwhile; the turn after a spin in vain asks for them again.
//!
//! A tap that is deleted says so by an error event (`tun_chr_poll`); whoever has started the worker is told by an eventfd. A
//! macvtap says nothing (`tap_poll`).
//!
//! A session reaches its pair through [`Worker`], whose calls run in the loop between two turns. So a ring that was
//! stopped is at rest when the call returns, without a lock anywhere.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId,
    SubscriberOps,
};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use super::counters::Counters;
use super::guard::Refusals;
use super::heard::Heard;
use super::queue_pair::{FrameFormat, QueuePair, RxEnd, Side, TxEnd};
use super::rate::Pacer;
use super::spin::Spin;
use super::vring::{Notifier, Started};

/// Which fd an event is of.
const TAP: u32 = 0;
const RX_KICK: u32 = 1;
const TX_KICK: u32 = 2;
const RX_TIMER: u32 = 3;
const TX_TIMER: u32 = 4;
const TX_CALLS: u32 = 5;

/// Milliseconds that a worker sleeps at most while it does not listen for frames.
const DEAF: i32 = 1000;

/// Why a worker can't do what was asked of it.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// Its loop refused, or is gone.
    #[error("queue pair worker: {0}")]
    Loop(#[from] event_manager::Error),
    /// The tap refused to attach or detach the pair's queue.
    #[error("tap queue can't be attached or detached: {0}")]
    Attach(#[source] io::Error),
    /// Its thread could not be started.
    #[error("queue pair worker's thread")]
    Spawn(#[source] io::Error),
}

/// What a queue pair has seen so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Of its receiveq.
    pub rx: Counters,
    /// Of its transmitq.
    pub tx: Counters,
    /// Who the guest says it is.
    pub heard: Heard,
    /// What of that the guard has refused of late.
    pub refusals: Refusals,
}

/// A queue pair at work in its own thread; ends with this value.
#[derive(Debug)]
pub struct Worker {
    endpoint: RemoteEndpoint<PairLoop>,
    id: SubscriberId,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread called `name` that works on `pair`, and spins for at most `poll` before it sleeps. It writes to `lost` when
    /// the tap has been deleted.
    ///
    /// # Errors
    /// Where the kernel has no thread or epoll instance to give.
    pub fn spawn(
        name: String,
        pair: QueuePair,
        poll: Duration,
        lost: Arc<EventFd>,
    ) -> Result<Self, WorkerError> {
        let mut manager = EventManager::new()?;
        let id = manager.add_subscriber(PairLoop::new(pair, lost));
        let endpoint = manager.remote_endpoint();
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                if let Err(error) = run(manager, id, Spin::new(poll)) {
                    tracing::error!("queue pair worker ends: {error}");
                }
            })
            .map_err(WorkerError::Spawn)?;
        Ok(Self {
            endpoint,
            id,
            thread: Some(thread),
        })
    }

    /// Starts a ring.
    ///
    /// # Errors
    /// Where its kick can't be waited for; the ring is then stopped.
    pub fn start(&self, side: Side, ring: Started) -> Result<(), WorkerError> {
        let id = self.id;
        self.endpoint.call_blocking(move |ops| {
            if let Some(kick) = &ring.kick {
                ops.event_ops(id)?.add(kicks(kick, side))?;
            }
            ops.subscriber_mut(id)?.start(side, ring);
            Ok(())
        })
    }

    /// Stops a ring after the burst at hand; returns it, or `None` if it was stopped.
    ///
    /// # Errors
    /// Where the worker is gone.
    pub fn stop(&self, side: Side) -> Result<Option<Started>, WorkerError> {
        let id = self.id;
        self.endpoint.call_blocking(move |ops| {
            let ring = ops.subscriber_mut(id)?.pair.stop(side);
            if let Some(kick) = ring.as_ref().and_then(|ring| ring.kick.as_ref()) {
                ops.event_ops(id)?.remove(kicks(kick, side))?;
                kick.clear(); // a front-end that goes on with it itself finds what came later
            }
            Ok(ring)
        })
    }

    /// Lets frames through a ring, or not.
    ///
    /// # Errors
    /// Where the worker is gone.
    pub fn enable(&self, side: Side, enabled: bool) -> Result<(), WorkerError> {
        self.with_loop(move |pair_loop| {
            pair_loop.look_again();
            pair_loop.pair.enable(side, enabled)
        })?
        .map_err(WorkerError::Attach)
    }

    /// Changes how the driver is told of completed chains. It is told once at once, for what was completed before may
    /// have gone to the old descriptor after its reader had left.
    ///
    /// # Errors
    /// Where the worker is gone.
    pub fn set_call(&self, side: Side, call: Option<Notifier>) -> Result<(), WorkerError> {
        self.with_loop(move |pair_loop| {
            let vring = pair_loop.pair.vring(side);
            vring.call = call;
            if vring.started.is_some() {
                vring.notify();
            }
        })
    }

    /// Changes how frames are laid out.
    ///
    /// # Errors
    /// Where the worker is gone.
    pub fn set_format(&self, format: FrameFormat) -> Result<(), WorkerError> {
        self.with_loop(move |pair_loop| pair_loop.pair.set_format(format))
    }

    /// Announces `mac` to the host's switches.
    ///
    /// # Errors
    /// Where the worker is gone; a tap that takes no frame is not an error, for an announcement is a courtesy.
    pub fn announce(&self, mac: [u8; 6]) -> Result<(), WorkerError> {
        self.with_loop(move |pair_loop| {
            if let Err(error) = pair_loop.pair.announce(mac) {
                tracing::warn!("RARP was not sent: {error}");
            }
        })
    }

    /// What it has seen so far.
    ///
    /// # Errors
    /// Where the worker is gone.
    pub fn report(&self) -> Result<Report, WorkerError> {
        self.with_loop(|pair_loop| Report {
            rx: pair_loop.pair.rx_counters,
            tx: pair_loop.pair.tx_counters,
            heard: pair_loop.pair.heard.clone(),
            refusals: pair_loop.pair.refusals.clone(),
        })
    }

    fn with_loop<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut PairLoop) -> T + Send + 'static,
    ) -> Result<T, WorkerError> {
        let id = self.id;
        self.endpoint
            .call_blocking(move |ops| Ok(work(ops.subscriber_mut(id)?)))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A loop that is gone has ended already.
        let _ = self.with_loop(|pair_loop| pair_loop.ended = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is waited for on a ring's kick.
fn kicks(kick: &Notifier, side: Side) -> Events {
    let token = match side {
        Side::Rx => RX_KICK,
        Side::Tx => TX_KICK,
    };
    Events::with_data(kick, token, EventSet::IN | EventSet::EDGE_TRIGGERED)
}

/// The thread's whole life.
fn run(
    mut manager: EventManager<PairLoop>,
    id: SubscriberId,
    mut spin: Spin,
) -> Result<(), event_manager::Error> {
    loop {
        manager.subscriber_mut(id)?.spin(&mut spin);
        listen_again(&mut manager, id)?;
        let wait = manager.subscriber_mut(id)?.patience();
        let asleep = Instant::now();
        let events = manager.run_with_timeout(wait)?;
        if wait != 0 {
            spin.woke_after(asleep.elapsed());
        }
        let pair_loop = manager.subscriber_mut(id)?;
        if wait == DEAF && events == 0 {
            pair_loop.tap_readable = false; // to be told anew of its frames, or of its end
        }
        if pair_loop.ended {
            return Ok(());
        }
        pair_loop.turn();
    }
}

/// Has the loop told of frames in the tap, once it has been emptied.
fn listen_again(
    manager: &mut EventManager<PairLoop>,
    id: SubscriberId,
) -> Result<(), event_manager::Error> {
    let pair_loop = manager.subscriber_mut(id)?;
    if !pair_loop.is_deaf || pair_loop.tap_readable {
        return Ok(());
    }
    pair_loop.is_deaf = false;
    let events = pair_loop.tap_events();
    manager.event_ops(id)?.modify(events) // tells of a frame that has come meanwhile
}

/// A queue pair and what is known of its surroundings.
#[derive(Debug)]
struct PairLoop {
    pair: QueuePair,
    /// The tap may have frames.
    tap_readable: bool,
    /// No event tells of frames in the tap. Only while `tap_readable`: those that come then tell nothing new.
    is_deaf: bool,
    /// The receiveq may have buffers enough.
    rx_room: bool,
    /// The transmitq may have chains.
    tx_chains: bool,
    /// The tap may take frames.
    tap_writable: bool,
    /// The rate limit's timer runs: no reception, no transmission until it tells.
    rx_throttled: bool,
    tx_throttled: bool,
    /// Who wants to know that the tap is gone.
    lost: Arc<EventFd>,
    ended: bool,
}

impl PairLoop {
    fn new(pair: QueuePair, lost: Arc<EventFd>) -> Self {
        Self {
            pair,
            tap_readable: true,
            is_deaf: false,
            rx_room: false,
            tx_chains: false,
            tap_writable: true,
            rx_throttled: false,
            tx_throttled: false,
            lost,
            ended: false,
        }
    }

    fn start(&mut self, side: Side, ring: Started) {
        self.pair.vring(side).started = Some(ring);
        self.look_again();
    }

    /// Something changed beside the events: look at everything once.
    fn look_again(&mut self) {
        self.tap_readable = true;
        self.tap_writable = true;
        self.rx_room = true;
        self.tx_chains = true;
    }

    fn has_work(&self) -> bool {
        self.can_transmit() || self.can_receive()
    }

    /// For how many milliseconds to wait for events; -1 without an end.
    fn patience(&self) -> i32 {
        match (self.has_work(), self.is_deaf) {
            (true, _) => 0,
            (false, true) => DEAF,
            (false, false) => -1,
        }
    }

    fn can_transmit(&self) -> bool {
        !self.tx_throttled && self.tap_writable && (self.tx_chains || self.pair.tx.is_polled())
    }

    fn can_receive(&self) -> bool {
        !self.rx_throttled && self.tap_readable && (self.rx_room || self.pair.rx.is_polled())
    }

    /// What of the tap is waited for.
    fn tap_events(&self) -> Events {
        let edges = EventSet::OUT | EventSet::EDGE_TRIGGERED;
        let edges = match self.is_deaf {
            true => edges,
            false => edges | EventSet::IN,
        };
        Events::with_data(self.pair.tap(), TAP, edges)
    }

    /// The tap has frames.
    fn frames_came(&mut self, ops: &mut EventOps) {
        let in_vain = self.tap_readable && !self.can_receive();
        self.tap_readable = true;
        if in_vain && !self.is_deaf {
            self.is_deaf = true;
            if let Err(error) = ops.modify(self.tap_events()) {
                tracing::warn!(
                    "each frame wakes the worker, for the tap's events can't be changed: {error}"
                );
                self.is_deaf = false;
            }
        }
    }

    /// A burst in either direction, where there may be work.
    fn turn(&mut self) {
        if self.can_transmit() {
            match self.pair.process_tx() {
                TxEnd::RingEmpty => self.tx_chains = false,
                // If it can't be asked, look again at once rather than never.
                TxEnd::TapFull => self.tap_writable = self.pair.tap().has_room().unwrap_or(true),
                TxEnd::Throttled => self.tx_throttled = wait(&mut self.pair.tx_pacer),
                TxEnd::More => {}
            }
        }
        if self.can_receive() {
            match self.pair.process_rx() {
                RxEnd::TapEmpty => self.tap_readable = false,
                RxEnd::NoBuffers => self.rx_room = false,
                RxEnd::Throttled => self.rx_throttled = wait(&mut self.pair.rx_pacer),
                RxEnd::More => {}
            }
        }
    }

    /// Spins where there is nothing else to do and spinning has paid lately.
    fn spin(&mut self, spin: &mut Spin) {
        let throttled = self.rx_throttled || self.tx_throttled; // there is work, but not now
        if self.has_work() || throttled || spin.budget().is_zero() || !self.pair.is_running() {
            return;
        }
        self.pair.rx_counters.spins += 1;
        self.pair.tx_counters.spins += 1;
        if !self.pair.spin(spin.budget()) {
            spin.in_vain();
        }
        self.look_again(); // a burst may have ended early; and kicks are off
        self.turn();
    }

    fn kicked(&mut self, side: Side) {
        match side {
            Side::Rx => {
                self.pair.rx_counters.kicks += 1;
                self.rx_room = true;
            }
            Side::Tx => {
                self.pair.tx_counters.kicks += 1;
                self.tx_chains = true;
            }
        }
    }
}

/// Whether `pacer`'s timer will tell when to go on. Without a timer the limit is polled: it is kept, if at a price.
fn wait(pacer: &mut Option<Pacer>) -> bool {
    pacer
        .as_mut()
        .is_some_and(|pacer| pacer.wait().unwrap_or(false))
}

fn clear(pacer: &mut Option<Pacer>) {
    if let Some(pacer) = pacer {
        pacer.clear();
    }
}

/// Has the loop woken by what the worker itself has.
fn watch(ops: &mut EventOps, events: Events) {
    let (fd, token) = (events.fd(), events.data());
    if let Err(error) = ops.add(events) {
        let what = match token {
            TAP => "tap queue",
            _ => "timer",
        };
        tracing::error!("{what} {fd} can't be waited for: {error}");
    }
}

impl MutEventSubscriber for PairLoop {
    fn init(&mut self, ops: &mut EventOps) {
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let pair = &self.pair;
        watch(ops, self.tap_events());
        watch(
            ops,
            Events::with_data(pair.tx_calls.timer(), TX_CALLS, edges),
        );
        for (pacer, token) in [(&pair.rx_pacer, RX_TIMER), (&pair.tx_pacer, TX_TIMER)] {
            if let Some(pacer) = pacer {
                watch(ops, Events::with_data(pacer.timer(), token, EventSet::IN));
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            TAP => {
                if events.event_set().contains(EventSet::IN) {
                    self.frames_came(ops);
                }
                self.tap_writable |= events.event_set().contains(EventSet::OUT);
                if events.event_set().contains(EventSet::ERROR)
                    && let Err(error) = self.lost.write(1)
                {
                    tracing::error!("that the tap is gone can't be told: {error}");
                }
            }
            RX_TIMER => {
                self.rx_throttled = false;
                clear(&mut self.pair.rx_pacer);
            }
            TX_TIMER => {
                self.tx_throttled = false;
                clear(&mut self.pair.tx_pacer);
            }
            TX_CALLS => self.pair.call_in_time(),
            RX_KICK => self.kicked(Side::Rx),
            TX_KICK => self.kicked(Side::Tx),
            _ => {}
        }
    }
}
