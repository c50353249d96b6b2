//! Sets, keepers and take-overs by themselves; and random runs of nodes that crash, forget what they had not written, lose,
//! double and overtake messages, and take the session from each other.

mod chance;

use super::*;
use crate::cluster::messages::NodeKey;
use crate::manifest::ContextId;
use crate::session::SessionId;

pub(super) fn node(index: u8) -> NodeKey {
    NodeKey([index; 6])
}

pub(super) fn first_head(owner: u8, members: &[u8]) -> Head {
    Head {
        session: SessionId(1),
        context: ContextId(1),
        epoch: Epoch::first(node(owner)),
        version: 1,
        set: CopySet::of(members.iter().map(|index| node(*index)).collect()),
        is_removed: false,
    }
}

/// Nodes by number, each with what it has; a message is answered at once or not at all.
#[derive(Default)]
struct Nodes(std::collections::BTreeMap<NodeKey, (Option<Copy>, Vec<Vec<u8>>)>);

impl Nodes {
    fn ask(&mut self, to: NodeKey, request: KeeperRequest) -> KeeperReply {
        let (copy, log) = self.0.entry(to).or_default();
        let (reply, change) = decide(to, copy.as_ref(), request);
        if let Some(change) = change {
            *copy = Some(change.copy().clone());
            match change {
                Change::Head(_) => {}
                Change::Append { turns, .. } => log.extend(turns),
                Change::Replace { turns, .. } => *log = turns,
                Change::Drop(_) => log.clear(),
            }
        }
        reply
    }

    /// Lets an owner send until it has nothing more to say; `silent` do not answer.
    fn settle(&mut self, owner: &mut Owner, log: &[&str], silent: &[u8]) -> Standing {
        loop {
            let sends = owner.sends();
            if sends.is_empty() {
                return owner.standing();
            }
            for Send { to, from } in sends {
                if silent.iter().any(|index| node(*index) == to) {
                    owner.failed(to);
                    continue;
                }
                let from_index = usize::try_from(from).unwrap();
                let turns = log[from_index..].iter().map(|turn| turn.as_bytes().to_vec()).collect();
                let reply = self.ask(to, KeeperRequest::Store { head: owner.head().clone(), from, turns });
                owner.replied(to, &reply);
            }
        }
    }

    fn survey(&self, silent: &[u8]) -> Survey {
        let mut survey = Survey::default();
        for (node, (copy, _)) in &self.0 {
            match silent.contains(&node.0[0]) {
                true => survey.failed(*node),
                false => survey.told(*node, copy.clone()),
            }
        }
        survey
    }

    fn take_over(&mut self, me: u8, silent: &[u8]) -> Fencing {
        let mut taking = TakeOver::begin(node(me), &self.survey(silent)).expect("somebody owns it");
        loop {
            let asks = taking.asks();
            if asks.is_empty() {
                return taking.fencing();
            }
            for to in asks {
                match silent.contains(&to.0[0]) {
                    true => taking.failed(to),
                    false => {
                        let reply = self.ask(to, KeeperRequest::Fence(taking.epoch()));
                        taking.replied(to, reply);
                    }
                }
            }
        }
    }

    fn log(&self, index: u8) -> Vec<&str> {
        self.0[&node(index)].1.iter().map(|turn| std::str::from_utf8(turn).unwrap()).collect()
    }
}

#[test]
fn any_two_quorums_of_a_set_have_a_node_in_common() {
    for members in 1..=5_u8 {
        let set = CopySet::of((0..members).map(node).collect());
        let quorum = |chosen: u32| set.has_quorum(|node| chosen >> node.0[0] & 1 == 1);
        for one in 0..1_u32 << members {
            for other in 0..1_u32 << members {
                assert!(!quorum(one) || !quorum(other) || one & other != 0, "{one:b} {other:b} of {members}");
            }
        }
        assert!(quorum((1 << members) - 1));
    }
    let pair = CopySet::of(vec![node(0), node(1)]);
    assert!(pair.has_quorum(|one| one == node(0)) && !pair.has_quorum(|one| one == node(1)));
}

#[test]
fn what_the_owners_own_node_cannot_write_is_asked_of_nobody_and_waits_for_nobody() {
    let (mut nodes, mut owner) = (Nodes::default(), Owner::new(node(1), first_head(1, &[1, 2, 3]), 0));
    assert_eq!(nodes.settle(&mut owner, &[], &[]), Standing::Settled);
    owner.append();
    assert_eq!(owner.sends(), [Send { to: node(1), from: 0 }]);
    owner.failed(node(1));
    assert_eq!((owner.sends(), owner.standing()), (vec![], Standing::Short { silent: vec![node(1)] }));
    owner.retry();
    assert_eq!(nodes.settle(&mut owner, &["a"], &[]), Standing::Settled);
    assert_eq!((nodes.log(1), nodes.log(2), nodes.log(3)), (vec!["a"], vec!["a"], vec!["a"]));
}

