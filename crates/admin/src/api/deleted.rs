//! Deleted volumes: kept for a time, taken back, or given up.

use super::auth::Who;
use super::volumes::with_state;
use super::{Answer, App, Body, Deleted};
use crate::db::{deleted, volumes};
use crate::model::{DeletedVolume, Undelete, Volume};
use axum::Json;
use axum::extract::{Path, State};
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked for deleted volumes whose time is over.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// List deleted volumes of which something is left
#[utoipa::path(get, path = "/v1/deleted-volumes", responses((status = 200, body = [DeletedVolume])),
    security(("token" = [])))]
pub(super) async fn list(who: Who, State(app): State<Arc<App>>) -> Answer<Vec<DeletedVolume>> {
    app.look(&who, deleted::list).await.map(Json)
}

/// Show a deleted volume
#[utoipa::path(get, path = "/v1/deleted-volumes/{name}", params(("name" = String, Path)),
    responses((status = 200, body = DeletedVolume)), security(("token" = [])))]
pub(super) async fn show(
    who: Who,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Answer<DeletedVolume> {
    app.look(&who, move |tx| deleted::find(tx, &name)).await.map(Json)
}

/// Take a deleted volume back
#[utoipa::path(post, path = "/v1/deleted-volumes/{name}/undelete", params(("name" = String, Path)),
    request_body = Undelete, responses((status = 200, body = Volume)), security(("token" = [])))]
pub(super) async fn undelete(
    who: Who,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(how): Body<Undelete>,
) -> Answer<Volume> {
    let found = app.act(&who, "undelete", move |tx| deleted::undelete(tx, &name, &how)).await?;
    Ok(Json(with_state(&app, found)))
}

/// Give up a deleted volume at once: it cannot be taken back any more
#[utoipa::path(delete, path = "/v1/deleted-volumes/{name}", params(("name" = String, Path)),
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn give_up(who: Who, State(app): State<Arc<App>>, Path(name): Path<String>) -> Deleted {
    app.delete::<DeletedVolume>(&who, name, deleted::give_up).await
}

/// Retentions whose time of grace is over come into force.
async fn shorten(app: &App) {
    match app.database.run(volumes::apply_due).await {
        Ok(applied) => {
            for (name, retention) in &applied {
                tracing::info!(name, %retention, "a shorter retention of a volume is in force now");
            }
            if !applied.is_empty() {
                app.wake_pollers();
            }
        }
        Err(error) => tracing::debug!(%error, "the next look tries again"),
    }
}

/// Looks for volumes whose time is over, and for retentions that are due, until the server stops.
pub(crate) async fn watch(app: Arc<App>) {
    let mut told = false;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        shorten(&app).await;
        match app.database.run(deleted::note_due).await {
            Ok(due) => {
                told = false;
                for (name, id) in &due {
                    tracing::info!(
                        name,
                        id,
                        "the time of a deleted volume is over: its server may give it up"
                    );
                }
                if !due.is_empty() {
                    app.wake_pollers();
                }
            }
            Err(error) if !told => {
                told = true;
                tracing::error!(%error, "deleted volumes whose time is over cannot be looked for; they are kept");
            }
            Err(_) => {}
        }
    }
}

impl super::Thing for DeletedVolume {
    const SORT: super::Sort<Self> = super::Sort {
        word: "deleted-volume",
        role: crate::model::Role::Operator,
        label: |found| &found.name,
    };
}
