//! Backups, from here: a disk snapshot whose members store their images by themselves, the manifest when all have, and what
//! is known of each. One is made or deleted at a time.
//!
//! The key of a place of backups comes with each call and is kept in memory only, for as long as the backup is made.

use crate::AdminError;
use crate::api::{App, log_servers};
use crate::db::{Database, backups, block_stores, now_ns, snapshots as records};
use crate::snapshots::Snapshots;
use chronofs_backup::record::{Backup, Judged, Stands, State, Wholeness, judge};
use chronofs_backup::{Depot, Error, Lease, PROGRAM, Plan, Unlock, Where};
use chronofs_core::store::{Secret, StoreKind};
use chronofs_snapshot::protocol::{Fault, Record, State as SnapshotState};
use chronofs_snapshot::{SnapshotCode, SnapshotUid};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::OwnedMutexGuard;

/// How often it is looked whether the set is complete.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// How often the lease on the place is renewed; it holds ten times as long.
const RENEW_EVERY: Duration = Duration::from_secs(60);

/// What is known of backups in this process.
pub(crate) struct Backups {
    /// This server among all: machine and folder. Of those there is one process, which holds the lock on the folder.
    owner: String,
    plans: Mutex<BTreeMap<SnapshotUid, Plan>>,
    /// Who makes or deletes one.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// A backup that is wanted.
pub(crate) struct Wanted {
    pub(crate) uid: SnapshotUid,
    pub(crate) dest: String,
    pub(crate) unlock: Unlock,
    pub(crate) keep_until_ns: Option<u64>,
    pub(crate) schedule: Option<String>,
}

/// A backup with how whole it is, if it is one.
pub(crate) type Shown = (Backup, Option<Judged>);

pub(crate) fn refused(error: Error) -> AdminError {
    AdminError::Invalid(error.to_string())
}

/// Where `dest` is: a folder, or `store:NAME[/BELOW]`, a bucket that is known as a block store. It blocks.
pub(crate) fn place_of(app: &App, dest: &str) -> Result<Where, AdminError> {
    if dest.starts_with('/') {
        return Ok(Where::folder(dest));
    }
    let Some((name, below)) = Where::in_store(dest) else {
        return Err(AdminError::Invalid(format!(
            "'{dest}' is no place of backups: write the absolute path of a folder that every server sees, or store:NAME with the \
             name of a block store in a bucket"
        )));
    };
    let found = app.database.write(|tx| {
        let store = block_stores::find(tx, name)?;
        block_stores::place(tx, &app.secrets, &store.id)
    })?;
    if let StoreKind::Local { path } = &found.definition {
        return Err(AdminError::Invalid(format!(
            "block store '{name}' is the folder {path}: name another folder, which every server sees, by its path"
        )));
    }
    let create_only = found.probe.is_some_and(|report| report.create_only);
    let (kind, credentials) = (found.definition, found.credentials);
    Ok(Where { kind, credentials, below: below.to_owned(), create_only })
}

pub(crate) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, AdminError> + Send + 'static,
) -> Result<T, AdminError> {
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|e| AdminError::Internal(format!("the task ended: {e}")))?
}

impl Backups {
    /// What was under way when this process began is over.
    pub(crate) fn new(database: &Database, folder: &Path) -> Result<Arc<Self>, AdminError> {
        database.write(|tx| {
            let complete: Vec<String> = records::list(tx)?
                .into_iter()
                .filter(|record| record.state == SnapshotState::Complete)
                .map(|record| record.intent.attempt.uid.to_string())
                .collect();
            for mut backup in backups::list(tx)?.into_iter().filter(|backup| backup.state == State::Running) {
                // What its set needs stays kept until it is known that there is no manifest.
                let unsure = complete.contains(&backup.uid);
                backup.state = if unsure { State::Unsure } else { State::Failed };
                backup.ended_ns = Some(now_ns());
                backup.why = Some("the admin server went down before its manifest was written".to_owned());
                backups::save(tx, &backup)?;
            }
            Ok(())
        })?;
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let owner =
            format!("{}:{}", machine.trim(), std::path::absolute(folder).unwrap_or_default().display());
        Ok(Arc::new(Backups { owner, plans: Mutex::default(), turn: Arc::default() }))
    }

    /// What the members of a backup that is being made are told.
    pub(crate) fn plan(&self, uid: &SnapshotUid) -> Option<Plan> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    fn set_plan(&self, uid: &SnapshotUid, plan: Option<Plan>) {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        match plan {
            Some(plan) => drop(plans.insert(uid.clone(), plan)),
            None => drop(plans.remove(uid)),
        }
    }

    /// Whether one is being made or deleted.
    pub(crate) fn is_busy(&self) -> bool {
        self.turn.try_lock().is_err()
    }

