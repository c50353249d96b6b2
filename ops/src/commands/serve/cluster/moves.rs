//! Blocks on the move: drains and rebalancing as the supervisor plans and does them, told to whoever watches. The supervisor is
//! asked again and again how far it is, from any node; that nobody watches any more stops nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use stellate_actors::api::{ClusterError, DrainRequest, MoveEvent, MoveKind, Planned, RebalancePlan};
use stellate_actors::cluster::drain::{DrainPlan, DrainProgress, DrainState};
use stellate_actors::cluster::messages::{NodeKey, SupervisorReply, SupervisorRequest};
use stellate_actors::cluster::migration::Step;
use stellate_actors::cluster::plan::{Plan, PlannedMove};
use stellate_actors::cluster::repair::RepairWay;
use stellate_actors::cluster::snapshot::{ClusterSnapshot, MoveCounts, MoveRow};
use stellate_actors::cluster::term::Term;
use stellate_actors::manifest::ContextId;
use stellate_model::block::BlockId;
use stellate_runtime::substrate::Roster;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::nodes::{self, Named};
use super::{Administration, is_alone};

/// How often the supervisor is asked how far it is.
const POLL: Duration = Duration::from_millis(250);

/// To whoever watches.
type Events = mpsc::Sender<MoveEvent>;

/// Nobody watches any more.
struct Unwatched;

impl Administration {
    pub(super) async fn drain_node(&self, request: DrainRequest, events: Events) -> Result<(), ClusterError> {
        let named = nodes::named(&self.roster(), &request.node)?;
        self.needs_another(&named, "nothing could take its blocks")?;
        let deadline_ms = request.deadline_s.map(|seconds| seconds.saturating_mul(1000));
        let before = self.place.snapshot().await?;
        let drain = SupervisorRequest::Drain { node: named.key(), deadline_ms, dry_run: request.dry_run };
        let SupervisorReply::Drain(plan) = self.ask(drain).await? else {
            return Err(ClusterError::Failed("the supervisor answered something else".to_owned()));
        };
        let watched = match request.dry_run {
            true => self.tell_plan(&plan, &events).await,
            false => self.watch_drain(&named, Told::since(&before), &events).await?,
        };
        if let Err(Unwatched) = watched {
            tracing::info!(node = %named.name, "nobody watches the drain any more; it goes on");
        }
        Ok(())
    }

    async fn tell_plan(&self, plan: &DrainPlan, events: &Events) -> Result<(), Unwatched> {
        let words = self.words();
        for planned in &plan.moves {
            tell(events, MoveKind::Block(words.planned(planned))).await?;
        }
        tell(events, MoveKind::Complete { moved: plan.moves.len() as u64, recomputed: 0 }).await
    }

    /// Tells of a drain until it has ended. The outer error is the drain's.
    async fn watch_drain(
        &self,
        named: &Named,
        mut told: Told,
        events: &Events,
    ) -> Result<Result<(), Unwatched>, ClusterError> {
        let key = named.key();
        if tell(events, MoveKind::Cordoned { node: named.name.clone() }).await.is_err() {
            return Ok(Err(Unwatched));
        }
        let mut last = None;
        loop {
            let snapshot = self.place.snapshot().await?;
            let progress = snapshot.drains.iter().find(|progress| progress.node == key).cloned();
            let Some(progress) = progress else {
                // By `cordon`, `uncordon` or `remove`. A new supervisor goes on with the drains of the one before.
                let why =
                    format!("the drain of `{}` was taken back; what has moved stays where it is", named.name);
                return Err(ClusterError::Refused(why));
            };
            let step = self.tell_drain(&snapshot, &progress, &mut told, &mut last, events).await;
            match (step, progress.state) {
                (Err(Unwatched), _) => return Ok(Err(Unwatched)),
                (Ok(()), DrainState::Moving) => sleep(POLL).await,
                (Ok(()), DrainState::Done | DrainState::DeadlinePassed) => {
                    return Ok(self.tell_end(&progress, events).await);
                }
            }
        }
    }

