//! Links, addresses and routes through rtnetlink: one connection, and requests that wait for their answer one by one or many
//! together.
//!
//! rtnetlink is asynchronous and the control plane is not: each method runs its request to the end on a
//! runtime of this thread.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::Pin;

use futures_util::TryStreamExt;
use futures_util::future::join_all;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    BondMode as netlink_bond, BridgeStpState, BridgeVlanInfoFlags, InfoBridgePort, InfoData,
    InfoKind, InfoPortData, InfoPortKind, InfoVeth, IpVlanMode, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage, MacVlanMode, MacVtapMode,
};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkBond, LinkBridge, LinkBridgeVlan, LinkIpVlan, LinkIpVtap,
    LinkMacVlan, LinkMacVtap, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVlan,
    RouteMessageBuilder,
};
use thiserror::Error;
use tokio::runtime::Runtime;

use crate::config::{BondMode, MacvtapMode, NicVlans, StaticRoute};
use crate::network::netns;
use crate::network::plan::{Kind, MIIMON, Master};
use crate::types::{IfName, MacAddr, Mtu, VlanId};

/// The kernel refused a change to a link, address or route, or could not be asked.
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

    /// A request was lost, which a connection does not say by itself.
    pub fn no_answer(doing: impl Into<String>) -> Self {
        let lost = "the kernel did not answer";
        Self::new(doing, io::Error::other(lost))
    }

    /// There is no link `name`.
    pub fn no_link(name: &IfName) -> Self {
        Self::new(
            format!("find link {name}"),
            io::Error::from_raw_os_error(libc::ENODEV),
        )
    }
}

const VLAN_FILTERING: &str = "a kernel with CONFIG_BRIDGE_VLAN_FILTERING";

/// How many requests are sent before answers are read: more of those than a socket holds would be lost.
const AT_ONCE: usize = 64;

type Answer = Pin<Box<dyn Future<Output = Result<(), rtnetlink::Error>>>>;

/// A change to be asked of the kernel.
pub struct Request {
    doing: String,
    /// An errno that means that there is nothing to do.
    fine: Option<i32>,
    send: Box<dyn FnOnce(Handle) -> Answer>,
}

