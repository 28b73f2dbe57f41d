//! Volumes and their tokens.

use super::auth::Who;
use super::{App, Body};
use crate::AdminError;
use crate::db::volumes::Found;
use crate::db::{tokens, volumes};
use crate::model::{ChangeVolume, ChangeVolumeToken, NewVolume, NewVolumeToken, Role, Volume, VolumeToken};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use std::sync::Arc;

type Answer<T> = Result<Json<T>, AdminError>;
type Created<T> = Result<(StatusCode, Json<T>), AdminError>;

/// Says what a volume that is not served yet waits for.
fn with_state(app: &App, found: Found) -> Volume {
    let Found { mut volume, metadata_store } = found;
    if volume.state == "waiting" {
        let what = if app.is_connected(&metadata_store) { "" } else { ", which is not connected" };
        volume.detail =
            Some(format!("waiting for the server of metadata store '{}'{what}", volume.metadata_store));
    }
    volume
}

/// List volumes
#[utoipa::path(get, path = "/v1/volumes", responses((status = 200, body = [Volume])), security(("token" = [])))]
pub(super) async fn list(who: Who, State(app): State<Arc<App>>) -> Answer<Vec<Volume>> {
    who.must_be(Role::Viewer)?;
    let found = app.database.run(volumes::list).await?;
    Ok(Json(found.into_iter().map(|found| with_state(&app, found)).collect()))
}

/// Create a volume
#[utoipa::path(post, path = "/v1/volumes", request_body = NewVolume,
    responses((status = 201, body = Volume)), security(("token" = [])))]
pub(super) async fn create(
    who: Who,
    State(app): State<Arc<App>>,
    Body(new): Body<NewVolume>,
) -> Created<Volume> {
    who.must_be(Role::Operator)?;
    let found = app.database.run(move |tx| volumes::create(tx, &new)).await?;
    app.wake_pollers();
    who.did("create", "volume", &found.volume.name);
    Ok((StatusCode::CREATED, Json(with_state(&app, found))))
}

/// Show a volume
#[utoipa::path(get, path = "/v1/volumes/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Volume)), security(("token" = [])))]
pub(super) async fn show(who: Who, State(app): State<Arc<App>>, Path(name): Path<String>) -> Answer<Volume> {
    who.must_be(Role::Viewer)?;
    let found = app.database.run(move |tx| volumes::find(tx, &name)).await?;
    Ok(Json(with_state(&app, found)))
}

/// Change a volume
#[utoipa::path(patch, path = "/v1/volumes/{name}", params(("name" = String, Path)), request_body = ChangeVolume,
    responses((status = 200, body = Volume)), security(("token" = [])))]
pub(super) async fn change(
    who: Who,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(change): Body<ChangeVolume>,
) -> Answer<Volume> {
    who.must_be(Role::Operator)?;
    let found = app.database.run(move |tx| volumes::change(tx, &name, &change)).await?;
    app.wake_pollers();
    who.did("change", "volume", &found.volume.name);
    Ok(Json(with_state(&app, found)))
}

/// Delete a volume that is not mounted and has no tokens
#[utoipa::path(delete, path = "/v1/volumes/{name}", params(("name" = String, Path)),
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn delete(
    who: Who,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<StatusCode, AdminError> {
    who.must_be(Role::Operator)?;
    let key = name.clone();
    app.database.run(move |tx| volumes::delete(tx, &key)).await?;
    app.wake_pollers();
    who.did("delete", "volume", &name);
    Ok(StatusCode::NO_CONTENT)
}

/// List volume tokens
#[utoipa::path(get, path = "/v1/volume-tokens", responses((status = 200, body = [VolumeToken])),
    security(("token" = [])))]
pub(super) async fn list_tokens(who: Who, State(app): State<Arc<App>>) -> Answer<Vec<VolumeToken>> {
    who.must_be(Role::Viewer)?;
    app.database.run(tokens::list).await.map(Json)
}

/// Create a volume token; the token is in this answer only
#[utoipa::path(post, path = "/v1/volume-tokens", request_body = NewVolumeToken,
    responses((status = 201, body = VolumeToken)), security(("token" = [])))]
pub(super) async fn create_token(
    who: Who,
    State(app): State<Arc<App>>,
    Body(new): Body<NewVolumeToken>,
) -> Created<VolumeToken> {
    who.must_be(Role::Operator)?;
    let token = app.database.run(move |tx| tokens::create(tx, &new)).await?;
    app.wake_pollers();
    who.did("create", "volume-token", &token.id);
    Ok((StatusCode::CREATED, Json(token)))
}

/// Show a volume token
#[utoipa::path(get, path = "/v1/volume-tokens/{id}", params(("id" = String, Path)),
    responses((status = 200, body = VolumeToken)), security(("token" = [])))]
pub(super) async fn show_token(
    who: Who,
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Answer<VolumeToken> {
    who.must_be(Role::Viewer)?;
    app.database.run(move |tx| tokens::find(tx, &id)).await.map(Json)
}

/// Change what a volume token may do, or when it ends
#[utoipa::path(patch, path = "/v1/volume-tokens/{id}", params(("id" = String, Path)),
    request_body = ChangeVolumeToken, responses((status = 200, body = VolumeToken)), security(("token" = [])))]
pub(super) async fn change_token(
    who: Who,
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Body(change): Body<ChangeVolumeToken>,
) -> Answer<VolumeToken> {
    who.must_be(Role::Operator)?;
    let token = app.database.run(move |tx| tokens::change(tx, &id, &change)).await?;
    app.wake_pollers();
    who.did("change", "volume-token", &token.id);
    Ok(Json(token))
}

/// Revoke a volume token
#[utoipa::path(delete, path = "/v1/volume-tokens/{id}", params(("id" = String, Path)),
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn delete_token(
    who: Who,
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<StatusCode, AdminError> {
    who.must_be(Role::Operator)?;
    let key = id.clone();
    app.database.run(move |tx| tokens::delete(tx, &key)).await?;
    app.wake_pollers();
    who.did("delete", "volume-token", &id);
    Ok(StatusCode::NO_CONTENT)
}
