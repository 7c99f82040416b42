//! NICs that come, go and change their network while their guest runs.
//!
//! A NIC that moves stays the same device for the guest: its backend is ended, its link deleted, and both are made anew on the
//! other network. QEMU takes the link down when it loses the backend and up when it has the next one, so that DHCP clients
//! ask again. What is changed here lasts until the guest stops; what it starts with is in the file.

use std::collections::BTreeSet;
use std::time::Duration;

use qapi::qmp::{self, Event};
use serde_json::json;
use thiserror::Error;

use super::accel::Accelerator;
use super::guarded::Guarded;
use super::monitor::{Monitor, MonitorError};
use super::nic::{HostNic, NicError, NicRecord};
use super::qemu::{self, Version, Wiring};
use super::run_dir::GuestDirError;
use crate::config::{Config, Network, Nic, NicVlans, Problems};
use crate::network;
use crate::types::{IfName, MacAddr, Name, QueuePairs};

/// A guest that has a driver lets go of a device within a second or two.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why a NIC does not come, go or move.
#[derive(Debug, Error)]
pub enum HotplugError {
    /// There is no such NIC.
    #[error("it has no NIC {0}: `ringtap list` shows those it has")]
    NoNic(usize),
    /// It is on that network.
    #[error("its NIC {0} is on network {1} already")]
    SameNetwork(usize, Name),
    /// QEMU does not run.
    #[error("QEMU does not run, or does not answer: `ringtap restart` helps")]
    NoMonitor,
    /// The file, or a name.
    #[error("the configuration can't be used")]
    Config(#[from] Problems),
    /// The network can't be brought up.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// The NIC can't be had there.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// QEMU's part.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The guest keeps it.
    #[error(
        "the guest does not let go of it within {} s: it has no driver for that, or has not booted so far", PATIENCE.as_secs()
    )]
    Kept,
    /// The device was made for a network that could do more.
    #[error(
        "its NIC can't be on network {network} while it runs, since that {lacks}: stop it, and change the file"
    )]
    Unsuited {
        /// Where it was to move.
        network: Name,
        /// What it lacks.
        lacks: &'static str,
    },
    /// The directory.
    #[error(transparent)]
    RunDir(#[from] GuestDirError),
}

impl Guarded {
    /// Adds a NIC on network `to`; gives its number.
    ///
    /// # Errors
    /// See [`HotplugError`]; nothing has changed then.
    pub fn add_nic(&mut self, to: &Name) -> Result<usize, HotplugError> {
        let config = Config::load(&self.host.config)?;
        let network = config.network(to)?;
        let index = (0..).find(|index| !self.nics.contains_key(index));
        let index = index.unwrap_or_default();
        let nic = nic_on(&config, self.relaunch.name(), index, network);
        self.plug(&config, to)?;
        let added = self.make(index, &nic, network).and_then(|made| {
            let wiring = made.wiring().cloned();
            self.nics.insert(index, made);
            wiring.map_or(Ok(()), |wiring| self.attach(index, &wiring))
        });
        if added.is_err() {
            self.nics.remove(&index);
        }
        self.settle()?;
        added.map(|()| index)
    }

    /// Takes NIC `index` out of the machine.
    ///
    /// # Errors
    /// See [`HotplugError`]; it is still there then.
    pub fn remove_nic(&mut self, index: usize) -> Result<(), HotplugError> {
        if !self.nics.contains_key(&index) {
            return Err(HotplugError::NoNic(index));
        }
        self.detach(index)?;
        self.nics.remove(&index);
        self.settle()
    }

