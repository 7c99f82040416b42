//! Bytes and frames for tests that compare what arrives with what was sent.

use std::io::Write;
use std::process::Command;

use super::netns::bounded;

/// Bytes that don't repeat, from a seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words = len.div_ceil(8);
    let mut bytes: Vec<u8> = (0..words).flat_map(|_| next().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

/// As coreutils sees it, which is not what the guest's busybox computes with.
pub fn sha256(bytes: &[u8]) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let output = bounded(Command::new("sha256sum").arg(file.path()), "");
    String::from_utf8_lossy(&output.stdout)[..64].to_owned()
}

/// A broadcast frame of `len` bytes, of an EtherType that nobody has; what follows is noise.
pub fn broadcast(len: usize, seed: u64) -> Vec<u8> {
    ethernet([0x88, 0xb5], &noise(len - 14, seed))
}

/// A broadcast frame.
pub fn ethernet(ether_type: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(&[0x52, 0x54, 0, 0, 0, 1]);
    frame.extend_from_slice(&ether_type);
    frame.extend_from_slice(payload);
    frame
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2);
    let words = words.map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
}

/// A broadcast frame with a packet from 192.0.2.1 to 192.0.2.2.
pub fn ipv4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len() as u16).to_be_bytes();
    let place = fragment.to_be_bytes();
    let mut header = vec![0x45, 0, len[0], len[1], 0x12, 0x34, place[0], place[1]];
    header.extend([64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    ethernet([0x08, 0x00], &[&header, payload].concat())
}

/// A datagram from `port`, without a checksum.
pub fn udp(port: u16, len: usize) -> Vec<u8> {
    let ([a, b], total) = (port.to_be_bytes(), (8 + len as u16).to_be_bytes());
    let header = [a, b, 0, 7, total[0], total[1], 0, 0];
    [&header[..], &noise(len, u64::from(port))].concat()
}
