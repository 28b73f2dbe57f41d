//! Disk snapshots, from here: the coordinator with its records in the database, and this server's own part in them, the
//! image of that database.
//!
//! Whatever the coordinator decides is saved before anybody is told, under one lock. If it cannot be saved, the coordinator
//! is made anew of what was, as after a crash; while that cannot be read, it knows nothing and nobody is told anything.

use crate::AdminError;
use crate::backups::Backups;
use crate::db::tokens::ADDRESS;
use crate::db::{DATABASE_FILE, Database, log_servers, now_ns, setting, snapshots, stores};
use crate::model::{LogServer, MetadataStore};
use chronofs_backup::{PROGRAM, store_image};
use chronofs_snapshot::agent::{Agent, Host, Imaged, Setup};
use chronofs_snapshot::protocol::{
    Attempt, Coordinator, Cut, Fault, Intent, Left, Node, Now, Order, Phase, Poll, Record, Request, State,
};
use chronofs_snapshot::{Guard, Role, SnapshotCode, SnapshotUid, Whereabouts, Whitelist};
use rusqlite::Transaction;
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot, watch};

/// Id of this server among the members.
const NODE: &str = "admin";
/// Its epoch: when it goes down, the attempt is over anyhow.
const EPOCH: u64 = 1;
/// Files of this server that are in its image beside the database.
const BESIDE: [&str; 2] = [chronofs_wire::secrets::KEY_FILE, "tls.pem"];
/// Folder of images in the server's own.
const IMAGES: &str = "images";
/// How long members may store images for a backup: the first one of a large store is a long copy.
const BACKUP_WITHIN: Duration = Duration::from_secs(24 * 3600);
/// A member that was not heard of for so long is gone. If a question of it was lost, that ends after 30 s, and the next
/// one is here in time.
const SILENT_AFTER: Duration = Duration::from_secs(60);
/// The same for a backup, which has more to lose.
const BACKUP_SILENT_AFTER: Duration = Duration::from_secs(600);

/// The phase that a snapshot is in, and what is left of that.
type UnderWay = (Phase, Vec<Left>);

/// How snapshots are made.
#[derive(Clone, Debug)]
pub struct SnapshotConfig {
    /// Programs that may run here: `whitelist_binpath`.
    pub whitelist: Vec<PathBuf>,
    /// How long a program may run: `SNAP_CREATE_MAX_TIMEOUT`.
    pub run_limit: Duration,
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        SnapshotConfig { whitelist: Vec::new(), run_limit: Duration::from_secs(300) }
    }
}

/// See the module.
pub(crate) struct Snapshots {
    database: Database,
    coordinator: Mutex<Coordinator>,
    /// What was saved could not be read again. Looked at under the lock of the coordinator.
    stale: AtomicBool,
    begun: Instant,
    run_limit: Duration,
    /// Changed whenever members or clients may have to be told something.
    changed: watch::Sender<u64>,
    /// The question of each member that waits for an answer. One that was superseded is another member.
    asking: Mutex<BTreeMap<(String, u64), oneshot::Sender<()>>>,
}

