//! The dataplane: one vhost-user-net device on one tap or macvtap.
//!
//! # Theory of operation
//! [`serve()`] opens the tap, starts a worker a queue pair, and then listens for front-ends, or connects to one. Its own
//! event-manager loop waits for a front-end, a message from the one that is connected, somebody who asks for
//! counters (`stats`), and a signal to end. A front-end that goes away leaves its rings stopped; the next is
//! served from the start. Frames never come this way: they are the workers' (`worker`, `queue_pair`, `ring`, `chain`). Before
//! the first of them, the process gives up whatever serving does not take (`sandbox`).
//!
//! Knows virtqueues and taps and nothing else: no netlink, no nftables, no QEMU.

pub mod args;
pub mod capabilities;
pub mod chain;
pub mod coalesce;
pub mod config_space;
pub mod counters;
pub mod dirty_log;
pub mod features;
pub mod guard;
pub mod heard;
pub mod memory;
pub mod message;
pub mod queue_pair;
pub mod rate;
pub mod ring;
pub mod sandbox;
mod serve;
pub mod session;
pub mod socket;
pub mod spin;
pub mod stats;
pub mod vring;
pub mod worker;

pub use args::{BackendArgs, BackendCommand, Endpoint, HostLink, Sandbox};
pub use sandbox::UserIds;
pub use serve::{BackendError, run, serve};
pub use stats::StatsAddr;
