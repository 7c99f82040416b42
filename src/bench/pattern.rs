//! Frames that tell by themselves which they are and whether they are whole.
//!
//! Behind the Ethernet header of a frame that is as it goes on the wire is `MAGIC`, the stream, the frame's number, bytes that
//! follow from their place, and the number again. One that is yet to be segmented has the headers of TCP over IPv4 before that.

use vm_memory::VolatileSlice;

/// The length of virtio-net's header (virtio 1.3 §5.1.6), as devices without legacy have it.
pub const HEADER: usize = 12;

/// IEEE 802's EtherType for experiments: nobody on a host listens to it.
pub const ETHER_TYPE: u16 = 0x88b5;
const IPV4: u16 = 0x0800;

const ETHERNET: usize = 14;
const TCP_IPV4: usize = 40;
/// What TCP over Ethernet usually sends in a packet, with timestamps.
const SEGMENT: u16 = 1448;

const MAGIC: u32 = 0x7274_6170;
const MAGIC_AT: usize = 0;
const STREAM_AT: usize = 4;
const NUMBER_AT: usize = 6;
const FILLER_AT: usize = 14;
const NUMBER: usize = 8;

const CSUM: u8 = 1;
const TCPV4: u8 = 1;

/// What a frame is: its length, and whether it is one to be segmented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// So many bytes from the destination's address to the last of the payload.
    Wire(u16),
    /// TCP over IPv4, 45 segments' worth.
    Gso,
}

impl Size {
    /// Bytes of the frame, without virtio-net's header.
    pub fn bytes(self) -> usize {
        match self {
            Self::Wire(bytes) => bytes.into(),
            Self::Gso => ETHERNET + TCP_IPV4 + 45 * usize::from(SEGMENT),
        }
    }

    /// Where what tells the frame begins.
    fn payload(self) -> usize {
        match self {
            Self::Wire(_) => ETHERNET,
            Self::Gso => ETHERNET + TCP_IPV4,
        }
    }
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "64k" {
            return Ok(Self::Gso);
        }
        let bytes = text.parse().ok();
        let bytes = bytes.filter(|bytes| (60..=9014).contains(bytes));
        bytes
            .map(Self::Wire)
            .ok_or_else(|| "a frame has 60 to 9014 bytes, or is 64k, to be segmented".to_owned())
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wire(bytes) => write!(f, "{bytes} B"),
            Self::Gso => f.write_str("64 KB"),
        }
    }
}

/// Frames of a NIC, either way.
#[derive(Debug, Clone)]
pub struct Frames {
    /// From the guest.
    pub tx: Pattern,
    /// To the guest, who answers to the addresses that the others come from.
    pub rx: Pattern,
}

/// MAC addresses of the pretend guest and of who it talks to, of the range that anybody may use.
const GUEST: [u8; 6] = [2, 0x72, 0x74, 0, 0, 1];
const PEER: [u8; 6] = [2, 0x72, 0x74, 0, 0, 2];

impl Frames {
    /// Frames of one size.
    pub fn new(size: Size) -> Self {
        Self {
            tx: Pattern::new(size, 1, GUEST, PEER),
            rx: Pattern::new(size, 1, PEER, GUEST),
        }
    }

    /// Bytes of one, without virtio-net's header.
    pub fn size(&self) -> Size {
        self.tx.size()
    }
}

/// What a frame turns out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The frame of this number, whole.
    Whole(u64),
    /// One of the stream, with other bytes than were sent.
    Damaged,
    /// Somebody else's.
    Foreign,
}

/// Frames of one stream and size.
#[derive(Debug, Clone)]
pub struct Pattern {
    size: Size,
    /// A frame behind its virtio-net header, of number 0.
    bytes: Vec<u8>,
}

impl Pattern {
    /// Frames from `source` to `destination`.
    pub fn new(size: Size, stream: u16, source: [u8; 6], destination: [u8; 6]) -> Self {
        let mut bytes = vec![0; HEADER + size.bytes()];
        let (header, frame) = bytes.split_at_mut(HEADER);
        frame[..6].copy_from_slice(&destination);
        frame[6..12].copy_from_slice(&source);
        let ether_type = match size {
            Size::Wire(_) => ETHER_TYPE,
            Size::Gso => IPV4,
        };
        frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
        if size == Size::Gso {
            let len = (frame.len() - ETHERNET) as u16;
            header[..10].copy_from_slice(&gso_header());
            frame[ETHERNET..ETHERNET + TCP_IPV4].copy_from_slice(&tcp_ipv4(len));
        }
        let payload = &mut frame[size.payload()..];
        payload[MAGIC_AT..STREAM_AT].copy_from_slice(&MAGIC.to_be_bytes());
        payload[STREAM_AT..NUMBER_AT].copy_from_slice(&stream.to_be_bytes());
        let end = payload.len() - NUMBER;
        for (place, byte) in payload[FILLER_AT..end].iter_mut().enumerate() {
            *byte = (place as u8).wrapping_mul(31).wrapping_add(7);
        }
        Self { size, bytes }
    }

    /// A frame behind its virtio-net header, of number 0.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Their size.
    pub fn size(&self) -> Size {
        self.size
    }

