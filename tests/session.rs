//! Sessions: front-ends talk vhost-user to a device in this process. The tap is a socketpair, and its settings
//! are recorded; frames are real.

mod support;

use std::sync::Arc;
use std::time::Duration;

use ringtap::backend::features::{Extra, Features};
use ringtap::backend::session::Limits;
use ringtap::tap::{HeaderLen, Offloads};
use ringtap::types::Mtu;
use support::driver::*;
use support::front_end::*;
use vhost::vhost_user::message::{
    FrontendReq as Req, VhostUserConfigFlags, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const MRG_RXBUF: u64 = 1 << 15;
const RING_RESET: u64 = 1 << 40;
const MQ_AND_REPLY_ACK: u64 = 1 | 1 << 3;
const SIZE: u16 = 64;

/// The driver's half of both rings, and their events.
struct Driver<'m> {
    rx: DriverRing<'m>,
    tx: DriverRing<'m>,
    rx_events: Events,
    tx_events: Events,
}

impl<'m> Driver<'m> {
    fn new(memory: &'m ringtap::backend::memory::GuestMemory) -> Self {
        Self {
            rx: DriverRing::new(memory.mem(), 0, SIZE),
            tx: DriverRing::new(memory.mem(), MEMORY / 2, SIZE),
            rx_events: Events::new(),
            tx_events: Events::new(),
        }
    }

    /// One frame each way, from and to the host's end of the tap; returns the buffer that took the second.
    fn exchange(&mut self, host: &HostEnd, seed: u8) -> Buffer {
        self.transmit(host, seed);
        let buffer = self.rx.writable(2048);
        let head = self.rx.add(&[buffer]);
        self.rx_events.kick();
        let bytes = frame(100, seed);
        host.send(&bytes);
        let done = wait_for("a received frame", || self.rx.completed().pop());
        assert_eq!(done, (head, 112));
        assert_eq!(self.rx.read(buffer, 112)[12..], bytes[12..]);
        self.rx_events.wait_for_call();
        buffer
    }

    fn transmit(&mut self, host: &HostEnd, seed: u8) {
        let bytes = frame(100, seed);
        let buffer = self.tx.readable(&bytes);
        let head = self.tx.add(&[buffer]);
        self.tx_events.kick();
        assert_eq!(wait_for("a transmitted frame", || host.receive()), bytes);
        assert_eq!(
            wait_for("its chain", || self.tx.completed().pop()),
            (head, 0)
        );
        self.tx_events.wait_for_call();
    }
}

/// What QEMU sends when it connects.
fn qemu_connects(front_end: &RawFrontEnd) {
    assert_eq!(
        front_end.get_u64(Req::GET_FEATURES),
        Features::offered(true, &[]).bits()
    );
    let offered = front_end.get_u64(Req::GET_PROTOCOL_FEATURES);
    assert_eq!(offered & MQ_AND_REPLY_ACK, MQ_AND_REPLY_ACK);
    front_end.u64(Req::SET_PROTOCOL_FEATURES, MQ_AND_REPLY_ACK);
    assert_eq!(
        front_end.get_u64(Req::GET_QUEUE_NUM),
        1,
        "pairs, not vrings"
    );
    front_end.send(Req::SET_OWNER, 0, &[], &[]);
    front_end.get_u64(Req::GET_FEATURES);
    let unused = Events::new();
    for ring in [0u64, 1] {
        front_end.send(Req::SET_VRING_CALL, 0, &ring.to_ne_bytes(), &[&unused.call]);
        front_end.send(Req::SET_VRING_ERR, 0, &ring.to_ne_bytes(), &[&unused.kick]);
    }
}

fn qemu_enables(front_end: &RawFrontEnd) {
    front_end.state(Req::SET_VRING_ENABLE, 0, 1);
    front_end.state(Req::SET_VRING_ENABLE, 1, 1);
}

/// What QEMU sends when the guest's driver starts: no ENABLE after the rings.
fn qemu_starts(front_end: &RawFrontEnd, file: &std::fs::File, driver: &Driver, base: [u32; 2]) {
    qemu_enables(front_end);
    front_end.u64(Req::SET_FEATURES, VERSION_1 | PROTOCOL_FEATURES | MRG_RXBUF);
    assert_eq!(front_end.set_mem_table(file), 0);
    front_end.set_up_ring(0, &driver.rx, base[0], &driver.rx_events);
    front_end.set_up_ring(1, &driver.tx, base[1], &driver.tx_events);
}

