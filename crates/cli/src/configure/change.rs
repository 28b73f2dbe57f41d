//! `chronofs configure update`.

use super::create::{VolumeSettings, parse_end};
use super::{Kind, Session, at, block_store};
use anyhow::{Context, Result, bail};
use chronofs_admin::model::{
    ChangeAccount, ChangeBlockStore, ChangeLogServer, ChangeMetadataStore, ChangeVolume, ChangeVolumeToken,
    Role,
};
use chronofs_core::store::StoreKind;
use chronofs_wire::http::Method;
use clap::builder::NonEmptyStringValueParser;
use clap::{ArgGroup, Args, Subcommand};
use serde::Serialize;

#[derive(Subcommand, Debug)]
pub(super) enum Update {
    /// Change the role of an account, or give it a new token
    #[command(group = something(&["role", "new_token"]))]
    Account {
        /// Its name or id
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// What it may do: viewer, operator or admin
        #[arg(long)]
        role: Option<Role>,
        /// Revoke its token and print a new one
        #[arg(long)]
        new_token: bool,
    },
    /// Say where a block store has been moved to, or give it new credentials
    #[command(
        after_help = "Examples:\n  chronofs configure update block-store disk --path /srv/other\n  chronofs configure \
                            update block-store cloud --credentials-file new-key"
    )]
    BlockStore(Box<BlockStore>),
    /// Give the server of a metadata store a new token, or have it keep copies of its log
    #[command(
        group = something(&["new_token", "log_copies", "log_anti_quorum"]),
        after_help = "Example:\n  chronofs configure update metadata-store m1 --log-copies /disk2/m1-log,tlog:far"
    )]
    MetadataStore {
        /// Its name or id
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// Revoke its token and print a new one
        #[arg(long)]
        new_token: bool,
        /// Folders on other disks of its server, and log servers as tlog:NAME, for copies of its log; none without a value
        #[arg(long, value_name = "COPY", value_delimiter = ',', num_args = 0..)]
        log_copies: Option<Vec<String>>,
        /// How many of these may lack a commit that is called durable: fewer than half; above 0 there are no disk snapshots
        #[arg(long, value_name = "NUMBER")]
        log_anti_quorum: Option<u32>,
    },
    /// Give a log server a new token
    #[command(group = something(&["new_token"]))]
    LogServer {
        /// Its name or id
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// Revoke its token and print a new one
        #[arg(long)]
        new_token: bool,
    },
    /// Change a volume
    #[command(
        after_help = "A quota of 0 is no quota",
        group = something(&["new_name", "compression", "retention", "max_bytes", "max_inodes"])
    )]
    Volume(Volume),
    /// Change what a volume token may do, or when it ends
    #[command(group = something(&["read_only", "no_past", "ends"]))]
    VolumeToken {
        /// Its id
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
        /// Refuse writing
        #[arg(long)]
        read_only: Option<bool>,
        /// Refuse mounts of the past
        #[arg(long)]
        no_past: Option<bool>,
        /// When it ends: 30d, 12h, an instant in RFC 3339, or never
        #[arg(long, value_name = "WHEN", value_parser = parse_end_or_never)]
        ends: Option<u64>,
    },
}

#[derive(Args, Debug)]
pub(super) struct BlockStore {
    /// Its name or id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    #[command(flatten)]
    place: block_store::Place,
    #[command(flatten)]
    keys: block_store::Keys,
    /// Take it as it is, without having its metadata servers look at a folder or trying a bucket out
    #[arg(long, alias = "no-probe")]
    unchecked: bool,
}

#[derive(Args, Debug)]
pub(super) struct Volume {
    /// Its name or id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    /// Give it this name
    #[arg(long, value_name = "NAME")]
    new_name: Option<String>,
    #[command(flatten)]
    settings: VolumeSettings,
}

/// At least one of these must be given: a change of nothing is a mistake.
fn something(args: &'static [&'static str]) -> ArgGroup {
    ArgGroup::new("change").args(args).required(true).multiple(true)
}

fn parse_end_or_never(text: &str) -> Result<u64, String> {
    if text == "never" { Ok(0) } else { parse_end(text) }
}

pub(super) async fn run(session: &Session, update: Update) -> Result<()> {
    match update {
        Update::Account { name, role, new_token } => {
            change(session, Kind::Account, &name, &ChangeAccount { role, new_token }).await
        }
        Update::BlockStore(store) => change_block_store(session, *store).await,
        Update::MetadataStore { name, new_token, log_copies, log_anti_quorum } => {
            let body = ChangeMetadataStore { new_token, log_copies, log_anti_quorum };
            change(session, Kind::MetadataStore, &name, &body).await
        }
        Update::LogServer { name, new_token } => {
            change(session, Kind::LogServer, &name, &ChangeLogServer { new_token }).await
        }
        Update::Volume(volume) => {
            let VolumeSettings { compression, retention, max_bytes, max_inodes } = volume.settings;
            let compression = compression.map(Into::into);
            let body = ChangeVolume { name: volume.new_name, compression, retention, max_bytes, max_inodes };
            change(session, Kind::Volume, &volume.name, &body).await
        }
        Update::VolumeToken { id, read_only, no_past, ends } => {
            let body = ChangeVolumeToken { read_only, past: no_past.map(|no| !no), ends_ns: ends };
            change(session, Kind::VolumeToken, &id, &body).await
        }
    }
}

async fn change_block_store(session: &Session, store: BlockStore) -> Result<()> {
    let BlockStore { name, place, keys, unchecked } = store;
    let doing = || format!("update {} {name}", Kind::BlockStore.word());
    let found =
        session.call(Method::GET, &at(Kind::BlockStore, &name), None::<&()>).await.with_context(doing)?;
    let before: StoreKind = serde_json::from_value(found["definition"].clone()).with_context(doing)?;
    let definition = place.change(&before).with_context(doing)?;
    // Those of the environment are not taken: they may be somebody else's by chance.
    let credentials = keys.given(definition.as_ref().unwrap_or(&before)).with_context(doing)?;
    if definition.is_none() && credentials.is_none() {
        bail!("update {} {name}: nothing to change is given", Kind::BlockStore.word());
    }
    change(session, Kind::BlockStore, &name, &ChangeBlockStore { definition, credentials, unchecked }).await
}

async fn change(session: &Session, kind: Kind, name: &str, body: &impl Serialize) -> Result<()> {
    let item = session.call(Method::PATCH, &at(kind, name), Some(body)).await;
    session.show(kind, &item.with_context(|| format!("update {} {name}", kind.word()))?)
}
