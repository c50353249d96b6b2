//! Records, their bounds, states and judgement; messages and their bytes; timers; what fits a datagram.

use proptest::prelude::*;

use super::super::news::{Backlog, pack};
use super::super::record::MAX_RECORD_BYTES;
use super::super::timers::Timers;
use super::super::wire::{FrameError, Message, News, Roster, RosterEntry};
use super::*;

fn requirements() -> Requirements {
    Requirements { protocol: ProtocolRange { oldest: 1, newest: 2 }, model: record(0, 1).model }
}

#[test]
fn a_node_of_the_same_model_and_format_is_compatible() {
    assert_eq!(judge(&requirements(), &record(1, 1)), Standing::Compatible);
}

#[test]
fn a_node_of_another_model_format_or_protocol_joins_as_incompatible_with_the_reason() {
    let mut other = record(1, 1);
    other.model = Some(ModelFormat { fingerprint: "other".to_owned(), kv_format: "f32".to_owned() });
    other.protocol = ProtocolRange { oldest: 3, newest: 4 };
    let Standing::Incompatible(reasons) = judge(&requirements(), &other) else { panic!("compatible") };
    let said: Vec<_> = reasons.iter().map(ToString::to_string).collect();
    assert_eq!(
        said[0],
        "speaks protocol 3 to 4, the cluster 1 to 2: upgrade the older one, one version at a time"
    );
    assert_eq!(said[1], format!("has the model other, the cluster {}", "f".repeat(12)));

    other = record(1, 1);
    other.model.as_mut().expect("has one").kv_format = "f32".to_owned();
    let format = Mismatch::KvFormat { theirs: "f32".to_owned(), ours: "bf16".to_owned() };
    assert_eq!(judge(&requirements(), &other), Standing::Incompatible(vec![format]));
}

#[test]
fn a_node_needs_a_model_only_where_its_roles_do() {
    let mut other = record(1, 1);
    other.model = None;
    assert_eq!(judge(&requirements(), &other), Standing::Incompatible(vec![Mismatch::NoModel]));
    other.roles = Roles { supervisor: true, ..Roles::default() };
    assert_eq!(judge(&requirements(), &other), Standing::Compatible);
    let undecided = Requirements { model: None, ..requirements() };
    assert_eq!(judge(&undecided, &record(1, 1)), Standing::Compatible);
}

#[test]
fn names_that_two_nodes_have_are_found() {
    let records: Vec<_> = (0..6)
        .map(|number| NodeRecord { name: format!("n{}", number / 2 * 2 % 4), ..record(number, 1) })
        .collect();
    let found = clashes(&records);
    assert_eq!(found.iter().map(|clash| clash.name.as_str()).collect::<Vec<_>>(), ["n0", "n2"]);
    assert_eq!(found[0].nodes.len(), 4);
    assert!(found[0].nodes.is_sorted());
}

#[test]
fn states_go_only_where_they_may() {
    use NodeState::{Active, Cordoned, Drained, Draining, Joining, Left};
    for (from, to) in
        [(Joining, Active), (Active, Cordoned), (Cordoned, Draining), (Draining, Drained), (Drained, Left)]
    {
        assert!(from.may_become(to), "{from:?} to {to:?}");
    }
    for (from, to) in [(Active, Drained), (Active, Joining), (Left, Active), (Cordoned, Drained)] {
        assert!(!from.may_become(to), "{from:?} to {to:?}");
    }
    assert!(Draining.may_become(Active), "a drain can be taken back");
}

#[test]
fn a_record_out_of_bounds_is_not_published_and_not_believed() {
    type Spoil = fn(&mut NodeRecord);
    let spoils: [(Spoil, &str); 7] = [
        (|record| record.name = String::new(), "name"),
        (|record| record.name = "a b".to_owned(), "name"),
        (|record| record.name = "n".repeat(64), "name"),
        (|record| record.addresses.clear(), "no address"),
        (|record| record.addresses = vec![record.addresses[0]; 9], "9 addresses"),
        (|record| record.devices = vec![record.devices[0].clone(); 17], "17 kinds of devices"),
        (|record| record.devices[0].name = "x".repeat(700), "bytes"),
    ];
    for (spoil, said) in spoils {
        let mut spoilt = record(1, 1);
        spoil(&mut spoilt);
        let error = spoilt.check().expect_err(said);
        assert!(error.to_string().contains(said), "{error}");
    }
    assert_eq!(record(1, 1).check(), Ok(()));
}

#[test]
fn a_record_of_the_largest_size_fits_a_datagram_with_its_envelope() {
    let mut largest = record(1, 1);
    largest.devices = vec![];
    largest.model = Some(ModelFormat { fingerprint: String::new(), kv_format: "bf16".to_owned() });
    let free = MAX_RECORD_BYTES - crate::encoding::encode(&largest).expect("encodes").len();
    largest.model.as_mut().expect("has one").fingerprint = "f".repeat(free);
    assert_eq!(largest.check(), Ok(()));
    let frame = Message::News(vec![News::Record(largest)]).frame();
    assert!(frame.len() <= MembershipOptions::default().datagram_bytes, "{} bytes", frame.len());
}

