//! One machine and what a peer may send it: strangers' names, other versions, floods, bytes that are none.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::wire::{Message, News, Roster, RosterEntry};
use super::*;

fn machine(number: u16) -> Membership {
    let start =
        Start { record: record(number, 1), removed: vec![], seed: u64::from(number), now: Duration::ZERO };
    Membership::new(start, MembershipOptions::default()).expect("a proper record")
}

fn outputs(machine: &mut Membership) -> Vec<Output> {
    std::iter::from_fn(|| machine.poll_output()).collect()
}

/// Two machines that know each other.
fn pair() -> (Membership, Membership) {
    let (mut one, mut two) = (machine(1), machine(2));
    one.contact(Duration::ZERO, node(2));
    for _ in 0..4 {
        exchange(&mut one, &mut two);
        exchange(&mut two, &mut one);
    }
    assert_eq!((one.members().count(), two.members().count()), (1, 1));
    (one, two)
}

fn exchange(from: &mut Membership, to: &mut Membership) {
    let sender = from.identity().node;
    for output in outputs(from) {
        let taken = match output {
            Output::Datagram { bytes, .. } => to.handle_datagram(Duration::ZERO, sender, &bytes),
            Output::Roster { bytes, .. } => to.handle_roster(Duration::ZERO, sender, &bytes),
            _ => Ok(()),
        };
        taken.expect("honest");
    }
}

#[test]
fn whoever_speaks_in_the_name_of_another_is_not_heard() {
    let (mut one, mut two) = pair();
    two.handle_timeout(seconds(1.5));
    let ping = outputs(&mut two).into_iter().find_map(|output| match output {
        Output::Datagram { bytes, .. } if bytes[1] == 1 => Some(bytes),
        _ => None,
    });
    let ping = ping.expect("it pings");
    let before = one.digest();
    assert_eq!(
        one.handle_datagram(seconds(1.5), node(9), &ping),
        Err(InputError::Sender { claimed: node(2) })
    );
    assert_eq!(
        one.handle_datagram(seconds(1.5), node(1), &ping),
        Err(InputError::Sender { claimed: node(1) })
    );
    assert_eq!(one.digest(), before);
    assert_eq!(one.handle_datagram(seconds(1.5), node(2), &ping), Ok(()));
}

#[test]
fn a_peer_of_another_version_is_told_once_per_message_and_named_to_the_caller() {
    let mut one = machine(1);
    outputs(&mut one);
    assert_eq!(
        one.handle_datagram(seconds(0.1), node(2), &[7, 3, 1, 2]),
        Err(InputError::Version { theirs: 7 })
    );
    let told = Message::Refused(RefusalReason::Version { ours: WIRE_VERSION }).frame();
    let expected = [
        Output::Event(Event::OtherVersion { peer: node(2), theirs: 7 }),
        Output::Datagram { to: node(2), bytes: told.clone() },
    ];
    assert_eq!(outputs(&mut one), expected);
    let refusal = [&[7], &told[1..]].concat();
    assert_eq!(one.handle_datagram(seconds(0.1), node(2), &refusal), Err(InputError::Version { theirs: 7 }));
    assert_eq!(outputs(&mut one), expected[..1], "a refusal is not answered");
}

#[test]
fn a_roster_must_come_on_a_stream_and_name_its_sender() {
    let (mut one, mut two) = (machine(1), machine(2));
    one.contact(Duration::ZERO, node(2));
    let roster = outputs(&mut one).into_iter().find_map(|output| match output {
        Output::Roster { bytes, .. } => Some(bytes),
        _ => None,
    });
    let roster = roster.expect("sent");
    assert_eq!(two.handle_datagram(Duration::ZERO, node(1), &roster), Err(InputError::Channel));
    assert_eq!(
        two.handle_roster(Duration::ZERO, node(3), &roster),
        Err(InputError::Sender { claimed: node(3) })
    );
    assert_eq!(two.members().count(), 0);
    assert_eq!(two.handle_roster(Duration::ZERO, node(1), &roster), Ok(()));
    assert_eq!(two.members().count(), 1);
    let digest = Message::Digest([0; 32]).frame();
    assert_eq!(two.handle_roster(Duration::ZERO, node(1), &digest), Err(InputError::Channel));
}

#[test]
fn what_is_longer_than_a_datagram_is_refused_unread() {
    let mut one = machine(1);
    let limit = MembershipOptions::default().datagram_bytes;
    let long = vec![1; limit + 1];
    assert_eq!(
        one.handle_datagram(Duration::ZERO, node(2), &long),
        Err(InputError::TooLong { bytes: limit + 1, limit })
    );
}

#[test]
fn a_flood_of_digests_makes_a_bounded_number_of_rosters() {
    let (mut one, _) = pair();
    outputs(&mut one);
    let digest = Message::Digest([0; 32]).frame();
    for _ in 0..10_000 {
        one.handle_datagram(Duration::ZERO, node(2), &digest).expect("well formed");
    }
    let rosters =
        outputs(&mut one).into_iter().filter(|output| matches!(output, Output::Roster { .. })).count();
    assert!(rosters <= 64, "{rosters}");
}