    /// Moves NIC `index` to network `to`.
    ///
    /// # Errors
    /// See [`HotplugError`]; it is where it was then, as far as that is still there.
    pub fn move_nic(&mut self, index: usize, to: &Name) -> Result<(), HotplugError> {
        let held = self.nics.get(&index).ok_or(HotplugError::NoNic(index))?;
        let (before, mac) = (held.record().network.clone(), held.record().mac);
        let wiring = held.wiring().cloned();
        if before == *to {
            return Err(HotplugError::SameNetwork(index, before));
        }
        let config = Config::load(&self.host.config)?;
        let network = config.network(to)?;
        self.plug(&config, to)?;
        let as_it_is = |mut nic: Nic| {
            nic.mac = mac;
            nic.queue_pairs = wiring.as_ref().map_or(nic.queue_pairs, |it| it.queue_pairs);
            nic
        };
        let name = self.relaunch.name().clone();
        let nic = as_it_is(nic_on(&config, &name, index, network));
        self.nics.remove(&index);
        let moved = self.make(index, &nic, network).and_then(|made| {
            match made.wiring().and_then(|new| lacks(wiring.as_ref()?, new)) {
                Some(lacks) => Err(HotplugError::Unsuited {
                    network: to.clone(),
                    lacks,
                }),
                None => Ok(made),
            }
        });
        let result = match moved {
            Ok(made) => {
                self.nics.insert(index, made.told_as(wiring));
                Ok(())
            }
            Err(error) => {
                let old = config.network(&before);
                let back = old.map_err(HotplugError::from).and_then(|network| {
                    let nic = as_it_is(nic_on(&config, &name, index, network));
                    self.make(index, &nic, network)
                });
                match back {
                    Ok(made) => drop(self.nics.insert(index, made.told_as(wiring))),
                    Err(lost) => tracing::error!("guest {name}: NIC {index} is lost: {lost}"),
                }
                Err(error)
            }
        };
        self.settle()?;
        result
    }

    fn plug(&mut self, config: &Config, network: &Name) -> Result<(), network::Error> {
        let plugged = network::plug(&self.host, config, &[network.clone()].into())?;
        self.plugged.join(plugged);
        Ok(())
    }

    /// Makes a NIC on `network`, written down first.
    fn make(
        &mut self,
        index: usize,
        nic: &Nic,
        network: &Network,
    ) -> Result<HostNic, HotplugError> {
        let run_dir = network::run_dir_path(&self.host.run_dir)?;
        let tap = IfName::for_tap(self.relaunch.name(), index);
        let record = NicRecord::new(tap, nic, network, &run_dir);
        self.record.nics.insert(index, record.clone());
        self.dir.write(&self.record)?;
        let made = HostNic::start(record, index, nic, network, self.dir.path())?;
        // Before the guest has it: who takes over then finds it whole.
        self.record.nics.insert(index, made.record().clone());
        self.dir.write(&self.record)?;
        Ok(made)
    }

    /// Writes down what there is, and leaves the networks that no NIC is on any more.
    fn settle(&mut self) -> Result<(), HotplugError> {
        self.save()?;
        let nics = self.nics.values();
        let networks: BTreeSet<Name> = nics.map(|nic| nic.record().network.clone()).collect();
        if let Err(error) = self.plugged.keep(&networks) {
            tracing::warn!("networks stay up: {error}");
        }
        Ok(())
    }

    fn monitor(&mut self) -> Result<&mut Monitor, HotplugError> {
        let monitor = self.machine.as_mut().and_then(|it| it.monitor.as_mut());
        monitor.ok_or(HotplugError::NoMonitor)
    }

    /// Puts a NIC into the machine.
    fn attach(&mut self, index: usize, wiring: &Wiring) -> Result<(), HotplugError> {
        let monitor = self.monitor()?;
        let version = monitor.execute(&qmp::query_version {})?.qemu;
        let version = Version {
            major: version.major as u32,
            minor: version.minor as u32,
        };
        let accel = match monitor.execute(&qmp::query_kvm {})?.enabled {
            true => Accelerator::Kvm,
            false => Accelerator::Tcg,
        };
        let mut done = 0;
        let commands = qemu::hotplug(index, wiring, accel, version);
        let plugged = commands.iter().try_for_each(|(command, arguments)| {
            monitor.execute_raw(command, arguments)?;
            done += 1;
            Ok(())
        });
        if plugged.is_err() {
            let undo = back(index);
            for (command, arguments) in &undo[undo.len() - done..] {
                let _ = monitor.execute_raw(command, arguments);
            }
        }
        plugged
    }

