//! What volumes are, in their block stores: put there when it changes, and looked for at every start. With it an admin server
//! can be made anew that knows them again, whatever became of the one before.

use crate::collect::Collector;
use chronofs_blocks::described::VOLUMES;
use chronofs_blocks::{Described, DescribedName, StoreError, StorePort};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// How often it is asked whether anything has changed, which takes no request to a store if nothing has.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a store may take, and the pause after one that was in trouble.
const STORE_WITHIN: Duration = Duration::from_secs(60);
const AFTER_TROUBLE: Duration = Duration::from_secs(30);

/// What is known to lie in the stores, by volume; none of one that is given up.
#[derive(Clone, Default)]
pub(crate) struct DescribedPut(Arc<Mutex<BTreeMap<Uuid, Option<Described>>>>);

impl DescribedPut {
    fn has(&self, own: &Own) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&own.volume).is_some_and(|known| *known == own.described)
    }

    fn note(&self, own: Own) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(own.volume, own.described);
    }
}

/// A volume of this server.
#[derive(Clone)]
struct Own {
    volume: Uuid,
    incarnation: u16,
    /// The cluster that it is a volume of.
    cluster: String,
    /// None: it is given up.
    described: Option<Described>,
}

/// What is to be done in a store for one volume.
#[derive(PartialEq, Eq, Debug, Default)]
struct Todo {
    /// Put it there under this name.
    put: Option<DescribedName>,
    /// These are of before.
    remove: Vec<String>,
}

fn todo(own: &Own, found: &[(String, bytes::Bytes)], now_ns: u64) -> Todo {
    let named = found.iter().filter_map(|(name, bytes)| Some((DescribedName::parse(name)?, bytes)));
    // Before restores in place it had others. A clone's are of another cluster.
    let of_before = |name: &DescribedName, bytes: &[u8]| {
        let is_own = Described::read(bytes).is_ok_and(|described| described.cluster == own.cluster);
        own.described.is_none() && name.incarnation < own.incarnation && is_own
    };
    let mut lying: Vec<_> = named
        .filter(|(name, bytes)| {
            name.volume == own.volume && (name.incarnation == own.incarnation || of_before(name, bytes))
        })
        .collect();
    lying.sort_by_key(|(name, _)| *name);
    let Some(described) = &own.described else {
        return Todo { put: None, remove: lying.iter().map(|(name, _)| name.to_string()).collect() };
    };
    let last = lying.last().map(|(name, _)| name.since_ns);
    if lying.last().is_some_and(|(_, bytes)| Described::read(bytes).as_ref() == Ok(described)) {
        lying.pop();
        return Todo { put: None, remove: lying.iter().map(|(name, _)| name.to_string()).collect() };
    }
    // Also where the clock was set back.
    let since_ns = last.map_or(now_ns, |last| now_ns.max(last.saturating_add(1)));
    let put = DescribedName { volume: own.volume, incarnation: own.incarnation, since_ns };
    Todo { put: Some(put), remove: lying.iter().map(|(name, _)| name.to_string()).collect() }
}

