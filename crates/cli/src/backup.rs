//! `chronofs backup`: sets of images of all servers, sealed, in a folder. Making and deleting is the admin server's; who has
//! the key and the folder lists, verifies and restores without any server.

mod schedule;

use crate::cluster::AdminArgs;
use crate::configure::block_store::{self, Keys, Kind};
use crate::interrupts::Interrupts;
use crate::output::{self, Column, show_size};
use crate::secrets::{Asked, Environment, Found, Named};
use crate::serve;
use anyhow::{Context, Result, anyhow, bail};
use chronofs_backup::record::{Backup as Known, State};
use chronofs_backup::{Depot, Depth, Error, Key, Manifest, Unlock, Where};
use chronofs_core::store::StoreKind;
use chronofs_core::time::parse_instant;
use chronofs_core::{Retention, Version};
use chronofs_snapshot::SnapshotUid;
use chronofs_snapshot::protocol::{Fault, State as Standing};
use chronofs_wire::http::{AdminClient, ClientError, Method};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long the admin server may be out of reach until the command gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a backup needs is kept for so long by default.
const KEEP: &str = "30d";

#[derive(Args, Debug)]
pub(crate) struct Backup {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// What opens a place of backups.
#[derive(Args, Debug)]
struct KeyArgs {
    /// File with the key of the place; keep a copy of it elsewhere, without it no backup can be read [env: CHRONOFS_BACKUP_KEY_FILE]
    #[arg(long, value_name = "FILE", group = "unlocked_by")]
    key_file: Option<PathBuf>,
    /// File with the passphrase that the key follows from
    #[arg(long, value_name = "FILE", group = "unlocked_by")]
    passphrase_file: Option<PathBuf>,
    /// Ask for the passphrase on the terminal [env: CHRONOFS_BACKUP_PASSPHRASE]
    #[arg(long, group = "unlocked_by")]
    passphrase: bool,
}

impl KeyArgs {
    const ENVIRONMENT: Environment =
        Environment { key_file: "CHRONOFS_BACKUP_KEY_FILE", passphrase: "CHRONOFS_BACKUP_PASSPHRASE" };

    fn found(self, asked: Asked) -> Result<Option<Unlock>> {
        let what = Named {
            key_file: self.key_file,
            passphrase_file: self.passphrase_file,
            passphrase: self.passphrase,
        };
        let found = what.or(&KeyArgs::ENVIRONMENT).read("chronofs backup key FILE", asked)?;
        Ok(found.map(|secret| match secret {
            Found::Key(key) => Unlock::Key(key.into()),
            Found::Passphrase(passphrase) => Unlock::Passphrase(passphrase),
        }))
    }

    /// As it is for a place that may be new.
    fn of_a_writer(self) -> Result<Unlock> {
        self.found(Asked::Twice)?.ok_or_else(|| anyhow!(KeyArgs::ENVIRONMENT.missing()))
    }

