//! A whole chronofs of its own in a temporary folder: admin, meta, block store, volumes, mounts, on free loopback
//! ports. Dropping it unmounts and ends everything.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::network::Hosts;
use crate::process::{Process, chronofs_binary, free_address, http_get, run, text_of, wait_for};

/// What every token starts with.
const TOKEN_START: &str = "chronofs1_";

/// See the module.
pub struct Installation {
    dir: tempfile::TempDir,
    /// The admin server.
    pub admin: Process,
    /// The metadata server.
    pub meta: Process,
    /// Where the admin server listens.
    pub admin_address: SocketAddr,
    /// Where the metadata server listens.
    pub meta_address: SocketAddr,
    /// Where the metadata server answers `/metrics`, `/healthz`, `/readyz`.
    pub http_address: SocketAddr,
    mounts_made: RefCell<u32>,
}

/// What servers are started with beside what all have.
#[derive(Default)]
struct More<'a> {
    /// Arguments of everything that begins the admin server's folder or starts it.
    admin: &'a [String],
    /// Of `chronofs admin start` only.
    admin_start: &'a [String],
    /// Of `chronofs meta start`.
    meta: &'a [String],
    /// Variables of the environment of both.
    environment: &'a [(&'a str, &'a str)],
    /// Where they are, if not on loopback.
    hosts: Option<&'a Hosts>,
}

impl Installation {
    /// Admin and meta run, block store `blocks` and metadata store `store` exist; there is no volume yet.
    pub fn start() -> Installation {
        let dir = tempfile::Builder::new().prefix("chronofs-e2e-").tempdir().expect("a temporary folder");
        let meta_folder = dir.path().join("meta");
        Installation::start_in(dir, &meta_folder, &More::default())
    }

    /// The same with variables in the environment of both servers.
    pub fn start_with_environment(environment: &[(&str, &str)]) -> Installation {
        let dir = tempfile::Builder::new().prefix("chronofs-e2e-").tempdir().expect("a temporary folder");
        let meta_folder = dir.path().join("meta");
        Installation::start_in(dir, &meta_folder, &More { environment, ..More::default() })
    }

    /// The same with the metadata server's folder at `meta_folder`.
    pub fn start_with_meta_folder(meta_folder: &Path) -> Installation {
        let dir = tempfile::Builder::new().prefix("chronofs-e2e-").tempdir().expect("a temporary folder");
        Installation::start_in(dir, meta_folder, &More::default())
    }

    /// The same with `--tls-cert` and `--tls-key` for the admin and for the metadata server.
    pub fn start_with_tls(admin: &[String], meta: &[String]) -> Installation {
        let dir = tempfile::Builder::new().prefix("chronofs-e2e-").tempdir().expect("a temporary folder");
        let meta_folder = dir.path().join("meta");
        Installation::start_in(dir, &meta_folder, &More { admin, meta, ..More::default() })
    }

    /// The same with programs that the servers may run for disk snapshots, and further arguments of `chronofs admin start`.
    pub fn start_with_whitelist(programs: &[&Path], admin: &[&str]) -> Installation {
        Installation::start_for_snapshots(programs, admin, &[])
    }

    /// The same with further arguments of `chronofs meta start`, too.
    pub fn start_for_snapshots(programs: &[&Path], admin: &[&str], meta: &[&str]) -> Installation {
        let dir = tempfile::Builder::new().prefix("chronofs-e2e-").tempdir().expect("a temporary folder");
        let meta_folder = dir.path().join("meta");
        let listed = programs.iter().flat_map(|path| ["--whitelist-binpath", crate::process::text(path)]);
        let listed: Vec<String> = listed.map(str::to_owned).collect();
        let mut admin_start = listed.clone();
        admin_start.extend(admin.iter().map(|&argument| argument.to_owned()));
        let mut meta_start = listed;
        meta_start.extend(meta.iter().map(|&argument| argument.to_owned()));
        let more = More { meta: &meta_start, admin_start: &admin_start, ..More::default() };
        Installation::start_in(dir, &meta_folder, &more)
    }

