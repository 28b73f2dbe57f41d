use super::*;
use chronofs_core::FileKind;

#[test]
fn a_rename_moves_a_file_and_changes_its_ctime() {
    let mut fs = Fs::new();
    let d = fs.dir(Ino::ROOT, "d");
    let f = fs.file(Ino::ROOT, "f");
    fs.rename((Ino::ROOT, "f"), (d, "g")).unwrap();
    assert_eq!((fs.lookup(Ino::ROOT, "f"), fs.lookup(d, "g")), (Err(Errno::ENOENT), Ok(f)));
    let now_ns = fs.version as i64;
    for ino in [d, Ino::ROOT] {
        assert_eq!((fs.attr(ino).mtime_ns, fs.attr(ino).ctime_ns), (now_ns, now_ns));
    }
    assert_eq!(fs.attr(f).ctime_ns, now_ns);
}

#[test]
fn a_replaced_file_loses_a_link_and_gets_a_ctime() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    let g = fs.file(Ino::ROOT, "g");
    fs.link(g, Ino::ROOT, "h").unwrap();
    fs.rename((Ino::ROOT, "f"), (Ino::ROOT, "g")).unwrap();
    assert_eq!((fs.lookup(Ino::ROOT, "g"), fs.lookup(Ino::ROOT, "h")), (Ok(f), Ok(g)));
    assert_eq!((fs.attr(g).nlink, fs.attr(g).ctime_ns), (1, fs.version as i64));
    fs.rename((Ino::ROOT, "h"), (Ino::ROOT, "g")).unwrap();
    assert_eq!(fs.read(&ROOT, None, &Request::GetAttr { ino: f }), Err(Errno::ENOENT));
}

#[test]
fn two_names_of_one_inode_stay_as_they_are() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    fs.link(f, Ino::ROOT, "g").unwrap();
    let before = fs.attr(f);
    for mode in [RenameMode::Replace, RenameMode::Exchange] {
        fs.rename_as(&ROOT, (Ino::ROOT, "f"), (Ino::ROOT, "g"), mode).unwrap();
    }
    fs.rename((Ino::ROOT, "f"), (Ino::ROOT, "f")).unwrap();
    assert_eq!(fs.attr(f), before);
    assert_eq!(fs.list(None, Ino::ROOT, 9).unwrap().len(), 4);
}

#[test]
fn a_further_link_moves_without_the_first() {
    let mut fs = Fs::new();
    let d = fs.dir(Ino::ROOT, "d");
    let f = fs.file(Ino::ROOT, "f");
    fs.link(f, Ino::ROOT, "g").unwrap();
    fs.rename((Ino::ROOT, "g"), (d, "g")).unwrap();
    fs.rename((Ino::ROOT, "f"), (d, "f")).unwrap();
    assert_eq!((fs.lookup(d, "f"), fs.lookup(d, "g"), fs.attr(f).nlink), (Ok(f), Ok(f), 2));
}

#[test]
fn directories_are_replaced_only_when_empty_and_only_by_directories() {
    let mut fs = Fs::new();
    let (a, b) = (fs.dir(Ino::ROOT, "a"), fs.dir(Ino::ROOT, "b"));
    fs.file(b, "x");
    fs.file(Ino::ROOT, "f");
    let root = Ino::ROOT;
    assert_eq!(fs.rename((root, "a"), (root, "b")), Err(Errno::ENOTEMPTY));
    assert_eq!(fs.rename((root, "a"), (root, "f")), Err(Errno::ENOTDIR));
    assert_eq!(fs.rename((root, "f"), (root, "a")), Err(Errno::EISDIR));
    fs.rename((root, "b"), (root, "a")).unwrap();
    assert_eq!((fs.lookup(root, "a"), fs.attr(root).nlink), (Ok(b), 3));
    assert_eq!(fs.read(&ROOT, None, &Request::GetAttr { ino: a }), Err(Errno::ENOENT));
}

