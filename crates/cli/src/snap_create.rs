//! `chronofs snap-create`: a program that servers run for a disk snapshot, and what else is done with its images.

use crate::output::{self, Column};
use anyhow::{Context, Result, anyhow, bail};
use chronofs_snapshot::create::{Request, image_folder};
use chronofs_snapshot::images::{self, Found, Which};
use chronofs_snapshot::server::{Given, Parent};
use chronofs_snapshot::{Address, Method, Role, Server, SnapshotUid, create};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::env;
use std::path::PathBuf;

/// What to do; all of it in one command, because a server puts its arguments behind those of its caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Action {
    /// Make an image
    Create,
    /// Show images
    List,
    /// Check images
    Verify,
    /// Delete the images of a snapshot, or some of them
    Delete,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MethodName {
    /// Read and write every file, leaving holes out
    Copy,
    /// Share the blocks of every file (btrfs, xfs)
    Reflink,
    /// Snapshot the subvolume, read-only
    Btrfs,
    /// Snapshot the logical volume (not tested)
    Lvm,
    /// Snapshot the dataset (not tested)
    Zfs,
    /// Run a program of your own
    Command,
}

#[derive(Args, Debug)]
pub(crate) struct SnapCreate {
    /// What to do
    #[arg(value_enum, default_value_t = Action::Create)]
    action: Action,
    /// Folder that images are kept in, as UID/ADDRESS/ROLE
    #[arg(long, value_name = "DIR")]
    destdir: PathBuf,
    /// How to make an image
    #[arg(long, value_enum, default_value_t = MethodName::Copy)]
    method: MethodName,
    /// Program of method command: a name in /etc/chronofs/snap-create.d
    #[arg(long, value_name = "NAME")]
    command: Option<String>,
    /// Data folder to make an image of
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Version of the server
    #[arg(long = "version", value_name = "VERSION")]
    server_version: Option<String>,
    /// Role of the data folder: storage, tlog or coord
    #[arg(long)]
    role: Option<Role>,
    /// UID of the snapshot
    #[arg(long)]
    uid: Option<SnapshotUid>,
    /// Address of the server, where the process that calls does not tell it
    #[arg(long, value_name = "IP:PORT")]
    address: Option<Address>,
    /// Cluster file of the server, where the process that calls does not tell it
    #[arg(long, value_name = "FILE")]
    cluster_file: Option<PathBuf>,
    /// Locality of the server, where the process that calls does not tell it
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    locality: Vec<(String, String)>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("'{text}' is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(crate) fn run(args: SnapCreate) -> Result<()> {
    match args.action {
        Action::Create => make(args).context("snap-create"),
        Action::List => list(&args).context("snap-create list"),
        Action::Verify => verify(&args).context("snap-create verify"),
        Action::Delete => delete(args).context("snap-create delete"),
    }
}

fn make(args: SnapCreate) -> Result<()> {
    let missing = |name: &str| {
        anyhow!("--{name} is missing: a server gives --path, --version, --role and --uid by itself")
    };
    let version = args.server_version.ok_or_else(|| missing("version"))?;
    let role = args.role.ok_or_else(|| missing("role"))?;
    let uid = args.uid.ok_or_else(|| missing("uid"))?;
    let locality = args.locality.into_iter().collect();
    let given = Given { address: args.address, cluster_file: args.cluster_file, locality };
    let server = Server::discover(given, |name| env::var(name).ok(), Parent::of_this_process()?)?;
    let path = args.path.or_else(|| server.data_folder.clone()).ok_or_else(|| missing("path"))?;
    let method = match args.method {
        MethodName::Copy => Method::Copy,
        MethodName::Reflink => Method::Reflink,
        MethodName::Btrfs => Method::Btrfs,
        MethodName::Lvm => Method::Lvm,
        MethodName::Zfs => Method::Zfs,
        MethodName::Command => Method::Command,
    };
    let created = now();
    let (destdir, command) = (args.destdir, args.command);
    let request = Request { destdir, method, path, version, role, uid, server, created, command };
    let manifest = create(&request)?;
    if args.json {
        return output::line(serde_json::to_string_pretty(&manifest)?);
    }
    let image = image_folder(&request.destdir, &manifest.uid, &manifest.address, manifest.role);
    output::line(format_args!("image {} of {} by {}", image.display(), manifest.name, manifest.method))
}

/// Now, to the second.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn which(args: &SnapCreate) -> Which {
    Which { uid: args.uid.clone(), address: args.address.clone(), role: args.role }
}

