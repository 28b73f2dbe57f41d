//! Connections of metadata servers: TLS, a hello with the secret of one store, then requests in their order.
//!
//! What has come while the disk was busy is carried out at once: appends that follow each other are one write and one fdatasync.

use crate::http::Metrics;
use crate::stores::Stores;
use crate::strangers::{Stranger, Strangers};
use anyhow::{Result, anyhow, bail};
use bytes::{Bytes, BytesMut};
use chronofs_engine::copies::{CopyError, FolderCopy, Holding, Link};
use chronofs_engine::embedded::Place;
use chronofs_wire::frame::{self, FrameReader};
use chronofs_wire::identity::Sha256;
use chronofs_wire::message::{FRAME_MAX, common_protocol};
use chronofs_wire::tlog::{LogHello, LogReply, LogRequest, LogWelcome, PROTOCOL_MAX, PROTOCOL_MIN};
use rustix::net::sockopt;
use rustls::ServerConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Connections of metadata servers at a time.
const CONNECTIONS_MAX: usize = 256;
/// Bytes of a hello.
const HELLO_MAX: usize = 4 << 10;
/// How long a metadata server may take for TLS and its hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// One that takes longer to read an answer is cut off.
const WRITE_WITHIN: Duration = Duration::from_secs(30);
/// A silent one is asked by the kernel after this whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Bytes of appends that are carried out at once.
const BATCH_BYTES: usize = 8 << 20;
/// Requests that are.
const BATCH_MAX: usize = 64;

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) stores: Arc<Stores>,
    pub(crate) metrics: Metrics,
    places: Arc<Semaphore>,
    /// Those beside them that have not shown a secret yet.
    strangers: Arc<Strangers>,
}

impl Shared {
    pub(crate) fn new(stores: Arc<Stores>, metrics: Metrics) -> Self {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Shared { stores, metrics, places, strangers: Arc::default() }
    }

    /// How many metadata servers are connected.
    pub(crate) fn connections(&self) -> usize {
        CONNECTIONS_MAX - self.places.available_permits()
    }
}

/// Accepts connections until it is dropped.
pub(crate) async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, shared: Arc<Shared>) {
    let acceptor = TlsAcceptor::from(tls);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::error!(%error, "cannot accept connections; trying again in a second");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let stranger = match shared.strangers.enter(peer.ip()) {
            Ok(stranger) => stranger,
            Err(why) => {
                tracing::warn!(%peer, "refused: {why}");
                continue;
            }
        };
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        tokio::spawn(async move {
            if let Err(error) = run(stream, acceptor, &shared, stranger).await {
                tracing::info!(%peer, "connection ended: {error:#}");
            }
        });
    }
}

fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE)?;
    Ok(())
}

type Input = FrameReader<ReadHalf<TlsStream<TcpStream>>>;
type Output = WriteHalf<TlsStream<TcpStream>>;

/// TLS and the hello; `None` if there came none.
async fn greeted(stream: TcpStream, acceptor: TlsAcceptor) -> Result<Option<(Input, Output, LogHello)>> {
    let (input, output) = split(acceptor.accept(stream).await?);
    let mut frames = FrameReader::new(input);
    frames.set_max(HELLO_MAX);
    let hello = frames.next::<LogHello>().await?;
    Ok(hello.map(|hello| (frames, output, hello)))
}

