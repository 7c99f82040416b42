//! Feature bits, as pure maps: what the device offers, and what follows from what the driver accepted.
//!
//! Bits are virtio's device features (virtio 1.3 §5.1.3, §6), with vhost-user's own bit 30 among them.

use clap::ValueEnum;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::bindings::virtio_net as net;
use virtio_bindings::bindings::virtio_ring as ring;
use virtio_bindings::virtio_config as config;

use crate::tap::{HeaderLen, Offloads};

/// What the back-end can do, and so offers in GET_FEATURES.
///
/// GUEST_ANNOUNCE, MQ and MTU need nothing of the back-end, but QEMU withholds them from the guest unless offered.
const OFFERED: &[u32] = &[
    config::VIRTIO_F_VERSION_1,
    config::VIRTIO_F_RING_PACKED,
    config::VIRTIO_F_IN_ORDER,
    ring::VIRTIO_RING_F_INDIRECT_DESC,
    ring::VIRTIO_RING_F_EVENT_IDX,
    net::VIRTIO_NET_F_MRG_RXBUF,
    net::VIRTIO_NET_F_CSUM,
    net::VIRTIO_NET_F_HOST_TSO4,
    net::VIRTIO_NET_F_HOST_TSO6,
    net::VIRTIO_NET_F_HOST_ECN,
    net::VIRTIO_NET_F_GUEST_CSUM,
    net::VIRTIO_NET_F_GUEST_TSO4,
    net::VIRTIO_NET_F_GUEST_TSO6,
    net::VIRTIO_NET_F_GUEST_ECN,
    net::VIRTIO_NET_F_GUEST_ANNOUNCE,
    net::VIRTIO_NET_F_MQ,
    net::VIRTIO_NET_F_MTU,
];

/// Segmentation of UDP, where the kernel's tap has it (6.2 and later).
const USO: &[u32] = &[
    net::VIRTIO_NET_F_HOST_USO,
    net::VIRTIO_NET_F_GUEST_USO4,
    net::VIRTIO_NET_F_GUEST_USO6,
];

/// What is offered only where somebody asks for it, since there are front-ends that come to harm with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Extra {
    /// The protocol feature CONFIG: the front-end may read the configuration space. QEMU, which has its own, warns.
    Config,
    /// RING_RESET: the driver may reset single queues, say to resize them. QEMU up to 10 at least lets its driver do so
    /// and never tells the back-end, which then goes on with a ring that is no more: the guest loses its network.
    RingReset,
}

impl Extra {
    /// As `--offer` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::RingReset => "ring-reset",
        }
    }
}

/// Device features: the ones offered, or the ones that were accepted (acked).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(u64);

impl Features {
    /// What GET_FEATURES answers on a host whose tap can segment UDP (`uso`) or not, with what was asked for.
    pub fn offered(uso: bool, extras: &[Extra]) -> Self {
        let host = if uso { USO } else { &[] };
        let asked = extras.contains(&Extra::RingReset);
        let asked = asked.then_some(&config::VIRTIO_F_RING_RESET);
        let bits = OFFERED.iter().chain(host).chain(asked);
        let device = bits.fold(0, |bits, bit| bits | 1 << bit);
        Self(device | VhostUserVirtioFeatures::all().bits())
    }

    /// What SET_FEATURES accepted of `self`, the offer.
    ///
    /// # Errors
    /// The bits that were never offered.
    pub fn accept(self, bits: u64) -> Result<Self, u64> {
        match bits & !self.0 {
            0 => Ok(Self(bits)),
            unknown => Err(unknown),
        }
    }

    /// As the message carries them.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Rings start out disabled and wait for SET_VRING_ENABLE (vhost-user "Ring states").
    pub fn rings_start_disabled(self) -> bool {
        self.0 & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0
    }

    /// What is written to guest memory is to be marked in the dirty log (vhost-user "Migration").
    pub fn log_all(self) -> bool {
        self.0 & VhostUserVirtioFeatures::LOG_ALL.bits() != 0
    }

    /// Notifications are suppressed by index instead of by flag (virtio 1.3 §2.7.7, §2.7.10).
    pub fn event_idx(self) -> bool {
        self.has(ring::VIRTIO_RING_F_EVENT_IDX)
    }

    /// Descriptors may point to tables of descriptors (virtio 1.3 §2.7.5.3).
    pub fn indirect(self) -> bool {
        self.has(ring::VIRTIO_RING_F_INDIRECT_DESC)
    }

    /// Rings are packed (virtio 1.3 §2.8), not split.
    pub fn packed_ring(self) -> bool {
        self.has(config::VIRTIO_F_RING_PACKED)
    }

    /// A received frame may be spread over several chains (virtio 1.3 §5.1.6.4).
    pub fn mergeable_buffers(self) -> bool {
        self.has(net::VIRTIO_NET_F_MRG_RXBUF)
    }

    /// `num_buffers` is part of the header with MRG_RXBUF or VERSION_1 (virtio 1.3 §5.1.6.1).
    pub fn header_len(self) -> HeaderLen {
        if self.mergeable_buffers() || self.has(config::VIRTIO_F_VERSION_1) {
            HeaderLen::Long
        } else {
            HeaderLen::Short
        }
    }

