//! Makes a tree that looks like what people have, made of what is on the machine (/usr/include, /usr/share) and of
//! what is rare but legal: hard links, dangling symlinks, xattrs, sparse files, deep folders, odd names.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use crate::rng::Rng;

/// Where real files come from.
const SOURCES: [&str; 2] = ["/usr/include", "/usr/share"];
/// Larger real files are left out: the tree is about names, not about bytes.
const REAL_FILE_MAX_BYTES: u64 = 256 << 10;
/// How deep the deepest folder lies.
const DEPTH: usize = 40;

/// Makes `entries` names (files, folders, links) under `root`, which must be an empty folder.
pub fn generate(root: &Path, entries: usize, rng: &mut Rng) -> io::Result<()> {
    let mut maker = Maker { root: root.to_owned(), dirs: vec![root.to_owned()], files: Vec::new(), made: 0 };
    maker.odd_names()?;
    maker.deep_folders()?;
    maker.special_files(rng)?;
    let real = real_files(entries);
    let mut next_real = real.iter();
    while maker.made < entries {
        match rng.below(100) {
            0..8 => maker.folder(rng)?,
            8..14 => maker.hard_link(rng)?,
            14..22 => maker.symlink(rng)?,
            22..25 => maker.sparse_file(rng)?,
            25..50 => maker.synthetic_file(rng)?,
            _ => match next_real.next() {
                Some(path) => maker.real_file(path, rng)?,
                None => maker.synthetic_file(rng)?,
            },
        }
    }
    maker.folder_times(rng)
}

/// Regular files of the machine, in a fixed order, at most `max`.
fn real_files(max: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = SOURCES.iter().rev().map(PathBuf::from).collect();
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            match entry.file_type() {
                Ok(t) if t.is_dir() => open.push(entry.path()),
                Ok(t) if t.is_file() && entry.metadata().is_ok_and(|m| m.len() <= REAL_FILE_MAX_BYTES) => {
                    found.push(entry.path());
                }
                _ => {}
            }
            if found.len() >= max {
                return found;
            }
        }
    }
    found
}

struct Maker {
    root: PathBuf,
    dirs: Vec<PathBuf>,
    files: Vec<PathBuf>,
    made: usize,
}

impl Maker {
    fn odd_names(&mut self) -> io::Result<()> {
        let dir = self.root.join("odd names");
        self.add_dir(dir.clone())?;
        let long = [b'x'; 255];
        let long_wide = "\u{20ac}".repeat(85);
        let names: [&[u8]; 14] = [
            b"not utf-8 \xff\xfe\x80",
            b"a\nnew line",
            b"tab\tand\x07bell",
            b" space first and last ",
            b"-rf",
            b"*?[a]",
            b"'\"`$(false)`\\",
            b"...",
            b".hidden",
            b"CON",
            "\u{e9} composed".as_bytes(),
            "e\u{301} decomposed".as_bytes(),
            &long,
            long_wide.as_bytes(),
        ];
        for name in names {
            self.add_file(dir.join(OsStr::from_bytes(name)), name)?;
        }
        Ok(())
    }

    fn deep_folders(&mut self) -> io::Result<()> {
        let mut dir = self.root.clone();
        for level in 0..DEPTH {
            dir.push(format!("level {level}"));
            self.add_dir(dir.clone())?;
        }
        self.add_file(dir.join("bottom"), b"of the well")
    }

    fn special_files(&mut self, rng: &mut Rng) -> io::Result<()> {
        let dir = self.root.join("special");
        self.add_dir(dir.clone())?;
        let mode = rustix::fs::Mode::from_raw_mode(0o640);
        let at = rustix::fs::CWD;
        rustix::fs::mknodat(at, dir.join("fifo"), rustix::fs::FileType::Fifo, mode, 0)?;
        rustix::fs::mknodat(at, dir.join("socket"), rustix::fs::FileType::Socket, mode, 0)?;
        let null = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(at, dir.join("null"), rustix::fs::FileType::CharacterDevice, mode, null)?;
        self.made += 3;
        let suid = dir.join("set-id");
        self.add_file(suid.clone(), b"set-id bits")?;
        fs::set_permissions(&suid, fs::Permissions::from_mode(0o6755))?;
        let empty = dir.join("empty");
        self.add_file(empty, b"")?;
        let sticky = dir.join("sticky");
        self.add_dir(sticky.clone())?;
        fs::set_permissions(&sticky, fs::Permissions::from_mode(0o1777))?;
        let acl = dir.join("acl");
        self.add_file(acl.clone(), b"more than nine bits of rights")?;
        set_xattr(&acl, "system.posix_acl_access", &acl_for_user(rng.between(1, 70_000) as u32))?;
        let inherited = dir.join("acl for what comes");
        self.add_dir(inherited.clone())?;
        set_xattr(&inherited, "system.posix_acl_default", &acl_for_user(rng.between(1, 70_000) as u32))?;
        let big = dir.join("several blocks");
        let len = (9 << 20) + rng.below(1 << 20) as usize;
        self.add_file(big, &rng.bytes(len))
    }

