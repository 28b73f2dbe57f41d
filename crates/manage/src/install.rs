//! Puts an executable in the place of another: whole or not at all, the old one kept beside it.
//!
//! The new one is written as `.NAME.new` in the folder where it goes, and tried out there. What is at `NAME` is at every moment
//! the old one or the new one, and the old one stays as `NAME.old`. One at a time: the folder is locked meanwhile. What does not
//! come to its end is removed; what a process that was killed left there is removed by the next one.

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// An executable says what version it is within this time.
const SAYS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// The longest answer.
const SAID_MAX: u64 = 4096;

/// An executable on its way to its place.
pub struct Installing {
    target: PathBuf,
    new: PathBuf,
    file: Option<File>,
    /// Held for as long as this goes on.
    _alone: File,
}

/// An executable in its place.
#[derive(Clone, Debug)]
pub struct Installed {
    target: PathBuf,
    old: Option<PathBuf>,
}

impl Installing {
    /// Begins to put an executable at `target`, where there is nothing or an executable of chronofs.
    ///
    /// # Errors
    /// Something else is there, the folder cannot be written, or another installs there.
    pub fn begin(target: &Path) -> Result<Installing> {
        let target = place_of(target)?;
        if target.try_exists().with_context(|| format!("cannot look at {}", target.display()))? {
            version_of(&target).with_context(|| {
                format!(
                    "what is at {} is not known as chronofs, and is not replaced; move it away, or name another place with --to",
                    target.display()
                )
            })?;
        }
        let (folder, name) = parts(&target)?;
        let shown = folder.display();
        let alone = File::open(folder).with_context(|| format!("cannot open folder {shown}"))?;
        match flock(&alone, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                bail!("another installs into {shown} at this moment; try again when it is done")
            }
            locked => locked.with_context(|| format!("cannot lock folder {shown}"))?,
        }
        let new = folder.join(format!(".{name}.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", new.display()));
            }
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
        let file = Some(file.with_context(|| format!("cannot write {}", new.display()))?);
        Ok(Installing { target, new, file, _alone: alone })
    }

    /// The bytes that come next.
    ///
    /// # Errors
    /// They cannot be written; the message says where.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Err(ErrorKind::InvalidInput.into()) };
        file.write_all(bytes).map_err(|error| full(&self.new, error))
    }

    /// Checks that the executable runs on this machine as `version`, and puts it in its place. Nothing is changed if it does not.
    ///
    /// # Errors
    /// It does not run, or cannot be put there.
    pub fn finish(mut self, version: &str) -> Result<Installed> {
        let shown = self.target.display().to_string();
        let old = match fs::metadata(&self.target) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            old => Some(old.with_context(|| format!("cannot look at {shown}"))?),
        };
        if let Some(file) = self.file.take() {
            if let Some(old) = &old {
                fchown(&file, Some(old.uid()), Some(old.gid()))
                    .with_context(|| format!("cannot give the new executable the owner of {shown}"))?;
            }
            let mode = old.as_ref().map_or(0o755, |old| old.mode() & 0o777);
            file.set_permissions(Permissions::from_mode(mode | 0o100))
                .and_then(|()| file.sync_all())
                .map_err(|error| full(&self.new, error))?;
            // No file is run that somebody can write.
        }
        let says = version_of(&self.new)
            .context("the new executable does not run on this machine; nothing was changed")?;
        if says != version {
            bail!("the new executable says that it is version {says} and not {version}; nothing was changed");
        }
        let kept = old.is_some().then(|| self.keep_old()).transpose()?;
        fs::rename(&self.new, &self.target).with_context(|| format!("cannot replace {shown}"))?;
        sync_folder(&self.target)?;
        Ok(Installed { target: self.target.clone(), old: kept })
    }

    /// The old one under its other name, beside the first: what was kept before goes.
    fn keep_old(&self) -> Result<PathBuf> {
        let (folder, name) = parts(&self.target)?;
        let (beside, old) = (folder.join(format!(".{name}.old")), folder.join(format!("{name}.old")));
        let kept = match fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => fs::hard_link(&self.target, &beside).and_then(|()| fs::rename(&beside, &old)),
        };
        kept.with_context(|| {
            format!("cannot keep {} as {}; nothing was changed", self.target.display(), old.display())
        })?;
        sync_folder(&self.target)?;
        // Two names of one file are not renamed over each other: then the first is left.
        let _ = fs::remove_file(&beside);
        Ok(old)
    }
}

impl Drop for Installing {
    fn drop(&mut self) {
        // It is gone if it is in its place; if this fails the next one removes it.
        let _ = fs::remove_file(&self.new);
    }
}

