//! Where the bytes of volumes are kept, and the credentials that open it.
//!
//! Definitions and credentials are apart: a definition is shown to everybody, a [`Secret`] to nobody.

use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// A place for objects. As JSON it carries its kind: `{"kind":"s3","bucket":...}`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum StoreKind {
    /// A folder, by absolute path.
    Local {
        /// The folder.
        path: String,
    },
    /// A bucket of Amazon S3, or of what speaks its protocol (Ceph, Garage, R2, ...).
    S3(Bucket),
    /// A bucket of Google Cloud Storage.
    Gcs(Bucket),
    /// A container of Azure Blob Storage.
    Azure(Bucket),
    /// A bucket of Oracle Cloud, through the protocol of S3.
    Oci(Bucket),
}

/// A bucket (Azure: a container) of an object store.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Bucket {
    /// Its name.
    pub bucket: String,
    /// Objects lie below this, without a slash at either end; empty for the whole bucket.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// `http[s]://HOST[:PORT][/PATH]`, unless it follows from the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// S3 and OCI: the region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Azure: the storage account. OCI: the namespace of the tenancy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// S3: the bucket's name is part of the host's, not of the path.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub virtual_hosted: bool,
    /// Certificates (PEM) that are trusted besides those of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
}

/// Why a definition makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0}")]
pub struct BadStore(String);

impl StoreKind {
    /// The word for the kind.
    pub fn word(&self) -> &'static str {
        match self {
            StoreKind::Local { .. } => "local",
            StoreKind::S3(_) => "s3",
            StoreKind::Gcs(_) => "gcs",
            StoreKind::Azure(_) => "azure",
            StoreKind::Oci(_) => "oci",
        }
    }

    /// The bucket, unless it is a folder.
    pub fn bucket(&self) -> Option<&Bucket> {
        match self {
            StoreKind::Local { .. } => None,
            StoreKind::S3(bucket)
            | StoreKind::Gcs(bucket)
            | StoreKind::Azure(bucket)
            | StoreKind::Oci(bucket) => Some(bucket),
        }
    }

    /// Refuses a bucket that cannot be reached as it is defined. Folders are checked by whoever has them.
    pub fn check(&self) -> Result<(), BadStore> {
        let Some(bucket) = self.bucket() else { return Ok(()) };
        bucket.check()?;
        let word = self.word();
        let needed =
            |what: &str, flag: &str| BadStore(format!("a store of kind {word} needs {what}: add --{flag}"));
        let useless = |flag: &str| BadStore(format!("--{flag} means nothing to a store of kind {word}"));
        match self {
            StoreKind::S3(b) if b.endpoint.is_none() && b.region.is_none() => {
                Err(needed("a region or an endpoint", "region"))
            }
            StoreKind::Azure(b) if b.account.is_none() => Err(needed("a storage account", "account")),
            StoreKind::Oci(b) if b.region.is_none() => Err(needed("a region", "region")),
            StoreKind::Oci(b) if b.endpoint.is_none() && b.account.is_none() => {
                Err(needed("the namespace of the tenancy", "account"))
            }
            StoreKind::S3(b) | StoreKind::Gcs(b) if b.account.is_some() => Err(useless("account")),
            StoreKind::Gcs(b) | StoreKind::Azure(b) if b.region.is_some() => Err(useless("region")),
            StoreKind::Gcs(b) | StoreKind::Azure(b) | StoreKind::Oci(b) if b.virtual_hosted => {
                Err(useless("virtual-hosted"))
            }
            _ => Ok(()),
        }
    }
}

/// Where it is, for people.
impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bucket = match self {
            StoreKind::Local { path } => return f.write_str(path),
            StoreKind::Azure(b) => {
                write!(f, "container {} of account {}", b.bucket, b.account.as_deref().unwrap_or("?"))?;
                b
            }
            StoreKind::S3(b) | StoreKind::Gcs(b) | StoreKind::Oci(b) => {
                write!(f, "{} bucket {}", self.word(), b.bucket)?;
                b
            }
        };
        if !bucket.prefix.is_empty() {
            write!(f, ", prefix {}", bucket.prefix)?;
        }
        match (&bucket.endpoint, &bucket.region) {
            (Some(endpoint), _) => write!(f, ", at {endpoint}"),
            (None, Some(region)) => write!(f, ", in {region}"),
            (None, None) => Ok(()),
        }
    }
}

