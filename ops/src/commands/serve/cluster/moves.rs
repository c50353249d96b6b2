//! Blocks on the move: drains and rebalancing as the supervisor plans and does them, told to whoever watches. The supervisor is
//! asked again and again how far it is, from any node; that nobody watches any more stops nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use stellate_actors::api::{ClusterError, DrainRequest, MoveEvent, MoveKind, Planned, RebalancePlan};
use stellate_actors::cluster::drain::{DrainPlan, DrainProgress, DrainState};
use stellate_actors::cluster::messages::{NodeKey, SupervisorReply, SupervisorRequest};
use stellate_actors::cluster::plan::{Plan, PlannedMove};
use stellate_actors::cluster::repair::RepairWay;
use stellate_actors::cluster::snapshot::{ClusterSnapshot, MoveRow};
use stellate_actors::manifest::ContextId;
use stellate_model::block::BlockId;
use stellate_runtime::substrate::Roster;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::nodes::{self, Named};
use super::{Administration, is_alone, wanted};

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
        let drain = SupervisorRequest::Drain { node: named.key(), deadline_ms, dry_run: request.dry_run };
        let SupervisorReply::Drain(plan) = self.ask(drain.clone()).await? else {
            return Err(ClusterError::Failed("the supervisor answered something else".to_owned()));
        };
        let watched = match request.dry_run {
            true => self.tell_plan(&plan, &events).await,
            false => self.watch_drain(&named, drain, &events).await?,
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
        drain: SupervisorRequest,
        events: &Events,
    ) -> Result<Result<(), Unwatched>, ClusterError> {
        let key = named.key();
        if tell(events, MoveKind::Cordoned { node: named.name.clone() }).await.is_err() {
            return Ok(Err(Unwatched));
        }
        let (mut told, mut last) = (BTreeSet::new(), None);
        loop {
            let snapshot = self.place.snapshot().await?;
            let progress = snapshot.drains.iter().find(|progress| progress.node == key).cloned();
            let Some(progress) = progress else {
                let mut hosts = snapshot.hosts.iter().filter(|row| NodeKey::of(row.host) == key);
                if wanted(hosts.by_ref().map(|row| row.state)).is_none() {
                    return Err(ClusterError::Refused(format!(
                        "the drain of `{}` was taken back",
                        named.name
                    )));
                }
                // A new supervisor knows that the node is to be drained and not that somebody waits for it.
                self.ask(drain.clone()).await?;
                continue;
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
        told: &mut BTreeSet<u64>,
        last: &mut Option<DrainProgress>,
        events: &Events,
    ) -> Result<(), Unwatched> {
        let words = self.words();
        let moves = snapshot.moves.iter().filter(|row| NodeKey::of(row.from) == progress.node);
        for row in moves.filter(|row| told.insert(row.migration)) {
            tell(events, MoveKind::Block(words.under_way(row))).await?;
        }
        if last.as_ref() != Some(progress) {
            *last = Some(progress.clone());
            let DrainProgress { moved_blocks, recomputed_blocks, left_blocks, left_bytes, .. } = *progress;
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
        let plan = self.ask_rebalance(true).await?;
        let mut told: BTreeMap<u64, RepairWay> = BTreeMap::new();
        let blocks: BTreeSet<BlockId> = plan.moves.iter().map(|planned| planned.block).collect();
        loop {
            let snapshot = self.place.snapshot().await?;
            let words = self.words();
            let under_way: Vec<_> = snapshot.moves.iter().filter(|row| blocks.contains(&row.block)).collect();
            for row in &under_way {
                if told.insert(row.migration, row.choice.way).is_none()
                    && tell(&events, MoveKind::Block(words.under_way(row))).await.is_err()
                {
                    return Ok(());
                }
            }
            if under_way.is_empty() && snapshot.queued_moves == 0 {
                break;
            }
            sleep(POLL).await;
        }
        let recomputed = told.values().filter(|way| **way == RepairWay::Recompute).count() as u64;
        let moved = (plan.moves.len() as u64).saturating_sub(recomputed);
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

/// Tells whoever watches.
async fn tell(events: &Events, kind: MoveKind) -> Result<(), Unwatched> {
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let event = MoveEvent { at_ms: at.as_millis() as u64, kind };
    events.send(event).await.map_err(|_| Unwatched)
}
