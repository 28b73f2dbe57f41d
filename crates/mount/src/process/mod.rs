//! The mount as a process: starting, stopping, listing, and asking it for an instant.

mod control;
mod daemon;
mod error;
mod mounted;
mod mountinfo;
mod options;
pub(crate) mod procstatus;
mod start;

pub use control::{Listed, State, instant, list, stop};
pub use daemon::{handed_secret, is_child};
pub use error::MountError;
pub use mounted::{DiskCacheSpec, MountSpec, Mounted};
pub use options::MountOptions;
pub use start::{StartConfig, start};