    fn of_a_reader(self) -> Result<Unlock> {
        self.found(Asked::Once)?.ok_or_else(|| anyhow!(KeyArgs::ENVIRONMENT.missing()))
    }
}

/// Where the bucket of store:NAME is, as with configure create block-store.
#[derive(Args, Debug)]
struct BucketArgs {
    /// Kind of the block store, to reach its bucket without asking the admin server
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    #[command(flatten)]
    place: block_store::Place,
    #[command(flatten)]
    keys: Keys,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a key for a place of backups
    #[command(after_help = "Example:\n  chronofs backup key /etc/chronofs/backup.key")]
    Key {
        /// New file that it is written into
        file: PathBuf,
    },
    /// Back all servers up, together and while they run, and wait until that is done
    #[command(
        after_help = "Example:\n  chronofs backup create /mnt/backup --key-file /etc/chronofs/backup.key --keep 30d"
    )]
    Create {
        /// Folder that every server sees under this path, empty the first time; or store:NAME[/BELOW], a block store in a bucket
        dest: String,
        #[command(flatten)]
        key: KeyArgs,
        /// Keep what the backup needs in the block stores for so long; -1: until it is deleted
        #[arg(long, value_name = "TIME", default_value = KEEP, allow_hyphen_values = true)]
        keep: Retention,
        /// UID of the backup: 32 digits of 0 to 9 and a to f [default: drawn]
        #[arg(long)]
        uid: Option<SnapshotUid>,
    },
    /// Show backups, newest first, and how whole each is; of a folder or bucket what lies in it, without any server
    List {
        /// Folder of backups, or store:NAME[/BELOW] [default: ask the admin server what it knows]
        dest: Option<String>,
        #[command(flatten)]
        key: KeyArgs,
        #[command(flatten)]
        bucket: BucketArgs,
    },
    /// Read backups and check every byte
    Verify {
        /// Folder of backups, or store:NAME[/BELOW]
        dest: String,
        /// UIDs of backups [default: all]
        uids: Vec<SnapshotUid>,
        #[command(flatten)]
        key: KeyArgs,
        #[command(flatten)]
        bucket: BucketArgs,
        /// Look only whether everything is there and has its length
        #[arg(long)]
        quick: bool,
    },
    /// Bring a backup back as a set of images, from which restore prepare makes a cluster
    #[command(
        after_help = "Example:\n  chronofs backup restore /mnt/backup --key-file backup.key --to /mnt/images"
    )]
    Restore {
        /// Folder of backups, or store:NAME[/BELOW]
        dest: String,
        /// UID of the backup [default: the newest]
        uid: Option<SnapshotUid>,
        /// Folder that its images are written into, in one of their own
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        #[command(flatten)]
        key: KeyArgs,
        #[command(flatten)]
        bucket: BucketArgs,
    },
    /// Keep what a copy needs that others made: of a disk, of a volume of disks, of a whole instance
    #[command(
        after_help = "Example:\n  chronofs backup register --at 2026-03-15T10:30:00Z --keep 30d --note 'EBS snap-0123'"
    )]
    Register {
        /// When the copy was begun, or before; until now everything is kept: RFC 3339, or as -1h
        #[arg(long, value_name = "INSTANT", allow_hyphen_values = true, value_parser = instant)]
        at: u64,
        /// Keep what it needs in the block stores for so long; -1: until it is deleted
        #[arg(long, value_name = "TIME", default_value = KEEP, allow_hyphen_values = true)]
        keep: Retention,
        /// What it is, and where
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Have the admin server make backups by itself
    #[command(subcommand)]
    Schedule(schedule::Schedule),
    /// Delete a backup, and of its folder what no other backup needs
    Delete {
        /// Its UID
        uid: SnapshotUid,
        #[command(flatten)]
        key: KeyArgs,
        /// Its folder, if the admin server does not know the backup
        #[arg(long, value_name = "DEST")]
        dest: Option<String>,
        /// Its folder is lost: only let go of what is kept for it
        #[arg(long, conflicts_with_all = ["unlocked_by", "dest"])]
        forget: bool,
    },
}

pub(crate) fn run(backup: Backup) -> Result<()> {
    let Backup { admin, json, command } = backup;
    let client = || admin.client();
    match command {
        Command::Key { file } => make_key(&file).context("backup key"),
        Command::Create { dest, key, keep, uid } => {
            let done = || {
                let key = key.of_a_writer()?;
                let keep_seconds = seconds_of(keep)?;
                let client = client()?;
                serve(create(&client, &dest, &key, keep_seconds, uid, json))?
            };
            done().context("backup create")
        }
        Command::List { dest: Some(dest), key, bucket } => {
            let listed = || list_place(&open(&dest, bucket, key, client)?, json);
            listed().context("backup list")
        }
        Command::List { dest: None, .. } => {
            let listed = || {
                let client = client()?;
                serve(async move { list(&client, json).await })?
            };
            listed().context("backup list")
        }
        Command::Verify { dest, uids, key, quick, bucket } => {
            let depth = if quick { Depth::Sizes } else { Depth::Content };
            let verified = || verify(&open(&dest, bucket, key, client)?, &uids, depth, json);
            verified().context("backup verify")
        }
        Command::Restore { dest, uid, to, key, bucket } => {
            let restored = || restore(&open(&dest, bucket, key, client)?, uid.as_ref(), &to, json);
            restored().context("backup restore")
        }
        Command::Register { at, keep, note } => {
            let registered = || {
                let uid = SnapshotUid::from_bytes(chronofs_wire::identity::random()?);
                let body = json!({
                    "uid": uid.as_str(), "at_ns": at, "keep_seconds": seconds_of(keep)?, "note": note,
                });
                let client = client()?;
                let made: Value =
                    serve(
                        async move { client.call(Method::POST, "/v1/backups/registered", Some(&body)).await },
                    )??;
                match json {
                    true => output::line(serde_json::to_string_pretty(&made)?),
                    false => {
                        output::line(format_args!("registered {uid}: what {} needs is kept", Version(at)))
                    }
                }
            };
            registered().context("backup register")
        }
        Command::Schedule(wanted) => schedule::run(wanted, client, json).context("backup schedule"),
        Command::Delete { uid, key, dest, forget } => {
            let deleted = || {
                let key = if forget { None } else { Some(key.of_a_reader()?) };
                let client = client()?;
                serve(async move { delete(&client, &uid, key, dest, json).await })?
            };
            deleted().context("backup delete")
        }
    }
}

