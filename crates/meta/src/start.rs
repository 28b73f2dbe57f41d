//! What the command line calls: start, init creds, status.

use crate::admin_link::{AdminLink, Questions};
use crate::analyze::Looks;
use crate::collect::{Collector, Rhythm};
use crate::copies;
use crate::core::Core;
use crate::executor::{Executor, Input, now};
use crate::files::{Folder, LockedFolder};
use crate::http::{self, Pages};
use crate::machine::{Config, Event, Found, Machine, SharedView};
use crate::metrics::Metrics;
use crate::questions;
use crate::restored;
use crate::server::objects::{Objects, Stores};
use crate::server::{self, Shared};
use crate::snapshot::{self, Part};
use anyhow::{Context, Result, anyhow, bail};
use chronofs_core::Version;
use chronofs_engine::Engine;
use chronofs_engine::copies::{Copies, Setup};
use chronofs_engine::embedded::{self, EmbeddedFolder, Options, RocksOptions};
use chronofs_snapshot::{Whereabouts, Whitelist};
use chronofs_wire::admin::Register;
use chronofs_wire::cluster::ClusterFile;
use chronofs_wire::http::{AdminClient, ClientError};
use chronofs_wire::identity::random;
use chronofs_wire::message::ToClient;
use chronofs_wire::tls::ServerIdentity;
use chronofs_wire::token::{Token, TokenKind};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

const TICK: Duration = Duration::from_millis(100);
/// A server that stops waits no longer for its log copies. What it has not called durable then is in its own log.
const COPIES_WITHIN: Duration = Duration::from_secs(10);

/// How to start a metadata server.
#[derive(Clone, Debug)]
pub struct StartConfig {
    /// Its folder.
    pub db_folder: PathBuf,
    /// Where it listens for clients.
    pub bind_addr: SocketAddr,
    /// Where clients reach it, `host:port`. `None`: the bound address, or this host's name.
    pub advertise: Option<String>,
    /// Where figures and health are served over plain HTTP, if at all.
    pub http_addr: Option<SocketAddr>,
    /// Certificate and key of its own, in PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// How long things take.
    pub timing: Timing,
    /// Programs that may run here for a disk snapshot: `whitelist_binpath`.
    pub whitelist: Vec<PathBuf>,
    /// The cluster that the server is to belong to, if that is said.
    pub cluster: Option<ClusterFile>,
    /// Where it stands, for status and for programs of disk snapshots.
    pub whereabouts: Whereabouts,
    /// Write the log anew from its copies first.
    pub recover_log: bool,
}

/// How long things take. Shorter only in tests, but for the packing.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// What no row names any more stays for so long: readers hold where it lies.
    pub slice_life: Duration,
    /// The least that a horizon moves by.
    pub horizon_step: Duration,
    /// Small slices are packed into objects when they are so old.
    pub pack_after: Duration,
    /// When the block stores are looked through without being asked for.
    pub looks: Rhythm,
}

impl Default for Timing {
    fn default() -> Self {
        let Config { slice_life_ms, horizon_step_ms, pack_after_ms, .. } = Config::default();
        Timing {
            slice_life: Duration::from_millis(u64::from(slice_life_ms)),
            horizon_step: Duration::from_millis(u64::from(horizon_step_ms)),
            pack_after: Duration::from_millis(u64::from(pack_after_ms)),
            looks: Rhythm::default(),
        }
    }
}

/// Saves the token of a metadata store, with another address of the admin server if one is given.
pub fn init_creds(db_folder: &Path, token: &str, admin: Option<&str>) -> Result<()> {
    let mut token = Token::parse_as(token, TokenKind::MetadataStore)?;
    if let Some(admin) = admin {
        token.admin = admin.to_owned();
    }
    Folder::make(db_folder)?.save_token(&token)
}

/// Saves the token of a metadata store of which nothing is left: the server that starts in this folder, which has to be empty, makes
/// its volumes anew, with other numbers than before. Said again before that it is said once.
pub fn begin_anew(db_folder: &Path, token: &str, admin: Option<&str>) -> Result<()> {
    let parsed = Token::parse_as(token, TokenKind::MetadataStore)?;
    restored::must_be_empty(db_folder)?;
    restored::begin_anew(&Folder::make(db_folder)?, &parsed, now().wall_ns)?;
    init_creds(db_folder, token, admin)
}

/// Saves the token of a metadata store in a folder that other tools have copied, and that was put back: the server that starts in it
/// goes on as from a restore in place. Gives the instant from which on everything is lost.
pub fn go_on_from_old_copy(db_folder: &Path, token: &str, admin: Option<&str>) -> Result<Version> {
    let parsed = Token::parse_as(token, TokenKind::MetadataStore)?;
    let folder = Folder(db_folder.to_owned());
    if !folder.engine().is_dir() {
        bail!(
            "{} holds no metadata store; name the folder that was put back with --db-folder",
            db_folder.display()
        );
    }
    let last = restored::go_on_from_old_copy(&folder.lock()?, &parsed, now().wall_ns)?;
    init_creds(db_folder, token, admin)?;
    Ok(last)
}

