//! What several integration tests share. Each test binary uses a part of it.
#![allow(dead_code)]

pub mod driver;
pub mod front_end;
pub mod netns;