impl Snapshots {
    /// With the records of the database; what was under way is over.
    pub(crate) fn new(database: Database, run_limit: Duration) -> Result<Arc<Self>, AdminError> {
        let begun = Instant::now();
        let coordinator = loaded(&database, Now { steady_ms: 0, wall_ns: now_ns() })?;
        let (coordinator, stale) = (Mutex::new(coordinator), AtomicBool::new(false));
        let (changed, asking) = (watch::Sender::new(0), Mutex::default());
        Ok(Arc::new(Snapshots { database, coordinator, stale, begun, run_limit, changed, asking }))
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Has the coordinator decide; what is to be saved is, before the answer comes.
    fn decide<T>(
        &self,
        decide: impl FnOnce(&mut Coordinator, Now) -> (T, Option<Record>),
    ) -> Result<T, AdminError> {
        let mut coordinator = self.coordinator.lock().unwrap_or_else(PoisonError::into_inner);
        let steady_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let now = Now { steady_ms, wall_ns: now_ns() };
        if self.stale.load(Ordering::Relaxed) {
            self.reload(&mut coordinator, now)?;
        }
        let phase = coordinator.under_way().map(|(_, phase, _)| phase);
        let (answer, record) = decide(&mut coordinator, now);
        if let Some(record) = &record {
            if let Err(error) = self.database.write(|tx| snapshots::save(tx, record)) {
                tracing::error!(%error, "a disk snapshot ends, because its record cannot be saved");
                self.stale.store(true, Ordering::Relaxed);
                *coordinator = Coordinator::new(Vec::new(), now).0;
                if let Err(error) = self.reload(&mut coordinator, now) {
                    tracing::error!(%error, "what is saved of disk snapshots cannot be read; it is tried again");
                }
                return Err(error);
            }
            tell(record);
        }
        if record.is_some() || coordinator.under_way().map(|(_, phase, _)| phase) != phase {
            self.changed.send_modify(|n| *n += 1);
        }
        Ok(answer)
    }

    /// As after a crash: what is in force is what is saved, and what ended by this is saved if it can be.
    fn reload(&self, coordinator: &mut Coordinator, now: Now) -> Result<(), AdminError> {
        let (mut saved, closed) = Coordinator::new(self.database.write(snapshots::list)?, now);
        saved.members(now, &nodes(&self.database.write(members)?));
        *coordinator = saved;
        self.stale.store(false, Ordering::Relaxed);
        self.save_closed(&closed);
        self.changed.send_modify(|n| *n += 1);
        Ok(())
    }

    fn save_closed(&self, closed: &[Record]) {
        for record in closed {
            tell(record);
            if let Err(error) = self.database.write(|tx| snapshots::save(tx, record)) {
                tracing::error!(%error, "the next start says so again");
            }
        }
    }

    /// Begins a snapshot, or says how the one of this UID stands. It blocks, as all that follows.
    pub(crate) fn start(
        &self,
        uid: SnapshotUid,
        program: String,
        arguments: Vec<String>,
        keep_until_ns: Option<u64>,
        connected: &dyn Fn(&str) -> bool,
    ) -> Result<Result<Record, Fault>, AdminError> {
        let (cluster, members) = self.database.write(|tx| Ok((snapshots::cluster(tx)?, members(tx)?)))?;
        let (stores, servers) = (&members.stores, &members.log_servers);
        let not_ready = stores.iter().find(|store| store.address.is_none() || !connected(&store.id));
        let (run_limit, silent_after) = match program == PROGRAM {
            true => (BACKUP_WITHIN, BACKUP_SILENT_AFTER),
            false => (self.run_limit, SILENT_AFTER),
        };
        let run_ms = u64::try_from(run_limit.as_millis()).unwrap_or(u64::MAX);
        let silent_ms = u64::try_from(silent_after.as_millis()).unwrap_or(u64::MAX);
        let request = Request { uid, program, arguments, keep_until_ns, run_ms, silent_ms, cluster };
        let unsure =
            stores.iter().find(|store| store.log.wanted.anti_quorum > 0 || store.log.members.anti_quorum > 0);
        self.decide(|coordinator, now| {
            if let (Some(store), None) = (unsure, coordinator.record(&request.uid)) {
                let why = format!(
                    "metadata store '{}' has a log anti quorum, so an image of one log copy could lack what was acknowledged",
                    store.name
                );
                return (Err(Fault { code: SnapshotCode::LogAntiQuorum, why }), None);
            }
            if let (Some(store), None) = (not_ready, coordinator.record(&request.uid)) {
                let why = format!(
                    "metadata store '{}' has no server that is connected: start it, or delete the store if it is not needed",
                    store.name
                );
                return (Err(Fault { code: SnapshotCode::NotFullyRecovered, why }), None);
            }
            let silent = servers.iter().find(|(server, _)| !connected(&server.id));
            if let (Some((server, _)), None) = (silent, coordinator.record(&request.uid)) {
                let why = format!(
                    "log server '{}' has a log copy that counts, and is not connected: start it, or wait until the copy is left out",
                    server.name
                );
                return (Err(Fault { code: SnapshotCode::NotFullyRecovered, why }), None);
            }
            match coordinator.start(now, request, nodes(&members)) {
                Ok((record, true)) => (Ok(record.clone()), Some(record)),
                Ok((record, false)) => (Ok(record), None),
                Err(refusal) => (Err(Fault { code: refusal.code, why: refusal.why }), None),
            }
        })
    }

    /// A member asks. The answer fails when it asks again: what it said before is outdated then.
    pub(crate) fn asks(&self, poll: &Poll) -> oneshot::Receiver<()> {
        let (newest, outdated) = oneshot::channel();
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        asking.retain(|_, waits| !waits.is_closed());
        asking.insert((poll.node.clone(), poll.epoch), newest);
        outdated
    }

    /// What a member is to do.
    pub(crate) fn poll(&self, poll: &Poll) -> Result<Vec<Order>, AdminError> {
        self.decide(|coordinator, now| coordinator.poll(now, poll))
    }

    /// A server has registered, or other log copies count.
    pub(crate) fn members_changed(&self) -> Result<(), AdminError> {
        let members = self.database.write(members)?;
        self.decide(|coordinator, now| ((), coordinator.members(now, &nodes(&members))))
    }

    pub(crate) fn tick(&self) -> Result<(), AdminError> {
        let overdue = self.decide(|coordinator, now| {
            let overdue = coordinator.overdue(now).next().is_some();
            (overdue, coordinator.tick(now))
        })?;
        if overdue {
            let stores = self.database.write(stores::list_metadata)?;
            let is_there = |id: &str| stores.iter().any(|store| store.id == id);
            self.decide(|coordinator, now| ((), coordinator.expire(now, is_there)))?;
        }
        Ok(())
    }

    /// Ends a snapshot that is under way. Gives its record as it is then.
    pub(crate) fn abort(&self, uid: &SnapshotUid) -> Result<Option<Record>, AdminError> {
        self.decide(|coordinator, now| {
            let aborted = coordinator.abort(now, uid);
            (coordinator.record(uid).cloned(), aborted)
        })
    }

    /// Forgets a snapshot that is over.
    pub(crate) fn delete(&self, uid: &SnapshotUid) -> Result<Option<Record>, AdminError> {
        self.decide(|coordinator, _| {
            let deleted = coordinator.delete(uid);
            (deleted.clone(), deleted)
        })
    }

    /// What is known of one.
    pub(crate) fn find(&self, uid: &SnapshotUid) -> Option<Record> {
        let coordinator = self.coordinator.lock().unwrap_or_else(PoisonError::into_inner);
        coordinator.record(uid).cloned()
    }

    /// Forgets what members keep for a snapshot that is not known here, or is forgotten.
    pub(crate) fn delete_unknown(&self, uid: &SnapshotUid) -> Result<Option<Record>, AdminError> {
        self.decide(|coordinator, now| {
            let deleted = coordinator.delete_unknown(now, uid);
            (deleted.clone(), deleted)
        })
    }

    /// A complete set, as it lies in the block stores.
    pub(crate) fn complete(&self, uid: &SnapshotUid) -> Option<Record> {
        let coordinator = self.coordinator.lock().unwrap_or_else(PoisonError::into_inner);
        coordinator.record(uid).filter(|record| record.state == State::Complete).cloned()
    }

    /// Who reads a set, as far as members have said.
    pub(crate) fn readers(&self, uid: &SnapshotUid) -> Vec<String> {
        self.coordinator.lock().unwrap_or_else(PoisonError::into_inner).readers(uid)
    }

    /// Who reads what, each in a line.
    pub(crate) fn all_readers(&self) -> Vec<String> {
        let coordinator = self.coordinator.lock().unwrap_or_else(PoisonError::into_inner);
        let uids = coordinator.records().map(|record| &record.intent.attempt.uid);
        let lines = uids.flat_map(|uid| {
            coordinator.readers(uid).into_iter().map(move |reader| format!("{uid}: {reader}"))
        });
        lines.collect()
    }

    /// What members keep for snapshots that are not known here, or are forgotten.
    pub(crate) fn strangers(&self) -> BTreeMap<Attempt, Vec<String>> {
        self.coordinator.lock().unwrap_or_else(PoisonError::into_inner).strangers()
    }

    /// How many are under way.
    pub(crate) fn running(&self) -> u64 {
        let coordinator = self.coordinator.lock().unwrap_or_else(PoisonError::into_inner);
        coordinator.under_way().into_iter().count() as u64
    }

    /// All that is known, newest first, each with the phase that it is in and what is left of that.
    pub(crate) fn all(&self) -> Vec<(Record, Option<UnderWay>)> {
        let coordinator = self.coordinator.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = coordinator.under_way().map(|(uid, phase, _)| (uid, phase, coordinator.left_to_do()));
        let mut records: Vec<_> = coordinator
            .records()
            .filter(|record| record.state != State::Deleted)
            .map(|record| {
                let at = under_way.as_ref().filter(|(uid, ..)| **uid == record.intent.attempt.uid);
                (record.clone(), at.map(|(_, phase, left)| (*phase, left.clone())))
            })
            .collect();
        records.sort_by_key(|(record, _)| std::cmp::Reverse(record.intent.attempt.number));
        records
    }
}

fn loaded(database: &Database, now: Now) -> Result<Coordinator, AdminError> {
    let (mut coordinator, closed) = Coordinator::new(database.write(snapshots::list)?, now);
    for record in &closed {
        database.write(|tx| snapshots::save(tx, record))?;
        tell(record);
    }
    // A server that was superseded may be the first to ask.
    coordinator.members(now, &nodes(&database.write(members)?));
    Ok(coordinator)
}

/// A line in the log for whoever looks there.
fn tell(record: &Record) {
    let (uid, state) = (&record.intent.attempt.uid, record.state);
    let code = record.code.map(SnapshotCode::number);
    for failure in &record.failures {
        tracing::warn!(%uid, node = failure.node, "disk snapshot: {}", failure.why);
    }
    tracing::info!(%uid, ?state, code, program = record.intent.program, "disk snapshot");
}

/// Everybody with disks, as the configuration has it.
struct Members {
    /// Address of this server.
    address: String,
    stores: Vec<MetadataStore>,
    /// Log servers with the ids of the stores whose copies there count.
    log_servers: Vec<(LogServer, Vec<String>)>,
}

fn members(tx: &Transaction<'_>) -> Result<Members, AdminError> {
    let address = setting(tx, ADDRESS)?.unwrap_or_default();
    Ok(Members { address, stores: stores::list_metadata(tx)?, log_servers: log_servers::counting(tx)? })
}

fn nodes(members: &Members) -> Vec<Node> {
    let own = Node {
        id: NODE.to_owned(),
        name: NODE.to_owned(),
        address: members.address.clone(),
        epoch: EPOCH,
        roles: vec![Role::Coord],
        copies: Vec::new(),
    };
    let stores = members.stores.iter().map(|store| Node {
        id: store.id.clone(),
        name: store.name.clone(),
        address: store.address.clone().unwrap_or_default(),
        epoch: store.epoch,
        roles: vec![Role::Storage, Role::Tlog],
        copies: Vec::new(),
    });
    let log_servers = members.log_servers.iter().map(|(server, copies)| Node {
        id: server.id.clone(),
        name: server.name.clone(),
        address: server.address.clone().unwrap_or_default(),
        epoch: server.epoch,
        roles: vec![Role::Tlog],
        copies: copies.clone(),
    });
    std::iter::once(own).chain(stores).chain(log_servers).collect()
}

/// This server as a member.
struct OwnPart {
    database: Database,
    folder: PathBuf,
    backups: Arc<Backups>,
}

impl Host for OwnPart {
    fn ready(&self, _: &Intent) -> Result<(), Fault> {
        Ok(())
    }

