//! Two measurements on rows of chronofs' own shapes, side by side in one run:
//! `rows history FOLDER`: three ways to keep history in RocksDB; `rows engines FOLDER`: RocksDB, fjall and redb.
//! Single-threaded, no fsync: what is compared is CPU per operation and bytes on disk. ARCHITECTURE.md has a table.

mod rocks;

use redb::ReadableDatabase as _;
use rocks::Db;
use std::path::{Path, PathBuf};
use std::time::Instant;

const KEYS: u64 = 300_000;
const CHANGES: u64 = 900_000;
const READS: u64 = 200_000;
const ROW_LEN: usize = 72;

/// A cheap generator: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// An entry's key: table, volume, directory (100 entries each), position.
fn key(n: u64) -> [u8; 21] {
    let mut key = [0; 21];
    key[0] = 3;
    key[4] = 1;
    key[5..13].copy_from_slice(&(n / 100).to_be_bytes());
    key[13..21].copy_from_slice(&(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1).to_be_bytes());
    key
}

fn row(n: u64, version: u64) -> Vec<u8> {
    let mut row = vec![0x5a; ROW_LEN];
    row[..8].copy_from_slice(&n.to_be_bytes());
    row[8..16].copy_from_slice(&version.to_be_bytes());
    let mut random = Random(n ^ version << 32);
    row[16..48].iter_mut().for_each(|b| *b = random.below(256) as u8);
    row
}

trait Layout {
    fn put(&mut self, key: &[u8], row: &[u8], version: u64, old: Option<&[u8]>);
    fn now(&self, key: &[u8]) -> Option<Vec<u8>>;
    fn at(&self, key: &[u8], version: u64) -> Option<Vec<u8>>;
    fn scan_now(&self, from: &[u8], count: usize) -> usize;
    fn scan_at(&self, from: &[u8], version: u64, count: usize) -> usize;
    fn settle(&self);
}

fn stored(version: u64, row: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + row.len());
    out.extend_from_slice(&version.to_be_bytes());
    out.extend_from_slice(row);
    out
}

fn version_of(stored: &[u8]) -> u64 {
    u64::from_be_bytes(stored[..8].try_into().expect("8 bytes"))
}

/// As designed: live rows by key, superseded rows in a range of their own by key and end.
struct Apart(Db, rocks::Batch);

impl Apart {
    fn history(key: &[u8], until: u64) -> Vec<u8> {
        let mut out = vec![0x80];
        out.extend_from_slice(key);
        out.extend_from_slice(&until.to_be_bytes());
        out
    }
}

impl Layout for Apart {
    fn put(&mut self, key: &[u8], row: &[u8], version: u64, old: Option<&[u8]>) {
        if let Some(old) = old {
            self.1.put(&Self::history(key, version), old);
        }
        self.1.put(key, &stored(version, row));
        self.0.write(&self.1);
    }
    fn now(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.get(key)
    }
    fn at(&self, key: &[u8], version: u64) -> Option<Vec<u8>> {
        if let Some(live) = self.0.get(key).filter(|live| version_of(live) <= version) {
            return Some(live);
        }
        let mut found = None;
        self.0.scan(&Self::history(key, version + 1), None, |past, stored| {
            if past.len() == key.len() + 9 && &past[1..1 + key.len()] == key && version_of(stored) <= version {
                found = Some(stored.to_vec());
            }
            false
        });
        found
    }
    fn scan_now(&self, from: &[u8], count: usize) -> usize {
        let mut seen = 0;
        self.0.scan(from, None, |_, _| {
            seen += 1;
            seen < count
        });
        seen
    }
    fn scan_at(&self, from: &[u8], version: u64, count: usize) -> usize {
        // Both ranges are read as far as the count needs; the merge itself is a comparison a row.
        let (mut live, mut past) = (0, 0);
        let mut last = Vec::new();
        self.0.scan(from, None, |key, stored| {
            live += usize::from(version_of(stored) <= version);
            last = key.to_vec();
            live < count
        });
        self.0.scan(&Self::history(from, 0), None, |key, stored| {
            let until = u64::from_be_bytes(key[key.len() - 8..].try_into().expect("8 bytes"));
            past += usize::from(until > version && version_of(stored) <= version);
            past < count && key[1..key.len() - 8] <= last[..]
        });
        (live + past).min(count)
    }
    fn settle(&self) {
        self.0.settle();
    }
}

