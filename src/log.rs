//! The log: lines on stderr.
//!
//! What runs in the background has a file for it in the run directory, and says there what guests make it say: a NIC that is
//! reset all day long has a line each time. Such a file begins anew once it has grown to `KEPT` bytes. What a program writes
//! that is not ringtap's is looked at now and then ([`begin_anew_if_grown`]).

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FileType, fstat, ftruncate};
use tracing_subscriber::EnvFilter;

/// At how many.
const KEPT: u64 = 1 << 20;

/// The variable that tells it to a process that is started in the background.
const VARIABLE: &str = "RINGTAP_LOG_LIMIT";

/// At how many this process's begins anew: a person's own file never does.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Logs at `info` unless `RINGTAP_LOG` says otherwise (a filter such as `ringtap::backend=debug`).
pub fn to_stderr() {
    let filter = EnvFilter::try_from_env("RINGTAP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let limit = std::env::var(VARIABLE).ok().and_then(|it| it.parse().ok());
    LIMIT.store(limit.unwrap_or(u64::MAX), Ordering::Relaxed);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A disk that is full is no reason to end; to tell of that on stderr, which can't be written, would be one.
        .log_internal_errors(false)
        .with_writer(|| Stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}

/// From here on stderr is a file in the run directory, opened to append.
pub fn is_kept() {
    LIMIT.store(KEPT, Ordering::Relaxed);
}

/// That is so for what `command` starts, a ringtap.
pub fn is_kept_by(command: &mut Command) {
    command.env(VARIABLE, KEPT.to_string());
}

/// Empties the log at `path`, which another program appends to, if it has grown to more than ringtap's own do.
///
/// # Errors
/// The file system's.
pub fn begin_anew_if_grown(path: &Path) -> io::Result<()> {
    let log = File::options().write(true).open(path)?;
    match log.metadata()?.len() > KEPT {
        true => log.set_len(0),
        false => Ok(()),
    }
}

struct Stderr;

impl Stderr {
    fn make_room(&self, bytes: usize) -> io::Result<()> {
        let limit = LIMIT.load(Ordering::Relaxed);
        if limit == u64::MAX {
            return Ok(());
        }
        let stderr = io::stderr();
        let there = fstat(stderr.as_fd())?;
        let is_file = FileType::from_raw_mode(there.st_mode) == FileType::RegularFile;
        if is_file && there.st_size as u64 + bytes as u64 > limit {
            ftruncate(stderr.as_fd(), 0)?;
        }
        Ok(())
    }
}

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.make_room(bytes.len())?;
        io::stderr().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
