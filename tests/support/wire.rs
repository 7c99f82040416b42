//! The other end of a wire: a plain tap, and what comes out of it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::front_end::PATIENCE;
use super::netns::Netns;

/// A plain tap, whose frames are kept until they are asked for.
pub struct Wire {
    pub tap: Arc<tun_tap::Iface>,
    pub frames: Receiver<Vec<u8>>,
}

impl Wire {
    pub fn open(netns: &Netns, name: &str) -> Self {
        let open = || tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tap);
        let tap = Arc::new(netns.within(open).unwrap());
        let (send, frames) = channel();
        let reader = Arc::clone(&tap);
        thread::spawn(move || {
            let mut buffer = vec![0; 70_000]; // the largest MTU, and more
            while let Ok(bytes) = reader.recv(&mut buffer) {
                if send.send(buffer[..bytes].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { tap, frames }
    }

    pub fn send(&self, frame: &[u8]) {
        assert_eq!(self.tap.send(frame).unwrap(), frame.len());
    }

    /// Waits for this frame; those the kernel sends by itself are passed over.
    pub fn expect(&self, wanted: &[u8]) {
        while self.next("the frame") != wanted {}
    }

    /// The next frame that comes out.
    pub fn next(&self, what: &str) -> Vec<u8> {
        let frame = self.frames.recv_timeout(PATIENCE);
        frame.unwrap_or_else(|_| panic!("no frame came out of the wire: {what}"))
    }

    /// Whether such a frame comes out in that time.
    pub fn within(&self, time: Duration, is_it: impl Fn(&[u8]) -> bool) -> bool {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            match self.frames.recv_timeout(left) {
                Ok(frame) if is_it(&frame) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
        false
    }

    /// Throws away what has come out so far.
    pub fn drain(&self) {
        while self.frames.try_recv().is_ok() {}
    }
}
