//! `ringtap leases`: what dnsmasq has given to guests, read from the file that it keeps (dnsmasq(8), `--dhcp-leasefile`).

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;

use super::plan::{files, network_dir};
use super::{Error, run_dir_path};
use crate::cli::ReportArgs;
use crate::clock::since_epoch;
use crate::config::Config;
use crate::report::{print_json, say};
use crate::types::{MacAddr, Name};

/// An address that a guest has for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lease {
    /// The network.
    pub network: Name,
    /// The address.
    pub ip: IpAddr,
    /// Who has it; DHCPv6 doesn't say.
    pub mac: Option<MacAddr>,
    /// The guest's name, if it has one.
    pub name: Option<String>,
    /// When it ends, in seconds since 1970; never where there is none.
    pub expires: Option<u64>,
}

/// `ringtap leases`: prints the addresses that DHCP has given out.
///
/// # Errors
/// The file has problems, or a list of leases can't be read.
pub fn leases(args: &ReportArgs) -> Result<(), Error> {
    let host = &args.network.host;
    let chosen = Config::load(&host.config)?.chosen(&args.network.names)?;
    let run_dir = run_dir_path(&host.run_dir)?;
    let mut all = Vec::new();
    for name in &chosen {
        all.append(&mut of_network(&run_dir, name)?);
    }
    if args.json {
        print_json(&all);
        return Ok(());
    }
    let now = since_epoch().as_secs();
    for lease in &all {
        say(line(lease, now));
    }
    Ok(())
}

/// The leases of network `name`, by address; none where it is down.
///
/// # Errors
/// The list can't be read.
pub fn of_network(run_dir: &Path, name: &Name) -> Result<Vec<Lease>, Error> {
    let path = network_dir(run_dir, name).join(files::LEASES);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(Error::Leases { path, source }),
    };
    Ok(read(name, &text))
}

/// The leases of network `name` in dnsmasq's list, by address; what is no lease there is passed over.
pub fn read(name: &Name, text: &str) -> Vec<Lease> {
    let mut leases: Vec<Lease> = text.lines().filter_map(|line| parse(name, line)).collect();
    leases.sort_by_key(|lease| lease.ip);
    leases
}

/// A line is the time of the end, the MAC address (the IAID of DHCPv6), the address, the name or `*`, and the client's id; the
/// one before those of DHCPv6 is the server's id.
fn parse(network: &Name, line: &str) -> Option<Lease> {
    let mut words = line.split_whitespace();
    let expires: u64 = words.next()?.parse().ok()?;
    let mac = words.next()?.parse().ok();
    let ip = words.next()?.parse().ok()?;
    let name = words.next().filter(|name| *name != "*");
    Some(Lease {
        network: network.clone(),
        ip,
        mac,
        name: name.map(str::to_owned),
        expires: (expires > 0).then_some(expires),
    })
}

fn line(lease: &Lease, now: u64) -> String {
    let name = lease.name.as_deref().unwrap_or("-");
    let mac = lease.mac.map_or("-".to_owned(), |mac| mac.to_string());
    let left = match lease.expires {
        None => "for good".to_owned(),
        Some(end) if end <= now => "over".to_owned(),
        Some(end) => format!("{} min left", (end - now).div_ceil(60)),
    };
    format!(
        "{}  {:15}  {mac:17}  {name:15}  {left}",
        lease.network, lease.ip
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_families_are_read_and_the_servers_id_is_no_lease() {
        let network: Name = "default".parse().unwrap();
        let read = |line| parse(&network, line);
        let four = read("1700000000 52:54:00:00:00:01 10.0.0.5 web1 ff:00").unwrap();
        assert_eq!(four.ip.to_string(), "10.0.0.5");
        assert_eq!(four.mac.unwrap().to_string(), "52:54:00:00:00:01");
        assert_eq!(
            (four.name.as_deref(), four.expires),
            (Some("web1"), Some(1_700_000_000))
        );
        let six = read("0 1234567 fd00::5 * 00:01:00:01").unwrap();
        assert_eq!((six.mac, six.name, six.expires), (None, None, None));
        assert_eq!(read("duid 00:01:00:01:2c"), None);
        assert_eq!(read(""), None);
        assert!(line(&four, 1_699_999_990).ends_with("1 min left"));
        assert!(line(&four, 1_700_000_000).ends_with("over"));
    }
}
