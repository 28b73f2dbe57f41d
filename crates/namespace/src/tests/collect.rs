use super::*;
use crate::rows::{Format, Kept, PIN, STAGED, STORE_WIDE, staged_key};
use crate::{Judged, judge, list_condemned, list_kept, list_objects, live_stored_bytes};
use crate::{retired_since, tally, volume};
use chronofs_engine::{Batch, Change, Reads};

const SECOND: u64 = 1_000_000_000;

/// A volume that keeps no past, so that what is overwritten is unnamed at once.
fn without_past() -> Fs {
    Fs::with(VolumeSpec { retention: Retention::None, ..spec() })
}

fn object_slice(fs: &mut Fs, object: ObjectId, index: u32, block: u32) -> NewSlice {
    let seal = Seal { id: SliceId { object, index }, ..fs.seal(100) };
    NewSlice {
        block,
        slice: Slice { offset: 0, len: 100, skip: 0, place: Place::Object(seal, u64::from(index) * 100) },
        staged: None,
    }
}

fn condemn(fs: &mut Fs, brake: u64) -> (u32, u32, bool) {
    let before = fs.now();
    match fs.system(SystemRequest::Condemn { volume: spec().id, from: Version(0), before, limit: 100, brake })
    {
        Ok(SystemReply::Condemned { objects, staged, braked, .. }) => (objects, staged, braked),
        other => panic!("{other:?}"),
    }
}

fn condemned(fs: &Fs) -> Vec<ObjectId> {
    list_condemned(&fs.state, VOLUME, None, 100).unwrap().into_iter().map(|(id, _)| id).collect()
}

fn deleted(fs: &mut Fs, objects: Vec<ObjectId>) {
    fs.system(SystemRequest::Deleted { volume: spec().id, objects }).unwrap();
}

fn rows_of(fs: &Fs, object: ObjectId) -> Option<u32> {
    let objects = list_objects(&fs.state, VOLUME, None, 100).unwrap();
    objects.into_iter().find(|(id, _)| *id == object).map(|(_, refs)| refs.rows)
}

fn judged(fs: &Fs, object: ObjectId, over_since: Version) -> Judged {
    let row = volume(&fs.state, VOLUME).unwrap().unwrap();
    judge(&fs.state, VOLUME, &row, object, over_since).unwrap()
}

fn past_forgotten(fs: &mut Fs) {
    fs.version += 7200 * SECOND;
    fs.system(SystemRequest::AdvanceHorizon { volume: spec().id, to: Version::MAX }).unwrap();
    let expire = SystemRequest::Expire { volume: spec().id, from: Bytes::new(), limit: 1000 };
    fs.system(expire).unwrap();
}

#[test]
fn an_object_is_retired_when_its_last_row_goes_and_condemned_for_good() {
    let mut fs = without_past();
    let f = fs.file(Ino::ROOT, "f");
    let object = fs.seal(1).id.object;
    let slices = (0..3).map(|n| object_slice(&mut fs, object, n, n)).collect();
    fs.publish(f, slices).unwrap();
    assert_eq!(rows_of(&fs, object), Some(3));
    assert_eq!(tally(&fs.state, VOLUME).unwrap().held.bytes, 300);
    fs.truncate(f, u64::from(BLOCK) + 50).unwrap();
    assert_eq!(rows_of(&fs, object), Some(2), "a row that is cut goes on naming it");
    assert_eq!(condemn(&mut fs, u64::MAX), (0, 0, false));
    fs.unlink(&ROOT, Ino::ROOT, "f").unwrap();
    assert_eq!(rows_of(&fs, object), Some(0));

    // Until it is condemned it can be named again.
    let g = fs.file(Ino::ROOT, "g");
    let again = object_slice(&mut fs, object, 0, 0);
    fs.publish(g, vec![again.clone()]).unwrap();
    assert_eq!(condemn(&mut fs, u64::MAX), (0, 0, false));
    fs.truncate(g, 0).unwrap();
    assert_eq!(condemn(&mut fs, u64::MAX), (1, 0, false));
    assert_eq!(condemned(&fs), [object]);
    let refused = fs.publish(g, vec![again.clone()]);
    assert_eq!(refused, Err(Errno::EINVAL), "condemned");
    assert_eq!(judged(&fs, object, fs.now()), Judged::Known);
    deleted(&mut fs, vec![object]);
    assert_eq!(condemned(&fs), []);
    let refused = fs.publish(g, vec![again]);
    assert_eq!(refused, Err(Errno::EINVAL), "deleted, and its session lives");

    // A store that only said so is asked again.
    assert_eq!(judged(&fs, object, Version::ZERO), Judged::Garbage);
    let garbage = |fs: &mut Fs, over_since| {
        let objects = vec![object];
        fs.system(SystemRequest::CondemnGarbage { volume: spec().id, objects, over_since }).unwrap();
        condemned(fs)
    };
    assert_eq!(garbage(&mut fs, Version::ZERO), [object]);
    fs.system(SystemRequest::EndSession { session: fs.session }).unwrap();
    deleted(&mut fs, vec![object]);
    assert_eq!((rows_of(&fs, object), condemned(&fs)), (None, vec![]));
}