#[test]
fn the_largest_roster_fits_its_bound() {
    let entry = |number: u16| RosterEntry {
        identity: MemberIdentity { node: node(number), generation: Generation::default() },
        incarnation: 0,
        record: Some(record(number, 1)),
    };
    let members: Vec<_> = (0..4096).map(entry).collect();
    let roster =
        Roster { wants_reply: true, you: Generation::default(), members, dead: vec![], removed: vec![] };
    let message = Message::Roster(Box::new(roster));
    let frame = message.frame();
    println!("4096 members: {} bytes", frame.len());
    assert!(frame.len() <= MAX_ROSTER_BYTES);
    assert_eq!(Message::parse(&frame), Ok(message));
}

#[test]
fn messages_come_back_from_their_bytes_and_not_from_others() {
    let messages = [
        Message::Swim(b"swim"),
        Message::News(vec![News::Record(record(1, 2)), News::Removed(node(3))]),
        Message::Digest([7; 32]),
        Message::Want(vec![node(1), node(2)]),
        Message::Refused(RefusalReason::NameTaken { name: "n".to_owned(), by: node(1) }),
    ];
    for message in messages {
        let frame = message.frame();
        assert_eq!(Message::parse(&frame).as_ref(), Ok(&message));
        if !matches!(message, Message::Swim(_)) {
            assert!(matches!(Message::parse(&frame[..frame.len() - 1]), Err(FrameError::Malformed(_))));
            assert!(matches!(Message::parse(&[&frame[..], &[0]].concat()), Err(FrameError::Malformed(_))));
        }
    }
    let refusal = Message::Refused(RefusalReason::Removed).frame();
    let of_another_version = [&[9], &refusal[1..]].concat();
    assert_eq!(Message::parse(&of_another_version), Err(FrameError::Version { theirs: 9, refusal: true }));
    assert!(matches!(Message::parse(&[1, 200]), Err(FrameError::Malformed(_))));
    assert!(matches!(Message::parse(&[1]), Err(FrameError::Malformed(_))));
}

proptest! {
    #[test]
    fn no_bytes_bring_the_decoder_down(version in 0..3_u8, kind in 0..8_u8, body in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let frame = [&[version, kind], &body[..]].concat();
        if let Ok(message) = Message::parse(&frame) {
            prop_assert_eq!(message.frame(), frame);
        }
    }
}

#[test]
fn equal_times_fire_in_the_order_they_were_set_and_none_early() {
    let mut timers = Timers::new(Duration::ZERO, seconds(2.0));
    timers.set(seconds(1.0), 'b');
    timers.set(seconds(0.5), 'a');
    timers.set(seconds(1.0), 'c');
    assert_eq!(timers.next_due(), Some(seconds(0.5)));
    timers.advance(seconds(0.9));
    assert_eq!((timers.pop(), timers.pop()), (Some('a'), None));
    timers.advance(seconds(1.0));
    assert_eq!((timers.pop(), timers.pop(), timers.pop()), (Some('b'), Some('c'), None));
}

#[test]
fn time_that_we_stood_still_does_not_count() {
    let mut timers = Timers::new(Duration::ZERO, seconds(2.0));
    timers.set(seconds(1.0), "probe");
    timers.set(seconds(5.0), "verdict");
    timers.advance(seconds(30.0));
    assert_eq!(
        (timers.pop(), timers.pop()),
        (Some("probe"), None),
        "the verdict waits for what was not heard"
    );
    assert_eq!(timers.next_due(), Some(seconds(34.0)));
    timers.advance(seconds(34.0));
    assert_eq!(timers.pop(), Some("verdict"));
    timers.advance(seconds(3.0));
    assert_eq!(timers.now(), seconds(5.0), "and a clock that goes back does no harm");
}

#[test]
fn news_are_told_the_promised_number_of_times_and_the_latest_first() {
    let mut backlog = Backlog::default();
    backlog.add(News::Removed(node(1)), 2);
    assert_eq!(backlog.take(1000, 4), [[News::Removed(node(1))]], "one node is told once, whatever the room");
    backlog.add(News::Removed(node(2)), 2);
    let room_for_one = 2 + 8 + 36;
    assert_eq!(backlog.take(room_for_one, 1), [[News::Removed(node(2))]]);
    assert_eq!(backlog.take(room_for_one, 4).len(), 2, "one datagram each");
    assert!(backlog.is_empty());
}

#[test]
fn asked_for_records_are_packed_into_datagrams_without_loss() {
    let news: Vec<_> = (0..16).map(|number| News::Record(record(number, 1))).collect();
    let packs = pack(news.clone(), 1150);
    for pack in &packs {
        assert!(Message::News(pack.clone()).frame().len() <= 1150);
    }
    assert_eq!(packs.concat(), news);
    assert!(packs.len() < 16);
}
