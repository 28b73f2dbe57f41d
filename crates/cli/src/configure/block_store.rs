//! Where a block store is and what opens it, from flags, files and the environment.

use anyhow::{Context, Result, anyhow, bail};
use chronofs_core::store::{Bucket, Credentials, Secret, StoreKind};
use clap::{Args, ValueEnum};
use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};

/// Kinds of block stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Kind {
    /// A folder
    Local,
    /// A bucket of Amazon S3, or of what speaks its protocol
    S3,
    /// A bucket of Google Cloud Storage
    Gcs,
    /// A container of Azure Blob Storage
    Azure,
    /// A bucket of Oracle Cloud
    Oci,
}

/// Where it is.
#[derive(Args, Debug, Default)]
pub(crate) struct Place {
    /// Folder, on the machine of the metadata server (kind local)
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Bucket, or container of azure
    #[arg(long)]
    bucket: Option<String>,
    /// Keep everything below this name in the bucket
    #[arg(long)]
    prefix: Option<String>,
    /// Address of the store, where it does not follow from the rest
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Region (s3, oci)
    #[arg(long)]
    region: Option<String>,
    /// Storage account (azure), or namespace of the tenancy (oci)
    #[arg(long)]
    account: Option<String>,
    /// Put the bucket's name into the host's (s3)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    virtual_hosted: Option<bool>,
    /// Trust these certificates (PEM) besides those of the system
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

/// What opens a bucket.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Keys {
    /// Id of an access key (s3, oci) [env: AWS_ACCESS_KEY_ID]
    #[arg(long, value_name = "ID")]
    access_key_id: Option<String>,
    /// The access key; other users of this machine see flags: prefer a file or the environment [env: AWS_SECRET_ACCESS_KEY]
    #[arg(long, value_name = "KEY", value_parser = secret, requires = "access_key_id")]
    secret_access_key: Option<Secret>,
    /// Token of temporary credentials (s3) [env: AWS_SESSION_TOKEN]
    #[arg(long, value_name = "TOKEN", value_parser = secret, requires = "access_key_id")]
    session_token: Option<Secret>,
    /// Key of the storage account (azure) [env: AZURE_STORAGE_ACCOUNT_KEY]
    #[arg(long, value_name = "KEY", value_parser = secret)]
    account_key: Option<Secret>,
    /// Shared access signature (azure) [env: AZURE_STORAGE_SAS_TOKEN]
    #[arg(long, value_name = "TOKEN", value_parser = secret)]
    sas_token: Option<Secret>,
    /// File with the credentials: of the AWS tools (s3, oci), of a service account (gcs), or an account key (azure)
    #[arg(long, value_name = "FILE")]
    credentials_file: Option<PathBuf>,
    /// Profile in the file of the AWS tools [default: default]
    #[arg(long, requires = "credentials_file")]
    profile: Option<String>,
    /// Keep none: each server uses what its environment, container or machine offers
    #[arg(long)]
    ambient_credentials: bool,
    /// Send none
    #[arg(long, conflicts_with = "ambient_credentials")]
    anonymous: bool,
}

fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

impl Place {
    /// The definition of a new store.
    pub(crate) fn definition(self, kind: Kind) -> Result<StoreKind> {
        if kind == Kind::Local {
            return self.folder();
        }
        if self.path.is_some() {
            bail!("--path is for --kind local; a bucket is named with --bucket");
        }
        let bucket = self.over(Bucket::default())?;
        if bucket.bucket.is_empty() {
            bail!("a store of this kind needs a bucket: add --bucket");
        }
        Ok(match kind {
            Kind::S3 => StoreKind::S3(bucket),
            Kind::Gcs => StoreKind::Gcs(bucket),
            Kind::Azure => StoreKind::Azure(bucket),
            _ => StoreKind::Oci(bucket),
        })
    }

    /// What changes of `before`; `None` if nothing is given.
    pub(super) fn change(self, before: &StoreKind) -> Result<Option<StoreKind>> {
        let changed = match before {
            StoreKind::Local { .. } if self.path.is_none() && self.is_empty() => before.clone(),
            StoreKind::Local { .. } => self.folder()?,
            _ if self.path.is_some() => bail!("--path is for stores of kind local; this one is a bucket"),
            StoreKind::S3(bucket) => StoreKind::S3(self.over(bucket.clone())?),
            StoreKind::Gcs(bucket) => StoreKind::Gcs(self.over(bucket.clone())?),
            StoreKind::Azure(bucket) => StoreKind::Azure(self.over(bucket.clone())?),
            StoreKind::Oci(bucket) => StoreKind::Oci(self.over(bucket.clone())?),
        };
        Ok((changed != *before).then_some(changed))
    }

    fn is_empty(&self) -> bool {
        let texts = [&self.bucket, &self.prefix, &self.endpoint, &self.region, &self.account];
        texts.iter().all(|text| text.is_none()) && self.virtual_hosted.is_none() && self.ca_file.is_none()
    }

