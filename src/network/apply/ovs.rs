//! Open vSwitch through its programs: looks at bridges, ports and flows, and changes ringtap's own bridges and ports.
//!
//! The database is where ovs-vsctl looks for it: in the directory that `OVS_RUNDIR` names, or the usual one. ovs-vsctl changes
//! it in one transaction a call and waits until ovs-vswitchd has done its part, so that links are there afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::File;
use std::iter;
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

use super::execute::StepError;
use super::netlink::{Netlink, NetlinkError};
use crate::network::ovs::{GuestPort, Lack, Mark, Ovs, OvsBridge, OvsPort, PortVlans};
use crate::network::plan::OvsStep;
use crate::programs::{
    self, OVS_APPCTL, OVS_DPCTL, OVS_OFCTL, OVS_VSCTL, Tool, ToolError, require,
};
use crate::types::Name;

/// How long one of its programs waits for a daemon.
const TIMEOUT: &str = "--timeout=10";

/// The versions of OpenFlow: the first, in which flows read best, and for a bridge that does not speak it any other.
const VERSIONS: [&str; 2] = [
    "--protocols=OpenFlow10",
    "--protocols=OpenFlow11,OpenFlow12,OpenFlow13,OpenFlow14,OpenFlow15",
];

/// Where Open vSwitch has its sockets unless `OVS_RUNDIR` says otherwise.
const USUAL_RUNDIR: &str = "/var/run/openvswitch";

/// Why Open vSwitch did not do something.
#[derive(Debug, Error)]
pub enum OvsError {
    /// One of its programs.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The database has it, and ovs-vswitchd could not do it.
    #[error("Open vSwitch could not make {name}: {why}")]
    NotMade {
        /// The bridge or port.
        name: String,
        /// What is known of the reason.
        why: String,
    },
    /// There is another port of the name of a guest's.
    #[error(
        "Open vSwitch's bridge {bridge} has a port {port} that this ringtap did not make; \
         delete it: ovs-vsctl del-port {bridge} {port}"
    )]
    Taken {
        /// The bridge.
        bridge: String,
        /// The port.
        port: String,
    },
}

/// All that a plan may depend on. What can't be had is lacking, and no failure: few networks need it.
pub fn look() -> Ovs {
    let lacking = |lack| Ovs {
        lack: Some(lack),
        ..Ovs::default()
    };
    if require(OVS_VSCTL).is_err() {
        return lacking(Lack::Programs);
    }
    let mut bridges = match has_database().then(bridges) {
        Some(Ok(bridges)) => bridges,
        _ => return lacking(Lack::Database),
    };
    let answers = run(OVS_APPCTL, &["--target=ovs-vswitchd", "version"]).is_ok();
    for (name, bridge) in bridges.iter_mut().filter(|_| answers) {
        bridge.flows = flows(name);
    }
    Ovs {
        lack: (!answers).then_some(Lack::Daemon),
        // It fails where the kernel has no such family of netlink, nor a module for it.
        kernel: run(OVS_DPCTL, &["dump-dps"]).is_ok(),
        bridges,
    }
}

/// Its bridges without their flows; none where there is no Open vSwitch, or it does not answer.
pub fn bridges_if_any() -> BTreeMap<String, OvsBridge> {
    if require(OVS_VSCTL).is_err() || !has_database() {
        return BTreeMap::new();
    }
    bridges().unwrap_or_else(|error| {
        tracing::debug!("Open vSwitch does not answer: {error}");
        BTreeMap::new()
    })
}

fn has_database() -> bool {
    let dir = env::var_os("OVS_RUNDIR").map_or_else(|| USUAL_RUNDIR.into(), PathBuf::from);
    dir.join("db.sock").exists()
}

fn run(tool: Tool, words: &[&str]) -> Result<String, ToolError> {
    let words: Vec<&str> = iter::once(TIMEOUT).chain(words.iter().copied()).collect();
    programs::run(tool, &words, "")
}

