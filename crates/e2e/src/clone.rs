//! A cluster that was made of a set of images: `restore prepare` has made its folders.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::process::{Process, free_address, http_get, text, wait_for};
use crate::snapshot::{read_record, uid_in};
use crate::{Installation, Mount};

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

/// What is collected goes at once.
pub const SOON: [&str; 4] = ["--slice-life", "1", "--horizon-step", "1"];

/// What is in file `n`: some travel with the metadata, some become objects.
pub fn content(n: usize) -> String {
    format!("file {n} ").repeat(if n % 5 == 2 { 30_000 } else { 20 + n })
}

/// Writes files that are called by their numbers.
pub fn write_files(dir: &Path, range: std::ops::Range<usize>) {
    for n in range {
        fs::write(dir.join(n.to_string()), content(n)).unwrap();
    }
}

/// Just these files must be there.
#[track_caller]
pub fn check_files(dir: &Path, count: usize) {
    let mut there: Vec<usize> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().parse().unwrap())
        .collect();
    there.sort_unstable();
    assert_eq!(there, (0..count).collect::<Vec<_>>());
    for n in 0..count {
        assert!(fs::read_to_string(dir.join(n.to_string())).unwrap() == content(n), "file {n}");
    }
}

/// `restore prepare` of a set.
#[track_caller]
pub fn prepare(installation: &Installation, set: &Path, map: &[String], more: &[&str]) -> String {
    let mut arguments = vec!["restore", "prepare", text(set)];
    arguments.extend(map.iter().map(String::as_str).chain(more.iter().copied()));
    installation.ok(&arguments)
}

/// The record of a snapshot, in a file, and what it says.
pub fn record_of(installation: &Installation, uid: &str) -> (PathBuf, Value) {
    let path = installation.path(&format!("{uid}.json"));
    installation.ok(&["snapshot", "describe", uid, "--record", text(&path)]);
    let record = read_record(&path);
    (path, record)
}

/// A set of images that a program has copied into a folder of the source's.
pub struct Copied {
    /// Its UID.
    pub uid: String,
    /// Where it lies.
    pub folder: PathBuf,
    /// Its record, in a file, and what that says.
    pub record: (PathBuf, Value),
}

impl Copied {
    /// Takes a snapshot with `program`, one of the examples that copy.
    #[track_caller]
    pub fn take(source: &Installation, program: &Path) -> Copied {
        let backup = source.path("backup");
        let to = ["--destdir", text(&backup), "--method", "copy"];
        let uid = uid_in(&source.ok(&[&["snapshot", "create", "--", text(program)][..], &to].concat()));
        Copied { folder: backup.join(&uid), record: record_of(source, &uid), uid }
    }

    /// Makes the folders of a clone.
    #[track_caller]
    pub fn prepare(&self, source: &Installation) -> String {
        let (out, (record, parsed)) = (source.path("restore"), &self.record);
        let with = ["--out", text(&out), "--record", text(record), "--json"];
        prepare(source, &self.folder, &mapping(parsed), &with)
    }
}

/// A source whose past reaches back for an hour, with its volume mounted.
pub fn source_of_clones(program: &Path) -> (Installation, Mount) {
    let source = Installation::start_for_snapshots(&[program], &[], &SOON);
    source.create_volume("one", &["--retention", "1h", "--compression", "none"]);
    let mount = source.mount("one", &[]);
    (source, mount)
}

/// All objects in a folder of them, by path. One that goes meanwhile is none.
pub fn objects(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            match fs::read(&path) {
                Ok(bytes) => drop(found.insert(path, bytes)),
                Err(_) => open.extend(path.is_dir().then_some(path)),
            }
        }
    }
    found
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
