//! How images come into a place of backups: what is there is used again, as far as it is known to be whole, and all else is
//! stored.
//!
//! That a piece is there says nothing: a disk that was full, or a copy of the place that was cut off, leaves short ones, and
//! every later backup would rest on them. So a piece counts only with the length that it has to have. That length is known if
//! packing did not make the piece smaller, or from backups that have it; else the piece is packed anew and compared. Whoever
//! stores an image says the lengths, and nobody takes them from what lies there.

use super::{DAMAGED, Damage, Depot, Depth, PARTS, SETS, Stored, held, sum};
use crate::at_once::{at_once, lock};
use crate::error::Error;
use crate::key::{OVERHEAD, hex};
use crate::manifest::{FORMAT, Image, Manifest};
use crate::piece::{CHUNKS, Piece};
use chronofs_snapshot::label::{LABEL, Label};
use chronofs_snapshot::protocol::{Attempt, Record};
use chronofs_snapshot::tree::{Entry, Kind, list_tree};
use chronofs_snapshot::{Role, SnapshotUid};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Checksum and size of a file: files that have the same ones have the same pieces.
type Content = (String, u64);

/// What a place has of the pieces of an image.
struct There {
    /// How long pieces are as they lie there; none of those that were found damaged.
    found: BTreeMap<String, u64>,
    /// Marks of pieces that were found damaged.
    marks: BTreeSet<String>,
    /// How long the pieces of a content are, where the backups that have it agree.
    said: BTreeMap<Content, Vec<u64>>,
    /// One piece is packed and sealed at a time: that takes a core, and whoever stores has a server to run.
    packing: Mutex<()>,
}

impl There {
    /// The length of a piece that is there and has the length that it has to have, as far as that is known without its bytes.
    fn whole(&self, file: &Entry, n: usize, piece: &Piece) -> Option<u64> {
        let found = *self.found.get(&piece.object())?;
        let said = self.said.get(&content(file)).and_then(|lengths| lengths.get(n));
        (found == piece.sealed_raw() || said == Some(&found)).then_some(found)
    }
}

impl Depot {
    /// Stores the image of a role, as far as it is not there yet, several files at once. `stop` says that nobody wants it any more.
    pub fn store(
        &self,
        attempt: &Attempt,
        node: &str,
        role: Role,
        image: &Path,
        stop: &dyn Fn() -> bool,
    ) -> Result<Stored, Error> {
        let files = files_of(image)?;
        let there = self.there(&files)?;
        let bytes = files.iter().map(|file| file.size).sum();
        let mut part = Image {
            number: attempt.number,
            node: node.to_owned(),
            role,
            files: files.clone(),
            sealed: BTreeMap::new(),
            stored: 0,
        };
        // Before its pieces: whatever becomes of this attempt, they are known by it.
        let name = self.part(&attempt.uid, node, role);
        let object = format!("{PARTS}/{}/{}", attempt.uid, hex(&name));
        self.put_sealed(&object, &name, &part)?;
        // Two files may have the same content: then they have the same pieces, and one of them is stored.
        let mut first: BTreeMap<Content, &Entry> = BTreeMap::new();
        for file in &files {
            first.entry(content(file)).or_insert(file);
        }
        let wanted: Vec<&Entry> = first.into_values().collect();
        let stored = at_once(
            &wanted,
            |file| held(file),
            stop,
            |file, stopped| self.store_file(&image.join(&file.path), file, &there, stopped),
        )?;
        let mut lengths: BTreeMap<Content, Vec<u64>> = BTreeMap::new();
        for (file, (of_pieces, new)) in wanted.iter().zip(stored) {
            part.stored += new;
            lengths.insert(content(file), of_pieces);
        }
        for file in &files {
            part.sealed.extend(lengths.get(&content(file)).map(|of| (file.path.clone(), of.clone())));
        }
        self.put_sealed(&object, &name, &part)?;
        Ok(Stored { bytes, new: part.stored })
    }

