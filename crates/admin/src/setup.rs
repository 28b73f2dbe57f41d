//! What is done without a running server: the first account, and a look at what runs.

use crate::db::tokens::{ADDRESS, PIN};
use crate::db::{Database, accounts, set_setting, setting, tokens};
use crate::model::{NewAccount, Role};
use crate::server::load_identity;
use crate::{AdminError, FolderLock, cluster};
use chronofs_wire::http::{ADMIN_PORT, with_port};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The account that is made first.
const ROOT: &str = "root";

/// How to set up the folder of an admin server.
#[derive(Clone, Debug)]
pub struct InitConfig {
    /// The folder; made if it is missing.
    pub db_folder: PathBuf,
    /// `HOST:PORT` at which metadata servers, mounts and `configure` reach the server: it stands in every token.
    /// `localhost:8443` unless given here or before.
    pub address: Option<String>,
    /// Own certificate (chain) and key, instead of the self-made one.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Revoke the token of `root` if there is one.
    pub rotate: bool,
    /// The cluster file; `None`: the one in the folder.
    pub cluster_file: Option<PathBuf>,
}

/// Makes database, certificate and the account `root`, and gives its token. Refuses when there is one already,
/// unless it is to be rotated.
pub fn init_creds(config: &InitConfig) -> Result<String, AdminError> {
    let folder = &config.db_folder;
    make_folder(folder)?;
    let _lock = FolderLock::take(folder)?;
    let database = Database::open(folder)?;
    let pin = load_identity(folder, config.tls.as_ref())?.pin();
    let before = database.write(|tx| {
        if !config.rotate && accounts::find(tx, ROOT).is_ok() {
            return Err(AdminError::Invalid(format!(
                "folder {} was set up before, and its root token was shown then; to revoke that token and get a new \
                 one, add --rotate",
                folder.display()
            )));
        }
        setting(tx, ADDRESS)
    })?;
    let before = with_port(&before.unwrap_or_else(|| "localhost".to_owned()), ADMIN_PORT);
    let place = cluster::place(folder, config.cluster_file.as_deref());
    cluster::settle(&database, &place, config.address.as_deref(), &before)?;
    let token = database.write(|tx| {
        let root = match accounts::find(tx, ROOT) {
            Err(AdminError::NotFound { .. }) => {
                accounts::create(tx, &NewAccount { name: ROOT.to_owned(), role: Role::Admin })?
            }
            found => found?,
        };
        set_setting(tx, PIN, &pin.to_string())?;
        tokens::issue_account(tx, &root.id)
    })?;
    database.checkpoint()?;
    Ok(token.to_string())
}

pub(crate) fn make_folder(folder: &Path) -> Result<(), AdminError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(AdminError::io(format!("make folder {} (--db-folder chooses another)", folder.display())))
}

/// What is known of the admin server of a folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Status {
    /// The folder was not set up.
    NotSetUp,
    /// No process has the folder.
    Stopped,
    /// This process has it.
    Running {
        /// Its process id.
        pid: String,
        /// Where it listens; empty while it starts.
        address: String,
        /// SHA-256 of its certificate; empty while it starts.
        pin: String,
    },
}

/// Looks at the folder of an admin server.
pub fn status(db_folder: &Path) -> Result<Status, AdminError> {
    Ok(match FolderLock::holder(db_folder) {
        Some((pid, text)) => {
            let (address, pin) = text.split_once(' ').unwrap_or((&text, ""));
            Status::Running { pid, address: address.to_owned(), pin: pin.to_owned() }
        }
        None if is_set_up(db_folder)? => Status::Stopped,
        None => Status::NotSetUp,
    })
}

/// Whether there is a database. A folder that this user may not look into is not taken for an empty one.
pub(crate) fn is_set_up(db_folder: &Path) -> Result<bool, AdminError> {
    let looked = db_folder.join(crate::db::DATABASE_FILE).try_exists();
    looked.map_err(AdminError::io(format!("look into folder {}", db_folder.display())))
}
