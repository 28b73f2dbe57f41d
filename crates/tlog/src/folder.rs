//! The server's folder.
//!
//! ```text
//! lock             held while a server uses the folder
//! tls.pem          key and certificate of the server
//! credentials      the token of the log server
//! registered.json  what the admin server last said of it
//! assignment.json  who may keep copies here; hashes of secrets only
//! stores/ID/       the copy of the log of metadata store ID
//! images/          of disk snapshots
//! ```

use anyhow::{Context, Result, bail};
use chronofs_wire::admin::Registered;
use chronofs_wire::cluster::ClusterName;
use chronofs_wire::tlog::LogAssignment;
use chronofs_wire::tls::write_secret;
use chronofs_wire::token::{Token, TokenKind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The folder.
#[derive(Clone, Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    /// Makes the folder if it is not there.
    pub(crate) fn make(path: &Path) -> Result<Folder> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(|| {
            format!("cannot make the folder {}; choose one with --db-folder", path.display())
        })?;
        Ok(Folder(path.to_owned()))
    }

    /// Takes the folder for as long as the file is open.
    pub(crate) fn lock(&self) -> Result<File> {
        let path = self.0.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
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

    /// Where copies are.
    pub(crate) fn stores(&self) -> PathBuf {
        self.0.join("stores")
    }

    /// Where images of disk snapshots are made.
    pub(crate) fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    pub(crate) fn save_token(&self, token: &Token) -> Result<()> {
        self.write("credentials", token.to_string().as_bytes())
    }

    pub(crate) fn token(&self) -> Result<Token> {
        let path = self.0.join("credentials");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "{} is not there: this server has no token yet; run `chronofs tlog init creds --token TOKEN` with the token \
                 that `chronofs configure create log-server NAME` printed",
                path.display()
            ),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        Token::parse_as(&text, TokenKind::LogServer).with_context(|| format!("in {}", path.display()))
    }

    pub(crate) fn save_registered(&self, registered: &Registered) -> Result<()> {
        self.write("registered.json", &serde_json::to_vec_pretty(registered)?)
    }

    pub(crate) fn registered(&self) -> Result<Option<Registered>> {
        self.read("registered.json")
    }

    pub(crate) fn save_assignment(&self, assignment: &impl Serialize) -> Result<()> {
        self.write("assignment.json", &serde_json::to_vec_pretty(assignment)?)
    }

    pub(crate) fn assignment(&self) -> Result<Option<LogAssignment>> {
        self.read("assignment.json")
    }

    /// Refuses to be of another cluster than the admin server last said.
    pub(crate) fn must_be_of(&self, cluster: &ClusterName) -> Result<()> {
        match self.registered()?.and_then(|registered| registered.cluster) {
            Some(known) if known != cluster.as_str() => bail!(
                "the cluster file is of cluster {cluster}, and the folder {} of cluster {known}: use the cluster file of \
                 {known} (--cluster-file), or another folder (--db-folder)",
                self.0.display()
            ),
            _ => Ok(()),
        }
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
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
