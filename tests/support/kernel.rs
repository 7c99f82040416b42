//! What a kernel may lack, asked of it in one place. A test that needs such a thing says so; where the kernel has it not,
//! the test is listed with what it needs, and `scripts/test-vm` runs it in a machine whose kernel has all of it.

use std::fs;

use libtest_mimic::{Arguments, Trial};

use super::netns::Netns;

/// What some kernels have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// KVM that runs guests: some hosts have the device, and no virtualization of their CPU behind it.
    Kvm,
    /// vhost-net, a back-end in the kernel.
    VhostNet,
    /// Links for VLANs of other links: the module 8021q.
    Vlan,
    /// Bridges that heed the VLANs of their ports.
    VlanFiltering,
    /// Bonds: the module bonding.
    Bonding,
    /// Open vSwitch's part in the kernel: the module openvswitch.
    OpenVswitch,
    /// Ipvtaps: the module ipvtap, and ipvlan below it.
    Ipvtap,
    /// A clock that nobody else goes by, so that it may be set.
    OwnClock,
}

impl Feature {
    /// Whether this kernel, or this machine, has it.
    pub fn is_here(self) -> bool {
        match self {
            Self::Kvm => opens("/dev/kvm") && cpu_has(&["vmx", "svm"]),
            Self::VhostNet => opens("/dev/vhost-net"),
            Self::Vlan => makes("made link veth0 type vlan id 20"),
            Self::VlanFiltering => makes("made type bridge vlan_filtering 1"),
            Self::Bonding => makes("made type bond"),
            Self::OpenVswitch => {
                let listed = Netns::new("probe").attempt("ovs-dpctl dump-dps");
                listed.status.success()
            }
            Self::Ipvtap => makes("made link veth0 type ipvtap mode l2"),
            Self::OwnClock => is_test_host(),
        }
    }
}

/// Whether the kernel makes such a link.
fn makes(link: &str) -> bool {
    let netns = Netns::new("probe");
    netns.run("ip link add veth0 type veth peer name veth1");
    let made = netns.attempt(&format!("ip link add {link}"));
    made.status.success()
}

fn opens(device: &str) -> bool {
    fs::File::options()
        .read(true)
        .write(true)
        .open(device)
        .is_ok()
}

fn cpu_has(flags: &[&str]) -> bool {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpuinfo.split_whitespace().any(|word| flags.contains(&word))
}

/// Whether this is the machine of `scripts/test-vm`, in which nothing is made or left out.
pub fn is_test_host() -> bool {
    std::env::var_os("RINGTAP_TEST_HOST").is_some()
}

/// A test that needs `features`: ignored where one is missing, but for the test host, where it fails.
pub fn trial(name: &str, features: &'static [Feature], test: fn()) -> Trial {
    let missing: Vec<_> = features.iter().filter(|it| !it.is_here()).collect();
    let trial = Trial::test(name, move || {
        for feature in features {
            assert!(feature.is_here(), "this kernel lacks {feature:?}");
        }
        test();
        Ok(())
    });
    if missing.is_empty() || is_test_host() {
        return trial;
    }
    trial
        .with_kind(format!("needs {missing:?}, run scripts/test-vm"))
        .with_ignored_flag(true)
}

/// Runs trials, and never those that this kernel can't do. Takes as many names as the usual harness does, and options that
/// are one word each.
pub fn run(mut trials: Vec<Trial>) -> ! {
    let (options, names): (Vec<_>, Vec<_>) = std::env::args()
        .skip(1)
        .partition(|word| word.starts_with('-'));
    let exact = options.iter().any(|option| option == "--exact");
    let is_meant = |trial: &Trial| {
        let named = |name: &String| match exact {
            true => trial.name() == name,
            false => trial.name().contains(name),
        };
        names.is_empty() || names.iter().any(named)
    };
    trials.retain(is_meant);
    let mut args = Arguments::from_iter(std::iter::once(String::new()).chain(options));
    args.include_ignored &= is_test_host();
    libtest_mimic::run(&args, trials).exit()
}
