use super::*;
use chronofs_core::ops::XattrMode;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn set(
    fs: &mut Fs,
    caller: &Caller,
    ino: Ino,
    key: &str,
    value: &[u8],
    mode: XattrMode,
) -> Result<Reply, Errno> {
    let (name, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value));
    fs.ask(caller, Request::SetXattr { ino, name, value, mode })
}

fn get(fs: &Fs, caller: &Caller, ino: Ino, key: &str) -> Result<Vec<u8>, Errno> {
    let request = Request::GetXattr { ino, name: Bytes::copy_from_slice(key.as_bytes()) };
    match fs.read(caller, None, &request)? {
        Reply::Bytes(bytes) => Ok(bytes.to_vec()),
        other => panic!("{other:?}"),
    }
}

fn remove(fs: &mut Fs, caller: &Caller, ino: Ino, key: &str) -> Result<Reply, Errno> {
    fs.ask(caller, Request::RemoveXattr { ino, name: Bytes::copy_from_slice(key.as_bytes()) })
}

fn list(fs: &Fs, caller: &Caller, ino: Ino) -> Vec<String> {
    let Ok(Reply::Names(names)) = fs.read(caller, None, &Request::ListXattr { ino }) else { panic!() };
    let mut names: Vec<_> = names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    names.sort();
    names
}

/// The bytes of an ACL of (tag, permissions, id).
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut out = vec![2, 0, 0, 0];
    for (tag, perm, id) in entries {
        out.extend(tag.to_le_bytes());
        out.extend(perm.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    out
}

/// rwx for the owner, `named` for user 9, r-x for the group, `mask`, nothing for others.
fn acl_for_9(named: u16, mask: u16) -> Vec<u8> {
    acl(&[(1, 7, !0), (2, named, 9), (4, 5, !0), (0x10, mask, !0), (0x20, 0, !0)])
}

#[test]
fn attributes_are_made_replaced_listed_and_removed() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    assert_eq!(set(&mut fs, &ROOT, f, "user.a", b"1", XattrMode::Replace), Err(Errno::ENODATA));
    set(&mut fs, &ROOT, f, "user.a", b"1", XattrMode::Create).unwrap();
    assert_eq!(fs.attr(f).ctime_ns, fs.version as i64);
    assert_eq!(set(&mut fs, &ROOT, f, "user.a", b"2", XattrMode::Create), Err(Errno::EEXIST));
    set(&mut fs, &ROOT, f, "user.a", b"2", XattrMode::Any).unwrap();
    set(&mut fs, &ROOT, f, "trusted.t", b"", XattrMode::Any).unwrap();
    assert_eq!(get(&fs, &ROOT, f, "user.a"), Ok(b"2".to_vec()));
    assert_eq!(list(&fs, &ROOT, f), ["trusted.t", "user.a"]);
    assert_eq!(list(&fs, &user(5), f), ["user.a"]);
    remove(&mut fs, &ROOT, f, "user.a").unwrap();
    assert_eq!(get(&fs, &ROOT, f, "user.a"), Err(Errno::ENODATA));
    assert_eq!(remove(&mut fs, &ROOT, f, "user.a"), Err(Errno::ENODATA));
    fs.unlink(&ROOT, Ino::ROOT, "f").unwrap();
}

#[test]
fn names_and_values_have_limits() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    let long = format!("user.{}", "x".repeat(251));
    for (key, errno) in [
        ("", Errno::ERANGE),
        (long.as_str(), Errno::ERANGE),
        ("user.", Errno::EINVAL),
        ("plain", Errno::EOPNOTSUPP),
        ("system.other", Errno::EOPNOTSUPP),
    ] {
        assert_eq!(set(&mut fs, &ROOT, f, key, b"", XattrMode::Any), Err(errno), "{key}");
    }
    set(&mut fs, &ROOT, f, &long[..255], &[7; 64 << 10], XattrMode::Any).unwrap();
    assert_eq!(set(&mut fs, &ROOT, f, "user.a", &[7; (64 << 10) + 1], XattrMode::Any), Err(Errno::E2BIG));
}

#[test]
fn name_spaces_have_their_own_rules() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    let l = fs.make_as(&ROOT, Ino::ROOT, "l", NewNode::Symlink(Bytes::from_static(b"f")), 0).unwrap().ino;
    let any = XattrMode::Any;
    let me = user(5);
    assert_eq!(set(&mut fs, &me, f, "user.a", b"", any), Err(Errno::EACCES));
    assert_eq!(set(&mut fs, &me, f, "trusted.a", b"", any), Err(Errno::EPERM));
    assert_eq!(set(&mut fs, &me, f, "security.a", b"", any), Err(Errno::EPERM));
    assert_eq!(set(&mut fs, &me, f, ACCESS, &acl_for_9(7, 7), any), Err(Errno::EPERM));
    assert_eq!(set(&mut fs, &ROOT, l, "user.a", b"", any), Err(Errno::EPERM));
    assert_eq!(set(&mut fs, &ROOT, l, ACCESS, &acl_for_9(7, 7), any), Err(Errno::EOPNOTSUPP));
    assert_eq!(get(&fs, &ROOT, l, "user.a"), Err(Errno::ENODATA));
    set(&mut fs, &ROOT, l, "trusted.a", b"t", any).unwrap();
    assert_eq!(get(&fs, &me, l, "trusted.a"), Err(Errno::ENODATA));
    set(&mut fs, &ROOT, f, "security.s", b"s", any).unwrap();
    assert_eq!(get(&fs, &me, f, "security.s"), Ok(b"s".to_vec()));
    set(&mut fs, &ROOT, f, "user.a", b"u", any).unwrap();
    fs.chmod(&ROOT, f, 0o600).unwrap();
    assert_eq!(get(&fs, &me, f, "user.a"), Err(Errno::EACCES));
    let d = fs.dir(Ino::ROOT, "d");
    fs.chmod(&ROOT, d, 0o1777).unwrap();
    assert_eq!(set(&mut fs, &me, d, "user.a", b"", any), Err(Errno::EPERM), "sticky");
}

