//! Instants that are kept beyond the window: because an operator says so (a hold), for a copy of the servers that
//! others made, or because very much of a volume was removed at once (the brake).
//!
//! Each is a row of the metadata and a pin in the block store of its volume, so that a copy of the metadata that is put back
//! obeys it. Rows are made first and go last. Ids of both are made of the id that people know and the incarnation of the volume:
//! a clone has the rows of its source, and never takes away a pin of its source.

use crate::collect::Collector;
use crate::core::Core;
use crate::machine::{Now, SharedView};
use bytes::Bytes;
use chronofs_blocks::pin::parse_pin_name;
use chronofs_blocks::{Pin, StorePort};
use chronofs_core::{Retention, Version, VolumeIndex};
use chronofs_namespace::list_kept;
use chronofs_wire::identity::Sha256;
use chronofs_wire::question::{HeldSaid, KeepInstant, Said};
use futures::stream::{self, StreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use uuid::Uuid;

/// Owners of pins and rows.
const HOLD: &str = "hold";
const REGISTERED: &str = "registered copy";
const BRAKE: &str = "brake";
pub(crate) const OWNERS: [&str; 3] = [HOLD, REGISTERED, BRAKE];

/// Pins of so many volumes are put or taken away at once,
const AT_ONCE: usize = 16;
/// and each within this time: less than who asks waits.
const PIN_WITHIN: Duration = Duration::from_secs(10);
/// The clock of whoever says *now* may be ahead of the server's by so much: then the instant is waited for.
const AHEAD_MAX: Duration = Duration::from_secs(5);

/// Id of the row and the pin.
fn kept_id(id: Uuid, incarnation: u16) -> Uuid {
    let sum = Sha256::of(format!("held {id} {incarnation}").as_bytes());
    Uuid::from_slice(&sum.0[..16]).unwrap_or_default()
}

fn owner_of(wanted: &KeepInstant) -> &'static str {
    if wanted.hold { HOLD } else { REGISTERED }
}

/// What stands in a row, and after the owner in a pin: the id that people know, and what for.
fn reason(id: Uuid, note: &str) -> String {
    format!("{id} {note}")
}

/// Owner, id and the rest of what stands in a row.
fn parse_note(note: &str) -> Option<(&'static str, Uuid, &str)> {
    let (owner, rest) = note.split_once(": ")?;
    let owner = OWNERS.into_iter().find(|known| *known == owner)?;
    let (id, text) = rest.split_once(' ')?;
    Some((owner, Uuid::try_parse(id).ok()?, text))
}

/// What the brake holds before a fall of a volume's files: the id for people, and id and note of the row.
pub(crate) fn brake_note(
    volume: Uuid,
    incarnation: u16,
    before: Version,
    (from, to): (u64, u64),
) -> (Uuid, Uuid, String) {
    let sum = Sha256::of(format!("{BRAKE} {volume} {}", before.0).as_bytes());
    let id = Uuid::from_slice(&sum.0[..16]).unwrap_or_default();
    let why = format!("of {from} files {} were removed within an hour", from.saturating_sub(to));
    (id, kept_id(id, incarnation), format!("{BRAKE}: {}", reason(id, &why)))
}

/// The id of what a brake holds, if a row is of one.
pub(crate) fn brake_of(note: &str) -> Option<Uuid> {
    parse_note(note).filter(|(owner, ..)| *owner == BRAKE).map(|(_, id, _)| id)
}

/// Whom a row is for, as people know it.
pub(crate) fn who_keeps(note: &str) -> String {
    parse_note(note).map_or_else(|| note.to_owned(), |(owner, id, _)| format!("{owner} {id}"))
}

/// A volume that instants can be kept of.
#[derive(Clone)]
struct Known {
    index: VolumeIndex,
    id: Uuid,
    incarnation: u16,
    born: Version,
    name: String,
    retention: Retention,
}

