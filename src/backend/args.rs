//! What a backend process is told: the one value both halves share, as typed fields and as an argv.
//!
//! Text becomes `Flags`, as clap sees them, and those become [`BackendArgs`], in which nothing can be contradictory.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, FromArgMatches};

use super::features::Extra;
use super::guard::Policy;
use super::sandbox::UserIds;
use super::stats::StatsAddr;
use crate::types::{IfName, Mtu, QueuePairs, QueueSize, RateLimit};

/// What `ringtap backend` is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendCommand {
    /// `--print-capabilities`: say what kind of back-end this is, and end.
    PrintCapabilities,
    /// Serve a device.
    Serve(Box<BackendArgs>),
}

/// Where the front-end is met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Front-ends connect to this socket, one at a time.
    Listen(PathBuf),
    /// A front-end listens on this socket; tried again and again while there is none.
    Connect(PathBuf),
    /// This inherited descriptor is the front-end's connection; the process ends with it.
    Inherited(RawFd),
}

/// What frames go to and come from on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostLink {
    /// The tap of this name, made if absent.
    Tap(IfName),
    /// The macvtap of this name, made by somebody else.
    Macvtap(IfName),
    /// Inherited descriptors, each a queue of one tap or macvtap.
    TapFds(Vec<RawFd>),
}

/// Arguments of `ringtap backend`, the vhost-user back-end program.
///
/// The control plane writes them with [`BackendArgs::to_argv`]; the backend reads them back through clap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendArgs {
    /// Where the front-end is met.
    pub endpoint: Endpoint,
    /// What frames go to and come from.
    pub link: HostLink,
    /// How many pairs of queues the device offers.
    pub queue_pairs: QueuePairs,
    /// The largest ring a front-end may set up.
    pub queue_size: QueueSize,
    /// The largest IP packet either way, where the device limits it.
    pub mtu: Option<Mtu>,
    /// How long a worker spins at most before it sleeps, in microseconds; 0 never spins.
    pub poll_us: u32,
    /// The limit of what the guest receives.
    pub rx_rate: Option<RateLimit>,
    /// The limit of what the guest sends.
    pub tx_rate: Option<RateLimit>,
    /// Where counters are served.
    pub stats: Option<StatsAddr>,
    /// What the guest may claim of itself; anything where `None`.
    pub guard: Option<Policy>,
    /// Where the guard keeps what the guest was given.
    pub guard_leases: Option<PathBuf>,
    /// What is offered beyond the usual.
    pub offer: Vec<Extra>,
    /// What the process gives up once it serves.
    pub sandbox: Sandbox,
}

/// What a backend gives up once it serves (`sandbox`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sandbox {
    /// All but what serving takes; as this user from there on, or else as the one that started it.
    On(Option<UserIds>),
    /// Nothing.
    Off,
}

impl BackendArgs {
    /// One pair between `endpoint` and `link`, everything else as when it is not given.
    pub fn new(endpoint: Endpoint, link: HostLink) -> Self {
        Self {
            endpoint,
            link,
            queue_pairs: QueuePairs::ONE,
            queue_size: QueueSize::MAX,
            mtu: None,
            poll_us: 0,
            rx_rate: None,
            tx_rate: None,
            stats: None,
            guard: None,
            guard_leases: None,
            offer: Vec::new(),
            sandbox: Sandbox::On(None),
        }
    }

    /// The words after the program's name that make `ringtap` read these arguments back.
    pub fn to_argv(&self) -> Vec<OsString> {
        let mut argv: Vec<OsString> = vec!["backend".into()];
        let mut option = |name: &str, value: OsString| argv.extend([name.into(), value]);
        let path = |path: &Path| path.as_os_str().to_owned();
        let client = match &self.endpoint {
            Endpoint::Listen(socket) | Endpoint::Connect(socket) => {
                option("--socket-path", path(socket));
                matches!(self.endpoint, Endpoint::Connect(_))
            }
            Endpoint::Inherited(fd) => {
                option("--fd", fd.to_string().into());
                false
            }
        };
        match &self.link {
            HostLink::Tap(name) => option("--tap", name.as_str().into()),
            HostLink::Macvtap(name) => option("--macvtap", name.as_str().into()),
            HostLink::TapFds(fds) => option("--tap-fd", list(fds).into()),
        }
        option("--queue-pairs", self.queue_pairs.to_string().into());
        option("--queue-size", self.queue_size.to_string().into());
        option("--poll-us", self.poll_us.to_string().into());
        let given = [
            ("--mtu", self.mtu.map(|mtu| mtu.to_string())),
            ("--rx-rate", self.rx_rate.map(|rate| rate.to_string())),
            ("--tx-rate", self.tx_rate.map(|rate| rate.to_string())),
            ("--stats", self.stats.as_ref().map(ToString::to_string)),
            ("--guard", self.guard.as_ref().map(ToString::to_string)),
            ("--user", self.sandbox.user().map(|user| user.to_string())),
        ];
        for (name, value) in given {
            if let Some(value) = value {
                option(name, value.into());
            }
        }
        if let Some(file) = &self.guard_leases {
            option("--guard-leases", path(file));
        }
        for extra in &self.offer {
            option("--offer", extra.name().into());
        }
        argv.extend(client.then(|| "--client".into()));
        argv.extend((self.sandbox == Sandbox::Off).then(|| "--no-sandbox".into()));
        argv
    }
}

