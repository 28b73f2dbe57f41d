//! `chronofs meta`.

use crate::admin::{Tls, Whitelist};
use crate::brake::Brake;
use crate::cluster::{ClusterArgs, LocalityArgs};
use crate::logs::LogArgs;
use crate::systemd::{self, SystemdArgs};
use crate::{analyze, output, serve};
use anyhow::{Context, Result, bail};
use chronofs_meta::collect::{GcStatus, Rhythm, StoreListing, VolumeCollection};
use chronofs_meta::machine::{CollectionShown, LeavingShown, PackingShown};
use chronofs_meta::{Checked, StartConfig, Timing};
use chronofs_wire::http::parse_address;
use clap::{Args, Subcommand};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a long check says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

#[derive(Args, Debug)]
pub(crate) struct Folder {
    /// Folder of the metadata store
    #[arg(long, value_name = "DIR", default_value = "/var/lib/chronofs/meta")]
    db_folder: PathBuf,
}

/// The hidden ones are for tests that cannot wait.
#[derive(Args, Debug)]
pub(crate) struct TimingArgs {
    /// Pack small slices into objects of the block store when they are so old, sooner when they are 16 MiB
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pack_after: u64,
    /// Seconds that what nothing names any more stays
    #[arg(long, value_name = "SECONDS", hide = true)]
    slice_life: Option<u64>,
    /// Seconds that the past horizon moves by at least
    #[arg(long, value_name = "SECONDS", hide = true)]
    horizon_step: Option<u64>,
    /// Seconds until the block stores are looked through for the first time
    #[arg(long, value_name = "SECONDS", hide = true)]
    first_look: Option<u64>,
    /// Seconds between two looks through the block stores
    #[arg(long, value_name = "SECONDS", hide = true)]
    look_every: Option<u64>,
}

impl TimingArgs {
    fn timing(&self) -> Timing {
        let usual = Timing::default();
        Timing {
            slice_life: self.slice_life.map_or(usual.slice_life, Duration::from_secs),
            horizon_step: self.horizon_step.map_or(usual.horizon_step, Duration::from_secs),
            pack_after: Duration::from_secs(self.pack_after),
            looks: Rhythm {
                first: self.first_look.map_or(usual.looks.first, Duration::from_secs),
                every: self.look_every.map_or(usual.looks.every, Duration::from_secs),
            },
        }
    }
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Prepare the server
    #[command(subcommand)]
    Init(Init),
    /// Run the server in the foreground
    #[command(
        after_help = "Example:\n  chronofs meta start --bind-addr 0.0.0.0:8444 --advertise meta1.example:8444"
    )]
    Start(Box<StartArgs>),
    /// Say whether the server runs and what it serves
    Status {
        /// Where it serves metrics and health
        #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8445")]
        http_addr: SocketAddr,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what nothing needs any more, and have a running server find and delete it
    #[command(
        after_help = "Without options it only shows. What lost its last name is deleted by itself after 10 minutes; \
                      --full also finds what clients stored and never used. What nothing explains is shown and never \
                      deleted"
    )]
    Gc {
        /// Where the server serves metrics and health
        #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8445")]
        http_addr: SocketAddr,
        /// Read all rows to say what the past costs and what could go now, and delete nothing for it
        #[arg(long, conflicts_with_all = ["full", "release_brake"])]
        dry_run: bool,
        /// Look through the block stores, and wait until all that can go is gone
        #[arg(long)]
        full: bool,
        #[command(flatten)]
        brake: Brake,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check every row of a metadata store, and print what is wrong, a line each
    #[command(after_help = "Ends with 1 if anything is wrong")]
    Verify {
        #[command(flatten)]
        folder: Folder,
        /// Also open every slice of every file, now and in the past, in the block stores
        #[arg(long)]
        blocks: bool,
        /// Correct counts, sums and indexes that other rows decide, after copying the store into the folder
        #[arg(long)]
        repair: bool,
        #[command(flatten)]
        online: Online,
    },
}

