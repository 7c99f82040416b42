//! One queue pair, driven by a ring in memory and a `SOCK_SEQPACKET` socketpair for a tap.
//!
//! The socketpair stands in for a tap where a test must see or withhold single frames; that a real tap behaves
//! alike is shown by the end-to-end tests.

mod support;

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use ringtap::backend::chain::BadChain;
use ringtap::backend::coalesce::Coalescer;
use ringtap::backend::features::Features;
use ringtap::backend::guard::{Guard, Reason};
use ringtap::backend::memory::GuestMemory;
use ringtap::backend::queue_pair::{BURST, FrameFormat, QueuePair, RxEnd, Side, TxEnd};
use ringtap::backend::ring::{RingLayout, RingPosition};
use ringtap::backend::vring::{Notifier, Started, Vring};
use ringtap::tap::{HeaderLen, TapQueue};
use support::claims::{Claim, POLICY, forged, honest, ipv4, source_of, udp};
use support::driver::*;
use support::front_end::wait_for;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

const EVENT_IDX: u64 = 1 << 29;
const INDIRECT_DESC: u64 = 1 << 28;
const RING_PACKED: u64 = 1 << 34;
const SIZE: u16 = 256;
const HEADER: usize = 12;

/// A pair with both rings started and enabled, and the other ends of everything.
struct World<'m> {
    pair: QueuePair,
    host: HostEnd,
    rx: DriverRing<'m>,
    tx: DriverRing<'m>,
    call: EventFd,
}

struct Setup {
    kind: Kind,
    features: u64,
    mergeable: bool,
    mtu: Option<u16>,
    /// Descriptors that were used before.
    done: u16,
}

fn plain(kind: Kind) -> Setup {
    Setup {
        kind,
        features: INDIRECT_DESC,
        mergeable: true,
        mtu: None,
        done: 0,
    }
}

fn with_event_idx(kind: Kind) -> Setup {
    Setup {
        features: EVENT_IDX,
        ..plain(kind)
    }
}

fn not_mergeable(kind: Kind) -> Setup {
    Setup {
        mergeable: false,
        ..plain(kind)
    }
}