    /// What is known of the pieces of these files before any of their bytes is read.
    fn there(&self, files: &[Entry]) -> Result<There, Error> {
        let mut found = self.place.list(CHUNKS)?;
        let marks: BTreeSet<String> = self.place.list(DAMAGED)?.into_keys().collect();
        found.retain(|object, _| !marks.contains(&mark(object)));
        let mut there = There { found, marks, said: BTreeMap::new(), packing: Mutex::default() };
        let mut unsure = BTreeSet::new();
        for file in files {
            let pieces = self.pieces(file)?;
            let is_unsure = |(n, piece): (usize, &Piece)| {
                there.found.contains_key(&piece.object()) && there.whole(file, n, piece).is_none()
            };
            if pieces.iter().enumerate().any(is_unsure) {
                unsure.insert(content(file));
            }
        }
        if !unsure.is_empty() {
            there.said = self.said(&unsure)?;
        }
        Ok(there)
    }

    /// How long the pieces of these contents are by the backups that have them. All are asked: one of them may have taken a
    /// piece that was cut off for a whole one, and where two differ nothing is known.
    fn said(&self, wanted: &BTreeSet<Content>) -> Result<BTreeMap<Content, Vec<u64>>, Error> {
        let mut said: BTreeMap<Content, BTreeSet<Vec<u64>>> = BTreeMap::new();
        for object in self.place.list(SETS)?.into_keys() {
            let Ok(uid) = object.rsplit('/').next().unwrap_or_default().parse::<SnapshotUid>() else {
                continue;
            };
            let manifest = match self.set(&uid) {
                // One that cannot be read says nothing; then more is looked at than need be.
                Err(Error::Damaged { .. } | Error::NoBackup { .. }) => continue,
                read => read?,
            };
            for image in &manifest.images {
                for file in image.files.iter().filter(|file| wanted.contains(&content(file))) {
                    if let Some(lengths) = image.sealed.get(&file.path) {
                        said.entry(content(file)).or_default().insert(lengths.clone());
                    }
                }
            }
        }
        said.retain(|_, lengths| lengths.len() == 1);
        let agreed = said.into_iter().filter_map(|(of, mut lengths)| Some((of, lengths.pop_first()?)));
        Ok(agreed.collect())
    }

    /// Gives how long the pieces of a file are as they lie there, and how many bytes had to be stored. The content of the file
    /// is known to be what its checksum says before any of it is stored under a name that says so.
    fn store_file(
        &self,
        path: &Path,
        file: &Entry,
        there: &There,
        stopped: &AtomicBool,
    ) -> Result<(Vec<u64>, u64), Error> {
        let pieces = self.pieces(file)?;
        let whole: Vec<Option<u64>> =
            pieces.iter().enumerate().map(|(n, piece)| there.whole(file, n, piece)).collect();
        if let Some(lengths) = whole.iter().copied().collect::<Option<Vec<u64>>>() {
            return Ok((lengths, 0));
        }
        let changed = || Error::Changed { file: path.display().to_string() };
        let expected = sum(file).ok_or_else(changed)?;
        let open = || File::open(path).map_err(Error::io("read", path));
        if pieces.len() > 1 {
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(open()?).map_err(Error::io("read", path))?;
            if hasher.finalize() != expected {
                return Err(changed());
            }
        }
        let mut opened = open()?;
        let mut hasher = blake3::Hasher::new();
        let mut lengths = Vec::with_capacity(pieces.len());
        let mut put = Vec::new();
        let mut stored = 0;
        for (piece, whole) in pieces.iter().zip(whole) {
            if stopped.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            let mut bytes = Vec::with_capacity(piece.length as usize);
            let read = (&mut opened).take(piece.length).read_to_end(&mut bytes);
            read.map_err(Error::io("read", path))?;
            hasher.update(&bytes);
            if bytes.len() as u64 != piece.length || (pieces.len() == 1 && hasher.finalize() != expected) {
                return Err(changed());
            }
            let (length, new) = match whole {
                Some(length) => (length, false),
                None => self.store_piece(piece, bytes, there)?,
            };
            lengths.push(length);
            if new {
                stored += length;
                // What lay there before is named by other backups.
                let object = piece.object();
                if !there.found.contains_key(&object) && !there.marks.contains(&mark(&object)) {
                    put.push(object);
                }
            }
        }
        if hasher.finalize() != expected {
            put.iter().try_for_each(|object| self.place.remove(object))?;
            return Err(changed());
        }
        Ok((lengths, stored))
    }

