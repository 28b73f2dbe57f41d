//! A place of backups that was opened with its key.
//!
//! | object | is |
//! |---|---|
//! | `chronofs-backup.json` | which place it is, of which cluster, and what tells the right key; readable |
//! | `chunks/HH/NAME` | a piece of a file, named by the content of the file and its place in it |
//! | `parts/UID/NAME` | an [`Image`] that is being stored, there before its pieces are |
//! | `sets/UID` | a [`Manifest`]: the backup |
//! | `deleted/UID` | a manifest whose pieces are being removed |
//! | `damaged/chunks/HH/NAME` | says of a piece that it was found damaged: the next backup that has it stores it again; readable |
//! | `lease`, `lease-after/HOLDER` | who changes the place, and who took over from a holder whose time is over; readable |
//!
//! All but those that are readable are sealed. A piece is removed only if a deleted manifest or an unfinished part names it, and
//! no manifest does; what nobody names is left alone.

mod store;

use crate::at_once::at_once;
use crate::error::Error;
use crate::key::{Key, Name, Unlock, hex};
use crate::lease::Lease;
use crate::manifest::{FORMAT, Image, Manifest};
use crate::piece::{CHUNKS, PIECE, Piece};
use crate::place::Place;
use chronofs_keys::Kdf;
use chronofs_snapshot::tree::Entry;
use chronofs_snapshot::{Role, SnapshotUid, record};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

const MARKER: &str = "chronofs-backup.json";
const PARTS: &str = "parts";
const SETS: &str = "sets";
const DELETED: &str = "deleted";
const DAMAGED: &str = "damaged";

#[derive(Serialize, Deserialize)]
struct Marker {
    format: u32,
    id: String,
    cluster: String,
    /// How the key follows from a passphrase, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kdf: Option<Kdf>,
    /// What the key makes of id and cluster.
    check: String,
}

/// See the module.
pub struct Depot {
    place: Box<dyn Place>,
    key: Key,
    marker: Marker,
}

/// A backup by its UID, or why its manifest cannot be read.
pub type Listed = (SnapshotUid, Result<Manifest, Error>);

/// What storing an image took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stored {
    /// Bytes of the image.
    pub bytes: u64,
    /// Bytes that had to be stored, as they lie there.
    pub new: u64,
}

/// How closely a backup is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// All pieces are there and have their length.
    Sizes,
    /// Every byte.
    Content,
}

/// What is wrong with a backup.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{role} of {node}: {file}: {why}")]
#[allow(missing_docs, reason = "the message says what they are")]
pub struct Damage {
    pub node: String,
    pub role: Role,
    pub file: String,
    pub why: String,
}

impl Depot {
    /// Opens a place for the backups of `cluster`; one that is empty becomes theirs.
    pub fn begin(place: Box<dyn Place>, unlock: impl Into<Unlock>, cluster: &str) -> Result<Depot, Error> {
        let unlock = unlock.into();
        if place.get(MARKER)?.is_none() {
            if !place.is_empty()? {
                return Err(Error::NotEmpty(place.shown()));
            }
            let id = hex(&Key::draw()?.derive("place", &[]));
            let (key, kdf) = match &unlock {
                Unlock::Key(key) => (key.clone(), None),
                Unlock::Passphrase(passphrase) => {
                    passphrase.check_new()?;
                    let kdf = Kdf::draw()?;
                    (Key::from(kdf.derive(passphrase)?), Some(kdf))
                }
            };
            let check = check(&key, &id, cluster);
            let marker = Marker { format: FORMAT, id, cluster: cluster.to_owned(), kdf, check };
            place.put_new(MARKER, &json(&marker, place.as_ref(), MARKER)?)?;
        }
        let depot = Depot::open(place, unlock)?;
        if depot.marker.cluster != cluster {
            let (found, wanted) = (depot.marker.cluster.clone(), cluster.to_owned());
            return Err(Error::AnotherCluster { place: depot.shown(), found, wanted });
        }
        Ok(depot)
    }

    /// Opens a place that has backups. The wrong key is known before anything else is read or written.
    pub fn open(place: Box<dyn Place>, unlock: impl Into<Unlock>) -> Result<Depot, Error> {
        let text = place.get(MARKER)?.ok_or_else(|| Error::NotADepot(place.shown()))?;
        let bad = |why| Error::Damaged { place: place.shown(), name: MARKER.to_owned(), why };
        let marker: Marker = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if marker.format != FORMAT {
            return Err(bad(format!("its format is {}, this program knows {FORMAT}", marker.format)));
        }
        let (key, wrong) = match (unlock.into(), &marker.kdf) {
            (Unlock::Key(key), None) => (key, Error::WrongKey(place.shown())),
            // Members of a backup are told the key that was derived.
            (Unlock::Key(key), Some(_)) => (key, Error::ByPassphrase(place.shown())),
            (Unlock::Passphrase(passphrase), Some(kdf)) => {
                (kdf.derive(&passphrase)?.into(), Error::WrongPassphrase(place.shown()))
            }
            (Unlock::Passphrase(_), None) => return Err(Error::ByKey(place.shown())),
        };
        if marker.check != check(&key, &marker.id, &marker.cluster) {
            return Err(wrong);
        }
        Ok(Depot { place, key, marker })
    }

