//! Figures and health over plain HTTP, for the machine itself unless told otherwise.

use crate::executor::{Ask, Input};
use crate::machine::Figures;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use chronofs_core::Version;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long the executor may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What `/status` says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub program: String,
    /// Process.
    pub pid: u32,
    /// Drawn at this start.
    pub boot: u64,
    /// Last applied version, as an instant.
    pub applied: String,
    /// Durable version, as an instant.
    pub durable: String,
    /// A volume list was received.
    pub assigned: bool,
    /// Sessions and the like.
    pub figures: Figures,
    /// The volumes.
    pub volumes: Vec<VolumeStatus>,
}

/// A volume in [`Status`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: uuid::Uuid,
    /// Sessions on it.
    pub sessions: u32,
    /// Why it cannot be served, if it cannot.
    pub problem: Option<String>,
}

/// What the pages are made of.
#[derive(Clone)]
pub struct Pages {
    /// The executor.
    pub queue: mpsc::Sender<Input>,
    /// Figures.
    pub registry: Arc<Registry>,
}

/// Serves the pages until it is dropped.
pub async fn serve(listener: tokio::net::TcpListener, pages: Pages) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/status", get(status))
        .with_state(pages);
    axum::serve(listener, router).await
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &pages.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([("content-type", kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Healthy: the executor answers.
async fn health(State(pages): State<Pages>) -> impl IntoResponse {
    match ask_status(&pages.queue).await {
        Some(_) => (StatusCode::OK, "ok\n"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the executor does not answer\n"),
    }
}

/// Ready: clients are admitted.
async fn ready(State(pages): State<Pages>) -> impl IntoResponse {
    match ask_status(&pages.queue).await {
        Some(status) if status.assigned && !status.figures.recovering => (StatusCode::OK, "ready\n"),
        Some(status) if status.assigned => (StatusCode::SERVICE_UNAVAILABLE, "collecting what was lost\n"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "no volumes assigned yet\n"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the executor does not answer\n"),
    }
}

async fn status(State(pages): State<Pages>) -> impl IntoResponse {
    match ask_status(&pages.queue).await {
        Some(status) => Json(status).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the executor does not answer\n").into_response(),
    }
}

async fn ask_status(queue: &mpsc::Sender<Input>) -> Option<Status> {
    let (sender, answer) = oneshot::channel();
    let ask: Ask = Box::new(move |core, _| {
        let machine = &core.machine;
        let volumes =
            machine.volumes().filter(|volume| volume.row.deleted.is_none()).map(|volume| VolumeStatus {
                name: volume.row.spec.name.clone(),
                id: volume.id(),
                sessions: machine.sessions_of(volume.index),
                problem: volume.problem.clone(),
            });
        let status = Status {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            boot: machine.config().boot,
            applied: shown(core.engine.applied()),
            durable: shown(core.engine.durable()),
            assigned: machine.is_assigned(),
            figures: machine.figures(),
            volumes: volumes.collect(),
        };
        drop(sender.send(status));
    });
    let answered = async {
        queue.send(Input::Ask(ask)).await.ok()?;
        answer.await.ok()
    };
    tokio::time::timeout(ANSWER_WITHIN, answered).await.ok().flatten()
}

fn shown(version: Version) -> String {
    version.to_string()
}