/// Both kinds of ring are held to the same.
macro_rules! on_both_kinds {
    ($($test:ident)*) => {
        mod split {
            $(#[test] fn $test() { super::$test(super::Kind::Split) })*
        }
        mod packed {
            $(#[test] fn $test() { super::$test(super::Kind::Packed) })*
        }
    };
}

impl<'m> World<'m> {
    fn new(memory: &'m Arc<GuestMemory>, setup: &Setup) -> Self {
        let (tap, host) = tap_pair();
        let mut pair = QueuePair::new(TapQueue::from_fd(tap).unwrap()).unwrap();
        pair.set_format(FrameFormat {
            header: HeaderLen::Long,
            mergeable: setup.mergeable,
            mtu: setup.mtu,
        });
        let call = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
        let mut rings =
            [0, MEMORY / 2].map(|at| DriverRing::of_kind(setup.kind, memory.mem(), at, SIZE));
        for (ring, vring) in rings.iter_mut().zip([&mut pair.rx, &mut pair.tx]) {
            ring.start_at(setup.done);
            start(vring, memory, ring, setup);
            let call = call.as_fd().try_clone_to_owned().unwrap();
            vring.call = Some(Notifier::new(call).unwrap());
        }
        let [rx, tx] = rings;
        Self {
            pair,
            host,
            rx,
            tx,
            call,
        }
    }

    fn tx_base(&self) -> u32 {
        self.pair.tx.started.as_ref().unwrap().position.base()
    }

    fn rx_base(&self) -> u32 {
        self.pair.rx.started.as_ref().unwrap().position.base()
    }

    /// How often the driver was notified since the last call.
    fn notifications(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }

    fn transmit(&mut self, bytes: &[u8]) -> u16 {
        let buffer = self.tx.readable(bytes);
        self.tx.add(&[buffer])
    }

    fn post(&mut self, len: usize) -> (u16, Buffer) {
        let buffer = self.rx.writable(len);
        (self.rx.add(&[buffer]), buffer)
    }

    /// A bad chain, and after it a good one, which must get through.
    fn expect_bad_tx(&mut self, kind: BadChain, head: u16) {
        let good = frame(60, 7);
        let good_head = self.transmit(&good);
        assert_eq!(self.pair.process_tx(), TxEnd::RingEmpty);
        assert_eq!(self.tx.completed(), [(head, 0), (good_head, 0)]);
        assert_eq!(self.host.receive(), Some(good), "the good chain");
        assert_eq!(self.host.receive(), None, "nothing of the bad chain");
        assert_eq!(self.pair.tx_counters.bad_chains.of(kind), 1, "{kind:?}");
        assert_eq!(self.pair.tx_counters.bad_chains.total(), 1);
    }

    fn expect_bad_rx(&mut self, kind: BadChain, head: u16) {
        let (good_head, buffer) = self.post(2048);
        let good = frame(60, 7);
        self.host.send(&good);
        assert_eq!(self.pair.process_rx(), RxEnd::NoBuffers);
        assert_eq!(self.rx.completed(), [(head, 0), (good_head, 72)]);
        assert_eq!(self.rx.read(buffer, 72)[HEADER..], good[HEADER..]);
        assert_eq!(self.pair.rx_counters.bad_chains.of(kind), 1, "{kind:?}");
        assert_eq!(self.pair.rx_counters.bad_chains.total(), 1);
    }
}

fn start(vring: &mut Vring, memory: &Arc<GuestMemory>, ring: &DriverRing, setup: &Setup) {
    let packed = if setup.kind == Kind::Packed {
        RING_PACKED
    } else {
        0
    };
    let features = Features::offered(true, &[])
        .accept(setup.features | packed)
        .unwrap();
    let layout = RingLayout::new(memory.mem(), SIZE, ring.parts(), features).unwrap();
    let position = RingPosition::resume(memory.mem(), &layout, ring.base(setup.done)).unwrap();
    vring.enabled = true;
    vring.started = Some(Started {
        memory: Arc::clone(memory),
        layout,
        position,
        kick: None,
    });
}

/// The frame with the header that the driver must see: `num_buffers` filled in.
fn with_num_buffers(frame: &[u8], count: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[10..12].copy_from_slice(&count.to_le_bytes());
    frame
}

on_both_kinds! {
    transmitted_frames_reach_the_tap_in_order_with_one_notification
    a_frame_may_be_cut_anywhere_into_direct_and_indirect_buffers
    a_burst_ends_so_that_the_other_direction_gets_its_turn
    frames_of_a_disabled_transmitq_are_consumed_and_dropped
    a_full_tap_keeps_the_frame_for_later
    indices_wrap_around
    bad_tx_address_outside_memory
    bad_tx_wrong_direction
    bad_tx_zero_length
    bad_tx_too_short_and_too_long_for_a_frame
    bad_tx_indirect_tables
    bad_tx_indirect_with_next
    bad_tx_indirect_that_was_not_negotiated
    bad_rx_wrong_direction_zero_length_address_and_size
    a_bad_chain_amid_a_merged_frame_loses_that_frame_alone
    a_received_frame_fills_one_chain_with_num_buffers_1
    num_buffers_is_found_also_in_a_header_cut_in_two
    a_large_frame_is_merged_from_as_many_chains_as_it_needs
    a_frame_too_large_for_a_single_chain_is_dropped_and_counted
    a_frame_with_too_few_buffers_is_held_and_delivered_whole
    too_few_buffers_ask_for_a_kick_beyond_those_already_posted
    nothing_is_received_into_a_disabled_ring
    an_empty_tap_costs_no_buffer
    a_driver_that_wants_no_notifications_gets_none
    with_event_idx_the_driver_is_notified_when_its_index_is_passed
    a_call_for_what_was_sent_is_held_for_a_while
    a_held_call_goes_with_that_for_what_was_received
    a_held_call_goes_before_the_ring_stops
    a_call_for_much_that_was_sent_is_not_held
    with_event_idx_kicks_are_asked_for_at_the_drivers_index
    without_event_idx_kicks_are_off_while_there_is_work
    frames_over_the_mtu_are_dropped_and_counted_both_ways
    what_the_guard_refuses_reaches_nobody_and_all_else_does
    a_guarded_frame_may_be_cut_anywhere
    a_frame_that_changes_while_it_is_looked_at_is_what_was_looked_at
}

// Transmit

fn transmitted_frames_reach_the_tap_in_order_with_one_notification(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(kind));
    let sent = [14, 60, 1514, 65_549].map(|len| frame(len, len as u8));
    let heads = sent.each_ref().map(|bytes| world.transmit(bytes));
    assert_eq!(world.pair.process_tx(), TxEnd::RingEmpty);
    for bytes in sent {
        assert_eq!(world.host.receive(), Some(bytes));
    }
    assert_eq!(world.tx.completed(), heads.map(|head| (head, 0)));
    assert_eq!(world.notifications(), 1, "one notification for the burst");
    assert_eq!(world.pair.tx_counters.frames, 4);
    assert_eq!(world.pair.tx_counters.bytes, 14 + 60 + 1514 + 65_549);
}

fn a_frame_may_be_cut_anywhere_into_direct_and_indirect_buffers(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(kind));
    let bytes = frame(1514, 3);
    for cuts in [[12, 26], [1, 2], [5, 13], [1500, 1525]] {
        let parts = [
            &bytes[..cuts[0]],
            &bytes[cuts[0]..cuts[1]],
            &bytes[cuts[1]..],
        ];
        let buffers = parts.map(|part| world.tx.readable(part));
        world.tx.add(&buffers);
        let table = world.tx.indirect(&buffers);
        world.tx.add(&[table]);
        let rest = world.tx.indirect(&buffers[1..]);
        world.tx.add(&[buffers[0], rest]); // virtio 1.3 §2.7.5.3.2: normal descriptors, then a table
    }
    assert_eq!(world.pair.process_tx(), TxEnd::RingEmpty);
    for _ in 0..12 {
        assert_eq!(world.host.receive().as_ref(), Some(&bytes));
    }
    assert_eq!(world.pair.tx_counters.bad_chains.total(), 0);
}

