//! A mount that begins while the server of its volume does not know yet under which epoch it owns that.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use chronofs_meta::executor::Input;
use chronofs_mount::connection::{Connection, OpenError, Source, Target, Wanted};
use std::path::Path;
use std::time::{Duration, Instant};

/// A mount that heard of the owner under `epoch`.
fn wanted(folder: &Path, epoch: u64) -> Wanted {
    Wanted {
        source: Source::Fixed(Target { epoch, ..common::target(folder) }),
        credentials: common::credentials(),
        client_name: "test".to_owned(),
        at: None,
        read_only: false,
        direct: false,
        sealed: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_begins_waits_a_while_for_a_server_to_hear_of_its_newest_epoch() {
    let folder = tempfile::tempdir().unwrap();
    common::create_blocks(folder.path());
    let server = common::serve(folder.path()).await;
    let opening = tokio::spawn(Connection::open(wanted(folder.path(), 5)));
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!opening.is_finished(), "the server is under an older epoch");
    server.queue.send(Input::Ask(Box::new(|core, _| core.machine.set_epoch(5)))).await.unwrap();
    let (connection, welcome, _events) = opening.await.unwrap().unwrap();
    assert_eq!(welcome.epoch, 5);
    connection.close().await;

    let begun = Instant::now();
    let refused = Connection::open(wanted(folder.path(), 6)).await.err().expect("a server that was replaced");
    assert!(matches!(refused, OpenError::OldOwner { found: 5, known: 6, .. }), "{refused}");
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_secs(10) && waited < Duration::from_secs(25), "{waited:?}");
}
