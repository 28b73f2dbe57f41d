//! Backups: what people ask, and what the members of one ask.

use super::auth::{LogServerToken, MetadataServer, Who};
use super::{Answer, App, Body, begun, registered};
use crate::AdminError;
use crate::backups::{self, Shown, Wanted};
use crate::model::Role;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use chronofs_backup::record::State as Stands;
use chronofs_backup::{Key, Plan, Unlock};
use chronofs_core::store::Secret;
use chronofs_keys::Passphrase;
use chronofs_snapshot::SnapshotUid;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa::ToSchema;
use zeroize::Zeroizing;

const WORD: &str = "backup";
const SECOND_NS: u64 = 1_000_000_000;

/// A backup that is wanted.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewBackup {
    /// Its UID: 32 digits of 0 to 9 and a to f. The same request again is answered with how it stands.
    uid: String,
    /// Where to: the absolute path of a folder that every server sees, or `store:NAME[/BELOW]`, a block store in a bucket.
    dest: String,
    /// The key that seals it: 64 digits. This or a passphrase.
    #[schema(value_type = Option<String>)]
    key: Option<Secret>,
    /// What the key follows from.
    #[schema(value_type = Option<String>)]
    passphrase: Option<Secret>,
    /// How long what it needs is kept; without end if it is not said.
    keep_seconds: Option<u64>,
}

/// How a backup is deleted.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteBackup {
    /// The key of its place; without it only what is known here goes, and nothing is kept for it any more.
    #[schema(value_type = Option<String>)]
    key: Option<Secret>,
    /// What the key follows from.
    #[schema(value_type = Option<String>)]
    passphrase: Option<Secret>,
    /// Where it is, if it is not known here.
    dest: Option<String>,
}

pub(super) fn uid_of(text: &str) -> Result<SnapshotUid, AdminError> {
    text.parse().map_err(|e| AdminError::Invalid(format!("{e}")))
}

/// What opens a place of backups, of a key and a passphrase as they were sent.
pub(super) fn unlock_of(
    key: Option<&Secret>,
    passphrase: Option<&Secret>,
) -> Result<Option<Unlock>, AdminError> {
    let invalid = |e: &dyn std::fmt::Display| AdminError::Invalid(e.to_string());
    match (key, passphrase) {
        (None, None) => Ok(None),
        (Some(key), None) => Ok(Some(Key::parse(key.reveal()).map_err(|e| invalid(&e))?.into())),
        (None, Some(passphrase)) => {
            let text = Zeroizing::new(passphrase.reveal().to_owned());
            Ok(Some(Passphrase::new(text).map_err(|e| invalid(&e))?.into()))
        }
        (Some(_), Some(_)) => Err(AdminError::Invalid("give a key or a passphrase, not both".to_owned())),
    }
}

/// The same where it has to be there.
pub(super) fn must_unlock(key: Option<&Secret>, passphrase: Option<&Secret>) -> Result<Unlock, AdminError> {
    unlock_of(key, passphrase)?.ok_or_else(|| AdminError::Invalid("give a key or a passphrase".to_owned()))
}

fn value((backup, judged): Shown) -> Value {
    let mut value = json!(backup);
    if let Some(judged) = judged {
        value["wholeness"] = json!(judged.wholeness);
        value["because"] = json!(judged.because);
    }
    value
}

async fn shown(app: &Arc<App>) -> Result<Vec<Value>, AdminError> {
    let app = app.clone();
    let all = tokio::task::spawn_blocking(move || backups::all(&app)).await;
    let all = all.map_err(|e| AdminError::Internal(format!("the task ended: {e}")))??;
    Ok(all.into_iter().map(value).collect())
}

/// List backups, newest first
#[utoipa::path(get, path = "/v1/backups", responses((status = 200, body = [Object])), security(("token" = [])))]
pub(super) async fn list(who: Who, State(app): State<Arc<App>>) -> Answer<Vec<Value>> {
    who.must_be(Role::Viewer)?;
    shown(&app).await.map(Json)
}

