//! nftables as the kernel has them: which tables there are, and a fingerprint of each of ringtap's, by which it is seen whether
//! one is still what was loaded.
//!
//! They are made and listed by `nft`, which (1.0.6) asks for all rules of the host once a table to list them: 2 s for 200
//! tables. The kernel gives all of a kind in one go (linux/netfilter/nf_tables.h). Nothing of it is understood here but
//! names; the rest counts as bytes that are the same as long as the table is.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::fd::OwnedFd;

use rtnetlink::packet_core::{
    DefaultNla, Emitable, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NlasIterator,
};
use rustix::net::netlink::NETFILTER;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use crate::network::plan::TABLE_PREFIX;

/// The families whose tables see what is routed, by their numbers (linux/netfilter.h), as nft calls them.
const ROUTED: [(u8, &str); 3] = [(INET, "inet"), (2, "ip"), (10, "ip6")];
const INET: u8 = 1;

/// As often as this others may change something meanwhile.
const TRIES: usize = 100;

/// More than the kernel puts into one answer.
const ANSWER: usize = 1 << 16;

/// A kind of object.
struct Kind {
    /// The request for all of them.
    get: libc::c_int,
    /// The attribute that has the name of its table.
    table: u16,
    /// Attributes that differ from load to load, or count packets.
    volatile: &'static [u16],
}

const TABLES: Kind = Kind {
    get: libc::NFT_MSG_GETTABLE,
    table: 1,
    volatile: &[4], // its handle
};
const CHAINS: Kind = Kind {
    get: libc::NFT_MSG_GETCHAIN,
    table: 1,
    volatile: &[2, 8], // its handle and counters
};
const RULES: Kind = Kind {
    get: libc::NFT_MSG_GETRULE,
    table: 1,
    volatile: &[3, 6], // its handle, and that of the rule before it
};
const SETS: Kind = Kind {
    get: libc::NFT_MSG_GETSET,
    table: 1,
    volatile: &[16], // its handle
};
const ELEMENTS: Kind = Kind {
    get: libc::NFT_MSG_GETSETELEM,
    table: 1,
    volatile: &[],
};
/// The attribute that has the name of a set, and that by which its elements are asked for.
const SET_NAME: u16 = 2;

/// The tables of a host.
#[derive(Debug)]
pub struct Tables {
    fingerprints: BTreeMap<String, u64>,
    others: Vec<(&'static str, String)>,
}

impl Tables {
    /// Those of the network namespace that this process is in.
    ///
    /// # Errors
    /// The kernel has none, or can't be asked.
    pub fn look() -> io::Result<Self> {
        let mut tries = 1;
        loop {
            match look() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted && tries < TRIES => {
                    tries += 1;
                }
                done => return done,
            }
        }
    }

    /// What tells ringtap's table `name` from any other of that name; none where there is no such table.
    pub fn fingerprint(&self, name: &str) -> Option<u64> {
        self.fingerprints.get(name).copied()
    }

    /// The tables of others that see what is routed: family and name.
    pub fn others(&self) -> &[(&'static str, String)] {
        &self.others
    }
}

fn look() -> io::Result<Tables> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(NETFILTER),
    )?;
    let mut hashers: BTreeMap<String, DefaultHasher> = BTreeMap::new();
    let mut others = Vec::new();
    let tables = dump(&socket, &TABLES, &[])?;
    for table in &tables {
        let Some(name) = table.text(TABLES.table) else {
            continue;
        };
        if table.family == INET && name.starts_with(TABLE_PREFIX) {
            hashers.insert(name, DefaultHasher::new());
        } else if let Some((_, family)) = ROUTED.iter().find(|(it, _)| *it == table.family) {
            others.push((*family, name));
        }
    }
    let mut add = |kind: &Kind, objects: &[Object]| {
        for object in objects.iter().filter(|object| object.family == INET) {
            let hasher = object.text(kind.table).and_then(|it| hashers.get_mut(&it));
            if let Some(hasher) = hasher {
                object.hash(kind, hasher);
            }
        }
    };
    add(&TABLES, &tables);
    for kind in [CHAINS, RULES] {
        add(&kind, &dump(&socket, &kind, &[])?);
    }
    let sets = dump(&socket, &SETS, &[])?;
    add(&SETS, &sets);
    for set in sets.iter().filter(|set| set.is_own()) {
        let named = [SETS.table, SET_NAME].map(|kind| set.attribute(kind));
        let named: Vec<DefaultNla> = named.into_iter().flatten().collect();
        add(&ELEMENTS, &dump(&socket, &ELEMENTS, &named)?);
    }
    Ok(Tables {
        fingerprints: hashers
            .into_iter()
            .map(|(name, hasher)| (name, hasher.finish()))
            .collect(),
        others,
    })
}

