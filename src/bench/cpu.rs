//! What a process has used of the machine so far, as the kernel has it in /proc.

use std::fs;
use std::io;
use std::iter::Sum;
use std::ops::Sub;
use std::path::Path;

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
    /// That of process `pid`, without threads that end meanwhile.
    ///
    /// # Errors
    /// It has ended, or the kernel does not tell (CONFIG_SCHED_INFO, CONFIG_TASK_IO_ACCOUNTING).
    pub fn of(pid: u32) -> io::Result<Self> {
        Self::of_threads(pid, |_| true)
    }

    /// That of those threads of process `pid` whose name is `wanted`, without any that end meanwhile.
    ///
    /// # Errors
    /// As for [`Self::of`].
    pub fn of_threads(pid: u32, mut wanted: impl FnMut(&str) -> bool) -> io::Result<Self> {
        let threads = fs::read_dir(format!("/proc/{pid}/task"))?;
        let mut of_thread = |path: &Path| {
            let name = fs::read_to_string(path.join("comm"))?;
            match wanted(name.trim_end()) {
                true => Self::of_task(&path.to_string_lossy()),
                false => Ok(Self::default()),
            }
        };
        let used = threads.map(|thread| of_thread(&thread?.path()));
        used.filter(|used| !used.as_ref().is_err_and(has_ended))
            .sum()
    }

    /// That of the calling thread.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn of_this_thread() -> io::Result<Self> {
        Self::of_task("/proc/thread-self")
    }

    /// That of processes together.
    ///
    /// # Errors
    /// As for [`Self::of`].
    pub fn of_all(pids: &[u32]) -> io::Result<Self> {
        let of_each = pids.iter().map(|pid| Self::of(*pid));
        of_each.sum()
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
}

/// Whether the kernel says so that a thread is there no more.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

impl Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, it| Self {
            cpu_ns: sum.cpu_ns + it.cpu_ns,
            io_calls: sum.io_calls + it.io_calls,
            wake_ups: sum.wake_ups + it.wake_ups,
        })
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

/// Whether process `pid` runs: it is there, and not only for its parent to learn how it has ended.
pub fn runs(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|it| !it.lines().any(|line| line.starts_with("State:\tZ")))
}

/// Nanoseconds for which the CPUs of the machine have been busy, all together, in steps of a clock tick.
///
/// # Errors
/// The kernel does not tell.
pub fn of_machine() -> io::Result<u64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let mut ticks = line
        .split_whitespace()
        .skip(1)
        .map(|it| it.parse::<u64>().unwrap_or(0));
    // user, nice, system; idle and iowait are not busy; irq, softirq. Time that others took (steal) is not the machine's.
    let mut next = || ticks.next().unwrap_or(0);
    let busy = next() + next() + next() + {
        let _idle = (next(), next());
        next() + next()
    };
    Ok(busy * (1_000_000_000 / rustix::param::clock_ticks_per_second()))
}

/// Bytes of memory that process `pid` has for itself: what it shares with a guest, and its program's text, are not among them.
///
/// # Errors
/// It has ended, or the kernel does not tell (CONFIG_PROC_PAGE_MONITOR).
pub fn memory_of(pid: u32) -> io::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let anonymous = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss_Anon:"));
    let kilobytes = anonymous.and_then(|text| text.trim().strip_suffix(" kB"));
    let kilobytes = kilobytes.and_then(|text| text.parse::<u64>().ok());
    kilobytes
        .map(|kilobytes| kilobytes << 10)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn threads_that_end_meanwhile_are_left_out() {
        thread::scope(|scope| {
            let ended = scope.spawn(|| (0..2000).for_each(|_| drop(thread::spawn(|| {}).join())));
            while !ended.is_finished() {
                Usage::of(std::process::id()).unwrap();
            }
        });
        Usage::of(u32::MAX).unwrap_err();
    }

    #[test]
    fn threads_are_chosen_by_their_names() {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let busy = thread::Builder::new().name("CPU 0/BUSY".to_owned());
        let busy = busy.spawn(move || {
            let until = std::time::Instant::now() + std::time::Duration::from_millis(30);
            while std::time::Instant::now() < until {}
            tell.send(Usage::of_this_thread().unwrap()).unwrap();
            let _ = ended.recv(); // a thread that has ended takes what it used with it
        });
        let its = told.recv().unwrap();
        let of = |is: fn(&str) -> bool| Usage::of_threads(std::process::id(), is).unwrap();
        let found = of(|name| name == "CPU 0/BUSY");
        assert!(
            found.cpu_ns >= its.cpu_ns && its.cpu_ns > 10_000_000,
            "{found:?} {its:?}"
        );
        assert_eq!(of(|_| false), Usage::default());
        drop(end);
        busy.unwrap().join().unwrap();
    }

    #[test]
    fn what_a_thread_uses_is_counted() {
        let before = Usage::of_this_thread().unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_millis(30);
        while std::time::Instant::now() < end {}
        for _ in 0..50 {
            let _ = fs::read("/proc/self/comm");
        }
        thread::sleep(std::time::Duration::from_millis(1));
        let used = Usage::of_this_thread().unwrap() - before;
        assert!(used.cpu_ns > 1_000_000, "{used:?}");
        assert!(used.wake_ups >= 1, "{used:?}");
        assert!(used.io_calls >= 50, "{used:?}");
        assert!(Usage::of(std::process::id()).unwrap().cpu_ns >= used.cpu_ns);
    }
}
