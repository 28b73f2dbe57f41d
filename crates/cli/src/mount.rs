//! `chronofs mount` and `chronofs instant`.

use crate::cluster::ClusterArgs;
use crate::configure::block_store::Keys;
use crate::logs::LogArgs;
use crate::options::Words;
use crate::output::parse_size;
use crate::secrets::VolumeSecretArgs;
use crate::systemd::{self, SystemdArgs};
use crate::{credentials, output};
use anyhow::{Context, Result, anyhow};
use chronofs_core::store::{Credentials, StoreKind};
use chronofs_keys::VolumeSecret;
use chronofs_mount::{DirectKeys, DiskCacheSpec, OnStoreOutage, StartConfig};
use chronofs_wire::http::parse_address;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Prepare this machine
    #[command(subcommand)]
    Init(Init),
    /// Mount a volume
    #[command(after_help = "Examples:\n  chronofs mount start data /mnt/data\n  \
                            chronofs mount start data /mnt/data -o nosuid,nodev,noexec\n  \
                            chronofs mount start data /mnt/data --cache-dir /var/cache/chronofs --cache-size 50G\n  \
                            chronofs mount start vault /mnt/vault --passphrase-file /etc/chronofs/vault.pass\n  \
                            chronofs mount start data /mnt/past --at-time 'yesterday 17:00'")]
    Start(Box<Start>),
    /// Unmount, and wait until everything that was written is stored
    Stop {
        /// Folder the volume is mounted on
        dir: PathBuf,
        /// Lose what the block store does not take now, instead of waiting for it
        #[arg(long)]
        force: bool,
    },
    /// List the mounts of this machine
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum Init {
    /// Keep a volume token for mounts
    #[command(after_help = "Example:\n  chronofs mount init creds --token chronofs1_... --volume data")]
    Creds {
        /// Token that configure create volume-token printed
        #[arg(long)]
        token: String,
        /// Use it for this volume only
        #[arg(long, value_parser = NonEmptyStringValueParser::new())]
        volume: Option<String>,
    },
    /// Print an example of a systemd mount unit
    Systemd {
        #[command(flatten)]
        systemd: SystemdArgs,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Start {
    /// Name or id of the volume, or VOLUME@INSTANT
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    volume: String,
    /// Folder to mount it on
    dir: PathBuf,
    /// Show this instant: RFC 3339, -2h, 'yesterday 17:00'
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    at_time: Option<String>,
    /// Refuse writing
    #[arg(long)]
    ro: bool,
    /// Mount options as in fstab: nosuid, nodev, noexec, ro, ..., and the options of this command
    #[arg(short = 'o', long, value_name = "LIST", allow_hyphen_values = true)]
    options: Vec<String>,
    /// Pass over mount options that are not known
    #[arg(long, hide = true)]
    sloppy: bool,
    /// Serve the mount in this process
    #[arg(long)]
    foreground: bool,
    /// Token of the volume (others may see it in the list of processes; better keep it with init creds)
    #[arg(long, conflicts_with = "token_file")]
    token: Option<String>,
    /// File with the token of the volume
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Reach the admin server here instead of where the token says
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_address)]
    admin: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Keep what is read and written in this folder; mounts may share it
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Most that the folder of the cache takes of its disk (default 10GiB)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    cache_size: Option<u64>,
    #[command(flatten)]
    secret: VolumeSecretArgs,
    /// While the block store cannot be used, let operations that need it wait, or fail after some tries
    #[arg(long, value_enum, default_value_t)]
    on_store_outage: OnOutage,
    #[command(flatten)]
    direct: Direct,
    #[command(flatten)]
    log: LogArgs,
}

/// A mount that opens the bucket itself. Secrets are not taken from flags: other users of the machine see them for as long
/// as the mount lasts.
#[derive(Args, Debug, Default)]
struct Direct {
    /// Use the bucket with credentials of this mount, from a file, the environment or the machine
    #[arg(long)]
    direct: bool,
    /// File with them: of the AWS tools (s3, oci), of a service account (gcs), or an account key (azure)
    #[arg(long, value_name = "FILE")]
    credentials_file: Option<PathBuf>,
    /// Profile in the file of the AWS tools [default: default]
    #[arg(long)]
    profile: Option<String>,
    /// Use what the environment, the container or the machine offers
    #[arg(long)]
    ambient_credentials: bool,
}

/// Quota of a disk cache for which none is given.
const CACHE_SIZE_DEFAULT: u64 = 10 << 30;

/// See [`OnStoreOutage`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, ValueEnum)]
pub(crate) enum OnOutage {
    /// Wait until it can be used again
    #[default]
    Wait,
    /// Fail with an input/output error; what was written is kept and stored later
    Fail,
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Init(Init::Creds { token, volume }) => {
            let path = credentials::save_mount(&token, volume.as_deref()).context("mount init creds")?;
            output::line(format!("wrote {}", path.display()))
        }
        Command::Init(Init::Systemd { systemd }) => {
            systemd::put(&systemd::mount_unit(), "mnt-data.mount", &systemd)
        }
        Command::Start(start) => {
            let what = format!("mount {} on {}", start.volume, start.dir.display());
            start_mount(*start).context(what)
        }
        Command::Stop { dir, force } => chronofs_mount::stop(&dir, force, |notice| output::warn(notice))
            .with_context(|| format!("stop {}", dir.display())),
        Command::List { json } => list(json).context("list mounts"),
    }
}

