//! The store on disk: RocksDB with one column family and without its own journal.
//!
//! Every write carries the position in the log under the empty key, which no row has, so whatever RocksDB has made
//! durable says how far it goes. RocksDB must never flush by itself what the log may still lose: its write buffer
//! has no limit that is ever met, and [`Store::flush`] switches it where the engine says.

use super::log::format::Place;
use super::store::{Position, Store};
use crate::{Change, Commit, EngineError, ReadStop, Reads};
use bytes::{Buf, BufMut, Bytes};
use chronofs_core::Version;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Direction, FlushOptions, IteratorMode, Options,
    ReadOptions, WriteBatch, WriteOptions,
};
use self_cell::self_cell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Where the position is kept.
const POSITION_KEY: &[u8] = b"";
/// Version of the position's value.
const POSITION_FORMAT: u8 = 1;
const POSITION_LENGTH: usize = 25;
/// Never met: the engine flushes long before.
const WRITE_BUFFER_BYTES: usize = 32 << 30;

/// A flush leaves so much of the disk free, for what RocksDB writes beside it.
const SPARE_BYTES: u64 = 16 << 20;

/// So often an image is begun: merges take files away that are to be linked.
const IMAGE_TRIES: u32 = 50;
/// with this pause.
const IMAGE_PAUSE: Duration = Duration::from_millis(20);
/// Its reader opens few of the files.
const IMAGE_OPEN_FILES: i32 = 32;

/// How RocksDB is set up.
#[derive(Clone, Debug)]
pub struct RocksOptions {
    /// Memory for blocks of its files.
    pub block_cache_bytes: usize,
    /// Threads for flushes and compactions.
    pub background_threads: i32,
}

impl Default for RocksOptions {
    fn default() -> Self {
        RocksOptions { block_cache_bytes: 256 << 20, background_threads: 2 }
    }
}

/// The store.
pub struct RocksStore {
    db: Arc<DB>,
    folder: PathBuf,
    write_options: WriteOptions,
    abandoned: AtomicBool,
    /// Background errors that it has gone on after.
    errors_survived: AtomicU64,
}

impl RocksStore {
    /// Opens the store in `folder`, which is created if it is not there.
    pub fn open(folder: &Path, options: &RocksOptions) -> Result<Self, EngineError> {
        let db =
            DB::open(&database_options(options)?, folder).map_err(|error| failure(folder, "open", &error))?;
        let mut write_options = WriteOptions::default();
        write_options.disable_wal(true);
        Ok(RocksStore {
            db: Arc::new(db),
            folder: folder.to_owned(),
            write_options,
            abandoned: AtomicBool::new(false),
            errors_survived: AtomicU64::new(0),
        })
    }

    /// RocksDB counts its background errors for ever. One that it takes for passing, a compaction without room, leaves it
    /// as it was, and is tried again by itself once there is room. After any other it takes no writes: an error then.
    fn check_background(&self) -> Result<(), EngineError> {
        let errors = self.number(c"rocksdb.background-errors");
        if errors <= self.errors_survived.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        // It may be out of breath for the same reason; that is no error, and nothing to wait for here.
        options.set_no_slowdown(true);
        match self.db.write_opt(WriteBatch::default(), &options) {
            Err(error) if error.kind() != rocksdb::ErrorKind::Incomplete => {
                return Err(failure(&self.folder, "after an error in the background, write to", &error));
            }
            _ => {}
        }
        self.errors_survived.store(errors, Ordering::SeqCst);
        tracing::warn!(
            "RocksDB in {} had no room for work in the background and tries it again by itself; its file LOG there says \
             more",
            self.folder.display()
        );
        Ok(())
    }

    fn number(&self, property: &std::ffi::CStr) -> u64 {
        self.db.property_int_value(property).ok().flatten().unwrap_or(0)
    }
}

