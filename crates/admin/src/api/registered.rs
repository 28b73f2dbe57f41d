//! Copies of the servers that others made: a copy of a disk, a snapshot of a volume, the image of an instance. What
//! they need in the block stores is kept by every metadata server: every instant from when they were begun until they are registered.

use super::auth::Who;
use super::backups::uid_of;
use super::questions::Silent;
use super::{Answer, App, Body};
use crate::AdminError;
use crate::db::{backups, now_ns, stores};
use crate::model::Role;
use axum::Json;
use axum::extract::State;
use chronofs_backup::record::{Backup, State as Stands};
use chronofs_core::Version;
use chronofs_snapshot::SnapshotUid;
use chronofs_wire::question::{Asked, KeepInstant, Said};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;
use uuid::Uuid;

/// Keeping an instant has to be durable by then.
const KEEP_WITHIN: Duration = Duration::from_secs(15);

/// A copy that others made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewCopy {
    /// Its UID: 32 digits of 0 to 9 and a to f.
    uid: String,
    /// When it was begun, or before, nanoseconds since the epoch.
    at_ns: u64,
    /// How long what it needs is kept; without end if it is not said.
    keep_seconds: Option<u64>,
    /// What it is, and where.
    #[serde(default)]
    note: String,
}

/// Register a copy that others made: its instant is kept at every metadata server
#[utoipa::path(post, path = "/v1/backups/registered", request_body = NewCopy,
    responses((status = 200, body = Object)), security(("token" = [])))]
pub(super) async fn register(
    who: Who,
    State(app): State<Arc<App>>,
    Body(new): Body<NewCopy>,
) -> Answer<Value> {
    who.must_be(Role::Operator)?;
    let uid = uid_of(&new.uid)?;
    let now_ns = now_ns();
    if new.at_ns > now_ns {
        let (at, now) = (Version(new.at_ns), Version(now_ns));
        return Err(AdminError::Invalid(format!(
            "{at} has not come yet, it is {now}: a copy is of the past"
        )));
    }
    let asked = uid.to_string();
    if app.database.run(move |tx| backups::find(tx, &asked)).await?.is_some() {
        return Err(AdminError::Exists { what: "backup", name: uid.to_string() });
    }
    let keep_ns = new.keep_seconds.map(|seconds| seconds.saturating_mul(1_000_000_000));
    let backup = Backup {
        uid: uid.to_string(),
        dest: String::new(),
        depot: String::new(),
        schedule: None,
        note: new.note,
        started_ns: now_ns,
        ended_ns: Some(now_ns),
        keep_until_ns: keep_ns.map(|keep_ns| now_ns.saturating_add(keep_ns)),
        state: Stands::Registered,
        point_ns: Some(new.at_ns),
        bytes: None,
        stored: None,
        why: None,
    };
    let wanted = KeepInstant {
        id: id_of(&uid),
        at_ns: Some(new.at_ns),
        ends_ns: backup.keep_until_ns,
        note: backup.note.clone(),
        volume: None,
        to_ns: None,
        hold: false,
    };
    if let Err(error) = ask_all(&app, &wanted).await {
        // All or none.
        if let Err(error) = ask_all(&app, &KeepInstant { at_ns: None, ..wanted }).await {
            tracing::warn!(%error, "what was kept for a copy that is not registered stays until its time is over");
        }
        return Err(error);
    }
    who.did("register", "backup", uid.as_str());
    let saved = backup.clone();
    app.database.run(move |tx| backups::save(tx, &saved)).await?;
    Ok(Json(json!(backup)))
}

/// Lets go of what is kept for a copy, and forgets it.
pub(super) async fn release(app: &Arc<App>, uid: &SnapshotUid) -> Result<(), AdminError> {
    let (id, note) = (id_of(uid), String::new());
    let wanted = KeepInstant { id, at_ns: None, ends_ns: None, note, volume: None, to_ns: None, hold: false };
    ask_all(app, &wanted).await?;
    let asked = uid.to_string();
    app.database.run(move |tx| backups::remove(tx, &asked)).await
}

fn id_of(uid: &SnapshotUid) -> Uuid {
    Uuid::parse_str(uid.as_str()).unwrap_or_default()
}

async fn ask_all(app: &Arc<App>, wanted: &KeepInstant) -> Result<(), AdminError> {
    for store in app.database.run(stores::list_metadata).await? {
        let asked = app.questions.ask(&store.id, Asked::Keep(wanted.clone()), KEEP_WITHIN).await;
        let name = &store.name;
        match asked {
            Ok(Said::Kept { problem: None }) => {}
            Ok(Said::Kept { problem: Some(why) }) => {
                return Err(AdminError::Invalid(format!("metadata store '{name}': {why}")));
            }
            Ok(_) => {
                return Err(AdminError::Internal(format!(
                    "the server of metadata store '{name}' answered another question"
                )));
            }
            Err(Silent::NotTaken | Silent::NotAnswered) => {
                return Err(AdminError::Unavailable(format!(
                    "the server of metadata store '{name}' has not answered: every server must take part; see chronofs cli \
                     --exec status, and try again"
                )));
            }
        }
    }
    Ok(())
}
