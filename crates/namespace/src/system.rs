//! What the server asks of its own store: volumes come, change and go; sessions open and end; the horizon moves.

use crate::counted::count;
use crate::ctx::{Ctx, Fail, SystemCtx};
use crate::op::Op;
use crate::protect::{check_kept_instant, list_kept, protected_instants};
use crate::read;
use crate::restored::of_new_volume;
use crate::rows::{
    self, CLOSED, COUNTERS, Closed, Counters, DIR, Dir, Format, INODE, Inode, Kept, PACKS, SESSION, STORE,
    STORE_WIDE, Session, Store, UNPROVEN, Unproven, VOLUME, Volume, ino_key,
};
use bytes::Bytes;
use chronofs_core::name::Position;
use chronofs_core::ops::{Scope, SystemRequest};
use chronofs_core::volume::{BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, VolumeSpec};
use chronofs_core::{Caller, Ino, ObjectId, Retention, SessionId, Version, VolumeIndex};
use chronofs_engine::{Batch, EngineError, ReadStop, Reads};
use chronofs_history::{Snapshot, Table, Txn};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// What a system request comes to. With an error the batch is empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SystemOutcome {
    /// The answer.
    pub reply: Result<SystemReply, SystemError>,
    /// What changes.
    pub batch: Batch,
}

/// The answer to a system request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SystemReply {
    /// It is done.
    Done,
    /// The volume after the request.
    Volume {
        /// Its place in the store.
        index: VolumeIndex,
        /// Its row.
        volume: Box<Volume>,
    },
    /// The session, opened or renewed.
    Session {
        /// Its id.
        id: SessionId,
        /// Its row.
        session: Box<Session>,
    },
    /// The horizon of the volume after the request.
    Horizon(Version),
    /// Rows of the past were looked at.
    Expired {
        /// How many were forgotten.
        rows: u32,
        /// The engine's key at which to go on; `None` when all of the past was looked at.
        next: Option<Bytes>,
    },
    /// What was retired is on its way out.
    Condemned {
        /// Objects that are to be deleted in their store once this is durable.
        objects: u32,
        /// Staged slices that are gone.
        staged: u32,
        /// So much is retired at once that it stays until somebody says that it may go.
        braked: bool,
        /// Nothing is left that was retired before.
        next: Version,
    },
    /// An object to pack slices into.
    Pack(ObjectId),
    /// The instants that are kept, first to last.
    Kept(Version, Version),
}

/// Why a system request was refused.
#[derive(Clone, PartialEq, Eq, Debug, Error, Serialize, Deserialize)]
pub enum SystemError {
    /// No such volume.
    #[error("volume {0} is not in this metadata store; create it, or ask the store that owns it")]
    UnknownVolume(Uuid),
    /// The volume was deleted.
    #[error("volume {0} was deleted; choose another one")]
    DeletedVolume(Uuid),
    /// The definition cannot be.
    #[error("the definition of the volume is refused: {0}")]
    BadSpec(String),
    /// No such session.
    #[error("session {0:?} is over or never was; open a new one")]
    UnknownSession(SessionId),
    /// The instant cannot be had.
    #[error("instant {at} cannot be had: choose one from {earliest} to {latest}")]
    Instant {
        /// What was asked for.
        at: Version,
        /// The earliest that can be had.
        earliest: Version,
        /// The latest that can be had.
        latest: Version,
    },
    /// The instant lies in a gap.
    #[error("instant {at} was lost by a restore: choose one up to {before} or from {after}")]
    Gap {
        /// What was asked for.
        at: Version,
        /// The last instant before the gap.
        before: Version,
        /// The first instant after it.
        after: Version,
    },
    /// The server has not granted itself the object, or it is over.
    #[error("object {0} is not the one that the server granted itself last; the next one will do")]
    NotGranted(ObjectId),
    /// The objects of the volume are not counted.
    #[error(
        "volume {0} is of before objects were counted, so its slices stay where they are; copy it into a new one"
    )]
    NotCounted(Uuid),
    /// What a power cut took is being collected: nothing else is committed before it.
    #[error("the server is still collecting what a power cut took; try again in some seconds")]
    NotNow,
    /// The store can number no more of these.
    #[error("this metadata store cannot make another {0}; use a new store")]
    Exhausted(String),
    /// The volume was deleted for good.
    #[error("volume {0} was deleted and is given up: what it held goes, or is gone; make a new one")]
    GivenUp(Uuid),
    /// The volume is in use.
    #[error("volume {0} is not deleted for good, so nothing of it goes")]
    NotDeleted(Uuid),
    /// Something of the volume is needed or left.
    #[error(
        "volume {0} is needed by a session, a hold or a pin, or something of it is left; it takes a while"
    )]
    StillNeeded(Uuid),
    /// There is no room for a commit.
    #[error("the disk of the metadata server is full; make room there and try again")]
    NoRoom,
}

