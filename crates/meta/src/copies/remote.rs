//! A copy on a log server, through a connection: what the folder copy does there is asked for here.
//!
//! Requests are answered in their order, so appends can be on their way one behind the other. A task reads the answers; who
//! asks waits for them in its own thread.

use bytes::{Bytes, BytesMut};
use chronofs_engine::copies::{CopyError, Held, Holding, Link, Wake};
use chronofs_engine::embedded::Place;
use chronofs_wire::frame::{self, FrameReader};
use chronofs_wire::identity::Sha256;
use chronofs_wire::tlog::{
    LogHello, LogReply, LogRequest, LogServerAccess, LogWelcome, PROTOCOL_MAX, PROTOCOL_MIN,
};
use chronofs_wire::tls;
use rustix::net::sockopt;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use uuid::Uuid;

/// How long it may take until a log server has said welcome.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// For so long one that has not heard of this store is asked again.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);
/// How often.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long it may take to answer. What a metadata server waits for is decided earlier, by the deadline of its copies; then
/// the connection may still turn out to be slow and not dead.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The kernel asks a silent log server after this whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);

type Output = WriteHalf<TlsStream<TcpStream>>;

/// See the module.
pub(super) struct RemoteLink {
    answers: Arc<Answers>,
    requests: mpsc::UnboundedSender<BytesMut>,
    tasks: [tokio::task::JoinHandle<()>; 2],
    /// Appends that were begun and whose answers were not taken yet.
    begun: VecDeque<Instant>,
}

/// What the log server answered.
#[derive(Default)]
struct Answers {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// So many requests have no reply yet.
    open: usize,
    replies: VecDeque<LogReply>,
    /// Why there are no more.
    ended: Option<String>,
    wake: Option<Wake>,
}

impl Answers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let wake = state.wake.clone();
        drop(state);
        self.changed.notify_all();
        if let Some(wake) = wake {
            wake();
        }
    }

    /// Takes a reply, if there is a request without one: what nobody asked for would be kept for ever.
    fn take(&self, reply: LogReply) -> bool {
        let mut asked = false;
        self.change(|state| {
            asked = state.open > 0;
            if asked {
                state.open -= 1;
                state.replies.push_back(reply);
            }
        });
        asked
    }

    fn end(&self, why: impl std::fmt::Display) {
        self.change(|state| {
            state.ended.get_or_insert_with(|| format!("the connection to the log server ended: {why}"));
        });
    }
}

fn unusable(why: impl std::fmt::Display) -> CopyError {
    CopyError::Unusable(why.to_string())
}

impl RemoteLink {
    /// Reaches the copy of `store` on a log server; `known`: it has counted, so it must be there. Not from one of the
    /// runtime's own threads.
    pub(super) fn new(
        runtime: &Handle,
        access: &LogServerAccess,
        store: Uuid,
        known: bool,
    ) -> Result<RemoteLink, CopyError> {
        let name = &access.name;
        let connected = runtime.block_on(async {
            tokio::time::timeout(CONNECT_WITHIN, connect_soon(access, store, known)).await
        });
        let (frames, output) = match connected {
            Ok(connected) => connected.map_err(|why| unusable(format_args!("log server {name}: {why}")))?,
            Err(_) => {
                let (seconds, at) =
                    (CONNECT_WITHIN.as_secs(), access.address.as_deref().unwrap_or("no address"));
                return Err(unusable(format_args!(
                    "log server {name} at {at} did not answer within {seconds} s"
                )));
            }
        };
        let answers = Arc::new(Answers::default());
        let (requests, queue) = mpsc::unbounded_channel();
        let tasks = [
            runtime.spawn(read_all(frames, answers.clone())),
            runtime.spawn(write_all(output, queue, answers.clone())),
        ];
        Ok(RemoteLink { answers, requests, tasks, begun: VecDeque::new() })
    }

    fn send(&self, request: &LogRequest) -> Result<(), CopyError> {
        let mut frame = BytesMut::new();
        frame::encode(request, &mut frame).map_err(unusable)?;
        self.answers.lock().open += 1;
        // A writer that has ended has said why.
        let _ = self.requests.send(frame);
        Ok(())
    }

