//! The device's configuration space, for front-ends that take it from the back-end: virtio-net's fields as bytes.
//!
//! QEMU does not: it fills the space in by itself, and so does every front-end that knows its guest's MAC address. The
//! address is not here, for the back-end does not know it; MAC is therefore never offered, and a driver that relies on
//! this space alone makes one up (virtio 1.3 §5.1.4, §5.1.5).

use crate::types::{Mtu, QueuePairs};

/// The bytes of a configuration space that vhost-user speaks of (`VHOST_USER_CONFIG_SIZE`).
const SIZE: usize = 256;

/// S_LINK_UP: a tap on a host is always up for its guest.
const LINK_UP: u16 = 1;
/// Ethernet's, where nobody has named another: MTU is offered, so the field has to hold something a link can have.
const USUAL_MTU: u16 = 1500;
/// Speed and duplex of a link that has neither.
const UNKNOWN: [u8; 5] = [0xff; 5];

/// A device's configuration space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigSpace([u8; SIZE]);

impl ConfigSpace {
    /// That of a device with so many pairs, and the MTU if it limits packets.
    pub fn new(pairs: QueuePairs, mtu: Option<Mtu>) -> Self {
        let mtu = mtu.map_or(USUAL_MTU, Mtu::get);
        let mut fields = vec![0; 6]; // mac
        for field in [LINK_UP, pairs.get(), mtu] {
            fields.extend(field.to_le_bytes());
        }
        fields.extend(UNKNOWN);
        let mut bytes = [0; SIZE];
        bytes[..fields.len()].copy_from_slice(&fields);
        Self(bytes)
    }

    /// `len` bytes from `offset`; `None` where some of them lie beyond the space.
    pub fn read(&self, offset: u32, len: u32) -> Option<&[u8]> {
        let end = offset.checked_add(len)?;
        self.0.get(offset as usize..end as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_virtio_has_them() {
        let pairs = QueuePairs::try_from(4).unwrap();
        let space = ConfigSpace::new(pairs, Mtu::try_from(9000).ok());
        assert_eq!(space.read(0, 6).unwrap(), [0; 6]);
        assert_eq!(space.read(6, 2).unwrap(), 1u16.to_le_bytes());
        assert_eq!(space.read(8, 2).unwrap(), 4u16.to_le_bytes());
        assert_eq!(space.read(10, 2).unwrap(), 9000u16.to_le_bytes());
        assert_eq!(space.read(12, 6).unwrap(), [255, 255, 255, 255, 255, 0]);
        let usual = ConfigSpace::new(QueuePairs::ONE, None);
        assert_eq!(usual.read(10, 2).unwrap(), 1500u16.to_le_bytes());
    }

    #[test]
    fn nothing_lies_beyond_it() {
        let space = ConfigSpace::new(QueuePairs::ONE, None);
        assert_eq!(space.read(0, 256).map(<[u8]>::len), Some(256));
        assert!(space.read(0, 257).is_none());
        assert!(space.read(256, 1).is_none());
        assert!(space.read(u32::MAX, 2).is_none());
    }
}
