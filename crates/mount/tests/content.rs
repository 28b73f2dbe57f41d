//! What programs write is kept, on real mounts: beside other mounts, through mappings, and when a mount ends. Needs
//! root, `/dev/fuse`, and `cc` for a program that maps a file.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{Rig, wait_until, within};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn server_process() {
    common::serve_if_asked();
}

#[test]
fn mount_process() {
    common::mount_if_asked();
}

#[test]
fn holes_are_holes_and_ranges_can_be_punched_and_zeroed() {
    within(LIMIT, || {
        let mut rig = Rig::new();
        let mount = rig.mount();
        let file = File::create_new(mount.path("sparse")).unwrap();
        file.write_all_at(b"start", 0).unwrap();
        file.write_all_at(b"end", 100 << 20).unwrap();
        file.sync_all().unwrap();
        assert_eq!(file.metadata().unwrap().len(), (100 << 20) + 3);
        assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20, "a hole takes no room");
        let hole = seek(&file, SeekFrom::Hole(0)).unwrap();
        assert!((5..=4 << 20).contains(&hole), "{hole}");
        let data = seek(&file, SeekFrom::Data(hole)).unwrap();
        assert!(data > hole && data <= 100 << 20, "{data}");
        assert_eq!(seek(&file, SeekFrom::Data(200 << 20)), Err(rustix::io::Errno::NXIO));

        let reader = File::options().read(true).write(true).open(mount.path("sparse")).unwrap();
        reader.write_all_at(&[7; 10_000], 0).unwrap();
        fallocate(&reader, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 1000, 2000).unwrap();
        fallocate(&reader, FallocateFlags::ZERO_RANGE, 5000, 100).unwrap();
        let mut read = vec![1; 10_000];
        reader.read_exact_at(&mut read, 0).unwrap();
        let zeros: Vec<usize> =
            read.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(at, _)| at).collect();
        let expected: Vec<usize> = (1000..3000).chain(5000..5100).collect();
        assert!(read.iter().all(|&byte| byte == 7 || byte == 0) && zeros == expected);
        fallocate(&reader, FallocateFlags::empty(), 0, 200 << 20).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), 200 << 20);
        drop((file, reader));
        mount.unmount();
    });
}

#[test]
fn making_a_file_longer_never_cuts_what_another_mount_wrote_at_that_moment() {
    const ROUNDS: u64 = 200;
    within(LIMIT, || {
        let mut rig = Rig::new();
        let (one, other) = (rig.mount(), rig.mount());
        fs::write(one.path("file"), "").unwrap();
        let writable = |path| File::options().read(true).write(true).open(path).unwrap();
        let (longer, writer) = (writable(one.path("file")), writable(other.path("file")));
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    start.wait();
                    fallocate(&longer, FallocateFlags::empty(), 0, round * 1000 + 500).unwrap();
                    longer.sync_all().unwrap();
                }
            });
            for round in 0..ROUNDS {
                start.wait();
                writer.write_all_at(&[7], round * 1000 + 900).unwrap();
                writer.sync_all().unwrap();
            }
        });
        drop((longer, writer));
        let found = fs::read(one.path("file")).unwrap();
        assert_eq!(found.len() as u64, (ROUNDS - 1) * 1000 + 901);
        let lost: Vec<u64> = (0..ROUNDS).filter(|round| found[*round as usize * 1000 + 900] != 7).collect();
        assert!(lost.is_empty(), "the bytes of rounds {lost:?} are gone");
        other.unmount();
        one.unmount();
    });
}

/// A program in C, told by lines what to do with a file: there is no `unsafe` in here.
struct Program {
    process: Child,
    _folder: tempfile::TempDir,
}

impl Program {
    /// Writes lines to a mapping of the file and neither syncs nor unmaps.
    const MAPS: &str = r#"
        #include <fcntl.h>
        #include <stdio.h>
        #include <string.h>
        #include <sys/mman.h>
        int main(int count, char **args) {
            int file = open(args[1], O_RDWR);
            char *map = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
            if (map == MAP_FAILED) return 1;
            char line[100];
            while (fgets(line, sizeof line, stdin)) {
                memcpy(map + 40000, line, strlen(line));
                puts("done");
                fflush(stdout);
            }
            return 0;
        }
    "#;
    /// Reads the file and writes to it; then truncates it and waits a second for that; then writes again.
    const TRUNCATES: &str = r#"
        #include <errno.h>
        #include <fcntl.h>
        #include <signal.h>
        #include <stdio.h>
        #include <unistd.h>
        static void nothing(int signal) {}
        static void say(int right) {
            char line[100];
            puts(right ? "done" : "failed");
            fflush(stdout);
            fgets(line, sizeof line, stdin);
        }
        int main(int count, char **args) {
            char buffer[65536];
            struct sigaction action = { .sa_handler = nothing };
            sigaction(SIGALRM, &action, 0);
            int file = open(args[1], O_RDWR);
            fgets(buffer, sizeof buffer, stdin);
            say(pread(file, buffer, sizeof buffer, 0) == 65536 && pwrite(file, "before", 6, 50000) == 6);
            alarm(1);
            int interrupted = ftruncate(file, 10) < 0 && errno == EINTR;
            say(interrupted && pwrite(file, "later", 5, 300) == 5 && pwrite(file, "end", 3, 65533) == 3);
            return 0;
        }
    "#;

