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