#[test]
fn a_turn_is_settled_once_all_that_answer_have_it_and_never_without_a_quorum() {
    let (mut nodes, mut owner) = (Nodes::default(), Owner::new(node(1), first_head(1, &[1, 2, 3]), 0));
    assert_eq!(nodes.settle(&mut owner, &[], &[]), Standing::Settled);
    owner.append();
    assert_eq!(owner.sends(), [Send { to: node(1), from: 0 }], "its own node is the first to write it");
    let reply = nodes.ask(node(1), store_of(&owner, 0, &["a"]));
    owner.replied(node(1), &reply);
    assert_eq!(owner.standing(), Standing::Waiting);
    assert_eq!(nodes.settle(&mut owner, &["a"], &[3]), Standing::Settled);
    assert_eq!((nodes.log(2), nodes.log(3), owner.copies()), (vec!["a"], vec![], (2, 3)));
    owner.append();
    let silent = vec![node(2), node(3)];
    assert_eq!(nodes.settle(&mut owner, &["a", "b"], &[2, 3]), Standing::Short { silent });
    owner.retry();
    assert_eq!(nodes.settle(&mut owner, &["a", "b"], &[2]), Standing::Settled);
    assert_eq!(nodes.log(3), ["a", "b"], "it is given what it has missed");
}

fn store_of(owner: &Owner, from: u64, turns: &[&str]) -> KeeperRequest {
    let turns = turns.iter().map(|turn| turn.as_bytes().to_vec()).collect();
    KeeperRequest::Store { head: owner.head().clone(), from, turns }
}

#[test]
fn an_owner_that_was_fenced_acknowledges_nothing_and_is_told_by_whom() {
    let (mut nodes, mut old) = (Nodes::default(), Owner::new(node(1), first_head(1, &[1, 2, 3]), 0));
    old.append();
    assert_eq!(nodes.settle(&mut old, &["a"], &[]), Standing::Settled);
    let Fencing::Won { head, source, turns } = nodes.take_over(2, &[1]) else {
        panic!("two of three answer")
    };
    assert_eq!((head.epoch, turns), (Epoch { counter: 2, owner: node(2) }, 1));
    assert!(source == node(2) || source == node(3));
    let mut new = Owner::new(node(2), head.clone(), turns);
    // The old one is there again. Whether or not its own node has heard, it cannot go on.
    old.append();
    assert_eq!(nodes.settle(&mut old, &["a", "b"], &[]), Standing::Fenced(head.epoch));
    new.append();
    assert_eq!(nodes.settle(&mut new, &["a", "c"], &[]), Standing::Settled);
    assert_eq!(nodes.log(1), ["a", "c"], "what it had written and not settled is gone");
    assert!(old.sends().is_empty());
}

#[test]
fn an_owner_that_stood_still_learns_before_it_answers_that_the_session_was_taken_over() {
    let (mut nodes, mut old) = (Nodes::default(), Owner::new(node(1), first_head(1, &[1, 2, 3]), 0));
    assert_eq!(nodes.settle(&mut old, &[], &[]), Standing::Settled);
    old.doubt();
    assert_eq!(old.standing(), Standing::Waiting, "what it knew before counts for nothing");
    assert_eq!(nodes.settle(&mut old, &[], &[2]), Standing::Settled, "one other and itself are a quorum");
    old.doubt();
    let silent = vec![node(2), node(3)];
    assert_eq!(nodes.settle(&mut old, &[], &[2, 3]), Standing::Short { silent }, "nobody says so");
    let Fencing::Won { head, turns, .. } = nodes.take_over(2, &[1]) else { panic!("two of three answer") };
    let mut new = Owner::new(node(2), head.clone(), turns);
    new.append();
    assert_eq!(nodes.settle(&mut new, &["a"], &[1]), Standing::Settled);
    old.doubt();
    old.retry();
    assert_eq!(nodes.settle(&mut old, &[], &[]), Standing::Fenced(head.epoch));
}

