//! The real binary, with a folder and an admin server of its own.

// Each test program uses a part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.err);
        self.out
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }
}

pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

pub struct World {
    pub folder: TempDir,
    pub address: String,
    pub root: String,
    server: Option<Child>,
}

impl World {
    /// A world with a root token and no server.
    pub fn prepared() -> World {
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        let mut world = World { folder, address, root: String::new(), server: None };
        let db_folder = world.admin_folder();
        let args = [
            "admin",
            "init",
            "creds",
            "--address",
            &world.address,
            "--db-folder",
            db_folder.to_str().unwrap(),
        ];
        world.root = world.run(&args).ok().trim().to_owned();
        world
    }

    /// A world whose admin server runs, with the root token kept for configure.
    pub fn started() -> World {
        let mut world = World::prepared();
        world.start();
        world.run(&["configure", "init", "creds", "--token", &world.root]).ok();
        world
    }

    pub fn admin_folder(&self) -> PathBuf {
        self.folder.path().join("admin")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chronofs"));
        command.args(args).env("CHRONOFS_CONFIG_DIR", self.folder.path().join("config"));
        command.env_remove("CHRONOFS_TOKEN").stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().unwrap().into()
    }

    /// `chronofs configure ...`, where `EMPTY` stands for the empty word
    pub fn configure(&self, line: &str) -> Ran {
        let words = line.split_whitespace().map(|word| if word == "EMPTY" { "" } else { word });
        let args: Vec<_> = std::iter::once("configure").chain(words).collect();
        self.run(&args)
    }

    pub fn start_args(&self) -> Vec<String> {
        let folder = self.admin_folder().to_str().unwrap().to_owned();
        ["admin", "start", "--db-folder", &folder, "--bind-addr", &self.address].map(str::to_owned).to_vec()
    }

    pub fn start(&mut self) {
        let args = self.start_args();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let mut command = self.command(&args);
        self.server = Some(command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        let began = Instant::now();
        let folder = self.admin_folder();
        while self.run(&["admin", "status", "--db-folder", folder.to_str().unwrap()]).code != 0 {
            assert!(began.elapsed() < Duration::from_secs(20), "the admin server did not start");
            sleep(Duration::from_millis(50));
        }
    }

    /// kill -9
    pub fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// SIGTERM; the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let mut server = self.server.take().unwrap();
        let pid = server.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        server.wait().unwrap().code()
    }

    pub fn database(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.admin_folder().join("admin.sqlite")).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

pub fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().unwrap().permissions().mode() & 0o777
}
