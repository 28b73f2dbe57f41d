//! What an operator has a metadata server look at: rows and objects of a volume, which takes its time. A look is begun
//! ([`Analyze`] -> [`Begun`]), goes on by itself, and is asked for its news ([`Follow`] -> [`Told`]) until it has ended.
//! One that nobody follows ends by itself.
//!
//! Names of files pass through here, so an account with the role `operator` is needed, who could also mount.

use crate::question::Blob;
use serde::{Deserialize, Serialize};

/// `POST /v1/analyze`: begin a look.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Analyze {
    /// Whose server is to look.
    pub subject: Subject,
    /// What to look at.
    pub look: Look,
}

/// What is looked into.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A volume, by its name or id.
    Volume(String),
    /// A metadata store with all its volumes, by its name or id.
    MetadataStore(String),
}

/// What a metadata server is to look at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Look {
    /// Whether the bytes of every slice, live and past, are there. -> [`News::Slice`], [`News::At`]; [`Sum::Blocks`]
    Blocks {
        /// Read and check each one; else sizes of objects are compared with what rows need of them.
        deep: bool,
        /// With `deep` read so many bytes a second at the most; 0: no limit.
        bytes_per_second: u64,
        /// Go on here: [`Progress::next`] of an earlier look of the same volume.
        from: Option<Blob>,
    },
    /// Every row of a metadata store, as at one version. -> [`News::Row`], [`News::Rows`]; [`Sum::Rows`]
    Rows,
    /// What the present and the past take, as at one version. -> [`News::Rows`]; [`Sum::Usage`]
    Usage {
        /// Parts to be told apart.
        by: By,
        /// What would the past take if it went back so many seconds?
        retention_s: Option<u64>,
    },
    /// The objects of a volume. -> [`News::At`]; [`Sum::Objects`]
    Objects,
    /// As [`Look::Blocks`], and what is lost is put back from where its bytes still are. -> [`News::Mended`], [`News::Slice`] for
    /// what stays lost, [`News::At`]; [`Sum::Blocks`]
    Repair {
        /// Only say what would be put back.
        dry_run: bool,
        /// As of [`Look::Blocks`].
        deep: bool,
        /// As of [`Look::Blocks`].
        bytes_per_second: u64,
        /// A copy of the block store: the name of a block store, or a folder of the metadata server's machine.
        from_store: Option<String>,
        /// The folder of a mount's disk cache, or a copy of one, on the metadata server's machine.
        from_cache: Option<String>,
        /// A folder of the metadata server's machine with a copy of the volume's files.
        from_copy: Option<String>,
        /// As of [`Look::Blocks`].
        from: Option<Blob>,
    },
    /// What lies in objects that nothing explains: files that the metadata lost, by what the objects say of themselves.
    /// -> [`News::File`] for each, behind it [`News::Piece`] and [`News::Bytes`] in the order in which they were written,
    /// [`News::Unreadable`], [`News::At`]; [`Sum::Salvage`]
    Salvage {
        /// Only say which files there are.
        list_only: bool,
    },
    /// The objects of a volume that nothing explains, each. -> [`News::Quarantined`], [`News::At`]; [`Sum::Quarantined`]
    Quarantined,
    /// Deletes objects that nothing explains and nobody may need, by names that somebody has decided on.
    /// -> [`News::Discarded`] for each; [`Sum::Discarded`]
    Discard {
        /// Only say what would be deleted.
        dry_run: bool,
        /// They, at most [`DISCARD_MAX`].
        names: Vec<String>,
    },
}

/// Parts of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// None.
    Nothing,
    /// Folders in the root.
    Folder,
    /// User ids.
    Owner,
    /// How long ago it was written.
    Age,
}

/// A look that has begun.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Begun {
    /// Id of the metadata store whose server looks.
    pub store: String,
    /// By this it is followed.
    pub look: u64,
}

/// `POST /v1/analyze/follow`: what is new.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Follow {
    /// Of [`Begun`].
    pub store: String,
    /// Of [`Begun`].
    pub look: u64,
    /// News up to this number have arrived: [`Told::upto`] of the last answer, at first 0.
    pub seen: u64,
}

/// News of a look, in their order.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Told {
    /// They.
    pub news: Vec<News>,
    /// Number of the last of them.
    pub upto: u64,
    /// How it ended, once all news are told.
    pub ended: Option<Ended>,
    /// The server knows no such look: it stops, was started anew, or nobody had followed for a minute.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
}