fn known(core: &Core, only: Option<Uuid>) -> Vec<Known> {
    let wanted = |id: Uuid| only.is_none_or(|only| only == id);
    let there = core.machine.volumes().filter(|volume| !volume.row.is_gone() && wanted(volume.id()));
    let known = there.map(|volume| Known {
        index: volume.index,
        id: volume.id(),
        incarnation: volume.row.incarnation,
        born: volume.row.born,
        name: volume.row.spec.name.clone(),
        retention: volume.row.spec.retention,
    });
    known.collect()
}

/// Keeps the wanted instants, or lets them go; durable, here and in the block stores, when it is done. Without a word nobody knows
/// whether it was.
pub(crate) async fn keep(collector: &Collector, wanted: KeepInstant) -> Option<Result<(), String>> {
    if wanted.at_ns.is_none() {
        return release(collector, wanted.id, wanted.volume).await;
    }
    let clock_ns = collector.ask_at(|_, now| now.wall_ns).await?;
    tokio::time::sleep(to_come(&wanted, clock_ns)).await;
    let rows = collector.ask_at(move |core, now| {
        let pins = keep_rows(core, now, &wanted)?;
        Ok::<_, String>((pins, core.engine.applied()))
    });
    Some(match rows.await? {
        // Not waited for where everybody's calls are decided: copies of the log may be away.
        Ok((pins, as_of)) => match collector.until_durable(as_of).await {
            Ok(()) => put(collector, pins).await,
            Err(why) => Err(why),
        },
        Err(why) => Err(why),
    })
}

/// How long to wait until the last instant is over. One that is further away is refused at once.
fn to_come(wanted: &KeepInstant, clock_ns: u64) -> Duration {
    let ahead = Duration::from_nanos(wanted.to_ns.unwrap_or_default().saturating_sub(clock_ns));
    if ahead > AHEAD_MAX { Duration::ZERO } else { ahead }
}

/// Keeps in the metadata; gives the pins that belong to it.
fn keep_rows(core: &mut Core, now: Now, wanted: &KeepInstant) -> Result<Vec<Pin>, String> {
    let at = Version(wanted.at_ns.unwrap_or_default());
    // Of a store that is idle nothing has changed since its last commit.
    let to = wanted.to_ns.map_or(core.machine.last().max(Version(now.wall_ns)).max(at), Version);
    let live: BTreeSet<Uuid> = core.machine.volumes().filter(|v| v.row.is_live()).map(|v| v.id()).collect();
    let volumes = known(core, wanted.volume).into_iter().filter(|volume| live.contains(&volume.id));
    let volumes: Vec<Known> = volumes.filter(|volume| wanted.hold || volume.born <= to).collect();
    if wanted.hold && volumes.is_empty() {
        return Err("this server does not have the volume, or not yet".to_owned());
    }
    let mut pins = Vec::new();
    for volume in volumes {
        if volume.retention == Retention::None && !wanted.hold {
            return Err(format!("volume {} keeps no past, so no instant of it can be kept", volume.name));
        }
        let from = if wanted.hold { at } else { at.max(volume.born) };
        pins.push(keep_row(core, now, &volume, (from, to), wanted)?);
    }
    Ok(pins)
}

fn keep_row(
    core: &mut Core,
    now: Now,
    volume: &Known,
    span: (Version, Version),
    wanted: &KeepInstant,
) -> Result<Pin, String> {
    let mut pin =
        Pin::new(volume.id, volume.incarnation, kept_id(wanted.id, volume.incarnation), span.0, span.1);
    (pin.owner, pin.reason) = (owner_of(wanted).to_owned(), reason(wanted.id, &wanted.note));
    pin.ends = wanted.ends_ns.map(Version);
    pin.encode().map_err(|error| error.to_string())?;
    let note = format!("{}: {}", pin.owner, pin.reason);
    let mut kept = Ok(());
    let decided = core.decide(now, |machine, group| {
        kept = machine.keep_instants(group, (volume.id, pin.id), span, pin.ends, &note)?;
        Ok(())
    });
    let decided = decided.map_err(|error| error.to_string())?;
    kept.map_err(|error| format!("volume {}: {error}", volume.name))?;
    decided.full.map_or(Ok(pin), |full| Err(full.to_string()))
}