fn a_burst_ends_so_that_the_other_direction_gets_its_turn(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(kind));
    for _ in 0..BURST + 1 {
        world.transmit(&frame(60, 0));
    }
    assert_eq!(world.pair.process_tx(), TxEnd::More);
    assert_eq!(world.tx.completed().len(), BURST);
    assert_eq!(world.pair.process_tx(), TxEnd::RingEmpty);
    assert_eq!(world.tx.completed().len(), 1);

    for _ in 0..BURST + 1 {
        world.post(100);
        world.host.send(&frame(60, 0));
    }
    assert_eq!(world.pair.process_rx(), RxEnd::More);
    assert_eq!(world.rx.completed().len(), BURST);
    assert_eq!(world.pair.process_rx(), RxEnd::NoBuffers);
    assert_eq!(world.rx.completed().len(), 1);
}

fn frames_of_a_disabled_transmitq_are_consumed_and_dropped(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(kind));
    world.pair.tx.enabled = false;
    let head = world.transmit(&frame(60, 0));
    assert_eq!(world.pair.process_tx(), TxEnd::RingEmpty);
    assert_eq!(world.tx.completed(), [(head, 0)]);
    assert_eq!(world.host.receive(), None);
    assert_eq!(world.pair.tx_counters.disabled, 1);
}

fn a_full_tap_keeps_the_frame_for_later(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(kind));
    let sent: Vec<_> = (0..48).map(|i| frame(65_000, i)).collect();
    let mut rest = sent.iter();
    let mut received = Vec::new();
    let mut was_full = false;
    while received.len() < sent.len() {
        for bytes in rest.by_ref().take(16) {
            world.transmit(bytes);
        }
        was_full |= world.pair.process_tx() == TxEnd::TapFull;
        received.extend(world.host.receive());
        world.tx.completed();
    }
    assert!(was_full, "the test never filled the tap");
    assert_eq!(received, sent);
}

fn indices_wrap_around(kind: Kind) {
    let (memory, _) = guest_memory();
    let done = match kind {
        Kind::Split => 65_530,
        Kind::Packed => 2 * SIZE - 6,
    };
    let setup = Setup {
        done,
        ..with_event_idx(kind)
    };
    let mut world = World::new(&memory, &setup);
    for i in 0..20 {
        let bytes = frame(60, i);
        let head = world.transmit(&bytes);
        assert_eq!(world.pair.process_tx(), TxEnd::RingEmpty);
        assert_eq!(world.tx.completed(), [(head, 0)]);
        assert_eq!(world.host.receive(), Some(bytes));
    }
    assert_eq!(world.tx_base(), world.tx.base(done.wrapping_add(20)));
}

// Chains that break a rule

#[test]
fn bad_tx_head_beyond_the_table() {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(Kind::Split));
    world.tx.split().make_available(SIZE);
    world.expect_bad_tx(BadChain::Index, SIZE);
}

