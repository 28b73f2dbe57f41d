//! The few calls of RocksDB's C interface that the measurement needs, user-defined timestamps included (the safe
//! crate for Debian's version does not have them).

use librocksdb_sys as c;
use std::cmp::Ordering;
use std::ffi::{CString, c_char, c_int, c_uchar, c_void};
use std::path::Path;
use std::ptr;

pub struct Db {
    db: *mut c::rocksdb_t,
    write: *mut c::rocksdb_writeoptions_t,
    options: *mut c::rocksdb_options_t,
}

pub struct Batch(*mut c::rocksdb_writebatch_t);

unsafe extern "C" fn name(_: *mut c_void) -> *const c_char {
    c"rows.bytewise.u64ts".as_ptr()
}
unsafe extern "C" fn drop_nothing(_: *mut c_void) {}

unsafe fn bytes<'a>(pointer: *const c_char, len: usize) -> &'a [u8] {
    unsafe { std::slice::from_raw_parts(pointer.cast(), len) }
}

fn as_int(order: Ordering) -> c_int {
    order as c_int
}

/// Keys ascending, then timestamps descending. The timestamp is the last 8 bytes, big-endian.
unsafe extern "C" fn compare(_: *mut c_void, a: *const c_char, al: usize, b: *const c_char, bl: usize) -> c_int {
    let (a, b) = unsafe { (bytes(a, al), bytes(b, bl)) };
    let ((ak, at), (bk, bt)) = (a.split_at(al - 8), b.split_at(bl - 8));
    as_int(ak.cmp(bk).then(bt.cmp(at)))
}
unsafe extern "C" fn compare_ts(_: *mut c_void, a: *const c_char, al: usize, b: *const c_char, bl: usize) -> c_int {
    unsafe { as_int(bytes(a, al).cmp(bytes(b, bl))) }
}
unsafe extern "C" fn compare_without_ts(
    _: *mut c_void,
    a: *const c_char,
    al: usize,
    a_has: c_uchar,
    b: *const c_char,
    bl: usize,
    b_has: c_uchar,
) -> c_int {
    let (a, b) = unsafe { (bytes(a, al), bytes(b, bl)) };
    let cut = |key: &[u8], has: c_uchar| key.len() - if has != 0 { 8 } else { 0 };
    as_int(a[..cut(a, a_has)].cmp(&b[..cut(b, b_has)]))
}

impl Db {
    pub fn open(path: &Path, timestamps: bool, cache_bytes: usize) -> Db {
        unsafe {
            let options = c::rocksdb_options_create();
            c::rocksdb_options_set_create_if_missing(options, 1);
            c::rocksdb_options_set_write_buffer_size(options, 64 << 20);
            c::rocksdb_options_set_max_background_jobs(options, 2);
            c::rocksdb_options_set_compression(options, c::rocksdb_lz4_compression as c_int);
            let table = c::rocksdb_block_based_options_create();
            c::rocksdb_block_based_options_set_block_cache(table, c::rocksdb_cache_create_lru(cache_bytes));
            c::rocksdb_block_based_options_set_filter_policy(table, c::rocksdb_filterpolicy_create_bloom(10.0));
            c::rocksdb_options_set_block_based_table_factory(options, table);
            if timestamps {
                let comparator = c::rocksdb_comparator_with_ts_create(
                    ptr::null_mut(),
                    Some(drop_nothing),
                    Some(compare),
                    Some(compare_ts),
                    Some(compare_without_ts),
                    Some(name),
                    8,
                );
                c::rocksdb_options_set_comparator(options, comparator);
            }
            let write = c::rocksdb_writeoptions_create();
            c::rocksdb_writeoptions_disable_WAL(write, 1);
            let text = CString::new(path.to_str().expect("utf-8 path")).expect("no NUL");
            let mut error = ptr::null_mut();
            let db = c::rocksdb_open(options, text.as_ptr(), &mut error);
            check(error);
            Db { db, write, options }
        }
    }

    pub fn batch(&self) -> Batch {
        unsafe { Batch(c::rocksdb_writebatch_create()) }
    }

    pub fn write(&self, batch: &Batch) {
        let mut error = ptr::null_mut();
        unsafe {
            c::rocksdb_write(self.db, self.write, batch.0, &mut error);
            check(error);
            c::rocksdb_writebatch_clear(batch.0);
        }
    }