/// A server that runs.
pub struct Server {
    folder: Arc<LockedFolder>,
    executor: Executor,
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    /// Resolves when the admin server says that it is of another cluster.
    misled: oneshot::Receiver<ClientError>,
    copies: Option<Arc<Copies>>,
    /// Where clients reach it.
    pub address: SocketAddr,
    /// Where figures are served.
    pub http_address: Option<SocketAddr>,
    /// Where events go: for tests that play the admin server.
    pub queue: mpsc::Sender<Input>,
    /// The block stores in reach.
    pub stores: Stores,
}

/// Runs a metadata server until SIGTERM or SIGINT, or until its store fails.
pub async fn start(config: StartConfig) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut server = tokio::select! {
        started = Server::start(&config, true) => started?,
        _ = terminate.recv() => end_start(),
        _ = interrupt.recv() => end_start(),
    };
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        Ok(error) = &mut server.misled => {
            server.stop().await?;
            return Err(error.into());
        }
        error = &mut server.executor.failed => Some(error),
    };
    match failure {
        None => server.stop().await,
        Some(Ok(error)) => Err(anyhow!(error).context("the metadata store failed")),
        Some(Err(_)) => bail!("a thread of the metadata server ended; its log says more"),
    }
}

/// Ends a start. Nothing was answered yet, and what a thread waits for, a log copy or the admin server, may never come.
fn end_start() -> ! {
    tracing::info!("stopped before it had started");
    std::process::exit(0)
}

impl Server {
    /// Starts a server; `with_admin`: also its link to the admin server.
    pub async fn start(config: &StartConfig, with_admin: bool) -> Result<Server> {
        let whitelist = Whitelist::new(config.whitelist.clone()).context("--whitelist-binpath")?;
        let started = Instant::now();
        let locked = Arc::new(Folder::make(&config.db_folder)?.lock()?);
        let folder = locked.folder.clone();
        let token = if with_admin { Some(folder.token()?) } else { None };
        if let Some(cluster) = &config.cluster {
            folder.must_be_of(&cluster.name)?;
        }
        let identity = match &config.tls {
            Some((certificate, key)) => ServerIdentity::load(certificate, key)?,
            None => ServerIdentity::load_or_make(&folder.0, &[])?,
        };
        let listener = bind(config.bind_addr, "--bind-addr").await?;
        let address = listener.local_addr()?;
        let http_listener = match config.http_addr {
            Some(http_addr) => Some(bind(http_addr, "--http-addr").await?),
            None => None,
        };
        let http_address = http_listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let boot = u64::from_le_bytes(random()?);
        let client =
            token.map(|token| AdminClient::reached(&token, None, config.cluster.as_ref())).transpose()?;
        let mut register = Register {
            address: config.advertise.clone().unwrap_or_else(|| reached_at(address)),
            certificate_sha256: identity.pin().to_string(),
            boot,
            epoch: folder.registered()?.map_or(0, |registered| registered.epoch),
            restore: restored::epoch_of(&folder)?,
            recovers: config.recover_log,
            last_commit_ns: None,
        };
        // A folder that knows of none is new, or was put together of images.
        let had_server = register.epoch > 0;
        if let Some(client) = &client {
            restored::must_not_be_fenced(client, &register).await?;
        }
        let log_servers = copies::Servers::default();
        let (core, engine) = open_told(&locked, client.as_ref(), &mut register, &log_servers, config).await?;
        // From now on it is of the restore that it has begun with, and a later one ends it.
        (register.restore, register.recovers) = (restored::epoch_of(&folder)?, false);
        let last_commit = engine.opening().last_commit;
        if had_server && last_commit > Version::ZERO {
            register.last_commit_ns = Some(last_commit.0);
            // Before anybody is served: a copy of the same start is told by what it lacks.
            if let Some(client) = &client {
                restored::must_not_be_fenced(client, &register).await?;
            }
        }
        let copies = engine.copies().cloned();
        let life = Duration::from_millis(u64::from(core.machine.config().life_ms));
        let epoch = core.machine.config().epoch;
        let (metrics, registry) = Metrics::new();
        let metrics = Arc::new(metrics);
        let stores = Stores::default();
        let objects = Objects {
            stores: stores.clone(),
            runtime: tokio::runtime::Handle::current(),
            metrics: metrics.clone(),
        };
        let (asked, wanted) = watch::channel(0);
        let executor = Executor::start(core, metrics.clone(), objects, asked)?;
        let queue = executor.queue.clone();
        let shared = Shared::new(queue.clone(), metrics.clone(), life);
        let mut tasks = vec![tokio::spawn(ticks(queue.clone()))];
        tasks.push(tokio::spawn(note_run(queue.clone(), locked.clone())));
        tasks.push(tokio::spawn(server::serve(listener, identity.server_config()?, shared.clone())));
        let collector = Collector::new(queue.clone(), stores.clone(), config.timing.looks);
        tasks.push(tokio::spawn(collector.clone().run()));
        tasks.push(tokio::spawn(http::look_at_counters(metrics.clone())));
        let pages = Pages {
            queue: queue.clone(),
            registry: Arc::new(registry),
            metrics: metrics.clone(),
            collector,
            looks: Looks::default(),
            stores: stores.clone(),
            engine: folder.engine(),
            started,
            locality: config.whereabouts.locality.clone(),
            copies: copies.clone(),
        };
        if let Some(http_listener) = http_listener {
            tasks.push(spawn_http(http_listener, pages.clone()));
        }
        let (mislead, misled) = oneshot::channel();
        if let Some(client) = client {
            register.epoch = register.epoch.max(epoch);
            let part = Part {
                engine,
                folder: folder.engine(),
                queue: queue.clone(),
                collector: pages.collector.clone(),
                client: client.clone(),
                whitelist,
                whereabouts: config.whereabouts.clone(),
            };
            let link = (client, register, folder, Questions::new(wanted), mislead, log_servers);
            tasks.extend(spawn_link(link, pages, part)?);
        }
        tracing::info!(%address, pin = %identity.pin(), "serving");
        let (folder, queue) = (locked, queue.clone());
        Ok(Server { folder, executor, shared, tasks, misled, copies, address, http_address, queue, stores })
    }