    fn folder(self) -> Result<StoreKind> {
        if !self.is_empty() {
            bail!("a store of kind local is a folder: give --path and nothing of a bucket");
        }
        let path = self.path.ok_or_else(|| anyhow!("a store of kind local needs a folder: add --path"))?;
        let path = path.to_str().ok_or_else(|| anyhow!("folder {} is not UTF-8", path.display()))?.to_owned();
        Ok(StoreKind::Local { path })
    }

    fn over(self, before: Bucket) -> Result<Bucket> {
        let trimmed = |text: String| text.trim_matches('/').to_owned();
        let ca_pem = match self.ca_file {
            Some(file) => Some(read(&file)?),
            None => before.ca_pem,
        };
        Ok(Bucket {
            bucket: self.bucket.unwrap_or(before.bucket),
            prefix: self.prefix.map_or(before.prefix, trimmed),
            endpoint: self.endpoint.map(|url| url.trim_end_matches('/').to_owned()).or(before.endpoint),
            region: self.region.or(before.region),
            account: self.account.or(before.account),
            virtual_hosted: self.virtual_hosted.unwrap_or(before.virtual_hosted),
            ca_pem,
        })
    }
}

impl Keys {
    /// What a process that runs for long may be given on its command line: no secrets.
    pub(crate) fn without_secrets(
        credentials_file: Option<PathBuf>,
        profile: Option<String>,
        ambient_credentials: bool,
    ) -> Self {
        Keys { credentials_file, profile, ambient_credentials, ..Keys::default() }
    }

    /// The credentials that are given, or those of the environment, if there are any.
    pub(crate) fn found(self, definition: &StoreKind) -> Result<Option<Credentials>> {
        match self.given(definition)? {
            Some(given) => Ok(Some(given)),
            None => {
                from_environment(definition, &|name| env::var(name).ok().filter(|value| !value.is_empty()))
            }
        }
    }

    /// The credentials that are given, or those of the environment.
    pub(crate) fn credentials(self, definition: &StoreKind) -> Result<Credentials> {
        if let StoreKind::Local { .. } = definition {
            return Ok(self.given(definition)?.unwrap_or_default());
        }
        self.found(definition)?.ok_or_else(|| {
            anyhow!(
                "no credentials: give {}, set them in the environment, or add --ambient-credentials if the servers' \
                 machines have their own",
                match definition {
                    StoreKind::Gcs(_) => "--credentials-file",
                    StoreKind::Azure(_) => "--account-key, --sas-token or --credentials-file",
                    _ => "--access-key-id and --secret-access-key, or --credentials-file",
                }
            )
        })
    }

    /// The credentials that flags and files give, if they do.
    pub(super) fn given(self, definition: &StoreKind) -> Result<Option<Credentials>> {
        let file = self.credentials_file.as_deref();
        let mut found = Vec::new();
        if self.ambient_credentials {
            found.push(Credentials::Ambient);
        }
        if self.anonymous {
            found.push(Credentials::Anonymous);
        }
        if let Some(id) = self.access_key_id {
            let from_environment = || env::var("AWS_SECRET_ACCESS_KEY").ok().map(Secret::new);
            let secret = self.secret_access_key.or_else(from_environment).ok_or_else(|| {
                anyhow!("--access-key-id needs the key: add --secret-access-key or set AWS_SECRET_ACCESS_KEY")
            })?;
            found.push(Credentials::AccessKey { id, secret, session_token: self.session_token });
        }
        found.extend(self.account_key.map(|key| Credentials::AccountKey { key }));
        found.extend(self.sas_token.map(shared_access));
        if let Some(file) = file {
            let profile = self.profile.as_deref().unwrap_or("default");
            let text = read(file)?;
            found.push(match definition {
                StoreKind::Gcs(_) => Credentials::ServiceAccount { json: Secret::new(text) },
                StoreKind::Azure(_) => Credentials::AccountKey { key: Secret::new(text.trim()) },
                _ => of_aws_tools(&text, profile).with_context(|| format!("in {}", file.display()))?,
            });
        }
        if found.len() > 1 {
            bail!("several credentials are given: choose one of the flags for them");
        }
        let given = found.pop();
        if let Some(credentials) = &given {
            credentials.check(definition)?;
        }
        Ok(given)
    }
}

