//! `chronofs restore`: from the images of a disk snapshot to folders that a new cluster starts on.

use crate::clone::{self, Committed, Wanted};
use crate::cluster::AdminArgs;
use crate::in_place;
use crate::output::{self, Column};
use crate::snap_create::now;
use anyhow::{Context, Result, bail};
use chronofs_core::Retention;
use chronofs_snapshot::Address;
use chronofs_snapshot::restore::own::{self, OwnSet};
use chronofs_snapshot::restore::{self, Attached, Machine, Mapping, Plan, Prepared, Set, Source};
use chronofs_snapshot::tree::Depth;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

const EXAMPLE: &str = "Example:\n  chronofs restore plan /mnt/backup/UID --map 10.0.0.1:4500=10.0.1.1:4500";

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Show what would go where, or why the set is refused
    #[command(after_help = EXAMPLE)]
    Plan {
        #[command(flatten)]
        from: Origin,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put the set into a folder per server: data, cluster file and a record of both
    #[command(
        after_help = "Example:\n  chronofs restore prepare /mnt/backup/UID --map-file map --out /mnt/restore"
    )]
    Prepare {
        #[command(flatten)]
        from: Origin,
        /// Folder to make the servers' folders in, each named by its new address
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Prepare only this server: with this old or new address; of chronofs with --in-place, also by its name
        #[arg(long, value_name = "SERVER")]
        only: Option<String>,
        /// For servers of chronofs that are lost, and whose place the restored ones take: same cluster, same tokens; what the old
        /// ones may still do is refused
        #[arg(long)]
        in_place: bool,
        /// The restore of the admin server is later than the one with this epoch, whatever the clock says; metadata servers that
        /// refuse it name the number
        #[arg(
            long,
            value_name = "EPOCH",
            default_value_t = 0,
            hide_default_value = true,
            requires = "in_place"
        )]
        after: u64,
        /// Check everything and write nothing
        #[arg(long)]
        dry_run: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Compare every byte of prepared folders with what was put there
    Verify {
        /// Folder of restore prepare, or of one server in it
        dir: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show which servers were prepared in a folder; without one, how the restored cluster is
    #[command(after_help = "Example:\n  chronofs restore status --wait 60s")]
    Status {
        /// Folder of restore prepare, or of one server in it
        dir: Option<PathBuf>,
        /// Wait so long for the restored cluster to be healthy
        #[arg(long, value_name = "TIME", conflicts_with = "dir")]
        wait: Option<Retention>,
        #[command(flatten)]
        asked: AdminArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say that a restored cluster is as it should be: from now on it forgets and deletes what nothing needs any more
    Accept {
        #[command(flatten)]
        asked: AdminArgs,
        /// Say what would be accepted, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Have a clone registered no longer as a reader of its snapshot, so that the source may delete what the snapshot keeps
    Detach {
        #[command(flatten)]
        asked: AdminArgs,
        /// Have the clone copy what it needs of the source's objects, so that it can detach when that is done
        #[arg(long)]
        copy: bool,
        /// Stop copying; what was copied stays so
        #[arg(long, conflicts_with = "copy")]
        cancel: bool,
        /// Also while the clone needs objects of the source: files of it may lose their bytes then
        #[arg(long, conflicts_with_all = ["copy", "cancel"])]
        force: bool,
        /// Say what would be done, or why it would be refused, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// What is restored, and to where.
#[derive(Args, Debug)]
pub(crate) struct Origin {
    /// Folder of the snapshot's images, named by its UID; ADDRESS=DIR if it holds those of one server without its address
    #[arg(value_name = "[ADDRESS=]DIR", required = true)]
    sets: Vec<Source>,
    /// New address of a server
    #[arg(long, value_name = "OLD=NEW")]
    map: Vec<String>,
    /// File with a line OLD=NEW for each server
    #[arg(long, value_name = "FILE")]
    map_file: Option<PathBuf>,
    /// Cluster file of the source cluster, for images that hold none
    #[arg(long, value_name = "FILE")]
    cluster_file: Option<PathBuf>,
    /// Where the files of an image are that is a snapshot of a volume
    #[arg(long, value_name = "ADDRESS/ROLE=DIR")]
    attached: Vec<Attached>,
    #[command(flatten)]
    committed: Committed,
}

impl Origin {
    /// Where a set of chronofs' own servers goes, if it is one.
    fn own<'a>(&'a self, (in_place, only): (bool, Option<&'a str>)) -> Result<Option<Wanted<'a>>> {
        let folders: Vec<PathBuf> = self.sets.iter().map(|source| source.folder.clone()).collect();
        if !OwnSet::is_here(&folders)? {
            if self.committed.is_given() {
                bail!(
                    "no image here is of chronofs, and those of FoundationDB have no record: leave --record and --accept-uncommitted out"
                );
            }
            return Ok(None);
        }
        if self.sets.iter().any(|source| source.address.is_some()) || self.cluster_file.is_some() {
            bail!(
                "images of chronofs say themselves whose they are: name folders without ADDRESS=, and no --cluster-file"
            );
        }
        let (map, map_file) = (&self.map[..], self.map_file.as_deref());
        Ok(Some(Wanted { folders, committed: &self.committed, map, map_file, in_place, only }))
    }

    fn plan(&self) -> Result<Plan> {
        let mapping = Mapping::read(&self.map, self.map_file.as_deref())?;
        let set = Set::read(&self.sets, &self.attached, self.cluster_file.as_deref())?;
        Ok(Plan::new(&set, &mapping)?)
    }
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Plan { from, json } => match from.own((false, None)).context("restore plan")? {
            Some(wanted) => clone::plan(&wanted, json).context("restore plan"),
            None => show_plan(&from.plan().context("restore plan")?, json),
        },
        Command::Prepare { from, out, only, in_place, after, dry_run, json } => {
            if let Some(wanted) = from.own((in_place, only.as_deref())).context("restore prepare")? {
                if in_place {
                    return in_place::prepare(&wanted, &out, after, dry_run, json).context("restore prepare");
                }
                if only.is_some() {
                    bail!(
                        "restore prepare: the servers of a clone are prepared together: leave --only out; to put a server back that \
                         is lost, add --in-place"
                    );
                }
                return clone::prepare(&wanted, &out, dry_run, json).context("restore prepare");
            }
            if in_place {
                bail!("restore prepare: --in-place is for servers of chronofs, and these images are not");
            }
            let only: Option<Address> =
                only.map(|only| only.parse()).transpose().context("restore prepare: --only")?;
            let plan = from.plan().context("restore prepare")?;
            let folders =
                restore::prepare(&plan, &out, only.as_ref(), dry_run, &now()).context("restore prepare")?;
            show_prepared(&plan, &folders, dry_run, json)
        }
        Command::Verify { dir, json } => verify(&dir, json).context("restore verify"),
        Command::Status { dir: Some(dir), json, .. } => {
            let found = own::look(&dir, Depth::Sizes).context("restore status")?;
            match found.is_empty() {
                true => show_state(&restore::status(&dir).context("restore status")?, json),
                false => clone::show_folders(&found, json),
            }
        }
        Command::Status { dir: None, wait, asked, json } => {
            let wait = match wait {
                None | Some(Retention::None) => None,
                Some(Retention::Seconds(seconds)) => Some(Duration::from_secs(seconds)),
                Some(Retention::Forever) => Some(Duration::MAX),
            };
            clone::status(&asked, wait, json).context("restore status")
        }
        Command::Accept { asked, dry_run, json } => {
            clone::accept(&asked, dry_run, json).context("restore accept")
        }
        Command::Detach { asked, copy, cancel, force, dry_run, json } => match copy || cancel {
            true => clone::copy(&asked, copy, dry_run, json),
            false => clone::detach(&asked, force, dry_run, json),
        }
        .context("restore detach"),
    }
}

fn verify(dir: &Path, json: bool) -> Result<()> {
    let found = own::look(dir, Depth::Content)?;
    let damages: Vec<String> = if found.is_empty() {
        let prepared = restore::verify(dir)?;
        show_state(&prepared, json)?;
        let told = |p: &Prepared| {
            p.state
                .damages
                .iter()
                .map(|damage| format!("{}: {damage}", p.folder.display()))
                .collect::<Vec<_>>()
        };
        prepared.iter().flat_map(told).collect()
    } else {
        clone::show_folders(&found, json)?;
        let told = |f: &own::Found| {
            f.damages.iter().map(|damage| format!("{}: {damage}", f.folder.display())).collect::<Vec<_>>()
        };
        found.iter().flat_map(told).collect()
    };
    damages.iter().for_each(output::note);
    match damages.is_empty() {
        true => Ok(()),
        false => bail!(
            "{} is not as it was prepared: if no server was started on it, prepare it anew",
            dir.display()
        ),
    }
}

const PARTS: [Column; 8] = [
    ("OLD", "old"),
    ("NEW", "new"),
    ("ROLE", "role"),
    ("CREATED", "created"),
    ("FILES", "files"),
    ("SIZE", "bytes"),
    ("CHECKSUMS", "checksums"),
    ("IMAGE", "image"),
];

fn show_plan(plan: &Plan, json: bool) -> Result<()> {
    if json {
        return output::line(serde_json::to_string_pretty(plan)?);
    }
    let mut rows = Vec::new();
    for machine in &plan.machines {
        for part in &machine.parts {
            let mut row = serde_json::to_value(part)?;
            row["old"] = json!(machine.old.to_string());
            row["new"] = json!(machine.new.to_string());
            rows.push(row);
        }
    }
    output::line(output::table(&PARTS, &rows))?;
    output::line(format_args!("\nsnapshot      {}\ncluster file  {}", plan.uid, plan.cluster_file))?;
    warn_of_unknown(plan);
    Ok(())
}

fn warn_of_unknown(plan: &Plan) {
    let parts = || plan.machines.iter().flat_map(|machine| &machine.parts);
    let unknown = parts().filter(|part| !part.checksums).count();
    if unknown > 0 {
        let all = parts().count();
        output::warn(format_args!(
            "{unknown} of {all} images hold no checksums: what was damaged in them since cannot be seen here"
        ));
    }
}

fn show_prepared(plan: &Plan, folders: &[PathBuf], dry_run: bool, json: bool) -> Result<()> {
    let machine_of = |folder: &Path| {
        let name = folder.file_name().unwrap_or_default();
        plan.machines.iter().find(|machine| name == machine.new.to_string().as_str())
    };
    if json {
        let rows = folders.iter().map(|folder| {
            let start = machine_of(folder).map(|machine| start_line(machine, folder));
            json!({ "folder": folder, "prepared": !dry_run, "start": start })
        });
        return output::line(serde_json::to_string_pretty(&rows.collect::<Vec<Value>>())?);
    }
    for folder in folders {
        let Some(machine) = machine_of(folder) else { continue };
        let done = if dry_run { "would prepare" } else { "prepared" };
        output::line(format_args!("{done} {}", folder.display()))?;
        output::line(format_args!("  start with  {}", start_line(machine, folder)))?;
        if !machine.command_line.is_empty() {
            output::line(format_args!("  was         {}", machine.command_line.join(" ")))?;
        }
    }
    warn_of_unknown(plan);
    Ok(())
}

/// How the server is started on its folder. Its other options it takes from its configuration, as before.
fn start_line(machine: &Machine, folder: &Path) -> String {
    let shown = folder.display();
    let new = &machine.new;
    let mut line =
        format!("fdbserver --cluster-file {shown}/fdb.cluster --public-address {new} --datadir {shown}/data");
    for (key, value) in &machine.locality {
        line += &format!(" --locality-{key} {value}");
    }
    line
}

fn show_state(prepared: &[Prepared], json: bool) -> Result<()> {
    if json {
        return output::line(serde_json::to_string_pretty(prepared)?);
    }
    let rows: Vec<Value> = prepared
        .iter()
        .map(|p| {
            let record = &p.record;
            let bytes: u64 = record.entries.iter().map(|entry| entry.size).sum();
            json!({
                "old": record.old.to_string(), "new": record.new.to_string(), "uid": record.uid.as_str(),
                "prepared": record.prepared, "files": record.entries.len(), "bytes": bytes, "folder": p.folder,
                "state": if p.state.whole { "as prepared" } else { "changed" },
            })
        })
        .collect();
    let columns = [
        ("OLD", "old"),
        ("NEW", "new"),
        ("UID", "uid"),
        ("PREPARED", "prepared"),
        ("FILES", "files"),
        ("SIZE", "bytes"),
        ("STATE", "state"),
        ("FOLDER", "folder"),
    ];
    output::line(output::table(&columns, &rows))
}
