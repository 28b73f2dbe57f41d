//! Disk snapshots: what people ask, and what members of one ask.

use super::auth::{LogServerToken, MetadataServer, Who};
use super::{Answer, App, Body, begun, log_servers};
use crate::AdminError;
use crate::db::stores;
use crate::model::Role;
use crate::snapshots::Snapshots;
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use chronofs_snapshot::SnapshotUid;
use chronofs_snapshot::protocol::{Left, Order, Phase, Poll, Record, State as Standing};
use chronofs_wire::http::{ASSIGNMENT_WAIT, CALL_TIMEOUT};
use chronofs_wire::question::{Asked, Said};
use futures::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;

const WORD: &str = "snapshot";
/// A metadata server looks into its block stores meanwhile.
const READERS_WITHIN: Duration = Duration::from_secs(25);
const _: () = assert!(READERS_WITHIN.as_secs() + 2 < CALL_TIMEOUT.as_secs(), "whoever asked has to hear it");

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

/// A record with the phase that it is in, and what is left of that.
fn shown(snapshots: &Snapshots) -> Vec<Value> {
    let show = |(record, at): (Record, Option<(Phase, Vec<Left>)>)| {
        let mut value = json!(record);
        if let Some((phase, left)) = at {
            value["phase"] = json!(phase);
            value["steps_left"] = json!(left.len());
            value["left"] = json!(left);
        }
        let readers = snapshots.readers(&record.intent.attempt.uid);
        if !readers.is_empty() {
            value["readers"] = json!(readers);
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

/// How long to wait.
#[derive(Deserialize)]
pub(super) struct Wait {
    /// The answer comes when the snapshot is over, or after so many milliseconds, 20,000 at most.
    #[serde(default)]
    wait_ms: u64,
}

/// Show a disk snapshot; waits for its end if that is asked for
#[utoipa::path(get, path = "/v1/snapshots/{uid}",
    params(("uid" = String, Path), ("wait_ms" = Option<u64>, Query)),
    responses((status = 200, body = Object)), security(("token" = [])))]
pub(super) async fn show(
    who: Who,
    State(app): State<Arc<App>>,
    Path(uid): Path<String>,
    Query(Wait { wait_ms }): Query<Wait>,
) -> Answer<Value> {
    who.must_be(Role::Viewer)?;
    let uid = uid_of(&uid)?;
    let until = Instant::now() + Duration::from_millis(wait_ms).min(ASSIGNMENT_WAIT);
    let mut changes = app.snapshots.changes();
    let mut stopping = app.stopping.clone();
    loop {
        changes.mark_unchanged();
        let value = find(&app.snapshots, &uid)?;
        let is_over = value["state"] != json!(Standing::Running);
        if is_over || *stopping.borrow() || !changed(&mut changes, &mut stopping, until).await {
            return Ok(Json(value));
        }
    }
}

/// Waits for the next of `changes`; false if there was none until then, or the server stops.
async fn changed(changes: &mut Receiver<u64>, stopping: &mut Receiver<bool>, until: Instant) -> bool {
    let woken = async {
        tokio::select! {
            changed = changes.changed() => changed.is_ok(),
            _ = stopping.changed() => false,
        }
    };
    timeout_at(until, woken).await.unwrap_or(false)
}

/// Begin a disk snapshot; the answer has its record, or why it does not begin
#[utoipa::path(post, path = "/v1/snapshots", request_body = NewSnapshot,
    responses((status = 200, body = Object)), security(("token" = [])))]
pub(super) async fn create(
    who: Who,
    State(app): State<Arc<App>>,
    Body(new): Body<NewSnapshot>,
) -> Result<Response, AdminError> {
    who.must_be(Role::Operator)?;
    let uid: SnapshotUid = new.uid.parse().map_err(|e| AdminError::Invalid(format!("{e}")))?;
    if new.program == chronofs_backup::PROGRAM {
        return Err(AdminError::Invalid("a backup is made with chronofs backup create".to_owned()));
    }
    let keep_until_ns = new
        .keep_seconds
        .map(|seconds| crate::db::now_ns().saturating_add(seconds.saturating_mul(1_000_000_000)));
    who.did("begin", WORD, uid.as_str());
    let record = blocking(&app, move |app| {
        let connected = |id: &str| app.is_connected(id) || log_servers::is_connected(app, id);
        app.snapshots.start(uid, new.program, new.arguments, keep_until_ns, &connected)
    });
    Ok(begun("record", record.await?))
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

/// Also against what speaks for keeping it.
#[derive(Deserialize)]
pub(super) struct Force {
    /// Clones that are registered as readers are forgotten, and servers that do not answer are not waited for.
    #[serde(default)]
    force: bool,
}

/// Forget a disk snapshot that is over: what its set needs is not kept any more. Refused while a clone reads it
///
/// One that is forgotten already is answered with its record and `already`.
#[utoipa::path(delete, path = "/v1/snapshots/{uid}", params(("uid" = String, Path), ("force" = Option<bool>, Query)),
    responses((status = 200, body = Object)), security(("token" = [])))]
