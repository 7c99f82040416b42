//! What a backend has given up once it serves: asked of the process itself, by the kernel's account of it and by system calls that
//! the test makes in its name.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use support::front_end::wait_for;
use support::netns::{BOUND, Netns, bounded, until, wait};

/// A user that nobody has.
const USER: &str = "1895825408:1895825409";

struct World {
    netns: Netns,
    dir: tempfile::TempDir,
}

/// A backend that serves; killed with this value, and waited for.
struct Backend(Child);

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    fn new() -> Self {
        Self {
            netns: Netns::new("sandbox"),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nic.sock")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// `ringtap backend` with two pairs and these options, once all of its threads are there.
    fn serve(&self, options: &str) -> Backend {
        let mut command = self.netns.command(env!("CARGO_BIN_EXE_ringtap"));
        command
            .args(["backend", "--tap", "t0", "--queue-pairs", "2"])
            .arg("--socket-path")
            .arg(self.socket())
            .args(options.split_whitespace())
            .stdin(Stdio::null())
            .stderr(fs::File::create(self.log()).unwrap());
        let backend = Backend(command.spawn().unwrap());
        until("it serves", || self.said().contains("serving tap t0"));
        backend
    }

    fn said(&self) -> String {
        fs::read_to_string(self.log()).unwrap()
    }
}

impl Backend {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }

    /// What the kernel says of each of its threads, by the words before the colons.
    fn threads(&self) -> Vec<BTreeMap<String, String>> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let status = |task: PathBuf| fs::read_to_string(task.join("status")).unwrap();
        tasks
            .map(|task| fields(&status(task.unwrap().path())))
            .collect()
    }

    /// What system call `number` gives to the process; the signal that it dies of if that is what it gets.
    fn attempt(&self, number: libc::c_long, arguments: [u64; 4]) -> Result<i64, Signal> {
        const SYSCALL: i64 = 0x050f;
        let pid = self.pid();
        // Once it is asleep in a system call, the instruction for that, of two bytes, lies behind it.
        let was = wait_for("its sleep", || {
            ptrace::seize(pid, ptrace::Options::empty()).unwrap();
            ptrace::interrupt(pid).unwrap();
            stopped(pid).unwrap();
            let regs = ptrace::getregs(pid).unwrap();
            let behind = ptrace::read(pid, (regs.rip - 2) as *mut _).unwrap();
            if behind & 0xffff == SYSCALL {
                return Some(regs);
            }
            ptrace::detach(pid, None).unwrap();
            None
        });
        let mut regs = was;
        regs.rip -= 2;
        regs.rax = number as u64;
        regs.orig_rax = u64::MAX; // nothing that is to be restarted
        [regs.rdi, regs.rsi, regs.rdx, regs.r10] = arguments;
        ptrace::setregs(pid, regs).unwrap();
        ptrace::step(pid, None).unwrap();
        stopped(pid)?;
        let result = ptrace::getregs(pid).unwrap().rax;
        ptrace::setregs(pid, was).unwrap();
        ptrace::detach(pid, None).unwrap();
        Ok(result as i64)
    }

    /// Puts `text` where its thread will not look: below its stack.
    fn text(&self, text: &str) -> u64 {
        let pid = self.pid();
        ptrace::seize(pid, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(pid).unwrap();
        stopped(pid).unwrap();
        let at = (ptrace::getregs(pid).unwrap().rsp - 4096) & !7;
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize((bytes.len() / 8 + 1) * 8, 0);
        for (index, word) in bytes.chunks(8).enumerate() {
            let word = i64::from_ne_bytes(word.try_into().unwrap());
            ptrace::write(pid, (at + index as u64 * 8) as *mut _, word).unwrap();
        }
        ptrace::detach(pid, None).unwrap();
        at
    }
}

/// Waits until the process has stopped; its signal if it has died.
fn stopped(pid: Pid) -> Result<(), Signal> {
    match waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap() {
        WaitStatus::Signaled(_, signal, _) => Err(signal),
        WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..) => Ok(()),
        other => panic!("{other:?}"),
    }
}

fn fields(status: &str) -> BTreeMap<String, String> {
    let pairs = status.lines().filter_map(|line| line.split_once(':'));
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    pairs
        .map(|(name, value)| (name.to_owned(), words(value)))
        .collect()
}

/// Whether the kernel can keep a process from files by Landlock.
fn has_landlock() -> bool {
    const VERSION: u32 = 1;
    let nothing: *const u8 = std::ptr::null();
    // SAFETY: with this flag the call takes no memory, and gives a number.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0, VERSION) > 0 }
}

