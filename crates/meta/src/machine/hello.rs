//! Hellos: who may come in, with which session, and when.

use super::group::{Effect, Group, Then, Undo};
use super::session::{Collected, ConnId, Replies, Session, Sharing};
use super::volumes::VolumeState;
use super::{Deferred, Machine, WaitingHello, Waits};
use chronofs_core::ops::{Scope, SystemRequest};
use chronofs_core::{FileKind, Ino, SessionId, Version, VolumeIndex};
use chronofs_engine::EngineError;
use chronofs_namespace::{SystemError, SystemReply, instants, rows};
use chronofs_wire::admin::AssignedToken;
use chronofs_wire::identity::{Sha256, secret_matches};
use chronofs_wire::message::{
    Hello, PROTOCOL_MAX, PROTOCOL_MIN, PROTOCOL_SEALED, Refusal, RefusalReason, ToClient, Welcome, Window,
    common_protocol,
};
use std::collections::BTreeMap;

fn refusal(reason: RefusalReason, message: impl Into<String>) -> Refusal {
    Refusal { reason, message: message.into() }
}

pub(super) fn not_now(retry_ms: u32, message: impl Into<String>) -> Refusal {
    refusal(RefusalReason::NotNow { retry_ms }, message)
}

/// A hello that passed the checks of protocol, token and volume.
pub(super) struct Checked {
    protocol: u16,
    index: VolumeIndex,
    token: AssignedToken,
}

/// Only clients that seal names and content come to an encrypted volume, and no such client to any other.
fn check_seals(hello: &Hello, volume: &VolumeState) -> Result<(), Refusal> {
    let name = &volume.row.spec.name;
    let message = match (volume.row.is_encrypted(), hello.protocol_min >= PROTOCOL_SEALED) {
        (true, false) => format!(
            "volume {name} is encrypted, and this client has no key of it: use a chronofs that knows encrypted volumes, and give \
             it the key; if it says that there is none to be asked for, the admin server has lost the volume's sealed keys, which \
             this server still has and will tell it"
        ),
        (false, true) => format!(
            "volume {name} is not encrypted here, and this client would seal all that it writes: ask the admin server whether this \
             is the volume that you mean"
        ),
        _ => return Ok(()),
    };
    Err(refusal(RefusalReason::Protocol, message))
}

impl Machine {
    pub(super) fn hello(
        &mut self,
        group: &mut Group,
        conn: ConnId,
        hello: Box<Hello>,
    ) -> Result<(), EngineError> {
        let checked = match self.check(group, &hello) {
            Ok(checked) => checked,
            Err(refusal) => {
                self.refuse_or_ask(group, conn, hello, refusal);
                return Ok(());
            }
        };
        self.come_in(group, conn, hello, checked)
    }

    /// Goes on with a hello that passed the checks.
    pub(super) fn come_in(
        &mut self,
        group: &mut Group,
        conn: ConnId,
        hello: Box<Hello>,
        checked: Checked,
    ) -> Result<(), EngineError> {
        // A client whose welcome was lost does not know its session yet.
        let opened = |session: &&Session| {
            (session.client, session.index, session.at) == (hello.client, checked.index, hello.at)
        };
        match hello.resume.or_else(|| self.sessions.values().find(opened).map(|session| session.id)) {
            Some(session) => self.resume(group, conn, &hello, &checked, session),
            None => self.admit(group, conn, hello, checked),
        }
    }

    pub(super) fn check(&self, group: &Group, hello: &Hello) -> Result<Checked, Refusal> {
        let spoken = (hello.protocol_min, hello.protocol_max);
        let Some(protocol) = common_protocol(spoken, (PROTOCOL_MIN, PROTOCOL_MAX)) else {
            let message = format!(
                "the client speaks protocols {} to {}, this server {PROTOCOL_MIN} to {PROTOCOL_MAX}; update the older one",
                hello.protocol_min, hello.protocol_max
            );
            return Err(refusal(RefusalReason::Protocol, message));
        };
        if !self.is_assigned() {
            return Err(not_now(500, "this server has not learnt its volumes yet; it asks the admin server"));
        }
        let token = self.check_token(group, hello)?;
        let Some(volume) = self.volume_by_id(hello.volume) else {
            let elsewhere =
                || format!("volume {} is not served here; ask the admin server where it is", hello.volume);
            let message = self.missing.get(&hello.volume).cloned().unwrap_or_else(elsewhere);
            return Err(refusal(RefusalReason::UnknownVolume, message));
        };
        if let (Some(problem), None) = (&volume.problem, hello.resume) {
            let message = format!("volume {} cannot be served: {problem}", volume.row.spec.name);
            return Err(refusal(RefusalReason::UnknownVolume, message));
        }
        check_seals(hello, volume)?;
        Ok(Checked { protocol, index: volume.index, token })
    }