async fn run(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    shared: &Arc<Shared>,
    stranger: Stranger,
) -> Result<()> {
    keep_alive(&stream)?;
    let greeted = timeout(HELLO_WITHIN, greeted(stream, acceptor)).await;
    let greeted = greeted.map_err(|_| anyhow!("no TLS and no hello in time"))??;
    let Some((mut frames, mut output, hello)) = greeted else { return Ok(()) };
    let store = hello.store;
    // It opens the copy, whose disk may hang.
    let all = shared.clone();
    let welcomed = tokio::task::spawn_blocking(move || welcome(hello, &all, stranger)).await?;
    // The place is kept for as long as the connection lasts.
    let (mut copy, kept, _place) = match welcomed {
        Ok(Welcome { protocol, copy, kept, place }) => {
            frames.set_max(FRAME_MAX);
            write(&mut output, &[LogWelcome::Welcome { protocol }]).await?;
            (copy, kept, place)
        }
        Err(error) => {
            shared.metrics.refused.inc();
            tracing::warn!(%store, "a metadata server was refused: {}", error.reason);
            let (reason, soon) = (error.reason, error.soon);
            let refused = LogWelcome::Refused { reason, soon };
            return write(&mut output, &[refused]).await;
        }
    };
    while let Some(first) = frames.next::<LogRequest>().await? {
        let (mut requests, mut bytes) = (vec![first], frames.take_given());
        while requests.len() < BATCH_MAX && bytes < BATCH_BYTES {
            let Some(request) = frames.try_next()? else { break };
            requests.push(request);
            bytes += frames.take_given();
        }
        if !shared.stores.still_admits(store, &kept) {
            let why = "this metadata server may not use this log server any more".to_owned();
            write(&mut output, &[LogReply::Unusable(why)]).await?;
            bail!("the secret of store {store} is revoked");
        }
        let metrics = shared.metrics.clone();
        let done = tokio::task::spawn_blocking(move || {
            let replies = carry_out(&mut copy, requests, &metrics);
            (copy, replies)
        });
        let replies;
        (copy, replies) = done.await?;
        write(&mut output, &replies).await?;
    }
    Ok(())
}

/// Why a hello is refused; `soon`: what the admin server says may be on its way.
struct Unwelcome {
    reason: String,
    soon: bool,
}

/// What one that was admitted works with.
struct Welcome {
    protocol: u16,
    copy: FolderCopy,
    kept: Sha256,
    place: OwnedSemaphorePermit,
}

fn welcome(hello: LogHello, shared: &Shared, stranger: Stranger) -> Result<Welcome, Unwelcome> {
    let refused = |reason: String| Unwelcome { reason, soon: false };
    let theirs = (hello.protocol_min, hello.protocol_max);
    let protocol = common_protocol(theirs, (PROTOCOL_MIN, PROTOCOL_MAX)).ok_or_else(|| {
        let (min, max) = theirs;
        refused(format!("it speaks protocols {PROTOCOL_MIN} to {PROTOCOL_MAX}, and you {min} to {max}"))
    })?;
    // Who guesses does not learn which stores there are.
    let kept = shared.stores.admits(hello.store, &hello.secret).ok_or_else(|| {
        let reason =
            "this log server was not told by the admin server that it keeps a copy for you".to_owned();
        Unwelcome { reason, soon: true }
    })?;
    let place = shared.places.clone().try_acquire_owned().map_err(|_| {
        let reason = format!("this log server has {CONNECTIONS_MAX} connections already");
        Unwelcome { reason, soon: true }
    })?;
    drop(stranger);
    let copy = shared.stores.open(hello.store, hello.known).map_err(|error| refused(error.to_string()))?;
    Ok(Welcome { protocol, copy, kept, place })
}

async fn write<T: serde::Serialize>(output: &mut (impl AsyncWrite + Unpin), messages: &[T]) -> Result<()> {
    let mut out = BytesMut::new();
    for message in messages {
        frame::encode(message, &mut out)?;
    }
    let written = async {
        output.write_all(&out).await?;
        output.flush().await
    };
    Ok(timeout(WRITE_WITHIN, written).await.map_err(|_| anyhow!("it does not read its answers"))??)
}

/// An append, and how many requests it answers.
struct Appending {
    epoch: u64,
    place: Place,
    bytes: BytesMut,
    requests: usize,
}