pub(super) async fn delete(
    who: Who,
    State(app): State<Arc<App>>,
    Path(uid): Path<String>,
    Query(Force { force }): Query<Force>,
) -> Answer<Value> {
    who.must_be(Role::Operator)?;
    let uid = uid_of(&uid)?;
    let found = app.snapshots.find(&uid);
    let is_known = found.as_ref().is_some_and(|record| record.state != Standing::Deleted);
    let is_kept = app.snapshots.strangers().keys().any(|attempt| attempt.uid == uid);
    if !(is_known || force && is_kept) {
        // Whoever deletes what is old every night need not know which of it somebody else has deleted.
        let mut gone = found.map(|record| json!(record)).ok_or_else(|| not_found(uid.as_str()))?;
        gone["already"] = json!(true);
        return Ok(Json(gone));
    }
    free_of_readers(&app, &uid, force).await?;
    who.did("delete", WORD, uid.as_str());
    let wanted = uid.clone();
    let deleted = blocking(&app, move |app| match is_known {
        true => app.snapshots.delete(&wanted),
        false => app.snapshots.delete_unknown(&wanted),
    });
    deleted.await?.map(|record| Json(json!(record))).ok_or_else(|| AdminError::InUse {
        what: WORD,
        name: uid.to_string(),
        users: vec!["itself: it is under way".to_owned()],
    })
}

/// Asks every metadata server which clones are registered in its block stores, now. With `force` they have them gone.
async fn free_of_readers(app: &App, uid: &SnapshotUid, force: bool) -> Result<(), AdminError> {
    let stores = app.database.run(stores::list_metadata).await?;
    let asked = stores.iter().filter(|store| store.epoch > 0).map(|store| async move {
        let question = Asked::Readers { snapshot: uid.to_string(), forget: force };
        (&store.name, app.questions.ask(&store.id, question, READERS_WITHIN).await)
    });
    let (mut readers, mut silent) = (BTreeSet::new(), Vec::new());
    for (name, said) in join_all(asked).await {
        match said {
            Ok(Said::Readers(found)) => readers.extend(found),
            Ok(Said::Trouble(why)) => silent.push(format!("metadata store '{name}' cannot tell: {why}")),
            _ => silent.push(format!("metadata store '{name}' has no server that answers")),
        }
    }
    if force {
        return Ok(());
    }
    let advice = format!(
        "chronofs snapshot delete {uid} --force forgets it all the same, and such a clone may lose files"
    );
    if !readers.is_empty() {
        let readers: Vec<String> = readers.into_iter().collect();
        let why = format!(
            "snapshot {uid} is read by a clone: {}; detach that first (chronofs restore detach there); {advice}",
            readers.join("; ")
        );
        return Err(AdminError::Conflict(why));
    }
    match silent.is_empty() {
        true => Ok(()),
        false => Err(AdminError::Unavailable(format!(
            "nobody knows whether a clone reads snapshot {uid}: {}; {advice}",
            silent.join("; ")
        ))),
    }
}

/// What is kept for snapshots that are not known here, or are forgotten: it is left alone
#[utoipa::path(get, path = "/v1/snapshots/unknown", responses((status = 200, body = [Object])), security(("token" = [])))]
pub(super) async fn unknown(who: Who, State(app): State<Arc<App>>) -> Answer<Vec<Value>> {
    who.must_be(Role::Viewer)?;
    let stores = app.database.run(stores::list_metadata).await?;
    let name = |id: &String| {
        stores.iter().find(|store| store.id == *id).map_or_else(|| id.clone(), |store| store.name.clone())
    };
    let shown = app.snapshots.strangers().into_iter().map(|(attempt, nodes)| {
        let kept_at: Vec<String> = nodes.iter().map(name).collect();
        json!({
            "uid": attempt.uid.as_str(), "number": attempt.number, "kept_at": kept_at,
            "readers": app.snapshots.readers(&attempt.uid),
        })
    });
    Ok(Json(shown.collect()))
}

/// The record of a complete set, for its members to put into their block stores
#[utoipa::path(get, path = "/v1/meta/snapshot/{uid}", params(("uid" = String, Path)),
    responses((status = 200, body = Object)), security(("token" = [])))]
pub(super) async fn record(
    _: MetadataServer,
    State(app): State<Arc<App>>,
    Path(uid): Path<String>,
) -> Answer<Record> {
    let record = app.snapshots.complete(&uid_of(&uid)?);
    record.map(Json).ok_or_else(|| not_found(&uid))
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
    let mut outdated = app.snapshots.asks(&poll);
    loop {
        changes.mark_unchanged();
        let asked = poll.clone();
        let orders = blocking(&app, move |app| app.snapshots.poll(&asked)).await?;
        if !orders.is_empty() || *stopping.borrow() {
            return Ok(Json(orders));
        }
        let again = tokio::select! {
            again = changed(&mut changes, &mut stopping, until) => again,
            _ = &mut outdated => false,
        };
        if !again {
            return Ok(Json(Vec::new()));
        }
    }
}
