//! One connection: TLS, hello, then frames in batches to the executor and its answers in one write each.

use super::outbox::{Next, Outbox};
use crate::executor::Input;
use crate::machine::{Call, ConnId, Event};
use chronofs_wire::frame::{FrameError, FrameReader};
use chronofs_wire::message::{Hello, HelloAnswer, PROTOCOL_MAX, PROTOCOL_MIN, Refusal, RefusalReason};
use chronofs_wire::message::{ToClient, ToServer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, split};
use tokio::net::TcpStream;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// Frames handed over at once.
const BATCH_MAX: usize = 256;
/// A client that takes longer to read what was written is cut off.
const WRITE_WITHIN: Duration = Duration::from_secs(30);

pub(super) struct Connection {
    pub(super) id: ConnId,
    pub(super) peer: SocketAddr,
    pub(super) outbox: Arc<Outbox>,
    pub(super) queue: Sender<Input>,
}

impl Connection {
    /// Runs the connection to its end.
    pub(super) async fn run(
        &self,
        stream: TcpStream,
        acceptor: TlsAcceptor,
        hello_within: Duration,
        silent_max: Duration,
    ) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(peer = %self.peer, %error, "TCP_NODELAY cannot be set");
        }
        let stream = match timeout(hello_within, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::info!(peer = %self.peer, %error, "no TLS");
                return;
            }
            Err(_) => {
                tracing::info!(peer = %self.peer, "no TLS in time");
                return;
            }
        };
        let (input, output) = split(stream);
        let writer = write_all(output, self.outbox.clone(), self.peer);
        let reader = self.read_all(FrameReader::new(input), hello_within, silent_max);
        // When the reader is done, what is queued still goes out; when the writer is, nobody is there to answer.
        tokio::pin!(writer);
        tokio::select! {
            () = &mut writer => {}
            () = reader => {
                self.outbox.close();
                writer.await;
            }
        }
    }

    async fn read_all<R: AsyncRead + Unpin>(
        &self,
        mut frames: FrameReader<R>,
        hello_within: Duration,
        silent_max: Duration,
    ) {
        match timeout(hello_within, frames.next::<Hello>()).await {
            Ok(Ok(Some(hello))) => {
                let input = Input::Open(self.id, self.outbox.clone(), Box::new(hello));
                if self.queue.send(input).await.is_err() {
                    return;
                }
            }
            Ok(Ok(None)) => return,
            Ok(Err(error)) => return self.refuse_hello(&error),
            Err(_) => {
                tracing::info!(peer = %self.peer, "no hello in time");
                return;
            }
        }
        loop {
            let first = match timeout(silent_max, frames.next::<ToServer>()).await {
                Ok(Ok(Some(frame))) => frame,
                Ok(Ok(None)) => return,
                Ok(Err(error)) => return self.refuse_frame(&error),
                Err(_) => {
                    tracing::info!(peer = %self.peer, "cut off: silent for {} s", silent_max.as_secs());
                    return;
                }
            };
            let mut events = vec![self.event(first)];
            let mut failed = None;
            while events.len() < BATCH_MAX {
                match frames.try_next::<ToServer>() {
                    Ok(Some(frame)) => events.push(self.event(frame)),
                    Ok(None) => break,
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
            if self.queue.send(Input::Events(events)).await.is_err() {
                return;
            }
            if let Some(error) = failed {
                return self.refuse_frame(&error);
            }
        }
    }

    fn event(&self, frame: ToServer) -> Event {
        match frame {
            ToServer::Call { id, acked, caller, request } => {
                Event::Call(self.id, Call { id, acked, caller, request })
            }
            frame => Event::Frame(self.id, frame),
        }
    }

    fn refuse_hello(&self, error: &FrameError) {
        tracing::warn!(peer = %self.peer, %error, "refused: not a hello");
        let message = format!("{error}; this server speaks protocols {PROTOCOL_MIN} to {PROTOCOL_MAX}");
        let answer: HelloAnswer = Err(Refusal { reason: RefusalReason::Protocol, message });
        drop(self.outbox.push(&answer));
    }

    fn refuse_frame(&self, error: &FrameError) {
        match error {
            FrameError::Io(error) => tracing::debug!(peer = %self.peer, %error, "the connection broke"),
            error => {
                tracing::warn!(peer = %self.peer, %error, "refused: a frame that is not understood");
                drop(self.outbox.push(&ToClient::Refused { message: error.to_string() }));
            }
        }
    }
}

async fn write_all<W: AsyncWrite + Unpin>(mut output: W, outbox: Arc<Outbox>, peer: SocketAddr) {
    while let Next::Write(buffer) = outbox.next().await {
        let written = async {
            output.write_all(&buffer).await?;
            output.flush().await
        };
        match timeout(WRITE_WITHIN, written).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "the connection broke");
                return;
            }
            Err(_) => {
                tracing::warn!(%peer, "cut off: it does not read its answers");
                return;
            }
        }
    }
    drop(timeout(Duration::from_secs(1), output.shutdown()).await);
}
