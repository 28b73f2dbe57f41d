//! The admin server: what exists (accounts, tokens, block stores, metadata stores, volumes), who may use it, and
//! where it is served. It is not on the path of data: mounts go on while it is down.
//!
//! It may depend on `chronofs-core`, `chronofs-wire`, `chronofs-blocks`, `chronofs-keys`, `chronofs-snapshot` and `chronofs-backup` only. Of block stores it probes buckets,
//! whose credentials it keeps, and reads notes when its folder is made anew; it never touches an object of a volume, nor a metadata store.
//! Configuration lives in one SQLite file ([`db`]); [`api`] is the HTTP/JSON face of it, `server` the process.

pub mod api;
mod backups;
mod cluster;
pub mod db;
mod deploy;
mod error;
mod lock;
mod metrics;
pub mod model;
mod quiet;
mod rebuild;
mod restored;
pub mod retention;
mod schedules;
mod server;
mod setup;
mod snapshots;
mod state;

pub use deploy::DEPLOY_FOLDER;
pub use error::AdminError;
pub use lock::FolderLock;
pub use rebuild::{RebuildConfig, Rebuilt, RebuiltVolume, rebuild};
pub use restored::{InPlace, NewCluster, prepare_clone, prepare_in_place};
pub use server::{Server, StartConfig, start};
pub use setup::{InitConfig, Status, init_creds, status};
pub use snapshots::SnapshotConfig;