const COLUMNS: [Column; 7] = [
    ("UID", "uid"),
    ("ADDRESS", "address"),
    ("ROLE", "role"),
    ("CREATED", "created"),
    ("METHOD", "method"),
    ("SIZE", "bytes"),
    ("STATE", "state"),
];

/// What is shown of an image that is no more than found.
fn row(image: &Found) -> Value {
    let role = image.folder.file_name().map(|name| name.to_string_lossy().trim_start_matches('.').to_owned());
    let role = role.as_deref().and_then(|name| name.split('.').next());
    let mut row = json!({ "uid": image.uid.as_str(), "address": image.address.to_string(), "role": role });
    row["folder"] = json!(image.folder);
    match &image.manifest {
        Ok(Some(manifest)) => {
            row["created"] = json!(manifest.created);
            row["method"] = json!(manifest.method);
            row["name"] = json!(manifest.name);
            row["server_version"] = json!(manifest.server_version);
            row["bytes"] = json!(manifest.bytes());
            row["state"] = json!("finished");
        }
        Ok(None) => row["state"] = json!("unfinished"),
        Err(error) => row["state"] = json!(format!("unreadable: {error}")),
    }
    row
}

fn list(args: &SnapCreate) -> Result<()> {
    let rows: Vec<Value> = images::find(&args.destdir, &which(args))?.iter().map(row).collect();
    show(&COLUMNS, &rows, args.json)
}

fn show(columns: &[Column], rows: &[Value], json: bool) -> Result<()> {
    output::line(if json { serde_json::to_string_pretty(rows)? } else { output::table(columns, rows) })
}

fn verify(args: &SnapCreate) -> Result<()> {
    let found = images::find(&args.destdir, &which(args))?;
    if found.is_empty() {
        bail!("no such image is below {}: look with snap-create list", args.destdir.display());
    }
    let mut rows = Vec::new();
    let mut damaged = Vec::new();
    for image in &found {
        let verdict = images::verify(image);
        let mut row = row(image);
        row["checked"] = json!(verdict.checked);
        row["state"] = json!(if verdict.whole { "whole" } else { "damaged" });
        row["damages"] = json!(verdict.damages);
        rows.push(row);
        damaged.extend(verdict.damages.iter().map(|damage| format!("{}: {damage}", image.folder.display())));
    }
    let columns = [COLUMNS[0], COLUMNS[1], COLUMNS[2], COLUMNS[4], ("CHECKED", "checked"), COLUMNS[6]];
    show(&columns, &rows, args.json)?;
    damaged.iter().for_each(output::note);
    match damaged.len() {
        0 => Ok(()),
        count => bail!(
            "{count} of the things found are wrong: restore none of these images, take another snapshot"
        ),
    }
}

fn delete(args: SnapCreate) -> Result<()> {
    let uid = args
        .uid
        .clone()
        .ok_or_else(|| anyhow!("--uid is missing: images are deleted by the UID of their snapshot"))?;
    let rows: Vec<Value> = images::delete(&args.destdir, &uid, &which(&args))?.iter().map(row).collect();
    if args.json {
        return show(&COLUMNS, &rows, true);
    }
    rows.iter().try_for_each(|row| {
        output::line(format_args!("deleted {}", row["folder"].as_str().unwrap_or_default()))
    })
}