impl Bucket {
    fn check(&self) -> Result<(), BadStore> {
        let bad = |what: &str, value: &str, rule: &str| {
            Err(BadStore(format!("{what} '{value}' is not possible: {rule}")))
        };
        let plain =
            |text: &str, extra: &[u8]| text.bytes().all(|b| b.is_ascii_alphanumeric() || extra.contains(&b));
        if !(3..=63).contains(&self.bucket.len()) || !plain(&self.bucket, b"-._") {
            return bad("bucket", &self.bucket, "use 3 to 63 characters of A-Z a-z 0-9 . _ -");
        }
        let parts_ok = self.prefix.split('/').all(|part| !matches!(part, "" | "." | ".."));
        let prefix_ok = self.prefix.is_empty() || (parts_ok && plain(&self.prefix, b"-._/"));
        if !prefix_ok || self.prefix.len() > 500 {
            return bad(
                "prefix",
                &self.prefix,
                "use up to 500 characters of A-Z a-z 0-9 . _ - / and no slash at an end",
            );
        }
        for (what, value) in [("region", &self.region), ("account", &self.account)] {
            if let Some(value) = value
                && (value.is_empty() || value.len() > 100 || !plain(value, b"-_"))
            {
                return bad(what, value, "use A-Z a-z 0-9 _ -");
            }
        }
        match &self.endpoint {
            Some(endpoint) => check_endpoint(endpoint),
            None => Ok(()),
        }
    }
}

fn check_endpoint(endpoint: &str) -> Result<(), BadStore> {
    let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
    let ok = host.is_some_and(|host| {
        let plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:/[]".contains(&b));
        plain && !host.is_empty() && !host.starts_with(['/', ':']) && !host.ends_with('/')
    });
    if ok {
        return Ok(());
    }
    // A user and a password in it would be shown to everybody, so it is not repeated either.
    Err(BadStore(
        "the endpoint is not possible: write http[s]://HOST[:PORT][/PATH], without user, query and slash at its end"
            .to_owned(),
    ))
}

/// A text that is shown nowhere: its debug form is `…`. It is serialized as it is, since its owner must send it on;
/// who serializes it seals what comes out, or sends it over TLS.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// What opens a bucket.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Credentials {
    /// None are kept: each server uses what its own environment, container or machine offers.
    #[default]
    Ambient,
    /// None are sent.
    Anonymous,
    /// S3 and OCI.
    AccessKey {
        /// Id of the key; no secret.
        id: String,
        /// The key.
        secret: Secret,
        /// Of temporary credentials.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_token: Option<Secret>,
    },
    /// GCS: the JSON file of a service account.
    ServiceAccount {
        /// Its text.
        json: Secret,
    },
    /// Azure: a key of the storage account.
    AccountKey {
        /// In base64.
        key: Secret,
    },
    /// Azure: a shared access signature.
    SharedAccess {
        /// `sv=...&sig=...`
        token: Secret,
    },
}

impl Credentials {
    /// Whether none are kept.
    pub fn is_ambient(&self) -> bool {
        *self == Credentials::Ambient
    }

    /// What may be shown of them.
    pub fn describe(&self) -> String {
        match self {
            Credentials::Ambient => "of the servers' machines".to_owned(),
            Credentials::Anonymous => "none".to_owned(),
            Credentials::AccessKey { id, session_token: None, .. } => format!("access key {id}"),
            Credentials::AccessKey { id, .. } => format!("temporary access key {id}"),
            Credentials::ServiceAccount { .. } => "service account".to_owned(),
            Credentials::AccountKey { .. } => "account key".to_owned(),
            Credentials::SharedAccess { .. } => "shared access signature".to_owned(),
        }
    }

    /// Every text that nobody may see.
    pub fn secrets(&self) -> Vec<&Secret> {
        match self {
            Credentials::Ambient | Credentials::Anonymous => Vec::new(),
            Credentials::AccessKey { secret, session_token, .. } => {
                std::iter::once(secret).chain(session_token).collect()
            }
            Credentials::ServiceAccount { json: secret }
            | Credentials::AccountKey { key: secret }
            | Credentials::SharedAccess { token: secret } => vec![secret],
        }
    }

    /// The same, to be sealed and unsealed in place.
    pub fn secrets_mut(&mut self) -> Vec<&mut Secret> {
        match self {
            Credentials::Ambient | Credentials::Anonymous => Vec::new(),
            Credentials::AccessKey { secret, session_token, .. } => {
                std::iter::once(secret).chain(session_token).collect()
            }
            Credentials::ServiceAccount { json: secret }
            | Credentials::AccountKey { key: secret }
            | Credentials::SharedAccess { token: secret } => vec![secret],
        }
    }