/// The tables as one transaction sees them.
fn bridges() -> Result<BTreeMap<String, OvsBridge>, ToolError> {
    let words = "--format=json list Bridge -- list Port -- list Interface -- list Controller";
    let words: Vec<&str> = words.split(' ').collect();
    let text = run(OVS_VSCTL, &words)?;
    let mut tables = text.lines().filter(|line| !line.is_empty()).map(rows);
    let mut next = || tables.next().unwrap_or_else(|| Ok(Vec::new()));
    let (bridges, ports, interfaces, controllers) = (next()?, next()?, next()?, next()?);
    let by_name = interfaces.iter().map(|it| (it.text("name"), it)).collect();
    let ports: BTreeMap<String, (String, OvsPort)> = ports
        .iter()
        .map(|row| (row.uuid(), (row.text("name"), port(row, &by_name))))
        .collect();
    let targets: BTreeMap<String, String> = controllers
        .iter()
        .map(|row| (row.uuid(), row.text("target")))
        .collect();
    let bridge = |row: &Row| OvsBridge {
        datapath: match row.text("datapath_type") {
            none if none.is_empty() => "system".to_owned(),
            datapath => datapath,
        },
        mark: row.mark(),
        controllers: row.refer_to("controller", &targets).collect(),
        ports: row.refer_to("ports", &ports).collect(),
        flows: None,
    };
    Ok(bridges
        .iter()
        .map(|row| (row.text("name"), bridge(row)))
        .collect())
}

/// A port; one that stands for several interfaces is without fault here.
fn port(row: &Row, interfaces: &BTreeMap<String, &Row>) -> OvsPort {
    let interface = interfaces.get(&row.text("name"));
    let vlan = |value: &Value| u16::try_from(value.as_u64()?).ok();
    let text = |name| Some(row.text(name)).filter(|text| !text.is_empty());
    OvsPort {
        vlans: PortVlans {
            vlan_mode: text("vlan_mode"),
            tag: row.values("tag").find_map(vlan),
            trunks: row.values("trunks").filter_map(vlan).collect(),
        },
        protected: row.0.get("protected") == Some(&Value::Bool(true)),
        mark: row.mark(),
        mtu_request: interface.and_then(|it| {
            let mut mtus = it.values("mtu_request");
            mtus.find_map(|mtu| u32::try_from(mtu.as_u64()?).ok())
        }),
        error: interface.and_then(|it| fault(it)),
    }
}

/// Why an interface does not work; it has a number of OpenFlow's if it does.
fn fault(interface: &Row) -> Option<String> {
    let mut numbers = interface.values("ofport").filter_map(Value::as_i64);
    let works = numbers.next().is_some_and(|number| number > 0);
    let error = interface.text("error");
    match (works, error.is_empty()) {
        (_, false) => Some(error),
        (false, true) => Some("see its log (ovs-vswitchd.log) for why".to_owned()),
        (true, true) => None,
    }
}

/// A row of a table: its columns by name.
struct Row(BTreeMap<String, Value>);

/// The rows of a table that ovs-vsctl has printed (RFC 7047, 5.1, has the values).
fn rows(table: &str) -> Result<Vec<Row>, ToolError> {
    let table: Value = serde_json::from_str(table).map_err(|source| ToolError::Output {
        program: OVS_VSCTL.name,
        source,
    })?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let headings = list(&table["headings"]);
    let name = |heading: &Value| heading.as_str().unwrap_or_default().to_owned();
    let row = |row: &Value| {
        let names = headings.iter().map(name);
        Row(names.zip(list(row)).collect())
    };
    Ok(list(&table["data"]).iter().map(row).collect())
}

impl Row {
    /// The values of a column: those of a set, or a single one.
    fn values(&self, name: &str) -> impl Iterator<Item = &Value> {
        let value = self.0.get(name);
        let set = value.and_then(|it| match it.as_array().map(Vec::as_slice) {
            Some([Value::String(kind), Value::Array(all)]) if kind == "set" => Some(&all[..]),
            _ => None,
        });
        let single = value.filter(|_| set.is_none());
        set.unwrap_or_default().iter().chain(single)
    }

    /// The text of a column; empty where there is none.
    fn text(&self, name: &str) -> String {
        let text = self.values(name).find_map(Value::as_str);
        text.unwrap_or_default().to_owned()
    }

    fn uuid(&self) -> String {
        let uuid = self.values("_uuid").find_map(uuid);
        uuid.unwrap_or_default().to_owned()
    }

    /// What a column refers to.
    fn refer_to<'a, T: Clone + 'a>(
        &'a self,
        name: &str,
        those: &'a BTreeMap<String, T>,
    ) -> impl Iterator<Item = T> + 'a {
        let uuids = self.values(name).filter_map(uuid);
        let found = uuids.filter_map(|uuid| those.get(uuid)).cloned();
        found.collect::<Vec<T>>().into_iter()
    }

    fn mark(&self) -> Option<Mark> {
        let ids = self.0.get("external_ids")?;
        let pairs = ids.as_array().and_then(|map| map.get(1)?.as_array())?;
        let value = |key: &str| {
            let mut pairs = pairs.iter().filter(|pair| pair[0] == key);
            Some(pairs.next()?[1].as_str()?.to_owned())
        };
        Some(Mark {
            network: value(Mark::NETWORK)?,
            run_dir: value(Mark::RUN_DIR)?,
        })
    }
}