#[test]
fn qemus_order_of_messages_is_served() {
    let (memory, file) = guest_memory();
    let mut served = Served::start();
    let front_end = served.raw();
    let mut driver = Driver::new(&memory);
    qemu_connects(&front_end);
    for _ in 0..3 {
        qemu_enables(&front_end); // in the BIOS, and again and again, before any SET_FEATURES
    }
    qemu_starts(&front_end, &file, &driver, [0, 0]);
    driver.exchange(&served.host, 1);
    driver.exchange(&served.host, 2);

    assert_eq!([front_end.get_base(0), front_end.get_base(1)], [2, 2]);
    qemu_enables(&front_end);
    qemu_starts(&front_end, &file, &driver, [2, 2]);
    driver.exchange(&served.host, 3);
    drop(front_end);
    assert_eq!(served.end(), Ok(()));
}

#[test]
fn the_tap_is_set_to_what_the_driver_accepted() {
    const GUEST_CSUM_TSO4: u64 = 1 << 1 | 1 << 7;
    let mut served = Served::start();
    let front_end = served.raw();
    let set = |bits| {
        front_end.u64(Req::SET_FEATURES, bits);
        [0, 1].map(|_| served.settings.recv_timeout(PATIENCE).unwrap())
    };
    let csum_tso4 = Offloads::CSUM.with(Offloads::TSO4);
    assert_eq!(
        set(VERSION_1 | PROTOCOL_FEATURES | GUEST_CSUM_TSO4),
        [
            Setting::HeaderLen(HeaderLen::Long),
            Setting::Offloads(csum_tso4)
        ]
    );
    assert_eq!(
        set(PROTOCOL_FEATURES),
        [
            Setting::HeaderLen(HeaderLen::Short),
            Setting::Offloads(Offloads::default())
        ]
    );
}

#[test]
fn without_protocol_features_rings_are_enabled_from_the_start() {
    let (memory, file) = guest_memory();
    let mut served = Served::start();
    let front_end = served.raw();
    let mut driver = Driver::new(&memory);
    front_end.u64(Req::SET_FEATURES, VERSION_1);
    front_end.send(
        Req::SET_MEM_TABLE,
        0,
        &mem_table(&[[0, MEMORY, USER_BASE, 0]]),
        &[&file],
    );
    front_end.set_up_ring(0, &driver.rx, 0, &driver.rx_events);
    front_end.set_up_ring(1, &driver.tx, 0, &driver.tx_events);
    driver.exchange(&served.host, 1);
}

#[test]
fn with_protocol_features_rings_wait_to_be_enabled() {
    let (memory, file) = guest_memory();
    let mut served = Served::start();
    let front_end = served.raw();
    let mut driver = Driver::new(&memory);
    qemu_connects(&front_end);
    front_end.u64(Req::SET_FEATURES, VERSION_1 | PROTOCOL_FEATURES);
    assert_eq!(front_end.set_mem_table(&file), 0);
    front_end.set_up_ring(0, &driver.rx, 0, &driver.rx_events);
    front_end.set_up_ring(1, &driver.tx, 0, &driver.tx_events);
    let buffer = driver.tx.readable(&frame(100, 1));
    driver.tx.add(&[buffer]);
    driver.tx_events.kick();
    wait_for("the chain, consumed though disabled", || {
        driver.tx.completed().pop()
    });
    driver.tx_events.wait_for_call();
    qemu_enables(&front_end);
    front_end.get_u64(Req::GET_FEATURES); // answered in order, so both are enabled
    driver.exchange(&served.host, 2); // and what went before did not reach the tap
}

