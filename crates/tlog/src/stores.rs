//! The copies that the server holds, and who may reach them.

use chronofs_engine::copies::{CopyError, FolderCopy};
use chronofs_wire::identity::{Sha256, secret_matches};
use chronofs_wire::tlog::{AllowedStore, HeldCopy, LogAssignment};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// See the module.
pub(crate) struct Stores {
    folder: PathBuf,
    allowed: Mutex<BTreeMap<Uuid, AllowedStore>>,
}

impl Stores {
    /// The copies below `folder`. Nobody may reach them yet.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Stores { folder, allowed: Mutex::default() }
    }

    fn allowed(&self) -> MutexGuard<'_, BTreeMap<Uuid, AllowedStore>> {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These may, and nobody else.
    pub(crate) fn allow(&self, assignment: &LogAssignment) {
        *self.allowed() = assignment.stores.iter().map(|store| (store.id, store.clone())).collect();
    }

    /// The hash of the secret by which the server of this metadata store is known, if it is the right one.
    pub(crate) fn admits(&self, store: Uuid, secret: &[u8]) -> Option<Sha256> {
        let kept = self.allowed().get(&store)?.secret_sha256;
        secret_matches(secret, &kept).then_some(kept)
    }

    /// Whether who was admitted with this still may.
    pub(crate) fn still_admits(&self, store: Uuid, kept: &Sha256) -> bool {
        self.allowed().get(&store).is_some_and(|allowed| allowed.secret_sha256 == *kept)
    }

    /// The folder of a store's copy.
    pub(crate) fn place(&self, store: Uuid) -> PathBuf {
        self.folder.join(store.to_string())
    }

    /// The copy of a store; `known`: it is no new one.
    pub(crate) fn open(&self, store: Uuid, known: bool) -> Result<FolderCopy, CopyError> {
        let place = self.place(store);
        if known && !FolderCopy::is_in(&place) {
            return Err(CopyError::Unusable(format!(
                "{} held a copy and is empty now: is its disk mounted? If the copy is lost, name another log server or folder \
                 with --log-copies",
                place.display()
            )));
        }
        FolderCopy::new(&place, &store.to_string())
    }

    /// The stores of which there is a copy.
    pub(crate) fn held(&self) -> Vec<Uuid> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut ids: Vec<Uuid> = ids.filter(|id| FolderCopy::is_in(&self.place(*id))).collect();
        ids.sort_unstable();
        ids
    }

    /// All copies, for people.
    pub(crate) fn shown(&self) -> Vec<HeldCopy> {
        self.held().into_iter().map(|id| self.show(id)).collect()
    }

    fn show(&self, id: Uuid) -> HeldCopy {
        let name = self.allowed().get(&id).map(|store| store.name.clone());
        let found = FolderCopy::new(&self.place(id), &id.to_string()).and_then(|copy| copy.shown());
        match found {
            Ok((fence, filling, segments)) => HeldCopy {
                id,
                name,
                epoch: fence.epoch,
                sealed: fence.sealed,
                filling,
                segments: segments.len() as u64,
                bytes: segments.iter().map(|held| held.length).sum(),
                problem: None,
            },
            Err(error) => HeldCopy { id, name, problem: Some(error.to_string()), ..HeldCopy::default() },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "helpers of tests")]
mod tests {
    use super::*;
    use chronofs_wire::identity::Secret;

    #[test]
    fn only_who_was_said_to_may_come_and_only_for_as_long() {
        let temp = tempfile::tempdir().unwrap();
        let stores = Stores::new(temp.path().to_owned());
        let (id, other, secret) = (Uuid::from_u128(1), Uuid::from_u128(2), Secret::draw().unwrap());
        assert_eq!(stores.admits(id, &secret.0), None);
        let store = AllowedStore { id, name: "m".to_owned(), secret_sha256: secret.sha256() };
        stores.allow(&LogAssignment { revision: 1, stores: vec![store] });
        let kept = stores.admits(id, &secret.0).unwrap();
        assert_eq!(stores.admits(other, &secret.0), None, "the secret of another store");
        assert_eq!(stores.admits(id, &Secret::draw().unwrap().0), None);
        assert_eq!(stores.admits(id, b""), None);
        assert!(stores.still_admits(id, &kept));
        stores.allow(&LogAssignment::default());
        assert!(!stores.still_admits(id, &kept) && stores.admits(id, &secret.0).is_none());
    }

    #[test]
    fn an_empty_folder_is_not_taken_for_a_copy_that_counted() {
        let temp = tempfile::tempdir().unwrap();
        let stores = Stores::new(temp.path().to_owned());
        let id = Uuid::from_u128(1);
        let Err(error) = stores.open(id, true) else { panic!("it was opened") };
        assert!(error.to_string().contains("is empty now"), "{error}");
        assert!(stores.held().is_empty());
        drop(stores.open(id, false).unwrap());
    }
}
