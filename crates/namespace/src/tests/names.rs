use super::*;

#[test]
fn a_new_file_has_the_attributes_it_was_made_with() {
    let mut fs = Fs::new();
    let request = Request::Create {
        parent: Ino::ROOT,
        name: name("f"),
        node: NewNode::File,
        mode: 0o666,
        umask: 0o022,
        open: true,
        exclusive: true,
    };
    let Ok(Reply::Opened { attr, slices }) = fs.ask(&ROOT, request) else { panic!() };
    assert_eq!(slices, Some(Vec::new()));
    assert_eq!((attr.mode, attr.nlink, attr.size, attr.data_version), (0o644, 1, 0, fs.now()));
    let now_ns = fs.version as i64;
    assert_eq!([attr.atime_ns, attr.mtime_ns, attr.ctime_ns, attr.crtime_ns], [now_ns; 4]);
    assert_eq!(fs.attr(attr.ino), attr);
    let root = fs.attr(Ino::ROOT);
    assert_eq!((root.mtime_ns, root.ctime_ns, root.size, root.nlink), (now_ns, now_ns, 1, 2));
}

#[test]
fn directories_count_their_subdirectories_as_links() {
    let mut fs = Fs::new();
    let d = fs.dir(Ino::ROOT, "d");
    assert_eq!((fs.attr(d).nlink, fs.attr(Ino::ROOT).nlink), (2, 3));
    fs.dir(d, "e");
    assert_eq!(fs.attr(d).nlink, 3);
    assert_eq!(fs.rmdir(Ino::ROOT, "d"), Err(Errno::ENOTEMPTY));
    fs.rmdir(d, "e").unwrap();
    fs.rmdir(Ino::ROOT, "d").unwrap();
    assert_eq!((fs.attr(Ino::ROOT).nlink, fs.attr(Ino::ROOT).size), (2, 0));
    assert_eq!(fs.lookup(Ino::ROOT, "d"), Err(Errno::ENOENT));
}

#[test]
fn a_taken_name_is_refused_or_opened() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    fs.dir(Ino::ROOT, "d");
    let make = |text: &str, exclusive| Request::Create {
        parent: Ino::ROOT,
        name: name(text),
        node: NewNode::File,
        mode: 0o600,
        umask: 0,
        open: true,
        exclusive,
    };
    assert_eq!(fs.ask(&ROOT, make("f", true)), Err(Errno::EEXIST));
    assert_eq!(fs.ask(&ROOT, make("f", false)).map(|reply| attr_in(reply).ino), Ok(f));
    assert_eq!(fs.ask(&ROOT, make("d", false)), Err(Errno::EISDIR));
    assert_eq!(fs.ask(&user(9), make("f", false)).map(|reply| attr_in(reply).ino), Ok(f), "may be read");
    fs.chmod(&ROOT, f, 0o600).unwrap();
    assert_eq!(fs.ask(&user(9), make("f", false)), Err(Errno::EACCES));
}

#[test]
fn names_under_what_is_no_directory_are_refused() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    assert_eq!(fs.make_as(&ROOT, f, "x", NewNode::File, 0o600), Err(Errno::ENOTDIR));
    assert_eq!(fs.lookup(f, "x"), Err(Errno::ENOTDIR));
    assert_eq!(fs.rmdir(Ino::ROOT, "f"), Err(Errno::ENOTDIR));
    fs.dir(Ino::ROOT, "d");
    assert_eq!(fs.unlink(&ROOT, Ino::ROOT, "d"), Err(Errno::EISDIR));
    assert_eq!(fs.unlink(&ROOT, Ino::ROOT, "none"), Err(Errno::ENOENT));
    assert_eq!(fs.lookup(Ino(999), "x"), Err(Errno::ENOENT));
}

