//! Two clusters on one machine: whoever holds the cluster file of one does not talk to the other.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure ends the test with its message")]

use std::fs;
use std::path::PathBuf;

use chronofs_e2e::Installation;
use chronofs_e2e::process::{Process, free_address, run, text, text_of};

fn cluster_file(installation: &Installation) -> PathBuf {
    installation.path("admin").join("chronofs.cluster")
}

/// `description:id` in a cluster file.
fn name_in(path: &PathBuf) -> String {
    let line = fs::read_to_string(path).unwrap().lines().last().unwrap().to_owned();
    line.split_once('@').unwrap().0.to_owned()
}

#[test]
fn a_cluster_file_leads_to_its_cluster_and_to_no_other() {
    let mut ours = Installation::start();
    let other = Installation::start();
    ours.create_volume("v", &[]);
    let (file, foreign) = (cluster_file(&ours), cluster_file(&other));
    let names = [name_in(&file), name_in(&foreign)];
    assert_ne!(names[0], names[1]);
    let refused_by_name = |said: &str| {
        assert!(names.iter().all(|name| said.contains(name)) && said.contains("--cluster-file"), "{said}");
    };

    // A tool: by the option, by the variable, and at the usual place.
    let list = ["configure", "list", "volume"];
    assert!(ours.ok(&[&list[..], &["--cluster-file", text(&file)]].concat()).contains('v'));
    let wrong = ours.path("wrong.cluster");
    fs::write(&wrong, fs::read_to_string(&file).unwrap().replace(&names[0], &names[1])).unwrap();
    refused_by_name(&ours.fails(&[&list[..], &["--cluster-file", text(&wrong)]].concat()));
    let output = run(ours.command(&list).env("CHRONOFS_CLUSTER_FILE", &wrong));
    assert_eq!(output.status.code(), Some(1));
    refused_by_name(&text_of(&output));
    let usual = ours.path("etc").join("chronofs.cluster");
    fs::copy(&wrong, &usual).unwrap();
    refused_by_name(&ours.fails(&list));
    fs::copy(&file, &usual).unwrap();
    ours.ok(&list);
    // The other cluster's own file leads to the other's server, whose certificate the token does not know.
    let said = ours.fails(&[&list[..], &["--cluster-file", text(&foreign)]].concat());
    assert!(said.contains("certificate") && said.contains("cluster file"), "{said}");
    for (content, why) in [("", "0 of its lines"), ("\nlab:1@h:0\n", "line 2")] {
        fs::write(&usual, content).unwrap();
        let said = ours.fails(&list);
        assert!(said.contains(why) && said.contains(text(&usual)), "{said}");
    }
    fs::remove_file(&usual).unwrap();
    let said = ours.fails(&[&list[..], &["--cluster-file", "/nowhere/c"]].concat());
    assert!(said.contains("/nowhere/c"), "{said}");

    // A mount.
    let token = ours.create_token("v", &[]);
    let mut mount = ours.mount_with("v", &token, &["--cluster-file", text(&file)]);
    mount.unmount();
    let dir = ours.path("mnt-wrong");
    fs::create_dir(&dir).unwrap();
    let options = format!("cluster-file={}", text(&wrong));
    let start = ["mount", "start", "v", text(&dir), "--foreground", "--token", &token, "-o", &options];
    refused_by_name(&ours.fails(&start));

    // Servers, also while the admin server is away.
    ours.meta.stop();
    let folder = ours.path("meta");
    let (bind, http) = (free_address().to_string(), free_address().to_string());
    let start = ["meta", "start", "--db-folder", text(&folder), "--bind-addr", &bind, "--http-addr", &http];
    let with = |file: &PathBuf| [&start[..], &["--cluster-file", text(file)]].concat().join(" ");
    refused_by_name(&ours.fails(&with(&wrong).split(' ').collect::<Vec<_>>()));
    ours.admin.stop();
    refused_by_name(&ours.fails(&with(&wrong).split(' ').collect::<Vec<_>>()));
    let admin = ours.path("admin");
    let start = ["admin", "start", "--db-folder", text(&admin), "--bind-addr", &bind];
    refused_by_name(&ours.fails(&[&start[..], &["--cluster-file", text(&wrong)]].concat()));

    // A metadata server that has never been told its cluster is told at its first word with the admin server.
    ours.start_admin();
    fs::remove_file(folder.join("registered.json")).unwrap();
    refused_by_name(&ours.fails(&with(&wrong).split(' ').collect::<Vec<_>>()));
    let arguments = with(&file);
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let mut meta = Process::new("meta", &arguments, &[], &ours.path("meta-again.log"));
    meta.start();
    ours.create_volume("w", &[]);
    meta.assert_running();
    meta.stop();
}

#[test]
fn an_admin_server_that_moved_is_found_by_the_cluster_file_alone() {
    let mut installation = Installation::start();
    installation.create_volume("v", &[]);
    let file = cluster_file(&installation);
    let (before, now) = (installation.admin_address.to_string(), free_address());
    installation.admin.stop();
    let line = fs::read_to_string(&file).unwrap();
    fs::write(&file, line.replace(&before, &now.to_string())).unwrap();
    let folder = installation.path("admin");
    let (shown, log) = (now.to_string(), installation.path("moved.log"));
    let arguments = ["admin", "start", "--db-folder", text(&folder), "--bind-addr", &shown];
    installation.admin = Process::new("admin", &arguments, &[], &log);
    installation.admin_address = now;
    installation.start_admin();
    let list = ["configure", "list", "volume"];
    assert!(installation.fails(&list).contains(&before));
    assert!(installation.ok(&[&list[..], &["--cluster-file", text(&file)]].concat()).contains('v'));
    // So does the metadata server, which goes on with what it knows until it is started with the file.
    installation.meta.stop();
    let (meta, address) = (installation.path("meta"), installation.meta_address.to_string());
    let (http, log) = (installation.http_address.to_string(), installation.path("meta-moved.log"));
    let mut arguments = vec!["meta", "start", "--db-folder", text(&meta), "--bind-addr", &address];
    arguments.extend(["--http-addr", &http, "--cluster-file", text(&file)]);
    installation.meta = Process::new("meta", &arguments, &[], &log);
    installation.start_meta();
    // New tokens name the new address.
    let made = installation.ok(&[
        &["configure", "create", "volume-token", "--volume", "v", "--cluster-file"][..],
        &[text(&file)],
    ]
    .concat());
    let token = chronofs_e2e::installation::token_in(&made);
    let mut mount = installation.mount_with("v", &token, &[]);
    mount.unmount();
}
