//! What several integration tests share. Each test binary uses a part of it.
#![allow(dead_code)]

pub mod bridged;
pub mod bytes;
pub mod claims;
pub mod console;
pub mod dhcp;
pub mod dice;
pub mod driver;
pub mod front_end;
pub mod golden;
pub mod host;
pub mod kernel;
pub mod lab;
pub mod machine;
pub mod netns;
pub mod nic;
pub mod ovs;
pub mod party;
pub mod served;
pub mod terminal;
pub mod testpmd;
pub mod transfer;
pub mod web;
pub mod wire;
pub mod world;