    fn add_dir(&mut self, path: PathBuf) -> io::Result<()> {
        fs::create_dir(&path)?;
        self.dirs.push(path);
        self.made += 1;
        Ok(())
    }

    fn add_file(&mut self, path: PathBuf, content: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path)?;
        file.write_all(content)?;
        self.files.push(path);
        self.made += 1;
        Ok(())
    }

    /// A new path in a random folder.
    fn new_path(&self, stem: &str, rng: &mut Rng) -> PathBuf {
        rng.pick(&self.dirs).join(format!("{stem}-{}", self.made))
    }

    fn folder(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.new_path("folder", rng);
        self.add_dir(path.clone())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(*rng.pick(&[0o755, 0o700, 0o2775, 0o777])))
    }

    fn hard_link(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.new_path("hard", rng);
        fs::hard_link(rng.pick(&self.files), path)?;
        self.made += 1;
        Ok(())
    }

    fn symlink(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.new_path("sym", rng);
        let target = match rng.below(3) {
            0 => PathBuf::from(format!("../nowhere/{}", rng.below(1000))),
            1 => PathBuf::from("t/".repeat(1 + rng.below(700) as usize)),
            _ => rng.pick(&self.files).strip_prefix(&self.root).map(Path::to_owned).unwrap_or_default(),
        };
        symlink(target, path)?;
        self.made += 1;
        Ok(())
    }

    fn sparse_file(&mut self, rng: &mut Rng) -> io::Result<()> {
        let path = self.new_path("sparse", rng);
        let file = File::create_new(&path)?;
        let size = rng.between(1, 24 << 20);
        for _ in 0..rng.between(0, 4) {
            let len = rng.between(1, 20_000) as usize;
            file.write_all_at(&rng.bytes(len), rng.below(size))?;
        }
        let reached = file.metadata()?.len();
        file.set_len(size.max(reached))?;
        self.files.push(path.clone());
        self.made += 1;
        dress(&path, rng)
    }

    fn synthetic_file(&mut self, rng: &mut Rng) -> io::Result<()> {
        let len = match rng.below(10) {
            0 => 0,
            1..5 => rng.below(500),
            5..9 => rng.below(20_000),
            _ => rng.below(300_000),
        };
        let path = self.new_path("file", rng);
        self.add_file(path.clone(), &rng.bytes(len as usize))?;
        dress(&path, rng)
    }

    fn real_file(&mut self, from: &Path, rng: &mut Rng) -> io::Result<()> {
        let name = from.file_name().unwrap_or_default();
        let mut path = rng.pick(&self.dirs).join(name);
        if fs::symlink_metadata(&path).is_ok() {
            path = self.new_path("real", rng);
        }
        self.add_file(path.clone(), &fs::read(from)?)?;
        dress(&path, rng)
    }

    /// Folders get their times last: every new name had changed them.
    fn folder_times(&self, rng: &mut Rng) -> io::Result<()> {
        self.dirs.iter().try_for_each(|dir| set_random_mtime(dir, rng))
    }
}

/// A POSIX ACL as the kernel takes it: rw for the owner, r for user `uid`, the group and the mask, nothing for others.
fn acl_for_user(uid: u32) -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    let entries: [(u16, u16, u32); 5] =
        [(0x01, 6, NO_ID), (0x02, 4, uid), (0x04, 4, NO_ID), (0x10, 4, NO_ID), (0x20, 0, NO_ID)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        acl.extend(tag.to_le_bytes());
        acl.extend(rights.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// Gives a file a random mode, owner, time and some xattrs.
fn dress(path: &Path, rng: &mut Rng) -> io::Result<()> {
    if rng.one_in(4) {
        for n in 0..rng.between(1, 4) {
            let len = rng.below(200) as usize;
            set_xattr(path, &format!("user.chronofs.{n}"), &rng.bytes(len))?;
        }
    }
    if rng.one_in(5) {
        let (uid, gid) = (rng.below(70_000) as u32, rng.below(70_000) as u32);
        std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
    }
    fs::set_permissions(
        path,
        fs::Permissions::from_mode(*rng.pick(&[0o644, 0o600, 0o755, 0o444, 0o000, 0o4711])),
    )?;
    set_random_mtime(path, rng)
}

/// Sets an xattr; where the file system has none the test cannot run, and says so.
pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    xattr::set(path, name, value)
        .map_err(|e| io::Error::new(e.kind(), format!("setting xattr {name} of {}: {e}", path.display())))
}

/// Between 1973 and 2033, with nanoseconds.
fn set_random_mtime(path: &Path, rng: &mut Rng) -> io::Result<()> {
    let time =
        UNIX_EPOCH + Duration::new(rng.between(100_000_000, 2_000_000_000), rng.below(1_000_000_000) as u32);
    let dir = File::open(path)?;
    dir.set_times(fs::FileTimes::new().set_modified(time).set_accessed(time))
}

/// All files under `dir`; none of a folder that is gone by then.
pub fn files_under(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files_under(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}