    /// What the tap may leave to the guest: nothing without checksums, ECN only with segmentation.
    pub fn tap_offloads(self) -> Offloads {
        let mut offloads = Offloads::default();
        if !self.has(net::VIRTIO_NET_F_GUEST_CSUM) {
            return offloads;
        }
        offloads = offloads.with(Offloads::CSUM);
        let tso4 = self.has(net::VIRTIO_NET_F_GUEST_TSO4);
        let tso6 = self.has(net::VIRTIO_NET_F_GUEST_TSO6);
        let ecn = self.has(net::VIRTIO_NET_F_GUEST_ECN) && (tso4 || tso6);
        // The kernel takes both or none.
        let uso = self.has(net::VIRTIO_NET_F_GUEST_USO4) && self.has(net::VIRTIO_NET_F_GUEST_USO6);
        for (on, offload) in [
            (tso4, Offloads::TSO4),
            (tso6, Offloads::TSO6),
            (ecn, Offloads::TSO_ECN),
            (uso, Offloads::USO),
        ] {
            if on {
                offloads = offloads.with(offload);
            }
        }
        offloads
    }

    fn has(self, bit: u32) -> bool {
        self.0 & 1 << bit != 0
    }
}

/// vhost-user's own features, offered in GET_PROTOCOL_FEATURES.
pub fn offered_protocol_features(extras: &[Extra]) -> VhostUserProtocolFeatures {
    use VhostUserProtocolFeatures as F;
    let config = if extras.contains(&Extra::Config) {
        F::CONFIG
    } else {
        F::empty()
    };
    config
        | F::MQ
        | F::REPLY_ACK
        | F::LOG_SHMFD
        | F::RARP
        | F::MTU
        | F::CONFIGURE_MEM_SLOTS
        | F::STATUS
        | F::RESET_DEVICE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acked(bits: &[u32]) -> Features {
        Features::offered(true, &[])
            .accept(bits.iter().fold(0, |all, bit| all | 1 << bit))
            .unwrap()
    }

    #[test]
    fn bits_never_offered_are_refused_by_name() {
        let ufo = 1 << net::VIRTIO_NET_F_GUEST_UFO;
        let uso = 1 << net::VIRTIO_NET_F_GUEST_USO4;
        assert_eq!(Features::offered(true, &[]).accept(ufo), Err(ufo));
        assert_eq!(Features::offered(false, &[]).accept(uso), Err(uso));
        let all = Features::offered(true, &[]);
        assert_eq!(all.accept(all.bits()), Ok(all));
    }

    #[test]
    fn what_harms_some_is_offered_only_on_demand() {
        let reset = 1 << config::VIRTIO_F_RING_RESET;
        assert_eq!(Features::offered(true, &[]).bits() & reset, 0);
        let all = Features::offered(true, &[Extra::RingReset]);
        assert_eq!(all.bits() & reset, reset);
        let config = VhostUserProtocolFeatures::CONFIG;
        assert!(!offered_protocol_features(&[Extra::RingReset]).contains(config));
        assert!(offered_protocol_features(&[Extra::Config]).contains(config));
    }

    #[test]
    fn the_header_is_long_with_mergeable_buffers_or_version_1() {
        assert_eq!(acked(&[]).header_len(), HeaderLen::Short);
        assert_eq!(
            acked(&[net::VIRTIO_NET_F_MRG_RXBUF]).header_len(),
            HeaderLen::Long
        );
        assert_eq!(
            acked(&[config::VIRTIO_F_VERSION_1]).header_len(),
            HeaderLen::Long
        );
    }

    #[test]
    fn each_guest_offload_maps_to_its_tap_offload() {
        use net::{
            VIRTIO_NET_F_GUEST_CSUM as CSUM, VIRTIO_NET_F_GUEST_ECN as ECN,
            VIRTIO_NET_F_GUEST_TSO4 as TSO4, VIRTIO_NET_F_GUEST_TSO6 as TSO6,
            VIRTIO_NET_F_GUEST_USO4 as USO4, VIRTIO_NET_F_GUEST_USO6 as USO6,
        };
        let csum = Offloads::CSUM;
        for (bits, want) in [
            (&[][..], Offloads::default()),
            (&[CSUM], csum),
            (&[CSUM, TSO4], csum.with(Offloads::TSO4)),
            (&[CSUM, TSO6], csum.with(Offloads::TSO6)),
            (
                &[CSUM, TSO4, ECN],
                csum.with(Offloads::TSO4).with(Offloads::TSO_ECN),
            ),
            (&[CSUM, ECN], csum),
            (&[CSUM, USO4, USO6], csum.with(Offloads::USO)),
            (&[CSUM, USO4], csum),
            (&[TSO4, TSO6, ECN], Offloads::default()),
        ] {
            assert_eq!(acked(bits).tap_offloads(), want, "{bits:?}");
        }
    }

    #[test]
    fn what_the_driver_sends_does_not_change_the_tap() {
        use net::{VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4};
        let sends = acked(&[
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_ECN,
        ]);
        assert_eq!(sends.tap_offloads(), Offloads::default());
    }
}
