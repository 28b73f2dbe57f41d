//! The HTTP/JSON API: routes, who may call them, and the OpenAPI document at `/openapi.json`.
//!
//! Reading needs any account, changing the role `operator`, accounts the role `admin`. Metadata servers and mounts
//! come with tokens of their own kinds and reach only their own routes.

mod accounts;
mod analyze;
pub(crate) mod audit;
mod auth;
mod backups;
mod block_stores;
mod brake;
mod cluster;
pub(crate) mod deleted;
mod deploy;
pub(crate) mod holds;
pub(crate) mod log_servers;
mod probes;
mod questions;
mod registered;
mod restored;
mod schedules;
mod servers;
mod snapshots;
mod stores;
mod system;
mod volumes;

use crate::AdminError;
use crate::backups::Backups;
use crate::db::Database;
use crate::db::volumes::Found;
use crate::deploy::Deploy;
use crate::metrics::Metrics;
use crate::model::{Account, BlockStore, LogServer, MetadataStore, Role, VolumeToken};
use crate::snapshots::Snapshots;
use auth::Who;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, Json, MatchedPath, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use chronofs_wire::admin::Problem;
use chronofs_wire::cluster::{CLUSTER_HEADER, ClusterFile};
use chronofs_wire::secrets::SecretBox;
use chronofs_wire::tlog::LogServerSaid;
use probes::Probes;
use rusqlite::Transaction;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr, ResponseBuilder};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt};
use utoipa_axum::routes;
use uuid::Uuid;

/// A metadata server that was not heard of for this long counts as not connected. It polls at least every 20 s.
const CONNECTED_FOR: Duration = Duration::from_secs(45);

/// Holds are listed in one answer: of 10,000, as many as a block store has pins, with their reasons.
const ANSWERS_BYTES_MAX: usize = 16 << 20;

/// What the handlers share.
pub(crate) struct App {
    pub(crate) database: Database,
    pub(crate) secrets: Arc<SecretBox>,
    pub(crate) cluster: ClusterFile,
    pub(crate) metrics: Metrics,
    /// Changed after every commit that may concern a metadata server; long polls look again then.
    pub(crate) changed: watch::Sender<u64>,
    /// True once the server is to stop.
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) backups: Arc<Backups>,
    deploy: Arc<Deploy>,
    refused: audit::Refused,
    probes: Probes,
    questions: questions::Open,
    /// When each log server was heard of, and what it said.
    log_servers: Mutex<HashMap<String, (Instant, LogServerSaid)>>,
    /// Where the database is.
    folder: PathBuf,
    /// Where this server stands.
    locality: BTreeMap<String, String>,
    started: Instant,
    seen: Mutex<HashMap<String, Instant>>,
    /// How many requests are under way that are done to their ends.
    under_way: watch::Sender<usize>,
}

impl App {
    pub(crate) fn new(
        database: Database,
        secrets: Arc<SecretBox>,
        snapshots: Arc<Snapshots>,
        (backups, deploy): (Arc<Backups>, Arc<Deploy>),
        cluster: ClusterFile,
        (folder, locality): (PathBuf, BTreeMap<String, String>),
        stopping: watch::Receiver<bool>,
    ) -> Arc<Self> {
        let changed = watch::Sender::new(0);
        let metrics = Metrics::new();
        Arc::new(App {
            database,
            secrets,
            cluster,
            metrics,
            changed,
            stopping,
            snapshots,
            backups,
            deploy,
            refused: audit::Refused::default(),
            probes: Probes::default(),
            questions: questions::Open::default(),
            log_servers: Mutex::default(),
            folder,
            locality,
            started: Instant::now(),
            seen: Mutex::default(),
            under_way: watch::Sender::new(0),
        })
    }

    /// Waits until nothing is under way of which the one who asked has left.
    pub(crate) async fn all_done(&self) {
        let _ = self.under_way.subscribe().wait_for(|n| *n == 0).await;
    }