    /// Stops in order: nobody new, clients are told, everything is durable.
    pub async fn stop(self) -> Result<()> {
        tracing::info!("stopping");
        let copies = self.copies;
        let gives_up = tokio::spawn(async move {
            tokio::time::sleep(COPIES_WITHIN).await;
            let why = "the server was to stop, and its log copies do not have everything";
            copies.iter().for_each(|copies| copies.give_up(why));
        });
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        // With the last of them what they hold of the engine goes.
        for task in self.tasks {
            let _ = task.await;
        }
        self.shared.close_all(&ToClient::Closing);
        // A stop in the middle of collecting what was lost leaves that to the next start.
        let recovering = ask(&self.queue, |core| core.machine.figures().recovering).await.unwrap_or(true);
        let executor = self.executor;
        tokio::task::spawn_blocking(move || executor.stop()).await?.context("stopping the metadata store")?;
        gives_up.abort();
        if !recovering {
            self.folder.end_run()?;
        }
        // Answers and farewells that are on their way.
        for _ in 0..20 {
            if self.shared.connections() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tracing::info!("stopped");
        Ok(())
    }
}

async fn bind(address: SocketAddr, option: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; is another server running there? choose another address with {option}")
    })
}

/// What to call a server that is bound to every address.
fn reached_at(address: SocketAddr) -> String {
    if !address.ip().is_unspecified() {
        return address.to_string();
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
    format!("{host}:{}", address.port())
}

pub(crate) fn open_engine(folder: &Folder, copies: Option<Setup>) -> Result<EmbeddedFolder> {
    let path = folder.engine();
    embedded::Folder::open(&path)
        .and_then(|held| embedded::open_copied(held, Options::default(), &RocksOptions::default(), copies))
        .with_context(|| format!("cannot open the metadata store in {}", path.display()))
}

/// Opens the store, and says meanwhile that it is at it.
async fn open_told(
    locked: &Arc<LockedFolder>,
    client: Option<&AdminClient>,
    register: &mut Register,
    log_servers: &copies::Servers,
    config: &StartConfig,
) -> Result<(Core, Arc<EmbeddedFolder>)> {
    let starting = client.map(|client| tokio::spawn(questions::tell_starting(client.clone())));
    let opened = match client {
        Some(client) => match copies::open(locked, client, register, log_servers, config.recover_log).await {
            Ok(log) => open_core(locked, register, Some(log), config).await,
            Err(error) => Err(error),
        },
        None => open_core(locked, register, None, config).await,
    };
    starting.inspect(|starting| starting.abort());
    opened
}

async fn open_core(
    locked: &Arc<LockedFolder>,
    register: &Register,
    log: Option<Setup>,
    config: &StartConfig,
) -> Result<(Core, Arc<EmbeddedFolder>)> {
    let (asks_admin, timing, boot) = (log.is_some(), config.timing, register.boot);
    if config.recover_log
        && let Some(setup) = &log
    {
        let (locked, setup, restore) = (locked.clone(), setup.clone(), register.restore.clone());
        tokio::task::spawn_blocking(move || copies::recover(&locked, &setup, restore)).await??;
    }
    let maybe_lost = locked.maybe_lost()?;
    if !maybe_lost {
        locked.note_run()?;
    }
    let folder = locked.folder.clone();
    let epoch = folder.registered()?.map_or(0, |registered| registered.epoch);
    let core = tokio::task::spawn_blocking(move || {
        let engine = open_engine(&folder, log)?;
        let (began_apart, restored) = restored::begin(&folder, &engine, now().wall_ns)?.unzip();
        let opening = engine.opening();
        if opening.torn {
            tracing::warn!(
                "the end of the log was torn and is cut off: the last server went down while it wrote"
            );
        }
        tracing::info!(last_commit = %opening.last_commit, replayed = opening.replayed, maybe_lost, "store opened");
        let folder = Arc::new(engine);
        let engine: Arc<dyn Engine> = folder.clone();
        let found = Found { recovered: engine.recovered(), maybe_lost, last_commit: opening.last_commit };
        let ms = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let config = Config {
            boot,
            epoch,
            asks_admin,
            slice_life_ms: ms(timing.slice_life),
            horizon_step_ms: ms(timing.horizon_step),
            pack_after_ms: ms(timing.pack_after),
            restored: restored.flatten(),
            began_apart,
            ..Config::default()
        };
        let reads = SharedView(engine.view());
        let machine = Machine::new(config, &reads, engine.applied(), found, now())?;
        anyhow::Ok((Core { machine, engine }, folder))
    });
    core.await?
}

/// Asks the executor.
async fn ask<T: Send + 'static>(
    queue: &mpsc::Sender<Input>,
    question: impl FnOnce(&mut Core) -> T + Send + 'static,
) -> Option<T> {
    let (sender, answer) = tokio::sync::oneshot::channel();
    let ask: crate::executor::Ask = Box::new(move |core, _| drop(sender.send(question(core))));
    queue.send(Input::Ask(ask)).await.ok()?;
    answer.await.ok()
}

