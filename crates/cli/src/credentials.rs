//! The tokens this machine keeps: `configure.toml` and `mount.toml` in `/etc/chronofs`, for their owner only.
//!
//! `CHRONOFS_CONFIG_DIR` names another folder, `CHRONOFS_TOKEN` a token that goes before all files.

use anyhow::{Context, Result, anyhow, bail};
use chronofs_wire::tls::write_secret;
use chronofs_wire::token::{Token, TokenKind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::env::{self, VarError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const TOKEN_VARIABLE: &str = "CHRONOFS_TOKEN";
const FOLDER_VARIABLE: &str = "CHRONOFS_CONFIG_DIR";

#[derive(Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigureFile {
    token: Option<String>,
}

#[derive(Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MountFile {
    /// For volumes that are not named below.
    token: Option<String>,
    /// By volume.
    #[serde(default)]
    volumes: BTreeMap<String, String>,
}

pub(crate) fn folder() -> PathBuf {
    env::var_os(FOLDER_VARIABLE).map_or_else(|| PathBuf::from("/etc/chronofs"), PathBuf::from)
}

fn load<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    match std::fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).map_err(|error| {
            // Not the error itself: it shows the line, which may be a secret.
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count()) + 1;
            anyhow!(
                "cannot use {}: line {line}: {}; correct it, or remove it and run init creds again",
                path.display(),
                error.message()
            )
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn save(path: &Path, content: &impl Serialize) -> Result<()> {
    let text = toml::to_string(content)?;
    let folder = folder();
    std::fs::create_dir_all(&folder).with_context(|| {
        format!("cannot make folder {} ({FOLDER_VARIABLE} names another)", folder.display())
    })?;
    write_secret(path, text.as_bytes())
        .with_context(|| format!("cannot write {} ({FOLDER_VARIABLE} names another folder)", path.display()))
}

fn from_environment() -> Result<Option<String>> {
    match env::var(TOKEN_VARIABLE) {
        Ok(token) => Ok(Some(token).filter(|token| !token.is_empty())),
        Err(VarError::NotPresent) => Ok(None),
        // Another token than this is not what was asked for.
        Err(VarError::NotUnicode(_)) => {
            bail!("the token in {TOKEN_VARIABLE} is no text: set it anew, or unset it")
        }
    }
}

/// Keeps the token of an account for `configure`; gives the file it is in.
pub(crate) fn save_configure(token: &str) -> Result<PathBuf> {
    let token = Token::parse_as(token, TokenKind::Account)?;
    let path = folder().join("configure.toml");
    save(&path, &ConfigureFile { token: Some(token.to_string()) })?;
    Ok(path)
}

/// The token `configure` works with.
pub(crate) fn configure() -> Result<Token> {
    let text = match from_environment()? {
        Some(token) => Some(token),
        None => load::<ConfigureFile>(&folder().join("configure.toml"))?.token,
    };
    let Some(text) = text else {
        bail!("no token: run chronofs configure init creds --token TOKEN first, or set {TOKEN_VARIABLE}");
    };
    Ok(Token::parse_as(&text, TokenKind::Account)?)
}

/// The token of somebody, of whatever kind: of the given file, or the one `configure` works with.
pub(crate) fn any(file: Option<&Path>) -> Result<Token> {
    let text = match (file, from_environment()?) {
        (Some(file), _) => {
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
        }
        (None, Some(token)) => token,
        (None, None) => return configure(),
    };
    text.trim().parse().context("that is no token")
}

/// Keeps a volume token for mounts of `volume`, or of any volume without one of its own; gives the file it is in.
pub(crate) fn save_mount(token: &str, volume: Option<&str>) -> Result<PathBuf> {
    let token = Token::parse_as(token, TokenKind::Volume)?.to_string();
    let path = folder().join("mount.toml");
    let mut file: MountFile = load(&path)?;
    match volume {
        Some(volume) => drop(file.volumes.insert(volume.to_owned(), token)),
        None => file.token = Some(token),
    }
    save(&path, &file)?;
    Ok(path)
}

/// The token to mount `volume` with: as given, of the given file, of the environment, of `mount.toml`.
pub(crate) fn mount(volume: &str, given: Option<String>, file: Option<&Path>) -> Result<String> {
    let text = if let Some(token) = given {
        Some(token)
    } else if let Some(file) = file {
        Some(std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?)
    } else if let Some(token) = from_environment()? {
        Some(token)
    } else {
        let kept: MountFile = load(&folder().join("mount.toml"))?;
        kept.volumes.get(volume).cloned().or(kept.token)
    };
    let Some(text) = text else {
        bail!(
            "no token for volume '{volume}': pass --token or --token-file, set {TOKEN_VARIABLE}, or run chronofs \
             mount init creds --token TOKEN --volume {volume}"
        );
    };
    Ok(Token::parse_as(&text, TokenKind::Volume)?.to_string())
}
