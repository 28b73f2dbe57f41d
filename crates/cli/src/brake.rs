//! `meta gc --release-brake`: through the admin server, which writes down who did it.

use crate::cluster::ClusterArgs;
use crate::{analyze, credentials, output, serve};
use anyhow::Result;
use chronofs_wire::http::{AdminClient, Method, parse_address};
use clap::Args;

/// What says that the brake is to be released, and of which metadata store.
#[derive(Args, Debug)]
pub(crate) struct Brake {
    /// Let go what was held back because it is much at once; through the admin server, which writes down who did it
    #[arg(long)]
    release_brake: bool,
    /// With --release-brake: name or id of the metadata store, if there are several
    #[arg(long, value_name = "NAME", requires = "release_brake")]
    metadata_store: Option<String>,
    /// With --release-brake: reach the admin server here instead of where the token says
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_address, requires = "release_brake")]
    admin: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl Brake {
    /// Releases it, if that is said. Gives the metadata store.
    pub(crate) fn release(self) -> Result<Option<String>> {
        if !self.release_brake {
            return Ok(None);
        }
        let token = credentials::configure()?;
        let client = AdminClient::reached(&token, self.admin.as_deref(), self.cluster.read()?.as_ref())?;
        serve(async move {
            let store = match self.metadata_store {
                Some(store) => store,
                None => analyze::only_store(&client).await?,
            };
            let path = format!("/v1/metadata-stores/{}/release-brake", output::escaped(&store));
            client.call::<()>(Method::POST, &path, None::<&()>).await?;
            Ok(Some(store))
        })?
    }
}
