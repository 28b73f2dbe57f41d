//! A cluster that was restored from a disk snapshot.

use super::auth::Who;
use super::{Answer, App, Body};
use crate::AdminError;
use crate::db::{epochs, restored, stores, tried};
use crate::model::{MetadataStore, Role};
use axum::Json;
use axum::extract::{Query, State};
use chronofs_wire::http::CALL_TIMEOUT;
use chronofs_wire::question::{Asked, Said};
use chronofs_wire::status::{AcceptedRestores, RestoredCluster};
use futures::future::join_all;
use rusqlite::Transaction;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// A metadata server looks at its objects and into its block stores meanwhile.
const DETACH_WITHIN: Duration = Duration::from_secs(600);
/// Whoever asked hears by then how it went, or that it goes on.
const SAID_WITHIN: Duration = Duration::from_secs(25);
const _: () = assert!(SAID_WITHIN.as_secs() + 2 < CALL_TIMEOUT.as_secs(), "whoever asked has to hear it");

/// Whether it is to be done.
#[derive(Deserialize)]
pub(super) struct DryRun {
    /// It is only said what would be done.
    #[serde(default)]
    dry_run: bool,
}

/// Accept what was restored from a disk snapshot, the cluster as a clone or servers in place: what nothing needs any more may be
/// deleted from now on, and volume tokens that were held back after a restore of the admin server open their volumes
///
/// A dry run answers with what is not accepted yet and would be.
#[utoipa::path(post, path = "/v1/restore/accept", params(("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = AcceptedRestores)), security(("token" = [])))]
pub(super) async fn accept(
    who: Who,
    State(app): State<Arc<App>>,
    Query(DryRun { dry_run }): Query<DryRun>,
) -> Answer<AcceptedRestores> {
    who.must_be(Role::Operator)?;
    let accepted = app.database.run(move |tx| {
        let waiting = to_accept(tx)?;
        let accepted = tried(tx, dry_run, accept_all)?;
        Ok(if dry_run { waiting } else { accepted })
    });
    let accepted = accepted.await?;
    let AcceptedRestores { cluster, servers, admin } = &accepted;
    let all = cluster.iter().map(|cluster| cluster.uid.clone());
    let all = all.chain(servers.iter().map(|server| format!("{} of {}", server.restore.uid, server.store)));
    let all: Vec<String> = all.chain(admin.iter().map(|admin| format!("{} of admin", admin.uid))).collect();
    if dry_run {
        who.tried("restore", &all.join(", "));
        return Ok(Json(accepted));
    }
    app.wake_pollers();
    who.did("accept", "restore", &all.join(", "));
    Ok(Json(accepted))
}

/// What nobody has accepted, of that which can be.
fn to_accept(tx: &Transaction<'_>) -> Result<AcceptedRestores, AdminError> {
    let cluster = restored::find(tx)?.filter(|cluster| cluster.accepted_ns.is_none());
    let mut servers = epochs::list(tx)?;
    servers.retain(|server| server.accepted_ns.is_none() && server.restore.began_ns.is_some());
    let admin = epochs::restored_admin(tx)?.filter(|admin| admin.accepted_ns.is_none());
    Ok(AcceptedRestores { cluster, servers, admin })
}

fn accept_all(tx: &Transaction<'_>) -> Result<AcceptedRestores, AdminError> {
    let in_place = epochs::accept(tx)?;
    // Without either it says why there is nothing.
    let is_clone = restored::find(tx)?.is_some() || !in_place;
    let cluster = is_clone.then(|| restored::accept(tx)).transpose()?;
    let (mut servers, admin) = (epochs::list(tx)?, epochs::restored_admin(tx)?);
    servers.retain(|server| server.accepted_ns.is_some());
    Ok(AcceptedRestores { cluster, servers, admin })
}

/// Whether a clone copies.
#[derive(Deserialize, ToSchema)]
pub(super) struct Copy {
    /// Or not any more: what is copied stays so.
    copy: bool,
    /// It is only said whether that would be refused.
    #[serde(default)]
    dry_run: bool,
}

/// Have a clone copy what it needs of the objects that its source stored, so that it can detach; or stop that. `restore status`
/// says how far it is
#[utoipa::path(post, path = "/v1/restore/copy", request_body = Copy,
    responses((status = 200, body = RestoredCluster)), security(("token" = [])))]
