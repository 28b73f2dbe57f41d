//! What the command line calls: start and init creds.

use crate::admin_link::AdminLink;
use crate::connection::{self, Shared};
use crate::folder::Folder;
use crate::http::{self, Metrics, Pages};
use crate::snapshot::{self, Part};
use crate::stores::Stores;
use anyhow::{Context, Result};
use chronofs_snapshot::{Whereabouts, Whitelist};
use chronofs_wire::admin::Register;
use chronofs_wire::cluster::ClusterFile;
use chronofs_wire::http::AdminClient;
use chronofs_wire::identity::random;
use chronofs_wire::tls::ServerIdentity;
use chronofs_wire::token::{Token, TokenKind};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How to start a log server.
#[derive(Clone, Debug)]
pub struct StartConfig {
    /// Its folder.
    pub db_folder: PathBuf,
    /// Where it listens for metadata servers.
    pub bind_addr: SocketAddr,
    /// Where they reach it, `host:port`. `None`: the bound address, or this host's name.
    pub advertise: Option<String>,
    /// Where figures and health are served over plain HTTP.
    pub http_addr: SocketAddr,
    /// Certificate and key of its own, in PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Programs that may run here for a disk snapshot: `whitelist_binpath`.
    pub whitelist: Vec<PathBuf>,
    /// The cluster that the server is to belong to, if that is said.
    pub cluster: Option<ClusterFile>,
    /// Where it stands, for status and for programs of disk snapshots.
    pub whereabouts: Whereabouts,
}

/// Saves the token of a log server, with another address of the admin server if one is given.
pub fn init_creds(db_folder: &Path, token: &str, admin: Option<&str>) -> Result<()> {
    let mut token = Token::parse_as(token, TokenKind::LogServer)?;
    if let Some(admin) = admin {
        token.admin = admin.to_owned();
    }
    Folder::make(db_folder)?.save_token(&token)
}

/// Runs a log server until SIGTERM or SIGINT, or until the admin server says that it is not the one any more. Whatever was
/// answered is on its disk, so there is nothing to be done at the end.
pub async fn start(config: StartConfig) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let whitelist = Whitelist::new(config.whitelist.clone()).context("--whitelist-binpath")?;
    let folder = Folder::make(&config.db_folder)?;
    let _lock = folder.lock()?;
    let token = folder.token()?;
    if let Some(cluster) = &config.cluster {
        folder.must_be_of(&cluster.name)?;
    }
    let identity = match &config.tls {
        Some((certificate, key)) => ServerIdentity::load(certificate, key)?,
        None => ServerIdentity::load_or_make(&folder.0, &[])?,
    };
    let listener = bind(config.bind_addr, "--bind-addr").await?;
    let address = listener.local_addr()?;
    let http_listener = bind(config.http_addr, "--http-addr").await?;
    let boot = u64::from_le_bytes(random()?);
    let client = AdminClient::reached(&token, None, config.cluster.as_ref())?;
    let register = Register {
        address: config.advertise.clone().unwrap_or_else(|| reached_at(address)),
        certificate_sha256: identity.pin().to_string(),
        boot,
        epoch: folder.registered()?.map_or(0, |registered| registered.epoch),
        ..Register::default()
    };
    std::fs::create_dir_all(folder.stores()).context("cannot make the folder of the copies")?;
    let stores = Arc::new(Stores::new(folder.stores()));
    if let Some(known) = folder.assignment()? {
        stores.allow(&known);
    }
    let (metrics, registry) = Metrics::new();
    let shared = Arc::new(Shared::new(stores.clone(), metrics));
    let pages = Pages {
        shared: shared.clone(),
        registry: Arc::new(registry),
        folder: folder.0.clone(),
        started: Instant::now(),
        locality: config.whereabouts.locality.clone(),
        boot,
        epoch: Arc::default(),
    };
    let served = connection::serve(listener, identity.server_config()?, shared);
    let (registered, members) = watch::channel(None);
    let part = Part {
        stores: stores.clone(),
        images: folder.images(),
        client: client.clone(),
        whitelist,
        whereabouts: config.whereabouts,
    };
    let snapshots = tokio::spawn(snapshot::take_part(part, members));
    let tasks = [tokio::spawn(served), tokio::spawn(http::serve(http_listener, pages.clone()))];
    let link = AdminLink { client, register, folder, stores, pages, registered };
    tracing::info!(%address, pin = %identity.pin(), "serving");
    let error = tokio::select! {
        error = link.run() => Some(error),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    // Programs that run for a snapshot end with it.
    snapshots.abort();
    drop(snapshots.await);
    match error {
        Some(error) => Err(error.into()),
        None => end(),
    }
}

/// Ends the process, also if a disk hangs that a thread waits for.
fn end() -> ! {
    tracing::info!("stopped");
    std::process::exit(0)
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
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
    format!("{host}:{}", address.port())
}