    /// The same message whatever is wrong with id or secret, so that ids cannot be guessed.
    fn check_token(&self, group: &Group, hello: &Hello) -> Result<AssignedToken, Refusal> {
        let refuse = |message: &str| Err(refusal(RefusalReason::Token, message));
        let known = self.tokens.get(&hello.token_id);
        let kept: Sha256 =
            known.and_then(|token| token.secret_sha256.parse().ok()).unwrap_or(Sha256([0; 32]));
        let matches = secret_matches(&hello.token_secret, &kept);
        let Some(token) = known.filter(|_| matches) else {
            return refuse(
                "the volume token is unknown or was deleted; make one with `chronofs configure create volume-token`",
            );
        };
        if token.ends_ns.is_some_and(|ends_ns| ends_ns <= group.now_ns) {
            return refuse(
                "the volume token's time is over; make a new one with `chronofs configure create volume-token`",
            );
        }
        if token.volume != hello.volume {
            return refuse("the volume token is for another volume; use a token of this one");
        }
        if hello.at.is_some() && !token.past {
            return refuse("the volume token has no right to the past; make one without --no-past");
        }
        Ok(token.clone())
    }

    /// A client goes on with its session.
    fn resume(
        &mut self,
        group: &mut Group,
        conn: ConnId,
        hello: &Hello,
        checked: &Checked,
        id: SessionId,
    ) -> Result<(), EngineError> {
        let fits = self.sessions.get(&id).is_some_and(|session| {
            session.client == hello.client && session.index == checked.index && session.at == hello.at
        });
        if !fits {
            let message = format!("session {} is over; mount again", id.0);
            let refusal = refusal(RefusalReason::SessionOver, message);
            group.effects.push(Effect::Answer(conn, Err(refusal)));
            return Ok(());
        }
        if self.comes_between(id) {
            let refusal = not_now(500, "this server applies again what was lost; it is soon done");
            group.effects.push(Effect::Answer(conn, Err(refusal)));
            return Ok(());
        }
        // It keeps its directory, whatever that is called by now. Another token means what it means now.
        let same = self.sessions.get(&id).filter(|session| session.token == checked.token.id);
        let root = match same.map(|session| session.root) {
            Some(root) => Ok(root),
            None => self.scope(group, hello, checked)?,
        };
        let root = match root {
            Ok(root) => root,
            Err(refusal) => {
                group.effects.push(Effect::Answer(conn, Err(refusal)));
                return Ok(());
            }
        };
        let replay = self.expect_replay(group, id, hello.seen);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.protocol = checked.protocol;
            session.root = root;
            session.token = checked.token.id;
            session.client_name.clone_from(&hello.client_name);
            session.read_only = hello.read_only || checked.token.read_only || session.at.is_some();
            session.direct = hello.direct;
        }
        self.attach(group, conn, id, replay);
        self.recovery_progress(group)
    }

    /// Opens a session, at once or when nobody caches any more.
    fn admit(
        &mut self,
        group: &mut Group,
        conn: ConnId,
        hello: Box<Hello>,
        checked: Checked,
    ) -> Result<(), EngineError> {
        if self.is_recovering() {
            let refusal =
                not_now(500, "this server has restarted and collects what was lost; it is soon done");
            group.effects.push(Effect::Answer(conn, Err(refusal)));
            return Ok(());
        }
        if group.full {
            let refusal = not_now(1000, "the metadata server's disk is full, so it can open no session");
            group.effects.push(Effect::Answer(conn, Err(refusal)));
            return Ok(());
        }
        if hello.at.is_none() && !self.caches_are_gone(checked.index) {
            let volume = checked.index;
            self.waiting.push(WaitingHello { conn, hello, volume });
            self.settle_sharing(group, volume);
            return Ok(());
        }
        self.open_session(group, conn, &hello, &checked)
    }

    /// Hellos whose wait is over.
    pub(super) fn admit_waiting(&mut self, group: &mut Group) -> Result<(), EngineError> {
        if group.full {
            return Ok(());
        }
        let ready: Vec<bool> =
            self.waiting.iter().map(|waiting| self.caches_are_gone(waiting.volume)).collect();
        let mut ready = ready.into_iter();
        let (go, stay) =
            std::mem::take(&mut self.waiting).into_iter().partition(|_| ready.next().unwrap_or_default());
        self.waiting = stay;
        for waiting in go {
            group.undo.push(Undo::Waited(waiting.clone()));
            // The token may have ended while it waited.
            match self.check(group, &waiting.hello) {
                Ok(checked) => self.open_session(group, waiting.conn, &waiting.hello, &checked)?,
                Err(refusal) => group.effects.push(Effect::Answer(waiting.conn, Err(refusal))),
            }
        }
        Ok(())
    }

    fn open_session(
        &mut self,
        group: &mut Group,
        conn: ConnId,
        hello: &Hello,
        checked: &Checked,
    ) -> Result<(), EngineError> {
        // Of an instant that cannot be had, nothing can be said of the token's directory either.
        let past = hello.at.zip(self.volumes.get(&checked.index));
        let had = past.map_or(Ok(Ok(())), |(at, volume)| {
            let now = self.next_version(group);
            chronofs_namespace::check_kept_instant(&group.reads, checked.index, &volume.row, at, now)
        });
        let had = match had {
            Ok(had) => had,
            Err(stop) => {
                self.stopped(group, stop, "looking for holds")?;
                let refusal = not_now(500, "what is kept of the past cannot be read");
                group.effects.push(Effect::Answer(conn, Err(refusal)));
                return Ok(());
            }
        };
        let root = match had {
            Ok(()) => self.scope(group, hello, checked)?,
            Err(error) => Err(refuse_session(error)),
        };
        let root = match root {
            Ok(root) => root,
            Err(refusal) => {
                group.effects.push(Effect::Answer(conn, Err(refusal)));
                return Ok(());
            }
        };
        let read_only = hello.read_only || checked.token.read_only || hello.at.is_some();
        let request = SystemRequest::OpenSession {
            volume: hello.volume,
            client: hello.client,
            at: hello.at,
            read_only,
            ttl_ms: self.config.life_ms,
            scope: Scope { token: checked.token.id, root },
        };
        match self.system(group, &request)? {
            Ok(SystemReply::Session { id, session: row }) => {
                let mut session = self.session_of_row(id, &row, group.steady_ns);
                session.protocol = checked.protocol;
                session.read_only = read_only;
                session.direct = hello.direct;
                session.client_name.clone_from(&hello.client_name);
                // It may come from a mount whose old session is over, with files open: those it tells before it calls.
                session.called = true;
                group.thens.push(Then::SessionOpened(Box::new(session), conn));
            }
            Ok(_) => {
                let refusal = not_now(1000, "the session could not be opened; the server's log says more");
                group.effects.push(Effect::Answer(conn, Err(refusal)));
            }
            Err(error) => group.effects.push(Effect::Answer(conn, Err(refuse_session(error)))),
        }
        Ok(())
    }

    /// A session as its row says, before a client is there.
    pub(super) fn session_of_row(&self, id: SessionId, row: &rows::Session, now_ns: u64) -> Session {
        Session {
            id,
            volume: self.volumes.get(&row.volume).map(|volume| volume.id()).unwrap_or_default(),
            index: row.volume,
            client: row.client,
            client_name: String::new(),
            token: row.scope.token,
            protocol: PROTOCOL_MIN,
            root: row.scope.root,
            at: row.at,
            read_only: row.flags & rows::Session::READ_ONLY != 0,
            direct: false,
            conn: None,
            heard_ns: now_ns,
            opened: row.opened,
            leased_ns: now_ns,
            replies: Replies::default(),
            opens: BTreeMap::new(),
            granted: row.granted,
            floor: row.floor,
            floor_noted: row.floor,
            floor_noted_ns: now_ns,
            sharing: Sharing::Shared,
            acks_due: 0,
            reclaimed: false,
            called: false,
            replaying: false,
            missed: row.missed,
            late: Collected::default(),
            parked: row.parked.iter().copied().collect(),
            told_durable: Version::ZERO,
            last_commit: Version::ZERO,
        }
    }

    pub(super) fn session_opened(&mut self, group: &mut Group, session: Session, conn: ConnId) {
        let (id, index, live) = (session.id, session.index, session.is_live());
        // The same client may have come twice while it waited: the session it has stays.
        self.sessions.entry(id).or_insert(session);
        let alone = self.sessions.values().filter(|other| other.index == index && other.is_live()).count()
            == 1
            && !self.waiting.iter().any(|waiting| waiting.volume == index);
        if let Some(session) = self.sessions.get_mut(&id)
            && live
            && alone
        {
            session.sharing = Sharing::Exclusive;
        }
        self.attach(group, conn, id, false);
    }

    /// Joins a connection with its session and welcomes it as soon as the session is sure to survive.
    fn attach(&mut self, group: &mut Group, conn: ConnId, id: SessionId, replay: bool) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.heard_ns = group.steady_ns;
        (session.replaying, session.late) = (replay, Collected::default());
        session.acks_due = 0;
        if matches!(session.sharing, Sharing::Asked(_)) {
            session.sharing = Sharing::Exclusive;
        }
        // An instant is shown only once everything up to it is durable, so that it never changes.
        let version = session.at.map_or(session.opened, |at| session.opened.max(at));
        if let Some(before) = session.conn.replace(conn).filter(|before| *before != conn) {
            self.conns.remove(&before);
            self.deferred.retain(|deferred| deferred.conn != before);
            self.forget_held(before);
            group.effects.push(Effect::Close(before));
        }
        self.conns.insert(conn, id);
        if version <= self.durable {
            self.welcome(group, conn, id, replay);
            return;
        }
        self.deferred.push_back(Deferred { version, conn, what: Waits::Welcome { session: id, replay } });
        group.undo.push(Undo::Deferred);
        group.effects.push(Effect::Hurry);
    }

    pub(super) fn welcome(&mut self, group: &mut Group, conn: ConnId, id: SessionId, replay: bool) {
        let Some(store) = self.sessions.get(&id).map(|session| self.store_access(session)) else { return };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(volume) = self.volumes.get(&session.index) else { return };
        // What it is to replay it must still hold, also when it has sent it and that is not done yet.
        session.told_durable = match session.missed {
            Some(missed) => self.durable.min(missed.recovered),
            None if replay => self.durable.min(self.recovered),
            None => self.durable,
        };
        let parked: Vec<_> = session.parked.iter().map(|(&id, &errno)| (id, errno)).collect();
        if !parked.is_empty() {
            // It is not to take those for durable before it has heard that they are lost.
            session.told_durable = Version::ZERO;
        }
        let welcome = Welcome {
            protocol: session.protocol,
            session: id,
            boot: self.config.boot,
            epoch: self.config.epoch,
            volume: volume.row.spec.clone(),
            incarnation: volume.row.incarnation,
            root: session.root,
            grant: (0, session.granted),
            applied: self.last,
            durable: session.told_durable,
            now_ns: group.now_ns,
            ttl_ms: self.config.ttl_ms,
            shared: session.is_live() && session.sharing == Sharing::Shared,
            read_only: session.read_only,
            at: session.at,
            store,
            replay,
            life_ms: self.config.life_ms,
            restored: volume.row.put_back().unwrap_or(Version::ZERO),
        };
        let index = session.index;
        group.effects.push(Effect::Answer(conn, Ok(Box::new(welcome))));
        if !parked.is_empty() {
            group.send(conn, ToClient::Parked { calls: parked });
        }
        self.tell_window(group, id, conn);
        self.settle_sharing(group, index);
    }

    /// How far back the session's volume goes.
    pub(super) fn tell_window(&self, group: &mut Group, id: SessionId, conn: ConnId) {
        let index = self.sessions.get(&id).map(|session| session.index);
        let Some(volume) = index.and_then(|index| self.volumes.get(&index)) else { return };
        let (earliest, _) = instants(&volume.row, self.next_version(group));
        let window = Window { retention: volume.row.spec.retention, earliest };
        group.send(conn, ToClient::Window { window });
    }

    /// The directory a token is confined to, as of the instant that is to be shown.
    fn scope(
        &self,
        group: &mut Group,
        hello: &Hello,
        checked: &Checked,
    ) -> Result<Result<Ino, Refusal>, EngineError> {
        let Some(path) = checked.token.path.as_deref() else { return Ok(Ok(Ino::ROOT)) };
        let (reads, index) = (&group.reads, checked.index);
        match chronofs_namespace::resolve(reads, index, hello.at, Ino::ROOT, path.as_bytes()) {
            Ok(Some((ino, FileKind::Dir))) => return Ok(Ok(ino)),
            Ok(_) => {}
            Err(stop) => drop(self.stopped(group, stop, "looking for the directory of a volume token")?),
        }
        let message = match hello.at {
            Some(at) => format!(
                "the volume token is confined to {path}, which was no directory at {at}; choose another instant or \
                 another token"
            ),
            None => format!(
                "the volume token is confined to {path}, which is no directory now; make the directory through \
                 another mount, or use another token"
            ),
        };
        Ok(Err(refusal(RefusalReason::Token, message)))
    }
}

fn refuse_session(error: SystemError) -> Refusal {
    let message = error.to_string();
    let reason = match error {
        SystemError::Instant { earliest, latest, .. } => RefusalReason::Instant { earliest, latest },
        SystemError::Gap { before, after, .. } => RefusalReason::Gap { before, after },
        SystemError::UnknownVolume(_) | SystemError::DeletedVolume(_) | SystemError::GivenUp(_) => {
            RefusalReason::UnknownVolume
        }
        SystemError::UnknownSession(_) => RefusalReason::SessionOver,
        SystemError::BadSpec(_)
        | SystemError::Exhausted(_)
        | SystemError::NotGranted(_)
        | SystemError::NotNow
        | SystemError::NoRoom
        | SystemError::NotCounted(_)
        | SystemError::NotDeleted(_)
        | SystemError::StillNeeded(_) => RefusalReason::NotNow { retry_ms: 60_000 },
    };
    refusal(reason, message)
}