/// Carries requests out in their order.
fn carry_out(copy: &mut FolderCopy, requests: Vec<LogRequest>, metrics: &Metrics) -> Vec<LogReply> {
    let mut replies = Vec::with_capacity(requests.len());
    let mut open: Option<Appending> = None;
    for request in requests {
        let LogRequest::Append { epoch, segment, offset, bytes } = request else {
            finish(copy, open.take(), metrics, &mut replies);
            replies.push(single(copy, request));
            continue;
        };
        let place = Place { segment, offset };
        match &mut open {
            Some(before)
                if before.epoch == epoch
                    && before.place.segment == segment
                    && before.place.offset + before.bytes.len() as u64 == offset =>
            {
                before.bytes.extend_from_slice(&bytes);
                before.requests += 1;
            }
            _ => {
                finish(copy, open.take(), metrics, &mut replies);
                open = Some(Appending { epoch, place, bytes: BytesMut::from(&bytes[..]), requests: 1 });
            }
        }
    }
    finish(copy, open.take(), metrics, &mut replies);
    replies
}

fn finish(
    copy: &mut FolderCopy,
    appending: Option<Appending>,
    metrics: &Metrics,
    replies: &mut Vec<LogReply>,
) {
    let Some(Appending { epoch, place, bytes, requests }) = appending else { return };
    let bytes: Bytes = bytes.freeze();
    let begun = std::time::Instant::now();
    let end = copy.append(epoch, place, &bytes);
    metrics.appended(bytes.len(), begun.elapsed(), end.is_ok());
    let reply = match end {
        Ok(()) => LogReply::Done,
        Err(error) => refusal(error),
    };
    replies.extend(std::iter::repeat_n(reply, requests));
}

fn single(copy: &mut FolderCopy, request: LogRequest) -> LogReply {
    let done = match request {
        LogRequest::Seal { epoch } => copy.seal(epoch).map(holding),
        LogRequest::Open { epoch } => copy.open(epoch).map(holding),
        LogRequest::Append { epoch, segment, offset, bytes } => {
            copy.append(epoch, Place { segment, offset }, &bytes).map(|()| LogReply::Done)
        }
        LogRequest::Whole { epoch } => copy.whole(epoch).map(|()| LogReply::Done),
        LogRequest::Cut { epoch, segment, offset } => {
            copy.cut(epoch, Place { segment, offset }).map(|()| LogReply::Done)
        }
        LogRequest::Pop { epoch, before } => copy.pop(epoch, before).map(|()| LogReply::Done),
        LogRequest::Sum { segment, length } => copy.sum(segment, length).map(LogReply::Sum),
        LogRequest::Read { segment, offset, length } => {
            let length = length.min(BATCH_BYTES as u64);
            copy.read(Place { segment, offset }, length).map(LogReply::Bytes)
        }
    };
    done.unwrap_or_else(refusal)
}

fn holding(holding: Holding) -> LogReply {
    LogReply::Holding {
        segments: holding.segments.iter().map(|held| (held.number, held.length)).collect(),
        known_segment: holding.known_durable.segment,
        known_offset: holding.known_durable.offset,
        filling: holding.filling,
    }
}