    /// Takes the answers to appends that have come.
    fn take_begun(&mut self, state: &mut State) -> Result<(), CopyError> {
        while !self.begun.is_empty() {
            let Some(reply) = state.replies.pop_front() else { break };
            self.begun.pop_front();
            done(reply)?;
        }
        Ok(())
    }

    /// Sends a request and waits for its answer, which comes after those to all appends before it.
    fn ask(&mut self, request: &LogRequest) -> Result<LogReply, CopyError> {
        self.send(request)?;
        let until = Instant::now() + ANSWER_WITHIN;
        let answers = self.answers.clone();
        let mut state = answers.lock();
        loop {
            self.take_begun(&mut state)?;
            if let Some(reply) = state.replies.pop_front() {
                return Ok(reply);
            }
            if let Some(why) = &state.ended {
                return Err(unusable(why));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(late());
            }
            state = answers.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn hold(&mut self, request: &LogRequest) -> Result<Holding, CopyError> {
        match self.ask(request)? {
            LogReply::Holding { segments, known_segment, known_offset, filling } => Ok(Holding {
                segments: segments.into_iter().map(|(number, length)| Held { number, length }).collect(),
                known_durable: Place { segment: known_segment, offset: known_offset },
                filling,
            }),
            other => Err(refusal(other)),
        }
    }
}

impl Drop for RemoteLink {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Link for RemoteLink {
    fn seal(&mut self, epoch: u64) -> Result<Holding, CopyError> {
        self.hold(&LogRequest::Seal { epoch })
    }

    fn open(&mut self, epoch: u64) -> Result<Holding, CopyError> {
        self.hold(&LogRequest::Open { epoch })
    }

    fn append(&mut self, epoch: u64, place: Place, bytes: &Bytes) -> Result<(), CopyError> {
        let Place { segment, offset } = place;
        done(self.ask(&LogRequest::Append { epoch, segment, offset, bytes: bytes.clone() })?)
    }

    fn begin_append(&mut self, epoch: u64, place: Place, bytes: &Bytes) -> Result<(), CopyError> {
        let Place { segment, offset } = place;
        self.send(&LogRequest::Append { epoch, segment, offset, bytes: bytes.clone() })?;
        self.begun.push_back(Instant::now());
        Ok(())
    }

    fn unanswered(&mut self) -> Result<usize, CopyError> {
        let answers = self.answers.clone();
        let mut state = answers.lock();
        self.take_begun(&mut state)?;
        if let Some(why) = &state.ended {
            return Err(unusable(why));
        }
        match self.begun.front() {
            Some(oldest) if oldest.elapsed() > ANSWER_WITHIN => Err(late()),
            _ => Ok(self.begun.len()),
        }
    }

    fn wake_with(&mut self, wake: Wake) {
        self.answers.lock().wake = Some(wake);
    }

    fn whole(&mut self, epoch: u64) -> Result<(), CopyError> {
        done(self.ask(&LogRequest::Whole { epoch })?)
    }

    fn cut(&mut self, epoch: u64, place: Place) -> Result<(), CopyError> {
        done(self.ask(&LogRequest::Cut { epoch, segment: place.segment, offset: place.offset })?)
    }

    fn pop(&mut self, epoch: u64, before: u64) -> Result<(), CopyError> {
        done(self.ask(&LogRequest::Pop { epoch, before })?)
    }

    fn sum(&mut self, segment: u64, length: u64) -> Result<[u8; 32], CopyError> {
        match self.ask(&LogRequest::Sum { segment, length })? {
            LogReply::Sum(sum) => Ok(sum),
            other => Err(refusal(other)),
        }
    }

    fn read(&mut self, place: Place, length: u64) -> Result<Bytes, CopyError> {
        match self.ask(&LogRequest::Read { segment: place.segment, offset: place.offset, length })? {
            LogReply::Bytes(bytes) => Ok(bytes),
            other => Err(refusal(other)),
        }
    }
}

fn late() -> CopyError {
    unusable(format_args!("the log server did not answer within {} s", ANSWER_WITHIN.as_secs()))
}

fn done(reply: LogReply) -> Result<(), CopyError> {
    match reply {
        LogReply::Done => Ok(()),
        other => Err(refusal(other)),
    }
}

fn refusal(reply: LogReply) -> CopyError {
    match reply {
        LogReply::Fenced(epoch) => CopyError::Fenced(epoch),
        LogReply::Elsewhere { segment, offset } => CopyError::Elsewhere(Place { segment, offset }),
        LogReply::Unusable(why) => CopyError::Unusable(why),
        LogReply::Holding { .. } | LogReply::Done | LogReply::Sum(_) | LogReply::Bytes(_) => {
            unusable("the log server gave the answer to another question")
        }
    }
}

/// The admin server has told this server of the log server, and the log server may hear of this one a moment later: a
/// recovery asks once, and must not do without a copy for that.
async fn connect_soon(access: &LogServerAccess, store: Uuid, known: bool) -> Result<Connected, String> {
    let until = Instant::now() + KNOWN_WITHIN;
    loop {
        match connect(access, store, known).await? {
            Ok(connected) => return Ok(connected),
            Err(reason) if Instant::now() > until => return Err(reason),
            Err(_) => tokio::time::sleep(ASK_AGAIN).await,
        }
    }
}

type Connected = (FrameReader<ReadHalf<TlsStream<TcpStream>>>, Output);

/// The inner error is one that may be over soon.
async fn connect(
    access: &LogServerAccess,
    store: Uuid,
    known: bool,
) -> Result<Result<Connected, String>, String> {
    let never = || "it was never started: start it with chronofs tlog start".to_owned();
    let address = access.address.as_deref().ok_or_else(never)?;
    let pin: Sha256 = access.certificate_sha256.as_deref().ok_or_else(never)?.parse().map_err(said)?;
    let secret = access.presented().ok_or("the admin server gave no secret for it")?;
    let stream =
        TcpStream::connect(address).await.map_err(|error| format!("cannot reach {address}: {error}"))?;
    keep_alive(&stream).map_err(said)?;
    let connector = TlsConnector::from(tls::client_config(pin).map_err(said)?);
    let connected = connector.connect(tls::server_name(address), stream).await;
    let stream = connected.map_err(|error| match tls::is_wrong_certificate(&error) {
        true => format!(
            "what listens on {address} is another server: its certificate is not the one that is registered"
        ),
        false => format!("no TLS with {address}: {error}"),
    })?;
    let (input, mut output) = split(stream);
    let hello = LogHello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        store,
        secret: Bytes::copy_from_slice(&secret.0),
        known,
    };
    let mut out = BytesMut::new();
    frame::encode(&hello, &mut out).map_err(said)?;
    output.write_all(&out).await.map_err(said)?;
    output.flush().await.map_err(said)?;
    let mut frames = FrameReader::new(input);
    match frames.next::<LogWelcome>().await.map_err(said)? {
        Some(LogWelcome::Welcome { .. }) => Ok(Ok((frames, output))),
        Some(LogWelcome::Refused { reason, soon: true }) => Ok(Err(reason)),
        Some(LogWelcome::Refused { reason, soon: false }) => Err(reason),
        None => Err("it closed the connection".to_owned()),
    }
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE)?;
    Ok(())
}

async fn read_all(mut frames: FrameReader<impl AsyncRead + Unpin>, answers: Arc<Answers>) {
    loop {
        match frames.next::<LogReply>().await {
            Ok(Some(reply)) => {
                if !answers.take(reply) {
                    return answers.end("it answered what nobody had asked");
                }
            }
            Ok(None) => return answers.end("it closed it"),
            Err(error) => return answers.end(error),
        }
    }
}

async fn write_all(mut output: Output, mut queue: mpsc::UnboundedReceiver<BytesMut>, answers: Arc<Answers>) {
    while let Some(frame) = queue.recv().await {
        let written = async {
            output.write_all(&frame).await?;
            output.flush().await
        };
        if let Err(error) = written.await {
            return answers.end(error);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "helpers of tests")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_server_that_answers_more_than_it_was_asked_is_left() {
        let answers = Arc::new(Answers::default());
        answers.lock().open = 2;
        let mut said = BytesMut::new();
        for _ in 0..1000 {
            frame::encode(&LogReply::Done, &mut said).unwrap();
        }
        read_all(FrameReader::new(&said[..]), answers.clone()).await;
        let state = answers.lock();
        assert_eq!(state.replies, [LogReply::Done, LogReply::Done]);
        assert!(
            state.ended.as_ref().is_some_and(|why| why.contains("nobody had asked")),
            "{:?}",
            state.ended
        );
    }
}
