//! The process: folder, certificate, socket, and a stop that loses nothing.

use crate::api::{self, App, Peer};
use crate::backups::Backups;
use crate::db::{Database, block_stores, holds, set_setting, setting, tokens};
use crate::deploy::{DEPLOY_FOLDER, Deploy};
use crate::snapshots::{SnapshotConfig, Snapshots, take_part};
use crate::{AdminError, FolderLock, cluster, quiet, schedules};
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use chronofs_snapshot::{Whereabouts, Whitelist};
use chronofs_wire::cluster::ClusterFile;
use chronofs_wire::identity::Sha256;
use chronofs_wire::secrets::{KEY_FILE, SecretBox};
use chronofs_wire::tls::ServerIdentity;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Who connects must have shown that it speaks TLS after this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that run when the server is to stop get this long.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How to start an admin server.
#[derive(Clone, Debug)]
pub struct StartConfig {
    /// Folder of the database and the certificate; set up by [`crate::init_creds`].
    pub db_folder: PathBuf,
    /// Where to listen.
    pub bind_addr: SocketAddr,
    /// Own certificate (chain) and key, instead of the self-made one.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// How disk snapshots are made.
    pub snapshots: SnapshotConfig,
    /// The cluster file; `None`: the one in the folder.
    pub cluster_file: Option<PathBuf>,
    /// Where it stands: machine, zone and so on, for status and for programs of disk snapshots.
    pub locality: BTreeMap<String, String>,
    /// The folder of executables for the machines of the cluster; `None`: [`DEPLOY_FOLDER`] in the folder.
    pub deploy_folder: Option<PathBuf>,
}

/// Runs an admin server until SIGTERM or SIGINT.
pub async fn start(config: StartConfig) -> Result<(), AdminError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(AdminError::io("listen for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AdminError::io("listen for SIGINT"))?;
    let server = Server::bind(config).await?;
    tracing::info!(
        address = %server.local_addr(), certificate_sha256 = %server.pin(), cluster = %server.cluster().name,
        "admin server is ready"
    );
    server
        .run(async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
                _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            }
        })
        .await?;
    tracing::info!("admin server has stopped");
    Ok(())
}

/// An admin server that listens.
pub struct Server {
    listener: TlsListener,
    local_addr: SocketAddr,
    pin: Sha256,
    database: Database,
    secrets: Arc<SecretBox>,
    snapshots: Arc<Snapshots>,
    backups: Arc<Backups>,
    deploy: Arc<Deploy>,
    whitelist: Whitelist,
    cluster: ClusterFile,
    whereabouts: Whereabouts,
    folder: PathBuf,
    // Held until the server is gone.
    lock: FolderLock,
}

