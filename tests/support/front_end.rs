//! Front-ends for a [`Device`] that runs in a thread of this process: raw messages in whatever order a test likes.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use ringtap::backend::message::Connection;
use ringtap::backend::queue_pair::QueuePair;
use ringtap::backend::session::{Device, Limits};
use ringtap::backend::worker::Worker;
use ringtap::tap::{HeaderLen, Offloads, TapQueue, TapSettings};
use vhost::vhost_user::message::FrontendReq;

use super::driver::{DriverRing, HostEnd, MEMORY, USER_BASE, tap_pair};

/// How long a test waits for a thing that is to happen.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub const NEED_REPLY: u32 = 8;

/// What the device asked of the tap. A socketpair has no settings, so they are recorded here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    Offloads(Offloads),
    HeaderLen(HeaderLen),
}

struct Recorder(Sender<Setting>);

impl TapSettings for Recorder {
    fn set_offloads(&self, offloads: Offloads) -> std::io::Result<()> {
        self.0.send(Setting::Offloads(offloads)).unwrap();
        Ok(())
    }

    fn has_uso(&self) -> bool {
        true
    }

    fn set_header_len(&self, len: HeaderLen) -> std::io::Result<()> {
        self.0.send(Setting::HeaderLen(len)).unwrap();
        Ok(())
    }
}

/// A device of one pair whose tap is a socketpair, served in a thread until its front-end leaves.
pub struct Served {
    pub host: HostEnd,
    pub settings: Receiver<Setting>,
    thread: Session,
    /// Taken by the test's front-end.
    pub stream: Option<UnixStream>,
}

impl Served {
    pub fn start() -> Self {
        Self::start_with(Duration::ZERO, Limits::default())
    }

    /// As [`Self::start`], with a worker that spins for `poll` before it sleeps, and these limits.
    pub fn start_with(poll: Duration, limits: Limits) -> Self {
        let (tap, host) = tap_pair();
        let pair = QueuePair::new(TapQueue::from_fd(tap).unwrap()).unwrap();
        let (record, settings) = channel();
        let lost = Arc::new(vmm_sys_util::eventfd::EventFd::new(0).unwrap());
        let worker = Worker::spawn("pair0".into(), pair, poll, lost).unwrap();
        let device = Device::new(Box::new(Recorder(record)), vec![worker], limits);
        let (thread, stream) = serve(device);
        Self {
            host,
            settings,
            thread,
            stream: Some(stream),
        }
    }

    /// Waits for the front-end's leaving to be noticed; says how the session ended.
    pub fn end(self) -> Result<(), String> {
        drop(self.stream);
        self.thread.join().unwrap().1
    }

    /// The same device with the next front-end.
    pub fn next_front_end(self) -> Self {
        drop(self.stream);
        let (mut device, _) = self.thread.join().unwrap();
        device.reset().unwrap();
        let (thread, stream) = serve(device);
        Self {
            thread,
            stream: Some(stream),
            ..self
        }
    }

    pub fn raw(&mut self) -> RawFrontEnd {
        RawFrontEnd(self.stream.take().unwrap())
    }
}

/// A thread that ends with its front-end, and says how; the device comes back.
type Session = JoinHandle<(Device, Result<(), String>)>;

fn serve(mut device: Device) -> (Session, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let connection = Connection::new(theirs).unwrap();
        loop {
            match device.serve_message(&connection) {
                Ok(true) => {}
                Ok(false) => return (device, Ok(())),
                Err(error) => return (device, Err(error.to_string())),
            }
        }
    });
    (thread, ours)
}

/// Sends messages as bytes, in any order.
pub struct RawFrontEnd(pub UnixStream);

impl RawFrontEnd {
    pub fn send(&self, code: FrontendReq, flags: u32, body: &[u8], fds: &[&dyn AsRawFd]) {
        self.send_number(code.into(), flags, body, fds);
    }