/// A machine that probes nobody and knows nodes 2 and 3, alive, at time zero.
fn one_of_three() -> Membership {
    let start = Start { record: record(1, 1), removed: vec![], seed: 1, now: Duration::ZERO };
    let idle = MembershipOptions { probe_period: seconds(1e6), ..MembershipOptions::default() };
    let mut one = Membership::new(start, idle).expect("a proper record");
    one.handle_roster(Duration::ZERO, node(2), &roster_of_two(vec![])).expect("honest");
    assert_eq!(one.members().count(), 2);
    one
}

/// What node 2 says: that it and node 3 are alive, and who is dead.
fn roster_of_two(dead: Vec<MemberIdentity>) -> Vec<u8> {
    let entry =
        |number| RosterEntry { identity: life(number), incarnation: 0, record: Some(record(number, 1)) };
    let members =
        vec![entry(2), entry(3)].into_iter().filter(|entry| !dead.contains(&entry.identity)).collect();
    let roster = Roster { wants_reply: false, you: Generation::default(), members, dead, removed: vec![] };
    Message::Roster(Box::new(roster)).frame()
}

fn life(number: u16) -> MemberIdentity {
    MemberIdentity { node: node(number), generation: Generation { boot: 1, renewal: 0 } }
}

/// Lets a machine live until `end` and returns what happened to `number`, with the second.
fn live(one: &mut Membership, end: f64, number: u16) -> Vec<(u64, Event)> {
    let mut happened = Vec::new();
    while let Some(due) = one.poll_timeout().filter(|due| *due <= seconds(end)) {
        one.handle_timeout(due);
        let events = outputs(one).into_iter().filter_map(|output| match output {
            Output::Event(event @ (Event::Suspect(of) | Event::Down(of) | Event::Trusted(of)))
                if of == node(number) =>
            {
                Some((due.as_secs(), event))
            }
            _ => None,
        });
        happened.extend(events);
    }
    happened
}

#[test]
fn who_missed_the_news_of_a_death_doubts_the_dead_when_it_hears_a_roster_and_gives_it_the_usual_time() {
    let mut one = one_of_three();
    live(&mut one, 100.0, 3);
    one.handle_roster(seconds(100.0), node(2), &roster_of_two(vec![life(3)])).expect("honest");
    let happened = live(&mut one, 120.0, 3);
    assert_eq!(
        happened.iter().map(|(_, event)| event.clone()).collect::<Vec<_>>(),
        [Event::Suspect(node(3)), Event::Down(node(3))]
    );
    assert!(happened[0].0 <= 101 && happened[1].0 == 112, "{happened:?}");
}

#[test]
fn who_has_not_been_a_member_for_long_raises_no_doubts() {
    let mut one = one_of_three();
    live(&mut one, 20.0, 3);
    one.handle_roster(seconds(20.0), node(2), &roster_of_two(vec![life(3)])).expect("honest");
    assert_eq!(live(&mut one, 60.0, 3), []);
}

#[test]
fn garbage_and_mangled_messages_neither_panic_nor_make_members() {
    let seed = 0x5eed;
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut one, mut two) = pair();
    let mut honest = vec![Message::Want(vec![node(1)]).frame(), Message::Digest([1; 32]).frame()];
    for step in 1..20 {
        two.handle_timeout(seconds(f64::from(step)));
        honest.extend(outputs(&mut two).into_iter().filter_map(|output| match output {
            Output::Datagram { bytes, .. } | Output::Roster { bytes, .. } => Some(bytes),
            _ => None,
        }));
    }
    for _ in 0..20_000 {
        let mut bytes = honest[rng.random_range(0..honest.len())].clone();
        for _ in 0..rng.random_range(1..6) {
            if bytes.is_empty() {
                break;
            }
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..4) {
                0 => bytes[at] = rng.random(),
                1 => bytes[at] ^= 1 << rng.random_range(0..8),
                2 => bytes.truncate(at),
                _ => bytes.insert(at, rng.random()),
            }
        }
        // Refused or not: what counts is that it goes on.
        let _ = one.handle_datagram(seconds(1.0), node(2), &bytes);
        let _ = one.handle_roster(seconds(1.0), node(2), &bytes);
        outputs(&mut one);
    }
    println!("{} nodes after 20,000 mangled messages", one.members().count());
    assert!(one.members().count() < 100);
}

#[test]
fn what_is_fixed_in_a_record_and_where_a_state_may_not_go_is_refused() {
    let mut one = machine(1);
    assert_eq!(one.update(Duration::ZERO, |record| record.boot = 9), Err(RecordError::Fixed));
    let drained = one.update(Duration::ZERO, |record| record.state = NodeState::Drained);
    assert_eq!(drained, Err(RecordError::State { from: NodeState::Joining, to: NodeState::Drained }));
    let left = one.update(Duration::ZERO, |record| record.state = NodeState::Left);
    assert_eq!(left, Err(RecordError::State { from: NodeState::Joining, to: NodeState::Left }));
    assert_eq!(one.update(Duration::ZERO, |record| record.state = NodeState::Active), Ok(()));
    assert_eq!((one.record().state, one.record().version), (NodeState::Active, 2));
}

