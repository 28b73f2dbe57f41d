//! What tests of copies of the log share.

use crate::installation::{detach, token_in};
use crate::process::{Process, free_address, http_get, run, text, text_of, wait_for};
use crate::{Installation, Mount, Rng};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted tmpfs of its own size: a disk that can fill up.
pub struct Disk(pub PathBuf);

impl Disk {
    /// Mounts it at `dir`.
    pub fn new(dir: PathBuf, mib: u32) -> Disk {
        fs::create_dir_all(&dir).unwrap();
        let size = format!("size={mib}m");
        let output = run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "copy"]).arg(&dir));
        assert!(output.status.success(), "mounting a tmpfs: {}", text_of(&output));
        Disk(dir)
    }

    /// Gives it another size.
    pub fn resize(&self, mib: u32) {
        let output = run(Command::new("mount").args(["-o", &format!("remount,size={mib}m")]).arg(&self.0));
        assert!(output.status.success(), "resizing a tmpfs: {}", text_of(&output));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

/// The copies that count, as the admin server has recorded.
pub fn members(installation: &Installation) -> Vec<String> {
    let shown = installation.ok(&["configure", "show", "metadata-store", "store", "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let copies = shown["log"]["members"]["copies"].as_array().unwrap();
    copies.iter().map(|copy| copy.as_str().unwrap().to_owned()).collect()
}

/// Has the metadata server keep these copies, and waits until all of them count.
pub fn keep_copies(installation: &Installation, copies: &[&str]) {
    let wanted = copies.join(",");
    installation.ok(&["configure", "update", "metadata-store", "store", "--log-copies", &wanted]);
    wait_for("the copies to count", || (members(installation).len() == copies.len()).then_some(()));
}

/// Files that were written, each with an fsync.
pub struct Synced {
    bytes: Vec<u8>,
    count: usize,
}

impl Synced {
    /// None yet.
    #[allow(clippy::new_without_default, reason = "it draws bytes")]
    pub fn new() -> Synced {
        Synced { bytes: Rng::new(5).bytes(50_000), count: 0 }
    }

    /// Writes files, each with an fsync, and no two alike.
    pub fn write(&mut self, mount: &Mount, count: usize) {
        for n in self.count..self.count + count {
            let mut file = File::create(mount.path(&format!("file {n}"))).unwrap();
            file.write_all(&self.bytes[n..]).unwrap();
            file.sync_all().unwrap();
        }
        self.count += count;
    }

    /// All are there, as they were written.
    #[track_caller]
    pub fn check(&self, mount: &Mount, what: &str) {
        for n in 0..self.count {
            let found = fs::read(mount.path(&format!("file {n}")));
            let found = found.unwrap_or_else(|e| panic!("{what}: file {n}: {e}"));
            assert!(found == self.bytes[n..], "{what}: file {n} lost what fsync returned for");
        }
    }
}

/// A server of the same store in another folder, and where it serves its figures.
pub fn another_server(installation: &Installation, folder: &Path, more: &[&str]) -> (Process, SocketAddr) {
    // With the same token, if it is there still: a new one alone would keep the old server from everything.
    let known = installation.path("meta").join("credentials");
    let token = match fs::read_to_string(known) {
        Ok(token) => token,
        Err(_) => {
            token_in(&installation.ok(&["configure", "update", "metadata-store", "store", "--new-token"]))
        }
    };
    installation.ok(&["meta", "init", "creds", "--token", token.trim(), "--db-folder", text(folder)]);
    let (address, http) = (free_address().to_string(), free_address());
    let shown = http.to_string();
    let mut arguments =
        vec!["meta", "start", "--db-folder", text(folder), "--bind-addr", &address, "--http-addr", &shown];
    arguments.extend(more);
    let log = folder.with_extension("log");
    (Process::new("the new server", &arguments, &[], &log), http)
}

/// Waits until a server of [`another_server`] answers clients.
pub fn wait_until_ready(server: &mut Process, http: SocketAddr) {
    wait_for("the new server to be ready", || {
        server.assert_running();
        http_get(http, "/readyz").ok().filter(|(status, _)| *status == 200)
    });
}

/// The step of the page: the folder `$2` of the images below `$1` that `snap-create` made of one metadata server.
const PUT_TOGETHER: &str = r#"
mkdir -p "$2/engine/store" "$2/engine/log"
cp "$1/storage/files/"* "$2/engine/store/"
cp "$1/tlog/files/"* "$2/engine/log/"
rm "$2/engine/store/"chronofs-image.* "$2/engine/log/"chronofs-image.*
mv "$2/engine/store/format" "$2/engine/format"
"#;

/// Makes the folder of a metadata server of its images.
pub fn put_together(images: &Path, folder: &Path) {
    let mut shell = Command::new("sh");
    let output = run(shell.args(["-e", "-c", PUT_TOGETHER, "sh"]).args([images, folder]));
    assert!(output.status.success(), "{}", text_of(&output));
}

/// A log server.
pub struct LogServer {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
    /// Where it serves its figures.
    pub http: SocketAddr,
    /// The process.
    pub process: Process,
}

impl LogServer {
    /// A new one with its folder below the installation's, not started.
    pub fn new(installation: &Installation, name: &str) -> LogServer {
        let folder = installation.path(&format!("tlog {name}"));
        LogServer::in_folder(installation, name, folder, (free_address(), free_address()), &[], &[])
    }

    /// The same with a program that may run there for disk snapshots.
    pub fn with_program(installation: &Installation, name: &str, program: &Path) -> LogServer {
        let folder = installation.path(&format!("tlog {name}"));
        let start = ["--whitelist-binpath", text(program)];
        LogServer::in_folder(installation, name, folder, (free_address(), free_address()), &[], &start)
    }

    /// The same in this folder, listening at these addresses, with further arguments of `init creds` and of
    /// `start`.
    pub fn in_folder(
        installation: &Installation,
        name: &str,
        folder: PathBuf,
        (address, http): (SocketAddr, SocketAddr),
        creds: &[&str],
        start: &[&str],
    ) -> LogServer {
        let token = token_in(&installation.ok(&["configure", "create", "log-server", name]));
        let init = ["tlog", "init", "creds", "--token", &token, "--db-folder", text(&folder)];
        installation.ok(&[&init[..], creds].concat());
        let log = installation.path(&format!("tlog {name}.log"));
        let (a, h) = (address.to_string(), http.to_string());
        let arguments = ["tlog", "start", "--db-folder", text(&folder), "--bind-addr", &a, "--http-addr", &h];
        let process =
            Process::new(&format!("log server {name}"), &[&arguments[..], start].concat(), &[], &log);
        LogServer { name: name.to_owned(), folder, address, http, process }
    }

    /// Starts it, and waits until it is registered.
    pub fn start(&mut self) {
        self.process.start();
        let (process, http) = (&mut self.process, self.http);
        wait_for("the log server to be ready", || {
            process.assert_running();
            http_get(http, "/readyz").ok().filter(|(status, _)| *status == 200)
        });
    }

    /// What a copy on it is called.
    pub fn copy(&self) -> String {
        format!("tlog:{}", self.name)
    }
}
