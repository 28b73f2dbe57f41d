use super::*;
use crate::rows::Volume;
use crate::sealed_keys;
use chronofs_core::ops::XattrMode;

fn set_keys(fs: &mut Fs, revision: u64, sealed: &str) -> Result<Volume, SystemError> {
    let request = SystemRequest::SetKeys { id: spec().id, revision, sealed: sealed.to_owned() };
    match fs.system(request)? {
        SystemReply::Volume { volume, .. } => Ok(*volume),
        other => panic!("{other:?}"),
    }
}

fn encrypted() -> Fs {
    let mut fs = Fs::new();
    assert!(set_keys(&mut fs, 1, "first").unwrap().is_encrypted());
    fs
}

fn kept(fs: &Fs) -> (u64, String) {
    let row = sealed_keys(&fs.state, VOLUME).unwrap().unwrap();
    (row.revision, row.sealed)
}

fn create(fs: &mut Fs, name_len: usize, node: NewNode) -> Result<Reply, Errno> {
    let name = Name::sealed("n".repeat(name_len)).unwrap();
    let (parent, mode, umask) = (Ino::ROOT, 0o600, 0);
    fs.ask(&ROOT, Request::Create { parent, name, node, mode, umask, open: false, exclusive: true })
}

#[test]
fn a_volume_is_encrypted_from_the_start_or_never_and_keeps_the_newest_keys() {
    let mut fs = encrypted();
    assert!(set_keys(&mut fs, 3, "third").unwrap().is_encrypted());
    set_keys(&mut fs, 2, "second").unwrap();
    assert_eq!(kept(&fs), (3, "third".to_owned()), "what comes late changes nothing");
    fs.file(Ino::ROOT, "f");
    set_keys(&mut fs, 4, "fourth").unwrap();
    assert_eq!(kept(&fs), (4, "fourth".to_owned()));
    let update = SystemRequest::UpdateVolume(VolumeSpec { max_bytes: Some(1 << 30), ..spec() });
    let Ok(SystemReply::Volume { volume, .. }) = fs.system(update) else { panic!() };
    assert!(volume.is_encrypted());

    let mut plain = Fs::new();
    plain.file(Ino::ROOT, "f");
    assert!(matches!(set_keys(&mut plain, 1, "late"), Err(SystemError::BadSpec(_))));
    plain.unlink(&ROOT, Ino::ROOT, "f").unwrap();
    assert!(
        matches!(set_keys(&mut plain, 1, "late"), Err(SystemError::BadSpec(_))),
        "the past is not sealed"
    );
    assert!(sealed_keys(&plain.state, VOLUME).unwrap().is_none());
    assert!(matches!(set_keys(&mut encrypted(), 2, &"x".repeat(65 << 10)), Err(SystemError::BadSpec(_))));
}

#[test]
fn sealed_names_targets_and_attributes_may_be_longer_in_an_encrypted_volume_alone() {
    let (mut fs, mut plain) = (encrypted(), Fs::new());
    for fs in [&mut fs, &mut plain] {
        create(fs, 255, NewNode::File).unwrap();
    }
    create(&mut fs, 384, NewNode::Symlink("t".repeat(4095 + 28).into())).unwrap();
    assert_eq!(create(&mut plain, 256, NewNode::File), Err(Errno::ENAMETOOLONG));
    let lookup = Request::Lookup { parent: Ino::ROOT, name: Name::sealed("n".repeat(256)).unwrap() };
    assert_eq!(plain.read(&ROOT, None, &lookup), Err(Errno::ENAMETOOLONG));
    assert_eq!(fs.read(&ROOT, None, &lookup), Err(Errno::ENOENT));
    let long = NewNode::Symlink("t".repeat(4096).into());
    assert_eq!(create(&mut plain, 1, long), Err(Errno::ENAMETOOLONG));
    assert!(Name::sealed("n".repeat(385)).is_err());

    let set = |fs: &mut Fs, name_len: usize, value_len: usize| {
        let ino = fs.file(Ino::ROOT, &format!("f{name_len}.{value_len}"));
        let name = Bytes::from(format!("user.{}", "a".repeat(name_len - 5)));
        fs.ask(&ROOT, Request::SetXattr { ino, name, value: vec![0; value_len].into(), mode: XattrMode::Any })
    };
    assert_eq!(set(&mut fs, 384, (64 << 10) + 28), Ok(Reply::Done));
    assert_eq!(set(&mut plain, 255, 64 << 10), Ok(Reply::Done));
    assert_eq!(set(&mut plain, 256, 1), Err(Errno::ERANGE));
    assert_eq!(set(&mut plain, 255, (64 << 10) + 1), Err(Errno::E2BIG));
}

#[test]
fn what_is_encrypted_and_what_is_not_are_never_in_one_volume() {
    for (mut fs, fits) in [(encrypted(), true), (Fs::new(), false)] {
        let file = fs.file(Ino::ROOT, "f");
        for (codec, sealed) in [(Codec::Raw, false), (Codec::SealedRaw, true), (Codec::SealedLz4, true)] {
            let mut new = fs.slice(0, 0, &[7; 4]);
            let Place::Inline(seal, bytes) = new.slice.place.clone() else { panic!("{new:?}") };
            new.slice.place = Place::Inline(Seal { codec, ..seal }, bytes);
            let published = fs.publish(file, vec![new]);
            assert_eq!(published.is_ok(), sealed == fits, "{codec:?}: {published:?}");
        }
    }
}

#[test]
fn keys_go_with_the_last_of_their_volume() {
    let mut fs = encrypted();
    let id = spec().id;
    let session = fs.session;
    fs.system(SystemRequest::EndSession { session }).unwrap();
    fs.system(SystemRequest::DeleteVolume { id }).unwrap();
    fs.system(SystemRequest::GiveUpVolume { id }).unwrap();
    fs.system(SystemRequest::DropRows { volume: id, from: Bytes::new(), limit: 1000 }).unwrap();
    assert!(sealed_keys(&fs.state, VOLUME).unwrap().is_some(), "until then it may be needed");
    fs.system(SystemRequest::VolumeGone { id }).unwrap();
    assert!(sealed_keys(&fs.state, VOLUME).unwrap().is_none());
}
