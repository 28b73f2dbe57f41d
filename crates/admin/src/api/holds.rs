//! Holds: instants of volumes that are kept beyond their windows. What holds is a row of the metadata server and a pin in the
//! block store; the record here says who wanted it, and sees to it that what was not acknowledged, or is to end, ends.

use super::auth::Who;
use super::questions::Silent;
use super::{Answer, App, Body, Created, Deleted, created};
use crate::AdminError;
use crate::db::holds::{self, Record, Stage};
use crate::db::{backups, now_ns, shown, stores, volumes};
use crate::model::{Hold, Holds, NewHold, Role};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use chronofs_core::Version;
use chronofs_wire::question::{Asked, HeldSaid, KeepInstant, Said};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const WORD: &str = "hold";
/// Whose it is what is kept for a copy that others made, as servers say it.
const COPY: &str = "registered copy";
/// A hold has to be durable by then: the row, and the pin in the block store, each after its instant.
const KEEP_WITHIN: Duration = Duration::from_secs(20);
/// Whoever says *now* may have a clock that is ahead by so much; metadata servers wait as long for the instant.
const AHEAD_NS_MAX: u64 = 5_000_000_000;
/// How long a server may take to say what it holds.
const SAY_WITHIN: Duration = Duration::from_secs(3);
/// How often what is to end is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Making one is over after so long, however it went.
const ASKED_MAX_NS: u64 = 60_000_000_000;
/// Of a record whose server is away.
const NOT_ASKED: &str = "its metadata server has not answered just now: what else it holds is not listed";
/// The longest reason, in bytes.
const REASON_MAX: usize = 500;

fn check(new: &NewHold, now_ns: u64) -> Result<(u64, u64), AdminError> {
    let invalid = |why: String| Err(AdminError::Invalid(why));
    let (from, to) = (new.from_ns, new.to_ns.unwrap_or(new.from_ns));
    if from > to {
        return invalid(format!("a hold from {} to {} ends before it begins", Version(from), Version(to)));
    }
    if to > now_ns.saturating_add(AHEAD_NS_MAX) {
        return invalid(format!(
            "{} has not come yet, it is {}: a hold is of the past",
            Version(to),
            Version(now_ns)
        ));
    }
    if new.until_ns.is_some_and(|until_ns| until_ns <= now_ns) {
        return invalid("a hold has to end in the future (until)".to_owned());
    }
    if new.reason.trim().is_empty() || new.reason.len() > REASON_MAX {
        return invalid(format!("a hold needs a reason, of at most {REASON_MAX} bytes"));
    }
    Ok((from, to))
}

fn wanted(record: &Record, keep: bool) -> Result<KeepInstant, AdminError> {
    let id = |text: &str| {
        Uuid::parse_str(text).map_err(|_| AdminError::Internal(format!("'{text}' is not an id")))
    };
    Ok(KeepInstant {
        id: id(&record.id)?,
        at_ns: keep.then_some(record.from_ns),
        to_ns: Some(record.to_ns),
        ends_ns: record.ends_ns,
        note: format!("{}: {}", record.owner, record.reason),
        volume: Some(id(&record.volume)?),
        hold: true,
    })
}

/// Keep an instant or a span of a volume beyond its window
///
/// When this is answered with 201 the hold is durable and in force.
#[utoipa::path(post, path = "/v1/holds", request_body = NewHold,
    responses((status = 201, body = Hold)), security(("token" = [])))]
