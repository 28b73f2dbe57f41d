//! Objects and staged slices that no row names go; what any row names stays: reading a slice whose object the store has
//! deleted fails the test.

use crate::world::{Check, World, ensure};
use chronofs_core::Version;
use chronofs_core::ops::{Request, SystemRequest};
use chronofs_core::slice::Place;
use chronofs_engine::Engine;
use chronofs_namespace::{SystemReply, list_condemned, list_objects};
use std::collections::BTreeSet;

impl World {
    /// Gives how much was condemned.
    pub fn condemn(&mut self, limit: u32) -> Result<u32, String> {
        let last = self.now().version;
        let version = Version(last.0 + 1);
        let (from, brake) = (self.condemned_to, u64::MAX);
        let request = SystemRequest::Condemn { volume: self.spec.id, from, before: last, limit, brake };
        let reply = self.system(version, &request)?;
        self.unchanged(version);
        match reply {
            SystemReply::Condemned { objects, staged, braked: false, next } => {
                self.condemned_to = next;
                Ok(objects + staged)
            }
            other => Err(format!("{request:?}: {other:?}")),
        }
    }

    /// Only what was condemned by a commit that no crash takes back is deleted.
    pub fn delete(&mut self, limit: usize) -> Result<usize, String> {
        let condemned = list_condemned(&*self.engine.view(), self.index, None, limit);
        let objects: Vec<_> = condemned.map_err(|e| e.to_string())?.into_iter().map(|(id, _)| id).collect();
        self.deleted.extend(&objects);
        let (version, count) = (Version(self.now().version.0 + 1), objects.len());
        self.system(version, &SystemRequest::Deleted { volume: self.spec.id, objects })?;
        self.unchanged(version);
        Ok(count)
    }

    pub fn collect_all(&mut self) -> Check {
        self.condemn_packs()?;
        while self.condemn(7)? > 0 {}
        self.apply();
        while self.delete(5)? > 0 {
            self.apply();
        }
        let objects = self.with_reads(|reads| list_objects(reads, self.index, None, usize::MAX));
        for (id, refs) in objects.map_err(|e| e.to_string())? {
            let gone = self.deleted.contains(&id);
            ensure!(gone == (refs.rows == 0), "{id} is named by {} rows; deleted: {gone}", refs.rows);
        }
        let held: BTreeSet<_> =
            self.packed.keys().map(|(id, _)| *id).filter(|id| !self.deleted.contains(id)).collect();
        for id in held {
            let refs = self.with_reads(|reads| list_objects(reads, self.index, None, usize::MAX));
            let refs = refs.map_err(|e| e.to_string())?;
            ensure!(refs.iter().any(|(known, _)| *known == id), "{id} holds nothing, and is there");
        }
        self.check_tree(None)?;
        [3, 17, 92].map(|pick| self.instant(pick).0).into_iter().try_for_each(|at| self.check_tree(Some(at)))
    }

    /// Whether the server would refuse what the model, which knows no objects, takes.
    pub fn names_condemned(&self, request: &Request) -> Result<bool, String> {
        let Request::Publish { slices, .. } = request else { return Ok(false) };
        let objects = self.with_reads(|reads| list_objects(reads, self.index, None, usize::MAX));
        let objects = objects.map_err(|e| e.to_string())?;
        let condemned = |id| objects.iter().any(|(known, refs)| *known == id && refs.condemned.is_some());
        Ok(slices.iter().any(|new| match &new.slice.place {
            Place::Object(seal, _) => condemned(seal.id.object),
            _ => false,
        }))
    }
}
