//! Figures and health over plain HTTP, for the machine itself unless told otherwise.

use crate::connection::Shared;
use anyhow::{Context, Result, bail};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use chronofs_wire::status::ProcessStatus;
use chronofs_wire::tlog::LogServerSaid;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// How long a server may take to say how it is.
const STATUS_WITHIN: Duration = Duration::from_secs(5);

/// What is counted.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) appends: Counter,
    appended_bytes: Counter,
    failed: Counter,
    pub(crate) refused: Counter,
    append_seconds: Histogram,
    connections: Gauge,
    bytes: Family<Vec<(String, String)>, Gauge>,
    epoch: Family<Vec<(String, String)>, Gauge>,
}

impl Metrics {
    pub(crate) fn new() -> (Metrics, Registry) {
        let metrics = Metrics {
            appends: Counter::default(),
            appended_bytes: Counter::default(),
            failed: Counter::default(),
            refused: Counter::default(),
            append_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 18)),
            connections: Gauge::default(),
            bytes: Family::default(),
            epoch: Family::default(),
        };
        let mut registry = Registry::with_prefix("chronofs_tlog");
        registry.register("appends", "Writes with an fdatasync each", metrics.appends.clone());
        registry.register("appended_bytes", "Bytes in them", metrics.appended_bytes.clone());
        registry.register("failed_appends", "Writes that failed or were not allowed", metrics.failed.clone());
        registry.register("refused", "Connections that were refused", metrics.refused.clone());
        registry.register("append_seconds", "Time of a write", metrics.append_seconds.clone());
        registry.register("connections", "Connections of metadata servers", metrics.connections.clone());
        registry.register("bytes", "Bytes of each copy", metrics.bytes.clone());
        registry.register("epoch", "The epoch that each copy obeys", metrics.epoch.clone());
        (metrics, registry)
    }

    pub(crate) fn appended(&self, bytes: usize, took: Duration, done: bool) {
        self.append_seconds.observe(took.as_secs_f64());
        if done {
            self.appends.inc();
            self.appended_bytes.inc_by(bytes as u64);
        } else {
            self.failed.inc();
        }
    }

    fn show(&self, said: &LogServerSaid) {
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.connections.set(gauge(said.connections));
        for copy in &said.copies {
            let label = vec![("store".to_owned(), copy.id.to_string())];
            self.bytes.get_or_create(&label).set(gauge(copy.bytes));
            self.epoch.get_or_create(&label).set(gauge(copy.epoch));
        }
    }
}

/// What the pages are made of.
#[derive(Clone)]
pub(crate) struct Pages {
    pub(crate) shared: Arc<Shared>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) folder: PathBuf,
    pub(crate) started: Instant,
    /// Where it stands.
    pub(crate) locality: BTreeMap<String, String>,
    pub(crate) boot: u64,
    /// The epoch under which it is registered, 0 before.
    pub(crate) epoch: Arc<AtomicU64>,
}

impl Pages {
    /// How the server is. It reads from its disk, which may hang.
    pub(crate) async fn said(&self) -> Option<LogServerSaid> {
        let pages = self.clone();
        let said = tokio::task::spawn_blocking(move || LogServerSaid {
            process: ProcessStatus::look(pages.started, &pages.folder, pages.locality),
            boot: pages.boot,
            epoch: pages.epoch.load(Ordering::Relaxed),
            connections: pages.shared.connections() as u64,
            copies: pages.shared.stores.shown(),
        });
        tokio::time::timeout(STATUS_WITHIN, said).await.ok()?.ok()
    }
}

/// Serves the pages until it is dropped.
pub(crate) async fn serve(listener: TcpListener, pages: Pages) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/status", get(page))
        .with_state(pages);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "figures and health are not served any more");
    }
}

const HANGS: (StatusCode, &str) = (StatusCode::SERVICE_UNAVAILABLE, "the disk does not answer\n");

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    let Some(said) = pages.said().await else { return HANGS.into_response() };
    pages.shared.metrics.show(&said);
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &pages.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([("content-type", kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Ready: the admin server knows where it is.
async fn ready(State(pages): State<Pages>) -> (StatusCode, &'static str) {
    match pages.epoch.load(Ordering::Relaxed) {
        0 => (StatusCode::SERVICE_UNAVAILABLE, "not registered with the admin server yet\n"),
        _ => (StatusCode::OK, "ready\n"),
    }
}

async fn page(State(pages): State<Pages>) -> impl IntoResponse {
    match pages.said().await {
        Some(said) => Json(said).into_response(),
        None => HANGS.into_response(),
    }
}

/// How the server is that serves its pages on this address.
pub async fn status(address: SocketAddr) -> Result<LogServerSaid> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET /status HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(2 * STATUS_WITHIN, asked).await.context("it does not answer")?;
    let answer = answer.with_context(|| format!("no log server answers on {address}; is it running?"))?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => {
            serde_json::from_str(body).with_context(|| format!("what answers on {address} is no log server"))
        }
        _ => bail!("what answers on {address} does not say how it is: {}", answer.trim()),
    }
}
