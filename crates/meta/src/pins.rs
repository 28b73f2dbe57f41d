//! Pins in block stores: read now and then for the machine, made and removed for services of this process.
//!
//! A pin is made in the state first and then in the store, and removed the other way round: whatever is lost in between,
//! one of the two holds what is pinned.

use crate::collect::Collector;
use crate::core::Core;
use crate::machine::{Event, Machine, PinsRead};
use bytes::Bytes;
use chronofs_blocks::pin::parse_pin_name;
use chronofs_blocks::{Pin, StorePort};
use chronofs_engine::EngineError;
use chronofs_namespace::SystemError;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::task::JoinSet;
use uuid::Uuid;

/// After a reading that failed or did not count the next one comes so much later, then twice as late each time, up to a
/// limit: a store that was away is noticed soon. A volume that is new is read as soon.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// So long a reading of all pins of a store may take. Ten thousand of them in a bucket take less, and one that fails
/// this way is followed by others before what is known is too old.
const READ_WITHIN: Duration = Duration::from_secs(120);

/// One reading of a store's pins is under way at a time.
#[derive(Clone, Default)]
pub(crate) struct Turns(Arc<Mutex<Vec<TurnOf>>>);

type TurnOf = (Weak<dyn StorePort>, Turn);
type Turn = Arc<tokio::sync::Mutex<()>>;

impl Turns {
    fn of(&self, store: &Arc<dyn StorePort>) -> Turn {
        let store = Arc::downgrade(store);
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|(known, _)| known.strong_count() > 0);
        if let Some((_, turn)) = turns.iter().find(|(known, _)| known.ptr_eq(&store)) {
            return turn.clone();
        }
        let turn = Turn::default();
        turns.push((store, turn.clone()));
        turn
    }
}

/// Readings of a volume's pins since the last one that counts.
#[derive(Default)]
struct Tries {
    count: u32,
    /// When the next one may be, by the steady clock.
    next_ns: u64,
}

impl Tries {
    /// One was begun at `now_ns`, where one is due `every` so often.
    fn tried(&mut self, now_ns: u64, every: Duration) {
        let pause = RETRY_FIRST.min(every / 5).saturating_mul(1 << self.count.min(16));
        self.next_ns = now_ns + pause.min(RETRY_MAX).min(every).as_nanos() as u64;
        self.count += 1;
    }
}

/// The pins of a volume among all that lies where pins lie, or why that is not known.
fn pins_of(volume: Uuid, found: &[(String, Bytes)]) -> Result<Vec<Pin>, String> {
    let mut pins = Vec::new();
    for (name, bytes) in found {
        let Some((of, _)) = parse_pin_name(name) else {
            return Err(format!(
                "{name} in the block store is not the name of a pin, and nothing else may lie there; if it is not of \
                 a newer chronofs, move it elsewhere"
            ));
        };
        if of == volume {
            pins.push(Pin::decode(name, bytes).map_err(|error| error.to_string())?);
        }
    }
    Ok(pins)
}

impl Collector {
    /// Reads the pins of every block store again and again: as often as that three readings in a row may fail before
    /// what is known is too old, and after one that failed or did not count soon again, since nothing is collected
    /// meanwhile. So is one that was opened anew, as with each assignment: until it is known who reads sets there, none
    /// is let go. No store waits for another.
    pub(crate) async fn watch_pins(self) {
        let mut tries: HashMap<Uuid, Tries> = HashMap::new();
        let mut readings = JoinSet::new();
        loop {
            let Some(age_ms) = self.ask(|core, _| core.machine.config().pins_age_ms).await else { return };
            let every = Duration::from_millis(u64::from(age_ms)) / 4;
            for (store, volumes) in self.stores.each() {
                let asked = volumes.clone();
                let read = self.ask(move |core, now_ns| {
                    let read = asked.iter().map(|volume| (*volume, core.machine.pins_read_ns(*volume)));
                    (now_ns, read.collect::<Vec<_>>())
                });
                let Some((now_ns, read)) = read.await else { return };
                let readers_known = self.readers.is_known(&store);
                let mut due = false;
                for (volume, read_ns) in read {
                    let age_ns = read_ns.map(|read_ns| now_ns.saturating_sub(read_ns));
                    if readers_known && age_ns.is_some_and(|age_ns| age_ns < every.as_nanos() as u64) {
                        tries.remove(&volume);
                    } else {
                        due |= tries.get(&volume).is_none_or(|tries| tries.next_ns <= now_ns);
                    }
                }
                // One that is being read, perhaps since long ago, is not read a second time beside that.
                if !due || self.turns.of(&store).try_lock().is_err() {
                    continue;
                }
                for &volume in &volumes {
                    tries.entry(volume).or_default().tried(now_ns, every);
                }
                let this = self.clone();
                readings.spawn(async move { this.read_pins(&store, &volumes).await });
            }
            while readings.try_join_next().is_some() {}
            tokio::time::sleep(RETRY_FIRST.min(every / 5)).await;
        }
    }

