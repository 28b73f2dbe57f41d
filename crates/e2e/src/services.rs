//! The servers of an installation as services: unit files, and `chronofs manage`.

use crate::Installation;
use crate::installation::assert_failed_cleanly;
use crate::process::{http_get, run, text, text_of, wait_for};
use rustix::process::Pid;
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Both servers of an installation as services: they are stopped, and unit files are there.
pub struct Services {
    /// Whose servers they are.
    pub installation: Installation,
    places: Vec<String>,
    environment: Vec<(&'static str, OsString)>,
}

impl Services {
    /// With unit files in a folder of the installation, so that keepers do the work.
    pub fn of(installation: Installation) -> Services {
        let [units, run, logs] =
            ["units", "run", "said"].map(|name| text(&installation.path(name)).to_owned());
        fs::create_dir(&units).unwrap();
        let places = ["--unit-dir", &units, "--run-dir", &run, "--log-dir", &logs];
        let places = places.iter().map(|&word| word.to_owned()).collect();
        Services::with_units(installation, &units, places, Vec::new())
    }

    /// With unit files where systemd looks for them, and variables for commands.
    pub fn of_systemd(installation: Installation, environment: Vec<(&'static str, OsString)>) -> Services {
        Services::with_units(installation, "/etc/systemd/system", Vec::new(), environment)
    }

    fn with_units(
        mut installation: Installation,
        units: &str,
        places: Vec<String>,
        environment: Vec<(&'static str, OsString)>,
    ) -> Services {
        installation.meta.stop();
        installation.admin.stop();
        let folder = |name: &str| text(&installation.path(name)).to_owned();
        let (admin, meta) = (folder("admin"), folder("meta"));
        let (a, m, h) = (
            installation.admin_address.to_string(),
            installation.meta_address.to_string(),
            installation.http_address.to_string(),
        );
        installation.ok(&[
            "admin",
            "init",
            "systemd",
            "--db-folder",
            &admin,
            "--output",
            units,
            "--",
            "--bind-addr",
            &a,
        ]);
        let meta = ["meta", "init", "systemd", "--db-folder", &meta, "--output", units, "--"];
        let flags = ["--bind-addr", &m, "--advertise", &m, "--http-addr", &h];
        installation.ok(&[&meta[..], &flags].concat());
        Services { installation, places, environment }
    }

    fn arguments<'a>(&'a self, command: &[&'a str]) -> Vec<&'a str> {
        [&["manage"], command].concat().into_iter().chain(self.places.iter().map(String::as_str)).collect()
    }

    /// `chronofs manage COMMAND` for these services.
    pub fn command(&self, command: &[&str]) -> Command {
        let mut command = self.installation.command(&self.arguments(command));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs `chronofs manage COMMAND`, which must succeed, and gives what it printed.
    #[track_caller]
    pub fn ok(&self, command: &[&str]) -> String {
        let output = run(&mut self.command(command));
        assert!(output.status.success(), "manage {} failed:\n{}", command.join(" "), text_of(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `chronofs manage COMMAND`, which must fail by itself, and gives the whole output.
    #[track_caller]
    pub fn fails(&self, command: &[&str]) -> String {
        assert_failed_cleanly(&run(&mut self.command(command)), &command.join(" "))
    }

    /// Makes `program` what the unit file of a service runs, in the place of the executable under test.
    pub fn run_by(&self, name: &str, program: &Path) {
        let units = self.places.get(1).map_or("/etc/systemd/system", String::as_str);
        let unit = Path::new(units).join(format!("chronofs-{name}.service"));
        let text_of_unit = fs::read_to_string(&unit).unwrap();
        let changed = text_of_unit.lines().map(|line| match line.strip_prefix("ExecStart=") {
            Some(command) => {
                let (_, arguments) = command.split_once(' ').unwrap();
                format!("ExecStart={} {arguments}\n", text(program))
            }
            None => format!("{line}\n"),
        });
        fs::write(&unit, changed.collect::<String>()).unwrap();
    }

    /// The process of a server, if it runs.
    pub fn server(&self, name: &str) -> Option<Pid> {
        let said = run(&mut self.command(&["status", "--json"]));
        let services: Vec<Value> =
            serde_json::from_slice(&said.stdout).unwrap_or_else(|_| panic!("{}", text_of(&said)));
        let found = services.iter().find(|service| service["component"] == name).unwrap();
        found["pid"].as_i64().and_then(|pid| Pid::from_raw(pid as i32))
    }

    /// Waits until the metadata server is ready.
    pub fn until_ready(&self) {
        wait_for("the metadata server to be ready", || {
            http_get(self.installation.http_address, "/readyz").ok().filter(|(status, _)| *status == 200)
        });
    }

    /// The keeper of a server.
    pub fn keeper(&self, name: &str) -> Pid {
        let said = fs::read_to_string(self.installation.path("run").join(format!("{name}.pid"))).unwrap();
        Pid::from_raw(said.lines().next().unwrap().trim().parse().unwrap()).unwrap()
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        run(&mut self.command(&["stop"]));
    }
}

/// Makes an executable that says that it is `version`, and does `more` before it is the executable under test; padded, so that it has
/// `length` bytes at least.
pub fn make_program(path: &Path, version: &str, more: &str, length: usize) {
    let real = text(&crate::process::chronofs_binary()).to_owned();
    let mut script = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo chronofs {version}; exit; fi\n{more}\nexec {real} \"$@\"\n"
    );
    while script.len() < length {
        script.push_str(
            "# what nobody reads, up to the length that a test needs .............................\n",
        );
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The names of the files in a folder, sorted.
pub fn names_in(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}