fn refusal(error: CopyError) -> LogReply {
    match error {
        CopyError::Fenced(epoch) => LogReply::Fenced(epoch),
        CopyError::Elsewhere(place) => LogReply::Elsewhere { segment: place.segment, offset: place.offset },
        CopyError::Unusable(why) => LogReply::Unusable(why),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]
mod tests {
    use super::*;
    use crate::strangers::{OF_ONE_MAX, STRANGERS_MAX};
    use chronofs_wire::identity::Secret;
    use chronofs_wire::tlog::{AllowedStore, LogAssignment};
    use chronofs_wire::tls;
    use tokio::io::{AsyncRead, AsyncReadExt};

    fn append(offset: u64, bytes: &'static [u8]) -> LogRequest {
        LogRequest::Append { epoch: 1, segment: 1, offset, bytes: Bytes::from_static(bytes) }
    }

    #[test]
    fn appends_that_follow_each_other_are_done_at_once_and_each_is_answered() {
        let temp = tempfile::tempdir().unwrap();
        let mut copy = FolderCopy::new(&temp.path().join("c"), "s").unwrap();
        let (metrics, _) = Metrics::new();
        let requests =
            vec![LogRequest::Open { epoch: 1 }, append(0, b"abc"), append(3, b"de"), append(5, b"f")];
        let replies = carry_out(&mut copy, requests, &metrics);
        assert_eq!(replies[1..], [LogReply::Done, LogReply::Done, LogReply::Done]);
        assert_eq!(metrics.appends.get(), 1);
        let read = LogRequest::Read { segment: 1, offset: 1, length: 10 };
        assert_eq!(
            carry_out(&mut copy, vec![read], &metrics),
            [LogReply::Bytes(Bytes::from_static(b"bcdef"))]
        );
        // After one that fails all do, until the copy is opened again: what is missing in between would be a gap.
        let replies = carry_out(&mut copy, vec![append(9, b"x"), append(6, b"g"), append(7, b"h")], &metrics);
        assert_eq!(replies[0], LogReply::Elsewhere { segment: 1, offset: 6 });
        assert!(matches!(&replies[1..], [LogReply::Unusable(_), LogReply::Unusable(_)]), "{replies:?}");
        let replies = carry_out(&mut copy, vec![LogRequest::Open { epoch: 1 }], &metrics);
        assert!(matches!(replies[..], [LogReply::Holding { .. }]));
    }

    #[test]
    fn an_older_connection_of_the_same_owner_appends_nothing_any_more() {
        let temp = tempfile::tempdir().unwrap();
        let place = temp.path().join("c");
        let (mut old, mut new) =
            (FolderCopy::new(&place, "s").unwrap(), FolderCopy::new(&place, "s").unwrap());
        let (metrics, _) = Metrics::new();
        let opened = |copy: &mut FolderCopy| carry_out(copy, vec![LogRequest::Open { epoch: 1 }], &metrics);
        opened(&mut old);
        assert_eq!(carry_out(&mut old, vec![append(0, b"abc")], &metrics), [LogReply::Done]);
        // The answer got lost, and the owner came again; what it had sent before arrives late.
        opened(&mut new);
        let next = LogRequest::Append { epoch: 1, segment: 2, offset: 0, bytes: Bytes::from_static(b"next") };
        let more = LogRequest::Append { epoch: 1, segment: 2, offset: 4, bytes: Bytes::from_static(b"more") };
        assert_eq!(carry_out(&mut new, vec![next.clone(), more], &metrics), [LogReply::Done, LogReply::Done]);
        let late = carry_out(&mut old, vec![next], &metrics);
        assert!(matches!(&late[..], [LogReply::Unusable(_)]), "{late:?}");
        let read = LogRequest::Read { segment: 2, offset: 0, length: 10 };
        let read = carry_out(&mut new, vec![read], &metrics);
        assert_eq!(read, [LogReply::Bytes(Bytes::from_static(b"nextmore"))]);
    }

    type Client = tokio_rustls::client::TlsStream<TcpStream>;

    async fn reached(address: std::net::SocketAddr, pin: Sha256) -> Client {
        let connector = tokio_rustls::TlsConnector::from(tls::client_config(pin).unwrap());
        let stream = from(1, address).await;
        connector.connect(tls::server_name(&address.to_string()), stream).await.unwrap()
    }

    /// From 127.0.0.`host`.
    async fn from(host: u8, address: std::net::SocketAddr) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((std::net::Ipv4Addr::new(127, 0, 0, host), 0).into()).unwrap();
        socket.connect(address).await.unwrap()
    }

    async fn asked<T: serde::Serialize, A: serde::de::DeserializeOwned>(client: &mut Client, said: T) -> A {
        write(client, &[said]).await.unwrap();
        FrameReader::new(client).next().await.unwrap().unwrap()
    }

    async fn ends(input: &mut (impl AsyncRead + Unpin)) {
        let end = timeout(HELLO_WITHIN / 2, input.read(&mut [0])).await;
        assert!(matches!(end.expect("it ends at once"), Ok(0) | Err(_)));
    }

    async fn no_strangers(shared: &Shared) {
        let begun = std::time::Instant::now();
        while shared.strangers.count() > 0 {
            assert!(begun.elapsed() < HELLO_WITHIN / 2, "waited in vain");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn strangers_put_nobody_out_and_say_little() {
        let temp = tempfile::tempdir().unwrap();
        let identity = tls::ServerIdentity::load_or_make(temp.path(), &["localhost".to_owned()]).unwrap();
        let stores = Arc::new(Stores::new(temp.path().to_owned()));
        let (id, secret) = (uuid::Uuid::from_u128(1), Secret::draw().unwrap());
        let store = AllowedStore { id, name: "m".to_owned(), secret_sha256: secret.sha256() };
        stores.allow(&LogAssignment { revision: 1, stores: vec![store] });
        let shared = Arc::new(Shared::new(stores, Metrics::new().0));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, pin) = (listener.local_addr().unwrap(), identity.pin());
        tokio::spawn(serve(listener, identity.server_config().unwrap(), shared.clone()));
        let hello = |secret: &[u8]| LogHello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            store: id,
            secret: Bytes::copy_from_slice(secret),
            known: false,
        };
        let mut inside = reached(address, pin).await;
        let welcome: LogWelcome = asked(&mut inside, hello(&secret.0)).await;
        assert!(matches!(welcome, LogWelcome::Welcome { .. }), "{welcome:?}");
        assert_eq!(shared.connections(), 1);
        // Of a hello that is too long nothing but its length is waited for.
        let mut talks = reached(address, pin).await;
        talks.write_all(&(HELLO_MAX as u32 + 1).to_be_bytes()).await.unwrap();
        ends(&mut talks).await;
        let mut guesses = reached(address, pin).await;
        let welcome: LogWelcome = asked(&mut guesses, hello(b"guessed")).await;
        assert!(matches!(welcome, LogWelcome::Refused { .. }), "{welcome:?}");
        no_strangers(&shared).await;
        // Those of one address are in nobody else's way.
        let mut silent = Vec::new();
        for _ in 0..OF_ONE_MAX {
            silent.push(from(9, address).await);
        }
        for _ in 0..STRANGERS_MAX {
            ends(&mut from(9, address).await).await;
        }
        let mut other = reached(address, pin).await;
        let welcome: LogWelcome = asked(&mut other, hello(&secret.0)).await;
        assert!(matches!(welcome, LogWelcome::Welcome { .. }), "{welcome:?}");
        drop(other);
        while shared.connections() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for n in OF_ONE_MAX..STRANGERS_MAX {
            silent.push(from(9 + (n / OF_ONE_MAX) as u8, address).await);
        }
        ends(&mut from(1, address).await).await;
        // Who is in asks for more than a hello may have.
        let opened: LogReply = asked(&mut inside, LogRequest::Open { epoch: 1 }).await;
        assert!(matches!(opened, LogReply::Holding { .. }), "{opened:?}");
        let bytes = Bytes::from(vec![1; 2 * HELLO_MAX]);
        let append = LogRequest::Append { epoch: 1, segment: 1, offset: 0, bytes };
        assert_eq!(asked::<_, LogReply>(&mut inside, append).await, LogReply::Done);
        assert_eq!(shared.connections(), 1, "no stranger has a place of a metadata server");
        drop(silent);
        no_strangers(&shared).await;
        let mut second = reached(address, pin).await;
        let _: LogWelcome = asked(&mut second, hello(&secret.0)).await;
        assert_eq!(shared.connections(), 2);
    }
}
