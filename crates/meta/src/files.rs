//! The server's folder: who holds it, its credentials, the last assignment, and how it went down.
//!
//! ```text
//! lock             held while a server (or verify) uses the folder
//! tls.pem          key and certificate of the server
//! credentials      the token of the metadata store
//! registered.json  what the admin server last said of the store
//! assignment.json  the last assignment; credentials of block stores in it are sealed
//! secrets.key      the key that they are sealed with
//! stores.json      block stores whose folder this server has seen marked
//! log.json         the last epoch of the log that is known, and its copies
//! copies.json      copies of the log that have counted here
//! running          the kernel's boot id while a server runs; away after a clean stop
//! engine/          log and store
//! ```

use anyhow::{Context, Result, bail};
use chronofs_core::store::Secret;
use chronofs_wire::admin::{Assignment, Registered};
use chronofs_wire::cluster::ClusterName;
use chronofs_wire::log::LogEpoch;
use chronofs_wire::secrets::{SecretBox, SecretsError};
use chronofs_wire::tls::write_secret;
use chronofs_wire::token::{Token, TokenKind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The file of the token.
pub(crate) const CREDENTIALS: &str = "credentials";
/// How the names of files begin that are to become it.
pub(crate) const CREDENTIALS_BESIDE: &str = ".credentials.";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The folder, not locked.
#[derive(Clone, Debug)]
pub struct Folder(pub PathBuf);

/// The folder, held by this process until it is dropped.
pub struct LockedFolder {
    /// The folder.
    pub folder: Folder,
    _lock: File,
}

impl Folder {
    /// Makes the folder if it is not there.
    pub fn make(path: &Path) -> Result<Folder> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(|| {
            format!("cannot make the folder {}; choose one with --db-folder", path.display())
        })?;
        Ok(Folder(path.to_owned()))
    }

    /// Where the engine keeps its files.
    pub fn engine(&self) -> PathBuf {
        self.0.join("engine")
    }

    /// Takes the folder for this process.
    pub fn lock(&self) -> Result<LockedFolder> {
        let path = self.0.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(LockedFolder { folder: self.clone(), _lock: file }),
            Err(TryLockError::WouldBlock) => bail!(
                "the folder {} is in use by another chronofs process; stop that one, or choose another folder with \
                 --db-folder",
                self.0.display()
            ),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }

    /// Keeps the token of the metadata store.
    pub fn save_token(&self, token: &Token) -> Result<()> {
        self.write(CREDENTIALS, token.to_string().as_bytes())
    }

    /// The token of the metadata store.
    pub fn token(&self) -> Result<Token> {
        let path = self.0.join(CREDENTIALS);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "{} is not there: this server has no token yet; run `chronofs meta init creds --token TOKEN` with \
                 the token that `chronofs configure create metadata-store NAME` printed",
                path.display()
            ),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        Token::parse_as(&text, TokenKind::MetadataStore).with_context(|| format!("in {}", path.display()))
    }

    /// Keeps an assignment. No secret in it is readable without `secrets.key`; how log servers are reached is not kept.
    pub fn save_assignment(&self, assignment: &Assignment) -> Result<()> {
        let mut sealed = assignment.clone();
        sealed.log_servers.clear();
        self.each_secret(&mut sealed, |secrets, owner, text| secrets.seal_text(owner, text))?;
        self.write_json("assignment.json", &sealed)
    }

    /// The last assignment.
    pub fn assignment(&self) -> Result<Option<Assignment>> {
        let Some(mut assignment) = self.read_json("assignment.json")? else { return Ok(None) };
        let opened =
            self.each_secret(&mut assignment, |secrets, owner, sealed| secrets.unseal_text(owner, sealed));
        opened.with_context(|| {
            let path = self.0.join("assignment.json");
            format!("{} cannot be used; remove it and start with the admin server reachable", path.display())
        })?;
        Ok(Some(assignment))
    }

    fn each_secret(
        &self,
        assignment: &mut Assignment,
        turn: impl Fn(&SecretBox, &str, &str) -> Result<String, SecretsError>,
    ) -> Result<()> {
        let mut secrets = None;
        let of_volumes = assignment.volumes.iter_mut().map(|volume| &mut volume.store);
        for store in of_volumes.chain(&mut assignment.reader_stores) {
            let owner = store.id.to_string();
            for secret in store.credentials.secrets_mut() {
                let key = match secrets.take() {
                    Some(key) => key,
                    None => SecretBox::open(&self.0)?,
                };
                *secret = Secret::new(turn(&key, &owner, secret.reveal())?);
                secrets = Some(key);
            }
        }
        Ok(())
    }

    /// Keeps what the admin server said of the store.
    pub fn save_registered(&self, registered: &Registered) -> Result<()> {
        self.write_json("registered.json", registered)
    }

    /// What the admin server last said of the store.
    pub fn registered(&self) -> Result<Option<Registered>> {
        self.read_json("registered.json")
    }

    /// Keeps which copies of the log count.
    pub fn save_log(&self, log: &LogEpoch) -> Result<()> {
        self.write_json("log.json", log)
    }

    /// Which copies of the log counted last.
    pub fn log(&self) -> Result<Option<LogEpoch>> {
        self.read_json("log.json")
    }

    /// Copies of the log that have counted here and are still wanted.
    pub fn known_copies(&self) -> Result<BTreeSet<String>> {
        Ok(self.read_json("copies.json")?.unwrap_or_default())
    }

    /// Keeps which copies of the log have counted here.
    pub fn save_known_copies(&self, copies: &BTreeSet<String>) -> Result<()> {
        self.write_json("copies.json", copies)
    }

    /// Refuses to be of another cluster than the admin server last said.
    pub fn must_be_of(&self, cluster: &ClusterName) -> Result<()> {
        match self.registered()?.and_then(|registered| registered.cluster) {
            Some(known) if known != cluster.as_str() => bail!(
                "the cluster file is of cluster {cluster}, and the folder {} of cluster {known}: use the cluster file of \
                 {known} (--cluster-file), or another folder (--db-folder)",
                self.0.display()
            ),
            _ => Ok(()),
        }
    }

    /// Block stores whose folder was seen marked.
    pub fn marked_stores(&self) -> Result<BTreeSet<Uuid>> {
        Ok(self.read_json("stores.json")?.unwrap_or_default())
    }

    /// Forgets what the last run knew: that it ran, and what it was to serve.
    pub fn forget_run(&self) -> Result<()> {
        for name in ["running", "assignment.json"] {
            match fs::remove_file(self.0.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("cannot remove {}", self.0.join(name).display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Keeps which block stores' folders were seen marked.
    pub fn save_marked_stores(&self, stores: &BTreeSet<Uuid>) -> Result<()> {
        self.write_json("stores.json", stores)
    }

    fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        self.write(name, &serde_json::to_vec_pretty(value)?)
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.0.join(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| {
                format!("{} is damaged; remove it and start with the admin server reachable", path.display())
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.0.join(name);
        write_secret(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl LockedFolder {
    /// Whether the last server may have lost what it had answered: it went down with its operating system, which a
    /// killed process survives. It stays so until [`LockedFolder::note_run`].
    pub fn maybe_lost(&self) -> Result<bool> {
        let boot = fs::read(BOOT_ID).unwrap_or_default();
        match fs::read(self.folder.0.join("running")) {
            Ok(before) => Ok(boot.is_empty() || before != boot),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).context("cannot read how the last server ended"),
        }
    }

    /// Notes that what the last server had answered may be lost.
    pub fn doubt(&self) -> Result<()> {
        self.folder.write("running", b"recovered from copies of the log")
    }

    /// Notes that a server runs under this kernel, and that what the one before lost is applied again and durable.
    pub fn note_run(&self) -> Result<()> {
        let boot = fs::read(BOOT_ID).unwrap_or_default();
        // After a kill it stands there already: a full disk does not keep the server from starting then.
        match fs::read(self.folder.0.join("running")) {
            Ok(before) if before == boot => Ok(()),
            _ => self.folder.write("running", &boot),
        }
    }

    /// The run is over and everything is durable.
    pub fn end_run(&self) -> Result<()> {
        match fs::remove_file(self.folder.0.join("running")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context("cannot note the clean stop")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_on_a_folder_is_refused_by_name() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::make(temp.path()).unwrap();
        let held = folder.lock().unwrap();
        let error = folder.lock().err().unwrap().to_string();
        assert!(error.contains("in use") && error.contains(temp.path().to_str().unwrap()), "{error}");
        drop(held);
        folder.lock().unwrap();
    }

    #[test]
    fn an_assignment_is_kept_without_readable_secrets() {
        use chronofs_core::Retention;
        use chronofs_core::store::{Bucket, Credentials};
        use chronofs_core::volume::{Compression, VolumeSpec};
        use chronofs_wire::admin::{AssignedStore, AssignedVolume, StoreKind};
        use chronofs_wire::tlog::LogServerAccess;
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::make(temp.path()).unwrap();
        let secret = || Secret::new("hunter2");
        let volume = |n: u128| AssignedVolume {
            spec: VolumeSpec {
                id: Uuid::from_u128(n),
                name: "v".to_owned(),
                block_size: 1 << 20,
                compression: Compression::None,
                retention: Retention::Forever,
                max_bytes: None,
                max_inodes: None,
                hash_key: [0; 16],
            },
            deleted: false,
            born_ns: 0,
            give_up_after_s: None,
            store: AssignedStore {
                id: Uuid::from_u128(n + 100),
                kind: StoreKind::S3(Bucket { bucket: "bytes".to_owned(), ..Bucket::default() }),
                credentials: Credentials::AccessKey {
                    id: "AKIA".to_owned(),
                    secret: secret(),
                    session_token: Some(secret()),
                },
                create_only: true,
            },
            keys: None,
        };
        let assignment = Assignment {
            revision: 7,
            volumes: vec![volume(1), volume(2)],
            tokens: Vec::new(),
            probes: Vec::new(),
            log: LogEpoch::default(),
            log_servers: Vec::new(),
            accepted_restore: None,
            copy_restored: false,
            reader_stores: vec![volume(3).store],
            admin_epoch: 0,
        };
        let access = LogServerAccess::new("far".to_owned(), &chronofs_wire::identity::Secret([7; 32]));
        let with_servers = Assignment { log_servers: vec![access], ..assignment.clone() };
        folder.save_assignment(&with_servers).unwrap();
        let text = fs::read_to_string(temp.path().join("assignment.json")).unwrap();
        assert!(text.contains("AKIA") && !text.contains("hunter2") && !text.contains("far"), "{text}");
        assert_eq!(folder.assignment().unwrap(), Some(assignment));
        fs::remove_file(temp.path().join("secrets.key")).unwrap();
        assert!(folder.assignment().is_err());
    }

    #[test]
    fn only_a_lost_kernel_makes_a_start_doubt_what_was_answered() {
        let temp = tempfile::tempdir().unwrap();
        let locked = Folder::make(temp.path()).unwrap().lock().unwrap();
        assert!(!locked.maybe_lost().unwrap(), "the first start");
        locked.note_run().unwrap();
        assert!(!locked.maybe_lost().unwrap(), "after a kill under the same kernel");
        fs::write(temp.path().join("running"), "another boot").unwrap();
        assert!(locked.maybe_lost().unwrap(), "after a power cut");
        assert!(locked.maybe_lost().unwrap(), "after a kill while what was lost is collected");
        locked.note_run().unwrap();
        locked.end_run().unwrap();
        assert!(!locked.maybe_lost().unwrap(), "after a clean stop");
    }

    #[test]
    fn the_folder_of_another_cluster_is_refused_by_name() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::make(temp.path()).unwrap();
        let (ours, other): (ClusterName, ClusterName) = ("a:1".parse().unwrap(), "b:2".parse().unwrap());
        folder.must_be_of(&other).unwrap();
        let registered =
            |cluster| Registered { name: "m".to_owned(), epoch: 1, cluster, ..Registered::default() };
        folder.save_registered(&registered(None)).unwrap();
        folder.must_be_of(&other).unwrap();
        folder.save_registered(&registered(Some(ours.to_string()))).unwrap();
        folder.must_be_of(&ours).unwrap();
        let error = folder.must_be_of(&other).unwrap_err().to_string();
        assert!(
            error.contains("a:1") && error.contains("b:2") && error.contains("--cluster-file"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_token_is_refused_with_the_next_step() {
        let temp = tempfile::tempdir().unwrap();
        let error = Folder::make(temp.path()).unwrap().token().unwrap_err().to_string();
        assert!(error.contains("meta init creds"), "{error}");
    }
}