impl Sandbox {
    /// As whom the process goes on, if not as it was started.
    pub fn user(self) -> Option<UserIds> {
        match self {
            Self::On(user) => user,
            Self::Off => None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(path) => write!(f, "socket {}", path.display()),
            Self::Connect(path) => write!(f, "the front-end's socket {}", path.display()),
            Self::Inherited(fd) => write!(f, "inherited descriptor {fd}"),
        }
    }
}

impl fmt::Display for HostLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap(name) => write!(f, "tap {name}"),
            Self::Macvtap(name) => write!(f, "macvtap {name}"),
            Self::TapFds(fds) => write!(f, "tap descriptors {}", list(fds)),
        }
    }
}

/// As `--tap-fd` takes them.
fn list(fds: &[RawFd]) -> String {
    let words: Vec<_> = fds.iter().map(ToString::to_string).collect();
    words.join(",")
}

/// The options as clap sees them. `--socket-path`, `--fd` and `--print-capabilities` are those of vhost-user's
/// "Backend program conventions".
#[derive(Debug, Args)]
struct Flags {
    /// Listen on this unix socket for a vhost-user front-end, one at a time
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with = "fd",
        required_unless_present_any = ["fd", "print_capabilities"]
    )]
    socket_path: Option<PathBuf>,

    /// Connect to the front-end that listens on --socket-path, and connect again when it has gone
    #[arg(long, requires = "socket_path", conflicts_with = "fd")]
    client: bool,

    /// Serve the front-end that is connected to this inherited descriptor, and end when it has gone
    #[arg(long, value_name = "N", value_parser = inheritable())]
    fd: Option<RawFd>,

    /// Move frames through this tap; it is made if absent and then goes away with the process
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with_all = ["macvtap", "tap_fd"],
        required_unless_present_any = ["macvtap", "tap_fd", "print_capabilities"]
    )]
    tap: Option<IfName>,

    /// Move frames through this macvtap or ipvtap, which must exist
    #[arg(long, value_name = "NAME", conflicts_with = "tap_fd")]
    macvtap: Option<IfName>,

    /// Move frames through these inherited descriptors of a tap, macvtap or ipvtap, one a queue pair
    #[arg(long, value_name = "FD[,FD...]", value_delimiter = ',', value_parser = inheritable())]
    tap_fd: Vec<RawFd>,

    /// How many pairs of queues the device offers [default: 1, or one a descriptor of --tap-fd]
    #[arg(long, value_name = "N")]
    queue_pairs: Option<QueuePairs>,

    /// The largest ring a front-end may set up: a power of two, 64 to 1024
    #[arg(long, value_name = "N", default_value_t = QueueSize::MAX)]
    queue_size: QueueSize,

    /// Drop frames with IP packets larger than this many bytes [default: no limit]
    #[arg(long, value_name = "N", value_parser = mtu)]
    mtu: Option<Mtu>,

    /// Spin for up to N µs before sleeping, where that has paid lately; 0 never spins
    #[arg(long, value_name = "N", default_value_t = 0)]
    poll_us: u32,

    /// Limit what the guest receives, such as 100mbit or 1gbit,50kpps or 100mbit,burst=256kb
    #[arg(long, value_name = "RATE")]
    rx_rate: Option<RateLimit>,

    /// Limit what the guest sends, in the same form
    #[arg(long, value_name = "RATE")]
    tx_rate: Option<RateLimit>,

    /// Serve counters as Prometheus text on unix:PATH or a loopback address such as 127.0.0.1:9100
    #[arg(long, value_name = "ADDR")]
    stats: Option<StatsAddr>,

    /// Refuse frames that claim what the guest has no right to: mac=MAC, ip=ADDRESS[/PREFIX], ip (those, and what DHCP and routers
    /// give it), not=ADDRESS, services, vlan, vlan=ID, only-ip
    #[arg(long, value_name = "WORD[,WORD]")]
    guard: Option<Policy>,

    /// Keep what DHCP and routers give the guest in this file, for the next process that serves it
    #[arg(long, value_name = "PATH", requires = "guard")]
    guard_leases: Option<PathBuf>,

    /// Offer what harms some front-ends: config (QEMU warns), ring-reset (QEMU's guests lose their network when they use it)
    #[arg(long, value_name = "FEATURE[,FEATURE]", value_delimiter = ',')]
    offer: Vec<Extra>,

    /// Go on as this user and group, by their numbers, once everything is open; the sockets' files then stay in the end
    #[arg(long, value_name = "UID:GID", conflicts_with = "no_sandbox")]
    user: Option<UserIds>,

    /// Keep all rights that the process was started with, for debugging
    #[arg(long)]
    no_sandbox: bool,

    /// Print the JSON that tells a launcher what this back-end can do, and exit
    #[arg(long, exclusive = true)]
    print_capabilities: bool,
}

