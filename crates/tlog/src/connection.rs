//! Connections of metadata servers: TLS, a hello with the secret of one store, then requests in their order.
//!
//! What has come while the disk was busy is carried out at once: appends that follow each other are one write and one fdatasync.

use crate::http::Metrics;
use crate::stores::Stores;
use anyhow::{Result, anyhow, bail};
use bytes::{Bytes, BytesMut};
use chronofs_engine::copies::{CopyError, FolderCopy, Holding, Link};
use chronofs_engine::embedded::Place;
use chronofs_wire::frame::{self, FrameReader};
use chronofs_wire::identity::Sha256;
use chronofs_wire::message::common_protocol;
use chronofs_wire::tlog::{LogHello, LogReply, LogRequest, LogWelcome, PROTOCOL_MAX, PROTOCOL_MIN};
use rustix::net::sockopt;
use rustls::ServerConfig;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 256;
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
    pub(crate) open: AtomicUsize,
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
        if shared.open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            tracing::warn!(%peer, "refused: there are {CONNECTIONS_MAX} connections already");
            continue;
        }
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        tokio::spawn(async move {
            shared.open.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = run(stream, acceptor, &shared).await {
                tracing::info!(%peer, "connection ended: {error:#}");
            }
            shared.open.fetch_sub(1, Ordering::Relaxed);
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

async fn run(stream: TcpStream, acceptor: TlsAcceptor, shared: &Arc<Shared>) -> Result<()> {
    keep_alive(&stream)?;
    let stream =
        timeout(HELLO_WITHIN, acceptor.accept(stream)).await.map_err(|_| anyhow!("no TLS in time"))??;
    let (input, mut output) = split(stream);
    let mut frames = FrameReader::new(input);
    let hello = timeout(HELLO_WITHIN, frames.next::<LogHello>()).await;
    let Some(hello) = hello.map_err(|_| anyhow!("no hello in time"))?? else { return Ok(()) };
    let store = hello.store;
    // It opens the copy, whose disk may hang.
    let all = shared.clone();
    let welcomed = tokio::task::spawn_blocking(move || welcome(hello, &all)).await?;
    let (mut copy, kept) = match welcomed {
        Ok((protocol, copy, kept)) => {
            write(&mut output, &[LogWelcome::Welcome { protocol }]).await?;
            (copy, kept)
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

fn welcome(hello: LogHello, shared: &Shared) -> Result<(u16, FolderCopy, Sha256), Unwelcome> {
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
    let copy = shared.stores.open(hello.store, hello.known).map_err(|error| refused(error.to_string()))?;
    Ok((protocol, copy, kept))
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
#[allow(clippy::unwrap_used, reason = "helpers of tests")]
mod tests {
    use super::*;

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
}