    /// Tells what is new since the last look.
    async fn tell_drain(
        &self,
        snapshot: &ClusterSnapshot,
        progress: &DrainProgress,
        told: &mut Told,
        last: &mut Option<DrainProgress>,
        events: &Events,
    ) -> Result<(), Unwatched> {
        let words = self.words();
        for row in told.news(snapshot).into_iter().filter(|row| NodeKey::of(row.from) == progress.node) {
            tell(events, MoveKind::Block(words.under_way(&row))).await?;
        }
        let mut progress = progress.clone();
        progress.left_bytes = progress.left_bytes.saturating_sub(on_their_way(snapshot, progress.node));
        if last.as_ref() != Some(&progress) {
            let DrainProgress { moved_blocks, recomputed_blocks, left_blocks, left_bytes, .. } = progress;
            *last = Some(progress);
            let (moved, recomputed, left) = (moved_blocks, recomputed_blocks, left_blocks);
            tell(events, MoveKind::Progress { moved, recomputed, left, left_bytes }).await?;
        }
        Ok(())
    }

    async fn tell_end(&self, progress: &DrainProgress, events: &Events) -> Result<(), Unwatched> {
        let effect =
            "waits at its next question while blocks that had not moved are computed again".to_owned();
        let here = self.shelf.sessions();
        for context in &progress.affected {
            let sessions: Vec<_> = here.iter().filter(|(over, _)| over == context).collect();
            for (_, session) in &sessions {
                let (session, effect) = (session.id().to_string(), effect.clone());
                tell(events, MoveKind::Session { session, effect }).await?;
            }
            if sessions.is_empty() {
                // Its node knows by what names.
                let (session, effect) = (format!("over {context}"), effect.clone());
                tell(events, MoveKind::Session { session, effect }).await?;
            }
        }
        let recomputed = progress.recomputed_blocks + progress.left_blocks;
        tell(events, MoveKind::Complete { moved: progress.moved_blocks, recomputed }).await
    }

    async fn ask_rebalance(&self, apply: bool) -> Result<Plan, ClusterError> {
        match self.ask(SupervisorRequest::Rebalance { apply }).await? {
            SupervisorReply::Plan(plan) => Ok(plan),
            _ => Err(ClusterError::Failed("the supervisor answered something else".to_owned())),
        }
    }

    pub(super) async fn rebalance_plan(&self) -> Result<RebalancePlan, ClusterError> {
        let plan = self.ask_rebalance(false).await?;
        let words = self.words();
        let why: Vec<_> = plan.skipped.iter().map(|why| words.names(&why.to_string())).collect();
        let alone = is_alone(&words.roster) && plan.moves.is_empty();
        Ok(RebalancePlan {
            moves: plan.moves.iter().map(|planned| words.planned(planned)).collect(),
            why: if alone { "nothing to move: there is one node".to_owned() } else { why.join("\n") },
        })
    }

    pub(super) async fn rebalance_now(&self, events: Events) -> Result<(), ClusterError> {
        let before = self.place.snapshot().await?;
        let mut told = Told::since(&before);
        let plan = self.ask_rebalance(true).await?;
        let blocks: BTreeSet<BlockId> = plan.moves.iter().map(|planned| planned.block).collect();
        let done = loop {
            let snapshot = self.place.snapshot().await?;
            let words = self.words();
            for row in told.news(&snapshot).into_iter().filter(|row| blocks.contains(&row.block)) {
                if tell(&events, MoveKind::Block(words.under_way(&row))).await.is_err() {
                    return Ok(());
                }
            }
            let is_under_way = snapshot.moves.iter().any(|row| blocks.contains(&row.block));
            if !is_under_way && snapshot.queued_moves == 0 {
                break done_since(&before, &snapshot);
            }
            sleep(POLL).await;
        };
        if done.cancelled > 0 {
            tracing::warn!(moves = done.cancelled, "moves were taken back; the next round plans them anew");
        }
        let MoveCounts { moved, recomputed, .. } = done;
        let _ = tell(&events, MoveKind::Complete { moved, recomputed }).await;
        Ok(())
    }

