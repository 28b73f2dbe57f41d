//! Sealed keys of encrypted volumes in their block stores: put there when they change, looked for at every start.
//!
//! What is found is never taken for the volume's keys by itself: who may write to a bucket could lock a volume so. That it has
//! newer ones is said, and how to put them back.

use crate::collect::Collector;
use chronofs_blocks::StorePort;
use chronofs_blocks::keys::{KEYS, KeysName, keys_of, note_of};
use chronofs_wire::admin::KeptKeys;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// How often it is asked whether keys have changed, which takes no request to a store if none have.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a store may take, and the pause after one that was in trouble.
const STORE_WITHIN: Duration = Duration::from_secs(60);
const AFTER_TROUBLE: Duration = Duration::from_secs(30);

/// Which revisions are known to lie in their stores, by volume.
#[derive(Clone, Default)]
pub(crate) struct KeysPut(Arc<Mutex<BTreeMap<Uuid, u64>>>);

impl KeysPut {
    fn has(&self, volume: Uuid, revision: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&volume) == Some(&revision)
    }

    fn note(&self, volume: Uuid, revision: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(volume, revision);
    }
}

/// The keys of a volume that this server has.
struct Own {
    volume: Uuid,
    name: String,
    incarnation: u16,
    keys: KeptKeys,
}

/// What lies in a store of one volume's keys.
#[derive(PartialEq, Eq, Debug, Default)]
struct Lies {
    /// They are there already.
    put: bool,
    /// The newest revision that is newer, and where it lies.
    newer: Option<(u64, String)>,
    /// Older ones of the same incarnation.
    older: Vec<String>,
}

fn lies(own: KeysName, found: &[(String, bytes::Bytes)]) -> Lies {
    let mut lies = Lies::default();
    for (name, bytes) in found {
        let Some(other) = KeysName::parse(name).filter(|other| other.volume == own.volume) else { continue };
        if other.revision > own.revision {
            // One that nobody can open says nothing.
            let fits = keys_of(bytes)
                .is_some_and(|keys| keys.volume() == own.volume && keys.revision() == other.revision);
            if fits && lies.newer.as_ref().is_none_or(|(newer, _)| *newer < other.revision) {
                lies.newer = Some((other.revision, name.clone()));
            }
        } else if other == own {
            lies.put = true;
        } else if other.incarnation == own.incarnation && other.revision < own.revision {
            lies.older.push(name.clone());
        }
    }
    lies
}

impl Collector {
    /// Sees to it for as long as the server runs that the sealed keys of volumes lie in their stores.
    pub(crate) async fn watch_keys(self) {
        loop {
            for (store, volumes) in self.stores.each() {
                // A store that hangs is tried again later, and holds up the others no longer.
                let kept = tokio::time::timeout(STORE_WITHIN, self.keep_keys(&*store, &volumes)).await;
                if kept != Ok(true) {
                    tokio::time::sleep(AFTER_TROUBLE).await;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether the sealed keys of volumes lie in their store now.
    async fn keep_keys(&self, store: &dyn StorePort, volumes: &[Uuid]) -> bool {
        let asked = volumes.to_vec();
        let own = self.ask(move |core, _| {
            let of =
                core.machine.volumes().filter(|volume| asked.contains(&volume.id()) && volume.row.is_live());
            let own = of.filter_map(|volume| {
                let (keys, row) = (volume.keys.clone()?, &volume.row);
                Some(Own {
                    volume: volume.id(),
                    name: row.spec.name.clone(),
                    incarnation: row.incarnation,
                    keys,
                })
            });
            own.collect::<Vec<Own>>()
        });
        let mut own = own.await.unwrap_or_default();
        own.retain(|own| !self.keys_put.has(own.volume, own.keys.revision));
        if own.is_empty() {
            return true;
        }
        let found = match store.notes(KEYS).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(
                    "the sealed keys in a block store cannot be read, so none are put there: {error}"
                );
                return false;
            }
        };
        let mut all = true;
        for own in own {
            if let Err(error) = self.keep_keys_of(store, &own, &found).await {
                tracing::warn!(volume = %own.name, "its sealed keys cannot be put into the block store: {error}");
                all = false;
            }
        }
        all
    }

    async fn keep_keys_of(
        &self,
        store: &dyn StorePort,
        own: &Own,
        found: &[(String, bytes::Bytes)],
    ) -> Result<(), chronofs_blocks::StoreError> {
        let Own { volume, name, incarnation, keys } = own;
        let own_name = KeysName::of(*volume, *incarnation, keys.revision, &keys.sealed);
        let lies = lies(own_name, found);
        if let Some((revision, place)) = &lies.newer {
            tracing::error!(
                volume = %name, revision, known = keys.revision,
                "the block store has newer keys than the servers, which were restored from old copies: what was written with them \
                 cannot be opened; get {place} out of the block store, and put them back with chronofs configure update \
                 volume-keys {name} --from-copy FILE"
            );
        }
        if !lies.put {
            store.put_note(&own_name.to_string(), note_of(&keys.sealed)).await?;
        }
        for older in &lies.older {
            store.remove_note(older).await?;
        }
        self.keys_put.note(*volume, keys.revision);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_keys::{SealedKeys, SecretKey, VolumeSecret};

    #[test]
    fn older_keys_go_and_newer_ones_are_said_and_nothing_of_others_is_touched() {
        let volume = Uuid::from_u128(5);
        let secret = VolumeSecret::Key(SecretKey::new([3; 32]));
        let first = SealedKeys::draw(volume, &secret).unwrap();
        let keys = first.open(&first.kek(&secret).unwrap()).unwrap();
        let second = first.with_secret(&keys, &secret).unwrap();
        let third = second.with_secret(&keys, &secret).unwrap();
        let lying = |incarnation, keys: &SealedKeys| {
            let json = keys.to_json().unwrap();
            (KeysName::of(volume, incarnation, keys.revision(), &json).to_string(), note_of(&json))
        };
        let own = KeysName::of(volume, 1, 2, &second.to_json().unwrap());
        assert_eq!(lies(own, &[]), Lies::default());
        let other = SealedKeys::draw(Uuid::from_u128(6), &secret).unwrap();
        let foreign =
            (KeysName::of(Uuid::from_u128(6), 1, 9, "").to_string(), note_of(&other.to_json().unwrap()));
        let torn = (KeysName::of(volume, 1, 9, "").to_string(), bytes::Bytes::from("torn"));
        let found = [lying(1, &first), lying(0, &first), lying(1, &second), lying(0, &third), foreign, torn];
        let seen = lies(own, &found);
        assert_eq!(seen.older, [found[0].0.clone()], "another incarnation's stay");
        assert_eq!((seen.put, seen.newer), (true, Some((3, found[3].0.clone()))));
    }
}