impl Installed {
    /// Where it is.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Where the one before is, if there was one.
    pub fn old(&self) -> Option<&Path> {
        self.old.as_deref()
    }

    /// Puts the one before in its place again.
    ///
    /// # Errors
    /// There was none, or it cannot be put there.
    pub fn go_back(&self) -> Result<()> {
        let shown = self.target.display();
        let Some(old) = &self.old else {
            bail!("there was nothing at {shown} before, so there is nothing to go back to")
        };
        fs::rename(old, &self.target)
            .with_context(|| format!("cannot put {} back as {shown}", old.display()))?;
        sync_folder(&self.target)
    }
}

/// The version that an executable says it is, when it is asked as every chronofs can be asked.
///
/// # Errors
/// It cannot be run, somebody else could have put it there, or it is something else.
pub fn version_of(path: &Path) -> Result<String> {
    let shown = path.display();
    let path = std::path::absolute(path).with_context(|| format!("cannot find {shown}"))?;
    must_be_safe_to_run(&path)?;
    let mut command = Command::new(&path);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let begun = Instant::now();
    let mut child = loop {
        match command.spawn() {
            // Who began a process while it was written has it open for a moment, until that process runs its own program.
            Err(busy) if busy.kind() == ErrorKind::ExecutableFileBusy && begun.elapsed() < SAYS_WITHIN => {
                sleep(LOOK_EVERY);
            }
            spawned => break spawned.with_context(|| format!("cannot run {shown} --version"))?,
        }
    };
    let ended = loop {
        match child.try_wait().with_context(|| format!("cannot wait for {shown}"))? {
            Some(ended) => break ended,
            None if begun.elapsed() < SAYS_WITHIN => sleep(LOOK_EVERY),
            None => {
                // It ends or it does not: nobody waits for it any longer.
                let _ = child.kill();
                let _ = child.wait();
                bail!("{shown} --version does not end");
            }
        }
    };
    let mut said = String::new();
    if let Some(out) = child.stdout.take() {
        // What it says is less than a pipe holds, or is not what is expected.
        let _ = out.take(SAID_MAX).read_to_string(&mut said);
    }
    match said.trim().strip_prefix("chronofs ").filter(|_| ended.success()) {
        Some(version) if !version.contains(char::is_whitespace) => Ok(version.to_owned()),
        _ => bail!("{shown} --version does not say which chronofs it is ({ended})"),
    }
}

/// Root runs what is there: nobody but root and who asks may have written it, or be able to put another in its place.
fn must_be_safe_to_run(path: &Path) -> Result<()> {
    const STICKY: u32 = 0o1000;
    let real = fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))?;
    let own = geteuid().as_raw();
    for (at, is_file) in [(real.as_path(), true), (real.parent().unwrap_or(&real), false)] {
        let meta = fs::metadata(at).with_context(|| format!("cannot look at {}", at.display()))?;
        // Of a folder like /tmp nobody takes away what is another's.
        let writable = meta.mode() & 0o022 != 0 && (is_file || meta.mode() & STICKY == 0);
        if writable || ![0, own].contains(&meta.uid()) {
            bail!(
                "{} is not run to see what it is: {} can be written by others than root and you; name another place, or take \
                 their right away (chown, chmod go-w)",
                path.display(),
                at.display()
            );
        }
    }
    Ok(())
}

/// The file that `target` names, wherever links lead.
fn place_of(target: &Path) -> Result<PathBuf> {
    let found = match fs::canonicalize(target) {
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(target).is_err() => {
            std::path::absolute(target)
        }
        found => found,
    };
    found.with_context(|| format!("cannot find where {} leads", target.display()))
}

fn parts(target: &Path) -> Result<(&Path, &str)> {
    let name = target.file_name().and_then(|name| name.to_str());
    match (target.parent(), name) {
        (Some(folder), Some(name)) => Ok((folder, name)),
        _ => bail!("{} is no place for an executable", target.display()),
    }
}

fn sync_folder(target: &Path) -> Result<()> {
    let (folder, _) = parts(target)?;
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("cannot sync folder {}", folder.display()))
}