pub(super) async fn create(who: Who, State(app): State<Arc<App>>, Body(new): Body<NewHold>) -> Created<Hold> {
    who.must_be(Role::Operator)?;
    let now_ns = now_ns();
    let (from_ns, to_ns) = check(&new, now_ns)?;
    let owner = who.name.clone();
    let record = app.database.run(move |tx| {
        let found = volumes::find(tx, &new.volume)?;
        let record = Record {
            id: Uuid::new_v4().to_string(),
            volume: found.volume.id,
            name: found.volume.name,
            metadata_store: found.metadata_store,
            from_ns,
            to_ns,
            owner,
            reason: new.reason,
            created_ns: now_ns,
            ends_ns: new.until_ns,
            stage: Stage::Asked,
        };
        holds::save(tx, &record)?;
        Ok(record)
    });
    let record = record.await?;
    // What was begun goes on when whoever asked has left.
    let (task, asked) = (app.clone(), record.clone());
    let made = tokio::spawn(async move { make(&task, &asked).await }).await;
    made.map_err(|e| AdminError::Internal(format!("the task ended: {e}")))??;
    who.did("create", WORD, &record.id);
    let record = Record { stage: Stage::Kept, ..record };
    Ok(created(Hold { detail: None, ..of_record(&record, None) }))
}

async fn make(app: &Arc<App>, record: &Record) -> Result<(), AdminError> {
    let kept = Asked::Keep(wanted(record, true)?);
    let said = app.questions.ask(&record.metadata_store, kept, KEEP_WITHIN).await;
    let id = record.id.clone();
    let away = |what: &str| {
        AdminError::Unavailable(format!(
            "the metadata server of volume '{}' has not answered: {what}; see chronofs cli --exec status, and try again",
            record.name
        ))
    };
    match said {
        Ok(Said::Kept { problem: None }) => {
            let kept = app.database.run(move |tx| holds::go(tx, &id, Stage::Asked, Stage::Kept)).await?;
            if kept { Ok(()) } else { Err(away("the hold was ended meanwhile")) }
        }
        Ok(Said::Kept { problem: Some(why) }) => {
            end_soon(app, record).await?;
            Err(AdminError::Invalid(why))
        }
        Err(Silent::NotTaken) => {
            app.database.run(move |tx| holds::remove(tx, &id)).await?;
            Err(away("nothing is held"))
        }
        Ok(_) | Err(Silent::NotAnswered) => {
            // It is not waited for a second time.
            app.database.run(move |tx| holds::go(tx, &id, Stage::Asked, Stage::Ending)).await?;
            Err(away("nothing is held, and what it may have begun is taken back"))
        }
    }
}

/// Has a hold end: now, or as soon as its server answers.
async fn end_soon(app: &Arc<App>, record: &Record) -> Result<bool, AdminError> {
    let ending = Record { stage: Stage::Ending, ..record.clone() };
    app.database.run(move |tx| holds::save(tx, &ending)).await?;
    end(app, record).await
}

/// Whether its server has let go of it.
async fn end(app: &Arc<App>, record: &Record) -> Result<bool, AdminError> {
    let released = Asked::Keep(wanted(record, false)?);
    match app.questions.ask(&record.metadata_store, released, KEEP_WITHIN).await {
        Ok(Said::Kept { problem: None }) => {
            let id = record.id.clone();
            app.database.run(move |tx| holds::remove(tx, &id)).await?;
            Ok(true)
        }
        Ok(Said::Kept { problem: Some(why) }) => {
            tracing::warn!(
                hold = record.id,
                why,
                "a hold that is to end cannot be ended now; it is tried again"
            );
            Ok(false)
        }
        _ => Ok(false),
    }
}

/// What servers hold, by their stores,
struct Told {
    held: BTreeMap<String, Vec<HeldSaid>>,
    /// and the stores of which nothing is known, each with the reason.
    silent: Vec<String>,
}

impl Told {
    /// Why it is not known whether something is held, if so.
    fn check_whole(&self, id: &str) -> Result<(), AdminError> {
        if self.silent.is_empty() {
            return Ok(());
        }
        Err(AdminError::Unavailable(format!(
            "hold '{id}' is at no metadata server that has answered, but not all have: {}; see chronofs cli --exec status, and try \
             again",
            self.silent.join("; ")
        )))
    }
}

