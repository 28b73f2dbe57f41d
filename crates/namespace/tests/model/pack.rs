//! The server's packing of staged slices, and the objects that it makes.

use crate::world::{Check, World, ensure};
use bytes::Bytes;
use chronofs_core::ops::SystemRequest;
use chronofs_core::{ObjectId, SliceId, Version};
use chronofs_namespace::{Judged, SystemReply, judge, volume};
use std::collections::{BTreeMap, BTreeSet};

/// Stored bytes by object and offset. What was stored stays, also when a crash takes back the rows that say so.
pub type Packed = BTreeMap<(ObjectId, u64), Bytes>;

/// How an object comes about.
#[derive(Clone, Debug)]
pub struct Packing {
    /// So many stored bytes at the most.
    pub bytes: usize,
    /// So many slices at the most.
    pub rows: usize,
    /// So many of them are said to lie there in one commit.
    pub step: usize,
    /// After so many commits it is given up.
    pub steps: usize,
}

impl World {
    pub fn next_version(&self) -> Version {
        Version(self.now().version.0 + 1)
    }

    pub fn pack(&mut self, packing: &Packing) -> Check {
        let (version, volume) = (self.next_version(), self.spec.id);
        let granted = self.system(version, &SystemRequest::GrantPack { volume })?;
        let SystemReply::Pack(object) = granted else { return Err(format!("GrantPack: {granted:?}")) };
        self.unchanged(version);
        // It is durable before anything is stored under the name.
        self.apply();
        ensure!(!self.packed.keys().any(|(taken, _)| *taken == object), "{object} was granted before");
        let (index, Packing { bytes, rows, step, steps }) = (self.index, packing.clone());
        let found =
            self.with_reads(|reads| chronofs_namespace::staged_slices(reads, index, Vec::new(), bytes, rows));
        let (found, more) = found.map_err(|stop| format!("staged_slices: {stop}"))?;
        ensure!(found.len() <= rows, "{} slices where {rows} were asked for", found.len());
        let mut slices: Vec<(SliceId, u64)> = Vec::new();
        for (at, (id, row)) in (64..).zip(found) {
            slices.push((id, at));
            self.packed.insert((object, at), row.bytes);
        }
        let count = slices.len().div_ceil(step).max(1);
        for (n, slices) in slices.chunks(step).enumerate().take(steps) {
            let version = self.next_version();
            let (slices, last) = (slices.to_vec(), n + 1 == count);
            self.system(version, &SystemRequest::MoveStaged { volume, object, slices, last })?;
            self.unchanged(version);
        }
        if steps >= count && rows >= 100 && bytes >= 100_000 {
            ensure!(more.is_none(), "more to come where all were asked for");
            let left = self.with_reads(|reads| chronofs_namespace::tally(reads, index));
            let left = left.map_err(|stop| stop.to_string())?.staged;
            ensure!(left.count == 0 && left.bytes == 0, "{left:?} are staged after all were packed");
        }
        Ok(())
    }

    /// Objects that were given up are found in the store, and condemned.
    pub fn condemn_packs(&mut self) -> Check {
        let (version, id) = (self.next_version(), self.spec.id);
        self.system(version, &SystemRequest::EndPack { volume: id })?;
        self.unchanged(version);
        let in_store: BTreeSet<ObjectId> = self.packed.keys().map(|(object, _)| *object).collect();
        let (mut garbage, index) = (Vec::new(), self.index);
        for object in in_store.difference(&self.deleted) {
            let judged = self.with_reads(|reads| {
                let row = volume(reads, index)?.expect("the volume is there");
                judge(reads, index, &row, *object, Version::ZERO)
            });
            match judged.map_err(|stop| stop.to_string())? {
                Judged::Garbage => garbage.push(*object),
                Judged::Known => {}
                other => return Err(format!("{object} is judged {other:?}")),
            }
        }
        let version = self.next_version();
        let request =
            SystemRequest::CondemnGarbage { volume: id, objects: garbage, over_since: Version::ZERO };
        self.system(version, &request)?;
        self.unchanged(version);
        Ok(())
    }
}