    pub fn put_with_ts(&self, key: &[u8], ts: u64, value: &[u8]) {
        let ts = ts.to_be_bytes();
        let mut error = ptr::null_mut();
        unsafe {
            c::rocksdb_put_with_ts(
                self.db,
                self.write,
                key.as_ptr().cast(),
                key.len(),
                ts.as_ptr().cast(),
                8,
                value.as_ptr().cast(),
                value.len(),
                &mut error,
            );
        }
        check(error);
    }

    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut error = ptr::null_mut();
        let mut len = 0;
        unsafe {
            let read = c::rocksdb_readoptions_create();
            let value = c::rocksdb_get(self.db, read, key.as_ptr().cast(), key.len(), &mut len, &mut error);
            c::rocksdb_readoptions_destroy(read);
            check(error);
            take(value, len)
        }
    }

    pub fn get_at(&self, key: &[u8], ts: u64) -> Option<Vec<u8>> {
        let ts = ts.to_be_bytes();
        let (mut error, mut len, mut found, mut found_len) = (ptr::null_mut(), 0, ptr::null_mut(), 0);
        unsafe {
            let read = c::rocksdb_readoptions_create();
            c::rocksdb_readoptions_set_timestamp(read, ts.as_ptr().cast(), 8);
            let value = c::rocksdb_get_with_ts(
                self.db,
                read,
                key.as_ptr().cast(),
                key.len(),
                &mut len,
                &mut found,
                &mut found_len,
                &mut error,
            );
            c::rocksdb_readoptions_destroy(read);
            check(error);
            c::rocksdb_free(found.cast());
            take(value, len)
        }
    }

    /// Calls `each` with pairs from `from` on until it says stop. Returns how many it saw.
    pub fn scan(&self, from: &[u8], ts: Option<u64>, mut each: impl FnMut(&[u8], &[u8]) -> bool) {
        let ts = ts.map(u64::to_be_bytes);
        unsafe {
            let read = c::rocksdb_readoptions_create();
            if let Some(ts) = &ts {
                c::rocksdb_readoptions_set_timestamp(read, ts.as_ptr().cast(), 8);
            }
            let iterator = c::rocksdb_create_iterator(self.db, read);
            c::rocksdb_iter_seek(iterator, from.as_ptr().cast(), from.len());
            while c::rocksdb_iter_valid(iterator) != 0 {
                let (mut key_len, mut value_len) = (0, 0);
                let key = c::rocksdb_iter_key(iterator, &mut key_len);
                let value = c::rocksdb_iter_value(iterator, &mut value_len);
                if !each(bytes(key, key_len), bytes(value, value_len)) {
                    break;
                }
                c::rocksdb_iter_next(iterator);
            }
            c::rocksdb_iter_destroy(iterator);
            c::rocksdb_readoptions_destroy(read);
        }
    }

    pub fn settle(&self) {
        let mut error = ptr::null_mut();
        unsafe {
            let flush = c::rocksdb_flushoptions_create();
            c::rocksdb_flush(self.db, flush, &mut error);
            c::rocksdb_flushoptions_destroy(flush);
            check(error);
            c::rocksdb_compact_range(self.db, ptr::null(), 0, ptr::null(), 0);
        }
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        unsafe {
            c::rocksdb_close(self.db);
            c::rocksdb_writeoptions_destroy(self.write);
            c::rocksdb_options_destroy(self.options);
        }
    }
}

impl Batch {
    pub fn put(&self, key: &[u8], value: &[u8]) {
        unsafe {
            c::rocksdb_writebatch_put(self.0, key.as_ptr().cast(), key.len(), value.as_ptr().cast(), value.len());
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        unsafe { c::rocksdb_writebatch_destroy(self.0) }
    }
}

fn check(error: *mut c_char) {
    if !error.is_null() {
        panic!("rocksdb: {}", unsafe { std::ffi::CStr::from_ptr(error) }.to_string_lossy());
    }
}

unsafe fn take(value: *mut c_char, len: usize) -> Option<Vec<u8>> {
    if value.is_null() {
        return None;
    }
    let owned = unsafe { bytes(value, len) }.to_vec();
    unsafe { c::rocksdb_free(value.cast()) };
    Some(owned)
}
