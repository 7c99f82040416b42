//! Whether the host has the memory that a guest wants.

use std::fs;
use std::io;

use thiserror::Error;

use crate::config::Guest;

/// The host lacks memory.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MemoryError {
    /// Of the ordinary kind.
    #[error(
        "memory = \"{wanted}M\" is more than this host has to spare, {there} MiB with swap: give the guest less, or end others"
    )]
    Ordinary {
        /// MiB.
        wanted: u64,
        /// MiB.
        there: u64,
    },
    /// Huge pages.
    #[error(
        "hugepages = true, but of {wanted} huge pages of {kib} KiB only {there} are free: sysctl -w vm.nr_hugepages={total} \
         (in /etc/sysctl.d to stay), or leave hugepages out"
    )]
    Huge {
        /// Pages.
        wanted: u64,
        /// Pages.
        there: u64,
        /// The size of one.
        kib: u64,
        /// How many there would have to be in all.
        total: u64,
    },
}

/// Checks that `guest` fits.
///
/// # Errors
/// It does not.
pub fn check(guest: &Guest) -> Result<(), MemoryError> {
    match fs::read_to_string("/proc/meminfo") {
        Ok(meminfo) => fits(guest.memory.bytes(), guest.hugepages, &meminfo),
        Err(error) => {
            let error: io::Error = error;
            tracing::debug!("/proc/meminfo: {error}");
            Ok(())
        }
    }
}

fn fits(bytes: u64, huge: bool, meminfo: &str) -> Result<(), MemoryError> {
    let value = |key: &str| {
        let mut lines = meminfo.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(it, _)| *it == key)?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    };
    let number = |key| value(key).unwrap_or(0);
    if huge {
        let kib = number("Hugepagesize").max(1);
        let wanted = bytes.div_ceil(kib << 10);
        let there = number("HugePages_Free").saturating_sub(number("HugePages_Rsvd"));
        let total = number("HugePages_Total") + wanted.saturating_sub(there);
        return match there >= wanted {
            true => Ok(()),
            false => Err(MemoryError::Huge {
                wanted,
                there,
                kib,
                total,
            }),
        };
    }
    let Some(available) = value("MemAvailable") else {
        return Ok(());
    };
    let (wanted, there) = (bytes >> 20, (available + number("SwapFree")) >> 10);
    match there >= wanted {
        true => Ok(()),
        false => Err(MemoryError::Ordinary { wanted, there }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal: 8000000 kB\nMemAvailable: 2097152 kB\nSwapFree: 1048576 kB\n\
         HugePages_Total: 600\nHugePages_Free: 520\nHugePages_Rsvd: 8\nHugepagesize: 2048 kB\n";

    #[test]
    fn what_is_available_and_swap_count() {
        assert_eq!(fits(3 << 30, false, MEMINFO), Ok(()));
        let (wanted, there) = (3073, 3072);
        assert_eq!(
            fits(wanted << 20, false, MEMINFO),
            Err(MemoryError::Ordinary { wanted, there })
        );
    }

    #[test]
    fn huge_pages_that_are_promised_to_others_do_not() {
        assert_eq!(fits(1 << 30, true, MEMINFO), Ok(()));
        let said = fits((1 << 30) + 1, true, MEMINFO).unwrap_err().to_string();
        assert!(
            said.contains("513 huge pages of 2048 KiB only 512"),
            "{said}"
        );
        assert!(said.contains("nr_hugepages=601"), "{said}");
    }
}
