//! Figures for Prometheus.

use crate::collect::GcStatus;
use crate::machine::{CollectionShown, KINDS, READS, WRITES};
use crate::rates::{Counts, Looks};
use crate::watched::StoreStatus;
use chronofs_blocks::hedge::Hedges;
use chronofs_core::Errno;
use chronofs_wire::status::{FullDisk, LogSaid};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    kind: &'static str,
    errno: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabels {
    action: &'static str,
}

impl ActionLabels {
    fn of(put: bool) -> Self {
        ActionLabels { action: if put { "put" } else { "get" } }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyLabels {
    kind: &'static str,
}

impl KeyLabels {
    fn of(writes: bool) -> Self {
        KeyLabels { kind: if writes { "write" } else { "read" } }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoredLabels {
    volume: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolumeLabels {
    volume: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreLabels {
    store: String,
    place: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CopyLabels {
    copy: String,
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
    object_bytes: Family<ActionLabels, Counter>,
    object_failures: Family<ActionLabels, Counter>,
    signed: Family<ActionLabels, Counter>,
    store_outage: Family<StoreLabels, Gauge>,
    /// 1 for a copy of the log that counts.
    log_copy: Family<CopyLabels, Gauge>,
    /// 1 if log and store lie on different disks.
    apart: Gauge,
    hedged: Counter,
    hedged_won: Counter,
    /// Rows of the past that were forgotten.
    pub forgotten: Counter,
    /// Objects and staged slices, and their bytes.
    stored_objects: Family<StoredLabels, Gauge>,
    stored_bytes: Family<StoredLabels, Gauge>,
    /// What the past of volumes costs, as it was when that was counted last.
    past_bytes: Family<VolumeLabels, Gauge>,
    /// Objects in block stores that nothing explains.
    quarantined: Gauge,
    /// Volumes whose collection waits for a word or for an operator.
    collection_stopped: Gauge,
    /// Questions about the operators' key space.
    keys: Family<KeyLabels, Counter>,
    moments: Mutex<Moments>,
    /// What was counted, second by second.
    pub(crate) looks: Looks,
}

/// When things began that last for a while.
#[derive(Default)]
struct Moments {
    /// The sync that is under way.
    sync_began: Option<Instant>,
    /// The disk is full: the first and the last write that was refused.
    full: Option<(Instant, Instant)>,
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
            object_bytes: Family::default(),
            object_failures: Family::default(),
            signed: Family::default(),
            store_outage: Family::default(),
            log_copy: Family::default(),
            apart: Gauge::default(),
            hedged: Counter::default(),
            hedged_won: Counter::default(),
            forgotten: Counter::default(),
            stored_objects: Family::default(),
            stored_bytes: Family::default(),
            past_bytes: Family::default(),
            quarantined: Gauge::default(),
            collection_stopped: Gauge::default(),
            keys: Family::default(),
            moments: Mutex::default(),
            looks: Looks::default(),
            requests,
        };
        for put in [true, false] {
            for family in [&metrics.object_bytes, &metrics.object_failures, &metrics.signed] {
                family.get_or_create_owned(&ActionLabels::of(put));
            }
        }
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
        registry.register("keys", "Questions about the operators' key space", metrics.keys.clone());
        metrics.register_objects(&mut registry);
        metrics.register_collection(&mut registry);
        (metrics, registry)
    }

    fn register_objects(&self, registry: &mut Registry) {
        let (bytes, failures, signed) = (&self.object_bytes, &self.object_failures, &self.signed);
        registry.register("object_bytes", "Bytes of objects that went through this server", bytes.clone());
        registry.register(
            "object_failures",
            "Objects that the block store did not take or give",
            failures.clone(),
        );
        registry.register("signed", "Requests to block stores signed for mounts", signed.clone());
        let help = "Seconds for which a block store has not been usable; 0 while it is";
        registry.register("store_outage_seconds", help, self.store_outage.clone());
        let help = "1 for a copy of the log that what is durable is in, 0 for one that is left out";
        registry.register("log_copy_counts", help, self.log_copy.clone());
        let help = "1 if log and store lie on different disks, so that other tools have to image both at one instant";
        registry.register("log_apart_from_store", help, self.apart.clone());
        let help = "Reads of buckets that were sent a second time because the first answer took long";
        registry.register("hedged", help, self.hedged.clone());
        let help = "Reads of buckets of which the second answer counted";
        registry.register("hedged_won", help, self.hedged_won.clone());
    }

    /// Counts an object that went through this server, or was to.
    pub fn object(&self, put: bool, bytes: usize, done: bool) {
        let label = ActionLabels::of(put);
        match done {
            true => self.object_bytes.get_or_create(&label).inc_by(bytes as u64),
            false => self.object_failures.get_or_create(&label).inc(),
        };
    }

    /// Counts signed requests.
    pub fn signed(&self, put: bool, count: usize) {
        self.signed.get_or_create(&ActionLabels::of(put)).inc_by(count as u64);
    }

    fn register_collection(&self, registry: &mut Registry) {
        let help = "Objects and staged slices, by what they wait for";
        registry.register("stored_objects", help, self.stored_objects.clone());
        let help = "Stored bytes of objects and staged slices, by what they wait for";
        registry.register("stored_bytes", help, self.stored_bytes.clone());
        let help = "Held bytes that the present does not need, as counted when all rows were read last";
        registry.register("past_bytes", help, self.past_bytes.clone());
        let help = "Objects in block stores that nothing explains";
        registry.register("quarantined_objects", help, self.quarantined.clone());
        let help = "Volumes whose collection waits for an operator";
        registry.register("collection_stopped", help, self.collection_stopped.clone());
    }

    /// Shows whether block stores can be used.
    pub(crate) fn show_stores(&self, stores: &[StoreStatus]) {
        self.store_outage.clear();
        for store in stores {
            let labels = StoreLabels { store: store.id.to_string(), place: store.place.clone() };
            // One that has just begun shows too.
            let seconds = store.outage.as_ref().map_or(0, |outage| outage.seconds.max(1));
            self.store_outage.get_or_create(&labels).set(seconds.try_into().unwrap_or(i64::MAX));
        }
    }

    /// Shows which copies of the log count.
    pub(crate) fn show_log(&self, log: &LogSaid) {
        self.log_copy.clear();
        for copy in &log.copies {
            let labels = CopyLabels { copy: copy.name.clone() };
            self.log_copy.get_or_create(&labels).set(i64::from(copy.counts));
        }
    }

    /// Shows whether log and store lie on different disks.
    pub(crate) fn show_apart(&self, apart: bool) {
        self.apart.set(i64::from(apart));
    }

    /// Shows how many reads of all stores were sent a second time.
    pub(crate) fn show_hedges(&self, stores: impl Iterator<Item = Hedges>) {
        let sum = stores.fold(Hedges::default(), |sum, store| Hedges {
            sent: sum.sent + store.sent,
            won: sum.won + store.won,
        });
        // Stores are opened anew with a new assignment and begin at nothing, as after a restart.
        self.hedged.inner().store(sum.sent, Ordering::Relaxed);
        self.hedged_won.inner().store(sum.won, Ordering::Relaxed);
    }

    /// Shows how collection stands.
    pub fn show_collection(&self, status: &GcStatus) {
        // A volume may have another name by now, or be gone.
        self.stored_objects.clear();
        self.stored_bytes.clear();
        self.past_bytes.clear();
        for volume in &status.volumes {
            if let Some(past) = &volume.past {
                let labels = VolumeLabels { volume: volume.name.clone() };
                self.past_bytes.get_or_create(&labels).set(past.bytes.try_into().unwrap_or(i64::MAX));
            }
            for (state, sum) in
                [("held", volume.held), ("retired", volume.retired), ("condemned", volume.condemned)]
            {
                let labels = StoredLabels { volume: volume.name.clone(), state };
                self.stored_objects.get_or_create(&labels).set(sum.count.try_into().unwrap_or(i64::MAX));
                self.stored_bytes.get_or_create(&labels).set(sum.bytes.try_into().unwrap_or(i64::MAX));
            }
        }
        let stops = |shown: &CollectionShown| shown.braked || shown.stopped || shown.waits.is_some();
        let stopped = status.volumes.iter().filter(|volume| stops(&volume.shown));
        self.collection_stopped.set(stopped.count().try_into().unwrap_or(i64::MAX));
        let quarantined: u64 = status.stores.iter().map(|store| store.quarantined.count).sum();
        self.quarantined.set(quarantined.try_into().unwrap_or(i64::MAX));
    }

    /// Counts a question about the key space.
    pub fn asked_keys(&self, writes: bool) {
        self.keys.get_or_create(&KeyLabels::of(writes)).inc();
    }

    /// A sync began, or ended.
    pub fn sync_began(&self, at: Option<Instant>) {
        self.moments().sync_began = at;
    }

    /// For how long the sync has been under way that is; 0 if none is.
    pub fn syncing_s(&self) -> f64 {
        self.moments().sync_began.map_or(0.0, |began| began.elapsed().as_secs_f64())
    }

    /// Writes were refused just now, because the disk is full.
    pub fn refused_full(&self) {
        let now = Instant::now();
        let mut moments = self.moments();
        let (since, _) = moments.full.unwrap_or((now, now));
        moments.full = Some((since, now));
    }

    /// The disk took a write again.
    pub fn has_room(&self) {
        self.moments().full = None;
    }

    /// Whether writes are refused because the disk is full.
    pub fn full_disk(&self) -> Option<FullDisk> {
        let (since, last) = self.moments().full?;
        Some(FullDisk { seconds: since.elapsed().as_secs(), last_seconds: last.elapsed().as_secs() })
    }

    /// What was done since the start.
    pub(crate) fn counts(&self) -> Counts {
        let sum = |kinds: Range<usize>| {
            self.good.get(kinds).map_or(0, |all| all.iter().map(Counter::get).sum::<u64>())
        };
        let keys = |writes| self.keys.get_or_create(&KeyLabels::of(writes)).get();
        Counts {
            reads: sum(READS) + keys(false),
            writes: sum(WRITES) + keys(true),
            commits: self.commits.get(),
        }
    }

    fn moments(&self) -> MutexGuard<'_, Moments> {
        self.moments.lock().unwrap_or_else(PoisonError::into_inner)
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
