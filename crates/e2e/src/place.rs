//! Where the bytes of a test's volume lie: in the folder that every installation has, in a bucket of a server that runs
//! for the test, or in a store that the environment names. So one test can be had on each of them.

use crate::Installation;
use crate::gcs_double::{GcsDouble, service_account};
use crate::object_server::{BUCKET, ObjectServer};
use serde_json::{Value, json};

/// Names a store: flags of `configure create block-store`, with blanks between them.
pub const STORE_VARIABLE: &str = "CHRONOFS_STORE";
/// The block store in a bucket.
const STORE: &str = "cloud";

/// See the module.
pub enum Place {
    /// The folder of the installation.
    Folder,
    /// A server that this test has started.
    Server(ObjectServer),
    /// The double of Google's.
    Gcs(GcsDouble),
    /// What [`STORE_VARIABLE`] names.
    Named(Vec<String>),
}

impl Place {
    /// The store that the environment names. The test fails if it names none, since then it would show nothing.
    pub fn of_environment() -> Place {
        let flags = std::env::var(STORE_VARIABLE).unwrap_or_default();
        let flags: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
        assert!(
            !flags.is_empty(),
            "{STORE_VARIABLE} is to name a store by flags of `configure create block-store`: --kind s3 --endpoint ..."
        );
        Place::Named(flags)
    }

    /// Makes a volume whose bytes lie there, with further flags of `configure create volume`. A bucket is probed, and
    /// must be honest in all that chronofs makes use of.
    #[track_caller]
    pub fn create_volume(&self, installation: &Installation, name: &str, more: &[&str]) {
        let flags = match self {
            Place::Folder => return installation.create_volume(name, more),
            Place::Server(server) => server.flags(),
            Place::Gcs(double) => gcs_flags(installation, &double.endpoint()),
            Place::Named(flags) => flags.clone(),
        };
        installation.create_block_store(STORE, &flags, &[]);
        let shown = installation.ok(&["configure", "show", "block-store", STORE, "--json"]);
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        assert_eq!(shown["weaknesses"], json!([]), "the store is not honest: {shown}");
        installation.create_volume_in(STORE, name, more);
    }
}

/// Flags of `configure create block-store` that name the bucket at `endpoint`, in Google's protocol, and credentials.
pub fn gcs_flags(installation: &Installation, endpoint: &str) -> Vec<String> {
    let account = installation.path("account.json");
    std::fs::write(&account, service_account()).expect("the file of a service account");
    let account = account.to_str().expect("printable paths").to_owned();
    let flags = ["--kind", "gcs", "--bucket", BUCKET, "--endpoint", endpoint, "--credentials-file", &account];
    flags.map(str::to_owned).to_vec()
}
