//! The face to clients: TLS connections, their frames in and out, objects for those who cannot reach the store.

mod connection;
pub mod objects;
pub mod outbox;

use crate::executor::Input;
use crate::machine::{ConnId, Event};
use crate::metrics::Metrics;
use connection::{Connection, InFlight};
use outbox::Outbox;
use rustls::ServerConfig;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::Sender;
use tokio_rustls::TlsAcceptor;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 4096;
/// How long a client may take for TLS and its hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// Bytes of calls of all connections that were received and are not decided. What comes beyond waits in the network.
const CALL_BYTES_MAX: usize = 128 << 20;
/// Bytes of objects of all connections that were received and are not stored. Apart from calls: a store that hangs holds
/// up those who write to it and nobody else.
const OBJECT_BYTES_MAX: usize = 256 << 20;

/// What all connections share.
pub struct Shared {
    queue: Sender<Input>,
    in_flight: InFlight,
    metrics: Arc<Metrics>,
    next_conn: AtomicU64,
    outboxes: Mutex<BTreeMap<u64, Arc<Outbox>>>,
    /// A client that is silent for so long is cut off.
    silent_max: Duration,
}

impl Shared {
    /// Connections hand their frames to `queue`.
    pub fn new(queue: Sender<Input>, metrics: Arc<Metrics>, silent_max: Duration) -> Arc<Shared> {
        Arc::new(Shared {
            queue,
            in_flight: InFlight::new(CALL_BYTES_MAX, OBJECT_BYTES_MAX),
            metrics,
            next_conn: AtomicU64::new(1),
            outboxes: Mutex::default(),
            silent_max,
        })
    }

    fn outboxes(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Outbox>>> {
        self.outboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every connection gets `frame` and then ends.
    pub fn close_all(&self, frame: &chronofs_wire::message::ToClient) {
        for outbox in self.outboxes().values() {
            drop(outbox.push(frame));
            outbox.close();
        }
    }

    /// Connections now.
    pub fn connections(&self) -> usize {
        self.outboxes().len()
    }
}

/// Accepts connections until it is dropped.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, shared: Arc<Shared>) {
    let acceptor = TlsAcceptor::from(tls);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: what is open goes on meanwhile.
                tracing::error!(%error, "cannot accept connections; trying again in a second");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        if shared.connections() >= CONNECTIONS_MAX {
            tracing::warn!(%peer, "refused: there are {CONNECTIONS_MAX} connections already");
            continue;
        }
        tokio::spawn(accepted(stream, peer, acceptor.clone(), shared.clone()));
    }
}

async fn accepted(stream: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let id = shared.next_conn.fetch_add(1, Ordering::Relaxed);
    let outbox = Arc::new(Outbox::default());
    shared.outboxes().insert(id, outbox.clone());
    shared.metrics.connections.inc();
    let (queue, in_flight) = (shared.queue.clone(), shared.in_flight.clone());
    let connection = Connection { id: ConnId(id), peer, outbox, queue, in_flight };
    connection.run(stream, acceptor, HELLO_WITHIN, shared.silent_max).await;
    shared.outboxes().remove(&id);
    shared.metrics.connections.dec();
    drop(shared.queue.send(Input::Events(vec![Event::Gone(ConnId(id))])).await);
}
