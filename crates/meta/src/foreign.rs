//! What a clone of a disk snapshot still needs of the objects that its source stored, for people and for who wants to detach it.
//! All rows of such objects are read for it, so people are told what was counted not long ago.

use crate::collect::Collector;
use crate::machine::SharedView;
use chronofs_blocks::work::off_thread;
use chronofs_core::Version;
use chronofs_engine::ReadStop;
use chronofs_namespace::rows::{Sum, Volume};
use chronofs_namespace::{Foreign, foreign_objects};
use chronofs_wire::status::ForeignSaid;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Counting takes no more than one in so many parts of the time.
const ONE_IN: u32 = 20;
const AGE_MIN: Duration = Duration::from_millis(500);

/// How long whoever asks how the server is waits for it.
const WAIT: Duration = Duration::from_millis(500);

/// How long a commit may take to become durable, and how often that is looked at.
const DURABLE_WITHIN: Duration = Duration::from_secs(20);
const DURABLE_LOOK: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct ForeignKnown(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// What was counted last, when, and how long that took.
    last: Option<(Foreign, Instant, Duration)>,
    /// It is being counted for people.
    counting: bool,
}

impl ForeignKnown {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is time to count again, and nobody does.
    fn begins(&self) -> bool {
        let mut known = self.lock();
        let is_recent = |at: &Instant, took: &Duration| at.elapsed() < AGE_MIN.max(*took * ONE_IN);
        let begins = !known.counting && !known.last.as_ref().is_some_and(|(_, at, took)| is_recent(at, took));
        known.counting |= begins;
        begins
    }
}

impl Collector {
    /// What all volumes have of objects that the source stored, now, and after which commit that is.
    pub(crate) async fn count_foreign(&self) -> Result<(Foreign, Version), String> {
        let asked = self.ask(|core, _| {
            let there = core.machine.volumes().filter(|volume| !volume.row.is_gone());
            let volumes = there.filter(|volume| volume.row.incarnation > 0).map(|volume| {
                let is_counted = volume.row.flags & Volume::COUNTED != 0;
                let counted = is_counted.then_some((volume.index, volume.row.incarnation));
                counted.ok_or_else(|| {
                    format!(
                        "volume {} has no counts of what its objects are named by, so what it needs is not known",
                        volume.row.shown_name()
                    )
                })
            });
            let volumes = volumes.collect::<Result<Vec<_>, String>>();
            volumes.map(|volumes| (core.engine.view(), core.engine.applied(), volumes))
        });
        let (view, as_of, volumes) = asked.await.ok_or("the server is stopping")??;
        let began = Instant::now();
        let counting = off_thread(move || {
            let (reads, mut all) = (SharedView(view), Foreign::default());
            for (index, incarnation) in volumes {
                let Foreign { named, unnamed } = foreign_objects(&reads, index, incarnation)?;
                all.named =
                    Sum { count: all.named.count + named.count, bytes: all.named.bytes + named.bytes };
                all.unnamed += unnamed;
            }
            Ok::<_, ReadStop>(all)
        });
        let all = counting.await.map_err(|error| error.to_string())?.map_err(|stop| stop.to_string())?;
        self.foreign.lock().last = Some((all, Instant::now(), began.elapsed()));
        Ok((all, as_of))
    }

    /// Waits until what was committed up to there survives a crash.
    pub(crate) async fn until_durable(&self, as_of: Version) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let durable = self.ask(|core, _| core.engine.durable()).await.ok_or("the server is stopping")?;
            if durable >= as_of {
                return Ok(());
            }
            if began.elapsed() >= DURABLE_WITHIN {
                let seconds = DURABLE_WITHIN.as_secs();
                return Err(format!("what it committed last has not become durable for {seconds} seconds"));
            }
            tokio::time::sleep(DURABLE_LOOK).await;
        }
    }

    /// The same as it was not long ago, and how the copying of it goes.
    pub(crate) async fn foreign_said(&self) -> Option<ForeignSaid> {
        if self.foreign.begins() {
            let collector = self.clone();
            let counting = tokio::spawn(async move {
                if let Err(why) = collector.count_foreign().await {
                    tracing::warn!("what this clone needs of its source cannot be counted: {why}");
                }
                collector.foreign.lock().counting = false;
            });
            // It goes on meanwhile: of many objects, whoever asks later is told.
            drop(tokio::time::timeout(WAIT, counting).await);
        }
        let (Foreign { named, unnamed }, ..) = self.foreign.lock().last?;
        let (objects, bytes) = (named.count, named.bytes);
        let said = ForeignSaid { objects, bytes, unnamed, ..ForeignSaid::default() };
        self.ask(move |core, steady_ns| {
            let names = core.machine.volumes().map(|volume| (volume.index, volume.row.shown_name()));
            names.collect::<Vec<_>>().into_iter().fold(said, |mut said, (index, name)| {
                let Some(shown) = core.machine.copying(index, steady_ns) else { return said };
                said.copying = true;
                said.copied_objects += shown.copied.count;
                said.copied_bytes += shown.copied.bytes;
                said.bytes_per_second += shown.bytes_per_second;
                said.left.extend(shown.left.iter().map(|(object, why)| format!("{object}: {why}")));
                said.waits.extend(shown.waits.map(|why| format!("volume {name}: {why}")));
                said
            })
        })
        .await
    }
}