/// Notes the run once nothing that an earlier one lost is missing.
async fn note_run(queue: mpsc::Sender<Input>, folder: Arc<LockedFolder>) {
    loop {
        // The state that is asked for here is synced before it is noted.
        let engine =
            ask(&queue, |core| (!core.machine.figures().recovering).then(|| core.engine.clone())).await;
        let Some(engine) = engine else { return };
        if let Some(engine) = engine {
            let noted = tokio::task::spawn_blocking(move || {
                engine.sync()?;
                folder.note_run()
            });
            if let Ok(Err(error)) = noted.await {
                tracing::error!("{error:#}");
            }
            return;
        }
        tokio::time::sleep(TICK).await;
    }
}

async fn ticks(queue: mpsc::Sender<Input>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if queue.send(Input::Events(vec![Event::Tick])).await.is_err() {
            return;
        }
    }
}

fn spawn_http(listener: TcpListener, pages: Pages) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = crate::http::serve(listener, pages).await {
            tracing::error!(%error, "figures and health are not served any more");
        }
    })
}

/// The link's own: its client, what the server says of itself, its folder, what is asked, whom to tell of another cluster, how
/// log servers are reached.
type Linked = (AdminClient, Register, Folder, Questions, oneshot::Sender<ClientError>, copies::Servers);

/// Starts all that has to do with the admin server: the link, the answers to operators' questions, disk snapshots.
fn spawn_link(
    (client, register, folder, questions, mislead, log_servers): Linked,
    pages: Pages,
    part: Part,
) -> Result<[tokio::task::JoinHandle<()>; 4]> {
    let kept = folder.assignment()?;
    let (registered, mut epochs) = watch::channel(None);
    let engine = part.engine.clone();
    let snapshots = tokio::spawn(snapshot::take_part(part, epochs.clone()));
    let (queue, stores) = (pages.queue.clone(), pages.stores.clone());
    let answers = questions::answer_all(client.clone(), register.boot, pages);
    let mislead = Some(mislead);
    let queued = queue.clone();
    let link = AdminLink {
        client,
        register,
        folder,
        queue: queued,
        stores,
        registered,
        questions,
        mislead,
        engine,
        log_servers,
    };
    let follow = tokio::spawn(async move {
        while epochs.changed().await.is_ok() {
            let Some(epoch) = epochs.borrow_and_update().as_ref().map(|registered| registered.epoch) else {
                continue;
            };
            let ask: crate::executor::Ask = Box::new(move |core, _| core.machine.set_epoch(epoch));
            drop(queue.send(Input::Ask(ask)).await);
        }
    });
    Ok([tokio::spawn(link.run(kept)), follow, tokio::spawn(answers), snapshots])
}
