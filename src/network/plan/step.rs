//! A step of a plan: one change to the host, as a value.
//!
//! It prints as what a person would type to the same end ([`Display`](fmt::Display) the whole of it,
//! [`Step::line`] its gist), knows the step that takes it back ([`Step::undo`]), and what `down` must do
//! one day because of it ([`Step::teardown`]). The two differ where something of ours is changed rather than
//! made: the undo of a new rule set is the old one, its teardown is no table at all.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::firewall::Rule;
use super::link_step::LinkStep;
use super::ovs_step::OvsStep;
use crate::network::inventory::{DnsmasqFiles, Route, forwarding_key};
use crate::types::{Family, IfName};

/// One change to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Load an nft table of family inet in place of the one of that name, in one transaction.
    ReplaceTable {
        /// Its name.
        table: String,
        /// The whole table as nft reads it.
        rules: String,
        /// What ringtap had loaded before.
        was: Option<String>,
    },
    /// Delete an nft table of family inet.
    DeleteTable {
        /// Its name.
        table: String,
        /// What ringtap had loaded, if it is to be loaded again should a later step fail.
        was: Option<String>,
    },
    /// Put a rule first in a chain of somebody else's.
    InsertRule {
        /// The rule.
        rule: Rule,
    },
    /// Take a rule that [`Step::InsertRule`] made out of its chain.
    DeleteRule {
        /// The rule.
        rule: Rule,
    },
    /// Set a sysctl; one of a link that is gone is left alone.
    SetSysctl {
        /// Its name, with the dots of a link's name as slashes (sysctl(8)).
        key: String,
        /// The value.
        value: String,
        /// What it was before.
        was: String,
    },
    /// Make the host forward packets.
    EnableForwarding {
        /// Which packets.
        family: Family,
        /// The sysctls that the kernel changes along with it, as they were.
        before: BTreeMap<String, String>,
    },
    /// Put back what [`Step::EnableForwarding`] changed.
    RestoreForwarding {
        /// Which packets.
        family: Family,
        /// The sysctls as they were.
        before: BTreeMap<String, String>,
    },
    /// Make a network namespace.
    AddNamespace {
        /// Its name.
        name: String,
    },
    /// Delete a network namespace, and with it what is in it.
    DeleteNamespace {
        /// Its name.
        name: String,
    },
    /// Make a network's directory, for its files and for guests to hold on to.
    MakeDir {
        /// The network's directory.
        dir: PathBuf,
    },
    /// Write dnsmasq's files and start it.
    StartDnsmasq {
        /// The network's directory.
        dir: PathBuf,
        /// What it reads.
        files: DnsmasqFiles,
    },
    /// Write dnsmasq's hosts files and have it read them again.
    ReloadDnsmasq {
        /// The network's directory.
        dir: PathBuf,
        /// What it reads; the configuration is what it was.
        files: DnsmasqFiles,
        /// What it had read before.
        was: DnsmasqFiles,
    },
    /// Stop dnsmasq.
    StopDnsmasq {
        /// The network's directory.
        dir: PathBuf,
        /// What it had read, if it is to be started again should a later step fail.
        was: Option<DnsmasqFiles>,
    },
    /// Remove a network's directory with the files that dnsmasq and ringtap left in it.
    RemoveDir {
        /// The network's directory.
        dir: PathBuf,
    },
    /// Move the addresses and routes of one link to another.
    MoveAddresses {
        /// The link that has them.
        from: IfName,
        /// The link that gets them.
        to: IfName,
        /// The addresses, as far as they are known before: all there are move.
        addresses: Vec<IpNet>,
        /// The routes, likewise.
        routes: Vec<Route>,
    },
    /// Change a link or what belongs to it.
    #[serde(untagged)]
    Link(LinkStep),
    /// Change Open vSwitch.
    #[serde(untagged)]
    Ovs(OvsStep),
}

/// What a step makes of what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// There is more than before.
    Adds,
    /// There is less than before.
    Removes,
    /// What is there is another, or does something else.
    Changes,
}