async fn put(collector: &Collector, pins: Vec<Pin>) -> Result<(), String> {
    let each = pins.into_iter().map(|pin| async move {
        let store = collector.stores.of(pin.volume).ok_or("it is not in reach".to_owned())?;
        let collector = collector.clone();
        // It goes on when nobody waits for it any more: what comes late is looked after, too.
        let putting = tokio::spawn(async move { put_and_recheck(&collector, &*store, &pin).await });
        let put = tokio::time::timeout(PIN_WITHIN, putting).await.map_err(|_| late())?;
        put.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    });
    let put: Vec<Result<(), String>> = stream::iter(each).buffer_unordered(AT_ONCE).collect().await;
    let put: Result<(), String> = put.into_iter().collect();
    put.map_err(|why| format!("it cannot be pinned in the block store: {why}"))
}

/// Puts a pin, and takes it away again if its row is gone by then: who let go of it meanwhile found no pin to take away. So does
/// one that is said not to have got there.
async fn put_and_recheck(
    collector: &Collector,
    store: &dyn StorePort,
    pin: &Pin,
) -> Result<(), chronofs_blocks::StoreError> {
    let put = store.put_pin(pin).await;
    let (volume, id) = (pin.volume, pin.id);
    let gone = collector.ask_at(move |core, _| {
        let kept = list_kept(&SharedView(core.engine.view()));
        kept.is_ok_and(|kept| kept.iter().all(|(_, row, _)| *row != id))
    });
    if gone.await == Some(true)
        && let Err(error) = store.remove_pin(volume, id).await
    {
        tracing::warn!(%error, "a pin that nobody needs stays in a block store, and is obeyed");
    }
    put
}

fn late() -> String {
    format!("it has not answered for {} seconds", PIN_WITHIN.as_secs())
}

/// A volume with the incarnation it has, and the ids of the rows that go.
struct Going {
    volume: Known,
    rows: Vec<Uuid>,
}

fn going(core: &Core, id: Uuid, only: Option<Uuid>) -> Result<Vec<Going>, String> {
    let kept =
        list_kept(&SharedView(core.engine.view())).map_err(|_| "what is kept cannot be read".to_owned())?;
    let going = known(core, only).into_iter().map(|volume| {
        let ours = kept.iter().filter(|(index, ..)| *index == volume.index);
        // Builds before holds gave the row of a registered copy its own id, with a note that does not read back.
        let named = ours.filter(|(_, row_id, row)| {
            *row_id == id || parse_note(&row.note).is_some_and(|(_, of, _)| of == id)
        });
        Going { rows: named.map(|(_, id, _)| *id).collect(), volume }
    });
    Ok(going.collect())
}

/// Takes pins away, also where there is no row: what was put late. Then the rows go, but for those whose pin stays; and then pins
/// once more, since while there was a row the pin that it lacked may have been put again.
async fn release(collector: &Collector, id: Uuid, only: Option<Uuid>) -> Option<Result<(), String>> {
    let going = match collector.ask_at(move |core, _| going(core, id, only)).await? {
        Ok(going) => going,
        Err(why) => return Some(Err(why)),
    };
    let (going, mut left) = unpin(collector, id, going).await;
    let rows = going.iter().map(|going| (going.volume.id, going.rows.clone())).collect();
    let released = match collector.ask_at(move |core, now| release_rows(core, now, rows)).await? {
        Ok(as_of) => collector.until_durable(as_of).await,
        Err(why) => Err(why),
    };
    if released.is_ok() {
        left = left.and(unpin(collector, id, going).await.1);
    }
    Some(released.and(left))
}