#[test]
fn no_directory_comes_to_lie_in_itself() {
    let mut fs = Fs::new();
    let a = fs.dir(Ino::ROOT, "a");
    let b = fs.dir(a, "b");
    let c = fs.dir(b, "c");
    assert_eq!(fs.rename((Ino::ROOT, "a"), (c, "a")), Err(Errno::EINVAL));
    assert_eq!(fs.rename((Ino::ROOT, "a"), (a, "a")), Err(Errno::EINVAL));
    assert_eq!(fs.rename((b, "c"), (Ino::ROOT, "a")), Err(Errno::ENOTEMPTY));
    let exchange = RenameMode::Exchange;
    assert_eq!(fs.rename_as(&ROOT, (b, "c"), (Ino::ROOT, "a"), exchange), Err(Errno::EINVAL));
    assert_eq!(fs.rename_as(&ROOT, (Ino::ROOT, "a"), (b, "c"), exchange), Err(Errno::EINVAL));
}

#[test]
fn a_moved_directory_takes_its_parent_link_along() {
    let mut fs = Fs::new();
    let (a, b) = (fs.dir(Ino::ROOT, "a"), fs.dir(Ino::ROOT, "b"));
    let c = fs.dir(a, "c");
    fs.rename((a, "c"), (b, "c")).unwrap();
    assert_eq!((fs.attr(a).nlink, fs.attr(b).nlink), (2, 3));
    let parent = fs.ask(&ROOT, Request::Parent { dir: c }).map(attr_in).unwrap();
    assert_eq!((parent.ino, fs.attr(c).ctime_ns), (b, fs.version as i64));
}

#[test]
fn flags_are_obeyed() {
    let mut fs = Fs::new();
    let root = Ino::ROOT;
    let d = fs.dir(root, "d");
    let e = fs.dir(d, "e");
    let f = fs.file(root, "f");
    let no_replace = RenameMode::NoReplace;
    assert_eq!(fs.rename_as(&ROOT, (root, "f"), (d, "e"), no_replace), Err(Errno::EEXIST));
    assert_eq!(fs.rename_as(&ROOT, (root, "f"), (d, "x"), RenameMode::Exchange), Err(Errno::ENOENT));
    fs.rename_as(&ROOT, (root, "f"), (d, "e"), RenameMode::Exchange).unwrap();
    assert_eq!((fs.lookup(root, "f"), fs.lookup(d, "e")), (Ok(e), Ok(f)));
    assert_eq!((fs.attr(root).nlink, fs.attr(d).nlink, fs.attr(d).size), (4, 2, 1));
    fs.rename_as(&ROOT, (d, "e"), (root, "g"), RenameMode::Whiteout).unwrap();
    let left = fs.attr(fs.lookup(d, "e").unwrap());
    assert_eq!((left.kind, left.rdev, left.mode), (FileKind::Char, 0, 0));
    assert_eq!((fs.lookup(root, "g"), fs.attr(d).size), (Ok(f), 1));
    fs.rename_as(&ROOT, (root, "g"), (root, "h"), no_replace).unwrap();
    assert_eq!(fs.lookup(root, "h"), Ok(f));
}

#[test]
fn rights_on_both_directories_are_needed() {
    let mut fs = Fs::new();
    let (a, b) = (fs.dir(Ino::ROOT, "a"), fs.dir(Ino::ROOT, "b"));
    let me = user(5);
    fs.chown(&ROOT, a, 5, 5).unwrap();
    fs.make_as(&me, a, "f", NewNode::File, 0o600).unwrap();
    let sub = fs.make_as(&me, a, "sub", NewNode::Dir, 0o700).unwrap().ino;
    let replace = RenameMode::Replace;
    assert_eq!(fs.rename_as(&me, (a, "f"), (b, "f"), replace), Err(Errno::EACCES));
    fs.chmod(&ROOT, b, 0o777).unwrap();
    fs.rename_as(&me, (a, "f"), (b, "f"), replace).unwrap();
    fs.chown(&ROOT, sub, 6, 6).unwrap();
    assert_eq!(fs.rename_as(&me, (a, "sub"), (b, "sub"), replace), Err(Errno::EACCES), "its .. would change");
    fs.rename_as(&me, (a, "sub"), (a, "sub2"), replace).unwrap();
    fs.chmod(&ROOT, b, 0o1777).unwrap();
    assert_eq!(fs.rename_as(&user(7), (b, "f"), (b, "g"), replace), Err(Errno::EPERM), "sticky");
}