async fn told(app: &Arc<App>) -> Result<Told, AdminError> {
    let stores = app.database.run(stores::list_metadata).await?;
    let each = stores.into_iter().map(|store| async move {
        let said = app.questions.ask(&store.id, Asked::Holds, SAY_WITHIN).await;
        let why = match said {
            Ok(Said::Holds(held)) => return Ok((store.id, held)),
            Ok(Said::Trouble(why)) => why,
            Ok(_) => "its server answered another question".to_owned(),
            Err(Silent::NotTaken) => "its server cannot be reached".to_owned(),
            Err(Silent::NotAnswered) => "its server has not answered".to_owned(),
        };
        Err(format!("metadata store '{}': {why}", store.name))
    });
    let mut told = Told { held: BTreeMap::new(), silent: Vec::new() };
    for said in futures::future::join_all(each).await {
        match said {
            Ok((store, held)) => drop(told.held.insert(store, held)),
            Err(why) => told.silent.push(why),
        }
    }
    Ok(told)
}

fn of_record(record: &Record, held: Option<&Vec<HeldSaid>>) -> Hold {
    let there = held.map(|held| held.iter().any(|held| held.id.to_string() == record.id));
    let (state, detail) = match (record.stage, there) {
        (Stage::Kept, Some(true)) => ("held", None),
        (Stage::Kept, None) => ("held", Some(NOT_ASKED.to_owned())),
        (Stage::Kept, Some(false)) => (
            "lost",
            Some("its metadata server does not have it: it was restored from an older copy, or the volume is gone".to_owned()),
        ),
        (Stage::Asked, _) => ("ending", Some("it was not acknowledged yet".to_owned())),
        (Stage::Ending, _) => ("ending", Some("its metadata server has not let go of it yet".to_owned())),
    };
    Hold {
        id: record.id.clone(),
        volume: record.name.clone(),
        from: shown(record.from_ns),
        to: shown(record.to_ns),
        owner: record.owner.clone(),
        reason: record.reason.clone(),
        created: shown(record.created_ns),
        ends: record.ends_ns.map(shown),
        state: state.to_owned(),
        detail,
    }
}

/// A hold that this server has no record of.
fn of_server(held: &HeldSaid) -> Hold {
    let (owner, reason) = match held.note.split_once(": ") {
        Some((account, reason)) if held.owner == WORD => (account.to_owned(), reason.to_owned()),
        _ => (held.owner.clone(), held.note.clone()),
    };
    Hold {
        id: held.id.to_string(),
        volume: held.name.clone(),
        from: shown(held.from_ns),
        to: shown(held.to_ns),
        owner,
        reason,
        created: shown(held.made_ns),
        ends: held.ends_ns.map(shown),
        state: "held".to_owned(),
        detail: None,
    }
}

async fn all(app: &Arc<App>) -> Result<(Vec<Hold>, Told), AdminError> {
    let now_ns = now_ns();
    let records = app.database.run(holds::list).await?;
    let told = told(app).await?;
    let live = records.iter().filter(|record| !record.is_over(now_ns));
    let mut all: Vec<Hold> =
        live.map(|record| of_record(record, told.held.get(&record.metadata_store))).collect();
    let known = |held: &HeldSaid| records.iter().any(|record| record.id == held.id.to_string());
    all.extend(told.held.values().flatten().filter(|held| !known(held)).map(of_server));
    Ok((all, told))
}

/// List holds, the newest first; those of servers that do not answer only as far as this one made them
#[utoipa::path(get, path = "/v1/holds", responses((status = 200, body = Holds)), security(("token" = [])))]
pub(super) async fn list(who: Who, State(app): State<Arc<App>>) -> Answer<Holds> {
    who.must_be(Role::Viewer)?;
    let (holds, Told { silent, .. }) = all(&app).await?;
    Ok(Json(Holds { holds, silent }))
}

/// An id as it stands in records and in what servers say: people may have it in capital letters, or without hyphens.
fn as_known(id: String) -> String {
    Uuid::parse_str(&id).map_or(id, |uuid| uuid.to_string())
}

fn unknown(id: &str) -> AdminError {
    AdminError::NotFound { what: WORD, name: id.to_owned() }
}

/// Show a hold
#[utoipa::path(get, path = "/v1/holds/{id}", params(("id" = String, Path)),
    responses((status = 200, body = Hold)), security(("token" = [])))]
