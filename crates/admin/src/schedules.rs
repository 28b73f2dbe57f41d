//! Backups by schedule: made when they are due, deleted when their time is over, and red when the newest recoverable point is
//! too old, for whatever reason. Where there is no schedule, one a day is expected all the same: silence is no success.

use crate::AdminError;
use crate::api::App;
use crate::backups::{self, Shown, Wanted, refused};
use crate::db::backups as rows;
use crate::db::{audit, now_ns, snapshots as records, volumes};
use chronofs_backup::record::{Backup, State, Wholeness};
use chronofs_backup::schedule::{Schedule, When};
use chronofs_backup::{Depot, Key, Unlock};
use chronofs_core::Retention;
use chronofs_snapshot::SnapshotUid;
use chronofs_snapshot::protocol::{Fault, Record, State as SnapshotState};
use rusqlite::Transaction;
use std::sync::Arc;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const SECOND_NS: u64 = 1_000_000_000;
/// Records of backups that failed are forgotten after a week.
const FAILED_FOR_NS: u64 = 7 * 86_400 * SECOND_NS;

/// A schedule, and how it stands.
pub(crate) struct Health {
    pub(crate) schedule: Schedule,
    /// Its newest recoverable point.
    pub(crate) point_ns: Option<u64>,
    /// How old that is, in seconds.
    pub(crate) age_s: u64,
    /// What is wrong.
    pub(crate) fault: Option<String>,
}

/// For whom the key of a schedule is sealed.
fn owner(name: &str) -> String {
    format!("backup schedule {name}")
}

/// Refuses to keep backups longer than volumes keep their past, unless that is meant.
fn check_keep(tx: &Transaction<'_>, schedule: &Schedule, extend: bool) -> Result<(), AdminError> {
    let shown = |keep: Option<u64>| keep.map_or(Retention::Forever, Retention::Seconds);
    let shorter = volumes::list(tx)?.into_iter().map(|found| found.volume).find(|volume| {
        match (volume.retention, schedule.keep_seconds) {
            (Retention::Forever, _) => false,
            (Retention::None, _) | (_, None) => true,
            (Retention::Seconds(kept), Some(keep)) => kept < keep,
        }
    });
    match shorter.filter(|_| !extend) {
        Some(volume) => Err(AdminError::Invalid(format!(
            "volume '{}' keeps its past for {}, and backups would be kept for {}: what they need in the block stores would be \
             kept as long, which takes room there; say so with --extend, or keep backups for a shorter time (--keep)",
            volume.name,
            volume.retention,
            shown(schedule.keep_seconds)
        ))),
        None => Ok(()),
    }
}

/// Makes a schedule. The key, or the passphrase, opens its place, or nothing is made.
pub(crate) async fn create(
    app: &Arc<App>,
    schedule: Schedule,
    unlock: Unlock,
    extend: bool,
) -> Result<Schedule, AdminError> {
    crate::model::check_name("backup-schedule", &schedule.name)?;
    schedule.when.check().map_err(AdminError::Invalid)?;
    let app = app.clone();
    backups::blocking(move || {
        let cluster = app.database.write(|tx| {
            check_keep(tx, &schedule, extend)?;
            records::cluster(tx)
        })?;
        let place = backups::place_of(&app, &schedule.dest)?.open().map_err(refused)?;
        let depot = Depot::begin(place, unlock, &cluster).map_err(refused)?;
        let sealed = app.secrets.seal(&owner(&schedule.name), &depot.key().reveal())?;
        app.database.write(|tx| rows::create_schedule(tx, &schedule, &sealed))?;
        Ok(schedule)
    })
    .await
}

/// All schedules, each with how it stands.
pub(crate) fn health(app: &App) -> Result<Vec<Health>, AdminError> {
    let schedules = app.database.write(rows::schedules)?;
    if schedules.is_empty() {
        return Ok(Vec::new());
    }
    let backups = backups::all(app)?;
    let now_ns = now_ns();
    let stand = |schedule: Schedule| {
        let of_it = |shown: &&Shown| shown.0.schedule.as_deref() == Some(&schedule.name);
        let point_ns = backups.iter().filter(of_it).filter_map(recoverable).max();
        let (age_s, fault) = (schedule.age_s(point_ns, now_ns), schedule.fault(point_ns, now_ns));
        Health { schedule, point_ns, age_s, fault }
    };
    Ok(schedules.into_iter().map(stand).collect())
}