/// How a look ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// All was looked at.
    Whole(Sum),
    /// It could not go on, for this reason.
    Stopped(String),
}

/// What a look comes to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Sum {
    /// Of [`Look::Blocks`].
    Blocks(Progress),
    /// Of [`Look::Rows`].
    Rows(RowsSeen),
    /// Of [`Look::Usage`].
    Usage(Usage),
    /// Of [`Look::Objects`].
    Objects(Objects),
    /// Of [`Look::Salvage`].
    Salvage(Salvaged),
    /// Of [`Look::Quarantined`].
    Quarantined(Counted),
    /// Of [`Look::Discard`]: what was deleted, or would be.
    Discarded(u64),
}

/// What was found in objects that nothing explains.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Salvaged {
    /// These objects.
    pub objects: u64,
    /// Files of which they have something.
    pub files: u64,
    /// Their slices.
    pub slices: u64,
    /// Stored bytes of these.
    pub bytes: u64,
    /// Objects and slices that cannot be read.
    pub unreadable: u64,
}

/// A file of which something was found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FoundFile {
    /// Its inode number.
    pub ino: u64,
    /// The incarnation of the volume that wrote it so; a clone's is another one.
    pub incarnation: u16,
    /// Where it is now, if the metadata knows it: what was found was written to it.
    pub path: Option<String>,
    /// Slices that were found.
    pub slices: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// It was at least so long.
    pub len: u64,
}

/// A slice of a file that was found. Its stored bytes follow.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Piece {
    /// The file.
    pub ino: u64,
    /// Where in the file it begins.
    pub at: u64,
    /// So many bytes of the file it is.
    pub len: u32,
    /// The slice's id: incarnation,
    pub incarnation: u16,
    /// session,
    pub session: u64,
    /// number of the object that it was written in,
    pub n: u64,
    /// and index there.
    pub index: u32,
    /// Number of its codec.
    pub codec: u8,
    /// Stored bytes.
    pub stored_len: u32,
    /// Bytes once it is opened.
    pub full_len: u32,
    /// CRC32C of what is stored.
    pub crc32c: u32,
}

/// What a volume takes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Usage {
    /// The version, nanoseconds since the epoch.
    pub at_ns: u64,
    /// What there is now.
    pub inodes: Inodes,
    /// Slices that the present needs.
    pub live: Taken,
    /// Slices that only the past needs.
    pub past: Taken,
    /// Stored bytes of these that would still be needed with the retention that was asked for; of all without one.
    pub kept_bytes: u64,
    /// Parts, those that take most first.
    pub parts: Vec<Part>,
}

/// Inodes of the present.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Inodes {
    /// Regular files.
    pub files: u64,
    /// Folders.
    pub folders: u64,
    /// Symbolic links.
    pub links: u64,
    /// Pipes, sockets, devices.
    pub others: u64,
    /// Sizes of the files.
    pub size_bytes: u64,
    /// Of these what is no hole.
    pub allocated_bytes: u64,
}

/// Slices, each once.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Taken {
    /// How many.
    pub slices: u64,
    /// Stored bytes.
    pub bytes: u64,
    /// Bytes once opened.
    pub opened_bytes: u64,
    /// Of the stored bytes: in rows.
    pub inline_bytes: u64,
    /// Of the stored bytes: of small slices, which are or were staged and are packed together.
    pub small_bytes: u64,
}

/// A part of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Part {
    /// The folder, the user id, the age.
    pub name: String,
    /// Stored bytes that the present needs.
    pub live_bytes: u64,
    /// Stored bytes that only the past needs.
    pub past_bytes: u64,
    /// Of these what would still be needed with the retention that was asked for.
    pub kept_bytes: u64,
}

/// A number of things with their bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Counted {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Objects of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Objects {
    /// The version of the rows, nanoseconds since the epoch.
    pub at_ns: u64,
    /// Named by rows, and packed by the server.
    pub packed: Counted,
    /// Named by rows, and stored by a client.
    pub direct: Counted,
    /// Small slices that are not packed yet.
    pub small: Counted,
    /// Not named any more: objects and small slices that wait.
    pub retired: Counted,
    /// Being deleted.
    pub condemned: Counted,
    /// Named objects by how much of them is needed.
    pub fills: Vec<Fill>,
    /// In the block store: explained by rows.
    pub known: Counted,
    /// In the block store: a session may still publish them.
    pub open: Counted,
    /// In the block store: never used; they go.
    pub garbage: Counted,
    /// In the block store: explained by nothing; they stay.
    pub quarantined: Counted,
    /// Some of these.
    pub examples: Vec<Strange>,
}