/// What opens the place, as the admin server wants it.
fn put_into(body: &mut Value, unlock: &Unlock) {
    match unlock {
        Unlock::Key(key) => body["key"] = json!(key.reveal().as_str()),
        Unlock::Passphrase(passphrase) => body["passphrase"] = json!(passphrase.reveal()),
    }
}

fn make_key(file: &Path) -> Result<()> {
    Key::draw()?.write(file)?;
    output::line(format_args!(
        "{} holds a new key: keep a copy where no server is, without it no backup can be read",
        file.display()
    ))
}

fn instant(text: &str) -> Result<u64, String> {
    let instant = parse_instant(text, &jiff::Zoned::now());
    instant.map(|version| version.0).map_err(|error| error.to_string())
}

fn seconds_of(keep: Retention) -> Result<Option<u64>> {
    match keep {
        Retention::Forever => Ok(None),
        Retention::Seconds(seconds) => Ok(Some(seconds)),
        Retention::None => bail!("--keep 0 would keep nothing of what the backup needs: write a time, or -1"),
    }
}

async fn create(
    client: &AdminClient,
    dest: &str,
    unlock: &Unlock,
    keep_seconds: Option<u64>,
    uid: Option<SnapshotUid>,
    json: bool,
) -> Result<()> {
    let uid = match uid {
        Some(uid) => uid,
        None => SnapshotUid::from_bytes(chronofs_wire::identity::random()?),
    };
    let mut body = json!({ "uid": uid.as_str(), "dest": dest, "keep_seconds": keep_seconds });
    put_into(&mut body, unlock);
    // Before anything is done, so that nothing is left to itself.
    let mut interrupts = Interrupts::new()?;
    let begin = client.call::<Value>(Method::POST, "/v1/backups", Some(&body));
    let (begun, interrupted) = interrupts.beside(begin).await;
    if let Some(begun) = begun
        && let Ok(Fault { code, why }) = serde_json::from_value(begun?["refused"].clone())
    {
        bail!("{why} ({}); advice: {}", code.number(), code.advice());
    }
    let ended = match interrupted {
        true => end(client, &uid).await?,
        false => tokio::select! {
            ended = until_over(client, &uid) => ended?,
            () = interrupts.next() => end(client, &uid).await?,
        },
    };
    let known: Known = serde_json::from_value(ended.clone())?;
    if known.state != State::Complete {
        bail!("backup {uid} failed: {}", known.why.unwrap_or_default());
    }
    if json {
        return output::line(serde_json::to_string_pretty(&ended)?);
    }
    let (bytes, stored) = (known.bytes.unwrap_or_default(), known.stored.unwrap_or_default());
    let point = Version(known.point_ns.unwrap_or_default());
    output::line(format_args!(
        "backup {uid} is complete: as of {point}, {}, of which {} were new",
        show_size(bytes),
        show_size(stored)
    ))
}

/// Has a backup ended that is being made. Where all was stored before, or it had failed, gives what became of it.
async fn end(client: &AdminClient, uid: &SnapshotUid) -> Result<Value> {
    let path = format!("/v1/snapshots/{uid}/abort");
    let ended = client.call::<Value>(Method::POST, &path, None::<&()>).await;
    let record = ended.map_err(|error| {
        anyhow!("backup {uid} was to end, and: {error}; chronofs backup list says what became of it")
    })?;
    if was_over(&record) {
        return until_over(client, uid).await;
    }
    bail!("backup {uid} was ended on demand; what it has stored is used by the next one, or goes");
}

