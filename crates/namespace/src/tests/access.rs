use super::*;
use chronofs_core::SetTime;

fn times(atime: Option<SetTime>, mtime: Option<SetTime>) -> SetAttr {
    SetAttr { atime, mtime, ..SetAttr::default() }
}

#[test]
fn the_class_of_the_caller_decides() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    fs.chown(&ROOT, f, 5, 50).unwrap();
    fs.chmod(&ROOT, f, 0o046).unwrap();
    let may = |fs: &Fs, caller: &Caller, mask| fs.read(caller, None, &Request::Access { ino: f, mask });
    let member = Caller { uid: 6, gid: 6, groups: vec![50] };
    assert_eq!(may(&fs, &user(5), 4), Err(Errno::EACCES), "the owner's class is its own");
    assert_eq!(may(&fs, &member, 4), Ok(Reply::Done));
    assert_eq!(may(&fs, &member, 2), Err(Errno::EACCES));
    assert_eq!(may(&fs, &user(7), 6), Ok(Reply::Done));
    assert_eq!(may(&fs, &ROOT, 6), Ok(Reply::Done));
    assert_eq!(may(&fs, &ROOT, 1), Err(Errno::EACCES), "nobody may execute it");
    assert_eq!(may(&fs, &ROOT, 8), Err(Errno::EINVAL));
}

#[test]
fn directories_need_search_and_write_rights() {
    let mut fs = Fs::new();
    let d = fs.dir(Ino::ROOT, "d");
    fs.file(d, "f");
    let me = user(5);
    let lookup = Request::Lookup { parent: d, name: name("f") };
    fs.chmod(&ROOT, d, 0o744).unwrap();
    assert_eq!(fs.ask(&me, lookup.clone()), Err(Errno::EACCES));
    assert_eq!(fs.unlink(&me, d, "f"), Err(Errno::EACCES));
    fs.chmod(&ROOT, d, 0o755).unwrap();
    assert!(fs.ask(&me, lookup).is_ok());
    assert_eq!(fs.make_as(&me, d, "g", NewNode::File, 0o600), Err(Errno::EACCES));
    assert_eq!(fs.make_as(&me, d, "f", NewNode::File, 0o600), Err(Errno::EEXIST), "known before writing");
    assert_eq!(fs.unlink(&me, d, "f"), Err(Errno::EACCES));
    fs.chmod(&ROOT, d, 0o711).unwrap();
    let list = Request::ReadDir { dir: d, after: 0, limit: 9, attrs: false };
    fs.open.insert(d);
    assert_eq!(fs.ask(&me, list.clone()), Err(Errno::EACCES), "that somebody has it open gives no right");
    assert!(fs.ask(&ROOT, list).is_ok());
}

#[test]
fn a_sticky_directory_protects_what_others_own() {
    let mut fs = Fs::new();
    let d = fs.dir(Ino::ROOT, "d");
    fs.chmod(&ROOT, d, 0o1777).unwrap();
    fs.make_as(&user(5), d, "f", NewNode::File, 0o666).unwrap();
    assert_eq!(fs.unlink(&user(6), d, "f"), Err(Errno::EPERM));
    fs.chown(&ROOT, d, 6, 6).unwrap();
    fs.unlink(&user(6), d, "f").unwrap();
    fs.make_as(&user(5), d, "f", NewNode::File, 0o666).unwrap();
    fs.unlink(&user(5), d, "f").unwrap();
}

#[test]
fn setgid_directories_hand_down_their_group() {
    let mut fs = Fs::new();
    let d = fs.dir(Ino::ROOT, "d");
    fs.chown(&ROOT, d, 0, 50).unwrap();
    fs.chmod(&ROOT, d, 0o2777).unwrap();
    let me = user(5);
    let f = fs.make_as(&me, d, "f", NewNode::File, 0o2755).unwrap();
    assert_eq!((f.gid, f.mode), (50, 0o755), "no setgid program of a foreign group");
    let e = fs.make_as(&me, d, "e", NewNode::Dir, 0o6755).unwrap();
    assert_eq!((e.gid, e.mode), (50, 0o2755));
    let member = Caller { uid: 5, gid: 5, groups: vec![50] };
    assert_eq!(fs.make_as(&member, d, "g", NewNode::File, 0o2755).unwrap().mode, 0o2755);
    fs.chmod(&ROOT, Ino::ROOT, 0o777).unwrap();
    assert_eq!(fs.make_as(&me, Ino::ROOT, "h", NewNode::File, 0o644).unwrap().gid, 5);
}

#[test]
fn chmod_is_for_owners_and_outsiders_lose_setgid() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    fs.chown(&ROOT, f, 5, 50).unwrap();
    assert_eq!(fs.chmod(&user(6), f, 0o777), Err(Errno::EPERM));
    assert_eq!(fs.chmod(&user(5), f, 0o6755).unwrap().mode, 0o4755);
    let member = Caller { uid: 5, gid: 5, groups: vec![50] };
    assert_eq!(fs.chmod(&member, f, 0o2755).unwrap().mode, 0o2755);
    assert_eq!(fs.attr(f).ctime_ns, fs.version as i64);
    assert_eq!(fs.chmod(&ROOT, f, 0o6755).unwrap().mode, 0o6755);
}

