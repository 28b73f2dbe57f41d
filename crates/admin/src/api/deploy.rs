//! Executables for the machines of the cluster. Whoever has any token may fetch them, as servers and mounts have one; accounts
//! with the role `admin` put them there and take them away.

use super::auth::{Known, Who};
use super::{Answer, App, Created, Deleted, created};
use crate::AdminError;
use crate::model::Role;
use axum::Json;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use chronofs_wire::deploy::{RELEASE_BYTES_MAX, SignedRelease};
use futures::{StreamExt, stream};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;

const BINARY: &str = "application/octet-stream";
/// So much is read at once.
const PART_BYTES: usize = 256 << 10;
/// The rest of what is refused is taken for so long.
const DRAINS_WITHIN: Duration = Duration::from_secs(30);

/// List the executables that there are; who fetches one checks its signature
#[utoipa::path(get, path = "/v1/deploy", responses((status = 200, body = [SignedRelease])), security(("token" = [])))]
pub(super) async fn list(_: Known, State(app): State<Arc<App>>) -> Answer<Vec<SignedRelease>> {
    app.deploy.list().await.map(Json)
}

/// Put an executable there, its bytes being the body; it must be what was signed
#[utoipa::path(post, path = "/v1/deploy", params(SignedRelease),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, body = SignedRelease)), security(("token" = [])))]
pub(super) async fn add(
    who: Who,
    State(app): State<Arc<App>>,
    said: Result<Query<SignedRelease>, QueryRejection>,
    body: Body,
) -> Created<SignedRelease> {
    let mut parts = body.into_data_stream();
    let added = take(&who, &app, said, &mut parts).await;
    if added.is_err() {
        drain(&mut parts).await;
    }
    added.map(created)
}

async fn take(
    who: &Who,
    app: &App,
    said: Result<Query<SignedRelease>, QueryRejection>,
    parts: &mut BodyDataStream,
) -> Result<SignedRelease, AdminError> {
    who.must_be(Role::Admin)?;
    let Query(said) = said.map_err(|error| AdminError::Invalid(error.body_text()))?;
    let release = said.checked().map_err(|error| AdminError::Invalid(error.to_string()))?;
    let name = release.name();
    let mut incoming = app.deploy.begin(said, release)?;
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| {
            AdminError::Invalid(format!("{name} did not come to its end ({error}); add it again"))
        })?;
        incoming = crate::backups::blocking(move || incoming.take(&part).map(|()| incoming)).await?;
    }
    let said = crate::backups::blocking(move || incoming.end()).await?;
    who.did("add", "executable", &name);
    Ok(said)
}

/// Takes what somebody goes on sending who was refused: else he hears of a broken connection, and not why.
async fn drain(parts: &mut BodyDataStream) {
    let all = async {
        let mut left = RELEASE_BYTES_MAX;
        while let Some(Ok(part)) = parts.next().await {
            left = left.saturating_sub(part.len() as u64);
            if left == 0 {
                return;
            }
        }
    };
    // Whoever is slower than this has to do without.
    let _ = tokio::time::timeout(DRAINS_WITHIN, all).await;
}

/// The bytes of an executable
#[utoipa::path(get, path = "/v1/deploy/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream")), security(("token" = [])))]
pub(super) async fn fetch(
    _: Known,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Response, AdminError> {
    let (file, length) = app.deploy.open_one(name).await?;
    let file = tokio::fs::File::from_std(file);
    let parts = stream::try_unfold(file, async |mut file| {
        let mut part = vec![0; PART_BYTES];
        let count = file.read(&mut part).await?;
        part.truncate(count);
        Ok::<_, std::io::Error>((count > 0).then(|| (Bytes::from(part), file)))
    });
    let headers = [(CONTENT_TYPE, BINARY.to_owned()), (CONTENT_LENGTH, length.to_string())];
    Ok((headers, Body::from_stream(parts)).into_response())
}

/// Take an executable away; machines that have it keep it
#[utoipa::path(delete, path = "/v1/deploy/{name}", params(("name" = String, Path)),
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn remove(who: Who, State(app): State<Arc<App>>, Path(name): Path<String>) -> Deleted {
    who.must_be(Role::Admin)?;
    app.deploy.remove(name.clone()).await?;
    who.did("remove", "executable", &name);
    Ok(StatusCode::NO_CONTENT)
}
