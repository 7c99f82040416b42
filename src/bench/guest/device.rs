//! What of a guest's processes moves its frames: the NIC's backend, and QEMU's threads but for those that are its CPUs.
//!
//! An emulated guest's CPU costs so much more than its NIC that nothing is seen of the latter in a sum of both.

use std::io;

use crate::bench::cpu::Usage;

/// How QEMU names the threads of CPUs, with `-name …,debug-threads=on`.
const VCPU: &str = "CPU ";

/// The processes of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// QEMU's pid. From Linux 6.4 on what the kernel does for vhost-net is done by threads of its.
    pub qemu: u32,
    /// The backend's, where QEMU does not do it itself.
    pub backend: Option<u32>,
}

impl Device {
    /// Nanoseconds of CPU that they have used so far; none where QEMU does not name its threads.
    ///
    /// # Errors
    /// One of them has ended, or the kernel does not tell.
    pub fn cpu(&self) -> io::Result<Option<u64>> {
        let mut has_names = false;
        let qemu = Usage::of_threads(self.qemu, |name| {
            let is_vcpu = name.starts_with(VCPU);
            has_names |= is_vcpu;
            !is_vcpu
        })?;
        let backend = self.backend.map(Usage::of).transpose()?;
        let cpu = qemu.cpu_ns + backend.unwrap_or_default().cpu_ns;
        Ok(has_names.then_some(cpu))
    }
}
