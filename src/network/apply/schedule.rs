//! When the steps of several networks are done, and which of them together.
//!
//! A plan goes network by network, for people to read. It is done kind by kind: what is alike goes to the kernel in one go (the
//! host's, and each tenant's), and no link is up before every network has its rules. What concerns an uplink of the host is
//! done step by step, as it is written.

use std::collections::BTreeSet;

use crate::network::plan::{LinkStep, OvsStep, Owner, Planned, Step};

/// What belongs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// All steps of those who concern an uplink.
    Uplinks,
    Dirs,
    LinksThatEnd,
    Namespaces,
    LinksThatStart,
    Switches,
    Sysctls,
    Addresses,
    Tables,
    Rules,
    Open,
    Ports,
    RoutesThatEnd,
    RoutesThatStart,
    ServersThatEnd,
    ServersThatStart,
    Forwarding,
}

/// The order in which a host comes about.
const FORWARDS: [Kind; 17] = [
    Kind::Uplinks,
    Kind::Dirs,
    Kind::LinksThatEnd,
    Kind::Namespaces,
    Kind::LinksThatStart,
    Kind::Switches,
    Kind::ServersThatEnd,
    Kind::RoutesThatEnd,
    Kind::Sysctls,
    Kind::Addresses,
    Kind::Tables,
    Kind::Rules,
    Kind::Open,
    Kind::Ports,
    Kind::RoutesThatStart,
    Kind::ServersThatStart,
    Kind::Forwarding,
];

/// The order in which it goes, or is again what it was. That is not the other way about throughout: either way a server
/// starts on addresses that are there, a route needs one to lead by, and an IPv6 address comes after the sysctl that allows it.
const BACKWARDS: [Kind; 17] = [
    Kind::Forwarding,
    Kind::ServersThatEnd,
    Kind::RoutesThatEnd,
    Kind::Ports,
    Kind::Open,
    Kind::Rules,
    Kind::Tables,
    Kind::Sysctls,
    Kind::Addresses,
    Kind::RoutesThatStart,
    Kind::ServersThatStart,
    Kind::Switches,
    Kind::LinksThatEnd,
    Kind::LinksThatStart,
    Kind::Namespaces,
    Kind::Dirs,
    Kind::Uplinks,
];

impl Kind {
    fn of(step: &Step) -> Self {
        match step {
            Step::MoveAddresses { .. } => Self::Uplinks,
            Step::MakeDir { .. } | Step::RemoveDir { .. } => Self::Dirs,
            Step::AddNamespace { .. } | Step::DeleteNamespace { .. } => Self::Namespaces,
            Step::SetSysctl { .. } => Self::Sysctls,
            Step::ReplaceTable { .. } | Step::DeleteTable { .. } => Self::Tables,
            Step::InsertRule { .. } | Step::DeleteRule { .. } => Self::Rules,
            Step::StopDnsmasq { .. } => Self::ServersThatEnd,
            Step::StartDnsmasq { .. } | Step::ReloadDnsmasq { .. } => Self::ServersThatStart,
            Step::EnableForwarding { .. } | Step::RestoreForwarding { .. } => Self::Forwarding,
            Step::Ovs(step) => match step {
                OvsStep::AddSwitch { .. }
                | OvsStep::DeleteSwitch { .. }
                | OvsStep::SetSwitchMtu { .. } => Self::Switches,
                OvsStep::AddUplink { .. } | OvsStep::RemoveUplink { .. } => Self::Uplinks,
                OvsStep::SetPort { .. } | OvsStep::DeletePort { .. } => Self::Ports,
            },
            Step::Link(step) => match step {
                LinkStep::Add { .. } => Self::LinksThatStart,
                LinkStep::Delete { .. } => Self::LinksThatEnd,
                LinkStep::Enslave { .. } | LinkStep::Release { .. } => Self::Uplinks,
                LinkStep::SetUp { .. } | LinkStep::SetDown { .. } => Self::Open,
                LinkStep::SetVlanFiltering { .. }
                | LinkStep::AddVlan { .. }
                | LinkStep::DeleteVlan { .. }
                | LinkStep::SetMtu { .. }
                | LinkStep::AddAddress { .. }
                | LinkStep::DeleteAddress { .. } => Self::Addresses,
                LinkStep::AddRoute { .. } | LinkStep::AddProxy { .. } => Self::RoutesThatStart,
                LinkStep::DeleteRoute { .. } | LinkStep::DeleteProxy { .. } => Self::RoutesThatEnd,
            },
        }
    }

    /// Whether its steps are done in one go.
    fn at_once(self) -> bool {
        matches!(
            self,
            Self::LinksThatEnd
                | Self::LinksThatStart
                | Self::Switches
                | Self::Ports
                | Self::Addresses
                | Self::Tables
                | Self::Open
                | Self::RoutesThatEnd
                | Self::RoutesThatStart
        )
    }
}

/// The steps of a plan in the order in which they are done, those that are done together as one batch.
pub fn forwards(steps: &[Planned]) -> Vec<Vec<&Planned>> {
    batches(steps, &FORWARDS)
}

/// As [`forwards`], for steps that take others back.
pub fn backwards(steps: &[Planned]) -> Vec<Vec<&Planned>> {
    batches(steps, &BACKWARDS)
}

fn batches<'p>(steps: &'p [Planned], order: &[Kind]) -> Vec<Vec<&'p Planned>> {
    let mut steps = by_kind(steps);
    steps.sort_by_key(|(kind, _)| order.iter().position(|other| other == kind));
    let alike = steps.chunk_by(|(one, step), (other, next)| {
        one == other && one.at_once() && step.tenant == next.tenant
    });
    let batch = |steps: &[(Kind, &'p Planned)]| steps.iter().map(|(_, step)| *step).collect();
    alike.map(batch).collect()
}

fn by_kind(steps: &[Planned]) -> Vec<(Kind, &Planned)> {
    let on_uplinks = steps
        .iter()
        .filter(|planned| Kind::of(&planned.step) == Kind::Uplinks);
    let mut with_uplink: BTreeSet<&Owner> = on_uplinks.map(|planned| &planned.owner).collect();
    let owners = steps.iter().map(|planned| &planned.owner);
    with_uplink.extend(owners.filter(|owner| matches!(owner, Owner::Link(_))));
    let kind = |planned: &Planned| match with_uplink.contains(&planned.owner) {
        true => Kind::Uplinks,
        false => Kind::of(&planned.step),
    };
    steps
        .iter()
        .map(|planned| (kind(planned), planned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::IfName;

    fn planned(owner: Owner, step: Step) -> Planned {
        let tenant = None;
        Planned {
            owner,
            tenant,
            step,
        }
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