/// Takes the pins of these volumes away. Gives those of which there is none any more, and why one stays.
async fn unpin(collector: &Collector, id: Uuid, going: Vec<Going>) -> (Vec<Going>, Result<(), String>) {
    let each = going.into_iter().map(|going| async move {
        let own = kept_id(id, going.volume.incarnation);
        let removed = match collector.stores.of(going.volume.id) {
            Some(store) => {
                let removed = tokio::time::timeout(PIN_WITHIN, store.remove_pin(going.volume.id, own)).await;
                removed.map_err(|_| late()).and_then(|removed| removed.map_err(|error| error.to_string()))
            }
            None if going.rows.contains(&own) => Err("its block store is not in reach".to_owned()),
            None => Ok(()),
        };
        (going, removed)
    });
    let removed: Vec<(Going, Result<(), String>)> =
        stream::iter(each).buffer_unordered(AT_ONCE).collect().await;
    let (mut gone, mut left) = (Vec::new(), Ok(()));
    for (going, removed) in removed {
        match removed {
            Ok(()) => gone.push(going),
            Err(why) => left = Err(format!("volume {}: {why}", going.volume.name)),
        }
    }
    (gone, left)
}

fn release_rows(core: &mut Core, now: Now, rows: BTreeMap<Uuid, Vec<Uuid>>) -> Result<Version, String> {
    for (volume, row) in
        rows.into_iter().flat_map(|(volume, rows)| rows.into_iter().map(move |row| (volume, row)))
    {
        let mut released = Ok(());
        let decided = core.decide(now, |machine, group| {
            released = machine.release_instants(group, volume, row)?;
            Ok(())
        });
        let decided = decided.map_err(|error| error.to_string())?;
        released.map_err(|error| error.to_string())?;
        if let Some(full) = decided.full {
            return Err(full.to_string());
        }
    }
    Ok(core.engine.applied())
}

/// The pins that a store lacks, of what is held by its volumes: of a brake, which is a row first, and what the store lost.
fn missing(core: &Core, now: Now, volumes: &[Uuid], found: &BTreeSet<Uuid>) -> Vec<Pin> {
    let Ok(kept) = list_kept(&SharedView(core.engine.view())) else { return Vec::new() };
    if !core.machine.owns_store(now.steady_ns) || core.machine.figures().recovering {
        return Vec::new();
    }
    // The row is durable first: a pin whose row a power cut took would be obeyed, and nobody would know what for.
    let durable = core.engine.durable();
    let kept: Vec<_> = kept.into_iter().filter(|(.., row)| row.made <= durable).collect();
    let mut pins = Vec::new();
    for volume in known(core, None).into_iter().filter(|volume| volumes.contains(&volume.id)) {
        for (_, row_id, row) in kept.iter().filter(|(index, ..)| *index == volume.index) {
            let Some((owner, id, text)) = parse_note(&row.note) else { continue };
            // Those of other incarnations are pins of the source of a clone, which sees to them.
            let own = *row_id == kept_id(id, volume.incarnation);
            let over = row.ends.is_some_and(|ends| ends.0 <= now.wall_ns);
            if own && !over && !found.contains(row_id) {
                let mut pin = Pin::new(volume.id, volume.incarnation, *row_id, row.at, row.to);
                (pin.owner, pin.reason, pin.ends) = (owner.to_owned(), reason(id, text), row.ends);
                pins.push(pin);
            }
        }
    }
    pins
}

impl Collector {
    /// Puts what is held and not pinned into a store, after its pins were read.
    pub(crate) async fn pin_missing(
        &self,
        store: &dyn StorePort,
        volumes: &[Uuid],
        found: &[(String, Bytes)],
    ) {
        let there = found.iter().filter_map(|(name, _)| parse_pin_name(name)).map(|(_, id)| id).collect();
        let asked = volumes.to_vec();
        let lacking = self.ask_at(move |core, now| missing(core, now, &asked, &there)).await;
        for pin in lacking.unwrap_or_default() {
            if let Err(error) = put_and_recheck(self, store, &pin).await {
                tracing::debug!(%error, "the next reading tries again");
            }
        }
    }
}

