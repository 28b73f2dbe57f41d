//! The child that serves a mount after the command that started it has ended.
//!
//! It is this executable again with the same command line, told by an environment variable; its standard output is
//! the pipe on which it says `ready` or `error ...`, its standard error the log. The secret of an encrypted volume comes to it
//! on its standard input: neither arguments nor the environment hold it for as long as the mount lasts.

use super::error::MountError;
use chronofs_keys::{Passphrase, SecretKey, VolumeSecret};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use zeroize::Zeroizing;

/// Set in the child.
const CHILD_VARIABLE: &str = "CHRONOFS_MOUNT_CHILD";
/// May hold the passphrase of the volume: the child has it from its standard input.
const PASSPHRASE_VARIABLE: &str = "CHRONOFS_VOLUME_PASSPHRASE";
/// Names another folder for logs.
pub(super) const LOG_FOLDER_VARIABLE: &str = "CHRONOFS_LOG_DIR";
const LOG_FOLDER: &str = "/var/log/chronofs";

/// What a secret begins with on its way to the child.
const KEY: &str = "key ";
const PASSPHRASE: &str = "passphrase ";
/// The longest secret with what it begins with: a passphrase has at most 4 KiB.
const SECRET_MAX: u64 = 8 << 10;

/// Whether this process is a child that serves a mount: then the secret of the volume is [`handed_secret`].
#[must_use]
pub fn is_child() -> bool {
    std::env::var_os(CHILD_VARIABLE).is_some()
}

/// The secret that this child was given, if any. To be asked once.
pub fn handed_secret() -> Result<Option<VolumeSecret>, MountError> {
    let mut text = Zeroizing::new(String::with_capacity(SECRET_MAX as usize));
    let read = std::io::stdin().take(SECRET_MAX).read_to_string(&mut text);
    read.map_err(MountError::system("read the secret of the volume"))?;
    let bad = |error: chronofs_keys::Error| MountError::Child(format!("the secret of the volume: {error}"));
    if let Some(key) = text.strip_prefix(KEY) {
        return Ok(Some(VolumeSecret::Key(SecretKey::parse(key).map_err(bad)?)));
    }
    let Some(phrase) = text.strip_prefix(PASSPHRASE) else { return Ok(None) };
    let phrase = Passphrase::new(Zeroizing::new(phrase.to_owned())).map_err(bad)?;
    Ok(Some(VolumeSecret::Passphrase(phrase)))
}

fn hand(input: &mut impl Write, secret: &VolumeSecret) -> io::Result<()> {
    match secret {
        VolumeSecret::Key(key) => {
            input.write_all(KEY.as_bytes())?;
            input.write_all(key.reveal().as_bytes())
        }
        VolumeSecret::Passphrase(passphrase) => {
            input.write_all(PASSPHRASE.as_bytes())?;
            input.write_all(passphrase.reveal().as_bytes())
        }
    }
}

/// Starts the child and waits until the mount on `dir`, an absolute path, is there or the child says why not.
pub(super) fn start_child(volume: &str, dir: &Path, secret: Option<&VolumeSecret>) -> Result<(), MountError> {
    let log = log_path(volume, dir);
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_else(|| "chronofs".into());
    let mut child = Command::new("/proc/self/exe")
        .arg0(name)
        .args(args)
        .env(CHILD_VARIABLE, "1")
        .env_remove(PASSPHRASE_VARIABLE)
        .stdin(if secret.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(open_log(&log)?)
        .spawn()
        .map_err(MountError::system("start the process that serves the mount"))?;
    if let (Some(secret), Some(mut input)) = (secret, child.stdin.take()) {
        // A child that has ended already says why.
        let _ = hand(&mut input, secret);
    }
    let said = child.stdout.take().map(|output| {
        let mut line = String::new();
        // The end of the pipe without a word is an answer too.
        let _ = BufReader::new(output).read_line(&mut line);
        line
    });
    match said.as_deref().map(str::trim_end) {
        Some("ready") => Ok(()),
        Some(said) if said.starts_with("error ") => {
            let _ = child.wait();
            Err(MountError::Child(said["error ".len()..].replace('\u{1}', "\n")))
        }
        _ => {
            let _ = child.wait();
            Err(MountError::Child(format!(
                "the process that was to serve the mount ended without a word; {} says more",
                log.display()
            )))
        }
    }
}

fn log_path(volume: &str, dir: &Path) -> PathBuf {
    let folder =
        std::env::var_os(LOG_FOLDER_VARIABLE).map_or_else(|| PathBuf::from(LOG_FOLDER), PathBuf::from);
    let place = dir.to_string_lossy();
    folder.join(format!("mount-{}-{}.log", plain(volume), plain(place.trim_matches('/'))))
}

fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect()
}

fn open_log(path: &Path) -> Result<File, MountError> {
    let open = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        OpenOptions::new().create(true).append(true).open(path)
    };
    open().map_err(MountError::system(format!(
        "open the log {} ({LOG_FOLDER_VARIABLE} names another folder)",
        path.display()
    )))
}

/// Where to say how the start went.
pub(super) struct Ready(Option<File>);

impl Ready {
    /// `given` by the caller, or the standard output of a child, which also gets a session of its own.
    pub(super) fn new(given: Option<&OwnedFd>, child: bool) -> Result<Self, MountError> {
        let copy = match given {
            Some(fd) => Some(fd.try_clone().map_err(MountError::system("copy the ready descriptor"))?),
            None if child => {
                let _ = rustix::process::setsid();
                let out = std::io::stdout().as_fd().try_clone_to_owned();
                Some(out.map_err(MountError::system("copy the standard output"))?)
            }
            None => None,
        };
        Ok(Ready(copy.map(File::from)))
    }

    /// Says it once. In a child the pipe is closed behind it, so that whoever waits for its end does not.
    pub(super) fn say(&mut self, word: &str) {
        let Some(mut out) = self.0.take() else { return };
        let line = format!("{}\n", word.replace('\n', "\u{1}"));
        if let Err(error) = out.write_all(line.as_bytes()) {
            tracing::debug!("saying how the start went: {error}");
        }
        drop(out);
        if is_child() {
            close_stdout();
        }
    }
}

/// Nothing writes to standard output any more; a reader of the pipe gets its end.
fn close_stdout() {
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_named_after_volume_and_directory() {
        let path = log_path("my volume", Path::new("/mnt/a b"));
        assert!(path.ends_with("mount-my-volume-mnt-a-b.log"), "{path:?}");
    }
}