#[test]
fn a_slice_that_several_rows_of_a_block_show_is_needed_once() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    let object = fs.seal(1).id.object;
    let first = object_slice(&mut fs, object, 0, 0);
    let mut again = first.clone();
    again.slice.offset = 200;
    let other = object_slice(&mut fs, object, 1, 1);
    fs.publish(f, vec![first, again, other]).unwrap();
    assert_eq!(fs.slices(None, f).len(), 3);
    assert_eq!(tally(&fs.state, VOLUME).unwrap().held.bytes, 200);
    assert_eq!(live_stored_bytes(&fs.state, VOLUME).unwrap(), 200);
    // What only the past shows is no need of the present.
    fs.truncate(f, 0).unwrap();
    assert_eq!(live_stored_bytes(&fs.state, VOLUME).unwrap(), 0);
    assert_eq!(tally(&fs.state, VOLUME).unwrap().held.bytes, 200);
}

#[test]
fn staged_bytes_go_with_their_last_row_and_not_before_their_time() {
    let mut fs = without_past();
    let f = fs.file(Ino::ROOT, "f");
    fs.write(f, 0, b"more than eight bytes");
    let Place::Staged(seal) = fs.slices(None, f)[0].slice.place.clone() else { panic!() };
    let key = STAGED.live_key(VOLUME, &staged_key(seal.id));
    fs.write(f, 0, b"and these cover them all");
    let retired = fs.now();
    let early = SystemRequest::Condemn {
        volume: spec().id,
        from: Version(0),
        before: Version(retired.0 - 1),
        limit: 100,
        brake: u64::MAX,
    };
    fs.system(early).unwrap();
    assert!(fs.state.get(&key).unwrap().is_some());
    assert_eq!(retired_since(&fs.state, VOLUME, retired).unwrap().count, 1);
    assert_eq!(condemn(&mut fs, u64::MAX), (0, 1, false));
    assert!(fs.state.get(&key).unwrap().is_none());
    assert_eq!(fs.bytes(None, f, 100), b"and these cover them all");
}

#[test]
fn what_the_past_names_stays_until_no_instant_needs_it() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    fs.write(f, 0, b"as it was before");
    let then = fs.now();
    let (hold, pin) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let keep = |id, ends| SystemRequest::Keep {
        volume: spec().id,
        id,
        at: then,
        to: then,
        ends,
        note: "a snapshot".to_owned(),
        found: false,
    };
    fs.system(keep(hold, Some(Version::MAX))).unwrap();
    fs.system(keep(hold, Some(Version::MAX))).unwrap();
    fs.system(keep(pin, None)).unwrap();
    fs.write(f, 0, b"as it is now, longer");
    let release = |id| SystemRequest::Release { volume: spec().id, id };
    for id in [hold, pin] {
        past_forgotten(&mut fs);
        assert_eq!(condemn(&mut fs, u64::MAX), (0, 0, false));
        assert_eq!(fs.bytes(Some(then), f, 100), b"as it was before");
        fs.system(release(id)).unwrap();
        fs.system(release(id)).unwrap();
    }
    past_forgotten(&mut fs);
    assert_eq!(condemn(&mut fs, u64::MAX), (0, 1, false));
    assert_eq!(fs.bytes(None, f, 100), b"as it is now, longer");
    let late = fs.system(keep(hold, None));
    assert!(matches!(late, Err(SystemError::Instant { .. })), "{late:?}");
}