    fn hold(&self, _: &Attempt) -> Result<(), Fault> {
        Ok(())
    }

    fn let_go(&self, _: &Attempt) {}

    fn image(&self, _: &Intent, _: Role, place: &Path) -> Result<Imaged, Fault> {
        let failed = |why: String| Fault { code: SnapshotCode::CoordFailed, why };
        let copy = || -> std::io::Result<()> {
            std::fs::DirBuilder::new().mode(0o700).create(place)?;
            for name in BESIDE {
                let (from, to) = (self.folder.join(name), place.join(name));
                if from.exists() {
                    std::fs::copy(&from, &to)?;
                    std::fs::File::open(&to)?.sync_all()?;
                }
            }
            Ok(())
        };
        copy().map_err(|error| failed(format!("cannot copy files to {}: {error}", place.display())))?;
        let to = place.join(DATABASE_FILE);
        self.database.copy(&to).map_err(|error| failed(error.to_string()))?;
        let synced = std::fs::File::open(&to).and_then(|file| file.sync_all());
        synced.map_err(|error| failed(format!("cannot sync {}: {error}", to.display())))?;
        Ok(Imaged::default())
    }

    fn keep(&self, _: &Intent, _: Option<Cut>) -> Result<(), Fault> {
        Ok(())
    }