#[test]
fn the_vhost_crates_front_end_is_served() {
    let (memory, file) = guest_memory();
    let mut served = Served::start();
    let mut driver = Driver::new(&memory);
    let mut front_end = Frontend::from_stream(served.stream.take().unwrap(), 2);
    front_end.set_owner().unwrap();
    let offered = front_end.get_features().unwrap();
    front_end
        .set_features(offered & (VERSION_1 | PROTOCOL_FEATURES | MRG_RXBUF))
        .unwrap();
    let protocol = front_end.get_protocol_features().unwrap();
    assert!(protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
    front_end.set_protocol_features(protocol).unwrap();
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: MEMORY,
        userspace_addr: USER_BASE,
        mmap_offset: 0,
        mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&file),
    };
    front_end.set_mem_table(&[region]).unwrap();
    let events = [(); 2].map(|()| [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap()));
    for (index, ring) in [&driver.rx, &driver.tx].into_iter().enumerate() {
        let [desc, avail, used] = ring.parts().map(|part| USER_BASE + part.0);
        let config = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: desc,
            used_ring_addr: used,
            avail_ring_addr: avail,
            log_addr: None,
        };
        front_end.set_vring_num(index, SIZE).unwrap();
        front_end.set_vring_addr(index, &config).unwrap();
        front_end.set_vring_base(index, 0).unwrap();
        front_end.set_vring_call(index, &events[index][0]).unwrap();
        front_end.set_vring_kick(index, &events[index][1]).unwrap();
        front_end.set_vring_enable(index, true).unwrap();
    }
    front_end.get_features().unwrap(); // answered in order, so all of the above is done
    let bytes = frame(1514, 4);
    let buffer = driver.tx.readable(&bytes);
    driver.tx.add(&[buffer]);
    events[1][1].write(1).unwrap();
    assert_eq!(wait_for("the frame", || served.host.receive()), bytes);
    assert_eq!(front_end.get_vring_base(1).unwrap(), 1);
    assert_eq!(front_end.get_vring_base(0).unwrap(), 0);
}

#[test]
fn a_new_memory_table_keeps_the_rings_going() {
    let (memory, file) = guest_memory();
    let mut served = Served::start();
    let front_end = served.raw();
    let mut driver = Driver::new(&memory);
    qemu_connects(&front_end);
    qemu_starts(&front_end, &file, &driver, [0, 0]);
    driver.exchange(&served.host, 1);
    assert_eq!(front_end.set_mem_table(&file), 0); // as when memory is plugged in
    driver.exchange(&served.host, 2);
    assert_eq!(front_end.get_base(1), 2);
}

#[test]
fn calls_may_change_while_rings_run() {
    let (memory, file) = guest_memory();
    let mut served = Served::start();
    let front_end = served.raw();
    let mut driver = Driver::new(&memory);
    qemu_connects(&front_end);
    qemu_starts(&front_end, &file, &driver, [0, 0]);
    driver.exchange(&served.host, 1);
    let (masked, unmasked) = (Events::new(), Events::new());
    for events in [&masked, &unmasked] {
        let index = 1u64.to_ne_bytes();
        front_end.send(Req::SET_VRING_CALL, 0, &index, &[&events.call]);
    }
    driver.tx_events = Events {
        kick: driver.tx_events.kick,
        ..unmasked
    };
    driver.exchange(&served.host, 2);
    front_end.send(Req::SET_VRING_CALL, 0, &(1u64 | 1 << 8).to_ne_bytes(), &[]);
    let buffer = driver.tx.readable(&frame(100, 3));
    driver.tx.add(&[buffer]);
    driver.tx_events.kick();
    wait_for("the chain, with no descriptor to notify", || {
        driver.tx.completed().pop()
    });
}

#[test]
fn a_call_that_is_held_comes_though_nothing_else_happens() {
    let (memory, file) = guest_memory();
    let mut served = Served::start();
    let front_end = served.raw();
    let mut driver = Driver::new(&memory);
    qemu_connects(&front_end);
    qemu_starts(&front_end, &file, &driver, [0, 0]);
    for seed in 0..100 {
        driver.transmit(&served.host, seed); // soon after the one before, of which the driver was just told
    }
}

#[test]
fn a_ring_without_a_kick_is_polled() {
    let (memory, file) = guest_memory();
    let mut served = Served::start();
    let front_end = served.raw();
    let mut driver = Driver::new(&memory);
    qemu_connects(&front_end);
    qemu_starts(&front_end, &file, &driver, [0, 0]);
    for ring in [0u64, 1] {
        front_end.send(Req::SET_VRING_KICK, 0, &(ring | 1 << 8).to_ne_bytes(), &[]);
    }
    let bytes = frame(100, 1);
    let buffer = driver.tx.readable(&bytes);
    driver.tx.add(&[buffer]);
    assert_eq!(
        wait_for("the frame, without a kick", || served.host.receive()),
        bytes
    );
}

