//! A cluster that was restored from a disk snapshot.

use super::auth::Who;
use super::{Answer, App};
use crate::db::restored;
use crate::model::Role;
use axum::Json;
use axum::extract::State;
use chronofs_wire::status::RestoredCluster;
use std::sync::Arc;

/// Accept that the cluster was restored from a disk snapshot: what nothing needs any more may be deleted from now on
#[utoipa::path(post, path = "/v1/restore/accept", responses((status = 200, body = RestoredCluster)), security(("token" = [])))]
pub(super) async fn accept(who: Who, State(app): State<Arc<App>>) -> Answer<RestoredCluster> {
    who.must_be(Role::Operator)?;
    let accepted = app.database.run(restored::accept).await?;
    app.wake_pollers();
    who.did("accept", "restore", &accepted.uid);
    Ok(Json(accepted))
}