pub(crate) enum Refused {
    Error(SystemError),
    Stop(ReadStop),
}

impl From<SystemError> for Refused {
    fn from(error: SystemError) -> Refused {
        Refused::Error(error)
    }
}

impl From<ReadStop> for Refused {
    fn from(stop: ReadStop) -> Refused {
        Refused::Stop(stop)
    }
}

pub(crate) type Decided<T> = Result<T, Refused>;

/// Object counters a session starts with.
pub(crate) const FIRST_GRANT: u64 = 1 << 20;

pub(crate) fn system<R: Reads + ?Sized>(
    reads: &R,
    ctx: &SystemCtx<'_>,
    request: &SystemRequest,
) -> Result<SystemOutcome, ReadStop> {
    let mut steward = Steward {
        reads,
        ctx,
        store: Txn::new(reads, STORE_WIDE, ctx.version, false),
        batch: Batch::default(),
    };
    match steward.decide(request) {
        Ok(reply) => {
            let mut batch = steward.store.into_batch();
            batch.0.extend(steward.batch.0);
            Ok(SystemOutcome { reply: Ok(reply), batch })
        }
        Err(Refused::Error(error)) => Ok(SystemOutcome { reply: Err(error), batch: Batch::default() }),
        Err(Refused::Stop(stop)) => Err(stop),
    }
}

pub(crate) struct Steward<'a, R: Reads + ?Sized> {
    pub(crate) reads: &'a R,
    pub(crate) ctx: &'a SystemCtx<'a>,
    pub(crate) store: Txn<&'a R>,
    /// Changes outside the store-wide tables.
    pub(crate) batch: Batch,
}

