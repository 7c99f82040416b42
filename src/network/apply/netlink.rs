//! Links and addresses through rtnetlink: one connection, requests that wait for their answer.
//!
//! rtnetlink is asynchronous and the control plane is not: each method runs its request to the end on a
//! runtime of this thread.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{
    BridgeStpState, InfoBridgePort, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkInfo,
    LinkMessage, MacVtapMode,
};
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkBridge, LinkMacVtap, LinkMessageBuilder, LinkUnspec,
};
use thiserror::Error;
use tokio::runtime::Runtime;

use crate::config::MacvtapMode;
use crate::types::{IfName, MacAddr, Mtu};

/// The kernel refused a change to a link or address, or could not be asked.
#[derive(Debug, Error)]
#[error("cannot {doing}")]
pub struct NetlinkError {
    doing: String,
    source: io::Error,
}

impl NetlinkError {
    fn new(doing: impl Into<String>, source: io::Error) -> Self {
        Self {
            doing: doing.into(),
            source,
        }
    }
}

/// A connection to the kernel's routing subsystem, in the network namespace it was opened in.
pub struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

impl Netlink {
    /// Connects.
    ///
    /// # Errors
    /// No socket can be had.
    pub fn open() -> Result<Self, NetlinkError> {
        let failed = |source| NetlinkError::new("open a netlink socket", source);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let handle = {
            let _guard = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
            runtime.spawn(connection);
            handle
        };
        Ok(Self { runtime, handle })
    }