    /// The server of metadata store `id` was heard of just now.
    fn heard_of(&self, id: &str) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), Instant::now());
    }

    /// How long ago the server of metadata store `id` was heard of.
    fn heard(&self, id: &str) -> Option<Duration> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(id).map(Instant::elapsed)
    }

    pub(crate) fn is_connected(&self, id: &str) -> bool {
        self.heard(id).is_some_and(|ago| ago < CONNECTED_FOR)
    }

    /// What any account may see.
    async fn look<T: Send + 'static>(&self, who: &Who, job: impl Job<T>) -> Result<T, AdminError> {
        who.must_be(Role::Viewer)?;
        self.database.run(job).await
    }

    /// A change by an account that may, in one transaction: written down, and metadata servers look again.
    async fn act<T: Thing>(
        &self,
        who: &Who,
        action: &'static str,
        job: impl Job<T>,
    ) -> Result<T, AdminError> {
        who.must_be(T::SORT.role)?;
        let thing = self.database.run(job).await?;
        self.wake_pollers();
        who.did(action, T::SORT.word, (T::SORT.label)(&thing));
        Ok(thing)
    }

    /// [`App::act`] that leaves nothing.
    async fn delete<T: Thing>(
        &self,
        who: &Who,
        name: String,
        job: impl FnOnce(&Transaction<'_>, &str) -> Result<(), AdminError> + Send + 'static,
    ) -> Deleted {
        who.must_be(T::SORT.role)?;
        let key = name.clone();
        self.database.run(move |tx| job(tx, &key)).await?;
        self.wake_pollers();
        who.did("delete", T::SORT.word, &name);
        Ok(StatusCode::NO_CONTENT)
    }

    /// Tells whoever takes disk snapshots that a server has registered, or was deleted.
    pub(super) async fn members_changed(&self) -> Result<(), AdminError> {
        let snapshots = self.snapshots.clone();
        let told = tokio::task::spawn_blocking(move || snapshots.members_changed()).await;
        told.map_err(|e| AdminError::Internal(format!("the task ended: {e}")))?
    }

    pub(super) fn wake_pollers(&self) {
        self.changed.send_modify(|n| *n += 1);
    }
}

/// What is done in one transaction.
trait Job<T>: FnOnce(&Transaction<'_>) -> Result<T, AdminError> + Send + 'static {}
impl<T, F: FnOnce(&Transaction<'_>) -> Result<T, AdminError> + Send + 'static> Job<T> for F {}

type Answer<T> = Result<Json<T>, AdminError>;
type Created<T> = Result<(StatusCode, Json<T>), AdminError>;
type Deleted = Result<StatusCode, AdminError>;

/// The answer to what was to begin, with its record under `what`, or why it does not. Both are 200; for the audit log only one is
/// done.
fn begun<T: Serialize, R: Serialize>(what: &'static str, begun: Result<T, R>) -> Response {
    match begun {
        Ok(record) => Json(json!({ (what): record })).into_response(),
        Err(refused) => {
            (Extension(audit::Refusal("refused")), Json(json!({ "refused": refused }))).into_response()
        }
    }
}

fn created<T>(thing: T) -> (StatusCode, Json<T>) {
    (StatusCode::CREATED, Json(thing))
}

/// What can be created, changed and deleted.
trait Thing: Send + 'static {
    const SORT: Sort<Self>;
}

struct Sort<T: ?Sized> {
    /// Its kind, as in `chronofs configure`.
    word: &'static str,
    /// Who may change it.
    role: Role,
    /// What it is called in the log.
    label: fn(&T) -> &str,
}

impl Thing for Account {
    const SORT: Sort<Self> = Sort { word: "account", role: Role::Admin, label: |account| &account.name };
}

impl Thing for BlockStore {
    const SORT: Sort<Self> = Sort { word: "block-store", role: Role::Operator, label: |store| &store.name };
}

impl Thing for MetadataStore {
    const SORT: Sort<Self> =
        Sort { word: "metadata-store", role: Role::Operator, label: |store| &store.name };
}

impl Thing for LogServer {
    const SORT: Sort<Self> = Sort { word: "log-server", role: Role::Operator, label: |server| &server.name };
}

impl Thing for Found {
    const SORT: Sort<Self> = Sort { word: "volume", role: Role::Operator, label: |found| &found.volume.name };
}

impl Thing for VolumeToken {
    const SORT: Sort<Self> = Sort { word: "volume-token", role: Role::Operator, label: |token| &token.id };
}

/// A JSON body whose faults are answered like all others.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = AdminError;
    async fn from_request(request: Request, state: &S) -> Result<Self, AdminError> {
        let parsed: Result<Json<T>, JsonRejection> = Json::from_request(request, state).await;
        parsed
            .map(|Json(body)| Body(body))
            .map_err(|e| AdminError::Invalid(format!("request body: {}", e.body_text())))
    }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "chronofs admin server", description = "Accounts, stores, volumes and who may use them"),
    components(schemas(Problem))
)]
struct Document;

