//! Disk snapshots: the program that a server runs for each of its roles, the images it makes, and what becomes of a set
//! of them.
//!
//! It knows no server: who wants a program run, hands in plain values and gets plain values back. Clocks are read only
//! where a program is waited for.

pub mod agent;
pub mod cluster_file;
pub mod code;
pub mod create;
mod error;
pub mod images;
pub mod label;
pub mod manifest;
pub mod name;
pub mod protocol;
pub mod record;
pub mod restore;
pub mod run;
pub mod server;
pub mod tree;
pub mod whitelist;

pub use agent::Agent;
pub use code::SnapshotCode;
pub use create::create;
pub use error::Error;
pub use manifest::{Manifest, Method};
pub use name::{Address, Role, SnapshotUid};
pub use run::{Abort, End, Guard, Invocation, Limits, Report, Whereabouts, run};
pub use server::Server;
pub use whitelist::{NotWhitelisted, Program, Whitelist};
