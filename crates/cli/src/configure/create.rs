//! `chronofs configure create`.

use super::{Kind, Session, at, block_store, volume_keys};
use crate::output::{self, parse_size};
use crate::secrets::VolumeSecretArgs;
use anyhow::{Context, Result, bail};
use chronofs_admin::model::{
    NewAccount, NewBlockStore, NewHold, NewLogServer, NewMetadataStore, NewVolume, NewVolumeToken, Role,
};
use chronofs_core::time::parse_instant;
use chronofs_core::volume::Compression;
use chronofs_core::{Retention, Version};
use chronofs_wire::http::Method;
use clap::{Args, Subcommand, ValueEnum};
use jiff::Zoned;
use serde::Serialize;
use serde_json::Value;
use std::time::{Duration, Instant};

/// How long `create volume` waits for a metadata server that is connected.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Subcommand, Debug)]
pub(super) enum Create {
    /// Create an account and print its token once
    Account {
        /// Its name
        name: String,
        /// What it may do: viewer, operator or admin
        #[arg(long, default_value = "viewer")]
        role: Role,
    },
    /// Create a place for the bytes of files
    #[command(
        after_help = "Examples:\n  chronofs configure create block-store disk --kind local --path /srv/blocks\n  \
                            chronofs configure create block-store cloud --kind s3 --bucket bytes --region eu-central-1 \
                            --credentials-file ~/.aws/credentials"
    )]
    BlockStore(Box<BlockStore>),
    /// Create a metadata store and print the token of its server once
    MetadataStore {
        /// Its name
        name: String,
    },
    /// Create a log server, which keeps copies of logs, and print its token once
    #[command(after_help = "Example:\n  chronofs configure create log-server far")]
    LogServer {
        /// Its name
        name: String,
    },
    /// Create a volume
    #[command(
        after_help = "Examples:\n  chronofs configure create volume data --block-store disk --metadata-store m1 \
                            --retention 30d --max-bytes 1TiB\n  chronofs configure create volume vault --block-store disk \
                            --metadata-store m1 --encrypt --passphrase-file /etc/chronofs/vault.pass"
    )]
    Volume(Box<Volume>),
    /// Create a token that opens a volume, and print it once
    #[command(
        after_help = "Example:\n  chronofs configure create volume-token --volume data --read-only --ends 30d"
    )]
    VolumeToken(VolumeToken),
    /// Keep an instant of a volume, or a span, beyond its window, until the hold is deleted or ends
    #[command(
        after_help = "Examples:\n  chronofs configure create hold --volume data --at 'yesterday 17:00' --reason 'before the move'\n  \
                            chronofs configure create hold --volume data --from -2h --to now --reason audit --until 90d"
    )]
    Hold(Hold),
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("span").args(["at", "from"]).required(true))]
pub(super) struct Hold {
    /// Its volume
    #[arg(long)]
    volume: String,
    /// The instant: RFC 3339, -2h, 'yesterday 17:00', now
    #[arg(long, value_name = "INSTANT", value_parser = instant, allow_hyphen_values = true)]
    at: Option<Version>,
    /// The first instant of a span
    #[arg(long, value_name = "INSTANT", value_parser = instant, allow_hyphen_values = true, requires = "to")]
    from: Option<Version>,
    /// The last instant of the span
    #[arg(long, value_name = "INSTANT", value_parser = instant, allow_hyphen_values = true, requires = "from")]
    to: Option<Version>,
    /// What for
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// When it ends by itself: 30d, 12h, or an instant in RFC 3339
    #[arg(long, value_name = "WHEN", value_parser = parse_end)]
    until: Option<u64>,
}

fn instant(text: &str) -> Result<Version, String> {
    parse_instant(text, &Zoned::now()).map_err(|e| e.to_string())
}

