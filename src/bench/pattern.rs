//! Frames that tell by themselves which they are and whether they are whole.
//!
//! A frame is UDP over IPv4, each stream a flow of its own, or TCP that is yet to be segmented. Its payload is `MAGIC`, the stream,
//! the frame's number, bytes that follow from their place, and the number again. None is for the host itself: nobody there has
//! its address.

use vm_memory::VolatileSlice;

/// The length of virtio-net's header (virtio 1.3 §5.1.6), as devices without legacy have it.
pub const HEADER: usize = 12;

/// The EtherType of IPv4.
pub const IPV4: u16 = 0x0800;

const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;
const TCP: usize = 20;
/// What TCP over Ethernet usually sends in a packet, with timestamps.
const SEGMENT: u16 = 1448;

const MAGIC: u32 = 0x7274_6170;
const STREAM_AT: usize = 4;
const NUMBER_AT: usize = 6;
const FILLER_AT: usize = 14;
const NUMBER: usize = 8;

/// The shortest frame that has room for all that.
const LEAST: u16 = (ETHERNET + IP + UDP + FILLER_AT + NUMBER) as u16;

/// The simple Internet mix: of twelve frames seven are short and one is long.
const IMIX: [u16; 12] = [64, 594, 64, 594, 64, 1514, 64, 594, 64, 594, 64, 64];

const CSUM: u8 = 1;
const TCPV4: u8 = 1;

/// What frames are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// So many bytes from the destination's address to the last of the payload.
    Wire(u16),
    /// As on the Internet: [`IMIX`].
    Imix,
    /// TCP over IPv4, 45 segments' worth, to be segmented.
    Gso,
}

impl Size {
    /// Bytes of each of the frames that come in turn, without virtio-net's header.
    fn cycle(self) -> Vec<usize> {
        match self {
            Self::Wire(bytes) => vec![bytes.into()],
            Self::Imix => IMIX.map(usize::from).to_vec(),
            Self::Gso => vec![ETHERNET + IP + TCP + 45 * usize::from(SEGMENT)],
        }
    }

    /// Bytes of the longest.
    pub fn most(self) -> usize {
        self.cycle().into_iter().max().unwrap_or_default()
    }

    /// Bytes of one, on average.
    pub fn mean(self) -> f64 {
        let cycle = self.cycle();
        cycle.iter().sum::<usize>() as f64 / cycle.len() as f64
    }

    /// Where what tells the frame begins.
    fn payload(self) -> usize {
        match self {
            Self::Wire(_) | Self::Imix => ETHERNET + IP + UDP,
            Self::Gso => ETHERNET + IP + TCP,
        }
    }
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "64k" => return Ok(Self::Gso),
            "imix" => return Ok(Self::Imix),
            _ => {}
        }
        let bytes = text.parse().ok();
        let bytes = bytes.filter(|bytes| (LEAST..=9014).contains(bytes));
        bytes.map(Self::Wire).ok_or_else(|| {
            format!("a frame has {LEAST} to 9014 bytes, or is of imix, or is 64k, to be segmented")
        })
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wire(bytes) => write!(f, "{bytes} B"),
            Self::Imix => f.write_str("IMIX"),
            Self::Gso => f.write_str("64 KB"),
        }
    }
}

impl serde::Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Whose frames they are. MAC addresses are of the range that anybody may use, IP addresses of those for documentation (RFC 5737).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Party(u8);

impl Party {
    /// The pretend guest.
    pub const GUEST: Self = Self(1);
    /// Who it talks to.
    pub const PEER: Self = Self(2);

    /// The one that the first talks to.
    pub fn other(self) -> Self {
        match self {
            Self::GUEST => Self::PEER,
            _ => Self::GUEST,
        }
    }

    fn mac(self) -> [u8; 6] {
        [2, 0x72, 0x74, 0, 0, self.0]
    }