/// The version, inverted, behind the key: the newest first.
struct Suffix(Db, rocks::Batch);

impl Suffix {
    fn key(key: &[u8], version: u64) -> Vec<u8> {
        let mut out = key.to_vec();
        out.extend_from_slice(&(!version).to_be_bytes());
        out
    }
}

impl Layout for Suffix {
    fn put(&mut self, key: &[u8], row: &[u8], version: u64, _old: Option<&[u8]>) {
        self.1.put(&Self::key(key, version), &stored(version, row));
        self.0.write(&self.1);
    }
    fn now(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.at(key, u64::MAX)
    }
    fn at(&self, key: &[u8], version: u64) -> Option<Vec<u8>> {
        let mut found = None;
        self.0.scan(&Self::key(key, version), None, |full, stored| {
            if full.len() == key.len() + 8 && &full[..key.len()] == key {
                found = Some(stored.to_vec());
            }
            false
        });
        found
    }
    fn scan_now(&self, from: &[u8], count: usize) -> usize {
        self.scan_at(from, u64::MAX, count)
    }
    fn scan_at(&self, from: &[u8], version: u64, count: usize) -> usize {
        let mut seen = 0;
        let mut last = Vec::new();
        self.0.scan(from, None, |full, stored| {
            let key = &full[..full.len() - 8];
            if version_of(stored) <= version && last != key {
                last.clear();
                last.extend_from_slice(key);
                seen += 1;
            }
            seen < count
        });
        seen
    }
    fn settle(&self) {
        self.0.settle();
    }
}

/// RocksDB's user-defined timestamps.
struct Stamps(Db);

impl Layout for Stamps {
    fn put(&mut self, key: &[u8], row: &[u8], version: u64, _old: Option<&[u8]>) {
        self.0.put_with_ts(key, version, &stored(version, row));
    }
    fn now(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.get_at(key, u64::MAX)
    }
    fn at(&self, key: &[u8], version: u64) -> Option<Vec<u8>> {
        self.0.get_at(key, version)
    }
    fn scan_now(&self, from: &[u8], count: usize) -> usize {
        self.scan_at(from, u64::MAX, count)
    }
    fn scan_at(&self, from: &[u8], version: u64, count: usize) -> usize {
        let mut seen = 0;
        self.0.scan(from, Some(version), |_, _| {
            seen += 1;
            seen < count
        });
        seen
    }
    fn settle(&self) {
        self.0.settle();
    }
}

fn rate(count: u64, work: impl FnOnce()) -> u64 {
    let start = Instant::now();
    work();
    (count as f64 / start.elapsed().as_secs_f64()) as u64
}

fn disk_mib(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).expect("folder").flatten();
    let bytes: u64 = files.map(|f| if f.path().is_dir() { disk_mib(&f.path()) << 20 } else { size(&f) }).sum();
    bytes >> 20
}

fn size(file: &std::fs::DirEntry) -> u64 {
    use std::os::unix::fs::MetadataExt;
    file.metadata().map_or(0, |m| m.blocks() * 512)
}