/// How a server that runs is reached.
#[derive(Args, Debug)]
pub(crate) struct Online {
    /// Check a metadata store whose server runs, through the admin server, instead of a folder
    #[arg(long, conflicts_with_all = ["blocks", "repair", "db_folder"])]
    online: bool,
    /// With --online: name or id of the metadata store, if there are several
    #[arg(long, value_name = "NAME", requires = "online")]
    metadata_store: Option<String>,
    /// With --online: reach the admin server here instead of where the token says
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_address, requires = "online")]
    admin: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Options of `meta start`.
#[derive(Args, Debug)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    folder: Folder,
    /// Listen on this address for clients
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:8444")]
    bind_addr: SocketAddr,
    /// Address for clients [default: the bound one, or the name of this host]
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_address)]
    advertise: Option<String>,
    /// Serve metrics and health over plain HTTP on this address
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8445")]
    http_addr: SocketAddr,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    tls: Tls,
    #[command(flatten)]
    whitelist: Whitelist,
    #[command(flatten)]
    locality: LocalityArgs,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    timing: TimingArgs,
    /// Write the log anew from its copies first, into an empty folder or one restored from a snapshot
    #[arg(long)]
    recover_log: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Init {
    /// Keep the token of the metadata store that this server is to serve
    #[command(after_help = "Example:\n  chronofs meta init creds --token chronofs1_...")]
    Creds {
        /// Token that configure create metadata-store printed
        #[arg(long)]
        token: String,
        /// Reach the admin server here instead of where the token says
        #[arg(long, value_name = "HOST:PORT", value_parser = parse_address)]
        admin: Option<String>,
        /// Of what this store had nothing is left, no backup either: make its volumes anew, empty, in an empty folder; their objects stay
        #[arg(long)]
        begin_anew: bool,
        /// The folder is a copy that other tools made and that was put back: go on from it as from a restore
        #[arg(long, conflicts_with = "begin_anew")]
        old_copy: bool,
        #[command(flatten)]
        folder: Folder,
    },
    /// Print a systemd unit
    Systemd {
        #[command(flatten)]
        folder: Folder,
        #[command(flatten)]
        systemd: SystemdArgs,
    },
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Init(Init::Creds { token, admin, begin_anew, old_copy, folder }) => {
            if old_copy {
                let last = chronofs_meta::go_on_from_old_copy(&folder.db_folder, &token, admin.as_deref())
                    .context("meta init creds")?;
                return output::line(format_args!(
                    "{} goes on from {last}; what was changed after that is lost\nnext: start the server, look at the volumes \
                     (chronofs restore status), and then chronofs restore accept",
                    folder.db_folder.display()
                ));
            }
            let save = if begin_anew { chronofs_meta::begin_anew } else { chronofs_meta::init_creds };
            save(&folder.db_folder, &token, admin.as_deref()).context("meta init creds")?;
            output::line(format!("kept the token in {}", folder.db_folder.display()))?;
            if begin_anew {
                output::line(
                    "next: start the server, get back what objects say (chronofs analyze salvage VOLUME --to DIR), and then chronofs \
                     restore accept",
                )?;
            }
            Ok(())
        }
        Command::Init(Init::Systemd { folder, systemd }) => {
            let unit = systemd::server_unit(
                "meta",
                "metadata server",
                &folder.db_folder,
                " chronofs-admin.service",
                &systemd,
            )?;
            systemd::put(&unit, "chronofs-meta.service", &systemd)
        }
        Command::Start(args) => start(*args).context("meta start"),
        Command::Status { http_addr, json } => status(http_addr, json).context("meta status"),
        Command::Gc { http_addr, dry_run, full, brake, json } => {
            gc(http_addr, dry_run, full, brake, json).context("meta gc")
        }
        Command::Verify { online: Online { online: true, metadata_store, admin, cluster }, .. } => {
            analyze::rows(metadata_store, admin.as_deref(), &cluster).context("meta verify")
        }
        Command::Verify { folder, blocks, repair: wanted, .. } => {
            if wanted {
                repair(&folder.db_folder).context("meta verify --repair")?;
            }
            verify(&folder.db_folder, blocks).context("meta verify")
        }
    }
}

