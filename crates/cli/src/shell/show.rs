//! The status of a cluster as people read it, and as JSON.

use crate::output::{self, Column, show_size};
use anyhow::Result;
use chronofs_wire::status::{ClusterStatus, Member, MemberState, MetaSaid, ProcessStatus};
use jiff::{Timestamp, Zoned};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How much is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Detail {
    /// The cluster in sum.
    Short,
    /// Each server.
    Each,
    /// All that is known.
    Json,
}

/// The status, at `now` of this machine.
pub(super) fn status(
    status: &ClusterStatus,
    detail: Detail,
    cluster_file: Option<&Path>,
    now: &Zoned,
) -> Result<String> {
    if detail == Detail::Json {
        let mut all = serde_json::to_value(status)?;
        all["client"] = json!({
            "cluster_file": cluster_file.map(|path| path.display().to_string()),
            "now_ns": u64::try_from(now.timestamp().as_nanosecond()).unwrap_or(0),
            "version": env!("CARGO_PKG_VERSION"),
        });
        return Ok(serde_json::to_string_pretty(&all)?);
    }
    let said: Vec<(&Member, MetaSaid)> =
        status.members.iter().filter_map(|member| Some((member, member.understood()?))).collect();
    let mut text = in_sum(status, &said, now);
    if detail == Detail::Each {
        text.push_str("\n\nServers:\n");
        text.push_str(&indented(&servers(status, &said)));
    }
    text.push_str(&format!("\n\nClient time: {}", clock(now)));
    Ok(text)
}

/// A part of the status: its title, and lines of a name and what it is.
type Section = (&'static str, Vec<(&'static str, String)>);

fn in_sum(status: &ClusterStatus, said: &[(&Member, MetaSaid)], now: &Zoned) -> String {
    let configuration = vec![
        ("Redundancy mode", "single".to_owned()),
        ("Storage engine", "rocksdb behind a log".to_owned()),
        // Several addresses are addresses of one admin server.
        ("Coordinators", "1".to_owned()),
    ];
    let mut backup = vec![
        ("Running snapshots", status.running_snapshots.to_string()),
        ("Running backups", status.running_backups.to_string()),
    ];
    backup.extend(status.snapshot_readers.iter().map(|reader| ("Snapshot read by", reader.clone())));
    if let Some(restored) = &status.restored {
        let accepted = match restored.accepted_ns {
            Some(_) => "accepted",
            None => "not accepted, so nothing is forgotten or deleted",
        };
        backup.push(("Restored from", format!("{} ({accepted})", restored.uid)));
        let waits = |(_, said): &&(&Member, MetaSaid)| said.restored.as_ref().is_some_and(|of| !of.accepted);
        let restoring: Vec<&str> =
            said.iter().filter(waits).map(|(member, _)| member.name.as_str()).collect();
        if !restoring.is_empty() {
            backup.push(("Restoring servers", restoring.join(", ")));
        }
    }
    for server in &status.restored_servers {
        let accepted = match server.accepted_ns {
            Some(_) => "accepted",
            None => "not accepted, so nothing is forgotten or deleted there",
        };
        let (store, restore) = (&server.store, &server.restore);
        let what = format!("{store} from {}, epoch {} ({accepted})", restore.uid, restore.epoch);
        backup.push(("Restored in place", what));
    }
    if let Some(admin) = &status.restored_admin {
        let accepted = if admin.accepted_ns.is_some() { "accepted" } else { "not accepted" };
        backup.push(("Restored in place", format!("the admin server from {} ({accepted})", admin.uid)));
    }
    let mut sections = vec![("Configuration", configuration), cluster(status, said, now), data(status, said)];
    sections.extend(load(said));
    sections.push(("Backup", backup));
    let mut lines = Vec::new();
    for (title, entries) in sections {
        lines.push(format!("\n{title}:"));
        for (name, value) in entries {
            lines.push(format!("  {name:<22} - {value}"));
            if name == "Health" {
                lines.extend(status.faults.iter().map(|fault| format!("    {fault}")));
            }
            if name == "Running backups" {
                lines.extend(status.warnings.iter().map(|warning| format!("    warning: {warning}")));
            }
        }
    }
    lines.join("\n")
}

