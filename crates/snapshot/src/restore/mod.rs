//! From a set of images of FoundationDB to folders that a new cluster starts on: read the set, refuse what is not whole,
//! map old addresses to new ones, keep of each image what is its role's, write the new cluster file. Sets of our own servers
//! are in [`own`].
//!
//! What is decided (is the set whole, who goes where) reads a [`Set`] and touches nothing.

mod check;
pub mod own;
mod plan;
mod prepare;
mod refused;
mod set;

pub use check::{belongs, check};
pub use plan::{Machine, Mapping, Part, Plan};
pub use prepare::{Prepared, Record, State, prepare, status, verify};
pub use refused::Refused;
pub use set::{Attached, Image, Set, Source};
