//! The guard: what a guest claims that it has no right to goes nowhere, and all else goes on.

mod support;

use std::net::Ipv6Addr;

use ringtap::backend::guard::{ANSWER, Frame, GLANCE, Guard, LeaseFile, Policy, Reason};
use support::claims::*;
use support::front_end::wait_for;

fn policy(words: &str) -> Policy {
    words.parse().unwrap()
}

fn guard(words: &str) -> Guard {
    Guard::new(policy(words), None)
}

fn judge(guard: &Guard, claim: &Claim) -> Result<(), Reason> {
    let head = &claim.frame[..claim.frame.len().min(180)];
    guard.judge(&Frame {
        header: claim.header,
        head,
        len: claim.frame.len(),
    })
}

#[test]
fn an_honest_guest_is_not_in_its_way() {
    let guard = guard(POLICY);
    for claim in honest() {
        assert_eq!(judge(&guard, &claim), Ok(()), "{}", claim.name);
    }
}

#[test]
fn what_is_forged_is_refused_for_what_it_is() {
    let guard = guard(POLICY);
    let all = forged();
    assert!(all.len() >= 60, "{}", all.len());
    for (claim, reason) in all {
        assert_eq!(judge(&guard, &claim), Err(reason), "{}", claim.name);
    }
}

/// Each part can be had without the others.
#[test]
fn of_what_has_no_word_nothing_is_refused() {
    let parts: [(&str, &[Reason]); 4] = [
        (
            "mac=52:54:00:00:00:05",
            &[
                Reason::SourceMac,
                Reason::ArpSender,
                Reason::Neighbor,
                Reason::DhcpClient,
            ],
        ),
        (
            "services",
            &[
                Reason::DhcpServer,
                Reason::RouterAdvertisement,
                Reason::Redirect,
            ],
        ),
        ("vlan", &[Reason::Vlan]),
        ("only-ip", &[Reason::Protocol]),
    ];
    // Form is looked at whatever is asked for: what can't be read is nobody's claim.
    let form = [Reason::Malformed, Reason::Hidden, Reason::Checksum];
    for (words, own) in parts {
        let guard = guard(words);
        let mut refused = 0;
        for (claim, _) in forged() {
            if let Err(reason) = judge(&guard, &claim) {
                let is_meant = own.contains(&reason) || form.contains(&reason);
                assert!(is_meant, "{words}: {} for {reason}", claim.name);
                refused += usize::from(own.contains(&reason));
            }
        }
        assert!(refused > 0, "{words}");
    }
}

#[test]
fn a_trunk_may_tag_its_own_vlans() {
    let guard = guard("vlan=7,vlan=9,services");
    let tagged = |tag: [u8; 4], frame: &[u8]| Claim {
        name: "tagged",
        header: [0; 10],
        frame: [&frame[..12], &tag, &frame[12..]].concat(),
    };
    let plain = ipv4([10, 0, 0, 5], 6, &tcp());
    assert_eq!(judge(&guard, &tagged([0x81, 0, 0x20, 7], &plain)), Ok(()));
    assert_eq!(
        judge(&guard, &tagged([0x81, 0, 0, 8], &plain)),
        Err(Reason::Vlan)
    );
    assert_eq!(
        judge(&guard, &tagged([0x88, 0xa8, 0, 7], &plain)),
        Err(Reason::Vlan)
    );
    let offer = ipv4([10, 0, 0, 5], 17, &udp(67, 68, &dhcp(2, NEIGHBOUR)));
    let said = judge(&guard, &tagged([0x81, 0, 0, 9], &offer));
    assert_eq!(said, Err(Reason::DhcpServer));
}

fn hear(guard: &Guard, frame: &[u8]) -> bool {
    let mut glance = [0; GLANCE];
    glance.copy_from_slice(&frame[..GLANCE]);
    let wants = guard.wants_to_hear(&glance);
    if wants {
        let mut answer = [0; ANSWER];
        answer[..frame.len()].copy_from_slice(frame);
        guard.hear(&answer);
    }
    wants
}

