//! The secrets of encrypted volumes: what a new one is made with, and how they change. Keys are opened and sealed here; the
//! admin server sees sealed ones.

use super::{Kind, Session, at};
use crate::output;
use crate::secrets::VolumeSecretArgs;
use anyhow::{Context, Result, anyhow, bail};
use chronofs_admin::model::ChangeVolumeKeys;
use chronofs_blocks::note;
use chronofs_keys::{SealedKeys, SecretKey, VolumeSecret};
use chronofs_wire::http::Method;
use clap::builder::NonEmptyStringValueParser;
use clap::{ArgGroup, Args};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("change")
    .args(["new_key_file", "new_passphrase_file", "new_passphrase", "rotate_data_key", "from_copy"]).required(true))]
pub(super) struct VolumeKeys {
    /// Name or id of the volume
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: String,
    #[command(flatten)]
    secret: VolumeSecretArgs,
    /// From now on this key opens it
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,
    /// From now on the passphrase in this file opens it
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// From now on a passphrase opens it, which is asked for on the terminal
    #[arg(long)]
    new_passphrase: bool,
    /// Seal what is written from now on with a new data key; what was written stays readable, and is not written anew
    #[arg(long)]
    rotate_data_key: bool,
    /// Put back the sealed keys that the block store still has below keys/ and the admin server lost
    #[arg(long, value_name = "FILE")]
    from_copy: Option<PathBuf>,
}

/// Makes a key that can open volumes.
pub(super) fn make_key(file: &Path) -> Result<()> {
    SecretKey::draw()?.write(file)?;
    output::warn(
        "whoever has this file can open what it opens; without it nobody can: keep a copy of it elsewhere",
    );
    output::line(format!("wrote {}", file.display()))
}

/// The sealed keys of a new volume.
pub(super) fn of_new_volume(secret: VolumeSecretArgs) -> Result<SealedKeys> {
    let secret = secret.of_a_new_volume()?;
    Ok(SealedKeys::of_new_volume(&secret)?)
}

pub(super) async fn update(session: &Session, update: VolumeKeys) -> Result<()> {
    let name = update.name.clone();
    change(session, update).await.with_context(|| format!("update volume-keys {name}"))
}

async fn change(session: &Session, update: VolumeKeys) -> Result<()> {
    let path = format!("{}/keys", at(Kind::Volume, &update.name));
    let kept = session.call(Method::GET, &path, None::<&()>).await?;
    let kept = SealedKeys::parse(&kept.to_string())?;
    let secret = update.secret.clone().of_a_volume()?;
    let (keys, from_copy) = match &update.from_copy {
        Some(file) => {
            let copy = read_copy(file)?;
            if copy.volume() != kept.volume() {
                bail!("{} has the keys of another volume", file.display());
            }
            if !copy.is_ahead_of(&kept) {
                bail!(
                    "{} has nothing that the admin server lost: its keys are those of revision {}, and revision {} is kept",
                    file.display(),
                    copy.revision(),
                    kept.revision()
                );
            }
            // What nobody can open must not replace what somebody can.
            copy.open(&copy.kek(&secret)?).with_context(|| format!("open the keys in {}", file.display()))?;
            (copy, true)
        }
        None => {
            let kek = kept.kek(&secret)?;
            let opened = kept.open(&kek).context("open the volume's keys")?;
            let keys = match update.rotate_data_key {
                true => kept.with_new_key(&opened, &kek)?,
                false => kept.with_secret(&opened, &new_secret(&update)?)?,
            };
            (keys, false)
        }
    };
    let body = ChangeVolumeKeys { keys, from_copy };
    let after = session.call(Method::PUT, &path, Some(&body)).await?;
    session.show(Kind::Volume, &after)?;
    if update.rotate_data_key {
        output::note(
            "mounts take the new key when they meet what it sealed, or when they are mounted anew".to_owned(),
        );
    } else if !from_copy {
        output::note(
            "mounts go on; new ones need the new secret. Copies of the metadata and backups that were made before are still \
             opened by the old one"
                .to_owned(),
        );
    }
    Ok(())
}

fn new_secret(update: &VolumeKeys) -> Result<VolumeSecret> {
    VolumeSecretArgs::named(
        update.new_key_file.clone(),
        update.new_passphrase_file.clone(),
        update.new_passphrase,
    )
    .named_new()?
    .ok_or_else(|| anyhow!("no new secret is named"))
}

/// Sealed keys as they lie in a block store.
fn read_copy(file: &Path) -> Result<SealedKeys> {
    let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let line = note::open(&bytes)
        .ok_or_else(|| anyhow!("{} is no note of a block store, or is damaged", file.display()))?;
    SealedKeys::parse(line).with_context(|| format!("the keys in {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_read_as_it_lies_in_the_block_store_and_only_whole() {
        let folder = tempfile::tempdir().unwrap();
        let secret = VolumeSecret::Key(SecretKey::new([3; 32]));
        let keys = SealedKeys::of_new_volume(&secret).unwrap();
        let file = folder.path().join("copy");
        let bytes = note::seal(&keys.to_json().unwrap());
        fs::write(&file, &bytes).unwrap();
        assert_eq!(read_copy(&file).unwrap(), keys);
        fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();
        assert!(read_copy(&file).unwrap_err().to_string().contains("is damaged"));
    }
}
