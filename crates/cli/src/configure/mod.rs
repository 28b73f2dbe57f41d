//! `chronofs configure`: what exists, through the admin server's API.

pub(crate) mod block_store;
mod change;
mod create;
mod volume_keys;

use crate::cluster::AdminArgs;
use crate::output::{self, Column};
use crate::{credentials, serve};
use anyhow::{Context, Result, bail};
use chronofs_admin::model;
use chronofs_core::Retention;
use chronofs_wire::http::{AdminClient, Method};
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(crate) struct Configure {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Prepare this machine
    #[command(subcommand)]
    Init(Init),
    /// Create something
    #[command(subcommand)]
    Create(create::Create),
    /// List all of a kind
    List {
        /// What to list
        kind: Kind,
    },
    /// Show one
    Show {
        /// Its kind
        kind: Kind,
        /// Its name or id
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
    },
    /// Change one
    #[command(subcommand)]
    Update(change::Update),
    /// Try out what a block store can do, and keep what was found
    #[command(subcommand)]
    Probe(Probe),
    /// Delete one that is not in use
    #[command(
        after_help = "A deleted volume can be taken back with undelete until its time is over; deleting the deleted-volume \
                      gives it up at once, for good"
    )]
    Delete {
        /// Its kind
        kind: Kind,
        /// Its name or id
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// Of a volume: for how long it can be taken back, 7d, 12h, 0, or -1 for ever; if not given, for as long as its past
        /// reaches back, but at least a day
        #[arg(long, allow_hyphen_values = true)]
        keep: Option<Retention>,
    },
    /// Take back something that was deleted
    #[command(subcommand)]
    Undelete(Undelete),
}

#[derive(Subcommand, Debug)]
enum Undelete {
    /// A volume with all its files and its past, until what it holds is given up; its tokens are to be made anew
    Volume {
        /// Its name or id
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// Give it this name, if another volume has its own by now
        #[arg(long, value_name = "NAME")]
        new_name: Option<String>,
    },
}

#[derive(Subcommand, Debug)]
enum Init {
    /// Keep the token of an account for configure
    Creds {
        /// Token of the account
        #[arg(long)]
        token: String,
    },
    /// Make a key that opens encrypted volumes
    #[command(after_help = "Example:\n  chronofs configure init volume-key /etc/chronofs/vault.key")]
    VolumeKey {
        /// New file that it is written into
        file: PathBuf,
    },
}

#[derive(Subcommand, Debug)]
enum Probe {
    /// A bucket; folders are checked by the metadata servers that use them
    BlockStore {
        /// Its name or id
        name: String,
    },
}

/// Kinds of things.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Kind {
    /// Persons and programs that configure
    Account,
    /// Places for the bytes of files
    BlockStore,
    /// Logs with stores, each served by a metadata server
    MetadataStore,
    /// Servers that keep copies of logs
    LogServer,
    /// File systems
    Volume,
    /// File systems that were deleted, and can be taken back or are going
    DeletedVolume,
    /// What opens a volume
    VolumeToken,
    /// Instants of volumes that are kept beyond their windows
    Hold,
}