#[test]
fn one_that_has_left_says_and_takes_nothing_more() {
    let (mut one, _) = pair();
    outputs(&mut one);
    one.leave(Duration::ZERO);
    assert_eq!(outputs(&mut one).len(), 1, "it tells the one it knows");
    assert_eq!(one.handle_datagram(Duration::ZERO, node(2), &[1, 3]), Err(InputError::Left));
    assert_eq!(one.poll_timeout(), None);
    one.handle_timeout(seconds(100.0));
    assert_eq!(outputs(&mut one), []);
}

#[test]
fn alone_it_asks_for_seeds_ever_more_seldom_and_never_stops() {
    let mut one = machine(1);
    let mut asked = Vec::new();
    let mut now = Duration::ZERO;
    while now < seconds(300.0) {
        now = one.poll_timeout().expect("always has a timer");
        one.handle_timeout(now);
        if outputs(&mut one).contains(&Output::Bootstrap) {
            asked.push(now.as_secs_f64());
        }
    }
    println!("{asked:?}");
    assert_eq!(asked[0], 0.0);
    let gaps: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[0] < 3.0 && gaps.iter().all(|gap| *gap < 34.0), "{gaps:?}");
    assert!(asked.len() < 20);
}

#[test]
fn news_come_to_the_same_in_any_order_and_any_number_of_times() {
    for seed in 0..50_u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut news: Vec<_> = (0..12)
            .map(|_| {
                let number = rng.random_range(3..7);
                let version = rng.random_range(1..5);
                // What a node said under one version is always the same.
                let name = format!("node-{number}-{version}");
                News::Record(NodeRecord { version, name, ..record(number, rng.random_range(1..3)) })
            })
            .collect();
        news.push(News::Removed(node(6)));
        let mut known = None;
        for _ in 0..5 {
            news.shuffle(&mut rng);
            let (mut one, _) = pair();
            for piece in news.iter().chain(&news[..4]) {
                let frame = Message::News(vec![piece.clone()]).frame();
                one.handle_datagram(Duration::ZERO, node(2), &frame).expect("well formed");
                for output in outputs(&mut one) {
                    if let Output::Claimed { removed, .. } = output {
                        removed.into_iter().for_each(|node| one.remove(Duration::ZERO, node));
                    }
                }
            }
            let records: Vec<_> = (3..7)
                .map(|number| one.peers.get(&node(number)).and_then(|peer| peer.record.clone()))
                .collect();
            assert!(one.is_removed(&node(6)) && records[3].is_none(), "seed {seed}");
            assert_eq!(known.get_or_insert_with(|| records.clone()), &records, "seed {seed}");
        }
    }
}

#[test]
fn what_a_member_says_of_removals_is_a_hint_that_changes_nothing() {
    let mut one = one_of_three();
    outputs(&mut one);
    let claims = |output: Output| match output {
        Output::Claimed { by, removed } => Some((by, removed)),
        _ => None,
    };
    let claimed = |one: &mut Membership| outputs(one).into_iter().filter_map(claims).collect::<Vec<_>>();
    let frame = Message::News(vec![News::Removed(node(3)), News::Removed(node(1))]).frame();
    one.handle_datagram(Duration::ZERO, node(2), &frame).expect("well formed");
    assert_eq!(claimed(&mut one), [(node(2), vec![node(3), node(1)])]);
    let entry = RosterEntry { identity: life(2), incarnation: 0, record: Some(record(2, 1)) };
    let strangers: Vec<_> = (10..60_000).map(node).collect();
    let members = vec![entry];
    let you = Generation::default();
    let roster = Roster { wants_reply: false, you, members, dead: vec![], removed: strangers };
    let frame = Message::Roster(Box::new(roster)).frame();
    one.handle_roster(Duration::ZERO, node(2), &frame).expect("honest");
    assert_eq!(claimed(&mut one)[0].1.len(), 59_990);
    assert!(!one.is_removed(&node(3)) && one.member(&node(3)).is_some());
    assert_eq!(one.peers.len(), 2, "nothing is kept of what was only said");

    one.remove(Duration::ZERO, node(3));
    outputs(&mut one);
    one.handle_datagram(Duration::ZERO, node(2), &Message::News(vec![News::Removed(node(3))]).frame())
        .expect("well formed");
    assert!(claimed(&mut one).is_empty(), "it is known");
    one.handle_roster(Duration::ZERO, node(2), &roster_of_two(vec![])).expect("honest");
    assert!(outputs(&mut one).contains(&Output::Prove { to: node(2) }), "who lacks it is given the proof");
}
