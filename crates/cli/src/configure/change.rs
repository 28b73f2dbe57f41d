//! `chronofs configure update`.

use super::create::{Codec, parse_end};
use super::{Kind, Session, at, block_store};
use crate::output::parse_size;
use anyhow::{Context, Result, bail};
use chronofs_admin::model::{
    ChangeAccount, ChangeBlockStore, ChangeMetadataStore, ChangeVolume, ChangeVolumeToken, Role,
};
use chronofs_core::Retention;
use chronofs_core::store::StoreKind;
use chronofs_wire::http::Method;
use clap::{Args, Subcommand};
use serde::Serialize;

#[derive(Subcommand, Debug)]
pub(super) enum Update {
    /// Change the role of an account, or give it a new token
    Account {
        /// Its name or id
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
    /// Give the server of a metadata store a new token
    MetadataStore {
        /// Its name or id
        name: String,
        /// Revoke its token and print a new one
        #[arg(long, required = true)]
        new_token: bool,
    },
    /// Change a volume
    Volume(Volume),
    /// Change what a volume token may do, or when it ends
    VolumeToken {
        /// Its id
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
    name: String,
    #[command(flatten)]
    place: block_store::Place,
    #[command(flatten)]
    keys: block_store::Keys,
    /// Do not try out first what the bucket can do
    #[arg(long)]
    no_probe: bool,
}

#[derive(Args, Debug)]
pub(super) struct Volume {
    /// Its name or id
    name: String,
    /// Give it this name
    #[arg(long, value_name = "NAME")]
    new_name: Option<String>,
    /// Compression of what is written from now on
    #[arg(long, value_enum)]
    compression: Option<Codec>,
    /// How long the past is kept: 7d, 12h, 0 (no past), -1 (for ever)
    #[arg(long, allow_hyphen_values = true)]
    retention: Option<Retention>,
    /// Quota in bytes; 0 for none
    #[arg(long, value_parser = parse_size)]
    max_bytes: Option<u64>,
    /// Quota in inodes; 0 for none
    #[arg(long)]
    max_inodes: Option<u64>,
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
        Update::MetadataStore { name, new_token } => {
            change(session, Kind::MetadataStore, &name, &ChangeMetadataStore { new_token }).await
        }
        Update::Volume(volume) => {
            let body = ChangeVolume {
                name: volume.new_name,
                compression: volume.compression.map(Into::into),
                retention: volume.retention,
                max_bytes: volume.max_bytes,
                max_inodes: volume.max_inodes,
            };
            change(session, Kind::Volume, &volume.name, &body).await
        }
        Update::VolumeToken { id, read_only, no_past, ends } => {
            let body = ChangeVolumeToken { read_only, past: no_past.map(|no| !no), ends_ns: ends };
            change(session, Kind::VolumeToken, &id, &body).await
        }
    }
}

async fn change_block_store(session: &Session, store: BlockStore) -> Result<()> {
    let BlockStore { name, place, keys, no_probe } = store;
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
    change(session, Kind::BlockStore, &name, &ChangeBlockStore { definition, credentials, probe: !no_probe })
        .await
}

async fn change(session: &Session, kind: Kind, name: &str, body: &impl Serialize) -> Result<()> {
    let item = session.call(Method::PATCH, &at(kind, name), Some(body)).await;
    session.show(kind, &item.with_context(|| format!("update {} {name}", kind.word()))?)
}