    fn store(
        &self,
        intent: &Intent,
        role: Role,
        image: &Path,
        stop: &dyn Fn() -> bool,
    ) -> Result<String, Fault> {
        let uid = &intent.attempt.uid;
        let why = || Fault { code: SnapshotCode::CoordFailed, why: "nobody makes this backup".to_owned() };
        store_image(&self.backups.plan(uid).ok_or_else(why)?, intent, NODE, role, image, stop)
    }

    fn release(&self, _: &Attempt) {}

    fn kept(&self) -> Result<Vec<Attempt>, String> {
        Ok(Vec::new())
    }
}

/// Takes part in snapshots until it is dropped, and has the coordinator look at the clock.
pub(crate) async fn take_part(
    snapshots: Arc<Snapshots>,
    backups: Arc<Backups>,
    folder: PathBuf,
    whitelist: Whitelist,
    whereabouts: Whereabouts,
) -> Result<(), AdminError> {
    let wake = Arc::new(Notify::new());
    let setup = Setup {
        node: NODE.to_owned(),
        folder: folder.join(IMAGES),
        whitelist,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        whereabouts,
        guard: Guard::default(),
    };
    let host = OwnPart { database: snapshots.database.clone(), folder, backups };
    let woken = wake.clone();
    let agent = Agent::new(setup, EPOCH, host, move || woken.notify_one());
    let agent = agent.map_err(|error| AdminError::Internal(error.to_string()))?;
    let _end = StopsAgent(agent.clone());
    let mut changes = snapshots.changes();
    loop {
        let (agent, turn) = (agent.clone(), snapshots.clone());
        let turned = tokio::task::spawn_blocking(move || {
            turn.tick()?;
            agent.tick();
            let orders = turn.poll(&agent.poll().map_err(AdminError::Internal)?)?;
            agent.orders(&orders);
            Ok::<(), AdminError>(())
        });
        if let Ok(Err(error)) = turned.await {
            tracing::error!(%error, "disk snapshots");
        }
        tokio::select! {
            () = wake.notified() => {}
            _ = changes.changed() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// Ends programs that run for a snapshot when the server stops.
struct StopsAgent(Agent);

impl Drop for StopsAgent {
    fn drop(&mut self) {
        self.0.stop();
    }
}