    /// Refuses credentials of another kind of store.
    pub fn check(&self, kind: &StoreKind) -> Result<(), BadStore> {
        let fits = match (self, kind) {
            (Credentials::Ambient, _) => true,
            (_, StoreKind::Local { .. }) => false,
            (Credentials::Anonymous, _) => true,
            (Credentials::AccessKey { .. }, kind) => matches!(kind, StoreKind::S3(_) | StoreKind::Oci(_)),
            (Credentials::ServiceAccount { .. }, kind) => matches!(kind, StoreKind::Gcs(_)),
            (Credentials::AccountKey { .. } | Credentials::SharedAccess { .. }, kind) => {
                matches!(kind, StoreKind::Azure(_))
            }
        };
        if !fits {
            let what = self.describe();
            return Err(BadStore(format!("a store of kind {} is not opened by: {what}", kind.word())));
        }
        if self.secrets().iter().any(|secret| secret.reveal().trim().is_empty()) {
            return Err(BadStore(format!(
                "credentials ({}) with an empty secret open nothing",
                self.describe()
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket() -> Bucket {
        Bucket { bucket: "bytes".to_owned(), region: Some("eu-1".to_owned()), ..Bucket::default() }
    }

    #[test]
    fn definitions_that_nobody_could_reach_are_refused_with_the_flag_that_is_missing() {
        StoreKind::S3(bucket()).check().unwrap();
        let azure = Bucket { region: None, account: Some("acc".to_owned()), ..bucket() };
        StoreKind::Azure(azure.clone()).check().unwrap();
        StoreKind::Oci(Bucket { account: Some("ns".to_owned()), ..bucket() }).check().unwrap();
        StoreKind::Gcs(Bucket { region: None, ..bucket() }).check().unwrap();
        for (kind, expected) in [
            (StoreKind::S3(Bucket { region: None, ..bucket() }), "--region"),
            (StoreKind::Azure(Bucket { account: None, ..azure.clone() }), "--account"),
            (StoreKind::Azure(Bucket { region: Some("r".to_owned()), ..azure.clone() }), "--region"),
            (StoreKind::Oci(bucket()), "--account"),
            (StoreKind::Gcs(bucket()), "--region"),
            (StoreKind::Azure(Bucket { virtual_hosted: true, ..azure }), "--virtual-hosted"),
            (StoreKind::S3(Bucket { bucket: "a/b".to_owned(), ..bucket() }), "bucket 'a/b'"),
            (StoreKind::S3(Bucket { prefix: "a/../b".to_owned(), ..bucket() }), "prefix"),
            (StoreKind::S3(Bucket { prefix: "/a".to_owned(), ..bucket() }), "prefix"),
        ] {
            let refused = kind.check().unwrap_err().to_string();
            assert!(refused.contains(expected), "{kind:?}: {refused}");
        }
    }

    #[test]
    fn an_endpoint_holds_no_password_and_a_refusal_does_not_repeat_it() {
        let with = |endpoint: &str| {
            StoreKind::S3(Bucket { endpoint: Some(endpoint.to_owned()), ..bucket() }).check()
        };
        for good in ["http://127.0.0.1:9000", "https://s3.example", "http://[::1]:1", "https://h/devstore"] {
            with(good).unwrap();
        }
        for bad in [
            "s3.example",
            "ftp://h",
            "https://",
            "https://u:hunter2@h",
            "https://h/?sig=hunter2",
            "https://h/",
        ] {
            assert!(!with(bad).unwrap_err().to_string().contains("hunter2"), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_shown_and_fit_their_kind_of_store() {
        let key = Credentials::AccessKey {
            id: "AKIA".to_owned(),
            secret: Secret::new("hunter2"),
            session_token: Some(Secret::new("hunter2")),
        };
        let shown = format!("{key:?} {}", key.describe());
        assert!(shown.contains('…') && shown.contains("AKIA") && !shown.contains("hunter2"), "{shown}");
        key.check(&StoreKind::S3(bucket())).unwrap();
        assert!(key.check(&StoreKind::Azure(bucket())).is_err());
        assert!(Credentials::Anonymous.check(&StoreKind::Local { path: "/x".to_owned() }).is_err());
        let empty = Credentials::AccountKey { key: Secret::new("") };
        assert!(empty.check(&StoreKind::Azure(bucket())).is_err());
    }
}
