//! Extractors that say who is asking; a handler that takes one cannot be reached without the right token.

use super::App;
use super::audit::Entry;
use crate::AdminError;
use crate::db::tokens::{self, Identity};
use crate::model::Role;
use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use chronofs_wire::token::parse_bearer;
use std::sync::Arc;

/// An account.
pub(super) struct Who {
    pub(super) name: String,
    pub(super) role: Role,
    entry: Arc<Entry>,
}

impl Who {
    /// Refuses unless the account has at least `role`.
    pub(super) fn must_be(&self, role: Role) -> Result<(), AdminError> {
        if self.role >= role {
            return Ok(());
        }
        let Who { name, role: has, .. } = self;
        Err(AdminError::Forbidden(format!(
            "account '{name}' has the role {has}, but this needs the role {role}"
        )))
    }

    /// Of a route that both reads and writes: this one is about to write.
    pub(super) async fn writes(&self, app: &App) -> Result<(), AdminError> {
        self.entry.writes(app).await
    }

    /// Says what would have been changed.
    pub(super) fn tried(&self, what: &'static str, name: &str) {
        self.entry.did(what, &format!("{name} (dry run)"));
    }

    /// Says what was changed by whom.
    pub(super) fn did(&self, action: &'static str, what: &'static str, name: &str) {
        self.entry.did(what, name);
        tracing::info!(target: "chronofs::audit", account = %self.name, action, what, name, "configuration changed");
    }
}

/// The holder of any token.
pub(super) struct Known;

/// The server of a metadata store.
pub(super) struct MetadataServer {
    pub(super) id: String,
    pub(super) name: String,
}

/// A log server: its id.
pub(super) struct LogServerToken(pub(super) String);

/// A mount.
pub(super) struct Mount {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) metadata_store: String,
    pub(super) read_only: bool,
}

fn entry_of(parts: &Parts) -> Result<Arc<Entry>, AdminError> {
    let entry = parts.extensions.get::<Arc<Entry>>().cloned();
    entry.ok_or_else(|| AdminError::Internal("a request without an entry for the audit log".to_owned()))
}

async fn identity(parts: &Parts, app: &Arc<App>) -> Result<Identity, AdminError> {
    let header = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((id, secret)) = header.and_then(parse_bearer) else {
        return Err(AdminError::Unauthorized(
            "a token is needed: send Authorization: Bearer ID.SECRET".to_owned(),
        ));
    };
    let entry = entry_of(parts)?;
    entry.asks(id.to_string());
    let asking = entry.clone();
    let found = app.database.run(move |tx| {
        let Some(identity) = tokens::identify(tx, id, &secret)? else { return Ok(None) };
        let row = asking.known(tx, &identity)?;
        Ok(Some((identity, row)))
    });
    let found = found.await?.map(|(identity, row)| {
        entry.begun(&identity, row);
        identity
    });
    found.ok_or_else(|| {
        tracing::warn!(target: "chronofs::audit", token = %id, "a token was refused");
        AdminError::Unauthorized(
            "the token is unknown to this server: it was revoked or has ended, or its account, store or volume was \
             deleted; get a new one"
                .to_owned(),
        )
    })
}

fn wrong_kind(wanted: &str) -> AdminError {
    AdminError::Forbidden(format!("the token is of another kind: this needs the token of {wanted}"))
}

impl FromRequestParts<Arc<App>> for Who {
    type Rejection = AdminError;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, AdminError> {
        match identity(parts, app).await? {
            Identity::Account { name, role } => Ok(Who { name, role, entry: entry_of(parts)? }),
            _ => Err(wrong_kind("an account")),
        }
    }
}

impl FromRequestParts<Arc<App>> for Known {
    type Rejection = AdminError;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, AdminError> {
        identity(parts, app).await.map(|_| Known)
    }
}

impl FromRequestParts<Arc<App>> for MetadataServer {
    type Rejection = AdminError;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, AdminError> {
        match identity(parts, app).await? {
            Identity::MetadataStore { id, name } => Ok(MetadataServer { id, name }),
            _ => Err(wrong_kind("a metadata store")),
        }
    }
}

impl FromRequestParts<Arc<App>> for LogServerToken {
    type Rejection = AdminError;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, AdminError> {
        match identity(parts, app).await? {
            Identity::LogServer { id } => Ok(LogServerToken(id)),
            _ => Err(wrong_kind("a log server")),
        }
    }
}

impl FromRequestParts<Arc<App>> for Mount {
    type Rejection = AdminError;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, AdminError> {
        match identity(parts, app).await? {
            Identity::Volume { id, name, metadata_store, read_only } => {
                Ok(Mount { id, name, metadata_store, read_only })
            }
            _ => Err(wrong_kind("a volume")),
        }
    }
}
