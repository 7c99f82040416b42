//! `ringtap ssh`: becomes ssh, at the address that a guest has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::GuestError;
use super::nic::{NicRecord, stats_socket};
use super::run_dir::read_record;
use super::stats;
use super::supervisor::watched;
use crate::cli::{GuestArgs, SshArgs};
use crate::config::Config;
use crate::network::{self, Addresses};
use crate::types::Name;

/// Becomes ssh; gives why not.
pub fn ssh(args: &SshArgs) -> GuestError {
    match become_ssh(args) {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

fn become_ssh(args: &SshArgs) -> Result<std::convert::Infallible, GuestError> {
    let GuestArgs { guest, host } = &args.guest;
    let config = Config::load(&host.config);
    let running = watched(host, guest)?.and_then(|dir| Some((read_record(&dir)?, dir)));
    let Some((record, dir)) = running else {
        config?.guest(guest)?;
        return Err(GuestError::NotRunning(guest.clone()));
    };
    let networks: BTreeSet<Name> = record
        .nics
        .values()
        .map(|nic| nic.network.clone())
        .collect();
    let known = Addresses::on(host, &networks)?;
    let (nic, ip) =
        best(&record.nics, &known, &dir).ok_or_else(|| GuestError::NoAddress(guest.clone()))?;
    let of_file = config.ok().and_then(|config| {
        let told = config.guests.get(guest)?.cloud_init.as_ref()?;
        told.user().map(str::to_owned)
    });
    let mut command = Command::new("ssh");
    // Addresses are given to one guest after another: what is known of a key is the guest's.
    command
        .arg("-o")
        .arg(format!("HostKeyAlias={guest}.ringtap"));
    if let Some(user) = args.user.clone().or(of_file) {
        command.args(["-l", &user]);
    }
    // ssh takes options after the address as well, up to a command.
    command.arg(ip.to_string()).args(&args.words);
    let become_it = || GuestError::Ssh(command.exec());
    let failed = network::port::beside(nic.tenant(), become_it);
    Err(failed.unwrap_or_else(GuestError::Ssh))
}

/// Where a guest is best reached: by its first NIC of which the host knows an address, else by one of which its backend does;
/// and by IPv4 if there is a choice.
fn best<'n>(
    nics: &'n BTreeMap<usize, NicRecord>,
    known: &Addresses,
    dir: &Path,
) -> Option<(&'n NicRecord, IpAddr)> {
    let by_host = nics.values().map(|nic| (nic, nic.addresses(known)));
    let by_backend = nics.iter().map(|(index, nic)| {
        let told = stats::of(&stats_socket(dir, *index)).unwrap_or_default();
        (nic, told.addresses)
    });
    // IPv4 is before IPv6.
    let first =
        |(nic, addresses): (_, BTreeSet<IpAddr>)| Some((nic, addresses.into_iter().next()?));
    by_host.chain(by_backend).find_map(first)
}