#[test]
fn every_kind_of_node_is_made() {
    let mut fs = Fs::new();
    let target = Bytes::from_static(b"some/where");
    let link = fs.make_as(&ROOT, Ino::ROOT, "l", NewNode::Symlink(target.clone()), 0).unwrap();
    assert_eq!((link.mode, link.size), (0o777, 10));
    assert_eq!(fs.ask(&ROOT, Request::ReadLink { ino: link.ino }), Ok(Reply::Bytes(target)));
    let device = fs.make_as(&ROOT, Ino::ROOT, "c", NewNode::Char(0x0501), 0o600).unwrap();
    assert_eq!(device.rdev, 0x0501);
    for (text, node) in [("p", NewNode::Fifo), ("s", NewNode::Socket), ("b", NewNode::Block(7))] {
        fs.make_as(&ROOT, Ino::ROOT, text, node, 0o600).unwrap();
    }
    fs.chmod(&ROOT, Ino::ROOT, 0o777).unwrap();
    for (text, node) in [("c2", NewNode::Char(1)), ("b2", NewNode::Block(0))] {
        assert_eq!(fs.make_as(&user(5), Ino::ROOT, text, node, 0o600), Err(Errno::EPERM));
    }
    fs.make_as(&user(5), Ino::ROOT, "whiteout", NewNode::Char(0), 0).unwrap();
    let long = NewNode::Symlink(vec![b'x'; 4096].into());
    assert_eq!(fs.make_as(&ROOT, Ino::ROOT, "l2", long, 0), Err(Errno::ENAMETOOLONG));
    assert_eq!(fs.ask(&ROOT, Request::ReadLink { ino: Ino::ROOT }), Err(Errno::EINVAL));
}

#[test]
fn hard_links_share_an_inode_until_the_last_one_goes() {
    let mut fs = Fs::new();
    let d = fs.dir(Ino::ROOT, "d");
    let f = fs.file(Ino::ROOT, "f");
    fs.link(f, d, "g").unwrap();
    fs.link(f, Ino::ROOT, "h").unwrap();
    assert_eq!(fs.attr(f).nlink, 3);
    assert_eq!(fs.link(f, d, "g"), Err(Errno::EEXIST));
    assert_eq!(fs.link(d, Ino::ROOT, "e"), Err(Errno::EPERM));
    fs.unlink(&ROOT, Ino::ROOT, "f").unwrap();
    assert_eq!((fs.attr(f).nlink, fs.attr(f).ctime_ns), (2, fs.version as i64));
    fs.unlink(&ROOT, d, "g").unwrap();
    assert_eq!(fs.lookup(Ino::ROOT, "h"), Ok(f));
    fs.unlink(&ROOT, Ino::ROOT, "h").unwrap();
    assert_eq!(fs.read(&ROOT, None, &Request::GetAttr { ino: f }), Err(Errno::ENOENT));
}

#[test]
fn an_open_file_outlives_its_last_name_until_it_is_reaped() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    fs.write(f, 0, b"hello");
    fs.open.insert(f);
    fs.unlink(&ROOT, Ino::ROOT, "f").unwrap();
    assert_eq!((fs.attr(f).nlink, fs.lookup(Ino::ROOT, "f")), (0, Err(Errno::ENOENT)));
    assert_eq!(crate::list_orphans(&fs.state, VOLUME).unwrap(), [(f, fs.now())]);
    fs.write(f, 5, b" you");
    assert_eq!(fs.bytes(None, f, 100), b"hello you");
    assert_eq!(fs.link(f, Ino::ROOT, "again"), Err(Errno::ENOENT));
    let reap = SystemRequest::Reap { volume: spec().id, ino: f };
    fs.system(reap.clone()).unwrap();
    assert_eq!(fs.attr(f).size, 9, "it is still open");
    fs.open.clear();
    fs.system(reap.clone()).unwrap();
    assert_eq!(fs.read(&ROOT, None, &Request::GetAttr { ino: f }), Err(Errno::ENOENT));
    let usage = crate::usage(&fs.state, VOLUME).unwrap().unwrap();
    assert_eq!((usage.used_inodes, usage.used_bytes), (1, 0));
    fs.system(reap).unwrap();
}

