//! iptables, for the chains of others: lists them, and puts single rules into them or takes those out.

use std::fs::File;

use crate::network::inventory::Iptables;
use crate::network::plan::Rule;
use crate::programs::{self, Tool, ToolError, require};

/// Its answer where there is no such rule or chain.
const ABSENT: i32 = 1;

fn tool(program: Iptables) -> Tool {
    Tool {
        name: program.name(),
        package: "iptables",
    }
}

/// The chains of its table `filter` and their rules, as it prints them; none where it is not installed, or the table is not
/// of its making.
pub fn listing(program: Iptables) -> Option<String> {
    require(tool(program)).ok()?;
    programs::run(tool(program), &["-w", "-S"], "").ok()
}

/// Puts `rule` first in its chain.
pub(super) fn insert(rule: &Rule, lock: &File) -> Result<(), ToolError> {
    change("-I", rule, lock)
}

/// Takes `rule` out of its chain; that either is not there is fine.
pub(super) fn delete(rule: &Rule, lock: &File) -> Result<(), ToolError> {
    match change("-C", rule, lock) {
        Err(ToolError::Failed { status, .. }) if status.code() == Some(ABSENT) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => change("-D", rule, lock),
    }
}

fn change(how: &str, rule: &Rule, lock: &File) -> Result<(), ToolError> {
    let mut words = vec!["-w", how, &rule.chain];
    words.extend(rule.words());
    programs::run_holding(tool(rule.program), &words, "", lock)
}