impl Server {
    /// Locks the folder, opens the database and listens.
    pub async fn bind(config: StartConfig) -> Result<Self, AdminError> {
        let folder = &config.db_folder;
        if !crate::setup::is_set_up(folder)? && !quiet::has_copy(folder) {
            return Err(AdminError::Invalid(format!(
                "folder {} was not set up: run chronofs admin init creds --db-folder {} first",
                folder.display(),
                folder.display()
            )));
        }
        let whitelist = Whitelist::new(config.snapshots.whitelist.clone());
        let whitelist = whitelist.map_err(|e| AdminError::Invalid(format!("--whitelist-binpath: {e}")))?;
        let mut lock = FolderLock::take(folder)?;
        quiet::settle(folder)?;
        let database = Database::open(folder)?;
        let secrets = Arc::new(open_secrets(folder, &database)?);
        let snapshots = Snapshots::new(database.clone(), config.snapshots.run_limit)?;
        let backups = Backups::new(&database, folder)?;
        let deploy = config.deploy_folder.clone().unwrap_or_else(|| folder.join(DEPLOY_FOLDER));
        let deploy = Deploy::open(&deploy)?;
        let identity = load_identity(folder, config.tls.as_ref())?;
        note_pin(&database, identity.pin())?;
        let address = database.write(|tx| setting(tx, tokens::ADDRESS))?.unwrap_or_default();
        let place = cluster::place(folder, config.cluster_file.as_deref());
        let cluster = cluster::settle(&database, &place, None, &address)?;
        let place = std::path::absolute(&place).map_err(AdminError::io("find the current folder"))?;
        let whereabouts = Whereabouts { cluster_file: Some(place), locality: config.locality.clone() };
        let listening = TcpListener::bind(config.bind_addr).await;
        let tcp = listening.map_err(AdminError::io(format!(
            "listen on {} (--bind-addr chooses another address)",
            config.bind_addr
        )))?;
        let local_addr = tcp.local_addr().map_err(AdminError::io("ask for the own address"))?;
        lock.note(&format!("{local_addr} {}", identity.pin()))?;
        let listener = TlsListener::start(tcp, TlsAcceptor::from(identity.server_config()?), local_addr);
        let (pin, folder) = (identity.pin(), folder.clone());
        Ok(Server {
            listener,
            local_addr,
            pin,
            database,
            secrets,
            snapshots,
            backups,
            deploy,
            whitelist,
            cluster,
            whereabouts,
            folder,
            lock,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// SHA-256 of its certificate.
    pub fn pin(&self) -> Sha256 {
        self.pin
    }

    /// Which cluster it is of.
    pub fn cluster(&self) -> &ClusterFile {
        &self.cluster
    }

    /// Serves until `stop` is ready; then finishes the requests that run, and empties the WAL.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), AdminError> {
        let (stopping, stopped) = watch::channel(false);
        let snapshots = self.snapshots.clone();
        let here = (self.folder.clone(), self.whereabouts.locality.clone());
        if let Err(error) = quiet::begin(&self.folder, &self.database) {
            tracing::error!(%error, "there is no quiet copy of the database: do not copy the folder while this server runs");
        }
        let copying = tokio::spawn(quiet::keep(self.folder.clone(), self.database.clone()));
        let folder = self.folder.clone();
        let (database, backups) = (self.database.clone(), self.backups.clone());
        let kept = (backups, self.deploy);
        let app = App::new(database, self.secrets, snapshots, kept, self.cluster, here, stopped.clone());
        let member = tokio::spawn(async move {
            let (list, stands) = (self.whitelist, self.whereabouts);
            if let Err(error) = take_part(self.snapshots, self.backups, self.folder, list, stands).await {
                tracing::error!(%error, "this server takes part in no disk snapshot");
            }
        });
        let schedules = tokio::spawn(schedules::run(app.clone()));
        self.database.write(holds::begin)?;
        let ending = tokio::spawn(api::holds::watch(app.clone()));
        let mut graceful = stopped.clone();
        let giving_up = api::deleted::watch(app.clone());
        let auditing = tokio::spawn(api::audit::watch(app.clone()));
        let last = app.clone();
        let router = api::router(app).into_make_service_with_connect_info::<Peer>();
        let serving = axum::serve(self.listener, router).with_graceful_shutdown(async move {
            let _ = graceful.wait_for(|stop| *stop).await;
        });
        let deadline = async {
            stop.await;
            stopping.send_replace(true);
            tokio::time::sleep(STOP_TIMEOUT).await;
        };
        let served = async {
            let served = serving.into_future().await;
            last.all_done().await;
            served
        };
        tokio::select! {
            served = served => served.map_err(AdminError::io("serve"))?,
            () = giving_up => {}
            () = deadline => tracing::warn!("some requests did not end in time and were dropped"),
        }
        for task in [member, schedules, ending, auditing, copying] {
            task.abort();
            let _ = task.await;
        }
        api::audit::flush(&last).await;
        self.database.checkpoint()?;
        quiet::end(&folder)?;
        drop(self.lock);
        Ok(())
    }
}

/// The identity of the server of `folder`: the given files, or its own, made if there is none.
pub(crate) fn load_identity(
    folder: &std::path::Path,
    tls: Option<&(PathBuf, PathBuf)>,
) -> Result<ServerIdentity, AdminError> {
    Ok(match tls {
        Some((certificate, key)) => ServerIdentity::load(certificate, key)?,
        None => ServerIdentity::load_or_make(folder, &[])?,
    })
}

/// The key of the folder's secrets. A new one in place of one that is lost lets the server start, and credentials be
/// given anew; until then metadata servers go on with those that they have.
fn open_secrets(folder: &std::path::Path, database: &Database) -> Result<SecretBox, AdminError> {
    let known = folder.join(KEY_FILE).exists();
    let secrets = SecretBox::open(folder)?;
    if !known && database.write(block_stores::any_sealed)? {
        tracing::error!(
            "{KEY_FILE} is gone, and credentials of block stores were sealed with it: put it back from a copy and start \
             again, or give the credentials anew"
        );
    }
    Ok(secrets)
}

/// Tokens that are made from now on carry this pin; says so when it is another than before.
fn note_pin(database: &Database, pin: Sha256) -> Result<(), AdminError> {
    let before = database.write(|tx| {
        let before = setting(tx, tokens::PIN)?;
        set_setting(tx, tokens::PIN, &pin.to_string())?;
        Ok(before)
    })?;
    if before.is_some_and(|before| before != pin.to_string()) {
        tracing::warn!("the certificate is another than before: no token made before works; make new ones");
    }
    Ok(())
}

/// Connections with TLS done. Handshakes run beside each other, so that a slow one holds nobody up.
struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    local_addr: SocketAddr,
}

impl TlsListener {
    fn start(tcp: TcpListener, acceptor: TlsAcceptor, local_addr: SocketAddr) -> Self {
        let (sender, ready) = mpsc::channel(64);
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = tcp.accept() => accepted,
                    () = sender.closed() => return,
                };
                match accepted {
                    Ok((stream, peer)) => {
                        tokio::spawn(shake_hands(acceptor.clone(), stream, peer, sender.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        TlsListener { ready, local_addr }
    }
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    sender: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    // Only speed is lost if this fails.
    let _ = stream.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        // The server stopped if nobody takes it.
        Ok(Ok(stream)) => drop(sender.send((stream, peer)).await),
        Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
        Err(_) => tracing::debug!(%peer, "no TLS in time"),
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        Peer(*stream.remote_addr())
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The accepting task never ends before this listener does.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local_addr)
    }
}