/// Show a backup
#[utoipa::path(get, path = "/v1/backups/{uid}", params(("uid" = String, Path)),
    responses((status = 200, body = Object)), security(("token" = [])))]
pub(super) async fn show(who: Who, State(app): State<Arc<App>>, Path(uid): Path<String>) -> Answer<Value> {
    who.must_be(Role::Viewer)?;
    let found = shown(&app).await?.into_iter().find(|backup| backup["uid"] == uid.as_str());
    let unknown = || AdminError::NotOpened(format!("no backup {uid} is known; see chronofs backup list"));
    found.map(Json).ok_or_else(unknown)
}

/// Begin a backup; the answer has its record, or why it does not begin
#[utoipa::path(post, path = "/v1/backups", request_body = NewBackup,
    responses((status = 200, body = Object)), security(("token" = [])))]
pub(super) async fn create(
    who: Who,
    State(app): State<Arc<App>>,
    Body(new): Body<NewBackup>,
) -> Result<Response, AdminError> {
    who.must_be(Role::Operator)?;
    let uid = uid_of(&new.uid)?;
    let keep_ns = new.keep_seconds.map(|seconds| seconds.saturating_mul(SECOND_NS));
    let keep_until_ns = keep_ns.map(|keep_ns| crate::db::now_ns().saturating_add(keep_ns));
    who.did("begin", WORD, uid.as_str());
    let unlock = must_unlock(new.key.as_ref(), new.passphrase.as_ref())?;
    let wanted = Wanted { uid, dest: new.dest, unlock, keep_until_ns, schedule: None };
    Ok(begun("backup", backups::begin(&app, wanted).await?))
}

/// Delete a backup that is over, and what no other one needs
#[utoipa::path(post, path = "/v1/backups/{uid}/delete", params(("uid" = String, Path)),
    request_body = DeleteBackup, responses((status = 200, body = Object)), security(("token" = [])))]
pub(super) async fn delete(
    who: Who,
    State(app): State<Arc<App>>,
    Path(uid): Path<String>,
    Body(how): Body<DeleteBackup>,
) -> Answer<Value> {
    who.must_be(Role::Operator)?;
    let uid = uid_of(&uid)?;
    let unlock = unlock_of(how.key.as_ref(), how.passphrase.as_ref())?;
    who.did("delete", WORD, uid.as_str());
    let asked = uid.to_string();
    let known = app.database.run(move |tx| crate::db::backups::find(tx, &asked)).await?;
    if known.is_some_and(|backup| backup.state == Stands::Registered) {
        registered::release(&app, &uid).await?;
        return Ok(Json(json!({ "freed_bytes": 0 })));
    }
    let freed = backups::delete(&app, uid, unlock, how.dest).await?;
    Ok(Json(json!({ "freed_bytes": freed })))
}

/// Where a member of a backup that is being made stores its images, and with which key
#[utoipa::path(get, path = "/v1/meta/backups/{uid}", params(("uid" = String, Path)),
    responses((status = 200, body = Object)), security(("token" = [])))]
pub(super) async fn plan(
    server: MetadataServer,
    State(app): State<Arc<App>>,
    Path(uid): Path<String>,
) -> Answer<Plan> {
    plan_for(&app, &server.id, &uid)
}

/// The same for a log server
#[utoipa::path(get, path = "/v1/tlog/backups/{uid}", params(("uid" = String, Path)),
    responses((status = 200, body = Object)), security(("token" = [])))]
pub(super) async fn plan_of_log_server(
    server: LogServerToken,
    State(app): State<Arc<App>>,
    Path(uid): Path<String>,
) -> Answer<Plan> {
    plan_for(&app, &server.0, &uid)
}

fn plan_for(app: &App, server: &str, uid: &str) -> Answer<Plan> {
    let uid = uid_of(uid)?;
    let member = app.snapshots.find(&uid).is_some_and(|record| record.intent.node(server).is_some());
    let plan = app.backups.plan(&uid).filter(|_| member);
    let unknown = || AdminError::NotOpened(format!("no backup {uid} is being made with this server"));
    plan.map(Json).ok_or_else(unknown)
}
