//! Where the metadata server of a volume is, and who tells.

use chronofs_wire::http::{AdminClient, ClientError};
use chronofs_wire::identity::{Secret, Sha256};
use uuid::Uuid;

/// A metadata server that serves a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// The volume.
    pub volume: Uuid,
    /// `host:port`.
    pub address: String,
    /// SHA-256 of the server's certificate.
    pub pin: Sha256,
    /// The epoch under which it owns the volume.
    pub epoch: u64,
    /// The sealed keys of the volume, if it is encrypted.
    pub keys: Option<String>,
}

/// Id and secret of a volume token.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Id of the token.
    pub id: Uuid,
    /// What proves that the holder got it.
    pub secret: Secret,
}

/// Who tells where the volume is served.
#[derive(Clone, Debug)]
pub enum Source {
    /// Nobody: it is known and never moves.
    Fixed(Target),
    /// The admin server, by name or id of the volume.
    Admin {
        /// Calls to it.
        admin: AdminClient,
        /// Name or id.
        volume: String,
    },
}

impl Source {
    /// Where the volume is served now.
    pub(crate) async fn resolve(&self) -> Result<Target, ClientError> {
        match self {
            Source::Fixed(target) => Ok(target.clone()),
            Source::Admin { admin, volume } => {
                let found = admin.resolve(volume).await?;
                let pin = found.certificate_sha256.parse().map_err(|error| ClientError::Unexpected {
                    admin: admin.address().to_owned(),
                    reason: format!("the pin of the metadata server: {error}"),
                })?;
                let (volume, address, epoch) = (found.volume, found.address, found.epoch);
                Ok(Target { volume, address, pin, epoch, keys: found.keys })
            }
        }
    }

    /// Whether asking again may give another answer.
    pub(crate) fn may_move(&self) -> bool {
        matches!(self, Source::Admin { .. })
    }
}
