//! Frames that tell by themselves which they are and whether they are whole.
//!
//! A frame is UDP over IPv4, each stream a flow of its own, or TCP that is yet to be segmented, or one of a TCP connection. Its
//! payload is `MAGIC`, the stream, the frame's number, bytes that follow from their place, and the number again. None is for the
//! host itself: nobody there has its address.
//!
//! The client of a connection sends [`EXCHANGES`] frames, the numbers of which follow each other, and the server answers each by
//! the one of the same number: SYN, what is asked, FIN. Each carries its payload, the first as TCP Fast Open does (RFC 7413).

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

const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

const MAGIC: u32 = 0x7274_6170;
const STREAM_AT: usize = 4;
const NUMBER_AT: usize = 6;
const FILLER_AT: usize = 14;
const NUMBER: usize = 8;

/// The shortest frame that has room for all that.
const LEAST: u16 = (ETHERNET + IP + UDP + FILLER_AT + NUMBER) as u16;

/// Frames of a connection either way.
pub const EXCHANGES: u64 = 3;
/// Bytes of each.
const CONNECTION: usize = ETHERNET + IP + TCP + CONNECTION_PAYLOAD;
const CONNECTION_PAYLOAD: usize = FILLER_AT + NUMBER;
/// The port to which clients connect, and those from which they do (RFC 6335 §6).
const SERVICE: u16 = 7;
const CLIENTS: std::ops::RangeInclusive<u16> = 1024..=u16::MAX;

const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;

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
    /// What TCP connections are made of.
    Connection,
    /// No frame at all: its buffers have room for short ones.
    Nothing,
}