impl<R: Reads + ?Sized> Steward<'_, R> {
    fn decide(&mut self, request: &SystemRequest) -> Decided<SystemReply> {
        match request {
            SystemRequest::CreateVolume(spec) => self.create_volume(spec, false),
            SystemRequest::CreateVolumeAgain(spec) => self.create_volume(spec, true),
            SystemRequest::UpdateVolume(spec) => self.update_volume(spec),
            SystemRequest::DeleteVolume { id } => self.delete_volume(*id),
            SystemRequest::UndeleteVolume { id } => self.undelete_volume(*id),
            SystemRequest::GiveUpVolume { id } => self.give_up_volume(*id),
            SystemRequest::DropRows { volume, from, limit } => self.drop_rows(*volume, from, *limit),
            SystemRequest::VolumeGone { id } => self.volume_gone(*id),
            SystemRequest::SetKeys { id, revision, sealed } => self.set_keys(*id, *revision, sealed),
            SystemRequest::OpenSession { volume, client, at, read_only, ttl_ms, scope } => {
                self.open_session(*volume, *client, *at, *read_only, *ttl_ms, *scope)
            }
            SystemRequest::RenewSession { session } => {
                let version = self.ctx.version;
                self.change_session(*session, |row| row.renewed = version)
            }
            SystemRequest::NoteFloor { session, floor } => self.change_session(*session, |row| {
                row.floor = row.floor.max((*floor).min(row.granted));
            }),
            SystemRequest::EndSession { session } => self.end_session(*session),
            SystemRequest::Reap { volume, ino } => self.free(*volume, *ino, false),
            SystemRequest::Purge { volume, ino } => self.free(*volume, *ino, true),
            SystemRequest::AdvanceHorizon { volume, to } => self.advance_horizon(*volume, *to),
            SystemRequest::NoteMissed { session, missed } => {
                self.change_session(*session, |row| row.missed = *missed)
            }
            SystemRequest::NoteParked { session, calls } => {
                self.change_session(*session, |row| row.parked.clone_from(calls))
            }
            SystemRequest::Expire { volume, from, limit } => self.expire(*volume, from, *limit),
            SystemRequest::Condemn { volume, from, before, limit, brake } => {
                self.condemn(*volume, (*from, *before), *limit, *brake)
            }
            SystemRequest::CondemnGarbage { volume, objects, over_since } => {
                self.condemn_garbage(*volume, objects, *over_since)
            }
            SystemRequest::Deleted { volume, objects } => self.deleted(*volume, objects),
            SystemRequest::ReleaseBrake { volume } => self.release_brake(*volume),
            SystemRequest::Keep { volume, id, at, to, ends, note, found } => {
                let kept = Kept {
                    flags: 0,
                    at: *at,
                    to: *to,
                    made: self.ctx.version,
                    ends: *ends,
                    note: note.clone(),
                };
                self.keep(*volume, *id, kept, *found)
            }
            SystemRequest::KeepPast { volume, ids, ends, note } => self.keep_past(*volume, *ids, *ends, note),
            SystemRequest::Release { volume, id } => self.release(*volume, *id),
            SystemRequest::GrantPack { volume } => self.grant_pack(*volume),
            SystemRequest::MoveStaged { volume, object, slices, last } => {
                self.move_staged(*volume, *object, slices, *last)
            }
            SystemRequest::EndPack { volume } => self.end_pack(*volume),
            SystemRequest::MoveSlices { volume, from, to, as_of, slices, last } => {
                self.move_slices(*volume, (*from, *to), *as_of, slices, *last)
            }
            SystemRequest::NoteUnproven { volume, survived } => self.note_unproven(*volume, *survived),
        }
    }

    fn create_volume(&mut self, spec: &VolumeSpec, again: bool) -> Decided<SystemReply> {
        check_spec(spec)?;
        match self.live_volume(spec.id) {
            Err(Refused::Error(SystemError::UnknownVolume(_))) => {}
            Ok((index, volume)) => return Ok(SystemReply::Volume { index, volume: Box::new(volume) }),
            Err(refused) => return Err(refused),
        }
        let mut store = self.store_row()?;
        let index = VolumeIndex(store.next_volume);
        store.next_volume =
            store.next_volume.checked_add(1).ok_or_else(|| SystemError::Exhausted("volume".to_owned()))?;
        self.store.put_plain(STORE, &[], &store.encode()?);
        let version = self.ctx.version;
        let apart = of_new_volume(&store);
        let volume = Volume {
            flags: Volume::COUNTED,
            spec: spec.clone(),
            incarnation: apart.as_ref().map_or(0, |(incarnation, _)| *incarnation),
            born: version,
            horizon: version,
            history_since: (spec.retention != Retention::None).then_some(version),
            // Who has files of the lost one open hears that it was put back: as of nothing.
            gaps: if again { vec![(Version::ZERO, version)] } else { Vec::new() },
            leases: 0,
            deleted: None,
        };
        self.put_volume(index, &volume)?;
        let unproven = Unproven { flags: 0, survived: version };
        self.store.put_plain(UNPROVEN, &index.0.to_be_bytes(), &unproven.encode()?);
        self.make_root(index)?;
        if let Some((incarnation, packs)) = apart {
            let mut txn = Txn::new(self.reads, index, version, false);
            txn.put_plain(PACKS, &incarnation.to_be_bytes(), &packs.encode()?);
            self.batch.0.extend(txn.into_batch().0);
        }
        Ok(SystemReply::Volume { index, volume: Box::new(volume) })
    }

    fn make_root(&mut self, index: VolumeIndex) -> Decided<()> {
        let version = self.ctx.version;
        let now_ns = version.as_file_time_ns();
        let mut txn = Txn::new(self.reads, index, version, false);
        let root = Inode {
            flags: 0,
            mode: 0o755,
            uid: 0,
            gid: 0,
            parent: Ino::ROOT,
            position: Position(0),
            crtime_ns: now_ns,
            atime_ns: now_ns,
            body: rows::Body::Dir,
        };
        let dir = Dir { flags: 0, mtime_ns: now_ns, ctime_ns: now_ns, nlink: 2, entries: 0 };
        let counters = Counters { flags: 0, next_ino: Ino::ROOT.0 + 1, used_bytes: 0, used_inodes: 1 };
        txn.insert(INODE, &ino_key(Ino::ROOT), &root.encode()?);
        txn.insert(DIR, &ino_key(Ino::ROOT), &dir.encode()?);
        txn.put_plain(COUNTERS, &[], &counters.encode()?);
        self.batch.0.extend(txn.into_batch().0);
        Ok(())
    }

    fn update_volume(&mut self, spec: &VolumeSpec) -> Decided<SystemReply> {
        check_spec(spec)?;
        let (index, mut volume) = self.live_volume(spec.id)?;
        if spec.block_size != volume.spec.block_size || spec.hash_key != volume.spec.hash_key {
            let problem = "block size and hash key are fixed when a volume is made; make a new volume";
            return Err(SystemError::BadSpec(problem.to_owned()).into());
        }
        volume.history_since = match (spec.retention, volume.history_since) {
            (Retention::None, _) => None,
            (_, Some(since)) => Some(since),
            (_, None) => Some(self.ctx.version),
        };
        // What has left the window stays out of reach in a wider one.
        volume.horizon = volume.horizon.max(volume.spec.retention.window_start(self.ctx.version));
        volume.spec = spec.clone();
        self.put_volume(index, &volume)?;
        Ok(SystemReply::Volume { index, volume: Box::new(volume) })
    }

    fn delete_volume(&mut self, id: Uuid) -> Decided<SystemReply> {
        match self.live_volume(id) {
            Ok((index, mut volume)) => {
                volume.deleted = Some(self.ctx.version);
                self.put_volume(index, &volume)?;
                Ok(SystemReply::Done)
            }
            Err(Refused::Error(SystemError::DeletedVolume(_))) => Ok(SystemReply::Done),
            Err(refused) => Err(refused),
        }
    }

    fn open_session(
        &mut self,
        volume: Uuid,
        client: u128,
        at: Option<Version>,
        read_only: bool,
        ttl_ms: u32,
        scope: Scope,
    ) -> Decided<SystemReply> {
        let (index, mut row) = self.live_volume(volume)?;
        let known = list_sessions(self.reads)?
            .into_iter()
            .find(|(_, s)| (s.volume, s.client, s.at) == (index, client, at));
        if let Some((id, session)) = known {
            return Ok(SystemReply::Session { id, session: Box::new(session) });
        }
        if let Some(at) = at {
            check_kept_instant(self.reads, index, &row, at, self.ctx.version)??;
            row.leases =
                row.leases.checked_add(1).ok_or_else(|| SystemError::Exhausted("lease".to_owned()))?;
            self.put_volume(index, &row)?;
        }
        let mut store = self.store_row()?;
        let id = SessionId(store.next_session);
        store.next_session =
            store.next_session.checked_add(1).ok_or_else(|| SystemError::Exhausted("session".to_owned()))?;
        self.store.put_plain(STORE, &[], &store.encode()?);
        let session = Session {
            flags: if read_only || at.is_some() { Session::READ_ONLY } else { 0 },
            volume: index,
            client,
            at,
            ttl_ms,
            opened: self.ctx.version,
            renewed: self.ctx.version,
            granted: FIRST_GRANT,
            floor: 0,
            scope,
            missed: None,
            parked: Vec::new(),
        };
        self.store.put_plain(SESSION, &id.0.to_be_bytes(), &session.encode()?);
        Ok(SystemReply::Session { id, session: Box::new(session) })
    }

    fn change_session(&mut self, id: SessionId, change: impl FnOnce(&mut Session)) -> Decided<SystemReply> {
        let mut session = session(self.reads, id)?.ok_or(SystemError::UnknownSession(id))?;
        change(&mut session);
        self.store.put_plain(SESSION, &id.0.to_be_bytes(), &session.encode()?);
        Ok(SystemReply::Session { id, session: Box::new(session) })
    }

    fn end_session(&mut self, id: SessionId) -> Decided<SystemReply> {
        let Some(session) = session(self.reads, id)? else { return Ok(SystemReply::Done) };
        if session.at.is_some()
            && let Some(mut row) = volume(self.reads, session.volume)?
        {
            row.leases = row.leases.saturating_sub(1);
            self.put_volume(session.volume, &row)?;
        }
        let key = id.0.to_be_bytes();
        let closed =
            Closed { flags: 0, volume: session.volume, granted: session.granted, ended: self.ctx.version };
        self.store.delete_plain(SESSION, &key);
        self.store.put_plain(CLOSED, &key, &closed.encode()?);
        Ok(SystemReply::Done)
    }

    /// Frees an orphan, or goes on with the rows of an inode that is gone.
    fn free(&mut self, id: Uuid, ino: Ino, gone: bool) -> Decided<SystemReply> {
        let (index, volume) = self.live_volume(id)?;
        let ctx = Ctx {
            volume: index,
            version: self.ctx.version,
            at: None,
            caller: Caller::ROOT,
            session: SessionId(0),
            root: Ino::ROOT,
            read_only: false,
            is_open: self.ctx.is_open,
            holds: &|_| false,
            freed_max: self.ctx.freed_max,
            made: None,
        };
        let mut op = Op::new(self.reads, &ctx, &volume);
        let freed = if gone { op.purge(ino) } else { op.reap(ino) };
        freed.map_err(|fail| nothing_refuses(fail, &format!("inode {ino}")))?;
        let batch = op.into_batch().map_err(|fail| nothing_refuses(fail, &format!("inode {ino}")))?;
        self.batch.0.extend(batch.0);
        Ok(SystemReply::Done)
    }

    /// The horizon never enters the retention window, so what is asked for is cut to the window's start.
    fn advance_horizon(&mut self, id: Uuid, to: Version) -> Decided<SystemReply> {
        let (index, mut volume) = self.live_volume(id)?;
        let to = to.min(volume.spec.retention.window_start(self.ctx.version));
        if to > volume.horizon {
            volume.horizon = to;
            self.put_volume(index, &volume)?;
        }
        Ok(SystemReply::Horizon(volume.horizon))
    }

    /// Instants that are protected by the row of the volume and the sessions, as they are at this commit, stay whole;
    /// so it is never too late to be asked to go on with an old `from`.
    fn expire(&mut self, id: Uuid, from: &[u8], limit: u32) -> Decided<SystemReply> {
        let (index, volume) = self.live_volume(id)?;
        let (sessions, kept) = (list_sessions(self.reads)?, list_kept(self.reads)?);
        let protected = protected_instants(index, &volume, &sessions, &kept);
        let mut step =
            chronofs_history::expire(self.reads, index, &rows::VERSIONED, &protected, from, limit as usize)?;
        let rows = step.batch.0.len() as u32;
        count(self.reads, index, &volume, self.ctx.version, &step.dropped, &mut step.batch)
            .map_err(|fail| nothing_refuses(fail, "the past"))?;
        self.batch.0.extend(step.batch.0);
        Ok(SystemReply::Expired { rows, next: step.next })
    }

    pub(crate) fn live_volume(&self, id: Uuid) -> Decided<(VolumeIndex, Volume)> {
        match self.find_volume(id)? {
            Some((_, Volume { deleted: Some(_), .. })) => Err(SystemError::DeletedVolume(id).into()),
            Some(found) => Ok(found),
            None => Err(SystemError::UnknownVolume(id).into()),
        }
    }

    pub(crate) fn put_volume(&mut self, index: VolumeIndex, volume: &Volume) -> Decided<()> {
        self.store.put_plain(VOLUME, &index.0.to_be_bytes(), &volume.encode()?);
        Ok(())
    }

    fn store_row(&self) -> Decided<Store> {
        match self.store.get_plain(STORE, &[])? {
            Some(row) => Ok(Store::decode(STORE, &[], &row)?),
            None => Ok(Store { flags: 0, next_volume: 1, next_session: 1 }),
        }
    }
}

