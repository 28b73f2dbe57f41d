//! Schedules of backups.

use super::auth::Who;
use super::backups::must_unlock;
use super::{Answer, App, Body, Deleted};
use crate::AdminError;
use crate::db::{backups as rows, now_ns};
use crate::model::Role;
use crate::schedules::{self, Health};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use chronofs_backup::schedule::{Schedule, When};
use chronofs_core::store::Secret;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa::ToSchema;

const WORD: &str = "backup-schedule";

/// A schedule that is wanted.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSchedule {
    /// Its name.
    name: String,
    /// Where its backups go.
    dest: String,
    /// The key of that place: 64 digits. This or a passphrase; it is kept sealed.
    #[schema(value_type = Option<String>)]
    key: Option<Secret>,
    /// What the key of that place follows from; it is not kept.
    #[schema(value_type = Option<String>)]
    passphrase: Option<Secret>,
    /// Every so many seconds; or:
    every_seconds: Option<u64>,
    /// Each day, so many seconds after midnight UTC.
    daily_at_seconds: Option<u64>,
    /// How long each is kept; without end if it is not said.
    keep_seconds: Option<u64>,
    /// The newest recoverable point must not be older; one and a half periods if it is not said.
    limit_seconds: Option<u64>,
    /// Keep what backups need longer than volumes keep their past.
    #[serde(default)]
    extend: bool,
}

pub(super) fn shown(health: &Health) -> Value {
    let mut value = json!(health.schedule);
    value["point_ns"] = json!(health.point_ns);
    value["age_seconds"] = json!(health.age_s);
    value["fault"] = json!(health.fault);
    value
}

/// List schedules of backups, each with how old its newest recoverable point is
#[utoipa::path(get, path = "/v1/backup-schedules", responses((status = 200, body = [Object])), security(("token" = [])))]
pub(super) async fn list(who: Who, State(app): State<Arc<App>>) -> Answer<Vec<Value>> {
    who.must_be(Role::Viewer)?;
    let all = crate::backups::blocking(move || schedules::health(&app)).await?;
    Ok(Json(all.iter().map(shown).collect()))
}

/// Create a schedule of backups; the first one is made at once, or at its time of day
#[utoipa::path(post, path = "/v1/backup-schedules", request_body = NewSchedule,
    responses((status = 200, body = Object)), security(("token" = [])))]
pub(super) async fn create(
    who: Who,
    State(app): State<Arc<App>>,
    Body(new): Body<NewSchedule>,
) -> Answer<Value> {
    who.must_be(Role::Operator)?;
    let when = match (new.every_seconds, new.daily_at_seconds) {
        (Some(seconds), None) => When::Every(seconds),
        (None, Some(seconds)) => When::Daily(seconds),
        _ => return Err(AdminError::Invalid("give one of every_seconds and daily_at_seconds".to_owned())),
    };
    let unlock = must_unlock(new.key.as_ref(), new.passphrase.as_ref())?;
    let schedule = Schedule {
        name: new.name,
        dest: new.dest,
        when,
        keep_seconds: new.keep_seconds,
        limit_seconds: new.limit_seconds.unwrap_or(Schedule::limit_for(when)),
        created_ns: now_ns(),
        tried_ns: None,
        made_ns: None,
        problem: None,
    };
    let made = schedules::create(&app, schedule, unlock, new.extend).await?;
    who.did("create", WORD, &made.name);
    Ok(Json(json!(made)))
}

/// Delete a schedule of backups; its backups stay
#[utoipa::path(delete, path = "/v1/backup-schedules/{name}", params(("name" = String, Path)),
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn delete(who: Who, State(app): State<Arc<App>>, Path(name): Path<String>) -> Deleted {
    who.must_be(Role::Operator)?;
    let asked = name.clone();
    app.database.run(move |tx| rows::remove_schedule(tx, &asked)).await?;
    who.did("delete", WORD, &name);
    Ok(StatusCode::NO_CONTENT)
}
