//! Block stores. A bucket is probed from here before it is written down, since this server has its credentials; a
//! folder is checked by the metadata servers that use it, since it may be on their machines only.

use super::auth::Who;
use super::{Answer, App, Body, Created, Deleted, created, probes};
use crate::AdminError;
use crate::db::block_stores::{self, BLOCK, Place};
use crate::model::{BlockStore, ChangeBlockStore, NewBlockStore, Role, check_definition, check_name};
use axum::Json;
use axum::extract::{Path, State};
use chronofs_blocks::probe::{Report, probe};
use chronofs_blocks::store::Patience;
use chronofs_blocks::{RemoteStore, Trouble};
use chronofs_core::store::StoreKind;
use rusqlite::Transaction;
use std::sync::Arc;
use std::time::Duration;

/// Below the time that a client waits for an answer.
const PROBE_WITHIN: Duration = Duration::from_secs(25);

/// List block stores
#[utoipa::path(get, path = "/v1/block-stores", responses((status = 200, body = [BlockStore])),
    security(("token" = [])))]
pub(super) async fn list(who: Who, State(app): State<Arc<App>>) -> Answer<Vec<BlockStore>> {
    app.look(&who, block_stores::list).await.map(Json)
}

/// Create a block store; a bucket is probed first
#[utoipa::path(post, path = "/v1/block-stores", request_body = NewBlockStore,
    responses((status = 201, body = BlockStore)), security(("token" = [])))]
pub(super) async fn create(
    who: Who,
    State(app): State<Arc<App>>,
    Body(new): Body<NewBlockStore>,
) -> Created<BlockStore> {
    who.must_be(Role::Operator)?;
    check_name(BLOCK, &new.name)?;
    let definition = check_definition(&new.definition, &new.credentials)?;
    let name = new.name.clone();
    app.database.run(move |tx| block_stores::must_be_free(tx, &name)).await?;
    let id = block_stores::draw_id();
    let mut place = Place { definition, credentials: new.credentials, probe: None };
    if !new.unchecked {
        place.probe = usable(&id, &new.name, &place).await?;
    }
    let secrets = Arc::clone(&app.secrets);
    let create = move |tx: &Transaction<'_>| block_stores::create(tx, &secrets, &id, &new.name, &place);
    app.act(&who, "create", create).await.map(created)
}

/// Show a block store
#[utoipa::path(get, path = "/v1/block-stores/{name}", params(("name" = String, Path)),
    responses((status = 200, body = BlockStore)), security(("token" = [])))]
pub(super) async fn show(
    who: Who,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Answer<BlockStore> {
    app.look(&who, move |tx| block_stores::find(tx, &name)).await.map(Json)
}

/// Say where a block store has moved to, or give it new credentials; a bucket is probed first
#[utoipa::path(patch, path = "/v1/block-stores/{name}", params(("name" = String, Path)),
    request_body = ChangeBlockStore, responses((status = 200, body = BlockStore)), security(("token" = [])))]
pub(super) async fn change(
    who: Who,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(change): Body<ChangeBlockStore>,
) -> Answer<BlockStore> {
    who.must_be(Role::Operator)?;
    let (store, before) = app.database.run(move |tx| block_stores::find_written(tx, &name)).await?;
    let credentials = match change.credentials {
        Some(credentials) => credentials,
        None => kept_place(&app, &store.id).await?.credentials,
    };
    let definition = change.definition.unwrap_or_else(|| store.definition.clone());
    if definition.word() != store.kind {
        let message =
            format!("block-store '{}' is of kind {}, which cannot be changed", store.name, store.kind);
        return Err(AdminError::Invalid(message));
    }
    let definition = check_definition(&definition, &credentials)?;
    // What was found elsewhere, or not looked for now, says nothing of what is there.
    let moved = definition != store.definition;
    let kept = store.probe.filter(|_| !moved);
    let mut place = Place { definition, credentials, probe: kept };
    match &place.definition {
        _ if change.unchecked => {}
        StoreKind::Local { path } if moved => {
            probes::refuse_unless_there(&app, &store.id, &store.name, path).await?;
        }
        // None of a folder.
        _ => place.probe = usable(&store.id, &store.name, &place).await?,
    }
    let (secrets, id) = (Arc::clone(&app.secrets), store.id);
    let change = move |tx: &Transaction<'_>| {
        block_stores::must_be_as_it_was(tx, &id, &before)?;
        block_stores::set(tx, &secrets, &id, &place)?;
        block_stores::find(tx, &id)
    };
    app.act(&who, "change", change).await.map(Json)
}