#[test]
fn the_next_front_end_starts_afresh() {
    let (memory, file) = guest_memory();
    let mut served = Served::start();
    let front_end = served.raw();
    let mut driver = Driver::new(&memory);
    qemu_connects(&front_end);
    qemu_starts(&front_end, &file, &driver, [0, 0]);
    driver.exchange(&served.host, 1);
    drop(front_end);

    let mut served = served.next_front_end();
    let front_end = served.raw();
    qemu_connects(&front_end);
    qemu_starts(&front_end, &file, &driver, [1, 1]); // QEMU takes the used index for the base
    driver.exchange(&served.host, 2);
}

#[test]
fn bad_requests_are_refused_and_the_session_goes_on() {
    let (memory, file) = guest_memory();
    let mut served = Served::start();
    let front_end = served.raw();
    let driver = Driver::new(&memory);
    qemu_connects(&front_end);
    assert_eq!(front_end.set_mem_table(&file), 0);
    let event = Events::new();
    let far_ring = DriverRing::new(memory.mem(), 0, SIZE);
    let mut outside = vring_addr(0, &far_ring);
    outside[8..16].copy_from_slice(&(USER_BASE - 4096).to_ne_bytes());
    let never_offered = (1u64 << 10).to_ne_bytes();
    let overlapping = mem_table(&[[0, 8192, USER_BASE, 0], [4096, 8192, 0, 0]]);
    let beyond_the_file = mem_table(&[[0, MEMORY, USER_BASE, 4096]]);

    let refused = |what: &str, answer: u64| assert_ne!(answer, 0, "{what}");
    refused(
        "features",
        front_end.acknowledged(Req::SET_FEATURES, &never_offered, &[]),
    );
    refused(
        "ring",
        front_end.acknowledged(Req::SET_VRING_NUM, &pair(2, 64), &[]),
    );
    refused(
        "size",
        front_end.acknowledged(Req::SET_VRING_NUM, &pair(0, 65_536), &[]),
    );
    refused(
        "overlap",
        front_end.acknowledged(Req::SET_MEM_TABLE, &overlapping, &[&file, &file]),
    );
    refused(
        "file",
        front_end.acknowledged(Req::SET_MEM_TABLE, &beyond_the_file, &[&file]),
    );
    refused(
        "request",
        front_end.acknowledged(Req::POSTCOPY_LISTEN, &[], &[]),
    );

    front_end.state(Req::SET_VRING_NUM, 0, 64);
    assert_eq!(
        front_end.acknowledged(Req::SET_VRING_ADDR, &outside, &[]),
        0,
        "not used yet"
    );
    let kick = 0u64.to_ne_bytes();
    refused(
        "address",
        front_end.acknowledged(Req::SET_VRING_KICK, &kick, &[&event.kick]),
    );
    front_end.send(Req::SET_VRING_ADDR, 0, &vring_addr(0, &driver.rx), &[]);
    refused(
        "kind of kick",
        front_end.acknowledged(Req::SET_VRING_KICK, &kick, &[&file]),
    );
    assert_eq!(
        front_end.acknowledged(Req::SET_VRING_KICK, &kick, &[&event.kick]),
        0
    );
    assert_eq!(front_end.get_base(0), 0);
}

#[test]
fn what_is_no_message_ends_the_session_with_its_name() {
    let session = |send: &dyn Fn(&RawFrontEnd)| {
        let mut served = Served::start();
        let front_end = served.raw();
        send(&front_end);
        assert_eq!(
            front_end.reply(Req::GET_FEATURES),
            None,
            "the connection is closed"
        );
        served.end().unwrap_err()
    };
    let error = session(&|it| it.send_number(4711, 0, &[], &[]));
    assert!(error.contains("request 4711"), "{error}");
    let error = session(&|it| it.send(Req::GET_FEATURES, 4, &[], &[]));
    assert!(error.contains("flags 0x5"), "{error}");
    let error = session(&|it| it.send(Req::SET_FEATURES, 0, &[1, 2, 3], &[]));
    assert!(
        error.contains("SET_FEATURES with a body of 3 bytes"),
        "{error}"
    );
    let error = session(&|it| it.send(Req::SET_VRING_KICK, 0, &[0; 8], &[]));
    assert!(error.contains("SET_VRING_KICK"), "{error}");
    let error = session(&|it| it.send(Req::SET_MEM_TABLE, 0, &mem_table(&[[0, 1, 0, 0]]), &[]));
    assert!(error.contains("0 descriptors"), "{error}");
    let error = session(&|it| it.u64(Req::SET_FEATURES, 1 << 10));
    assert!(error.contains("never offered"), "{error}");
}

