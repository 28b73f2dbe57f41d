//! `chronofs configure update`.

use super::create::{VolumeSettings, parse_end};
use super::volume_keys::{self, VolumeKeys};
use super::{Kind, Session, at, block_store};
use crate::output;
use anyhow::{Context, Result, bail};
use chronofs_admin::model::{
    ChangeAccount, ChangeBlockStore, ChangeLogServer, ChangeMetadataStore, ChangeVolume, ChangeVolumeToken,
    Role,
};
use chronofs_core::store::StoreKind;
use chronofs_core::{Retention, Version};
use chronofs_wire::http::Method;
use clap::builder::NonEmptyStringValueParser;
use clap::{ArgGroup, Args, Subcommand};
use jiff::{Timestamp, Zoned};
use serde::Serialize;
use serde_json::Value;

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
        after_help = "A quota of 0 is no quota. A shorter retention waits for a time of grace, in which it can be taken back; \
                      nothing goes before",
        group = something(&["new_name", "compression", "retention", "undo", "max_bytes", "max_inodes"])
    )]
    Volume(Volume),
    /// Change what opens an encrypted volume, or seal with a new key from now on; nothing is written anew
    #[command(
        after_help = "Examples:\n  chronofs configure update volume-keys vault --passphrase-file old --new-passphrase-file new\n  \
                            chronofs configure update volume-keys vault --passphrase-file new --rotate-data-key"
    )]
    VolumeKeys(Box<VolumeKeys>),
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
    /// How long a shorter retention waits: 12h, or 0 to have it now [default: 7d]
    #[arg(long, value_name = "TIME", requires = "retention")]
    grace: Option<Retention>,
    /// Take back a shorter retention that waits
    #[arg(long, conflicts_with_all = ["retention", "grace"])]
    undo: bool,
    /// Change nothing; say what would go, and when
    #[arg(long)]
    dry_run: bool,
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
            let name = volume.name.clone();
            change_volume(session, volume).await.with_context(|| format!("update volume {name}"))
        }
        Update::VolumeKeys(keys) => volume_keys::update(session, *keys).await,
        Update::VolumeToken { id, read_only, no_past, ends } => {
            let body = ChangeVolumeToken { read_only, past: no_past.map(|no| !no), ends_ns: ends };
            change(session, Kind::VolumeToken, &id, &body).await
        }
    }
}

async fn change_volume(session: &Session, volume: Volume) -> Result<()> {
    let VolumeSettings { compression, retention, max_bytes, max_inodes } = volume.settings;
    let grace_seconds = match volume.grace {
        None => None,
        Some(Retention::None) => Some(0),
        Some(Retention::Seconds(seconds)) => Some(seconds),
        Some(Retention::Forever) => bail!("a time of grace ends: write 7d, 12h, or 0"),
    };
    let path = at(Kind::Volume, &volume.name);
    let before = session.call(Method::GET, &path, None::<&()>).await?;
    let body = ChangeVolume {
        name: volume.new_name,
        compression: compression.map(Into::into),
        retention,
        grace_seconds,
        undo_retention: volume.undo,
        dry_run: volume.dry_run,
        max_bytes,
        max_inodes,
    };
    let after = session.call(Method::PATCH, &path, Some(&body)).await?;
    session.show(Kind::Volume, &after)?;
    if retention.is_some() || volume.undo {
        for line in what_goes(&before, &after, Zoned::now().timestamp()) {
            output::note(line);
        }
    }
    if volume.dry_run {
        output::note("nothing was changed (--dry-run)");
    }
    Ok(())
}

/// What a change of the retention means, for people.
fn what_goes(before: &Value, after: &Value, now: Timestamp) -> Vec<String> {
    let text = |volume: &'_ Value, field: &str| volume[field].as_str().map(str::to_owned);
    let earliest = text(before, "earliest");
    let since = earliest.as_ref().map_or_else(String::new, |earliest| format!(" (now from {earliest} on)"));
    let (Some(old), Some(new)) = (text(before, "retention"), text(after, "retention")) else {
        return Vec::new();
    };
    if let (Some(next), Some(at)) = (text(after, "next_retention"), text(after, "next_retention_at")) {
        let then = text(after, "next_earliest").unwrap_or_default();
        return vec![format!(
            "the past is kept for {new} until {at}, then for {next}: what is before {then} goes then{since}; until then take it \
             back with --undo"
        )];
    }
    let parsed = |text: &str| text.parse::<Retention>().unwrap_or(Retention::None);
    let now = Version(u64::try_from(now.as_nanosecond()).unwrap_or_default());
    let start = parsed(&new).window_start(now);
    let goes = start > parsed(&old).window_start(now);
    let mut lines = Vec::new();
    if !before["next_retention"].is_null() && !goes {
        lines.push("the shorter retention that waited is taken back; nothing went".to_owned());
    }
    if goes {
        lines.push(format!("what is before {start} goes now{since}"));
    } else if let Some(earliest) = earliest.filter(|_| new != old) {
        lines.push(format!("what was before {earliest} is gone already, and does not come back"));
    }
    lines
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_is_said_what_a_retention_makes_go_and_when() {
        let now: Timestamp = "2026-03-15T12:00:00Z".parse().unwrap();
        let volume = |retention: &str| json!({"retention": retention, "earliest": "2026-03-08T12:00:00Z"});
        let said = |before: &Value, after: &Value| what_goes(before, after, now).join("; ");
        let mut waits = volume("7d");
        waits["next_retention"] = json!("1d");
        waits["next_retention_at"] = json!("2026-03-22T12:00:00Z");
        waits["next_earliest"] = json!("2026-03-21T12:00:00Z");
        let line = said(&volume("7d"), &waits);
        for part in
            ["for 7d until 2026-03-22", "then for 1d", "before 2026-03-21", "from 2026-03-08", "--undo"]
        {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(said(&waits, &volume("7d")).contains("taken back; nothing went"));
        let now_less = said(&volume("7d"), &volume("1d"));
        assert!(now_less.contains("before 2026-03-14T12:00:00.000000000Z goes now"), "{now_less}");
        let more = said(&volume("7d"), &volume("30d"));
        assert!(more.contains("before 2026-03-08T12:00:00Z is gone already"), "{more}");
        assert_eq!(said(&volume("7d"), &volume("7d")), "");
        let at_once = said(&waits, &volume("1d"));
        assert!(at_once.contains("goes now") && !at_once.contains("nothing went"), "{at_once}");
        let less = said(&waits, &volume("2d"));
        assert!(less.contains("before 2026-03-13") && !less.contains("taken back"), "{less}");
        let longer = said(&waits, &volume("30d"));
        assert!(longer.contains("nothing went") && longer.contains("is gone already"), "{longer}");
    }
}
