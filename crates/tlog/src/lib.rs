//! The log server, `chronofs tlog start`: keeps copies of the logs of metadata stores for their servers.
//!
//! Each copy is a folder as `chronofs_engine::copies::FolderCopy` keeps it; here are the connections to it, who may have one,
//! and the link to the admin server, which says so. Laid out in `docs/arch/copies.md`.

mod admin_link;
mod connection;
mod folder;
mod http;
mod snapshot;
mod start;
mod stores;
mod strangers;

pub use http::status;
pub use start::{StartConfig, init_creds, start};
