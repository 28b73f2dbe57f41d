//! The vocabulary of chronofs: instants and versions, ids, attributes, names, slices, requests and errors.
//!
//! Every other crate speaks in these types and this crate depends on none of them. It does no I/O, reads no
//! clock and draws no random numbers: what needs them takes them as arguments.

pub mod attr;
pub mod errno;
pub mod id;
pub mod name;
pub mod ops;
pub mod signed;
pub mod slice;
pub mod store;
pub mod time;
pub mod volume;

pub use attr::{Attr, Caller, FileKind, SetAttr, SetTime};
pub use errno::Errno;
pub use id::{Ino, ObjectId, SessionId, SliceId, VolumeIndex};
pub use name::Name;
pub use signed::SignedRequest;
pub use time::{Retention, Version};