fn start(args: StartArgs) -> Result<()> {
    args.log.start();
    let (cluster, whereabouts) = args.cluster.for_server(args.locality)?;
    let config = StartConfig {
        db_folder: args.folder.db_folder,
        bind_addr: args.bind_addr,
        advertise: args.advertise,
        http_addr: Some(args.http_addr),
        tls: args.tls.files(),
        timing: args.timing.timing(),
        cluster,
        whereabouts,
        whitelist: args.whitelist.whitelist_binpath,
        recover_log: args.recover_log,
    };
    serve(chronofs_meta::start(config))?
}

fn status(http_addr: SocketAddr, json: bool) -> Result<()> {
    let status = serve(chronofs_meta::status(http_addr))??;
    if json {
        return output::line(serde_json::to_string_pretty(&status)?);
    }
    output::line(format!("running: process {}, durable up to {}", status.pid, status.durable))?;
    if !status.assigned {
        output::warn("no list of volumes was received yet; is the admin server running?");
    }
    if status.apart {
        output::warn(chronofs_wire::status::APART);
    }
    for copy in &status.log.copies {
        let counts = if copy.counts { "counts" } else { "does not count" };
        let how = copy.problem.clone().unwrap_or_else(|| format!("{} bytes behind", copy.behind_bytes));
        output::line(format!("log copy {}: {counts} (epoch {}): {how}", copy.name, status.log.epoch))?;
    }
    for store in &status.stores {
        if let Some(outage) = &store.outage {
            output::warn(format_args!(
                "block store {} ({}) cannot be used for {} s: {}",
                store.place, store.id, outage.seconds, outage.reason
            ));
        }
    }
    let volumes = serde_json::to_value(&status.volumes)?;
    for volume in &status.volumes {
        warn_of(&volume.name, &volume.collection);
        warn_of_packing(&volume.name, &volume.packing);
    }
    for volume in &status.volumes {
        show_leaving(&volume.name, volume.leaving.as_ref())?;
    }
    let columns = [
        ("VOLUME", "name"),
        ("MOUNTS", "sessions"),
        ("TO BE PACKED", "/tally/staged/count"),
        ("SIZE", "/tally/staged/bytes"),
        ("PROBLEM", "problem"),
    ];
    output::line(output::table(&columns, volumes.as_array().map_or(&[][..], Vec::as_slice)))
}

fn gc(http_addr: SocketAddr, dry_run: bool, full: bool, brake: Brake, json: bool) -> Result<()> {
    if let Some(store) = brake.release()? {
        let told = format!("metadata store '{store}' lets go what its brake held back");
        match (full, json) {
            (true, _) => output::note(told),
            (false, true) => return output::line(serde_json::json!({ "released": store })),
            (false, false) => return output::line(told),
        }
    }
    let status = serve(async {
        if !full {
            return chronofs_meta::gc_status(http_addr, dry_run).await;
        }
        let begun = chronofs_meta::gc(http_addr).await?;
        until_collected(http_addr, begun.asked).await
    })??;
    if json {
        return output::line(serde_json::to_string_pretty(&status)?);
    }
    show_gc(&status)
}

