//! The format of an object: sealed slices, label, index, footer. Version 1; all numbers little-endian.
//!
//! ```text
//! slices              the stored bytes of each, one after the other
//! label, 64 bytes     magic "CFSOBJ01" | format u16 | label length u16 | incarnation u16 | 0 u16
//!                     | volume (16 bytes) | session u64 | n u64 | 0 (12 bytes) | CRC32C of the 60 bytes before
//! index               64 bytes for each slice: inode u64 | session u64 | n u64 | at u64 | slice index u32
//!                     | block u32 | offset u32 | len u32 | stored length u32 | full length u32 | CRC32C u32
//!                     | incarnation u16 | codec u8 | 0
//! footer, 32 bytes    index at u64 | slices u32 | CRC32C of the index u32 | 0 u32
//!                     | CRC32C of the 20 bytes before u32 | magic "CFSOBJND"
//! ```
//!
//! Slices come first, so that a full block that is alone in its object begins where the object does: stores cut objects
//! into stripes, and a range that lies in two of them takes twice as long.
//!
//! Reading a file needs none of this: rows say where a slice lies. Label and index are for a salvage that has
//! only the bucket: it reads the tail, then label and index, and learns of each slice which bytes of which file it was
//! and, from session, n and slice index, in what order the slices of a session were written. These are the slice's id:
//! a slice that was packed was born elsewhere.

use bytes::{BufMut, Bytes, BytesMut};
use chronofs_core::slice::{Codec, Seal};
use chronofs_core::{Ino, ObjectId, SessionId, SliceId};
use thiserror::Error;
use uuid::Uuid;

const MAGIC: &[u8; 8] = b"CFSOBJ01";
const END_MAGIC: &[u8; 8] = b"CFSOBJND";
const FORMAT: u16 = 1;

/// Bytes of the label, which ends where the index begins.
pub const LABEL_LEN: usize = 64;
/// Bytes of an entry of the index.
pub const ENTRY_LEN: usize = 64;
/// Bytes of the footer.
pub const FOOTER_LEN: usize = 32;
/// The most sealed bytes that are put together into one object.
pub const OBJECT_BYTES_MAX: usize = 16 << 20;
/// No object is longer than this, with its index and all else: whoever reads one whole takes no more into memory.
pub const OBJECT_LEN_MAX: u64 = 4 * OBJECT_BYTES_MAX as u64;

/// A slice as the index of its object describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The file it was written to.
    pub ino: Ino,
    /// Where in the object its stored bytes begin.
    pub at: u64,
    /// Number of the block.
    pub block: u32,
    /// First byte within the block.
    pub offset: u32,
    /// Bytes of the block that it showed when it was written.
    pub len: u32,
    /// What it takes to open it.
    pub seal: Seal,
}

/// What an object says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Label {
    /// Its volume.
    pub volume: Uuid,
    /// Its id.
    pub id: ObjectId,
}

/// What the end of an object says about its index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Footer {
    /// Where in the object the index begins.
    pub index_at: u64,
    /// Its entries.
    pub count: u32,
    crc32c: u32,
}

impl Footer {
    /// Where in the object its label begins.
    pub fn label_at(&self) -> u64 {
        self.index_at - LABEL_LEN as u64
    }

    /// Bytes of the index.
    pub fn index_len(&self) -> usize {
        self.count as usize * ENTRY_LEN
    }
}