/// The instant that can be recovered from a backup, if it is whole.
fn recoverable((backup, judged): &Shown) -> Option<u64> {
    let whole = judged.as_ref().is_some_and(|judged| judged.wholeness == Wholeness::Whole);
    backup.point_ns.filter(|_| whole)
}

/// The same; where there is no schedule, how backups stand all the same, under an empty name.
pub(crate) fn standing(app: &App) -> Result<Vec<Health>, AdminError> {
    let known = health(app)?;
    if !known.is_empty() {
        return Ok(known);
    }
    let (since_ns, sets) = app.database.write(|tx| Ok((rows::wanted_since(tx)?, records::list(tx)?)))?;
    let point_ns = newest(&backups::all(app)?, &sets);
    Ok(unscheduled(point_ns, since_ns, now_ns()).into_iter().collect())
}

/// The newest instant that can be recovered from any backup, registered copy or disk snapshot.
fn newest(all: &[Shown], sets: &[Record]) -> Option<u64> {
    // The set of a backup counts only with its manifest.
    let alone = sets.iter().filter(|set| {
        let uid = set.intent.attempt.uid.as_str();
        set.state == SnapshotState::Complete && all.iter().all(|(backup, _)| backup.uid != uid)
    });
    all.iter().filter_map(recoverable).chain(alone.map(Record::point_ns)).max()
}

/// How backups stand where nobody has said when they are to be made: one a day is expected since there is something to lose.
fn unscheduled(point_ns: Option<u64>, since_ns: Option<u64>, now_ns: u64) -> Option<Health> {
    let when = When::Daily(0);
    let schedule = Schedule {
        name: String::new(),
        dest: String::new(),
        when,
        keep_seconds: None,
        limit_seconds: Schedule::limit_for(when),
        created_ns: since_ns?,
        tried_ns: None,
        made_ns: None,
        problem: None,
    };
    let age_s = schedule.age_s(point_ns, now_ns);
    // A cluster that was restored has as long as a new one.
    let late_s = age_s.min(schedule.age_s(None, now_ns));
    let limit_s = schedule.limit_seconds;
    let fault = (late_s > limit_s).then(|| {
        let found = match point_ns {
            Some(_) => format!("the newest recoverable point is {age_s} s old"),
            None => format!("there is no recoverable point after {age_s} s"),
        };
        format!(
            "{found}, and there is no schedule of backups, without which it may be {limit_s} s old: make one (chronofs backup schedule \
             create), or say of copies that others make when they were made (chronofs backup register)"
        )
    });
    Some(Health { schedule, point_ns, age_s, fault })
}

/// Makes what is due, for as long as the server runs.
pub(crate) async fn run(app: Arc<App>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if app.backups.is_busy() {
            continue;
        }
        let schedules = match app.database.run(rows::schedules).await {
            Ok(schedules) => schedules,
            Err(error) => {
                tracing::error!(%error, "schedules of backups cannot be read");
                continue;
            }
        };
        if let Some(due) = schedules.into_iter().find(|schedule| schedule.is_due(now_ns())) {
            turn(&app, due).await;
        }
    }
}

/// One backup by a schedule, to its end.
async fn turn(app: &Arc<App>, schedule: Schedule) {
    let name = schedule.name.clone();
    let tried_ns = now_ns();
    // Before anything is done: whatever becomes of this process, the next try is not at once.
    let noted = note(app, &name, move |schedule| schedule.tried_ns = Some(tried_ns)).await;
    let made = match noted {
        Ok(()) => make(app, &schedule).await,
        Err(error) => Err(error.to_string()),
    };
    let noted = match made {
        Ok(()) => {
            note(app, &name, move |schedule| {
                (schedule.made_ns, schedule.problem) = (Some(tried_ns), None);
            })
            .await
        }
        Err(why) => {
            tracing::warn!(schedule = name, why, "no backup was made by schedule");
            note(app, &name, move |schedule| schedule.problem = Some(why)).await
        }
    };
    if let Err(error) = noted {
        tracing::error!(%error, "it cannot be written down how a backup by schedule ended");
    }
    if let Err(why) = expire(app, &schedule).await {
        tracing::warn!(schedule = name, why, "backups whose time is over cannot be deleted now");
        let noted = note(app, &name, move |schedule| {
            schedule.problem = Some(match schedule.problem.take() {
                Some(earlier) => format!("{earlier}; {why}"),
                None => why,
            });
        });
        if let Err(error) = noted.await {
            tracing::error!(%error, "it cannot be written down which backup cannot be deleted");
        }
    }
}