pub(super) async fn show(who: Who, State(app): State<Arc<App>>, Path(id): Path<String>) -> Answer<Hold> {
    who.must_be(Role::Viewer)?;
    let id = as_known(id);
    let (all, told) = all(&app).await?;
    match all.into_iter().find(|hold| hold.id == id) {
        Some(found) => Ok(Json(found)),
        None => told.check_whole(&id).and(Err(unknown(&id))),
    }
}

/// End a hold
///
/// If its server is away it is written down, and the hold ends when the server is back.
#[utoipa::path(delete, path = "/v1/holds/{id}", params(("id" = String, Path)),
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn delete(who: Who, State(app): State<Arc<App>>, Path(id): Path<String>) -> Deleted {
    who.must_be(Role::Operator)?;
    let id = as_known(id);
    let asked = id.clone();
    match app.database.run(move |tx| holds::find(tx, &asked)).await? {
        Some(record) if record.stage == Stage::Asked => {
            return Err(AdminError::Conflict(format!("hold '{id}' is being made; try again in a moment")));
        }
        Some(record) => {
            end_soon(&app, &record).await?;
        }
        None => delete_foreign(&app, &id).await?,
    }
    who.did("delete", WORD, &id);
    Ok(StatusCode::NO_CONTENT)
}

/// Ends a hold that a server has and this one did not make.
async fn delete_foreign(app: &Arc<App>, id: &str) -> Result<(), AdminError> {
    let told = told(app).await?;
    let of = |held: &HeldSaid| held.id.to_string() == id;
    let found = told.held.iter().find_map(|(store, held)| Some((store, held.iter().find(|held| of(held))?)));
    let Some((store, held)) = found else { return delete_unlisted(app, &told, id).await };
    if held.owner == COPY {
        return delete_unlisted(app, &told, id).await;
    }
    let record = Record {
        id: id.to_owned(),
        volume: held.volume.to_string(),
        name: held.name.clone(),
        metadata_store: store.clone(),
        from_ns: held.from_ns,
        to_ns: held.to_ns,
        owner: held.owner.clone(),
        reason: held.note.clone(),
        created_ns: held.made_ns,
        ends_ns: held.ends_ns,
        stage: Stage::Ending,
    };
    end_soon(app, &record).await.map(drop)
}

/// Has every server let go of what this one has no record of: what is kept for a copy that is not registered here, as in a clone,
/// and what may be left of a hold that nobody has: a pin that came into the block store after it was given up, whose id a metadata
/// server names when it collects nothing because of it.
async fn delete_unlisted(app: &Arc<App>, told: &Told, id: &str) -> Result<(), AdminError> {
    let Ok(uuid) = Uuid::parse_str(id) else { return told.check_whole(id).and(Err(unknown(id))) };
    let copy = uuid.simple().to_string();
    if app.database.run(move |tx| backups::find(tx, &copy)).await?.is_some() {
        return Err(of_copy(uuid));
    }
    let note = String::new();
    let wanted =
        KeepInstant { id: uuid, at_ns: None, ends_ns: None, note, volume: None, to_ns: None, hold: true };
    let each =
        told.held.keys().map(|store| app.questions.ask(store, Asked::Keep(wanted.clone()), KEEP_WITHIN));
    for said in futures::future::join_all(each).await {
        match said {
            Ok(Said::Kept { problem: None }) => {}
            Ok(Said::Kept { problem: Some(why) }) => return Err(AdminError::Unavailable(why)),
            _ => {
                return Err(AdminError::Unavailable(format!(
                    "a metadata server has not said whether anything is left of hold '{id}': try again"
                )));
            }
        }
    }
    told.check_whole(id)
}

fn of_copy(id: Uuid) -> AdminError {
    let uid = id.simple();
    AdminError::Conflict(format!("it is kept for a registered copy: chronofs backup delete {uid} --forget"))
}