impl Kind {
    fn path(self) -> &'static str {
        match self {
            Kind::Account => "/v1/accounts",
            Kind::BlockStore => "/v1/block-stores",
            Kind::MetadataStore => "/v1/metadata-stores",
            Kind::LogServer => "/v1/log-servers",
            Kind::Volume => "/v1/volumes",
            Kind::DeletedVolume => "/v1/deleted-volumes",
            Kind::VolumeToken => "/v1/volume-tokens",
            Kind::Hold => "/v1/holds",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Kind::Account => "account",
            Kind::BlockStore => "block-store",
            Kind::MetadataStore => "metadata-store",
            Kind::LogServer => "log-server",
            Kind::Volume => "volume",
            Kind::DeletedVolume => "deleted-volume",
            Kind::VolumeToken => "volume-token",
            Kind::Hold => "hold",
        }
    }

    fn columns(self) -> &'static [Column] {
        match self {
            Kind::Account => &[("NAME", "name"), ("ROLE", "role"), ("CREATED", "created")],
            Kind::BlockStore => {
                &[("NAME", "name"), ("KIND", "kind"), ("PLACE", "place"), ("VOLUMES", "volumes")]
            }
            Kind::MetadataStore => &[
                ("NAME", "name"),
                ("CONNECTED", "connected"),
                ("ADDRESS", "address"),
                ("EPOCH", "epoch"),
                ("VOLUMES", "volumes"),
            ],
            Kind::LogServer => &[
                ("NAME", "name"),
                ("CONNECTED", "connected"),
                ("ADDRESS", "address"),
                ("EPOCH", "epoch"),
                ("METADATA-STORES", "stores"),
            ],
            Kind::Volume => &[
                ("NAME", "name"),
                ("STATE", "state"),
                ("BLOCK-STORE", "block_store"),
                ("METADATA-STORE", "metadata_store"),
                ("RETENTION", "retention"),
                ("USED", "used_bytes"),
                ("INODES", "used_inodes"),
                ("MOUNTS", "sessions"),
            ],
            Kind::DeletedVolume => &[
                ("NAME", "name"),
                ("ID", "id"),
                ("STATE", "state"),
                ("DELETED", "deleted"),
                ("KEPT UNTIL", "kept_until"),
                ("USED", "used_bytes"),
                ("DETAIL", "detail"),
            ],
            Kind::VolumeToken => &[
                ("ID", "id"),
                ("VOLUME", "volume"),
                ("PATH", "path"),
                ("READ-ONLY", "read_only"),
                ("PAST", "past"),
                ("ENDS", "ends"),
            ],
            Kind::Hold => &[
                ("ID", "id"),
                ("VOLUME", "volume"),
                ("FROM", "from"),
                ("TO", "to"),
                ("OWNER", "owner"),
                ("ENDS", "ends"),
                ("STATE", "state"),
                ("REASON", "reason"),
                ("DETAIL", "detail"),
            ],
        }
    }

    /// All that `show` shows.
    fn fields(self) -> &'static [Column] {
        match self {
            Kind::BlockStore => &[
                ("name", "name"),
                ("id", "id"),
                ("kind", "kind"),
                ("place", "place"),
                ("credentials", "credentials"),
                ("probed", "probed"),
                ("create-only puts", "/probe/create_only"),
                ("parallel puts", "/probe/parallel"),
                ("weaknesses", "weaknesses"),
                ("created", "created"),
                ("volumes", "volumes"),
            ],
            Kind::Volume => &[
                ("name", "name"),
                ("id", "id"),
                ("state", "state"),
                ("detail", "detail"),
                ("block store", "block_store"),
                ("metadata store", "metadata_store"),
                ("block size", "block_size"),
                ("compression", "compression"),
                ("encryption", "encryption"),
                ("retention", "retention"),
                ("next retention", "next_retention"),
                ("in force at", "next_retention_at"),
                ("earliest instant then", "next_earliest"),
                ("max bytes", "max_bytes"),
                ("max inodes", "max_inodes"),
                ("created", "created"),
                ("earliest instant", "earliest"),
                ("used bytes", "used_bytes"),
                ("used inodes", "used_inodes"),
                ("mounts", "sessions"),
            ],
            Kind::MetadataStore => &[
                ("name", "name"),
                ("id", "id"),
                ("connected", "connected"),
                ("address", "address"),
                ("epoch", "epoch"),
                ("log copies", "/log/wanted/copies"),
                ("log anti quorum", "/log/wanted/anti_quorum"),
                ("log copies in use", "/log/members/copies"),
                ("epoch of the log", "/log/epoch"),
                ("created", "created"),
                ("volumes", "volumes"),
            ],
            Kind::LogServer => &[
                ("name", "name"),
                ("id", "id"),
                ("connected", "connected"),
                ("address", "address"),
                ("epoch", "epoch"),
                ("created", "created"),
                ("metadata stores", "stores"),
            ],
            Kind::Hold => &[
                ("id", "id"),
                ("volume", "volume"),
                ("from", "from"),
                ("to", "to"),
                ("owner", "owner"),
                ("reason", "reason"),
                ("created", "created"),
                ("ends", "ends"),
                ("state", "state"),
                ("detail", "detail"),
            ],
            other => other.columns(),
        }
    }
}

/// A session with the admin server.
pub(crate) struct Session {
    client: AdminClient,
    json: bool,
}