    /// The same with its servers on `hosts`, and the metadata server's folder at `meta_folder`.
    pub fn start_on(hosts: &Hosts, meta_folder: &Path, program: &Path) -> Installation {
        let dir = tempfile::Builder::new().prefix("chronofs-e2e-").tempdir().expect("a temporary folder");
        let listed = ["--whitelist-binpath", crate::process::text(program)].map(str::to_owned);
        let hosts = Some(hosts);
        let more = More { meta: &listed, admin_start: &listed, hosts, ..More::default() };
        Installation::start_in(dir, meta_folder, &more)
    }

    /// The same with everything that it keeps below `folder`: on a disk of the test's own.
    pub fn start_below(folder: &Path, meta: &[&str]) -> Installation {
        let mut builder = tempfile::Builder::new();
        let dir = builder.prefix("chronofs-e2e-").tempdir_in(folder).expect("a temporary folder");
        let meta_folder = dir.path().join("meta");
        let meta: Vec<String> = meta.iter().map(|&argument| argument.to_owned()).collect();
        Installation::start_in(dir, &meta_folder, &More { meta: &meta, ..More::default() })
    }

    /// The same with further arguments of `chronofs meta start`.
    pub fn start_with_meta_arguments(arguments: &[&str]) -> Installation {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Installation::start_with_tls(&[], &arguments)
    }

    fn start_in(dir: tempfile::TempDir, meta_folder: &Path, more: &More<'_>) -> Installation {
        crate::require_root_and_fuse();
        let (admin_address, meta_address, http_address) = match more.hosts {
            None => (free_address(), free_address(), free_address()),
            Some(Hosts { admin, meta, .. }) => {
                ((*admin, 8443).into(), (*meta, 8444).into(), (*meta, 8445).into())
            }
        };
        let path = |name: &str| dir.path().join(name);
        let text = |path: &Path| path.to_str().expect("printable paths").to_owned();
        let admin_folder = text(&path("admin"));
        let meta_folder = text(meta_folder);
        let (a, m, h) = (admin_address.to_string(), meta_address.to_string(), http_address.to_string());
        let mut admin_arguments = vec!["admin", "start", "--db-folder", &admin_folder, "--bind-addr", &a];
        admin_arguments.extend(more.admin.iter().chain(more.admin_start).map(String::as_str));
        let admin = Process::new("admin", &admin_arguments, more.environment, &path("admin.log"));
        let mut meta_arguments = vec![
            "meta",
            "start",
            "--db-folder",
            &meta_folder,
            "--bind-addr",
            &m,
            "--advertise",
            &m,
            "--http-addr",
            &h,
        ];
        meta_arguments.extend(more.meta.iter().map(String::as_str));
        let mut meta = Process::new("meta", &meta_arguments, more.environment, &path("meta.log"));
        if let Some(hosts) = more.hosts {
            meta = meta.on(&hosts.machine);
        }
        std::fs::create_dir(path("blocks")).expect("folder of the block store");
        let mut it = Installation {
            dir,
            admin,
            meta,
            admin_address,
            meta_address,
            http_address,
            mounts_made: RefCell::new(0),
        };
        let mut init = vec!["admin", "init", "creds", "--db-folder", &admin_folder, "--address", &a];
        init.extend(more.admin.iter().map(String::as_str));
        let root = token_in(&it.ok(&init));
        it.start_admin();
        it.ok(&["configure", "init", "creds", "--token", &root]);
        let blocks = text(&it.path("blocks"));
        it.ok(&["configure", "create", "block-store", "blocks", "--kind", "local", "--path", &blocks]);
        let store = token_in(&it.ok(&["configure", "create", "metadata-store", "store"]));
        it.ok(&["meta", "init", "creds", "--token", &store, "--db-folder", &meta_folder]);
        it.start_meta();
        it
    }

    /// A path in the installation's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What keeps the settings and logs of commands in the installation's folder.
    pub fn environment(&self) -> [(&'static str, PathBuf); 2] {
        [("CHRONOFS_CONFIG_DIR", self.path("etc")), ("CHRONOFS_LOG_DIR", self.path("log"))]
    }

    /// `chronofs ARGUMENTS` with this installation's settings.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(chronofs_binary());
        command.args(arguments).envs(self.environment()).env_remove("CHRONOFS_TOKEN");
        command
    }

