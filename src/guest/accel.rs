//! What runs a guest's CPUs: the file's wish against what the host has.

use std::fs;

use thiserror::Error;

use crate::config::Accel;

/// The accelerator a guest gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's CPUs.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// What of KVM the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvmSupport {
    /// /dev/kvm can be opened.
    pub device: bool,
    /// The CPU has the extensions that /dev/kvm needs to run stock kernels. Some hosts have the device without: a guest
    /// starts there, and hangs.
    pub extensions: bool,
}

/// The file demands KVM and the host has none.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NoKvm {
    /// The device is missing or closed.
    #[error(
        "accel = \"kvm\", but /dev/kvm can't be opened: load kvm_intel or kvm_amd, or use accel = \"tcg\""
    )]
    Device,
    /// The CPU can't.
    #[error(
        "accel = \"kvm\", but /proc/cpuinfo shows neither vmx nor svm: enable virtualisation in the \
         firmware (or nesting on the outer host), or use accel = \"tcg\""
    )]
    Extensions,
}

impl KvmSupport {
    /// Looks at the host.
    pub fn probe() -> Self {
        let device = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            device,
            extensions: has_extensions(&cpuinfo),
        }
    }

    /// What a guest that wants `wish` gets.
    ///
    /// # Errors
    /// Where the wish is KVM and can't be granted.
    pub fn choose(self, wish: Accel) -> Result<Accelerator, NoKvm> {
        match wish {
            Accel::Tcg => Ok(Accelerator::Tcg),
            Accel::Auto if self.device && self.extensions => Ok(Accelerator::Kvm),
            Accel::Auto => Ok(Accelerator::Tcg),
            Accel::Kvm if !self.device => Err(NoKvm::Device),
            Accel::Kvm if !self.extensions => Err(NoKvm::Extensions),
            Accel::Kvm => Ok(Accelerator::Kvm),
        }
    }
}

fn has_extensions(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: KvmSupport = KvmSupport {
        device: true,
        extensions: true,
    };

    #[test]
    fn auto_is_kvm_only_where_device_and_extensions_are_there() {
        assert_eq!(BOTH.choose(Accel::Auto), Ok(Accelerator::Kvm));
        for lacking in [
            KvmSupport {
                device: false,
                ..BOTH
            },
            KvmSupport {
                extensions: false,
                ..BOTH
            },
        ] {
            assert_eq!(lacking.choose(Accel::Auto), Ok(Accelerator::Tcg));
            assert!(lacking.choose(Accel::Kvm).is_err());
        }
        assert_eq!(BOTH.choose(Accel::Tcg), Ok(Accelerator::Tcg));
        assert_eq!(BOTH.choose(Accel::Kvm), Ok(Accelerator::Kvm));
    }

    #[test]
    fn extensions_are_whole_words_of_the_flags() {
        assert!(has_extensions("model name\t: x\nflags\t\t: fpu vmx sse\n"));
        assert!(has_extensions("flags\t\t: svm\n"));
        assert!(!has_extensions(
            "flags\t\t: fpu vmxnet\nmodel name\t: svm\n"
        ));
    }
}