/// What only gives back cannot be refused: if it is, rows are damaged.
pub(crate) fn nothing_refuses(fail: Fail, what: &str) -> Refused {
    Refused::Stop(match fail {
        Fail::Stop(stop) => stop,
        Fail::Errno(errno) => {
            let detail = format!("it could not be freed: {errno}; run `chronofs meta verify`");
            ReadStop::Failed(EngineError::Damaged { what: what.to_owned(), detail })
        }
    })
}

fn check_spec(spec: &VolumeSpec) -> Decided<()> {
    let bad = |problem: String| Err(SystemError::BadSpec(problem).into());
    if !spec.block_size.is_power_of_two() || !(BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&spec.block_size) {
        let size = spec.block_size;
        return bad(format!(
            "block size {size} is no power of two from {BLOCK_SIZE_MIN} to {BLOCK_SIZE_MAX}"
        ));
    }
    if spec.name.is_empty() {
        return bad("a volume needs a name".to_owned());
    }
    Ok(())
}

/// The instants of a volume that can be had at `now`: earliest and latest. Gaps are not considered.
pub fn instants(volume: &Volume, now: Version) -> (Version, Version) {
    let kept_since = volume.history_since.unwrap_or(now);
    let earliest =
        volume.born.max(volume.horizon).max(kept_since).max(volume.spec.retention.window_start(now));
    (earliest, now)
}