fn database_options(options: &RocksOptions) -> Result<Options, EngineError> {
    let cache = Cache::new_lru_cache(options.block_cache_bytes)
        .map_err(|error| EngineError::Store(format!("allocate the block cache: {error}")))?;
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&cache);
    table.set_block_size(8 << 10);
    table.set_bloom_filter(10.0, false);
    table.set_whole_key_filtering(true);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(5);
    let mut database = Options::default();
    database.create_if_missing(true);
    database.set_block_based_table_factory(&table);
    database.set_compression_type(DBCompressionType::Lz4);
    database.set_bottommost_compression_type(DBCompressionType::Zstd);
    database.set_write_buffer_size(WRITE_BUFFER_BYTES);
    database.set_arena_block_size(1 << 20);
    database.set_max_write_buffer_number(8);
    database.set_target_file_size_base(64 << 20);
    database.set_max_bytes_for_level_base(256 << 20);
    database.set_level_compaction_dynamic_level_bytes(true);
    database.set_max_background_jobs(options.background_threads);
    database.set_bytes_per_sync(1 << 20);
    database.set_max_open_files(2048);
    database.set_keep_log_file_num(4);
    database.set_max_log_file_size(4 << 20);
    database.set_stats_dump_period_sec(0);
    database.set_paranoid_checks(true);
    Ok(database)
}

fn failure(folder: &Path, action: &str, error: &rocksdb::Error) -> EngineError {
    match error.kind() {
        rocksdb::ErrorKind::Corruption => EngineError::Damaged {
            what: format!("the store {}", folder.display()),
            detail: format!(
                "{action}: {error}; copy the folder aside, look for disk errors in the kernel's log, and restore this \
                 metadata store from its newest backup"
            ),
        },
        _ => EngineError::Store(format!("{action} {}: {error}", folder.display())),
    }
}

impl Store for RocksStore {
    type Snapshot = RocksSnapshot;

    fn write(&self, commits: &[Commit], position: Position) -> Result<(), EngineError> {
        let mut batch = WriteBatch::default();
        for change in newest_changes(commits) {
            match change {
                Change::Put(key, value) => batch.put(key, value),
                Change::Delete(key) => batch.delete(key),
            }
        }
        batch.put(POSITION_KEY, encode_position(position));
        self.db
            .write_opt(batch, &self.write_options)
            .map_err(|error| failure(&self.folder, "write to", &error))
    }

    fn snapshot(&self) -> RocksSnapshot {
        RocksSnapshot { folder: self.folder.clone(), held: Held::new(self.db.clone(), |db| db.snapshot()) }
    }

    fn flush(&self) -> Result<(), EngineError> {
        if self.abandoned.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut options = FlushOptions::default();
        options.set_wait(false);
        self.db.flush_opt(&options).map_err(|error| failure(&self.folder, "flush", &error))
    }

    fn is_flushed(&self) -> Result<bool, EngineError> {
        self.check_background()?;
        Ok(self.number(c"rocksdb.num-immutable-mem-table") == 0)
    }

    fn position(&self) -> Result<Option<Position>, EngineError> {
        position_in(&self.db, &self.folder)
    }

