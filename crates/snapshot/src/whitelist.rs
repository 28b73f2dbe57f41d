//! Which programs a server runs for a snapshot. The list is the server's configuration; the check is made on the machine
//! that executes, right before it does, so that nobody who can only talk to the server chooses what runs there.
//!
//! A program counts only under its one true path, and only if nobody but root and the server's own user could have put
//! something else there: a link, or a folder that others may write to, would give that choice away.

use crate::code::SnapshotCode;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The programs that may be run: `whitelist_binpath`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Whitelist(Vec<PathBuf>);

/// A program that was found on a [`Whitelist`], and right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program(PathBuf);

/// Why a path is refused.
#[derive(Debug, thiserror::Error)]
pub enum NotWhitelisted {
    /// Not on the list.
    #[error("{0} is not in whitelist_binpath: add it there on every server, as the same absolute path")]
    NotListed(PathBuf),
    /// No path that could be on a list.
    #[error(
        "'{0}' is not a plain absolute path: write it from / on, without links, '.', '..', doubled or trailing slashes and blanks at its ends"
    )]
    NotPlain(PathBuf),
    /// A link is on the way.
    #[error("{path} is in truth {truly}: put the path without links into whitelist_binpath")]
    Link {
        /// As given.
        path: PathBuf,
        /// Where it leads.
        truly: PathBuf,
    },
    /// No file.
    #[error("{0} is not a regular file: name a program")]
    NotAFile(PathBuf),
    /// Somebody else owns it, or a folder above it.
    #[error(
        "{path} belongs to user {owner}: only root and the server's own user may own a whitelisted program and the folders above it (chown root)"
    )]
    Owner {
        /// The program, or the folder above it.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Others could change it, or replace it.
    #[error(
        "{path} can be written by others than its owner: take that away from a whitelisted program and the folders above it (chmod go-w)"
    )]
    Writable {
        /// The program, or the folder above it.
        path: PathBuf,
    },
    /// It cannot be looked at.
    #[error("cannot look at {path}: {source}; install the program there on every server")]
    Missing {
        /// What.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl NotWhitelisted {
    /// The code that the command ends with, whatever the reason is.
    #[must_use]
    pub const fn code(&self) -> SnapshotCode {
        SnapshotCode::PathNotWhitelisted
    }
}

impl Whitelist {
    /// A list of absolute paths. What could never match is refused here, where it is written.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Result<Whitelist, NotWhitelisted> {
        let plain =
            |path: PathBuf| if is_plain(&path) { Ok(path) } else { Err(NotWhitelisted::NotPlain(path)) };
        Ok(Whitelist(paths.into_iter().map(plain).collect::<Result<_, _>>()?))
    }

    /// The program at `path`, if a server that runs as user `server` may run it.
    pub fn check(&self, path: &Path, server: u32) -> Result<Program, NotWhitelisted> {
        if !is_plain(path) {
            return Err(NotWhitelisted::NotPlain(path.to_owned()));
        }
        if !self.0.iter().any(|listed| listed == path) {
            return Err(NotWhitelisted::NotListed(path.to_owned()));
        }
        let missing = |source| NotWhitelisted::Missing { path: path.to_owned(), source };
        let truly = fs::canonicalize(path).map_err(missing)?;
        if truly != path {
            return Err(NotWhitelisted::Link { path: path.to_owned(), truly });
        }
        for part in path.ancestors() {
            let missing = |source| NotWhitelisted::Missing { path: part.to_owned(), source };
            let meta = fs::symlink_metadata(part).map_err(missing)?;
            if part == path && !meta.is_file() {
                return Err(NotWhitelisted::NotAFile(path.to_owned()));
            }
            guarded(part, &meta, server)?;
        }
        Ok(Program(path.to_owned()))
    }
}