#[test]
fn bad_tx_next_beyond_the_table() {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(Kind::Split));
    let buffer = world.tx.readable(&frame(60, 0));
    world
        .tx
        .split()
        .write_descriptor(200, Descriptor::new(buffer.addr, buffer.len, NEXT, 40_000));
    world.tx.split().make_available(200);
    world.expect_bad_tx(BadChain::Index, 200);
}

fn bad_tx_address_outside_memory(kind: Kind) {
    for (addr, len) in [
        (MEMORY, 72),
        (MEMORY - 10, 72),
        (u64::MAX - 3, 72),
        (0, u32::MAX),
    ] {
        let (memory, _) = guest_memory();
        let mut world = World::new(&memory, &plain(kind));
        let head = world.tx.add(&[Buffer {
            addr,
            len,
            flags: 0,
        }]);
        world.expect_bad_tx(BadChain::Address, head);
    }
}

#[test]
fn bad_tx_loop() {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(Kind::Split));
    let buffer = world.tx.readable(&frame(60, 0));
    world
        .tx
        .split()
        .write_descriptor(200, Descriptor::new(buffer.addr, buffer.len, NEXT, 200));
    world.tx.split().make_available(200);
    world.expect_bad_tx(BadChain::TooLong, 200);
}

fn bad_tx_wrong_direction(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(kind));
    let good = world.tx.readable(&frame(60, 0));
    let wrong = world.tx.writable(100);
    let head = world.tx.add(&[good, wrong]);
    world.expect_bad_tx(BadChain::Direction, head);
}

fn bad_tx_zero_length(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(kind));
    let good = world.tx.readable(&frame(60, 0));
    let head = world.tx.add(&[good, Buffer { len: 0, ..good }]);
    world.expect_bad_tx(BadChain::ZeroLength, head);
}

fn bad_tx_too_short_and_too_long_for_a_frame(kind: Kind) {
    for len in [13, 65_558] {
        let (memory, _) = guest_memory();
        let mut world = World::new(&memory, &plain(kind));
        let head = world.transmit(&frame(len, 0));
        world.expect_bad_tx(BadChain::Size, head);
    }
}

fn bad_tx_indirect_tables(kind: Kind) {
    let odd: fn(&mut DriverRing) -> Buffer = |ring| {
        let data = ring.readable(&frame(60, 0));
        let table = ring.indirect(&[data]);
        Buffer { len: 15, ..table }
    };
    let empty: fn(&mut DriverRing) -> Buffer = |ring| {
        let data = ring.readable(&frame(60, 0));
        let table = ring.indirect(&[data]);
        Buffer { len: 0, ..table }
    };
    let nested: fn(&mut DriverRing) -> Buffer = |ring| {
        let data = ring.readable(&frame(60, 0));
        let inner = ring.indirect(&[data]);
        ring.indirect(&[inner])
    };
    for (table, bad) in [
        (odd, BadChain::Indirect),
        (empty, BadChain::Indirect),
        (nested, BadChain::Indirect),
        (
            |_| Buffer {
                addr: MEMORY,
                len: 16,
                flags: INDIRECT,
            },
            BadChain::Address,
        ),
    ] {
        let (memory, _) = guest_memory();
        let mut world = World::new(&memory, &plain(kind));
        let table = table(&mut world.tx);
        let head = world.tx.add(&[table]);
        world.expect_bad_tx(bad, head);
    }
}

fn bad_tx_indirect_with_next(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(kind));
    let data = world.tx.readable(&frame(60, 0));
    let table = world.tx.indirect(&[data]);
    let head = world.tx.add(&[table, data]);
    world.expect_bad_tx(BadChain::Indirect, head);
}

fn bad_tx_indirect_that_was_not_negotiated(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &with_event_idx(kind));
    let data = world.tx.readable(&frame(60, 0));
    let table = world.tx.indirect(&[data]);
    let head = world.tx.add(&[table]);
    world.expect_bad_tx(BadChain::Indirect, head);
}

