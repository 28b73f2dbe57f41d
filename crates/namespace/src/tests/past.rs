use super::*;
use chronofs_core::ops::XattrMode;

#[test]
fn every_instant_shows_the_tree_as_it_was() {
    let mut fs = Fs::new();
    let d = fs.dir(Ino::ROOT, "d");
    let f = fs.file(d, "f");
    fs.write(f, 0, b"first version of it");
    fs.ask(
        &ROOT,
        Request::SetXattr {
            ino: f,
            name: Bytes::from_static(b"user.k"),
            value: Bytes::from_static(b"v"),
            mode: XattrMode::Any,
        },
    )
    .unwrap();
    let then = fs.now();
    let attrs = [Ino::ROOT, d, f].map(|ino| fs.attr(ino));
    fs.write(f, 0, b"second");
    fs.chmod(&ROOT, f, 0o600).unwrap();
    fs.rename((d, "f"), (Ino::ROOT, "g")).unwrap();
    fs.rmdir(Ino::ROOT, "d").unwrap();
    fs.unlink(&ROOT, Ino::ROOT, "g").unwrap();
    fs.dir(Ino::ROOT, "d");
    let at = Some(then);
    for attr in attrs {
        assert_eq!(fs.read(&ROOT, at, &Request::GetAttr { ino: attr.ino }).map(attr_in), Ok(attr));
    }
    assert_eq!(fs.lookup_at(at, Ino::ROOT, "d"), Ok(d));
    assert_eq!(fs.list(at, d, 1).unwrap(), [".", "..", "f"]);
    assert_eq!(fs.bytes(at, f, 99), b"first version of it");
    let xattr = Request::GetXattr { ino: f, name: Bytes::from_static(b"user.k") };
    assert_eq!(fs.read(&ROOT, at, &xattr), Ok(Reply::Bytes(Bytes::from_static(b"v"))));
    let found = crate::resolve(&fs.state, VOLUME, at, Ino::ROOT, b"d/f").unwrap();
    assert_eq!(found.map(|(ino, _)| ino), Some(f));
    assert_eq!(crate::resolve(&fs.state, VOLUME, None, Ino::ROOT, b"d/f").unwrap(), None);
}

#[test]
fn in_the_past_a_user_needs_the_right_of_then_and_of_now() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    let me = user(5);
    let open = Request::Open { ino: f, read: true, write: false };
    let readable = Some(fs.now());
    fs.chmod(&ROOT, f, 0o600).unwrap();
    let private = Some(fs.now());
    assert_eq!(fs.read(&me, readable, &open), Err(Errno::EACCES), "not now");
    assert!(fs.read(&ROOT, readable, &open).is_ok());
    fs.chmod(&ROOT, f, 0o644).unwrap();
    assert!(fs.read(&me, readable, &open).is_ok());
    assert_eq!(fs.read(&me, private, &open), Err(Errno::EACCES), "not then");
    fs.unlink(&ROOT, Ino::ROOT, "f").unwrap();
    assert!(fs.read(&me, readable, &open).is_ok(), "its present is over");
}

#[test]
fn without_retention_nothing_is_kept_unless_it_is_leased() {
    let mut fs = Fs::with(VolumeSpec { retention: Retention::None, ..spec() });
    let f = fs.file(Ino::ROOT, "f");
    let before = fs.now();
    fs.unlink(&ROOT, Ino::ROOT, "f").unwrap();
    assert_eq!(fs.lookup_at(Some(before), Ino::ROOT, "f"), Err(Errno::ENOENT));
    assert!(fs.state.pairs().all(|(key, _)| key[0] < 0x80), "no history");
    let g = fs.file(Ino::ROOT, "g");
    let at = Version(fs.version + 10);
    let open = SystemRequest::OpenSession {
        volume: spec().id,
        client: 2,
        at: Some(at),
        read_only: true,
        ttl_ms: 1,
        scope: WHOLE,
    };
    let Ok(SystemReply::Session { id, .. }) = fs.system(open) else { panic!() };
    fs.unlink(&ROOT, Ino::ROOT, "g").unwrap();
    assert_eq!(fs.lookup_at(Some(at), Ino::ROOT, "g"), Ok(g));
    fs.system(SystemRequest::EndSession { session: id }).unwrap();
    let rows = fs.state.pairs().count();
    fs.chmod(&ROOT, Ino::ROOT, 0o700).unwrap();
    assert_eq!(fs.state.pairs().count(), rows, "nobody needs it any more");
    let _ = f;
}

#[test]
fn names_of_the_past_do_not_show_inodes_of_the_present() {
    let mut fs = Fs::new();
    let before = Some(fs.now());
    let f = fs.file(Ino::ROOT, "f");
    assert_eq!(fs.lookup_at(before, Ino::ROOT, "f"), Err(Errno::ENOENT));
    assert_eq!(fs.read(&ROOT, before, &Request::GetAttr { ino: f }), Err(Errno::ENOENT));
    assert_eq!(fs.list(before, Ino::ROOT, 9).unwrap(), [".", ".."]);
}
