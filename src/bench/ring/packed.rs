//! A packed ring (virtio 1.3 §2.8): a chain takes the next slots, and its id is in the last of them.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, VolatileSlice};

use super::super::memory::Memory;
use super::{Direction, Part, Places, Shape, Used, reached};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Event suppression (virtio 1.3 §2.8.10).
const EVENTS_ON: u16 = 0;
const EVENTS_OFF: u16 = 1;
const EVENTS_AT: u16 = 2;

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
        ring.slice(places.descriptors, size)
            .copy_from(&vec![0u8; size]);
        for at in [places.driver, places.device] {
            ring.slice(at, 4).copy_from(&[0u8; 4]);
        }
        ring.store(places.driver + 2, EVENTS_OFF);
        ring
    }

    pub(super) fn offer(&mut self, id: u16, parts: &[Part]) {
        let last = parts.len() - 1;
        for (number, part) in parts.iter().enumerate() {
            let position = self.avail.after(number as u16, self.shape.size);
            let mut descriptor = [0; 14];
            descriptor[..8].copy_from_slice(&(part.at as u64).to_le_bytes());
            descriptor[8..12].copy_from_slice(&part.len.to_le_bytes());
            descriptor[12..].copy_from_slice(&id.to_le_bytes());
            self.slice(self.descriptor(position.slot), 14)
                .copy_from(&descriptor);
            let flags = self.flags(position, number < last);
            if self.held.is_none() {
                // The device takes slots in order: what is behind this one waits for it.
                self.held = Some((position, flags));
            } else {
                self.store(self.descriptor(position.slot) + 14, flags);
            }
        }
        self.slots[usize::from(id)] = parts.len() as u16;
        self.fresh += parts.len() as u16;
        self.avail = self.avail.after(parts.len() as u16, self.shape.size);
    }

    pub(super) fn publish(&mut self) -> bool {
        let Some((first, flags)) = self.held.take() else {
            return false;
        };
        let place = self.slice(self.descriptor(first.slot) + 14, 2);
        // What was offered is seen by whoever sees the first of it.
        place
            .store(flags.to_le(), 0, Ordering::Release)
            .expect("aligned flags");
        let fresh = std::mem::take(&mut self.fresh);
        fence(Ordering::SeqCst);
        match self.load(self.places.device + 2) {
            EVENTS_OFF => false,
            EVENTS_AT => {
                let event = self.load(self.places.device);
                let (slot, wrap) = (event & 0x7fff, event >> 15 == 1);
                // Counted in slots from the lap that this position is in.
                let event = match wrap == self.avail.wrap {
                    true => slot,
                    false => slot.wrapping_sub(self.shape.size),
                };
                let new = self.avail.slot;
                reached(event, new, new.wrapping_sub(fresh))
            }
            _ => true,
        }
    }

    pub(super) fn take_used(&mut self) -> Option<Used> {
        if !self.is_used() {
            return None;
        }
        let mut descriptor = [0; 6];
        self.slice(self.descriptor(self.used.slot) + 8, 6)
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
                self.store(self.places.driver, self.used.encode());
                EVENTS_AT
            }
        };
        self.store(self.places.driver + 2, how);
        fence(Ordering::SeqCst);
        self.is_used()
    }

    fn is_used(&self) -> bool {
        let place = self.slice(self.descriptor(self.used.slot) + 14, 2);
        let flags: u16 = place.load(0, Ordering::Acquire).expect("aligned flags");
        let flags = u16::from_le(flags);
        [AVAIL, USED].map(|bit| flags & bit != 0) == [self.used.wrap; 2]
    }

    fn flags(&self, position: Position, more: bool) -> u16 {
        let lap = if position.wrap { AVAIL } else { USED };
        let next = if more { NEXT } else { 0 };
        let write = match self.shape.direction {
            Direction::Readable => 0,
            Direction::Writable => WRITE,
        };
        lap | next | write
    }

    fn descriptor(&self, slot: u16) -> usize {
        self.places.descriptors + 16 * usize::from(slot)
    }

    fn store(&self, at: usize, value: u16) {
        let stored = self.slice(at, 2).store(value.to_le(), 0, Ordering::Relaxed);
        stored.expect("an aligned place");
    }

    fn load(&self, at: usize) -> u16 {
        let value: u16 = self
            .slice(at, 2)
            .load(0, Ordering::Relaxed)
            .expect("an aligned place");
        u16::from_le(value)
    }

    fn slice(&self, at: usize, len: usize) -> VolatileSlice<'_> {
        self.memory.slice(at, len)
    }
}
