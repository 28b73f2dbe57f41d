//! Object stores of others on loopback, for tests: installed by `scripts/test servers` into target/tools.
//!
//! Each has one bucket, [`BUCKET`]. Dropping a server kills it; its objects go with its temporary folder.

use crate::process::{free_address, wait_for};
use aws_lc_rs::hmac;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The bucket (or container) that every server has.
pub const BUCKET: &str = "bytes";
/// Id of an access key that S3 servers take.
pub const KEY_ID: &str = "S3RVER";
/// Its secret. A test may look for it in what a process prints.
pub const SECRET: &str = "S3RVER-the-secret-of-the-tests";
/// Azurite's account, known to everybody.
pub const AZURE_ACCOUNT: &str = "devstoreaccount1";
/// Its key.
pub const AZURE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// The servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// S3, honest for data and conditional puts; takes any credentials.
    Moto,
    /// S3 by rclone: ignores `If-None-Match`.
    Rclone,
    /// Azure.
    Azurite,
    /// S3 by s3rver: gives other bytes than the range that was asked for.
    S3rver,
    /// GCS by gcp-storage-emulator: puts ignore preconditions, and are answered as Google's are not.
    GcpEmulator,
}

/// A running server.
pub struct ObjectServer {
    /// What it is.
    pub kind: Kind,
    /// Where it listens.
    pub address: SocketAddr,
    folder: tempfile::TempDir,
    child: Option<Child>,
}

impl ObjectServer {
    /// Starts one with an empty bucket. Panics, with the command to run first, if it is not installed.
    pub fn start(kind: Kind) -> ObjectServer {
        let folder =
            tempfile::Builder::new().prefix("chronofs-objects-").tempdir().expect("a temporary folder");
        let mut server = ObjectServer { kind, address: free_address(), folder, child: None };
        fs::create_dir(server.data()).expect("a folder for its data");
        if kind == Kind::Rclone {
            fs::create_dir(server.data().join(BUCKET)).expect("the bucket's folder");
        }
        server.resume();
        server.make_bucket();
        server
    }