#[test]
fn chown_follows_the_rules_and_takes_privileges() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    fs.chown(&ROOT, f, 5, 5).unwrap();
    fs.chmod(&ROOT, f, 0o6755).unwrap();
    let owner = Caller { uid: 5, gid: 5, groups: vec![50] };
    assert_eq!(fs.chown(&owner, f, 6, 5), Err(Errno::EPERM));
    assert_eq!(fs.chown(&owner, f, 5, 51), Err(Errno::EPERM));
    assert_eq!(fs.chown(&user(6), f, 5, 5), Err(Errno::EPERM));
    let attr = fs.chown(&owner, f, 5, 50).unwrap();
    assert_eq!((attr.gid, attr.mode), (50, 0o755));
    fs.chmod(&ROOT, f, 0o6755).unwrap();
    assert_eq!(fs.chown(&ROOT, f, 7, 7).unwrap().mode, 0o755, "whoever does it");
    let d = fs.dir(Ino::ROOT, "d");
    fs.chmod(&ROOT, d, 0o2755).unwrap();
    assert_eq!(fs.chown(&ROOT, d, 7, 7).unwrap().mode, 0o2755, "a directory keeps setgid");
}

#[test]
fn times_are_set_by_owners_and_touched_by_writers() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    fs.chown(&ROOT, f, 5, 5).unwrap();
    fs.chmod(&ROOT, f, 0o642).unwrap();
    let (at, now) = (Some(SetTime::At(-7)), Some(SetTime::Now));
    let member = Caller { uid: 6, gid: 5, groups: Vec::new() };
    assert_eq!(fs.set(&user(6), f, times(at, at)), Err(Errno::EPERM));
    assert_eq!(fs.set(&member, f, times(now, now)), Err(Errno::EACCES));
    let attr = fs.set(&user(6), f, times(now, now)).unwrap();
    assert_eq!((attr.atime_ns, attr.mtime_ns), (fs.version as i64, fs.version as i64));
    let attr = fs.set(&user(5), f, times(at, None)).unwrap();
    assert_eq!(
        (attr.atime_ns, attr.mtime_ns, attr.ctime_ns),
        (-7, fs.version as i64 - 10, fs.version as i64)
    );
    let d = fs.dir(Ino::ROOT, "d");
    let attr = fs.set(&ROOT, d, times(at, Some(SetTime::At(9)))).unwrap();
    assert_eq!((attr.atime_ns, attr.mtime_ns, attr.ctime_ns), (-7, 9, fs.version as i64));
    assert_eq!(fs.attr(d), attr);
}

#[test]
fn truncating_needs_write_rights_or_a_handle() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    let cut = SetAttr { size: Some(9), mtime: Some(SetTime::Now), ..SetAttr::default() };
    assert_eq!(fs.set(&user(5), f, cut.clone()), Err(Errno::EACCES));
    assert_eq!(fs.set(&user(5), f, SetAttr { by_handle: true, ..cut }).unwrap().size, 9);
    let before = fs.attr(f);
    assert_eq!(fs.set(&user(5), f, SetAttr::default()), Ok(before), "nothing asked, nothing changed");
}

#[test]
fn open_checks_rights_and_types() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    let d = fs.dir(Ino::ROOT, "d");
    let l = fs.make_as(&ROOT, Ino::ROOT, "l", NewNode::Symlink(Bytes::from_static(b"f")), 0).unwrap().ino;
    let open = |ino, read, write| Request::Open { ino, read, write };
    assert!(fs.ask(&user(5), open(f, true, false)).is_ok());
    assert_eq!(fs.ask(&user(5), open(f, false, true)), Err(Errno::EACCES));
    assert_eq!(fs.ask(&ROOT, open(d, true, true)), Err(Errno::EISDIR));
    assert!(fs.ask(&ROOT, open(d, true, false)).is_ok());
    assert_eq!(fs.ask(&ROOT, open(l, true, false)), Err(Errno::ELOOP));
    let at = Some(fs.now());
    assert_eq!(fs.read(&ROOT, at, &open(f, false, true)), Err(Errno::EROFS));
}

#[test]
fn read_only_sessions_and_the_past_change_nothing() {
    let fs = Fs::new();
    let open = |_| false;
    let request = Request::Rmdir { parent: Ino::ROOT, name: name("x") };
    let past = fs.ctx(&ROOT, Some(fs.now()), &open);
    let read_only = Ctx { read_only: true, ..fs.ctx(&ROOT, None, &open) };
    for ctx in [past, read_only] {
        assert_eq!(step(&fs.state, &ctx, &request).unwrap().reply, Err(Errno::EROFS));
    }
}

#[test]
fn a_scope_ends_at_its_root() {
    let mut fs = Fs::new();
    let (a, b) = (fs.dir(Ino::ROOT, "a"), fs.dir(Ino::ROOT, "b"));
    let inner = fs.dir(a, "inner");
    let f = fs.file(inner, "f");
    let g = fs.file(b, "g");
    let both = fs.file(b, "both");
    fs.link(both, inner, "both").unwrap();
    fs.root = a;
    let get = |fs: &Fs, ino| fs.read(&ROOT, None, &Request::GetAttr { ino }).map(|_| ());
    for ino in [a, inner, f, both] {
        assert_eq!(get(&fs, ino), Ok(()), "{ino:?}");
    }
    for ino in [Ino::ROOT, b, g] {
        assert_eq!(get(&fs, ino), Err(Errno::ENOENT), "{ino:?}");
    }
    assert_eq!(fs.make_as(&ROOT, b, "x", NewNode::File, 0o600), Err(Errno::ENOENT));
    assert_eq!(fs.rename((inner, "f"), (b, "f")), Err(Errno::ENOENT));
    assert_eq!(fs.link(g, inner, "g"), Err(Errno::ENOENT));
    let entries = fs.ask(&ROOT, Request::ReadDir { dir: a, after: 0, limit: 2, attrs: false }).unwrap();
    let Reply::Entries { entries, .. } = entries else { panic!() };
    assert_eq!(entries[1].ino, a, "its .. is itself");
    fs.open.insert(f);
    fs.unlink(&ROOT, inner, "f").unwrap();
    assert_eq!(get(&fs, f), Ok(()), "an orphan that is open");
}
