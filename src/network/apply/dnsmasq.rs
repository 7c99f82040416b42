//! dnsmasq: its files, its start and its end.
//!
//! What a dnsmasq has read is noted beside its files, after it has read them: without the note it is not known, and a new
//! one takes its place.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::execute::{StepError, absent_is_fine};
use crate::network::inventory::DnsmasqFiles;
use crate::network::journal::write_whole;
use crate::network::plan::{conf_option, files};
use crate::programs::{self, DNSMASQ, Process, ToolError};

/// Its exit code where addresses or ports are in use (dnsmasq(8)).
const NO_ADDRESS: i32 = 2;

/// The dnsmasq that serves from `dir`.
pub fn running(dir: &Path) -> Option<Process> {
    Process::find(&dir.join(files::PID), &conf_option(dir))
}

/// What the dnsmasq of `dir` has read, if that is known and the files are still so.
pub fn served(dir: &Path) -> Option<DnsmasqFiles> {
    let note = fs::read_to_string(dir.join(files::SERVED)).ok()?;
    let served: DnsmasqFiles = serde_json::from_str(&note).ok()?;
    let on_disk = texts(&served)
        .iter()
        .all(|(name, text)| fs::read_to_string(dir.join(name)).is_ok_and(|there| there == **text));
    on_disk.then_some(served)
}

/// Writes `files` to `dir` and starts a dnsmasq on them.
pub(super) fn start(dir: &Path, files: &DnsmasqFiles, lock: &File) -> Result<(), StepError> {
    write(dir, files)?;
    // It goes to the background once its sockets are bound, and fails before that: success means it serves.
    let start = || programs::run_holding(DNSMASQ, &[&conf_option(dir)], "", lock);
    match start() {
        // One that was killed just now has the addresses still. All processes are looked through for that: not at every start.
        Err(ToolError::Failed { status, .. }) if status.code() == Some(NO_ADDRESS) => {
            programs::wait_for_ending(DNSMASQ)?;
            start()?;
        }
        done => done?,
    }
    running(dir).ok_or(StepError::DnsmasqEnded)?;
    Ok(note(dir, files)?)
}

/// Writes `files` to `dir` and has its dnsmasq read them.
pub(super) fn reload(dir: &Path, files: &DnsmasqFiles) -> Result<(), StepError> {
    // Unknown until it is done: a ringtap killed here leaves a dnsmasq to be started anew.
    forget(dir)?;
    write(dir, files)?;
    running(dir).ok_or(StepError::NoDnsmasq)?.reload()?;
    Ok(note(dir, files)?)
}

/// Ends the dnsmasq of `dir`, if there is one.
pub(super) fn stop(dir: &Path) -> Result<(), StepError> {
    if let Some(process) = running(dir) {
        process.stop()?;
    }
    Ok(forget(dir)?)
}

fn write(dir: &Path, files: &DnsmasqFiles) -> io::Result<()> {
    for (name, text) in texts(files) {
        write_whole(&dir.join(name), text)?;
    }
    Ok(())
}

fn texts(files: &DnsmasqFiles) -> [(&'static str, &String); 3] {
    [
        (files::CONF, &files.conf),
        (files::DHCP_HOSTS, &files.dhcp_hosts),
        (files::HOSTS, &files.hosts),
    ]
}

fn note(dir: &Path, files: &DnsmasqFiles) -> io::Result<()> {
    write_whole(&dir.join(files::SERVED), &serde_json::to_string(files)?)
}

fn forget(dir: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_file(dir.join(files::SERVED)))
}
