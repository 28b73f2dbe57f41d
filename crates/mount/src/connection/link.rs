//! One connection: TCP, TLS with the pinned certificate, hello and welcome.

use super::Wanted;
use super::target::Target;
use crate::clock::since_boot;
use bytes::{Bytes, BytesMut};
use chronofs_core::{SessionId, Version};
use chronofs_wire::frame::{self, FrameReader};
use chronofs_wire::http::ClientError;
use chronofs_wire::message::{
    Hello, HelloAnswer, PROTOCOL_MAX, PROTOCOL_MIN, PROTOCOL_SEALED, Refusal, RefusalReason, Welcome,
};
use chronofs_wire::tls;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long a server may take to accept a connection and to answer the hello. A first session on a volume that was
/// not shared until then waits until the present one has emptied its caches, so this is no network's round trip.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const WELCOME_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the start of a mount goes on asking a server that says `NotNow`, or that is not there yet.
const FIRST_PATIENCE: Duration = Duration::from_secs(60);
/// How long a mount that begins waits for a server to hear of its newest epoch, and how often it looks.
const OLD_OWNER_PATIENCE: Duration = Duration::from_secs(10);
const OLD_OWNER_RETRY: Duration = Duration::from_millis(200);

/// Why a session could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The admin server does not say where the volume is.
    #[error("{0}")]
    Resolve(#[from] ClientError),
    /// The metadata server cannot be reached.
    #[error("cannot reach the metadata server at {address}: {reason}; is it running?")]
    Unreachable {
        /// Its address.
        address: String,
        /// What happened.
        reason: String,
    },
    /// It is somebody else.
    #[error(
        "the server at {address} is not the metadata server that the admin server names: its certificate is another"
    )]
    WrongCertificate {
        /// Its address.
        address: String,
    },
    /// It refuses.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// It is an old owner of the volume.
    #[error(
        "the metadata server at {address} owns the volume under epoch {found}, but epoch {known} has been seen: \
         it was replaced; stop it"
    )]
    OldOwner {
        /// Its address.
        address: String,
        /// The epoch it named.
        found: u64,
        /// The highest one seen.
        known: u64,
    },
}

/// A connection that was welcomed.
pub(crate) struct Link {
    pub(crate) reader: FrameReader<ReadHalf<TlsStream<TcpStream>>>,
    pub(crate) writer: WriteHalf<TlsStream<TcpStream>>,
    pub(crate) welcome: Box<Welcome>,
    pub(crate) target: Target,
    /// What the client called itself: the server gives a session back only to who opened it.
    pub(crate) client: u128,
    /// When the hello was sent, since this machine was started.
    pub(crate) asked: Duration,
}

/// What a hello says about the session.
pub(crate) struct Opening {
    pub(crate) client: u128,
    pub(crate) resume: Option<SessionId>,
    pub(crate) seen: Version,
    pub(crate) epoch: u64,
}

/// The first connection of a mount: an error is for the person who mounts, so only what passes is waited for.
pub(crate) async fn open_first(wanted: &Wanted) -> Result<Link, OpenError> {
    let client = uuid::Uuid::new_v4().as_u128();
    let give_up = Instant::now() + FIRST_PATIENCE;
    let old_owner_until = Instant::now() + OLD_OWNER_PATIENCE;
    loop {
        let target = wanted.source.resolve().await?;
        let opening = Opening { client, resume: None, seen: Version::ZERO, epoch: target.epoch };
        match connect(wanted, &target, &opening).await {
            Err(OpenError::Refused(Refusal { reason: RefusalReason::NotNow { retry_ms }, .. }))
                if Instant::now() < give_up =>
            {
                tokio::time::sleep(Duration::from_millis(u64::from(retry_ms.clamp(10, 5000)))).await;
            }
            // A server that starts hears of its new epoch a moment after the admin server has given it.
            Err(OpenError::OldOwner { .. }) if Instant::now() < old_owner_until => {
                tokio::time::sleep(OLD_OWNER_RETRY).await;
            }
            other => return other,
        }
    }
}

/// Connects to `target` and says hello.
pub(crate) async fn connect(wanted: &Wanted, target: &Target, opening: &Opening) -> Result<Link, OpenError> {
    let unreachable = |reason: String| OpenError::Unreachable { address: target.address.clone(), reason };
    let stream = match tokio::time::timeout(CONNECT_TIMEOUT, secure(target)).await {
        Ok(secured) => secured?,
        Err(_) => return Err(unreachable("no answer in time".to_owned())),
    };
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = FrameReader::new(reader);
    let asked = since_boot();
    let mut out = BytesMut::new();
    frame::encode(&hello(wanted, target, opening), &mut out).map_err(|e| unreachable(e.to_string()))?;
    let exchange = async {
        writer.write_all(&out).await.map_err(|e| unreachable(e.to_string()))?;
        writer.flush().await.map_err(|e| unreachable(e.to_string()))?;
        reader.next::<HelloAnswer>().await.map_err(|e| unreachable(e.to_string()))
    };
    let answer = match tokio::time::timeout(WELCOME_TIMEOUT, exchange).await {
        Ok(answer) => answer?,
        Err(_) => return Err(unreachable("it does not answer the hello".to_owned())),
    };
    let welcome = match answer {
        None => return Err(unreachable("it closed the connection".to_owned())),
        Some(Err(refusal)) => return Err(OpenError::Refused(refusal)),
        Some(Ok(welcome)) => welcome,
    };
    if welcome.epoch < opening.epoch {
        let (found, known) = (welcome.epoch, opening.epoch);
        return Err(OpenError::OldOwner { address: target.address.clone(), found, known });
    }
    Ok(Link { reader, writer, welcome, target: target.clone(), client: opening.client, asked })
}

async fn secure(target: &Target) -> Result<TlsStream<TcpStream>, OpenError> {
    let unreachable = |reason: String| OpenError::Unreachable { address: target.address.clone(), reason };
    let tcp = TcpStream::connect(&target.address).await.map_err(|e| unreachable(e.to_string()))?;
    // While nobody listens on a port of the ephemeral range, a connection to it may get that port at its own end, and is
    // then connected to itself: the server, when it comes back, could not have its port.
    if tcp.local_addr().ok() == tcp.peer_addr().ok() {
        return Err(unreachable("nobody listens there".to_owned()));
    }
    tcp.set_nodelay(true).map_err(|e| unreachable(e.to_string()))?;
    let config = tls::client_config(target.pin).map_err(|e| unreachable(e.to_string()))?;
    let name = tls::server_name(&target.address);
    TlsConnector::from(config).connect(name, tcp).await.map_err(|error| {
        if tls::is_wrong_certificate(&error) {
            OpenError::WrongCertificate { address: target.address.clone() }
        } else {
            unreachable(error.to_string())
        }
    })
}

fn hello(wanted: &Wanted, target: &Target, opening: &Opening) -> Hello {
    Hello {
        protocol_min: if wanted.sealed { PROTOCOL_SEALED } else { PROTOCOL_MIN },
        protocol_max: PROTOCOL_MAX,
        token_id: wanted.credentials.id,
        token_secret: Bytes::copy_from_slice(&wanted.credentials.secret.0),
        volume: target.volume,
        client: opening.client,
        client_name: wanted.client_name.clone(),
        resume: opening.resume,
        at: wanted.at,
        read_only: wanted.read_only,
        seen: opening.seen,
        direct: wanted.direct,
    }
}
