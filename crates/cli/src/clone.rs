//! `chronofs restore` and `chronofs snapshot verify` for sets of our own servers: from labelled images to the folders of a
//! clone, with a database, tokens and a cluster file of its own; and how the clone is, once its servers run.

use crate::cluster::AdminArgs;
use crate::in_place;
use crate::output::{self, Column, show_size};
use crate::serve;
use crate::snap_create::now;
use anyhow::{Context, Result, anyhow, bail};
use chronofs_core::Version;
use chronofs_snapshot::protocol::{Record, State};
use chronofs_snapshot::restore::own::{self, Found, OwnMachine, OwnPlan, OwnSet, Proof};
use chronofs_snapshot::{Address, record};
use chronofs_wire::cluster::{CLUSTER_FILE, ClusterName};
use chronofs_wire::http::{AdminClient, ClientError, Method};
use chronofs_wire::identity::random;
use chronofs_wire::status::{
    AcceptedRestores, ClusterStatus, ForeignSaid, Member, RestoredCluster, RestoredSaid,
};
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often a cluster is asked that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What proves that a set is one.
#[derive(Args, Debug)]
pub(crate) struct Committed {
    /// Record of the snapshot: as written by snapshot describe --record, or snapshots/UID of a block store
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Do without the record: the labels of the images alone are to prove the set whole
    #[arg(long, conflicts_with = "record")]
    accept_uncommitted: bool,
    /// Take a set whose time to be kept is over
    #[arg(long)]
    accept_expired: bool,
}

impl Committed {
    /// Whether it says anything.
    pub(crate) fn is_given(&self) -> bool {
        self.record.is_some() || self.accept_uncommitted
    }

    /// The record, if its file is named.
    pub(crate) fn record(&self) -> Result<Option<Record>> {
        self.record.as_deref().map(read_record).transpose()
    }

    /// Refuses a set that is not whole.
    fn check(&self, set: &OwnSet, known: Option<&Record>) -> Result<()> {
        let read = self.record()?;
        let proof = match (read.as_ref().or(known), self.accept_uncommitted) {
            (Some(record), false) => Proof::Record(record),
            (_, true) => Proof::Labels,
            (None, false) => Proof::None,
        };
        own::check(set, proof)?;
        let record = read.as_ref().or(known);
        let until_ns = record.and_then(|record| record.intent.keep_until_ns);
        // By the coordinator's clock or by ours.
        let has_expired = record.is_some_and(|record| record.state == State::Expired);
        let is_over = |until_ns: &u64| has_expired || *until_ns <= now_ns();
        match until_ns.filter(|until_ns| is_over(until_ns) && !self.accept_expired) {
            Some(until_ns) => bail!(
                "what snapshot {} needs in the block stores was kept until {} only: files may lack their bytes; if that is \
                 meant: --accept-expired",
                set.attempt.uid,
                Version(until_ns)
            ),
            None => Ok(()),
        }
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

fn read_record(path: &Path) -> Result<Record> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    record::open(&text).with_context(|| format!("record {}", path.display()))
}

/// Where a set goes.
pub(crate) struct Wanted<'a> {
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) committed: &'a Committed,
    pub(crate) map: &'a [String],
    pub(crate) map_file: Option<&'a Path>,
    /// In the place of the servers that the images are of; the one that is named, or all.
    pub(crate) in_place: bool,
    pub(crate) only: Option<&'a str>,
}

impl Wanted<'_> {
    pub(crate) fn plan(&self) -> Result<(OwnSet, OwnPlan)> {
        let set = OwnSet::read(&self.folders)?;
        self.committed.check(&set, None)?;
        let plan = match self.in_place {
            true => OwnPlan::in_place(&set, self.only, self.map, self.map_file)?,
            false => OwnPlan::new(&set, self.map, self.map_file)?,
        };
        Ok((set, plan))
    }
}

const PARTS: [Column; 8] = [
    ("SERVER", "server"),
    ("OLD", "old"),
    ("NEW", "new"),
    ("ROLE", "role"),
    ("CUT", "cut"),
    ("FILES", "files"),
    ("SIZE", "bytes"),
    ("IMAGE", "image"),
];