fn measure(name: &str, mut layout: impl Layout, folder: &Path) {
    let mut version = 0;
    let load = rate(KEYS, || {
        for n in 0..KEYS {
            version += 1;
            layout.put(&key(n), &row(n, version), version, None);
        }
    });
    let mut random = Random(7);
    let change = rate(CHANGES, || {
        for _ in 0..CHANGES {
            version += 1;
            let n = random.below(KEYS);
            let old = layout.now(&key(n)).expect("every key has a row");
            layout.put(&key(n), &row(n, version), version, Some(&old));
        }
    });
    layout.settle();
    let disk = disk_mib(folder);
    let reads = |work: &mut dyn FnMut(u64, u64)| {
        let mut random = Random(11);
        rate(READS, || (0..READS).for_each(|_| work(random.below(KEYS), KEYS + random.below(CHANGES))))
    };
    let now = reads(&mut |n, _| assert!(layout.now(&key(n)).is_some()));
    let at = reads(&mut |n, at| assert!(layout.at(&key(n), at).is_some_and(|row| version_of(&row) <= at)));
    let folder_start = |n: u64| key(n / 100 * 100)[..13].to_vec();
    let pad = |mut from: Vec<u8>| {
        from.resize(21, 0);
        from
    };
    let scan_now = reads(&mut |n, _| assert!(layout.scan_now(&pad(folder_start(n)), 10) > 0));
    let scan_at = reads(&mut |n, at| assert!(layout.scan_at(&pad(folder_start(n)), at, 10) > 0));
    println!("| {name} | {load} | {change} | {now} | {at} | {scan_now} | {scan_at} | {disk} |");
}

fn history(folder: &Path) {
    println!("| layout | create/s | overwrite/s | get now/s | get at T/s | scan 10 now/s | scan 10 at T/s | MiB |");
    println!("|---|---|---|---|---|---|---|---|");
    let cache = 256 << 20;
    for round in 0..2 {
        let at = |name: &str| -> PathBuf { folder.join(format!("{name}.{round}")) };
        let db = Db::open(&at("apart"), false, cache);
        let batch = db.batch();
        measure("live and history apart", Apart(db, batch), &at("apart"));
        let db = Db::open(&at("suffix"), false, cache);
        let batch = db.batch();
        measure("version as key suffix", Suffix(db, batch), &at("suffix"));
        measure("user-defined timestamps", Stamps(Db::open(&at("stamps"), true, cache)), &at("stamps"));
    }
}

/// What a metadata store asks of its engine: a create's five puts in one batch, point reads, short scans.
trait Engine {
    fn commit(&mut self, puts: &[(Vec<u8>, Vec<u8>)]);
    fn get(&self, key: &[u8]) -> bool;
    fn scan(&self, from: &[u8], count: usize) -> usize;
}

impl Engine for (Db, rocks::Batch) {
    fn commit(&mut self, puts: &[(Vec<u8>, Vec<u8>)]) {
        puts.iter().for_each(|(key, value)| self.1.put(key, value));
        self.0.write(&self.1);
    }
    fn get(&self, key: &[u8]) -> bool {
        self.0.get(key).is_some()
    }
    fn scan(&self, from: &[u8], count: usize) -> usize {
        let mut seen = 0;
        self.0.scan(from, None, |_, _| {
            seen += 1;
            seen < count
        });
        seen
    }
}

impl Engine for (fjall::Database, fjall::Keyspace) {
    fn commit(&mut self, puts: &[(Vec<u8>, Vec<u8>)]) {
        let mut batch = self.0.batch();
        puts.iter().for_each(|(key, value)| batch.insert(&self.1, key.as_slice(), value.as_slice()));
        batch.commit().expect("fjall commit");
    }
    fn get(&self, key: &[u8]) -> bool {
        self.1.get(key).expect("fjall get").is_some()
    }
    fn scan(&self, from: &[u8], count: usize) -> usize {
        self.1.range(from.to_vec()..).take(count).filter(|_| true).count()
    }
}

const ROWS: redb::TableDefinition<&[u8], &[u8]> = redb::TableDefinition::new("rows");

