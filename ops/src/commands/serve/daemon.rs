//! What runs while a node serves: its place in the cluster, the hosts of its process, and the API over its contexts. Here the
//! parts are put together and taken apart; each is its own crate's or file's.

use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context as _;
use stellate_actors::api::{Api, Shelf, serve_api};
use stellate_actors::cluster::settings::{ClusterSettings, RepairPolicy};
use stellate_actors::disk::Disk;
use stellate_actors::member::{Member, MemberSetup, VoterSetup, names};
use stellate_actors::{Model, Node, NodeOptions};
use stellate_runtime::config::{self, Repair};
use stellate_runtime::membership::{Device, ModelFormat, NodeRecord, NodeState, RefusalReason, Requirements};
use stellate_runtime::substrate::{Incoming, Substrate, SubstrateSetup};
use stellate_runtime::transport::Connection;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::cluster::Administration;
use super::durable::{Durable, take_up};
use super::identity::Identity;
use super::place::{Place, Seat};
use super::readiness::Ready;
use super::{ServeArgs, departure, disk};
use crate::app::App;
use crate::report::machine::{self, Machine};
use crate::{open, paths};

/// How often it is looked whether there is another supervisor, of whose model the cluster then is.
const LOOK_FOR_SUPERVISOR: Duration = Duration::from_secs(1);

/// A node that serves.
#[derive(Debug)]
pub(super) struct Daemon {
    /// The API.
    pub(super) api: Api,
    /// What is told of it.
    pub(super) ready: Ready,
    node: Node,
    place: Arc<Place>,
    durable: Durable,
    disk: Option<Disk>,
    /// What holds the API, to take connections and to keep it tidy: it is ended first.
    tasks: Vec<JoinHandle<()>>,
}

impl Daemon {
    /// Opens everything. From then on the node can be asked, and is given work.
    pub(super) async fn start(
        app: &App,
        args: &ServeArgs,
        identity: Identity,
        model: &Model,
        durable: Durable,
    ) -> anyhow::Result<Self> {
        let setup = substrate_setup(app, identity, model, &durable)?;
        let blocks =
            if setup.profile.roles.context { disk::open_for(&app.settings, model).await? } else { None };
        let (substrate, Incoming { decode, bulk, admin }) = Substrate::start(setup).await?;
        let ready = Ready::of(&substrate, model_name(app, args));
        let member = member_setup(app, &substrate, model, &durable, blocks.clone()).await?;
        let member = match Member::start(member, decode, bulk).await {
            Ok(member) => member,
            Err(error) => {
                substrate.stop().await;
                return Err(error.into());
            }
        };
        let place = Arc::new(Place::new(Seat { member, substrate }));
        match Self::open(app, model, ready, place.clone(), durable).await {
            Ok(mut daemon) => {
                daemon.disk = blocks;
                daemon.tasks.push(tokio::spawn(accept(admin, daemon.api.clone())));
                daemon.tasks.push(tokio::spawn(daemon.api.clone().keep_tidy()));
                tokio::spawn(judge_by_supervisor(Arc::downgrade(&place)));
                tokio::spawn(departure::return_to_work(Arc::downgrade(&place), daemon.durable.store()));
                Ok(daemon)
            }
            Err(error) => {
                place.leave().await;
                Err(error)
            }
        }
    }

    /// The query host and the API, over a place in the cluster.
    async fn open(
        app: &App,
        model: &Model,
        ready: Ready,
        place: Arc<Place>,
        durable: Durable,
    ) -> anyhow::Result<Self> {
        let seat = place.get().await?;
        let own = seat.substrate.roster().own.clone();
        let options =
            NodeOptions { journal: Some(seat.member.journal()), ..open::node_options(&app.settings) };
        let node = Node::open_among(model, options, seat.member.surroundings()).await?;
        let shelf = Arc::new(Shelf::default());
        let kv_bytes_per_token = node.session_store().shape().bytes_per_token() as u64;
        let administration = Administration::new(
            place.clone(),
            seat.substrate.watch(),
            shelf.clone(),
            paths::authority(&paths::data_dir(&app.settings)?),
            own.roles.query,
            kv_bytes_per_token,
        );
        let api = Api::new(node.clone(), shelf, ready.model.clone(), Arc::new(administration));
        if own.roles.query {
            seat.member.serve(&node);
            take_up(&api, &node).await?;
        }
        take_part(&seat.substrate).await?;
        drop(seat);
        Ok(Self { api, ready, node, place, durable, disk: None, tasks: Vec::new() })
    }

