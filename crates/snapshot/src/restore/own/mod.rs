//! From a set of images of our own servers to folders that a clone starts on. Labels say what an image is, wherever it was
//! brought and however its folder is called: so a set is found, counted, and checked byte by byte before anything is made.
//!
//! What is decided (is the set whole, who goes where) is apart from what is done.

mod check;
mod mark;
mod plan;
mod prepare;
mod refused;
mod set;
#[cfg(test)]
mod tests;

pub use check::{Proof, check, check_files};
pub use mark::{MARK, Mark};
pub use plan::{OwnMachine, OwnPart, OwnPlan};
pub use prepare::{ENGINE_PARTS, Found, Staged, look, stage};
pub use refused::Refused;
pub use set::{OwnImage, OwnSet};
