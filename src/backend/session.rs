//! One device and its conversation with a front-end: request → device state → reply.
//!
//! # Theory of operation
//! A [`Device`] keeps what front-ends said, ring by ring, however incomplete; its workers keep the rings that are
//! started. A ring starts when its size, addresses, memory and kick are all known, in whatever order they came,
//! and stops with GET_VRING_BASE. Whatever invalidates a started ring's layout (a new memory table, other
//! features) stops it for the moment and starts it anew at the same position.
//!
//! Real front-ends do not follow the order of the specification's examples. QEMU enables rings before it has
//! sent SET_FEATURES, and not again after it, so the enabled state outlives both SET_FEATURES and the ring's set-up;
//! and DPDK sets calls before anything else.
//!
//! A request that fails is answered with an error where the front-end asked for an answer; otherwise the
//! connection ends, since nothing else would tell it.

use std::io;
use std::sync::Arc;

use thiserror::Error;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserProtocolFeatures, VhostUserU64, VhostUserVringState,
};
use vm_memory::ByteValued;

use super::features::{Features, offered_protocol_features};
use super::memory::{GuestMemory, MemoryError};
use super::message::{Connection, Message, MessageError, Request, VringAddr};
use super::queue_pair::{FrameFormat, Side};
use super::ring::{RingError, RingLayout, RingPosition};
use super::vring::{Notifier, Started};
use super::worker::{Worker, WorkerError};
use crate::tap::TapSettings;

/// Why a request fails.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The ring's number is beyond the device's queues.
    #[error("ring {0} does not exist")]
    NoSuchRing(u32),
    /// Features were accepted that had not been offered.
    #[error("features {0:#x} were never offered")]
    Features(u64),
    /// This back-end does not know the request.
    #[error("the request is not supported")]
    Unsupported,
    /// A value is out of its range.
    #[error("{0} is out of range")]
    Range(u32),
    /// The memory table can't be used.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A ring's size or place can't be used.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A ring lies outside the front-end's memory table.
    #[error("ring address {0:#x} lies outside the memory table")]
    RingAddress(u64),
    /// The worker failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The tap or a descriptor refused a setting.
    #[error("the tap or an eventfd refused a setting: {0}")]
    Kernel(#[from] io::Error),
}

/// Why a conversation ends other than by the front-end's leaving.
#[derive(Debug, Error)]
pub enum SessionError {
    /// A message could not be read.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// An answer could not be written.
    #[error("vhost-user socket: {0}")]
    Reply(#[from] io::Error),
    /// A request failed, and the front-end would not have known.
    #[error("{code:?}: {cause}")]
    Request {
        /// The request.
        code: FrontendReq,
        /// Why it failed.
        cause: RequestError,
    },
}

/// What a front-end has said of one ring.
#[derive(Debug, Default)]
struct RingSettings {
    size: Option<u16>,
    addr: Option<VringAddr>,
    base: u32,
    /// The outer `Some`: the ring is to be started. The inner `None`: without a kick, by polling.
    kick: Option<Option<Notifier>>,
}

/// A vhost-user-net device.
pub struct Device {
    tap: Box<dyn TapSettings>,
    workers: Vec<Worker>,
    rings: Vec<RingSettings>,
    features: Features,
    protocol: VhostUserProtocolFeatures,
    memory: Option<Arc<GuestMemory>>,
}

impl Device {
    /// A device with a worker a queue pair; `tap` is what they all read and write.
    pub fn new(tap: Box<dyn TapSettings>, workers: Vec<Worker>) -> Self {
        let rings = workers.len() * 2;
        Self {
            tap,
            workers,
            rings: (0..rings).map(|_| RingSettings::default()).collect(),
            features: Features::default(),
            protocol: VhostUserProtocolFeatures::empty(),
            memory: None,
        }
    }

