//! A packed ring (virtio 1.3 §2.8): a chain takes the next slots, and its id is in the last of them.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{
    VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED, VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE, VRING_PACKED_EVENT_FLAG_ENABLE,
};

use super::super::memory::Memory;
use super::{DESCRIPTOR, INDIRECT, Part, Places, RELAXED, Shape, Used};
use crate::backend::ring::passes;

/// Whose a descriptor is (virtio 1.3 §2.8.1), and where its flags are.
const AVAIL: u16 = 1 << VRING_PACKED_DESC_F_AVAIL;
const USED: u16 = 1 << VRING_PACKED_DESC_F_USED;
const FLAGS: usize = 14;

/// Event suppression (virtio 1.3 §2.8.10).
const EVENTS_ON: u16 = VRING_PACKED_EVENT_FLAG_ENABLE as u16;
const EVENTS_OFF: u16 = VRING_PACKED_EVENT_FLAG_DISABLE as u16;
const EVENTS_AT: u16 = VRING_PACKED_EVENT_FLAG_DESC as u16;

/// A slot, and the lap in which it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    slot: u16,
    wrap: bool,
}

impl Position {
    const START: Self = Self {
        slot: 0,
        wrap: true,
    };

    fn after(self, slots: u16, size: u16) -> Self {
        let slot = self.slot + slots;
        match slot >= size {
            true => Self {
                slot: slot - size,
                wrap: !self.wrap,
            },
            false => Self { slot, ..self },
        }
    }

    /// As event suppression has it.
    fn encode(self) -> u16 {
        self.slot | u16::from(self.wrap) << 15
    }
}

/// The driver's side of a packed ring.
#[derive(Debug)]
pub struct PackedRing {
    memory: Arc<Memory>,
    places: Places,
    shape: Shape,
    /// Where the next chain is offered.
    avail: Position,
    /// Slots offered since the last were published, and of those the first, whose flags are not written so far.
    fresh: u16,
    held: Option<(Position, u16)>,
    /// Where the device is done next.
    used: Position,
    /// How many slots each chain has, by its id.
    slots: Vec<u16>,
}

impl PackedRing {
    pub(super) fn new(memory: &Arc<Memory>, places: Places, shape: Shape) -> Self {
        let ring = Self {
            memory: Arc::clone(memory),
            places,
            shape,
            avail: Position::START,
            fresh: 0,
            held: None,
            used: Position::START,
            slots: vec![0; shape.chains().into()],
        };
        let size = 16 * usize::from(shape.size);
        ring.memory
            .slice(places.descriptors, size)
            .copy_from(&vec![0u8; size]);
        for at in [places.driver, places.device] {
            ring.memory.slice(at, 4).copy_from(&[0u8; 4]);
        }
        ring.memory.store(places.driver + 2, EVENTS_OFF, RELAXED);
        ring
    }

    pub(super) fn offer(&mut self, id: u16, parts: &[Part]) {
        let Some(table) = self.places.table(self.shape, id, parts) else {
            let last = parts.len() - 1;
            for (number, part) in parts.iter().enumerate() {
                self.put(
                    number as u16,
                    part,
                    id,
                    self.shape.part_flags(number < last),
                );
            }
            return self.offered(id, parts.len() as u16);
        };
        for (number, part) in parts.iter().enumerate() {
            // A table's descriptors follow each other (virtio 1.3 §2.8.7).
            let descriptor = part.descriptor([0, self.shape.part_flags(false)]);
            let place = table.at + DESCRIPTOR * number;
            self.memory.slice(place, DESCRIPTOR).copy_from(&descriptor);
        }
        self.put(0, &table, id, INDIRECT);
        self.offered(id, 1);
    }

    /// Fills the slot that is so far behind the next one.
    fn put(&mut self, ahead: u16, part: &Part, id: u16, flags: u16) {
        let position = self.avail.after(ahead, self.shape.size);
        let place = self.descriptor(position.slot);
        let descriptor = part.descriptor([id, 0]);
        self.memory
            .slice(place, FLAGS)
            .copy_from(&descriptor[..FLAGS]);
        let flags = flags | if position.wrap { AVAIL } else { USED };
        if self.held.is_none() {
            // The device takes slots in order: what is behind this one waits for it.
            self.held = Some((position, flags));
        } else {
            self.memory.store(place + FLAGS, flags, RELAXED);
        }
    }

    /// Chain `id` is in the next `slots`.
    fn offered(&mut self, id: u16, slots: u16) {
        self.slots[usize::from(id)] = slots;
        self.fresh += slots;
        self.avail = self.avail.after(slots, self.shape.size);
    }

    pub(super) fn publish(&mut self) -> bool {
        let Some((first, flags)) = self.held.take() else {
            return false;
        };
        // What was offered is seen by whoever sees the first of it.
        let place = self.descriptor(first.slot) + FLAGS;
        self.memory.store(place, flags, Ordering::Release);
        let fresh = std::mem::take(&mut self.fresh);
        fence(Ordering::SeqCst);
        match self.memory.load(self.places.device + 2, RELAXED) {
            EVENTS_OFF => false,
            EVENTS_AT => {
                let event = self.memory.load(self.places.device, RELAXED);
                let (slot, wrap) = (event & 0x7fff, event >> 15 == 1);
                // Counted in slots from the lap that this position is in.
                let event = match wrap == self.avail.wrap {
                    true => slot,
                    false => slot.wrapping_sub(self.shape.size),
                };
                let new = self.avail.slot;
                passes(event, new.wrapping_sub(fresh), new)
            }
            _ => true,
        }
    }

    pub(super) fn take_used(&mut self) -> Option<Used> {
        if !self.is_used() {
            return None;
        }
        let mut descriptor = [0; 6];
        self.memory
            .slice(self.descriptor(self.used.slot) + 8, 6)
            .copy_to(&mut descriptor);
        let [a, b, c, d, e, f] = descriptor;
        let id = u16::from_le_bytes([e, f]);
        let slots = self.slots.get(usize::from(id)).copied().unwrap_or(1);
        self.used = self.used.after(slots, self.shape.size);
        Some(Used {
            id,
            len: u32::from_le_bytes([a, b, c, d]),
        })
    }

    pub(super) fn want_call(&mut self, wanted: bool) -> bool {
        let how = match (wanted, self.shape.event_idx) {
            (false, _) => EVENTS_OFF,
            (true, false) => EVENTS_ON,
            (true, true) => {
                self.memory
                    .store(self.places.driver, self.used.encode(), RELAXED);
                EVENTS_AT
            }
        };
        self.memory.store(self.places.driver + 2, how, RELAXED);
        fence(Ordering::SeqCst);
        self.is_used()
    }

    fn is_used(&self) -> bool {
        let place = self.descriptor(self.used.slot) + FLAGS;
        let flags = self.memory.load(place, Ordering::Acquire);
        [AVAIL, USED].map(|bit| flags & bit != 0) == [self.used.wrap; 2]
    }

    fn descriptor(&self, slot: u16) -> usize {
        self.places.descriptors + DESCRIPTOR * usize::from(slot)
    }
}