/// Whether an instant of a volume can be had at `now`.
pub fn check_instant(volume: &Volume, at: Version, now: Version) -> Result<(), SystemError> {
    let (earliest, latest) = instants(volume, now);
    if at < earliest || at > latest {
        return Err(SystemError::Instant { at, earliest, latest });
    }
    check_gaps(volume, at)
}

pub(crate) fn check_gaps(volume: &Volume, at: Version) -> Result<(), SystemError> {
    match volume.gaps.iter().find(|(before, after)| *before < at && at < *after) {
        Some(&(before, after)) => Err(SystemError::Gap { at, before, after }),
        None => Ok(()),
    }
}

/// The most inode numbers that a power cut may take with the creates that were not durable. Of these a client keeps at
/// most 2^17, and then waits.
pub(crate) const LOST_INOS_MAX: u64 = 1 << 24;

/// Leaves out the numbers that lost creates may have had: who heard of them means the lost files by them. What to commit
/// at `version` for it, before any new number is given.
pub fn skip_lost_inos<R: Reads>(reads: &R, index: VolumeIndex, version: Version) -> Result<Batch, ReadStop> {
    let mut counters = read::counters(&Snapshot::new(reads, index, None))?;
    counters.next_ino = counters.next_ino.saturating_add(LOST_INOS_MAX).min(Ino::COUNTER_END);
    let mut txn = Txn::new(reads, index, version, false);
    txn.put_plain(COUNTERS, &[], &counters.encode()?);
    Ok(txn.into_batch())
}

