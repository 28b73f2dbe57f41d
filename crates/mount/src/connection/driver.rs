//! The task behind a [`Connection`]: reads and writes frames, keeps the session alive, and reconnects.

use super::Connection;
use super::link::{self, Link, OpenError, Opening};
use super::state::{Delivery, State};
use crate::clock::since_boot;
use chronofs_core::{Errno, SessionId};
use chronofs_wire::message::{Refusal, RefusalReason, ToClient, ToServer, Welcome};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc::UnboundedSender;

/// What the rest of the mount has to know about.
#[derive(Clone, Debug)]
pub enum Event {
    /// Other sessions may change the volume from now on (or not any more). `true` is to be answered with
    /// [`Connection::acknowledge_shared`] once nothing is cached that must not be.
    Shared(bool),
    /// Connected again; what others did meanwhile is not known. `replaced` when the old session was over and
    /// what was not published under it is lost.
    Reconnected {
        /// The welcome.
        welcome: Box<Welcome>,
        /// The session is a new one.
        replaced: bool,
        /// The server was started anew: what it answered before may be lost.
        restarted: bool,
    },
}

const BACK_OFF_FIRST: Duration = Duration::from_millis(25);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);
/// Pause after a refusal, which somebody has to take back.
const BACK_OFF_REFUSED: Duration = Duration::from_secs(5);
/// A server that was asked for a sign of life and gave none for this long is taken for gone.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Why one connection ended.
enum Ended {
    Lost(String),
    Closed,
}

/// Lives as long as the mount.
pub(super) async fn run(connection: Arc<Connection>, first: Link, events: UnboundedSender<Event>) {
    let _end = End(Arc::clone(&connection));
    let closing = connection.closing.subscribe();
    let mut link = first;
    loop {
        match serve(&connection, link, &events).await {
            Ended::Closed => break,
            Ended::Lost(reason) => {
                if *closing.borrow() {
                    break;
                }
                connection.state().down();
                let address = connection.target().address.clone();
                tracing::warn!(
                    "lost the metadata server at {address}: {reason}; operations wait until it is back"
                );
            }
        }
        match reconnect(&connection, &events).await {
            Some(next) => link = next,
            None => break,
        }
    }
}

/// Calls that nobody answers any more fail, however the task ends: they would wait for ever.
struct End(Arc<Connection>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.state().refused(Errno::EIO);
    }
}

/// Reads and writes until the connection ends.
async fn serve(connection: &Arc<Connection>, link: Link, events: &UnboundedSender<Event>) -> Ended {
    let Link { mut reader, writer, welcome, .. } = link;
    let ttl = Duration::from_millis(u64::from(welcome.ttl_ms));
    let (heard, silence) = tokio::sync::watch::channel(Instant::now());
    let reading = async {
        loop {
            match reader.next::<ToClient>().await {
                Ok(Some(ToClient::Closing)) => return Ended::Lost("it stops".to_owned()),
                Ok(Some(ToClient::Refused { message })) => {
                    return Ended::Lost(format!("it did not take a message: {message}"));
                }
                Ok(Some(frame)) => {
                    heard.send_replace(Instant::now());
                    received(connection, frame, ttl, events);
                }
                Ok(None) => return Ended::Lost("it closed the connection".to_owned()),
                Err(error) => return Ended::Lost(error.to_string()),
            }
        }
    };
    tokio::select! {
        ended = reading => ended,
        ended = write_frames(connection, writer) => ended,
        ended = renew(connection, ttl, silence) => ended,
    }
}

/// Writes what is queued, everything at once, whenever there is something.
async fn write_frames(
    connection: &Connection,
    mut writer: tokio::io::WriteHalf<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>,
) -> Ended {
    let mut closing = connection.closing.subscribe();
    loop {
        let out = connection.state().take_out();
        if out.is_empty() {
            if *closing.borrow() {
                // TLS says goodbye too; a server that is gone already does not matter.
                let _ = writer.shutdown().await;
                return Ended::Closed;
            }
            tokio::select! {
                () = connection.wake.notified() => {}
                _ = closing.changed() => {}
            }
            continue;
        }
        let written = async {
            writer.write_all(&out).await?;
            writer.flush().await
        };
        if let Err(error) = written.await {
            return Ended::Lost(error.to_string());
        }
    }
}

/// Says that the session lives, and notices when the server does not.
async fn renew(
    connection: &Connection,
    ttl: Duration,
    heard: tokio::sync::watch::Receiver<Instant>,
) -> Ended {
    let pause = (ttl / 4).clamp(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        tokio::time::sleep(pause).await;
        let asked = Instant::now();
        connection.lease.asked();
        connection.state().renew();
        connection.wake.notify_one();
        if asked.duration_since(*heard.borrow()) > SILENCE_MAX.max(pause * 3) {
            return Ended::Lost("it gives no sign of life".to_owned());
        }
    }
}

