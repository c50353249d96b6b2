//! Clusters of real processes to which things happen while they are asked. Each scenario is a list of steps (`steps.rs`); the
//! stage (`stage.rs`) plays them, and compares every answer, token for token, with that of one process. The goldens are
//! asked in `goldens.rs`. Nothing here waits for a time to pass.

#![cfg(unix)]

#[path = "scenarios/goldens.rs"]
mod goldens;
#[allow(dead_code, reason = "each test binary plays a part of the steps")]
#[path = "scenarios/stage.rs"]
mod stage;
#[allow(dead_code, reason = "each test binary plays a part of the steps")]
#[path = "scenarios/steps.rs"]
mod steps;

use stage::{Kind, play};
use steps::Step::*;
use steps::Work;

#[rustfmt::skip]
#[tokio::test]
async fn the_demo_is_answered_as_by_one_process_on_one_two_three_and_five_nodes() {
    play(Kind::Demo, &[
        Start(1), Encode, Ask,
        Start(2), Encode, Spread(2), Ask,
        Start(3), Encode, Spread(3), Ask,
        Start(5), Encode, Spread(4), Ask,
    ]).await;
}

#[rustfmt::skip]
#[tokio::test]
async fn answers_stay_while_a_node_joins_and_another_is_drained() {
    play(Kind::Demo, &[
        Start(2), Encode, Ask,
        Add(1), Rebalance, Holds(3), Ask,
        Drain(2), Ask,
        Drain(3), Ask,
    ]).await;
}

#[rustfmt::skip]
#[tokio::test]
async fn answers_under_way_stay_while_a_node_joins_and_another_is_drained() {
    play(Kind::Demo, &[
        Start(3), Encode, Ask,
        Begin(Work::Decode), Add(1), Rebalance, Finish,
        Holds(2), Begin(Work::Decode), Drain(2), Finish, Ask,
    ]).await;
}

#[rustfmt::skip]
#[tokio::test]
async fn a_node_that_is_killed_while_it_encodes_is_replaced() {
    play(Kind::Demo, &[
        Start(3), Hold(2), Begin(Work::Encode), Kill(2), Finish, Ask,
        SeesDown(2), Ask,
    ]).await;
}

#[rustfmt::skip]
#[tokio::test]
async fn a_node_that_is_killed_while_it_is_asked_is_replaced_before_the_next_token() {
    play(Kind::Demo, &[
        Start(3), Encode, Ask,
        // Before the first token; it comes back empty, under its old name.
        Holds(2), Hold(2), Begin(Work::Ask), Kill(2), Finish, Ask,
        SeesDown(2), Restart(2), Rebalance, Holds(2), Ask,
        // Between two tokens.
        Holds(3), Begin(Work::Decode), Kill(3), Finish, Ask,
    ]).await;
}

#[rustfmt::skip]
#[tokio::test]
async fn a_migration_whose_target_or_source_is_killed_loses_nothing() {
    play(Kind::Demo, &[
        Start(4), Encode, Ask,
        Holds(2), Hold(3), Begin(Work::Drain(2)), Kill(3), Finish, Ask,
        // The session's second copy is lost next, and would be more than it can miss.
        Copied,
        Holds(4), Hold(4), Begin(Work::Drain(4)), Kill(4), GiveUp, Ask,
    ]).await;
}

#[rustfmt::skip]
#[tokio::test]
async fn a_migration_whose_target_is_killed_with_half_a_block_goes_elsewhere() {
    play(Kind::Slow, &[
        Start(3), Encode, Ask,
        // There is one target, and then another one.
        Drain(1), Begin(Work::Copy(2)), Kill(3), Uncordon(1), Finish, Ask,
    ]).await;
}

#[rustfmt::skip]
#[tokio::test]
async fn a_migration_whose_source_is_killed_with_half_a_block_sent_loses_nothing() {
    play(Kind::Slow, &[
        Start(3), Encode, Ask,
        Holds(2), Begin(Work::Copy(2)), Kill(2), GiveUp, Ask,
    ]).await;
}

#[rustfmt::skip]
#[tokio::test]
async fn a_node_that_is_frozen_is_done_without_and_taken_back_when_it_goes_on() {
    play(Kind::Demo, &[
        Start(3), Encode, Ask,
        // For a moment.
        Holds(2), Hold(2), Begin(Work::Ask), Thaw(2), Finish, Ask,
        // For so long that it is held for dead.
        Holds(3), Hold(3), Ask, SeesDown(3), Thaw(3), Whole, Ask,
    ]).await;
}

#[rustfmt::skip]
#[tokio::test]
async fn sessions_go_on_while_the_supervisor_is_gone_and_contexts_are_made_once_it_is_back() {
    play(Kind::Demo, &[
        Start(3), AskAt(2), Encode, Drain(1), Ask,
        // It held none of the blocks: whoever does goes on.
        Begin(Work::Decode), Kill(1), Finish, Ask,
        Restart(1), Ask,
        Remove, Encode, Ask,
    ]).await;
}

#[rustfmt::skip]
#[tokio::test]
async fn a_supervisor_that_is_killed_is_followed_by_another_and_a_minority_answers_and_places_nothing() {
    play(Kind::Elected, &[
        Start(3), AskAt(3), TakeOver(2), TakeOver(1),
        // What was wanted of it is known to whoever comes next, so that no block lies on it.
        Cordon(2), Encode, Ask,
        Kill(1), LedByAnother(1), IsCordoned(2), Encode, Ask,
        // One of three voters is left: it answers from what it holds.
        Kill(2), NotLed, Ask, Refused("2 of 3 must"), Ask,
        Restart(1), Restart(2), IsCordoned(2), Encode, Ask,
    ]).await;
}

#[rustfmt::skip]
#[tokio::test]
async fn contexts_and_sessions_are_back_after_the_whole_cluster_was_killed() {
    play(Kind::Demo, &[
        Start(3), Encode, Ask,
        KillAll, RestartAll, Ask,
        Add(1), Rebalance, Ask,
    ]).await;
}

#[rustfmt::skip]
#[tokio::test]
async fn a_context_larger_than_the_cluster_is_refused_with_numbers_and_taken_after_a_join() {
    play(Kind::Tight, &[
        Start(1), Refused("free"),
        Add(1), Encode, Spread(2), Ask,
        // It fails alone.
        AppendRefused("free"), Ask,
        // One of the two cannot hold it alone.
        DrainRefused(2), Ask,
        Add(1), Drain(2), Spread(2), Ask,
    ]).await;
}