/// Objects of which about as much is needed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Fill {
    /// So much at the most.
    pub up_to_percent: u64,
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of these what rows need.
    pub needed_bytes: u64,
}

/// An object that nothing explains.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Strange {
    /// Its name.
    pub object: String,
    /// Its bytes.
    pub bytes: u64,
    /// Why it is not explained.
    pub reason: String,
}

/// An object that nothing explains, for whoever decides what becomes of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct QuarantinedObject {
    /// Its name in the block store.
    pub object: String,
    /// Its bytes.
    pub bytes: u64,
    /// The incarnation of the volume that stored it: this one, a clone, or what this one was restored from.
    pub incarnation: u16,
    /// When it was stored, nanoseconds since the epoch by the store's clock, if the store says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_ns: Option<u64>,
    /// Why it is not explained.
    pub reason: String,
}

/// The most names of a [`Look::Discard`].
pub const DISCARD_MAX: usize = 4096;

/// An object that somebody has named to be deleted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DiscardedObject {
    /// Its name in the block store.
    pub object: String,
    /// Why it stays, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Rows that were looked at.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct RowsSeen {
    /// The version, nanoseconds since the epoch.
    pub at_ns: u64,
    /// Volumes.
    pub volumes: u64,
    /// Rows that were read; some are read more than once.
    pub rows: u64,
    /// What is not as it must be.
    pub faults: u64,
}

/// News of a look.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// A slice whose bytes are lost.
    Slice(Box<SliceFault>),
    /// It has come so far, and told all that it found.
    At(Progress),
    /// Something that is not as it must be: the row, what is there, and what should be.
    Row(String),
    /// So many rows were read.
    Rows(u64),
    /// An object of which something was put back.
    Mended(Box<MendedObject>),
    /// A file of which something was found.
    File(Box<FoundFile>),
    /// A slice of the last file that was told.
    Piece(Box<Piece>),
    /// The next stored bytes of the last slice that was told.
    Bytes(Blob),
    /// An object, or a slice of one, that is none as chronofs writes it any more.
    Unreadable {
        /// Name of the object.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An object that nothing explains.
    Quarantined(Box<QuarantinedObject>),
    /// An object that was to be deleted.
    Discarded(Box<DiscardedObject>),
}

/// An object of which something was lost and was put back, or could be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MendedObject {
    /// By its name in the block store.
    pub object: String,
    /// What had become of it.
    pub fate: Fate,
    /// Slices of it that were put back.
    pub slices: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// Slices of it that stay lost; each is told.
    pub left: u64,
    /// Where the bytes came from.
    pub from: Vec<String>,
}

/// How far a look has come.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Progress {
    /// Objects that the block store listed.
    pub listed: u64,
    /// Slices, live and past, that were looked at.
    pub slices: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// Those that are lost.
    pub faults: u64,
    /// Where to go on; nothing while the block store is listed, and at the end.
    pub next: Option<Blob>,
}

/// What became of the bytes of a slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// The object is not there; of a slice that is not packed yet, its row.
    Missing,
    /// It is there, and is not what was stored: other bytes, or too few.
    Damaged,
}

/// A slice whose bytes are lost.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SliceFault {
    /// Name of the volume.
    pub volume: String,
    /// What became of it.
    pub fate: Fate,
    /// What was seen.
    pub reason: String,
    /// The object, by its name in the block store; none for a slice whose bytes are in the metadata.
    pub object: Option<String>,
    /// First byte of the slice in the object.
    pub at: u64,
    /// Its stored bytes.
    pub stored_len: u32,
    /// The slice.
    pub slice: String,
    /// Inode number of the file.
    pub ino: u64,
    /// First byte of the file that it shows.
    pub from: u64,
    /// The byte behind the last.
    pub to: u64,
    /// Since when the file has or had it, nanoseconds since the epoch.
    pub since_ns: u64,
    /// Until when it had it; `None`: it has it now.
    pub until_ns: Option<u64>,
    /// Names of the file in that time. None: it was removed while it was open, or is being removed.
    pub paths: Vec<NamedAt>,
    /// There are more than are listed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more_paths: bool,
}

/// A path, and when it named the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NamedAt {
    /// From the root of the volume. A backslash is written twice; control characters and what is not UTF-8 as `\xHH`.
    pub path: String,
    /// Since when, nanoseconds since the epoch.
    pub since_ns: u64,
    /// Until when; `None`: it does now.
    pub until_ns: Option<u64>,
}
