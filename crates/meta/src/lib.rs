//! The metadata server: sessions, executor, connections, and the link to the admin server.
//!
//! Follow a request: [`server`] reads its frame from a TLS connection and queues it, [`executor`] drains what is
//! queued, [`machine`] decides it over the namespace, the engine takes the commits of the whole group at once, and
//! only then the answers go into the connections' buffers. It may depend on every crate below `mount`.

pub mod admin_link;
pub mod analyze;
mod ask;
pub mod collect;
mod copies;
pub mod core;
mod described;
mod emptied;
pub mod executor;
pub mod files;
mod foreign;
mod holds;
pub mod http;
mod kept;
mod keys;
pub mod machine;
pub mod metrics;
pub mod pack;
mod pins;
mod questions;
mod rates;
mod reader;
mod repair;
mod restored;
pub mod server;
mod snapshot;
mod start;
mod stores;
mod sync;
mod verify;
mod watched;

pub use ask::{gc, gc_status, status};
pub use chronofs_namespace::rows::Sum;
pub use repair::{Repaired, repair};
pub use start::{Server, StartConfig, Timing, begin_anew, go_on_from_old_copy, init_creds, start};
pub use verify::{Checked, Verified, verify};
pub use watched::StoreStatus;