impl Collector {
    /// Sees to it for as long as the server runs that the descriptions of volumes lie in their stores.
    pub(crate) async fn watch_described(self) {
        loop {
            for (store, volumes) in self.stores.each() {
                // A store that hangs is tried again later, and holds up the others no longer.
                let kept = tokio::time::timeout(STORE_WITHIN, self.describe(&*store, &volumes)).await;
                if kept != Ok(true) {
                    tokio::time::sleep(AFTER_TROUBLE).await;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether what the volumes are lies in their store now.
    pub(crate) async fn describe(&self, store: &dyn StorePort, volumes: &[Uuid]) -> bool {
        let Some(owner) = self.stores.owner() else { return true };
        let cluster = owner.cluster.unwrap_or_default();
        let (asked, server) = (volumes.to_vec(), (owner.store, owner.name));
        let own = self.ask_at(move |core, now| {
            let of = core.machine.volumes().filter(|volume| asked.contains(&volume.id()));
            let own = of.map(|volume| {
                let described = (!volume.row.is_given_up()).then(|| {
                    let spec = volume.row.spec.clone();
                    Described::new(&cluster, (server.0, &server.1), spec).deleted(!volume.row.is_live())
                });
                let (volume, incarnation) = (volume.id(), volume.row.incarnation);
                Own { volume, incarnation, cluster: cluster.clone(), described }
            });
            (own.collect::<Vec<Own>>(), now.wall_ns)
        });
        let Some((mut own, now_ns)) = own.await else { return true };
        own.retain(|own| !self.described.has(own));
        if own.is_empty() {
            return true;
        }
        let found = match store.notes(VOLUMES).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(
                    "what a block store says of its volumes cannot be read, so nothing is put there: {error}"
                );
                return false;
            }
        };
        let mut all = true;
        for own in own {
            match describe_one(store, &own, &found, now_ns).await {
                Ok(()) => self.described.note(own),
                Err(error) => {
                    tracing::warn!(volume = %own.volume, "what it is cannot be put into the block store: {error}");
                    all = false;
                }
            }
        }
        all
    }
}

/// The newest is put before the others go.
async fn describe_one(
    store: &dyn StorePort,
    own: &Own,
    found: &[(String, bytes::Bytes)],
    now_ns: u64,
) -> Result<(), StoreError> {
    let Todo { put, remove } = todo(own, found, now_ns);
    if let Some((name, described)) = put.zip(own.described.as_ref()) {
        let name = name.to_string();
        let note = described.note().map_err(|error| StoreError::damaged(&name, error.to_string()))?;
        store.put_note(&name, note).await?;
    }
    for name in remove {
        // The newest counts: one that stays is tried again with the next change, and at the next start.
        if let Err(error) = store.remove_note(&name).await {
            tracing::warn!("what a volume was before stays in its block store: {error}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_core::Retention;
    use chronofs_core::volume::{BLOCK_SIZE_DEFAULT, Compression, VolumeSpec};

    const VOLUME: Uuid = Uuid::from_u128(5);

    fn own(name: &str) -> Own {
        let spec = VolumeSpec {
            id: VOLUME,
            name: name.to_owned(),
            block_size: BLOCK_SIZE_DEFAULT,
            compression: Compression::None,
            retention: Retention::None,
            max_bytes: None,
            max_inodes: None,
            hash_key: [0; 16],
        };
        let described = Some(Described::new("lab:42", (Uuid::from_u128(6), "main"), spec));
        Own { volume: VOLUME, incarnation: 1, cluster: "lab:42".to_owned(), described }
    }

    fn lying(incarnation: u16, since_ns: u64, name: &str) -> (String, bytes::Bytes) {
        let named = DescribedName { volume: VOLUME, incarnation, since_ns };
        (named.to_string(), own(name).described.unwrap().note().unwrap())
    }

    #[test]
    fn the_newest_stays_alone_and_nothing_of_others_is_touched() {
        let named = |since_ns| Some(DescribedName { volume: VOLUME, incarnation: 1, since_ns });
        assert_eq!(todo(&own("a"), &[], 7), Todo { put: named(7), remove: vec![] });
        let other = DescribedName { volume: Uuid::from_u128(9), incarnation: 1, since_ns: 3 };
        let strange = ("volumes/x".to_owned(), bytes::Bytes::new());
        let others = [(other.to_string(), lying(1, 1, "a").1), lying(0, 5, "a"), lying(2, 5, "a"), strange];
        assert_eq!(todo(&own("a"), &others, 7), Todo { put: named(7), remove: vec![] });
        let found = [&others[..], &[lying(1, 4, "b"), lying(1, 3, "a")]].concat();
        // An older one may say the same; what the newest says counts.
        let both = vec![lying(1, 3, "a").0, lying(1, 4, "b").0];
        assert_eq!(todo(&own("a"), &found, 7), Todo { put: named(7), remove: both.clone() });
        assert_eq!(todo(&own("b"), &found, 7), Todo { put: None, remove: both[..1].to_vec() });
        assert_eq!(todo(&own("c"), &found, 2).put, named(5), "a clock that was set back");
        let given_up = Own { described: None, ..own("a") };
        let all = [&[lying(0, 5, "a").0][..], &both].concat();
        assert_eq!(todo(&given_up, &found, 7), Todo { put: None, remove: all });
        let elsewhere = Own { cluster: "lab:43".to_owned(), ..given_up };
        assert_eq!(todo(&elsewhere, &found, 7), Todo { put: None, remove: both });
        let torn = [(lying(1, 4, "a").0, bytes::Bytes::from_static(b"torn"))];
        assert_eq!(todo(&own("a"), &torn, 7), Todo { put: named(7), remove: vec![torn[0].0.clone()] });
    }
}