fn bad_rx_wrong_direction_zero_length_address_and_size(kind: Kind) {
    for (buffer, bad) in [
        (
            Buffer {
                addr: 4096,
                len: 2048,
                flags: 0,
            },
            BadChain::Direction,
        ),
        (
            Buffer {
                addr: 4096,
                len: 0,
                flags: WRITE,
            },
            BadChain::ZeroLength,
        ),
        (
            Buffer {
                addr: MEMORY,
                len: 2048,
                flags: WRITE,
            },
            BadChain::Address,
        ),
        (
            Buffer {
                addr: 4096,
                len: 11,
                flags: WRITE,
            },
            BadChain::Size,
        ),
    ] {
        let (memory, _) = guest_memory();
        let mut world = World::new(&memory, &plain(kind));
        let head = world.rx.add(&[buffer]);
        world.expect_bad_rx(bad, head);
    }
}

#[test]
fn bad_rx_loop_and_head() {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(Kind::Split));
    world
        .rx
        .split()
        .write_descriptor(200, Descriptor::new(4096, 1, WRITE | NEXT, 200));
    world.rx.split().make_available(200);
    world.expect_bad_rx(BadChain::TooLong, 200);
    let mut world = World::new(&memory, &plain(Kind::Split));
    world.rx.split().make_available(SIZE + 3);
    world.expect_bad_rx(BadChain::Index, SIZE + 3);
}

fn a_bad_chain_amid_a_merged_frame_loses_that_frame_alone(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(kind));
    let (first, _) = world.post(1024);
    let bad = world.rx.add(&[Buffer {
        addr: MEMORY,
        len: 1024,
        flags: WRITE,
    }]);
    let (second, buffer) = world.post(2048);
    world.host.send(&frame(1514, 1));
    let next = frame(60, 2);
    world.host.send(&next);
    assert_eq!(world.pair.process_rx(), RxEnd::NoBuffers);
    assert_eq!(world.rx.completed(), [(first, 0), (bad, 0), (second, 72)]);
    assert_eq!(world.rx.read(buffer, 72), with_num_buffers(&next, 1));
    assert_eq!(world.pair.rx_counters.dropped, 1);
    assert_eq!(world.pair.rx_counters.frames, 1);
}

#[test]
fn an_avail_index_beyond_the_ring_is_counted_and_nothing_is_taken() {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(Kind::Split));
    world.tx.split().set_avail_index(SIZE + 1);
    world.rx.split().set_avail_index(SIZE + 1);
    assert_eq!(world.pair.process_tx(), TxEnd::RingEmpty);
    assert_eq!(world.pair.process_rx(), RxEnd::NoBuffers);
    assert_eq!(world.pair.tx_counters.bad_index, 1);
    assert_eq!(world.pair.rx_counters.bad_index, 1);
    assert_eq!(world.tx.completed(), []);
}

// Receive

fn a_received_frame_fills_one_chain_with_num_buffers_1(kind: Kind) {
    for setup in [&plain(kind), &not_mergeable(kind)] {
        let (memory, _) = guest_memory();
        let mut world = World::new(&memory, setup);
        let (head, buffer) = world.post(2048);
        let bytes = frame(1514, 9);
        world.host.send(&bytes);
        assert_eq!(world.pair.process_rx(), RxEnd::NoBuffers);
        assert_eq!(world.rx.completed(), [(head, 1526)]);
        assert_eq!(world.rx.read(buffer, 1526), with_num_buffers(&bytes, 1));
        assert_eq!(world.notifications(), 1);
    }
}

fn num_buffers_is_found_also_in_a_header_cut_in_two(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(kind));
    let parts = [11, 200].map(|len| world.rx.writable(len));
    world.rx.add(&parts);
    let bytes = frame(60, 1);
    world.host.send(&bytes);
    world.pair.process_rx();
    let mut got = world.rx.read(parts[0], 11);
    got.extend(world.rx.read(parts[1], 61));
    assert_eq!(got, with_num_buffers(&bytes, 1));
}

fn a_large_frame_is_merged_from_as_many_chains_as_it_needs(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(kind));
    let rooms: Vec<_> = (0..50).map(|_| world.post(1536)).collect();
    let bytes = frame(65_549, 5);
    world.host.send(&bytes);
    assert_eq!(world.pair.process_rx(), RxEnd::TapEmpty);
    let used = world.rx.completed();
    assert_eq!(used.len(), 43);
    let mut got = Vec::new();
    for ((head, len), (posted, buffer)) in used.into_iter().zip(rooms) {
        assert_eq!(head, posted);
        got.extend(world.rx.read(buffer, len as usize));
    }
    assert_eq!(got, with_num_buffers(&bytes, 43));
    assert_eq!(world.rx_base(), world.rx.base(43));
}