impl Engine for redb::Database {
    fn commit(&mut self, puts: &[(Vec<u8>, Vec<u8>)]) {
        let mut write = self.begin_write().expect("redb begin");
        write.set_durability(redb::Durability::None).expect("redb durability");
        let mut table = write.open_table(ROWS).expect("redb table");
        puts.iter().for_each(|(key, value)| drop(table.insert(key.as_slice(), value.as_slice()).expect("redb insert")));
        drop(table);
        write.commit().expect("redb commit");
    }
    fn get(&self, key: &[u8]) -> bool {
        let read = self.begin_read().expect("redb read");
        read.open_table(ROWS).expect("redb table").get(key).expect("redb get").is_some()
    }
    fn scan(&self, from: &[u8], count: usize) -> usize {
        let read = self.begin_read().expect("redb read");
        read.open_table(ROWS).expect("redb table").range(from..).expect("redb range").take(count).count()
    }
}

/// A create: inode, entry, the directory's row, its superseded version, the volume's counters.
fn create(n: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
    let with = |table: u8, a: u64, b: Option<u64>| {
        let mut key = vec![table, 0, 0, 0, 1];
        key.extend_from_slice(&a.to_be_bytes());
        key.extend(b.into_iter().flat_map(u64::to_be_bytes));
        key
    };
    let folder = n / 1000;
    vec![
        (with(1, n, None), row(n, 1)),
        (key(n).to_vec(), row(n, 2)[..40].to_vec()),
        (with(2, folder, None), row(n, 3)[..40].to_vec()),
        (with(0x82, folder, Some(n)), row(n, 4)[..40].to_vec()),
        (with(8, 0, None), row(n, 5)[..24].to_vec()),
    ]
}

fn measure_engine(name: &str, mut engine: impl Engine, folder: &Path) {
    let creates = 200_000;
    let commits = rate(creates, || (0..creates).for_each(|n| engine.commit(&create(n))));
    let reads = |work: &mut dyn FnMut(u64)| {
        let mut random = Random(11);
        rate(READS, || (0..READS).for_each(|_| work(random.below(creates))))
    };
    let hit = reads(&mut |n| assert!(engine.get(&key(n))));
    let miss = reads(&mut |n| assert!(!engine.get(&key(n + 10 * creates))));
    let scan = reads(&mut |n| assert!(engine.scan(&key(n), 10) > 0));
    let disk = disk_mib(folder);
    println!("| {name} | {commits} | {hit} | {miss} | {scan} | {disk} |");
}

fn engines(folder: &Path) {
    println!("| engine | creates/s (5 puts, no fsync) | get hit/s | get miss/s | scan 10/s | MiB |");
    println!("|---|---|---|---|---|---|");
    for round in 0..2 {
        let at = |name: &str| -> PathBuf { folder.join(format!("{name}.{round}")) };
        let db = Db::open(&at("rocksdb"), false, 256 << 20);
        let batch = db.batch();
        measure_engine("RocksDB (Debian 12's 7.8)", (db, batch), &at("rocksdb"));
        let db = fjall::Database::builder(at("fjall")).cache_size(256 << 20).open().expect("fjall");
        let rows = db.keyspace("rows", fjall::KeyspaceCreateOptions::default).expect("fjall keyspace");
        measure_engine("fjall 3", (db, rows), &at("fjall"));
        std::fs::create_dir(at("redb")).expect("folder");
        let db = redb::Database::builder().set_cache_size(256 << 20).create(at("redb").join("db")).expect("redb");
        measure_engine("redb 3", db, &at("redb"));
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, what, folder] = &arguments[..] else { panic!("usage: rows history|engines FOLDER (a new one)") };
    let folder = Path::new(folder);
    std::fs::create_dir(folder).unwrap_or_else(|error| panic!("create folder {}: {error}", folder.display()));
    match what.as_str() {
        "history" => history(folder),
        "engines" => engines(folder),
        _ => panic!("usage: rows history|engines FOLDER (a new one)"),
    }
}