    /// Ends it, as a crash would. Moto and Azurite then forget objects.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again at the same address.
    pub fn resume(&mut self) {
        let log = File::create(self.folder.path().join("log")).expect("log file");
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("log file")).stderr(log);
        let program = command.get_program().to_owned();
        self.child =
            Some(command.spawn().unwrap_or_else(|e| {
                panic!("{program:?} does not start ({e}): run scripts/test servers first")
            }));
        let address = self.address;
        wait_for("the object server to listen", || TcpStream::connect(address).ok());
    }

    /// `http://HOST:PORT`, for Azure with the account.
    pub fn endpoint(&self) -> String {
        match self.kind {
            Kind::Azurite => format!("http://{}/{AZURE_ACCOUNT}", self.address),
            _ => format!("http://{}", self.address),
        }
    }

    /// Flags of `configure create block-store` that name this server's bucket and its credentials.
    pub fn flags(&self) -> Vec<String> {
        let endpoint = self.endpoint();
        // s3rver makes the secret up of the id, and takes no other.
        let secret = if self.kind == Kind::S3rver { KEY_ID } else { SECRET };
        let flags: Vec<&str> = match self.kind {
            Kind::Azurite => {
                vec!["--kind", "azure", "--account", AZURE_ACCOUNT, "--account-key", AZURE_KEY]
            }
            _ => vec![
                "--kind",
                "s3",
                "--region",
                "us-east-1",
                "--access-key-id",
                KEY_ID,
                "--secret-access-key",
                secret,
            ],
        };
        let all = flags.into_iter().chain(["--bucket", BUCKET, "--endpoint", &endpoint]);
        all.map(str::to_owned).collect()
    }

    /// Every object of a server that keeps them as files, by the file's path.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let (mut files, mut folders) = (BTreeMap::new(), vec![self.data()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder of the server").flatten() {
                match entry.file_type().expect("its type").is_dir() {
                    true => folders.push(entry.path()),
                    false => drop(files.insert(entry.path(), fs::read(entry.path()).expect("a file"))),
                }
            }
        }
        files
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self) -> Command {
        let (host, port) = (self.address.ip().to_string(), self.address.port().to_string());
        let data = self.data();
        let data = data.to_str().expect("printable paths");
        match self.kind {
            Kind::Moto => {
                let mut command = Command::new(tool("servers/bin/python3"));
                command.args(["-m", "moto.server", "-H", &host, "-p", &port]);
                command
            }
            Kind::Rclone => {
                let mut command = Command::new(tool("servers/bin/rclone"));
                let address = self.address.to_string();
                let key = format!("{KEY_ID},{SECRET}");
                command.args([
                    "serve",
                    "s3",
                    "--config",
                    "/dev/null",
                    "--addr",
                    &address,
                    "--auth-key",
                    &key,
                    data,
                ]);
                command
            }
            Kind::Azurite => {
                let mut command = Command::new(tool("servers-npm/node_modules/.bin/azurite-blob"));
                command.args([
                    "--silent",
                    "--skipApiVersionCheck",
                    "--disableProductStyleUrl",
                    "--disableTelemetry",
                ]);
                command.args(["--blobHost", &host, "--blobPort", &port, "--location", data]);
                command
            }
            Kind::S3rver => {
                let mut command = Command::new(tool("servers-npm/node_modules/.bin/s3rver"));
                command.args(["-d", data, "-a", &host, "-p", &port, "--configure-bucket", BUCKET]);
                command
            }
            Kind::GcpEmulator => {
                let mut command = Command::new(tool("servers/bin/gcp-storage-emulator"));
                let (host, port) = (format!("--host={host}"), format!("--port={port}"));
                command.args(["start", &host, &port, "--in-memory", &format!("--default-bucket={BUCKET}")]);
                command
            }
        }
    }

    /// Makes the bucket, which a server that has forgotten everything does not have.
    pub fn make_bucket(&self) {
        let (status, answer) = match self.kind {
            Kind::Rclone | Kind::S3rver | Kind::GcpEmulator => return,
            Kind::Moto => request(self.address, "PUT", &format!("/{BUCKET}"), &[]),
            Kind::Azurite => self.make_container(),
        };
        assert!(matches!(status, 200 | 201), "making the bucket: {status} {answer}");
    }

    /// Signed as Azure wants it (Shared Key).
    fn make_container(&self) -> (u16, String) {
        let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let path = format!("/{AZURE_ACCOUNT}/{BUCKET}");
        let headers = format!("x-ms-date:{date}\nx-ms-version:2021-08-06\n");
        let text = format!("PUT{}{headers}/{AZURE_ACCOUNT}{path}\nrestype:container", "\n".repeat(12));
        let key = data_encoding::BASE64.decode(AZURE_KEY.as_bytes()).expect("a key in base64");
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), text.as_bytes());
        let signature = data_encoding::BASE64.encode(signature.as_ref());
        let authorization = format!("SharedKey {AZURE_ACCOUNT}:{signature}");
        let headers =
            [("x-ms-date", &*date), ("x-ms-version", "2021-08-06"), ("Authorization", &*authorization)];
        request(self.address, "PUT", &format!("{path}?restype=container"), &headers)
    }
}

impl Drop for ObjectServer {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- end of the log of {:?}:\n{}",
                self.kind,
                lines[lines.len().saturating_sub(15)..].join("\n")
            );
        }
    }
}

/// A program that `scripts/test servers` installed.
fn tool(path: &str) -> PathBuf {
    let repository =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/e2e lies in a repository");
    repository.join("target/tools").join(path)
}

/// A request without a body: status and answer.
pub fn request(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let attempt = || -> std::io::Result<String> {
        let mut connection = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        connection.set_read_timeout(Some(Duration::from_secs(20)))?;
        let headers: String = headers.iter().map(|(key, value)| format!("{key}: {value}\r\n")).collect();
        write!(
            connection,
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n{headers}\r\n"
        )?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = attempt().unwrap_or_else(|e| panic!("{method} {path} at {address}: {e}"));
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    (status, answer)
}