/// The row of a volume.
pub fn volume<R: Reads + ?Sized>(reads: &R, index: VolumeIndex) -> Result<Option<Volume>, ReadStop> {
    let key = index.0.to_be_bytes();
    let row = Snapshot::new(reads, STORE_WIDE, None).get_plain(VOLUME, &key)?;
    row.map(|row| Volume::decode(VOLUME, &key, &row)).transpose()
}

/// The row of a live session.
pub fn session<R: Reads + ?Sized>(reads: &R, id: SessionId) -> Result<Option<Session>, ReadStop> {
    let key = id.0.to_be_bytes();
    let row = Snapshot::new(reads, STORE_WIDE, None).get_plain(SESSION, &key)?;
    row.map(|row| Session::decode(SESSION, &key, &row)).transpose()
}

/// Whether the session that put the object, if one did, publishes nothing of it any more.
pub(crate) fn is_over<R: Reads + ?Sized>(reads: &R, object: ObjectId) -> Result<bool, ReadStop> {
    Ok(session(reads, object.session)?.is_none_or(|session| object.n < session.floor))
}

/// Every volume, deleted ones too.
pub fn list_volumes<R: Reads + ?Sized>(reads: &R) -> Result<Vec<(VolumeIndex, Volume)>, ReadStop> {
    scan_plain::<Volume, R>(reads, VOLUME, STORE_WIDE)?
        .into_iter()
        .map(|(key, row)| Ok((VolumeIndex(number_of(&key) as u32), row)))
        .collect()
}

/// Every live session.
pub fn list_sessions<R: Reads + ?Sized>(reads: &R) -> Result<Vec<(SessionId, Session)>, ReadStop> {
    scan_plain::<Session, R>(reads, SESSION, STORE_WIDE)?
        .into_iter()
        .map(|(key, row)| Ok((SessionId(number_of(&key)), row)))
        .collect()
}

/// The big-endian number that a key is.
pub(crate) fn number_of(key: &[u8]) -> u64 {
    key.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Every row of a table that is not versioned.
pub(crate) fn scan_plain<T: Format, R: Reads + ?Sized>(
    reads: &R,
    table: Table,
    volume: VolumeIndex,
) -> Result<Vec<(Bytes, T)>, ReadStop> {
    const PAGE: usize = 256;
    let snapshot = Snapshot::new(reads, volume, None);
    let mut found = Vec::new();
    let mut start = Vec::new();
    loop {
        let page = snapshot.scan_plain(table, &[], &start, PAGE)?;
        let last_page = page.len() < PAGE;
        if let Some((key, _)) = page.last() {
            start = [key.as_ref(), &[0]].concat();
        }
        for (key, row) in page {
            let row = T::decode(table, &key, &row)?;
            found.push((key, row));
        }
        if last_page {
            return Ok(found);
        }
    }
}
