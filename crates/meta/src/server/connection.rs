//! One connection: TLS, hello, then frames in batches to the executor and its answers in one write each.

use super::outbox::{Next, Outbox};
use crate::executor::Input;
use crate::machine::{Call, ConnId, Event};
use bytes::Bytes;
use chronofs_wire::frame::{FrameError, FrameReader};
use chronofs_wire::message::{Hello, HelloAnswer, PROTOCOL_MAX, PROTOCOL_MIN, Refusal, RefusalReason};
use chronofs_wire::message::{ToClient, ToServer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, split};
use tokio::net::TcpStream;
use tokio::sync::mpsc::Sender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
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
    pub(super) in_flight: InFlight,
}

/// Bytes that all connections may have in flight together.
#[derive(Clone)]
pub(super) struct InFlight {
    calls: Arc<Semaphore>,
    objects: Arc<Semaphore>,
}

impl InFlight {
    pub(super) fn new(call_bytes: usize, object_bytes: usize) -> Self {
        InFlight {
            calls: Arc::new(Semaphore::new(call_bytes)),
            objects: Arc::new(Semaphore::new(object_bytes)),
        }
    }
}

/// An object's bytes that count as in flight until nobody holds them any more.
struct Counted {
    bytes: Bytes,
    _permit: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
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
            let mut received = vec![first];
            let mut failed = None;
            while received.len() < BATCH_MAX {
                match frames.try_next::<ToServer>() {
                    Ok(Some(frame)) => received.push(frame),
                    Ok(None) => break,
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
            if !self.hand_over(received, frames.take_given()).await {
                return;
            }
            if let Some(error) = failed {
                return self.refuse_frame(&error);
            }
        }
    }

    /// Hands frames of so many bytes to the executor as soon as there is room for them and for their answers. `false`
    /// when it is gone.
    async fn hand_over(&self, received: Vec<ToServer>, bytes: usize) -> bool {
        self.outbox.room().await;
        let object_bytes = received.iter().map(object_len).sum::<usize>();
        let objects = self.in_flight.objects.clone().acquire_many_owned(object_bytes as u32).await;
        let calls = self.in_flight.calls.clone().acquire_many_owned((bytes - object_bytes) as u32).await;
        let (Ok(mut objects), Ok(calls)) = (objects, calls) else { return false };
        let events = received.into_iter().map(|frame| self.event(frame, &mut objects)).collect();
        self.queue.send(Input::Received(events, calls)).await.is_ok()
    }

