//! A frame in the buffers of chains: what its headers say, and its bytes where they are.

use std::io;

use vm_memory::bitmap::Bitmap;
use vm_memory::{MmapRegion, VolatileMemory};

use super::super::dirty_log::RegionLog;
use super::super::memory::Slice;
use crate::tap::HeaderLen;

/// An Ethernet header, the least a frame can be.
pub(super) const ETHERNET: usize = 14;

/// The most bytes a frame can have: an IP packet of 65535 bytes behind an Ethernet header with two VLAN tags.
pub const MAX_FRAME: usize = 65535 + ETHERNET + 8;

/// Bytes of a VLAN tag.
const VLAN_TAG: usize = 4;

/// Where `gso_type` lies in the header; 0 is a frame as it stands (virtio 1.3 §5.1.6).
const GSO_TYPE: usize = 1;

/// Where `num_buffers` lies in the long header (virtio 1.3 §5.1.6).
const NUM_BUFFERS: usize = 10;

/// The settings that features decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameFormat {
    /// The virtio-net header's length.
    pub header: HeaderLen,
    /// A received frame may be spread over several chains.
    pub mergeable: bool,
    /// The largest packet behind an Ethernet header, in bytes, unless it is to be segmented on its way. None without a
    /// limit but [`MAX_FRAME`].
    pub mtu: Option<u16>,
}

impl FrameFormat {
    /// Whether a frame of `bytes`, behind its virtio-net header, is larger than it may be. VLAN tags do not count, and neither
    /// do frames that will be segmented.
    pub(super) fn exceeds_mtu(self, says: Says, bytes: usize) -> bool {
        let untagged = bytes.saturating_sub(says.tags());
        self.mtu
            .is_some_and(|mtu| !says.is_gso && untagged > usize::from(mtu) + ETHERNET)
    }
}

/// What a frame's headers say of it: virtio-net's, Ethernet's, and those of VLANs. They are copied once, for a guest may change
/// them while they are looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Says {
    /// It is yet to be segmented.
    pub is_gso: bool,
    /// What is in it.
    pub ether_type: u16,
    /// How many VLAN tags are before that.
    vlans: u8,
}

impl Says {
    /// Those of a frame in `buffers`, behind a virtio-net header of that length. What a frame lacks is taken for zeroes.
    pub(super) fn of(buffers: &[Slice<'_>], header: HeaderLen) -> Self {
        // The EtherType is the last of what is copied, behind two tags.
        let bytes: [u8; HeaderLen::Long.bytes() + ETHERNET + 2 * VLAN_TAG] = read_at(buffers, 0);
        let ether_type = |vlans: usize| {
            let at = header.bytes() + ETHERNET - 2 + vlans * VLAN_TAG;
            u16::from_be_bytes([bytes[at], bytes[at + 1]])
        };
        // IEEE 802.1Q: a customer's tag, and a service's.
        let is_tag = |vlans: &usize| matches!(ether_type(*vlans), 0x8100 | 0x88a8);
        let vlans = (0..2).take_while(is_tag).count();
        Self {
            is_gso: bytes[GSO_TYPE] != 0,
            ether_type: ether_type(vlans),
            vlans: vlans as u8,
        }
    }

    /// Bytes of its VLAN tags.
    fn tags(self) -> usize {
        usize::from(self.vlans) * VLAN_TAG
    }

    /// Where the packet begins, behind a virtio-net header of that length.
    pub(super) fn packet(self, header: HeaderLen) -> usize {
        header.bytes() + ETHERNET + self.tags()
    }
}

/// The pair's own memory for one frame with its header: reached like guest memory, so that both go into one
/// list of buffers.
pub(super) fn frame_store() -> io::Result<MmapRegion<RegionLog>> {
    MmapRegion::new(HeaderLen::Long.bytes() + MAX_FRAME).map_err(io::Error::other)
}

pub(super) fn whole(region: &MmapRegion<RegionLog>) -> Slice<'_> {
    part(region.as_volatile_slice(), 0, region.size())
}

/// # Panics
/// Where the part lies outside.
pub(super) fn part(slice: Slice<'_>, offset: usize, len: usize) -> Slice<'_> {
    slice.subslice(offset, len).expect("the part lies inside")
}

/// Copies what `from` holds into `to`, which has room for it.
pub(super) fn copy(from: &[Slice<'_>], to: &[Slice<'_>]) {
    let mut to = to.iter().copied();
    let mut room = to.next();
    for slice in from {
        let mut done = 0;
        while let Some(target) = room.filter(|_| done < slice.len()) {
            let len = target.len().min(slice.len() - done);
            part(*slice, done, len).copy_to_volatile_slice(part(target, 0, len));
            done += len;
            room = if len == target.len() {
                to.next()
            } else {
                Some(part(target, len, target.len() - len))
            };
        }
    }
}

/// Marks what the kernel has written of `bytes` in the dirty log.
pub(super) fn mark_written(buffers: &[Slice<'_>], bytes: usize) {
    let mut left = bytes;
    for buffer in buffers {
        let written = left.min(buffer.len());
        buffer.bitmap().mark_dirty(0, written);
        left -= written;
        if left == 0 {
            return;
        }
    }
}

/// The bytes at `offset` of what `buffers` are together; zeroes beyond their end.
pub(super) fn read_at<const N: usize>(buffers: &[Slice<'_>], mut offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    if let Some(first) = buffers.first()
        && let Ok(whole) = first.subslice(offset, N)
    {
        whole.copy_to(&mut bytes); // nearly always, and at once for a length that the compiler knows
        return bytes;
    }
    let mut done = 0;
    for buffer in buffers {
        if offset >= buffer.len() {
            offset -= buffer.len();
            continue;
        }
        let len = (buffer.len() - offset).min(N - done);
        part(*buffer, offset, len).copy_to(&mut bytes[done..done + len]);
        (done, offset) = (done + len, 0);
        if done == N {
            break;
        }
    }
    bytes
}

/// Writes `count` where the long header of the frame in `buffers` has `num_buffers`.
pub(super) fn set_num_buffers(buffers: &[Slice<'_>], count: u16) {
    let mut offset = NUM_BUFFERS;
    let mut left = &count.to_le_bytes()[..];
    for buffer in buffers {
        if left.is_empty() {
            return;
        }
        if offset >= buffer.len() {
            offset -= buffer.len();
            continue;
        }
        let (now, later) = left.split_at(left.len().min(buffer.len() - offset));
        part(*buffer, offset, now.len()).copy_from(now);
        (left, offset) = (later, 0);
    }
}
