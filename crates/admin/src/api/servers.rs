//! What metadata servers and mounts ask. The bodies are those of `chronofs_wire::admin`.

use super::auth::{MetadataServer, Mount};
use super::{App, Body};
use crate::AdminError;
use crate::db::{directory, epochs, logs, stores};
use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use chronofs_wire::admin::{
    Assignment, Known, ParkedBytes, Register, Registered, Report, Resolve, Resolved, StorePlace,
};
use chronofs_wire::http::ASSIGNMENT_WAIT;
use chronofs_wire::log::{LogEpoch, OpenLog};
use serde::Deserialize;
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};

/// A metadata server serves its store from now on
#[utoipa::path(post, path = "/v1/meta/register", request_body = Register,
    responses((status = 200, body = Registered)), security(("token" = [])))]
pub(super) async fn register(
    server: MetadataServer,
    State(app): State<Arc<App>>,
    Body(register): Body<Register>,
) -> Result<Json<Registered>, AdminError> {
    let address = register.address.clone();
    let registered = app.database.run(move |tx| directory::register(tx, &server.id, &register)).await?;
    app.heard_of(&registered.store.to_string());
    app.questions.begin_poll(&registered.store.to_string());
    // The one that owned the store until now is to know.
    app.wake_pollers();
    app.members_changed().await?;
    tracing::info!(store = %registered.name, %address, epoch = registered.epoch, "metadata server registered");
    Ok(Json(Registered { cluster: Some(app.cluster.name.to_string()), ..registered }))
}

#[derive(Deserialize)]
pub(super) struct After {
    /// Drawn at the start that asks.
    pub(super) boot: u64,
    #[serde(default)]
    pub(super) after: u64,
}

/// What a metadata server is to serve; waits up to 20 s for a revision other than `after`
///
/// It is answered only while the start with this `boot` owns the store.
#[utoipa::path(get, path = "/v1/meta/assignment", params(("boot" = u64, Query), ("after" = u64, Query)),
    responses((status = 200, body = Assignment)), security(("token" = [])))]
pub(super) async fn assignment(
    server: MetadataServer,
    State(app): State<Arc<App>>,
    Query(After { boot, after }): Query<After>,
) -> Result<Json<Assignment>, AdminError> {
    let until = Instant::now() + ASSIGNMENT_WAIT;
    let mut changed = app.changed.subscribe();
    let mut stopping = app.stopping.clone();
    app.heard_of(&server.id);
    loop {
        changed.mark_unchanged();
        let id = server.id.clone();
        let asked = app.database.run(move |tx| {
            directory::check_owner(tx, &id, boot)?;
            directory::revision(tx, &id)
        });
        let revision = asked.await?;
        // Another revision, not only a higher one: a server restored from an old copy counts from there.
        if revision != after || *stopping.borrow() || !app.probes.of(&server.id).is_empty() {
            break;
        }
        let woken = async {
            tokio::select! {
                result = changed.changed() => result.is_ok(),
                _ = stopping.changed() => false,
            }
        };
        if !timeout_at(until, woken).await.unwrap_or(false) {
            break;
        }
    }
    app.heard_of(&server.id);
    let probes = app.probes.of(&server.id);
    let secrets = Arc::clone(&app.secrets);
    let asked = app.database.run(move |tx| {
        directory::check_owner(tx, &server.id, boot)?;
        directory::assignment(tx, &secrets, &server.id)
    });
    let assignment = asked.await?;
    Ok(Json(Assignment { probes, ..assignment }))
}

/// Open another epoch of the log of a metadata server's store
///
/// It is answered only while the start with this `boot` owns the store.
#[utoipa::path(post, path = "/v1/meta/log", request_body = OpenLog,
    responses((status = 200, body = LogEpoch)), security(("token" = [])))]
pub(super) async fn open_log(
    server: MetadataServer,
    State(app): State<Arc<App>>,
    Body(open): Body<OpenLog>,
) -> Result<Json<LogEpoch>, AdminError> {
    let opened = app.database.run(move |tx| logs::open(tx, &server.id, &open)).await?;
    app.wake_pollers();
    app.members_changed().await?;
    tracing::warn!(
        store = %server.name, epoch = opened.epoch, members = ?opened.members.copies,
        "a new epoch of a metadata store's log: these copies count"
    );
    Ok(Json(opened))
}

/// What became of the assignment
#[utoipa::path(post, path = "/v1/meta/report", request_body = Report,
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn report(
    server: MetadataServer,
    State(app): State<Arc<App>>,
    Body(report): Body<Report>,
) -> Result<StatusCode, AdminError> {
    app.heard_of(&server.id);
    for volume in report.volumes.iter().filter(|volume| volume.problem.is_some()) {
        tracing::warn!(store = %server.name, volume = %volume.id, problem = volume.problem, "volume has a problem");
    }
    app.probes.answer(&server.id, &report.probed);
    app.database.run(move |tx| directory::report(tx, &server.id, &report)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whether the folder of a metadata server may serve still, before its server opens it
#[utoipa::path(post, path = "/v1/meta/fence", request_body = Register,
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn fence(
    server: MetadataServer,
    State(app): State<Arc<App>>,
    Body(register): Body<Register>,
) -> Result<StatusCode, AdminError> {
    app.database.run(move |tx| epochs::check(tx, &server.id, &register)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What this admin server had said before it was restored
#[utoipa::path(post, path = "/v1/meta/known", request_body = Known,
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn known(
    server: MetadataServer,
    State(app): State<Arc<App>>,
    Body(known): Body<Known>,
) -> Result<StatusCode, AdminError> {
    app.heard_of(&server.id);
    let told =
        app.database.run(move |tx| epochs::review(tx, &stores::find_metadata(tx, &server.id)?, &known));
    told.await?;
    app.wake_pollers();
    Ok(StatusCode::NO_CONTENT)
}

/// Written bytes of files that were lost with a restore lie in the lost+found of their volume
#[utoipa::path(post, path = "/v1/mount/parked", request_body = ParkedBytes,
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn parked(
    mount: Mount,
    State(app): State<Arc<App>>,
    Body(said): Body<ParkedBytes>,
) -> Result<StatusCode, AdminError> {
    if mount.read_only {
        return Err(AdminError::Forbidden(
            "the token may only read, so its mounts have written nothing".to_owned(),
        ));
    }
    let Mount { id, name, metadata_store, .. } = mount;
    app.database.run(move |tx| epochs::parked(tx, (&metadata_store, &id, &name), &said)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Where a volume is served
#[utoipa::path(post, path = "/v1/mount/resolve", request_body = Resolve,
    responses((status = 200, body = Resolved)), security(("token" = [])))]
pub(super) async fn resolve(
    mount: Mount,
    State(app): State<Arc<App>>,
    Body(Resolve { volume }): Body<Resolve>,
) -> Result<Json<Resolved>, AdminError> {
    let Mount { id, name, metadata_store, .. } = mount;
    app.database.run(move |tx| directory::resolve(tx, &id, &name, &metadata_store, &volume)).await.map(Json)
}

/// Where the objects of a volume are
#[utoipa::path(post, path = "/v1/mount/store", request_body = Resolve,
    responses((status = 200, body = StorePlace)), security(("token" = [])))]
pub(super) async fn store_place(
    mount: Mount,
    State(app): State<Arc<App>>,
    Body(Resolve { volume }): Body<Resolve>,
) -> Result<Json<StorePlace>, AdminError> {
    let Mount { id, name, .. } = mount;
    app.database.run(move |tx| directory::store_place(tx, &id, &name, &volume)).await.map(Json)
}