pub(crate) fn plan(wanted: &Wanted<'_>, json: bool) -> Result<()> {
    let (_, plan) = wanted.plan()?;
    if json {
        return output::line(serde_json::to_string_pretty(&plan)?);
    }
    let mut rows = Vec::new();
    for machine in &plan.machines {
        for part in &machine.parts {
            let mut row = serde_json::to_value(part)?;
            row["server"] = json!(machine.name);
            row["old"] = json!(machine.old.to_string());
            row["new"] = json!(machine.new.to_string());
            row["cut"] = json!(machine.cut.map(|cut| Version(cut.cut).as_of()));
            rows.push(row);
        }
    }
    output::line(output::table(&PARTS, &rows))?;
    output::line(format_args!("\nsnapshot      {}\nof cluster    {}", plan.uid, plan.source))?;
    match plan.left_out.is_empty() {
        true => Ok(()),
        false => output::line(format_args!(
            "left out      {} (log servers: all that their copies have is in the images of the metadata servers, too; the clone \
             begins without copies)",
            plan.left_out.join(", ")
        )),
    }
}

pub(crate) fn prepare(wanted: &Wanted<'_>, out: &Path, dry_run: bool, json: bool) -> Result<()> {
    let (set, plan) = wanted.plan()?;
    if dry_run {
        for image in set.images.values() {
            own::check_files(image)?;
        }
    }
    let description = plan.source.split(':').next().filter(|text| !text.is_empty()).unwrap_or("chronofs");
    let name = ClusterName::draw(description)?;
    let draw = [u64::from_le_bytes(random()?), u64::from_le_bytes(random()?)];
    let staged = own::stage(&plan, out, name.as_str(), draw, &now(), dry_run)?;
    if dry_run {
        return show_prepared(
            plan.machines.iter().map(|machine| (machine, out.join(machine.new.to_string()))),
            true,
            json,
        );
    }
    let coordinator = plan.coordinator().ok_or_else(|| anyhow!("the set has no coordinator"))?;
    let clone = chronofs_admin::NewCluster {
        uid: plan.uid.to_string(),
        source: plan.source.clone(),
        name,
        address: coordinator.new.to_string(),
    };
    let data = staged.machines().find(|(machine, _)| machine.is_coordinator());
    let (_, data) = data.ok_or_else(|| anyhow!("the set has no coordinator"))?;
    let (mut tokens, file) = chronofs_admin::prepare_clone(&data, &clone)?;
    for (machine, data) in staged.machines().filter(|(machine, _)| !machine.is_coordinator()) {
        let token = tokens.remove(&machine.node).ok_or_else(|| {
            anyhow!(
                "the admin server of the set does not know the metadata store {}: take another snapshot",
                machine.name
            )
        })?;
        chronofs_meta::init_creds(&data, &token.to_string(), None)?;
        file.write(&data.with_file_name(CLUSTER_FILE))?;
    }
    let made = staged.finish()?;
    for name in tokens.keys() {
        output::warn(format_args!(
            "metadata store {name} is not in the set: it was made after the cut; delete it"
        ));
    }
    show_prepared(made.iter().map(|(machine, folder)| (machine, folder.clone())), false, json)
}

pub(crate) fn show_prepared<'a>(
    folders: impl Iterator<Item = (&'a OwnMachine, PathBuf)>,
    dry_run: bool,
    json: bool,
) -> Result<()> {
    if json {
        let rows = folders.map(|(machine, folder)| {
            let start = start_line(machine, &folder);
            json!({ "server": machine.name, "folder": folder, "prepared": !dry_run, "start": start })
        });
        return output::line(serde_json::to_string_pretty(&rows.collect::<Vec<Value>>())?);
    }
    let done = if dry_run { "would prepare" } else { "prepared" };
    for (machine, folder) in folders {
        output::line(format_args!("{done} {}", folder.display()))?;
        output::line(format_args!("  start with  {}", start_line(machine, &folder)))?;
    }
    Ok(())
}

