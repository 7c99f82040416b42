//! ringtap: VM networking for one small Linux host, in two halves that meet in a process boundary.
//!
//! **The way of a packet** (`ringtap backend`, [`backend`]): a vhost-user-net device.
//!
//! ```text
//! guest driver → kick → worker (event-manager) → queue_pair::process_tx
//!   → a burst of descriptor chains as iovecs into guest memory → tap.write_burst → kernel bridge
//! and back: tap readable → queue_pair::process_rx → tap.readv into the guest's chains → used ring → call
//! ```
//!
//! **The way of a launch** (every other command, [`config`], [`network`], [`guest`]): the control plane.
//!
//! ```text
//! TOML → Config (validated) → observe the host → plan (a pure value) → apply, with undo → verify
//!   → a supervisor a guest → backend processes → QEMU → guest
//! ```
//!
//! Modules may use those to their right only: `main → cli → bench → {guest → network → config, backend} → {tap, packet,
//! signals, programs, report, log} → {types, clock}`. The two halves never import each other, but for [`backend::BackendArgs`],
//! which the control plane writes as an argv and the backend reads back. [`mod@bench`] measures both.
//!
//! Unsafe code is denied here and allowed in six files: `tap::sys` (ioctls), `tap::queue` and `tap::burst` (vectored I/O and
//! io_uring), `backend::memory` (mapping guest memory), `packet` (packet sockets) and `guest::user` (what QEMU's process does
//! before it is QEMU).

#![deny(unsafe_code)]

pub mod backend;
pub mod bench;
pub mod cli;
pub mod clock;
pub mod config;
pub mod guest;
pub mod log;
pub mod network;
pub mod packet;
pub mod programs;
pub mod report;
pub mod signals;
pub mod tap;
pub mod types;
