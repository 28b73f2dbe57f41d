//! What may not be forgotten: the instants of a volume that somebody can still ask for.

use crate::rows::{Format, HOLD, Kept, PIN, STORE_WIDE, Session, UNPROVEN, Unproven, Volume};
use crate::system::{
    Decided, Steward, SystemError, SystemReply, check_gaps, check_instant, instants, list_volumes, number_of,
    scan_plain,
};
use chronofs_core::{SessionId, Version, VolumeIndex};
use chronofs_engine::{Batch, ReadStop, Reads};
use chronofs_history::{Protected, Txn};
use uuid::Uuid;

/// A hold or a pin: its volume, its id, and its row.
pub type KeptInstant = (VolumeIndex, Uuid, Kept);

/// The protected instants of a volume: all from its horizon on, and each that a session leases or that is held or
/// pinned. A session counts until it is ended and a hold until it is released, not until their time runs out.
pub fn protected_instants(
    index: VolumeIndex,
    volume: &Volume,
    sessions: &[(SessionId, Session)],
    kept: &[KeptInstant],
) -> Protected {
    let leases = sessions.iter().filter(|(_, session)| session.volume == index);
    let leases = leases.filter_map(|(_, session)| session.at);
    let kept = kept.iter().filter(|(of, ..)| *of == index).map(|(_, _, row)| (row.at, row.to));
    leases.map(|at| (at, at)).chain(kept).chain([(volume.horizon, Version::MAX)]).collect()
}

/// Every hold and pin of the store.
pub fn list_kept<R: Reads + ?Sized>(reads: &R) -> Result<Vec<KeptInstant>, ReadStop> {
    let mut kept = Vec::new();
    for table in [PIN, HOLD] {
        for (key, row) in scan_plain::<Kept, R>(reads, table, STORE_WIDE)? {
            let (volume, id) = key.split_at(4);
            kept.push((VolumeIndex(number_of(volume) as u32), Uuid::from_slice(id).unwrap_or_default(), row));
        }
    }
    Ok(kept)
}

/// The volumes whose pins in the block store were not read since a start, with what that start had found.
pub fn list_unproven<R: Reads + ?Sized>(reads: &R) -> Result<Vec<(VolumeIndex, Version)>, ReadStop> {
    let rows = scan_plain::<Unproven, R>(reads, UNPROVEN, STORE_WIDE)?.into_iter();
    Ok(rows.map(|(key, row)| (VolumeIndex(number_of(&key) as u32), row.survived)).collect())
}

/// What a start would note of every volume, going on from `survived`: for a commit that is made before one, after which a start
/// would take that commit for what survived. What an earlier start noted stays.
pub fn unproven<R: Reads>(reads: &R, survived: Version) -> Result<Batch, ReadStop> {
    let mut store = Txn::new(reads, STORE_WIDE, survived, false);
    for (index, volume) in list_volumes(reads)? {
        let key = index.0.to_be_bytes();
        if !volume.is_gone() && store.get_plain(UNPROVEN, &key)?.is_none() {
            store.put_plain(UNPROVEN, &key, &Unproven { flags: 0, survived }.encode()?);
        }
    }
    Ok(store.into_batch())
}

/// Whether an instant of a volume can be had at `now`: it lies in the window, or what is kept covers it. What is kept is only
/// read if it comes to that: a row of it that cannot be read is in the way of no other instant.
pub fn check_kept_instant<R: Reads + ?Sized>(
    reads: &R,
    index: VolumeIndex,
    volume: &Volume,
    at: Version,
    now: Version,
) -> Result<Result<(), SystemError>, ReadStop> {
    let checked = check_instant(volume, at, now);
    let out_of_window = matches!(checked, Err(SystemError::Instant { .. }));
    let had =
        out_of_window && volume.born <= at && at <= now && whole(index, &list_kept(reads)?).covers(at, at);
    Ok(if had { check_gaps(volume, at) } else { checked })
}

/// The instants that are kept without a break since they were in the window.
fn whole(index: VolumeIndex, kept: &[KeptInstant]) -> Protected {
    let ours = kept.iter().filter(|(of, _, row)| *of == index && row.flags & Kept::WHOLE != 0);
    ours.map(|(_, _, row)| (row.at, row.to)).collect()
}

fn kept_key(index: VolumeIndex, id: Uuid) -> Vec<u8> {
    [&index.0.to_be_bytes()[..], id.as_bytes()].concat()
}