/// Says where there is no room, and that nothing has happened.
fn full(path: &Path, error: io::Error) -> io::Error {
    let kind = error.kind();
    let shown = path.display();
    io::Error::new(
        kind,
        match kind {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => format!(
                "cannot write {shown}: the disk is full; nothing was changed. Make room there, or name another place with --to, and \
                 try again"
            ),
            _ => format!("cannot write {shown}: {error}; nothing was changed"),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(version: &str) -> String {
        format!("#!/bin/sh\necho chronofs {version}\n")
    }

    fn put(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    fn install(target: &Path, text: &str, version: &str) -> Result<Installed> {
        let mut installing = Installing::begin(target)?;
        installing.write(text.as_bytes())?;
        installing.finish(version)
    }

    fn files(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_others_can_write_is_not_run() {
        let folder = tempfile::tempdir().unwrap();
        let (target, ran) = (folder.path().join("chronofs"), folder.path().join("ran"));
        put(&target, &format!("#!/bin/sh\ntouch {}\necho chronofs 1.0\n", ran.display()));
        let may = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        for (of_file, of_folder) in
            [(0o757, 0o755), (0o775, 0o755), (0o777, 0o1777), (0o755, 0o777), (0o755, 0o775)]
        {
            may(&target, of_file);
            may(folder.path(), of_folder);
            let refused = format!("{:#}", Installing::begin(&target).err().unwrap());
            assert!(refused.contains("is not run") && refused.contains("chmod go-w"), "{refused}");
        }
        assert!(!ran.exists());
        may(&target, 0o755);
        may(folder.path(), 0o1777);
        assert_eq!(version_of(&target).unwrap(), "1.0");
    }

    #[test]
    fn the_old_one_is_kept_and_can_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("chronofs");
        let first = install(&target, &program("1.0"), "1.0").unwrap();
        assert_eq!((version_of(&target).unwrap().as_str(), first.old()), ("1.0", None));
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o755);
        assert!(first.go_back().unwrap_err().to_string().contains("nothing to go back to"));
        fs::set_permissions(&target, Permissions::from_mode(0o750)).unwrap();
        for (n, version) in ["2.0", "3.0"].into_iter().enumerate() {
            let installed = install(&target, &program(version), version).unwrap();
            assert_eq!(files(folder.path()), ["chronofs", "chronofs.old"]);
            assert_eq!(version_of(&target).unwrap(), version);
            assert_eq!(version_of(installed.old().unwrap()).unwrap(), ["1.0", "2.0"][n]);
            assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o750, "as the old one");
            if version == "3.0" {
                installed.go_back().unwrap();
            }
        }
        assert_eq!(version_of(&target).unwrap(), "2.0");
        assert_eq!(files(folder.path()), ["chronofs"]);
    }

    #[test]
    fn what_does_not_run_or_is_another_version_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("chronofs");
        put(&target, &program("1.0"));
        for (text, version, why) in [
            ("#!/bin/sh\nexit 1\n".to_owned(), "2.0", "does not run on this machine"),
            ("\u{7f}ELF of another machine".to_owned(), "2.0", "does not run on this machine"),
            (program("3.0"), "2.0", "version 3.0 and not 2.0"),
            ("#!/bin/sh\necho other 2.0\n".to_owned(), "2.0", "does not say which chronofs"),
        ] {
            let refused = format!("{:#}", install(&target, &text, version).unwrap_err());
            assert!(refused.contains(why), "{refused}");
            assert_eq!(files(folder.path()), ["chronofs"]);
            assert_eq!(version_of(&target).unwrap(), "1.0");
        }
    }

    #[test]
    fn what_is_cut_off_or_was_left_by_a_killed_process_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("chronofs");
        let mut cut = Installing::begin(&target).unwrap();
        cut.write(b"half").unwrap();
        let second = Installing::begin(&target).err().unwrap().to_string();
        assert!(second.contains("another installs"), "{second}");
        drop(cut);
        assert_eq!(files(folder.path()), [""; 0]);
        fs::write(folder.path().join(".chronofs.new"), "of a process that was killed").unwrap();
        install(&target, &program("1.0"), "1.0").unwrap();
        assert_eq!(files(folder.path()), ["chronofs"]);
    }

    #[test]
    fn what_is_not_chronofs_is_never_replaced_and_links_stay_links() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("other");
        put(&other, "#!/bin/sh\necho nice 9.1\n");
        let refused = Installing::begin(&other).err().unwrap().to_string();
        assert!(refused.contains("is not replaced"), "{refused}");
        let (target, link) = (folder.path().join("chronofs"), folder.path().join("link"));
        put(&target, &program("1.0"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let installed = install(&link, &program("2.0"), "2.0").unwrap();
        assert_eq!(installed.target(), fs::canonicalize(&target).unwrap());
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(version_of(&link).unwrap(), "2.0");
        let dangling = folder.path().join("dangling");
        std::os::unix::fs::symlink(folder.path().join("nowhere"), &dangling).unwrap();
        assert!(Installing::begin(&dangling).is_err());
    }

    #[test]
    fn a_full_disk_is_said_with_what_to_do() {
        let error = full(Path::new("/usr/local/bin/.chronofs.new"), ErrorKind::StorageFull.into());
        assert!(error.to_string().contains("the disk is full; nothing was changed"), "{error}");
    }
}