#[test]
fn what_is_kept_for_longer_than_it_was_is_kept_until_the_later_end() {
    let mut fs = Fs::new();
    let (at, id) = (fs.now(), Uuid::from_u128(1));
    let mut keep = |ends: Option<u64>| {
        let (volume, note, ends) = (spec().id, "a snapshot".to_owned(), ends.map(Version));
        fs.system(SystemRequest::Keep { volume, id, at, to: at, ends, note, found: false }).unwrap();
        let kept = list_kept(&fs.state).unwrap();
        let leases = crate::volume(&fs.state, VOLUME).unwrap().unwrap().leases;
        assert_eq!((kept.len(), leases), (1, 1));
        kept[0].2.ends.map(|ends| ends.0)
    };
    let far = u64::MAX - 1;
    assert_eq!(keep(Some(far - 1)), Some(far - 1));
    assert_eq!(keep(Some(far)), Some(far), "it is held for longer");
    assert_eq!(keep(Some(far - 2)), Some(far), "somebody was told that it is held for longer");
    assert_eq!(keep(None), None, "it is a pin from now on");
    assert_eq!(keep(Some(far)), None);
}

#[test]
fn a_pin_keeps_history_where_there_is_no_retention() {
    let mut fs = without_past();
    let f = fs.file(Ino::ROOT, "f");
    fs.write(f, 0, b"as it was before");
    let at = Version(fs.version + 10);
    let (volume, id, note) = (spec().id, Uuid::from_u128(1), String::new());
    fs.system(SystemRequest::Keep { volume, id, at, to: at, ends: None, note, found: false }).unwrap();
    fs.write(f, 0, b"as it is now, longer");
    past_forgotten(&mut fs);
    assert_eq!(condemn(&mut fs, u64::MAX), (0, 0, false));
    assert_eq!(fs.bytes(Some(at), f, 100), b"as it was before");
}

/// A volume that keeps an hour, with a pin of an instant in it, when the hour is over. Gives the instant.
fn pinned_and_out_of_the_window(fs: &mut Fs) -> Version {
    let f = fs.file(Ino::ROOT, "f");
    fs.write(f, 0, b"as it was");
    let (at, volume) = (fs.now(), spec().id);
    let (id, note) = (Uuid::from_u128(1), String::new());
    fs.system(SystemRequest::Keep { volume, id, at, to: at, ends: None, note, found: false }).unwrap();
    let far = Version(fs.now().0 + 7_200_000_000_000);
    fs.version = far.0;
    fs.system(SystemRequest::AdvanceHorizon { volume, to: far }).unwrap();
    at
}

fn past_session(client: u128, at: Version) -> SystemRequest {
    let (volume, at, scope) = (spec().id, Some(at), WHOLE);
    SystemRequest::OpenSession { volume, client, at, read_only: true, ttl_ms: 1, scope }
}

#[test]
fn what_a_build_kept_that_did_not_say_whether_it_is_whole_protects_and_is_not_mounted() {
    for (flags, had) in [(Kept::WHOLE, true), (0, false), (Kept::UNSURE, false)] {
        let mut fs = Fs::with(VolumeSpec { retention: Retention::Seconds(3600), ..spec() });
        let at = pinned_and_out_of_the_window(&mut fs);
        let (_, id, row) = list_kept(&fs.state).unwrap().remove(0);
        assert_eq!(row.flags, Kept::WHOLE);
        let key = [&VOLUME.0.to_be_bytes()[..], id.as_bytes()].concat();
        let value = chronofs_history::encode_plain(&Kept { flags, ..row }.encode().unwrap());
        fs.version += 10;
        fs.commit(Batch(vec![Change::Put(PIN.live_key(STORE_WIDE, &key), value)]));
        assert_eq!(fs.system(past_session(2, at)).is_ok(), had, "{flags}");
        let kept = list_kept(&fs.state).unwrap();
        let volume = crate::volume(&fs.state, VOLUME).unwrap().unwrap();
        assert!(crate::protected_instants(VOLUME, &volume, &[], &kept).covers(at, at), "{flags}");
    }
}

#[test]
fn a_hold_that_cannot_be_read_is_in_the_way_of_no_instant_of_the_window() {
    let mut fs = Fs::with(VolumeSpec { retention: Retention::Seconds(3600), ..spec() });
    let before = pinned_and_out_of_the_window(&mut fs);
    let key = [&VOLUME.0.to_be_bytes()[..], Uuid::from_u128(1).as_bytes()].concat();
    fs.version += 10;
    let batch = Batch(vec![Change::Put(PIN.live_key(STORE_WIDE, &key), Bytes::from_static(&[1, 0xff]))]);
    fs.state.apply(&Commit { version: fs.now(), tag: Bytes::new(), batch });
    let at = fs.now();
    let ctx = SystemCtx {
        version: Version(fs.version + 10),
        is_open: &|_| false,
        freed_max: FREED_MAX,
        place: &|_| None,
    };
    system(&fs.state, &ctx, &past_session(2, at)).unwrap().reply.unwrap();
    assert!(system(&fs.state, &ctx, &past_session(2, before)).is_err());
    let volume = crate::volume(&fs.state, VOLUME).unwrap().unwrap();
    let checked = |at| crate::check_kept_instant(&fs.state, VOLUME, &volume, at, fs.now());
    assert_eq!(checked(at).unwrap(), Ok(()));
    assert!(checked(before).is_err(), "whether it is kept cannot be known");
}