async fn note(
    app: &Arc<App>,
    name: &str,
    change: impl FnOnce(&mut Schedule) + Send + 'static,
) -> Result<(), AdminError> {
    let name = name.to_owned();
    app.database.run(move |tx| rows::change_schedule(tx, &name, change)).await
}

async fn key_of(app: &Arc<App>, name: &str) -> Result<Key, AdminError> {
    let asked = name.to_owned();
    let sealed = app.database.run(move |tx| rows::schedule_key(tx, &asked)).await?;
    Key::parse(&app.secrets.unseal(&owner(name), &sealed)?).map_err(refused)
}

/// What a schedule does by itself is in the audit log, too: begun before it is done, and how it ended.
async fn audited<T>(
    app: &Arc<App>,
    schedule: &Schedule,
    action: &str,
    uid: &str,
    doing: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let object = format!("backup {uid}");
    let (actor, address) = (format!("schedule {}", schedule.name), String::new());
    let attempt = audit::Attempt { actor, address, action: action.to_owned(), object: object.clone() };
    let begun = app.database.run(move |tx| audit::begin(tx, &attempt)).await;
    let row = begun.map_err(|error| error.to_string())?;
    let done = doing.await;
    let outcome = match &done {
        Ok(_) => audit::DONE.to_owned(),
        Err(why) => format!("failed: {why}"),
    };
    // What was done is done; its row says then that the end is not known.
    let ended = app.database.run(move |tx| audit::end(tx, row, &object, &outcome, false)).await;
    if let Err(error) = ended {
        tracing::error!(%error, uid, action, "the audit log does not say how this ended");
    }
    done
}

async fn make(app: &Arc<App>, schedule: &Schedule) -> Result<(), String> {
    let uid = SnapshotUid::from_bytes(chronofs_wire::identity::random().map_err(|e| e.to_string())?);
    audited(app, schedule, "create", uid.as_str(), make_as(app, schedule, uid.clone())).await
}

async fn make_as(app: &Arc<App>, schedule: &Schedule, uid: SnapshotUid) -> Result<(), String> {
    let said = |error: AdminError| error.to_string();
    let keep_ns = schedule.keep_seconds.map(|seconds| seconds.saturating_mul(SECOND_NS));
    let wanted = Wanted {
        uid: uid.clone(),
        dest: schedule.dest.clone(),
        unlock: key_of(app, &schedule.name).await.map_err(said)?.into(),
        keep_until_ns: keep_ns.map(|keep_ns| now_ns().saturating_add(keep_ns)),
        schedule: Some(schedule.name.clone()),
    };
    if let Err(Fault { why, .. }) = backups::begin(app, wanted).await.map_err(said)? {
        return Err(why);
    }
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let asked = uid.to_string();
        match app.database.run(move |tx| rows::find(tx, &asked)).await.map_err(said)? {
            Some(backup) if backup.state == State::Running => {}
            Some(backup) if backup.state == State::Complete => return Ok(()),
            Some(backup) => return Err(backup.why.unwrap_or_default()),
            None => return Err("its record is gone".to_owned()),
        }
    }
}

/// Deletes backups of a schedule whose time is over, and forgets those that failed long ago. One that cannot be deleted is in
/// nobody's way: the others go, and what is told is the first that did not.
async fn expire(app: &Arc<App>, schedule: &Schedule) -> Result<(), String> {
    let all = app.database.run(rows::list).await.map_err(|error| error.to_string())?;
    let mut first = Ok(());
    for backup in over(all, &schedule.name, now_ns()) {
        let Ok(uid) = backup.uid.parse::<SnapshotUid>() else { continue };
        let doing = delete(app, schedule, &backup, uid);
        match audited(app, schedule, "delete", &backup.uid, doing).await {
            Ok(freed) => {
                tracing::info!(uid = backup.uid, freed, "the time of a backup is over; it is deleted");
            }
            Err(why) => {
                tracing::warn!(uid = backup.uid, why, "a backup whose time is over cannot be deleted now");
                let why = format!("backup {}, whose time is over, cannot be deleted: {why}", backup.uid);
                first = first.and(Err(why));
            }
        }
    }
    first
}

