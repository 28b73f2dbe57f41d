//! Which cluster a command means: the cluster file that was named, or the one at its usual place.

use crate::credentials;
use anyhow::Result;
use chronofs_wire::cluster::{CLUSTER_FILE, ClusterFile};
use clap::Args;
use std::path::{Path, PathBuf};

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

    /// The path that was named.
    pub(crate) fn named(self) -> Option<PathBuf> {
        self.cluster_file.filter(|path| !path.as_os_str().is_empty())
    }
}
