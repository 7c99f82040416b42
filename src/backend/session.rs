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
//! and DPDK sets calls before anything else. QEMU also repeats some messages for every pair.
//!
//! A request that fails is answered with an error where the front-end asked for an answer; otherwise the
//! connection ends, since nothing else would tell it.

use std::fs::File;
use std::io;
use std::sync::Arc;

use thiserror::Error;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserProtocolFeatures, VhostUserU64, VhostUserVringState,
};
use vm_memory::ByteValued;

use super::config_space::ConfigSpace;
use super::dirty_log::DirtyLog;
use super::features::{Extra, Features, offered_protocol_features};
use super::memory::{GuestMemory, MemoryError, Region};
use super::message::{ConfigRange, Connection, Message, MessageError, Request, VringAddr};
use super::queue_pair::{FrameFormat, Side};
use super::ring::{RingError, RingLayout, RingPosition};
use super::vring::{Notifier, Started};
use super::worker::{Report, Worker, WorkerError};
use crate::tap::TapSettings;
use crate::types::{Mtu, QueuePairs, QueueSize};

/// How many memory regions are taken: each costs two descriptors of a process's usual 1024.
const MAX_MEM_SLOTS: usize = 256;

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
    /// The memory table is full.
    #[error("the memory table has no slot left")]
    Slots,
    /// The MTU is below any that IP works with, or above what a frame has.
    #[error("an MTU of {0} is out of range (68 to 65535)")]
    Mtu(u64),
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
    /// A back-end died while it worked on the ring, and the front-end's base may be from before that.
    left: bool,
    /// The outer `Some`: the ring is to be started. The inner `None`: without a kick, by polling.
    kick: Option<Option<Notifier>>,
}

/// What the person who started the backend allows.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The largest ring.
    pub queue_size: QueueSize,
    /// The largest packet, unless a front-end names another.
    pub mtu: Option<Mtu>,
    /// What is offered beyond the usual.
    pub extras: Vec<Extra>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue_size: QueueSize::MAX,
            mtu: None,
            extras: Vec::new(),
        }
    }
}

/// A vhost-user-net device.
pub struct Device {
    limits: Limits,
    tap: Box<dyn TapSettings>,
    workers: Vec<Worker>,
    rings: Vec<RingSettings>,
    features: Features,
    protocol: VhostUserProtocolFeatures,
    /// What GET_FEATURES answers.
    offered: Features,
    /// The memory table, and its files for when it changes.
    regions: Vec<(Region, Arc<File>)>,
    memory: Option<Arc<GuestMemory>>,
    /// Where written pages are to be marked, while LOG_ALL is accepted.
    log: Option<Arc<DirtyLog>>,
    /// Virtio's device status, which the back-end keeps and does not act on.
    status: u64,
    /// What NET_SET_MTU named.
    mtu: Option<u16>,
}

impl Device {
    /// A device with a worker a queue pair; `tap` is what they all read and write.
    pub fn new(tap: Box<dyn TapSettings>, workers: Vec<Worker>, limits: Limits) -> Self {
        let rings = workers.len() * 2;
        Self {
            offered: Features::offered(tap.has_uso(), &limits.extras),
            limits,
            tap,
            workers,
            rings: (0..rings).map(|_| RingSettings::default()).collect(),
            features: Features::default(),
            protocol: VhostUserProtocolFeatures::empty(),
            regions: Vec::new(),
            memory: None,
            log: None,
            status: 0,
            mtu: None,
        }
    }

    /// Says that another back-end for the same front-end has died: its rings are to go on from where it left off. To be
    /// called before the first front-end.
    pub fn succeed_a_dead_one(&mut self) {
        self.rings.iter_mut().for_each(|ring| ring.left = true);
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
        self.reset_rings()?;
        for ring in 0..self.rings.len() {
            let (worker, side) = self.worker(ring);
            worker.set_call(side, None)?;
        }
        self.protocol = VhostUserProtocolFeatures::empty();
        self.regions.clear();
        self.memory = None;
        self.log = None;
        self.mtu = None;
        Ok(())
    }

    /// Stops and disables every ring, and forgets features and status (RESET_DEVICE).
    fn reset_rings(&mut self) -> Result<(), WorkerError> {
        for ring in 0..self.rings.len() {
            let (worker, side) = self.worker(ring);
            worker.stop(side)?;
            worker.enable(side, false)?;
            self.rings[ring] = RingSettings::default();
        }
        self.features = Features::default();
        self.status = 0;
        Ok(())
    }

    /// What every pair has seen.
    ///
    /// # Errors
    /// Where a worker is gone.
    pub fn report(&self) -> Result<Vec<Report>, WorkerError> {
        self.workers.iter().map(Worker::report).collect()
    }

    /// Logs what every pair has counted.
    ///
    /// # Errors
    /// Where a worker is gone.
    pub fn log_counters(&self) -> Result<(), WorkerError> {
        for (pair, worker) in self.workers.iter().enumerate() {
            let Report { rx, tx, .. } = worker.report()?;
            tracing::info!("pair {pair} rx: {rx}");
            tracing::info!("pair {pair} tx: {tx}");
        }
        Ok(())
    }

