//! Loops over what programs do with names, on any mounted folder: operations per second of each.
//!
//! `chronofs-loops DIR FILES THREADS [PHASE...]` prints `PHASE OPS/S` for each phase (all of them unless named).
//! `chronofs-loops --walk DIR` walks a tree that is there, reads all of it, and prints what it took.
//! `chronofs-loops --latency DIR SECONDS` does a mix of operations and prints `OPERATION P50 P99` in microseconds of each.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const PHASES: [&str; 11] = [
    "create",
    "overwrite",
    "stat",
    "stat-missing",
    "open-read-close",
    "readdir-stat",
    "rename",
    "unlink",
    "mkdir",
    "rmdir",
    "append-4k",
];
/// What a file holds: small enough to lie inline with the metadata.
const CONTENT: [u8; 200] = [b'x'; 200];

fn file(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("f{n:06}"))
}

fn one(phase: &str, dir: &Path, n: usize) -> io::Result<()> {
    match phase {
        "create" => File::create_new(file(dir, n))?.write_all_at(&CONTENT, 0),
        "overwrite" => OpenOptions::new().write(true).open(file(dir, n))?.write_all_at(&CONTENT, 0),
        "stat" => fs::symlink_metadata(file(dir, n)).map(drop),
        "stat-missing" => match fs::symlink_metadata(dir.join(format!("none{n}"))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => Err(io::Error::other(format!("{other:?} where nothing should be"))),
        },
        "open-read-close" => File::open(file(dir, n))?.read_to_end(&mut Vec::with_capacity(256)).map(drop),
        "rename" => fs::rename(file(dir, n), dir.join(format!("r{n:06}"))),
        "unlink" => fs::remove_file(dir.join(format!("r{n:06}"))),
        "mkdir" => fs::create_dir(dir.join(format!("d{n:06}"))),
        "rmdir" => fs::remove_dir(dir.join(format!("d{n:06}"))),
        other => Err(io::Error::other(format!("there is no phase {other}; the phases: {PHASES:?}"))),
    }
}

/// Does a phase in one thread's folder and gives the number of operations.
fn phase_in(phase: &str, dir: &Path, files: usize) -> io::Result<usize> {
    match phase {
        "readdir-stat" => {
            let mut count = 0;
            for entry in fs::read_dir(dir)? {
                entry?.metadata()?;
                count += 1;
            }
            Ok(count)
        }
        "append-4k" => {
            let log = OpenOptions::new().create(true).append(true).open(dir.join("appended"))?;
            let block = [0u8; 4096];
            (0..files).try_for_each(|_| io::Write::write_all(&mut &log, &block))?;
            log.sync_all()?;
            Ok(files)
        }
        _ => (0..files).try_for_each(|n| one(phase, dir, n)).map(|()| files),
    }
}

fn loops(base: &Path, files: usize, threads: usize, phases: &[String]) -> Result<()> {
    let top = base.join(format!("loops-{}", std::process::id()));
    fs::create_dir(&top).with_context(|| format!("{}", top.display()))?;
    let dirs: Vec<PathBuf> = (0..threads).map(|n| top.join(format!("t{n}"))).collect();
    for dir in &dirs {
        fs::create_dir(dir)?;
    }
    for phase in phases {
        let started = Instant::now();
        let done = std::thread::scope(|scope| {
            let running: Vec<_> =
                dirs.iter().map(|dir| scope.spawn(|| phase_in(phase, dir, files))).collect();
            let counts =
                running.into_iter().map(|r| r.join().unwrap_or_else(|_| Err(io::Error::other("panicked"))));
            counts.sum::<io::Result<usize>>()
        });
        let done = done.with_context(|| format!("{phase} in {}", top.display()))?;
        println!("{phase} {:.0}", done as f64 / started.elapsed().as_secs_f64());
    }
    fs::remove_dir_all(&top).with_context(|| format!("removing {}", top.display()))
}

fn walk(dir: &Path, totals: &mut (u64, u64)) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        totals.0 += 1;
        if metadata.is_dir() {
            walk(&entry.path(), totals)?;
        } else if metadata.is_file() {
            totals.1 += io::copy(&mut File::open(entry.path())?, &mut io::sink())?;
        }
    }
    Ok(())
}

/// What one program does with a file from its making to its end, each step timed.
fn latency(base: &Path, seconds: u64) -> Result<()> {
    let dir = base.join(format!("latency-{}", std::process::id()));
    fs::create_dir(&dir).with_context(|| format!("{}", dir.display()))?;
    let (small, mut large) = (vec![7; 4096], vec![0; 1 << 20]);
    let (began, mut n, mut took) = (Instant::now(), 0u64, BTreeMap::<&str, Vec<Duration>>::new());
    let mut timed = |what: &'static str, job: &mut dyn FnMut() -> io::Result<()>| -> io::Result<()> {
        let started = Instant::now();
        job()?;
        took.entry(what).or_default().push(started.elapsed());
        Ok(())
    };
    while began.elapsed() < Duration::from_secs(seconds) {
        let (file, other) = (dir.join(format!("f{n}")), dir.join(format!("g{n}")));
        timed("create-4k", &mut || fs::write(&file, &small))?;
        timed("read-4k", &mut || fs::read(&file).map(drop))?;
        timed("rename", &mut || fs::rename(&file, &other))?;
        timed("stat", &mut || fs::metadata(&other).map(drop))?;
        timed("unlink", &mut || fs::remove_file(&other))?;
        if n.is_multiple_of(8) {
            // Nothing that was written before, so nothing that is made small.
            let mut state = n + 1;
            large.fill_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u8
            });
            timed("write-1m-fsync", &mut || {
                let file = File::create(&file)?;
                file.write_all_at(&large, 0)?;
                file.sync_all()
            })?;
            fs::remove_file(&file)?;
        }
        n += 1;
    }
    for (what, mut took) in took {
        took.sort_unstable();
        let part = |hundredths: usize| took[(took.len() * hundredths / 100).min(took.len() - 1)].as_micros();
        println!("{what} {} {}", part(50), part(99));
    }
    fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [flag, dir] if flag == "--walk" => {
            let started = Instant::now();
            let mut totals = (0, 0);
            walk(Path::new(dir), &mut totals).with_context(|| dir.clone())?;
            let seconds = started.elapsed().as_secs_f64();
            println!("names {} bytes {} seconds {seconds:.4}", totals.0, totals.1);
            Ok(())
        }
        [flag, dir, seconds] if flag == "--latency" => latency(Path::new(dir), seconds.parse()?),
        [dir, files, threads, phases @ ..] => {
            let all: Vec<String> = PHASES.iter().map(|&phase| phase.to_owned()).collect();
            let phases = if phases.is_empty() { &all[..] } else { phases };
            loops(Path::new(dir), files.parse()?, threads.parse()?, phases)
        }
        _ => bail!("usage: chronofs-loops DIR FILES THREADS [PHASE...] | --walk DIR | --latency DIR SECONDS"),
    }
}
