//! Other firewalls on the host: every one has its say on a packet, and so one that lets nothing pass by default keeps guests in,
//! whatever the network's own rules say.
//!
//! Docker is the one that many hosts have, and it has a chain for a person's rules: what a network needs is accepted there. The
//! network's own table decides all the same, since an accept ends the way of a packet through one firewall's chains only.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::step::Step;
use super::{bridged, passes};
use crate::config::{Config, Mode, Network};
use crate::network::inventory::{Chain, End, Inventory, Iptables};
use crate::network::policy::Policy;
use crate::types::{Family, Name};

/// The chain that Docker keeps for a person's rules, and leads packets through before its own.
pub const DOCKER_USER: &str = "DOCKER-USER";

/// How the comment of a rule of ringtap's begins, as iptables prints it.
pub const MARK: &str = "--comment \"ringtap ";

const FORWARD: &str = "FORWARD";

/// Answers to what was allowed, and what belongs to it.
const ANSWERS: &str = "RELATED,ESTABLISHED";

/// A rule in somebody else's chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rule {
    /// What lists and changes it.
    pub program: Iptables,
    /// The chain, of table `filter`.
    pub chain: String,
    /// The rule as `iptables -S` prints it after the chain's name.
    pub text: String,
}

impl Rule {
    /// The words of the rule, for a command line.
    pub fn words(&self) -> Vec<&str> {
        let mut words = Vec::new();
        // What is between quotes is one word.
        for (index, part) in self.text.split('"').enumerate() {
            match index % 2 {
                0 => words.extend(part.split_whitespace()),
                _ => words.push(part),
            }
        }
        words
    }

    /// The command that does `what` (`-I`, `-D`) with the rule.
    pub(super) fn command(&self, what: &str) -> String {
        let Self {
            program,
            chain,
            text,
        } = self;
        format!("{} -w {what} {chain} {text}", program.name())
    }
}

/// The steps after which the chains of others have the rules that `network` needs, and none of it that it does not.
pub(super) fn steps(config: &Config, network: &Network, inventory: &Inventory) -> Vec<Step> {
    let there = there(&network.name, inventory);
    let wanted = wanted(config, network, inventory);
    let old = there.difference(&wanted).cloned();
    let old = old.map(|rule| Step::DeleteRule { rule });
    let new = wanted.difference(&there).cloned();
    let new = new.map(|rule| Step::InsertRule { rule });
    old.chain(new).collect()
}

/// The rules that ringtap has made for network `name`.
fn there(name: &Name, inventory: &Inventory) -> BTreeSet<Rule> {
    let mark = mark(name);
    let rules = inventory.chains.iter().flat_map(|chain| {
        let own = chain.own_rules.iter().filter(|text| text.contains(&mark));
        own.filter_map(|text| {
            Some(Rule {
                program: chain.program?,
                chain: chain.name.clone(),
                text: text.clone(),
            })
        })
    });
    rules.collect()
}

/// The rules that `network` needs.
fn wanted(config: &Config, network: &Network, inventory: &Inventory) -> BTreeSet<Rule> {
    let dropping = Iptables::ALL.into_iter().filter(|program| {
        let forward = chain(*program, FORWARD, inventory);
        forward.is_some_and(|forward| forward.end != End::Accept)
    });
    let rules = dropping.flat_map(|program| {
        let docker = chain(program, DOCKER_USER, inventory);
        let mut matches = match docker {
            Some(_) => routed(config, network, program.family()),
            None => Vec::new(),
        };
        if bridged::is_accepted(config, network, inventory, program.family()) {
            let bridge = network.trunk();
            let (from, among) = (format!("-i {bridge} "), format!("-i {bridge} -o {bridge} "));
            if !matches.contains(&from) {
                matches.push(among);
            }
        }
        matches.into_iter().map(move |matches| Rule {
            program,
            chain: docker.map_or(FORWARD, |_| DOCKER_USER).to_owned(),
            text: format!("{matches}-m comment {} -j ACCEPT", mark(&network.name)),
        })
    });
    rules.collect()
}

/// Whether what the host forwards for `network` passes `chain` by rules of its own.
pub(super) fn lets_routed_pass(
    config: &Config,
    network: &Network,
    inventory: &Inventory,
    chain_of_others: &Chain,
) -> bool {
    chain_of_others.program.is_some_and(|program| {
        let docker = chain(program, DOCKER_USER, inventory);
        docker.is_some() && !routed(config, network, program.family()).is_empty()
    })
}

/// The comment by which the rules of network `name` are known, as iptables prints it.
fn mark(name: &Name) -> String {
    format!("{MARK}{name}\"")
}

/// The chain of that name, if it is one that matters.
pub(super) fn chain<'i>(
    program: Iptables,
    name: &str,
    inventory: &'i Inventory,
) -> Option<&'i Chain> {
    let mut chains = inventory.chains.iter();
    chains.find(|chain| chain.program == Some(program) && chain.name == name)
}

/// What matches the packets that the host forwards from and to guests, as far as their policy goes. Of an open network the
/// firewall is the admin's.
fn routed(config: &Config, network: &Network, family: Family) -> Vec<String> {
    let Some(policy) = Policy::of(network, family).filter(|_| network.mode != Mode::Open) else {
        return Vec::new();
    };
    if !passes(config, network, family) {
        return Vec::new();
    }
    let only = |states: &str| format!("-m conntrack --ctstate {states} ");
    let from = match policy.outbound {
        true => String::new(),
        false => only(ANSWERS),
    };
    let to = match policy.inbound {
        true => String::new(),
        false if config.has_forwards(network, family) => only(&format!("{ANSWERS},DNAT")),
        false => only(ANSWERS),
    };
    let bridge = network.own_bridge();
    vec![format!("-i {bridge} {from}"), format!("-o {bridge} {to}")]
}