/// 0, 1 and 2 are the standard streams, whatever else they may be.
fn inheritable() -> clap::builder::RangedI64ValueParser<RawFd> {
    clap::value_parser!(RawFd).range(3..)
}

fn mtu(text: &str) -> Result<Mtu, String> {
    let bytes: u32 = text
        .parse()
        .map_err(|_| format!("{text:?} is not a number of bytes"))?;
    Mtu::try_from(bytes).map_err(|error| error.to_string())
}

impl Flags {
    fn into_command(self) -> Result<BackendCommand, clap::Error> {
        if self.print_capabilities {
            return Ok(BackendCommand::PrintCapabilities);
        }
        // clap has seen to it that one of each is there.
        let endpoint = match (self.socket_path, self.fd) {
            (Some(path), _) if self.client => Endpoint::Connect(path),
            (Some(path), _) => Endpoint::Listen(path),
            (None, Some(fd)) => Endpoint::Inherited(fd),
            (None, None) => return Err(refuse("--socket-path or --fd is needed")),
        };
        let link = match (self.tap, self.macvtap) {
            (Some(name), _) => HostLink::Tap(name),
            (None, Some(name)) => HostLink::Macvtap(name),
            (None, None) => HostLink::TapFds(self.tap_fd),
        };
        check_distinct(&endpoint, &link)?;
        Ok(BackendCommand::Serve(Box::new(BackendArgs {
            queue_pairs: queue_pairs(&link, self.queue_pairs)?,
            endpoint,
            link,
            queue_size: self.queue_size,
            mtu: self.mtu,
            poll_us: self.poll_us,
            rx_rate: self.rx_rate,
            tx_rate: self.tx_rate,
            stats: self.stats,
            guard: self.guard,
            guard_leases: self.guard_leases,
            offer: self.offer,
            sandbox: match self.no_sandbox {
                true => Sandbox::Off,
                false => Sandbox::On(self.user),
            },
        })))
    }
}

/// As many pairs as asked for, or as there are descriptors; where both are given they must agree.
fn queue_pairs(link: &HostLink, asked: Option<QueuePairs>) -> Result<QueuePairs, clap::Error> {
    let HostLink::TapFds(fds) = link else {
        return Ok(asked.unwrap_or(QueuePairs::ONE));
    };
    let there = u16::try_from(fds.len())
        .ok()
        .and_then(|count| QueuePairs::try_from(count).ok())
        .ok_or_else(|| refuse("--tap-fd takes 1 to 256 descriptors"))?;
    match asked {
        Some(asked) if asked != there => Err(refuse(&format!(
            "--queue-pairs {asked} and {there} descriptors in --tap-fd: give one descriptor a pair"
        ))),
        _ => Ok(there),
    }
}

/// No descriptor can be two things.
fn check_distinct(endpoint: &Endpoint, link: &HostLink) -> Result<(), clap::Error> {
    let mut all = match link {
        HostLink::TapFds(fds) => fds.clone(),
        HostLink::Tap(_) | HostLink::Macvtap(_) => Vec::new(),
    };
    if let Endpoint::Inherited(fd) = endpoint {
        all.push(*fd);
    }
    all.sort_unstable();
    match all.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(refuse(&format!("descriptor {} is given twice", pair[0]))),
        None => Ok(()),
    }
}

fn refuse(why: &str) -> clap::Error {
    clap::Error::raw(ErrorKind::ArgumentConflict, format!("{why}\n"))
}

impl Args for BackendCommand {
    fn augment_args(command: clap::Command) -> clap::Command {
        Flags::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Flags::augment_args_for_update(command)
    }
}

