//! What Prometheus may scrape.

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::time::Duration;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Request {
    method: String,
    route: String,
    status: u16,
}

pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    request_seconds: Histogram,
    pub(crate) volumes: Gauge,
    pub(crate) metadata_stores: Gauge,
    pub(crate) metadata_stores_connected: Gauge,
    pub(crate) log_servers: Gauge,
    pub(crate) log_servers_connected: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let metrics = Metrics {
            registry: Registry::with_prefix("chronofs_admin"),
            requests: Family::default(),
            request_seconds: Histogram::new(exponential_buckets(0.000_5, 2.0, 16)),
            volumes: Gauge::default(),
            metadata_stores: Gauge::default(),
            metadata_stores_connected: Gauge::default(),
            log_servers: Gauge::default(),
            log_servers_connected: Gauge::default(),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register("requests", "Requests by method, route and status", self.requests.clone());
        let help = "Time to answer, long polls excluded";
        registry.register("request_seconds", help, self.request_seconds.clone());
        registry.register("volumes", "Volumes", self.volumes.clone());
        registry.register("metadata_stores", "Metadata stores", self.metadata_stores.clone());
        let help = "Metadata stores whose server is in touch";
        registry.register("metadata_stores_connected", help, self.metadata_stores_connected.clone());
        registry.register("log_servers", "Log servers", self.log_servers.clone());
        let help = "Log servers that are in touch";
        registry.register("log_servers_connected", help, self.log_servers_connected.clone());
        self
    }

    /// Counts one answered request; `route` is the pattern, not the path, so that there are few.
    pub(crate) fn answered(&self, method: String, route: String, status: u16, took: Duration) {
        if !route.ends_with("/assignment") {
            self.request_seconds.observe(took.as_secs_f64());
        }
        self.requests.get_or_create(&Request { method, route, status }).inc();
    }

    pub(crate) fn encode(&self) -> String {
        let mut out = String::new();
        // Writing into a String does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}