    /// Waits until the cluster says that this node was removed from it, if it ever does.
    pub(super) async fn removed(&self) {
        let changes = self.place.get().await.map(|seat| seat.substrate.watch());
        let is_removal = |(_, reason): &(_, RefusalReason)| *reason == RefusalReason::Removed;
        if let Ok(mut changes) = changes
            && changes.wait_for(|roster| roster.refusals.iter().any(is_removal)).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    /// Takes nothing new, waits for what runs, and has the node's blocks moved to others.
    pub(super) async fn finish(&self) {
        self.api.finish().await;
        departure::depart(&self.place, &self.durable.store()).await;
        if let Some(blocks) = &self.disk {
            disk::settle(blocks).await;
        }
    }

    /// Leaves the cluster, lets contexts and sessions go, and closes the store.
    pub(super) async fn leave(self) {
        let Self { api, node, place, durable, disk, tasks, .. } = self;
        tasks.iter().for_each(JoinHandle::abort);
        api.shelf().clear();
        node.close().await;
        place.leave().await;
        drop((api, node));
        if let Some(disk) = disk {
            disk.close().await;
        }
        durable.close().await;
    }
}

/// The node can take work now. What an operator wanted of it before is left as it is.
async fn take_part(substrate: &Substrate) -> anyhow::Result<()> {
    let changed = substrate.update_record(|record| {
        if record.state == NodeState::Joining {
            record.state = NodeState::Active;
        }
    });
    Ok(changed.await?)
}

/// Whether this node places blocks: the one that is named, else the one that holds the CA's key.
fn supervises(app: &App, own: &NodeRecord) -> bool {
    let is_meant = match app.settings.cluster.supervisor.as_str() {
        "" => own.roles.issuer,
        name => own.name == name,
    };
    if is_meant && !own.roles.supervisor {
        tracing::warn!(
            "this node would place blocks, and its roles do not include `supervisor`: nothing is placed"
        );
    }
    is_meant && own.roles.supervisor
}

/// The nodes of which one is elected to place blocks, if settings name some.
fn voters(app: &App, own: &NodeRecord) -> Option<VoterSetup> {
    let settings = &app.settings.cluster;
    let names = Some(settings.voters.clone()).filter(|names| !names.is_empty())?;
    if names.contains(&own.name) && !own.roles.supervisor {
        tracing::warn!("this node is one of cluster.voters, and its roles do not include `supervisor`");
    }
    Some(VoterSetup { names, lease: Duration::from_secs(settings.lease_s as u64) })
}

async fn member_setup(
    app: &App,
    substrate: &Substrate,
    model: &Model,
    durable: &Durable,
    disk: Option<Disk>,
) -> anyhow::Result<MemberSetup> {
    let own = substrate.roster().own.clone();
    let scope = durable.kept_scope(names::scope(&own)).await?;
    Ok(MemberSetup {
        copies: app.settings.query.copies,
        scope,
        substrate: substrate.handle(),
        store: durable.store(),
        model: model.clone(),
        options: NodeOptions { disk, ..open::node_options(&app.settings) },
        roles: own.roles,
        supervises: supervises(app, &own),
        voters: voters(app, &own),
        settings: cluster_settings(&app.settings.cluster),
        replicas: u16::try_from(app.settings.cluster.replicas).unwrap_or(u16::MAX),
        max_bulk_rate: app.settings.cluster.max_copy_rate(),
    })
}

/// The figures by which this node decides, if it supervises.
fn cluster_settings(settings: &config::ClusterSettings) -> ClusterSettings {
    let seconds = |count: usize| Duration::from_secs(count as u64);
    ClusterSettings {
        repair: match settings.repair {
            Repair::Cheapest => RepairPolicy::Cheapest,
            Repair::Copy => RepairPolicy::AlwaysCopy,
            Repair::Recompute => RepairPolicy::AlwaysRecompute,
        },
        rebalance_every: Some(seconds(settings.rebalance_every_s)).filter(|every| !every.is_zero()),
        slow_start: seconds(settings.slow_start_s),
        full_permille: 10 * settings.full_percent as u64,
        ..ClusterSettings::default()
    }
}

/// The supervisor's node says what fits the cluster: by its model others are judged, this node too.
async fn judge_by_supervisor(place: Weak<Place>) {
    while let Some(place) = place.upgrade() {
        if let Ok(seat) = place.get().await {
            let roster = seat.substrate.roster();
            let supervisor = seat.member.supervisor().filter(|id| *id != roster.own.node);
            let record = supervisor.and_then(|id| roster.member(id)).map(|member| &member.record);
            if let Some(record) = record.filter(|record| record.model != roster.requirements.model) {
                let requirements =
                    Requirements { model: record.model.clone(), ..roster.requirements.clone() };
                tracing::info!(supervisor = %record.name, "nodes are judged by the model of the supervisor's node");
                seat.substrate.require(requirements).await;
            }
        }
        drop(place);
        tokio::time::sleep(LOOK_FOR_SUPERVISOR).await;
    }
}

/// What the node says of itself, and where it looks for others.
fn substrate_setup(
    app: &App,
    identity: Identity,
    model: &Model,
    durable: &Durable,
) -> anyhow::Result<SubstrateSetup> {
    let Identity { credentials, revocations, authority, folder, seeds } = identity;
    let settings = &app.settings;
    let options = open::node_options(settings);
    let mut setup = SubstrateSetup::of_settings(settings, credentials, durable.store())?;
    setup.authority = authority;
    setup.identity_folder = Some(folder);
    setup.revocations = revocations;
    setup.profile.model = Some(ModelFormat {
        fingerprint: model.decoder.fingerprint().to_string(),
        kv_format: options.kv_format.to_string(),
    });
    let (threads, count) = match options.hosts.first() {
        Some(host) if setup.profile.roles.context => (host.threads, options.hosts.len()),
        _ => (options.query.threads, 1),
    };
    let device = Device {
        name: Machine::read(threads).context("cannot use this machine's processor")?.backend,
        count: u16::try_from(count).unwrap_or(u16::MAX),
        memory_bytes: machine::memory_bytes().unwrap_or(0),
    };
    setup.profile.devices = vec![device];
    setup.discovery.seeds.extend(seeds);
    Ok(setup)
}

/// What people call the model.
fn model_name(app: &App, args: &ServeArgs) -> String {
    match (&args.model.random_weights, app.settings.model.path.as_str()) {
        (Some(shape), _) => shape.clone(),
        (None, "") => "demo".to_owned(),
        (None, path) => path.to_owned(),
    }
}

/// Answers whoever asks, until the node leaves.
async fn accept(mut asked: mpsc::Receiver<Connection>, api: Api) {
    while let Some(connection) = asked.recv().await {
        let peer = connection.peer();
        tracing::info!(name = %peer.name, id = %peer.id, role = %peer.role, address = %connection.remote_address(), "asked");
        tokio::spawn(serve_api(connection, api.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_of_a_cluster_reach_its_supervisor_and_the_defaults_are_its_own() {
        assert_eq!(cluster_settings(&config::ClusterSettings::default()), ClusterSettings::default());
        let settings = config::ClusterSettings {
            repair: Repair::Recompute,
            rebalance_every_s: 0,
            slow_start_s: 5,
            full_percent: 70,
            ..config::ClusterSettings::default()
        };
        let expected = ClusterSettings {
            repair: RepairPolicy::AlwaysRecompute,
            rebalance_every: None,
            slow_start: Duration::from_secs(5),
            full_permille: 700,
            ..ClusterSettings::default()
        };
        assert_eq!(cluster_settings(&settings), expected);
    }
}
