//! Chains of other firewalls that packets to and from guests go through: those of nftables from its ruleset, those of iptables
//! as `iptables -S` lists them, where ringtap's own rules can be told by their comments.
//!
//! iptables is asked only where it has something to say, which shows in nft's ruleset, or for its legacy kind in
//! `ip_tables_names`: to list a table that is not there would make it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use super::apply::iptables;
use super::inventory::{Chain, End, Hook, Iptables};
use super::plan::{DOCKER_USER, MARK, TABLE_PREFIX};
use crate::types::Family;

/// The table of iptables that filters, as nft calls it too.
const FILTER: &str = "filter";

/// What iptables calls its base chains.
const BASE_CHAINS: [(&str, Hook); 2] = [("FORWARD", Hook::Forward), ("INPUT", Hook::Input)];

/// The chains in `ruleset` (nft's objects) and of iptables that let not everything pass, and Docker's for a person's rules.
pub fn chains(ruleset: &[Value]) -> Vec<Chain> {
    let mut all = of_ruleset(ruleset);
    for program in Iptables::ALL.into_iter().filter(|it| it.is_legacy()) {
        if has_legacy(program) {
            let listing = iptables::listing(program).unwrap_or_default();
            all.extend(of_listing(program, &listing));
        }
    }
    for program in Iptables::ALL.into_iter().filter(|it| !it.is_legacy()) {
        let own = |chain: &Chain| is_of(program, chain);
        if !all.iter().any(|chain| own(chain) && matters(chain)) {
            continue;
        }
        let listing = iptables::listing(program).unwrap_or_default();
        let listed = of_listing(program, &listing);
        // Where there is no iptables, or only the older kind, which does not see them, they are nft's.
        let is_listed = |chain: &Chain| {
            let mut listed = listed.iter();
            listed.any(|it| it.name == chain.name && matters(it))
        };
        let mut found = all.iter().filter(|chain| own(chain) && matters(chain));
        if found.all(is_listed) {
            all.retain(|chain| !own(chain));
            all.extend(listed);
        }
    }
    all.retain(matters);
    all
}

fn matters(chain: &Chain) -> bool {
    let stops = chain.hook.is_some() && chain.end != End::Accept;
    stops || chain.name == DOCKER_USER || !chain.own_rules.is_empty()
}

/// Whether the kernel has a table that `program` filters by.
fn has_legacy(program: Iptables) -> bool {
    let names = match program.family() {
        Family::Ipv4 => "/proc/thread-self/net/ip_tables_names",
        Family::Ipv6 => "/proc/thread-self/net/ip6_tables_names",
    };
    let names = fs::read_to_string(names).unwrap_or_default();
    names.lines().any(|name| name == FILTER)
}

/// Whether a chain of nft's is in the table of `program`.
fn is_of(program: Iptables, chain: &Chain) -> bool {
    chain.program.is_none() && chain.family == nft_family(program) && chain.table == FILTER
}

fn nft_family(program: Iptables) -> &'static str {
    match program.family() {
        Family::Ipv4 => "ip",
        Family::Ipv6 => "ip6",
    }
}

/// A chain as it is found, wherever that is.
#[derive(Debug, Default)]
struct Found {
    hook: Option<Hook>,
    drops: bool,
    rules: Vec<Rule>,
}

/// What is to be known of a rule.
#[derive(Debug, Default)]
struct Rule {
    /// The links that it speaks of.
    links: Vec<String>,
    /// The chains that it leads to.
    leads_to: Vec<String>,
    /// What becomes of each packet that comes to it, if it is always the same.
    end: Option<End>,
    /// Its text, if it is ringtap's.
    own: Option<String>,
}

/// The chains of one table, by name.
type Table = BTreeMap<String, Found>;

/// Chain `name` of `table`, with what is known of those that it leads to.
fn chain(program: Option<Iptables>, family: &str, table: (&str, &Table), name: &str) -> Chain {
    let (table_name, table) = table;
    let nothing = Found::default();
    let found = table.get(name).unwrap_or(&nothing);
    let mut leads_to = BTreeSet::new();
    let mut links = BTreeSet::new();
    let mut left = vec![name];
    while let Some(name) = left.pop() {
        let rules = table.get(name).map_or(&[][..], |found| &found.rules);
        for rule in rules.iter().filter(|rule| rule.own.is_none()) {
            links.extend(rule.links.iter().cloned());
            let new = rule.leads_to.iter();
            left.extend(
                new.filter(|it| leads_to.insert(it.to_string()))
                    .map(String::as_str),
            );
        }
    }
    let last = found.rules.last().and_then(|rule| rule.end);
    Chain {
        program,
        family: family.to_owned(),
        table: table_name.to_owned(),
        name: name.to_owned(),
        hook: found.hook,
        end: match (last, found.drops) {
            (Some(end), _) => end,
            (None, true) => End::Policy,
            (None, false) => End::Accept,
        },
        links,
        leads_to,
        own_rules: found
            .rules
            .iter()
            .filter_map(|rule| rule.own.clone())
            .collect(),
    }
}