impl From<LinkStep> for Step {
    fn from(step: LinkStep) -> Self {
        Self::Link(step)
    }
}

impl From<OvsStep> for Step {
    fn from(step: OvsStep) -> Self {
        Self::Ovs(step)
    }
}

impl Step {
    /// The step that takes this one back, where a later one of the same `up` fails.
    pub fn undo(&self) -> Option<Step> {
        let step = match self.clone() {
            Step::Link(step) => Step::Link(step.undo()?),
            Step::Ovs(step) => Step::Ovs(step.undo()?),
            Step::ReplaceTable { table, rules, was } => match was {
                Some(was) => Step::ReplaceTable {
                    table,
                    rules: was,
                    was: Some(rules),
                },
                None => Step::DeleteTable { table, was: None },
            },
            Step::DeleteTable {
                table,
                was: Some(rules),
            } => Step::ReplaceTable {
                table,
                rules,
                was: None,
            },
            Step::InsertRule { rule } => Step::DeleteRule { rule },
            Step::DeleteRule { rule } => Step::InsertRule { rule },
            Step::SetSysctl { key, value, was } => Step::SetSysctl {
                key,
                value: was,
                was: value,
            },
            Step::EnableForwarding { family, before } => Step::RestoreForwarding { family, before },
            Step::AddNamespace { name } => Step::DeleteNamespace { name },
            Step::MakeDir { dir } => Step::RemoveDir { dir },
            Step::MoveAddresses {
                from,
                to,
                addresses,
                routes,
            } => Step::MoveAddresses {
                from: to,
                to: from,
                addresses,
                routes,
            },
            Step::StartDnsmasq { dir, .. } => Step::StopDnsmasq { dir, was: None },
            Step::ReloadDnsmasq { dir, files, was } => Step::ReloadDnsmasq {
                dir,
                files: was,
                was: files,
            },
            Step::StopDnsmasq {
                dir,
                was: Some(files),
            } => Step::StartDnsmasq { dir, files },
            // Steps of `down` only: it goes on where one fails, and never back.
            Step::DeleteTable { was: None, .. }
            | Step::RestoreForwarding { .. }
            | Step::StopDnsmasq { was: None, .. }
            | Step::DeleteNamespace { .. }
            | Step::RemoveDir { .. } => return None,
        };
        Some(step)
    }

    /// What `down` must do because of this step, in the order in which it came about (done backwards).
    ///
    /// Each of them is harmless where there is nothing to take back.
    pub fn teardown(&self) -> Vec<Step> {
        match self.clone() {
            Step::Link(step) => step.teardown().into_iter().map(Step::Link).collect(),
            Step::Ovs(step) => step.teardown().into_iter().map(Step::Ovs).collect(),
            Step::ReplaceTable { table, .. } => vec![Step::DeleteTable { table, was: None }],
            Step::InsertRule { .. }
            | Step::SetSysctl { .. }
            | Step::MoveAddresses { .. }
            | Step::AddNamespace { .. } => self.undo().into_iter().collect(),
            Step::EnableForwarding { family, before } => {
                vec![Step::RestoreForwarding { family, before }]
            }
            Step::MakeDir { dir } => vec![Step::RemoveDir { dir }],
            Step::StartDnsmasq { dir, .. } => vec![Step::StopDnsmasq { dir, was: None }],
            _ => Vec::new(),
        }
    }

    /// What it makes of what is there.
    pub fn effect(&self) -> Effect {
        match self {
            Step::Link(step) => step.effect(),
            Step::Ovs(step) => step.effect(),
            Step::ReplaceTable { was: None, .. }
            | Step::InsertRule { .. }
            | Step::MakeDir { .. }
            | Step::AddNamespace { .. }
            | Step::StartDnsmasq { .. } => Effect::Adds,
            Step::DeleteTable { .. }
            | Step::DeleteRule { .. }
            | Step::StopDnsmasq { .. }
            | Step::DeleteNamespace { .. }
            | Step::RemoveDir { .. } => Effect::Removes,
            Step::ReplaceTable { was: Some(_), .. }
            | Step::SetSysctl { .. }
            | Step::MoveAddresses { .. }
            | Step::EnableForwarding { .. }
            | Step::RestoreForwarding { .. }
            | Step::ReloadDnsmasq { .. } => Effect::Changes,
        }
    }