/// The backups of a schedule that are to go.
fn over(all: Vec<Backup>, schedule: &str, now_ns: u64) -> impl Iterator<Item = Backup> {
    let of_it = all.into_iter().filter(move |backup| backup.schedule.as_deref() == Some(schedule));
    of_it.filter(move |backup| match backup.state {
        State::Complete => backup.keep_until_ns.is_some_and(|until_ns| until_ns <= now_ns),
        State::Failed => backup.started_ns.saturating_add(FAILED_FOR_NS) <= now_ns,
        _ => false,
    })
}

async fn delete(
    app: &Arc<App>,
    schedule: &Schedule,
    backup: &Backup,
    uid: SnapshotUid,
) -> Result<u64, String> {
    let said = |error: AdminError| error.to_string();
    let unlock: Option<Unlock> = match backup.state {
        State::Complete => Some(key_of(app, &schedule.name).await.map_err(said)?.into()),
        // Of one that failed only the record goes.
        _ => None,
    };
    backups::delete(app, uid, unlock, None).await.map_err(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_snapshot::protocol::{Attempt, Cut, Intent};
    use std::collections::BTreeMap;

    const HOUR_NS: u64 = 3600 * SECOND_NS;

    /// A complete disk snapshot with the cuts of these metadata stores.
    fn set(cuts: &[u64]) -> Record {
        let intent = Intent {
            attempt: Attempt { uid: "c50263df28be44ebb596f5c2a849adbb".parse().unwrap(), number: 1 },
            cluster: "c".to_owned(),
            program: "/bin/snap".to_owned(),
            arguments: Vec::new(),
            nodes: Vec::new(),
            started_ns: 5 * HOUR_NS,
            keep_until_ns: None,
            hold_ms: 1,
            run_ms: 1,
            ended: BTreeMap::new(),
        };
        let cuts = cuts.iter().enumerate().map(|(n, &cut)| (n.to_string(), Cut { store: cut, cut }));
        Record {
            intent,
            state: SnapshotState::Complete,
            ended_ns: None,
            cuts: cuts.collect(),
            bytes: BTreeMap::new(),
            held_ms: BTreeMap::new(),
            labels: BTreeMap::new(),
            code: None,
            failures: Vec::new(),
        }
    }

    #[test]
    fn a_metadata_store_without_a_commit_makes_no_disk_snapshot_look_old() {
        assert_eq!(newest(&[], &[set(&[9 * HOUR_NS, 7 * HOUR_NS])]), Some(7 * HOUR_NS));
        assert_eq!(newest(&[], &[set(&[9 * HOUR_NS, 0])]), Some(9 * HOUR_NS));
        assert_eq!(newest(&[], &[set(&[0])]), Some(5 * HOUR_NS), "when it began");
        let gone = Record { state: SnapshotState::Expired, ..set(&[9 * HOUR_NS]) };
        assert_eq!(newest(&[], &[gone]), None);
    }

    fn fault(point_ns: Option<u64>, since_ns: u64, now_ns: u64) -> Option<String> {
        unscheduled(point_ns, Some(since_ns), now_ns).unwrap().fault
    }

    #[test]
    fn without_a_schedule_the_newest_point_may_be_a_day_and_a_half_old_and_never_is_older_than_that() {
        let start = 1000 * HOUR_NS;
        assert!(unscheduled(None, None, start).is_none(), "nothing can be lost");
        // A new installation is quiet for as long.
        assert_eq!(fault(None, start, start + 36 * HOUR_NS), None);
        let never = fault(None, start, start + 37 * HOUR_NS).unwrap();
        for part in
            ["no recoverable point after 133200 s", "no schedule", "129600 s", "backup schedule create"]
        {
            assert!(never.contains(part), "{part}: {never}");
        }
        let point = start + 100 * HOUR_NS;
        assert_eq!(fault(Some(point), start, point + 36 * HOUR_NS), None);
        let old = fault(Some(point), start, point + 37 * HOUR_NS).unwrap();
        assert!(old.contains("the newest recoverable point is 133200 s old"), "{old}");
        // Restored from what is older than that.
        let restored = point + 200 * HOUR_NS;
        assert_eq!(fault(Some(point), restored, restored + 36 * HOUR_NS), None);
        assert!(fault(Some(point), restored, restored + 37 * HOUR_NS).is_some());
        let health = unscheduled(Some(point), Some(start), point + HOUR_NS).unwrap();
        assert_eq!((health.age_s, health.schedule.limit_seconds), (3600, 129_600));
    }
}
