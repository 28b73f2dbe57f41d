//! `chronofs admin rebuild`: an admin server made anew of what a block store says of its volumes.

use crate::admin::{Folder, OwnClusterFile, Tls};
use crate::configure::block_store::{Keys, Kind, Place};
use crate::{output, serve};
use anyhow::Result;
use chronofs_admin::{InitConfig, RebuildConfig, Rebuilt, RebuiltVolume};
use chronofs_wire::http::parse_address;
use clap::Args;
use serde_json::json;

#[derive(Args, Debug)]
pub(crate) struct Rebuild {
    #[command(flatten)]
    folder: Folder,
    /// Address for all clients, part of every token: best that of the server that is lost [default: localhost:8443]
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_address)]
    address: Option<String>,
    /// What the block store is called from now on
    #[arg(long)]
    name: String,
    /// Kind of the block store
    #[arg(long, value_enum)]
    kind: Kind,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    keys: Keys,
    /// Which cluster, if the block store has volumes of several: its description:id
    #[arg(long, value_name = "NAME:ID")]
    cluster: Option<String>,
    #[command(flatten)]
    cluster_file: OwnClusterFile,
    #[command(flatten)]
    tls: Tls,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(asked: Rebuild) -> Result<()> {
    let definition = asked.place.definition(asked.kind)?;
    let credentials = asked.keys.credentials(&definition)?;
    let (cluster_file, tls) = (asked.cluster_file.path(), asked.tls.files());
    let (db_folder, address) = (asked.folder.path(), asked.address);
    let init = InitConfig { db_folder, address, tls, rotate: false, cluster_file };
    let (name, cluster) = (asked.name, asked.cluster);
    let rebuilt =
        serve(chronofs_admin::rebuild(RebuildConfig { init, name, definition, credentials, cluster }))??;
    if asked.json { output::line(shown(&rebuilt)) } else { tell(&rebuilt) }
}

fn shown(rebuilt: &Rebuilt) -> serde_json::Value {
    let volume = |volume: &RebuiltVolume| {
        json!({ "id": volume.id, "name": volume.name, "was": volume.was, "encrypted": volume.encrypted,
            "deleted": volume.deleted })
    };
    let store = |(name, token): &(String, String)| json!({ "name": name, "token": token });
    let unreadable = |(name, reason): &(String, String)| json!({ "name": name, "reason": reason });
    json!({
        "root_token": rebuilt.root, "cluster": rebuilt.cluster,
        "metadata_stores": rebuilt.metadata_stores.iter().map(store).collect::<Vec<_>>(),
        "volumes": rebuilt.volumes.iter().map(volume).collect::<Vec<_>>(),
        "unreadable": rebuilt.unreadable.iter().map(unreadable).collect::<Vec<_>>(),
    })
}

fn tell(rebuilt: &Rebuilt) -> Result<()> {
    output::line(format!("cluster {}", rebuilt.cluster))?;
    if let Some(root) = &rebuilt.root {
        output::line(format!("root token: {root}"))?;
    }
    for (name, token) in &rebuilt.metadata_stores {
        output::line(format!("metadata store {name}, token for its server: {token}"))?;
    }
    for RebuiltVolume { id, name, was, encrypted, deleted } in &rebuilt.volumes {
        let how = if *encrypted { ", encrypted" } else { "" };
        let how = format!(
            "{how}{}",
            if *deleted { ", deleted: chronofs configure undelete volume takes it back" } else { "" }
        );
        let was =
            was.as_ref().map_or_else(String::new, |was| format!(", was {was}: another one has that name"));
        output::line(format!("volume {name} ({id}){how}{was}"))?;
    }
    for (name, reason) in &rebuilt.unreadable {
        output::warn(format!("left out: {name}: {reason}"));
    }
    output::note(
        "start the admin server; give each metadata server its token (chronofs meta init creds) and start it anew; look at the block \
         store (chronofs configure probe block-store); make accounts, volume tokens, holds and schedules again; then see chronofs \
         restore status",
    );
    Ok(())
}