impl FromArgMatches for BackendCommand {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Flags::from_arg_matches(matches)?.into_command()
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn read(argv: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Command, clap::Error> {
        let argv = argv.into_iter().map(Into::into);
        Cli::try_parse_from(std::iter::once("ringtap".into()).chain(argv)).map(|cli| cli.command)
    }

    fn reads_back(args: &BackendArgs) {
        let argv = args.to_argv();
        let read = read(argv.clone()).unwrap_or_else(|error| panic!("{argv:?}: {error}"));
        let Command::Backend(BackendCommand::Serve(read)) = read else {
            panic!("{argv:?} reads as {read:?}");
        };
        assert_eq!(*read, *args, "{argv:?}");
    }

    fn name(text: &str) -> IfName {
        text.parse().unwrap()
    }

    #[test]
    fn an_argv_reads_back_as_what_was_written() {
        let endpoints = [
            Endpoint::Listen("/run/a b/c.sock".into()),
            Endpoint::Connect("/run/q.sock".into()),
            Endpoint::Inherited(7),
        ];
        let links = [
            HostLink::Tap(name("web1-0")),
            HostLink::Macvtap(name("mv0")),
            HostLink::TapFds(vec![5]),
        ];
        for endpoint in &endpoints {
            for link in &links {
                reads_back(&BackendArgs::new(endpoint.clone(), link.clone()));
            }
        }
        reads_back(&BackendArgs {
            queue_pairs: QueuePairs::try_from(4).unwrap(),
            queue_size: "256".parse().unwrap(),
            mtu: Some(Mtu::try_from(9000).unwrap()),
            poll_us: 50,
            rx_rate: Some("100mbit,50kpps,burst=64kb,burst=100p".parse().unwrap()),
            tx_rate: Some("999999bit".parse().unwrap()),
            stats: Some("127.0.0.1:9100".parse().unwrap()),
            guard: Some(
                "mac=52:54:00:00:00:01,ip,ip=192.0.2.5/32,ip=fd00::/64,not=fd00::1,services,vlan,vlan=7,only-ip"
                    .parse()
                    .unwrap(),
            ),
            guard_leases: Some("/run/nic0.leases".into()),
            offer: vec![Extra::Config, Extra::RingReset],
            sandbox: Sandbox::On(Some(UserIds { uid: 7, gid: 8 })),
            ..BackendArgs::new(Endpoint::Inherited(3), HostLink::TapFds(vec![9, 8, 7, 6]))
        });
    }

    #[test]
    fn contradictions_are_refused() {
        let here = "backend --socket-path /s";
        for (line, says) in [
            ("backend --tap t0".to_owned(), "--socket-path"),
            (here.to_owned(), "--tap"),
            (format!("{here} --fd 4 --tap t0"), "cannot be used with"),
            (
                format!("{here} --tap t0 --macvtap m0"),
                "cannot be used with",
            ),
            (format!("{here} --tap t0 --tap-fd 4"), "cannot be used with"),
            (
                format!("{here} --macvtap m0 --tap-fd 4"),
                "cannot be used with",
            ),
            (
                "backend --fd 4 --client --tap t0".to_owned(),
                "cannot be used with",
            ),
            ("backend --fd 2 --tap t0".to_owned(), "2 is not in 3.."),
            (format!("{here} --tap-fd 0,4"), "0 is not in 3.."),
            (
                format!("{here} --tap-fd 4,5 --queue-pairs 3"),
                "--queue-pairs 3 and 2",
            ),
            (
                format!("{here} --tap-fd 4,4"),
                "descriptor 4 is given twice",
            ),
            (
                "backend --fd 4 --tap-fd 4".to_owned(),
                "descriptor 4 is given twice",
            ),
            (format!("{here} --tap t0 --queue-size 100"), "power of two"),
            (format!("{here} --tap t0 --mtu 100"), "1280 to 65521"),
            (format!("{here} --tap t0 --poll-us x"), "--poll-us"),
            (format!("{here} --tap t0 --tx-rate fast"), "100mbit"),
            (format!("{here} --tap t0 --guard mac=x"), "not=ADDRESS"),
            (format!("{here} --tap t0 --offer mq"), "config, ring-reset"),
            (
                format!("{here} --tap t0 --stats 192.0.2.1:9100"),
                "loopback",
            ),
            (
                format!("{here} --tap t0 --print-capabilities"),
                "cannot be used with",
            ),
        ] {
            let error = read(line.split(' ')).expect_err(&line);
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(says), "{line}: {error}");
        }
    }

    #[test]
    fn capabilities_need_no_other_argument() {
        let read = read(["backend", "--print-capabilities"]).unwrap();
        let wanted = Command::Backend(BackendCommand::PrintCapabilities);
        assert_eq!(format!("{read:?}"), format!("{wanted:?}"));
    }

    #[test]
    fn descriptors_say_how_many_pairs() {
        let Command::Backend(BackendCommand::Serve(args)) =
            read(["backend", "--fd", "3", "--tap-fd", "4,5"]).unwrap()
        else {
            panic!("not a device");
        };
        assert_eq!(args.queue_pairs.get(), 2);
    }
}
