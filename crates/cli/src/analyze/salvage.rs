//! `analyze salvage`: files that the metadata lost, put together from what the server finds in the block store.

use super::Volume;
use super::blocks::said;
use super::follow::{Meter, follow};
use crate::output;
use crate::secrets::VolumeSecretArgs;
use anyhow::{Context, Result, anyhow, bail};
use chronofs_blocks::seal;
use chronofs_core::slice::{Codec, Seal};
use chronofs_core::{ObjectId, SessionId, SliceId};
use chronofs_keys::{SealedKeys, VolumeKeys};
use chronofs_wire::analyze::{FoundFile, Look, News, Piece, Progress, Salvaged, Subject, Sum};
use chronofs_wire::http::{AdminClient, Method};
use clap::{ArgGroup, Args};
use nix::libc::O_NOFOLLOW;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// So many bytes are made durable at once: the server gives a look up that nobody follows for a minute.
const SYNC_AFTER: u64 = 16 << 20;

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("what").args(["list", "to"]).required(true))]
pub(super) struct Salvage {
    #[command(flatten)]
    pub(super) volume: Volume,
    /// Only say which files there are
    #[arg(long)]
    list: bool,
    /// Put the files into this folder, which is made, or is empty
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    #[command(flatten)]
    secret: VolumeSecretArgs,
    /// Print JSON: a line for each file and for what cannot be read, and one with the sums
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &AdminClient, asked: Salvage) -> Result<ExitCode> {
    let keys = if asked.list { None } else { keys(client, &asked).await? };
    if let Some(dir) = &asked.to {
        make_empty(dir)?;
    }
    let salvaging = Salvaging { asked: &asked, keys, meter: Meter::new(), open: None, unreadable: 0 };
    let salvaging = RefCell::new(salvaging);
    let subject = Subject::Volume(asked.volume.volume.clone());
    let look = || {
        // A server that was started anew tells all again.
        let mut salvaging = salvaging.borrow_mut();
        (salvaging.open, salvaging.unreadable) = (None, 0);
        Look::Salvage { list_only: asked.list }
    };
    let ended = follow(client, &subject, look, |news| salvaging.borrow_mut().hear(news)).await;
    let mut salvaging = salvaging.into_inner();
    salvaging.meter.clear();
    let Sum::Salvage(sum) = ended? else {
        bail!("the server looked at something else; are the versions the same?")
    };
    salvaging.close()?;
    let unreadable = sum.unreadable + salvaging.unreadable;
    tell(&asked, &sum, unreadable)?;
    Ok(if unreadable == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What opens slices, of an encrypted volume.
async fn keys(client: &AdminClient, asked: &Salvage) -> Result<Option<VolumeKeys>> {
    let path = format!("/v1/volumes/{}", asked.volume.volume);
    let shown: Value = client.call(Method::GET, &path, None::<&()>).await?;
    if shown["encryption"].is_null() {
        return Ok(None);
    }
    let kept: Value = client.call(Method::GET, &format!("{path}/keys"), None::<&()>).await?;
    let kept = SealedKeys::parse(&kept.to_string())?;
    let kek = kept.kek(&asked.secret.clone().of_a_volume()?)?;
    Ok(Some(kept.open(&kek).context("open the volume's keys")?))
}

/// Nothing that is there is mixed with what is found.
fn make_empty(dir: &Path) -> Result<()> {
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => bail!("{} is not empty: name another folder, which is made", dir.display()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // What is above it may be missing, too, such as lost+found of a volume that never needed one.
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.with_context(|| format!("cannot make {}", dir.display()))
        }
        Err(error) => Err(error).with_context(|| format!("cannot list {}", dir.display())),
    }
}

struct Salvaging<'a> {
    asked: &'a Salvage,
    keys: Option<VolumeKeys>,
    meter: Meter,
    open: Option<Open>,
    /// Slices that do not open here.
    unreadable: u64,
}

