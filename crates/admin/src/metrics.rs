//! What Prometheus may scrape.

use crate::schedules::Health;
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

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfSchedule {
    schedule: String,
}

pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    request_seconds: Histogram,
    backup_age_seconds: Family<OfSchedule, Gauge>,
    backup_age_limit_seconds: Family<OfSchedule, Gauge>,
    backup_too_old: Family<OfSchedule, Gauge>,
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
            backup_age_seconds: Family::default(),
            backup_age_limit_seconds: Family::default(),
            backup_too_old: Family::default(),
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
        let help = "Age of the newest recoverable point of a schedule of backups, without any, age of the schedule; where there is no \
             schedule, of any backup, under an empty name";
        registry.register("backup_age_seconds", help, self.backup_age_seconds.clone());
        let help = "How old the newest recoverable point of a schedule may be";
        registry.register("backup_age_limit_seconds", help, self.backup_age_limit_seconds.clone());
        let help = "1 if the newest recoverable point of a schedule is too old";
        registry.register("backup_too_old", help, self.backup_too_old.clone());
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

    /// How schedules of backups stand now; those that are gone are not shown any more.
    pub(crate) fn backups(&self, schedules: &[Health]) {
        let seconds = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        for family in [&self.backup_age_seconds, &self.backup_age_limit_seconds, &self.backup_too_old] {
            family.clear();
        }
        for health in schedules {
            let of = OfSchedule { schedule: health.schedule.name.clone() };
            self.backup_age_seconds.get_or_create(&of).set(seconds(health.age_s));
            self.backup_age_limit_seconds.get_or_create(&of).set(seconds(health.schedule.limit_seconds));
            self.backup_too_old.get_or_create(&of).set(i64::from(health.fault.is_some()));
        }
    }

    pub(crate) fn encode(&self) -> String {
        let mut out = String::new();
        // Writing into a String does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}