fn a_frame_too_large_for_a_single_chain_is_dropped_and_counted(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &not_mergeable(kind));
    let (head, buffer) = world.post(1526);
    world.host.send(&frame(1515, 1));
    let fits = frame(1514, 2);
    world.host.send(&fits);
    assert_eq!(world.pair.process_rx(), RxEnd::NoBuffers);
    assert_eq!(world.rx.completed(), [(head, 1526)]);
    assert_eq!(world.rx.read(buffer, 1526), with_num_buffers(&fits, 1));
    assert_eq!(world.pair.rx_counters.dropped, 1);
}

fn a_frame_with_too_few_buffers_is_held_and_delivered_whole(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &with_event_idx(kind));
    let mut rooms: Vec<_> = (0..20).map(|_| world.post(1536)).collect();
    let bytes = frame(65_549, 5);
    world.host.send(&bytes);
    let after = frame(60, 6);
    world.host.send(&after);
    assert_eq!(world.pair.process_rx(), RxEnd::NoBuffers);
    assert_eq!(world.rx.completed(), []);
    rooms.extend((0..24).map(|_| world.post(1536)));
    assert_eq!(world.pair.process_rx(), RxEnd::NoBuffers);
    let used = world.rx.completed();
    assert_eq!(used.len(), 44, "the held frame, and the one after it");
    let mut got: Vec<u8> = Vec::new();
    for ((_, len), (_, buffer)) in used.iter().zip(&rooms) {
        got.extend(world.rx.read(*buffer, *len as usize));
    }
    let split = bytes.len();
    assert_eq!(got[..split], with_num_buffers(&bytes, 43));
    assert_eq!(got[split..], with_num_buffers(&after, 1));
}

/// Where buffers are left over because they are too few, the driver has passed the next entry to be taken:
/// an event index there would never bring a kick, and reception would stall for good.
fn too_few_buffers_ask_for_a_kick_beyond_those_already_posted(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &with_event_idx(kind));
    for _ in 0..20 {
        world.post(1536);
    }
    world.host.send(&frame(65_549, 5));
    assert_eq!(world.pair.process_rx(), RxEnd::NoBuffers);
    assert!(world.rx.wants_kick_after(20));
}

fn nothing_is_received_into_a_disabled_ring(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(kind));
    world.pair.rx.enabled = false;
    let (head, _) = world.post(2048);
    world.host.send(&frame(60, 1));
    assert_eq!(world.pair.process_rx(), RxEnd::NoBuffers);
    assert_eq!(world.rx.completed(), []);
    world.pair.rx.enabled = true;
    assert_eq!(world.pair.process_rx(), RxEnd::NoBuffers);
    assert_eq!(
        world.rx.completed(),
        [(head, 72)],
        "the frame waited in the tap"
    );
}

fn an_empty_tap_costs_no_buffer(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(kind));
    world.post(2048);
    assert_eq!(world.pair.process_rx(), RxEnd::TapEmpty);
    assert_eq!(world.rx_base(), world.rx.base(0));
    assert_eq!(world.rx.completed(), []);
    assert_eq!(world.notifications(), 0);
}

// The MTU

/// A frame with `tags` VLAN tags that is `len` bytes long.
fn tagged(len: usize, tags: usize) -> Vec<u8> {
    let mut bytes = frame(len, 1);
    for tag in 0..tags {
        let at = HEADER + 12 + tag * 4;
        bytes[at..at + 2].copy_from_slice(&[0x81, 0]);
    }
    let at = HEADER + 12 + tags * 4;
    bytes[at..at + 2].copy_from_slice(&[8, 0]);
    bytes
}

fn frames_over_the_mtu_are_dropped_and_counted_both_ways(kind: Kind) {
    let (memory, _) = guest_memory();
    let setup = Setup {
        mtu: Some(1000),
        ..plain(kind)
    };
    let mut world = World::new(&memory, &setup);
    let mut unsegmented = tagged(9000, 0);
    unsegmented[1] = 1; // gso_type: TCP over IPv4
    let fits = [
        tagged(1014, 0),
        tagged(1018, 1),
        tagged(1022, 2),
        unsegmented,
    ];
    let exceeds = [tagged(1015, 0), tagged(1019, 1), tagged(1023, 2)];
    for bytes in exceeds.iter().chain(&fits) {
        world.transmit(bytes);
        world.post(10_000);
        world.host.send(bytes);
    }
    assert_eq!(world.pair.process_tx(), TxEnd::RingEmpty);
    assert_eq!(world.pair.process_rx(), RxEnd::TapEmpty);
    for bytes in fits {
        assert_eq!(world.host.receive(), Some(bytes));
    }
    assert_eq!(world.host.receive(), None);
    assert_eq!(world.rx.completed().len(), 4);
    assert_eq!(world.tx.completed().len(), 7);
    assert_eq!(world.pair.tx_counters.over_mtu, 3);
    assert_eq!(world.pair.rx_counters.over_mtu, 3);
}

