//! A metadata server and mounts, each in a process of its own: both can be killed, and a test that fails with a file
//! open cannot wait for itself.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use chronofs_core::Retention;
use chronofs_core::Version;
use chronofs_core::volume::{BLOCK_SIZE_DEFAULT, Compression, VolumeSpec};
use chronofs_meta::executor::Input;
use chronofs_meta::machine::Event;
use chronofs_meta::{Server, StartConfig};
use chronofs_mount::connection::{Credentials, Source, Target};
use chronofs_mount::{MountOptions, MountSpec, Mounted};
use chronofs_wire::admin::{AssignedStore, AssignedToken, AssignedVolume, Assignment, StoreKind};
use chronofs_wire::identity::{Secret, Sha256};
use chronofs_wire::tls::ServerIdentity;
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use uuid::Uuid;

const SERVER_VARIABLE: &str = "CHRONOFS_TEST_SERVER";
/// Folder, directory, instant in nanoseconds (0: the present), 1 for read-only; with line ends in between.
const MOUNT_VARIABLE: &str = "CHRONOFS_TEST_MOUNT";
const VOLUME: Uuid = Uuid::from_u128(0x11);
const STORE: Uuid = Uuid::from_u128(0x22);
const TOKEN: Uuid = Uuid::from_u128(0x01);
const SECRET: [u8; 32] = [9; 32];

/// The body of the test that is the server when another test starts this executable again.
pub fn serve_if_asked() {
    let Some(folder) = std::env::var_os(SERVER_VARIABLE).map(PathBuf::from) else { return };
    // It is started before it is wanted, see `Rig::prepare`.
    if std::io::stdin().read(&mut [0]).unwrap() == 0 {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let _server = serve(&folder).await;
        fs::write(folder.join("up"), "").unwrap();
        std::future::pending::<()>().await;
    });
}

/// A server of the volume in `folder`, where its address is written.
pub async fn serve(folder: &Path) -> Server {
    let address: SocketAddr = match fs::read_to_string(folder.join("address")) {
        Ok(before) => before.parse().unwrap(),
        Err(_) => "127.0.0.1:0".parse().unwrap(),
    };
    let config = StartConfig {
        db_folder: folder.join("meta"),
        bind_addr: address,
        advertise: None,
        http_addr: None,
        tls: None,
        timing: Default::default(),
        whitelist: Vec::new(),
        cluster: None,
        whereabouts: Default::default(),
        recover_log: false,
    };
    let server = Server::start(&config, false).await.unwrap();
    let assigned = Event::Assignment(Box::new(assignment(&folder.join("blocks"))));
    server.queue.send(Input::Events(vec![assigned])).await.unwrap();
    server.queue.send(Input::Events(vec![Event::Tick])).await.unwrap();
    let new = folder.join("address.new");
    fs::write(&new, server.address.to_string()).unwrap();
    fs::rename(new, folder.join("address")).unwrap();
    server
}

pub fn create_blocks(folder: &Path) {
    chronofs_blocks::BlockStore::create(&folder.join("blocks"), STORE).unwrap();
}

fn assignment(blocks: &Path) -> Assignment {
    let spec = VolumeSpec {
        id: VOLUME,
        name: "docs".to_owned(),
        block_size: BLOCK_SIZE_DEFAULT,
        compression: Compression::Lz4,
        retention: Retention::Seconds(3600),
        max_bytes: None,
        max_inodes: None,
        hash_key: [7; 16],
    };
    let kind = StoreKind::Local { path: blocks.to_str().unwrap().to_owned() };
    let store = AssignedStore { id: STORE, kind, credentials: Default::default(), create_only: false };
    let token = AssignedToken {
        id: TOKEN,
        secret_sha256: Sha256::of(&SECRET).to_string(),
        volume: VOLUME,
        path: None,
        read_only: false,
        past: true,
        ends_ns: None,
    };
    Assignment {
        revision: 1,
        volumes: vec![AssignedVolume {
            spec,
            deleted: false,
            born_ns: 0,
            give_up_after_s: None,
            store,
            keys: None,
        }],
        tokens: vec![token],
        probes: Vec::new(),
        log: Default::default(),
        log_servers: Vec::new(),
        accepted_restore: None,
        copy_restored: false,
        reader_stores: Vec::new(),
        admin_epoch: 0,
    }
}

/// The body of the test that is a mount when another test starts this executable again.
pub fn mount_if_asked() {
    let Ok(what) = std::env::var(MOUNT_VARIABLE) else { return };
    let [folder, dir, at, read_only] = what.split('\n').collect::<Vec<_>>()[..] else { panic!("{what}") };
    let at: u64 = at.parse().unwrap();
    let mut options = MountOptions::default();
    options.take(if read_only == "1" { "ro" } else { "rw" });
    let spec = MountSpec {
        source: Source::Fixed(target(Path::new(folder))),
        credentials: credentials(),
        dir: dir.into(),
        at: (at > 0).then_some(Version(at)),
        options,
        disk_cache: None,
        volume: "docs".to_owned(),
        on_store_outage: Default::default(),
        direct: None,
        secret: None,
    };
    let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).try_init();
    let said = PathBuf::from(format!("{dir}.said"));
    let say = |word: String| {
        fs::write(said.with_extension("new"), word).unwrap();
        fs::rename(said.with_extension("new"), &said).unwrap();
    };
    match Mounted::mount(spec) {
        Ok(mounted) => {
            say("ready".to_owned());
            mounted.wait_or_signal().unwrap();
            // The harness would find a test that ended well.
            std::process::exit(0);
        }
        Err(error) => {
            let refused = if error.is_refused() { "refused " } else { "" };
            say(format!("{refused}{error}"));
        }
    }
}