    /// Takes one message from `connection` and answers it; false where the front-end has gone.
    ///
    /// # Errors
    /// See [`SessionError`]; the connection is then to be closed.
    pub fn serve_message(&mut self, connection: &Connection) -> Result<bool, SessionError> {
        let Some(message) = connection.receive()? else {
            return Ok(false);
        };
        tracing::debug!(request = ?message.request, "front-end");
        let Message {
            code,
            need_reply,
            request,
        } = message;
        let answered = self.handle(request);
        if let Err(cause) = &answered {
            tracing::warn!("{code:?}: {cause}");
        }
        let need_reply = need_reply && self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        match answered {
            Ok(Some(body)) => connection.reply(code, &body)?,
            Ok(None) if need_reply => connection.reply(code, VhostUserU64::new(0).as_slice())?,
            Ok(None) => {}
            Err(_) if need_reply => connection.reply(code, VhostUserU64::new(1).as_slice())?,
            Err(cause) => return Err(SessionError::Request { code, cause }),
        }
        Ok(true)
    }

    /// Forgets the front-end: stops and disables every ring, and gives its memory and descriptors back.
    ///
    /// # Errors
    /// Where a worker is gone.
    pub fn reset(&mut self) -> Result<(), WorkerError> {
        for ring in 0..self.rings.len() {
            let (worker, side) = self.worker(ring);
            worker.stop(side)?;
            worker.enable(side, false)?;
            worker.set_call(side, None)?;
            self.rings[ring] = RingSettings::default();
        }
        self.features = Features::default();
        self.protocol = VhostUserProtocolFeatures::empty();
        self.memory = None;
        Ok(())
    }

    /// Logs what every pair has counted.
    ///
    /// # Errors
    /// Where a worker is gone.
    pub fn log_counters(&self) -> Result<(), WorkerError> {
        for (pair, worker) in self.workers.iter().enumerate() {
            let [rx, tx] = worker.counters()?;
            tracing::info!("pair {pair} rx: {rx}");
            tracing::info!("pair {pair} tx: {tx}");
        }
        Ok(())
    }

    /// Does what is asked; returns the reply's body where the request has one.
    fn handle(&mut self, request: Request) -> Result<Option<Vec<u8>>, RequestError> {
        match request {
            Request::GetFeatures => return reply(&VhostUserU64::new(Features::offered().bits())),
            Request::GetProtocolFeatures => {
                return reply(&VhostUserU64::new(offered_protocol_features().bits()));
            }
            // QEMU, DPDK and passt mean pairs by it, whatever the name says.
            Request::GetQueueNum => return reply(&VhostUserU64::new(self.workers.len() as u64)),
            Request::GetVringBase(ring) => return self.get_vring_base(ring),
            Request::SetFeatures(bits) => self.set_features(bits)?,
            Request::SetProtocolFeatures(bits) => self.set_protocol_features(bits)?,
            Request::SetOwner => {}
            Request::ResetOwner => self.disable_all()?,
            Request::SetMemTable(regions) => {
                self.memory = Some(Arc::new(GuestMemory::map(&regions, None)?));
                self.restart_rings()?;
            }
            Request::SetVringNum(ring, size) => {
                let size = u16::try_from(size).map_err(|_| RequestError::Range(size))?;
                self.settings(ring)?.size = Some(size);
                self.start_if_complete(ring)?;
            }
            Request::SetVringAddr(addr) => {
                self.settings(addr.index)?.addr = Some(addr);
                self.start_if_complete(addr.index)?;
            }
            Request::SetVringBase(ring, base) => {
                self.settings(ring)?.base = base;
            }
            Request::SetVringKick(ring, fd) => {
                let kick = fd.map(Notifier::new).transpose()?;
                self.settings(ring)?.kick = Some(kick);
                self.start_if_complete(ring)?;
            }
            Request::SetVringCall(ring, fd) => {
                let call = fd.map(Notifier::new).transpose()?;
                let (worker, side) = self.checked_worker(ring)?;
                worker.set_call(side, call)?;
            }
            // Broken rings are counted; there is nothing to tell through the descriptor.
            Request::SetVringErr(ring) => drop(self.settings(ring)?),
            Request::SetVringEnable(ring, on) => {
                let (worker, side) = self.checked_worker(ring)?;
                worker.enable(side, on)?;
            }
            Request::Unsupported(_) => return Err(RequestError::Unsupported),
        }
        Ok(None)
    }