// Notifications

fn a_driver_that_wants_no_notifications_gets_none(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(kind));
    world.tx.want_notifications(false);
    world.transmit(&frame(60, 0));
    world.pair.process_tx();
    assert_eq!(world.notifications(), 0);
    world.tx.want_notifications(true);
    world.transmit(&frame(60, 0));
    world.pair.process_tx();
    assert_eq!(world.notifications(), 1);
}

/// No test takes so long.
const LONG: Duration = Duration::from_secs(3600);

/// A pair whose driver was told of a sent frame, and then sent another; of which it is to be told after `gap`.
fn with_a_held_call<'m>(memory: &'m Arc<GuestMemory>, setup: &Setup, gap: Duration) -> World<'m> {
    let mut world = World::new(memory, setup);
    world.pair.tx_calls = Coalescer::new(gap).unwrap();
    for notifications in [1, 0] {
        world.transmit(&frame(60, 0));
        world.pair.process_tx();
        assert_eq!(world.notifications(), notifications);
    }
    assert_eq!(world.tx.completed().len(), 2, "seen by whoever looks");
    world
}

fn a_call_for_what_was_sent_is_held_for_a_while(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = with_a_held_call(&memory, &plain(kind), Duration::from_secs(1));
    let calls = wait_for("a call", || {
        world.pair.call_in_time();
        Some(world.notifications()).filter(|&calls| calls > 0)
    });
    assert_eq!(calls, 1);
    world.pair.call_in_time();
    assert_eq!(world.notifications(), 0);
    assert_eq!(world.pair.tx_counters.calls, 2);
}

fn a_held_call_goes_with_that_for_what_was_received(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = with_a_held_call(&memory, &plain(kind), LONG);
    world.post(2048);
    world.host.send(&frame(60, 1));
    world.pair.process_rx();
    assert_eq!(world.notifications(), 2, "one of each ring");
}

fn a_held_call_goes_before_the_ring_stops(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = with_a_held_call(&memory, &plain(kind), LONG);
    assert!(world.pair.stop(Side::Rx).is_some());
    assert_eq!(world.notifications(), 0, "the other ring goes on");
    assert!(world.pair.stop(Side::Tx).is_some());
    assert_eq!(world.notifications(), 1);
    assert!(world.pair.stop(Side::Tx).is_none());
}

fn a_call_for_much_that_was_sent_is_not_held(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = with_a_held_call(&memory, &plain(kind), LONG);
    world.transmit(&frame(65_549, 0));
    world.pair.process_tx();
    assert_eq!(world.notifications(), 1);
}

fn with_event_idx_the_driver_is_notified_when_its_index_is_passed(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &with_event_idx(kind));
    let mut notified = Vec::new();
    world.rx.set_used_event(3);
    for i in 0..8 {
        world.post(2048);
        world.host.send(&frame(60, i));
        world.pair.process_rx();
        notified.push(world.notifications());
    }
    // The first look always notifies: nothing is known of what the driver saw before.
    assert_eq!(notified, [1, 0, 0, 1, 0, 0, 0, 0]);
}

fn with_event_idx_kicks_are_asked_for_at_the_drivers_index(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &with_event_idx(kind));
    for i in 0..5 {
        world.transmit(&frame(60, i));
    }
    assert_eq!(world.pair.process_tx(), TxEnd::RingEmpty);
    assert!(world.tx.wants_kick_after(5));
}

fn without_event_idx_kicks_are_off_while_there_is_work(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = World::new(&memory, &plain(kind));
    for _ in 0..BURST + 1 {
        world.transmit(&frame(60, 0));
    }
    assert_eq!(world.pair.process_tx(), TxEnd::More);
    assert!(!world.tx.kicks_wanted());
    assert_eq!(world.pair.process_tx(), TxEnd::RingEmpty);
    assert!(world.tx.kicks_wanted());
}

// The guard