fn uuid(value: &Value) -> Option<&str> {
    match value.as_array().map(Vec::as_slice) {
        Some([Value::String(kind), Value::String(uuid)]) if kind == "uuid" => Some(uuid),
        _ => None,
    }
}

/// The flows of a bridge, without what changes by itself.
fn flows(bridge: &str) -> Option<Vec<String>> {
    let dump = |versions| {
        let words = [versions, "--names", "--no-stats", "dump-flows", bridge];
        run(OVS_OFCTL, &words).ok()
    };
    let text = VERSIONS.into_iter().find_map(dump)?;
    // Some versions say first what they answer.
    let lines = text.lines().filter(|line| line.contains("actions="));
    Some(lines.map(|line| line.trim().to_owned()).collect())
}

/// Does `steps` in one transaction, or those that can be done if that fails; gives the outcome of each.
pub fn execute(netlink: &Netlink, steps: &[&OvsStep], lock: &File) -> Vec<Result<(), StepError>> {
    match execute_all(netlink, steps, lock) {
        Ok(()) => steps.iter().map(|_| Ok(())).collect(),
        Err(_) if steps.len() > 1 => {
            let alone = steps.chunks(1);
            alone.map(|it| execute_all(netlink, it, lock)).collect()
        }
        Err(error) => vec![Err(error)],
    }
}

fn execute_all(netlink: &Netlink, steps: &[&OvsStep], lock: &File) -> Result<(), StepError> {
    let there = bridges().map_err(OvsError::from)?;
    let left: Vec<&OvsStep> = steps
        .iter()
        .copied()
        .filter(|it| is_left(it, &there))
        .collect();
    change(left.iter().map(|step| step.words()), |words| {
        programs::run_holding(OVS_VSCTL, words, "", lock)
    })?;
    for step in &left {
        set_link(netlink, step)?;
    }
    Ok(verify(&left)?)
}

/// Whether there is something to do: what is to go must be ringtap's.
fn is_left(step: &OvsStep, there: &BTreeMap<String, OvsBridge>) -> bool {
    let is_port = |bridge: &str, port: &str, mark: &Mark| {
        let found = there.get(bridge).and_then(|it| it.ports.get(port));
        found.is_some_and(|found| found.mark.as_ref() == Some(mark))
    };
    match step {
        OvsStep::DeleteSwitch { bridge, mark } => {
            let found = there.get(bridge.as_str());
            found.is_some_and(|found| found.mark.as_ref() == Some(mark))
        }
        OvsStep::RemoveUplink {
            port, bridge, mark, ..
        } => is_port(bridge.as_str(), port.as_str(), mark),
        OvsStep::DeletePort { port } => {
            is_port(port.bridge.as_str(), port.name.as_str(), &port.mark)
        }
        // To put back what it was, on a bridge that may be gone.
        OvsStep::SetSwitchMtu {
            bridge, mtu: None, ..
        } => there.contains_key(bridge.as_str()),
        _ => true,
    }
}

