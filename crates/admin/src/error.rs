//! Why the admin server refuses or fails, and how that looks over HTTP.

use crate::api::audit::Refusal;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use chronofs_wire::admin::{FENCED, Problem};
use chronofs_wire::cluster::{ClusterFileError, WRONG_CLUSTER};
use chronofs_wire::identity::NoRandom;
use chronofs_wire::secrets::SecretsError;
use chronofs_wire::tls::TlsError;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Everything that can go wrong in the admin server.
#[derive(Debug, Error)]
pub enum AdminError {
    /// There is no such thing.
    #[error("{what} '{name}' does not exist; `chronofs configure list {what}` shows what does")]
    NotFound {
        /// Its kind, as in `chronofs configure`.
        what: &'static str,
        /// What was asked for.
        name: String,
    },
    /// The name is taken.
    #[error("{what} '{name}' exists already; choose another name")]
    Exists {
        /// Its kind.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Something else needs it.
    #[error("{what} '{name}' is in use by {}; delete or end that first", users.join(", "))]
    InUse {
        /// Its kind.
        what: &'static str,
        /// Its name.
        name: String,
        /// What uses it, each as `kind 'name'`.
        users: Vec<String>,
    },
    /// There is no such thing, which is none of `chronofs configure`.
    #[error("{0}")]
    Missing(String),
    /// There is one already, of what is none of `chronofs configure`.
    #[error("{0}")]
    Taken(String),
    /// The API has no such route.
    #[error("{0} is not a part of this API; see /openapi.json")]
    NoRoute(String),
    /// The token opens another volume.
    #[error("{0}")]
    NotOpened(String),
    /// A value does not make sense.
    #[error("{0}")]
    Invalid(String),
    /// Nobody, or somebody unknown, is asking.
    #[error("{0}")]
    Unauthorized(String),
    /// Somebody known is asking for more than they may.
    #[error("{0}")]
    Forbidden(String),
    /// Somebody else changed it meanwhile.
    #[error("{what} '{name}' was changed meanwhile; look at it and try again")]
    Changed {
        /// Its kind.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A later start of the metadata server took its place.
    #[error("{0}")]
    Superseded(String),
    /// The folder of the metadata server was followed by a restore in place.
    #[error("{0}")]
    Fenced(String),
    /// Another cluster is meant.
    #[error("{0}")]
    WrongCluster(String),
    /// Something speaks against it.
    #[error("{0}")]
    Conflict(String),
    /// Not now.
    #[error("{0}")]
    Unavailable(String),
    /// The database failed.
    #[error("configuration database: {0}")]
    Database(#[from] rusqlite::Error),
    /// The database cannot be used.
    #[error("configuration database {path}: {reason}")]
    Unusable {
        /// Its file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// Another process has the folder.
    #[error(
        "folder {folder} is in use by process {holder}; stop that process first, or choose another folder"
    )]
    Locked {
        /// The folder.
        folder: PathBuf,
        /// Its process id, or `(unknown)`.
        holder: String,
    },
    /// A file or socket failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// The cluster file.
    #[error(transparent)]
    ClusterFile(#[from] ClusterFileError),
    /// No certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A secret can be neither sealed nor opened.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// No random numbers.
    #[error(transparent)]
    NoRandom(#[from] NoRandom),
    /// A task ended without an answer.
    #[error("internal: {0}")]
    Internal(String),
}

impl AdminError {
    /// Makes an [`AdminError::Io`] of a verb with its object.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> AdminError {
        let what = what.into();
        move |source| AdminError::Io { what, source }
    }

    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            AdminError::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found"),
            AdminError::NoRoute(_) | AdminError::NotOpened(_) => (StatusCode::NOT_FOUND, "not_found"),
            AdminError::Missing(_) => (StatusCode::NOT_FOUND, "not_found"),
            AdminError::Exists { .. } | AdminError::Taken(_) => (StatusCode::CONFLICT, "exists"),
            AdminError::InUse { .. } => (StatusCode::CONFLICT, "in_use"),
            AdminError::Changed { .. } => (StatusCode::CONFLICT, "changed"),
            AdminError::WrongCluster(_) => (StatusCode::MISDIRECTED_REQUEST, WRONG_CLUSTER),
            AdminError::Superseded(_) => (StatusCode::CONFLICT, "superseded"),
            AdminError::Fenced(_) => (StatusCode::CONFLICT, FENCED),
            AdminError::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            AdminError::Unauthorized(_) => (StatusCode::UNAUTHORIZED, "unauthorized"),
            AdminError::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden"),
            AdminError::Conflict(_) => (StatusCode::CONFLICT, "in_use"),
            AdminError::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        let (status, code) = self.status();
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error = %self, "a request failed");
        }
        let problem = Json(Problem { code: code.to_owned(), message: self.to_string() });
        (status, Extension(Refusal(code)), problem).into_response()
    }
}