/// Waits until the stores were looked through and what was found to go is gone.
async fn until_collected(http_addr: SocketAddr, look: u64) -> Result<GcStatus> {
    let mut told = Instant::now();
    loop {
        let status = chronofs_meta::gc_status(http_addr, false).await?;
        let waits = |volume: &VolumeCollection| {
            let shown = &volume.shown;
            let stuck = shown.problem.is_some() || shown.stopped || shown.waits.is_some();
            let due = if volume.shown.braked { 0 } else { volume.due.count };
            // What pins need stays where it is, too.
            let held_up = volume.packing.problem.is_some() || shown.waits.is_some();
            let poor = if held_up { 0 } else { volume.packing.poor };
            poor + if stuck { 0 } else { volume.condemned.count + due }
        };
        let waiting: u64 = status.volumes.iter().map(waits).sum();
        if status.looks >= look && (waiting == 0 || status.unconfirmed) {
            return Ok(status);
        }
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            let per_second: u64 = status.volumes.iter().map(|volume| volume.shown.deleted_per_second).sum();
            let slowed = status.volumes.iter().any(|volume| volume.shown.slowed);
            output::note(format!(
                "{waiting} objects are to be deleted or repacked, {per_second} a second were deleted lately{}; looking \
                 through the block stores",
                if slowed { ", slowly because clients are at work" } else { "" }
            ));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn show_gc(status: &GcStatus) -> Result<()> {
    let mut columns = vec![
        ("VOLUME", "name"),
        // Objects, and small slices, which are counted by themselves also in an object of many.
        ("HELD", "/held/count"),
        ("SIZE", "/held/bytes"),
        ("TO BE PACKED", "/to_pack/count"),
        ("SIZE", "/to_pack/bytes"),
        ("PACKED", "/packing/slices"),
        ("WAITING", "/retired/count"),
        ("SIZE", "/retired/bytes"),
        ("COULD GO", "/due/count"),
        ("SIZE", "/due/bytes"),
        ("BEING DELETED", "/condemned/count"),
        ("DELETED", "deleted"),
        ("SIZE", "deleted_bytes"),
        ("PER SECOND", "deleted_per_second"),
        ("TO BE REPACKED", "/packing/poor"),
    ];
    if status.volumes.iter().any(|volume| volume.live_bytes.is_some()) {
        columns.push(("NEEDED NOW", "live_bytes"));
    }
    if status.volumes.iter().any(|volume| volume.past.is_some()) {
        columns.push(("PAST", "/past/bytes"));
    }
    let volumes = serde_json::to_value(&status.volumes)?;
    output::line(output::table(&columns, volumes.as_array().map_or(&[][..], Vec::as_slice)))?;
    if status.unconfirmed {
        output::warn(
            "the admin server has not said lately that this server owns its metadata, so nothing is deleted: is it up? \
             Has another server taken over (the log says so)?",
        );
    }
    for volume in &status.volumes {
        if volume.shown.slowed {
            output::note(format_args!(
                "volume {}: clients are at work, so what could go goes slowly",
                volume.name
            ));
        }
        warn_of(&volume.name, &volume.shown);
        warn_of_packing(&volume.name, &volume.packing);
        show_leaving(&volume.name, volume.leaving.as_ref())?;
    }
    status.stores.iter().try_for_each(show_store)
}

fn warn_of(name: &str, shown: &CollectionShown) {
    if shown.braked {
        output::warn(format!(
            "volume {name}: more than half of its objects lost their last name in a short time; they stay. If that is \
                 meant: chronofs meta gc --release-brake"
        ));
    }
    if let Some(at) = &shown.held_at {
        output::warn(format!(
            "volume {name}: more than half of its files were removed within an hour; the instant before, {at}, is held beyond \
             the window: chronofs configure list hold"
        ));
    }
    if shown.stopped {
        output::warn(format!(
            "volume {name}: its metadata is damaged, so nothing is collected; stop the server and run chronofs meta \
                 verify"
        ));
    }
    if let Some(reason) = &shown.waits {
        output::warn(format!("volume {name}: nothing is forgotten or deleted: {reason}"));
    }
    if let Some(problem) = &shown.problem {
        output::warn(format!("volume {name}: objects cannot be deleted: {problem}"));
    }
}

fn show_leaving(name: &str, leaving: Option<&LeavingShown>) -> Result<()> {
    let Some(leaving) = leaving else { return Ok(()) };
    if leaving.stopped {
        output::warn(format!(
            "volume {name}: its metadata is damaged, so the rest of it stays; stop the server and run chronofs meta verify"
        ));
    }
    if let Some(needed) = &leaving.needed {
        output::warn(format!("volume {name}: nothing of it goes yet: {needed}"));
    }
    output::line(match leaving {
        LeavingShown { kept: true, .. } => format!("volume {name}: kept whole"),
        LeavingShown { rows_gone: true, .. } => {
            format!("volume {name}: given up, its files are gone; its objects go")
        }
        LeavingShown { rows_dropped, .. } => {
            format!("volume {name}: given up, its files go ({rows_dropped} rows so far), then its objects")
        }
    })
}

fn warn_of_packing(name: &str, shown: &PackingShown) {
    if let Some(problem) = &shown.problem {
        output::warn(format!("volume {name}: slices are not packed for now: {problem}"));
    }
}

fn show_store(store: &StoreListing) -> Result<()> {
    let volumes = store.volumes.join(", ");
    if let Some(error) = &store.error {
        output::warn(format!("the block store of {volumes} could not be looked through: {error}"));
        return Ok(());
    }
    let sized = |sum: &chronofs_meta::Sum| format!("{} ({})", sum.count, output::show_size(sum.bytes));
    output::line(format!(
        "block store of {volumes} at {}: {} objects, of them never used: {}, not used yet: {}, unexplained: {}",
        store.at,
        sized(&store.found),
        sized(&store.garbage),
        sized(&store.open),
        sized(&store.quarantined)
    ))?;
    if store.unexplained > 0 {
        output::warn(format!(
            "{} objects of these volumes are of sessions that the metadata never had: is it an old copy? What was never \
             used is not deleted until they are gone",
            store.unexplained
        ));
    }
    for volume in &store.braked {
        output::warn(format!(
            "volume {volume}: more objects that were never used than others: is the metadata an old copy? They stay. If \
             that is meant: chronofs meta gc --release-brake, then --full"
        ));
    }
    store
        .examples
        .iter()
        .try_for_each(|(name, reason)| output::line(format!("  {name}: {reason}; it is left alone")))
}

fn repair(db_folder: &Path) -> Result<()> {
    let repaired = chronofs_meta::repair(db_folder)?;
    for mended in &repaired.mended {
        output::line(format!("corrected: {mended}"))?;
    }
    match repaired.copy {
        Some(copy) => output::line(format!(
            "corrected: {} rows and sums; the store as it was is in {}: remove it when all is well",
            repaired.mended.len(),
            copy.display()
        )),
        None => output::line("nothing can be corrected from other rows"),
    }
}

fn verify(db_folder: &Path, blocks: bool) -> Result<()> {
    let mut told = Instant::now();
    let mut tell = |checked: Checked| {
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            output::note(format!("{} so far, {} of them bad", show_checked(checked), checked.bad));
        }
    };
    let progress: Option<&mut dyn FnMut(Checked)> = if blocks { Some(&mut tell) } else { None };
    let verified = serve(chronofs_meta::verify(db_folder, progress))??;
    for fault in &verified.faults {
        output::line(fault)?;
    }
    let looked_at = match verified.blocks {
        Some(checked) => format!("volumes: {}, {}", verified.volumes, show_checked(checked)),
        None => format!("volumes: {}", verified.volumes),
    };
    match verified.faults.len() {
        0 => output::line(format!("nothing is wrong; {looked_at}")),
        n => bail!(
            "{n} faults in {} ({looked_at}); keep a copy of the folder before anything else",
            db_folder.display()
        ),
    }
}

fn show_checked(checked: Checked) -> String {
    format!("slices: {} with {} as stored", checked.slices, output::show_size(checked.bytes))
}