#[test]
fn what_dhcp_gives_may_be_claimed_on_every_queue_until_it_ends() {
    let guard = guard("mac=52:54:00:00:00:05,ip");
    let mut pairs = [guard.clone(), guard];
    let claim = |frame: Vec<u8>| Claim {
        name: "leased",
        header: [0; 10],
        frame,
    };
    let ours = claim(ipv4([10, 0, 0, 9], 6, &tcp()));
    let ours_of_v6 = claim(ipv6("fd00::9", 6, &tcp()));
    for pair in &mut pairs {
        pair.refresh();
        assert_eq!(judge(pair, &ours), Err(Reason::Ipv4Source));
        assert_eq!(judge(pair, &ours_of_v6), Err(Reason::Ipv6Source));
    }
    assert!(!hear(&pairs[0], &ours.frame));
    // Another's lease is none of this guest's.
    assert!(hear(&pairs[0], &dhcp_ack(NEIGHBOUR, [10, 0, 0, 9], 60)));
    pairs[1].refresh();
    assert_eq!(judge(&pairs[1], &ours), Err(Reason::Ipv4Source));

    assert!(hear(&pairs[0], &dhcp_ack(GUEST, [10, 0, 0, 9], 60)));
    let v6: Ipv6Addr = "fd00::9".parse().unwrap();
    // A bridge floods what it does not know the port of: another's as well.
    assert!(hear(&pairs[0], &dhcpv6_reply(NEIGHBOUR, v6, u32::MAX)));
    pairs[1].refresh();
    assert_eq!(judge(&pairs[1], &ours_of_v6), Err(Reason::Ipv6Source));
    assert!(hear(&pairs[0], &dhcpv6_reply(GUEST, v6, u32::MAX)));
    for pair in &mut pairs {
        pair.refresh();
        assert_eq!(judge(pair, &ours), Ok(()));
        assert_eq!(judge(pair, &ours_of_v6), Ok(()));
    }
    // Given again, for no time at all.
    assert!(hear(&pairs[1], &dhcp_ack(GUEST, [10, 0, 0, 9], 0)));
    pairs[0].refresh();
    assert_eq!(judge(&pairs[0], &ours), Err(Reason::Ipv4Source));
    assert_eq!(judge(&pairs[0], &ours_of_v6), Ok(()));
}

/// Packets from `source`.
fn packet_from(source: &str) -> Claim {
    Claim {
        name: "of a prefix",
        header: [0; 10],
        frame: ipv6(source, 6, &tcp()),
    }
}

#[test]
fn addresses_of_a_prefix_that_a_router_advertises_may_be_claimed() {
    const OWN: &str = "2001:db8:1::5054:ff:fe00:5";
    let mut guard = guard("mac=52:54:00:00:00:05,ip,not=2001:db8:1::1");
    let ours = packet_from(OWN);
    assert!(hear(&guard, &advertised("2001:db8:1::", false)));
    guard.refresh();
    assert_eq!(judge(&guard, &ours), Err(Reason::Ipv6Source));
    assert!(hear(&guard, &advertised("2001:db8:1::", true)));
    guard.refresh();
    assert_eq!(judge(&guard, &ours), Ok(()));
    for others in [
        "2001:db8:1::1",
        "2001:db8:1::5054:ff:fe00:6",
        "2001:db8:2::5054:ff:fe00:5",
        "fe80::5054:ff:fe00:6",
    ] {
        let said = judge(&guard, &packet_from(others));
        assert_eq!(said, Err(Reason::Ipv6Source), "{others}");
    }
}