fn cluster(status: &ClusterStatus, said: &[(&Member, MetaSaid)], now: &Zoned) -> Section {
    let servers = status.log_servers.iter().filter(|server| server.state != MemberState::Unreachable);
    let servers = servers.filter_map(|server| Some(&server.said.as_ref()?.process));
    let processes: Vec<&ProcessStatus> =
        said.iter().map(|(_, said)| &said.process).chain([&status.coordinator]).chain(servers).collect();
    let machines: BTreeSet<&str> = processes.iter().map(|process| process.machine.as_str()).collect();
    let server_time = Timestamp::from_nanosecond(i128::from(status.now_ns)).unwrap_or_default();
    let mut lines = vec![
        ("chronofs processes", processes.len().to_string()),
        ("Metadata servers", format!("{} of {} answer", said.len(), status.members.len())),
        ("Machines", machines.len().to_string()),
        ("Memory availability", memory(&processes)),
        ("Fault tolerance", "0 machines".to_owned()),
        ("Server time", clock(&server_time.to_zoned(now.time_zone().clone()))),
    ];
    if !status.log_servers.is_empty() {
        let silent = [MemberState::Unreachable, MemberState::NeverSeen];
        let up = status.log_servers.iter().filter(|server| !silent.contains(&server.state)).count();
        lines.insert(2, ("Log servers", format!("{up} of {} are in touch", status.log_servers.len())));
    }
    ("Cluster", lines)
}

fn data(status: &ClusterStatus, said: &[(&Member, MetaSaid)]) -> Section {
    let sum = |of: fn(&MetaSaid) -> u64| said.iter().map(|(_, said)| of(said)).sum::<u64>();
    let health = match status.faults.len() {
        0 => "Healthy".to_owned(),
        1 => "Unhealthy: 1 fault".to_owned(),
        n => format!("Unhealthy: {n} faults"),
    };
    let holds_keys = said.iter().find(|(member, _)| member.key_space);
    let lines = vec![
        ("Health", health),
        ("Volumes", status.volumes.to_string()),
        ("Sum of file sizes", show_size(status.used_bytes)),
        ("Sum of key-value sizes", known(holds_keys.map(|(_, said)| show_size(said.keys.bytes)))),
        ("Disk space used", show_size(sum(|said| said.log_bytes + said.store_bytes) + status.database_bytes)),
    ];
    ("Data", lines)
}

fn load(said: &[(&Member, MetaSaid)]) -> [Section; 2] {
    let rate = |of: fn(&MetaSaid) -> f64| {
        let sum = || said.iter().map(|(_, said)| of(said)).sum::<f64>();
        known((!said.is_empty()).then(|| format!("{:.0} Hz", sum())))
    };
    let free = said.iter().map(|(_, said)| said.process.disk_free_bytes).min();
    let free = known(free.map(|bytes| format!("{} free on most full server", show_size(bytes))));
    let workload = vec![
        ("Read rate", rate(|said| said.rates.reads)),
        ("Write rate", rate(|said| said.rates.writes)),
        ("Transactions committed", rate(|said| said.rates.commits)),
    ];
    [
        ("Operating space", vec![("Storage server", free.clone()), ("Log server", free)]),
        ("Workload", workload),
    ]
}

/// What nobody says is not 0.
fn known(value: Option<String>) -> String {
    value.unwrap_or_else(|| "unknown".to_owned())
}

/// What is left for each process on the machine where that is least.
fn memory(processes: &[&ProcessStatus]) -> String {
    let mut machines: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for process in processes {
        let machine = machines.entry(&process.machine).or_insert((0, process.memory_free_bytes));
        *machine = (machine.0 + 1, machine.1.min(process.memory_free_bytes));
    }
    let least = machines.values().map(|(processes, free)| free / processes).min().unwrap_or(0);
    format!("{} per process on machine with least available", show_size(least))
}

fn servers(status: &ClusterStatus, said: &[(&Member, MetaSaid)]) -> String {
    let process = |process: &ProcessStatus| {
        let locality = process.locality.iter().map(|(key, value)| format!("{key}={value}"));
        json!({
            "locality": locality.collect::<Vec<_>>().join(","),
            "pid": process.pid, "host": process.host, "version": process.version,
            "uptime": duration(process.uptime_s), "memory_bytes": process.memory_bytes,
            "free_bytes": process.disk_free_bytes,
        })
    };
    let mut coordinator = process(&status.coordinator);
    coordinator["role"] = json!("coord");
    coordinator["address"] = json!(status.cluster.coordinators.join(","));
    coordinator["state"] = json!("healthy");
    coordinator["store_bytes"] = json!(status.database_bytes);
    let mut rows = vec![coordinator];
    for member in &status.members {
        let found = said.iter().find(|(of, _)| of.id == member.id).map(|(_, said)| said);
        let mut row = found.map_or_else(|| json!({}), |said| process(&said.process));
        row["role"] = json!(member.roles.join(","));
        row["name"] = json!(member.name);
        row["address"] = json!(member.address);
        row["state"] = json!(member.state);
        row["volumes"] = json!(member.volumes.len());
        if let Some(said) = found {
            row["store_bytes"] = json!(said.store_bytes);
            row["log_bytes"] = json!(said.log_bytes);
            row["sessions"] = json!(said.figures.sessions);
            row["rates"] = json!(format!(
                "{}/{}/{}",
                said.rates.reads.round(),
                said.rates.writes.round(),
                said.rates.commits.round()
            ));
        }
        rows.push(row);
    }
    for server in &status.log_servers {
        let mut row = server.said.as_ref().map_or_else(|| json!({}), |said| process(&said.process));
        row["role"] = json!("tlog");
        row["name"] = json!(server.stores.join(","));
        row["address"] = json!(server.address);
        row["state"] = json!(server.state);
        row["log_bytes"] =
            json!(server.said.as_ref().map(|said| said.copies.iter().map(|copy| copy.bytes).sum::<u64>()));
        rows.push(row);
    }
    let mut text = output::table(COLUMNS, &rows);
    for (row, member) in rows.iter().skip(1).zip(&status.members) {
        if row["pid"] == Value::Null
            && let Some(ago) = member.heard_s
        {
            text.push_str(&format!("\n{} was last heard of {} ago", member.name, duration(ago)));
        }
    }
    text
}

