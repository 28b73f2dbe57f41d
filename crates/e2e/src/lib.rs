//! Harness of the end-to-end tests: real servers as processes, real mounts, real files.
//!
//! It knows chronofs only from outside (command line, files, mounts); it may depend on `chronofs-core` for the
//! spelling of instants, on `chronofs-wire` for tokens and certificates, and on nothing else of the workspace, so that a
//! test cannot pass because of shared code. Tests of block stores alone (`tests/object_stores.rs`) use `chronofs-blocks`,
//! since the servers that they need are here.
//! A failure here is the failure of a test, therefore it panics with a message instead of returning errors.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a harness: a failure ends the test with its message"
)]

pub mod bearer_front;
pub mod change;
pub mod clone;
pub mod disk;
pub mod drill;
pub mod gcs_double;
pub mod http;
pub mod installation;
pub mod log_copies;
pub mod lying_proxy;
pub mod machine;
pub mod manifest;
pub mod model;
pub mod network;
pub mod object_server;
pub mod place;
pub mod process;
pub mod rng;
pub mod services;
pub mod snapshot;
pub mod tls_front;
pub mod tree;

pub use installation::{Installation, Mount};
pub use manifest::Manifest;
pub use place::Place;
pub use rng::Rng;

/// The number in environment variable `name`, or `default`: how the long variants of tests are asked for.
pub fn env_number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

/// The seed of a test: `CHRONOFS_SEED` or one drawn from the clock; printed, so that a failure can be run again.
pub fn seed(test: &str) -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = env_number("CHRONOFS_SEED", clock % 1_000_000_000);
    println!("{test}: CHRONOFS_SEED={seed}");
    seed
}

/// Ends the test with a clear message where it cannot run; nothing is skipped silently.
pub fn require_root_and_fuse() {
    assert!(
        rustix::process::geteuid().is_root(),
        "end-to-end tests mount file systems and set owners: run them as root (scripts/test does not change user)"
    );
    assert!(
        std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok(),
        "end-to-end tests need /dev/fuse: load the module (modprobe fuse) or give the container the device"
    );
}