    fn ip(self) -> [u8; 4] {
        [192, 0, 2, self.0]
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

/// Frames of one stream.
#[derive(Debug, Clone)]
pub struct Pattern {
    size: Size,
    /// Those that come in turn, each behind its virtio-net header and of number 0.
    frames: Vec<Vec<u8>>,
}

impl Pattern {
    /// Frames of a stream from one to the other. The same stream the other way is the same flow.
    pub fn new(size: Size, stream: u16, from: Party, to: Party) -> Self {
        let frame = |bytes| frame(size, bytes, stream, from, to);
        Self {
            size,
            frames: size.cycle().into_iter().map(frame).collect(),
        }
    }

    /// The frame whose turn it is, behind its virtio-net header, of number 0.
    pub fn frame(&self, turn: usize) -> &[u8] {
        &self.frames[turn % self.frames.len()]
    }

    /// Bytes of the frame of this number if all come in turn, without virtio-net's header.
    pub fn bytes_of(&self, number: u64) -> usize {
        self.frame(number as usize % self.frames.len()).len() - HEADER
    }

    /// How many frames come in turn.
    pub fn turns(&self) -> usize {
        self.frames.len()
    }

    /// What they are like.
    pub fn size(&self) -> Size {
        self.size
    }

    /// The place of the number in any frame, behind virtio-net's header.
    pub fn number_at(&self) -> usize {
        HEADER + self.size.payload() + NUMBER_AT
    }

    /// Makes `frame`, which begins with virtio-net's header, the one of this number.
    pub fn stamp(&self, frame: &mut [u8], number: u64) {
        for place in [self.number_at(), frame.len() - NUMBER] {
            frame[place..place + NUMBER].copy_from_slice(&number.to_be_bytes());
        }
    }

    /// As [`Self::stamp`], of a frame in a guest's memory.
    pub fn stamp_in(&self, frame: VolatileSlice<'_>, number: u64) {
        for place in [self.number_at(), frame.len() - NUMBER] {
            let place = frame.subslice(place, NUMBER).expect("a whole frame");
            place.copy_from(&number.to_be_bytes());
        }
    }

    /// Looks at a frame without virtio-net's header.
    pub fn check(&self, frame: &[u8]) -> Verdict {
        let (payload, told) = (self.size.payload(), self.number_at() - HEADER);
        let any = &self.frames[0][HEADER..];
        let of_stream = frame.len() >= told
            && frame[12..ETHERNET] == any[12..ETHERNET]
            && frame[payload..told] == any[payload..told];
        if !of_stream {
            return Verdict::Foreign;
        }
        let mut frames = self.frames.iter().map(|it| &it[HEADER..]);
        let Some(expected) = frames.find(|it| it.len() == frame.len()) else {
            return Verdict::Damaged;
        };
        let filler = payload + FILLER_AT;
        let end = expected.len() - NUMBER;
        let whole = frame[filler..end] == expected[filler..end]
            && frame[..payload] == expected[..payload]
            && frame[told..filler] == frame[end..];
        match whole {
            true => Verdict::Whole(u64::from_be_bytes(
                frame[end..].try_into().expect("eight bytes"),
            )),
            false => Verdict::Damaged,
        }
    }
}

/// A frame of so many `bytes` behind its virtio-net header.
fn frame(size: Size, bytes: usize, stream: u16, from: Party, to: Party) -> Vec<u8> {
    let mut whole = vec![0; HEADER + bytes];
    let (header, frame) = whole.split_at_mut(HEADER);
    frame[..6].copy_from_slice(&to.mac());
    frame[6..12].copy_from_slice(&from.mac());
    frame[12..ETHERNET].copy_from_slice(&IPV4.to_be_bytes());
    let (packet, payload) = frame[ETHERNET..].split_at_mut(size.payload() - ETHERNET);
    let (ip, transport) = packet.split_at_mut(IP);
    let len = (transport.len() + payload.len()) as u16;
    let protocol = if size == Size::Gso { 6 } else { 17 };
    ip.copy_from_slice(&ipv4(len, protocol, from, to));
    let [source, destination] = [from, to].map(|party| 40000 + 256 * u16::from(party.0) + stream);
    transport[..2].copy_from_slice(&source.to_be_bytes());
    transport[2..4].copy_from_slice(&destination.to_be_bytes());
    if size == Size::Gso {
        header[..10].copy_from_slice(&gso_header());
        (transport[12], transport[13]) = (0x50, 0x10); // five words of header; ACK
        // The checksum begins with the sum of what is not in the segment.
        let sum = folded(&pseudo_header(len, protocol, from, to));
        transport[16..18].copy_from_slice(&sum.to_be_bytes());
    } else {
        transport[4..6].copy_from_slice(&len.to_be_bytes()); // and no checksum, as UDP may
    }
    payload[..STREAM_AT].copy_from_slice(&MAGIC.to_be_bytes());
    payload[STREAM_AT..NUMBER_AT].copy_from_slice(&stream.to_be_bytes());
    let end = payload.len() - NUMBER;
    for (place, byte) in payload[FILLER_AT..end].iter_mut().enumerate() {
        *byte = (place as u8).wrapping_mul(31).wrapping_add(7);
    }
    whole
}

fn gso_header() -> [u8; 10] {
    let [hdr_len, gso_size] =
        [(ETHERNET + IP + TCP) as u16, SEGMENT].map(|value| value.to_le_bytes());
    let (start, offset) = ((ETHERNET + IP) as u8, 16); // of TCP's checksum, as for all below
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

/// The header of a packet with `len` bytes behind it.
fn ipv4(len: u16, protocol: u8, from: Party, to: Party) -> [u8; IP] {
    let mut ip = [0; IP];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(len + IP as u16).to_be_bytes());
    (ip[6], ip[8], ip[9]) = (0x40, 64, protocol); // not to be fragmented; hops
    ip[12..16].copy_from_slice(&from.ip());
    ip[16..20].copy_from_slice(&to.ip());
    let sum = !folded(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip
}

/// What a transport's checksum counts besides its segment of `len` bytes (RFC 9293 §3.1).
fn pseudo_header(len: u16, protocol: u8, from: Party, to: Party) -> [u8; 12] {
    let mut pseudo = [0; 12];
    pseudo[..4].copy_from_slice(&from.ip());
    pseudo[4..8].copy_from_slice(&to.ip());
    pseudo[9] = protocol;
    pseudo[10..].copy_from_slice(&len.to_be_bytes());
    pseudo
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

    const SIZES: [Size; 4] = [Size::Wire(LEAST), Size::Wire(1514), Size::Imix, Size::Gso];

    fn pattern(size: Size, stream: u16) -> Pattern {
        Pattern::new(size, stream, Party::GUEST, Party::PEER)
    }

    #[test]
    fn a_frame_tells_its_number() {
        for size in SIZES {
            let pattern = pattern(size, 3);
            for turn in 0..pattern.turns() {
                let mut frame = pattern.frame(turn).to_vec();
                pattern.stamp(&mut frame, 0x0102_0304_0506);
                let verdict = pattern.check(&frame[HEADER..]);
                assert_eq!(verdict, Verdict::Whole(0x0102_0304_0506), "{size}");
            }
        }
    }

    #[test]
    fn each_byte_that_is_wrong_is_seen() {
        let ours = pattern(Size::Wire(LEAST + 2), 3);
        let mut frame = ours.frame(0).to_vec();
        ours.stamp(&mut frame, 77);
        for place in HEADER..frame.len() {
            frame[place] ^= 0x10;
            let verdict = ours.check(&frame[HEADER..]);
            assert!(!matches!(verdict, Verdict::Whole(_)), "byte {place}");
            frame[place] ^= 0x10;
        }
        let short = &frame[HEADER..frame.len() - 1];
        assert_eq!(ours.check(short), Verdict::Damaged);
        assert_eq!(ours.check(&frame[HEADER..HEADER + 47]), Verdict::Foreign);
        let other = pattern(Size::Wire(LEAST + 2), 4);
        assert_eq!(other.check(&frame[HEADER..]), Verdict::Foreign);
    }

    /// RFC 1071: a header with its checksum sums up to all ones.
    #[test]
    fn the_checksum_of_the_ip_header_is_right() {
        for size in SIZES {
            let pattern = pattern(size, 1);
            let frame = &pattern.frame(0)[HEADER..];
            assert_eq!(folded(&frame[ETHERNET..ETHERNET + IP]), 0xffff, "{size}");
        }
    }

    #[test]
    fn the_mix_is_that_of_the_internet() {
        assert!(
            (Size::Imix.mean() - 361.5).abs() < 0.1,
            "{}",
            Size::Imix.mean()
        );
        assert_eq!(Size::Imix.most(), 1514);
    }
}
