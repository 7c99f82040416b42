//! Single addresses of guests: routed to them one by one, and answered for by the host where a provider expects them on its
//! cable.

mod support;

use support::host::Host;
use support::netns::{Netns, until};
use support::party::{PORT, Party, seen_by};

const NETWORK: &str =
    "[networks.public]\nmode = \"routed\"\nsubnet = \"10.67.0.0/24\"\nipv6 = \"fd00:67::/64\"\n";
const GUEST: &str = "[guests.web1]\nmemory = \"64M\"\n\
     nics = [{ network = \"public\", addresses = [\"198.51.100.77\", \"2001:db8::77\"] }]\n";

/// A host on a provider's cable, and a guest with addresses of the cable's own subnets.
struct World {
    host: Host,
    provider: Party,
    guest: Party,
}

fn world(more: &str) -> World {
    let host = Host::new(&format!("{NETWORK}{more}{GUEST}"));
    let provider = Netns::new("provider");
    host.netns.join("up0", &provider, "up0");
    for (netns, number) in [(&host.netns, 2), (&provider, 1)] {
        netns.run(&format!("ip address add 198.51.100.{number}/24 dev up0"));
        netns.run(&format!(
            "ip address add 2001:db8::{number}/64 dev up0 nodad"
        ));
    }
    host.netns.settle();
    let guest = Netns::new("guest");
    let of = |numbers: &str| {
        [
            format!("198.51.100.{numbers}"),
            format!("2001:db8::{numbers}"),
        ]
    };
    let provider = Party::new(provider, &of("1"));
    let guest = Party::new(guest, &of("77"));
    World {
        host,
        provider,
        guest,
    }
}

impl World {
    /// The guest as a file of its own would have it: its addresses alone, and a gateway that is on none of their subnets.
    fn plug(&self) {
        let guest = &self.guest.netns;
        self.host.netns.join("guest", guest, "eth0");
        self.host.netns.run("ip link set guest master rt-public");
        for line in [
            "ip address add 198.51.100.77/32 dev eth0",
            "ip route add 10.67.0.1 dev eth0",
            "ip route add default via 10.67.0.1",
            "ip address add 2001:db8::77/128 dev eth0 nodad",
            "ip -6 route add fd00:67::1 dev eth0",
            "ip -6 route add default via fd00:67::1",
        ] {
            guest.run(line);
        }
    }

    fn unplug(&self) {
        self.host.netns.run("ip link delete guest");
    }

    /// Whether each opens connections to the other, seen with the address that it has.
    #[track_caller]
    fn talk(&self, expected: bool) {
        for ipv6 in [false, true] {
            for (from, to) in [(&self.provider, &self.guest), (&self.guest, &self.provider)] {
                let seen = || seen_by((to.ip(ipv6), PORT).into(), &from.netns);
                match expected {
                    // Whom the host answers for is found out with a delay of its own, which on a busy machine is too long.
                    true => until("a way, as who it is", || seen() == Some(from.ip(ipv6))),
                    false => assert_eq!(seen(), None, "to {}", to.ip(ipv6)),
                }
            }
        }
    }
}

#[test]
fn a_guest_has_addresses_of_the_providers_cable_by_proxy() {
    let world = world("proxy = \"up0\"\n");
    let before = world.host.everything();
    world.host.ringtap(&["up"]).succeeded();
    world.host.ringtap(&["status"]).succeeded();
    assert!(
        world
            .host
            .ringtap(&["up"])
            .succeeded()
            .contains("nothing to do")
    );
    world.plug();
    world.talk(true);

    // Drift is mended, and what the file no longer has goes.
    world
        .host
        .netns
        .run("ip neigh delete proxy 198.51.100.77 dev up0");
    world.host.netns.run("ip route delete 198.51.100.77");
    assert_eq!(world.host.ringtap(&["status"]).code, Some(1));
    world.host.ringtap(&["up"]).succeeded();
    world.talk(true);
    world.host.configure(&format!("{NETWORK}proxy = \"up0\"\n"));
    world.host.ringtap(&["up"]).succeeded();
    let left = world.host.netns.run("ip neigh show proxy");
    assert_eq!(left, "");
    world.unplug();
    world.host.ringtap(&["down"]).succeeded();
    world
        .host
        .configure(&format!("{NETWORK}proxy = \"up0\"\n{GUEST}"));
    world.host.is_as(&before);
}

#[test]
fn the_cable_may_be_a_bridges() {
    let wan = "[networks.wan]\nmode = \"bridge\"\nuplink = \"up0\"\n";
    let world = world(&format!("proxy = \"rt-wan\"\n{wan}"));
    let before = world.host.everything();
    world.host.ringtap(&["up"]).succeeded();
    world.host.ringtap(&["status"]).succeeded();
    world.plug();
    world.talk(true);
    world.unplug();
    world.host.ringtap(&["down"]).succeeded();
    world.host.is_as(&before);

    world
        .host
        .configure(&format!("{NETWORK}proxy = \"up0\"\n{wan}{GUEST}"));
    let words = ["`up0` is a port of `rt-wan`", "proxy = \"rt-wan\""];
    world.host.ringtap(&["up"]).failed(1, &words);
}

#[test]
fn without_a_proxy_the_provider_must_route_them() {
    let world = world("");
    let before = world.host.everything();
    world.host.ringtap(&["up"]).succeeded();
    world.plug();
    world.talk(false);
    let provider = &world.provider.netns;
    provider.run("ip route add 198.51.100.77 via 198.51.100.2");
    provider.run("ip -6 route add 2001:db8::77 via 2001:db8::2");
    world.talk(true);
    world.unplug();
    world.host.ringtap(&["down"]).succeeded();
    world.host.is_as(&before);
}

#[test]
fn an_address_of_the_hosts_own_is_refused() {
    let world = world("");
    world
        .host
        .netns
        .run("ip address add 198.51.100.77/24 dev up0");
    let before = world.host.everything();
    world
        .host
        .ringtap(&["up"])
        .failed(1, &["198.51.100.77 is the host's own", "up0"]);
    world.host.is_as(&before);
}
