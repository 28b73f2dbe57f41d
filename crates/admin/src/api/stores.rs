//! Metadata stores.

use super::auth::Who;
use super::{Answer, App, Body, Created, Deleted, created};
use crate::db::{log_servers, logs, stores, tokens};
use crate::model::{ChangeMetadataStore, MetadataStore, NewMetadataStore};
use axum::Json;
use axum::extract::{Path, State};
use std::sync::Arc;

fn with_state(app: &App, store: MetadataStore) -> MetadataStore {
    MetadataStore { connected: app.is_connected(&store.id), ..store }
}

/// List metadata stores
#[utoipa::path(get, path = "/v1/metadata-stores", responses((status = 200, body = [MetadataStore])),
    security(("token" = [])))]
pub(super) async fn list_metadata(who: Who, State(app): State<Arc<App>>) -> Answer<Vec<MetadataStore>> {
    let stores = app.look(&who, stores::list_metadata).await?;
    Ok(Json(stores.into_iter().map(|store| with_state(&app, store)).collect()))
}

/// Create a metadata store; the token of its server is in this answer only
#[utoipa::path(post, path = "/v1/metadata-stores", request_body = NewMetadataStore,
    responses((status = 201, body = MetadataStore)), security(("token" = [])))]
pub(super) async fn create_metadata(
    who: Who,
    State(app): State<Arc<App>>,
    Body(new): Body<NewMetadataStore>,
) -> Created<MetadataStore> {
    let store = app.act(&who, "create", move |tx| {
        let store = stores::create_metadata(tx, &new.name)?;
        let token = tokens::issue_metadata(tx, &store.id)?;
        Ok(MetadataStore { token: Some(token.to_string()), ..store })
    });
    store.await.map(created)
}

/// Show a metadata store
#[utoipa::path(get, path = "/v1/metadata-stores/{name}", params(("name" = String, Path)),
    responses((status = 200, body = MetadataStore)), security(("token" = [])))]
pub(super) async fn show_metadata(
    who: Who,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Answer<MetadataStore> {
    let store = app.look(&who, move |tx| stores::find_metadata(tx, &name)).await?;
    Ok(Json(with_state(&app, store)))
}

/// Give a metadata store a new token and revoke the old one, or say where copies of its log are
#[utoipa::path(patch, path = "/v1/metadata-stores/{name}", params(("name" = String, Path)),
    request_body = ChangeMetadataStore, responses((status = 200, body = MetadataStore)), security(("token" = [])))]
pub(super) async fn change_metadata(
    who: Who,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(change): Body<ChangeMetadataStore>,
) -> Answer<MetadataStore> {
    let store = app.act(&who, "change", move |tx| {
        let store = stores::find_metadata(tx, &name)?;
        if change.log_copies.is_some() || change.log_anti_quorum.is_some() {
            logs::want(tx, &store.id, change.log_copies, change.log_anti_quorum)?;
        }
        let store = stores::find_metadata(tx, &store.id)?;
        let token = match change.new_token {
            true => {
                log_servers::forget_key(tx, &store.id)?;
                Some(tokens::issue_metadata(tx, &store.id)?.to_string())
            }
            false => None,
        };
        Ok(MetadataStore { token, ..store })
    });
    Ok(Json(with_state(&app, store.await?)))
}

/// Delete a metadata store that holds no volume; the folder of its server stays
#[utoipa::path(delete, path = "/v1/metadata-stores/{name}", params(("name" = String, Path)),
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn delete_metadata(
    who: Who,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Deleted {
    let deleted = app.delete::<MetadataStore>(&who, name, stores::delete_metadata).await?;
    app.members_changed().await?;
    Ok(deleted)
}