#[test]
fn an_acl_and_the_mode_keep_in_step() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    set(&mut fs, &ROOT, f, ACCESS, &acl_for_9(6, 6), XattrMode::Any).unwrap();
    assert_eq!(fs.attr(f).mode, 0o760);
    let may = |fs: &Fs, uid, mask| fs.read(&user(uid), None, &Request::Access { ino: f, mask }).is_ok();
    assert!(may(&fs, 9, 6) && !may(&fs, 9, 1) && !may(&fs, 8, 4));
    fs.chmod(&ROOT, f, 0o640).unwrap();
    assert!(may(&fs, 9, 4) && !may(&fs, 9, 2));
    assert_eq!(
        get(&fs, &ROOT, f, ACCESS),
        Ok(acl(&[(1, 6, !0), (2, 6, 9), (4, 5, !0), (0x10, 4, !0), (0x20, 0, !0)]))
    );
    set(&mut fs, &ROOT, f, ACCESS, &acl(&[(1, 6, !0), (4, 4, !0), (0x20, 4, !0)]), XattrMode::Any).unwrap();
    assert_eq!((fs.attr(f).mode, list(&fs, &ROOT, f).len()), (0o644, 0), "a minimal ACL is a mode");
    assert_eq!(set(&mut fs, &ROOT, f, ACCESS, b"junk", XattrMode::Any), Err(Errno::EOPNOTSUPP));
    assert_eq!(set(&mut fs, &ROOT, f, ACCESS, &[2, 0, 0, 0, 1], XattrMode::Any), Err(Errno::EINVAL));
    assert_eq!(set(&mut fs, &ROOT, f, DEFAULT, &acl_for_9(7, 7), XattrMode::Any), Err(Errno::EACCES));
    set(&mut fs, &ROOT, f, ACCESS, &[2, 0, 0, 0], XattrMode::Any).unwrap();
}

#[test]
fn default_acls_are_handed_down_in_place_of_the_umask() {
    let mut fs = Fs::new();
    let d = fs.dir(Ino::ROOT, "d");
    set(&mut fs, &ROOT, d, DEFAULT, &acl_for_9(7, 7), XattrMode::Any).unwrap();
    let make = |fs: &mut Fs, text: &str, node, mode| {
        let request = Request::Create {
            parent: d,
            name: name(text),
            node,
            mode,
            umask: 0o077,
            open: false,
            exclusive: true,
        };
        attr_in(fs.ask(&ROOT, request).unwrap())
    };
    let f = make(&mut fs, "f", NewNode::File, 0o666);
    assert_eq!((f.mode, list(&fs, &ROOT, f.ino)), (0o660, vec![ACCESS.to_owned()]));
    assert!(fs.read(&user(9), None, &Request::Access { ino: f.ino, mask: 6 }).is_ok());
    let e = make(&mut fs, "e", NewNode::Dir, 0o777);
    assert_eq!((e.mode, list(&fs, &ROOT, e.ino)), (0o770, vec![ACCESS.to_owned(), DEFAULT.to_owned()]));
    let l = make(&mut fs, "l", NewNode::Symlink(Bytes::from_static(b"x")), 0);
    assert_eq!((l.mode, list(&fs, &ROOT, l.ino).len()), (0o777, 0));
    remove(&mut fs, &ROOT, d, DEFAULT).unwrap();
    assert_eq!(make(&mut fs, "g", NewNode::File, 0o666).mode, 0o600);
}

#[test]
fn capabilities_go_with_content_and_owner() {
    let mut fs = Fs::new();
    let f = fs.file(Ino::ROOT, "f");
    let cap = "security.capability";
    set(&mut fs, &ROOT, f, cap, b"cap", XattrMode::Any).unwrap();
    fs.chown(&ROOT, f, 5, 5).unwrap();
    assert_eq!(get(&fs, &ROOT, f, cap), Err(Errno::ENODATA));
    set(&mut fs, &ROOT, f, cap, b"cap", XattrMode::Any).unwrap();
    fs.set(&ROOT, f, SetAttr { size: Some(1), kill_priv: true, ..SetAttr::default() }).unwrap();
    assert_eq!(list(&fs, &ROOT, f).len(), 0);
}
