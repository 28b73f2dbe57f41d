//! Backups by schedule of a cluster that has an admin server only.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use chronofs_wire::http::Method;
use common::{Running, serving, started};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

async fn until(server: &Running, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        let backups = server.get("/v1/backups").await;
        assert!(begun.elapsed() < Duration::from_secs(90), "{what}: {backups}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn schedule(server: &Running, dest: &Path) {
    let new = json!({"name": "quick", "dest": dest, "key": "ab".repeat(32), "every_seconds": 10, "keep_seconds": 5});
    server.post("/v1/backup-schedules", new).await;
}

async fn complete(server: &Running) -> Vec<String> {
    let all = server.get("/v1/backups").await;
    let of_it = all.as_array().unwrap().iter().filter(|backup| backup["state"] == "COMPLETE");
    of_it.map(|backup| backup["uid"].as_str().unwrap().to_owned()).collect()
}

/// What the audit log says of what the schedule did with a backup.
async fn outcomes(server: &Running, action: &str, uid: &str) -> Vec<String> {
    let all = server.get("/v1/audit").await;
    let is_it = |row: &&Value| {
        row["who"] == "schedule quick" && row["action"] == action && row["object"] == format!("backup {uid}")
    };
    let found = all.as_array().unwrap().iter().filter(is_it);
    found.map(|row| row["outcome"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_backup_that_cannot_be_deleted_is_told_and_keeps_no_other_one_and_the_audit_log_has_all() {
    let server = started().await;
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    std::fs::create_dir(&first).unwrap();
    std::fs::create_dir(&second).unwrap();
    schedule(&server, &first).await;
    until(&server, "the first backup", async || !complete(&server).await.is_empty()).await;
    // Its place is gone for good, and the schedule of that name writes elsewhere.
    let path = "/v1/backup-schedules/quick";
    let _: Value = server.client.call(Method::DELETE, path, None::<&()>).await.unwrap();
    std::fs::remove_dir_all(&first).unwrap();
    let stuck = complete(&server).await;
    schedule(&server, &second).await;
    let others = async || -> Vec<String> {
        complete(&server).await.into_iter().filter(|uid| !stuck.contains(uid)).collect()
    };
    until(&server, "a backup in the other place", async || !others().await.is_empty()).await;
    let other = others().await.remove(0);
    until(&server, "that one to go", async || !others().await.contains(&other)).await;
    assert!(complete(&server).await.contains(&stuck[0]), "nobody can delete it");
    let problem = async || server.get("/v1/backup-schedules").await[0]["problem"].to_string();
    let named = format!("backup {}, whose time is over, cannot be deleted", stuck[0]);
    until(&server, "the schedule to say so", async || problem().await.contains(&named)).await;
    assert_eq!(outcomes(&server, "create", &other).await, ["done"]);
    assert_eq!(outcomes(&server, "delete", &other).await, ["done"]);
    assert!(outcomes(&server, "delete", &stuck[0]).await.iter().any(|said| said.starts_with("failed: ")));
}

async fn metrics(server: &Running) -> String {
    let tls = (*chronofs_wire::tls::client_config(server.root.pin).unwrap()).clone();
    let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap();
    let request = http.get(format!("https://{}/metrics", server.address));
    request.send().await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn without_a_schedule_and_any_backup_a_new_cluster_is_quiet_and_an_older_one_is_red() {
    const RED: &str = "chronofs_admin_backup_too_old{schedule=\"\"} 1";
    let server = started().await;
    assert!(!metrics(&server).await.contains("backup_too_old{"), "there is nothing to lose");
    server.with_volume().await;
    let faults = server.get("/v1/status").await["faults"].to_string();
    assert!(!faults.contains("recoverable point"), "{faults}");
    let shown = metrics(&server).await;
    assert!(shown.contains("chronofs_admin_backup_age_limit_seconds{schedule=\"\"} 129600"), "{shown}");
    assert!(!shown.contains(RED), "{shown}");

    let (folder, root, address) = server.stop().await;
    let database = chronofs_admin::db::Database::open(folder.path()).unwrap();
    database.write(|tx| Ok(tx.execute("UPDATE volume SET created_ns = 1", [])?)).unwrap();
    drop(database);
    let server = serving(folder, root, address).await;
    let status = server.get("/v1/status").await;
    assert_eq!(status["healthy"], false);
    let faults = status["faults"].to_string();
    assert!(faults.contains("backups: there is no recoverable point"), "{faults}");
    assert!(metrics(&server).await.contains(RED));
    assert_eq!(server.get("/v1/backup-schedules").await, json!([]));
    server.stop().await;
}