    /// The step on a link that this is.
    pub fn on_link(&self) -> Option<&LinkStep> {
        match self {
            Step::Link(step) => Some(step),
            _ => None,
        }
    }

    /// The step on Open vSwitch that this is.
    pub fn on_ovs(&self) -> Option<&OvsStep> {
        match self {
            Step::Ovs(step) => Some(step),
            _ => None,
        }
    }

    /// The link that this deletes.
    pub fn deletes(&self) -> Option<&IfName> {
        match self {
            Step::Link(LinkStep::Delete { link, .. }) => Some(link),
            Step::Ovs(OvsStep::DeleteSwitch { bridge, .. }) => Some(bridge),
            _ => None,
        }
    }

    /// Whether both put one thing back to what it was: what the first of them remembers is what it was.
    pub fn restores_the_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Step::SetSysctl { key, .. }, Step::SetSysctl { key: other, .. }) => key == other,
            (
                Step::RestoreForwarding { family, .. },
                Step::RestoreForwarding { family: other, .. },
            ) => family == other,
            (
                Step::MoveAddresses { from, to, .. },
                Step::MoveAddresses {
                    from: other_from,
                    to: other_to,
                    ..
                },
            ) => (from, to) == (other_from, other_to),
            _ => false,
        }
    }

    /// The step in one line.
    pub fn line(&self) -> String {
        match self {
            Step::ReplaceTable { table, .. } => format!("nft -f - # table inet {table}"),
            Step::StartDnsmasq { dir, .. } => start(dir),
            Step::ReloadDnsmasq { dir, .. } => reload(dir),
            Step::RestoreForwarding { family, before } => {
                restore(*family, before).replace('\n', "; ")
            }
            Step::MoveAddresses { .. } | Step::Link(_) | Step::Ovs(_) => {
                self.to_string().replace('\n', "; ")
            }
            _ => self.to_string(),
        }
    }
}

/// The files in a network's directory.
pub mod files {
    /// dnsmasq's configuration.
    pub const CONF: &str = "dnsmasq.conf";
    /// MAC addresses with their addresses and names.
    pub const DHCP_HOSTS: &str = "dhcp-hosts";
    /// Names of addresses.
    pub const HOSTS: &str = "hosts";
    /// The leases, dnsmasq's own.
    pub const LEASES: &str = "leases";
    /// The process, dnsmasq's own.
    pub const PID: &str = "dnsmasq.pid";
    /// What dnsmasq has read of the first three.
    pub const SERVED: &str = "served.json";
    /// The nft table that was loaded.
    pub const TABLE: &str = "table.json";
    /// The last times that the network was set right.
    pub const MENDED: &str = "mended.json";
    /// The file that the network was brought up from.
    pub const ORIGIN: &str = "ringtap.toml";
    /// Every file of a network's directory.
    pub const ALL: [&str; 9] = [
        CONF, DHCP_HOSTS, HOSTS, LEASES, PID, SERVED, TABLE, MENDED, ORIGIN,
    ];
}

