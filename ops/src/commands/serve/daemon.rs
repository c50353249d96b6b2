//! What runs while a node serves: its place in the cluster, the hosts of its process, and the API over its contexts. Here the
//! parts are put together and taken apart; each is its own crate's or file's.

use std::sync::Arc;

use anyhow::Context as _;
use stellate_actors::api::{Api, Shelf, serve_api};
use stellate_actors::{Model, Node, NodeOptions};
use stellate_runtime::membership::{Device, ModelFormat, NodeState, RefusalReason};
use stellate_runtime::substrate::{Incoming, Substrate, SubstrateSetup};
use stellate_runtime::transport::Connection;
use tokio::sync::mpsc;

use super::cluster::Administration;
use super::durable::{Durable, take_up};
use super::identity::Identity;
use super::place::Place;
use super::{Ready, ServeArgs};
use crate::app::App;
use crate::open;
use crate::report::machine::{self, Machine};

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
        let (substrate, incoming) = Substrate::start(setup).await?;
        let ready = Ready::of(&substrate, model_name(app, args));
        let place = Arc::new(Place::new(substrate));
        match Self::open(app, model, ready, place.clone(), incoming, durable).await {
            Ok(daemon) => Ok(daemon),
            Err(error) => {
                if let Some(substrate) = place.take().await {
                    substrate.stop().await;
                }
                Err(error)
            }
        }
    }

    async fn open(
        app: &App,
        model: &Model,
        ready: Ready,
        place: Arc<Place>,
        incoming: Incoming,
        durable: Durable,
    ) -> anyhow::Result<Self> {
        let options =
            NodeOptions { journal: Some(durable.journal().await?), ..open::node_options(&app.settings) };
        let node = open::open_node_with(options, model).await?;
        let shelf = Arc::new(Shelf::default());
        let administration = Administration::new(place.clone(), node.clone(), shelf.clone());
        let api = Api::new(node.clone(), shelf, ready.model.clone(), Arc::new(administration));
        let daemon = Self { api, ready, node, place, durable };
        take_up(&daemon.api, &daemon.node).await?;
        tokio::spawn(accept(incoming.admin, daemon.api.clone()));
        daemon.take_part().await?;
        Ok(daemon)
    }

    /// The node can take work now. What an operator wanted of it before is left as it is.
    async fn take_part(&self) -> anyhow::Result<()> {
        let substrate = self.place.get().await?;
        let changed = substrate.update_record(|record| {
            if record.state == NodeState::Joining {
                record.state = NodeState::Active;
            }
        });
        Ok(changed.await?)
    }

    /// Waits until the cluster says that this node was removed from it, if it ever does.
    pub(super) async fn removed(&self) {
        let changes = self.place.get().await.map(|substrate| substrate.watch());
        let is_removal = |(_, reason): &(_, RefusalReason)| *reason == RefusalReason::Removed;
        if let Ok(mut changes) = changes
            && changes.wait_for(|roster| roster.refusals.iter().any(is_removal)).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    /// Leaves the cluster, lets contexts and sessions go, and closes the store.
    pub(super) async fn leave(self) {
        let Self { api, node, place, durable, .. } = self;
        api.shelf().clear();
        node.close().await;
        if let Some(substrate) = place.take().await {
            substrate.leave().await;
        }
        drop((api, node));
        durable.close().await;
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
        tracing::info!(name = %peer.name, role = %peer.role, address = %connection.remote_address(), "asked");
        tokio::spawn(serve_api(connection, api.clone()));
    }
}
