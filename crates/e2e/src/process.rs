//! Runs the `chronofs` executable: servers that can be stopped, killed and started again, and single commands.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take before a test calls it hung.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The executable under test: `CHRONOFS_BIN`, or the one that cargo built beside this test.
pub fn chronofs_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("CHRONOFS_BIN") {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().expect("a test knows its own path");
    let found = test.ancestors().skip(1).take(2).map(|dir| dir.join("chronofs")).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("no chronofs beside {}: run `cargo build -p chronofs` first", test.display())
    })
}

/// A free port on the loopback address. It stays free unless somebody asks for any port in the same moment.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free loopback port")
}

/// Serves each connection of `listener` on a thread of its own, until this process ends.
pub fn serve_each(
    listener: TcpListener,
    serve: impl Fn(TcpStream) -> std::io::Result<()> + Clone + Send + 'static,
) {
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let serve = serve.clone();
            // A client that leaves ends its thread.
            std::thread::spawn(move || drop(serve(connection)));
        }
    });
}

/// Repeats `attempt` until it gives a value; panics with `what` when patience ends.
#[track_caller]
pub fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `GET path` over plain HTTP: status and body.
pub fn http_get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut connection = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(connection, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    status
        .map(|s| (s, body.to_owned()))
        .ok_or_else(|| std::io::Error::other(format!("no HTTP answer: {answer}")))
}

/// A path of a test, which is plain text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path of UTF-8")
}

/// What a command printed, as text.
pub fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs `command` to its end. A command that hangs is killed and fails the test.
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    run_within(PATIENCE, command)
}

/// As [`run`], for a command that may take longer.
#[track_caller]
pub fn run_within(limit: Duration, command: &mut Command) -> Output {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{shown}: {e}"));
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read_err = std::thread::spawn(move || read_all(&mut err));
    let read_out = std::thread::spawn(move || read_all(&mut out));
    let status = wait_at_most(&mut child, limit).unwrap_or_else(|| {
        let _ = child.kill();
        panic!("{shown}: still running after {limit:?}")
    });
    Output { status, stdout: read_out.join().unwrap(), stderr: read_err.join().unwrap() }
}

fn read_all(from: &mut impl Read) -> Vec<u8> {
    let mut out = Vec::new();
    let _ = from.read_to_end(&mut out);
    out
}

fn wait_at_most(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait().expect("waiting for a child") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// A long-running process of chronofs. Its output goes to a file; dropping it kills it.
pub struct Process {
    name: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// What comes before the command.
    before: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
    standby: Option<Child>,
}

impl Process {
    /// A process that is not started yet; what it prints is appended to `log`.
    pub fn new(name: &str, arguments: &[&str], environment: &[(&str, &str)], log: &Path) -> Process {
        Process {
            name: name.to_owned(),
            arguments: arguments.iter().map(|&a| a.to_owned()).collect(),
            environment: environment.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect(),
            before: Vec::new(),
            log: log.to_owned(),
            child: None,
            standby: None,
        }
    }

    /// The same on a machine of [`crate::network::Network`].
    #[must_use]
    pub fn on(mut self, machine: &str) -> Process {
        self.before = crate::network::on(machine).to_vec();
        self
    }

    /// Runs it in this network namespace.
    pub fn run_in_network(&mut self, network: &str) {
        self.before = ["ip", "netns", "exec", network].map(str::to_owned).to_vec();
    }

    /// Gets a process ready that [`Process::start`] needs only wake up.
    ///
    /// A test that has files open in a mount must do this before it ends the mount's server: a new process inherits
    /// the open files and closes them before it becomes another program, and each close waits for that server.
    pub fn prepare(&mut self) {
        if self.standby.is_none() {
            self.standby = Some(self.spawn_waiting());
        }
    }

    /// A shell that becomes the program as soon as it reads a line.
    fn spawn_waiting(&self) -> Child {
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("log file");
        let mut command = Command::new("sh");
        command.args(["-c", "read -r go && exec \"$@\" < /dev/null", "sh"]).args(&self.before);
        command
            .arg(chronofs_binary())
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(k, v)| (k, v)));
        command.stdin(Stdio::piped()).stdout(log.try_clone().expect("log file")).stderr(log);
        command.spawn().unwrap_or_else(|e| panic!("starting {}: {e}", self.name))
    }

    /// Starts it.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} is running already", self.name);
        self.prepare();
        let mut child = self.standby.take().expect("just prepared");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(b"go\n").unwrap_or_else(|e| panic!("starting {}: {e}", self.name));
        self.child = Some(child);
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let id = self.pid().unwrap_or_else(|| panic!("{} does not run", self.name));
        let _ = kill_process(Pid::from_raw(id as i32).expect("a process id"), signal);
    }

    /// `kill -9`, and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM; panics unless it ends by itself with success.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(status.success(), "{} ended with {status} after SIGTERM:\n{}", self.name, self.log_tail());
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap_or_else(|| panic!("{} does not run", self.name));
        wait_at_most(&mut child, PATIENCE).unwrap_or_else(|| {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{} still runs after {PATIENCE:?}:\n{}", self.name, self.log_tail())
        })
    }

    /// Panics with the end of its log if it is not running.
    #[track_caller]
    pub fn assert_running(&mut self) {
        let child = self.child.as_mut().unwrap_or_else(|| panic!("{} does not run", self.name));
        if let Some(status) = child.try_wait().expect("waiting for a child") {
            self.child = None;
            let signal = status.signal().map(|s| format!(" (signal {s})")).unwrap_or_default();
            panic!("{} ended by itself with {status}{signal}:\n{}", self.name, self.log_tail());
        }
    }

    /// All it has printed.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    /// Empties the log, so that a later look finds only what is new.
    pub fn forget_log(&self) {
        let _ = File::create(&self.log);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- end of the log of {}:\n{}", self.name, self.log_tail());
        }
        if let Some(mut standby) = self.standby.take() {
            let _ = standby.kill();
            let _ = standby.wait();
        }
        self.kill();
    }
}
