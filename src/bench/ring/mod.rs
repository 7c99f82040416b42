//! The driver's side of virtqueues (virtio 1.3 §2.6 to §2.8), made for load: chains are known by an id of the caller's, and each
//! id has descriptors of its own, so that nothing is looked for or allocated when one is offered.

mod packed;
mod split;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

use super::memory::Memory;
use packed::PackedRing;
use split::SplitRing;

/// How fields are read and written whose order a fence or another field gives.
const RELAXED: Ordering = Ordering::Relaxed;

/// Bytes of a descriptor, in either layout.
const DESCRIPTOR: usize = 16;

/// The flag of a descriptor that is of a table of descriptors (virtio 1.3 §2.7.5.3, §2.8.7).
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// How a ring is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Layout {
    /// Descriptors, and an avail and a used ring of their numbers.
    Split,
    /// Descriptors alone (VIRTIO_F_RING_PACKED).
    Packed,
}

impl Layout {
    /// Where a new ring begins, as SET_VRING_BASE says it: with slot 0, which for a packed one is in the lap whose wrap
    /// counter is 1 (virtio 1.3 §2.8.1).
    pub fn base(self) -> u16 {
        match self {
            Self::Split => 0,
            Self::Packed => 1 << 15,
        }
    }
}

/// A buffer of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Where it is.
    pub at: usize,
    /// Bytes.
    pub len: u32,
}

impl Part {
    /// A descriptor of this, whose last two fields are these: flags and next, or id and flags.
    fn descriptor(self, fields: [u16; 2]) -> [u8; DESCRIPTOR] {
        let mut descriptor = [0; DESCRIPTOR];
        descriptor[..8].copy_from_slice(&(self.at as u64).to_le_bytes());
        descriptor[8..12].copy_from_slice(&self.len.to_le_bytes());
        descriptor[12..14].copy_from_slice(&fields[0].to_le_bytes());
        descriptor[14..].copy_from_slice(&fields[1].to_le_bytes());
        descriptor
    }
}

/// Who writes into a ring's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The driver: a transmitq.
    Readable,
    /// The device: a receiveq.
    Writable,
}

/// What a ring is made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// How it is laid out.
    pub layout: Layout,
    /// Descriptors.
    pub size: u16,
    /// The most buffers that a chain has.
    pub parts: u16,
    /// Whether the descriptors of a chain of several buffers are in a table of their own (VIRTIO_F_INDIRECT_DESC).
    pub indirect: bool,
    /// Who writes.
    pub direction: Direction,
    /// Whether either side says by an index when it wants to hear of what (VIRTIO_F_EVENT_IDX).
    pub event_idx: bool,
}

impl Shape {
    /// So many chains can be out at once; their ids are below that.
    pub fn chains(&self) -> u16 {
        self.size / self.slots()
    }

    /// The most descriptors of the ring itself that a chain has.
    fn slots(&self) -> u16 {
        match self.has_tables() {
            true => 1,
            false => self.parts,
        }
    }

    fn has_tables(&self) -> bool {
        self.indirect && self.parts > 1
    }

    /// Bytes of a chain's table; none where it has no table.
    fn table_bytes(&self) -> usize {
        match self.has_tables() {
            true => DESCRIPTOR * usize::from(self.parts),
            false => 0,
        }
    }

    /// Bytes that a ring takes, at most, without its buffers.
    pub fn bytes(&self) -> usize {
        let [size, chains] = [self.size, self.chains()].map(usize::from);
        32 * size + chains * self.table_bytes() + 4096
    }

    /// The flags of a chain's buffer, whichever the layout; `more` come after it.
    fn part_flags(&self, more: bool) -> u16 {
        let next = if more { VRING_DESC_F_NEXT } else { 0 };
        let write = match self.direction {
            Direction::Readable => 0,
            Direction::Writable => VRING_DESC_F_WRITE,
        };
        (next | write) as u16
    }
}

/// A chain that the device is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Its id.
    pub id: u16,
    /// Bytes that the device has written.
    pub len: u32,
}

/// The driver's side of one ring.
#[derive(Debug)]
pub enum DriverRing {
    /// See [`Layout::Split`].
    Split(SplitRing),
    /// See [`Layout::Packed`].
    Packed(PackedRing),
}

