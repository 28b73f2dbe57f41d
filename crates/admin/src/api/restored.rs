//! A cluster that was restored from a disk snapshot.

use super::auth::Who;
use super::{Answer, App, Body};
use crate::AdminError;
use crate::db::{epochs, restored, stores};
use crate::model::{MetadataStore, Role};
use axum::Json;
use axum::extract::State;
use chronofs_wire::http::CALL_TIMEOUT;
use chronofs_wire::question::{Asked, Said};
use chronofs_wire::status::{AcceptedRestores, RestoredCluster};
use futures::future::join_all;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// A metadata server looks at its objects and into its block stores meanwhile.
const DETACH_WITHIN: Duration = Duration::from_secs(600);
/// Whoever asked hears by then how it went, or that it goes on.
const SAID_WITHIN: Duration = Duration::from_secs(25);
const _: () = assert!(SAID_WITHIN.as_secs() + 2 < CALL_TIMEOUT.as_secs(), "whoever asked has to hear it");

/// Accept what was restored from a disk snapshot, the cluster as a clone or servers in place: what nothing needs any more may be
/// deleted from now on, and volume tokens that were held back after a restore of the admin server open their volumes
#[utoipa::path(post, path = "/v1/restore/accept", responses((status = 200, body = AcceptedRestores)), security(("token" = [])))]
pub(super) async fn accept(who: Who, State(app): State<Arc<App>>) -> Answer<AcceptedRestores> {
    who.must_be(Role::Operator)?;
    let accepted = app.database.run(|tx| {
        let in_place = epochs::accept(tx)?;
        // Without either it says why there is nothing.
        let is_clone = restored::find(tx)?.is_some() || !in_place;
        let cluster = is_clone.then(|| restored::accept(tx)).transpose()?;
        let (mut servers, admin) = (epochs::list(tx)?, epochs::restored_admin(tx)?);
        servers.retain(|server| server.accepted_ns.is_some());
        Ok(AcceptedRestores { cluster, servers, admin })
    });
    let accepted = accepted.await?;
    app.wake_pollers();
    let AcceptedRestores { cluster, servers, admin } = &accepted;
    let all = cluster.iter().map(|cluster| cluster.uid.clone());
    let all = all.chain(servers.iter().map(|server| format!("{} of {}", server.restore.uid, server.store)));
    let all: Vec<String> = all.chain(admin.iter().map(|admin| format!("{} of admin", admin.uid))).collect();
    who.did("accept", "restore", &all.join(", "));
    Ok(Json(accepted))
}

/// Whether a clone copies.
#[derive(Deserialize, ToSchema)]
pub(super) struct Copy {
    /// Or not any more: what is copied stays so.
    copy: bool,
}

/// Have a clone copy what it needs of the objects that its source stored, so that it can detach; or stop that. `restore status`
/// says how far it is
#[utoipa::path(post, path = "/v1/restore/copy", request_body = Copy,
    responses((status = 200, body = RestoredCluster)), security(("token" = [])))]
pub(super) async fn copy(
    who: Who,
    State(app): State<Arc<App>>,
    Body(Copy { copy }): Body<Copy>,
) -> Answer<RestoredCluster> {
    who.must_be(Role::Operator)?;
    let found = app.database.run(move |tx| restored::copy(tx, copy)).await?;
    app.wake_pollers();
    who.did(if copy { "copy" } else { "stop copying" }, "restore", &found.uid);
    Ok(Json(found))
}

/// How a clone detaches.
#[derive(Deserialize, ToSchema)]
pub(super) struct Detach {
    /// Also while it needs objects that its source stored.
    #[serde(default)]
    force: bool,
}

/// Have a clone registered no longer as a reader of the snapshot that it was restored from. Refused while it needs any of
/// the objects that its source stored, unless that is forced
#[utoipa::path(post, path = "/v1/restore/detach", request_body = Detach,
    responses((status = 200, body = RestoredCluster)), security(("token" = [])))]
pub(super) async fn detach(
    who: Who,
    State(app): State<Arc<App>>,
    Body(Detach { force }): Body<Detach>,
) -> Answer<RestoredCluster> {
    who.must_be(Role::Operator)?;
    let (found, stores) =
        app.database.run(|tx| Ok((restored::find(tx)?, stores::list_metadata(tx)?))).await?;
    let found = found.ok_or_else(|| {
        AdminError::Invalid(
            "this cluster was not restored from a disk snapshot, so it reads none of another cluster"
                .to_owned(),
        )
    })?;
    let task = tokio::spawn(set_free(app.clone(), found.uid.clone(), stores, force));
    match tokio::time::timeout(SAID_WITHIN, task).await {
        Ok(done) => {
            let found = done.map_err(|e| AdminError::Internal(format!("the task ended: {e}")))??;
            who.did("detach", "restore", &found.uid);
            Ok(Json(found))
        }
        Err(_) => Err(AdminError::Unavailable(format!(
            "the metadata servers have looked at their objects and into their block stores for {} s, and go on; run chronofs \
             restore detach again in a while: it says how it went, and chronofs restore status, whether the clone is detached",
            SAID_WITHIN.as_secs()
        ))),
    }
}

/// Asks every metadata server to have the clone registered no longer.
async fn set_free(
    app: Arc<App>,
    uid: String,
    stores: Vec<MetadataStore>,
    force: bool,
) -> Result<RestoredCluster, AdminError> {
    // One that never had a server has nothing that could name an object.
    let asked = stores.iter().filter(|store| store.epoch > 0).map(|store| {
        let app = &app;
        async move { (store, app.questions.ask(&store.id, Asked::Detach { force }, DETACH_WITHIN).await) }
    });
    let mut left = Vec::new();
    for (store, said) in join_all(asked).await {
        let why = match said {
            Ok(Said::Detached { needed: 0, unnamed: 0 }) => continue,
            Ok(Said::Detached { .. }) if force => continue,
            Ok(Said::Detached { needed: 0, unnamed }) => format!(
                "needs nothing of the source any more, and waits for readers of {unnamed} objects that it knew: try again in some \
                 minutes"
            ),
            Ok(Said::Detached { needed, .. }) => format!("needs {needed} objects that the source stored"),
            Ok(Said::Trouble(why)) => why,
            _ => "has no server that answers".to_owned(),
        };
        left.push(format!("metadata store '{}' {why}", store.name));
    }
    if !left.is_empty() {
        return Err(AdminError::Conflict(format!(
            "still registered as a reader of snapshot {}: {}; chronofs restore detach --copy has the clone copy what it needs \
             (chronofs restore status says how far that is); --force detaches while objects are needed, which may be gone \
             then at any time",
            uid,
            left.join("; ")
        )));
    }
    let found = app.database.run(restored::detached).await?;
    app.wake_pollers();
    Ok(found)
}