impl<R: Reads + ?Sized> Steward<'_, R> {
    /// Keeps instants readable: with an end as a hold, without as a pin. A volume that is deleted and can be taken back has
    /// them as any. Doing it again is no error, and may move the end further away.
    pub(crate) fn keep(
        &mut self,
        volume: Uuid,
        id: Uuid,
        mut kept: Kept,
        found: bool,
    ) -> Decided<SystemReply> {
        let (index, mut row) = self.any_volume(volume)?;
        let all = list_kept(self.reads)?;
        let known = all.iter().find(|(of, known, _)| (*of, *known) == (index, id));
        if let Some((_, _, known)) = known {
            return self.keep_longer(index, id, known.clone(), &kept);
        }
        let now = self.ctx.version;
        if kept.at > kept.to || kept.to > now {
            let bad = format!("instants from {} to {} cannot be kept at {now}", kept.at, kept.to);
            return Err(SystemError::BadSpec(bad).into());
        }
        // What others keep without a break is whole, wherever the horizon is by now.
        let is_kept = whole(index, &all).covers(kept.at, kept.to);
        if (row.is_given_up() || row.is_gone()) && !is_kept {
            return Err(SystemError::GivenUp(volume).into());
        }
        let checked = check_instant(&row, kept.at, now).and(check_instant(&row, kept.to, now));
        match checked {
            Err(error) if !found && !is_kept => return Err(error.into()),
            Err(_) if !is_kept => {}
            _ => kept.flags |= Kept::WHOLE,
        }
        row.leases = row.leases.checked_add(1).ok_or_else(|| SystemError::Exhausted("lease".to_owned()))?;
        self.put_volume(index, &row)?;
        self.put_kept(index, id, &kept)?;
        Ok(SystemReply::Done)
    }

    /// Keeps what can be had of a volume's past, and all that is to come: in one commit, since what of the past can be had is
    /// less with the next. Gives the span of the past. Asked for again it is as it was.
    pub(crate) fn keep_past(
        &mut self,
        volume: Uuid,
        ids: [Uuid; 2],
        ends: Version,
        note: &str,
    ) -> Decided<SystemReply> {
        let (index, mut row) = self.any_volume(volume)?;
        if row.is_given_up() || row.is_gone() {
            return Err(SystemError::GivenUp(volume).into());
        }
        let known = list_kept(self.reads)?.into_iter().find(|(of, id, _)| (*of, *id) == (index, ids[0]));
        if let Some((.., known)) = known {
            return Ok(SystemReply::Kept(known.at, known.to));
        }
        let (earliest, now) = instants(&row, self.ctx.version);
        let at = match check_instant(&row, earliest, now) {
            Err(SystemError::Gap { after, .. }) => after,
            _ => earliest,
        };
        row.leases = row.leases.checked_add(2).ok_or_else(|| SystemError::Exhausted("lease".to_owned()))?;
        self.put_volume(index, &row)?;
        for (id, (at, to)) in ids.into_iter().zip([(at, now), (now, Version::MAX)]) {
            let flags = Kept::WHOLE;
            let kept = Kept { flags, at, to, made: now, ends: Some(ends), note: note.to_owned() };
            self.put_kept(index, id, &kept)?;
        }
        Ok(SystemReply::Kept(at, now))
    }

    /// What is kept already stays until the later of the two ends: whoever asked for either was told that it does.
    fn keep_longer(
        &mut self,
        index: VolumeIndex,
        id: Uuid,
        known: Kept,
        asked: &Kept,
    ) -> Decided<SystemReply> {
        if (known.at, known.to) != (asked.at, asked.to) {
            let taken = format!("{id} keeps {} to {} already", known.at, known.to);
            return Err(SystemError::BadSpec(taken).into());
        }
        // A pin has no end.
        let ends = known.ends.zip(asked.ends).map(|(one, other)| one.max(other));
        if ends != known.ends {
            if ends.is_none() {
                self.store.delete_plain(HOLD, &kept_key(index, id));
            }
            self.put_kept(index, id, &Kept { ends, ..known })?;
        }
        Ok(SystemReply::Done)
    }

    fn put_kept(&mut self, index: VolumeIndex, id: Uuid, kept: &Kept) -> Decided<()> {
        let table = if kept.ends.is_some() { HOLD } else { PIN };
        self.store.put_plain(table, &kept_key(index, id), &kept.encode()?);
        Ok(())
    }

    /// The instant need not be kept for this any more. Doing it again is no error.
    pub(crate) fn release(&mut self, volume: Uuid, id: Uuid) -> Decided<SystemReply> {
        let (index, mut row) = self.any_volume(volume)?;
        let key = kept_key(index, id);
        for table in [PIN, HOLD] {
            if self.store.get_plain(table, &key)?.is_some() {
                self.store.delete_plain(table, &key);
                row.leases = row.leases.saturating_sub(1);
                self.put_volume(index, &row)?;
            }
        }
        Ok(SystemReply::Done)
    }

    /// A start goes on from `survived` and has not read the volume's pins in the block store; or they are read now. What
    /// an earlier start says of which the same is true stays.
    pub(crate) fn note_unproven(&mut self, volume: Uuid, survived: Option<Version>) -> Decided<SystemReply> {
        let (index, _) = self.any_volume(volume)?;
        let key = index.0.to_be_bytes();
        let known = self.store.get_plain(UNPROVEN, &key)?.is_some();
        match survived {
            Some(survived) if !known => {
                self.store.put_plain(UNPROVEN, &key, &Unproven { flags: 0, survived }.encode()?);
            }
            None if known => self.store.delete_plain(UNPROVEN, &key),
            _ => {}
        }
        Ok(SystemReply::Done)
    }
}
