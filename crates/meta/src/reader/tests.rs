//! A clone with a block store of its own, which is the source's, too.

use super::*;
use crate::kept::tests::{Bench, VOLUME, attempt};
use chronofs_core::Retention;
use chronofs_core::store::{Credentials, StoreKind};
use chronofs_engine::Engine as _;
use chronofs_snapshot::protocol::Cut;
use chronofs_snapshot::restore::own::MARK;

const STORE: Uuid = Uuid::from_u128(9);

fn mark(readers: &[Uuid]) -> Mark {
    Mark {
        format: Mark::FORMAT,
        uid: attempt().uid,
        number: attempt().number,
        source: "source".to_owned(),
        cluster: "clone:1".to_owned(),
        node: "0190".to_owned(),
        name: "store".to_owned(),
        old: "h:1".to_owned(),
        new: "h:2".to_owned(),
        prepared: String::new(),
        cut: Some(Cut { store: u64::MAX, cut: u64::MAX }),
        draw: [1, 2],
        began: Some(1),
        accepted: true,
        unmatched: None,
        readers: readers.iter().map(Uuid::to_string).collect(),
        kept: None,
        detached: false,
        in_place: false,
        instead: None,
        entries: Vec::new(),
    }
}

/// Registers; gives the problems, and whether the volume may be served.
fn registered(bench: &Bench) -> (BTreeMap<Uuid, String>, bool) {
    let kind = StoreKind::Local { path: "/nowhere".to_owned() };
    let store = AssignedStore { id: STORE, kind, credentials: Credentials::Ambient, create_only: false };
    let folder = Folder(bench.folder.path().to_owned());
    let mut stores: HashMap<Uuid, Arc<dyn StorePort>> = [(VOLUME, bench.store.clone() as _)].into();
    let wanted = [(VOLUME, store)];
    let problems = bench.runtime.block_on(register(&folder, &bench.keeper.queue, &wanted, &mut stores));
    (problems, stores.contains_key(&VOLUME))
}

fn notes(bench: &Bench) -> usize {
    bench.runtime.block_on(bench.store.notes(READERS)).unwrap().len()
}

#[test]
fn who_cannot_tell_whether_it_is_a_clone_serves_nobody() {
    let bench = Bench::new(Retention::Forever);
    assert_eq!(registered(&bench), (BTreeMap::new(), true), "it is none");
    std::fs::write(bench.folder.path().join(MARK), "{").unwrap();
    let (problems, served) = registered(&bench);
    assert!(!served && problems[&VOLUME].contains("must register as a reader"), "{problems:?}");
    std::fs::remove_file(bench.folder.path().join(MARK)).unwrap();
    mark(&[]).write(bench.folder.path()).unwrap();
    assert_eq!(registered(&bench), (BTreeMap::new(), true));
    assert_eq!(notes(&bench), 1);
}

#[test]
fn a_snapshot_is_kept_if_that_was_seen_and_not_if_it_could_not_be_looked_at() {
    let bench = Bench::new(Retention::Forever);
    let kept = || {
        assert_eq!(registered(&bench), (BTreeMap::new(), true));
        Mark::read(bench.folder.path()).unwrap().unwrap().kept
    };
    mark(&[]).write(bench.folder.path()).unwrap();
    assert_eq!(kept(), Some(false));
    bench.keep_a_set();
    assert_eq!(kept(), Some(true));
    let (blocks, away) = (bench.folder.path().join("blocks"), bench.folder.path().join("away"));
    std::fs::rename(&blocks, &away).unwrap();
    assert_eq!(kept(), None);
    std::fs::rename(&away, &blocks).unwrap();
    assert_eq!(kept(), Some(true));
}

#[test]
fn every_volume_of_the_set_has_to_be_pinned_in_every_store_without_an_end() {
    let bench = Bench::new(Retention::Forever);
    bench.keep_a_set();
    let mut found = bench.runtime.block_on(bench.store.pins()).unwrap();
    let both = || [VOLUME, Uuid::from_u128(2)].into();
    assert!(is_kept(&found, &attempt(), &[VOLUME].into()));
    assert!(!is_kept(&found, &attempt(), &both()), "one of both");
    assert!(!is_kept(&found, &Attempt { number: 18, ..attempt() }, &[VOLUME].into()), "of another try");
    let mut pin = Pin::decode(&found[0].0, &found[0].1).unwrap();
    pin.volume = Uuid::from_u128(2);
    for (ends, expected) in [(Some(Version(u64::MAX)), false), (None, true)] {
        pin.ends = ends;
        found.push((pin.name(), pin.encode().unwrap()));
        assert_eq!(is_kept(&found, &attempt(), &both()), expected, "{ends:?}");
    }
    let (yes, no) = (Some(true), Some(false));
    for each in [[yes, no], [no, yes], [no, None]] {
        assert_eq!(kept_in_all(yes, &each), no);
    }
    assert_eq!((kept_in_all(no, &[yes, yes]), kept_in_all(no, &[])), (yes, no));
    assert_eq!((kept_in_all(yes, &[yes, None]), kept_in_all(no, &[yes, None])), (None, no));
}