    /// Stores a piece, in the place of one that is there and is not as long as it has to be. Gives its length as it lies there,
    /// and whether it had to be stored.
    fn store_piece(&self, piece: &Piece, bytes: Vec<u8>, there: &There) -> Result<(u64, bool), Error> {
        let object = piece.object();
        let (sealed, length) = {
            let _alone = lock(&there.packing);
            let packed = Piece::pack(&bytes);
            // While it is put nobody needs it.
            drop(bytes);
            let length = (OVERHEAD + packed.len()) as u64;
            if there.found.get(&object) == Some(&length) {
                return Ok((length, false));
            }
            (self.key.seal(&piece.name, &packed)?, length)
        };
        self.place.put(&object, &sealed)?;
        let mark = mark(&object);
        if there.marks.contains(&mark) {
            self.place.remove(&mark)?;
        }
        Ok((length, true))
    }

    /// The set is complete: writes its manifest, if everything is there.
    pub fn finish(&self, record: &Record) -> Result<Manifest, Error> {
        let attempt = &record.intent.attempt;
        let mut images = Vec::new();
        let mut parts = Vec::new();
        for (node, role) in
            record.intent.nodes.iter().flat_map(|node| node.roles.iter().map(move |r| (node, *r)))
        {
            let name = self.part(&attempt.uid, &node.id, role);
            let object = format!("{PARTS}/{}/{}", attempt.uid, hex(&name));
            let place = self.shown();
            let lacks = || Error::NotStored { role: role.to_string(), node: node.name.clone(), place };
            let image: Image = self.get_sealed(&object, &name)?.ok_or_else(lacks)?;
            if image.number != attempt.number || image.node != node.id || image.role != role {
                let why = format!("it is of try {} of {}", image.number, image.node);
                return Err(self.damaged(&object, &why));
            }
            if !image.files.iter().all(|file| image.sealed.contains_key(&file.path)) {
                let why = "it does not say how long its pieces are: it was not stored to its end, or by an older chronofs; \
                    all servers have to run the same version";
                return Err(self.damaged(&object, why));
            }
            images.push(image);
            parts.push(object);
        }
        let manifest = Manifest { format: FORMAT, record: record.clone(), images };
        if let Some(Damage { role, node, .. }) = self.verify(&manifest, Depth::Sizes)?.into_iter().next() {
            return Err(Error::NotStored { role: role.to_string(), node, place: self.shown() });
        }
        self.put_sealed(&format!("{SETS}/{}", attempt.uid), &self.set_name(&attempt.uid), &manifest)?;
        parts.iter().try_for_each(|part| self.place.remove(part))?;
        Ok(manifest)
    }

    /// Pieces of a damaged file: the next backup that has it does not take them for whole. Which of them it is need not be known.
    pub(super) fn mark_damaged(&self, pieces: &[Piece]) {
        for piece in pieces {
            // A place that may only be read is looked at, too; then nobody is told but who asked.
            let _ = self.place.put(&mark(&piece.object()), b"damaged\n");
        }
    }

    /// Pieces that are gone are not damaged.
    pub(super) fn unmark(&self, gone: &BTreeSet<String>) -> Result<(), Error> {
        let marks: BTreeSet<String> = self.place.list(DAMAGED)?.into_keys().collect();
        let mut over = gone.iter().map(|object| mark(object)).filter(|mark| marks.contains(mark));
        over.try_for_each(|mark| self.place.remove(&mark))
    }
}

fn content(file: &Entry) -> Content {
    (file.blake3.clone().unwrap_or_default(), file.size)
}

/// What says of a piece that it was found damaged.
fn mark(object: &str) -> String {
    format!("{DAMAGED}/{object}")
}

/// The files of an image with the checksums of its label; of the label itself they are taken now.
fn files_of(image: &Path) -> Result<Vec<Entry>, Error> {
    let label = Label::read(image)?
        .ok_or_else(|| Error::Changed { file: image.join(LABEL).display().to_string() })?;
    let known: BTreeMap<&str, &Entry> = label.files.iter().map(|file| (file.path.as_str(), file)).collect();
    let mut files = list_tree(image)?;
    for file in &mut files {
        let path = image.join(&file.path);
        let changed = || Error::Changed { file: path.display().to_string() };
        if file.kind != Kind::File {
            return Err(changed());
        }
        match known.get(file.path.as_str()) {
            Some(said) if said.size == file.size => file.blake3.clone_from(&said.blake3),
            Some(_) => return Err(changed()),
            None => {
                let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
                file.blake3 = Some(blake3::hash(&bytes).to_hex().to_string());
            }
        }
    }
    Ok(files)
}
