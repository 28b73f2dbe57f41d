//! Disk snapshots: what people ask, and what members of one ask.

use super::auth::{LogServerToken, MetadataServer, Who};
use super::{Answer, App, Body, log_servers};
use crate::AdminError;
use crate::model::Role;
use crate::snapshots::Snapshots;
use axum::Json;
use axum::extract::{Path, State};
use chronofs_snapshot::SnapshotUid;
use chronofs_snapshot::protocol::{Order, Poll};
use chronofs_wire::http::ASSIGNMENT_WAIT;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;

const WORD: &str = "snapshot";

/// A snapshot that is wanted.
#[derive(Deserialize, ToSchema)]
pub(super) struct NewSnapshot {
    /// Its UID: 32 digits of 0 to 9 and a to f. The same request again is answered with how it stands.
    uid: String,
    /// The program that every server runs on its images: an absolute path, in `whitelist_binpath` there.
    program: String,
    /// What it is told.
    #[serde(default)]
    arguments: Vec<String>,
    /// How long what the set needs is kept; without end if it is not said.
    keep_seconds: Option<u64>,
}

fn uid_of(text: &str) -> Result<SnapshotUid, AdminError> {
    text.parse().map_err(|_| not_found(text))
}

fn not_found(uid: &str) -> AdminError {
    AdminError::NotOpened(format!("no snapshot {uid} is known; chronofs snapshot list shows which are"))
}

/// A record with the phase that it is in.
fn shown(snapshots: &Snapshots) -> Vec<Value> {
    let show = |(record, at): (_, Option<_>)| {
        let mut value = json!(record);
        if let Some((phase, left)) = at {
            value["phase"] = json!(phase);
            value["steps_left"] = json!(left);
        }
        value
    };
    snapshots.all().into_iter().map(show).collect()
}

fn find(snapshots: &Snapshots, uid: &SnapshotUid) -> Result<Value, AdminError> {
    let found = shown(snapshots).into_iter().find(|value| value["intent"]["attempt"]["uid"] == uid.as_str());
    found.ok_or_else(|| not_found(uid.as_str()))
}

async fn blocking<T: Send + 'static>(
    app: &Arc<App>,
    job: impl FnOnce(&App) -> Result<T, AdminError> + Send + 'static,
) -> Result<T, AdminError> {
    let app = app.clone();
    let done = tokio::task::spawn_blocking(move || job(&app)).await;
    done.map_err(|e| AdminError::Internal(format!("the task ended: {e}")))?
}

/// List disk snapshots, newest first
#[utoipa::path(get, path = "/v1/snapshots", responses((status = 200, body = [Object])), security(("token" = [])))]
pub(super) async fn list(who: Who, State(app): State<Arc<App>>) -> Answer<Vec<Value>> {
    who.must_be(Role::Viewer)?;
    Ok(Json(shown(&app.snapshots)))
}

/// Show a disk snapshot
#[utoipa::path(get, path = "/v1/snapshots/{uid}", params(("uid" = String, Path)),
    responses((status = 200, body = Object)), security(("token" = [])))]
pub(super) async fn show(who: Who, State(app): State<Arc<App>>, Path(uid): Path<String>) -> Answer<Value> {
    who.must_be(Role::Viewer)?;
    find(&app.snapshots, &uid_of(&uid)?).map(Json)
}

/// Begin a disk snapshot; the answer has its record, or why it does not begin
#[utoipa::path(post, path = "/v1/snapshots", request_body = NewSnapshot,
    responses((status = 200, body = Object)), security(("token" = [])))]