/// A table, chain, rule or set, or elements of one, as the kernel tells of it.
struct Object {
    family: u8,
    attributes: Vec<u8>,
}

impl Object {
    /// What follows a netlink header: the family, a version, 16 bits of the generation, and attributes.
    fn read(payload: &[u8]) -> Option<Self> {
        Some(Self {
            family: *payload.first()?,
            attributes: payload.get(4..)?.to_vec(),
        })
    }

    fn is_own(&self) -> bool {
        let table = self.text(SETS.table);
        self.family == INET && table.is_some_and(|name| name.starts_with(TABLE_PREFIX))
    }

    fn attributes(&self) -> impl Iterator<Item = (u16, &[u8])> {
        let all = NlasIterator::new(&self.attributes[..]);
        all.filter_map(Result::ok).map(|it| {
            let (kind, end) = (it.kind(), it.length().into());
            (kind, it.into_inner().get(4..end).unwrap_or_default())
        })
    }

    fn attribute(&self, kind: u16) -> Option<DefaultNla> {
        let (_, value) = self.attributes().find(|(it, _)| *it == kind)?;
        Some(DefaultNla::new(kind, value.to_vec()))
    }

    /// Attribute `kind`, which ends with a zero byte.
    fn text(&self, kind: u16) -> Option<String> {
        let (_, value) = self.attributes().find(|(it, _)| *it == kind)?;
        String::from_utf8(value.strip_suffix(&[0])?.to_vec()).ok()
    }

    fn hash(&self, kind: &Kind, hasher: &mut DefaultHasher) {
        let lasting = |(it, _): &(u16, &[u8])| !kind.volatile.contains(it);
        for (attribute, value) in self.attributes().filter(lasting) {
            hasher.write_u16(attribute);
            hasher.write_usize(value.len());
            hasher.write(value);
        }
    }
}

/// All objects of a kind, or those of it that are `named`.
///
/// # Errors
/// The socket's and the kernel's; `Interrupted` where something was changed meanwhile.
fn dump(socket: &OwnedFd, kind: &Kind, named: &[DefaultNla]) -> io::Result<Vec<Object>> {
    send(socket, &request(kind, named), SendFlags::empty())?;
    let mut objects = Vec::new();
    let mut buffer = vec![0; ANSWER];
    loop {
        let (there, length) = recv(socket, &mut buffer[..], RecvFlags::TRUNC)?;
        if length > there {
            return Err(odd("an answer of more than 64 KiB"));
        }
        let mut rest = &buffer[..there];
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
            if message.flags() & NLM_F_DUMP_INTR != 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let payload = message.payload();
            match message.message_type() {
                NLMSG_DONE | NLMSG_ERROR => return ended(payload).map(|()| objects),
                _ => objects.push(Object::read(payload).ok_or_else(|| odd("half a message"))?),
            }
            let length = (message.length() as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn request(kind: &Kind, named: &[DefaultNla]) -> Vec<u8> {
    const HEADERS: usize = 16 + 4;
    let mut bytes = vec![0; HEADERS + named.buffer_len()];
    let mut message = NetlinkBuffer::new(&mut bytes);
    message.set_length((HEADERS + named.buffer_len()) as u32);
    message.set_message_type((libc::NFNL_SUBSYS_NFTABLES << 8 | kind.get) as u16);
    message.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    let payload = message.payload_mut();
    payload[0] = if named.is_empty() { 0 } else { INET };
    named.emit(&mut payload[4..]);
    bytes
}

/// The last message of an answer has an errno, below zero, or zero.
fn ended(payload: &[u8]) -> io::Result<()> {
    let errno = payload.first_chunk().map(|it| i32::from_ne_bytes(*it));
    match errno {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(odd("half a message")),
    }
}

fn odd(what: &str) -> io::Error {
    io::Error::other(format!("the kernel's answer can't be read: {what}"))
}