    fn event(&self, frame: ToServer, objects: &mut OwnedSemaphorePermit) -> Event {
        match frame {
            ToServer::PutObject { id, name, bytes } => {
                let counted = Counted { _permit: objects.split(bytes.len()), bytes };
                Event::Frame(self.id, ToServer::PutObject { id, name, bytes: Bytes::from_owner(counted) })
            }
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

/// Bytes of the object in a frame.
fn object_len(frame: &ToServer) -> usize {
    match frame {
        ToServer::PutObject { bytes, .. } => bytes.len(),
        _ => 0,
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

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use chronofs_wire::frame;
    use tokio::sync::mpsc::{self, Receiver};

    const MIB: usize = 1 << 20;

    fn connection(in_flight: usize) -> (Arc<Connection>, Receiver<Input>) {
        let (queue, inputs) = mpsc::channel(64);
        let connection = Connection {
            id: ConnId(1),
            peer: "127.0.0.1:1".parse().unwrap(),
            outbox: Arc::new(Outbox::default()),
            queue,
            in_flight: InFlight::new(in_flight, in_flight),
        };
        (Arc::new(connection), inputs)
    }

    /// Lets `connection` read a hello and `frames`.
    fn read(connection: &Arc<Connection>, frames: Vec<ToServer>) {
        let mut bytes = BytesMut::new();
        let hello = Hello {
            protocol_min: 1,
            protocol_max: 1,
            token_id: uuid::Uuid::nil(),
            token_secret: Bytes::new(),
            volume: uuid::Uuid::nil(),
            client: 1,
            client_name: String::new(),
            resume: None,
            at: None,
            read_only: false,
            seen: chronofs_core::Version::ZERO,
            direct: false,
        };
        frame::encode(&hello, &mut bytes).unwrap();
        frames.iter().for_each(|message| frame::encode(message, &mut bytes).unwrap());
        let connection = connection.clone();
        tokio::spawn(async move {
            let frames = FrameReader::new(&bytes[..]);
            connection.read_all(frames, Duration::from_secs(9), Duration::from_secs(9)).await;
        });
    }

    /// What comes within a while, the hello left out.
    async fn received(inputs: &mut Receiver<Input>) -> Vec<Input> {
        let mut found = Vec::new();
        while let Ok(Some(input)) = timeout(Duration::from_millis(200), inputs.recv()).await {
            found.extend(matches!(input, Input::Received(..)).then_some(input));
        }
        found
    }

    fn events(inputs: Vec<Input>) -> Vec<Event> {
        inputs
            .into_iter()
            .flat_map(|input| match input {
                Input::Received(events, _) => events,
                _ => Vec::new(),
            })
            .collect()
    }

    #[tokio::test]
    async fn objects_beyond_the_bytes_in_flight_wait_until_others_are_stored() {
        let put = |id| ToServer::PutObject { id, name: "o".to_owned(), bytes: vec![0; MIB].into() };
        let (connection, mut inputs) = connection(3 * MIB + MIB / 2);
        read(&connection, (0..7).map(put).collect());
        // The inputs are decided, the objects are not stored yet.
        let mut under_way = events(received(&mut inputs).await);
        assert_eq!(under_way.len(), 3);
        under_way.pop();
        assert_eq!(
            events(received(&mut inputs).await).len(),
            1,
            "there is room for one more, which is stored at once"
        );
        drop(under_way);
        assert_eq!(events(received(&mut inputs).await).len(), 3);
    }

    #[tokio::test]
    async fn objects_that_are_not_stored_do_not_hold_up_the_calls_of_others() {
        let (connection, mut inputs) = connection(MIB + MIB / 2);
        let put = |id| ToServer::PutObject { id, name: "o".to_owned(), bytes: vec![0; MIB].into() };
        read(&connection, vec![put(1), put(2)]);
        let _stuck = events(received(&mut inputs).await);
        read(&connection, vec![ToServer::Renew { floor: 0 }]);
        assert_eq!(events(received(&mut inputs).await).len(), 1);
    }

    #[tokio::test]
    async fn calls_count_until_they_are_decided() {
        let value = Bytes::from(vec![0; MIB]);
        let request = chronofs_core::ops::Request::SetXattr {
            ino: chronofs_core::Ino(1),
            name: Bytes::new(),
            value,
            mode: chronofs_core::ops::XattrMode::Any,
        };
        let caller = chronofs_core::Caller::ROOT;
        let call = |id| ToServer::Call { id, acked: 0, caller: caller.clone(), request: request.clone() };
        let (connection, mut inputs) = connection(3 * MIB + MIB / 2);
        read(&connection, (0..4).map(call).collect());
        let undecided = received(&mut inputs).await;
        assert_eq!(undecided.len(), 3);
        drop(undecided);
        assert_eq!(received(&mut inputs).await.len(), 1);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_its_answers_is_asked_for_nothing_more() {
        let (connection, mut inputs) = connection(MIB);
        for _ in 0..3 {
            connection.outbox.push(&Bytes::from(vec![0; 8 * MIB])).unwrap();
        }
        read(&connection, vec![ToServer::Renew { floor: 0 }]);
        assert_eq!(received(&mut inputs).await.len(), 0);
        assert!(matches!(connection.outbox.next().await, Next::Write(_)));
        assert_eq!(received(&mut inputs).await.len(), 0, "taken out, but not written");
        assert!(timeout(Duration::from_millis(10), connection.outbox.next()).await.is_err());
        assert_eq!(received(&mut inputs).await.len(), 1);
    }
}