/// How a server is started on its folder. Its other options it takes as before.
pub(crate) fn start_line(machine: &OwnMachine, folder: &Path) -> String {
    let (shown, new) = (folder.display(), &machine.new);
    let bind = bound(new);
    if machine.is_coordinator() {
        return format!("chronofs admin start --db-folder {shown}/data --bind-addr {bind}");
    }
    // One that goes on in its place has the cluster file that is on its machine.
    let cluster = match folder.exists() && !folder.join(CLUSTER_FILE).exists() {
        true => String::new(),
        false => format!(" --cluster-file {shown}/{CLUSTER_FILE}"),
    };
    format!("chronofs meta start --db-folder {shown}/data{cluster} --bind-addr {bind} --advertise {new}")
}

/// A host's name cannot be listened on.
fn bound(address: &Address) -> String {
    let is_ip = address.host().trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    if is_ip { address.to_string() } else { format!("0.0.0.0:{}", address.port()) }
}

const IMAGES: [Column; 6] = [
    ("SERVER", "server"),
    ("ROLE", "role"),
    ("CUT", "cut"),
    ("FILES", "files"),
    ("SIZE", "bytes"),
    ("IMAGE", "image"),
];

/// `snapshot verify`: labels, every byte, and the record, which the coordinator is asked for unless there is another proof.
pub(crate) fn verify_set(
    folders: &[PathBuf],
    committed: &Committed,
    client: impl FnOnce() -> Result<AdminClient>,
    json: bool,
) -> Result<()> {
    let set = OwnSet::read(folders)?;
    let known = if committed.is_given() { None } else { record_of(&set, client()?)? };
    committed.check(&set, known.as_ref())?;
    let mut rows = Vec::new();
    for image in set.images.values() {
        own::check_files(image)?;
        let label = &image.label;
        let server = set.node(&label.node).map(|node| node.name.clone());
        rows.push(json!({
            "server": server, "role": label.role.as_str(), "files": label.files.len(), "bytes": label.bytes(),
            "cut": label.cut.map(|cut| Version(cut.cut).as_of()), "image": image.place,
        }));
    }
    let uid = set.attempt.uid.as_str();
    if json {
        let all = json!({ "uid": uid, "number": set.attempt.number, "cluster": set.cluster, "images": rows });
        return output::line(serde_json::to_string_pretty(&all)?);
    }
    output::line(output::table(&IMAGES, &rows))?;
    output::line(format_args!(
        "\nsnapshot {uid} is whole: {} images of {} servers",
        rows.len(),
        set.nodes.len()
    ))
}

/// What the coordinator knows of a snapshot, if it does.
fn record_of(set: &OwnSet, client: AdminClient) -> Result<Option<Record>> {
    let path = format!("/v1/snapshots/{}", set.attempt.uid);
    serve(async move {
        match client.call::<Record>(Method::GET, &path, None::<&()>).await {
            Ok(record) => Ok(Some(record)),
            Err(error) if error.code() == Some("not_found") => Ok(None),
            Err(error) => Err(error.into()),
        }
    })?
}

const FOLDERS: [Column; 8] = [
    ("SERVER", "server"),
    ("OLD", "old"),
    ("NEW", "new"),
    ("UID", "uid"),
    ("CUT", "cut"),
    ("PREPARED", "prepared"),
    ("STATE", "state"),
    ("FOLDER", "folder"),
];

/// Folders that were prepared, and how each is.
pub(crate) fn show_folders(found: &[Found], json: bool) -> Result<()> {
    if json {
        return output::line(serde_json::to_string_pretty(found)?);
    }
    let row = |found: &Found| {
        let mark = &found.mark;
        let state = match (mark.began, mark.accepted) {
            _ if !found.damages.is_empty() => "changed",
            (_, true) => "accepted",
            (Some(_), false) => "started",
            (None, false) => "prepared",
        };
        json!({
            "server": mark.name, "old": mark.old, "new": mark.new, "uid": mark.uid.as_str(), "prepared": mark.prepared,
            "cut": mark.cut.map(|cut| Version(cut.cut).as_of()), "state": state, "folder": found.folder,
        })
    };
    output::line(output::table(&FOLDERS, &found.iter().map(row).collect::<Vec<_>>()))
}

