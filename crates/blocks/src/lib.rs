//! Slices and objects: how the bytes of files are sealed, packed, named and kept in an object store.
//!
//! Follow a write through the modules: [`plan`] cuts it at the borders of blocks and decides where each slice
//! goes, [`seal`] compresses and checksums one slice, [`object`] puts several into one object, and [`store`]
//! keeps that object under a name of [`name`] that is never used twice. A read goes through [`layout`], which
//! says what each byte of a block shows, and back through [`store`] and [`seal`].
//!
//! A client with a disk to spare keeps sealed slices in a [`cache`].
//!
//! The crate depends on `core`, and on the crate `keys` for what is encrypted. Everything but [`store`], [`probe`], [`signed`] and [`cache`] is pure: no I/O, no
//! clock, no random numbers but those that encrypting takes. Nothing in here overwrites or deletes an object by itself: a store's owner says it ([`StorePort`]), and
//! [`probe`] does so with its own.

pub mod cache;
pub mod described;
pub mod grant;
pub mod hedge;
pub mod keys;
pub mod layout;
pub mod name;
pub mod note;
pub mod object;
pub mod outage;
pub mod pin;
pub mod plan;
pub mod port;
pub mod probe;
pub mod reader;
pub mod seal;
pub mod signed;
pub mod store;
#[cfg(test)]
mod testing;
pub mod work;

pub use cache::{CacheFigures, CacheSalvage, DiskCache};
pub use described::{Described, DescribedName};
pub use name::{object_name, parse_object_name};
pub use outage::{Outage, StoreOutage};
pub use pin::Pin;
pub use port::{ListPage, ObjectPort, ShownBy, StoreError, StorePort, Trouble};
pub use reader::Reader;
pub use store::{BlockStore, RemoteStore};
