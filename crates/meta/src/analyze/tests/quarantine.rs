//! What nothing explains is named, for whoever decides what becomes of it.

use super::*;
use chronofs_wire::analyze::QuarantinedObject;

fn quarantined(bench: &Bench) -> Vec<QuarantinedObject> {
    let (news, ended) = followed(bench, Some(VOLUME), Look::Quarantined);
    let Ended::Whole(Sum::Quarantined(sum)) = ended else { panic!("{ended:?}") };
    let told = news.into_iter().filter_map(|news| match news {
        News::Quarantined(object) => Some(*object),
        _ => None,
    });
    let told: Vec<QuarantinedObject> = told.collect();
    assert_eq!(
        (told.len() as u64, told.iter().map(|object| object.bytes).sum::<u64>()),
        (sum.count, sum.bytes)
    );
    told
}

#[test]
fn each_object_that_nothing_explains_is_named_with_its_size_time_and_reason_and_stays() {
    let bench = Bench::new(Retention::Forever);
    let shy = store(&bench, true);
    assert_eq!(quarantined(&bench), []);
    let foreign = ObjectId { incarnation: 7, session: SessionId(5), n: 2 };
    let before_ns = crate::executor::now().wall_ns;
    for (id, len) in [(object(1), 100), (foreign, 200)] {
        bench.runtime.block_on(shy.put(&object_name(VOLUME, id), Bytes::from(vec![1; len]))).unwrap();
    }
    for _ in 0..2 {
        let mut found = quarantined(&bench);
        found.sort_by_key(|object| object.bytes);
        let [own, other] = &found[..] else { panic!("{found:?}") };
        assert_eq!((own.object.clone(), own.bytes), (object_name(VOLUME, object(1)), 100));
        assert_eq!((own.incarnation, own.reason.as_str()), (0, "no session explains it"));
        assert_eq!((other.object.clone(), other.bytes), (object_name(VOLUME, foreign), 200));
        assert!(other.incarnation == 7 && other.reason.contains("another incarnation"), "{other:?}");
        // The clock of a file system is a tick behind.
        let slack_ns = 1_000_000_000;
        assert!(found.iter().all(|object| object.stored_ns > Some(before_ns - slack_ns)), "{found:?}");
    }
}