    fn image(&self, place: &Path) -> Result<Position, EngineError> {
        let mut tries = 1;
        loop {
            match image(&self.folder, place) {
                Ok(position) => return Ok(position),
                // A file that was merged into another one is gone, and what that looks like depends on who missed it: to the reader the
                // folder seems to be damaged. Of what is really damaged the database itself says so.
                Err(_) if tries < IMAGE_TRIES && !place.exists() => {
                    std::thread::sleep(IMAGE_PAUSE);
                    tries += 1;
                }
                Err(error) => {
                    let folder = self.folder.display();
                    return Err(EngineError::Store(format!(
                        "make an image of {folder}: {error} (tried {tries} times)"
                    )));
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        let Ok(disk) = rustix::fs::statvfs(&self.folder) else { return true };
        disk.f_bavail.saturating_mul(disk.f_frsize) >= self.unflushed_bytes().saturating_add(SPARE_BYTES)
    }

    fn unflushed_bytes(&self) -> u64 {
        self.number(c"rocksdb.cur-size-all-mem-tables")
    }

    fn abandon(&self) {
        // Closing RocksDB flushes, so it is never closed: the process is about to end.
        if !self.abandoned.swap(true, Ordering::SeqCst) {
            std::mem::forget(self.db.clone());
        }
    }
}

/// Links what never changes, and copies the rest. A checkpoint of the open database would flush it; a reader of its files has
/// nothing to flush, and sees what is flushed.
fn image(folder: &Path, place: &Path) -> Result<Position, String> {
    let said = |error: rocksdb::Error| error.to_string();
    let mut options = Options::default();
    options.set_max_open_files(IMAGE_OPEN_FILES);
    let reader = DB::open_for_read_only(&options, folder, false).map_err(said)?;
    let position = position_in(&reader, folder).map_err(|error| error.to_string())?;
    Checkpoint::new(&reader).and_then(|checkpoint| checkpoint.create_checkpoint(place)).map_err(said)?;
    Ok(position.unwrap_or_default())
}

fn position_in(db: &DB, folder: &Path) -> Result<Option<Position>, EngineError> {
    let found = db.get(POSITION_KEY).map_err(|error| failure(folder, "read the position of", &error))?;
    let Some(bytes) = found else {
        return match db.iterator(IteratorMode::Start).next() {
            None => Ok(None),
            Some(_) => Err(no_position(folder)),
        };
    };
    decode_position(&bytes).map(Some).ok_or_else(|| no_position(folder))
}

/// Of each key the last change: commits of one group often put the same rows (the directory of many creates, the
/// counters), and what a batch overwrites itself need not cost an insert.
fn newest_changes(commits: &[Commit]) -> impl Iterator<Item = &Change> {
    let changes = commits.iter().rev().flat_map(|commit| commit.batch.0.iter().rev());
    let mut seen = HashSet::with_capacity(commits.iter().map(|commit| commit.batch.0.len()).sum());
    changes.filter(move |change| seen.insert(change.key()))
}

fn no_position(folder: &Path) -> EngineError {
    EngineError::Damaged {
        what: format!("the store {}", folder.display()),
        detail:
            "it does not say which position of the log it is at; restore this metadata store from its newest \
                 backup"
                .to_owned(),
    }
}

fn encode_position(position: Position) -> [u8; POSITION_LENGTH] {
    let mut bytes = [0; POSITION_LENGTH];
    let mut out = &mut bytes[..];
    out.put_u8(POSITION_FORMAT);
    out.put_u64_le(position.version.0);
    out.put_u64_le(position.place.segment);
    out.put_u64_le(position.place.offset);
    bytes
}

fn decode_position(mut bytes: &[u8]) -> Option<Position> {
    if bytes.len() != POSITION_LENGTH || bytes.get_u8() != POSITION_FORMAT {
        return None;
    }
    let version = Version(bytes.get_u64_le());
    Some(Position { version, place: Place { segment: bytes.get_u64_le(), offset: bytes.get_u64_le() } })
}

type BorrowedSnapshot<'a> = rocksdb::SnapshotWithThreadMode<'a, DB>;

self_cell!(
    struct Held {
        owner: Arc<DB>,
        #[covariant]
        dependent: BorrowedSnapshot,
    }
);

/// A view of the store that keeps it open.
pub struct RocksSnapshot {
    folder: PathBuf,
    held: Held,
}

impl Reads for RocksSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadStop> {
        if key.is_empty() {
            return Ok(None);
        }
        let found = self.held.borrow_dependent().get_pinned(key);
        let found = found.map_err(|error| failure(&self.folder, "read from", &error))?;
        Ok(found.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, ReadStop> {
        // The empty key is not a row.
        let from = if from.is_empty() { b"\0" } else { from };
        if from >= to || limit == 0 {
            return Ok(Vec::new());
        }
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(to);
        let mode = IteratorMode::From(from, Direction::Forward);
        self.held
            .borrow_dependent()
            .iterator_opt(mode, options)
            .take(limit)
            .map(|pair| {
                let (key, value) = pair.map_err(|error| failure(&self.folder, "scan", &error))?;
                Ok((key.into(), value.into()))
            })
            .collect()
    }
}
