//! The audit log: one mechanism for all routes. What an account begins is written down, durably, in the transaction that finds
//! out who asks, before the route is reached; how it ended, when it is answered. A process that dies in between leaves
//! *begun*. Attempts that are refused before anybody is known are gathered and written once a second.

use super::auth::Who;
use super::{Answer, App};
use crate::AdminError;
use crate::db::audit::{self, Attempt, DONE};
use crate::db::tokens::Identity;
use crate::model::{Audited, Role};
use axum::Json;
use axum::extract::{Query, Request, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use rusqlite::Transaction;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Refused attempts are written so often.
const GATHER: Duration = Duration::from_secs(1);
/// So many different ones are told apart meanwhile; further ones are counted together.
const APART_MAX: usize = 20;
/// How often what is old enough is removed.
const PRUNE_EVERY: u64 = 3600;
/// The longest path that is written down.
const PATH_MAX: usize = 200;
/// What is asked with a body: the first writes as well and says so itself, the other comes every 2 s from whoever follows a look.
const READS: [&str; 2] = ["/v1/keys", FOLLOW];
const FOLLOW: &str = "/v1/analyze/follow";
/// Routes of servers and mounts, which wait long for news and ask again for whatever they have left.
const SERVERS: [&str; 3] = ["/v1/meta/", "/v1/tlog/", "/v1/mount/"];

/// A request, for whoever finds out who asks. It goes along in the request's extensions.
pub(super) struct Entry {
    action: String,
    path: String,
    address: String,
    changes: bool,
    goes_on: bool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    actor: Option<String>,
    /// It may only read: all that it fails to change is refused, whatever is said of it.
    viewer: bool,
    /// The row that says that it began.
    row: Option<i64>,
    object: Option<String>,
}

/// Why a request was refused, in an answer's extensions; also of one that says so with 200.
#[derive(Clone, Copy)]
pub(crate) struct Refusal(pub(crate) &'static str);

fn actor(identity: &Identity) -> String {
    match identity {
        Identity::Account { name, .. } => format!("account {name}"),
        Identity::MetadataStore { name, .. } => format!("metadata-store {name}"),
        Identity::LogServer { id } => format!("log-server {id}"),
        Identity::Volume { name, .. } => format!("volume {name}"),
    }
}

/// The method if it is one that routes have. Any other is whatever a stranger likes, of any length, and stands in no row and no
/// label.
pub(super) fn method(request: &Request) -> &'static str {
    match *request.method() {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "OTHER",
    }
}

impl Entry {
    pub(super) fn new(request: &Request, route: &str, address: String) -> Arc<Entry> {
        let writes = !matches!(*request.method(), Method::GET | Method::HEAD);
        let changes = writes && !READS.contains(&route);
        let goes_on = writes && route != FOLLOW && !SERVERS.iter().any(|servers| route.starts_with(servers));
        let path = request.uri().path().chars().take(PATH_MAX).collect();
        Arc::new(Entry {
            action: format!("{} {route}", method(request)),
            path,
            address,
            changes,
            goes_on,
            inner: Mutex::default(),
        })
    }

    /// What an operator begins is done to its end and written down, also when whoever asked has left.
    pub(super) fn goes_on(&self) -> bool {
        self.goes_on
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attempt(&self, actor: &str) -> Attempt {
        let (actor, address) = (actor.to_owned(), self.address.clone());
        Attempt { actor, address, action: self.action.clone(), object: self.path.clone() }
    }

    /// The token of nobody, so far.
    pub(super) fn asks(&self, token: String) {
        self.lock().actor = Some(format!("token {token}"));
    }

    /// Somebody is known. What an account is about to change is written down; gives the number of that row.
    pub(super) fn known(&self, tx: &Transaction<'_>, identity: &Identity) -> Result<Option<i64>, AdminError> {
        let begins =
            self.changes && matches!(identity, Identity::Account { .. }) && self.lock().row.is_none();
        begins.then(|| audit::begin(tx, &self.attempt(&actor(identity)))).transpose()
    }

    /// What it wrote down is committed. Not before: the number of a row that is taken back is given again, to another request.
    pub(super) fn begun(&self, identity: &Identity, row: Option<i64>) {
        let mut inner = self.lock();
        inner.actor = Some(actor(identity));
        inner.viewer = matches!(identity, Identity::Account { role: Role::Viewer, .. });
        inner.row = inner.row.or(row);
    }

    /// Of a route that both reads and writes: this one writes.
    pub(super) async fn writes(&self, app: &App) -> Result<(), AdminError> {
        let attempt = self.attempt(self.lock().actor.as_deref().unwrap_or("nobody"));
        let row = app.database.run(move |tx| audit::begin(tx, &attempt)).await?;
        self.lock().row = Some(row);
        Ok(())
    }

    /// What it was done with, better than the path says it.
    pub(super) fn did(&self, what: &str, name: &str) {
        self.lock().object = Some(format!("{what} {name}"));
    }
}

fn is_refused(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::MISDIRECTED_REQUEST)
}

/// Why an answer is a refusal, if it is one.
pub(super) fn refusal(response: &Response) -> Option<&'static str> {
    response.extensions().get::<Refusal>().map(|refusal| refusal.0)
}

