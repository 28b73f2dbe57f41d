//! Objects that nothing explains go by decision, and not while somebody may need them.

use super::*;
use chronofs_blocks::reader::{READERS, Reader};
use chronofs_blocks::{Described, DescribedName, Pin};
use chronofs_wire::analyze::DiscardedObject;

const BEFORE: u16 = 7;

fn before(n: u64) -> ObjectId {
    ObjectId { incarnation: BEFORE, session: SessionId(5), n }
}

/// What becomes of these objects, or why nothing does.
fn discard(bench: &Bench, dry_run: bool, ids: &[ObjectId]) -> Result<Vec<Option<String>>, String> {
    let names = ids.iter().map(|id| object_name(VOLUME, *id)).collect::<Vec<_>>();
    let (news, ended) = followed(bench, Some(VOLUME), Look::Discard { dry_run, names: names.clone() });
    let told: Vec<DiscardedObject> = news
        .into_iter()
        .filter_map(|news| if let News::Discarded(object) = news { Some(*object) } else { None })
        .collect();
    match ended {
        Ended::Whole(Sum::Discarded(count)) => {
            assert!(told.iter().map(|object| &object.object).eq(&names));
            assert_eq!(told.iter().filter(|object| object.refused.is_none()).count() as u64, count);
            Ok(told.into_iter().map(|object| object.refused).collect())
        }
        Ended::Stopped(why) => Err(why),
        other => panic!("{other:?}"),
    }
}

fn is_there(bench: &Bench, shy: &Shy, id: ObjectId) -> bool {
    bench.runtime.block_on(shy.get(&object_name(VOLUME, id), 0, 1)).is_ok()
}

fn put(bench: &Bench, shy: &Shy, id: ObjectId) {
    bench.runtime.block_on(shy.put(&object_name(VOLUME, id), Bytes::from_static(b"bytes"))).unwrap();
}

fn describe(bench: &Bench, shy: &Shy, cluster: &str, since_ns: u64) -> String {
    let spec = bench.keeper.ask(|core, _| core.machine.volumes().next().unwrap().row.spec.clone()).unwrap();
    let described = Described::new(cluster, (Uuid::from_u128(1), "main"), spec);
    let name = DescribedName { volume: VOLUME, incarnation: BEFORE, since_ns }.to_string();
    bench.runtime.block_on(shy.put_note(&name, described.note().unwrap())).unwrap();
    name
}

#[test]
fn what_nothing_explains_goes_when_somebody_names_it_and_nobody_may_need_it() {
    let bench = Bench::new(Retention::Forever);
    let shy = store(&bench, true);
    for id in [object(1), before(2)] {
        put(&bench, &shy, id);
    }
    let all = [object(1), before(2), object(4)];
    let why = discard(&bench, false, &all).unwrap_err();
    assert!(why.contains("nothing of volume") && why.contains("not read yet"), "{why}");
    let port: Arc<dyn StorePort> = shy.clone();
    bench.runtime.block_on(bench.keeper.collector.read_pins(&port, &[VOLUME]));

    let found = discard(&bench, true, &all).unwrap();
    assert_eq!(found[0], None);
    assert!(found[1].as_ref().unwrap().contains("which cluster stored it"), "{found:?}");
    assert!(found[2].as_ref().unwrap().contains("not there"), "{found:?}");
    assert!(is_there(&bench, &shy, object(1)), "a dry run deletes nothing");
    assert_eq!(discard(&bench, false, &all[..1]).unwrap(), [None]);
    assert!(!is_there(&bench, &shy, object(1)));

    // The clone of a cluster that lives.
    let described = describe(&bench, &shy, "clone:9", 1);
    let why = discard(&bench, false, &[before(2)]).unwrap().remove(0).unwrap();
    assert!(why.contains("cluster clone:9"), "{why}");
    bench.runtime.block_on(shy.remove_note(&described)).unwrap();
    // This one, before it was restored in place: but a snapshot of the lost time needs it.
    describe(&bench, &shy, "", 2);
    let pin = Pin::new(VOLUME, BEFORE, Uuid::from_u128(8), Version(1), Version(2));
    bench.runtime.block_on(shy.put_pin(&pin)).unwrap();
    let why = discard(&bench, false, &[before(2)]).unwrap().remove(0).unwrap();
    assert!(why.contains("a pin of a time that is lost"), "{why}");
    bench.runtime.block_on(shy.remove_pin(VOLUME, pin.id)).unwrap();
    // A clone reads from there.
    let reader = Reader::new("c5", Uuid::from_u128(5), "clone:9", ("store", "h:1"), Version(3));
    let (name, note) = (reader.name_in_store(), reader.encode().unwrap());
    assert!(name.starts_with(READERS));
    bench.runtime.block_on(shy.put_note(&name, note)).unwrap();
    let why = discard(&bench, false, &[before(2)]).unwrap_err();
    assert!(why.contains("a clone reads") && why.contains("restore detach"), "{why}");
    assert!(is_there(&bench, &shy, before(2)));
    bench.runtime.block_on(shy.remove_note(&name)).unwrap();
    assert_eq!(discard(&bench, false, &[before(2)]).unwrap(), [None]);
    assert!(!is_there(&bench, &shy, before(2)));
}