fn api() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(accounts::list, accounts::create))
        .routes(routes!(accounts::show, accounts::change, accounts::delete))
        .routes(routes!(accounts::whoami))
        .routes(routes!(block_stores::list, block_stores::create))
        .routes(routes!(block_stores::show, block_stores::change, block_stores::delete))
        .routes(routes!(block_stores::probe_again))
        .routes(routes!(stores::list_metadata, stores::create_metadata))
        .routes(routes!(stores::show_metadata, stores::change_metadata, stores::delete_metadata))
        .routes(routes!(brake::release))
        .routes(routes!(log_servers::list, log_servers::create))
        .routes(routes!(log_servers::show, log_servers::change, log_servers::delete))
        .routes(routes!(log_servers::register))
        .routes(routes!(log_servers::assignment))
        .routes(routes!(log_servers::report))
        .routes(routes!(volumes::list, volumes::create))
        .routes(routes!(volumes::show, volumes::change, volumes::delete))
        .routes(routes!(volumes::keys, volumes::change_keys))
        .routes(routes!(deleted::list))
        .routes(routes!(deleted::show, deleted::give_up))
        .routes(routes!(deleted::undelete))
        .routes(routes!(volumes::list_tokens, volumes::create_token))
        .routes(routes!(volumes::show_token, volumes::change_token, volumes::delete_token))
        .routes(routes!(holds::list, holds::create))
        .routes(routes!(holds::show, holds::delete))
        .routes(routes!(snapshots::list, snapshots::create))
        .routes(routes!(snapshots::show, snapshots::delete))
        .routes(routes!(snapshots::abort))
        .routes(routes!(snapshots::poll))
        .routes(routes!(backups::list, backups::create))
        .routes(routes!(backups::show))
        .routes(routes!(backups::delete))
        .routes(routes!(registered::register))
        .routes(routes!(backups::plan))
        .routes(routes!(backups::plan_of_log_server))
        .routes(routes!(schedules::list, schedules::create))
        .routes(routes!(schedules::delete))
        .routes(routes!(snapshots::record))
        .routes(routes!(snapshots::unknown))
        .routes(routes!(snapshots::poll_log_server))
        .routes(routes!(restored::accept))
        .routes(routes!(restored::copy))
        .routes(routes!(restored::detach))
        .routes(routes!(deploy::list, deploy::add))
        .routes(routes!(deploy::fetch, deploy::remove))
        .routes(routes!(audit::list))
        .routes(routes!(cluster::cluster))
        .routes(routes!(cluster::status))
        .routes(routes!(cluster::keys))
        .routes(routes!(analyze::begin))
        .routes(routes!(analyze::follow))
        .routes(routes!(questions::questions))
        .routes(routes!(questions::answers).layer(DefaultBodyLimit::max(ANSWERS_BYTES_MAX)))
        .routes(routes!(questions::starting))
        .routes(routes!(servers::register))
        .routes(routes!(servers::assignment))
        .routes(routes!(servers::open_log))
        .routes(routes!(servers::report))
        .routes(routes!(servers::fence))
        .routes(routes!(servers::known))
        .routes(routes!(servers::parked))
        .routes(routes!(servers::resolve))
        .routes(routes!(servers::store_place))
        .routes(routes!(system::healthz))
        .routes(routes!(system::readyz))
        .routes(routes!(system::metrics))
        .routes(routes!(system::openapi))
}