/// What a disk snapshot does: all of the past and all that comes, then only up to its cut.
#[test]
fn what_is_kept_up_to_a_cut_is_whole_whatever_the_retention() {
    for retention in [Retention::None, Retention::Seconds(1), Retention::Forever] {
        let mut fs = Fs::with(VolumeSpec { retention, ..spec() });
        let f = fs.file(Ino::ROOT, "f");
        fs.write(f, 0, b"what was before it");
        let [past, coming, cut] = [1, 2, 3].map(Uuid::from_u128);
        let (volume, note) = (spec().id, "a set".to_owned());
        let begin =
            SystemRequest::KeepPast { volume, ids: [past, coming], ends: Version::MAX, note: note.clone() };
        let SystemReply::Kept(from, to) = fs.system(begin.clone()).unwrap() else { panic!() };
        assert_eq!(to, fs.now());
        fs.write(f, 0, b"what is in the set");
        let at = fs.now();
        fs.write(f, 0, b"what came after it.");
        let far = Version(fs.now().0 + 5_000_000_000);
        fs.version = far.0;
        fs.system(SystemRequest::AdvanceHorizon { volume, to: far }).unwrap();
        past_forgotten(&mut fs);
        assert_eq!(fs.system(begin.clone()).unwrap(), SystemReply::Kept(from, to), "asked again");
        let keep = |id, from, to| SystemRequest::Keep {
            volume,
            id,
            at: from,
            to,
            ends: None,
            note: note.clone(),
            found: false,
        };
        if retention != Retention::Forever {
            let early = fs.system(keep(Uuid::from_u128(4), Version(from.0 - 1), at));
            assert!(matches!(early, Err(SystemError::Instant { .. })), "{early:?}");
        }
        fs.system(keep(cut, from, at)).unwrap();
        for id in [past, coming] {
            fs.system(SystemRequest::Release { volume, id }).unwrap();
        }
        past_forgotten(&mut fs);
        condemn(&mut fs, u64::MAX);
        assert_eq!(fs.bytes(Some(at), f, 100), b"what is in the set", "{retention:?}");
        assert_eq!(fs.bytes(Some(to), f, 100), b"what was before it", "{retention:?}");
        assert_eq!(crate::volume(&fs.state, VOLUME).unwrap().unwrap().leases, 1);
    }
}

#[test]
fn so_much_at_once_waits_for_a_word() {
    let mut fs = without_past();
    let f = fs.file(Ino::ROOT, "kept");
    fs.write(f, 0, b"more than eight bytes");
    for n in 0..3 {
        let g = fs.file(Ino::ROOT, &format!("{n}"));
        fs.write(g, 0, b"more than eight bytes");
    }
    for n in 0..3 {
        fs.unlink(&ROOT, Ino::ROOT, &format!("{n}")).unwrap();
    }
    assert_eq!(condemn(&mut fs, 3), (0, 0, true));
    assert_eq!(condemn(&mut fs, 3), (0, 0, true));
    fs.system(SystemRequest::ReleaseBrake { volume: spec().id }).unwrap();
    assert_eq!(condemn(&mut fs, 3), (0, 3, false));
    // What comes later is looked at anew, and a little is no reason to brake.
    fs.unlink(&ROOT, Ino::ROOT, "kept").unwrap();
    assert_eq!(condemn(&mut fs, 1), (0, 0, true));
    assert_eq!(condemn(&mut fs, 2), (0, 1, false));
}

