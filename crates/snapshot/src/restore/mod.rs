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

use crate::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

/// The folders below `out`, and it itself, in order.
fn folders_in(out: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut folders = vec![out.to_owned()];
    for entry in fs::read_dir(out).map_err(Error::io("list", out))? {
        let entry = entry.map_err(Error::io("list", out))?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        folders.extend((!hidden && entry.path().is_dir()).then(|| entry.path()));
    }
    folders.sort();
    Ok(folders)
}