/// Every base chain of others, and Docker's for a person's rules.
fn of_ruleset(ruleset: &[Value]) -> Vec<Chain> {
    let mut tables: BTreeMap<(String, String), Table> = BTreeMap::new();
    for object in ruleset {
        let text = |object: &Value, key: &str| object[key].as_str().unwrap_or_default().to_owned();
        if let Some(chain) = object.get("chain") {
            let table = tables.entry((text(chain, "family"), text(chain, "table")));
            let found = table.or_default().entry(text(chain, "name")).or_default();
            found.hook = hook(chain);
            found.drops = chain["policy"] == "drop";
        } else if let Some(rule) = object.get("rule") {
            let table = tables.entry((text(rule, "family"), text(rule, "table")));
            let found = table.or_default().entry(text(rule, "chain")).or_default();
            found.rules.push(rule_of_nft(&rule["expr"]));
        }
    }
    let others = tables.iter().filter(|((family, name), _)| {
        let routed = ["ip", "ip6", "inet"].contains(&family.as_str());
        routed && !name.starts_with(TABLE_PREFIX)
    });
    let chains = others.flat_map(|((family, name), table)| {
        let met = table
            .iter()
            .filter(|(chain, found)| found.hook.is_some() || *chain == DOCKER_USER);
        met.map(move |(met, _)| chain(None, family, (name, table), met))
    });
    chains.collect()
}

fn hook(chain: &Value) -> Option<Hook> {
    match (chain["type"].as_str()?, chain["hook"].as_str()?) {
        ("filter", "forward") => Some(Hook::Forward),
        ("filter", "input") => Some(Hook::Input),
        _ => None,
    }
}

/// A rule by its expressions, in the order in which they are looked at.
fn rule_of_nft(expressions: &Value) -> Rule {
    let mut rule = Rule::default();
    walk(expressions, &mut rule);
    let expressions = expressions.as_array().map_or(&[][..], Vec::as_slice);
    let always = |expression: &Value| {
        ["counter", "log", "accept", "drop", "reject"]
            .iter()
            .any(|it| expression.get(it).is_some())
            || expression["xt"]["type"] == "target"
    };
    if expressions.iter().all(always) {
        rule.end = expressions.iter().find_map(|expression| {
            let target = expression["xt"]["name"].as_str();
            if expression.get("drop").is_some() {
                Some(End::Drop)
            } else if expression.get("reject").is_some() || target == Some("REJECT") {
                Some(End::Reject)
            } else if expression.get("accept").is_some() {
                Some(End::Accept)
            } else {
                None
            }
        });
    }
    rule
}

/// Gathers the links and chains that `value`, a part of a rule, speaks of.
fn walk(value: &Value, rule: &mut Rule) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, rule)),
        Value::Object(fields) => {
            for verdict in ["jump", "goto"] {
                let target = fields.get(verdict).and_then(|it| it["target"].as_str());
                rule.leads_to.extend(target.map(str::to_owned));
            }
            for (kind, what, values) in [("match", "left", "right"), ("vmap", "key", "data")] {
                if let Some(found) = fields.get(kind).filter(|it| is_about_links(&it[what])) {
                    texts(&found[values], &mut rule.links);
                }
            }
            fields.values().for_each(|field| walk(field, rule));
        }
        _ => {}
    }
}

/// Whether an expression is the name of the link that a packet comes or goes by, or has it in it.
fn is_about_links(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(is_about_links),
        Value::Object(fields) => {
            let key = fields.get("meta").and_then(|meta| meta["key"].as_str());
            let links = ["iifname", "oifname", "iif", "oif"];
            key.is_some_and(|key| links.contains(&key)) || fields.values().any(is_about_links)
        }
        _ => false,
    }
}

fn texts(value: &Value, all: &mut Vec<String>) {
    match value {
        Value::String(text) => all.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| texts(item, all)),
        Value::Object(fields) => fields.values().for_each(|field| texts(field, all)),
        _ => {}
    }
}

/// The base chains in what `program -S` prints, and Docker's for a person's rules.
fn of_listing(program: Iptables, listing: &str) -> Vec<Chain> {
    let mut table = Table::new();
    for line in listing.lines() {
        let mut words = line.splitn(3, ' ');
        let (Some(kind), Some(name)) = (words.next(), words.next()) else {
            continue;
        };
        let rest = words.next().unwrap_or_default();
        let found = table.entry(name.to_owned()).or_default();
        match kind {
            "-P" => {
                let base = BASE_CHAINS.iter().find(|(base, _)| *base == name);
                found.hook = base.map(|(_, hook)| *hook);
                found.drops = rest == "DROP";
            }
            "-A" => found.rules.push(rule_of_iptables(rest)),
            _ => {}
        }
    }
    let met = table
        .iter()
        .filter(|(chain, found)| found.hook.is_some() || *chain == DOCKER_USER);
    let family = nft_family(program);
    let chains = met.map(|(met, _)| chain(Some(program), family, (FILTER, &table), met));
    chains.collect()
}