fn start_mount(start: Start) -> Result<()> {
    let mut words = Words::read(&start.options, start.sloppy).map_err(|refused| anyhow!(refused))?;
    if start.ro {
        words.kernel.take("ro");
    }
    LogArgs {
        log_format: words.log_format.unwrap_or(start.log.log_format),
        log_level: words.log_level.or(start.log.log_level),
    }
    .start();
    let disk_cache = disk_cache(words.cache_dir.or(start.cache_dir), words.cache_size.or(start.cache_size))?;
    let direct = direct_keys(Direct {
        direct: words.direct || start.direct.direct,
        credentials_file: words.credentials_file.or(start.direct.credentials_file),
        profile: words.profile.or(start.direct.profile),
        ambient_credentials: words.ambient_credentials || start.direct.ambient_credentials,
    })?;
    // What stands in the list of mounts names a past so.
    let (volume, at) = match start.volume.split_once('@') {
        Some((volume, at)) => (volume.to_owned(), Some(at.to_owned())),
        None => (start.volume, None),
    };
    let token = credentials::mount(
        &volume,
        words.token.or(start.token),
        words.token_file.or(start.token_file).as_deref(),
    )?;
    let admin = words.admin.or(start.admin);
    let named = words.cluster_file.or(start.cluster.named());
    let cluster = ClusterArgs::find(named.as_deref())?;
    let config = StartConfig {
        cluster,
        admin,
        volume,
        dir: start.dir,
        at: words.at_time.or(start.at_time).or(at),
        options: words.kernel,
        disk_cache,
        on_store_outage: match words.on_store_outage.unwrap_or(start.on_store_outage) {
            OnOutage::Wait => OnStoreOutage::Wait,
            OnOutage::Fail => OnStoreOutage::Fail,
        },
        direct,
        secret: secret(words.key_file, words.passphrase_file, start.secret)?,
        foreground: start.foreground,
        token,
        ready: None,
    };
    Ok(chronofs_mount::start(config)?)
}

/// What opens the volume, if it is encrypted. The process that serves the mount has it from the one that started it.
fn secret(
    key_file: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
    args: VolumeSecretArgs,
) -> Result<Option<VolumeSecret>> {
    if chronofs_mount::is_child() {
        return Ok(chronofs_mount::handed_secret()?);
    }
    match (&key_file, &passphrase_file) {
        (Some(_), Some(_)) => Err(anyhow!("a volume has one secret: leave out key-file or passphrase-file")),
        (None, None) => args.found(),
        _ => VolumeSecretArgs::named(key_file, passphrase_file, false).found(),
    }
}

fn direct_keys(direct: Direct) -> Result<Option<DirectKeys>> {
    let Direct { direct, credentials_file, profile, ambient_credentials } = direct;
    if !direct {
        return match credentials_file.is_some() || profile.is_some() || ambient_credentials {
            true => {
                Err(anyhow!("credentials of a bucket are for mounts that use it themselves: add --direct"))
            }
            false => Ok(None),
        };
    }
    if profile.is_some() && credentials_file.is_none() {
        return Err(anyhow!("a profile is one of a file: add --credentials-file FILE"));
    }
    // The process that serves the mount works elsewhere.
    let file =
        credentials_file.map(std::path::absolute).transpose().context("the file with the credentials")?;
    let keys = Keys::without_secrets(file, profile, ambient_credentials);
    Ok(Some(DirectKeys::new(move |kind| {
        own_credentials(keys.clone(), kind).map_err(|error| format!("{error:#}"))
    })))
}

fn own_credentials(keys: Keys, kind: &StoreKind) -> Result<Credentials> {
    keys.found(kind)?.ok_or_else(|| {
        let variables = match kind {
            StoreKind::Gcs(_) => "GOOGLE_APPLICATION_CREDENTIALS",
            StoreKind::Azure(_) => "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
            _ => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        };
        anyhow!(
            "no credentials for the {kind}: add --credentials-file FILE, set {variables}, or add --ambient-credentials if \
             this machine has its own"
        )
    })
}

fn disk_cache(dir: Option<PathBuf>, bytes_max: Option<u64>) -> Result<Option<DiskCacheSpec>> {
    match (dir, bytes_max) {
        (Some(dir), bytes_max) => {
            Ok(Some(DiskCacheSpec { dir, bytes_max: bytes_max.unwrap_or(CACHE_SIZE_DEFAULT) }))
        }
        (None, Some(_)) => Err(anyhow!("a cache size needs a folder: add --cache-dir DIR")),
        (None, None) => Ok(None),
    }
}

fn list(json: bool) -> Result<()> {
    let mounts = serde_json::to_value(chronofs_mount::list()?)?;
    if json {
        return output::line(serde_json::to_string_pretty(&mounts)?);
    }
    let columns = [
        ("VOLUME", "volume"),
        ("FOLDER", "dir"),
        ("AT", "at"),
        ("READ-ONLY", "read_only"),
        ("RETENTION", "/status/retention"),
        ("EARLIEST INSTANT", "/status/earliest"),
        ("STATE", "state"),
        ("PROCESS", "pid"),
    ];
    output::line(output::table(&columns, mounts.as_array().map_or(&[][..], Vec::as_slice)))
}

/// Flushes the mount `dir` lies in, and prints the instant that shows everything written before.
pub(crate) fn instant(dir: &Path) -> Result<()> {
    let instant = chronofs_mount::instant(dir).with_context(|| format!("instant of {}", dir.display()))?;
    output::line(instant)
}