fn received(connection: &Connection, frame: ToClient, ttl: Duration, events: &UnboundedSender<Event>) {
    match frame {
        ToClient::Return { id, version, durable, result } => {
            heard(connection, |state| state.returned(id, version, durable, result));
        }
        ToClient::Durable { version } => heard(connection, |state| state.durable(version)),
        ToClient::Object { id, result } => {
            heard(connection, |state| state.transferred(id, result.map(Delivery::Bytes)));
        }
        ToClient::SignedPuts { id, result } => {
            heard(connection, |state| state.transferred(id, result.map(Delivery::Puts)));
        }
        ToClient::Signed { gets } => connection.requests().add_gets(gets, since_boot()),
        ToClient::Renewed { now_ns } => {
            connection.clock.set(now_ns);
            connection.lease.renewed(ttl);
        }
        ToClient::Shared { shared } => {
            connection.lease.told(shared);
            let _ = events.send(Event::Shared(shared));
        }
        ToClient::Parked { calls } => {
            tracing::error!(
                "the server lost power, and {} changes that it had not stored yet could not be made again: {calls:?}",
                calls.len()
            );
            let calls: Vec<u64> = calls.into_iter().map(|(id, _)| id).collect();
            let mut state = connection.state();
            state.parked(calls.iter().copied());
            state.send_if_up(ToServer::ParkedAck { calls });
            drop(state);
            connection.wake.notify_one();
        }
        ToClient::Window { window } => connection.heard_window(window),
        ToClient::Closing | ToClient::Refused { .. } => {}
    }
}

/// Takes in what may make room for calls that wait.
fn heard(connection: &Connection, take: impl FnOnce(&mut State)) {
    let mut state = connection.state();
    take(&mut state);
    let more = state.has_frames();
    drop(state);
    if more {
        connection.wake.notify_one();
    }
}

/// Tries until the server is there again. `None` when the mount ends meanwhile.
async fn reconnect(connection: &Arc<Connection>, events: &UnboundedSender<Event>) -> Option<Link> {
    let mut closing = connection.closing.subscribe();
    let mut attempt = Attempt::new(connection);
    loop {
        let tried = tokio::select! {
            tried = attempt.connect(connection) => tried,
            _ = closing.wait_for(|closing| *closing) => return None,
        };
        let pause = match tried {
            Ok(link) => {
                attempt.succeeded(connection, &link, events);
                return Some(link);
            }
            Err(error) => attempt.failed(connection, error),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = closing.wait_for(|closing| *closing) => return None,
        }
    }
}

/// The attempts to get a session back after a connection was lost.
struct Attempt {
    client: u128,
    resume: Option<SessionId>,
    back_off: Duration,
    /// The last answer of the admin server did not help: ask again.
    ask: bool,
    said: bool,
}

impl Attempt {
    fn new(connection: &Connection) -> Self {
        Attempt {
            client: connection.client(),
            resume: Some(connection.state().session()),
            back_off: BACK_OFF_FIRST,
            ask: false,
            said: false,
        }
    }

    async fn connect(&mut self, connection: &Connection) -> Result<Link, OpenError> {
        if self.ask && connection.wanted.source.may_move() {
            // Without an answer the last one holds: the admin server is not needed to go on.
            match connection.wanted.source.resolve().await {
                Ok(target) => *connection.target() = target,
                Err(error) => tracing::debug!("asking where the volume is served: {error}"),
            }
        }
        self.ask = true;
        let target = connection.target().clone();
        let (seen, epoch) = {
            let state = connection.state();
            (state.seen(), state.epoch())
        };
        let opening = Opening { client: self.client, resume: self.resume, seen, epoch };
        link::connect(&connection.wanted, &target, &opening).await
    }

    fn succeeded(&self, connection: &Connection, link: &Link, events: &UnboundedSender<Event>) {
        // Until the caches are known to be right again nothing may be cached: the event's receiver ends that.
        connection.heard_welcome(&link.welcome, link.asked);
        connection.set_client(link.client);
        let replaced = self.resume.is_none();
        let (restarted, lost) = if replaced {
            connection.state().replaced(&link.welcome)
        } else {
            (connection.state().resumed(&link.welcome), 0)
        };
        if lost > 0 {
            tracing::error!(
                "the session was over: {lost} changes that were answered but not durable may be lost if the server \
                 lost power; fsync and close of their files say so once"
            );
        }
        let _ = events.send(Event::Reconnected { welcome: link.welcome.clone(), replaced, restarted });
        connection.wake.notify_one();
        tracing::info!("the metadata server at {} is back", link.target.address);
    }

    /// What an error means, and how long to wait before the next attempt.
    fn failed(&mut self, connection: &Connection, error: OpenError) -> Duration {
        let refusal = match error {
            OpenError::Refused(refusal) => refusal,
            other => {
                if !std::mem::replace(&mut self.said, true) {
                    tracing::warn!("{other}; trying again until it is back");
                }
                self.back_off = (self.back_off * 2).min(BACK_OFF_MAX);
                return self.back_off;
            }
        };
        self.refused(connection, refusal)
    }

    fn refused(&mut self, connection: &Connection, refusal: Refusal) -> Duration {
        let errno = match refusal.reason {
            RefusalReason::NotNow { retry_ms } => {
                return Duration::from_millis(u64::from(retry_ms.clamp(10, 5000)));
            }
            RefusalReason::SessionOver if self.resume.is_some() => {
                tracing::error!("the session is over ({}); opening a new one", refusal.message);
                self.resume = None;
                self.client = uuid::Uuid::new_v4().as_u128();
                return Duration::ZERO;
            }
            RefusalReason::Token => Errno::EACCES,
            RefusalReason::UnknownVolume if connection.wanted.source.may_move() && !self.said => {
                // It may have moved to another server a moment ago.
                self.said = true;
                return self.back_off;
            }
            _ => Errno::EIO,
        };
        tracing::error!(
            "the metadata server refuses this mount: {}; every operation fails with {errno} until it takes it back",
            refusal.message
        );
        connection.state().refused(errno);
        BACK_OFF_REFUSED
    }
}