/// The worker is shared by the device and dropped with it; a test that leaks it would hang at the join.
#[test]
fn a_device_ends_with_its_threads() {
    let (memory, file) = guest_memory();
    let mut served = Served::start();
    let front_end = served.raw();
    let driver = Driver::new(&memory);
    qemu_connects(&front_end);
    qemu_starts(&front_end, &file, &driver, [0, 0]);
    assert_eq!(front_end.get_base(0), 0);
    drop(front_end);
    assert_eq!(served.end(), Ok(()));
    assert_eq!(Arc::strong_count(&memory), 1);
}

#[test]
fn a_base_out_of_range_is_refused_when_the_ring_starts() {
    let (memory, file) = guest_memory();
    let mut served = Served::start();
    let front_end = served.raw();
    let driver = Driver::new(&memory);
    qemu_connects(&front_end);
    assert_eq!(front_end.set_mem_table(&file), 0);
    front_end.state(Req::SET_VRING_NUM, 0, 64);
    front_end.send(Req::SET_VRING_ADDR, 0, &vring_addr(0, &driver.rx), &[]);
    front_end.state(Req::SET_VRING_BASE, 0, 65_536);
    let kick = &driver.rx_events.kick;
    let answer = front_end.acknowledged(Req::SET_VRING_KICK, &0u64.to_ne_bytes(), &[kick]);
    assert_ne!(answer, 0);
}

#[test]
fn a_rarp_tells_where_the_guest_is() {
    let mut served = Served::start();
    let front_end = served.raw();
    front_end.u64(Req::SET_FEATURES, VERSION_1);
    front_end.u64(
        Req::SEND_RARP,
        u64::from_le_bytes([0x52, 0x54, 0, 1, 2, 3, 0, 0]),
    );
    let frame = wait_for("the RARP", || served.host.receive());
    assert_eq!(frame[..12], [0; 12], "an empty header");
    assert_eq!(frame[12..18], [0xff; 6]);
    assert_eq!(frame[18..24], [0x52, 0x54, 0, 1, 2, 3]);
    assert_eq!(frame[24..26], [0x80, 0x35]);
    assert_eq!(frame[32..34], [0, 3], "request reverse");
    assert_eq!(frame.len(), 72);
}

#[test]
fn status_is_kept_until_the_device_is_reset() {
    let (memory, file) = guest_memory();
    let mut served = Served::start();
    let front_end = served.raw();
    let mut driver = Driver::new(&memory);
    qemu_connects(&front_end);
    qemu_starts(&front_end, &file, &driver, [0, 0]);
    front_end.u64(Req::SET_STATUS, 0xf);
    assert_eq!(front_end.get_u64(Req::GET_STATUS), 0xf);
    driver.exchange(&served.host, 1);
    front_end.u64(Req::SET_STATUS, 0);
    driver.exchange(&served.host, 2); // a status is no order to stop
    front_end.send(Req::RESET_DEVICE, 0, &[], &[]);
    assert_eq!(front_end.get_base(1), 0, "stopped, and back at the start");
}

#[test]
fn memory_comes_and_goes_slot_by_slot() {
    const HALF: u64 = MEMORY / 2;
    let (memory, file) = guest_memory();
    let mut served = Served::start();
    let front_end = served.raw();
    let mut driver = Driver::new(&memory);
    qemu_connects(&front_end);
    assert!(front_end.get_u64(Req::GET_MAX_MEM_SLOTS) >= 32);
    let low = mem_region([0, HALF, USER_BASE, 0]);
    let high = mem_region([HALF, HALF, USER_BASE + HALF, HALF]);
    for region in [&low, &high] {
        assert_eq!(
            front_end.acknowledged(Req::ADD_MEM_REG, region, &[&file]),
            0
        );
    }
    let overlapping = mem_region([HALF - 4096, HALF, USER_BASE + HALF, HALF]);
    let answer = front_end.acknowledged(Req::ADD_MEM_REG, &overlapping, &[&file]);
    assert_ne!(answer, 0, "it overlaps");
    let again = front_end.acknowledged(Req::ADD_MEM_REG, &high, &[&file]);
    assert_eq!(again, 0, "QEMU adds it for every pair");
    qemu_enables(&front_end);
    front_end.u64(Req::SET_FEATURES, VERSION_1 | PROTOCOL_FEATURES);
    front_end.set_up_ring(0, &driver.rx, 0, &driver.rx_events);
    front_end.set_up_ring(1, &driver.tx, 0, &driver.tx_events);
    driver.exchange(&served.host, 1);
    assert_eq!([front_end.get_base(0), front_end.get_base(1)], [1, 1]);
    assert_eq!(front_end.acknowledged(Req::REM_MEM_REG, &high, &[]), 0);
    let again = front_end.acknowledged(Req::REM_MEM_REG, &high, &[]);
    assert_eq!(again, 0, "and removes it for every pair");
    let kick = 1u64.to_ne_bytes();
    let restart = front_end.acknowledged(Req::SET_VRING_KICK, &kick, &[&driver.tx_events.kick]);
    assert_ne!(restart, 0, "its ring has no memory");
}