impl Program {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Nobody but root and `server` can change `part`. In a folder with the sticky bit (`/tmp`) others may add names but not
/// take away or replace those of root and `server`, which is all that matters here.
fn guarded(part: &Path, meta: &Metadata, server: u32) -> Result<(), NotWhitelisted> {
    if meta.uid() != 0 && meta.uid() != server {
        return Err(NotWhitelisted::Owner { path: part.to_owned(), owner: meta.uid() });
    }
    let mode = meta.permissions().mode();
    let sticky_folder = meta.is_dir() && mode & 0o1000 != 0;
    match mode & 0o022 != 0 && !sticky_folder {
        true => Err(NotWhitelisted::Writable { path: part.to_owned() }),
        false => Ok(()),
    }
}

/// From `/` on, each part once, nothing that a reader of a configuration could overlook.
fn is_plain(path: &Path) -> bool {
    let Some(text) = path.to_str() else { return false };
    let parts = || text.split('/').skip(1);
    text.starts_with('/')
        && text.trim() == text
        && !text.contains(char::is_control)
        && parts().all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{chown, symlink};
    use tempfile::TempDir;

    fn folder_with_program() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(folder.path()).unwrap().join("snap");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (folder, path)
    }

    fn me() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[track_caller]
    fn refused(list: &[&Path], path: &Path, said: &str) {
        let list = Whitelist::new(list.iter().map(|path| (*path).to_owned())).unwrap();
        let error = list.check(path, me()).expect_err("it must be refused");
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(error.code().number(), 2505);
    }

    #[test]
    fn a_listed_program_of_ones_own_may_run() {
        let (_folder, path) = folder_with_program();
        let list = Whitelist::new([PathBuf::from("/bin/other"), path.clone()]).unwrap();
        assert_eq!(list.check(&path, me()).unwrap().path(), path);
    }

    #[test]
    fn another_spelling_of_a_listed_path_is_refused() {
        let (folder, path) = folder_with_program();
        fs::create_dir(folder.path().join("sub")).unwrap();
        let spelled = |text: String| PathBuf::from(text);
        let shown = path.to_str().unwrap();
        let parent = path.parent().unwrap().to_str().unwrap();
        for other in [
            spelled(format!("{shown} ")),
            spelled(format!(" {shown}")),
            spelled(format!("{shown}/")),
            spelled(format!("{shown}\n")),
            spelled(format!("/{shown}")),
            spelled(format!("\"{shown}\"")),
            spelled(format!("'{shown}'")),
            spelled(format!("{parent}/./snap")),
            spelled(format!("{parent}/sub/../snap")),
            spelled("snap".to_owned()),
            spelled(String::new()),
        ] {
            refused(&[&path], &other, "is not a plain absolute path");
            assert!(Whitelist::new([other.clone()]).is_err(), "{other:?} on the list");
        }
        for other in [format!("{shown}\""), format!("{shown}'"), format!("{shown};id"), format!("{shown} -x")]
        {
            refused(&[&path], Path::new(&other), "is not in whitelist_binpath");
        }
        refused(&[], &path, "is not in whitelist_binpath");
        refused(&[path.parent().unwrap()], &path, "is not in whitelist_binpath");
    }

    #[test]
    fn links_folders_and_what_is_missing_are_refused_also_when_listed() {
        let (folder, path) = folder_with_program();
        let link = path.with_file_name("link");
        symlink(&path, &link).unwrap();
        refused(&[&link], &link, "is in truth");
        let linked_folder = path.with_file_name("folder");
        symlink(folder.path(), &linked_folder).unwrap();
        let through = linked_folder.join("snap");
        refused(&[&through], &through, "is in truth");
        refused(&[path.parent().unwrap()], path.parent().unwrap(), "is not a regular file");
        let missing = path.with_file_name("missing");
        refused(&[&missing], &missing, "cannot look at");
    }

    #[test]
    fn what_others_could_have_put_there_is_refused() {
        let (_folder, path) = folder_with_program();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for bad in [0o775, 0o757, 0o1757] {
            mode(&path, bad);
            refused(&[&path], &path, "can be written by others");
        }
        mode(&path, 0o755);
        let parent = path.parent().unwrap();
        mode(parent, 0o770);
        refused(&[&path], &path, "can be written by others");
        mode(parent, 0o1777);
        Whitelist::new([path.clone()])
            .unwrap()
            .check(&path, me())
            .expect("a sticky folder keeps ours in place");
        mode(parent, 0o700);
        assert!(rustix::process::geteuid().is_root(), "this test gives files away: run it as root");
        chown(&path, Some(12345), None).unwrap();
        refused(&[&path], &path, "belongs to user 12345");
        Whitelist::new([path.clone()])
            .unwrap()
            .check(&path, 12345)
            .expect("the server's own user may own it");
        chown(&path, Some(0), None).unwrap();
        chown(parent, Some(12345), None).unwrap();
        refused(&[&path], &path, "belongs to user 12345");
    }
}
