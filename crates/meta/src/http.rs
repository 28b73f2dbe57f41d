//! Figures and health over plain HTTP, for the machine itself unless told otherwise.

use crate::analyze::Looks;
use crate::collect::{Collector, GcStatus};
use crate::copies;
use crate::executor::{Ask, Input};
use crate::machine::{CollectionShown, Figures, KeySum, LeavingShown, PackingShown, SharedView, key_sum};
use crate::metrics::Metrics;
use crate::server::objects::Stores;
use crate::watched::StoreStatus;
use axum::Router;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use chronofs_core::Version;
use chronofs_engine::copies::Copies;
use chronofs_namespace::rows::Tally;
use chronofs_wire::status::{FullDisk, LogSaid, ProcessStatus, Rates, RestoredSaid};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
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
    /// The block stores that they are in.
    #[serde(default)]
    pub stores: Vec<StoreStatus>,
    /// The process and what it lives on.
    #[serde(default)]
    pub process: ProcessStatus,
    /// The epoch under which it owns its store.
    #[serde(default)]
    pub epoch: u64,
    /// Writes are refused, because the disk is full.
    #[serde(default)]
    pub full: Option<FullDisk>,
    /// Seconds for which the disk has been making the log durable, if it is at it.
    #[serde(default)]
    pub syncing_s: f64,
    /// Bytes of the log.
    #[serde(default)]
    pub log_bytes: u64,
    /// Bytes of the store.
    #[serde(default)]
    pub store_bytes: u64,
    /// Log and store lie on different disks: an image of one and then of the other is not whole.
    #[serde(default)]
    pub apart: bool,
    /// How often something happens.
    #[serde(default)]
    pub rates: Rates,
    /// Pairs of the operators' key space.
    #[serde(default)]
    pub keys: KeySum,
    /// Copies of the log.
    #[serde(default)]
    pub log: LogSaid,
    /// The disk snapshot that the store was restored from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<RestoredSaid>,
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
    /// What objects and staged slices there are; `None` if that cannot be read.
    pub tally: Option<Tally>,
    /// How the collection of those that nothing names goes.
    pub collection: CollectionShown,
    /// How the packing of small slices goes.
    #[serde(default)]
    pub packing: PackingShown,
    /// Of a deleted volume, how far it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<LeavingShown>,
}

/// What the pages are made of.
#[derive(Clone)]
pub struct Pages {
    /// The executor.
    pub queue: mpsc::Sender<Input>,
    /// Figures.
    pub registry: Arc<Registry>,
    /// Of them those that are set when somebody asks.
    pub metrics: Arc<Metrics>,
    /// Collects.
    pub collector: Collector,
    /// What operators have it look at.
    pub looks: Looks,
    /// The block stores.
    pub stores: Stores,
    /// The folder of the engine.
    pub engine: PathBuf,
    /// When the server started.
    pub started: Instant,
    /// Where it stands.
    pub locality: BTreeMap<String, String>,
    /// Copies of the log.
    pub copies: Option<Arc<Copies>>,
}

/// What `POST /gc` is asked.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcRequest {
    /// Look through the block stores.
    pub full: bool,
}

#[derive(Deserialize)]
struct GcQuery {
    #[serde(default)]
    dry_run: bool,
}

/// Serves the pages until it is dropped.
pub async fn serve(listener: tokio::net::TcpListener, pages: Pages) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/status", get(status))
        .route("/gc", get(gc_status).post(gc))
        .with_state(pages);
    axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    if let Ok(status) = pages.collector.status(false).await {
        pages.metrics.show_collection(&status);
    }
    pages.metrics.show_stores(&pages.stores.watches().status());
    if let Some(copies) = &pages.copies {
        pages.metrics.show_log(&copies::shown(copies));
    }
    let engine = pages.engine.clone();
    if let Ok(apart) = tokio::task::spawn_blocking(move || are_apart(&engine)).await {
        pages.metrics.show_apart(apart);
    }
    pages.metrics.show_hedges(pages.stores.each().iter().map(|(store, _)| store.hedges()));
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
    match status_of(&pages).await {
        Some(status) => Json(status).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the executor does not answer\n").into_response(),
    }
}