    fn set_features(&mut self, bits: u64) -> Result<(), RequestError> {
        self.features = Features::acked(bits).map_err(RequestError::Features)?;
        tracing::info!("features {bits:#x}");
        self.tap.set_header_len(self.features.header_len())?;
        self.tap.set_offloads(self.features.tap_offloads())?;
        let format = FrameFormat {
            header: self.features.header_len(),
            mergeable: self.features.mergeable_buffers(),
        };
        for worker in &self.workers {
            worker.set_format(format)?;
        }
        if !self.features.rings_start_disabled() {
            for ring in 0..self.rings.len() {
                let (worker, side) = self.worker(ring);
                worker.enable(side, true)?;
            }
        }
        self.restart_rings()
    }

    fn set_protocol_features(&mut self, bits: u64) -> Result<(), RequestError> {
        let unknown = bits & !offered_protocol_features().bits();
        if unknown != 0 {
            return Err(RequestError::Features(unknown));
        }
        self.protocol = VhostUserProtocolFeatures::from_bits_truncate(bits);
        Ok(())
    }

    fn disable_all(&mut self) -> Result<(), RequestError> {
        for ring in 0..self.rings.len() {
            let (worker, side) = self.worker(ring);
            worker.enable(side, false)?;
        }
        Ok(())
    }

    /// Stops the ring and says where it is to go on: the worker is past its burst when this returns.
    fn get_vring_base(&mut self, ring: u32) -> Result<Option<Vec<u8>>, RequestError> {
        let (worker, side) = self.checked_worker(ring)?;
        let stopped = worker.stop(side)?;
        let settings = self.settings(ring)?;
        settings.kick = None;
        if let Some(stopped) = stopped {
            settings.base = stopped.position.base();
        }
        let base = settings.base;
        reply(&VhostUserVringState::new(ring, base))
    }

    /// Gives every started ring the current memory table and features.
    fn restart_rings(&mut self) -> Result<(), RequestError> {
        for ring in 0..self.rings.len() {
            let (worker, side) = self.worker(ring);
            if let Some(stopped) = worker.stop(side)? {
                self.rings[ring].base = stopped.position.base();
                self.rings[ring].kick = Some(stopped.kick);
            }
            self.start_if_complete(ring as u32)?;
        }
        Ok(())
    }

    /// Starts the ring if it is to be started and all that takes is known. A ring that runs goes on from where it
    /// is, with the new kick. After an error the ring is not to be started any more.
    fn start_if_complete(&mut self, ring: u32) -> Result<(), RequestError> {
        let index = ring as usize;
        let (features, memory) = (self.features, self.memory.clone());
        let settings = self.settings(ring)?;
        let (Some(size), Some(addr), Some(memory), true) = (
            settings.size,
            settings.addr,
            memory,
            settings.kick.is_some(),
        ) else {
            return Ok(());
        };
        let kick = settings.kick.take().flatten();
        let base = settings.base;
        let translate = |addr| {
            memory
                .translate(addr)
                .ok_or(RequestError::RingAddress(addr))
        };
        let parts = [
            translate(addr.desc)?,
            translate(addr.avail)?,
            translate(addr.used)?,
        ];
        let layout = RingLayout::new(memory.mem(), size, parts, features)?;
        let (worker, side) = self.worker(index);
        let base = worker.stop(side)?.map_or(base, |old| old.position.base());
        let position = RingPosition::resume(memory.mem(), &layout, base)?;
        worker.start(
            side,
            Started {
                memory,
                layout,
                position,
                kick,
            },
        )?;
        tracing::info!("ring {ring} started: {size} descriptors from {base:#x}");
        Ok(())
    }

    fn settings(&mut self, ring: u32) -> Result<&mut RingSettings, RequestError> {
        self.rings
            .get_mut(ring as usize)
            .ok_or(RequestError::NoSuchRing(ring))
    }

    fn checked_worker(&self, ring: u32) -> Result<(&Worker, Side), RequestError> {
        if ring as usize >= self.rings.len() {
            return Err(RequestError::NoSuchRing(ring));
        }
        Ok(self.worker(ring as usize))
    }

    /// Who works on `ring`: queues alternate, receiveq first (virtio 1.3 §5.1.2).
    fn worker(&self, ring: usize) -> (&Worker, Side) {
        let side = if ring % 2 == 0 { Side::Rx } else { Side::Tx };
        (&self.workers[ring / 2], side)
    }
}

fn reply<T: ByteValued>(body: &T) -> Result<Option<Vec<u8>>, RequestError> {
    Ok(Some(body.as_slice().to_vec()))
}