/// As the console of Azure shows it, it begins with a question mark.
fn shared_access(token: Secret) -> Credentials {
    Credentials::SharedAccess { token: Secret::new(token.reveal().trim_start_matches('?')) }
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

fn from_environment(definition: &StoreKind, value: Lookup<'_>) -> Result<Option<Credentials>> {
    let secret = |name: &str| value(name).map(Secret::new);
    Ok(match definition {
        StoreKind::S3(_) | StoreKind::Oci(_) => {
            match (value("AWS_ACCESS_KEY_ID"), secret("AWS_SECRET_ACCESS_KEY")) {
                (Some(id), Some(secret_key)) => {
                    let session_token = secret("AWS_SESSION_TOKEN");
                    Some(Credentials::AccessKey { id, secret: secret_key, session_token })
                }
                (None, None) => None,
                _ => {
                    bail!("the environment has one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: set both")
                }
            }
        }
        StoreKind::Azure(_) => {
            match secret("AZURE_STORAGE_ACCOUNT_KEY").or_else(|| secret("AZURE_STORAGE_KEY")) {
                Some(key) => Some(Credentials::AccountKey { key }),
                None => secret("AZURE_STORAGE_SAS_TOKEN").map(shared_access),
            }
        }
        StoreKind::Gcs(_) => match value("GOOGLE_APPLICATION_CREDENTIALS") {
            Some(file) => Some(Credentials::ServiceAccount { json: Secret::new(read(Path::new(&file))?) }),
            None => None,
        },
        StoreKind::Local { .. } => None,
    })
}

/// Reads one profile of `~/.aws/credentials`.
fn of_aws_tools(text: &str, profile: &str) -> Result<Credentials> {
    let mut inside = false;
    let mut values = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = name.trim() == profile;
        } else if let Some((key, value)) = line.split_once('=')
            && inside
            && !line.starts_with(['#', ';'])
        {
            values.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let mut take = |key: &str| values.remove(key);
    match (take("aws_access_key_id"), take("aws_secret_access_key")) {
        (Some(id), Some(secret)) => {
            let session_token = take("aws_session_token").map(Secret::new);
            Ok(Credentials::AccessKey { id, secret: Secret::new(secret), session_token })
        }
        _ => bail!("profile [{profile}] has no aws_access_key_id and aws_secret_access_key"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3() -> StoreKind {
        StoreKind::S3(Bucket { bucket: "b".to_owned(), ..Bucket::default() })
    }

    #[test]
    fn a_profile_of_the_aws_tools_is_read_and_a_missing_one_is_named_without_secrets() {
        let text = "[default]\naws_access_key_id = A\naws_secret_access_key=S=1\n\n# [x]\n[other]\n\
                    aws_access_key_id=B\naws_secret_access_key=T\naws_session_token=U\n[half]\naws_secret_access_key=V\n";
        let Credentials::AccessKey { id, secret, session_token } = of_aws_tools(text, "default").unwrap()
        else {
            panic!()
        };
        assert_eq!((id.as_str(), secret.reveal(), session_token), ("A", "S=1", None));
        let Credentials::AccessKey { id, session_token, .. } = of_aws_tools(text, "other").unwrap() else {
            panic!()
        };
        assert_eq!((id.as_str(), session_token.unwrap().reveal()), ("B", "U"));
        for profile in ["half", "none", "x"] {
            let error = of_aws_tools(text, profile).unwrap_err().to_string();
            assert!(error.contains(profile) && !error.contains("=V"), "{error}");
        }
    }

    #[test]
    fn the_environment_of_each_kind_is_known_and_half_of_a_pair_is_refused() {
        let of = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        let both = of(&[("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "S")]);
        assert_eq!(from_environment(&s3(), &both).unwrap().unwrap().describe(), "access key A");
        assert!(from_environment(&s3(), &of(&[("AWS_ACCESS_KEY_ID", "A")])).is_err());
        assert_eq!(from_environment(&s3(), &of(&[])).unwrap(), None);
        let azure = StoreKind::Azure(Bucket::default());
        let signature = of(&[("AZURE_STORAGE_SAS_TOKEN", "?sv=1&sig=2")]);
        let Some(Credentials::SharedAccess { token }) = from_environment(&azure, &signature).unwrap() else {
            panic!()
        };
        assert_eq!(token.reveal(), "sv=1&sig=2");
    }

    #[test]
    fn flags_are_refused_where_they_mean_nothing_and_a_change_keeps_the_rest() {
        let both = Place { path: Some("/x".into()), bucket: Some("b".to_owned()), ..Place::default() };
        assert!(both.definition(Kind::Local).is_err());
        assert!(Place { path: Some("/x".into()), ..Place::default() }.definition(Kind::S3).is_err());
        assert!(Place::default().definition(Kind::Gcs).is_err());
        let made =
            Place { bucket: Some("b".to_owned()), prefix: Some("/p/q/".to_owned()), ..Place::default() };
        let made = made.definition(Kind::S3).unwrap();
        let moved = Place { endpoint: Some("https://h/".to_owned()), ..Place::default() }
            .change(&made)
            .unwrap()
            .unwrap();
        let bucket = moved.bucket().unwrap();
        assert_eq!((bucket.prefix.as_str(), bucket.endpoint.as_deref()), ("p/q", Some("https://h")));
        assert_eq!(Place::default().change(&made).unwrap(), None);
        let several = Keys { anonymous: true, account_key: Some(Secret::new("k")), ..Keys::default() };
        assert!(several.given(&s3()).is_err());
        let wrong = Keys { account_key: Some(Secret::new("hunter2")), ..Keys::default() };
        let shown = format!("{wrong:?}");
        assert!(!format!("{shown} {}", wrong.given(&s3()).unwrap_err()).contains("hunter2"));
    }
}
