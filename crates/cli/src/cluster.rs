//! Which cluster a command means: the cluster file that was named, or the one at its usual place.

use crate::credentials;
use anyhow::{Context, Result, bail};
use chronofs_snapshot::Whereabouts;
use chronofs_wire::cluster::{CLUSTER_FILE, ClusterFile};
use chronofs_wire::http::{AdminClient, parse_address};
use chronofs_wire::token::Token;
use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// For commands that ask an admin server.
#[derive(Args, Debug)]
pub(crate) struct AdminArgs {
    /// Reach the admin server here instead of where cluster file or token say
    #[arg(long, global = true, value_name = "HOST:PORT", value_parser = parse_address)]
    admin: Option<String>,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

impl AdminArgs {
    /// The admin server that is meant, by the token of this machine's operator.
    pub(crate) fn client(&self) -> Result<AdminClient> {
        self.client_by(&credentials::configure()?)
    }

    /// The same, by any token.
    pub(crate) fn client_by(&self, token: &Token) -> Result<AdminClient> {
        let cluster = self.cluster.read()?;
        Ok(AdminClient::reached(token, self.admin.as_deref(), cluster.as_ref())?)
    }
}

/// For those who look for a cluster.
#[derive(Args, Clone, Default, Debug)]
pub(crate) struct ClusterArgs {
    /// Cluster file: which cluster is meant, and where its admin server is [default: /etc/chronofs/chronofs.cluster if there is one]
    #[arg(long, global = true, value_name = "FILE", env = "CHRONOFS_CLUSTER_FILE", hide_env_values = true)]
    cluster_file: Option<PathBuf>,
}

impl ClusterArgs {
    /// The cluster file that was named, which must be there, or the one at its usual place, if it is there.
    pub(crate) fn read(&self) -> Result<Option<ClusterFile>> {
        Self::find(self.cluster_file.as_deref())
    }

    /// The same, of a path from elsewhere.
    pub(crate) fn find(named: Option<&Path>) -> Result<Option<ClusterFile>> {
        // A variable that is set to nothing names nothing.
        if let Some(path) = named.filter(|path| !path.as_os_str().is_empty()) {
            return Ok(Some(ClusterFile::read(path)?));
        }
        Ok(ClusterFile::find(&credentials::folder().join(CLUSTER_FILE))?)
    }

    /// The same, with its path.
    pub(crate) fn read_with_path(&self) -> Result<Option<(PathBuf, ClusterFile)>> {
        let usual = || credentials::folder().join(CLUSTER_FILE);
        let path = self.clone().named().unwrap_or_else(usual);
        Ok(self.read()?.map(|file| (path, file)))
    }

    /// What a server is started with: the cluster that is meant, if any, and where that was said.
    pub(crate) fn for_server(&self, locality: LocalityArgs) -> Result<(Option<ClusterFile>, Whereabouts)> {
        let (path, file) = self.read_with_path()?.unzip();
        let cluster_file =
            path.map(std::path::absolute).transpose().context("cannot find the current folder")?;
        Ok((file, Whereabouts { cluster_file, locality: locality.map()? }))
    }

    /// The path that was named.
    pub(crate) fn named(self) -> Option<PathBuf> {
        self.cluster_file.filter(|path| !path.as_os_str().is_empty())
    }
}

/// Where a server stands.
#[derive(Args, Clone, Default, Debug)]
pub(crate) struct LocalityArgs {
    /// Machine, zone and so on of this server: status shows it, and programs of disk snapshots are told
    #[arg(long, value_name = "KEY=VALUE,...", value_delimiter = ',', value_parser = pair)]
    locality: Vec<(String, String)>,
}

impl LocalityArgs {
    pub(crate) fn map(self) -> Result<BTreeMap<String, String>> {
        let mut map = BTreeMap::new();
        for (key, value) in self.locality {
            if let Some(before) = map.insert(key.clone(), value) {
                bail!("--locality says {key} twice; the first time it is {before}");
            }
        }
        Ok(map)
    }
}

/// Both are put together with commas for programs, and shown in tables.
fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("'{text}' is not KEY=VALUE"))?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    for word in [key, value] {
        if word.is_empty() || word.len() > 128 || !word.bytes().all(plain) {
            return Err(format!("'{word}' is not made of 1 to 128 letters, digits and . - _ :"));
        }
    }
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locality_is_keys_with_values_each_once() {
        let args = |pairs: &[&str]| LocalityArgs {
            locality: pairs.iter().map(|text| pair(text)).collect::<Result<_, _>>().unwrap(),
        };
        let whereabouts =
            |pairs: &[&str]| Whereabouts { locality: args(pairs).map().unwrap(), ..Whereabouts::default() };
        assert_eq!(whereabouts(&["zoneid=z1", "dcid=d.2"]).locality_text().unwrap(), "dcid=d.2,zoneid=z1");
        assert_eq!(whereabouts(&[]).locality_text(), None);
        assert!(args(&["a=1", "a=2"]).map().unwrap_err().to_string().contains("a twice"));
        for wrong in ["zone", "=z", "zone=", "zone=a b", "zone=a=b", "zone=a\n"] {
            assert!(pair(wrong).is_err(), "{wrong}");
        }
    }
}