/// Runs ovs-vsctl with all of `commands` in one transaction.
fn change(
    commands: impl Iterator<Item = Vec<String>>,
    run: impl FnOnce(&[&str]) -> Result<(), ToolError>,
) -> Result<(), OvsError> {
    let mut words = vec![TIMEOUT.to_owned()];
    for command in commands {
        words.push("--".to_owned());
        words.extend(command);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.len() {
        1 => Ok(()),
        _ => Ok(run(&words)?),
    }
}

/// A port of a switch is not set up or down with it.
fn set_link(netlink: &Netlink, step: &OvsStep) -> Result<(), NetlinkError> {
    match step {
        OvsStep::AddUplink {
            port,
            was_up: false,
            ..
        } => netlink.set_up(port),
        OvsStep::RemoveUplink {
            port,
            was_up: false,
            ..
        } => netlink.set_down(port),
        _ => Ok(()),
    }
}

/// ovs-vsctl does not fail where ovs-vswitchd can't do what the database says.
fn verify(done: &[&OvsStep]) -> Result<(), OvsError> {
    let made = |step: &&OvsStep| match step {
        OvsStep::AddSwitch { bridge, .. } => Some((bridge.clone(), bridge.clone())),
        OvsStep::AddUplink { bridge, port, .. } => Some((bridge.clone(), port.clone())),
        _ => None,
    };
    let mut made = done.iter().filter_map(made).peekable();
    if made.peek().is_none() {
        return Ok(());
    }
    let there = bridges()?;
    made.try_for_each(|(bridge, port)| works(&there, bridge.as_str(), port.as_str()))
}

fn works(there: &BTreeMap<String, OvsBridge>, bridge: &str, port: &str) -> Result<(), OvsError> {
    let found = there.get(bridge).and_then(|it| it.ports.get(port));
    let why = match found {
        None => "somebody has deleted it".to_owned(),
        Some(found) => match &found.error {
            None => return Ok(()),
            Some(why) => why.clone(),
        },
    };
    let name = port.to_owned();
    Err(OvsError::NotMade { name, why })
}

/// Makes a guest's tap, which is there, a port as `port` says. One that an earlier guest of the same name has left is replaced.
/// Gives where its frames are moved, as the database has it.
///
/// # Errors
/// Open vSwitch's, or the port is another's.
pub fn attach(port: &GuestPort) -> Result<String, OvsError> {
    let step = OvsStep::SetPort {
        port: port.clone(),
        was: None,
    };
    let (name, bridge) = (port.name.as_str(), port.bridge.as_str());
    let there = bridges()?;
    let mut found = there.iter().filter_map(|(bridge, it)| {
        let found = it.ports.get(name)?;
        Some((bridge, found))
    });
    let old = match found.next() {
        Some((bridge, found)) if !is_of(found, &port.mark.run_dir) => {
            return Err(OvsError::Taken {
                bridge: bridge.clone(),
                port: name.to_owned(),
            });
        }
        found => found.map(|_| format!("--if-exists del-port {name}")),
    };
    let old = old.map(|line| line.split(' ').map(str::to_owned).collect());
    // One after the other: to ovs-vswitchd a port that goes and comes in one go has stayed, with the link that it had.
    for words in old.into_iter().chain([step.words()]) {
        change([words].into_iter(), |words| {
            programs::run(OVS_VSCTL, words, "").map(drop)
        })?;
    }
    let there = bridges()?;
    works(&there, bridge, name)?;
    let bridge = there.get(bridge).cloned().unwrap_or_default();
    Ok(bridge.datapath)
}

fn is_of(port: &OvsPort, run_dir: &str) -> bool {
    port.mark.as_ref().is_some_and(|it| it.run_dir == run_dir)
}

/// Deletes a guest's port; that it is absent, or another's, is fine.
///
/// # Errors
/// Open vSwitch's.
pub fn detach(port: &GuestPort) -> Result<(), OvsError> {
    let step = OvsStep::DeletePort { port: port.clone() };
    let there = bridges()?;
    let left = is_left(&step, &there).then(|| step.words());
    change(left.into_iter(), |words| {
        programs::run(OVS_VSCTL, words, "").map(drop)
    })
}

/// Deletes the ports that guests of networks `names` have left on whatever bridge, those whose link is not among `links`.
///
/// # Errors
/// Open vSwitch's.
pub fn sweep(names: &[Name], run_dir: &Path, links: &BTreeSet<String>) -> Result<(), OvsError> {
    let marks: Vec<Mark> = names.iter().map(|name| Mark::new(name, run_dir)).collect();
    let is_dead = |(name, port): &(&String, &OvsPort)| {
        let ours = port.mark.as_ref().is_some_and(|mark| marks.contains(mark));
        ours && !links.contains(*name)
    };
    let there = bridges_if_any();
    let ports = there.values().flat_map(|bridge| &bridge.ports);
    let dead = ports.filter(is_dead).map(|(name, _)| {
        let line = format!("--if-exists del-port {name}");
        line.split(' ').map(str::to_owned).collect()
    });
    change(dead, |words| programs::run(OVS_VSCTL, words, "").map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_and_single_values_are_read_alike() {
        let table = r#"{"data": [[["uuid", "1"], "a", ["set", []], ["set", [10, 20]], ["map", [["ringtap", "lab"],
            ["ringtap-run-dir", "/run/ringtap"]]]], [["uuid", "2"], "b", 10, 20, ["map", [["ringtap", "lab"]]]]],
            "headings": ["_uuid", "name", "tag", "trunks", "external_ids"]}"#;
        let rows = rows(table).unwrap();
        let ports: Vec<OvsPort> = rows.iter().map(|row| port(row, &BTreeMap::new())).collect();
        assert_eq!(ports[0].vlans.tag, None);
        assert_eq!(ports[0].vlans.trunks, [10, 20].into());
        assert_eq!(ports[0].mark.as_ref().unwrap().run_dir, "/run/ringtap");
        assert_eq!(ports[1].vlans.tag, Some(10));
        assert_eq!(ports[1].vlans.trunks, [20].into());
        assert_eq!(ports[1].mark, None);
        assert_eq!(rows[1].uuid(), "2");
    }
}