/// What `/status` says; `None`: the executor does not answer.
pub async fn status_of(pages: &Pages) -> Option<Status> {
    let status = ask_status(&pages.queue).await?;
    let (engine, started, locality) = (pages.engine.clone(), pages.started, pages.locality.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let size = |part: &str| folder_bytes(&engine.join(part));
        let restored = engine.parent().and_then(crate::restored::said);
        let process = ProcessStatus::look(started, &engine, locality);
        (size("log"), size("store"), are_apart(&engine), process, restored)
    });
    let (log_bytes, store_bytes, apart, process, mut restored) = looked.await.ok()?;
    if let Some(restored) = restored.as_mut().filter(|restored| !restored.detached) {
        restored.foreign = pages.collector.foreign_said().await;
    }
    Some(Status {
        stores: pages.stores.watches().status(),
        process,
        log_bytes,
        store_bytes,
        apart,
        full: pages.metrics.full_disk(),
        syncing_s: pages.metrics.syncing_s(),
        rates: pages.metrics.looks.rates(),
        log: pages.copies.as_ref().map(|copies| copies::shown(copies)).unwrap_or_default(),
        restored,
        ..status
    })
}

/// Whether log and store of an engine lie on different disks. What cannot be looked at is not said to.
fn are_apart(engine: &Path) -> bool {
    let device = |part: &str| std::fs::metadata(engine.join(part)).ok().map(|found| found.dev());
    matches!((device("log"), device("store")), (Some(log), Some(store)) if log != store)
}

/// Bytes on the disk of the files in a folder.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    // A file that goes meanwhile takes no room.
    let sizes = entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.blocks() * 512));
    sizes.sum()
}

/// Looks at the counters every second until it is dropped.
pub async fn look_at_counters(metrics: Arc<Metrics>) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        metrics.looks.note(crate::executor::now().steady_ns, metrics.counts());
    }
}

async fn gc_status(State(pages): State<Pages>, Query(query): Query<GcQuery>) -> Response {
    told(pages.collector.status(query.dry_run).await)
}

/// Changes something, so only who is on this machine may ask.
async fn gc(
    State(pages): State<Pages>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Json(request): Json<GcRequest>,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        let told = "only who is on the server's own machine may ask for this\n";
        return (StatusCode::FORBIDDEN, told).into_response();
    }
    if request.full {
        pages.collector.look_soon();
    }
    told(pages.collector.status(false).await)
}

fn told(status: Result<GcStatus, String>) -> Response {
    match status {
        Ok(status) => Json(status).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

async fn ask_status(queue: &mpsc::Sender<Input>) -> Option<Status> {
    let (sender, answer) = oneshot::channel();
    let ask: Ask = Box::new(move |core, _| {
        let (machine, reads) = (&core.machine, SharedView(core.engine.view()));
        let volumes = machine.volumes().filter(|volume| !volume.row.is_gone()).map(|volume| VolumeStatus {
            name: volume.row.shown_name(),
            id: volume.id(),
            sessions: machine.sessions_of(volume.index),
            problem: volume.problem.clone(),
            tally: chronofs_namespace::tally(&reads, volume.index).ok(),
            collection: volume.collection().clone(),
            packing: volume.packing().clone(),
            leaving: volume.leaving(),
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
            stores: Vec::new(),
            process: ProcessStatus::default(),
            epoch: machine.config().epoch,
            full: None,
            syncing_s: 0.0,
            log_bytes: 0,
            store_bytes: 0,
            apart: false,
            rates: Rates::default(),
            restored: None,
            keys: key_sum(&reads).unwrap_or_default(),
            log: LogSaid::default(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_and_store_are_apart_when_they_lie_on_different_disks_and_both_are_there() {
        let temp = tempfile::tempdir().unwrap();
        let engine = temp.path();
        assert!(!are_apart(engine));
        std::fs::create_dir(engine.join("store")).unwrap();
        assert!(!are_apart(engine));
        std::fs::create_dir(engine.join("log")).unwrap();
        assert!(!are_apart(engine));
        std::fs::remove_dir(engine.join("log")).unwrap();
        // No disk, but a file system of its own.
        std::os::unix::fs::symlink("/proc", engine.join("log")).unwrap();
        assert!(are_apart(engine));
    }
}
