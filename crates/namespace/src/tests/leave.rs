use super::*;
use crate::rows::{Volume, object_key};
use crate::{list_condemned, list_kept, tally, volume};
use chronofs_engine::Reads;

const ID: Uuid = Uuid::from_u128(7);

/// All rows of the store, the volume's own among them.
fn all_rows(fs: &Fs) -> Vec<(Bytes, Bytes)> {
    fs.state.scan(&[], &[0xff], usize::MAX).unwrap()
}

/// Rows of a volume but its own, live and past.
fn rows_of(fs: &Fs, index: VolumeIndex) -> usize {
    let belongs = |key: &[u8]| {
        let key = key.strip_prefix(&[0x80]).unwrap_or(key);
        key.get(1..5) == Some(&index.0.to_be_bytes())
    };
    all_rows(fs).iter().filter(|(key, _)| belongs(key)).count()
}

fn row(fs: &Fs) -> Volume {
    volume(&fs.state, VOLUME).unwrap().unwrap()
}

fn in_object(fs: &mut Fs, block: u32) -> NewSlice {
    let seal = fs.seal(100);
    NewSlice {
        block,
        slice: Slice { offset: 0, len: 100, skip: 0, place: Place::Object(seal, 0) },
        staged: None,
    }
}

/// A volume with a bit of everything, live, past, and without a link.
fn full() -> Fs {
    let mut fs = Fs::new();
    let dir = fs.dir(Ino::ROOT, "dir");
    let f = fs.file(dir, "f");
    fs.link(f, Ino::ROOT, "also").unwrap();
    for n in 0..4 {
        fs.write(f, 0, format!("what it was the time {n}").as_bytes());
        let slices = vec![in_object(&mut fs, 1), in_object(&mut fs, 2)];
        fs.publish(f, slices).unwrap();
    }
    fs.write(f, 3 * BLOCK, b"few");
    let orphan = fs.file(Ino::ROOT, "orphan");
    fs.write(orphan, 0, b"still open by somebody");
    fs.open.insert(orphan);
    fs.unlink(&ROOT, Ino::ROOT, "orphan").unwrap();
    let gone = fs.file(dir, "gone");
    fs.write(gone, 0, b"seen in the past alone");
    fs.unlink(&ROOT, dir, "gone").unwrap();
    fs
}

fn drop_rows(fs: &mut Fs, from: Bytes, limit: u32) -> Result<(u32, Option<Bytes>), SystemError> {
    match fs.system(SystemRequest::DropRows { volume: ID, from, limit })? {
        SystemReply::Expired { rows, next } => Ok((rows, next)),
        other => panic!("{other:?}"),
    }
}

