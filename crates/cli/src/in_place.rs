//! `chronofs restore` of servers that are lost, in their own place: folders that go on as the same servers of the same cluster,
//! with the same tokens; and what is to be known of that once they run.

use crate::clone::{Wanted, show_prepared};
use crate::output::{self, Column};
use anyhow::{Context, Result, anyhow};
use chronofs_admin::InPlace;
use chronofs_core::Version;
use chronofs_snapshot::restore::own;
use chronofs_wire::cluster::CLUSTER_FILE;
use chronofs_wire::identity::random;
use chronofs_wire::status::{AcceptedRestores, ClusterStatus, RestoredSaid, RestoredServer};
use serde_json::{Value, json};
use std::path::Path;

/// `restore prepare --in-place`.
pub(crate) fn prepare(wanted: &Wanted<'_>, out: &Path, after: u64, dry_run: bool, json: bool) -> Result<()> {
    let (set, plan) = wanted.plan()?;
    if dry_run {
        for image in set.images.values() {
            own::check_files(image)?;
        }
    }
    // Without it a restored admin server would take the set for one that came to nothing, and have what it needs deleted.
    let record = wanted.committed.record()?;
    let record = record.ok_or_else(|| {
        anyhow!(
            "in place a set needs its record: --record FILE, which backup restore writes beside the images"
        )
    })?;
    let draw = [u64::from_le_bytes(random()?), u64::from_le_bytes(random()?)];
    let now = crate::snap_create::now();
    let staged = own::stage(&plan, out, &plan.source, draw, &now, dry_run)?;
    if dry_run {
        let folders = plan.machines.iter().map(|machine| (machine, out.join(machine.new.to_string())));
        return show_prepared(folders, true, json);
    }
    let admin = staged.machines().find(|(machine, _)| machine.is_coordinator());
    let file = match admin {
        None => None,
        Some((machine, data)) => {
            let moved = (machine.new != machine.old).then(|| machine.new.to_string());
            let with_servers = plan.machines.len() > 1;
            let file =
                chronofs_admin::prepare_in_place(&data, &InPlace { record, moved, with_servers, after })?;
            Some(file)
        }
    };
    if let Some(file) = &file {
        for (_, data) in staged.machines().filter(|(machine, _)| !machine.is_coordinator()) {
            file.write(&data.with_file_name(CLUSTER_FILE)).context("cluster file")?;
        }
    }
    let made = staged.finish()?;
    show_prepared(made.iter().map(|(machine, folder)| (machine, folder.clone())), false, json)?;
    for (_, folder) in made.iter().filter(|(machine, _)| !machine.is_coordinator() && !json) {
        output::line(format_args!(
            "  before that  chronofs meta init creds --db-folder {}/data --token TOKEN, with the token of its metadata store; if it is \
             lost: chronofs configure update metadata-store NAME --new-token",
            folder.display()
        ))?;
    }
    Ok(())
}

const SERVERS: [Column; 7] = [
    ("SERVER", "server"),
    ("EPOCH", "epoch"),
    ("FROM", "uid"),
    ("LOST AFTER", "cut"),
    ("LOST UNTIL", "began"),
    ("MADE EMPTY", "only_admin"),
    ("ACCEPTED", "accepted"),
];

fn row(status: &ClusterStatus, server: &RestoredServer) -> Value {
    let restore = &server.restore;
    let member = status.members.iter().find(|member| member.name == server.store);
    let said: Option<RestoredSaid> = member.and_then(|member| member.understood()?.restored);
    let said = said.unwrap_or_default();
    let accepted = server.accepted_ns.map_or_else(|| "no".to_owned(), |ns| Version(ns).to_string());
    json!({
        "server": server.store, "epoch": restore.epoch, "uid": restore.uid, "cut": Version(restore.cut_ns).as_of(),
        "began": restore.began_ns.map(|ns| Version(ns).to_string()), "only_admin": said.only_admin, "only_here": said.only_here,
        "accepted": accepted,
    })
}

/// How restores in place are.
pub(crate) fn show_status(status: &ClusterStatus, json: bool) -> Result<()> {
    let mut rows: Vec<Value> = status.restored_servers.iter().map(|server| row(status, server)).collect();
    if json {
        let all = json!({
            "restored": status.restored, "in_place": rows, "admin": status.restored_admin, "healthy": status.healthy,
            "faults": status.faults,
        });
        return output::line(serde_json::to_string_pretty(&all)?);
    }
    if let Some(admin) = &status.restored_admin {
        rows.push(json!({
            "server": "(admin)", "uid": admin.uid, "cut": Version(admin.cut_ns).as_of(),
            "began": Version(admin.prepared_ns).to_string(),
            "accepted": admin.accepted_ns.map_or_else(|| "no".to_owned(), |ns| Version(ns).to_string()),
        }));
    }
    output::line(format_args!("restored in place\n{}", output::table(&SERVERS, &rows)))?;
    let waits = status.restored_servers.iter().any(|server| server.accepted_ns.is_none())
        || status.restored_admin.as_ref().is_some_and(|admin| admin.accepted_ns.is_none());
    if let Some(admin) = status.restored_admin.as_ref().filter(|admin| admin.accepted_ns.is_none()) {
        for line in admin.to_review() {
            output::line(format_args!("\nto be looked at: {line}"))?;
        }
        let silent = status.members.iter().filter(|member| !admin.reviews.contains_key(&member.name));
        let silent: Vec<&str> = silent.map(|member| member.name.as_str()).collect();
        if !silent.is_empty() {
            output::line(format_args!(
                "\nnot known of the servers of {}: what they were told after the copy was made; look at chronofs configure list \
                 volume-token yourself",
                silent.join(", ")
            ))?;
        }
        output::line(
            "\nto be looked at: tokens of accounts, metadata stores and log servers, of which no other server knows whether they were \
             revoked after the copy was made (chronofs configure update account NAME --new-token)",
        )?;
    }
    if !waits {
        return Ok(());
    }
    output::line(
        "\nheld: nothing is forgotten or deleted by servers that are not accepted; objects that the lost server stored after the copy \
         was made stay in the block stores\nnext: look at the volumes, and at their lost+found; then chronofs restore accept",
    )
}

/// What would be accepted in place.
pub(crate) fn show_acceptable(waiting: &AcceptedRestores) -> Result<()> {
    for RestoredServer { store, restore, .. } in &waiting.servers {
        output::line(format_args!(
            "would accept the restore of {store} in place from {} (restore epoch {}): from then on it forgets and deletes again what \
             nothing needs; what the lost server stored stays",
            restore.uid, restore.epoch
        ))?;
    }
    if let Some(admin) = &waiting.admin {
        output::line(format_args!(
            "would accept the restore of the admin server from {}: volume tokens that are held back then open their volumes",
            admin.uid
        ))?;
    }
    Ok(())
}

/// What was accepted in place.
pub(crate) fn show_accepted(accepted: &AcceptedRestores) -> Result<()> {
    for server in &accepted.servers {
        let RestoredServer { store, restore, .. } = server;
        output::line(format_args!(
            "the restore of {store} in place from {} (restore epoch {}) is accepted: it forgets and deletes again what nothing needs; \
             what the lost server stored stays",
            restore.uid, restore.epoch
        ))?;
    }
    if let Some(admin) = &accepted.admin {
        output::line(format_args!(
            "the restore of the admin server from {} is accepted: volume tokens that were held back open their volumes",
            admin.uid
        ))?;
    }
    Ok(())
}