const SERVERS: [Column; 8] = [
    ("STORE", "name"),
    ("ADDRESS", "address"),
    ("STATE", "state"),
    ("CUT", "cut"),
    ("AT ITS SOURCE", "source"),
    ("NEEDS OF IT", "needs"),
    ("MADE EMPTY", "only_admin"),
    ("OUT OF REACH", "only_here"),
];

/// How a clone is whose servers run; with `wait` once it is healthy.
pub(crate) fn status(asked: &AdminArgs, wait: Option<Duration>, json: bool) -> Result<()> {
    let client = asked.client()?;
    let status = serve(async move {
        let begun = Instant::now();
        loop {
            let status = client.call::<ClusterStatus>(Method::GET, "/v1/status", None::<&()>).await;
            let is_ready = status.as_ref().is_ok_and(|status| status.healthy);
            let gives_up = matches!(&status, Err(error) if !error.is_transient());
            if is_ready || gives_up || wait.is_none_or(|wait| begun.elapsed() > wait) {
                return status;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })??;
    let in_place = !status.restored_servers.is_empty() || status.restored_admin.is_some();
    match &status.restored {
        None if in_place => {}
        None => bail!("this cluster was not restored from a disk snapshot"),
        Some(_) if json && in_place => {}
        Some(restored) => show_status(&status, restored, json)?,
    }
    if in_place {
        in_place::show_status(&status, json)?;
    }
    match status.healthy {
        true => Ok(()),
        false => bail!("the cluster is not healthy: {}", status.faults.join("; ")),
    }
}

fn show_status(status: &ClusterStatus, restored: &RestoredCluster, json: bool) -> Result<()> {
    let said = |member: &Member| member.understood().and_then(|said| said.restored);
    let row = |member: &Member| {
        let RestoredSaid { cut, only_admin, only_here, readers, kept, detached, foreign, .. } =
            said(member).unwrap_or_default();
        let source = match (kept, detached, readers) {
            (_, true, _) => "detached",
            (_, _, 0) => "not registered",
            (Some(true), ..) => "kept",
            (Some(false), ..) => "NOT KEPT",
            (None, ..) => "registered",
        };
        json!({
            "name": member.name, "address": member.address, "state": member.state, "cut": cut,
            "only_admin": only_admin, "only_here": only_here, "source": source,
            "needs": foreign.as_ref().map(needs), "foreign": foreign,
        })
    };
    let rows: Vec<Value> = status.members.iter().map(row).collect();
    if json {
        let all = json!({ "restored": restored, "healthy": status.healthy, "faults": status.faults, "servers": rows });
        return output::line(serde_json::to_string_pretty(&all)?);
    }
    let accepted = match restored.accepted_ns {
        Some(ns) => Version(ns).to_string(),
        None => "no: nothing is forgotten or deleted until chronofs restore accept".to_owned(),
    };
    output::line(format_args!("restored from  {}", restored.uid))?;
    output::line(format_args!("of cluster     {}", restored.source))?;
    output::line(format_args!("prepared       {}", Version(restored.prepared_ns)))?;
    output::line(format_args!("accepted       {accepted}"))?;
    if let Some(detached_ns) = restored.detached_ns {
        output::line(format_args!("detached       {}", Version(detached_ns)))?;
    } else if let Some(copying_ns) = restored.copying_ns {
        output::line(format_args!("copying since  {}", Version(copying_ns)))?;
    }
    output::line(format_args!("\n{}", output::table(&SERVERS, &rows)))?;
    let servers = status.members.iter().filter_map(|member| Some((&member.name, said(member)?.foreign?)));
    servers
        .filter(|(_, foreign)| foreign.copying)
        .try_for_each(|(name, foreign)| show_copying(name, &foreign))
}

fn needs(foreign: &ForeignSaid) -> String {
    match (foreign.objects, foreign.unnamed) {
        (0, 0) => "nothing".to_owned(),
        (0, unnamed) => format!("nothing in some minutes ({unnamed} objects)"),
        (objects, _) => format!("{objects} objects, {}", show_size(foreign.bytes)),
    }
}

/// How far the copying of a server is that has something left.
fn show_copying(name: &str, foreign: &ForeignSaid) -> Result<()> {
    output::line(format_args!(
        "\n{name}: copied {} objects, {} since its start ({}/s), {} objects, {} left",
        foreign.copied_objects,
        show_size(foreign.copied_bytes),
        show_size(foreign.bytes_per_second),
        foreign.objects,
        show_size(foreign.bytes)
    ))?;
    foreign.waits.iter().try_for_each(|why| output::line(format_args!("  waits: {why}")))?;
    foreign.left.iter().try_for_each(|why| output::line(format_args!("  not copied: {why}")))
}

/// The restore is as it should be.
pub(crate) fn accept(asked: &AdminArgs, dry_run: bool, json: bool) -> Result<()> {
    let client = asked.client()?;
    let path = if dry_run { "/v1/restore/accept?dry_run=true" } else { "/v1/restore/accept" };
    let accepted: Result<AcceptedRestores, ClientError> =
        serve(async move { client.call(Method::POST, path, None::<&()>).await })?;
    let accepted = accepted?;
    if json {
        return say(serde_json::to_value(&accepted)?, dry_run);
    }
    if dry_run {
        if let Some(cluster) = &accepted.cluster {
            output::line(format_args!(
                "would accept the restore of {}: from then on what nothing needs any more is forgotten and deleted; what the source \
                 stored stays",
                cluster.uid
            ))?;
        }
        in_place::show_acceptable(&accepted)?;
        if accepted == AcceptedRestores::default() {
            output::line("there is nothing left to accept")?;
        }
        return output::line("a dry run: nothing is changed");
    }
    if let Some(cluster) = &accepted.cluster {
        output::line(format_args!(
            "the restore of {} is accepted: what nothing needs any more is forgotten and deleted from now on; what the source \
             stored stays",
            cluster.uid
        ))?;
    }
    in_place::show_accepted(&accepted)
}

/// Of a dry run it is said that it is one.
fn say(mut value: Value, dry_run: bool) -> Result<()> {
    if dry_run {
        value["dry_run"] = json!(true);
    }
    output::line(serde_json::to_string_pretty(&value)?)
}

/// What the clone needs of its source is to be copied, or not any more.
pub(crate) fn copy(asked: &AdminArgs, copy: bool, dry_run: bool, json: bool) -> Result<()> {
    let client = asked.client()?;
    let body = json!({ "copy": copy, "dry_run": dry_run });
    let told: Result<RestoredCluster, ClientError> =
        serve(async move { client.call(Method::POST, "/v1/restore/copy", Some(&body)).await })?;
    let told = told?;
    if json {
        return say(serde_json::to_value(&told)?, dry_run);
    }
    if dry_run {
        return output::line(match copy {
            true => "what this cluster needs of its source would be copied; a dry run: nothing is changed",
            false => "nothing more would be copied; a dry run: nothing is changed",
        });
    }
    output::line(match copy {
        true => {
            "what this cluster needs of its source is copied: chronofs restore status says how far that is; when nothing is left, \
             chronofs restore detach"
        }
        false => "nothing more is copied; what was copied stays so",
    })
}

/// The clone needs nothing of its source any more, or is to do without.
pub(crate) fn detach(asked: &AdminArgs, force: bool, dry_run: bool, json: bool) -> Result<()> {
    let client = asked.client()?;
    let body = json!({ "force": force, "dry_run": dry_run });
    let said: Result<Value, ClientError> =
        serve(async move { client.call(Method::POST, "/v1/restore/detach", Some(&body)).await })?;
    let mut said = said?;
    if json {
        return output::line(serde_json::to_string_pretty(&said)?);
    }
    for without in said["without"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        output::warn(format_args!("{without}: files may lose their bytes once the source lets go"));
    }
    let detached: RestoredCluster = serde_json::from_value(said["cluster"].take())?;
    if dry_run {
        return output::line(format_args!(
            "this cluster would read snapshot {} no longer; a dry run: nothing is changed",
            detached.uid
        ));
    }
    output::line(format_args!(
        "this cluster reads snapshot {} no longer: its source may let go of it (chronofs snapshot delete {} there)",
        detached.uid, detached.uid
    ))
}