impl Request {
    fn new<F>(doing: String, send: impl FnOnce(Handle) -> F + 'static) -> Self
    where
        F: Future<Output = Result<(), rtnetlink::Error>> + 'static,
    {
        Self {
            doing,
            fine: None,
            send: Box::new(|handle| Box::pin(send(handle))),
        }
    }

    async fn run(self, handle: Handle) -> Result<(), NetlinkError> {
        match (self.send)(handle).await.map_err(io_error) {
            Err(error) if self.fine.is_some() && error.raw_os_error() == self.fine => Ok(()),
            Err(error) => Err(NetlinkError::new(self.doing, error)),
            Ok(()) => Ok(()),
        }
    }

    /// Makes a bridge, spanning tree off, down.
    pub fn add_bridge(name: &IfName, mac: Option<MacAddr>, vlan_filtering: bool) -> Self {
        let builder = LinkMessageBuilder::<LinkBridge>::new(name.as_str())
            .stp_state(BridgeStpState::Disabled);
        if !vlan_filtering {
            return Self::add(format!("make bridge {name}"), with_mac(builder, mac));
        }
        let doing = format!("make bridge {name} (which needs {VLAN_FILTERING})");
        Self::add(doing, with_mac(builder.vlan_filtering(true), mac))
    }

    /// Has bridge `link`, called `name`, heed the VLANs of its ports, or not.
    pub fn set_vlan_filtering(name: &IfName, link: &LinkMessage, on: bool) -> Self {
        // A link's kind goes with a change of what is the kind's own; it is known by its index.
        let mut message = LinkMessageBuilder::<LinkBridge>::new(name.as_str())
            .vlan_filtering(on)
            .build();
        message.header.index = link.header.index;
        let doing = format!("set VLAN filtering of {name} (which needs {VLAN_FILTERING})");
        Self::new(doing, |handle| handle.link().set_port(message).execute())
    }

    /// Lets frames of `vlans` through port `link`, called `name`.
    pub fn add_vlans(name: &IfName, link: &LinkMessage, vlans: &NicVlans) -> Self {
        let mut builder = LinkBridgeVlan::new(link.header.index);
        if let Some(id) = vlans.untagged {
            let untagged = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
            builder = builder.vlan(id.get(), untagged);
        }
        for id in &vlans.tagged {
            builder = builder.vlan(id.get(), BridgeVlanInfoFlags::empty());
        }
        let message = builder.build();
        let doing = format!("let VLANs through port {name} (which needs {VLAN_FILTERING})");
        Self::new(doing, |handle| handle.link().set(message).execute())
    }

    /// Keeps frames of VLAN `id` from port `link`, called `name`.
    pub fn delete_vlan(name: &IfName, link: &LinkMessage, id: VlanId) -> Self {
        let builder = LinkBridgeVlan::new(link.header.index);
        let message = builder.vlan(id.get(), BridgeVlanInfoFlags::empty()).build();
        let index = link.header.index;
        let doing = format!("keep VLAN {id} from port {name}");
        let request = Self::new(doing, move |handle| {
            let mut request = handle.link().del(index);
            *request.message_mut() = message;
            request.execute()
        });
        Self {
            fine: Some(libc::ENOENT),
            ..request
        }
    }

    /// Makes a bond, down.
    pub fn add_bond(name: &IfName, mac: Option<MacAddr>, mode: BondMode) -> Self {
        let mode = match mode {
            BondMode::ActiveBackup => netlink_bond::ActiveBackup,
            BondMode::BalanceRr => netlink_bond::BalanceRr,
            BondMode::BalanceXor => netlink_bond::BalanceXor,
            BondMode::Broadcast => netlink_bond::Broadcast,
            BondMode::Lacp => netlink_bond::Ieee8023Ad,
            BondMode::BalanceTlb => netlink_bond::BalanceTlb,
            BondMode::BalanceAlb => netlink_bond::BalanceAlb,
        };
        let builder = LinkBond::new(name.as_str()).mode(mode).miimon(MIIMON);
        let doing = format!("make bond {name} (which needs the kernel's module bonding)");
        Self::add(doing, with_mac(builder, mac))
    }

    /// Makes the link for VLAN `id` of `over`, down.
    pub fn add_vlan(name: &IfName, over: &LinkMessage, id: VlanId) -> Self {
        let message = LinkVlan::new(name.as_str(), over.header.index, id.get()).build();
        let doing = format!("make VLAN link {name} (which needs the kernel's module 8021q)");
        Self::add(doing, message)
    }

    /// Makes a cable to `peer` in network namespace `namespace`, down.
    ///
    /// # Errors
    /// There is no such namespace.
    pub fn add_veth(
        name: &IfName,
        mac: Option<MacAddr>,
        peer: &IfName,
        namespace: &str,
    ) -> Result<Self, NetlinkError> {
        let failed = |error| NetlinkError::new(format!("use namespace {namespace}"), error);
        let namespace = netns::file(namespace).map_err(failed)?;
        let other_end = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer.to_string())
            .setns_by_fd(namespace.as_raw_fd());
        let builder = LinkVeth::new(name.as_str(), peer.as_str())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(other_end.build())));
        let message = with_mac(builder, mac);
        let doing = format!("make veth {name} (which needs the kernel's module veth)");
        Ok(Self::new(doing, |handle| async move {
            let added = handle.link().add(message).execute().await;
            drop(namespace); // which the request has by its number
            added
        }))
    }

    /// Makes a macvlan of `over`, down.
    pub fn add_macvlan(name: &IfName, over: &LinkMessage, mac: Option<MacAddr>) -> Self {
        let builder = LinkMacVlan::new(name.as_str(), over.header.index, MacVlanMode::Bridge);
        let doing = format!("make macvlan {name} (which needs the kernel's module macvlan)");
        Self::add(doing, with_mac(builder, mac))
    }

    /// Makes an ipvlan of `over`, down, with the address of that.
    pub fn add_ipvlan(name: &IfName, over: &LinkMessage) -> Self {
        let builder = LinkIpVlan::new(name.as_str(), over.header.index, IpVlanMode::L2);
        let doing = format!("make ipvlan {name} (which needs the kernel's module ipvlan)");
        Self::add(doing, builder.build())
    }

    /// Makes `link`, called `name`, a port of `master`; it is up then.
    pub fn enslave(name: &IfName, link: &LinkMessage, master: &LinkMessage, to: Master) -> Self {
        let index = link.header.index;
        let master = master.header.index;
        let alone = LinkUnspec::new_with_index(index);
        let down = match to {
            Master::Bridge => None,
            Master::Bond => Some(LinkUnspec::new_with_index(index).down().build()),
        };
        let enslave = match to {
            Master::Bridge => alone.controller(master).up().build(),
            Master::Bond => alone.controller(master).build(), // which sets it up
        };
        Self::new(format!("make {name} a port"), |handle| async move {
            if let Some(down) = down {
                handle.link().set(down).execute().await?;
            }
            handle.link().set(enslave).execute().await
        })
    }

    /// Makes `link`, called `name`, nobody's port.
    pub fn release(name: &IfName, link: &LinkMessage, up: bool) -> Self {
        let index = link.header.index;
        let release = LinkUnspec::new_with_index(index).nocontroller().build();
        // By itself: the release from a bond sets it down.
        let state = LinkUnspec::new_with_index(index);
        let state = if up { state.up() } else { state.down() };
        let state = state.build();
        Self::new(
            format!("take {name} from its master"),
            |handle| async move {
                handle.link().set(release).execute().await?;
                handle.link().set(state).execute().await
            },
        )
    }

    fn add(doing: String, message: LinkMessage) -> Self {
        Self::new(doing, |handle| handle.link().add(message).execute())
    }

    /// Deletes `link`, called `name`.
    pub fn delete(name: &IfName, link: &LinkMessage) -> Self {
        let index = link.header.index;
        Self::new(format!("delete link {name}"), move |handle| {
            handle.link().del(index).execute()
        })
    }

    /// Sets the MTU of `link`, called `name`, in bytes.
    pub fn set_mtu(name: &IfName, link: &LinkMessage, mtu: u32) -> Self {
        let doing = format!("set the MTU of {name} to {mtu}");
        Self::set(doing, link, |link| link.mtu(mtu))
    }

    /// Sets `link`, called `name`, up.
    pub fn set_up(name: &IfName, link: &LinkMessage) -> Self {
        Self::set(format!("set {name} up"), link, LinkMessageBuilder::up)
    }

    /// Sets `link`, called `name`, down.
    pub fn set_down(name: &IfName, link: &LinkMessage) -> Self {
        Self::set(format!("set {name} down"), link, LinkMessageBuilder::down)
    }

    fn set(
        doing: String,
        link: &LinkMessage,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Self {
        let message = change(LinkUnspec::new_with_index(link.header.index)).build();
        Self::new(doing, |handle| handle.link().set(message).execute())
    }

    /// Gives `link`, called `name`, an address, unless it has it. It is in use at once: other hosts are not asked whether they
    /// have it.
    pub fn add_address(name: &IfName, link: &LinkMessage, address: IpNet) -> Self {
        let index = link.header.index;
        let doing = format!("give {name} the address {address}");
        let request = Self::new(doing, move |handle| {
            let mut request = handle
                .address()
                .add(index, address.addr(), address.prefix_len());
            if address.addr().is_ipv6() {
                request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            }
            request.execute()
        });
        Self {
            fine: Some(libc::EEXIST),
            ..request
        }
    }

    /// Takes an address, which may be absent, from `link`, called `name`.
    pub fn delete_address(name: &IfName, link: &LinkMessage, address: IpNet) -> Self {
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
        let request = Self::new(doing, |handle| handle.address().del(message).execute());
        Self {
            fine: Some(libc::EADDRNOTAVAIL),
            ..request
        }
    }

    /// Routes what is behind a machine on `link`, called `name`, to it, in place of another way of the same metric.
    pub fn add_route(name: &IfName, link: &LinkMessage, route: &StaticRoute) -> Self {
        let message = route_message(link, route);
        Self::new(format!("route {route} over {name}"), |handle| {
            handle.route().add(message).replace().execute()
        })
    }

    /// Has the host answer for `address` on `link`, called `name`.
    pub fn add_proxy(name: &IfName, link: &LinkMessage, address: IpAddr) -> Self {
        let index = link.header.index;
        Self::new(format!("answer for {address} on {name}"), move |handle| {
            let add = handle.neighbours().add(index, address).replace();
            add.flags(NeighbourFlags::Proxy)
                .state(NeighbourState::None)
                .execute()
        })
    }

    /// No longer has the host answer for `address` on `link`, called `name`.
    pub fn delete_proxy(name: &IfName, link: &LinkMessage, address: IpAddr) -> Self {
        let index = link.header.index;
        let doing = format!("no longer answer for {address} on {name}");
        let request = Self::new(doing, move |handle| {
            let mut add = handle
                .neighbours()
                .add(index, address)
                .flags(NeighbourFlags::Proxy);
            let message = add.message_mut().clone();
            handle.neighbours().del(message).execute()
        });
        Self {
            fine: Some(libc::ENOENT),
            ..request
        }
    }

    /// Deletes a route, which may be absent, over `link`, called `name`.
    pub fn delete_route(name: &IfName, link: &LinkMessage, route: &StaticRoute) -> Self {
        let mut message = route_message(link, route);
        // Whoever made it.
        message.header.protocol = RouteProtocol::Unspec;
        message.header.scope = RouteScope::NoWhere;
        let request = Self::new(format!("delete the route {route} over {name}"), |handle| {
            handle.route().del(message).execute()
        });
        Self {
            fine: Some(libc::ESRCH),
            ..request
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

    /// Does `requests` without waiting for the answer to one before the next is sent; gives the outcome of each. Nothing
    /// is asked where there is no request.
    pub fn do_all(
        &self,
        requests: Vec<Result<Option<Request>, NetlinkError>>,
    ) -> Vec<Result<(), NetlinkError>> {
        let run = |request: Result<Option<Request>, NetlinkError>| {
            let handle = self.handle.clone();
            async move {
                match request? {
                    Some(request) => request.run(handle).await,
                    None => Ok(()),
                }
            }
        };
        let mut outcomes = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter().map(run);
        loop {
            let some: Vec<_> = requests.by_ref().take(AT_ONCE).collect();
            if some.is_empty() {
                return outcomes;
            }
            outcomes.extend(self.runtime.block_on(join_all(some)));
        }
    }

    fn do_one(&self, request: Request) -> Result<(), NetlinkError> {
        self.runtime.block_on(request.run(self.handle.clone()))
    }

    /// Every link by its name.
    ///
    /// # Errors
    /// The kernel's.
    pub fn links(&self) -> Result<BTreeMap<String, LinkMessage>, NetlinkError> {
        let messages: Vec<LinkMessage> = self.ask("list links", |handle: Handle| async move {
            handle.link().get().execute().try_collect().await
        })?;
        if messages.is_empty() {
            return Err(NetlinkError::no_answer("list links")); // there is a loopback always
        }
        let named = messages
            .into_iter()
            .filter_map(|link| Some((name_of(&link)?, link)));
        Ok(named.collect())
    }

    /// Deletes link `name`, if it is there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete_link(&self, name: &IfName) -> Result<(), NetlinkError> {
        match self.link(name)? {
            Some(link) => self.do_one(Request::delete(name, &link)),
            None => Ok(()),
        }
    }

    /// The MTU of `name`, in bytes.
    ///
    /// # Errors
    /// The kernel's, or there is no such link.
    pub fn mtu(&self, name: &IfName) -> Result<u32, NetlinkError> {
        mtu_of(&self.there(name)?).ok_or_else(|| NetlinkError::no_link(name))
    }

    /// Sets the MTU of `name`, in bytes.
    ///
    /// # Errors
    /// The kernel's, or there is no such link.
    pub fn set_mtu(&self, name: &IfName, mtu: u32) -> Result<(), NetlinkError> {
        self.do_one(Request::set_mtu(name, &self.there(name)?, mtu))
    }

    /// Sets `name` up.
    ///
    /// # Errors
    /// The kernel's, or there is no such link.
    pub fn set_up(&self, name: &IfName) -> Result<(), NetlinkError> {
        self.do_one(Request::set_up(name, &self.there(name)?))
    }

    /// Sets `name` down.
    ///
    /// # Errors
    /// The kernel's, or there is no such link.
    pub fn set_down(&self, name: &IfName) -> Result<(), NetlinkError> {
        self.do_one(Request::set_down(name, &self.there(name)?))
    }

    /// Gives `tap`, which is to be a port of `bridge`, the bridge's MTU or the one given.
    ///
    /// # Errors
    /// The kernel's, or either is missing.
    pub fn fit(&self, tap: &IfName, bridge: &IfName, mtu: Option<Mtu>) -> Result<(), NetlinkError> {
        let mtu = match mtu {
            Some(mtu) => mtu.into(),
            None => self.mtu(bridge)?,
        };
        self.set_mtu(tap, mtu)
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
        let port = self.there(tap)?;
        self.do_one(Request::set(doing, &port, |link| {
            let link = match mtu {
                Some(mtu) => link.mtu(mtu),
                None => link,
            };
            link.controller(master.header.index)
        }))
    }

    /// Makes `port` nobody's, and sets it down.
    ///
    /// # Errors
    /// The kernel's, or there is no such link.
    pub fn release(&self, port: &IfName) -> Result<(), NetlinkError> {
        self.do_one(Request::release(port, &self.there(port)?, false))
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

    /// Makes an ipvtap on `uplink`, of its MTU and address, down.
    ///
    /// # Errors
    /// The kernel's, such as that it has no ipvtaps, or there is no such uplink.
    pub fn add_ipvtap(&self, name: &IfName, uplink: &IfName) -> Result<(), NetlinkError> {
        let index = self.index(uplink)?;
        let message = LinkIpVtap::new(name.as_str(), index, IpVlanMode::L2).build();
        let doing = format!(
            "make ipvtap {name} on {uplink} (which needs the kernel's module ipvtap, and an uplink that is in no \
             other use)"
        );
        self.ask(doing, |handle| handle.link().add(message).execute())
    }

    /// Has macvtap `name` take every multicast frame: which of them its guest listens to is not known.
    ///
    /// # Errors
    /// The kernel's, or there is no such link.
    pub fn take_all_multicast(&self, name: &IfName) -> Result<(), NetlinkError> {
        let link = self.there(name)?;
        let doing = format!("have {name} take all multicast frames");
        self.do_one(Request::set(doing, &link, |link| link.allmulticast(true)))
    }

    /// Moves link `name` to a network namespace.
    ///
    /// # Errors
    /// The kernel's, or there is no such link.
    pub fn move_to(&self, name: &IfName, namespace: BorrowedFd<'_>) -> Result<(), NetlinkError> {
        let link = self.there(name)?;
        let doing = format!("move {name} to a namespace of its own");
        let fd = namespace.as_raw_fd();
        self.do_one(Request::set(doing, &link, |link| link.setns_by_fd(fd)))
    }

    /// Gives `name` single addresses.
    ///
    /// # Errors
    /// The kernel's, such as that another ipvtap of the uplink has one, or there is no such link.
    pub fn add_addresses(&self, name: &IfName, addresses: &[IpAddr]) -> Result<(), NetlinkError> {
        let link = self.there(name)?;
        let mut addresses = addresses.iter();
        addresses.try_for_each(|ip| self.do_one(Request::add_address(name, &link, (*ip).into())))
    }

    /// The MAC address of `name`.
    ///
    /// # Errors
    /// The kernel's, or there is no such link, or none with such an address.
    pub fn mac(&self, name: &IfName) -> Result<MacAddr, NetlinkError> {
        let link = self.there(name)?;
        let mac = mac_of(&link).and_then(MacAddr::from_octets);
        mac.ok_or_else(|| NetlinkError::no_link(name))
    }

    /// The host's addresses on `name`.
    ///
    /// # Errors
    /// The kernel's, or there is no such link.
    pub fn addresses(&self, name: &IfName) -> Result<Vec<IpAddr>, NetlinkError> {
        let index = self.index(name)?;
        let doing = format!("list the addresses of {name}");
        let messages: Vec<AddressMessage> = self.ask(doing, |handle| async move {
            let request = handle.address().get().set_link_index_filter(index);
            request.execute().try_collect().await
        })?;
        Ok(messages.iter().filter_map(own_address).collect())
    }

    /// Puts `port`, which is one of a bridge that heeds VLANs, in `vlans` and no others.
    ///
    /// # Errors
    /// The kernel's, or there is no such link.
    pub fn set_vlans(&self, port: &IfName, vlans: &NicVlans) -> Result<(), NetlinkError> {
        let link = self.there(port)?;
        if !vlans.all().any(|id| id == VlanId::DEFAULT) {
            self.do_one(Request::delete_vlan(port, &link, VlanId::DEFAULT))?;
        }
        self.do_one(Request::add_vlans(port, &link, vlans))
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

    /// Link `name`, if it is there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn link(&self, name: &IfName) -> Result<Option<LinkMessage>, NetlinkError> {
        let wanted = name.to_string();
        let doing = format!("look for link {name}");
        let found = self.ask(&doing, |handle| async move {
            let request = handle.link().get().match_name(wanted);
            request.execute().try_next().await
        });
        match found {
            Err(error) if error.source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Ok(None) => Err(NetlinkError::no_answer(doing)),
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
            None => Err(NetlinkError::no_link(name)),
        }
    }
}

fn route_message(link: &LinkMessage, route: &StaticRoute) -> RouteMessage {
    let mut message = match route.to {
        IpNet::V4(_) => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        IpNet::V6(_) => RouteMessageBuilder::<Ipv6Addr>::new().build(),
    };
    message.header.destination_prefix_length = route.to.prefix_len();
    message.attributes.extend([
        RouteAttribute::Destination(route.to.network().into()),
        RouteAttribute::Oif(link.header.index),
        RouteAttribute::Priority(route.metric),
    ]);
    match route.via {
        Some(via) => message.attributes.push(RouteAttribute::Gateway(via.into())),
        None => message.header.scope = RouteScope::Link,
    }
    message
}

fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

fn name_of(link: &LinkMessage) -> Option<String> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })
}

fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        })
}

fn with_mac<T>(builder: LinkMessageBuilder<T>, mac: Option<MacAddr>) -> LinkMessage {
    match mac {
        Some(mac) => builder.address(mac.octets().to_vec()).build(),
        None => builder.build(),
    }
}

/// Whether `link` is a bond.
pub fn is_bond(link: &LinkMessage) -> bool {
    is_kind(link, &InfoKind::Bond)
}

fn is_kind(link: &LinkMessage, kind: &InfoKind) -> bool {
    let info = |info: &LinkInfo| matches!(info, LinkInfo::Kind(is) if is == kind);
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().any(info),
        _ => false,
    })
}

/// Whether `link` is what it was made as.
pub fn is_made(link: &LinkMessage, kind: &Kind, mac: Option<MacAddr>) -> bool {
    let kind = match kind {
        Kind::Bridge { .. } => InfoKind::Bridge,
        Kind::Bond(_) => InfoKind::Bond,
        Kind::Vlan { .. } => InfoKind::Vlan,
        Kind::Veth { .. } => InfoKind::Veth,
        Kind::Macvlan { .. } => InfoKind::MacVlan,
        Kind::Ipvlan { .. } => InfoKind::IpVlan,
    };
    // A bond's address is that of its links in the end.
    is_kind(link, &kind)
        && mac.is_none_or(|mac| kind == InfoKind::Bond || mac_of(link) == Some(&mac.octets()))
}

/// Whether `link` is a port of `master`.
pub fn is_port_of(link: &LinkMessage, master: &LinkMessage) -> bool {
    controller(link) == Some(master.header.index)
}

/// The index of what `link` is a port of, if it is one.
pub fn controller(link: &LinkMessage) -> Option<u32> {
    let mut attributes = link.attributes.iter();
    attributes.find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    })
}

/// Whether `link` is set up.
pub fn is_up(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up)
}

/// The address that a link has itself: `Local`, as `Address` is the peer's on a point-to-point link; else they are one, and IPv6
/// has but the latter.
pub fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let mut own = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => own = Some(*ip),
            AddressAttribute::Address(ip) => own = own.or(Some(*ip)),
            _ => {}
        }
    }
    own
}

/// The address of `link`, in the order of the wire.
pub fn mac_of(link: &LinkMessage) -> Option<&[u8]> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => Some(&bytes[..]),
            _ => None,
        })
}