/// The option by which a dnsmasq is started, and known again in a list of processes.
pub fn conf_option(dir: &Path) -> String {
    format!("--conf-file={}", dir.join(files::CONF).display())
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::MoveAddresses {
                from,
                to,
                addresses,
                routes,
            } => {
                let give = addresses
                    .iter()
                    .map(|net| format!("ip address add {net} dev {to}"));
                let lead = routes.iter().map(|route| append(route, to));
                let take = addresses
                    .iter()
                    .map(|net| format!("ip address delete {net} dev {from}"));
                let lines: Vec<String> = give.chain(lead).chain(take).collect();
                f.write_str(&lines.join("\n"))
            }
            Step::Link(step) => step.fmt(f),
            Step::Ovs(step) => step.fmt(f),
            Step::ReplaceTable { table, rules, .. } => {
                let script = replace_script(table, rules);
                write!(f, "nft -f - <<'EOF'\n{script}EOF")
            }
            Step::DeleteTable { table, .. } => write!(f, "nft delete table inet {table}"),
            Step::InsertRule { rule } => f.write_str(&rule.command("-I")),
            Step::DeleteRule { rule } => f.write_str(&rule.command("-D")),
            Step::SetSysctl { key, value, .. } => write!(f, "sysctl -w {key}={value}"),
            Step::EnableForwarding { family, .. } => {
                write!(f, "sysctl -w {}=1", forwarding_key(*family))
            }
            Step::RestoreForwarding { family, before } => f.write_str(&restore(*family, before)),
            Step::AddNamespace { name } => write!(f, "ip netns add {name}"),
            Step::DeleteNamespace { name } => write!(f, "ip netns delete {name}"),
            Step::MakeDir { dir } => write!(f, "mkdir -p {}", dir.display()),
            Step::StartDnsmasq { dir, files } => {
                write_file(f, dir, files::CONF, &files.conf)?;
                write_file(f, dir, files::DHCP_HOSTS, &files.dhcp_hosts)?;
                write_file(f, dir, files::HOSTS, &files.hosts)?;
                f.write_str(&start(dir))
            }
            Step::ReloadDnsmasq { dir, files, was } => {
                if files.dhcp_hosts != was.dhcp_hosts {
                    write_file(f, dir, files::DHCP_HOSTS, &files.dhcp_hosts)?;
                }
                if files.hosts != was.hosts {
                    write_file(f, dir, files::HOSTS, &files.hosts)?;
                }
                f.write_str(&reload(dir))
            }
            Step::StopDnsmasq { dir, .. } => {
                write!(f, "kill $(cat {})", dir.join(files::PID).display())
            }
            Step::RemoveDir { dir } => write!(f, "rm -r {}", dir.display()),
        }
    }
}

/// What nft reads to replace `table`: naming it first makes deleting it safe where there is none.
pub fn replace_script(table: &str, rules: &str) -> String {
    format!("table inet {table}\ndelete table inet {table}\n{rules}")
}

fn write_file(f: &mut fmt::Formatter<'_>, dir: &Path, name: &str, text: &str) -> fmt::Result {
    let path = dir.join(name);
    writeln!(f, "cat > {} <<'EOF'\n{text}EOF", path.display())
}

fn append(route: &Route, link: &IfName) -> String {
    let to = match route.is_default() {
        true => "default".to_owned(),
        false => route.to.to_string(),
    };
    let via = route.via.map(|via| format!(" via {via}"));
    format!(
        "ip route replace {to}{} dev {link}",
        via.unwrap_or_default()
    )
}

fn start(dir: &Path) -> String {
    format!("dnsmasq {}", conf_option(dir))
}

fn reload(dir: &Path) -> String {
    format!("kill -HUP $(cat {})", dir.join(files::PID).display())
}

/// The switch first: setting it resets the others.
fn restore(family: Family, before: &BTreeMap<String, String>) -> String {
    let switch = forwarding_key(family);
    let first = before.get_key_value(switch);
    let others = before
        .iter()
        .filter(|(key, _)| *key != switch && follows_unusually(switch, key, before));
    let line = |(key, value): (&String, &String)| format!("sysctl -w {key}={value}");
    let lines: Vec<String> = first.into_iter().chain(others).map(line).collect();
    lines.join("\n")
}

/// Whether the kernel would not set `key` to its old value by itself when the switch is set back: it sets
/// every link's `forwarding` to the same, and for IPv4 `accept_redirects` of `all` to the opposite.
fn follows_unusually(switch: &str, key: &str, before: &BTreeMap<String, String>) -> bool {
    let forward = before.get(switch).is_some_and(|value| value == "1");
    let expected = forward ^ key.ends_with("accept_redirects");
    before.get(key).map(String::as_str) != Some(if expected { "1" } else { "0" })
}