pub(super) async fn copy(
    who: Who,
    State(app): State<Arc<App>>,
    Body(Copy { copy, dry_run }): Body<Copy>,
) -> Answer<RestoredCluster> {
    who.must_be(Role::Operator)?;
    let found = app.database.run(move |tx| tried(tx, dry_run, |tx| restored::copy(tx, copy))).await?;
    if dry_run {
        who.tried("restore", &found.uid);
        return Ok(Json(found));
    }
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
    /// It is only said whether that would be refused, and what the clone would do without.
    #[serde(default)]
    dry_run: bool,
}

/// A clone that has detached, or would.
#[derive(Serialize, ToSchema)]
pub(super) struct Detached {
    /// The clone.
    cluster: RestoredCluster,
    /// Nothing was done.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    /// What it needs, and does without since that was forced: by metadata stores.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    without: Vec<String>,
}

/// Have a clone registered no longer as a reader of the snapshot that it was restored from. Refused while it needs any of
/// the objects that its source stored, unless that is forced
#[utoipa::path(post, path = "/v1/restore/detach", request_body = Detach,
    responses((status = 200, body = Detached)), security(("token" = [])))]
pub(super) async fn detach(
    who: Who,
    State(app): State<Arc<App>>,
    Body(how): Body<Detach>,
) -> Answer<Detached> {
    who.must_be(Role::Operator)?;
    let (found, stores) =
        app.database.run(|tx| Ok((restored::find(tx)?, stores::list_metadata(tx)?))).await?;
    let found = found.ok_or_else(|| {
        AdminError::Invalid(
            "this cluster was not restored from a disk snapshot, so it reads none of another cluster"
                .to_owned(),
        )
    })?;
    let dry_run = how.dry_run;
    let task = tokio::spawn(set_free(app.clone(), found, stores, how));
    match tokio::time::timeout(SAID_WITHIN, task).await {
        Ok(done) => {
            let detached = done.map_err(|e| AdminError::Internal(format!("the task ended: {e}")))??;
            match dry_run {
                true => who.tried("restore", &detached.cluster.uid),
                false => who.did("detach", "restore", &detached.cluster.uid),
            }
            Ok(Json(detached))
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
    cluster: RestoredCluster,
    stores: Vec<MetadataStore>,
    Detach { force, dry_run }: Detach,
) -> Result<Detached, AdminError> {
    // One that never had a server has nothing that could name an object.
    let asked = stores.iter().filter(|store| store.epoch > 0).map(|store| {
        let app = &app;
        let question = if dry_run { Asked::WouldDetach { force } } else { Asked::Detach { force } };
        async move { (store, app.questions.ask(&store.id, question, DETACH_WITHIN).await) }
    });
    let (mut left, mut without) = (Vec::new(), Vec::new());
    for (store, said) in join_all(asked).await {
        let needs = matches!(said, Ok(Said::Detached { .. }));
        let why = match said {
            Ok(Said::Detached { needed: 0, unnamed: 0 }) => continue,
            Ok(Said::Detached { needed: 0, unnamed }) => format!(
                "needs nothing of the source any more, and waits for readers of {unnamed} objects that it knew: try again in some \
                 minutes"
            ),
            Ok(Said::Detached { needed, .. }) => format!("needs {needed} objects that the source stored"),
            Ok(Said::Trouble(why)) => why,
            _ => "has no server that answers".to_owned(),
        };
        let why = format!("metadata store '{}' {why}", store.name);
        if needs && force { without.push(why) } else { left.push(why) }
    }
    if !left.is_empty() {
        return Err(AdminError::Conflict(format!(
            "still registered as a reader of snapshot {}: {}; chronofs restore detach --copy has the clone copy what it needs \
             (chronofs restore status says how far that is); --force detaches while objects are needed, which may be gone \
             then at any time",
            cluster.uid,
            left.join("; ")
        )));
    }
    if dry_run {
        return Ok(Detached { cluster, dry_run, without });
    }
    let cluster = app.database.run(restored::detached).await?;
    app.wake_pollers();
    Ok(Detached { cluster, dry_run, without })
}
