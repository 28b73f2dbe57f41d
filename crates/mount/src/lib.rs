//! The mount client: the data path of files, the VFS and its FUSE face.
//!
//! Follow a request through the modules: `fuse` takes it from the kernel, `vfs` answers it from a cache or asks
//! the server over the session that [`connection`] keeps, [`data`] carries the bytes of files, `objects` knows the
//! ways to the block store; `process` starts, stops and lists mounts. `keys` has the keys of an encrypted
//! volume. It may depend on `core`, `wire`, `blocks` and the crate `keys`.

mod clock;
pub mod connection;
pub mod data;
mod fuse;
mod keys;
mod objects;
mod process;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod testing;
mod vfs;

pub use chronofs_blocks::StoreOutage;
pub use keys::{KeyError, KeyRing};
pub use objects::direct::DirectKeys;
pub use objects::outage::OnStoreOutage;
pub use process::{
    DiskCacheSpec, Listed, MountError, MountOptions, MountSpec, Mounted, StartConfig, State, handed_secret,
    instant, is_child, list, start, stop,
};
pub use vfs::Status;
