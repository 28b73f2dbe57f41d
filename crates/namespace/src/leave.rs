//! Volumes that were deleted. A deleted volume is out of reach and loses nothing: it can be taken back as it was. That ends
//! when it is *given up*, a decision of its own that cannot be taken back. From then on its rows go, live and past, a
//! bounded step at a time, once nothing needs it: no session, no hold, no pin. What they named is retired by that, and goes
//! as everything else goes that no row names ([`crate::collect`]), but that no brake is put to it. When nothing is left, the
//! volume is *gone*: its own row stays, so that its id means nothing else.

use crate::counted::count;
use crate::rows::{
    CONDEMNED, COUNTERS, KEYS, MOVED, OBJECT, ORPHAN, PACKS, PURGE, RETIRED, SHARED, STAGED, TALLY, UNPROVEN,
    VERSIONED, Volume,
};
use crate::system::{
    Decided, Steward, SystemError, SystemReply, list_sessions, list_volumes, nothing_refuses, volume,
};
use chronofs_core::VolumeIndex;
use chronofs_core::volume::VolumeSpec;
use chronofs_engine::{Change, ReadStop, Reads};
use chronofs_history::{Table, page};
use uuid::Uuid;

/// Tables of which nothing is counted: their rows go with those of files.
const UNCOUNTED: [Table; 2] = [ORPHAN, PURGE];
/// Tables that are empty when everything was collected.
const COLLECTED: [Table; 6] = [STAGED, MOVED, SHARED, OBJECT, RETIRED, CONDEMNED];
/// What a volume has one row of, or a few.
const OWN: [Table; 3] = [COUNTERS, TALLY, PACKS];

impl Volume {
    /// It is not deleted.
    pub fn is_live(&self) -> bool {
        self.deleted.is_none()
    }

    /// It is deleted, and all of it is to go.
    pub fn is_given_up(&self) -> bool {
        self.flags & (Volume::GIVEN_UP | Volume::GONE) == Volume::GIVEN_UP
    }

    /// It is deleted, and nothing of it is left but its row.
    pub fn is_gone(&self) -> bool {
        self.flags & Volume::GONE != 0
    }

    /// What people call it. The name of a deleted volume may be that of another one by now.
    pub fn shown_name(&self) -> String {
        let VolumeSpec { name, id, .. } = &self.spec;
        if self.is_live() { name.clone() } else { format!("{name} (deleted, {id})") }
    }

    /// What of it no row names goes.
    pub fn is_collected(&self) -> bool {
        self.is_live() || self.is_given_up()
    }
}

/// Whether nothing is left of a volume in these tables.
fn is_empty<R: Reads + ?Sized>(reads: &R, index: VolumeIndex, tables: &[Table]) -> Result<bool, ReadStop> {
    Ok(page(reads, index, tables, &[], 1)?.rows.is_empty())
}

/// Whether a volume has no row but its own.
pub(crate) fn is_bare<R: Reads + ?Sized>(reads: &R, index: VolumeIndex) -> Result<bool, ReadStop> {
    Ok(is_empty(reads, index, &VERSIONED)?
        && is_empty(reads, index, &UNCOUNTED)?
        && is_empty(reads, index, &COLLECTED)?
        && is_empty(reads, index, &OWN)?)
}

