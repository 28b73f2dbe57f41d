//! Looks into volumes, and repairs of their block stores, which their metadata servers do: begun and followed through here.

use super::auth::Who;
use super::questions::Silent;
use super::{Answer, App, Body};
use crate::AdminError;
use crate::db::{block_stores, stores, volumes};
use crate::model::Role;
use axum::Json;
use axum::extract::State;
use chronofs_wire::analyze::{Analyze, Begun, Follow, Look, Subject, Told};
use chronofs_wire::question::{Asked, Said};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// A look begins at once, and its news are waited for 2 s.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);

/// Begin a look into a volume; names of files are among its news, so it needs the role `operator`
#[utoipa::path(post, path = "/v1/analyze", request_body = Analyze,
    responses((status = 200, body = Begun)), security(("token" = [])))]
pub(super) async fn begin(
    who: Who,
    State(app): State<Arc<App>>,
    Body(Analyze { subject, look }): Body<Analyze>,
) -> Answer<Begun> {
    who.must_be(Role::Operator)?;
    let (store, volume) = match subject {
        Subject::Volume(volume) => {
            let found = app.database.run(move |tx| volumes::find(tx, &volume)).await?;
            let id = Uuid::parse_str(&found.volume.id)
                .map_err(|error| AdminError::Internal(format!("volume id '{}': {error}", found.volume.id)))?;
            match &look {
                Look::Repair { dry_run: false, .. } => {
                    who.did("repair", "repair of volume", &found.volume.name)
                }
                Look::Repair { .. } => who.tried("repair of volume", &found.volume.name),
                Look::Salvage { list_only: false } => {
                    who.did("salvage", "salvage of volume", &found.volume.name)
                }
                Look::Discard { dry_run: false, .. } => {
                    who.did("discard", "unexplained objects of volume", &found.volume.name)
                }
                Look::Discard { .. } => {
                    who.tried("discard of unexplained objects of volume", &found.volume.name)
                }
                _ => who.did("analyze", "volume", &found.volume.name),
            }
            (found.metadata_store, Some(id))
        }
        Subject::MetadataStore(store) => {
            let found = app.database.run(move |tx| stores::find_metadata(tx, &store)).await?;
            who.did("analyze", "metadata-store", &found.name);
            (found.id, None)
        }
    };
    // A folder is one of the metadata server's machine; of a block store only this server knows what opens it.
    let replica = match &look {
        Look::Repair { from_store: Some(named), .. } if !named.starts_with('/') => {
            let (named, secrets) = (named.clone(), app.secrets.clone());
            let found = app.database.run(move |tx| block_stores::find_assigned(tx, &secrets, &named));
            Some(Box::new(found.await?))
        }
        _ => None,
    };
    match ask(&app, &store, Asked::Look { volume, look, replica }).await? {
        Said::Looking(look) => Ok(Json(Begun { store, look })),
        Said::Trouble(why) => Err(AdminError::Unavailable(why)),
        _ => Err(another()),
    }
}

/// What is new of a look; waits 2 s for news
#[utoipa::path(post, path = "/v1/analyze/follow", request_body = Follow,
    responses((status = 200, body = Told)), security(("token" = [])))]
pub(super) async fn follow(
    who: Who,
    State(app): State<Arc<App>>,
    Body(Follow { store, look, seen }): Body<Follow>,
) -> Answer<Told> {
    who.must_be(Role::Operator)?;
    match ask(&app, &store, Asked::Follow { look, seen }).await? {
        Said::Looked(told) => Ok(Json(told)),
        _ => Err(another()),
    }
}

pub(super) async fn ask(app: &App, store: &str, asked: Asked) -> Result<Said, AdminError> {
    let key = store.to_owned();
    let store = app.database.run(move |tx| stores::find_metadata(tx, &key)).await?;
    app.questions.ask(&store.id, asked, ANSWERS_WITHIN).await.map_err(|silent| {
        let server = format!("the server of metadata store '{}'", store.name);
        AdminError::Unavailable(match silent {
            Silent::NotTaken => {
                format!("{server} cannot be reached: see chronofs cli --exec status, start it, and try again")
            }
            Silent::NotAnswered => format!("{server} has not answered: try again"),
        })
    })
}

pub(super) fn another() -> AdminError {
    AdminError::Internal("the metadata server answered another question".to_owned())
}