/// The OpenAPI document of the API, as JSON.
pub fn openapi_json() -> Result<String, AdminError> {
    let mut document = api().into_openapi();
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    // Whatever is refused is refused in the same form.
    let refusal = ResponseBuilder::new()
        .description("Refused, or failed")
        .content("application/json", Content::new(Some(Ref::from_schema_name("Problem"))))
        .build();
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            operation.responses.responses.insert("default".to_owned(), RefOr::T(refusal.clone()));
        }
    }
    document.to_pretty_json().map_err(|e| AdminError::Internal(format!("OpenAPI document: {e}")))
}

pub(crate) fn router(app: Arc<App>) -> Router {
    // Every route comes from what the document is made of.
    let (router, _) = api().split_for_parts();
    router
        .fallback(system::unknown)
        .method_not_allowed_fallback(system::unknown)
        .layer(middleware::from_fn_with_state(app.clone(), observe))
        .with_state(app)
}

/// The id of something, as it stands in the database.
fn known_id(what: &str, name: &str, id: &str) -> Result<Uuid, AdminError> {
    id.parse().map_err(|_| {
        AdminError::Internal(format!(
            "{what} '{name}' has '{id}' as its id in the configuration database, which is none: the database is damaged, or was \
             changed by hand; go back to a copy of it"
        ))
    })
}

/// Refuses who says that another cluster is meant.
fn means_this_cluster(cluster: &ClusterFile, headers: &HeaderMap) -> Result<(), AdminError> {
    let Some(meant) = headers.get(CLUSTER_HEADER).map(|meant| String::from_utf8_lossy(meant.as_bytes()))
    else {
        return Ok(());
    };
    if meant == cluster.name.as_str() {
        return Ok(());
    }
    Err(AdminError::WrongCluster(format!(
        "this is the admin server of cluster {}, and the cluster file is of cluster {meant}: use the cluster file of {} \
         (--cluster-file), or another token",
        cluster.name, cluster.name
    )))
}

/// Where a connection comes from.
#[derive(Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// A request that is done to its end, also when whoever asked has left.
struct UnderWay(Arc<App>);

impl UnderWay {
    fn begin(app: Arc<App>) -> Self {
        app.under_way.send_modify(|n| *n += 1);
        UnderWay(app)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.send_modify(|n| *n -= 1);
    }
}

/// Answers a request, and writes down how it ended.
async fn answer(app: Arc<App>, entry: Arc<audit::Entry>, request: Request, next: Next) -> Response {
    let response = match means_this_cluster(&app.cluster, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    };
    audit::answered(&app, &entry, response.status(), audit::refusal(&response)).await;
    response
}

async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = audit::method(&request);
    let route = request.extensions().get::<MatchedPath>().map_or("(unknown)", MatchedPath::as_str).to_owned();
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    let address = peer.map_or_else(String::new, |ConnectInfo(Peer(address))| address.ip().to_string());
    let entry = audit::Entry::new(&request, &route, address);
    request.extensions_mut().insert(entry.clone());
    let answer = answer(app.clone(), entry.clone(), request, next);
    let response = match entry.goes_on() {
        // Whoever leaves takes the handler along that is not a task of its own.
        true => {
            let under_way = UnderWay::begin(app.clone());
            let task = tokio::spawn(async move {
                let response = answer.await;
                drop(under_way);
                response
            });
            let ended = |e| AdminError::Internal(format!("the task ended: {e}")).into_response();
            task.await.unwrap_or_else(ended)
        }
        false => answer.await,
    };
    let status = response.status().as_u16();
    tracing::debug!(%method, %route, status, took_us = started.elapsed().as_micros(), "answered");
    app.metrics.answered(method.to_owned(), route, status, started.elapsed());
    response
}
