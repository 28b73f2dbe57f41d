//! Random batches of changes to a tree: what people and programs do to files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::rng::Rng;
use crate::tree::{generate, set_xattr};

/// The regular files and the folders under `root`, in byte order of their paths (the root itself left out).
pub fn listing(root: &Path) -> io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut files, mut dirs, mut open) = (Vec::new(), Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(entry.path());
                dirs.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    dirs.sort();
    Ok((files, dirs))
}

/// Makes folder `root` with a tree of all kinds in it, and changes that.
pub fn changed_tree(root: &Path, rng: &mut Rng) -> io::Result<()> {
    fs::create_dir(root)?;
    generate(root, 150, rng)?;
    random_batch(root, 80, rng)
}

/// Makes `count` random changes under `root`, which has to have files.
pub fn random_batch(root: &Path, count: usize, rng: &mut Rng) -> io::Result<()> {
    let (mut files, mut dirs) = listing(root)?;
    if files.len() < 4 {
        // A test that compares nothing with nothing would succeed.
        return Err(io::Error::other(format!("{} has too few files to change any", root.display())));
    }
    for n in 0..count {
        if files.len() < 4 {
            return Ok(());
        }
        let named = |e: io::Error| io::Error::new(e.kind(), format!("change {n}: {e}"));
        one_change(root, &mut files, &mut dirs, rng).map_err(named)?;
    }
    Ok(())
}

fn one_change(
    root: &Path,
    files: &mut Vec<PathBuf>,
    dirs: &mut Vec<PathBuf>,
    rng: &mut Rng,
) -> io::Result<()> {
    let index = rng.below(files.len() as u64) as usize;
    let file = files[index].clone();
    let fresh = format!("new-{:016x}", rng.bits());
    match rng.below(13) {
        0 => {
            fs::remove_file(&file)?;
            files.swap_remove(index);
        }
        1 => {
            let len = rng.between(1, 30_000) as usize;
            let size = fs::metadata(&file)?.len();
            let offset = rng.below(size.max(1));
            OpenOptions::new().write(true).open(&file)?.write_all_at(&rng.bytes(len), offset)?;
        }
        2 => {
            let len = rng.between(1, 30_000) as usize;
            OpenOptions::new().append(true).open(&file)?.write_all(&rng.bytes(len))?;
        }
        3 => {
            let size = fs::metadata(&file)?.len();
            OpenOptions::new().write(true).open(&file)?.set_len(rng.below(size * 2 + 2))?;
        }
        4 => {
            let over = files[rng.below(files.len() as u64) as usize].clone();
            fs::rename(&file, &over)?;
            // Renaming one hard link over another of the same file does nothing, by POSIX: look what is left.
            files.retain(|path| *path != file || fs::symlink_metadata(path).is_ok());
        }
        5 => {
            fs::set_permissions(&file, fs::Permissions::from_mode(rng.below(0o1000) as u32))?;
        }
        6 => {
            fs::remove_file(&file)?;
            fs::create_dir(&file)?;
            files.swap_remove(index);
            fs::write(file.join("inside"), rng.bytes(100))?;
            files.push(file.join("inside"));
            dirs.push(file);
        }
        7 => {
            let to = rng.pick(dirs).join(fresh);
            fs::rename(&file, &to)?;
            files[index] = to;
        }
        8 => {
            let to = rng.pick(dirs).join(fresh);
            fs::hard_link(&file, &to)?;
            files.push(to);
        }
        9 => {
            let len = rng.below(100_000) as usize;
            let to = rng.pick(dirs).join(fresh);
            let mut new = File::create_new(&to)?;
            new.write_all(&rng.bytes(len))?;
            files.push(to);
        }
        10 => {
            let len = rng.below(1000) as usize;
            set_xattr(&file, "user.changed", &rng.bytes(len))?;
        }
        11 => {
            let (uid, gid) = (rng.below(1000) as u32, rng.below(1000) as u32);
            std::os::unix::fs::chown(&file, Some(uid), Some(gid))?;
        }
        _ => symlink(file.strip_prefix(root).unwrap_or(&file), rng.pick(dirs).join(fresh))?,
    }
    Ok(())
}
