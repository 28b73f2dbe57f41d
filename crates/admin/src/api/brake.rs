//! The brake of a metadata store's collection. It is released through here, so that it is written down who did it.

use super::analyze::{another, ask};
use super::auth::Who;
use super::{App, Deleted};
use crate::AdminError;
use crate::db::stores;
use crate::model::Role;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use chronofs_wire::question::{Asked, Said};
use std::sync::Arc;

/// Let go what the brake of a metadata store holds back: all that lost its last name by now goes, however much it is
#[utoipa::path(post, path = "/v1/metadata-stores/{name}/release-brake", params(("name" = String, Path)),
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn release(who: Who, State(app): State<Arc<App>>, Path(name): Path<String>) -> Deleted {
    who.must_be(Role::Operator)?;
    let store = app.database.run(move |tx| stores::find_metadata(tx, &name)).await?;
    who.did("release", "brake of metadata-store", &store.name);
    match ask(&app, &store.id, Asked::ReleaseBrake).await? {
        Said::Released => Ok(StatusCode::NO_CONTENT),
        Said::Trouble(why) => {
            Err(AdminError::Unavailable(format!("the server of metadata store '{}': {why}", store.name)))
        }
        _ => Err(another()),
    }
}