impl Size {
    /// Bytes of each of the frames that come in turn, without virtio-net's header.
    fn cycle(self) -> Vec<usize> {
        match self {
            Self::Wire(bytes) => vec![bytes.into()],
            Self::Imix => IMIX.map(usize::from).to_vec(),
            Self::Gso => vec![ETHERNET + IP + TCP + 45 * usize::from(SEGMENT)],
            Self::Connection => vec![CONNECTION],
            Self::Nothing => vec![LEAST.into()],
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

    /// How many may wait for a tap's reader at once: its queue has room for a thousand, and sockets' memory is bounded as well.
    pub fn window(self) -> u64 {
        match self {
            Self::Gso => 64,
            _ => 512,
        }
    }

    /// Where what tells the frame begins.
    fn payload(self) -> usize {
        match self {
            Self::Gso | Self::Connection => ETHERNET + IP + TCP,
            _ => ETHERNET + IP + UDP,
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
            Self::Connection => write!(f, "{EXCHANGES} exchanges a connection"),
            Self::Nothing => f.write_str("no frames"),
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

    /// Its Ethernet address.
    pub fn mac(self) -> [u8; 6] {
        [2, 0x72, 0x74, 0, 0, self.0]
    }

    /// Its IPv4 address.
    pub fn ip(self) -> [u8; 4] {
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
    from: Party,
    /// Those that come in turn, each behind its virtio-net header and of number 0.
    frames: Vec<Vec<u8>>,
}

impl Pattern {
    /// Frames of a stream from one to the other. The same stream the other way is the same flow.
    pub fn new(size: Size, stream: u16, from: Party, to: Party) -> Self {
        let frame = |bytes| frame(size, bytes, stream, from, to);
        Self {
            size,
            from,
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
        if self.size == Size::Connection {
            connect(&mut frame[HEADER..], number, self.from);
        }
    }

    /// As [`Self::stamp`], of a frame in a guest's memory.
    pub fn stamp_in(&self, frame: VolatileSlice<'_>, number: u64) {
        if self.size == Size::Connection {
            return frame.copy_from(&self.of_connection(number));
        }
        for place in [self.number_at(), frame.len() - NUMBER] {
            let place = frame.subslice(place, NUMBER).expect("a whole frame");
            place.copy_from(&number.to_be_bytes());
        }
    }

    /// The frame of this number of a connection, whole.
    fn of_connection(&self, number: u64) -> [u8; HEADER + CONNECTION] {
        let mut frame = [0; HEADER + CONNECTION];
        frame.copy_from_slice(&self.frames[0]);
        self.stamp(&mut frame, number);
        frame
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
        let number = u64::from_be_bytes(frame[end..].try_into().expect("eight bytes"));
        let whole = match self.size {
            Size::Connection => frame == &self.of_connection(number)[HEADER..],
            _ => {
                frame[filler..end] == expected[filler..end]
                    && frame[..payload] == expected[..payload]
                    && frame[told..filler] == frame[end..]
            }
        };
        match whole {
            true => Verdict::Whole(number),
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
    let is_tcp = matches!(size, Size::Gso | Size::Connection);
    let protocol = if is_tcp { IPPROTO_TCP } else { IPPROTO_UDP };
    ip.copy_from_slice(&ipv4(len, protocol, from, to));
    let [source, destination] = [from, to].map(|party| 40000 + 256 * u16::from(party.0) + stream);
    transport[..2].copy_from_slice(&source.to_be_bytes());
    transport[2..4].copy_from_slice(&destination.to_be_bytes());
    if is_tcp {
        (transport[12], transport[13]) = (0x50, ACK); // five words of header
    }
    if size == Size::Gso {
        header[..10].copy_from_slice(&gso_header());
        // The checksum begins with the sum of what is not in the segment.
        let sum = folded(&pseudo_header(len, protocol, from, to));
        transport[16..18].copy_from_slice(&sum.to_be_bytes());
    } else if !is_tcp {
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

/// Makes a frame of a connection the one of this number, of its client or its server (RFC 9293 §3.1).
fn connect(frame: &mut [u8], number: u64, from: Party) {
    let [connection, exchange] = [number / EXCHANGES, number % EXCHANGES];
    let ports = CLIENTS.len() as u64;
    let port = CLIENTS.start() + (connection % ports) as u16;
    let is_client = from == Party::GUEST;
    let ports = match is_client {
        true => [port, SERVICE],
        false => [SERVICE, port],
    };
    // A SYN counts as a byte.
    let sent = |segments: u64| match segments {
        0 => 0,
        _ => 1 + segments as u32 * CONNECTION_PAYLOAD as u32,
    };
    let [sequence, acknowledged] = match is_client {
        true => [sent(exchange), sent(exchange)],
        false => [sent(exchange), sent(exchange + 1)],
    };
    let flags = match (exchange, is_client) {
        (0, true) => SYN,
        (0, false) => SYN | ACK,
        (1, _) => PSH | ACK,
        _ => FIN | ACK,
    };
    let segment = &mut frame[ETHERNET + IP..];
    segment[..2].copy_from_slice(&ports[0].to_be_bytes());
    segment[2..4].copy_from_slice(&ports[1].to_be_bytes());
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    segment[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    segment[13] = flags;
    segment[14..16].copy_from_slice(&u16::MAX.to_be_bytes()); // a window
    segment[16..18].copy_from_slice(&[0; 2]);
    let pseudo = pseudo_header(segment.len() as u16, IPPROTO_TCP, from, from.other());
    let sum = !fold(u32::from(folded(&pseudo)) + u32::from(folded(segment)));
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
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
pub fn folded(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let sum = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    fold(sum.sum())
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [Size; 5] = [
        Size::Wire(LEAST),
        Size::Wire(1514),
        Size::Imix,
        Size::Gso,
        Size::Connection,
    ];

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

    /// Both ends of two connections: ports, flags, and that each acknowledges what it has got.
    #[test]
    fn a_connection_is_one_of_tcp() {
        let segment = |from: Party, number| {
            let pattern = Pattern::new(Size::Connection, 0, from, from.other());
            let frame = pattern.of_connection(number);
            let tcp = frame[HEADER + ETHERNET + IP..].to_vec();
            let pseudo = pseudo_header(tcp.len() as u16, IPPROTO_TCP, from, from.other());
            assert_eq!(
                fold(u32::from(folded(&pseudo)) + u32::from(folded(&tcp))),
                0xffff
            );
            let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
            (word(0), word(4), word(8), tcp[13])
        };
        let (client, server) = (Party::GUEST, Party::PEER);
        let forth = 1024 << 16 | 7;
        let back = 7 << 16 | 1024;
        assert_eq!(segment(client, 0), (forth, 0, 0, SYN));
        assert_eq!(segment(server, 0), (back, 0, 23, SYN | ACK));
        assert_eq!(segment(client, 1), (forth, 23, 23, PSH | ACK));
        assert_eq!(segment(server, 1), (back, 23, 45, PSH | ACK));
        assert_eq!(segment(client, 2), (forth, 45, 45, FIN | ACK));
        assert_eq!(segment(server, 2), (back, 45, 67, FIN | ACK));
        assert_eq!(segment(client, 3), (1025 << 16 | 7, 0, 0, SYN));
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