    /// Does what is asked; returns the reply's body where the request has one.
    fn handle(&mut self, request: Request) -> Result<Option<Vec<u8>>, RequestError> {
        match request {
            Request::GetFeatures => {
                return reply(&VhostUserU64::new(self.offered.bits()));
            }
            Request::GetProtocolFeatures => {
                return reply(&VhostUserU64::new(self.offered_protocol().bits()));
            }
            // QEMU, DPDK and passt mean pairs by it, whatever the name says.
            Request::GetQueueNum => return reply(&VhostUserU64::new(self.workers.len() as u64)),
            Request::GetVringBase(ring) => return self.get_vring_base(ring),
            Request::GetConfig(asked) => return self.get_config(asked),
            Request::SetFeatures(bits) => self.set_features(bits)?,
            Request::SetProtocolFeatures(bits) => self.set_protocol_features(bits)?,
            Request::SetOwner => {}
            Request::ResetOwner => self.disable_all()?,
            Request::GetMaxMemSlots => return reply(&VhostUserU64::new(MAX_MEM_SLOTS as u64)),
            Request::GetStatus => return reply(&VhostUserU64::new(self.status)),
            Request::SetLogBase(offset, len, file) => {
                self.log = Some(Arc::new(DirtyLog::map(file, offset, len)?));
                self.map_memory()?;
                return reply(&VhostUserU64::new(0)); // asked for whatever NEED_REPLY says
            }
            // The front-end looks at the log when it wants to.
            Request::SetLogFd => {}
            Request::SetMemTable(regions) => self.change_memory(|table| *table = regions)?,
            Request::AddMemReg(region, file) => self.add_region(region, file)?,
            Request::RemMemReg(region) => {
                if self.has_region(&region) {
                    self.change_memory(|table| table.retain(|(known, _)| !known.is_at(&region)))?;
                }
            }
            Request::ResetDevice => self.reset_rings()?,
            Request::SetStatus(status) => self.status = status,
            Request::SendRarp(mac) => self.workers[0].announce(mac)?,
            Request::NetSetMtu(mtu) => self.set_mtu(mtu)?,
            Request::SetVringNum(ring, size) => {
                let size = u16::try_from(size)
                    .ok()
                    .filter(|size| *size <= self.limits.queue_size.get())
                    .ok_or(RequestError::Range(size))?;
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

    fn offered_protocol(&self) -> VhostUserProtocolFeatures {
        offered_protocol_features(&self.limits.extras)
    }

    /// An answer without bytes says that they can't be read (vhost-user "GET_CONFIG").
    fn get_config(&self, asked: ConfigRange) -> Result<Option<Vec<u8>>, RequestError> {
        if !self.protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(RequestError::Unsupported);
        }
        let pairs = self.workers.len() as u16;
        let pairs = QueuePairs::try_from(pairs).map_err(|_| RequestError::Range(pairs.into()))?;
        let space = ConfigSpace::new(pairs, self.limits.mtu);
        let bytes = space.read(asked.offset, asked.len).unwrap_or_default();
        let head = VhostUserConfig {
            offset: asked.offset,
            size: bytes.len() as u32,
            flags: asked.flags,
        };
        Ok(Some([head.as_slice(), bytes].concat()))
    }

    fn set_features(&mut self, bits: u64) -> Result<(), RequestError> {
        let before = self.features;
        self.features = self.offered.accept(bits).map_err(RequestError::Features)?;
        tracing::info!("features {bits:#x}");
        self.tap.set_header_len(self.features.header_len())?;
        self.tap.set_offloads(self.features.tap_offloads())?;
        self.set_format()?;
        if !self.features.rings_start_disabled() {
            for ring in 0..self.rings.len() {
                let (worker, side) = self.worker(ring);
                worker.enable(side, true)?;
            }
        }
        if self.features.log_all() != before.log_all() {
            self.map_memory()
        } else {
            self.restart_rings()
        }
    }

    fn set_format(&self) -> Result<(), RequestError> {
        let format = FrameFormat {
            header: self.features.header_len(),
            mergeable: self.features.mergeable_buffers(),
            mtu: self.mtu.or(self.limits.mtu.map(Mtu::get)),
        };
        for worker in &self.workers {
            worker.set_format(format)?;
        }
        Ok(())
    }

    /// At least what IPv4 asks of a link (RFC 791).
    fn set_mtu(&mut self, mtu: u64) -> Result<(), RequestError> {
        let known = u16::try_from(mtu).ok().filter(|mtu| *mtu >= 68);
        self.mtu = Some(known.ok_or(RequestError::Mtu(mtu))?);
        self.set_format()
    }

    /// QEMU adds and removes each region once for every pair, so what is there or gone already is as it should be.
    fn add_region(&mut self, region: Region, file: Arc<File>) -> Result<(), RequestError> {
        if self.has_region(&region) {
            return Ok(());
        }
        if self.regions.len() >= MAX_MEM_SLOTS {
            return Err(RequestError::Slots);
        }
        self.change_memory(|table| table.push((region, file)))
    }

    fn has_region(&self, region: &Region) -> bool {
        self.regions.iter().any(|(known, _)| known.is_at(region))
    }

    /// Changes the memory table; as it was where the new one can't be mapped.
    fn change_memory(
        &mut self,
        change: impl FnOnce(&mut Vec<(Region, Arc<File>)>),
    ) -> Result<(), RequestError> {
        let before = self.regions.clone();
        change(&mut self.regions);
        self.map_memory().inspect_err(|_| self.regions = before)
    }

    /// Maps the memory table anew, with the log if pages are to be logged, and gives it to the started rings.
    fn map_memory(&mut self) -> Result<(), RequestError> {
        let log = self.log.as_ref().filter(|_| self.features.log_all());
        self.memory = Some(Arc::new(GuestMemory::map(&self.regions, log)?));
        self.restart_rings()
    }

    fn set_protocol_features(&mut self, bits: u64) -> Result<(), RequestError> {
        let unknown = bits & !self.offered_protocol().bits();
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
        let left = std::mem::take(&mut settings.left);
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
        let position = if left {
            RingPosition::recover(memory.mem(), &layout, base)?
        } else {
            RingPosition::resume(memory.mem(), &layout, base)?
        };
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