#[test]
fn every_thread_is_nobody_and_may_do_nothing() {
    let world = World::new();
    let backend = world.serve(&format!("--user {USER}"));
    let threads = backend.threads();
    assert_eq!(threads.len(), 3, "one, and one a pair");
    for thread in threads {
        let is = |name: &str, value: &str| assert_eq!(thread[name], value, "{name}: {thread:?}");
        is("Uid", "1895825408 1895825408 1895825408 1895825408");
        is("Gid", "1895825409 1895825409 1895825409 1895825409");
        is("Groups", "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            is(set, "0000000000000000");
        }
        is("NoNewPrivs", "1");
        is("Seccomp", "2");
    }
    let proc = PathBuf::from(format!("/proc/{}", backend.pid()));
    let owner = proc.join("mem").metadata().unwrap().uid();
    assert_eq!(
        owner, 0,
        "of a process that is dumpable it is the process's user"
    );
    let limits = fs::read_to_string(proc.join("limits")).unwrap();
    for (name, most) in [
        ("Max core file size", 0),
        ("Max data size", 256 << 20),
        ("Max open files", 1024),
    ] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let hard = line[name.len()..].split_whitespace().nth(1).unwrap();
        assert!(hard.parse::<u64>().is_ok_and(|it| it <= most), "{line}");
    }
    let said = world.said();
    assert_eq!(said.contains("no Landlock"), !has_landlock(), "{said}");
}

/// That the tests here can fail.
#[test]
fn without_a_sandbox_it_keeps_what_it_had() {
    let world = World::new();
    let backend = world.serve("--no-sandbox");
    for thread in backend.threads() {
        assert_eq!(thread["Seccomp"], "0");
        assert_ne!(thread["CapEff"], "0000000000000000");
    }
    let path = backend.text("/dev/null");
    let at = libc::AT_FDCWD as u64;
    assert!(backend.attempt(libc::SYS_openat, [at, path, 0, 0]).unwrap() > 0);
    let socket = [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0, 0];
    assert!(backend.attempt(libc::SYS_socket, socket).unwrap() > 0);
}

#[test]
fn files_are_refused_and_it_serves_on() {
    let world = World::new();
    let backend = world.serve(&format!("--user {USER}"));
    for file in ["/etc/passwd", "/proc/self/status", "/dev/null"] {
        let path = backend.text(file);
        let at = libc::AT_FDCWD as u64;
        for (call, arguments) in [
            (libc::SYS_openat, [at, path, 0, 0]),
            (libc::SYS_unlink, [path, 0, 0, 0]),
        ] {
            let refused = backend.attempt(call, arguments);
            assert_eq!(refused, Ok(-i64::from(libc::EACCES)), "{file}");
        }
    }
    assert_eq!(backend.threads().len(), 3);
}

/// Each in a process of its own, as it is the last of its calls.
#[test]
fn what_serving_does_not_take_ends_the_process() {
    let world = World::new();
    let inet = libc::AF_INET as u64;
    let stream = libc::SOCK_STREAM as u64;
    let executable = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    for (name, number, arguments) in [
        ("a socket", libc::SYS_socket, [inet, stream, 0, 0]),
        ("a program", libc::SYS_execve, [0; 4]),
        (
            "a process",
            libc::SYS_clone,
            [libc::SIGCHLD as u64, 0, 0, 0],
        ),
        ("a process's memory", libc::SYS_ptrace, [0; 4]),
        ("a signal", libc::SYS_kill, [1, 0, 0, 0]),
        ("a ring", libc::SYS_io_uring_setup, [1, 0, 0, 0]),
        ("code", libc::SYS_mmap, [0, 4096, executable, private]),
        ("a namespace", libc::SYS_unshare, [0; 4]),
        ("a link's flags", libc::SYS_ioctl, [0, 0x8914, 0, 0]), // SIOCSIFFLAGS
        ("a module", libc::SYS_finit_module, [0; 4]),
    ] {
        let backend = world.serve(&format!("--user {USER}"));
        let ended = backend.attempt(number, arguments);
        assert_eq!(ended, Err(Signal::SIGSYS), "{name}");
    }
}

/// It can say so by seccomp no more precisely; Landlock can.
#[test]
fn who_keeps_its_user_removes_its_own_sockets_and_no_other_files() {
    let world = World::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = elsewhere.path().join("other");
    fs::write(&other, "").unwrap();
    let mut backend = world.serve("");
    if has_landlock() {
        let path = backend.text(other.to_str().unwrap());
        let removed = backend.attempt(libc::SYS_unlink, [path, 0, 0, 0]);
        assert_eq!(removed, Ok(-i64::from(libc::EACCES)));
    }
    kill(backend.pid(), Signal::SIGTERM).unwrap();
    let ended = wait(&mut backend.0, BOUND).unwrap();
    assert_eq!(ended.code(), Some(0), "{}", world.said());
    assert!(other.exists() && !world.socket().exists());
}

/// Another user may not remove it, and the next backend does.
#[test]
fn who_changes_its_user_leaves_its_socket_to_the_next() {
    let world = World::new();
    for _ in 0..2 {
        let mut backend = world.serve(&format!("--user {USER}"));
        kill(backend.pid(), Signal::SIGTERM).unwrap();
        let ended = wait(&mut backend.0, BOUND).unwrap();
        assert_eq!(ended.code(), Some(0), "{}", world.said());
        assert!(Path::exists(&world.socket()));
    }
}

#[test]
fn only_root_becomes_another_user() {
    let world = World::new();
    let mut command = world.netns.command("setpriv");
    command
        .args(["--bounding-set=-setuid", "--inh-caps=-setuid"])
        .arg(env!("CARGO_BIN_EXE_ringtap"))
        .args(["backend", "--tap", "t0", "--user", USER, "--socket-path"])
        .arg(world.socket());
    let output = bounded(&mut command, "");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("only root can become another user"), "{said}");
}