/// A rule as iptables prints it after its chain's name.
fn rule_of_iptables(text: &str) -> Rule {
    let words: Vec<&str> = text.split_whitespace().collect();
    let after = |options: &[&str]| {
        let pairs = words.windows(2).filter(|pair| options.contains(&pair[0]));
        pairs.map(|pair| pair[1].to_owned()).collect()
    };
    Rule {
        links: after(&["-i", "-o"]),
        leads_to: after(&["-j", "-g"]),
        end: match words[..] {
            ["-j", "ACCEPT"] => Some(End::Accept),
            ["-j", "DROP", ..] => Some(End::Drop),
            ["-j", "REJECT", ..] => Some(End::Reject),
            _ => None,
        },
        own: text.contains(MARK).then(|| text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(set: &BTreeSet<String>) -> Vec<&str> {
        set.iter().map(String::as_str).collect()
    }

    #[test]
    fn iptables_own_words_are_understood() {
        let listing = "-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n-N DOCKER-USER\n-N DOCKER\n\
            -A INPUT -p tcp -j DROP\n-A FORWARD -j DOCKER-USER\n-A FORWARD -o docker0 -j DOCKER\n\
            -A DOCKER ! -i br-1 -o br-1 -j DROP\n\
            -A DOCKER-USER -i rt-a -m comment --comment \"ringtap a\" -j ACCEPT\n-A DOCKER-USER -j RETURN\n";
        let chains = of_listing(Iptables::Ipv4, listing);
        let [docker, forward, input] = &chains[..] else {
            panic!("{chains:?}")
        };
        assert_eq!((&*docker.name, docker.hook), (DOCKER_USER, None));
        let own = "-i rt-a -m comment --comment \"ringtap a\" -j ACCEPT";
        assert_eq!(docker.own_rules, [own]);
        assert_eq!(
            (forward.hook, forward.end),
            (Some(Hook::Forward), End::Policy)
        );
        assert_eq!(names(&forward.links), ["br-1", "docker0"], "not our own");
        assert_eq!(
            names(&forward.leads_to),
            ["DOCKER", "DOCKER-USER", "DROP", "RETURN"]
        );
        assert_eq!((input.hook, input.end), (Some(Hook::Input), End::Accept));
        let rejects = of_listing(
            Iptables::Ipv4,
            "-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with x\n",
        );
        assert_eq!(rejects[0].end, End::Reject);
        assert!(matters(&rejects[0]) && !matters(input));
    }

    #[test]
    fn chains_of_nftables_are_followed_to_the_links_that_they_speak_of() {
        let chain = |table: &str, name: &str, hook: Option<&str>| {
            let mut chain = serde_json::json!({"family": "inet", "table": table, "name": name});
            if let Some(hook) = hook {
                chain["type"] = "filter".into();
                chain["hook"] = hook.into();
                chain["policy"] = "accept".into();
            }
            serde_json::json!({ "chain": chain })
        };
        let rule = |chain: &str, expr: Value| serde_json::json!({"rule": {"family": "inet", "table": "fw", "chain": chain, "expr": expr}});
        let by_link = |right: Value| {
            let left = serde_json::json!({"meta": {"key": "iifname"}});
            serde_json::json!({"match": {"op": "==", "left": left, "right": right}})
        };
        let counter = serde_json::json!({"counter": {"packets": 0, "bytes": 0}});
        let reject = serde_json::json!({"reject": {"type": "icmpx", "expr": "admin-prohibited"}});
        let ruleset = [
            serde_json::json!({"metainfo": {}}),
            chain("fw", "fwd", Some("forward")),
            chain("fw", "in", Some("input")),
            chain("fw", "zones", None),
            chain("ringtap_a", "forward", Some("forward")),
            rule("fwd", serde_json::json!([{"jump": {"target": "zones"}}])),
            rule("fwd", serde_json::json!([counter, reject])),
            rule(
                "zones",
                serde_json::json!([by_link("rt-a".into()), {"accept": null}]),
            ),
            rule(
                "zones",
                serde_json::json!([{"vmap": {
                    "key": {"meta": {"key": "oifname"}},
                    "data": {"set": [["eth0", {"goto": {"target": "public"}}]]},
                }}]),
            ),
            rule("in", serde_json::json!([by_link("lo".into()), reject])),
        ];
        let chains = of_ruleset(&ruleset);
        let [forward, input] = &chains[..] else {
            panic!("{chains:?}")
        };
        assert_eq!((&*forward.name, forward.end), ("fwd", End::Reject));
        assert_eq!(names(&forward.leads_to), ["public", "zones"]);
        assert!(forward.links.contains("rt-a") && forward.links.contains("eth0"));
        assert_eq!(
            input.end,
            End::Accept,
            "only what comes from lo is rejected"
        );
    }
}
