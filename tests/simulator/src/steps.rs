//! What a scenario's steps do to a world.

use std::time::Duration;

use stellate_actors::cluster::messages::SupervisorRequest;
use stellate_actors::session::SessionId;

use crate::node::{Node, key_of};
use crate::scenario::Step;
use crate::world::World;

/// Most nodes that a world has.
pub(crate) const MAX_NODES: usize = 4096;

/// Carries out a step. One that means a node that is not there does nothing.
pub(crate) fn take(world: &mut World, step: Step) {
    if node_of(step).is_some_and(|node| usize::from(node) >= world.nodes.len()) {
        return;
    }
    world.checks.fault(name(step));
    match step {
        Step::Crash { node } => world.crash(node),
        Step::Start { node } => world.start(node),
        Step::Join => join(world),
        Step::Pause { node, ms } => world.pause(node, Duration::from_millis(ms)),
        Step::Cut { from, to } => world.network.cut(from, to),
        Step::Isolate { node } => {
            for other in (0..world.nodes.len() as u16).filter(|&other| other != node) {
                world.network.cut(node, other);
                world.network.cut(other, node);
            }
        }
        Step::Mend => world.network.mend(),
        Step::DiskFull { node, is_full } => world.node_mut(node).disk.is_full = is_full,
        Step::SlowDisk { node, ms } => world.node_mut(node).disk.sync = Duration::from_millis(ms),
        Step::ClockJump { node, seconds } => world.node_mut(node).wall_off += seconds,
        Step::SlowHost { node, times } => world.node_mut(node).agent.host.times = times as u32,
        Step::DamagedCopies { node } => world.node_mut(node).agent.host.damages += 3,
        Step::Lying { node } => world.node_mut(node).agent.host.lies += 4,
        Step::SecondSupervisor { node } => second_supervisor(world, node),
        Step::TakeOver { node } => world.take_the_lead(node),
        Step::Cordon { node } => world.wish(SupervisorRequest::Cordon(key_of(node))),
        Step::Uncordon { node } => world.wish(SupervisorRequest::Uncordon(key_of(node))),
        Step::Drain { node, deadline_s } => {
            let deadline_ms = deadline_s.map(|seconds| seconds * 1000);
            world.wish(SupervisorRequest::Drain { node: key_of(node), deadline_ms, dry_run: false });
        }
        Step::Rebalance => world.wish(SupervisorRequest::Rebalance { apply: true }),
        Step::Context { node, blocks } => {
            if world.node(node).is_up {
                world.make_context(node, blocks.max(1));
            }
        }
        Step::Release { context } => release(world, context),
        Step::Ask { session, tokens, elsewhere } => ask(world, session, tokens, elsewhere),
        Step::Move { session, node } => {
            if let Some((id, at)) = session_of(world, session)
                && at != node
                && answers(world, node)
            {
                let asked = world.question(id, 1);
                world.take(node, id, asked, true);
            }
        }
    }
}

fn session_of(world: &World, which: u64) -> Option<(SessionId, u16)> {
    let sessions = world.checks.sessions();
    sessions.get((which % sessions.len().max(1) as u64) as usize).copied()
}

/// Whether a node runs sessions and hears whoever asks.
fn answers(world: &World, number: u16) -> bool {
    let node = world.nodes.get(usize::from(number));
    node.is_some_and(|node| node.is_up && node.paused_at.is_none() && node.query.is_some())
}

/// A session is asked, at another node if the one that has it is not there.
fn ask(world: &mut World, which: u64, tokens: u64, elsewhere: Option<u16>) {
    let Some((id, at)) = session_of(world, which) else { return };
    let mut nodes = elsewhere.into_iter().chain([at]).chain(0..world.scenario.shape.query_nodes);
    if let Some(node) = nodes.find(|&node| answers(world, node)) {
        world.ask_session(node, id, tokens);
    }
}

fn join(world: &mut World) {
    if world.nodes.len() < MAX_NODES {
        let number = world.nodes.len() as u16;
        let node = Node::new(number, world.scenario.shape, &mut world.chance);
        world.nodes.push(node);
        world.start(number);
    }
}

fn second_supervisor(world: &mut World, number: u16) {
    if world.scenario.shape.voters > 0 {
        return;
    }
    let node = world.node_mut(number);
    let (is_second, is_up) = (!node.supervises, node.is_up);
    node.supervises = true;
    if is_second && is_up {
        world.start_supervisor(number, Default::default());
    }
}

fn release(world: &mut World, which: u64) {
    let mut contexts = Vec::new();
    for (number, node) in (0..).zip(&world.nodes) {
        let query = node.query.iter().flat_map(|query| query.contexts.values());
        contexts.extend(query.filter(|context| context.is_made).map(|context| (number, context.spec.id)));
    }
    if let Some(&(number, context)) = contexts.get((which % contexts.len().max(1) as u64) as usize) {
        world.release_context(number, context);
    }
}

/// The node that a step is about.
fn node_of(step: Step) -> Option<u16> {
    match step {
        Step::Crash { node }
        | Step::Start { node }
        | Step::Pause { node, .. }
        | Step::Isolate { node }
        | Step::DiskFull { node, .. }
        | Step::SlowDisk { node, .. }
        | Step::ClockJump { node, .. }
        | Step::SlowHost { node, .. }
        | Step::DamagedCopies { node }
        | Step::Lying { node }
        | Step::SecondSupervisor { node }
        | Step::TakeOver { node }
        | Step::Cordon { node }
        | Step::Uncordon { node }
        | Step::Drain { node, .. }
        | Step::Move { node, .. }
        | Step::Context { node, .. } => Some(node),
        Step::Cut { from, to } => Some(from.max(to)),
        Step::Join | Step::Mend | Step::Rebalance | Step::Release { .. } | Step::Ask { .. } => None,
    }
}

/// What a step is counted as.
fn name(step: Step) -> &'static str {
    match step {
        Step::Crash { .. } => "crash",
        Step::Start { .. } => "start",
        Step::Join => "join",
        Step::Pause { .. } => "pause",
        Step::Cut { .. } => "one-way cut",
        Step::Isolate { .. } => "isolation",
        Step::Mend => "mended network",
        Step::DiskFull { .. } => "full disk",
        Step::SlowDisk { .. } => "slow disk",
        Step::ClockJump { .. } => "clock jump",
        Step::SlowHost { .. } => "slow host",
        Step::DamagedCopies { .. } => "damaged copies",
        Step::Lying { .. } => "host that lies about its cover",
        Step::SecondSupervisor { .. } => "second supervisor",
        Step::TakeOver { .. } => "voter asked to lead",
        Step::Cordon { .. } => "cordon",
        Step::Uncordon { .. } => "uncordon",
        Step::Drain { .. } => "drain",
        Step::Rebalance => "rebalance",
        Step::Context { .. } => "new context",
        Step::Release { .. } => "context given up",
        Step::Move { .. } => "session moved",
        Step::Ask { .. } => "question",
    }
}
