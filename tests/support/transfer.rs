//! Transfers between a guest and the internet whose bytes are checked at the far end.

use super::bytes::{noise, sha256};
use super::console::Console;
use super::lab::WWW;
use super::netns::BOUND;
use super::web::WebServer;

/// Moves `len` bytes to the guest and back, `rounds` times; all must arrive as they were.
pub fn both_ways(guest: &mut Console, web: &WebServer, len: usize, rounds: u64) {
    for i in 1..=rounds {
        let blob = noise(len, i);
        web.put("blob", blob.clone());
        let get = format!("wget -q -O /tmp/blob http://{WWW}/blob && sha256sum /tmp/blob");
        let (code, got) = guest.attempt(&get, BOUND);
        assert_eq!(code, 0, "{got}");
        assert_eq!(got[..64], sha256(&blob), "to the guest, {i}");

        let (code, said) = guest.attempt(&format!("nc {WWW} 7000 < /tmp/blob"), BOUND);
        assert_eq!(code, 0, "{said}");
        assert!(web.upload() == blob, "from the guest, {i}");
    }
}
