//! The ways of objects between this mount and the block store.
//!
//! [`port`] chooses: the bucket itself with the mount's own credentials ([`direct`]), the store's own folder where this machine has it, signed requests where the store takes them
//! ([`signed`]), else the metadata server, which is also where a signed request that goes wrong ends up. [`outage`] says what
//! happens while no way leads to the store. Nothing here believes what it reads: the data path checks every slice.

pub(crate) mod direct;
pub(crate) mod outage;
pub(crate) mod requests;
mod signed;
mod way;

use crate::connection::Connection;
use bytes::Bytes;
use chronofs_blocks::name::parse_object_name;
use chronofs_blocks::{BlockStore, ObjectPort, RemoteStore, ShownBy, StoreError};
use chronofs_wire::message::{StoreAccess, Welcome};
use futures::future::BoxFuture;
use outage::{Patience, Patient};
use signed::SignedPort;
use std::path::Path;
use std::sync::Arc;

/// The way to the volume's objects. Within a tokio runtime.
pub(crate) fn port(
    welcome: &Welcome,
    connection: &Arc<Connection>,
    direct: Option<Arc<RemoteStore>>,
    patience: &Arc<Patience>,
) -> Arc<dyn ObjectPort> {
    let port = direct.map(|store| store as Arc<dyn ObjectPort>);
    Patient::new(port.unwrap_or_else(|| choose(welcome, connection)), Arc::clone(patience))
}

fn choose(welcome: &Welcome, connection: &Arc<Connection>) -> Arc<dyn ObjectPort> {
    let through_server = || ThroughServer(Arc::clone(connection));
    let own = match &welcome.store {
        StoreAccess::Folder { path, marker } => {
            let opened = BlockStore::open(Path::new(path), *marker);
            opened.map(|store| Arc::new(store) as Arc<dyn ObjectPort>).map_err(|error| error.to_string())
        }
        StoreAccess::Signed { use_ms, ca_pem, puts } => {
            let port = SignedPort::new(through_server(), *use_ms, ca_pem.as_deref(), *puts);
            let port = port.inspect(|port| port.expect_puts(welcome));
            port.map(|port| Arc::new(port) as _).map_err(|error| error.to_string())
        }
        StoreAccess::ThroughServer => return Arc::new(through_server()),
    };
    own.unwrap_or_else(|error| {
        tracing::info!("objects go through the metadata server: {error}");
        Arc::new(through_server())
    })
}

/// Objects through the metadata server.
struct ThroughServer(Arc<Connection>);

impl ThroughServer {
    /// Whether the session that now is may store the object.
    fn is_ours(&self, name: &str) -> bool {
        parse_object_name(name).is_some_and(|(_, object)| object.session == self.0.session())
    }
}

impl ObjectPort for ThroughServer {
    fn put<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            // Between its name and its answer a new session may have begun, which may not store it.
            if !self.is_ours(name) {
                return Err(StoreError::session_over(name));
            }
            let stored = self.0.put_object(name.to_owned(), bytes).await;
            stored.map_err(|errno| match self.is_ours(name) {
                true => StoreError::from_wire(name, errno),
                false => StoreError::session_over(name),
            })
        })
    }

    /// The server reads for nobody who does not say where the bytes show.
    fn get<'a>(&'a self, name: &'a str, _: u64, _: u32) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(async move { Err(StoreError::not_shown(name)) })
    }

    fn get_slice<'a>(
        &'a self,
        shown_by: ShownBy,
        name: &'a str,
        offset: u64,
        len: u32,
    ) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(async move {
            let Some((_, object)) = parse_object_name(name) else { return Err(StoreError::not_shown(name)) };
            let found = self.0.get_object(shown_by, object, offset, len).await;
            found.map_err(|errno| StoreError::from_wire(name, errno))
        })
    }
}