pub fn credentials() -> Credentials {
    Credentials { id: TOKEN, secret: Secret(SECRET) }
}

pub fn target(folder: &Path) -> Target {
    let address = fs::read_to_string(folder.join("address")).unwrap();
    let pin = ServerIdentity::load_existing(&folder.join("meta")).unwrap().pin();
    Target { volume: VOLUME, address, pin, epoch: 0, keys: None }
}

/// A server with an empty volume.
pub struct Rig {
    folder: tempfile::TempDir,
    server: Option<Child>,
    /// The next server, which waits for a word.
    next: Option<Child>,
    mounts: u32,
}

impl Rig {
    pub fn new() -> Rig {
        let folder = tempfile::tempdir().unwrap();
        create_blocks(folder.path());
        let mut rig = Rig { folder, server: None, next: None, mounts: 0 };
        rig.prepare();
        rig.start_server();
        rig
    }

    /// Makes the process of the next server while this one runs. A new process closes the files that this one has open
    /// in a mount; without a server to store them that would wait, for the very server that it is to become.
    fn prepare(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["server_process", "--exact", "--nocapture", "--test-threads=1"])
            .env(SERVER_VARIABLE, self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.next = Some(child);
    }

    pub fn start_server(&mut self) {
        assert!(self.server.is_none());
        let up = self.folder.path().join("up");
        let _ = fs::remove_file(&up);
        let mut child = self.next.take().unwrap();
        child.stdin.take().unwrap().write_all(b"!").unwrap();
        self.server = Some(child);
        wait_until("the server is up", || up.exists());
        self.prepare();
    }

    /// kill -9.
    pub fn kill_server(&mut self) {
        let mut child = self.server.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts a mount, or gives the words of its refusal.
    pub fn try_mount(&mut self, at: Option<Version>, read_only: bool) -> Result<Mount, String> {
        self.mounts += 1;
        let dir = self.folder.path().join(format!("m{}", self.mounts));
        fs::create_dir(&dir).unwrap();
        let (folder, at) = (self.folder.path().display(), at.map_or(0, |at| at.0));
        let what = format!("{folder}\n{}\n{at}\n{}", dir.display(), u8::from(read_only));
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["mount_process", "--exact", "--nocapture", "--test-threads=1"])
            .env(MOUNT_VARIABLE, what)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let said = PathBuf::from(format!("{}.said", dir.display()));
        wait_until("the mount is there", || said.exists() || process.try_wait().unwrap().is_some());
        let word = fs::read_to_string(said).unwrap_or_else(|_| "the process that mounts died".to_owned());
        if word != "ready" {
            process.wait().unwrap();
            return Err(word);
        }
        Ok(Mount { dir, process: Some(process) })
    }

    pub fn mount(&mut self) -> Mount {
        self.try_mount(None, false).unwrap()
    }

    pub fn mount_at(&mut self, instant: &str) -> Mount {
        self.try_mount(Some(version(instant)), false).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            eprintln!("the server's log:\n{log}");
        }
        for mut child in self.server.take().into_iter().chain(self.next.take()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A mount in a process of its own.
pub struct Mount {
    pub dir: PathBuf,
    process: Option<Child>,
}

impl Mount {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn instant(&self) -> String {
        chronofs_mount::instant(&self.dir).unwrap()
    }

    /// umount(8); everything is stored when its process ends well.
    pub fn unmount(mut self) {
        chronofs_mount::stop(&self.dir, false, |_| {}).unwrap();
        self.ended_well();
    }

    /// SIGTERM.
    pub fn terminate(mut self) {
        let pid = rustix::process::Pid::from_child(self.process.as_ref().unwrap());
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.ended_well();
    }

    /// The process of a mount that was unmounted stored everything and exited with 0.
    pub fn ended_well(&mut self) {
        assert!(self.process.take().unwrap().wait().unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let _ = process.kill();
        let _ = process.wait();
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
    }
}

pub fn version(instant: &str) -> Version {
    chronofs_core::time::parse_instant(instant, &jiff::Zoned::now()).unwrap()
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited 30 s in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a test that must not hang the whole run: a dead mount never answers.
pub fn within(limit: Duration, test: impl FnOnce() + Send + 'static) {
    let (done, finished) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match finished.recv_timeout(limit) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
            panic!("not done after {limit:?}");
        }
        _ => {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// Bytes that do not repeat and do not compress.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}