/// What is held, for operators.
pub(crate) async fn list(collector: &Collector) -> Option<Said> {
    let listed = collector.ask_at(|core, _| {
        let kept = list_kept(&SharedView(core.engine.view())).ok()?;
        let volumes: BTreeMap<VolumeIndex, Known> =
            known(core, None).into_iter().map(|volume| (volume.index, volume)).collect();
        let said = kept.iter().filter_map(|(index, _, row)| {
            let (owner, id, text) = parse_note(&row.note)?;
            let volume = volumes.get(index)?;
            Some(HeldSaid {
                id,
                volume: volume.id,
                name: volume.name.clone(),
                owner: owner.to_owned(),
                note: text.to_owned(),
                from_ns: row.at.0,
                to_ns: row.to.0,
                made_ns: row.made.0,
                ends_ns: row.ends.map(|ends| ends.0),
            })
        });
        Some(said.collect())
    });
    Some(match listed.await? {
        Some(held) => Said::Holds(held),
        None => Said::Trouble(
            "what is kept cannot be read: stop the server and run chronofs meta verify".to_owned(),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kept::tests::{Bench, VOLUME};

    #[test]
    fn a_note_reads_back_and_others_are_no_holds() {
        let id = Uuid::from_u128(7);
        let note = format!("{HOLD}: {}", reason(id, "root: quarter: end"));
        assert_eq!(parse_note(&note), Some((HOLD, id, "root: quarter: end")));
        for other in ["disk snapshot: abc 1", "hold: x y", "", "registered copy: abc: text"] {
            assert_eq!(parse_note(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_held_is_a_row_and_a_pin_and_one_that_the_store_lost_is_put_again() {
        let bench = Bench::new(Retention::Seconds(3600));
        let collector = &bench.keeper.collector;
        let at = bench.keeper.ask(|core, _| core.machine.last()).unwrap().0;
        let (id, note) = (Uuid::from_u128(7), "root: why".to_owned());
        let (volume, at_ns, to_ns) = (Some(VOLUME), Some(at), Some(at));
        let wanted = KeepInstant { id, at_ns, ends_ns: None, note, volume, to_ns, hold: true };
        let ask = |wanted: KeepInstant| bench.runtime.block_on(keep(collector, wanted)).unwrap();
        let put_missing = || {
            let found = bench.runtime.block_on(bench.store.pins()).unwrap();
            bench.runtime.block_on(collector.pin_missing(&*bench.store, &[VOLUME], &found));
        };
        ask(wanted.clone()).unwrap();
        let pins = bench.pins();
        assert_eq!((bench.rows(), pins.len(), pins[0].owner.as_str()), (1, 1, HOLD));
        assert_eq!((pins[0].from.0, pins[0].to.0, pins[0].ends), (at, at, None));
        bench.runtime.block_on(bench.store.remove_pin(VOLUME, pins[0].id)).unwrap();
        put_missing();
        assert_eq!(bench.pins(), pins, "as it was");
        // A row of the source of a clone has a pin there, if any.
        let foreign = (VOLUME, kept_id(Uuid::from_u128(8), 5));
        let kept = collector.durably(move |machine, group| {
            let note = format!("{HOLD}: {}", reason(Uuid::from_u128(8), "root: other"));
            machine.keep_instants(group, foreign, (Version(at), Version(at)), None, &note)
        });
        bench.runtime.block_on(kept).unwrap();
        put_missing();
        assert_eq!((bench.rows(), bench.pins().len()), (2, 1));
        ask(KeepInstant { at_ns: None, ..wanted.clone() }).unwrap();
        put_missing();
        assert_eq!((bench.rows(), bench.pins().len()), (1, 0));
        ask(KeepInstant { at_ns: None, id: Uuid::from_u128(8), ..wanted.clone() }).unwrap();
        assert_eq!(bench.rows(), 0);
        let earlier = (VOLUME, Uuid::from_u128(9));
        let kept = collector.durably(move |machine, group| {
            let note = "registered copy 00000000000000000000000000000009: text";
            machine.keep_instants(group, earlier, (Version(at), Version(at)), None, note)
        });
        bench.runtime.block_on(kept).unwrap();
        assert_eq!(bench.rows(), 1);
        ask(KeepInstant { at_ns: None, id: Uuid::from_u128(9), volume: None, ..wanted.clone() }).unwrap();
        assert_eq!(bench.rows(), 0, "a registered copy of an earlier build is let go");
        let early = ask(KeepInstant { at_ns: Some(1), to_ns: Some(1), ..wanted }).unwrap_err();
        assert!(early.contains("cannot be had: choose one from"), "{early}");
    }

    /// Keeps a row that is not durable yet; gives the pin that belongs to it.
    fn undurable(core: &mut Core, now: Now, id: Uuid) -> Pin {
        let at = core.machine.last();
        let volume = known(core, Some(VOLUME)).remove(0);
        let (at_ns, note) = (Some(at.0), "root: why".to_owned());
        let (volume_id, to_ns) = (Some(VOLUME), at_ns);
        let wanted = KeepInstant { id, at_ns, ends_ns: None, note, volume: volume_id, to_ns, hold: true };
        keep_row(core, now, &volume, (at, at), &wanted).unwrap()
    }

    fn row_of(bench: &Bench, id: Uuid) -> Pin {
        bench.keeper.ask(move |core, now| undurable(core, now, id)).unwrap()
    }

    fn let_go(bench: &Bench, id: Uuid) {
        let note = String::new();
        let (at_ns, ends_ns, to_ns) = (None, None, None);
        let wanted = KeepInstant { id, at_ns, ends_ns, note, volume: Some(VOLUME), to_ns, hold: true };
        bench.runtime.block_on(keep(&bench.keeper.collector, wanted)).unwrap().unwrap();
    }

    #[test]
    fn a_pin_that_is_put_again_while_its_hold_is_let_go_does_not_outlive_it() {
        let bench = Bench::new(Retention::Seconds(3600));
        let id = Uuid::from_u128(7);
        let pin = row_of(&bench, id);
        bench.runtime.block_on(bench.store.put_pin(&pin)).unwrap();
        bench.store.put_again(pin);
        let_go(&bench, id);
        assert_eq!((bench.rows(), bench.pins()), (0, Vec::new()));
    }

    #[test]
    fn a_pin_that_comes_when_its_hold_was_let_go_is_taken_away_again() {
        let bench = Bench::new(Retention::Seconds(3600));
        let id = Uuid::from_u128(7);
        let pin = row_of(&bench, id);
        let late = bench.store.put_late();
        let (collector, store) = (bench.keeper.collector.clone(), bench.store.clone());
        let putting =
            bench.runtime.spawn(async move { put_and_recheck(&collector, &*store, &pin).await.unwrap() });
        let_go(&bench, id);
        late.add_permits(1);
        bench.runtime.block_on(putting).unwrap();
        assert_eq!((bench.rows(), bench.pins()), (0, Vec::new()));
    }

    #[test]
    fn what_a_power_cut_may_still_take_is_not_pinned_again() {
        let bench = Bench::new(Retention::Seconds(3600));
        let lacking = |core: &Core, now| missing(core, now, &[VOLUME], &BTreeSet::new()).len();
        let before_and_after = bench.keeper.ask(move |core, now| {
            undurable(core, now, Uuid::from_u128(7));
            let before = lacking(core, now);
            core.engine.sync().unwrap();
            (before, lacking(core, now))
        });
        assert_eq!(before_and_after.unwrap(), (0, 1));
    }

    #[test]
    fn an_instant_that_is_just_about_to_come_is_waited_for() {
        let wait = |to_ns: Option<u64>| {
            let (id, note) = (Uuid::from_u128(7), String::new());
            let wanted =
                KeepInstant { id, at_ns: Some(1), ends_ns: None, note, volume: None, to_ns, hold: true };
            to_come(&wanted, 1_000)
        };
        assert_eq!([wait(None), wait(Some(7)), wait(Some(1_000))], [Duration::ZERO; 3]);
        assert_eq!(wait(Some(1_007)), Duration::from_nanos(7));
        assert_eq!(wait(Some(1_001 + 5_000_000_000)), Duration::ZERO, "it is refused");
    }

    #[test]
    fn a_clone_names_no_pin_of_its_source() {
        let id = Uuid::from_u128(7);
        assert_ne!(kept_id(id, 0), kept_id(id, 1));
        assert_ne!(kept_id(id, 0), id);
    }
}
