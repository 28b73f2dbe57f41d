//! The deploy folder: executables for the machines of the cluster, each as `COMPONENT_VERSION_TARGET`, and beside it in `.json`
//! what is said and signed of it.
//!
//! An executable is there once its `.json` is: that is written last and removed first. What lies there without is of an upload
//! or a removal that did not end, and goes when the server starts.

use crate::AdminError;
use crate::backups::blocking;
use chronofs_wire::deploy::{Release, SignedRelease};
use chronofs_wire::identity::Sha256Sum;
use chronofs_wire::tls::write_secret;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// Where it is in the folder of the admin server, unless that is said.
pub const DEPLOY_FOLDER: &str = "deploy";
/// The most executables.
const RELEASES_MAX: usize = 256;
const SAID: &str = ".json";
const UNFINISHED: &str = ".unfinished-";

/// See the module.
pub(crate) struct Deploy {
    folder: PathBuf,
    /// Held while something comes or goes.
    change: Mutex<()>,
}

impl Deploy {
    /// The folder, which is made if it is missing.
    pub(crate) fn open(folder: &Path) -> Result<Arc<Self>, AdminError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(failed(format!("make folder {}", folder.display())))?;
        let deploy = Deploy { folder: folder.to_owned(), change: Mutex::new(()) };
        deploy.clean()?;
        Ok(Arc::new(deploy))
    }

    /// Removes what did not come to its end.
    fn clean(&self) -> Result<(), AdminError> {
        for name in self.names()? {
            let left = match name.strip_suffix(SAID) {
                Some(_) => false,
                None => name.starts_with(UNFINISHED) || !self.path(&format!("{name}{SAID}")).exists(),
            };
            // What is not ours by its name stays.
            let ours = name.starts_with(UNFINISHED) || name.matches('_').count() >= 2;
            if left && ours {
                let path = self.path(&name);
                fs::remove_file(&path).map_err(failed(format!("remove {}", path.display())))?;
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, AdminError> {
        let names = fs::read_dir(&self.folder).and_then(|entries| {
            entries.map(|entry| Ok(entry?.file_name().into_string().ok())).collect::<io::Result<Vec<_>>>()
        });
        let names = names.map_err(failed(format!("list {}", self.folder.display())))?;
        Ok(names.into_iter().flatten().collect())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What is there, by name. What somebody has changed by hand so that it makes no sense is left out, and the log says so; who
    /// fetches one checks it all the same.
    fn list_now(&self) -> Result<Vec<SignedRelease>, AdminError> {
        let mut all = Vec::new();
        for name in self.names()? {
            let Some(name) = name.strip_suffix(SAID) else { continue };
            match self.find_now(name) {
                Ok(release) => all.push(release),
                Err(AdminError::Missing(_)) => {}
                Err(error) => {
                    tracing::warn!(%error, name, "an executable in the deploy folder is not offered")
                }
            }
        }
        all.sort_by_key(SignedRelease::name);
        Ok(all)
    }

    fn find_now(&self, name: &str) -> Result<SignedRelease, AdminError> {
        let none = || missing(name);
        if !is_name(name) {
            return Err(none());
        }
        let path = self.path(&format!("{name}{SAID}"));
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(none()),
            text => text.map_err(failed(format!("read {}", path.display())))?,
        };
        let said: SignedRelease = serde_json::from_slice(&text).map_err(|error| {
            AdminError::Internal(format!(
                "{} does not say what the executable is ({error}); remove both, and add it anew",
                path.display()
            ))
        })?;
        match said.name() == name {
            true => Ok(said),
            false => Err(AdminError::Internal(format!(
                "{} is of {}; remove it, and add it anew",
                path.display(),
                said.name()
            ))),
        }
    }

    fn remove_now(&self, name: &str) -> Result<(), AdminError> {
        let _alone = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let none = || missing(name);
        if !is_name(name) {
            return Err(none());
        }
        for path in [self.path(&format!("{name}{SAID}")), self.path(name)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound && path.ends_with(name) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => return Err(none()),
                removed => removed.map_err(failed(format!("remove {}", path.display())))?,
            }
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), AdminError> {
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(failed(format!("sync {}", self.folder.display())))
    }

    /// Refuses one that is there already, and one too many.
    fn must_have_room_for(&self, name: &str) -> Result<(), AdminError> {
        if self.path(&format!("{name}{SAID}")).exists() {
            return Err(AdminError::Taken(format!(
                "{name} is in the deploy folder already; chronofs admin deploy remove {name} takes it away, or give the new one \
                 another version"
            )));
        }
        let there = self.names()?.iter().filter(|name| name.ends_with(SAID)).count();
        match there < RELEASES_MAX {
            true => Ok(()),
            false => Err(AdminError::Invalid(format!(
                "the deploy folder has {there} executables, and no more fit; remove old ones with chronofs admin deploy remove"
            ))),
        }
    }

    /// What is there.
    pub(crate) async fn list(self: &Arc<Self>) -> Result<Vec<SignedRelease>, AdminError> {
        let deploy = self.clone();
        blocking(move || deploy.list_now()).await
    }

    /// The bytes of an executable that is there, with their number.
    pub(crate) async fn open_one(self: &Arc<Self>, name: String) -> Result<(File, u64), AdminError> {
        let deploy = self.clone();
        blocking(move || {
            deploy.find_now(&name)?;
            let path = deploy.path(&name);
            let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
            let (length, file) = opened.map_err(failed(format!("read {}", path.display())))?;
            Ok((file, length))
        })
        .await
    }

    /// Takes one away.
    pub(crate) async fn remove(self: &Arc<Self>, name: String) -> Result<(), AdminError> {
        let deploy = self.clone();
        blocking(move || deploy.remove_now(&name)).await
    }

    /// Begins to take one in. `said` must be [checked](SignedRelease::checked) as `release`.
    pub(crate) fn begin(
        self: &Arc<Self>,
        said: SignedRelease,
        release: Release,
    ) -> Result<Incoming, AdminError> {
        self.must_have_room_for(&release.name())?;
        let path = self.path(&format!("{UNFINISHED}{}", Uuid::now_v7()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(failed(format!("write {}", path.display())))?;
        Ok(Incoming { deploy: self.clone(), said, release, path, file, length: 0, sum: Sha256Sum::default() })
    }
}

/// What is no name could be a path.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && !name.starts_with('.')
}

/// An executable that comes in. One that does not come to its end leaves nothing.
pub(crate) struct Incoming {
    deploy: Arc<Deploy>,
    said: SignedRelease,
    release: Release,
    path: PathBuf,
    file: File,
    length: u64,
    sum: Sha256Sum,
}

impl Incoming {
    /// The bytes that come next.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<(), AdminError> {
        self.length += bytes.len() as u64;
        if self.length > self.release.size() {
            return Err(self.not_as_said(format!("it is longer than {} bytes", self.release.size())));
        }
        self.sum.add(bytes);
        self.file.write_all(bytes).map_err(failed(format!("write {}", self.path.display())))
    }

    /// All have come: it is offered from now on.
    pub(crate) fn end(self) -> Result<SignedRelease, AdminError> {
        if self.length != self.release.size() {
            let (length, size) = (self.length, self.release.size());
            return Err(self.not_as_said(format!("it has {length} bytes and not {size}")));
        }
        let found = self.sum.clone().end();
        if found != self.release.sha256() {
            let said = self.release.sha256();
            return Err(self.not_as_said(format!("its SHA-256 is {found} and not {said}")));
        }
        let name = self.release.name();
        let path = self.deploy.path(&name);
        let _alone = self.deploy.change.lock().unwrap_or_else(PoisonError::into_inner);
        self.deploy.must_have_room_for(&name)?;
        let kept = self.file.sync_all().and_then(|()| fs::rename(&self.path, &path));
        kept.map_err(failed(format!("write {}", path.display())))?;
        let text = serde_json::to_vec_pretty(&self.said)
            .map_err(|error| AdminError::Internal(format!("cannot write what {name} is: {error}")))?;
        let beside = self.deploy.path(&format!("{name}{SAID}"));
        let written = write_secret(&beside, &text).map_err(failed(format!("write {}", beside.display())));
        if written.is_err() {
            // Without what is said of it nobody is offered it; a start removes it if this fails.
            let _ = fs::remove_file(&path);
        }
        written.map(|()| self.said.clone())
    }

    fn not_as_said(&self, why: String) -> AdminError {
        AdminError::Invalid(format!(
            "{} did not come as it was signed: {why}; add it again",
            self.release.name()
        ))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // It is gone if it has come to its end; if this fails a start removes it.
        let _ = fs::remove_file(&self.path);
    }
}

fn missing(name: &str) -> AdminError {
    AdminError::Missing(format!(
        "the deploy folder has no executable '{name}'; chronofs admin deploy list shows what it has"
    ))
}

/// A full disk is nothing that this server has done wrong.
fn failed(what: String) -> impl FnOnce(io::Error) -> AdminError {
    move |error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => AdminError::Unavailable(format!(
            "cannot {what}: the disk of the admin server is full; make room there, remove old executables with chronofs admin \
             deploy remove, or start it with --deploy-folder elsewhere"
        )),
        _ => AdminError::io(what)(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_keys::SecretKey;
    use chronofs_wire::deploy::PublicKey;
    use chronofs_wire::identity::Sha256;

    fn said_of(version: &str, bytes: &[u8]) -> SignedRelease {
        let target = "x86_64-unknown-linux-gnu";
        let size = bytes.len() as u64;
        let release = Release::new("chronofs", version, target, size, Sha256::of(bytes)).unwrap();
        let key = SecretKey::new([1; 32]);
        let signature = key.sign(release.statement().as_bytes()).unwrap();
        release.signed(PublicKey(key.public_half().unwrap()), &signature)
    }

    fn add(deploy: &Arc<Deploy>, version: &str, said: &[u8], come: &[u8]) -> Result<String, AdminError> {
        let said = said_of(version, said);
        let mut incoming = deploy.begin(said.clone(), said.checked().unwrap())?;
        for part in come.chunks(2) {
            incoming.take(part)?;
        }
        incoming.end().map(|said| said.name())
    }

    fn files(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_does_not_come_as_it_was_signed_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let deploy = Deploy::open(folder.path()).unwrap();
        for (come, why) in
            [(&b"abcde"[..], "SHA-256"), (b"abcdef0", "longer than"), (b"abc", "has 3 bytes and not 6")]
        {
            let said: &[u8] = if come.len() == 5 { b"abcdx" } else { b"abcdef" };
            let refused = add(&deploy, "1.0", said, come).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
            assert_eq!(files(folder.path()), [""; 0]);
        }
        let name = add(&deploy, "1.0", b"abcdef", b"abcdef").unwrap();
        assert_eq!(files(folder.path()), [name.clone(), format!("{name}.json")]);
        assert_eq!(fs::read(folder.path().join(&name)).unwrap(), b"abcdef");
        let again = add(&deploy, "1.0", b"abcdef", b"abcdef").unwrap_err().to_string();
        assert!(again.contains("is in the deploy folder already"), "{again}");
        assert_eq!(deploy.list_now().unwrap(), [said_of("1.0", b"abcdef")]);
        deploy.remove_now(&name).unwrap();
        assert!(matches!(deploy.remove_now(&name).unwrap_err(), AdminError::Missing(_)));
        assert_eq!(files(folder.path()), [""; 0]);
    }

    #[test]
    fn a_start_removes_what_did_not_come_to_its_end_and_nothing_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let deploy = Deploy::open(folder.path()).unwrap();
        let name = add(&deploy, "1.0", b"a", b"a").unwrap();
        for left in [".unfinished-1", "chronofs_2.0_x86_64-unknown-linux-gnu", "notes"] {
            fs::write(folder.path().join(left), "x").unwrap();
        }
        fs::write(folder.path().join("broken.json"), "{}").unwrap();
        let deploy = Deploy::open(folder.path()).unwrap();
        assert_eq!(
            files(folder.path()),
            ["broken.json".to_owned(), name.clone(), format!("{name}.json"), "notes".to_owned()]
        );
        assert_eq!(deploy.list_now().unwrap().len(), 1, "what makes no sense is not offered");
        for path in ["../x", "a/b", ".hidden", "", "nothing"] {
            assert!(matches!(deploy.find_now(path).unwrap_err(), AdminError::Missing(_)), "{path}");
            assert!(matches!(deploy.remove_now(path).unwrap_err(), AdminError::Missing(_)), "{path}");
        }
    }

    #[test]
    fn the_folder_has_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let deploy = Deploy::open(folder.path()).unwrap();
        for n in 0..RELEASES_MAX {
            fs::write(folder.path().join(format!("x{n}.json")), "{}").unwrap();
        }
        let refused = add(&deploy, "1.0", b"a", b"a").unwrap_err().to_string();
        assert!(refused.contains("has 256 executables"), "{refused}");
    }
}