fn guarded<'m>(memory: &'m Arc<GuestMemory>, kind: Kind, words: &str) -> World<'m> {
    let mut world = World::new(memory, &plain(kind));
    let guard = Guard::new(words.parse().unwrap(), None);
    world.pair.set_guard(guard).unwrap();
    world
}

/// Header and all, as the guest puts it into its ring.
fn whole(claim: &Claim) -> Vec<u8> {
    [&claim.header[..], &[0, 0], &claim.frame].concat()
}

fn what_the_guard_refuses_reaches_nobody_and_all_else_does(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = guarded(&memory, kind, POLICY);
    let (honest, forged) = (honest(), forged());
    let mut forged_ones = forged.iter();
    for good in &honest {
        let bad: Vec<_> = forged_ones.by_ref().take(3).collect();
        for (claim, _) in &bad {
            world.transmit(&whole(claim));
        }
        world.transmit(&whole(good));
        assert_eq!(world.pair.process_tx(), TxEnd::RingEmpty);
        assert_eq!(world.tx.completed().len(), bad.len() + 1);
        assert_eq!(world.host.receive(), Some(whole(good)), "{}", good.name);
        assert_eq!(world.host.receive(), None, "beside {}", good.name);
    }
    assert_eq!(forged_ones.len(), 0);
    let refused = world.pair.tx_counters.refused;
    for reason in Reason::ALL {
        let count = forged.iter().filter(|(_, why)| *why == reason).count();
        assert_eq!(refused.of(reason), count as u64, "{reason}");
        assert!(count > 0, "{reason}");
    }
    assert_eq!(refused.total(), forged.len() as u64);
    assert_eq!(world.pair.tx_counters.frames, honest.len() as u64);
}

fn a_guarded_frame_may_be_cut_anywhere(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = guarded(&memory, kind, POLICY);
    let long = whole(&Claim {
        name: "long",
        header: [0; 10],
        frame: ipv4([10, 0, 0, 5], 17, &udp(1, 2, &[5; 1400])),
    });
    for cuts in [
        [12, 26],
        [1, 2],
        [5, 192],
        [191, 193],
        [192, 1000],
        [300, 301],
    ] {
        let parts = [&long[..cuts[0]], &long[cuts[0]..cuts[1]], &long[cuts[1]..]];
        let buffers = parts.map(|part| world.tx.readable(part));
        world.tx.add(&buffers);
        assert_eq!(world.pair.process_tx(), TxEnd::RingEmpty);
        assert_eq!(world.host.receive().as_ref(), Some(&long), "{cuts:?}");
    }
    assert_eq!(world.pair.tx_counters.refused.total(), 0);
}

/// The guest's other CPU writes the neighbour's address and its own in turn. Each frame that comes out has one that was allowed.
fn a_frame_that_changes_while_it_is_looked_at_is_what_was_looked_at(kind: Kind) {
    let (memory, _) = guest_memory();
    let mut world = guarded(&memory, kind, POLICY);
    let claim = |source| Claim {
        name: "changing",
        header: [0; 10],
        frame: ipv4(source, 17, &udp(1, 2, b"")),
    };
    let bytes = whole(&claim([10, 0, 0, 5]));
    let buffers: Vec<Buffer> = (0..BURST).map(|_| world.tx.readable(&bytes)).collect();
    let last_byte = |buffer: &Buffer| GuestAddress(buffer.addr + 12 + 29);
    let over = AtomicBool::new(false);
    /// Ends the other thread also where this one panics, or nobody would end.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for last in [6u8, 5] {
                    for buffer in &buffers {
                        memory.mem().write_obj(last, last_byte(buffer)).unwrap();
                    }
                }
            }
        });
        let (mut passed, mut rounds) = (0, 0);
        while (passed < 500 || world.pair.tx_counters.refused.total() < 500) && rounds < 100_000 {
            rounds += 1;
            for buffer in &buffers {
                world.tx.add(&[*buffer]);
            }
            while world.pair.process_tx() != TxEnd::RingEmpty {}
            world.tx.completed();
            while let Some(frame) = world.host.receive() {
                passed += 1;
                assert_eq!(source_of(&frame[12..]), Ipv4Addr::new(10, 0, 0, 5));
            }
        }
        let refused = world.pair.tx_counters.refused.total();
        assert!(
            passed >= 500 && refused >= 500,
            "{passed} passed, {refused} not"
        );
    });
}