#[test]
fn a_doubt_that_a_dead_member_does_not_answer_keeps_no_set_from_changing() {
    let (mut nodes, mut owner) = (Nodes::default(), Owner::new(node(1), first_head(1, &[1, 3, 4]), 0));
    owner.append();
    assert_eq!(nodes.settle(&mut owner, &["a"], &[]), Standing::Settled);
    owner.doubt();
    assert_eq!(nodes.settle(&mut owner, &["a"], &[3]), Standing::Settled);
    assert_eq!(owner.copies(), (2, 3), "what is not known to be there does not count");
    for _ in 0..2 {
        assert!(owner.change(&[node(4), node(2)], 2), "{:?}", owner.head());
        assert_eq!(nodes.settle(&mut owner, &["a"], &[3]), Standing::Settled);
    }
    assert!(!owner.change(&[node(4), node(2)], 2));
    assert_eq!(owner.head().set, CopySet::of(vec![node(1), node(4), node(2)]));
    assert_eq!((nodes.log(2), owner.copies()), (vec!["a"], (3, 3)));
}

#[test]
fn a_copy_that_lost_its_log_is_given_it_anew() {
    let (mut nodes, mut owner) = (Nodes::default(), Owner::new(node(1), first_head(1, &[1, 2, 3]), 0));
    owner.append();
    assert_eq!(nodes.settle(&mut owner, &["a"], &[]), Standing::Settled);
    nodes.0.remove(&node(3));
    owner.doubt();
    assert_eq!(nodes.settle(&mut owner, &["a"], &[]), Standing::Settled);
    assert_eq!((nodes.log(3), owner.copies()), (vec!["a"], (3, 3)));
}

#[test]
fn a_copy_that_never_has_what_it_was_sent_is_not_sent_it_without_end() {
    let mut owner = Owner::new(node(1), first_head(1, &[1, 2, 3]), 0);
    owner.append();
    assert_eq!(owner.sends(), [Send { to: node(1), from: 0 }]);
    let short = KeeperReply::Stored { epoch: owner.head().epoch, version: 1, turns: 0 };
    owner.replied(node(1), &short);
    assert_eq!((owner.sends(), owner.standing()), (vec![], Standing::Short { silent: vec![node(1)] }));
    // What it was sent is what counts, not what has come to be wanted meanwhile.
    owner.retry();
    assert_eq!(owner.sends(), [Send { to: node(1), from: 0 }]);
    owner.append();
    owner.replied(node(1), &KeeperReply::Stored { epoch: owner.head().epoch, version: 1, turns: 1 });
    assert_eq!(owner.sends(), [Send { to: node(1), from: 1 }]);
}

#[test]
fn after_a_restart_copies_are_sent_only_what_they_lack() {
    let (mut nodes, mut owner) = (Nodes::default(), Owner::new(node(1), first_head(1, &[1, 2, 3]), 0));
    owner.append();
    assert_eq!(nodes.settle(&mut owner, &["a"], &[]), Standing::Settled);
    owner.append();
    assert_eq!(nodes.settle(&mut owner, &["a", "b"], &[3]), Standing::Settled);
    let mut again = Owner::new(node(1), owner.head().clone(), 2);
    assert_eq!(again.sends(), [Send { to: node(1), from: 2 }]);
    let reply = nodes.ask(node(1), store_of(&again, 2, &[]));
    again.replied(node(1), &reply);
    assert_eq!(again.sends(), [Send { to: node(2), from: 2 }, Send { to: node(3), from: 2 }]);
    for index in [2, 3] {
        let reply = nodes.ask(node(index), store_of(&again, 2, &[]));
        again.replied(node(index), &reply);
    }
    assert_eq!(again.sends(), [Send { to: node(3), from: 1 }], "the one that was away says what it lacks");
    again.give_up();
    assert_eq!(nodes.settle(&mut again, &["a", "b"], &[]), Standing::Settled);
    assert_eq!(nodes.log(3), ["a", "b"]);
    // Of an earlier owner's log nothing counts: it is sent whole.
    let Fencing::Won { head, turns, .. } = nodes.take_over(2, &[1]) else { panic!("two of three answer") };
    let mut new = Owner::new(node(2), head, turns);
    assert_eq!(nodes.settle(&mut new, &["a", "b"], &[]), Standing::Settled);
    assert_eq!((nodes.log(1), nodes.log(2), nodes.log(3)), (vec!["a", "b"], vec!["a", "b"], vec!["a", "b"]));
}