/// Probe the bucket of a block store and keep what was found
#[utoipa::path(post, path = "/v1/block-stores/{name}/probe", params(("name" = String, Path)),
    responses((status = 200, body = BlockStore)), security(("token" = [])))]
pub(super) async fn probe_again(
    who: Who,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Answer<BlockStore> {
    who.must_be(Role::Operator)?;
    let (store, before) = app.database.run(move |tx| block_stores::find_written(tx, &name)).await?;
    let place = kept_place(&app, &store.id).await?;
    let Some(report) = probe_place(&store.id, &store.name, &place).await? else {
        return Err(AdminError::Invalid(format!(
            "block-store '{}' is a folder: its metadata servers check it, and show with the volume what is wrong",
            store.name
        )));
    };
    let id = store.id;
    let keep = move |tx: &Transaction<'_>| {
        block_stores::must_be_as_it_was(tx, &id, &before)?;
        block_stores::set_probe(tx, &id, Some(&report))?;
        block_stores::find(tx, &id)
    };
    app.act(&who, "probe", keep).await.map(Json)
}

/// Delete a block store that no volume uses; what is in it stays
#[utoipa::path(delete, path = "/v1/block-stores/{name}", params(("name" = String, Path)),
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn delete(who: Who, State(app): State<Arc<App>>, Path(name): Path<String>) -> Deleted {
    app.delete::<BlockStore>(&who, name, block_stores::delete).await
}

async fn kept_place(app: &Arc<App>, id: &str) -> Result<Place, AdminError> {
    let (secrets, id) = (Arc::clone(&app.secrets), id.to_owned());
    app.database.run(move |tx| block_stores::place(tx, &secrets, &id)).await
}

/// Probes a place and refuses one that is of no use.
async fn usable(id: &str, name: &str, place: &Place) -> Result<Option<Report>, AdminError> {
    let report = probe_place(id, name, place).await?;
    match report.as_ref().and_then(Report::refusal) {
        Some(refusal) => Err(cannot(name, place, &refusal)),
        None => Ok(report),
    }
}

/// Whether the place is another store's, and what it can do. `None` for a folder.
async fn probe_place(id: &str, name: &str, place: &Place) -> Result<Option<Report>, AdminError> {
    if place.definition.bucket().is_none() {
        return Ok(None);
    }
    let id = id.parse().map_err(|e| AdminError::Internal(format!("id of block store: {e}")))?;
    let (definition, credentials) = (place.definition.clone(), place.credentials.clone());
    let opened = RemoteStore::new(definition, id, credentials, false, Patience::Asking);
    let store = opened.map_err(|e| cannot(name, place, &e.reason))?;
    let asked = async {
        match store.check_marker().await {
            Err(error) if error.trouble != Trouble::Missing => Err(cannot(name, place, &error.reason)),
            _ => Ok(probe(&store).await),
        }
    };
    let report = tokio::time::timeout(PROBE_WITHIN, asked).await;
    report.unwrap_or_else(|_| Err(cannot(name, place, "it did not answer everything in 25 s"))).map(Some)
}

fn cannot(name: &str, place: &Place, why: &str) -> AdminError {
    AdminError::Invalid(format!(
        "block-store '{name}' ({}) cannot be used: {why}; correct what names it or its credentials, or add --unchecked if \
         it will be right later",
        place.definition
    ))
}