    fn words(&self) -> Words {
        let mut contexts = BTreeMap::new();
        for (context, _) in self.shelf.contexts() {
            let manifest = context.manifest();
            contexts.extend(
                manifest.blocks.iter().map(|block| (block.id, (manifest.id, block.range.len() as u64))),
            );
        }
        Words { roster: self.roster(), contexts, kv_bytes_per_token: self.kv_bytes_per_token.max(1) }
    }
}

/// What rebalancing has done since an earlier look. A supervisor that was started meanwhile has counted from 0.
fn done_since(before: &ClusterSnapshot, now: &ClusterSnapshot) -> MoveCounts {
    let earlier = if before.term == now.term { before.rebalanced } else { MoveCounts::default() };
    MoveCounts {
        moved: now.rebalanced.moved.saturating_sub(earlier.moved),
        recomputed: now.rebalanced.recomputed.saturating_sub(earlier.recomputed),
        cancelled: now.rebalanced.cancelled.saturating_sub(earlier.cancelled),
    }
}

/// Which moves whoever watches knows of: those that had begun before, and those that were told.
struct Told {
    term: Term,
    /// Moves with a lower number had begun before.
    first: u64,
    told: BTreeSet<u64>,
}

impl Told {
    fn since(before: &ClusterSnapshot) -> Self {
        Self { term: before.term, first: before.next_move, told: BTreeSet::new() }
    }

    /// Moves that were not told yet, whether they are under way or have been.
    fn news(&mut self, snapshot: &ClusterSnapshot) -> Vec<MoveRow> {
        if snapshot.term != self.term {
            // A new supervisor numbers its moves anew.
            *self = Self { term: snapshot.term, first: 0, told: BTreeSet::new() };
        }
        let ended = snapshot.ended_moves.iter().filter(|ended| ended.is_committed).map(|ended| &ended.row);
        let rows = ended.chain(&snapshot.moves).filter(|row| row.migration >= self.first);
        rows.filter(|row| self.told.insert(row.migration)).cloned().collect()
    }
}

/// By which moves are told in people's words.
struct Words {
    roster: std::sync::Arc<Roster>,
    /// Of the contexts of this node.
    contexts: BTreeMap<BlockId, (ContextId, u64)>,
    kv_bytes_per_token: u64,
}

impl Words {
    fn names(&self, text: &str) -> String {
        nodes::with_names(&self.roster, text)
    }

    fn planned(&self, planned: &PlannedMove) -> Planned {
        let PlannedMove { block, bytes, from, to, why } = planned;
        let known = self.contexts.get(block);
        Planned {
            block: block.to_string(),
            context: known.map(|(context, _)| context.to_string()),
            // Of blocks of other nodes' contexts, rounded up as memory is.
            tokens: known.map_or(bytes / self.kv_bytes_per_token, |(_, tokens)| *tokens),
            bytes: *bytes,
            from: nodes::host_name(&self.roster, *from),
            to: nodes::host_name(&self.roster, *to),
            how: "move".to_owned(),
            why: why.to_string(),
        }
    }

    fn under_way(&self, row: &MoveRow) -> Planned {
        let MoveRow { block, bytes, from, to, why, .. } = *row;
        let how = match row.choice.way {
            RepairWay::Copy => "move".to_owned(),
            RepairWay::Recompute => "recompute".to_owned(),
        };
        let why = format!("{why}; {}", row.choice);
        Planned { how, why, ..self.planned(&PlannedMove { block, bytes, from, to, why: row.why }) }
    }
}

/// Bytes of blocks of a node that have come to their targets while those blocks still count as its own.
fn on_their_way(snapshot: &ClusterSnapshot, node: NodeKey) -> u64 {
    let moves =
        snapshot.moves.iter().filter(|row| NodeKey::of(row.from) == node && row.step < Step::Switching);
    moves.map(|row| row.done_bytes.min(row.bytes)).sum()
}

/// Tells whoever watches.
async fn tell(events: &Events, kind: MoveKind) -> Result<(), Unwatched> {
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let event = MoveEvent { at_ms: at.as_millis() as u64, kind };
    events.send(event).await.map_err(|_| Unwatched)
}
