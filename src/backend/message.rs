//! vhost-user framing: a 12-byte header, a body, and file descriptors beside them, to and from typed requests.
//!
//! Bodies are the `vhost` crate's; its own request handler is not used, for it ends the connection at the order
//! in which QEMU's network front-end sends its messages. Numbers are in host byte order (vhost-user "Message
//! Specification").

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};
use thiserror::Error;
use vhost::vhost_user::message::{
    FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE, VhostUserConfig, VhostUserHeaderFlag,
    VhostUserLog, VhostUserMemory, VhostUserMemoryRegion, VhostUserMsgValidator,
    VhostUserSingleMemoryRegion, VhostUserU64, VhostUserVringAddr, VhostUserVringState,
};
use vm_memory::ByteValued;

use super::memory::Region;

const HEADER: usize = 12;
const VERSION: u32 = 1;

/// In SET_VRING_KICK, CALL and ERR: the ring's index, and a flag that says that no descriptor comes along.
const VRING_INDEX: u64 = 0xff;
const VRING_NO_FD: u64 = 1 << 8;

/// A front-end that has sent half a message gets this long for the rest.
const STALL: Duration = Duration::from_secs(10);

/// Why a message can't be taken. The connection is then of no more use.
#[derive(Debug, Error)]
pub enum MessageError {
    /// The socket failed, or the front-end stalled or left amid a message.
    #[error("vhost-user socket: {0}")]
    Socket(#[from] io::Error),
    /// The header is not one of vhost-user's.
    #[error("not a vhost-user message: request {request}, flags {flags:#x}, {size} bytes")]
    Header {
        /// The request's number.
        request: u32,
        /// Version and flags.
        flags: u32,
        /// The body's length.
        size: u32,
    },
    /// The body or the descriptors are not what the request takes.
    #[error("{request:?} with a body of {size} bytes and {fds} descriptors is malformed")]
    Body {
        /// The request.
        request: FrontendReq,
        /// The body's length.
        size: usize,
        /// How many descriptors came along.
        fds: usize,
    },
}

/// What a front-end asks, as far as this back-end knows it. Ring numbers are as sent, unchecked.
#[derive(Debug)]
pub enum Request {
    /// GET_FEATURES
    GetFeatures,
    /// SET_FEATURES
    SetFeatures(u64),
    /// GET_PROTOCOL_FEATURES
    GetProtocolFeatures,
    /// SET_PROTOCOL_FEATURES
    SetProtocolFeatures(u64),
    /// GET_QUEUE_NUM
    GetQueueNum,
    /// SET_OWNER
    SetOwner,
    /// RESET_OWNER
    ResetOwner,
    /// SET_MEM_TABLE: regions, each with its file
    SetMemTable(Vec<(Region, Arc<File>)>),
    /// SET_VRING_NUM: ring, size in descriptors
    SetVringNum(u32, u32),
    /// SET_VRING_ADDR
    SetVringAddr(VringAddr),
    /// SET_VRING_BASE: ring, next avail index
    SetVringBase(u32, u32),
    /// GET_VRING_BASE: ring
    GetVringBase(u32),
    /// SET_VRING_KICK: ring, eventfd or none to poll
    SetVringKick(u32, Option<OwnedFd>),
    /// SET_VRING_CALL: ring, eventfd or none for a driver that polls
    SetVringCall(u32, Option<OwnedFd>),
    /// SET_VRING_ERR: ring
    SetVringErr(u32),
    /// SET_VRING_ENABLE: ring, on or off
    SetVringEnable(u32, bool),
    /// RESET_DEVICE
    ResetDevice,
    /// SEND_RARP: the guest's MAC address
    SendRarp([u8; 6]),
    /// NET_SET_MTU: bytes
    NetSetMtu(u64),
    /// SET_STATUS: virtio's device status
    SetStatus(u64),
    /// GET_STATUS
    GetStatus,
    /// SET_LOG_BASE: the dirty log's offset and length in its file
    SetLogBase(u64, u64, File),
    /// SET_LOG_FD: told when the log was written; the front-end looks by itself
    SetLogFd,
    /// GET_MAX_MEM_SLOTS
    GetMaxMemSlots,
    /// ADD_MEM_REG
    AddMemReg(Region, Arc<File>),
    /// REM_MEM_REG
    RemMemReg(Region),
    /// GET_CONFIG: which bytes of the configuration space
    GetConfig(ConfigRange),
    /// Anything else
    Unsupported(FrontendReq),
}

/// Where a front-end says that a ring lies, in its own address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringAddr {
    /// The ring's number.
    pub index: u32,
    /// The descriptor table.
    pub desc: u64,
    /// The avail ring.
    pub avail: u64,
    /// The used ring.
    pub used: u64,
}