#[test]
fn a_clone_is_detached_when_it_is_registered_nowhere_any_more() {
    let bench = Bench::new(Retention::Forever);
    let folder = bench.folder.path();
    let gone = Uuid::from_u128(8);
    mark(&[]).write(folder).unwrap();
    registered(&bench);
    bench.keeper.collector.stores.set_ids([(VOLUME, STORE)].into());
    let ask = |dry_run| bench.runtime.block_on(answer_detach(folder, &bench.keeper.collector, true, dry_run));
    let detach = || ask(false);
    let before = mark(&[STORE, gone]);
    before.write(folder).unwrap();
    let Said::Trouble(why) = detach() else { panic!("it is registered in a store that is gone") };
    let advice = format!("snapshot delete {} --force", attempt().uid);
    assert!(why.contains(&gone.to_string()) && !why.contains(&STORE.to_string()), "{why}");
    assert!(why.contains(&advice), "{why}");
    assert_eq!((Mark::read(folder).unwrap(), notes(&bench)), (Some(before), 1));
    // Of a store that has no volume of it any more the admin server goes on telling it where that is.
    let path = folder.join("other");
    let other = chronofs_blocks::BlockStore::create(&path, gone).unwrap();
    let name = reader(&mark(&[])).name_in_store();
    bench.runtime.block_on(other.put_note(&name, Bytes::from_static(b"registered"))).unwrap();
    let kind = StoreKind::Local { path: path.to_str().unwrap().to_owned() };
    let told = AssignedStore { id: gone, kind, credentials: Credentials::Ambient, create_only: false };
    bench.keeper.collector.stores.set_of_readers(vec![told]);
    let marker = path.join("chronofs-store.json");
    std::fs::rename(&marker, path.join("away")).unwrap();
    for dry_run in [true, false] {
        let Said::Trouble(why) = ask(dry_run) else { panic!("another folder is not the store") };
        assert!(why.contains(&gone.to_string()) && why.contains("cannot be used"), "{why}");
    }
    std::fs::rename(path.join("away"), &marker).unwrap();
    let untouched = Mark::read(folder).unwrap();
    assert_eq!(ask(true), Said::Detached { needed: 0, unnamed: 0 });
    assert_eq!((Mark::read(folder).unwrap(), notes(&bench)), (untouched, 1), "a dry run does nothing");
    assert_eq!(bench.runtime.block_on(other.notes(READERS)).unwrap().len(), 1);
    assert_eq!(detach(), Said::Detached { needed: 0, unnamed: 0 });
    assert_eq!(bench.runtime.block_on(other.notes(READERS)).unwrap(), []);
    let after = Mark::read(folder).unwrap().unwrap();
    assert_eq!((after.detached, after.readers.len(), notes(&bench)), (true, 0, 0));
}

#[test]
fn a_store_that_was_made_in_a_clone_is_detached_and_needs_no_mark() {
    let bench = Bench::new(Retention::Forever);
    let folder = bench.folder.path();
    for force in [false, true] {
        let said = bench.runtime.block_on(answer_detach(folder, &bench.keeper.collector, force, false));
        assert_eq!(said, Said::Detached { needed: 0, unnamed: 0 });
    }
    assert_eq!(Mark::read(folder).unwrap(), None);
}

#[test]
fn a_clone_is_detached_once_what_was_counted_is_durable() {
    let bench = Bench::new(Retention::Forever);
    let folder = bench.folder.path();
    mark(&[]).write(folder).unwrap();
    registered(&bench);
    bench.keeper.collector.stores.set_ids([(VOLUME, STORE)].into());
    let durable = |within| {
        let waiting = async {
            let (_, as_of) = bench.keeper.collector.count_foreign().await.unwrap();
            tokio::time::timeout(Duration::from_millis(within), bench.keeper.collector.until_durable(as_of))
                .await
        };
        bench.runtime.block_on(waiting)
    };
    bench.keeper.engine.sync().unwrap();
    assert_eq!(durable(20_000), Ok(Ok(())));
    let said = bench.runtime.block_on(answer_detach(folder, &bench.keeper.collector, false, false));
    assert_eq!((said, notes(&bench)), (Said::Detached { needed: 0, unnamed: 0 }, 0));
}