/// Whether its set, as it is after it was to be ended, had come to its end before.
fn was_over(record: &Value) -> bool {
    record["state"] != json!(Standing::Aborted)
}

async fn until_over(client: &AdminClient, uid: &SnapshotUid) -> Result<Value> {
    let mut heard = Instant::now();
    loop {
        match client.call::<Value>(Method::GET, &format!("/v1/backups/{uid}"), None::<&()>).await {
            Ok(value) if value["state"] != json!(State::Running) => return Ok(value),
            Ok(_) => heard = Instant::now(),
            Err(error) if error.is_transient() && heard.elapsed() < PATIENCE => {}
            Err(error) => {
                return Err(anyhow!("{error}; chronofs backup list says later what became of backup {uid}"));
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

const KNOWN: [Column; 8] = [
    ("UID", "uid"),
    ("STATE", "state"),
    ("AS OF", "point"),
    ("WHOLE", "wholeness"),
    ("SIZE", "bytes"),
    ("NEW", "stored"),
    ("PLACE", "place"),
    ("BECAUSE", "because"),
];

async fn list(client: &AdminClient, json: bool) -> Result<()> {
    let all: Vec<Value> = client.call(Method::GET, "/v1/backups", None::<&()>).await?;
    if json {
        return output::line(serde_json::to_string_pretty(&all)?);
    }
    let row = |mut value: Value| {
        value["point"] = json!(value["point_ns"].as_u64().map(|ns| Version(ns).to_string()));
        let is_note = value["dest"].is_null();
        value["place"] = value[if is_note { "note" } else { "dest" }].clone();
        if value["because"].is_null() {
            value["because"] = value["why"].take();
        }
        value
    };
    output::line(output::table(&KNOWN, &all.into_iter().map(row).collect::<Vec<_>>()))
}

/// The place as this machine sees it, opened.
fn open(
    dest: &str,
    bucket: BucketArgs,
    key: KeyArgs,
    client: impl FnOnce() -> Result<AdminClient>,
) -> Result<Depot> {
    let key = key.of_a_reader()?;
    let Some((name, below)) = Where::in_store(dest) else {
        let absolute = std::path::absolute(dest).with_context(|| format!("cannot find {dest}"))?;
        let path = absolute.to_str().ok_or_else(|| anyhow!("{} is not UTF-8", absolute.display()))?;
        return Ok(Depot::open(Where::folder(path).open()?, key)?);
    };
    let kind: StoreKind = match bucket.kind {
        Some(kind) => bucket.place.definition(kind)?,
        None => {
            let (client, path) = (client()?, format!("/v1/block-stores/{name}"));
            let found: Result<Value, ClientError> =
                serve(async move { client.call(Method::GET, &path, None::<&()>).await })?;
            let found = found
                .context("to do without the admin server, name the bucket with --kind, --bucket, ...")?;
            serde_json::from_value(found["definition"].clone())?
        }
    };
    // Its credentials are given out by nobody.
    let credentials = bucket.keys.found(&kind)?.unwrap_or_default();
    let place = Where { kind, credentials, below: below.to_owned(), create_only: false };
    Ok(Depot::open(place.open()?, key)?)
}

const LYING: [Column; 6] = [
    ("UID", "uid"),
    ("AS OF", "point"),
    ("NEEDS KEPT UNTIL", "kept_until"),
    ("SIZE", "bytes"),
    ("NEW", "stored"),
    ("PROBLEM", "problem"),
];

fn row(uid: &SnapshotUid, manifest: &Result<Manifest, Error>) -> Value {
    match manifest {
        Ok(manifest) => {
            let record = &manifest.record;
            let kept = record.intent.keep_until_ns;
            let kept = kept.map_or_else(|| "deleted".to_owned(), |ns| Version(ns).to_string());
            json!({
                "uid": uid.as_str(), "point": Version(manifest.record.point_ns()).to_string(), "kept_until": kept,
                "bytes": manifest.bytes(), "stored": manifest.stored(), "cluster": record.intent.cluster,
            })
        }
        Err(error) => json!({ "uid": uid.as_str(), "problem": error.to_string() }),
    }
}

fn list_place(depot: &Depot, json: bool) -> Result<()> {
    let sets = depot.sets()?;
    let rows: Vec<Value> = sets.iter().map(|(uid, manifest)| row(uid, manifest)).collect();
    match json {
        true => output::line(serde_json::to_string_pretty(&rows)?),
        false => output::line(output::table(&LYING, &rows)),
    }
}

fn verify(depot: &Depot, uids: &[SnapshotUid], depth: Depth, json: bool) -> Result<()> {
    let sets = match uids {
        [] => depot.sets()?,
        some => some.iter().map(|uid| (uid.clone(), depot.set(uid))).collect(),
    };
    if sets.is_empty() {
        bail!("there is no backup in {}", depot.shown());
    }
    let mut rows = Vec::new();
    let mut bad = Vec::new();
    for (uid, manifest) in sets {
        let damages: Vec<String> = match &manifest {
            Ok(manifest) => depot.verify(manifest, depth)?.iter().map(ToString::to_string).collect(),
            Err(error) => vec![error.to_string()],
        };
        let mut row = row(&uid, &manifest);
        row["damages"] = json!(damages);
        rows.push(row);
        bad.extend(damages.into_iter().map(|damage| format!("backup {uid}: {damage}")));
        if bad.is_empty() && !json {
            let how = if depth == Depth::Content { "every byte was read" } else { "all is there" };
            output::line(format_args!("backup {uid} can be restored: {how}"))?;
        }
    }
    if json {
        output::line(serde_json::to_string_pretty(&rows)?)?;
    }
    match bad.is_empty() {
        true => Ok(()),
        false => {
            bad.iter().for_each(output::error);
            bail!("{} of what the backups need is missing or damaged", bad.len())
        }
    }
}

fn restore(depot: &Depot, uid: Option<&SnapshotUid>, to: &Path, json: bool) -> Result<()> {
    let manifest = match uid {
        Some(uid) => depot.set(uid)?,
        None => {
            let newest = depot.sets()?.into_iter().next();
            newest
                .ok_or_else(|| anyhow!("there is no backup in {}", depot.shown()))?
                .1
                .context("the newest backup cannot be read; name another by its UID if that is meant")?
        }
    };
    if !to.is_dir() {
        bail!("{} is no folder: make it, with room for {}", to.display(), show_size(manifest.bytes()));
    }
    let (set, record) = depot.restore(&manifest, to)?;
    if json {
        let all = json!({ "uid": manifest.record.intent.attempt.uid.as_str(), "set": set, "record": record });
        return output::line(serde_json::to_string_pretty(&all)?);
    }
    output::line(format_args!("restored {}, as of {}", set.display(), Version(manifest.record.point_ns())))?;
    output::line(format_args!(
        "  go on with  chronofs restore plan {} --record {} --map-file MAP",
        set.display(),
        record.display()
    ))
}

async fn delete(
    client: &AdminClient,
    uid: &SnapshotUid,
    unlock: Option<Unlock>,
    dest: Option<String>,
    json: bool,
) -> Result<()> {
    let forgotten = unlock.is_none();
    let mut body = json!({ "dest": dest });
    if let Some(unlock) = &unlock {
        put_into(&mut body, unlock);
    }
    let deleted: Result<Value, ClientError> =
        client.call(Method::POST, &format!("/v1/backups/{uid}/delete"), Some(&body)).await;
    let deleted = deleted?;
    if json {
        return output::line(serde_json::to_string_pretty(&deleted)?);
    }
    match forgotten {
        true => output::line(format_args!("backup {uid} is forgotten, and nothing is kept for it any more")),
        false => {
            let freed = show_size(deleted["freed_bytes"].as_u64().unwrap_or_default());
            output::line(format_args!("backup {uid} is deleted; {freed} of its folder are free"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_that_came_to_its_end_before_it_could_be_ended_is_not_said_to_have_been_ended() {
        assert!(!was_over(&json!({ "state": "ABORTED" })));
        for state in ["COMPLETE", "EXPIRED", "FAILED"] {
            assert!(was_over(&json!({ "state": state })), "{state}");
        }
    }
}