/// The pages that a log marks.
fn marked(log: &std::fs::File) -> Vec<u64> {
    use std::os::unix::fs::FileExt;
    let mut bits = vec![0; (MEMORY / 4096 / 8) as usize];
    log.read_exact_at(&mut bits, 0).unwrap();
    let pages = 0..MEMORY / 4096;
    pages
        .filter(|page| bits[(page / 8) as usize] >> (page % 8) & 1 == 1)
        .collect()
}

#[test]
fn while_a_migration_runs_every_page_that_is_written_is_marked() {
    const LOG_ALL: u64 = 1 << 26;
    let (memory, file) = guest_memory();
    let mut served = Served::start();
    let front_end = served.raw();
    let mut driver = Driver::new(&memory);
    qemu_connects(&front_end);
    qemu_starts(&front_end, &file, &driver, [0, 0]);
    driver.exchange(&served.host, 1);

    let log = tempfile::tempfile().unwrap();
    log.set_len(MEMORY / 4096 / 8).unwrap();
    let body = [MEMORY / 4096 / 8, 0].map(u64::to_ne_bytes).concat();
    assert_eq!(front_end.acknowledged(Req::SET_LOG_BASE, &body, &[&log]), 0);
    driver.exchange(&served.host, 2);
    assert_eq!(marked(&log), [0; 0], "not before LOG_ALL");

    let features = VERSION_1 | PROTOCOL_FEATURES | MRG_RXBUF;
    front_end.u64(Req::SET_FEATURES, features | LOG_ALL);
    front_end.get_u64(Req::GET_FEATURES);
    let buffer = driver.exchange(&served.host, 3);
    let used = [&driver.rx, &driver.tx].map(|ring| ring.parts()[2].0 / 4096);
    let mut expected = vec![buffer.addr / 4096, used[0], used[1]];
    expected.sort();
    expected.dedup();
    assert_eq!(marked(&log), expected, "the buffer and both used rings");

    front_end.u64(Req::SET_FEATURES, features); // cancelled
    front_end.get_u64(Req::GET_FEATURES);
    log.set_len(0).unwrap();
    log.set_len(MEMORY / 4096 / 8).unwrap();
    driver.exchange(&served.host, 4);
    assert_eq!(marked(&log), [0; 0]);
}

/// The frame rate falls off a cliff if a spin leaves kicks off and then sleeps: each exchange here would time out.
#[test]
fn a_worker_that_polls_neither_misses_work_nor_spins_for_ever() {
    let (memory, file) = guest_memory();
    let mut served = Served::start_with(Duration::from_micros(200), Limits::default());
    let front_end = served.raw();
    let mut driver = Driver::new(&memory);
    qemu_connects(&front_end);
    qemu_starts(&front_end, &file, &driver, [0, 0]);
    for round in 0..100u64 {
        driver.exchange(&served.host, round as u8);
        std::thread::sleep(Duration::from_micros(round * 20)); // work comes in and after spins alike
    }
}

