//! How many queues of a tap are attached, as rtnetlink tells (`linux/if_link.h`, Linux 4.17): one question by a socket of its own.
//! ethtool's channels say the same, but not where the kernel is as old as Debian 12's, 6.1. `network`'s netlink stands above taps, and
//! has a runtime that a backend needs for nothing else.
//!
//! May touch: a netlink socket, and nothing that it asks about.

use std::io;

use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoData, InfoTun, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

use crate::types::IfName;

/// Of `linux/if_link.h`; taps that are not `multi_queue` do not have it.
const IFLA_TUN_NUM_QUEUES: u16 = 8;

/// How many queues processes have attached to `name`, which is `multi_queue`.
///
/// # Errors
/// There is no such link, or it is no tap.
pub(super) fn attached_queues(name: &IfName) -> io::Result<u32> {
    let queues = queues_of(&ask(name)?);
    queues.ok_or_else(|| io::Error::other("the kernel does not tell: it is older than Linux 4.17"))
}

/// What the kernel says of a link.
fn ask(name: &IfName) -> io::Result<LinkMessage> {
    let mut meant = LinkMessage::default();
    meant
        .attributes
        .push(LinkAttribute::IfName(name.to_string()));
    let mut question = NetlinkMessage::from(RouteNetlinkMessage::GetLink(meant));
    question.header.flags = NLM_F_REQUEST;
    question.finalize();
    let mut bytes = vec![0; question.buffer_len()];
    question.serialize(&mut bytes);

    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?; // the kernel
    socket.send(&bytes, 0)?;
    let (bytes, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes);
    match answer.map_err(io::Error::other)?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(link),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn queues_of(link: &LinkMessage) -> Option<u32> {
    let infos = link.attributes.iter().find_map(|it| match it {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    let of_tun = infos.iter().find_map(|it| match it {
        LinkInfo::Data(InfoData::Tun(of_tun)) => Some(of_tun),
        _ => None,
    })?;
    let InfoTun::Other(number) = of_tun.iter().find(|it| it.kind() == IFLA_TUN_NUM_QUEUES)? else {
        return None;
    };
    let mut bytes = [0; 4];
    if number.value_len() != bytes.len() {
        return None;
    }
    number.emit_value(&mut bytes);
    Some(u32::from_ne_bytes(bytes))
}