/// What is to be done about a record now.
#[derive(PartialEq, Eq, Debug)]
enum Due {
    /// The server has ended it by itself; its pin goes a day later.
    Forget,
    /// Whoever made it did not come to the end of that, though it is over for whoever asked.
    TakeBack,
    End,
    Nothing,
}

impl Due {
    fn of(record: &Record, now_ns: u64) -> Due {
        match record.stage {
            _ if record.is_over(now_ns) => Due::Forget,
            Stage::Ending => Due::End,
            Stage::Asked if record.created_ns.saturating_add(ASKED_MAX_NS) <= now_ns => Due::TakeBack,
            Stage::Asked | Stage::Kept => Due::Nothing,
        }
    }
}

/// The maker of a hold failed before it could write down how that went: nobody was told that it is in force.
async fn take_back(app: &Arc<App>, record: &Record) -> Result<(), AdminError> {
    let id = record.id.clone();
    let ending = app.database.run(move |tx| holds::go(tx, &id, Stage::Asked, Stage::Ending)).await?;
    if ending { end(app, record).await.map(drop) } else { Ok(()) }
}

/// Ends what is to end, and forgets what is over, until the server stops.
pub(crate) async fn watch(app: Arc<App>) {
    loop {
        match app.database.run(holds::list).await {
            Ok(records) => {
                let now_ns = now_ns();
                for record in records {
                    let id = record.id.clone();
                    let done = match Due::of(&record, now_ns) {
                        Due::Forget => app.database.run(move |tx| holds::remove(tx, &id)).await,
                        Due::TakeBack => take_back(&app, &record).await,
                        Due::End => end(&app, &record).await.map(drop),
                        Due::Nothing => Ok(()),
                    };
                    if let Err(error) = done {
                        tracing::warn!(hold = record.id, %error, "a hold that is to end stays for now");
                    }
                }
            }
            Err(error) => tracing::error!(%error, "holds cannot be read; they stay in force"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_that_was_asked_for_and_never_got_further_is_taken_back_after_a_minute() {
        let of = |stage, ends_ns, now_ns| {
            let text = || "x".to_owned();
            let record = Record {
                id: text(),
                volume: text(),
                name: text(),
                metadata_store: text(),
                from_ns: 1,
                to_ns: 1,
                owner: text(),
                reason: text(),
                created_ns: 1000,
                ends_ns,
                stage,
            };
            Due::of(&record, now_ns)
        };
        let late_ns = 1000 + ASKED_MAX_NS;
        assert_eq!(of(Stage::Asked, None, late_ns - 1), Due::Nothing);
        assert_eq!(of(Stage::Asked, None, late_ns), Due::TakeBack);
        assert_eq!(of(Stage::Asked, Some(1), late_ns), Due::Forget);
        assert_eq!((of(Stage::Kept, None, late_ns), of(Stage::Ending, None, 1)), (Due::Nothing, Due::End));
        assert!(u128::from(ASKED_MAX_NS) > 2 * KEEP_WITHIN.as_nanos(), "asked, and asked to let go");
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anybody_is_asked() {
        let new = |from_ns, to_ns, reason: &str, until_ns| NewHold {
            volume: "v".to_owned(),
            from_ns,
            to_ns,
            reason: reason.to_owned(),
            until_ns,
        };
        let ok = |new: NewHold| check(&new, 100);
        let late = AHEAD_NS_MAX + 101;
        assert_eq!(ok(new(7, None, "audit", None)).unwrap(), (7, 7));
        assert_eq!(ok(new(7, Some(100), "audit", Some(101))).unwrap(), (7, 100));
        assert!(ok(new(late - 1, None, "audit", None)).is_ok(), "a clock may be ahead");
        for (bad, why) in [
            (new(9, Some(8), "audit", None), "ends before it begins"),
            (new(9, Some(late), "audit", None), "has not come yet"),
            (new(late, None, "audit", None), "has not come yet"),
            (new(9, None, " ", None), "needs a reason"),
            (new(9, None, &"x".repeat(501), None), "needs a reason"),
            (new(9, None, "audit", Some(100)), "end in the future"),
        ] {
            let said = ok(bad).unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
    }
}