    /// Which place it is.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.marker.id
    }

    /// The key that opened it.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// What it is called in messages.
    #[must_use]
    pub fn shown(&self) -> String {
        self.place.shown()
    }

    /// Becomes the one who changes it. Of an `owner` there is only one: what it held before is over.
    pub fn lease(&self, owner: &str, what: &str, now_ns: u64) -> Result<Lease, Error> {
        Lease::take(self.place.as_ref(), owner, what, now_ns)
    }

    /// Goes on being that.
    pub fn renew(&self, lease: &mut Lease, now_ns: u64) -> Result<(), Error> {
        lease.renew(self.place.as_ref(), now_ns)
    }

    /// Lets others change it.
    pub fn give_back(&self, lease: Lease, now_ns: u64) -> Result<(), Error> {
        lease.end(self.place.as_ref(), now_ns)
    }

    /// The UIDs of all backups, each with its manifest, or why that cannot be read.
    pub fn sets(&self) -> Result<Vec<Listed>, Error> {
        let mut sets = Vec::new();
        for object in self.place.list(SETS)?.into_keys() {
            let named = object.rsplit('/').next().unwrap_or_default();
            let uid: SnapshotUid = named.parse().map_err(|_| {
                let why = "it is not the name of a backup, and nothing else may lie there".to_owned();
                Error::Damaged { place: self.shown(), name: object.clone(), why }
            })?;
            let manifest = self.set(&uid);
            sets.push((uid, manifest));
        }
        let number = |manifest: &Result<Manifest, Error>| {
            manifest.as_ref().map_or(u64::MAX, |manifest| manifest.record.intent.attempt.number)
        };
        sets.sort_by_key(|(_, manifest)| std::cmp::Reverse(number(manifest)));
        Ok(sets)
    }

    /// A backup.
    pub fn set(&self, uid: &SnapshotUid) -> Result<Manifest, Error> {
        let object = format!("{SETS}/{uid}");
        let read: Option<Manifest> = self.get_sealed(&object, &self.set_name(uid))?;
        let manifest = read.ok_or_else(|| Error::NoBackup { uid: uid.to_string(), place: self.shown() })?;
        match manifest.format {
            FORMAT => Ok(manifest),
            newer => {
                let why = format!("its format is {newer}, this program knows {FORMAT}");
                Err(Error::Damaged { place: self.shown(), name: object, why })
            }
        }
    }

    /// What is wrong with a backup. By its content: pieces of what is damaged are marked, so that a later backup stores them again.
    pub fn verify(&self, manifest: &Manifest, depth: Depth) -> Result<Vec<Damage>, Error> {
        let there = self.place.list(CHUNKS)?;
        let images = manifest.images.iter();
        let all: Vec<(&Image, &Entry)> =
            images.flat_map(|image| image.files.iter().map(move |file| (image, file))).collect();
        let look = |&(image, file): &(&Image, &Entry), _: &AtomicBool| -> Result<Option<Damage>, Error> {
            let lengths = image.sealed.get(&file.path).map(Vec::as_slice).unwrap_or_default();
            let pieces = self.pieces(file)?;
            let found: Option<Vec<u64>> =
                pieces.iter().map(|piece| there.get(&piece.object()).copied()).collect();
            let checked = match (depth, found) {
                (_, None) => Err("some of its pieces are missing".to_owned()),
                (Depth::Sizes, Some(found)) if found == lengths => Ok(()),
                // Of another length is also what was stored again by another version, which packs it otherwise.
                (_, Some(_)) => match self.fetch(file, &mut std::io::sink()) {
                    Err(Error::Damaged { why, .. }) => Err(why),
                    other => other.map(Ok)?,
                },
            };
            let Err(why) = checked else { return Ok(None) };
            if depth == Depth::Content {
                self.mark_damaged(&pieces);
            }
            let node = manifest.record.intent.node(&image.node);
            let node = node.map_or_else(|| image.node.clone(), |node| node.name.clone());
            Ok(Some(Damage { node, role: image.role, file: file.path.clone(), why }))
        };
        let looked = at_once(&all, |(_, file)| held(file), &|| false, look)?;
        Ok(looked.into_iter().flatten().collect())
    }

    /// Brings the images of a backup back to `to/UID`, each in the folder of its server and role, and its record to
    /// `to/UID.json`: what `restore plan` wants. Every byte is checked on the way; what is not whole is not named `UID`.
    pub fn restore(&self, manifest: &Manifest, to: &Path) -> Result<(PathBuf, PathBuf), Error> {
        let uid = &manifest.record.intent.attempt.uid;
        let (set, file) = (to.join(uid.as_str()), to.join(format!("{uid}.json")));
        for path in [&set, &file] {
            if path.exists() {
                return Err(chronofs_snapshot::Error::Exists(path.clone()).into());
            }
        }
        let making = to.join(format!(".{uid}.{}", std::process::id()));
        let made = self.restore_into(manifest, &making).and_then(|()| {
            let sealed = record::seal(&manifest.record);
            let sealed = sealed.map_err(|error| self.damaged(uid.as_str(), &error.to_string()))?;
            write_new(&file, &sealed)?;
            fs::rename(&making, &set).map_err(Error::io("rename to", &set))?;
            sync(to)
        });
        if let Err(error) = made {
            // Nothing that is not whole stays.
            let _ = fs::remove_dir_all(&making);
            let _ = fs::remove_file(&file);
            return Err(error);
        }
        Ok((set, file))
    }

    fn restore_into(&self, manifest: &Manifest, making: &Path) -> Result<(), Error> {
        for image in &manifest.images {
            let node = manifest.record.intent.node(&image.node);
            let address = node.map_or(image.node.as_str(), |node| &node.address);
            if !is_plain(address) {
                return Err(self.damaged(address, "it is no address"));
            }
            let folder = making.join(address).join(image.role.as_str());
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            made.map_err(Error::io("make folder", &folder))?;
            let bring = |file: &Entry, _: &AtomicBool| -> Result<(), Error> {
                if !is_plain(&file.path) {
                    return Err(self.damaged(&file.path, "it is no name of a file"));
                }
                let path = folder.join(&file.path);
                let mut open = OpenOptions::new();
                let made = open.write(true).create_new(true).mode(0o600).open(&path);
                let mut made = made.map_err(Error::io("write", &path))?;
                self.fetch(file, &mut made)?;
                made.sync_all().map_err(Error::io("sync", &path))
            };
            at_once(&image.files, held, &|| false, bring)?;
            sync(&folder)?;
            folder.parent().map_or(Ok(()), sync)?;
        }
        sync(making)
    }

    /// Deletes a backup, and the pieces that no other one names. Not while a backup is being made. Gives the bytes that are free.
    /// `known` must be there: backups that are known from elsewhere, whatever a listing shows.
    pub fn delete(&self, uid: &SnapshotUid, known: &[SnapshotUid]) -> Result<u64, Error> {
        let manifest = self.set(uid)?;
        let known: Vec<SnapshotUid> = known.iter().filter(|other| *other != uid).cloned().collect();
        // What the others need has to be known before anything goes.
        self.named(&known)?;
        self.put_sealed(&format!("{DELETED}/{uid}"), &self.set_name(uid), &manifest)?;
        self.place.remove(&format!("{SETS}/{uid}"))?;
        self.sweep(&known)
    }

    /// Removes the pieces of deleted and unfinished backups that no backup names. Not while one is being made.
    /// `known` as in [`Depot::delete`].
    pub fn sweep(&self, known: &[SnapshotUid]) -> Result<u64, Error> {
        let mut gone = BTreeSet::new();
        let mut over = Vec::new();
        for object in self.place.list(DELETED)?.into_keys() {
            let Ok(uid) = object.rsplit('/').next().unwrap_or_default().parse::<SnapshotUid>() else {
                continue;
            };
            if let Some(manifest) = self.get_sealed::<Manifest>(&object, &self.set_name(&uid))? {
                self.objects(manifest.files(), &mut gone)?;
                over.push(object);
            }
        }
        for object in self.place.list(PARTS)?.into_keys() {
            let Ok(name) = blake3::Hash::from_hex(object.rsplit('/').next().unwrap_or_default()) else {
                continue;
            };
            if let Some(image) = self.get_sealed::<Image>(&object, name.as_bytes())? {
                self.objects(image.files.iter(), &mut gone)?;
                over.push(object);
            }
        }
        if over.is_empty() {
            return Ok(0);
        }
        for kept in &self.named(known)? {
            gone.remove(kept);
        }
        let there = self.place.list(CHUNKS)?;
        gone.retain(|object| there.contains_key(object));
        let objects: Vec<&String> = gone.iter().collect();
        at_once(&objects, |_| 0, &|| false, |object, _| self.place.remove(object))?;
        self.unmark(&gone)?;
        over.iter().try_for_each(|object| self.place.remove(object))?;
        Ok(gone.iter().filter_map(|object| there.get(object)).sum())
    }

    /// The pieces that backups name. One that cannot be read stops everything that rests on this.
    fn named(&self, known: &[SnapshotUid]) -> Result<BTreeSet<String>, Error> {
        let mut named = BTreeSet::new();
        let mut listed = BTreeSet::new();
        for (uid, manifest) in self.sets()? {
            self.objects(manifest?.files(), &mut named)?;
            listed.insert(uid);
        }
        for uid in known.iter().filter(|uid| !listed.contains(uid)) {
            self.objects(self.set(uid)?.files(), &mut named)?;
        }
        Ok(named)
    }

    fn objects<'a>(
        &self,
        files: impl Iterator<Item = &'a Entry>,
        into: &mut BTreeSet<String>,
    ) -> Result<(), Error> {
        for file in files {
            into.extend(self.pieces(file)?.iter().map(Piece::object));
        }
        Ok(())
    }

    fn pieces(&self, file: &Entry) -> Result<Vec<Piece>, Error> {
        let sum = sum(file).ok_or_else(|| self.damaged(&file.path, "it has no checksum"))?;
        let piece = |n: u64| Piece {
            name: self.key.derive("chunk", &[sum.as_bytes(), &n.to_le_bytes()]),
            length: PIECE.min(file.size - n * PIECE),
        };
        Ok((0..file.size.div_ceil(PIECE)).map(piece).collect())
    }

    /// Reads a file, and checks that it is the one that was stored.
    fn fetch(&self, file: &Entry, to: &mut dyn Write) -> Result<(), Error> {
        let mut hasher = blake3::Hasher::new();
        for piece in self.pieces(file)? {
            let object = piece.object();
            let sealed = self.place.get(&object)?.ok_or_else(|| self.damaged(&object, "it is missing"))?;
            let opened = self.key.open(&piece.name, sealed).map_err(|why| self.damaged(&object, &why))?;
            let bytes =
                piece.unpack(&opened).ok_or_else(|| self.damaged(&object, "it has another length"))?;
            hasher.update(&bytes);
            to.write_all(&bytes).map_err(Error::io("write", Path::new(&file.path)))?;
        }
        match sum(file) == Some(hasher.finalize()) {
            true => Ok(()),
            false => Err(self.damaged(&file.path, "its content is not what its checksum says")),
        }
    }

    fn damaged(&self, name: &str, why: &str) -> Error {
        Error::Damaged { place: self.shown(), name: name.to_owned(), why: why.to_owned() }
    }

    fn part(&self, uid: &SnapshotUid, node: &str, role: Role) -> Name {
        self.key.derive("part", &[uid.as_str().as_bytes(), node.as_bytes(), role.as_str().as_bytes()])
    }

    fn set_name(&self, uid: &SnapshotUid) -> Name {
        self.key.derive("manifest", &[uid.as_str().as_bytes()])
    }

    fn put_sealed(&self, object: &str, name: &Name, value: &impl Serialize) -> Result<(), Error> {
        let plain = json(value, self.place.as_ref(), object)?;
        self.place.put(object, &self.key.seal(name, &plain)?)
    }

    fn get_sealed<T: DeserializeOwned>(&self, object: &str, name: &Name) -> Result<Option<T>, Error> {
        let Some(sealed) = self.place.get(object)? else { return Ok(None) };
        let plain = self.key.open(name, sealed).map_err(|why| self.damaged(object, &why))?;
        serde_json::from_slice(&plain).map(Some).map_err(|error| self.damaged(object, &error.to_string()))
    }
}

fn check(key: &Key, id: &str, cluster: &str) -> String {
    hex(&key.derive("marker", &[id.as_bytes(), cluster.as_bytes()]))
}

fn json(value: &impl Serialize, place: &dyn Place, name: &str) -> Result<Vec<u8>, Error> {
    let bad = |why: String| Error::Damaged { place: place.shown(), name: name.to_owned(), why };
    let mut text = serde_json::to_vec(value).map_err(|error| bad(error.to_string()))?;
    text.push(b'\n');
    Ok(text)
}

/// A name that stays in its folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

/// What of a file is in memory while it is stored or read: a piece as it lies there, and as it goes over the wire or in clear.
fn held(file: &Entry) -> u64 {
    2 * file.size.min(PIECE)
}

fn sum(file: &Entry) -> Option<blake3::Hash> {
    file.blake3.as_deref().and_then(|text| blake3::Hash::from_hex(text).ok())
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut open = OpenOptions::new();
    let written = open.write(true).create_new(true).mode(0o600).open(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(Error::io("write", path))
}

fn sync(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|opened| opened.sync_all()).map_err(Error::io("sync", folder))
}
