//! Packed rings whose device died. No front-end knows how far it came, so its successor has to find out from what it left
//! in memory, at whatever moment it died.

mod support;

use std::sync::Arc;

use ringtap::backend::features::Features;
use ringtap::backend::memory::GuestMemory;
use ringtap::backend::queue_pair::{FrameFormat, QueuePair};
use ringtap::backend::ring::{RingLayout, RingPosition};
use ringtap::backend::vring::Started;
use ringtap::tap::{HeaderLen, TapQueue};
use support::driver::*;
use vm_memory::{Bytes, GuestAddress};

const RING_PACKED: u64 = 1 << 34;
const EVENT_IDX: u64 = 1 << 29;
const SIZE: u16 = 64;
/// What a front-end says that knows only how the ring began.
const BEGINNING: u32 = 0x8000;
const DESC: u64 = 16;
const FLAGS: u64 = 14;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A transmitq, with a device at work on it.
struct World<'m> {
    memory: &'m Arc<GuestMemory>,
    driver: DriverRing<'m>,
    device: QueuePair,
    host: HostEnd,
    layout: RingLayout,
}

impl<'m> World<'m> {
    fn new(memory: &'m Arc<GuestMemory>, features: u64) -> Self {
        let driver = DriverRing::of_kind(Kind::Packed, memory.mem(), 0, SIZE);
        let features = Features::offered(true, &[]).accept(features | RING_PACKED);
        let parts = driver.parts();
        let layout = RingLayout::new(memory.mem(), SIZE, parts, features.unwrap()).unwrap();
        let (device, host) = device();
        let mut world = Self {
            memory,
            driver,
            device,
            host,
            layout,
        };
        let position = RingPosition::resume(memory.mem(), &world.layout, BEGINNING);
        world.work_from(position.unwrap());
        world
    }

    fn work_from(&mut self, position: RingPosition) {
        self.device.tx.enabled = true;
        self.device.tx.started = Some(Started {
            memory: Arc::clone(self.memory),
            layout: self.layout,
            position,
            kick: None,
        });
    }

    /// How far the device has come.
    fn base(&self) -> u32 {
        self.device.tx.started.as_ref().unwrap().position.base()
    }

    fn recover(&self) -> RingPosition {
        RingPosition::recover(self.memory.mem(), &self.layout, BEGINNING).unwrap()
    }

    /// The driver sends so many frames, each of `pieces` descriptors.
    fn transmit(&mut self, frames: usize, pieces: usize) {
        for seed in 0..frames {
            let bytes = frame(60, seed as u8);
            let buffers: Vec<_> = bytes
                .chunks(bytes.len().div_ceil(pieces))
                .map(|piece| self.driver.readable(piece))
                .collect();
            self.driver.add(&buffers);
        }
    }

    /// The device takes them all, and the driver sees so.
    fn expect(&mut self, frames: usize) {
        self.device.process_tx();
        let arrived = std::iter::from_fn(|| self.host.receive()).count();
        assert_eq!(arrived, frames);
        assert_eq!(self.driver.completed().len(), frames);
    }

    /// Another device goes on from what this one has left, and serves the driver as if it had always been there.
    fn succeed(&mut self) {
        let position = self.recover();
        (self.device, self.host) = device();
        self.work_from(position);
        self.transmit(3, 1);
        self.expect(3);
    }

    fn flags_at(&self, index: u16) -> GuestAddress {
        let [ring, ..] = self.driver.parts();
        GuestAddress(ring.0 + u64::from(index) * DESC + FLAGS)
    }

    /// As before the device wrote down the place it came to.
    fn unrecord(&self, base: u32) {
        let [_, _, device_event] = self.driver.parts();
        self.memory
            .mem()
            .write_obj(base as u16, device_event)
            .unwrap();
    }
}

fn device() -> (QueuePair, HostEnd) {
    let (tap, host) = tap_pair();
    let mut device = QueuePair::new(TapQueue::from_fd(tap).unwrap()).unwrap();
    device.set_format(FrameFormat {
        header: HeaderLen::Long,
        mergeable: false,
        mtu: None,
    });
    (device, host)
}

#[test]
fn a_ring_goes_on_from_wherever_it_was_left() {
    for features in [0, EVENT_IDX] {
        for pieces in [1, 2] {
            let (memory, _) = guest_memory();
            let mut world = World::new(&memory, features);
            for frames in [1, 2, 20, 25, 30, 31, 7] {
                world.transmit(frames, pieces);
                world.expect(frames);
                assert_eq!(world.recover().base(), world.base(), "after {frames}");
                world.succeed();
            }
        }
    }
}

#[test]
fn a_ring_full_of_chains_goes_on_from_the_first_of_them() {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, EVENT_IDX);
    world.transmit(40, 1);
    world.expect(40);
    world.transmit(usize::from(SIZE), 1); // every descriptor is available, on either side of the wrap
    assert_eq!(world.recover().base(), world.base());
    let position = world.recover();
    world.work_from(position);
    world.expect(usize::from(SIZE));
}

#[test]
fn a_burst_that_was_shown_and_not_written_down_is_not_taken_again() {
    for (features, pieces) in [(0, 1), (EVENT_IDX, 1), (EVENT_IDX, 3)] {
        let (memory, _) = guest_memory();
        let mut world = World::new(&memory, features);
        world.transmit(5, 1);
        world.expect(5);
        let before = world.base();
        world.transmit(4, pieces);
        world.device.process_tx();
        let after = world.base();
        world.unrecord(before);
        assert_eq!(world.recover().base(), after, "{pieces} pieces");
    }
}

#[test]
fn a_burst_that_was_half_shown_is_shown() {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, EVENT_IDX);
    world.transmit(5, 1);
    world.expect(5);
    let before = world.base();
    world.transmit(4, 1);
    world.device.process_tx();
    let after = world.base();
    // The flags of the burst's first descriptor are the last to be written.
    let first = world.flags_at(5);
    let flags: u16 = memory.mem().read_obj(first).unwrap();
    assert_eq!(flags & (AVAIL | USED), AVAIL | USED);
    memory.mem().write_obj(flags & !USED, first).unwrap();
    world.unrecord(before);
    assert_eq!(world.driver.completed().len(), 0);

    assert_eq!(world.recover().base(), after);
    assert_eq!(world.driver.completed().len(), 4);
}

#[test]
fn a_ring_that_has_begun_anew_goes_from_its_base() {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, 0);
    let beginning = world.base();
    assert_eq!(world.recover().base(), beginning, "empty");
    world.transmit(10, 1);
    assert_eq!(world.recover().base(), beginning, "with chains");
}