/// Duplicate Address Detection: what nobody says is theirs may be had, and not before there was time to say so.
#[test]
fn other_addresses_of_a_prefix_are_for_who_asks_first() {
    let guard = guard("mac=52:54:00:00:00:05,ip,not=2001:db8:1::1");
    let mut pairs = [guard.clone(), guard];
    hear(&pairs[0], &advertised("2001:db8:1::", true));
    let ask = |pair: &Guard, address: &str, from: [u8; 6]| {
        let mut frame = ipv6("::", 58, &discovery(135, address, 14, from));
        frame[6..12].copy_from_slice(&from);
        let claim = Claim {
            name: "a question",
            header: [0; 10],
            frame,
        };
        match from == GUEST {
            true => judge(pair, &claim),
            false => {
                assert!(hear(pair, &claim.frame));
                Ok(())
            }
        }
    };
    pairs.iter_mut().for_each(Guard::refresh);
    let taken = "2001:db8:1::6";
    let asked_by_two = "2001:db8:1::7";
    for address in [taken, asked_by_two, "2001:db8:1::8", "fe80::8"] {
        assert_eq!(ask(&pairs[0], address, GUEST), Ok(()), "{address}");
    }
    for (address, why) in [
        ("2001:db8:1::1", "the router's"),
        ("2001:db8:2::8", "of no prefix"),
    ] {
        assert_eq!(
            ask(&pairs[0], address, GUEST),
            Err(Reason::Neighbor),
            "{why}"
        );
    }
    // Answers come by any queue.
    let mut answer = ipv6(taken, 58, &discovery(136, taken, 2, NEIGHBOUR));
    answer[6..12].copy_from_slice(&NEIGHBOUR);
    assert!(hear(&pairs[1], &answer));
    ask(&pairs[1], asked_by_two, NEIGHBOUR).unwrap();
    let mut may = |address: &str| {
        pairs[1].refresh();
        judge(&pairs[1], &packet_from(address)).is_ok()
    };
    for address in ["2001:db8:1::8", "fe80::8"] {
        assert!(!may(address), "not yet");
    }
    wait_for("silence", || may("2001:db8:1::8").then_some(()));
    assert!(may("fe80::8"));
    for address in [taken, asked_by_two, "2001:db8:1::9"] {
        assert!(!may(address), "{address}");
    }
    // Nothing is awaited any more.
    assert!(!hear(&pairs[1], &answer));
}

#[test]
fn what_was_given_is_known_to_the_next_guard() {
    let dir = tempfile::tempdir().unwrap();
    let guard = || {
        let file = LeaseFile::open(&dir.path().join("nic0.leases")).unwrap();
        Guard::new(policy("mac=52:54:00:00:00:05,ip"), Some(file))
    };
    let ours = Claim {
        name: "leased",
        header: [0; 10],
        frame: ipv4([10, 0, 0, 9], 6, &tcp()),
    };
    let mut first = guard();
    first.refresh();
    assert_eq!(judge(&first, &ours), Err(Reason::Ipv4Source));
    hear(&first, &dhcp_ack(GUEST, [10, 0, 0, 9], 60));
    let mut next = guard();
    next.refresh();
    assert_eq!(judge(&next, &ours), Ok(()));
    hear(&next, &dhcp_ack(GUEST, [10, 0, 0, 9], 0));
    let mut last = guard();
    last.refresh();
    assert_eq!(judge(&last, &ours), Err(Reason::Ipv4Source));
}

/// What stands behind a packet's end is cut off by whoever gets it, and so hides nothing.
#[test]
fn what_stands_behind_a_packet_is_not_looked_at() {
    let guard = guard(POLICY);
    let refused = forged()
        .into_iter()
        .filter(|(claim, _)| claim.header[0] == 0);
    for (claim, reason) in refused {
        let mut longer = claim.clone();
        longer.frame.extend([2; 40]);
        let said = judge(&guard, &longer).expect_err(claim.name);
        // What was too short may be long enough, and a lie.
        assert!(
            said == reason || reason == Reason::Malformed,
            "{}: {said}",
            claim.name
        );
    }
    for claim in honest() {
        let mut longer = claim.clone();
        longer.frame.extend([2; 40]);
        assert_eq!(judge(&guard, &longer), Ok(()), "{}", claim.name);
    }
}
