//! The host's end of a NIC: a tap that goes with its value, and what the kernel counts on it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec};
use thiserror::Error;

use crate::network::apply::netlink::{Netlink, NetlinkError};
use crate::tap::{Tap, TapError};
use crate::types::IfName;

/// A link can't be made or looked at.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The kernel.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// It is not of this network namespace, or is gone.
    #[error("there is no link {0} here")]
    Missing(IfName),
    /// Nobody serves it, or it is down.
    #[error(
        "{0} has no carrier, though its guest is there: ip link set {0} up, or name the back-end's tap, --tap NAME"
    )]
    NoCarrier(IfName),
    /// A name that is taken.
    #[error("there is a link {0} already: it is not the bench's, `ip link delete {0}` removes it")]
    Taken(IfName),
    /// A back-end has no tap that can be found.
    #[error("process {0} has no tap open: name it, --tap NAME")]
    NoTap(u32),
    /// /proc.
    #[error("process {0} can't be looked at")]
    Process(u32, #[source] io::Error),
}

/// A tap of the bench's own, up and without an address; gone with this value.
#[derive(Debug)]
pub struct BenchTap(BenchLink);

impl BenchTap {
    /// Makes it.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn make(name: IfName) -> Result<Self, LinkError> {
        let make = |_: &mut Netlink, name: &IfName| Ok(Tap::make_persistent(name)?);
        BenchLink::make(name, make).map(Self)
    }

    /// Its name.
    pub fn name(&self) -> &IfName {
        &self.0.0
    }
}

/// A bridge of the bench's own, up and without an address; gone with this value.
#[derive(Debug)]
pub struct BenchBridge(BenchLink);

impl BenchBridge {
    /// Makes it.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn make(name: IfName) -> Result<Self, LinkError> {
        let make = |netlink: &mut Netlink, name: &IfName| {
            let message = LinkBridge::new(name.as_str()).build();
            Ok(
                netlink.ask("make the bench's bridge", |handle: Handle| async move {
                    handle.link().add(message).execute().await
                })?,
            )
        };
        BenchLink::make(name, make).map(Self)
    }

    /// Makes `link` a port of it, and sets it up.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn add(&self, link: &IfName) -> Result<(), LinkError> {
        add_port(&self.0.0, link)
    }
}

/// Makes `link` a port of `bridge`, and sets it up.
///
/// # Errors
/// See [`LinkError`].
pub fn add_port(bridge: &IfName, link: &IfName) -> Result<(), LinkError> {
    let mut netlink = Netlink::open()?;
    let [bridge, port] = [bridge, link].map(|name| index_of(&mut netlink, name));
    let message = LinkMessageBuilder::<LinkUnspec>::new()
        .index(port?)
        .controller(bridge?)
        .up()
        .build();
    Ok(
        netlink.ask("attach a tap to a bridge", |handle: Handle| async move {
            handle.link().set(message).execute().await
        })?,
    )
}

/// A link that goes with this value.
#[derive(Debug)]
struct BenchLink(IfName);

impl BenchLink {
    /// Has `make` make it, and sets it up.
    fn make(
        name: IfName,
        make: impl FnOnce(&mut Netlink, &IfName) -> Result<(), LinkError>,
    ) -> Result<Self, LinkError> {
        let mut netlink = Netlink::open()?;
        if find(&mut netlink, &name).is_ok() {
            return Err(LinkError::Taken(name));
        }
        make(&mut netlink, &name)?;
        let link = Self(name);
        // No link-local address, and so no frames of the host's own.
        let quiet = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let message = LinkMessageBuilder::<LinkUnspec>::new()
            .index(index_of(&mut netlink, &link.0)?)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![quiet]))
            .up()
            .build();
        netlink.ask("set the bench's link up", |handle: Handle| async move {
            handle.link().set(message).execute().await
        })?;
        Ok(link)
    }
}

impl Drop for BenchLink {
    fn drop(&mut self) {
        let deleted = Netlink::open().and_then(|mut netlink| {
            let Ok(index) = index_of(&mut netlink, &self.0) else {
                return Ok(()); // somebody else has
            };
            netlink.ask("delete the bench's link", |handle: Handle| async move {
                handle.link().del(index).execute().await
            })
        });
        if let Err(error) = deleted {
            tracing::warn!("{error}");
        }
    }
}

/// Waits until the kernel sends by `name`: it looks after a link that has just got a carrier within about a second
/// (`linkwatch_schedule_work`), and what is sent to it before is lost.
///
/// # Errors
/// See [`LinkError`].
pub fn until_running(name: &IfName) -> Result<(), LinkError> {
    const LONG: Duration = Duration::from_secs(10);
    let mut netlink = Netlink::open()?;
    let end = Instant::now() + LONG;
    while !find(&mut netlink, name)?
        .header
        .flags
        .contains(LinkFlags::Running)
    {
        if Instant::now() > end {
            return Err(LinkError::NoCarrier(name.clone()));
        }
        sleep(LONG / 2000);
    }
    Ok(())
}

/// What the kernel has counted on a link. Of a tap, what it receives is what the guest sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that have come in by it.
    pub received: u64,
    /// Those that have gone out by it.
    pub sent: u64,
    /// Those that it had no room for on their way out.
    pub dropped: u64,
}

/// What the kernel has counted on `name`.
///
/// # Errors
/// See [`LinkError`].
pub fn counts(name: &IfName) -> Result<Counts, LinkError> {
    let link = find(&mut Netlink::open()?, name)?;
    let stats = link.attributes.iter().find_map(|it| match it {
        LinkAttribute::Stats64(stats) => Some(stats),
        _ => None,
    });
    Ok(stats.map_or_else(Counts::default, |stats| Counts {
        received: stats.rx_packets,
        sent: stats.tx_packets,
        dropped: stats.tx_dropped,
    }))
}

fn index_of(netlink: &mut Netlink, name: &IfName) -> Result<u32, LinkError> {
    Ok(find(netlink, name)?.header.index)
}

fn find(netlink: &mut Netlink, name: &IfName) -> Result<LinkMessage, LinkError> {
    let found = netlink.link(name)?;
    found.ok_or_else(|| LinkError::Missing(name.clone()))
}

/// The taps that process `pid` has open; the kernel tells it of each of its descriptors.
///
/// # Errors
/// It has ended.
pub fn taps_of(pid: u32) -> Result<BTreeSet<IfName>, LinkError> {
    let process = |cause| LinkError::Process(pid, cause);
    let mut taps = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).map_err(process)? {
        let text = fs::read_to_string(entry.map_err(process)?.path()).unwrap_or_default();
        let name = text.lines().find_map(|line| line.strip_prefix("iff:"));
        taps.extend(name.and_then(|name| name.trim().parse::<IfName>().ok()));
    }
    Ok(taps)
}

/// The one tap that process `pid` has open.
///
/// # Errors
/// It has none, or several.
pub fn tap_of(pid: u32) -> Result<IfName, LinkError> {
    let mut taps = taps_of(pid)?;
    match taps.pop_first() {
        Some(name) if taps.is_empty() => Ok(name),
        _ => Err(LinkError::NoTap(pid)),
    }
}
