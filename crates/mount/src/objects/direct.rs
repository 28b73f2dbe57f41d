//! Objects in a bucket with credentials that this mount was given: no signed requests, and no byte through the metadata
//! server. Who has them can read and destroy the whole bucket; the volume's token limits nothing of that.

use crate::connection::Source;
use chronofs_blocks::store::Patience;
use chronofs_blocks::{RemoteStore, StoreError, Trouble};
use chronofs_core::store::{Credentials, StoreKind};
use std::fmt;
use std::sync::Arc;

/// The credentials for a store of this kind, or why there are none.
type Find = dyn Fn(&StoreKind) -> Result<Credentials, String> + Send + Sync;

/// Finds the credentials for a store of some kind. Not called before that kind is known.
#[derive(Clone)]
pub struct DirectKeys(Arc<Find>);

impl DirectKeys {
    /// Credentials that `find` finds, or why not.
    pub fn new(find: impl Fn(&StoreKind) -> Result<Credentials, String> + Send + Sync + 'static) -> Self {
        DirectKeys(Arc::new(find))
    }
}

impl fmt::Debug for DirectKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DirectKeys")
    }
}

/// The store of the volume behind `source`, once its bucket was seen to be the right one. Or what to tell.
pub(crate) async fn open(source: &Source, keys: DirectKeys) -> Result<Arc<RemoteStore>, String> {
    let Source::Admin { admin, volume } = source else {
        return Err("only the admin server knows where objects are, and none is named".to_owned());
    };
    let place = admin.store_place(volume).await.map_err(|error| error.to_string())?;
    if let StoreKind::Local { path } = &place.kind {
        return Err(format!(
            "its block store is the folder {path}, which needs no credentials: mount without --direct (the folder is used \
             where this machine has it, otherwise bytes go through the metadata server)"
        ));
    }
    let credentials = (keys.0)(&place.kind)?;
    let store = |patience| {
        let opened =
            RemoteStore::new(place.kind.clone(), place.id, credentials.clone(), place.create_only, patience);
        opened.map_err(|error| error.reason)
    };
    // Somebody waits for the command.
    store(Patience::Asking)?.check_marker().await.map_err(|error| told(&error, &credentials))?;
    let store = store(Patience::Serving)?;
    tracing::info!("objects go to {} with credentials of this mount: {}", place.kind, shown(&credentials));
    Ok(Arc::new(store))
}

fn told(error: &StoreError, credentials: &Credentials) -> String {
    let next = match error.trouble {
        Trouble::Missing | Trouble::Damaged => {
            "that is not the bucket of the volume: nothing is mounted; see where it is with chronofs configure show \
             block-store, and that its name leads to the same place from here"
        }
        _ => {
            "check that the bucket can be reached from here and that the credentials may read and write it; or mount \
             without --direct"
        }
    };
    format!("{} ({}); {next}", error.reason, shown(credentials))
}

/// What may be shown of credentials.
fn shown(credentials: &Credentials) -> String {
    match credentials {
        Credentials::Ambient => "credentials of this machine".to_owned(),
        given => given.describe(),
    }
}
