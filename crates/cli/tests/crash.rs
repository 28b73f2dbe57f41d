//! kill -9 of the admin server while it creates: the database is whole, and all that was acknowledged is there.
//!
//! CHRONOFS_CASES sets the number of rounds (5).

mod common;

use chronofs_wire::http::{AdminClient, Method};
use common::World;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[test]
fn every_acknowledged_create_outlives_kill_9() {
    let rounds = std::env::var("CHRONOFS_CASES").map_or(5, |n| n.parse().unwrap());
    let mut world = World::started();
    world.configure("create block-store b --kind local --path /srv/b").ok();
    world.configure("create metadata-store m").ok();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = AdminClient::new(&world.root.parse().unwrap()).unwrap();
    let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
    for round in 0..rounds {
        let before = acknowledged.lock().unwrap().len();
        let workers: Vec<_> = (0..4)
            .map(|worker| runtime.spawn(create(client.clone(), round, worker, acknowledged.clone())))
            .collect();
        // Another moment of the work in every round.
        std::thread::sleep(Duration::from_millis(300 + 37 * round));
        world.kill();
        for worker in workers {
            runtime.block_on(worker).unwrap();
        }
        assert!(acknowledged.lock().unwrap().len() > before, "round {round} created nothing");
        let check: String =
            world.database().query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok", "round {round}");
        world.start();
        let list: Value = serde_json::from_str(&world.configure("list volume --json").ok()).unwrap();
        let found: BTreeSet<String> = list
            .as_array()
            .unwrap()
            .iter()
            .map(|volume| volume["name"].as_str().unwrap().to_owned())
            .collect();
        let lost: Vec<_> = acknowledged.lock().unwrap().difference(&found).cloned().collect();
        assert!(lost.is_empty(), "round {round} lost {lost:?}");
    }
}

/// Creates volumes until the server is gone.
async fn create(client: AdminClient, round: u64, worker: u32, acknowledged: Arc<Mutex<BTreeSet<String>>>) {
    for n in 0.. {
        let name = format!("v-{round}-{worker}-{n}");
        let body = json!({"name": name, "block_store": "b", "metadata_store": "m"});
        match client.call::<Value>(Method::POST, "/v1/volumes", Some(&body)).await {
            Ok(_) => acknowledged.lock().unwrap().insert(name),
            Err(error) if error.is_transient() => return,
            Err(error) => panic!("{error}"),
        };
    }
}
