//! What is done now and then: a newer certificate in time, lists of the revoked to the disk and to peers, and where
//! neighbours are, for the next start.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::driver::Input;
use super::links::push_revocations;
use super::memory::MemoryError;
use super::node::Context;
use crate::identity::Credentials;
use crate::transport::{ConnectionClass, Target};

/// How often it is looked whether the certificate is due; a third of its life is left then, which is days.
const CERTIFICATE_PERIOD: Duration = Duration::from_secs(600);
/// The least time between two writes of neighbours, which change with every node that comes or goes.
const NEIGHBOURS_PERIOD: Duration = Duration::from_secs(5);

/// Renews the certificate when two thirds of its life are over.
pub(super) async fn renew_certificate(context: Arc<Context>) {
    loop {
        if context.endpoint.credentials().details().is_due_for_renewal(context.clock.wall()) {
            match renewed(&context).await {
                Some(credentials) => save(&context, credentials).await,
                None => tracing::warn!("no node could renew this node's certificate; it is tried again"),
            }
        }
        sleep(CERTIFICATE_PERIOD).await;
    }
}

async fn renewed(context: &Arc<Context>) -> Option<Arc<Credentials>> {
    if let Some(desk) = &context.desk {
        return renewed_here(context, desk.clone()).await;
    }
    // Whoever holds the CA's key says so, if it is there.
    let roster = context.roster.borrow().clone();
    let mut members: Vec<_> = roster.members.iter().filter(|member| member.is_up()).collect();
    members.sort_by_key(|member| !member.record.roles.issuer);
    for member in members {
        for address in member.addresses() {
            match context.endpoint.renew(Target::node(member.id, address)).await {
                Ok(credentials) => return Some(credentials),
                Err(error) => {
                    tracing::debug!(node = %member.id, %error, "a certificate was not renewed there")
                }
            }
        }
    }
    None
}

async fn renewed_here(
    context: &Arc<Context>,
    desk: Arc<crate::identity::JoinDesk>,
) -> Option<Arc<Credentials>> {
    let current = context.endpoint.credentials();
    let task = current.clone();
    // The desk computes: not on this thread.
    let issued = tokio::task::spawn_blocking(move || desk.renew(task.certificate())).await;
    let certificate = issued.ok()?.inspect_err(|error| tracing::warn!(%error, "the certificate")).ok()?;
    let renewed =
        current.renewed(certificate.into()).inspect_err(|error| tracing::warn!(%error, "the certificate"));
    let renewed = Arc::new(renewed.ok()?);
    // The join address first: what the endpoint shows tells others that the renewal is done.
    let joining = context.join.as_ref().map_or(Ok(()), |join| join.use_credentials(&renewed));
    let used = joining.and_then(|()| context.endpoint.use_credentials(renewed.clone()));
    used.inspect_err(|error| tracing::warn!(%error, "the certificate")).ok()?;
    Some(renewed)
}

async fn save(context: &Context, credentials: Arc<Credentials>) {
    let Some(folder) = context.identity_folder.clone() else { return };
    let saved = tokio::task::spawn_blocking(move || credentials.save(&folder)).await;
    match saved {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the renewed certificate was not saved"),
        Err(_) => tracing::error!("the renewed certificate was not saved"),
    }
}

/// Each list that comes into force goes to the disk and to all peers, whoever it came from: those that have it take no
/// notice.
pub(super) async fn spread_revocations(context: Arc<Context>) {
    let mut changes = context.endpoint.revocations().changes();
    // One that came before anyone looked.
    context.tell(Input::Revoked).await;
    while changes.changed().await {
        if let Err(error) = keep_list(&context).await {
            tracing::error!(%error, "the list of the revoked was not stored; it is learnt again from the others");
        }
        context.tell(Input::Revoked).await;
        for connection in context.endpoint.connections() {
            if connection.class() == ConnectionClass::Control {
                let context = context.clone();
                tokio::spawn(async move {
                    if let Err(error) = push_revocations(&context, &connection).await {
                        tracing::debug!(node = %connection.peer().id, %error, "the list of the revoked was not sent");
                    }
                });
            }
        }
    }
}

/// Stores the list in force, unless a later one is being made: an older list must not lie over a newer one.
async fn keep_list(context: &Context) -> Result<(), MemoryError> {
    let _turn = context.revoking.lock().await;
    match context.endpoint.revocations().signed() {
        Some(list) => context.memory.keep_revocations(&list).await,
        None => Ok(()),
    }
}

/// Keeps the addresses of live members.
pub(super) async fn remember_neighbours(context: Arc<Context>) {
    let mut changes = context.roster.subscribe();
    let mut kept = Vec::new();
    loop {
        let roster = changes.borrow_and_update().clone();
        let live = roster.members.iter().filter(|member| member.is_up());
        let addresses: Vec<_> = live.filter_map(|member| member.record.addresses.first().copied()).collect();
        // None is no news worth keeping: whoever is alone wants to know where the others were.
        if !addresses.is_empty() && addresses != kept {
            if let Err(error) = context.memory.keep_neighbours(addresses.clone()).await {
                tracing::warn!(%error, "the neighbours' addresses were not stored");
            }
            kept = addresses;
            sleep(NEIGHBOURS_PERIOD).await;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}
