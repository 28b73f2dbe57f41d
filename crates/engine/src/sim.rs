//! A simulated disk for the log: what was not synced is lost, reordered by page or torn when the power is cut, and
//! operations can be made to fail. Everything follows from a seed; there are no clocks and no threads.
//!
//! [`SimDisk`] implements [`Disk`]; clones are the same disk, so a test keeps one while an engine owns another.

use crate::embedded::disk::{Disk, DiskFile};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the disk keeps or loses at once.
const PAGE_BYTES: usize = 4096;
/// What it never tears.
const SECTOR_BYTES: usize = 512;

/// A small generator of random numbers (splitmix64), so that a seed means the same for ever.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of `seed`.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The operation fails with EIO; a failed sync drops what it should have saved.
    Io,
    /// The operation fails with ENOSPC if it is one that takes space.
    NoSpace,
    /// The power fails during the operation; everything fails until [`SimDisk::power_on`].
    PowerCut,
}

/// A folder of the disk.
#[derive(Clone)]
pub struct SimDisk {
    medium: Arc<Mutex<Medium>>,
    /// What every name in it begins with: nothing, or the folder's own name and a slash.
    folder: String,
}

#[derive(Clone)]
struct Medium {
    random: Random,
    /// Names as everyone sees them, and as the last `sync_dir` left them, with what was done since.
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    renames: Vec<NameChange>,
    files: Vec<SimInode>,
    operations: u64,
    faults: BTreeMap<u64, Fault>,
    off: bool,
}

#[derive(Clone)]
enum NameChange {
    Put(String, usize),
    Remove(String),
    Rename(String, String),
}

#[derive(Clone, Default)]
struct SimInode {
    content: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync, oldest first.
    pending: Vec<(usize, Vec<u8>)>,
}

/// A file of a [`SimDisk`].
pub struct SimFile {
    disk: SimDisk,
    inode: usize,
}

impl NameChange {
    fn name(&self) -> &str {
        match self {
            NameChange::Put(name, _) | NameChange::Remove(name) | NameChange::Rename(name, _) => name,
        }
    }
}

fn apply_name(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Put(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
        NameChange::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
    }
}

fn write_into(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if content.len() < offset + bytes.len() {
        content.resize(offset + bytes.len(), 0);
    }
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl SimInode {
    /// What is left on the medium when the power fails: of every page some state between the last sync and now,
    /// the newest write of it perhaps in part.
    fn cut(&mut self, random: &mut Random) {
        let mut left = self.durable.clone();
        if left.len() != self.content.len() && !random.one_in(3) {
            left.resize(self.content.len(), 0);
        }
        for page in 0..left.len().div_ceil(PAGE_BYTES) {
            let (start, end) = (page * PAGE_BYTES, ((page + 1) * PAGE_BYTES).min(left.len()));
            let touching: Vec<_> = self
                .pending
                .iter()
                .filter(|(offset, bytes)| *offset < end && offset + bytes.len() > start)
                .collect();
            let kept = random.below(touching.len() as u64 + 1) as usize;
            for (number, (offset, bytes)) in touching.iter().take(kept).enumerate() {
                let (from, mut to) = ((*offset).max(start), (offset + bytes.len()).min(end));
                if number + 1 == kept && random.one_in(4) {
                    let sectors = (to - from).div_ceil(SECTOR_BYTES) as u64;
                    to = (from + random.below(sectors + 1) as usize * SECTOR_BYTES).min(to);
                }
                left[from..to].copy_from_slice(&bytes[from - offset..to - offset]);
            }
        }
        self.content = left.clone();
        self.durable = left;
        self.pending.clear();
    }
}

impl Medium {
    /// Counts an operation; says whether it goes wrong, and how.
    fn step(&mut self, takes_space: bool) -> io::Result<Option<Fault>> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        self.operations += 1;
        let fault = self.faults.remove(&self.operations);
        match fault {
            Some(Fault::NoSpace) if !takes_space => Ok(None),
            Some(Fault::PowerCut) => {
                self.off = true;
                Ok(fault)
            }
            _ => Ok(fault),
        }
    }

    fn change_names(&mut self, change: NameChange) -> io::Result<()> {
        let takes_space = matches!(change, NameChange::Put(..));
        if let Some(fault) = self.step(takes_space)? {
            if fault == Fault::PowerCut && self.random.one_in(2) {
                self.renames.push(change);
            }
            return Err(error_of(fault));
        }
        apply_name(&mut self.names, &change);
        self.renames.push(change);
        Ok(())
    }
}

