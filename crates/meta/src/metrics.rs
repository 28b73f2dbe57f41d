//! Figures for Prometheus.

use crate::machine::KINDS;
use chronofs_core::Errno;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    kind: &'static str,
    errno: String,
}

/// The figures of one server.
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    /// The counters of requests that went well, found without a lookup.
    good: Vec<Counter>,
    /// Commits applied.
    pub commits: Counter,
    /// Commits that share one apply.
    pub group_size: Histogram,
    /// Bytes of keys, values and tags committed.
    pub log_bytes: Counter,
    /// Seconds an fdatasync of the log took.
    pub sync_seconds: Histogram,
    /// Sessions.
    pub sessions: Gauge,
    /// Connections.
    pub connections: Gauge,
    /// Seconds between the last applied and the last durable commit.
    pub durable_lag: Gauge<f64, AtomicU64>,
    /// Groups that found the disk full.
    pub full: Counter,
    /// Rows of the past that were forgotten.
    pub forgotten: Counter,
}

impl Metrics {
    /// New figures, registered for export.
    pub fn new() -> (Metrics, Registry) {
        let requests = Family::<RequestLabels, Counter>::default();
        let good = KINDS
            .iter()
            .map(|kind| requests.get_or_create_owned(&RequestLabels { kind, errno: String::new() }))
            .collect();
        let metrics = Metrics {
            good,
            commits: Counter::default(),
            group_size: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            log_bytes: Counter::default(),
            sync_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            sessions: Gauge::default(),
            connections: Gauge::default(),
            durable_lag: Gauge::default(),
            full: Counter::default(),
            forgotten: Counter::default(),
            requests,
        };
        let mut registry = Registry::with_prefix("chronofs_meta");
        registry.register("requests", "Requests answered", metrics.requests.clone());
        registry.register("commits", "Commits applied", metrics.commits.clone());
        registry.register("group_size", "Commits per apply", metrics.group_size.clone());
        registry.register("log_bytes", "Bytes of commits", metrics.log_bytes.clone());
        registry.register("sync_seconds", "Time to make the log durable", metrics.sync_seconds.clone());
        registry.register("sessions", "Sessions", metrics.sessions.clone());
        registry.register("connections", "Connections", metrics.connections.clone());
        registry.register(
            "durable_lag_seconds",
            "Age of the oldest commit that is not durable",
            metrics.durable_lag.clone(),
        );
        registry.register("full", "Groups that found the disk full", metrics.full.clone());
        registry.register(
            "forgotten_rows",
            "Rows of the past that were forgotten",
            metrics.forgotten.clone(),
        );
        (metrics, registry)
    }

    /// Counts an answer.
    pub fn answered(&self, kind: u8, errno: i32) {
        if errno == 0 {
            if let Some(counter) = self.good.get(usize::from(kind)) {
                counter.inc();
            }
            return;
        }
        let kind = KINDS.get(usize::from(kind)).copied().unwrap_or("other");
        self.requests.get_or_create(&RequestLabels { kind, errno: Errno(errno).to_string() }).inc();
    }
}