/// Why bytes are no whole object of this format.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum FormatError {
    /// Too few bytes.
    #[error("its {part} needs {expected} bytes and has {found}: the object was cut")]
    Short {
        /// Which part.
        part: &'static str,
        /// Bytes it needs.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The bytes are something else.
    #[error("its {0} does not begin or end with the mark of a chronofs object")]
    Magic(&'static str),
    /// Written by a later chronofs.
    #[error("it has format {0} where this program reads up to {FORMAT}: use a newer chronofs")]
    Format(u16),
    /// Some bytes changed.
    #[error("its {part} has checksum {found:08x} where {expected:08x} is written: it is damaged")]
    Checksum {
        /// Which part.
        part: &'static str,
        /// As written.
        expected: u32,
        /// As found.
        found: u32,
    },
    /// The checksums fit and the numbers do not.
    #[error("entry {entry} of its index says what cannot be: {reason}")]
    Entry {
        /// Which entry.
        entry: u32,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Puts sealed slices together into an object.
#[derive(Debug)]
pub struct ObjectWriter {
    label: Label,
    bytes: BytesMut,
    entries: Vec<Entry>,
}

impl ObjectWriter {
    /// An empty object `id` of `volume`, with room for `capacity` stored bytes.
    pub fn new(volume: Uuid, id: ObjectId, capacity: usize) -> Self {
        let bytes = BytesMut::with_capacity(capacity + LABEL_LEN + ENTRY_LEN + FOOTER_LEN);
        ObjectWriter { label: Label { volume, id }, bytes, entries: Vec::new() }
    }

    /// An object whose slices lie in `slices` already, each where its entry says: one that is put together again. Between
    /// them may lie what nobody knows any more.
    pub fn around(volume: Uuid, id: ObjectId, slices: Bytes, entries: Vec<Entry>) -> Self {
        let end = |entry: &Entry| entry.at.saturating_add(u64::from(entry.seal.stored_len));
        assert!(entries.iter().all(|entry| end(entry) <= slices.len() as u64), "a slice lies in its object");
        ObjectWriter { label: Label { volume, id }, bytes: BytesMut::from(slices), entries }
    }

    /// Adds a slice; gives where in the object it lies (as `entry.at` will say, whatever it says now).
    pub fn push(&mut self, entry: Entry, stored: &[u8]) -> u64 {
        assert_eq!(entry.seal.stored_len as usize, stored.len(), "a seal fits the bytes it seals");
        let at = self.bytes.len() as u64;
        self.bytes.put_slice(stored);
        self.entries.push(Entry { at, ..entry });
        at
    }

    /// Slices so far.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// The whole object.
    pub fn finish(mut self) -> Bytes {
        self.bytes.reserve(LABEL_LEN + self.entries.len() * ENTRY_LEN + FOOTER_LEN);
        self.bytes.put_slice(&encode_label(&self.label));
        let index_at = self.bytes.len();
        for entry in &self.entries {
            put_entry(&mut self.bytes, entry);
        }
        let index_crc = crc32c::crc32c(&self.bytes[index_at..]);
        let footer_at = self.bytes.len();
        self.bytes.put_u64_le(index_at as u64);
        self.bytes.put_u32_le(self.entries.len() as u32);
        self.bytes.put_u32_le(index_crc);
        self.bytes.put_u32_le(0);
        let footer_crc = crc32c::crc32c(&self.bytes[footer_at..]);
        self.bytes.put_u32_le(footer_crc);
        self.bytes.put_slice(END_MAGIC);
        self.bytes.freeze()
    }
}

fn encode_label(label: &Label) -> [u8; LABEL_LEN] {
    let mut bytes = BytesMut::with_capacity(LABEL_LEN);
    bytes.put_slice(MAGIC);
    bytes.put_u16_le(FORMAT);
    bytes.put_u16_le(LABEL_LEN as u16);
    bytes.put_u16_le(label.id.incarnation);
    bytes.put_u16_le(0);
    bytes.put_slice(label.volume.as_bytes());
    bytes.put_u64_le(label.id.session.0);
    bytes.put_u64_le(label.id.n);
    bytes.put_bytes(0, 12);
    bytes.put_u32_le(crc32c::crc32c(&bytes));
    let mut out = [0; LABEL_LEN];
    out.copy_from_slice(&bytes);
    out
}

fn put_entry(bytes: &mut BytesMut, entry: &Entry) {
    let object = entry.seal.id.object;
    bytes.put_u64_le(entry.ino.0);
    bytes.put_u64_le(object.session.0);
    bytes.put_u64_le(object.n);
    bytes.put_u64_le(entry.at);
    bytes.put_u32_le(entry.seal.id.index);
    bytes.put_u32_le(entry.block);
    bytes.put_u32_le(entry.offset);
    bytes.put_u32_le(entry.len);
    bytes.put_u32_le(entry.seal.stored_len);
    bytes.put_u32_le(entry.seal.full_len);
    bytes.put_u32_le(entry.seal.crc32c);
    bytes.put_u16_le(object.incarnation);
    bytes.put_u8(entry.seal.codec.number());
    bytes.put_u8(0);
}

/// Takes numbers off the front of a part whose length was checked.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (front, rest) = self.0.split_first_chunk::<N>().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *front
    }
    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// Reads the label from its bytes ([`Footer::label_at`], for [`LABEL_LEN`]).
pub fn read_label(bytes: &[u8]) -> Result<Label, FormatError> {
    let part = "label";
    let Ok(bytes) = <&[u8; LABEL_LEN]>::try_from(bytes) else {
        return Err(FormatError::Short { part, expected: LABEL_LEN as u64, found: bytes.len() as u64 });
    };
    let mut fields = Fields(bytes);
    if &fields.take::<8>() != MAGIC {
        return Err(FormatError::Magic(part));
    }
    let format = fields.u16();
    if format != FORMAT {
        return Err(FormatError::Format(format));
    }
    check(part, &bytes[..LABEL_LEN - 4], Fields(&bytes[LABEL_LEN - 4..]).u32())?;
    let _label_len = fields.u16();
    let incarnation = fields.u16();
    let _reserved = fields.u16();
    let volume = Uuid::from_bytes(fields.take());
    let session = SessionId(fields.u64());
    Ok(Label { volume, id: ObjectId { incarnation, session, n: fields.u64() } })
}

/// Reads the footer from the last bytes of an object of `object_len` bytes.
pub fn read_footer(tail: &[u8], object_len: u64) -> Result<Footer, FormatError> {
    let part = "footer";
    let Some((_, bytes)) = tail.split_last_chunk::<FOOTER_LEN>() else {
        return Err(FormatError::Short { part, expected: FOOTER_LEN as u64, found: tail.len() as u64 });
    };
    if &bytes[FOOTER_LEN - 8..] != END_MAGIC {
        return Err(FormatError::Magic(part));
    }
    check(part, &bytes[..20], Fields(&bytes[20..]).u32())?;
    let mut fields = Fields(bytes);
    let footer = Footer { index_at: fields.u64(), count: fields.u32(), crc32c: fields.u32() };
    let expected = footer
        .index_at
        .saturating_add(u64::from(footer.count) * ENTRY_LEN as u64)
        .saturating_add(FOOTER_LEN as u64);
    if expected != object_len || footer.index_at < LABEL_LEN as u64 {
        return Err(FormatError::Short { part: "index", expected, found: object_len });
    }
    Ok(footer)
}

/// Reads the index from its bytes (`footer.index_at`, for [`Footer::index_len`]).
pub fn read_index(footer: &Footer, bytes: &[u8]) -> Result<Vec<Entry>, FormatError> {
    let part = "index";
    if bytes.len() != footer.index_len() {
        let expected = footer.index_len() as u64;
        return Err(FormatError::Short { part, expected, found: bytes.len() as u64 });
    }
    check(part, bytes, footer.crc32c)?;
    let entries = bytes.chunks_exact(ENTRY_LEN).zip(0..);
    entries.map(|(bytes, n)| read_entry(footer, bytes, n)).collect()
}

fn read_entry(footer: &Footer, bytes: &[u8], entry: u32) -> Result<Entry, FormatError> {
    let mut fields = Fields(bytes);
    let (ino, session, n) = (Ino(fields.u64()), SessionId(fields.u64()), fields.u64());
    let (at, index) = (fields.u64(), fields.u32());
    let (block, offset, len) = (fields.u32(), fields.u32(), fields.u32());
    let (stored_len, full_len, crc32c) = (fields.u32(), fields.u32(), fields.u32());
    let id = SliceId { object: ObjectId { incarnation: fields.u16(), session, n }, index };
    let [number] = fields.take::<1>();
    let codec = Codec::ALL.get(usize::from(number)).copied();
    let codec =
        codec.ok_or(FormatError::Entry { entry, reason: "a codec that this program does not know" })?;
    let end = at.saturating_add(u64::from(stored_len));
    if end > footer.label_at() {
        return Err(FormatError::Entry { entry, reason: "stored bytes outside the object's slices" });
    }
    let seal = Seal { id, codec, stored_len, full_len, crc32c };
    Ok(Entry { ino, at, block, offset, len, seal })
}

fn check(part: &'static str, bytes: &[u8], expected: u32) -> Result<(), FormatError> {
    let found = crc32c::crc32c(bytes);
    if found == expected { Ok(()) } else { Err(FormatError::Checksum { part, expected, found }) }
}

/// An object read whole: what it says about itself, and its slices.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its label.
    pub label: Label,
    /// Its index.
    pub entries: Vec<Entry>,
    bytes: Bytes,
}

impl Object {
    /// Reads an object from all of its bytes. Its slices are verified when they are opened.
    pub fn read(bytes: Bytes) -> Result<Object, FormatError> {
        let footer = read_footer(&bytes, bytes.len() as u64)?;
        let part = |at: u64, len| {
            let start = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
            bytes.get(start..start.saturating_add(len)).unwrap_or(&[])
        };
        let label = read_label(part(footer.label_at(), LABEL_LEN))?;
        let entries = read_index(&footer, part(footer.index_at, footer.index_len()))?;
        Ok(Object { label, entries, bytes })
    }

    /// The stored bytes of a slice of this object, or `None` if the entry is not one of its own.
    pub fn stored(&self, entry: &Entry) -> Option<Bytes> {
        let start = usize::try_from(entry.at).ok()?;
        let end = start.checked_add(entry.seal.stored_len as usize)?;
        (end <= self.bytes.len()).then(|| self.bytes.slice(start..end))
    }
}
