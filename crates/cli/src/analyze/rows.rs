//! `meta verify --online`: every row of a metadata store whose server runs.

use super::follow::follow;
use crate::cluster::ClusterArgs;
use crate::{credentials, output, serve};
use anyhow::{Result, bail};
use chronofs_core::Version;
use chronofs_wire::analyze::{Look, News, RowsSeen, Subject, Sum};
use chronofs_wire::http::{AdminClient, Method};
use serde_json::Value;
use std::time::{Duration, Instant};

/// How often it is told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Checks the rows, and prints each fault.
pub(crate) fn rows(store: Option<String>, admin: Option<&str>, cluster: &ClusterArgs) -> Result<()> {
    let token = credentials::configure()?;
    let client = AdminClient::reached(&token, admin, cluster.read()?.as_ref())?;
    serve(async move {
        let store = match store {
            Some(store) => store,
            None => only_store(&client).await?,
        };
        let mut told = Instant::now();
        // A server that was started anew begins at another version, and tells all anew.
        let begun = || Look::Rows;
        let hear = |news: News| match news {
            News::Row(fault) => output::line(fault),
            News::Rows(rows) if told.elapsed() >= TELL_EVERY => {
                told = Instant::now();
                output::note(format!("rows read so far: {rows}"));
                Ok(())
            }
            _ => Ok(()),
        };
        match follow(&client, &Subject::MetadataStore(store.clone()), begun, hear).await? {
            Sum::Rows(RowsSeen { faults: 0, at_ns, volumes, rows }) => output::line(format!(
                "nothing is wrong as of {}; volumes: {volumes}, rows read: {rows}",
                Version(at_ns)
            )),
            Sum::Rows(RowsSeen { faults, at_ns, .. }) => bail!(
                "{faults} faults in metadata store '{store}' as of {}: stop its server, keep a copy of its folder, and see \
                 what chronofs meta verify --repair can correct",
                Version(at_ns)
            ),
            _ => bail!("the server looked at something else; are the versions the same?"),
        }
    })?
}

/// The metadata store that is meant where none is named.
pub(crate) async fn only_store(client: &AdminClient) -> Result<String> {
    let stores: Value = client.call(Method::GET, "/v1/metadata-stores", None::<&()>).await?;
    let names: Vec<&str> =
        stores.as_array().into_iter().flatten().filter_map(|s| s["name"].as_str()).collect();
    match names[..] {
        [only] => Ok(only.to_owned()),
        [] => bail!("there is no metadata store yet"),
        _ => bail!("name one of the metadata stores with --metadata-store: {}", names.join(", ")),
    }
}
