//! When the steps of several networks are done, and which of them together.
//!
//! A plan goes network by network, for people to read. It is done stage by stage: what is alike goes to the kernel in one
//! go, and no link is up before every network has its rules. What concerns an uplink of the host is done step by step, as
//! it is written.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::network::plan::{LinkStep, Owner, Planned, Step};

/// What belongs together, in the order in which a host comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Of those who concern an uplink.
    Uplinks,
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
            Step::MoveAddresses { .. } => Self::Uplinks,
            Step::MakeDir { .. } | Step::RemoveDir { .. } => Self::Dirs,
            Step::SetSysctl { .. } => Self::Sysctls,
            Step::ReplaceTable { .. } | Step::DeleteTable { .. } => Self::Tables,
            Step::StartDnsmasq { .. } | Step::ReloadDnsmasq { .. } | Step::StopDnsmasq { .. } => {
                Self::Servers
            }
            Step::EnableForwarding { .. } | Step::RestoreForwarding { .. } => Self::Forwarding,
            Step::Link(step) => match step {
                LinkStep::Add { .. } | LinkStep::Delete { .. } => Self::NewLinks,
                LinkStep::Enslave { .. } | LinkStep::Release { .. } => Self::Uplinks,
                LinkStep::SetUp { .. } | LinkStep::SetDown { .. } => Self::Open,
                LinkStep::SetVlanFiltering { .. }
                | LinkStep::AddVlan { .. }
                | LinkStep::DeleteVlan { .. }
                | LinkStep::SetMtu { .. }
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
    let mut steps = staged(steps);
    steps.sort_by_key(|(stage, _)| *stage);
    batches(&steps)
}

/// As [`forwards`], for steps that take others back.
pub fn backwards(steps: &[Planned]) -> Vec<Vec<&Planned>> {
    let mut steps = staged(steps);
    steps.sort_by_key(|(stage, _)| Reverse(*stage));
    batches(&steps)
}

fn staged(steps: &[Planned]) -> Vec<(Stage, &Planned)> {
    let on_uplinks = steps
        .iter()
        .filter(|planned| Stage::of(&planned.step) == Stage::Uplinks);
    let mut with_uplink: BTreeSet<&Owner> = on_uplinks.map(|planned| &planned.owner).collect();
    let owners = steps.iter().map(|planned| &planned.owner);
    with_uplink.extend(owners.filter(|owner| matches!(owner, Owner::Link(_))));
    let stage = |planned: &Planned| match with_uplink.contains(&planned.owner) {
        true => Stage::Uplinks,
        false => Stage::of(&planned.step),
    };
    steps
        .iter()
        .map(|planned| (stage(planned), planned))
        .collect()
}

fn batches<'a>(steps: &[(Stage, &'a Planned)]) -> Vec<Vec<&'a Planned>> {
    let alike = steps.chunk_by(|(one, _), (other, _)| one == other && one.at_once());
    let batch = |steps: &[(Stage, &'a Planned)]| steps.iter().map(|(_, step)| *step).collect();
    alike.map(batch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::IfName;

    fn planned(owner: Owner, step: Step) -> Planned {
        Planned { owner, step }
    }

    fn up(owner: &Owner, link: &str) -> Planned {
        let link = link.parse().unwrap();
        planned(owner.clone(), LinkStep::SetUp { link }.into())
    }

    fn dir(owner: &Owner) -> Planned {
        let dir = "/run/ringtap".into();
        planned(owner.clone(), Step::MakeDir { dir })
    }

    #[test]
    fn networks_go_side_by_side_and_uplinks_step_by_step() {
        let network = |name: &str| Owner::Network(name.parse().unwrap());
        let (one, other, bond) = (
            network("one"),
            network("other"),
            Owner::Link("bond0".parse::<IfName>().unwrap()),
        );
        let steps = [
            up(&bond, "bond0"),
            dir(&one),
            up(&one, "rt-one"),
            dir(&other),
            up(&other, "rt-other"),
        ];
        let shape = |batches: Vec<Vec<&Planned>>| -> Vec<usize> {
            let place = |step: &Planned| steps.iter().position(|it| it == step).unwrap();
            batches
                .iter()
                .map(|batch| place(batch[0]) * 10 + batch.len())
                .collect()
        };
        assert_eq!(shape(forwards(&steps)), [1, 11, 31, 22]);
        assert_eq!(shape(backwards(&steps)), [22, 11, 31, 1]);
    }
}
