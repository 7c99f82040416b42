//! A split ring (virtio 1.3 §2.7). Chain `id` always has the same descriptors: as many as the largest chain, or one for its table.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use super::super::memory::Memory;
use super::{DESCRIPTOR, INDIRECT, Part, Places, RELAXED, Shape, Used};
use crate::backend::ring::passes;

const NO_INTERRUPT: u16 = VRING_AVAIL_F_NO_INTERRUPT as u16;
const NO_NOTIFY: u16 = VRING_USED_F_NO_NOTIFY as u16;

/// Where an avail or used ring has its index.
const INDEX: usize = 2;

/// The driver's side of a split ring.
#[derive(Debug)]
pub struct SplitRing {
    memory: Arc<Memory>,
    places: Places,
    shape: Shape,
    /// Chains offered so far, and how many of those are published.
    avail: u16,
    published: u16,
    /// Chains taken back so far.
    used: u16,
}

impl SplitRing {
    pub(super) fn new(memory: &Arc<Memory>, places: Places, shape: Shape) -> Self {
        let ring = Self {
            memory: Arc::clone(memory),
            places,
            shape,
            avail: 0,
            published: 0,
            used: 0,
        };
        let size = usize::from(shape.size);
        for (at, len) in [(places.driver, 6 + 2 * size), (places.device, 6 + 8 * size)] {
            ring.memory.slice(at, len).copy_from(&vec![0u8; len]);
        }
        ring.ask_for(ring.used.wrapping_sub(1), false);
        ring
    }

    pub(super) fn offer(&mut self, id: u16, parts: &[Part]) {
        let first = id * self.shape.slots();
        let place = self.places.descriptors + DESCRIPTOR * usize::from(first);
        match self.places.table(self.shape, id, parts) {
            None => self.link(place, first, parts),
            Some(table) => {
                self.link(table.at, 0, parts);
                self.put(place, table.descriptor([INDIRECT, 0]));
            }
        }
        let slot = usize::from(self.avail % self.shape.size);
        self.memory
            .store(self.places.driver + 4 + 2 * slot, first, RELAXED);
        self.avail = self.avail.wrapping_add(1);
    }

    /// Makes descriptors of `parts` at `place`, each of which names the next by its number, from `first` on.
    fn link(&self, place: usize, first: u16, parts: &[Part]) {
        let last = parts.len() - 1;
        for (number, part) in parts.iter().enumerate() {
            let flags = self.shape.part_flags(number < last);
            let next = first + number as u16 + 1;
            self.put(place + DESCRIPTOR * number, part.descriptor([flags, next]));
        }
    }

    fn put(&self, place: usize, descriptor: [u8; DESCRIPTOR]) {
        self.memory.slice(place, DESCRIPTOR).copy_from(&descriptor);
    }

    pub(super) fn publish(&mut self) -> bool {
        let old = self.published;
        if old == self.avail {
            return false;
        }
        // What was offered is seen by whoever sees the index.
        let index = self.places.driver + INDEX;
        self.memory.store(index, self.avail, Ordering::Release);
        self.published = self.avail;
        // The device looks at the index after it has said what it wants to hear of, this looks after it has moved the index.
        fence(Ordering::SeqCst);
        if self.shape.event_idx {
            let event = self.places.device + 4 + 8 * usize::from(self.shape.size);
            passes(self.memory.load(event, RELAXED), old, self.avail)
        } else {
            self.memory.load(self.places.device, RELAXED) & NO_NOTIFY == 0
        }
    }

    pub(super) fn take_used(&mut self) -> Option<Used> {
        if self.used == self.used_index() {
            return None;
        }
        let slot = usize::from(self.used % self.shape.size);
        let mut element = [0; 8];
        self.memory
            .slice(self.places.device + 4 + 8 * slot, 8)
            .copy_to(&mut element);
        self.used = self.used.wrapping_add(1);
        let [head, len] = [&element[..4], &element[4..]]
            .map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")));
        Some(Used {
            id: head as u16 / self.shape.slots(),
            len,
        })
    }

    pub(super) fn want_call(&mut self, wanted: bool) -> bool {
        let event = match wanted {
            true => self.used,
            false => self.used.wrapping_sub(1), // as far from being reached as can be
        };
        self.ask_for(event, wanted);
        fence(Ordering::SeqCst);
        self.used != self.used_index()
    }

    fn ask_for(&self, event: u16, wanted: bool) {
        if self.shape.event_idx {
            let place = self.places.driver + 4 + 2 * usize::from(self.shape.size);
            self.memory.store(place, event, RELAXED);
        } else {
            let flags = if wanted { 0 } else { NO_INTERRUPT };
            self.memory.store(self.places.driver, flags, RELAXED);
        }
    }

    fn used_index(&self) -> u16 {
        let index = self.places.device + INDEX;
        self.memory.load(index, Ordering::Acquire)
    }
}
