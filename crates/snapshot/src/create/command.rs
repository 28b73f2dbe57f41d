//! `--method command`: a program of the operator's makes the image, and takes it away again.
//!
//! A snapshot program is told its arguments by whoever may talk to the database. So a program is chosen by its name in a
//! folder that only the machine's administrator writes to, never by a path.

use crate::create::Request;
use crate::error::Error;
use crate::manifest::{Made, Manifest, Method, recommended_name};
use crate::whitelist::{Program, Whitelist};
use std::env;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the programs of `--method command` are.
#[must_use]
pub fn programs_folder() -> PathBuf {
    let configuration =
        env::var_os("CHRONOFS_CONFIG_DIR").map_or_else(|| "/etc/chronofs".into(), PathBuf::from);
    configuration.join("snap-create.d")
}

/// Runs it with the four arguments of a snapshot program. What it puts into `CHRONOFS_SNAPSHOT_IMAGE` becomes part of the
/// image.
pub(super) fn run(request: &Request, path: &Path, staging: &Path, image: &Path) -> Result<Made, Error> {
    let name = request.command.as_deref().ok_or_else(|| Error::NoCommand(programs_folder()))?;
    let mut command = prepared(name, "create", staging)?;
    command.arg("--path").arg(path).arg("--version").arg(&request.version);
    command.arg("--role").arg(request.role.as_str()).arg("--uid").arg(request.uid.as_str());
    command.env("CHRONOFS_SNAPSHOT_NAME", recommended_name(&request.server, &request.uid));
    command.env("CHRONOFS_SNAPSHOT_ADDRESS", request.server.address.to_string());
    command.env("CHRONOFS_SNAPSHOT_PLACE", image);
    ran(command)?;
    Ok(Made { data: None, volume: Some(name.to_owned()), entries: None })
}

/// Has the program take away what it made.
pub(super) fn remove(manifest: &Manifest, folder: &Path) -> Result<(), Error> {
    let name = manifest.volume.as_deref().ok_or_else(|| Error::NoCommand(programs_folder()))?;
    let mut command = prepared(name, "delete", folder)?;
    command.arg("--path").arg(&manifest.source).arg("--version").arg(&manifest.server_version);
    command.arg("--role").arg(manifest.role.as_str()).arg("--uid").arg(manifest.uid.as_str());
    command.env("CHRONOFS_SNAPSHOT_NAME", &manifest.name);
    command.env("CHRONOFS_SNAPSHOT_ADDRESS", manifest.address.to_string());
    command.env("CHRONOFS_SNAPSHOT_PLACE", folder);
    ran(command)
}

fn prepared(name: &str, action: &str, image: &Path) -> Result<Command, Error> {
    let program = program(name)?;
    let mut command = Command::new(program.path());
    command
        .env("CHRONOFS_SNAPSHOT_ACTION", action)
        .env("CHRONOFS_SNAPSHOT_METHOD", Method::Command.to_string());
    command.env("CHRONOFS_SNAPSHOT_IMAGE", image).stdin(Stdio::null());
    Ok(command)
}

fn program(name: &str) -> Result<Program, Error> {
    let folder = programs_folder();
    let mut parts = Path::new(name).components();
    let only = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == OsStr::new(name));
    if !only {
        return Err(Error::NoCommand(folder));
    }
    let path = folder.join(name);
    let list = Whitelist::new([path.clone()])?;
    Ok(list.check(&path, rustix::process::geteuid().as_raw())?)
}

/// In our own process group, so that whoever stops us stops it too; what it says goes where ours goes.
fn ran(mut command: Command) -> Result<(), Error> {
    let shown = command.get_program().to_string_lossy().into_owned();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error::Tool { command: shown, said: status.to_string() }),
        Err(error) => Err(Error::Tool { command: shown, said: error.to_string() }),
    }
}