    /// Makes the file `file` of 65536 dots and starts the program on it.
    fn start(source: &str, file: &Path) -> Program {
        fs::write(file, vec![b'.'; 65536]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (code, program) = (folder.path().join("program.c"), folder.path().join("program"));
        fs::write(&code, source).unwrap();
        assert!(Command::new("cc").arg("-o").arg(&program).arg(&code).status().unwrap().success());
        let process = Command::new(program).arg(file).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        Program { process: process.unwrap(), _folder: folder }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{line}").unwrap();
        let mut answer = String::new();
        BufReader::new(self.process.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n");
    }

    fn end(mut self) {
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}

#[test]
fn a_truncation_that_was_interrupted_cuts_nothing_that_was_written_after_it() {
    within(LIMIT, || {
        let mut rig = Rig::new();
        let mount = rig.mount();
        let path = mount.path("file");
        let mut program = Program::start(Program::TRUNCATES, &path);
        program.tell("write");
        let held = File::open(&path).unwrap();
        held.read_exact_at(&mut [0; 65536], 0).unwrap();
        rig.kill_server();
        program.tell("truncate");
        rig.start_server();
        let mut expected = vec![0; 65536];
        expected[..10].fill(b'.');
        expected[300..305].copy_from_slice(b"later");
        expected[65533..].copy_from_slice(b"end");
        // The file is as long as before: the kernel must be told that its pages are of another time.
        let mut seen = vec![0; 65536];
        wait_until("the truncation is seen", || {
            held.read_exact_at(&mut seen, 0).unwrap();
            seen[10] == 0
        });
        assert!(seen == expected);
        drop(held);
        program.end();
        let other = rig.mount();
        assert!(fs::read(other.path("file")).unwrap() == expected);
        other.unmount();
        mount.unmount();
    });
}

fn mapped_text(path: &Path) -> String {
    let content = fs::read(path).unwrap();
    String::from_utf8_lossy(&content[40_000..40_006]).into_owned()
}

#[test]
fn an_instant_shows_what_was_written_through_a_mapping_before_it() {
    within(LIMIT, || {
        let mut rig = Rig::new();
        let mount = rig.mount();
        let mut mapper = Program::start(Program::MAPS, &mount.path("file"));
        let mut instants = Vec::new();
        for text in ["first\n", "second", "third\n"] {
            mapper.tell(text.trim_end());
            instants.push((mount.instant(), text));
        }
        for (instant, text) in &instants {
            let past = rig.mount_at(instant);
            assert_eq!(mapped_text(&past.path("file")), *text);
            past.unmount();
        }
        mapper.end();
        mount.unmount();
    });
}

#[test]
fn a_mount_that_is_told_to_end_while_programs_write_keeps_every_write_that_it_took() {
    within(LIMIT, || {
        let mut rig = Rig::new();
        for round in 0..4 {
            let mount = rig.mount();
            let path = mount.path(&format!("file {round}"));
            let file = File::create(&path).unwrap();
            let writer = std::thread::spawn(move || {
                let mut taken = 0u64;
                loop {
                    match file.write_all_at(&taken.to_le_bytes(), taken * 8) {
                        Ok(()) => taken += 1,
                        Err(error) => return (taken, error.raw_os_error()),
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(300));
            mount.terminate();
            let (taken, error) = writer.join().unwrap();
            assert!([Some(libc::ENOTCONN), Some(libc::ECONNABORTED)].contains(&error), "{error:?}");
            assert!(taken > 100, "{taken} writes");
            let again = rig.mount();
            let found = fs::read(again.path(&format!("file {round}"))).unwrap();
            let expected: Vec<u8> = (0..taken).flat_map(u64::to_le_bytes).collect();
            assert_eq!(
                found.len(),
                expected.len(),
                "round {round}: all that was taken is there, and no more"
            );
            assert!(found == expected);
            again.unmount();
        }
    });
}

#[test]
fn a_mount_that_is_told_to_end_keeps_what_was_written_through_mappings() {
    within(LIMIT, || {
        let mut rig = Rig::new();
        let mount = rig.mount();
        let mut mapper = Program::start(Program::MAPS, &mount.path("file"));
        mapper.tell("mapped");
        mount.terminate();
        mapper.end();
        let again = rig.mount();
        assert_eq!(mapped_text(&again.path("file")), "mapped");
        again.unmount();
    });
}

#[test]
fn data_behind_a_hole_of_a_terabyte_is_found_at_once() {
    const TIB: u64 = 1 << 40;
    within(LIMIT, || {
        let mut rig = Rig::new();
        let (one, other) = (rig.mount(), rig.mount());
        let file = File::create(one.path("sparse")).unwrap();
        file.set_len(16 * TIB).unwrap();
        file.write_all_at(b"far", 15 * TIB).unwrap();
        drop(file);
        for mount in [&one, &other] {
            let file = File::open(mount.path("sparse")).unwrap();
            let start = Instant::now();
            assert_eq!(seek(&file, SeekFrom::Data(5)), Ok(15 * TIB));
            assert_eq!(seek(&file, SeekFrom::Hole(5)), Ok(5));
            assert_eq!(seek(&file, SeekFrom::Data(15 * TIB + 3)), Err(rustix::io::Errno::NXIO));
            let took = start.elapsed();
            assert!(took < Duration::from_secs(1), "{took:?}");
        }
        other.unmount();
        one.unmount();
    });
}