const COLUMNS: &[Column] = &[
    ("ADDRESS", "address"),
    ("ROLE", "role"),
    ("STORE", "name"),
    ("STATE", "state"),
    ("HOST", "host"),
    ("LOCALITY", "locality"),
    ("PROCESS", "pid"),
    ("UP", "uptime"),
    ("VERSION", "version"),
    ("MEMORY", "memory_bytes"),
    ("LOG", "log_bytes"),
    ("DATA", "store_bytes"),
    ("DISK FREE", "free_bytes"),
    ("VOLUMES", "volumes"),
    ("MOUNTS", "sessions"),
    ("READS/WRITES/COMMITS A SECOND", "rates"),
];

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn duration(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (0, hours, minutes, _) => format!("{hours}h{minutes:02}m"),
        (days, hours, ..) => format!("{days}d{hours:02}h"),
    }
}

fn clock(time: &Zoned) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_wire::admin::Cluster;
    use chronofs_wire::status::{LogServerStatus, RestoredCluster};
    use chronofs_wire::tlog::{HeldCopy, LogServerSaid};

    fn sample() -> ClusterStatus {
        let process = |pid: u32, machine: &str, free: u64| {
            json!({
                "pid": pid, "version": "0.1.0", "machine": machine, "host": "h", "uptime_s": 3725,
                "memory_bytes": 50 << 20, "memory_free_bytes": free, "disk_free_bytes": 70u64 << 30, "disk_bytes": 80u64 << 30
            })
        };
        let member = |name: &str, state, fault: Option<&str>, said: Option<Value>| Member {
            id: format!("00000000-0000-0000-0000-{:012}", name.len()).parse().unwrap(),
            name: name.to_owned(),
            roles: vec!["storage".to_owned(), "tlog".to_owned()],
            address: Some("10.0.0.2:8444".to_owned()),
            epoch: 2,
            state,
            fault: fault.map(str::to_owned),
            heard_s: Some(75),
            volumes: vec!["home".to_owned()],
            key_space: true,
            said,
        };
        let said = json!({
            "process": process(7, "m1", 6 << 30), "assigned": true, "log_bytes": 64 << 20, "store_bytes": 10 << 20,
            "figures": {"sessions": 3, "revision": 4}, "rates": {"reads": 9.4, "writes": 2.0, "commits": 1.6},
            "keys": {"keys": 2, "bytes": 22}
        });
        ClusterStatus {
            cluster: Cluster {
                description: "lab".to_owned(),
                id: "42".to_owned(),
                coordinators: vec!["10.0.0.1:8443".to_owned()],
                line: "lab:42@10.0.0.1:8443".to_owned(),
            },
            healthy: false,
            faults: vec!["metadata store 'gone': unreachable".to_owned()],
            now_ns: 1_800_000_000_000_000_000,
            coordinator: serde_json::from_value(process(5, "m1", 8 << 30)).unwrap(),
            database_bytes: 1 << 20,
            members: vec![
                member("names", MemberState::Healthy, None, Some(said)),
                member("gone", MemberState::Unreachable, Some("unreachable"), None),
            ],
            log_servers: Vec::new(),
            volumes: 2,
            used_bytes: 3 << 30,
            block_stores: 1,
            running_snapshots: 0,
            running_backups: 0,
            restored: None,
            restored_servers: Vec::new(),
            restored_admin: None,
            warnings: Vec::new(),
            snapshot_readers: Vec::new(),
        }
    }

    fn now() -> Zoned {
        "2027-01-15T08:00:01+00:00[UTC]".parse().unwrap()
    }

    #[test]
    fn the_status_reads_as_on_the_page() {
        let expected = "
Configuration:
  Redundancy mode        - single
  Storage engine         - rocksdb behind a log
  Coordinators           - 1

Cluster:
  chronofs processes     - 2
  Metadata servers       - 1 of 2 answer
  Machines               - 1
  Memory availability    - 3 GiB per process on machine with least available
  Fault tolerance        - 0 machines
  Server time            - 2027-01-15 08:00:00 UTC

Data:
  Health                 - Unhealthy: 1 fault
    metadata store 'gone': unreachable
  Volumes                - 2
  Sum of file sizes      - 3 GiB
  Sum of key-value sizes - 22 B
  Disk space used        - 75 MiB

Operating space:
  Storage server         - 70 GiB free on most full server
  Log server             - 70 GiB free on most full server

Workload:
  Read rate              - 9 Hz
  Write rate             - 2 Hz
  Transactions committed - 2 Hz

Backup:
  Running snapshots      - 0
  Running backups        - 0

Client time: 2027-01-15 08:00:01 UTC";
        assert_eq!(status(&sample(), Detail::Short, None, &now()).unwrap(), expected);
    }

    #[test]
    fn a_clone_says_what_it_was_restored_from_until_that_is_accepted() {
        let mut clone = sample();
        clone.restored = Some(RestoredCluster {
            uid: "c5".to_owned(),
            source: "lab:41".to_owned(),
            prepared_ns: 1,
            accepted_ns: None,
            copying_ns: None,
            detached_ns: None,
            stores: BTreeMap::new(),
        });
        if let Some(said) = &mut clone.members[0].said {
            said["restored"] = json!({ "uid": "c5", "accepted": false });
        }
        let text = status(&clone, Detail::Short, None, &now()).unwrap();
        assert!(text.contains("Restored from          - c5 (not accepted, so"), "{text}");
        assert!(text.contains("Restoring servers      - names\n"), "{text}");
        if let (Some(restored), Some(said)) = (&mut clone.restored, &mut clone.members[0].said) {
            restored.accepted_ns = Some(2);
            said["restored"]["accepted"] = json!(true);
        }
        let text = status(&clone, Detail::Short, None, &now()).unwrap();
        assert!(text.contains("c5 (accepted)") && !text.contains("Restoring"), "{text}");
    }

    #[test]
    fn log_servers_are_counted_and_those_that_are_down_are_seen() {
        let server = |name: &str, state, said| LogServerStatus {
            id: "00000000-0000-0000-0000-000000000009".parse().unwrap(),
            name: name.to_owned(),
            address: Some(format!("{name}:8446")),
            epoch: 1,
            state,
            fault: None,
            heard_s: Some(1),
            stores: vec!["names".to_owned()],
            said,
        };
        let copies = vec![HeldCopy { bytes: 5 << 20, ..HeldCopy::default() }];
        let said = LogServerSaid { copies, ..LogServerSaid::default() };
        let mut with = sample();
        with.log_servers = vec![
            server("near", MemberState::Healthy, Some(said)),
            server("far", MemberState::Unreachable, None),
        ];
        let text = status(&with, Detail::Each, None, &now()).unwrap();
        assert!(text.contains("Log servers            - 1 of 2 are in touch\n"), "{text}");
        assert!(text.contains("chronofs processes     - 3\n"), "{text}");
        let line =
            |word: &str| text.lines().find(|line| line.contains(word)).unwrap_or_else(|| panic!("{text}"));
        let near = line("near:8446");
        assert!(near.contains("tlog") && near.contains("healthy") && near.contains("5 MiB"), "{near}");
        assert!(line("far:8446").contains("unreachable"), "{text}");
    }

    #[test]
    fn what_nobody_says_is_not_zero() {
        let mut silent = sample();
        silent.members.iter_mut().for_each(|member| member.said = None);
        let text = status(&silent, Detail::Short, None, &now()).unwrap();
        for line in ["Read rate              - unknown", "Log server             - unknown", "0 of 2 answer"]
        {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(text.contains("Sum of key-value sizes - unknown"), "{text}");
    }

    #[test]
    fn details_have_a_line_for_each_server_and_json_has_all() {
        let text = status(&sample(), Detail::Each, None, &now()).unwrap();
        let line = |word: &str| {
            text.lines().find(|line| line.contains(word)).unwrap_or_else(|| panic!("{word}: {text}"))
        };
        assert!(line(" coord ").contains("10.0.0.1:8443"), "{text}");
        let names = line(" names ");
        for part in ["healthy", "storage,tlog", "1h02m", "64 MiB", "10 MiB", "9/2/2"] {
            assert!(names.contains(part), "{part}: {names}");
        }
        assert!(line(" gone ").contains("unreachable"), "{text}");
        assert!(text.contains("gone was last heard of 1m15s ago"), "{text}");
        let json = status(&sample(), Detail::Json, Some(Path::new("/etc/c")), &now()).unwrap();
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["client"]["cluster_file"], "/etc/c");
        assert_eq!(json["members"][1]["state"], "unreachable");
        assert_eq!(json["members"][0]["said"]["keys"]["keys"], 2);
    }
}
