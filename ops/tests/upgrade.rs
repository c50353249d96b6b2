//! A rolling upgrade: processes of two versions of the protocol work together, and are started again one by one with the newest
//! while a session goes on. A node of the version before is this program held to it, which says and hears what that one did.
//! Every answer is compared, token for token, with that of one process (`scenarios/stage.rs`).

#![cfg(unix)]

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
async fn nodes_of_two_versions_answer_as_one_process_and_are_upgraded_one_by_one_while_a_session_goes_on() {
    play(Kind::Demo, &[
        // The supervisor and a host of the version before, and a node of the newest that is asked.
        Speak(1), Start(2), Speak(0), Add(1), AskAt(3),
        Encode, Spread(3), Ask,
        Spoken(1, 2, 1), Spoken(3, 1, 1), Spoken(2, 3, 1),
        // A host, then the supervisor, each while an answer is under way.
        Begin(Work::Decode), Kill(2), Restart(2), Finish, Ask,
        Spoken(2, 3, 2), Spoken(1, 2, 1),
        Begin(Work::Decode), Kill(1), Restart(1), Finish, Ask,
        Spoken(1, 2, 2), Spoken(3, 1, 2),
        // The one that keeps the sessions.
        Kill(3), Restart(3), Ask,
    ]).await;
}

#[rustfmt::skip]
#[tokio::test]
async fn a_node_that_goes_back_to_the_version_before_is_worked_with_as_such() {
    play(Kind::Demo, &[
        Start(2), Encode, Spread(2), Ask, Spoken(1, 2, 2),
        Speak(1), Kill(2), Restart(2), Spoken(1, 2, 1), Ask,
    ]).await;
}
