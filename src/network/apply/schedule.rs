//! When the steps of several networks are done, and which of them together.
//!
//! A plan goes network by network, for people to read. It is done stage by stage: what is alike goes to the kernel in one
//! go, and no link is up before every network has its rules.

use std::cmp::Reverse;

use crate::network::plan::{LinkStep, Planned, Step};

/// What belongs together, in the order in which a host comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Dirs,
    NewLinks,
    Sysctls,
    Links,
    Tables,
    Open,
    Servers,
    Forwarding,
}

impl Stage {
    fn of(step: &Step) -> Self {
        match step {
            Step::MakeDir { .. } | Step::RemoveDir { .. } => Self::Dirs,
            Step::SetSysctl { .. } => Self::Sysctls,
            Step::ReplaceTable { .. } | Step::DeleteTable { .. } => Self::Tables,
            Step::StartDnsmasq { .. } | Step::ReloadDnsmasq { .. } | Step::StopDnsmasq { .. } => {
                Self::Servers
            }
            Step::EnableForwarding { .. } | Step::RestoreForwarding { .. } => Self::Forwarding,
            Step::Link(step) => match step {
                LinkStep::AddBridge { .. } | LinkStep::DeleteBridge { .. } => Self::NewLinks,
                LinkStep::SetUp { .. } | LinkStep::SetDown { .. } => Self::Open,
                LinkStep::SetMtu { .. }
                | LinkStep::AddAddress { .. }
                | LinkStep::DeleteAddress { .. } => Self::Links,
            },
        }
    }

    /// Whether its steps are done in one go.
    fn at_once(self) -> bool {
        matches!(
            self,
            Self::NewLinks | Self::Links | Self::Tables | Self::Open
        )
    }
}

/// The steps of a plan in the order in which they are done, those that are done together as one batch.
pub fn forwards(steps: &[Planned]) -> Vec<Vec<&Planned>> {
    let mut steps: Vec<&Planned> = steps.iter().collect();
    steps.sort_by_key(|planned| Stage::of(&planned.step));
    batches(steps)
}

/// As [`forwards`], for steps that take others back.
pub fn backwards(steps: &[Planned]) -> Vec<Vec<&Planned>> {
    let mut steps: Vec<&Planned> = steps.iter().collect();
    steps.sort_by_key(|planned| Reverse(Stage::of(&planned.step)));
    batches(steps)
}

fn batches(steps: Vec<&Planned>) -> Vec<Vec<&Planned>> {
    let alike = |one: &&Planned, other: &&Planned| {
        let stage = Stage::of(&one.step);
        stage.at_once() && stage == Stage::of(&other.step)
    };
    steps.chunk_by(alike).map(<[_]>::to_vec).collect()
}
