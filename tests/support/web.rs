//! A stand-in web server inside a namespace: gives blobs by GET, takes uploads over plain TCP.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use nix::sys::socket::{Shutdown, shutdown};

use super::netns::Netns;

/// Serves until dropped.
pub struct WebServer {
    listeners: [TcpListener; 2],
    blobs: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    gets: Arc<AtomicUsize>,
    uploads: Receiver<Vec<u8>>,
}

impl WebServer {
    /// GET on port 80, uploads on port 7000.
    pub fn start(netns: &Netns) -> Self {
        let bind = |port| TcpListener::bind(("0.0.0.0", port)).expect("a port of the namespace");
        let listeners = netns.within(|| [bind(80), bind(7000)]);
        let blobs = Arc::new(Mutex::new(BTreeMap::new()));
        let gets = Arc::new(AtomicUsize::new(0));
        let (send, uploads) = channel();
        let (shelf, count) = (Arc::clone(&blobs), Arc::clone(&gets));
        each_connection(&listeners[0], move |stream| {
            count.fetch_add(1, Ordering::SeqCst);
            let shelf = Arc::clone(&shelf);
            // A guest that went away amid a transfer is the test's to notice.
            std::thread::spawn(move || drop(answer(stream, &shelf)));
        });
        each_connection(&listeners[1], move |mut stream| {
            let mut upload = Vec::new();
            if stream.read_to_end(&mut upload).is_ok() {
                let _ = send.send(upload);
            }
        });
        Self {
            listeners,
            blobs,
            gets,
            uploads,
        }
    }

    /// Puts `bytes` under `/name`.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        self.blobs.lock().unwrap().insert(format!("/{name}"), bytes);
    }

    /// How many connections came for a GET.
    pub fn gets(&self) -> usize {
        self.gets.load(Ordering::SeqCst)
    }

    /// The next upload, whole.
    pub fn upload(&self) -> Vec<u8> {
        self.uploads
            .recv_timeout(super::netns::BOUND)
            .expect("an upload")
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        for listener in &self.listeners {
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both); // ends accept()
        }
    }
}

fn each_connection(listener: &TcpListener, mut act: impl FnMut(TcpStream) + Send + 'static) {
    let listener = listener.try_clone().expect("a descriptor");
    std::thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(&mut act));
}

fn answer(stream: TcpStream, shelf: &Mutex<BTreeMap<String, Vec<u8>>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let path = request.split(' ').nth(1).unwrap_or_default();
    let blob = shelf.lock().unwrap().get(path).cloned();
    let (status, blob) = match blob {
        Some(blob) => ("200 OK", blob),
        None => ("404 Not Found", Vec::new()),
    };
    let mut stream = &stream;
    let length = blob.len();
    write!(
        stream,
        "HTTP/1.0 {status}\r\nContent-Length: {length}\r\n\r\n"
    )?;
    stream.write_all(&blob)
}