#[test]
fn answers_that_nobody_waits_for_any_more_are_asked_for_again() {
    let (mut nodes, mut owner) = (Nodes::default(), Owner::new(node(1), first_head(1, &[1, 2, 3]), 0));
    assert_eq!(owner.sends(), [Send { to: node(1), from: 0 }]);
    assert_eq!((owner.sends(), owner.standing()), (vec![], Standing::Waiting));
    owner.give_up();
    assert_eq!(nodes.settle(&mut owner, &[], &[]), Standing::Settled);
}

#[test]
fn without_a_quorum_nobody_takes_over_and_of_two_only_the_first_goes_on() {
    let (mut nodes, mut owner) = (Nodes::default(), Owner::new(node(1), first_head(1, &[1, 2, 3]), 0));
    assert_eq!(nodes.settle(&mut owner, &[], &[]), Standing::Settled);
    assert_eq!(nodes.take_over(3, &[1, 2]), Fencing::Short { silent: vec![node(1), node(2)] });
    let (mut nodes, mut owner) = (Nodes::default(), Owner::new(node(1), first_head(1, &[1, 2]), 0));
    assert_eq!(nodes.settle(&mut owner, &[], &[2]), Standing::Settled);
    assert_eq!(nodes.survey(&[1]).found(), Found::Nowhere { silent: vec![node(1)] });
    owner.retry();
    assert_eq!(nodes.settle(&mut owner, &[], &[]), Standing::Settled);
    assert_eq!(nodes.take_over(2, &[1]), Fencing::Short { silent: vec![node(1)] });
}

#[test]
fn a_set_changes_in_two_steps_and_who_has_left_knows_where_it_went() {
    let (mut nodes, mut owner) = (Nodes::default(), Owner::new(node(1), first_head(1, &[1, 2, 3]), 0));
    owner.append();
    assert_eq!(nodes.settle(&mut owner, &["a"], &[]), Standing::Settled);
    assert!(!owner.change(&[node(2), node(3), node(4)], 2), "as many as wanted are there");
    assert!(owner.change(&[node(2), node(4)], 2));
    let joint = CopySet { members: vec![node(1), node(2), node(4)], before: vec![node(1), node(2), node(3)] };
    assert_eq!(owner.head().set, joint);
    assert!(!owner.change(&[node(2), node(4)], 2), "one change at a time");
    assert_eq!(nodes.settle(&mut owner, &["a"], &[3]), Standing::Settled);
    assert!(owner.change(&[node(2), node(4)], 2));
    owner.retry();
    assert_eq!(nodes.settle(&mut owner, &["a"], &[]), Standing::Settled);
    assert_eq!(owner.head().set, CopySet::of(joint.members));
    assert_eq!((nodes.log(4), nodes.log(3)), (vec!["a"], vec![]));
    // Asked for its copy, the one that has left points to those that have it.
    assert_eq!(nodes.take_over(3, &[2, 4]), Fencing::Short { silent: vec![node(2), node(4)] });
    let Fencing::Won { source, turns: 1, .. } = nodes.take_over(3, &[1]) else {
        panic!("two of three answer")
    };
    assert!([node(2), node(4)].contains(&source));
}

#[test]
fn a_removed_session_stays_removed_whoever_still_has_a_copy() {
    let (mut nodes, mut owner) = (Nodes::default(), Owner::new(node(1), first_head(1, &[1, 2, 3]), 0));
    owner.append();
    assert_eq!(nodes.settle(&mut owner, &["a"], &[]), Standing::Settled);
    owner.remove();
    assert_eq!(nodes.settle(&mut owner, &[], &[3]), Standing::Settled);
    assert_eq!((nodes.log(1), nodes.log(2), nodes.log(3)), (vec![], vec![], vec!["a"]));
    assert_eq!(nodes.survey(&[1]).found(), Found::Removed);
    // With nobody but the one that missed it, there is no quorum.
    assert_eq!(nodes.take_over(3, &[1, 2]), Fencing::Short { silent: vec![node(1), node(2)] });
}

#[test]
fn nodes_that_run_sessions_are_preferred_and_contexts_prefer_different_ones() {
    let nodes: Vec<_> = (0..6).map(|index| (node(index), index < 4)).collect();
    let orders: Vec<_> = (0..64).map(|context| preferred(ContextId(context), nodes.clone())).collect();
    for order in &orders {
        assert!(order[..4].iter().all(|node| node.0[0] < 4) && order.len() == 6);
    }
    let firsts: std::collections::BTreeSet<_> = orders.iter().map(|order| order[0]).collect();
    assert_eq!(firsts.len(), 4);
    assert_eq!(orders[5], preferred(ContextId(5), nodes.into_iter().rev()));
}