/// Bytes of the configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigRange {
    /// The first.
    pub offset: u32,
    /// How many.
    pub len: u32,
    /// What the front-end wants them for, which an answer repeats.
    pub flags: u32,
}

/// A request with what is needed to answer it.
#[derive(Debug)]
pub struct Message {
    /// The request's number, which the answer repeats.
    pub code: FrontendReq,
    /// The front-end waits for an acknowledgement (REPLY_ACK).
    pub need_reply: bool,
    /// What is asked.
    pub request: Request,
}

/// One front-end's connection.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
}

impl Connection {
    /// Takes a connected socket over.
    ///
    /// # Errors
    /// Those of setting its time limit.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(STALL))?;
        socket.set_write_timeout(Some(STALL))?;
        Ok(Self { socket })
    }

    /// The next request; `None` where the front-end has gone. To be called when the socket is readable.
    ///
    /// # Errors
    /// See [`MessageError`].
    pub fn receive(&self) -> Result<Option<Message>, MessageError> {
        let mut header = [0; HEADER];
        let Some(fds) = self.receive_header(&mut header)? else {
            return Ok(None);
        };
        let field = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|i| header[at + i]));
        let [request, flags, size] = [field(0), field(4), field(8)];
        let bad_header = MessageError::Header {
            request,
            flags,
            size,
        };
        let is_request = flags & VhostUserHeaderFlag::VERSION.bits() == VERSION
            && flags & VhostUserHeaderFlag::REPLY.bits() == 0;
        let code = FrontendReq::try_from(request).ok();
        let Some(code) = code.filter(|_| is_request && size as usize <= MAX_MSG_SIZE) else {
            return Err(bad_header);
        };
        let mut body = vec![0; size as usize];
        (&self.socket).read_exact(&mut body)?;
        let counts = (body.len(), fds.len());
        let request = parse(code, &body, fds).ok_or(MessageError::Body {
            request: code,
            size: counts.0,
            fds: counts.1,
        })?;
        Ok(Some(Message {
            code,
            need_reply: flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0,
            request,
        }))
    }

    /// Answers request `code` with `body`.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn reply(&self, code: FrontendReq, body: &[u8]) -> io::Result<()> {
        let flags = VERSION | VhostUserHeaderFlag::REPLY.bits();
        let mut message = Vec::with_capacity(HEADER + body.len());
        for field in [u32::from(code), flags, body.len() as u32] {
            message.extend_from_slice(&field.to_ne_bytes());
        }
        message.extend_from_slice(body);
        (&self.socket).write_all(&message)
    }

    /// Reads a header and the descriptors that come with its first byte.
    fn receive_header(&self, header: &mut [u8; HEADER]) -> io::Result<Option<Vec<OwnedFd>>> {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            let mut parts = [IoSliceMut::new(&mut header[..])];
            rustix::net::recvmsg(
                &self.socket,
                &mut parts,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        })?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "more descriptors than vhost-user allows",
            ));
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        (&self.socket).read_exact(&mut header[received.bytes..])?;
        Ok(Some(fds))
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The typed request; `None` where body or descriptors are not what it takes.
fn parse(code: FrontendReq, body: &[u8], fds: Vec<OwnedFd>) -> Option<Request> {
    use FrontendReq as Req;
    Some(match code {
        Req::GET_FEATURES => Request::GetFeatures,
        Req::SET_FEATURES => Request::SetFeatures(exact::<VhostUserU64>(body)?.value),
        Req::GET_PROTOCOL_FEATURES => Request::GetProtocolFeatures,
        Req::SET_PROTOCOL_FEATURES => {
            Request::SetProtocolFeatures(exact::<VhostUserU64>(body)?.value)
        }
        Req::GET_QUEUE_NUM => Request::GetQueueNum,
        Req::SET_OWNER => Request::SetOwner,
        Req::RESET_OWNER => Request::ResetOwner,
        Req::SET_MEM_TABLE => Request::SetMemTable(memory_table(body, fds)?),
        Req::SET_VRING_NUM => vring_state(body, Request::SetVringNum)?,
        Req::SET_VRING_ADDR => Request::SetVringAddr(vring_addr(body)?),
        Req::SET_VRING_BASE => vring_state(body, Request::SetVringBase)?,
        Req::GET_VRING_BASE => vring_state(body, |ring, _| Request::GetVringBase(ring))?,
        Req::SET_VRING_KICK => vring_fd(body, fds, Request::SetVringKick)?,
        Req::SET_VRING_CALL => vring_fd(body, fds, Request::SetVringCall)?,
        Req::SET_VRING_ERR => vring_fd(body, fds, |ring, _| Request::SetVringErr(ring))?,
        Req::SET_VRING_ENABLE => {
            vring_state(body, |ring, on| Request::SetVringEnable(ring, on != 0))?
        }
        Req::RESET_DEVICE => Request::ResetDevice,
        Req::SEND_RARP => {
            let [a, b, c, d, e, f, ..] = exact::<VhostUserU64>(body)?.value.to_le_bytes();
            Request::SendRarp([a, b, c, d, e, f])
        }
        Req::NET_SET_MTU => Request::NetSetMtu(exact::<VhostUserU64>(body)?.value),
        Req::SET_STATUS => Request::SetStatus(exact::<VhostUserU64>(body)?.value),
        Req::GET_STATUS => Request::GetStatus,
        Req::SET_LOG_BASE => {
            let log = exact::<VhostUserLog>(body)?;
            Request::SetLogBase(log.mmap_offset, log.mmap_size, only(fds)?.into())
        }
        Req::SET_LOG_FD => Request::SetLogFd,
        Req::GET_MAX_MEM_SLOTS => Request::GetMaxMemSlots,
        Req::ADD_MEM_REG => Request::AddMemReg(single_region(body)?, Arc::new(only(fds)?.into())),
        Req::REM_MEM_REG => Request::RemMemReg(single_region(body)?), // some send the file again
        Req::GET_CONFIG => Request::GetConfig(config_range(body)?),
        other => Request::Unsupported(other),
    })
}

