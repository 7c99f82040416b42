//! What a process has used of the machine so far, as the kernel has it in /proc.

use std::fs;
use std::io;
use std::ops::Sub;

use serde::Serialize;

/// Use of CPU and kernel by a process, all of its threads together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Nanoseconds on a CPU.
    pub cpu_ns: u64,
    /// Calls of read and write and their kin.
    pub io_calls: u64,
    /// Times that it has gone to sleep by itself, and so has been woken.
    pub wake_ups: u64,
}

impl Usage {
    /// That of process `pid`.
    ///
    /// # Errors
    /// It has ended, or the kernel does not tell (CONFIG_SCHED_INFO, CONFIG_TASK_IO_ACCOUNTING).
    pub fn of(pid: u32) -> io::Result<Self> {
        let mut usage = Self::default();
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            usage = usage.plus(Self::of_task(&thread?.path().to_string_lossy())?);
        }
        Ok(usage)
    }

    /// That of the calling thread.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn of_this_thread() -> io::Result<Self> {
        Self::of_task("/proc/thread-self")
    }

    fn of_task(path: &str) -> io::Result<Self> {
        let sched = fs::read_to_string(format!("{path}/schedstat"))?;
        let io = fs::read_to_string(format!("{path}/io")).unwrap_or_default();
        let status = fs::read_to_string(format!("{path}/status"))?;
        Ok(Self {
            cpu_ns: sched
                .split_whitespace()
                .next()
                .and_then(|ns| ns.parse().ok())
                .ok_or(io::ErrorKind::InvalidData)?,
            io_calls: field(&io, "syscr:") + field(&io, "syscw:"),
            wake_ups: field(&status, "voluntary_ctxt_switches:"),
        })
    }

    fn plus(self, other: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns + other.cpu_ns,
            io_calls: self.io_calls + other.io_calls,
            wake_ups: self.wake_ups + other.wake_ups,
        }
    }
}

/// What was used in between; threads that have ended meanwhile take theirs with them.
impl Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            io_calls: self.io_calls.saturating_sub(before.io_calls),
            wake_ups: self.wake_ups.saturating_sub(before.wake_ups),
        }
    }
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_uses_is_counted() {
        let before = Usage::of_this_thread().unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_millis(30);
        while std::time::Instant::now() < end {}
        for _ in 0..50 {
            let _ = fs::read("/proc/self/comm");
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
        let used = Usage::of_this_thread().unwrap() - before;
        assert!(used.cpu_ns > 1_000_000, "{used:?}");
        assert!(used.wake_ups >= 1, "{used:?}");
        assert!(used.io_calls >= 50, "{used:?}");
        assert!(Usage::of(std::process::id()).unwrap().cpu_ns >= used.cpu_ns);
    }
}