#[derive(Args, Debug)]
pub(super) struct BlockStore {
    /// Its name
    name: String,
    /// Its kind
    #[arg(long, value_enum)]
    kind: block_store::Kind,
    #[command(flatten)]
    place: block_store::Place,
    #[command(flatten)]
    keys: block_store::Keys,
    /// Do not try out first what the bucket can do
    #[arg(long, alias = "no-probe")]
    unchecked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Codec {
    /// Fast
    Lz4,
    /// Smaller
    Zstd,
    /// Not at all
    None,
}

impl From<Codec> for Compression {
    fn from(codec: Codec) -> Compression {
        match codec {
            Codec::Lz4 => Compression::Lz4,
            Codec::Zstd => Compression::Zstd,
            Codec::None => Compression::None,
        }
    }
}

#[derive(Args, Debug)]
pub(super) struct Volume {
    /// Its name
    name: String,
    /// Keep its bytes in this block store
    #[arg(long)]
    block_store: String,
    /// Keep its names and attributes in this metadata store
    #[arg(long)]
    metadata_store: String,
    /// Bytes per block, a power of two from 256KiB to 8MiB [default: 4MiB]
    #[arg(long, value_parser = parse_size)]
    block_size: Option<u64>,
    #[command(flatten)]
    settings: VolumeSettings,
    /// Encrypt content and names on the machines that mount it; it is so from the start or never
    #[arg(long)]
    encrypt: bool,
    #[command(flatten)]
    secret: VolumeSecretArgs,
    /// Do not wait for the metadata server
    #[arg(long)]
    no_wait: bool,
}

/// What a volume is made with and can be changed later.
#[derive(Args, Debug)]
pub(super) struct VolumeSettings {
    /// Compression of what is written from now on [default of a new volume: lz4]
    #[arg(long, value_enum)]
    pub(super) compression: Option<Codec>,
    /// How long the past is kept: 7d, 12h, 0 (no past), -1 (for ever) [default of a new volume: 7d]
    #[arg(long, allow_hyphen_values = true)]
    pub(super) retention: Option<Retention>,
    /// Quota in bytes
    #[arg(long, value_parser = parse_size)]
    pub(super) max_bytes: Option<u64>,
    /// Quota in inodes
    #[arg(long)]
    pub(super) max_inodes: Option<u64>,
}

#[derive(Args, Debug)]
pub(super) struct VolumeToken {
    /// Volume it opens
    #[arg(long)]
    volume: String,
    /// Confine it to this directory of the volume
    #[arg(long, value_name = "/DIR")]
    path: Option<String>,
    /// Refuse writing
    #[arg(long)]
    read_only: bool,
    /// Refuse mounts of the past
    #[arg(long)]
    no_past: bool,
    /// When it ends: 30d, 12h, or an instant in RFC 3339
    #[arg(long, value_name = "WHEN", value_parser = parse_end)]
    ends: Option<u64>,
}

/// Reads `30d` (from now) or an instant.
pub(super) fn parse_end(text: &str) -> Result<u64, String> {
    let now = Zoned::now();
    if let Ok(Retention::Seconds(seconds)) = text.parse() {
        let now_s = u64::try_from(now.timestamp().as_second()).unwrap_or_default();
        return now_s
            .checked_add(seconds)
            .and_then(|s| s.checked_mul(1_000_000_000))
            .ok_or_else(|| format!("'{text}' is too far away"));
    }
    parse_instant(text, &now).map(|version| version.0).map_err(|e| e.to_string())
}

pub(super) async fn run(session: &Session, create: Create) -> Result<()> {
    match create {
        Create::Account { name, role } => {
            made(session, Kind::Account, &name.clone(), &NewAccount { name, role }).await
        }
        Create::BlockStore(store) => create_block_store(session, *store).await,
        Create::MetadataStore { name } => {
            made(session, Kind::MetadataStore, &name.clone(), &NewMetadataStore { name }).await
        }
        Create::LogServer { name } => {
            made(session, Kind::LogServer, &name.clone(), &NewLogServer { name }).await
        }
        Create::Volume(volume) => create_volume(session, *volume).await,
        Create::Hold(Hold { volume, at, from, to, reason, until }) => {
            let from_ns = at.or(from).map_or(0, |from| from.0);
            let to_ns = to.map(|to| to.0);
            let new = NewHold { volume, from_ns, to_ns, reason, until_ns: until };
            made(session, Kind::Hold, &format!("--volume {}", new.volume), &new).await
        }
        Create::VolumeToken(token) => {
            let VolumeToken { volume, path, read_only, no_past, ends } = token;
            let new = NewVolumeToken { volume, path, read_only, past: !no_past, ends_ns: ends };
            made(session, Kind::VolumeToken, &format!("--volume {}", new.volume), &new).await
        }
    }
}

async fn post(session: &Session, kind: Kind, name: &str, body: &impl Serialize) -> Result<Value> {
    let item = session.call(Method::POST, kind.path(), Some(body)).await;
    item.with_context(|| format!("create {} {name}", kind.word()))
}

async fn made(session: &Session, kind: Kind, name: &str, body: &impl Serialize) -> Result<()> {
    let item = post(session, kind, name, body).await?;
    session.show(kind, &item)
}

async fn create_block_store(session: &Session, store: BlockStore) -> Result<()> {
    let BlockStore { name, kind, place, keys, unchecked } = store;
    let doing = || format!("create {} {name}", Kind::BlockStore.word());
    let definition = place.definition(kind).with_context(doing)?;
    let credentials = keys.credentials(&definition).with_context(doing)?;
    let bucket = definition.bucket().is_some();
    let new = NewBlockStore { name: name.clone(), definition, credentials, unchecked };
    made(session, Kind::BlockStore, &name, &new).await?;
    if bucket && unchecked {
        output::warn(format!(
            "nobody has tried out whether '{name}' can be used; chronofs configure probe block-store {name} does"
        ));
    }
    Ok(())
}

async fn create_volume(session: &Session, volume: Volume) -> Result<()> {
    let VolumeSettings { compression, retention, max_bytes, max_inodes } = volume.settings;
    let keys = match volume.encrypt {
        true => Some(volume_keys::of_new_volume(volume.secret)?),
        false if volume.secret.is_some() => bail!("a key is for a volume that is encrypted: add --encrypt"),
        false => None,
    };
    let new = NewVolume {
        name: volume.name,
        block_store: volume.block_store,
        metadata_store: volume.metadata_store,
        block_size: volume.block_size,
        compression: compression.map(Into::into),
        retention,
        max_bytes,
        max_inodes,
        keys,
    };
    let mut item = post(session, Kind::Volume, &new.name, &new).await?;
    let began = Instant::now();
    while !volume.no_wait && item["state"] == "waiting" && began.elapsed() < READY_TIMEOUT {
        let store =
            session.call(Method::GET, &at(Kind::MetadataStore, &new.metadata_store), None::<&()>).await?;
        if store["connected"] != true {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        item = session.call(Method::GET, &at(Kind::Volume, &new.name), None::<&()>).await?;
    }
    session.show(Kind::Volume, &item)?;
    let detail = item["detail"].as_str().unwrap_or_default();
    match item["state"].as_str() {
        Some("waiting") => {
            output::warn(format!("volume '{}' is created but not served yet: {detail}", new.name))
        }
        Some("problem") => {
            output::warn(format!("volume '{}' is created but cannot be served: {detail}", new.name))
        }
        _ => {}
    }
    Ok(())
}
