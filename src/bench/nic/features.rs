//! Which features are taken for a NIC.

use virtio_bindings::virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::queue::fits_one_buffer;
use super::{NicError, Wish};
use crate::bench::ring::Layout;

/// Says that there are protocol features (vhost-user "Feature bits").
pub(super) const PROTOCOL_FEATURES: u32 = 30;

/// What is taken where it is offered.
const LIKED: u64 =
    1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_NET_F_MRG_RXBUF | 1 << PROTOCOL_FEATURES;
const GSO: [(u32, &str); 4] = [
    (VIRTIO_NET_F_CSUM, "VIRTIO_NET_F_CSUM"),
    (VIRTIO_NET_F_HOST_TSO4, "VIRTIO_NET_F_HOST_TSO4"),
    (VIRTIO_NET_F_GUEST_CSUM, "VIRTIO_NET_F_GUEST_CSUM"),
    (VIRTIO_NET_F_GUEST_TSO4, "VIRTIO_NET_F_GUEST_TSO4"),
];

/// Which of the features `offered` are taken for a NIC of this kind.
pub(super) fn accept(offered: u64, wish: Wish) -> Result<u64, NicError> {
    let mut needed = Vec::new();
    if !fits_one_buffer(wish.size) {
        needed.push((VIRTIO_NET_F_MRG_RXBUF, "VIRTIO_NET_F_MRG_RXBUF"));
    }
    if wish.is_gso() {
        needed.extend(GSO);
    }
    if wish.pairs > 1 {
        needed.push((VIRTIO_NET_F_MQ, "VIRTIO_NET_F_MQ"));
    }
    let version_1 = (VIRTIO_F_VERSION_1, "VIRTIO_F_VERSION_1");
    if wish.driver.ring == Layout::Packed {
        needed.extend([(VIRTIO_F_RING_PACKED, "VIRTIO_F_RING_PACKED"), version_1]);
    }
    let liked = match wish.driver.features {
        None => {
            needed.push(version_1);
            LIKED
        }
        Some(chosen) => {
            if let Some((_, name)) = needed.iter().find(|(bit, _)| chosen.forgoes(*bit)) {
                return Err(NicError::Forgone(name));
            }
            needed.extend(chosen.each());
            1 << PROTOCOL_FEATURES
        }
    };
    let mut accepted = offered & liked;
    for (bit, name) in needed {
        if offered >> bit & 1 == 0 {
            return Err(NicError::Lacks(name));
        }
        accepted |= 1 << bit;
    }
    Ok(accepted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::driver::{Driver, Header};
    use crate::bench::pattern::{Party, Size};
    use crate::types::QueueSize;

    const LEAST: u64 = 1 << VIRTIO_F_VERSION_1;

    fn wish(size: Size) -> Wish {
        Wish {
            driver: Driver {
                ring: Layout::Split,
                queue_size: QueueSize::MAX,
                batch: None,
                header: Header::Joined,
                features: None,
            },
            pairs: 1,
            size,
            owner: Party::GUEST,
        }
    }

    fn lacks(offered: u64, wish: Wish) -> &'static str {
        match accept(offered, wish) {
            Err(NicError::Lacks(name)) => name,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_back_end_without_extras_moves_plain_frames() {
        assert_eq!(accept(LEAST, wish(Size::Wire(1514))).unwrap(), LEAST);
        assert_eq!(
            lacks(LEAST, wish(Size::Wire(9014))),
            "VIRTIO_NET_F_MRG_RXBUF"
        );
        assert_eq!(lacks(0, wish(Size::Wire(64))), "VIRTIO_F_VERSION_1");
    }

    #[test]
    fn what_a_wish_needs_must_be_offered() {
        let merges = LEAST | 1 << VIRTIO_NET_F_MRG_RXBUF;
        assert_eq!(lacks(merges, wish(Size::Gso)), "VIRTIO_NET_F_CSUM");
        let pairs = Wish {
            pairs: 2,
            ..wish(Size::Wire(64))
        };
        assert_eq!(lacks(LEAST, pairs), "VIRTIO_NET_F_MQ");
        let mut packed = wish(Size::Wire(64));
        packed.driver.ring = Layout::Packed;
        assert_eq!(lacks(LEAST, packed), "VIRTIO_F_RING_PACKED");
    }

    #[test]
    fn a_driver_has_the_features_that_it_asks_for_and_no_others() {
        let mut of_old = wish(Size::Wire(64));
        of_old.driver.features = Some("event-idx".parse().unwrap());
        let event_idx = 1 << VIRTIO_RING_F_EVENT_IDX;
        assert_eq!(
            accept(!(1 << PROTOCOL_FEATURES), of_old).unwrap(),
            event_idx
        );
        assert_eq!(lacks(LEAST, of_old), "VIRTIO_RING_F_EVENT_IDX");
        let large = Wish {
            size: Size::Wire(9014),
            ..of_old
        };
        let error = accept(u64::MAX, large).unwrap_err().to_string();
        assert!(error.contains("without VIRTIO_NET_F_MRG_RXBUF"), "{error}");
    }

    #[test]
    fn nothing_is_taken_that_the_driver_does_not_know() {
        let all = accept(u64::MAX, wish(Size::Wire(64))).unwrap();
        assert_eq!(all, LEAST | LIKED);
    }
}