pub(super) async fn create(
    who: Who,
    State(app): State<Arc<App>>,
    Body(new): Body<NewSnapshot>,
) -> Answer<Value> {
    who.must_be(Role::Operator)?;
    let uid: SnapshotUid = new.uid.parse().map_err(|e| AdminError::Invalid(format!("{e}")))?;
    let keep_until_ns = new
        .keep_seconds
        .map(|seconds| crate::db::now_ns().saturating_add(seconds.saturating_mul(1_000_000_000)));
    who.did("begin", WORD, uid.as_str());
    let begun = blocking(&app, move |app| {
        let connected = |id: &str| app.is_connected(id) || log_servers::is_connected(app, id);
        app.snapshots.start(uid, new.program, new.arguments, keep_until_ns, &connected)
    });
    Ok(Json(match begun.await? {
        Ok(record) => json!({ "record": record }),
        Err(refused) => json!({ "refused": refused }),
    }))
}

/// End a disk snapshot that is under way
#[utoipa::path(post, path = "/v1/snapshots/{uid}/abort", params(("uid" = String, Path)),
    responses((status = 200, body = Object)), security(("token" = [])))]
pub(super) async fn abort(who: Who, State(app): State<Arc<App>>, Path(uid): Path<String>) -> Answer<Value> {
    who.must_be(Role::Operator)?;
    let uid = uid_of(&uid)?;
    who.did("abort", WORD, uid.as_str());
    let known = uid.clone();
    let record = blocking(&app, move |app| app.snapshots.abort(&uid)).await?;
    record.map(|record| Json(json!(record))).ok_or_else(|| not_found(known.as_str()))
}

/// Forget a disk snapshot that is over: what its set needs is not kept any more
#[utoipa::path(delete, path = "/v1/snapshots/{uid}", params(("uid" = String, Path)),
    responses((status = 200, body = Object)), security(("token" = [])))]
pub(super) async fn delete(who: Who, State(app): State<Arc<App>>, Path(uid): Path<String>) -> Answer<Value> {
    who.must_be(Role::Operator)?;
    let uid = uid_of(&uid)?;
    find(&app.snapshots, &uid)?;
    who.did("delete", WORD, uid.as_str());
    let wanted = uid.clone();
    let deleted = blocking(&app, move |app| app.snapshots.delete(&wanted)).await?;
    deleted.map(|record| Json(json!(record))).ok_or_else(|| AdminError::InUse {
        what: WORD,
        name: uid.to_string(),
        users: vec!["itself: it is under way".to_owned()],
    })
}

/// What a member of a disk snapshot is to do; waits up to 20 s until there is something
#[utoipa::path(post, path = "/v1/meta/snapshot", request_body = Object,
    responses((status = 200, body = [Object])), security(("token" = [])))]
pub(super) async fn poll(
    server: MetadataServer,
    State(app): State<Arc<App>>,
    Body(poll): Body<Poll>,
) -> Answer<Vec<Order>> {
    answer(app, &server.id, poll).await
}

/// What a log server is to do as a member of a disk snapshot; waits up to 20 s until there is something
#[utoipa::path(post, path = "/v1/tlog/snapshot", request_body = Object,
    responses((status = 200, body = [Object])), security(("token" = [])))]
pub(super) async fn poll_log_server(
    server: LogServerToken,
    State(app): State<Arc<App>>,
    Body(poll): Body<Poll>,
) -> Answer<Vec<Order>> {
    answer(app, &server.0, poll).await
}

async fn answer(app: Arc<App>, server: &str, poll: Poll) -> Answer<Vec<Order>> {
    if poll.node != server {
        return Err(AdminError::Forbidden("a server asks for itself only".to_owned()));
    }
    let until = Instant::now() + ASSIGNMENT_WAIT;
    let mut changes = app.snapshots.changes();
    let mut stopping = app.stopping.clone();
    loop {
        changes.mark_unchanged();
        let asked = poll.clone();
        let orders = blocking(&app, move |app| app.snapshots.poll(&asked)).await?;
        if !orders.is_empty() || *stopping.borrow() {
            return Ok(Json(orders));
        }
        let woken = async {
            tokio::select! {
                changed = changes.changed() => changed.is_ok(),
                _ = stopping.changed() => false,
            }
        };
        if !timeout_at(until, woken).await.unwrap_or(false) {
            return Ok(Json(Vec::new()));
        }
    }
}
