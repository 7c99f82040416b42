//! A queue pair without a guest and without a tap: bursts of frames wait for it, from a guest's ring on their way to a tap that
//! swallows whatever is written at once (`/dev/null`), or at a socket's other end on their way to a guest's ring. So the backend's
//! own work is nearly all there is.

use std::fs::File;
use std::sync::Arc;

use ringtap::backend::features::Features;
use ringtap::backend::guard::Guard;
use ringtap::backend::memory::GuestMemory;
use ringtap::backend::queue_pair::{FrameFormat, QueuePair, Side};
use ringtap::backend::ring::{RingLayout, RingPosition};
use ringtap::backend::vring::Started;
use ringtap::tap::{HeaderLen, TapQueue};

use super::support::claims::{POLICY, honest};
use super::support::driver::{Buffer, DriverRing, HostEnd, Kind, frame, guest_memory, tap_pair};

/// Frames of a burst.
pub const FRAMES: u16 = 64;

const SIZE: u16 = 256;
const INDIRECT_DESC: u64 = 1 << 28;
const RING_PACKED: u64 = 1 << 34;

/// Room for a frame of the usual MTU, as Linux posts it.
const ROOM: usize = 1536;

/// What the chain of a frame is.
#[derive(Debug, Clone, Copy)]
pub enum Chains {
    /// One buffer.
    Whole,
    /// One buffer with a UDP packet, which a guard looks at.
    Guarded,
    /// A header and a frame.
    Parts,
    /// The same, in an indirect table.
    Indirect,
    /// One buffer, for a frame from the host.
    Received,
}

/// All of them.
pub const CHAINS: [Chains; 5] = [
    Chains::Whole,
    Chains::Guarded,
    Chains::Parts,
    Chains::Indirect,
    Chains::Received,
];

/// The pair, and the driver's side of the ring that is at work.
pub struct Bursts {
    pair: QueuePair,
    ring: DriverRing<'static>,
    chains: Vec<Vec<Buffer>>,
    /// Where frames come from that are received.
    host: Option<HostEnd>,
}

impl Bursts {
    /// Frames of 64 bytes in chains of this kind, in a ring of that one.
    pub fn new(kind: Kind, load: Chains) -> Self {
        let (memory, _) = guest_memory();
        let memory: &'static Arc<GuestMemory> = Box::leak(Box::new(memory)); // as long as the program
        let mut ring = DriverRing::of_kind(kind, memory.mem(), 0, SIZE);
        let chains = (0..FRAMES).map(|_| chain(&mut ring, load)).collect();

        let (tap, host) = match load {
            Chains::Received => {
                let (tap, host) = tap_pair();
                (tap, Some(host))
            }
            _ => {
                let swallows = File::options().read(true).write(true).open("/dev/null");
                (swallows.expect("/dev/null").into(), None)
            }
        };
        let tap = TapQueue::from_fd(tap).expect("a queue");
        let mut pair = QueuePair::new(tap).expect("a pair");
        pair.set_format(FrameFormat {
            header: HeaderLen::Long,
            mergeable: true,
            mtu: None,
        });
        let packed = if kind == Kind::Packed { RING_PACKED } else { 0 };
        let features = Features::offered(true, &[]).accept(INDIRECT_DESC | packed);
        let features = features.expect("what is offered");
        let layout = RingLayout::new(memory.mem(), SIZE, ring.parts(), features).expect("a ring");
        let position = RingPosition::resume(memory.mem(), &layout, ring.base(0));
        let side = if host.is_some() { Side::Rx } else { Side::Tx };
        let vring = pair.vring(side);
        vring.enabled = true;
        vring.started = Some(Started {
            memory: Arc::clone(memory),
            layout,
            position: position.expect("its beginning"),
            kick: None,
        });
        if let Chains::Guarded = load {
            let policy = POLICY.parse().expect("a policy");
            pair.set_guard(Guard::new(policy, None)).expect("memory");
        }
        Self {
            pair,
            ring,
            chains,
            host,
        }
    }

    /// The driver takes back the last burst, and makes the next one available.
    pub fn offer(&mut self) {
        self.ring.completed();
        for chain in &self.chains {
            self.ring.add(chain);
        }
        if let Some(host) = &self.host {
            (0..FRAMES).for_each(|_| host.send(&frame(64, 1)));
        }
    }

    /// The device moves it. A function of its own, for whoever counts what is done in it.
    #[inline(never)]
    pub fn process(&mut self) {
        let before = self.moved();
        match self.host {
            Some(_) => drop(self.pair.process_rx()),
            None => drop(self.pair.process_tx()),
        }
        assert_eq!(self.moved() - before, u64::from(FRAMES));
    }

    fn moved(&self) -> u64 {
        self.pair.rx_counters.frames + self.pair.tx_counters.frames
    }
}

fn chain(ring: &mut DriverRing<'static>, chains: Chains) -> Vec<Buffer> {
    let bytes = frame(64, 1);
    let (header, rest) = bytes.split_at(12);
    match chains {
        Chains::Whole => vec![ring.readable(&bytes)],
        Chains::Guarded => vec![ring.readable(&[&[0; 12], &packet()[..]].concat())],
        Chains::Parts => vec![ring.readable(header), ring.readable(rest)],
        Chains::Indirect => {
            let parts = [ring.readable(header), ring.readable(rest)];
            vec![ring.indirect(&parts)]
        }
        Chains::Received => vec![ring.writable(ROOM)],
    }
}

/// One that the guest may send.
fn packet() -> Vec<u8> {
    let udp = honest().into_iter().find(|claim| claim.name == "UDP");
    udp.expect("one of those").frame
}
