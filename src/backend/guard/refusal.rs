//! The last frames that were refused, for people who look for what a guest is up to.

use std::collections::VecDeque;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

use super::reason::Reason;

/// So many are kept of each queue.
const MOST: usize = 4;

/// As much of a frame as says who speaks to whom.
const KNOWN: usize = 64;

/// A frame that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// When.
    pub at: SystemTime,
    /// What for.
    pub reason: Reason,
    /// Its first bytes, zeroes beyond its end.
    head: [u8; KNOWN],
}

impl Refusal {
    /// One of a frame that begins with `head`, right now.
    pub fn new(reason: Reason, head: &[u8]) -> Self {
        let mut known = [0; KNOWN];
        let length = head.len().min(KNOWN);
        known[..length].copy_from_slice(&head[..length]);
        Self {
            at: SystemTime::now(),
            reason,
            head: known,
        }
    }

    fn at<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.head[at..at + N]);
        bytes
    }
}

/// Who speaks to whom, as far as the first headers say.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mac = |at| self.at::<6>(at).map(|byte| format!("{byte:02x}")).join(":");
        write!(f, "{} > {}, ", mac(6), mac(0))?;
        let v4 = |at| Ipv4Addr::from(self.at::<4>(at));
        let v6 = |at| Ipv6Addr::from(self.at::<16>(at));
        match u16::from_be_bytes(self.at(12)) {
            0x0800 => write!(
                f,
                "IPv4 {} > {}, protocol {}",
                v4(26),
                v4(30),
                self.head[23]
            ),
            0x0806 => write!(f, "ARP {} is at {}, for {}", v4(28), mac(22), v4(38)),
            0x86dd => write!(
                f,
                "IPv6 {} > {}, next header {}",
                v6(22),
                v6(38),
                self.head[20]
            ),
            other => write!(f, "EtherType {other:#06x}"),
        }
    }
}

/// The last ones of a queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals(VecDeque<Refusal>);

impl Refusals {
    /// Keeps another one, in the place of the oldest if need be.
    pub fn add(&mut self, refusal: Refusal) {
        self.0.truncate(MOST - 1);
        self.0.push_front(refusal);
    }

    /// Those that are kept, the last first.
    pub fn iter(&self) -> impl Iterator<Item = &Refusal> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_and_say_who_spoke_to_whom() {
        let mut frame = [0; 42];
        frame[..6].fill(0xff);
        frame[6..12].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 6]);
        frame[12..14].copy_from_slice(&[8, 6]);
        frame[22..28].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 6]);
        frame[28..32].copy_from_slice(&[10, 0, 0, 1]);
        frame[38..42].copy_from_slice(&[10, 0, 0, 7]);
        let mut refusals = Refusals::default();
        for last in 0..9 {
            frame[41] = last;
            refusals.add(Refusal::new(Reason::ArpSender, &frame));
        }
        let kept: Vec<String> = refusals.iter().map(Refusal::to_string).collect();
        assert_eq!(kept.len(), MOST);
        assert_eq!(
            kept[0],
            "52:54:00:00:00:06 > ff:ff:ff:ff:ff:ff, ARP 10.0.0.1 is at 52:54:00:00:00:06, for 10.0.0.8"
        );
        assert!(
            Refusal::new(Reason::Malformed, &[1; 3])
                .to_string()
                .ends_with("EtherType 0x0000")
        );
    }
}