/// A request is answered.
pub(super) async fn answered(app: &App, entry: &Entry, status: StatusCode, refusal: Option<&'static str>) {
    let failed = !status.is_success();
    let outcome = refusal.unwrap_or_else(|| if failed { status.as_str() } else { DONE }).to_owned();
    let (row, actor, object, viewer) = {
        let mut inner = entry.lock();
        (inner.row.take(), inner.actor.clone(), inner.object.take(), inner.viewer)
    };
    let refused = is_refused(status) || (viewer && failed);
    if let Some(row) = row {
        let object = object.unwrap_or_else(|| entry.path.clone());
        let ended = app.database.run(move |tx| audit::end(tx, row, &object, &outcome, refused));
        if let Err(error) = ended.await {
            tracing::error!(%error, "the audit log does not say how a change ended");
        }
    } else if is_refused(status) {
        app.refused.add(entry.attempt(actor.as_deref().unwrap_or("nobody")), outcome);
    }
}

/// Attempts that were refused and are not written down yet.
#[derive(Default)]
pub(super) struct Refused(Mutex<BTreeMap<(Attempt, String), u64>>);

impl Refused {
    fn add(&self, attempt: Attempt, outcome: String) {
        let mut gathered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (attempt, outcome);
        if gathered.len() < APART_MAX || gathered.contains_key(&key) {
            *gathered.entry(key).or_default() += 1;
            return;
        }
        let others = || "others".to_owned();
        let others = Attempt { actor: others(), address: others(), action: others(), object: others() };
        *gathered.entry((others, key.1)).or_default() += 1;
    }

    fn take(&self) -> Vec<(Attempt, String, u64)> {
        let gathered = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        gathered.into_iter().map(|((attempt, outcome), times)| (attempt, outcome, times)).collect()
    }
}

/// Writes what was gathered, once.
pub(crate) async fn flush(app: &App) {
    let gathered = app.refused.take();
    if !gathered.is_empty()
        && let Err(error) = app.database.run(move |tx| audit::refused(tx, &gathered)).await
    {
        tracing::error!(%error, "refused attempts are missing in the audit log");
    }
}

/// Writes refused attempts down, and removes what is old enough, until the server stops.
pub(crate) async fn watch(app: Arc<App>) {
    for second in 0u64.. {
        if second.is_multiple_of(PRUNE_EVERY)
            && let Err(error) = app.database.run(audit::prune).await
        {
            tracing::error!(%error, "the audit log cannot be pruned");
        }
        flush(&app).await;
        tokio::time::sleep(GATHER).await;
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    since_ns: Option<u64>,
    who: Option<String>,
    limit: Option<u32>,
}

/// List who did what, the newest first
#[utoipa::path(get, path = "/v1/audit",
    params(("since_ns" = Option<u64>, Query), ("who" = Option<String>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = [Audited])), security(("token" = [])))]
pub(super) async fn list(
    who: Who,
    State(app): State<Arc<App>>,
    Query(Which { since_ns, who: of, limit }): Query<Which>,
) -> Answer<Vec<Audited>> {
    who.must_be(Role::Viewer)?;
    flush(&app).await;
    let limit = limit.unwrap_or(audit::LIST_MAX);
    let listed =
        app.database.run(move |tx| audit::list(tx, since_ns.unwrap_or(0), of.as_deref(), limit)).await?;
    Ok(Json(listed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_of_a_stranger_is_not_repeated_and_what_only_reads_changes_nothing() {
        let entry = |method: &str, route: &str| {
            let request = axum::http::Request::builder().method(method).uri(route);
            Entry::new(&request.body(axum::body::Body::empty()).unwrap(), route, String::new())
        };
        assert_eq!(entry(&"X".repeat(60_000), "/v1/volumes").action, "OTHER /v1/volumes");
        assert_eq!(entry("POST", "/v1/volumes").action, "POST /v1/volumes");
        assert!(entry("POST", "/v1/analyze").changes && entry("OTHER", "/v1/analyze").changes);
        assert!(!entry("POST", "/v1/analyze/follow").changes && !entry("GET", "/v1/volumes").changes);
        let goes_on = |method, route| entry(method, route).goes_on();
        assert!(goes_on("DELETE", "/v1/volumes/{name}") && goes_on("POST", "/v1/keys"));
        assert!(!goes_on("POST", "/v1/meta/snapshot") && !goes_on("POST", "/v1/analyze/follow"));
        assert!(!goes_on("GET", "/v1/volumes"));
    }

    #[test]
    fn a_row_that_was_taken_back_is_nobodys() {
        let folder = tempfile::tempdir().unwrap();
        let database = crate::db::Database::open(folder.path()).unwrap();
        let request = axum::http::Request::builder().method("POST").uri("/v1/volumes");
        let request = request.body(axum::body::Body::empty()).unwrap();
        let entry = Entry::new(&request, "/v1/volumes", String::new());
        let root = Identity::Account { name: "root".to_owned(), role: Role::Admin };
        let failed = database.write(|tx| {
            entry.known(tx, &root)?;
            Err::<(), AdminError>(AdminError::Internal("the disk is full".to_owned()))
        });
        assert!(failed.is_err() && entry.lock().row.is_none());
        let row = database.write(|tx| entry.known(tx, &root)).unwrap();
        entry.begun(&root, row);
        assert!(entry.lock().row.is_some());
        assert_eq!(database.write(|tx| entry.known(tx, &root)).unwrap(), None, "once");
    }

    #[test]
    fn whoever_knocks_with_a_thousand_names_fills_a_few_rows() {
        let refused = Refused::default();
        for n in 0..1000 {
            let of = |text: &str| format!("{text}{n}");
            let attempt =
                Attempt { actor: of("token"), address: of("10.0.0."), action: of("GET"), object: of("/") };
            refused.add(attempt, "unauthorized".to_owned());
        }
        let taken = refused.take();
        assert_eq!(taken.len(), APART_MAX + 1);
        assert_eq!(taken.iter().map(|(.., times)| times).sum::<u64>(), 1000);
        assert!(refused.take().is_empty());
    }
}