    /// Takes it out again, once the guest has let go of it.
    fn detach(&mut self, index: usize) -> Result<(), HotplugError> {
        let monitor = self.monitor()?;
        let id = format!("nic{index}");
        let [(del, device), rest @ ..] = back(index);
        // It is not there where the guest has let go of it since it was asked before.
        if was_there(monitor.execute_raw(del, &device))? {
            let is_gone = |event: &Event| match event {
                Event::DEVICE_DELETED { data, .. } => data.device.as_deref() == Some(&id),
                _ => false,
            };
            let gone = monitor.wait_for(is_gone, PATIENCE);
            if !gone.map_err(MonitorError::from)? {
                return Err(HotplugError::Kept);
            }
        }
        for (command, arguments) in &rest {
            // The socket goes with the netdev.
            was_there(monitor.execute_raw(command, arguments))?;
        }
        Ok(())
    }
}

/// Whether what was to be deleted was there, and now is not.
fn was_there(deleted: Result<(), MonitorError>) -> Result<bool, MonitorError> {
    match deleted {
        Err(MonitorError::Refused { reason, .. }) if reason.contains("not found") => Ok(false),
        deleted => deleted.map(|()| true),
    }
}

/// What takes a NIC out, in order.
fn back(index: usize) -> [(&'static str, serde_json::Value); 3] {
    [
        ("device_del", json!({ "id": format!("nic{index}") })),
        ("netdev_del", json!({ "id": format!("net{index}") })),
        ("chardev-remove", json!({ "id": format!("nic{index}") })),
    ]
}

/// NIC `index` of a guest on `network`: as the file has it, if it is there by now, or as files have those of which they say
/// no more.
fn nic_on(config: &Config, guest: &Name, index: usize, network: &Network) -> Nic {
    let guest_of_file = config.guests.get(guest);
    let nic = guest_of_file.and_then(|it| it.nics.get(index));
    if let Some(nic) = nic.filter(|nic| nic.network == network.name) {
        return nic.clone();
    }
    Nic {
        network: network.name.clone(),
        ip: None,
        ipv6: None,
        addresses: Vec::new(),
        mac: MacAddr::derived_from(&format!("{guest}/{index}")),
        mtu: None,
        queue_pairs: guest_of_file.map_or(QueuePairs::ONE, |it| it.usual_pairs()),
        rates: network.nic_rates,
        vlans: NicVlans::default(),
        guard: network.guard,
    }
}

/// What a device that was made for `old` needs, and `new` has not.
fn lacks(old: &Wiring, new: &Wiring) -> Option<&'static str> {
    const USUAL: u32 = 1500;
    let mtu = |wiring: &Wiring| wiring.mtu.map_or(USUAL, u32::from);
    if old.mac != new.mac {
        Some("has its uplink's MAC address for all")
    } else if old.checksums && !new.checksums {
        Some("passes on no checksums that are still to be made")
    } else if mtu(new) < mtu(old) {
        Some("has a smaller MTU")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Mtu;

    #[test]
    fn a_device_moves_to_what_can_do_as_much_for_it() {
        let wiring = |mac: &str, mtu: Option<u32>, checksums| Wiring {
            socket: "/run/nic0.sock".into(),
            mac: mac.parse().unwrap(),
            queue_pairs: QueuePairs::ONE,
            mtu: mtu.map(|mtu| Mtu::try_from(mtu).unwrap()),
            checksums,
        };
        const MAC: &str = "52:54:00:00:00:01";
        let old = wiring(MAC, None, true);
        for (new, suits) in [
            (wiring(MAC, None, true), true),
            (wiring(MAC, Some(9000), true), true),
            (wiring(MAC, Some(1400), true), false),
            (wiring(MAC, None, false), false),
            (wiring("52:54:00:00:00:02", None, true), false),
        ] {
            assert_eq!(lacks(&old, &new).is_none(), suits, "{new:?}");
        }
        let modest = wiring(MAC, Some(1400), false);
        assert_eq!(lacks(&modest, &wiring(MAC, Some(1400), false)), None);
        assert_eq!(lacks(&modest, &old), None);
    }
}
