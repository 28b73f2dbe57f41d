//! A cluster that was made of a set of images: `restore prepare` has made its folders.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Installation;
use crate::process::{Process, free_address, http_get, text, wait_for};

/// A clone whose servers run on what `restore prepare` made.
pub struct Clone {
    /// They end when it is dropped.
    pub servers: Vec<Process>,
    /// Which it is.
    pub cluster_file: PathBuf,
}

/// `--map` for each of the servers.
pub fn mapping(record: &Value) -> Vec<String> {
    let nodes = record["intent"]["nodes"].as_array().unwrap();
    let pair = |node: &Value| format!("{}={}", node["name"].as_str().unwrap(), free_address());
    nodes.iter().flat_map(|node| ["--map".to_owned(), pair(node)]).collect()
}

impl Clone {
    /// Starts each server with the line that `restore prepare --json` told.
    pub fn start(installation: &Installation, prepared: &str, meta: &[&str]) -> Clone {
        let prepared: Value = serde_json::from_str(prepared).unwrap();
        let mut clone = Clone { servers: Vec::new(), cluster_file: PathBuf::new() };
        for server in prepared.as_array().unwrap() {
            let (name, line) = (server["server"].as_str().unwrap(), server["start"].as_str().unwrap());
            let mut arguments: Vec<&str> = line.split(' ').skip(1).collect();
            let http = free_address();
            let shown = http.to_string();
            let is_meta = arguments[0] == "meta";
            if is_meta {
                arguments.extend(["--http-addr", &shown].iter().chain(meta));
            } else {
                clone.cluster_file =
                    Path::new(server["folder"].as_str().unwrap()).join("data/chronofs.cluster");
            }
            let log = installation.path(&format!("clone-{name}.log"));
            let mut process = Process::new(&format!("clone {name}"), &arguments, &[], &log);
            process.start();
            if is_meta {
                wait_for("a metadata server of the clone to be ready", || {
                    process.assert_running();
                    http_get(http, "/readyz").ok().filter(|(status, _)| *status == 200)
                });
                assert!(process.log().contains("as of its cut"), "{}", process.log());
            } else {
                let address = arguments.last().unwrap().to_string();
                wait_for("the admin server of the clone", || {
                    process.assert_running();
                    std::net::TcpStream::connect(&address).ok()
                });
            }
            clone.servers.push(process);
        }
        clone
    }

    /// Runs a command that talks to it; it must succeed.
    #[track_caller]
    pub fn ok(&self, installation: &Installation, arguments: &[&str]) -> String {
        installation.ok(&[arguments, &["--cluster-file", text(&self.cluster_file)]].concat())
    }
}