#[test]
fn an_object_of_the_store_is_judged_by_who_was_granted_it() {
    let mut fs = Fs::new();
    let (session, now) = (fs.session, fs.now());
    let object = |session, n| ObjectId { incarnation: 0, session, n };
    let stranger = |fs: &Fs, id| matches!(judged(fs, id, Version::MAX), Judged::Quarantined(_));
    assert_eq!(judged(&fs, object(session, 5), Version::MAX), Judged::Open);
    assert!(stranger(&fs, object(session, 1 << 20)), "more than it was granted");
    assert!(stranger(&fs, object(SessionId(99), 5)), "nobody's");
    assert!(stranger(&fs, ObjectId { incarnation: 1, ..object(session, 5) }), "of another life");
    fs.system(SystemRequest::EndSession { session }).unwrap();
    assert_eq!(judged(&fs, object(session, 5), now), Judged::Open, "over, and not for long");
    assert_eq!(judged(&fs, object(session, 5), Version::MAX), Judged::Garbage);
    assert!(stranger(&fs, object(session, 1 << 20)), "still more than it was granted");
    let objects = vec![object(session, 5), object(session, 1 << 20), object(SessionId(99), 5)];
    let request = |over_since| SystemRequest::CondemnGarbage {
        volume: spec().id,
        objects: objects.clone(),
        over_since,
    };
    fs.system(request(now)).unwrap();
    assert_eq!(condemned(&fs), []);
    fs.system(request(Version::MAX)).unwrap();
    fs.system(request(Version::MAX)).unwrap();
    assert_eq!(condemned(&fs), [object(session, 5)]);
    deleted(&mut fs, vec![object(session, 5)]);
    assert_eq!(tally(&fs.state, VOLUME).unwrap().condemned.count, 0);
}

#[test]
fn below_its_floor_a_session_publishes_nothing_and_what_it_put_in_vain_is_garbage() {
    let mut fs = without_past();
    let (session, f) = (fs.session, fs.file(Ino::ROOT, "f"));
    let named = fs.seal(1).id.object;
    let slice = object_slice(&mut fs, named, 0, 0);
    fs.publish(f, vec![slice]).unwrap();
    let id = |n| ObjectId { n, ..named };
    let never = [id(named.n + 1), id(named.n + 2)];
    assert!(never.iter().all(|object| judged(&fs, *object, Version::MAX) == Judged::Open));
    let note = |fs: &mut Fs, floor| fs.system(SystemRequest::NoteFloor { session, floor }).unwrap();
    note(&mut fs, never[1].n);
    note(&mut fs, 1);
    assert_eq!(judged(&fs, named, Version::ZERO), Judged::Known, "a row names it");
    assert_eq!(judged(&fs, never[0], Version::ZERO), Judged::Garbage);
    assert_eq!(judged(&fs, never[1], Version::ZERO), Judged::Open);
    let late = |fs: &mut Fs, object| {
        let slice = object_slice(fs, object, 1, 0);
        fs.publish(f, vec![slice])
    };
    assert_eq!(late(&mut fs, never[0]).unwrap_err(), Errno::EINVAL);
    late(&mut fs, never[1]).unwrap();

    // Its row goes with it: there is nobody who could publish it again.
    note(&mut fs, u64::MAX);
    let granted = system::session(&fs.state, session).unwrap().unwrap();
    assert_eq!(granted.floor, granted.granted, "never more than it was granted");
    fs.unlink(&ROOT, Ino::ROOT, "f").unwrap();
    condemn(&mut fs, u64::MAX);
    assert_eq!(condemned(&fs).len(), 2);
    deleted(&mut fs, vec![named, never[1]]);
    assert_eq!((rows_of(&fs, named), rows_of(&fs, never[1])), (None, None));
    assert_eq!(judged(&fs, named, Version::ZERO), Judged::Garbage, "should it be there again");
}

#[test]
fn a_volume_that_was_not_counted_from_its_birth_is_left_alone() {
    let mut fs = without_past();
    let mut row = volume(&fs.state, VOLUME).unwrap().unwrap();
    row.flags = 0;
    let mut txn = chronofs_history::Txn::new(&fs.state, crate::rows::STORE_WIDE, fs.now(), false);
    txn.put_plain(crate::rows::VOLUME, &1u32.to_be_bytes(), &crate::rows::Format::encode(&row).unwrap());
    let batch = txn.into_batch();
    fs.version += 1;
    fs.commit(batch);
    let f = fs.file(Ino::ROOT, "f");
    fs.write(f, 0, b"more than eight bytes");
    fs.unlink(&ROOT, Ino::ROOT, "f").unwrap();
    assert_eq!(condemn(&mut fs, u64::MAX), (0, 0, false));
    let session = fs.session;
    fs.system(SystemRequest::EndSession { session }).unwrap();
    assert_eq!(judged(&fs, ObjectId { incarnation: 0, session, n: 5 }, Version::MAX), Judged::Known);
}