    fn turn(&self) -> Result<OwnedMutexGuard<()>, Fault> {
        let why = "a backup is being made or deleted; wait until it is over: see chronofs backup list";
        self.turn
            .clone()
            .try_lock_owned()
            .map_err(|_| Fault { code: SnapshotCode::Busy, why: why.to_owned() })
    }
}

/// Begins a backup, or says how the one of this UID stands.
pub(crate) async fn begin(app: &Arc<App>, wanted: Wanted) -> Result<Result<Backup, Fault>, AdminError> {
    let uid = wanted.uid.clone();
    let asked = uid.to_string();
    let (known, cluster) =
        app.database.run(move |tx| Ok((backups::find(tx, &asked)?, records::cluster(tx)?))).await?;
    if let Some(known) = known {
        let why = format!("backup {uid} was asked for before, into another place");
        let other = Fault { code: SnapshotCode::Duplicate, why };
        return Ok(if known.dest == wanted.dest { Ok(known) } else { Err(other) });
    }
    let turn = match app.backups.turn() {
        Ok(turn) => turn,
        Err(busy) => return Ok(Err(busy)),
    };
    let (asking, dest) = (app.clone(), wanted.dest.clone());
    let place = blocking(move || place_of(&asking, &dest)).await?;
    let (opened, unlock, named, owner) =
        (place.clone(), wanted.unlock, uid.clone(), app.backups.owner.clone());
    let (depot, lease) = blocking(move || {
        let depot = Depot::begin(opened.open().map_err(refused)?, unlock, &cluster).map_err(refused)?;
        let lease = depot.lease(&owner, &format!("backup {named}"), now_ns()).map_err(refused)?;
        Ok((Arc::new(depot), lease))
    })
    .await?;
    let key = Secret::new(depot.key().reveal().as_str());
    let plan = Plan { place, depot: depot.id().to_owned(), key };
    let backup = Backup {
        uid: uid.to_string(),
        dest: wanted.dest.clone(),
        depot: depot.id().to_owned(),
        schedule: wanted.schedule,
        note: String::new(),
        started_ns: now_ns(),
        ended_ns: None,
        keep_until_ns: wanted.keep_until_ns,
        state: State::Running,
        point_ns: None,
        bytes: None,
        stored: None,
        why: None,
    };
    // Members ask for it as soon as they hear of the snapshot.
    app.backups.set_plan(&uid, Some(plan));
    let making = Making { app: app.clone(), uid, backup, depot, lease, _turn: turn };
    match making.start().await {
        Ok(Ok(())) => {
            let backup = making.backup.clone();
            tokio::spawn(making.follow());
            Ok(Ok(backup))
        }
        Ok(Err(fault)) => {
            making.leave().await;
            Ok(Err(fault))
        }
        Err(error) => {
            making.leave().await;
            Err(error)
        }
    }
}

/// A backup that is being made.
struct Making {
    app: Arc<App>,
    uid: SnapshotUid,
    backup: Backup,
    depot: Arc<Depot>,
    lease: Lease,
    _turn: OwnedMutexGuard<()>,
}

impl Making {
    async fn start(&self) -> Result<Result<(), Fault>, AdminError> {
        let (app, uid, backup) = (self.app.clone(), self.uid.clone(), self.backup.clone());
        blocking(move || {
            let connected = |id: &str| app.is_connected(id) || log_servers::is_connected(&app, id);
            let (dest, keep) = (vec![backup.dest.clone()], backup.keep_until_ns);
            match app.snapshots.start(uid, PROGRAM.to_owned(), dest, keep, &connected)? {
                Ok(_) => app.database.write(|tx| backups::save(tx, &backup)).map(Ok),
                Err(fault) => Ok(Err(fault)),
            }
        })
        .await
    }

    /// Waits for the set, writes its manifest, and writes down what came of it.
    async fn follow(mut self) {
        let ended = match self.until_over().await {
            Ok(record) if record.state == SnapshotState::Complete => self.finish(record).await,
            Ok(record) => Err(why_failed(&record)),
            Err(why) => Err(why),
        };
        self.backup.ended_ns = Some(now_ns());
        match ended {
            Ok(()) => {
                let Backup { uid, dest, bytes, stored, .. } = &self.backup;
                tracing::info!(uid, dest, bytes, stored, "backup is complete");
            }
            Err(why) => {
                tracing::warn!(uid = self.backup.uid, dest = self.backup.dest, why, "backup failed");
                (self.backup.state, self.backup.why) = (State::Failed, Some(why));
                let (app, uid) = (self.app.clone(), self.uid.clone());
                // Nothing need be kept for it. Of one that is over already nothing is.
                if let Err(error) = blocking(move || app.snapshots.delete(&uid)).await {
                    tracing::error!(%error, "what a failed backup needs goes on being kept");
                }
            }
        }
        let backup = self.backup.clone();
        if let Err(error) = self.app.database.run(move |tx| backups::save(tx, &backup)).await {
            tracing::error!(%error, "the record of a backup cannot be saved");
        }
        self.leave().await;
    }