impl Session {
    async fn call(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<Value> {
        Ok(self.client.call(method, path, body).await?)
    }

    /// Shows one thing that was created, changed or asked for.
    fn show(&self, kind: Kind, item: &Value) -> Result<()> {
        if self.json {
            return output::line(serde_json::to_string_pretty(item)?);
        }
        output::line(output::card(kind.fields(), item))?;
        match item["token"].as_str() {
            Some(token) => {
                output::warn("this token is shown only now; keep it safe");
                output::line(token)
            }
            None => Ok(()),
        }
    }
}

/// A name as part of a path of the API; what no name can hold is refused by the server, not misread.
fn at(kind: Kind, name: &str) -> String {
    format!("{}/{}", kind.path(), output::escaped(name))
}

pub(crate) fn run(configure: Configure) -> Result<()> {
    let Configure { json, admin, command } = configure;
    match command {
        Command::Init(Init::Creds { token }) => {
            let path = credentials::save_configure(&token).context("configure init creds")?;
            return output::line(format!("wrote {}", path.display()));
        }
        Command::Init(Init::VolumeKey { file }) => {
            return volume_keys::make_key(&file).context("configure init volume-key");
        }
        _ => {}
    }
    let client = admin.client().context("configure")?;
    serve(async move { dispatch(Session { client, json }, command).await })?
}

async fn dispatch(session: Session, command: Command) -> Result<()> {
    match command {
        Command::Init(_) => Ok(()),
        Command::Create(create) => create::run(&session, create).await,
        Command::Update(update) => change::run(&session, update).await,
        Command::List { kind } => list(&session, kind).await.with_context(|| format!("list {}", kind.word())),
        Command::Show { kind, name } => {
            let item = session.call(Method::GET, &at(kind, &name), None::<&()>).await;
            session.show(kind, &item.with_context(|| format!("show {} {name}", kind.word()))?)
        }
        Command::Probe(Probe::BlockStore { name }) => {
            let path = format!("{}/probe", at(Kind::BlockStore, &name));
            let item = session.call(Method::POST, &path, None::<&()>).await;
            session.show(Kind::BlockStore, &item.with_context(|| format!("probe block-store {name}"))?)
        }
        Command::Delete { kind, name, keep } => delete(&session, kind, &name, keep)
            .await
            .with_context(|| format!("delete {} {name}", kind.word())),
        Command::Undelete(Undelete::Volume { name, new_name }) => {
            let path = format!("{}/undelete", at(Kind::DeletedVolume, &name));
            let item = session.call(Method::POST, &path, Some(&model::Undelete { new_name })).await;
            session.show(Kind::Volume, &item.with_context(|| format!("undelete volume {name}"))?)
        }
    }
}

async fn delete(session: &Session, kind: Kind, name: &str, keep: Option<Retention>) -> Result<()> {
    if keep.is_some() && !matches!(kind, Kind::Volume) {
        bail!("only a volume is kept when it is deleted: leave out --keep");
    }
    if !matches!(kind, Kind::Volume) {
        return session.call(Method::DELETE, &at(kind, name), None::<&()>).await.map(drop);
    }
    let volume = session.call(Method::GET, &at(kind, name), None::<&()>).await?;
    let id = volume["id"].as_str().unwrap_or(name).to_owned();
    let keep = keep.map_or(String::new(), |keep| format!("?keep={keep}"));
    session.call(Method::DELETE, &format!("{}{keep}", at(kind, &id)), None::<&()>).await?;
    let kept = session.call(Method::GET, &at(Kind::DeletedVolume, &id), None::<&()>).await?;
    output::note(match (kept["state"].as_str(), kept["kept_until"].as_str()) {
        (Some("kept"), Some(until)) => {
            format!("it can be taken back until {until}: chronofs configure undelete volume {id}")
        }
        (Some("kept"), None) => format!(
            "it is kept until it is given up with chronofs configure delete deleted-volume {id}; to take it back: chronofs \
             configure undelete volume {id}"
        ),
        _ => "what it held is given up now".to_owned(),
    });
    Ok(())
}

async fn list(session: &Session, kind: Kind) -> Result<()> {
    let items = session.call(Method::GET, kind.path(), None::<&()>).await?;
    for silent in items["silent"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        output::warn(format!("this list is not whole: {silent}"));
    }
    if session.json {
        return output::line(serde_json::to_string_pretty(&items)?);
    }
    // A list that may lack something is a part of what is said.
    let rows = items.get("holds").unwrap_or(&items);
    output::line(output::table(kind.columns(), rows.as_array().map_or(&[][..], Vec::as_slice)))
}
