//! Objects through the server: who may put which, and who may read what.
//!
//! A put must lie in the session's own grant. A read names no object of its choice but a block of a file, and gets the
//! stored bytes of a slice that this block shows to the session: by the same query that would tell it the slice, so by
//! the same rules of scope, of instants and of open files. Names of objects are no authority.

use super::Machine;
use super::calls::Who;
use super::group::{Effect, Group, ObjectAction, ObjectJob};
use super::session::ConnId;
use bytes::Bytes;
use chronofs_blocks::name::{object_name, parse_object_name};
use chronofs_core::ops::{Reply, Request};
use chronofs_core::slice::Place;
use chronofs_core::{Caller, Errno, Ino, ObjectId, SessionId};
use chronofs_wire::message::ToClient;

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
                && session.holds_grant(object.n)
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
}

/// Whether the slices in `reply` have one that lies in `object` at `offset` and is `len` stored bytes long.
pub fn shows(reply: &Reply, object: ObjectId, offset: u64, len: u32) -> bool {
    let Reply::Slices(slices) = reply else { return false };
    slices.iter().any(|placed| match &placed.slice.place {
        Place::Object(seal, at) => (seal.id.object, *at, seal.stored_len) == (object, offset, len),
        Place::Hole | Place::Inline(..) | Place::Staged(_) => false,
    })
}