    async fn until_over(&mut self) -> Result<Record, String> {
        let mut renewed = Instant::now();
        loop {
            match self.app.snapshots.find(&self.uid) {
                Some(record) if record.state == SnapshotState::Running => {}
                Some(record) => return Ok(record),
                None => return Err("its snapshot is not known any more".to_owned()),
            }
            tokio::time::sleep(LOOK_EVERY).await;
            if renewed.elapsed() > RENEW_EVERY {
                renewed = Instant::now();
                self.renew().await?;
            }
        }
    }

    async fn renew(&mut self) -> Result<(), String> {
        let (depot, mut lease) = (self.depot.clone(), self.lease.clone());
        let renewed = tokio::task::spawn_blocking(move || {
            let renewed = depot.renew(&mut lease, now_ns());
            (lease, renewed)
        });
        let (lease, renewed) = renewed.await.map_err(|error| error.to_string())?;
        self.lease = lease;
        match renewed {
            Err(lost @ Error::LeaseLost(_)) => {
                let (app, uid) = (self.app.clone(), self.uid.clone());
                // The member that cannot be told ends by its own limits.
                let _ = blocking(move || app.snapshots.abort(&uid)).await;
                Err(lost.to_string())
            }
            Err(error) => {
                tracing::warn!(%error, "the lease on a place of backups cannot be renewed now");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn finish(&mut self, record: Record) -> Result<(), String> {
        self.renew().await?;
        let (app, depot) = (self.app.clone(), self.depot.clone());
        let finished = blocking(move || {
            let manifest = depot.finish(&record).map_err(refused)?;
            // What is left over stays until the next time.
            let known = known_in(&app, depot.id())?;
            if let Err(error) = depot.sweep(&known) {
                tracing::warn!(%error, "what unfinished and deleted backups have left cannot be removed now");
            }
            Ok(manifest)
        });
        let manifest = finished.await.map_err(|error| error.to_string())?;
        self.backup.point_ns = Some(manifest.record.point_ns());
        (self.backup.bytes, self.backup.stored) = (Some(manifest.bytes()), Some(manifest.stored()));
        self.backup.state = State::Complete;
        self.settle().await;
        Ok(())
    }

    /// Finds out about backups into this place of which it is not known whether they have a manifest.
    async fn settle(&self) {
        let (app, depot) = (self.app.clone(), self.depot.clone());
        let settled = blocking(move || {
            let all = app.database.write(backups::list)?;
            let unsure = |backup: &Backup| backup.state == State::Unsure && backup.depot == depot.id();
            for mut backup in all.into_iter().filter(unsure) {
                let Ok(uid) = backup.uid.parse::<SnapshotUid>() else { continue };
                match depot.set(&uid) {
                    Ok(manifest) => {
                        backup.point_ns = Some(manifest.record.point_ns());
                        (backup.bytes, backup.stored) = (Some(manifest.bytes()), Some(manifest.stored()));
                        (backup.state, backup.why) = (State::Complete, None);
                    }
                    Err(Error::NoBackup { .. }) => {
                        backup.state = State::Failed;
                        app.snapshots.delete(&uid)?;
                    }
                    Err(_) => continue,
                }
                app.database.write(|tx| backups::save(tx, &backup))?;
            }
            Ok(())
        });
        if let Err(error) = settled.await {
            tracing::warn!(%error, "it is still not known what became of a backup");
        }
    }

    /// Nobody makes it any more.
    async fn leave(self) {
        self.app.backups.set_plan(&self.uid, None);
        let (depot, lease) = (self.depot, self.lease);
        // A lease that stays is over in ten minutes.
        let _ = tokio::task::spawn_blocking(move || depot.give_back(lease, now_ns())).await;
    }
}

fn why_failed(record: &Record) -> String {
    let failures = record.failures.iter().map(|failure| {
        let node = failure.node.as_ref().and_then(|id| record.intent.node(id));
        node.map_or_else(|| failure.why.clone(), |node| format!("{}: {}", node.name, failure.why))
    });
    match failures.collect::<Vec<_>>() {
        none if none.is_empty() => record.expired().unwrap_or("it was ended on demand").to_owned(),
        some => some.join("; "),
    }
}

/// The backups that are known to lie in a place.
fn known_in(app: &App, depot: &str) -> Result<Vec<SnapshotUid>, AdminError> {
    let all = app.database.write(backups::list)?;
    let there = |backup: &Backup| backup.state == State::Complete && backup.depot == depot;
    Ok(all.into_iter().filter(there).filter_map(|backup| backup.uid.parse().ok()).collect())
}

/// All backups that are known, newest first.
pub(crate) fn all(app: &App) -> Result<Vec<Shown>, AdminError> {
    let found: Vec<(Backup, Vec<Stands>)> = app.database.write(|tx| {
        let with_volumes = |backup: Backup| backups::volumes_of(tx, &backup).map(|volumes| (backup, volumes));
        backups::list(tx)?.into_iter().map(with_volumes).collect()
    })?;
    let shown = |(backup, volumes): (Backup, Vec<Stands>)| {
        let kept_until_ns = match backup.state {
            State::Complete => Some(kept_until(&app.snapshots, &backup.uid)),
            State::Registered => Some(Some(backup.keep_until_ns.unwrap_or(u64::MAX))),
            _ => None,
        };
        let judged = backup.point_ns.zip(kept_until_ns);
        let judged = judged.map(|(point_ns, kept)| judge(point_ns, kept, &volumes, now_ns()));
        (backup, judged)
    };
    Ok(found.into_iter().map(shown).collect())
}

/// How many are being made.
pub(crate) fn running(all: &[Shown]) -> u64 {
    all.iter().filter(|(backup, _)| backup.state == State::Running).count() as u64
}

/// What an operator should know who has said nothing about backups.
pub(crate) fn warnings(all: &[Shown], volumes: u64) -> Vec<String> {
    let whole = |(_, judged): &Shown| judged.as_ref().is_some_and(|j| j.wholeness == Wholeness::Whole);
    match volumes > 0 && !all.iter().any(whole) {
        true => vec![
            "no backup is known that is whole: a copy of the servers that is older than the retention of a volume cannot be \
             whole (chronofs backup create, or backup schedule create)"
                .to_owned(),
        ],
        false => Vec::new(),
    }
}

/// Until when a snapshot's set is kept, if it is; without end: `u64::MAX`.
fn kept_until(snapshots: &Snapshots, uid: &str) -> Option<u64> {
    let record = snapshots.find(&uid.parse().ok()?)?;
    let kept = record.state == SnapshotState::Complete;
    // One whose time is over and that is still complete is read by a clone, or goes in a moment.
    kept.then(|| record.intent.keep_until_ns.filter(|until_ns| *until_ns > now_ns()).unwrap_or(u64::MAX))
}

/// Deletes a backup that is over; `lost`: the place of backups is not there any more, so only what is known here goes.
pub(crate) async fn delete(
    app: &Arc<App>,
    uid: SnapshotUid,
    unlock: Option<Unlock>,
    dest: Option<String>,
) -> Result<u64, AdminError> {
    let asked = uid.to_string();
    let known = app.database.run(move |tx| backups::find(tx, &asked)).await?;
    let in_use = |why: String| AdminError::InUse { what: "backup", name: uid.to_string(), users: vec![why] };
    if known.as_ref().is_some_and(|backup| backup.state == State::Running) {
        return Err(in_use("itself: it is being made".to_owned()));
    }
    if known.is_none() && dest.is_none() {
        return Err(AdminError::NotOpened(format!(
            "no backup {uid} is known; chronofs backup list shows which are; one that only its place knows is deleted with \
             --dest"
        )));
    }
    let _turn = app.backups.turn().map_err(|busy| in_use(busy.why))?;
    let mut freed = 0;
    let dest = dest.or_else(|| known.map(|backup| backup.dest));
    if let (Some(unlock), Some(dest)) = (unlock, dest.filter(|dest| !dest.is_empty())) {
        let (asking, wanted, owner) = (app.clone(), uid.clone(), app.backups.owner.clone());
        freed = blocking(move || {
            let place = place_of(&asking, &dest)?.open().map_err(refused)?;
            let depot = Depot::open(place, unlock).map_err(refused)?;
            let lease = depot.lease(&owner, &format!("deletion of {wanted}"), now_ns()).map_err(refused)?;
            let known = known_in(&asking, depot.id())?;
            let deleted = match depot.set(&wanted) {
                // One that failed has no manifest, but perhaps pieces.
                Err(Error::NoBackup { .. }) => {
                    let others: Vec<_> = known.into_iter().filter(|uid| *uid != wanted).collect();
                    depot.sweep(&others)
                }
                _ => depot.delete(&wanted, &known),
            };
            depot.give_back(lease, now_ns()).map_err(refused)?;
            deleted.map_err(refused)
        })
        .await?;
    }
    // Only now nothing need be kept for it any more.
    let (app, asked) = (app.clone(), uid);
    blocking(move || {
        app.snapshots.delete(&asked)?;
        app.database.write(|tx| backups::remove(tx, asked.as_str()))
    })
    .await?;
    Ok(freed)
}