impl DriverRing {
    /// An empty ring in `memory`, which asks for no notification.
    pub fn new(memory: &Arc<Memory>, places: Places, shape: Shape) -> Self {
        match shape.layout {
            Layout::Split => Self::Split(SplitRing::new(memory, places, shape)),
            Layout::Packed => Self::Packed(PackedRing::new(memory, places, shape)),
        }
    }

    /// Makes chain `id` of `parts` ready to be published.
    pub fn offer(&mut self, id: u16, parts: &[Part]) {
        match self {
            Self::Split(ring) => ring.offer(id, parts),
            Self::Packed(ring) => ring.offer(id, parts),
        }
    }

    /// Lets the device have what was offered; whether it wants to be kicked for that.
    pub fn publish(&mut self) -> bool {
        match self {
            Self::Split(ring) => ring.publish(),
            Self::Packed(ring) => ring.publish(),
        }
    }

    /// A chain that the device is done with, in its order.
    pub fn take_used(&mut self) -> Option<Used> {
        match self {
            Self::Split(ring) => ring.take_used(),
            Self::Packed(ring) => ring.take_used(),
        }
    }

    /// Asks to be told when the device is done with another chain, or not to be told. True if it is done with one already.
    pub fn want_call(&mut self, wanted: bool) -> bool {
        match self {
            Self::Split(ring) => ring.want_call(wanted),
            Self::Packed(ring) => ring.want_call(wanted),
        }
    }
}

/// Where the parts of a ring are: descriptors, what the driver writes besides, what the device writes besides.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    /// The descriptor table or ring.
    pub descriptors: usize,
    /// The avail ring, or the driver's event suppression.
    pub driver: usize,
    /// The used ring, or the device's event suppression.
    pub device: usize,
    /// The tables of all chains, by their ids, where they have tables.
    pub tables: usize,
}

impl Places {
    /// Takes what a ring of this shape needs, or another of its size without tables.
    pub fn take(memory: &mut Memory, shape: Shape) -> Self {
        let [size, chains] = [shape.size, shape.chains()].map(usize::from);
        Self {
            descriptors: memory.take(DESCRIPTOR * size, 64),
            driver: memory.take(6 + 2 * size, 64),
            device: memory.take(6 + 8 * size, 64),
            tables: memory.take(chains * shape.table_bytes(), 64),
        }
    }

    /// Where the table of chain `id`, of so many buffers, is; `None` where its descriptors are the ring's.
    fn table(&self, shape: Shape, id: u16, parts: &[Part]) -> Option<Part> {
        shape.has_tables().then(|| Part {
            at: self.tables + usize::from(id) * shape.table_bytes(),
            len: (DESCRIPTOR * parts.len()) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptors_of_a_chain_may_be_in_a_table() {
        let parts = [(64, 12), (128, 4096), (8192, 7)].map(|(at, len)| Part { at, len });
        for (layout, slot, fields) in [
            (Layout::Split, 5, [INDIRECT, 0]),
            (Layout::Packed, 0, [5, INDIRECT | 1 << 7]),
        ] {
            let shape = Shape {
                layout,
                size: 16,
                parts: 3,
                indirect: true,
                direction: Direction::Readable,
                event_idx: false,
            };
            assert_eq!(shape.chains(), 16);
            let mut memory = Memory::new(shape.bytes()).unwrap();
            let places = Places::take(&mut memory, shape);
            let memory = Arc::new(memory);
            let mut ring = DriverRing::new(&memory, places, shape);
            ring.offer(5, &parts);
            assert!(ring.publish());
            let at = |place| {
                let mut descriptor = [0; DESCRIPTOR];
                memory.slice(place, DESCRIPTOR).copy_to(&mut descriptor);
                descriptor
            };
            let table = Part {
                at: places.tables + 5 * 3 * DESCRIPTOR,
                len: 3 * DESCRIPTOR as u32,
            };
            assert_eq!(
                at(places.descriptors + slot * DESCRIPTOR),
                table.descriptor(fields)
            );
            for (number, part) in parts.iter().enumerate() {
                let place = table.at + number * DESCRIPTOR;
                let of_it = part.descriptor([0, 0]);
                assert_eq!(at(place)[..12], of_it[..12], "{layout:?} {number}");
            }
        }
    }
}