#[test]
fn nothing_is_found_or_made_in_a_removed_directory() {
    let mut fs = Fs::new();
    let d = fs.dir(Ino::ROOT, "d");
    let f = fs.file(Ino::ROOT, "f");
    fs.open.insert(d);
    fs.rmdir(Ino::ROOT, "d").unwrap();
    assert_eq!(fs.attr(d).nlink, 0);
    assert_eq!(fs.lookup(d, "x"), Err(Errno::ENOENT));
    assert_eq!(fs.make_as(&ROOT, d, "x", NewNode::File, 0o600), Err(Errno::ENOENT));
    assert_eq!(fs.link(f, d, "x"), Err(Errno::ENOENT));
    assert_eq!(fs.rename((Ino::ROOT, "f"), (d, "x")), Err(Errno::ENOENT));
    assert_eq!(fs.list(None, d, 10), Err(Errno::ENOENT));
    fs.open.clear();
    fs.system(SystemRequest::Reap { volume: spec().id, ino: d }).unwrap();
    assert_eq!(fs.make_as(&ROOT, d, "x", NewNode::File, 0o600), Err(Errno::ENOENT));
}

#[test]
fn cookies_stay_right_while_the_directory_changes() {
    let mut fs = Fs::new();
    let names: Vec<String> = (0..40).map(|n| format!("n{n}")).collect();
    for text in &names {
        fs.file(Ino::ROOT, text);
    }
    let whole = fs.list(None, Ino::ROOT, 1000).unwrap();
    assert_eq!(whole[..2], [".", ".."]);
    assert_eq!(whole.len(), 42);
    for limit in [1, 3, 7] {
        assert_eq!(fs.list(None, Ino::ROOT, limit).unwrap(), whole);
    }
    let page = |fs: &Fs, after| match fs.read(
        &ROOT,
        None,
        &Request::ReadDir { dir: Ino::ROOT, after, limit: 12, attrs: true },
    ) {
        Ok(Reply::Entries { entries, .. }) => entries,
        other => panic!("{other:?}"),
    };
    let first = page(&fs, 0);
    assert!(first.iter().all(|entry| entry.attr.as_ref().is_some_and(|attr| attr.ino == entry.ino)));
    for entry in &first[2..] {
        fs.unlink(&ROOT, Ino::ROOT, std::str::from_utf8(&entry.name).unwrap()).unwrap();
    }
    let next: Vec<String> = page(&fs, first[11].cookie)
        .iter()
        .map(|entry| String::from_utf8_lossy(&entry.name).into_owned())
        .collect();
    assert_eq!(next, whole[12..24]);
    assert_eq!(page(&fs, u64::MAX), []);
}

#[test]
fn inode_quota_is_exact() {
    let mut fs = Fs::with(VolumeSpec { max_inodes: Some(3), ..spec() });
    fs.file(Ino::ROOT, "a");
    fs.file(Ino::ROOT, "b");
    assert_eq!(fs.make_as(&ROOT, Ino::ROOT, "c", NewNode::File, 0o600), Err(Errno::EDQUOT));
    fs.unlink(&ROOT, Ino::ROOT, "a").unwrap();
    fs.file(Ino::ROOT, "c");
    match fs.ask(&ROOT, Request::StatFs).unwrap() {
        Reply::StatFs(figures) => assert_eq!((figures.used_inodes, figures.max_inodes), (3, Some(3))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn parents_are_known_and_the_root_is_its_own() {
    let mut fs = Fs::new();
    let d = fs.dir(Ino::ROOT, "d");
    let e = fs.dir(d, "e");
    let parent =
        |fs: &Fs, dir| fs.read(&ROOT, None, &Request::Parent { dir }).map(|reply| attr_in(reply).ino);
    assert_eq!(parent(&fs, e), Ok(d));
    assert_eq!(parent(&fs, Ino::ROOT), Ok(Ino::ROOT));
    fs.root = d;
    assert_eq!(parent(&fs, d), Ok(d));
    let resolve = |path: &[u8]| crate::resolve(&fs.state, VOLUME, None, Ino::ROOT, path).unwrap();
    assert_eq!(resolve(b"/d//./e/").map(|(ino, _)| ino), Some(e));
    assert_eq!(resolve(b"/").map(|(ino, _)| ino), Some(Ino::ROOT));
    assert_eq!(crate::resolve(&fs.state, VOLUME, None, Ino::ROOT, b"d/x").unwrap(), None);
}