    /// The places of the number, behind virtio-net's header.
    pub fn numbers(&self) -> [usize; 2] {
        let payload = HEADER + self.size.payload();
        [payload + NUMBER_AT, self.bytes.len() - NUMBER]
    }

    /// Makes `frame`, which begins with virtio-net's header, the one of this number.
    pub fn stamp(&self, frame: &mut [u8], number: u64) {
        for place in self.numbers() {
            frame[place..place + NUMBER].copy_from_slice(&number.to_be_bytes());
        }
    }

    /// As [`Self::stamp`], of a frame in a guest's memory.
    pub fn stamp_in(&self, frame: VolatileSlice<'_>, number: u64) {
        for place in self.numbers() {
            let place = frame.subslice(place, NUMBER).expect("a whole frame");
            place.copy_from(&number.to_be_bytes());
        }
    }

    /// Looks at a frame without virtio-net's header.
    pub fn check(&self, frame: &[u8]) -> Verdict {
        let expected = &self.bytes[HEADER..];
        let payload = self.size.payload();
        let told = payload + NUMBER_AT;
        let of_stream = frame.len() >= told
            && frame[12..ETHERNET] == expected[12..ETHERNET]
            && frame[payload..told] == expected[payload..told];
        if !of_stream {
            return Verdict::Foreign;
        }
        let filler = payload + FILLER_AT;
        let end = expected.len() - NUMBER;
        let whole = frame.len() == expected.len()
            && frame[filler..end] == expected[filler..end]
            && frame[..12] == expected[..12]
            && frame[told..filler] == frame[end..];
        match whole {
            true => Verdict::Whole(u64::from_be_bytes(
                frame[end..].try_into().expect("eight bytes"),
            )),
            false => Verdict::Damaged,
        }
    }
}

fn gso_header() -> [u8; 10] {
    let [hdr_len, gso_size] =
        [(ETHERNET + TCP_IPV4) as u16, SEGMENT].map(|value| value.to_le_bytes());
    let (start, offset) = ((ETHERNET + 20) as u8, 16); // of TCP's checksum, as for all below
    [
        CSUM,
        TCPV4,
        hdr_len[0],
        hdr_len[1],
        gso_size[0],
        gso_size[1],
        start,
        0,
        offset,
        0,
    ]
}

/// The headers of a packet of `len` bytes between two addresses for documentation (RFC 5737).
fn tcp_ipv4(len: u16) -> [u8; TCP_IPV4] {
    let mut packet = [0; TCP_IPV4];
    let (ip, tcp) = packet.split_at_mut(20);
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&len.to_be_bytes());
    (ip[6], ip[8], ip[9]) = (0x40, 64, 6); // not to be fragmented; hops; TCP
    ip[12..16].copy_from_slice(&[192, 0, 2, 1]);
    ip[16..20].copy_from_slice(&[192, 0, 2, 2]);
    let sum = !folded(ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    tcp[..4].copy_from_slice(&[0x9c, 0x40, 0x9c, 0x41]); // ports 40000 and 40001
    (tcp[12], tcp[13]) = (0x50, 0x10); // five words of header; ACK
    // The checksum begins with the sum of what is not in the packet; the addresses, the protocol and the length of all of it.
    let mut pseudo = [0; 12];
    pseudo[..8].copy_from_slice(&ip[12..20]);
    pseudo[9] = 6;
    pseudo[10..].copy_from_slice(&(len - 20).to_be_bytes());
    tcp[16..18].copy_from_slice(&folded(&pseudo).to_be_bytes());
    packet
}

/// The ones' complement sum of 16-bit words (RFC 1071).
fn folded(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 2];

    #[test]
    fn a_frame_tells_its_number() {
        for size in [Size::Wire(60), Size::Wire(1514), Size::Gso] {
            let pattern = Pattern::new(size, 3, A, B);
            let mut frame = pattern.bytes().to_vec();
            pattern.stamp(&mut frame, 0x0102_0304_0506);
            let verdict = pattern.check(&frame[HEADER..]);
            assert_eq!(verdict, Verdict::Whole(0x0102_0304_0506), "{size}");
        }
    }

    #[test]
    fn each_byte_that_is_wrong_is_seen() {
        let pattern = Pattern::new(Size::Wire(64), 3, A, B);
        let mut frame = pattern.bytes().to_vec();
        pattern.stamp(&mut frame, 77);
        for place in HEADER..frame.len() {
            frame[place] ^= 0x10;
            let verdict = pattern.check(&frame[HEADER..]);
            assert!(!matches!(verdict, Verdict::Whole(_)), "byte {place}");
            frame[place] ^= 0x10;
        }
        assert_eq!(
            pattern.check(&frame[HEADER..frame.len() - 1]),
            Verdict::Damaged
        );
        assert_eq!(pattern.check(&frame[HEADER..HEADER + 19]), Verdict::Foreign);
        let other = Pattern::new(Size::Wire(64), 4, A, B);
        assert_eq!(other.check(&frame[HEADER..]), Verdict::Foreign);
    }

    /// RFC 1071: a header with its checksum sums up to all ones.
    #[test]
    fn the_checksum_of_the_ip_header_is_right() {
        assert_eq!(folded(&tcp_ipv4(1500)[..20]), 0xffff);
    }
}
