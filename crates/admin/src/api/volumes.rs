//! Volumes and their tokens.

use super::auth::Who;
use super::{Answer, App, Body, Created, Deleted, created};
use crate::db::volumes::Found;
use crate::db::{tokens, volumes};
use crate::model::{
    ChangeVolume, ChangeVolumeKeys, ChangeVolumeToken, NewVolume, NewVolumeToken, Role, Volume, VolumeToken,
};
use axum::Json;
use axum::extract::{Path, Query, State};
use chronofs_core::Retention;
use chronofs_keys::SealedKeys;
use serde::Deserialize;
use std::sync::Arc;

/// Says what a volume that is not served yet waits for.
pub(super) fn with_state(app: &App, found: Found) -> Volume {
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
    let found = app.look(&who, volumes::list).await?;
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
    let found = app.act(&who, "create", move |tx| volumes::create(tx, &new)).await?;
    Ok(created(with_state(&app, found)))
}

/// Show a volume
#[utoipa::path(get, path = "/v1/volumes/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Volume)), security(("token" = [])))]
pub(super) async fn show(who: Who, State(app): State<Arc<App>>, Path(name): Path<String>) -> Answer<Volume> {
    let found = app.look(&who, move |tx| volumes::find(tx, &name)).await?;
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
    if change.dry_run {
        who.must_be(Role::Operator)?;
        who.tried("volume", &name);
        let found = app.database.run(move |tx| volumes::preview(tx, &name, &change)).await?;
        return Ok(Json(with_state(&app, found)));
    }
    let found = app.act(&who, "change", move |tx| volumes::change(tx, &name, &change)).await?;
    Ok(Json(with_state(&app, found)))
}

/// Show the sealed keys of an encrypted volume
///
/// They are no secret to who cannot open them, but who has them can try out passphrases.
#[utoipa::path(get, path = "/v1/volumes/{name}/keys", params(("name" = String, Path)),
    responses((status = 200, body = Object)), security(("token" = [])))]
pub(super) async fn keys(
    who: Who,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Answer<SealedKeys> {
    who.must_be(Role::Operator)?;
    app.database.run(move |tx| volumes::keys(tx, &name)).await.map(Json)
}

/// Keep other sealed keys of an encrypted volume: with another secret, or with one more data key
#[utoipa::path(put, path = "/v1/volumes/{name}/keys", params(("name" = String, Path)),
    request_body = ChangeVolumeKeys, responses((status = 200, body = Volume)), security(("token" = [])))]
pub(super) async fn change_keys(
    who: Who,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(change): Body<ChangeVolumeKeys>,
) -> Answer<Volume> {
    let found = app.act(&who, "change keys", move |tx| volumes::set_keys(tx, &name, &change)).await?;
    Ok(Json(with_state(&app, found)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keep {
    keep: Option<Retention>,
}

/// Delete a volume that is not mounted and has no tokens
///
/// It can be taken back for as long as `keep` says (`7d`, `0`, or `-1`: for ever), by default for as long as its past
/// reaches back, but a day at least.
#[utoipa::path(delete, path = "/v1/volumes/{name}",
    params(("name" = String, Path), ("keep" = Option<String>, Query)),
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn delete(
    who: Who,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(Keep { keep }): Query<Keep>,
) -> Deleted {
    app.delete::<Found>(&who, name, move |tx, key| volumes::delete(tx, key, keep)).await
}

/// List volume tokens
#[utoipa::path(get, path = "/v1/volume-tokens", responses((status = 200, body = [VolumeToken])),
    security(("token" = [])))]
pub(super) async fn list_tokens(who: Who, State(app): State<Arc<App>>) -> Answer<Vec<VolumeToken>> {
    app.look(&who, tokens::list).await.map(Json)
}

/// Create a volume token; the token is in this answer only
#[utoipa::path(post, path = "/v1/volume-tokens", request_body = NewVolumeToken,
    responses((status = 201, body = VolumeToken)), security(("token" = [])))]
pub(super) async fn create_token(
    who: Who,
    State(app): State<Arc<App>>,
    Body(new): Body<NewVolumeToken>,
) -> Created<VolumeToken> {
    app.act(&who, "create", move |tx| tokens::create(tx, &new)).await.map(created)
}

/// Show a volume token
#[utoipa::path(get, path = "/v1/volume-tokens/{id}", params(("id" = String, Path)),
    responses((status = 200, body = VolumeToken)), security(("token" = [])))]
pub(super) async fn show_token(
    who: Who,
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Answer<VolumeToken> {
    app.look(&who, move |tx| tokens::find(tx, &id)).await.map(Json)
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
    app.act(&who, "change", move |tx| tokens::change(tx, &id, &change)).await.map(Json)
}

/// Revoke a volume token
#[utoipa::path(delete, path = "/v1/volume-tokens/{id}", params(("id" = String, Path)),
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn delete_token(who: Who, State(app): State<Arc<App>>, Path(id): Path<String>) -> Deleted {
    app.delete::<VolumeToken>(&who, id, tokens::delete).await
}