#[test]
fn what_the_backend_was_started_with_limits_rings_and_packets() {
    let (memory, file) = guest_memory();
    let limits = Limits {
        queue_size: "512".parse().unwrap(),
        mtu: Some(Mtu::try_from(1400).unwrap()),
        ..Limits::default()
    };
    let mut served = Served::start_with(Duration::ZERO, limits);
    let front_end = served.raw();
    let mut driver = Driver::new(&memory);
    qemu_connects(&front_end);
    assert_ne!(
        front_end.acknowledged(Req::SET_VRING_NUM, &pair(0, 1024), &[]),
        0
    );
    assert_eq!(
        front_end.acknowledged(Req::SET_VRING_NUM, &pair(0, 512), &[]),
        0
    );
    qemu_starts(&front_end, &file, &driver, [0, 0]);
    let mut send = |len| {
        let bytes = frame(len, len as u8);
        let buffer = driver.tx.readable(&bytes);
        driver.tx.add(&[buffer]);
        driver.tx_events.kick();
        wait_for("its chain", || driver.tx.completed().pop());
        served.host.receive() == Some(bytes)
    };
    assert!(send(1414));
    assert!(!send(1415));
    assert_eq!(
        front_end.acknowledged(Req::NET_SET_MTU, &1500u64.to_ne_bytes(), &[]),
        0
    );
    assert!(send(1514));
    assert_ne!(
        front_end.acknowledged(Req::NET_SET_MTU, &67u64.to_ne_bytes(), &[]),
        0
    );
    assert!(!send(1515), "as it was");
}

fn offering(extra: Extra) -> Limits {
    Limits {
        extras: vec![extra],
        ..Limits::default()
    }
}

#[test]
fn the_configuration_space_is_read_where_it_was_asked_for() {
    let mut served = Served::start_with(Duration::ZERO, offering(Extra::Config));
    let mut front_end = Frontend::from_stream(served.stream.take().unwrap(), 2);
    front_end.set_owner().unwrap();
    front_end.get_features().unwrap();
    let offered = front_end.get_protocol_features().unwrap();
    assert!(offered.contains(VhostUserProtocolFeatures::CONFIG));
    front_end
        .set_protocol_features(VhostUserProtocolFeatures::CONFIG)
        .unwrap();
    let mut read = |offset| {
        let flags = VhostUserConfigFlags::WRITABLE;
        let (_, bytes) = front_end.get_config(offset, 2, flags, &[0, 0]).unwrap();
        bytes
    };
    assert_eq!(read(8), 1u16.to_le_bytes(), "pairs");
    assert_eq!(read(10), 1500u16.to_le_bytes(), "mtu");
}

#[test]
fn a_front_end_that_reads_beyond_the_configuration_space_is_told() {
    let mut served = Served::start_with(Duration::ZERO, offering(Extra::Config));
    let front_end = served.raw();
    let config = VhostUserProtocolFeatures::CONFIG.bits();
    front_end.u64(Req::SET_PROTOCOL_FEATURES, config);
    let mut body: Vec<u8> = [255u32, 2, 0]
        .iter()
        .flat_map(|it| it.to_ne_bytes())
        .collect();
    body.extend([0; 2]);
    front_end.send(Req::GET_CONFIG, 0, &body, &[]);
    let none: Vec<u8> = [255u32, 0, 0]
        .iter()
        .flat_map(|it| it.to_ne_bytes())
        .collect();
    assert_eq!(front_end.reply(Req::GET_CONFIG), Some(none));
    assert!(front_end.get_u64(Req::GET_FEATURES) != 0, "and goes on");
}

/// What a driver's reset of one queue comes to: the ring stops, and starts again elsewhere, smaller and from 0, while
/// the other goes on.
#[test]
fn a_single_ring_is_reset_and_comes_back_smaller() {
    let (memory, file) = guest_memory();
    let mut served = Served::start_with(Duration::ZERO, offering(Extra::RingReset));
    let front_end = served.raw();
    let mut driver = Driver::new(&memory);
    assert_ne!(front_end.get_u64(Req::GET_FEATURES) & RING_RESET, 0);
    front_end.u64(Req::SET_PROTOCOL_FEATURES, MQ_AND_REPLY_ACK);
    qemu_enables(&front_end);
    front_end.u64(
        Req::SET_FEATURES,
        VERSION_1 | PROTOCOL_FEATURES | MRG_RXBUF | RING_RESET,
    );
    assert_eq!(front_end.set_mem_table(&file), 0);
    front_end.set_up_ring(0, &driver.rx, 0, &driver.rx_events);
    front_end.set_up_ring(1, &driver.tx, 0, &driver.tx_events);
    for seed in 0..5 {
        driver.exchange(&served.host, seed);
    }
    assert_eq!(front_end.get_base(0), 5);
    driver.transmit(&served.host, 5);
    driver.rx = DriverRing::new(memory.mem(), MEMORY / 4, 32);
    driver.rx_events = Events::new();
    front_end.set_up_ring(0, &driver.rx, 0, &driver.rx_events);
    for seed in 6..80 {
        driver.exchange(&served.host, seed);
    }
}