    /// Reads the pins of a block store, and tells the machine. A store that hangs is waited for for [`READ_WITHIN`].
    pub(crate) async fn read_pins(&self, store: &Arc<dyn StorePort>, volumes: &[Uuid]) {
        let Some(began_ns) = self.ask(|_, steady_ns| steady_ns).await else { return };
        let reading = async {
            let turn = self.turns.of(store).lock_owned().await;
            let store = store.clone();
            // It goes on when nobody waits for it any more: of a store that hangs there is one, and no more.
            let reading = tokio::spawn(async move {
                let read = store.pins().await;
                drop(turn);
                read
            });
            reading.await
        };
        let read = match tokio::time::timeout(READ_WITHIN, reading).await {
            Ok(Ok(read)) => read.map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("the block store has not answered for {} seconds", READ_WITHIN.as_secs())),
        };
        for &volume in volumes {
            let found = match &read {
                Ok(found) => pins_of(volume, found),
                Err(error) => Err(format!("its pins cannot be read: {error}")),
            };
            self.send(Event::Pins(Box::new(PinsRead { volume, began_ns, found }))).await;
        }
        if let Ok(found) = &read {
            self.tidy(&**store, volumes, found).await;
            self.pin_missing(&**store, volumes, found).await;
            self.read_readers(store).await;
        }
    }

    /// Has the instants of `pin` kept, in the state and in the block store. When it returns, both are durable. Doing it
    /// again is no error.
    pub async fn pin(&self, pin: &Pin) -> Result<(), String> {
        let store = self.stores.of(pin.volume).ok_or("the volume's block store is not in reach")?;
        let kept = pin.clone();
        self.durably(move |machine, group| {
            let note = format!("{}: {}", kept.owner, kept.reason);
            let (named, span) = ((kept.volume, kept.id), (kept.from, kept.to));
            machine.keep_instants(group, named, span, kept.ends, &note)
        })
        .await?;
        store.put_pin(pin).await.map_err(|error| error.to_string())
    }

    /// Nobody needs the pin any more. Doing it again is no error.
    pub async fn unpin(&self, volume: Uuid, id: Uuid) -> Result<(), String> {
        let store = self.stores.of(volume).ok_or("the volume's block store is not in reach")?;
        store.remove_pin(volume, id).await.map_err(|error| error.to_string())?;
        self.durably(move |machine, group| machine.release_instants(group, volume, id)).await
    }

    pub(crate) async fn durably(
        &self,
        mut change: impl FnMut(
            &mut Machine,
            &mut crate::machine::Group,
        ) -> Result<Result<(), SystemError>, EngineError>
        + Send
        + 'static,
    ) -> Result<(), String> {
        let done = self.ask_at(move |core: &mut Core, now| {
            let mut said = Ok(());
            core.decide(now, |machine, group| {
                said = change(machine, group)?;
                Ok(())
            })?;
            core.engine.sync()?;
            Ok(said)
        });
        let done: Option<Result<Result<(), SystemError>, EngineError>> = done.await;
        let said = done.ok_or("the server stops")?.map_err(|error| error.to_string())?;
        said.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::Rhythm;
    use crate::executor::Input;
    use crate::machine::{Config, Found, Now, SharedView};
    use crate::server::objects::Stores;
    use chronofs_blocks::{ListPage, ObjectPort, StoreError};
    use chronofs_core::volume::{BLOCK_SIZE_DEFAULT, Compression, VolumeSpec};
    use chronofs_core::{Retention, Version};
    use chronofs_engine::Engine;
    use chronofs_engine::memory::Memory;
    use chronofs_wire::admin::{AssignedStore, AssignedVolume, Assignment, StoreKind};
    use futures::future::BoxFuture;
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::mpsc;

    fn pin(volume: u128, id: u128) -> (String, Bytes) {
        let (volume, id) = (Uuid::from_u128(volume), Uuid::from_u128(id));
        let pin = Pin::new(volume, 0, id, Version(1), Version(2));
        (pin.name(), pin.encode().unwrap())
    }

    #[test]
    fn pins_that_could_not_be_read_are_read_again_after_half_a_minute_at_the_latest() {
        let paused = |every| {
            let mut tries = Tries::default();
            (0..40u64)
                .map(|n| {
                    let now_ns = n << 40;
                    tries.tried(now_ns, every);
                    (tries.next_ns - now_ns) / 1_000_000
                })
                .collect::<Vec<_>>()
        };
        let pauses = paused(Duration::from_secs(225));
        assert_eq!(pauses[..6], [1_000, 2_000, 4_000, 8_000, 16_000, 30_000]);
        assert!(pauses[6..].iter().all(|pause| *pause == 30_000), "{pauses:?}");
        assert_eq!(paused(Duration::from_secs(1))[..5], [200, 400, 800, 1_000, 1_000]);
    }

    #[test]
    fn whatever_is_not_a_pin_is_in_the_way_of_its_volume_or_of_all() {
        let of = |found: &[(String, Bytes)]| pins_of(Uuid::from_u128(1), found).map(|pins| pins.len());
        assert_eq!(of(&[]), Ok(0));
        assert_eq!(of(&[pin(1, 1), pin(2, 1), pin(1, 2)]), Ok(2));
        let mut cut = pin(1, 3);
        cut.1.truncate(20);
        assert!(of(&[pin(1, 1), cut.clone()]).unwrap_err().contains(&cut.0));
        cut.0 = pin(2, 3).0;
        assert_eq!(of(&[pin(1, 1), cut]), Ok(1), "it is another volume's");
        let stranger = ("pins/letter".to_owned(), Bytes::from_static(b"dear"));
        assert!(of(&[stranger]).unwrap_err().contains("pins/letter"));
    }

    /// A store with no pins, or one that never answers.
    struct Slow(bool, AtomicU32);

    impl ObjectPort for Slow {
        fn put<'a>(&'a self, _: &'a str, _: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
            unreachable!("nothing is put")
        }
        fn get<'a>(&'a self, _: &'a str, _: u64, _: u32) -> BoxFuture<'a, Result<Bytes, StoreError>> {
            unreachable!("nothing is read")
        }
    }

    impl StorePort for Slow {
        fn whole<'a>(&'a self, _: &'a str, _: u64) -> BoxFuture<'a, Result<Bytes, StoreError>> {
            unreachable!("nothing is read")
        }
        fn delete<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
            unreachable!("nothing is deleted")
        }
        fn list(&self, _: Option<String>) -> BoxFuture<'_, Result<ListPage, StoreError>> {
            unreachable!("nothing is listed")
        }
        fn put_note<'a>(&'a self, _: &'a str, _: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
            unreachable!("nothing is pinned")
        }
        fn remove_note<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
            unreachable!("nothing was pinned")
        }
        fn notes<'a>(&'a self, folder: &'a str) -> BoxFuture<'a, Result<Vec<(String, Bytes)>, StoreError>> {
            self.1.fetch_add(u32::from(folder == chronofs_blocks::pin::PINS), Ordering::SeqCst);
            let hangs = self.0;
            Box::pin(async move { if hangs { std::future::pending().await } else { Ok(Vec::new()) } })
        }
    }

    fn assigned(id: u128) -> AssignedVolume {
        let spec = VolumeSpec {
            id: Uuid::from_u128(id),
            name: format!("v{id}"),
            block_size: BLOCK_SIZE_DEFAULT,
            compression: Compression::None,
            retention: Retention::None,
            max_bytes: None,
            max_inodes: None,
            hash_key: [0; 16],
        };
        let kind = StoreKind::Local { path: "/nowhere".to_owned() };
        let id = Uuid::from_u128(id + 100);
        let store = AssignedStore { id, kind, credentials: Default::default(), create_only: false };
        AssignedVolume { spec, deleted: false, born_ns: 0, give_up_after_s: None, store, keys: None }
    }

    /// Decides what comes, for as long as anybody sends.
    async fn decide(mut core: Core, mut inputs: mpsc::Receiver<Input>) {
        let begun = tokio::time::Instant::now();
        while let Some(input) = inputs.recv().await {
            let now = Now::from(1_800_000_000_000_000_000 + begun.elapsed().as_nanos() as u64);
            match input {
                Input::Events(events) => core.run(now, events, &mut |_| ()).unwrap(),
                Input::Ask(ask) => ask(&mut core, now),
                _ => unreachable!("nobody is connected"),
            }
        }
    }

    /// Watches the pins of two volumes in these stores.
    async fn watching(stores: &Stores, of: [&Arc<Slow>; 2]) -> (Collector, tokio::task::JoinHandle<()>) {
        let engine = Arc::new(Memory::default());
        let reads = SharedView(engine.view());
        let now = Now::from(1_800_000_000_000_000_000);
        let machine = Machine::new(Config::default(), &reads, Version::ZERO, Found::default(), now).unwrap();
        let (queue, inputs) = mpsc::channel(64);
        let volumes = vec![assigned(1), assigned(2)];
        let assignment = Assignment { revision: 1, volumes, ..Default::default() };
        let told = vec![Event::Assignment(Box::new(assignment)), Event::Tick];
        queue.send(Input::Events(told)).await.unwrap_or_else(|_| panic!("the channel has room"));
        tokio::spawn(decide(Core { machine, engine }, inputs));
        open(stores, of);
        let collector = Collector::new(queue, stores.clone(), Rhythm::default());
        let watching = tokio::spawn(collector.clone().watch_pins());
        (collector, watching)
    }

    fn open(stores: &Stores, of: [&Arc<Slow>; 2]) {
        let named = |id, store: &Arc<Slow>| (Uuid::from_u128(id), store.clone() as Arc<dyn StorePort>);
        stores.set(HashMap::from([named(1, of[0]), named(2, of[1])]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_was_opened_anew_is_soon_asked_who_reads_sets() {
        let stores = Stores::default();
        let works = || Arc::new(Slow(false, 0.into()));
        let (collector, watching) = watching(&stores, [&works(), &works()]).await;
        let none = BTreeSet::new();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(collector.readers.of(&stores, &none).is_some());
        open(&stores, [&works(), &works()]);
        assert!(collector.readers.of(&stores, &none).is_none());
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(collector.readers.of(&stores, &none).is_some());
        watching.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_is_read_once_and_holds_up_no_other() {
        let (hangs, works) = (Arc::new(Slow(true, 0.into())), Arc::new(Slow(false, 0.into())));
        let (collector, watching) = watching(&Stores::default(), [&hangs, &works]).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(hangs.1.load(Ordering::SeqCst), 1);
        assert!((15..20).contains(&works.1.load(Ordering::SeqCst)), "every 225 s: {:?}", works.1);
        let waits = collector.ask(|core, _| {
            let volumes = core.machine.volumes();
            volumes.map(|volume| volume.collection().waits.clone()).collect::<Vec<_>>()
        });
        let waits = waits.await.unwrap();
        assert!(waits[0].as_ref().unwrap().contains("120 seconds") && waits[1].is_none(), "{waits:?}");
        watching.abort();
    }
}