impl<R: Reads + ?Sized> Steward<'_, R> {
    /// The volume, if there is one, also a deleted one.
    pub(crate) fn find_volume(&self, id: Uuid) -> Decided<Option<(VolumeIndex, Volume)>> {
        if let Some(index) = (self.ctx.place)(id)
            && let Some(row) = volume(self.reads, index)?
            && row.spec.id == id
        {
            return Ok(Some((index, row)));
        }
        Ok(list_volumes(self.reads)?.into_iter().find(|(_, volume)| volume.spec.id == id))
    }

    /// The volume, also a deleted one.
    pub(crate) fn any_volume(&self, id: Uuid) -> Decided<(VolumeIndex, Volume)> {
        self.find_volume(id)?.ok_or_else(|| SystemError::UnknownVolume(id).into())
    }

    /// The volume, if what of it no row names goes.
    pub(crate) fn collected_volume(&self, id: Uuid) -> Decided<(VolumeIndex, Volume)> {
        let found = self.any_volume(id)?;
        if found.1.is_collected() { Ok(found) } else { Err(SystemError::DeletedVolume(id).into()) }
    }

    /// Takes a deleted volume back, as it was.
    pub(crate) fn undelete_volume(&mut self, id: Uuid) -> Decided<SystemReply> {
        let (index, mut volume) = self.any_volume(id)?;
        if volume.is_given_up() || volume.is_gone() {
            return Err(SystemError::GivenUp(id).into());
        }
        if volume.deleted.take().is_some() {
            self.put_volume(index, &volume)?;
        }
        Ok(SystemReply::Volume { index, volume: Box::new(volume) })
    }

    /// From this commit on a deleted volume cannot be taken back.
    pub(crate) fn give_up_volume(&mut self, id: Uuid) -> Decided<SystemReply> {
        let (index, mut volume) = self.any_volume(id)?;
        if volume.is_live() {
            return Err(SystemError::NotDeleted(id).into());
        }
        if volume.flags & Volume::COUNTED == 0 {
            return Err(SystemError::NotCounted(id).into());
        }
        if !volume.is_given_up() && !volume.is_gone() {
            self.end_packs(index, &volume)?;
            volume.flags |= Volume::GIVEN_UP;
            self.put_volume(index, &volume)?;
        }
        Ok(SystemReply::Volume { index, volume: Box::new(volume) })
    }

    /// The volume, if it is given up and nothing needs it any more, as it is at this commit.
    fn unneeded_volume(&self, id: Uuid) -> Decided<(VolumeIndex, Volume)> {
        let (index, volume) = self.any_volume(id)?;
        if !volume.is_given_up() {
            return Err(SystemError::NotDeleted(id).into());
        }
        // Leases are sessions of the past, holds and pins.
        if volume.leases > 0 || list_sessions(self.reads)?.iter().any(|(_, row)| row.volume == index) {
            return Err(SystemError::StillNeeded(id).into());
        }
        Ok((index, volume))
    }

    /// Drops the next rows of a volume that is given up.
    pub(crate) fn drop_rows(&mut self, id: Uuid, from: &[u8], limit: u32) -> Decided<SystemReply> {
        let (index, volume) = self.unneeded_volume(id)?;
        let tables = [&VERSIONED[..], &UNCOUNTED].concat();
        let page = page(self.reads, index, &tables, from, limit as usize)?;
        self.batch.0.extend(page.rows.iter().map(|(key, _)| Change::Delete(key.clone())));
        count(self.reads, index, &volume, self.ctx.version, &page.rows, &mut self.batch)
            .map_err(|fail| nothing_refuses(fail, "the rows of a deleted volume"))?;
        Ok(SystemReply::Expired { rows: page.rows.len() as u32, next: page.next })
    }

    /// Nothing of the volume is left in its store, somebody saw. If nothing is left here either, it is gone.
    pub(crate) fn volume_gone(&mut self, id: Uuid) -> Decided<SystemReply> {
        let (index, mut volume) = self.unneeded_volume(id)?;
        for tables in [&VERSIONED[..], &UNCOUNTED, &COLLECTED] {
            if !is_empty(self.reads, index, tables)? {
                return Err(SystemError::StillNeeded(id).into());
            }
        }
        let own = page(self.reads, index, &OWN, &[], usize::MAX)?;
        self.batch.0.extend(own.rows.into_iter().map(|(key, _)| Change::Delete(key)));
        self.store.delete_plain(UNPROVEN, &index.0.to_be_bytes());
        self.store.delete_plain(KEYS, &index.0.to_be_bytes());
        volume.flags |= Volume::GONE;
        self.put_volume(index, &volume)?;
        Ok(SystemReply::Volume { index, volume: Box::new(volume) })
    }
}