/// The file that is being put together.
struct Open {
    path: PathBuf,
    file: File,
    /// The slice that is being told, with what has come of it.
    piece: Option<(Box<Piece>, Vec<u8>)>,
    /// Bytes that may not be durable yet.
    unsynced: u64,
}

impl Salvaging<'_> {
    fn hear(&mut self, news: News) -> Result<()> {
        match news {
            News::File(found) => {
                self.close()?;
                let name = format!("inode-{}-{}", found.ino, found.incarnation);
                let path = self.asked.to.as_ref().map(|dir| dir.join(name));
                self.meter.clear();
                self.say(&found, path.as_deref())?;
                if let Some(path) = path {
                    // Told again by a server that was started anew, it is written again.
                    let mut open = OpenOptions::new();
                    open.write(true).create(true).truncate(true).mode(0o600).custom_flags(O_NOFOLLOW);
                    let file = open.open(&path).with_context(|| format!("cannot make {}", path.display()))?;
                    self.open = Some(Open { path, file, piece: None, unsynced: 0 });
                }
                Ok(())
            }
            News::Piece(piece) => {
                let open = self.open.as_mut().ok_or_else(out_of_order)?;
                let stored = Vec::with_capacity(piece.stored_len.min(seal::FULL_LEN_MAX) as usize);
                open.piece = Some((piece, stored));
                self.put_whole()
            }
            News::Bytes(bytes) => {
                let open = self.open.as_mut().and_then(|open| open.piece.as_mut());
                open.ok_or_else(out_of_order)?.1.extend_from_slice(&bytes.0);
                self.put_whole()
            }
            News::Unreadable { object, reason } => {
                self.meter.clear();
                match self.asked.json {
                    true => output::line(json!({ "unreadable": { "object": object, "reason": reason } })),
                    false => output::line(format!("cannot be read: {object}: {reason}")),
                }
            }
            News::At(progress) => {
                self.meter.tell(&format!("objects listed: {}; {}", progress.listed, said(&progress)));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Writes the slice that is being told, if all of it has come.
    fn put_whole(&mut self) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let whole = |(piece, stored): &mut (Box<Piece>, Vec<u8>)| stored.len() >= piece.stored_len as usize;
        let Some((piece, stored)) = open.piece.take_if(whole) else { return Ok(()) };
        match opened(&piece, stored, self.keys.as_ref()) {
            Ok(bytes) => {
                open.unsynced += bytes.len() as u64;
                let synced = if open.unsynced >= SYNC_AFTER { Some(open.file.sync_data()) } else { None };
                if synced.is_some() {
                    open.unsynced = 0;
                }
                let put = synced.unwrap_or(Ok(())).and_then(|()| open.file.write_all_at(&bytes, piece.at));
                put.with_context(|| format!("cannot write {}", open.path.display()))
            }
            Err(reason) => {
                self.unreadable += 1;
                let object = object_of(&piece).to_string();
                self.hear(News::Unreadable { object, reason: format!("inode {}: {reason:#}", piece.ino) })
            }
        }
    }

    /// The file that was put together is durable.
    fn close(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        open.file.sync_all().with_context(|| format!("cannot write {}", open.path.display()))
    }

    fn say(&self, found: &FoundFile, to: Option<&Path>) -> Result<()> {
        if self.asked.json {
            let mut file = serde_json::to_value(found)?;
            file["to"] = json!(to.map(|to| to.display().to_string()));
            return output::line(json!({ "file": file }));
        }
        let FoundFile { ino, incarnation, path, slices, bytes, len } = found;
        let whose = match path {
            Some(path) => format!("; it is {path}, which may have these bytes or others there now"),
            None => String::new(),
        };
        let to = to.map_or_else(String::new, |to| format!(" -> {}", to.display()));
        output::line(format!(
            "inode {ino} of incarnation {incarnation}: slices: {slices} with {} as stored, {len} bytes long{to}{whose}",
            output::show_size(*bytes)
        ))
    }
}

fn out_of_order() -> anyhow::Error {
    anyhow!("the server told bytes of no file; are the versions the same?")
}

fn object_of(piece: &Piece) -> ObjectId {
    ObjectId { incarnation: piece.incarnation, session: SessionId(piece.session), n: piece.n }
}

/// The bytes of the file that a slice is.
fn opened(piece: &Piece, stored: Vec<u8>, keys: Option<&VolumeKeys>) -> Result<Vec<u8>> {
    let codec = Codec::ALL.get(usize::from(piece.codec)).copied();
    let seal = Seal {
        id: SliceId { object: object_of(piece), index: piece.index },
        codec: codec.ok_or_else(|| anyhow!("it has a codec that this program does not know"))?,
        stored_len: piece.stored_len,
        full_len: piece.full_len,
        crc32c: piece.crc32c,
    };
    let bytes = seal::open_with(&seal, stored.into(), keys)?;
    let len = piece.len as usize;
    if len > bytes.len() {
        bail!("{len} bytes of it are a file's, and it has {}", bytes.len());
    }
    Ok(bytes[..len].to_vec())
}

fn tell(asked: &Salvage, sum: &Salvaged, unreadable: u64) -> Result<()> {
    if asked.json {
        return output::line(
            json!({ "sum": { "unreadable": unreadable, "objects": sum.objects, "files": sum.files,
            "slices": sum.slices, "bytes": sum.bytes } }),
        );
    }
    let Salvaged { objects, files, slices, bytes, .. } = sum;
    let progress = Progress { slices: *slices, bytes: *bytes, ..Progress::default() };
    output::line(format!(
        "objects that nothing explains: {objects}; files: {files}; {}; cannot be read: {unreadable}",
        said(&progress)
    ))?;
    if *files > 0 {
        output::note(
            "what was overwritten, truncated or deleted before the loss may be in them, and what was small and not packed yet is not: \
             look at each before it is used",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_core::volume::Compression;

    fn piece(bytes: &[u8]) -> (Piece, Vec<u8>) {
        let object = ObjectId { incarnation: 1, session: SessionId(2), n: 3 };
        let (seal, stored) =
            seal::seal(SliceId { object, index: 4 }, Compression::Lz4, &bytes.to_vec().into());
        let piece = Piece {
            ino: 5,
            at: 6,
            len: bytes.len() as u32,
            incarnation: 1,
            session: 2,
            n: 3,
            index: 4,
            codec: seal.codec.number(),
            stored_len: seal.stored_len,
            full_len: seal.full_len,
            crc32c: seal.crc32c,
        };
        (piece, stored.to_vec())
    }

    #[test]
    fn a_slice_opens_to_the_bytes_of_its_file_and_nothing_else_does() {
        let bytes = b"all work and no play ".repeat(50);
        let (told, stored) = piece(&bytes);
        assert_eq!(opened(&told, stored.clone(), None).unwrap(), bytes);
        let part = Piece { len: 10, ..told.clone() };
        assert_eq!(opened(&part, stored.clone(), None).unwrap(), bytes[..10]);
        for wrong in [
            Piece { codec: 99, ..told.clone() },
            Piece { len: told.len + 1, ..told.clone() },
            Piece { crc32c: !told.crc32c, ..told.clone() },
            Piece { full_len: 3, ..told.clone() },
        ] {
            opened(&wrong, stored.clone(), None).unwrap_err();
        }
    }

    #[test]
    fn nothing_that_is_there_is_mixed_with_what_is_found() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("found");
        make_empty(&dir).unwrap();
        make_empty(&dir).unwrap();
        fs::write(dir.join("file"), "").unwrap();
        assert!(make_empty(&dir).unwrap_err().to_string().contains("is not empty"));
        assert!(make_empty(&dir.join("file")).is_err() && make_empty(&dir.join("file/b")).is_err());
        make_empty(&dir.join("lost+found/salvaged")).unwrap();
        assert!(dir.join("lost+found/salvaged").is_dir());
    }
}
