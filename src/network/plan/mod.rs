//! What must happen to a host so that it has the networks a file describes: a function of the two.
//!
//! [`plan`] compares the file with the [`Inventory`] and gives the [`Step`]s from one to the other, none where
//! they agree, or refuses with every clash it sees. Nothing here reads a file, runs a program or opens a
//! socket: golden folders under `tests/plans` hold file, inventory and expected steps.

mod bridge;
mod bridged;
mod clash;
mod dnsmasq;
mod firewall;
mod forwarding;
mod lan;
mod limits;
mod link_step;
mod mtu;
mod obstacles;
mod ovs;
mod ovs_step;
mod rules;
mod step;
mod sysctl;
mod tenant;
mod uplink;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::inventory::{Inventory, link_key};
use super::policy::Policy;
use crate::config::{Config, Network};
use crate::types::{Family, IfName, Name};
pub use clash::Clashes;
pub use firewall::{DOCKER_USER, MARK, Rule};
pub use link_step::{Kind, LinkStep, MIIMON, Master};
pub use ovs_step::OvsStep;
pub use step::{Effect, Step, conf_option, files, replace_script};
pub use tenant::{NAMESPACE_PREFIX, namespace};

/// The kernel's MTU for a link that is told none, in bytes.
const DEFAULT_MTU: u32 = 1500;

/// What a step is done for, and is taken back with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// All networks: it goes with the last of them.
    Host,
    /// A link that ringtap makes for networks to share: it goes with the last that leaves by it.
    Link(IfName),
    /// The router of a tenant: it goes with the namespace that it is in.
    Tenant(Name),
    /// A network.
    Network(Name),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("the host"),
            Self::Link(name) => write!(f, "link {name}"),
            Self::Tenant(name) => write!(f, "the router of tenant {name}"),
            Self::Network(name) => write!(f, "network {name}"),
        }
    }
}

/// A step and what it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// What it is for.
    #[serde(rename = "for")]
    pub owner: Owner,
    /// The tenant in whose namespace it is done; on the host itself where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
    /// The step.
    #[serde(flatten)]
    pub step: Step,
}

impl Planned {
    /// `steps` for `owner`, on the host itself.
    pub fn all(owner: &Owner, steps: impl IntoIterator<Item = Step>) -> Vec<Self> {
        Self::all_in(None, owner, steps)
    }

    /// `steps` for `owner` in the namespace of `tenant`, if there is one.
    pub fn all_in(
        tenant: Option<&Name>,
        owner: &Owner,
        steps: impl IntoIterator<Item = Step>,
    ) -> Vec<Self> {
        let planned = |step| Self {
            owner: owner.clone(),
            tenant: tenant.cloned(),
            step,
        };
        steps.into_iter().map(planned).collect()
    }

    /// The step in one line, as what a person would type on the host.
    pub fn line(&self) -> String {
        self.on_the_host(&self.step.line())
    }

    /// `commands` of a namespace as commands on the host.
    fn on_the_host(&self, commands: &str) -> String {
        match &self.tenant {
            Some(tenant) => tenant::commands_within(tenant, commands),
            None => commands.to_owned(),
        }
    }

    /// The step that takes it back, for the same owner.
    pub fn undo(&self) -> Option<Self> {
        Some(Self {
            owner: self.owner.clone(),
            tenant: self.tenant.clone(),
            step: self.step.undo()?,
        })
    }
}

/// The whole of what a person would type on the host.
impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.on_the_host(&self.step.to_string()))
    }
}

/// What a person should know, though it is no step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// The network that it is about; none where it is the host.
    pub network: Option<Name>,
    /// What there is to know.
    pub text: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.network {
            Some(network) => write!(f, "network {network}: {}", self.text),
            None => write!(f, "the host: {}", self.text),
        }
    }
}

/// The steps that make the `chosen` networks of `config` on the host of `inventory`, in order. Those of tenants come last:
/// first there must be a router.
///
/// # Errors
/// Something on the host stands in the way.
pub fn plan(
    config: &Config,
    chosen: &BTreeSet<Name>,
    inventory: &Inventory,
) -> Result<Vec<Planned>, Clashes> {
    let networks = of(config, chosen);
    let tenants = tenant::views(config, &networks, inventory);
    let mut clashes = clash::moves(&networks, inventory);
    clashes.extend(clash::clashes(config, &on_host(&networks), inventory));
    clashes.extend(tenants.iter().flat_map(tenant::View::clashes));
    if !clashes.is_empty() {
        return Err(Clashes(clashes));
    }
    let mut planned = Planned::all(&Owner::Host, limits::steps(&networks, inventory));
    planned.extend(side_by_side(
        config,
        &on_host(&networks),
        inventory,
        &Owner::Host,
    ));
    for tenant in &tenants {
        planned.extend(tenant.steps());
    }
    Ok(planned)
}

