//! Objects through the server: who may put which, and who may read what.
//!
//! A put must lie in the session's own grant. A read names no object of its choice but a block of a file, and gets the
//! stored bytes of a slice that this block shows to the session: by the same query that would tell it the slice, so by
//! the same rules of scope, of instants and of open files. Names of objects are no authority.

use super::Machine;
use super::calls::Who;
use super::group::{Effect, Group, ObjectAction, ObjectJob, SignFor, SignedAnswer};
use super::session::{ConnId, Session};
use bytes::Bytes;
use chronofs_blocks::name::{object_name, parse_object_name};
use chronofs_blocks::signed::{Gets, Signs};
use chronofs_core::ops::{Reply, Request};
use chronofs_core::slice::Place;
use chronofs_core::{Caller, Errno, Ino, ObjectId, SessionId, Version};
use chronofs_wire::admin::StoreKind;
use chronofs_wire::message::{SIGNED_MAX, StoreAccess, ToClient};

/// How long a client uses a signed request, by its own watch; so no clocks are compared.
pub const SIGNED_USE_MS: u32 = 600_000;
/// How long such a request is valid, by the clocks of server and store: for what has begun, and for watches that differ.
pub const SIGNED_VALID_MS: u32 = 900_000;

/// The stored bytes that a client wants to read.
pub(super) struct AskedSlice {
    pub(super) ino: Ino,
    pub(super) block: u32,
    pub(super) object: ObjectId,
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl Machine {
    pub(super) fn put_object(
        &mut self,
        group: &mut Group,
        session: SessionId,
        conn: ConnId,
        id: u64,
        name: String,
        bytes: Bytes,
    ) {
        let Some(session) = self.sessions.get(&session) else { return };
        let Some(volume) = self.volumes.get(&session.index) else { return };
        let allowed = parse_object_name(&name).is_some_and(|(of, object)| {
            of == session.volume
                && object.incarnation == volume.row.incarnation
                && object.session == session.id
                && object.n < session.granted
                && !session.read_only
        });
        if !allowed {
            group.effects.push(Effect::Warn(format!(
                "session {} of {} wanted to store object {name}, which is not its to use",
                session.id.0, session.client_name
            )));
            group.send(conn, ToClient::Object { id, result: Err(Errno::EACCES) });
            return;
        }
        let job = ObjectJob { conn, id, volume: session.volume, name, action: ObjectAction::Put(bytes) };
        group.effects.push(Effect::Object(Box::new(job)));
    }

    pub(super) fn get_object(
        &mut self,
        group: &mut Group,
        session: SessionId,
        conn: ConnId,
        id: u64,
        asked: &AskedSlice,
    ) {
        let Some(session) = self.sessions.get(&session) else { return };
        let &AskedSlice { ino, block, object, offset, len } = asked;
        let slices = Request::Slices { ino, first: block, count: 1, staged: false };
        // As for the slices themselves: who reads was checked when the file was opened.
        let shown_by = Box::new(self.read_job(conn, Who::of(session), id, Caller::ROOT, slices));
        let (volume, name) = (session.volume, object_name(session.volume, object));
        let action = ObjectAction::Get { shown_by, object, offset, len };
        group.effects.push(Effect::Object(Box::new(ObjectJob { conn, id, volume, name, action })));
    }

    pub(super) fn sign_puts(
        &mut self,
        group: &mut Group,
        session: SessionId,
        conn: ConnId,
        id: u64,
        (first, count): (u64, u32),
    ) {
        let Some(session) = self.sessions.get(&session) else { return };
        let Some(volume) = self.volumes.get(&session.index) else { return };
        if session.read_only || first >= session.granted {
            group.send(conn, ToClient::SignedPuts { id, result: Err(Errno::EACCES) });
            return;
        }
        if !self.signs(session).puts {
            group.send(conn, ToClient::SignedPuts { id, result: Ok(Vec::new()) });
            return;
        }
        let (volume, incarnation) = (session.volume, volume.row.incarnation);
        let counters = first..first.saturating_add(u64::from(count.min(SIGNED_MAX)));
        let counters = counters.take_while(|n| *n < session.granted);
        let object = |n| ObjectId { incarnation, session: session.id, n };
        let action = ObjectAction::SignPuts(counters.map(|n| object_name(volume, object(n))).collect());
        let job = ObjectJob { conn, id, volume, name: String::new(), action };
        group.effects.push(Effect::Object(Box::new(job)));
    }

    /// How a session reaches the objects of its volume.
    pub(super) fn store_access(&self, session: &Session) -> StoreAccess {
        let Some(store) = self.volumes.get(&session.index).and_then(|volume| volume.store.as_ref()) else {
            return StoreAccess::ThroughServer;
        };
        if let StoreKind::Local { path } = &store.kind {
            return StoreAccess::Folder { path: path.clone(), marker: store.id };
        }
        if self.sign_for(session).is_none() {
            return StoreAccess::ThroughServer;
        }
        let ca_pem = store.kind.bucket().and_then(|bucket| bucket.ca_pem.clone());
        StoreAccess::Signed { use_ms: SIGNED_USE_MS, ca_pem, puts: self.signs(session).puts }
    }

    fn signs(&self, session: &Session) -> Signs {
        let store = self.volumes.get(&session.index).and_then(|volume| volume.store.as_ref());
        store.map_or(Signs { gets: Gets::Never, puts: false }, |store| {
            Signs::of(&store.kind, &store.credentials, store.create_only)
        })
    }

    /// Whether and how a session gets requests for what it is told of. An object may hold what the session may not
    /// see: other files, or what was overwritten since. Who may see all of it gets it whole, others only ranges.
    pub(super) fn sign_for(&self, session: &Session) -> Option<SignFor> {
        if session.direct {
            return None;
        }
        let past = || self.tokens.get(&session.token).is_some_and(|token| token.past);
        let whole = match self.signs(session).gets {
            Gets::Never => return None,
            Gets::Ranges => false,
            Gets::Objects if session.root == Ino::ROOT && past() => true,
            Gets::Objects => return None,
        };
        Some(SignFor { volume: session.volume, whole })
    }

    /// Answers a read, with requests for the objects that it names.
    pub(super) fn answer_stored(
        &self,
        group: &mut Group,
        conn: ConnId,
        session: SessionId,
        answer: (u64, Version, Reply),
    ) {
        let (id, version, reply) = answer;
        let sign = self.sessions.get(&session).and_then(|session| self.sign_for(session));
        let stored = stored(&reply).collect();
        let answer = ToClient::Return { id, version, durable: self.durable, result: Ok(reply) };
        match sign {
            Some(sign) => {
                let signed = SignedAnswer { sign, stored, answer };
                group.effects.push(Effect::SendSigned(conn, Box::new(signed)));
            }
            None => group.send(conn, answer),
        }
    }
}

/// What of objects a reply names: object, first byte, length.
pub fn stored(reply: &Reply) -> impl Iterator<Item = (ObjectId, u64, u32)> + '_ {
    let slices = match reply {
        Reply::Slices(slices) | Reply::Opened { slices: Some(slices), .. } => slices.as_slice(),
        _ => &[],
    };
    slices.iter().filter_map(|placed| match &placed.slice.place {
        Place::Object(seal, at) => Some((seal.id.object, *at, seal.stored_len)),
        Place::Hole | Place::Inline(..) | Place::Staged(_) => None,
    })
}

/// Whether the slices in `reply` have one that lies in `object` at `offset` and is `len` stored bytes long.
pub fn shows(reply: &Reply, object: ObjectId, offset: u64, len: u32) -> bool {
    stored(reply).any(|told| told == (object, offset, len))
}