    pub fn send_number(&self, request: u32, flags: u32, body: &[u8], fds: &[&dyn AsRawFd]) {
        let mut message = Vec::new();
        for field in [request, 1 | flags, body.len() as u32] {
            message.extend_from_slice(&field.to_ne_bytes());
        }
        message.extend_from_slice(body);
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights };
        let sent = sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(&message)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        assert_eq!(sent, Ok(message.len()));
    }

    pub fn u64(&self, code: FrontendReq, value: u64) {
        self.send(code, 0, &value.to_ne_bytes(), &[]);
    }

    pub fn state(&self, code: FrontendReq, ring: u32, value: u32) {
        self.send(code, 0, &pair(ring, value), &[]);
    }

    /// The body of the reply to `code`; `None` where the back-end hung up.
    pub fn reply(&self, code: FrontendReq) -> Option<Vec<u8>> {
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut header = [0; 12];
        (&self.0).read_exact(&mut header).ok()?;
        let field = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(
            (field(0), field(4)),
            (code.into(), 5),
            "request, version and reply flag"
        );
        let mut body = vec![0; field(8) as usize];
        (&self.0).read_exact(&mut body).unwrap();
        Some(body)
    }

    pub fn reply_u64(&self, code: FrontendReq) -> u64 {
        u64::from_ne_bytes(self.reply(code).expect("a reply")[..].try_into().unwrap())
    }

    pub fn get_u64(&self, code: FrontendReq) -> u64 {
        self.send(code, 0, &[], &[]);
        self.reply_u64(code)
    }

    /// Sends with NEED_REPLY and returns the acknowledgement: 0 is success.
    pub fn acknowledged(&self, code: FrontendReq, body: &[u8], fds: &[&dyn AsRawFd]) -> u64 {
        self.send(code, NEED_REPLY, body, fds);
        self.reply_u64(code)
    }

    pub fn get_base(&self, ring: u32) -> u32 {
        self.state(FrontendReq::GET_VRING_BASE, ring, 0);
        let body = self.reply(FrontendReq::GET_VRING_BASE).expect("a reply");
        assert_eq!(body[..4], ring.to_ne_bytes());
        u32::from_ne_bytes(body[4..].try_into().unwrap())
    }

    pub fn set_mem_table(&self, file: &File) -> u64 {
        self.acknowledged(
            FrontendReq::SET_MEM_TABLE,
            &mem_table(&[[0, MEMORY, USER_BASE, 0]]),
            &[file],
        )
    }

    /// NUM, BASE, ADDR, KICK, CALL, as QEMU's driver start has them.
    pub fn set_up_ring(&self, index: u32, ring: &DriverRing, base: u32, events: &Events) {
        self.state(FrontendReq::SET_VRING_NUM, index, u32::from(ring.size));
        self.state(FrontendReq::SET_VRING_BASE, index, base);
        self.send(
            FrontendReq::SET_VRING_ADDR,
            0,
            &vring_addr(index, ring),
            &[],
        );
        self.send(
            FrontendReq::SET_VRING_KICK,
            0,
            &u64::from(index).to_ne_bytes(),
            &[&events.kick],
        );
        self.send(
            FrontendReq::SET_VRING_CALL,
            0,
            &u64::from(index).to_ne_bytes(),
            &[&events.call],
        );
    }
}

/// The eventfds of one ring.
pub struct Events {
    pub kick: EventFd,
    pub call: EventFd,
}

impl Events {
    pub fn new() -> Self {
        let new = || EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
        Self {
            kick: new(),
            call: new(),
        }
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Waits to be notified.
    pub fn wait_for_call(&self) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(self.call.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut fds, timeout), Ok(1), "no notification");
        self.call.read().unwrap();
    }
}

pub fn pair(a: u32, b: u32) -> Vec<u8> {
    [a.to_ne_bytes(), b.to_ne_bytes()].concat()
}

/// Regions as guest address, length, user address, file offset.
pub fn mem_table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut body = pair(regions.len() as u32, 0);
    for field in regions.iter().flatten() {
        body.extend_from_slice(&field.to_ne_bytes());
    }
    body
}

/// One region as ADD_MEM_REG and REM_MEM_REG have it.
pub fn mem_region(region: [u64; 4]) -> Vec<u8> {
    let fields = [0].into_iter().chain(region);
    fields.flat_map(u64::to_ne_bytes).collect()
}

pub fn vring_addr(index: u32, ring: &DriverRing) -> Vec<u8> {
    let [desc, avail, used] = ring.parts().map(|part| USER_BASE + part.0);
    let mut body = pair(index, 0);
    for field in [desc, used, avail, 0] {
        body.extend_from_slice(&field.to_ne_bytes());
    }
    body
}

/// Calls `look` until it returns something.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