fn error_of(fault: Fault) -> io::Error {
    match fault {
        Fault::Io => io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()),
        Fault::NoSpace => io::ErrorKind::StorageFull.into(),
        Fault::PowerCut => io::Error::other("the power failed"),
    }
}

impl SimDisk {
    /// An empty disk whose chances follow from `seed`.
    pub fn new(seed: u64) -> Self {
        let medium = Medium {
            random: Random::new(seed),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            renames: Vec::new(),
            files: Vec::new(),
            operations: 0,
            faults: BTreeMap::new(),
            off: false,
        };
        SimDisk { medium: Arc::new(Mutex::new(medium)), folder: String::new() }
    }

    /// Another disk that holds and does the same from here on.
    pub fn copy(&self) -> SimDisk {
        SimDisk { medium: Arc::new(Mutex::new(self.lock().clone())), folder: self.folder.clone() }
    }

    /// The folder that an image was made in.
    pub fn of_image(&self, place: &Path) -> SimDisk {
        SimDisk { medium: self.medium.clone(), folder: format!("{}/", place.display()) }
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.folder)
    }

    /// The name in this folder, if it is one.
    fn own<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(&self.folder).filter(|rest| !rest.contains('/'))
    }

    fn lock(&self) -> MutexGuard<'_, Medium> {
        self.medium.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many operations there were.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Lets the `n`-th operation from now (1 is the next) go wrong.
    pub fn fail_at(&self, n: u64, fault: Fault) {
        let mut medium = self.lock();
        let at = medium.operations + n;
        medium.faults.insert(at, fault);
    }

    /// Forgets faults that have not happened.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// Cuts the power now. Everything fails until [`SimDisk::power_on`].
    pub fn power_off(&self) {
        self.lock().off = true;
    }

    /// Whether the power is off.
    pub fn is_off(&self) -> bool {
        self.lock().off
    }

    /// Comes back after a power cut with what the medium held. Without a cut before, it is one.
    pub fn power_on(&self) {
        let mut medium = self.lock();
        let medium = &mut *medium;
        let kept = medium.random.below(medium.renames.len() as u64 + 1) as usize;
        let mut names = medium.durable_names.clone();
        medium.renames.drain(..).take(kept).for_each(|change| apply_name(&mut names, &change));
        medium.names = names.clone();
        medium.durable_names = names;
        medium.files.iter_mut().for_each(|file| file.cut(&mut medium.random));
        medium.faults.clear();
        medium.off = false;
    }

    /// Comes back with everything that was written, synced or not: as after a process that was killed. Until then,
    /// from [`SimDisk::power_off`] on, nothing that the process still tries has an effect.
    pub fn thaw(&self) {
        let mut medium = self.lock();
        medium.faults.clear();
        medium.off = false;
    }

    /// Changes stored bytes behind everybody's back: `change` gets the content of file `name`.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut medium = self.lock();
        if let Some(inode) = medium.names.get(&self.name(name)).copied() {
            let file = &mut medium.files[inode];
            change(&mut file.content);
            file.durable = file.content.clone();
            file.pending.clear();
        }
    }

    /// The names of all files, sorted.
    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().filter_map(|name| self.own(name)).map(str::to_owned).collect()
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let mut medium = self.lock();
        if let Some(fault) = medium.step(false)? {
            return Err(error_of(fault));
        }
        let inode = medium.names.get(&self.name(name)).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(SimFile { disk: self.clone(), inode })
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut medium = self.lock();
        let inode = medium.files.len();
        medium.files.push(SimInode::default());
        medium.change_names(NameChange::Put(self.name(name), inode))?;
        Ok(SimFile { disk: self.clone(), inode })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut medium = self.lock();
        match medium.step(false)? {
            Some(fault) => Err(error_of(fault)),
            None => Ok(medium.names.keys().filter_map(|name| self.own(name)).map(str::to_owned).collect()),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.lock().change_names(NameChange::Remove(self.name(name)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.lock().change_names(NameChange::Rename(self.name(from), self.name(to)))
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut medium = self.lock();
        if let Some(fault) = medium.step(false)? {
            return Err(error_of(fault));
        }
        // Names in other folders stay unsaved.
        let changes = std::mem::take(&mut medium.renames);
        for change in changes {
            match self.own(change.name()) {
                Some(_) => apply_name(&mut medium.durable_names, &change),
                None => medium.renames.push(change),
            }
        }
        Ok(())
    }

    fn image(&self, place: &Path) -> io::Result<Self> {
        match self.lock().step(true)? {
            Some(fault) => Err(error_of(fault)),
            None => Ok(self.of_image(place)),
        }
    }

    fn link(&self, name: &str, to: &Self) -> io::Result<()> {
        let mut medium = self.lock();
        let inode = medium.names.get(&self.name(name)).copied().ok_or(io::ErrorKind::NotFound)?;
        medium.change_names(NameChange::Put(to.name(name), inode))
    }

    fn path(&self, name: &str) -> String {
        format!("sim/{}{name}", self.folder)
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut medium = self.disk.lock();
        let medium = &mut *medium;
        let fault = medium.step(true)?;
        // A write that fails may have been done in part.
        let done =
            if fault.is_some() { medium.random.below(bytes.len() as u64 + 1) as usize } else { bytes.len() };
        let file = &mut medium.files[self.inode];
        write_into(&mut file.content, offset as usize, &bytes[..done]);
        file.pending.push((offset as usize, bytes[..done].to_vec()));
        fault.map_or(Ok(()), |fault| Err(error_of(fault)))
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let mut medium = self.disk.lock();
        if let Some(fault) = medium.step(true)? {
            return Err(error_of(fault));
        }
        let file = &mut medium.files[self.inode];
        if file.content.len() < length as usize {
            file.content.resize(length as usize, 0);
        }
        Ok(())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let mut medium = self.disk.lock();
        if let Some(fault) = medium.step(false)? {
            return Err(error_of(fault));
        }
        medium.files[self.inode].content.truncate(length as usize);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut medium = self.disk.lock();
        let medium = &mut *medium;
        let fault = medium.step(false)?;
        let file = &mut medium.files[self.inode];
        match fault {
            None => {
                // Not the whole content: what an earlier failed sync dropped stays unsaved.
                for (offset, bytes) in file.pending.drain(..) {
                    write_into(&mut file.durable, offset, &bytes);
                }
                file.durable.resize(file.content.len(), 0);
                Ok(())
            }
            Some(fault) => {
                if fault == Fault::Io {
                    // As the kernel does: readable still, but no later sync writes it.
                    file.pending.clear();
                }
                Err(error_of(fault))
            }
        }
    }

    fn read(&self) -> io::Result<Bytes> {
        let mut medium = self.disk.lock();
        match medium.step(false)? {
            Some(fault) => Err(error_of(fault)),
            None => Ok(Bytes::copy_from_slice(&medium.files[self.inode].content)),
        }
    }

    fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let content = self.read()?;
        let from = (offset as usize).min(content.len());
        Ok(content.slice(from..content.len().min(from + length)))
    }
}
