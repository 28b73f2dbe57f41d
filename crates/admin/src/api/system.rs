//! Health, metrics and the document of the API: without a token.

use super::App;
use crate::AdminError;
use crate::db::{log_servers, stores, volumes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// The process runs
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// The database answers and the server is not stopping
#[utoipa::path(get, path = "/readyz", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Result<&'static str, AdminError> {
    if *app.stopping.borrow() {
        return Err(AdminError::Unavailable("the server is stopping".to_owned()));
    }
    app.database.run(volumes::names).await.map_err(|e| AdminError::Unavailable(e.to_string()))?;
    Ok("ready\n")
}

/// Metrics for Prometheus
#[utoipa::path(get, path = "/metrics",
    responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, AdminError> {
    let found = app
        .database
        .run(|tx| Ok((volumes::names(tx)?.len(), stores::list_metadata(tx)?, log_servers::list(tx)?)));
    let (volumes, stores, servers) = found.await?;
    let connected = stores.iter().filter(|store| app.is_connected(&store.id)).count();
    let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    app.metrics.volumes.set(gauge(volumes));
    app.metrics.metadata_stores.set(gauge(stores.len()));
    app.metrics.metadata_stores_connected.set(gauge(connected));
    let asked = app.clone();
    let schedules = crate::backups::blocking(move || crate::schedules::standing(&asked)).await?;
    app.metrics.backups(&schedules);
    app.metrics.log_servers.set(gauge(servers.len()));
    let connected =
        servers.iter().filter(|server| super::log_servers::is_connected(&app, &server.id)).count();
    app.metrics.log_servers_connected.set(gauge(connected));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, kind)], app.metrics.encode()).into_response())
}

/// This document
#[utoipa::path(get, path = "/openapi.json",
    responses((status = 200, body = String, content_type = "application/json")))]
pub(super) async fn openapi() -> Result<Response, AdminError> {
    Ok(([(CONTENT_TYPE, "application/json")], super::openapi_json()?).into_response())
}

pub(super) async fn unknown(method: Method, uri: Uri) -> AdminError {
    let name = format!("{method} {}", uri.path());
    AdminError::NoRoute(name)
}