/// A body of exactly one `T`.
fn exact<T: ByteValued + Default>(body: &[u8]) -> Option<T> {
    let mut value = T::default();
    let bytes = value.as_mut_slice();
    (bytes.len() == body.len()).then(|| bytes.copy_from_slice(body))?;
    Some(value)
}

fn vring_state(body: &[u8], request: impl FnOnce(u32, u32) -> Request) -> Option<Request> {
    let state = exact::<VhostUserVringState>(body)?;
    Some(request(state.index, state.num))
}

fn vring_addr(body: &[u8]) -> Option<VringAddr> {
    let addr = exact::<VhostUserVringAddr>(body)?;
    addr.is_valid().then_some(VringAddr {
        index: addr.index,
        desc: addr.descriptor,
        avail: addr.available,
        used: addr.used,
    })
}

/// A ring's number, and a descriptor exactly where the flag says so.
fn vring_fd(
    body: &[u8],
    fds: Vec<OwnedFd>,
    request: impl FnOnce(u32, Option<OwnedFd>) -> Request,
) -> Option<Request> {
    let value = exact::<VhostUserU64>(body)?.value;
    let wanted = if value & VRING_NO_FD == 0 { 1 } else { 0 };
    (fds.len() == wanted).then(|| {
        let ring = (value & VRING_INDEX) as u32;
        request(ring, fds.into_iter().next())
    })
}

/// Which bytes are asked for; room for them comes along.
fn config_range(body: &[u8]) -> Option<ConfigRange> {
    let (head, room) = body.split_at_checked(size_of::<VhostUserConfig>())?;
    let head = exact::<VhostUserConfig>(head)?;
    let range = ConfigRange {
        offset: head.offset,
        len: head.size,
        flags: head.flags,
    };
    (room.len() == range.len as usize).then_some(range)
}

fn single_region(body: &[u8]) -> Option<Region> {
    Some(region(&*exact::<VhostUserSingleMemoryRegion>(body)?))
}

fn region(sent: &VhostUserMemoryRegion) -> Region {
    Region {
        guest_addr: sent.guest_phys_addr,
        len: sent.memory_size,
        user_addr: sent.user_addr,
        offset: sent.mmap_offset,
    }
}

/// The descriptor of a message that has exactly one.
fn only(fds: Vec<OwnedFd>) -> Option<OwnedFd> {
    (fds.len() == 1).then(|| fds.into_iter().next())?
}

fn memory_table(body: &[u8], fds: Vec<OwnedFd>) -> Option<Vec<(Region, Arc<File>)>> {
    let (head, regions) = body.split_at_checked(size_of::<VhostUserMemory>())?;
    let count = exact::<VhostUserMemory>(head)?.num_regions as usize;
    let mut regions = regions.chunks(size_of::<VhostUserMemoryRegion>());
    if regions.len() != count || fds.len() != count {
        return None;
    }
    fds.into_iter()
        .map(|fd| {
            let sent = exact::<VhostUserMemoryRegion>(regions.next()?)?;
            Some((region(&sent), Arc::new(File::from(fd))))
        })
        .collect()
}