/// The steps that make `networks`, none of which needs another's: on the host, or all behind one router. What they share is
/// for `all`.
fn side_by_side(
    config: &Config,
    networks: &[&Network],
    inventory: &Inventory,
    all: &Owner,
) -> Vec<Planned> {
    let (on_lan, routed): (Vec<&Network>, Vec<&Network>) =
        networks.iter().partition(|network| network.is_lan());
    let mut planned = uplink::steps(&on_lan, inventory);
    for network in &on_lan {
        let steps = lan::steps(config, network, inventory);
        planned.extend(Planned::all(&Owner::Network(network.name.clone()), steps));
    }
    for network in &routed {
        let steps = bridge::steps(config, network, inventory);
        planned.extend(Planned::all(&Owner::Network(network.name.clone()), steps));
    }
    let mut shared = bridged::steps(config, networks, inventory);
    shared.extend(forwarding::steps(config, networks, inventory));
    planned.extend(Planned::all(all, shared));
    planned
}

/// What a person should know of the `chosen` networks of `config` on the host of `inventory`, though nothing is to be done.
pub fn remarks(config: &Config, chosen: &BTreeSet<Name>, inventory: &Inventory) -> Vec<Remark> {
    let networks = of(config, chosen);
    let here = on_host(&networks);
    let of_networks = here.iter().flat_map(|network| {
        let mut remarks = obstacles::remarks(config, network, inventory);
        remarks.extend(ovs::remarks(network, inventory));
        remarks.extend(lan::remarks(network, inventory));
        remarks
    });
    let of_host = bridged::remark(config, &here, inventory);
    let tenants = tenant::views(config, &networks, inventory);
    let of_tenants = tenants.iter().flat_map(tenant::View::remarks);
    of_networks.chain(of_host).chain(of_tenants).collect()
}

/// Those of `networks` that are no tenant's.
fn on_host<'c>(networks: &[&'c Network]) -> Vec<&'c Network> {
    let all = networks.iter().copied();
    all.filter(|network| network.tenant.is_none()).collect()
}

fn of<'c>(config: &'c Config, chosen: &BTreeSet<Name>) -> Vec<&'c Network> {
    let networks = chosen.iter().filter_map(|name| config.networks.get(name));
    networks.collect()
}

/// What undoes `teardown`, the list of what must be taken back in the order in which it came about.
///
/// Backwards, and without the addresses, routes and sysctls of links that go anyway.
pub fn take_back(teardown: &[Step]) -> Vec<Step> {
    let links: Vec<&IfName> = teardown.iter().filter_map(Step::deletes).collect();
    let goes_anyway = |step: &&Step| match step {
        Step::Link(LinkStep::DeleteAddress { link, .. } | LinkStep::DeleteRoute { link, .. }) => {
            links.contains(&link)
        }
        Step::SetSysctl { key, .. } => links.iter().any(|link| {
            let of_link = |family| key.starts_with(&link_key(family, link.as_str(), ""));
            Family::BOTH.into_iter().any(of_link)
        }),
        _ => false,
    };
    let left = teardown.iter().rev().filter(|step| !goes_anyway(step));
    left.cloned().collect()
}

/// Where the files of network `name` are.
pub fn network_dir(run_dir: &Path, name: &Name) -> PathBuf {
    run_dir.join("networks").join(name.as_str())
}

/// How the names of ringtap's nft tables begin.
pub const TABLE_PREFIX: &str = "ringtap_";

/// The nft table of network `name`, of family inet.
pub fn table_name(name: &Name) -> String {
    format!("{TABLE_PREFIX}{name}")
}

/// Whether packets of `family` go through the gateway of `network`, one way or the other.
fn passes(config: &Config, network: &Network, family: Family) -> bool {
    let nets = network.nets(family).into_iter();
    let mut policies = nets.filter_map(|net| Policy::of_net(network, net));
    policies.any(|policy| policy.outbound || policy.inbound) || config.has_forwards(network, family)
}