    /// Runs what `request` makes of the connection to its end; `doing` says what it is for.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ask<T, F>(
        &self,
        doing: impl Into<String>,
        request: impl FnOnce(Handle) -> F,
    ) -> Result<T, NetlinkError>
    where
        F: Future<Output = Result<T, rtnetlink::Error>>,
    {
        self.runtime
            .block_on(request(self.handle.clone()))
            .map_err(|error| NetlinkError::new(doing, io_error(error)))
    }

    /// Makes a bridge with address `mac`, spanning tree off, down.
    ///
    /// # Errors
    /// The kernel's, such as a link of that name.
    pub fn add_bridge(&self, name: &IfName, mac: MacAddr) -> Result<(), NetlinkError> {
        let message = LinkMessageBuilder::<LinkBridge>::new(name.as_str())
            .address(mac.octets().to_vec())
            .stp_state(BridgeStpState::Disabled)
            .build();
        self.ask(format!("make bridge {name}"), |handle| {
            handle.link().add(message).execute()
        })
    }

    /// Deletes bridge `name`, if it is there and has address `mac`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete_bridge(&self, name: &IfName, mac: MacAddr) -> Result<(), NetlinkError> {
        match self.link(name)? {
            Some(link) if is_bridge(&link) && has_mac(&link, mac) => self.delete(name, &link),
            _ => Ok(()),
        }
    }

    /// Deletes link `name`, if it is there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete_link(&self, name: &IfName) -> Result<(), NetlinkError> {
        match self.link(name)? {
            Some(link) => self.delete(name, &link),
            None => Ok(()),
        }
    }

    fn delete(&self, name: &IfName, link: &LinkMessage) -> Result<(), NetlinkError> {
        let index = link.header.index;
        self.ask(format!("delete link {name}"), |handle| {
            handle.link().del(index).execute()
        })
    }

    /// Sets the MTU of `name`, in bytes.
    ///
    /// # Errors
    /// The kernel's, or there is no such link.
    pub fn set_mtu(&self, name: &IfName, mtu: u32) -> Result<(), NetlinkError> {
        let doing = format!("set the MTU of {name} to {mtu}");
        self.set(name, doing, |link| link.mtu(mtu))
    }

    /// Sets `name` up.
    ///
    /// # Errors
    /// The kernel's, or there is no such link.
    pub fn set_up(&self, name: &IfName) -> Result<(), NetlinkError> {
        self.set(name, format!("set {name} up"), LinkMessageBuilder::up)
    }

    /// Sets `name` down; it may be absent.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_down(&self, name: &IfName) -> Result<(), NetlinkError> {
        if self.link(name)?.is_none() {
            return Ok(());
        }
        self.set(name, format!("set {name} down"), LinkMessageBuilder::down)
    }

    /// Makes `tap` a port of `bridge`, of the bridge's MTU or the one given.
    ///
    /// # Errors
    /// The kernel's, or either is missing.
    pub fn attach(
        &self,
        tap: &IfName,
        bridge: &IfName,
        mtu: Option<Mtu>,
    ) -> Result<(), NetlinkError> {
        let master = self.there(bridge)?;
        // A port of a smaller one would shrink the bridge's.
        let mtu = mtu.map(u32::from).or_else(|| mtu_of(&master));
        let doing = format!("make {tap} a port of {bridge}");
        self.set(tap, doing, |link| {
            let link = match mtu {
                Some(mtu) => link.mtu(mtu),
                None => link,
            };
            link.controller(master.header.index)
        })
    }

    /// Makes a macvtap with address `mac` on `uplink`, of its MTU, down.
    ///
    /// # Errors
    /// The kernel's, such as that it has no macvtaps, or there is no such uplink.
    pub fn add_macvtap(
        &self,
        name: &IfName,
        uplink: &IfName,
        peers: MacvtapMode,
        mac: MacAddr,
    ) -> Result<(), NetlinkError> {
        let mode = match peers {
            MacvtapMode::Bridge => MacVtapMode::Bridge,
            MacvtapMode::Vepa => MacVtapMode::Vepa,
            MacvtapMode::Private => MacVtapMode::Private,
            MacvtapMode::Passthru => MacVtapMode::Passthrough,
        };
        let message = LinkMacVtap::new(name.as_str(), self.index(uplink)?, mode)
            .address(mac.octets().to_vec())
            .build();
        let doing = format!(
            "make macvtap {name} on {uplink} (which needs the kernel's module macvtap, and an uplink that is in no \
             other use)"
        );
        self.ask(doing, |handle| handle.link().add(message).execute())
    }

    /// Lets `port`, which is one of a bridge, exchange frames only with ports that are not isolated, such as the bridge.
    ///
    /// # Errors
    /// The kernel's, or there is no such link.
    pub fn isolate(&self, port: &IfName) -> Result<(), NetlinkError> {
        let index = self.index(port)?;
        let isolated = InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(true)]);
        let info = LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(isolated),
        ]);
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(info)
            .build();
        self.ask(format!("isolate port {port}"), |handle| {
            handle.link().set_port(message).execute()
        })
    }

    fn set(
        &self,
        name: &IfName,
        doing: String,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetlinkError> {
        let index = self.index(name)?;
        let message = change(LinkUnspec::new_with_index(index)).build();
        self.ask(doing, |handle| handle.link().set(message).execute())
    }

    /// Gives `name` an address, which is in use at once: other hosts are not asked whether they have it.
    ///
    /// # Errors
    /// The kernel's, or there is no such link.
    pub fn add_address(&self, name: &IfName, address: IpNet) -> Result<(), NetlinkError> {
        let index = self.index(name)?;
        self.ask(format!("give {name} the address {address}"), |handle| {
            let mut request = handle
                .address()
                .add(index, address.addr(), address.prefix_len());
            if address.addr().is_ipv6() {
                request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            }
            request.execute()
        })
    }

    /// Takes an address from `name`; either may be absent.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete_address(&self, name: &IfName, address: IpNet) -> Result<(), NetlinkError> {
        let Some(link) = self.link(name)? else {
            return Ok(());
        };
        let (index, prefix) = (link.header.index, address.prefix_len());
        let message = match address {
            IpNet::V4(net) => AddressMessageBuilder::<Ipv4Addr>::new()
                .index(index)
                .address(net.addr(), prefix)
                .build(),
            IpNet::V6(net) => AddressMessageBuilder::<Ipv6Addr>::new()
                .index(index)
                .address(net.addr(), prefix)
                .build(),
        };
        let doing = format!("take the address {address} from {name}");
        match self.ask(doing, |handle| handle.address().del(message).execute()) {
            Err(error) if error.source.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
            done => done,
        }
    }

    /// Link `name`, if it is there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn link(&self, name: &IfName) -> Result<Option<LinkMessage>, NetlinkError> {
        let wanted = name.to_string();
        let found = self.ask(format!("look for link {name}"), |handle| async move {
            let request = handle.link().get().match_name(wanted);
            request.execute().try_next().await
        });
        match found {
            Err(error) if error.source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            found => found,
        }
    }

    fn index(&self, name: &IfName) -> Result<u32, NetlinkError> {
        Ok(self.there(name)?.header.index)
    }

    /// Link `name`, which must be there.
    fn there(&self, name: &IfName) -> Result<LinkMessage, NetlinkError> {
        match self.link(name)? {
            Some(link) => Ok(link),
            None => Err(NetlinkError::new(
                format!("find link {name}"),
                io::Error::from_raw_os_error(libc::ENODEV),
            )),
        }
    }
}

fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        })
}

fn is_bridge(link: &LinkMessage) -> bool {
    let kind = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::Bridge));
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().any(kind),
        _ => false,
    })
}

fn has_mac(link: &LinkMessage, mac: MacAddr) -> bool {
    link.attributes.iter().any(
        |attribute| matches!(attribute, LinkAttribute::Address(bytes) if *bytes == mac.octets()),
    )
}
