//! The server's repacking: what is needed of objects is put into others, whose slices lie elsewhere from then on.

use crate::world::{Check, World, ensure, object_bytes};
use bytes::Bytes;
use chronofs_core::ops::{MovedSlice, SystemRequest};
use chronofs_core::slice::Place;
use chronofs_core::{ObjectId, SessionId, SliceId};
use chronofs_namespace::{
    HeldFrom, HeldSlice, IndexedSlice, SystemReply, held_slices, list_objects, needed_slices, poor_object,
};
use std::collections::BTreeMap;

impl World {
    /// Every slice that rows name, live and past.
    fn held(&self) -> Result<Vec<HeldSlice>, String> {
        let (mut all, mut from) = (Vec::new(), Some(HeldFrom::default()));
        while let Some(start) = from {
            let page = self.with_reads(|reads| held_slices(reads, self.index, &start, 50));
            let (held, next) = page.map_err(|stop| format!("held_slices: {stop}"))?;
            all.extend(held);
            from = next;
        }
        Ok(all)
    }

    /// What the index of an object has, as far as rows tell: of each slice the place where it was found first.
    fn index_of(&self, object: ObjectId, held: &[HeldSlice]) -> Vec<IndexedSlice> {
        let mut index: BTreeMap<SliceId, IndexedSlice> = BTreeMap::new();
        for HeldSlice { ino, key, slice, .. } in held {
            let (seal, at) = match &slice.place {
                Place::Object(seal, at) if seal.id.object == object => (*seal, *at),
                Place::Moved(seal, of, at) if *of == object => (*seal, *at),
                _ => continue,
            };
            index.entry(seal.id).or_insert(IndexedSlice { seal, at, ino: *ino, block: key.block });
        }
        index.into_values().collect()
    }

    fn stored(&self, object: ObjectId, slice: &IndexedSlice) -> Bytes {
        match object.session {
            SessionId::SERVER => self.packed[&(object, slice.at)].clone(),
            _ => object_bytes(slice.seal.id, slice.seal.full_len).into(),
        }
    }

    /// Repacks an object; gives whether it could be.
    pub fn repack(&mut self, from: ObjectId, step: usize) -> Result<bool, String> {
        let (index, volume) = (self.index, self.spec.id);
        let poor = self.with_reads(|reads| poor_object(reads, index, from, 1 << 40, 95));
        if poor.map_err(|stop| stop.to_string())?.is_none() {
            return Ok(false);
        }
        let granted = self.system(self.next_version(), &SystemRequest::GrantPack { volume })?;
        let SystemReply::Pack(to) = granted else { return Err(format!("GrantPack: {granted:?}")) };
        self.unchanged(self.next_version());
        self.apply();
        let held = self.held()?;
        let slices = self.index_of(from, &held);
        let needed = self.with_reads(|reads| needed_slices(reads, index, from, &slices));
        let Some(needed) = needed.map_err(|stop| format!("needed_slices: {stop}"))? else {
            return Ok(false);
        };
        let as_of = self.now().version;
        let mut moved = Vec::new();
        for (at, (n, rows)) in (64..).zip(needed) {
            let slice = &slices[n];
            self.packed.insert((to, at), self.stored(from, slice));
            moved.push(MovedSlice { id: slice.seal.id, at, len: slice.seal.stored_len, rows });
        }
        let step = if from.session == SessionId::SERVER { step } else { moved.len().max(1) };
        let count = moved.len().div_ceil(step);
        for (n, slices) in moved.chunks(step).enumerate() {
            let (slices, last) = (slices.to_vec(), n + 1 == count);
            let version = self.next_version();
            let request = SystemRequest::MoveSlices { volume, from, to, as_of, slices, last };
            self.system(version, &request)?;
            self.unchanged(version);
        }
        Ok(count > 0)
    }

    /// One of the objects that the server made.
    pub fn repack_one(&mut self, pick: u64, step: usize) -> Check {
        let of_server = |id: &ObjectId| id.session == SessionId::SERVER;
        let objects: Vec<ObjectId> = self.counted()?.into_keys().filter(of_server).collect();
        if objects.is_empty() {
            return Ok(());
        }
        self.repack(objects[pick as usize % objects.len()], step).map(drop)
    }

    /// How many rows name each object.
    fn counted(&self) -> Result<BTreeMap<ObjectId, u32>, String> {
        let objects = self.with_reads(|reads| list_objects(reads, self.index, None, usize::MAX));
        Ok(objects.map_err(|e| e.to_string())?.into_iter().map(|(id, refs)| (id, refs.rows)).collect())
    }

    /// The session is over, and all objects are repacked: those whose slices are named where it is known.
    pub fn repack_all(&mut self) -> Check {
        let version = self.next_version();
        self.system(version, &SystemRequest::EndSession { session: self.session })?;
        self.unchanged(version);
        for (id, rows) in self.counted()? {
            let repacked = self.repack(id, 1000)?;
            if rows > 0 && repacked {
                let left = self.counted()?[&id];
                ensure!(left == 0, "{left} rows name {id} after it was repacked");
            }
            self.check_tree(None)?;
        }
        [3, 17, 92].map(|pick| self.instant(pick).0).into_iter().try_for_each(|at| self.check_tree(Some(at)))
    }
}
