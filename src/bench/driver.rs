//! What the driver of a pretend guest is like, by the words of `ringtap bench`: drivers differ in how they use a ring, and a back-end
//! that is fast with one may be slow with another.

use std::str::FromStr;

use clap::Args;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::ring::Layout;
use crate::types::QueueSize;

/// A driver.
#[derive(Debug, Clone, Copy, Args)]
pub struct Driver {
    /// How the rings are laid out
    #[arg(long, value_name = "LAYOUT", default_value = "split")]
    pub ring: Layout,

    /// Descriptors a ring
    #[arg(long, value_name = "N", default_value_t = QueueSize::MAX)]
    pub queue_size: QueueSize,

    /// The most chains that the driver adds to a ring before it tells the device [default: as many as it has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub batch: Option<u16>,

    /// Where a frame's virtio-net header is
    #[arg(long, value_name = "PLACE", default_value = "joined")]
    pub header: Header,

    /// The features that the driver takes, and the back-end must have: version-1, event-idx, indirect-desc, mrg-rxbuf. Without the
    /// first and the last the header has 10 bytes [default: version-1, the second and the last where they are offered]
    #[arg(long, value_name = "FEATURE[,FEATURE]")]
    pub features: Option<FeatureSet>,
}

/// Where a frame's virtio-net header is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Header {
    /// In front of the frame, in the same buffer, as Linux has it.
    Joined,
    /// In a buffer of its own, as drivers had it that could rely on no other layout (VIRTIO_F_ANY_LAYOUT).
    Apart,
}

/// Features that are the driver's own choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureSet(u64);

/// Their words, bits, and names.
const FEATURES: [(&str, u32, &str); 4] = [
    ("version-1", VIRTIO_F_VERSION_1, "VIRTIO_F_VERSION_1"),
    (
        "event-idx",
        VIRTIO_RING_F_EVENT_IDX,
        "VIRTIO_RING_F_EVENT_IDX",
    ),
    (
        "indirect-desc",
        VIRTIO_RING_F_INDIRECT_DESC,
        "VIRTIO_RING_F_INDIRECT_DESC",
    ),
    (
        "mrg-rxbuf",
        VIRTIO_NET_F_MRG_RXBUF,
        "VIRTIO_NET_F_MRG_RXBUF",
    ),
];

impl FeatureSet {
    /// Whether the feature of this bit is none of these, though it could be.
    pub fn forgoes(self, bit: u32) -> bool {
        FEATURES.iter().any(|(_, known, _)| *known == bit) && self.0 >> bit & 1 == 0
    }

    /// Bit and name of each.
    pub fn each(self) -> impl Iterator<Item = (u32, &'static str)> {
        let chosen = FEATURES.iter().filter(move |it| self.0 >> it.1 & 1 == 1);
        chosen.map(|(_, bit, name)| (*bit, *name))
    }
}

impl FromStr for FeatureSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').try_fold(Self(0), |set, word| {
            let found = FEATURES.iter().find(|it| it.0 == word);
            let (_, bit, _) = found.ok_or_else(|| {
                let words = FEATURES.map(|it| it.0).join(", ");
                format!("`{word}` is none of {words}")
            })?;
            Ok(Self(set.0 | 1 << bit))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_named_and_others_forgone() {
        let set: FeatureSet = "event-idx,version-1".parse().unwrap();
        let names: Vec<_> = set.each().map(|(_, name)| name).collect();
        assert_eq!(names, ["VIRTIO_F_VERSION_1", "VIRTIO_RING_F_EVENT_IDX"]);
        assert!(set.forgoes(VIRTIO_NET_F_MRG_RXBUF));
        assert!(!set.forgoes(VIRTIO_F_VERSION_1));
        assert!(!set.forgoes(35), "no choice of the driver's");
        let why = "mrg".parse::<FeatureSet>().unwrap_err();
        assert!(why.contains("`mrg`") && why.contains("mrg-rxbuf"), "{why}");
    }
}