    /// Runs `chronofs ARGUMENTS`, which must succeed, and gives what it printed.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = run(&mut self.command(arguments));
        assert!(output.status.success(), "chronofs {} failed:\n{}", arguments.join(" "), text_of(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// As [`Installation::ok`], with what it printed to standard error.
    #[track_caller]
    pub fn ok_with_stderr(&self, arguments: &[&str]) -> String {
        let output = run(&mut self.command(arguments));
        assert!(output.status.success(), "chronofs {} failed:\n{}", arguments.join(" "), text_of(&output));
        text_of(&output)
    }

    /// Runs `chronofs ARGUMENTS`, which must fail by itself (not by a panic), and gives the whole output.
    #[track_caller]
    pub fn fails(&self, arguments: &[&str]) -> String {
        let output = run(&mut self.command(arguments));
        assert_failed_cleanly(&output, &arguments.join(" "))
    }

    /// Starts the admin server and waits until it listens.
    pub fn start_admin(&mut self) {
        self.admin.start();
        let (admin, address) = (&mut self.admin, self.admin_address);
        wait_for("the admin server to listen", || {
            admin.assert_running();
            std::net::TcpStream::connect(address).ok()
        });
    }

    /// Starts the metadata server and waits until it is ready.
    pub fn start_meta(&mut self) {
        self.meta.start();
        let (meta, address) = (&mut self.meta, self.http_address);
        wait_for("the metadata server to be ready", || {
            meta.assert_running();
            http_get(address, "/readyz").ok().filter(|(status, _)| *status == 200)
        });
    }

    /// Starts the metadata server while the admin server is away, and waits until it listens.
    pub fn start_meta_without_admin(&mut self) {
        self.meta.start();
        let (meta, address) = (&mut self.meta, self.meta_address);
        wait_for("the metadata server to listen", || {
            meta.assert_running();
            std::net::TcpStream::connect(address).ok()
        });
    }

    /// Creates a volume with further flags of `configure create volume`.
    #[track_caller]
    pub fn create_volume(&self, name: &str, flags: &[&str]) {
        self.create_volume_in("blocks", name, flags);
    }

    /// The same in a block store of [`Installation::create_block_store`].
    #[track_caller]
    pub fn create_volume_in(&self, store: &str, name: &str, flags: &[&str]) {
        let create =
            ["configure", "create", "volume", name, "--block-store", store, "--metadata-store", "store"];
        self.ok(&[&create[..], flags].concat());
    }

    /// Creates a block store with flags of `configure create block-store`, and gives what the command said.
    #[track_caller]
    pub fn create_block_store(&self, name: &str, flags: &[String], more: &[&str]) -> String {
        let mut arguments = vec!["configure", "create", "block-store", name];
        arguments.extend(flags.iter().map(String::as_str).chain(more.iter().copied()));
        self.ok(&arguments)
    }

    /// Creates a token for `volume` with further flags.
    #[track_caller]
    pub fn create_token(&self, volume: &str, flags: &[&str]) -> String {
        let mut arguments = vec!["configure", "create", "volume-token", "--volume", volume];
        arguments.extend(flags);
        token_in(&self.ok(&arguments))
    }

    /// Mounts `volume` in the foreground of a child process with a new token.
    #[track_caller]
    pub fn mount(&self, volume: &str, flags: &[&str]) -> Mount {
        let token = self.create_token(volume, &[]);
        self.mount_with(volume, &token, flags)
    }

    /// Mounts `volume` as it was at `instant`, with the token of another mount of it.
    #[track_caller]
    pub fn mount_past(&self, live: &Mount, instant: &str) -> Mount {
        self.mount_with(&live.volume, &live.token, &["--at-time", instant])
    }

    /// Mounts with a token of the caller's.
    #[track_caller]
    pub fn mount_with(&self, volume: &str, token: &str, flags: &[&str]) -> Mount {
        let number = self.mounts_made.replace_with(|n| *n + 1);
        let dir = self.path(&format!("mnt{number}"));
        std::fs::create_dir(&dir).expect("folder to mount at");
        let shown = dir.to_str().expect("printable paths");
        let mut arguments = vec!["mount", "start", volume, shown, "--foreground"];
        arguments.extend(flags);
        let etc = self.path("etc");
        let environment =
            [("CHRONOFS_CONFIG_DIR", etc.to_str().expect("printable paths")), ("CHRONOFS_TOKEN", token)];
        let log = self.path(&format!("mnt{number}.log"));
        let process = Process::new(&format!("mount {number}"), &arguments, &environment, &log);
        let mut mount = Mount { dir, volume: volume.to_owned(), token: token.to_owned(), process };
        mount.start();
        mount
    }

    /// Stops the metadata server and lets `meta verify` look at its folder and at every slice, live and past: it must
    /// find nothing.
    #[track_caller]
    pub fn stop_meta_and_verify(&mut self) {
        self.meta.stop();
        let folder = self.path("meta");
        self.ok(&["meta", "verify", "--blocks", "--db-folder", folder.to_str().expect("printable paths")]);
    }
}

/// Gives the output of a command that failed with a message; panics if it succeeded or did not fail by itself.
#[track_caller]
pub fn assert_failed_cleanly(output: &Output, what: &str) -> String {
    let text = text_of(output);
    assert!(!output.status.success(), "`{what}` succeeded but should fail:\n{text}");
    assert!(output.status.code().is_some(), "`{what}` was ended by a signal: {}\n{text}", output.status);
    assert!(!text.contains("panicked at"), "`{what}` panicked:\n{text}");
    assert!(!text.trim().is_empty(), "`{what}` failed without a word");
    text
}

/// The token in what a command printed.
#[track_caller]
pub fn token_in(text: &str) -> String {
    let start = text.find(TOKEN_START).unwrap_or_else(|| panic!("no token in: {text}"));
    text[start..].chars().take_while(|c| c.is_ascii_alphanumeric() || "_-.+/=".contains(*c)).collect()
}

/// A mounted volume, served by a child process. Dropping it unmounts.
pub struct Mount {
    /// Where it is mounted.
    pub dir: PathBuf,
    /// The volume.
    pub volume: String,
    /// The token it was mounted with.
    pub token: String,
    /// The mount's process.
    pub process: Process,
}

impl Mount {
    /// Starts the process and waits until the folder is a mount point that answers.
    #[track_caller]
    pub fn start(&mut self) {
        self.process.start();
        let (dir, process) = (&self.dir, &mut self.process);
        wait_for("the mount", || {
            process.assert_running();
            is_mount_point(dir).then_some(())
        });
    }

    /// A path in the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Flushes the mount and gives the committed version (`chronofs instant`).
    #[track_caller]
    pub fn instant(&self) -> String {
        let output = run(Command::new(chronofs_binary()).arg("instant").arg(&self.dir));
        assert!(output.status.success(), "chronofs instant failed:\n{}", text_of(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// `umount`, and waits for the process, which must end with success.
    #[track_caller]
    pub fn unmount(&mut self) {
        let output = run(Command::new("umount").arg(&self.dir));
        assert!(output.status.success(), "umount failed:\n{}", text_of(&output));
        let status = self.process.wait();
        assert!(status.success(), "the mount ended with {status}:\n{}", self.process.log_tail());
    }

    /// `kill -9` of the mount's process, and takes the dead mount away.
    pub fn kill(&mut self) {
        self.process.kill();
        detach(&self.dir);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.process.pid().is_some() || is_mount_point(&self.dir) {
            detach(&self.dir);
        }
    }
}

/// Whether something is mounted at `dir`, without asking what is mounted there.
pub fn is_mount_point(dir: &Path) -> bool {
    let table = std::fs::read("/proc/self/mountinfo").expect("/proc/self/mountinfo");
    // The table writes a blank as \040.
    let shown: Vec<u8> = dir
        .as_os_str()
        .as_bytes()
        .iter()
        .flat_map(|&byte| if byte == b' ' { b"\\040".to_vec() } else { vec![byte] })
        .collect();
    table.split(|&b| b == b'\n').any(|line| line.split(|&b| b == b' ').nth(4) == Some(&shown[..]))
}

/// Takes a mount away whatever its state.
pub fn detach(dir: &Path) {
    while is_mount_point(dir) {
        let done = Command::new("umount").arg("-l").arg(dir).status().is_ok_and(|s| s.success());
        if !done {
            return;
        }
    }
}

/// The device number of a path: differs between the folder and what is mounted on it.
pub fn device_of(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map(|m| m.dev()).unwrap_or_default()
}