fn condemn(fs: &mut Fs) -> Result<(u32, u32, bool), SystemError> {
    let before = fs.now();
    match fs.system(SystemRequest::Condemn { volume: ID, from: Version(0), before, limit: 3, brake: 1 })? {
        SystemReply::Condemned { objects, staged, braked, .. } => Ok((objects, staged, braked)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_deleted_volume_keeps_all_and_is_taken_back_as_it_was_until_it_is_given_up() {
    let mut fs = full();
    let before = all_rows(&fs);
    assert_eq!(fs.system(SystemRequest::GiveUpVolume { id: ID }), Err(SystemError::NotDeleted(ID)));
    for _ in 0..2 {
        fs.system(SystemRequest::DeleteVolume { id: ID }).unwrap();
        fs.version += 7200 * 1_000_000_000;
        assert_eq!(drop_rows(&mut fs, Bytes::new(), 10), Err(SystemError::NotDeleted(ID)));
        assert_eq!(condemn(&mut fs), Err(SystemError::DeletedVolume(ID)));
        let expire = SystemRequest::Expire { volume: ID, from: Bytes::new(), limit: 10 };
        assert_eq!(fs.system(expire), Err(SystemError::DeletedVolume(ID)));
        assert_eq!(fs.system(SystemRequest::VolumeGone { id: ID }), Err(SystemError::NotDeleted(ID)));
        fs.system(SystemRequest::UndeleteVolume { id: ID }).unwrap();
        assert_eq!(all_rows(&fs), before);
    }
    fs.system(SystemRequest::UndeleteVolume { id: ID }).unwrap();
    assert_eq!(all_rows(&fs), before, "one that is not deleted is taken back already");
    assert!(fs.lookup(Ino::ROOT, "dir").is_ok() && fs.lookup(Ino::ROOT, "also").is_ok());

    fs.system(SystemRequest::DeleteVolume { id: ID }).unwrap();
    fs.system(SystemRequest::GiveUpVolume { id: ID }).unwrap();
    assert!(row(&fs).is_given_up() && !row(&fs).is_live());
    assert_eq!(fs.system(SystemRequest::UndeleteVolume { id: ID }), Err(SystemError::GivenUp(ID)));
    assert_eq!(fs.system(SystemRequest::GiveUpVolume { id: ID }).map(drop), Ok(()));
    let unknown = Uuid::from_u128(99);
    let refused = fs.system(SystemRequest::GiveUpVolume { id: unknown });
    assert_eq!(refused, Err(SystemError::UnknownVolume(unknown)));
}

#[test]
fn a_volume_that_is_given_up_goes_to_the_last_row_in_any_steps_and_no_other_volume_does() {
    for limit in [1, 3, 512] {
        let mut fs = full();
        let other = VolumeSpec { id: Uuid::from_u128(8), name: "w".to_owned(), ..spec() };
        fs.system(SystemRequest::CreateVolume(other)).unwrap();
        let others = rows_of(&fs, VolumeIndex(2));
        fs.system(SystemRequest::DeleteVolume { id: ID }).unwrap();
        fs.system(SystemRequest::GiveUpVolume { id: ID }).unwrap();
        fs.system(SystemRequest::EndSession { session: fs.session }).unwrap();
        let (held, rows) = (tally(&fs.state, VOLUME).unwrap().held.count, rows_of(&fs, VOLUME));
        assert!(held > 8 && rows > 40, "{held} {rows}");
        // Counts are checked after every step: a crash may come behind any.
        let (mut from, mut steps) = (Bytes::new(), 0);
        while let (_, Some(next)) = drop_rows(&mut fs, from.clone(), limit).unwrap() {
            steps += 1;
            // After a crash it begins anew.
            from = if steps % 7 == 0 { Bytes::new() } else { next };
            assert!(steps < 1000);
        }
        assert_eq!(drop_rows(&mut fs, Bytes::new(), limit).unwrap(), (0, None));
        assert_eq!(fs.system(SystemRequest::VolumeGone { id: ID }), Err(SystemError::StillNeeded(ID)));
        let tallied = tally(&fs.state, VOLUME).unwrap();
        assert_eq!((tallied.held.count, tallied.retired.count), (0, held), "all at once, and no brake");
        while let (objects, staged, braked) = condemn(&mut fs).unwrap()
            && objects + staged > 0
        {
            assert!(!braked);
        }
        assert_eq!(fs.system(SystemRequest::VolumeGone { id: ID }), Err(SystemError::StillNeeded(ID)));
        let condemned = list_condemned(&fs.state, VOLUME, None, 1000).unwrap();
        assert_eq!(condemned.len(), 8, "each object was named by one row");
        let objects = condemned.into_iter().map(|(id, _)| id).collect();
        fs.system(SystemRequest::Deleted { volume: ID, objects }).unwrap();
        fs.system(SystemRequest::VolumeGone { id: ID }).unwrap();
        assert_eq!((rows_of(&fs, VOLUME), rows_of(&fs, VolumeIndex(2))), (0, others));
        assert!(row(&fs).is_gone() && !row(&fs).is_given_up(), "its id means nothing else");
        assert_eq!(fs.system(SystemRequest::UndeleteVolume { id: ID }), Err(SystemError::GivenUp(ID)));
        let again = fs.system(SystemRequest::CreateVolume(spec()));
        assert_eq!(again, Err(SystemError::DeletedVolume(ID)));
    }
}

#[test]
fn sessions_holds_and_pins_keep_a_volume_that_is_given_up_and_a_late_object_does() {
    let mut fs = full();
    let (at, hold, pin) = (fs.now(), Uuid::from_u128(1), Uuid::from_u128(2));
    for (id, ends) in [(hold, Some(Version::MAX)), (pin, None)] {
        let note = "a snapshot".to_owned();
        fs.system(SystemRequest::Keep { volume: ID, id, at, to: at, ends, note, found: false }).unwrap();
    }
    let granted = fs.system(SystemRequest::GrantPack { volume: ID }).unwrap();
    let SystemReply::Pack(packed) = granted else { panic!("{granted:?}") };
    fs.system(SystemRequest::DeleteVolume { id: ID }).unwrap();
    fs.system(SystemRequest::GiveUpVolume { id: ID }).unwrap();
    let before = rows_of(&fs, VOLUME);
    for request in [
        SystemRequest::EndSession { session: fs.session },
        SystemRequest::Release { volume: ID, id: hold },
        SystemRequest::Release { volume: ID, id: pin },
    ] {
        assert_eq!(drop_rows(&mut fs, Bytes::new(), 100), Err(SystemError::StillNeeded(ID)));
        assert_eq!(condemn(&mut fs), Ok((0, 0, false)));
        assert_eq!(rows_of(&fs, VOLUME), before);
        fs.system(request).unwrap();
    }
    assert_eq!(list_kept(&fs.state).unwrap(), []);
    assert_eq!(drop_rows(&mut fs, Bytes::new(), 1000).unwrap().1, None);
    while condemn(&mut fs).unwrap() != (0, 0, false) {}
    let condemned = list_condemned(&fs.state, VOLUME, None, 1000).unwrap();
    let objects: Vec<_> = condemned.into_iter().map(|(id, _)| id).collect();
    fs.system(SystemRequest::Deleted { volume: ID, objects }).unwrap();

    // The session stored one and never said so, and the server was about to; they are found in the store.
    let late = ObjectId { incarnation: 0, session: fs.session, n: 500 };
    for late in [late, packed] {
        let (over_since, objects) = (fs.now(), vec![late]);
        fs.system(SystemRequest::CondemnGarbage { volume: ID, objects, over_since }).unwrap();
        assert!(fs.state.get(&crate::rows::CONDEMNED.live_key(VOLUME, &object_key(late))).unwrap().is_some());
        assert_eq!(fs.system(SystemRequest::VolumeGone { id: ID }), Err(SystemError::StillNeeded(ID)));
        fs.system(SystemRequest::Deleted { volume: ID, objects: vec![late] }).unwrap();
    }
    fs.system(SystemRequest::VolumeGone { id: ID }).unwrap();
    assert_eq!(rows_of(&fs, VOLUME), 0);
}

#[test]
fn what_a_deleted_volume_has_can_be_kept_until_it_is_given_up_and_no_longer() {
    let mut fs = full();
    fs.system(SystemRequest::DeleteVolume { id: ID }).unwrap();
    fs.system(SystemRequest::EndSession { session: fs.session }).unwrap();
    let [past, coming, cut, late] = [1, 2, 3, 4].map(Uuid::from_u128);
    let note = "a set".to_owned();
    let begin = |past| SystemRequest::KeepPast {
        volume: ID,
        ids: [past, coming],
        ends: Version::MAX,
        note: note.clone(),
    };
    let SystemReply::Kept(at, to) = fs.system(begin(past)).unwrap() else { panic!() };
    fs.system(SystemRequest::GiveUpVolume { id: ID }).unwrap();
    assert_eq!(drop_rows(&mut fs, Bytes::new(), 10), Err(SystemError::StillNeeded(ID)));
    let keep = |id, at, to| SystemRequest::Keep {
        volume: ID,
        id,
        at,
        to,
        ends: None,
        note: note.clone(),
        found: false,
    };
    fs.system(keep(cut, at, to)).unwrap();
    for id in [past, coming] {
        fs.system(SystemRequest::Release { volume: ID, id }).unwrap();
    }
    // What nobody keeps may be gone.
    assert_eq!(fs.system(keep(late, at, fs.now())), Err(SystemError::GivenUp(ID)));
    assert_eq!(fs.system(begin(late)), Err(SystemError::GivenUp(ID)));
    assert_eq!(drop_rows(&mut fs, Bytes::new(), 10), Err(SystemError::StillNeeded(ID)));
    fs.system(SystemRequest::Release { volume: ID, id: cut }).unwrap();
    assert!(drop_rows(&mut fs, Bytes::new(), 10).unwrap().0 > 0);
}
