//! What happens: writers, readers of the present and of instants, and somebody who breaks things; then all is well, and
//! everything is looked at.

use super::bucket::Mood;
use super::client::{Client, LATENCY_MS, Opened};
use super::model::File;
use super::pinned;
use super::server::BLOCK_SIZE;
use super::{Random, Shared, World, count, lock, tell};
use crate::data::ErrorMark;
use chronofs_core::ops::{Reply, Request};
use chronofs_core::{Errno, Retention, SetAttr, Version};
use chronofs_wire::message::RefusalReason;
use futures::future::{join_all, select};
use futures::{FutureExt, pin_mut};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const SIZE_MAX: u64 = BLOCK_SIZE as u64 * 2;

async fn sleep_ms(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

pub(super) async fn play(seed: u64) -> Shared {
    let world = World::new(seed);
    let mut random = world.split();
    world.bucket.store(&super::Life::new(), true).claim().await.unwrap();
    world.start_server();
    let mut writers = Vec::new();
    for n in 0..1 + random.below(2) {
        writers.push(Writer::new(&world, n).await);
    }
    world.bucket.set_mood(mood(&mut random));
    let writing = join_all(writers.iter_mut().map(Writer::work));
    let reading = join_all((0..random.below(2)).map(|_| read_live(&world, world.split())));
    let looking_back = join_all((0..1 + random.below(2)).map(|_| read_past(&world, world.split())));
    let breaking = break_things(&world, world.split());
    let pinning = pinned::pin_now_and_then(&world, world.split());
    {
        let others = async { futures::join!(reading, looking_back, breaking, pinning) };
        pin_mut!(writing, others);
        select(writing, others).await;
    }
    world.check_tasks();
    finish(&world, writers).await;
    world.check_tasks();
    world
}

fn mood(random: &mut Random) -> Mood {
    match random.below(8) {
        0 | 1 => Mood::Honest,
        2 => Mood::Away,
        n => Mood::Lies([2, 4, 4, 10, 30][n as usize - 3]),
    }
}

/// Whoever writes: a client, and after its death the next one.
struct Writer {
    world: Shared,
    random: Random,
    client: Arc<Client>,
    files: Vec<usize>,
    open: Vec<(Opened, ErrorMark)>,
}

impl Writer {
    async fn new(world: &Shared, n: u64) -> Writer {
        let client = Client::mount(world, None).await.expect("nothing is wrong yet");
        let mut random = world.split();
        let mut files = Vec::new();
        for file in 0..1 + random.below(2) {
            let name = format!("file {file} of {n}");
            let ino = client.create(&name).await.unwrap();
            lock(&world.files).push(File::new(name, ino));
            files.push(lock(&world.files).len() - 1);
        }
        client.sync().await.unwrap();
        let mut writer = Writer { world: world.clone(), random, client, files, open: Vec::new() };
        writer.open_all().await.unwrap();
        writer
    }

    async fn open_all(&mut self) -> Result<(), Errno> {
        self.open.clear();
        for &n in &self.files {
            let file = self.client.open(self.world.file(n, |file| file.ino), true).await?;
            let mark = file.error_mark();
            self.open.push((file, mark));
        }
        Ok(())
    }

    async fn work(&mut self) {
        for _ in 0..16 + self.random.below(24) {
            let (client, dies_ms) = (self.client.clone(), self.random.below(400));
            let dies = self.random.one_in(14);
            let death = async {
                if dies {
                    sleep_ms(dies_ms).await;
                    client.die();
                }
                client.life.ended().await;
            };
            let died = {
                let step = self.step();
                pin_mut!(step, death);
                matches!(select(step, death).await, futures::future::Either::Right(_))
            };
            if died {
                self.take_over().await;
            }
            self.world.check_tasks();
        }
    }

    /// The client is dead. Another one takes its files over, as it finds them.
    async fn take_over(&mut self) {
        count(&self.world.told.crashes);
        tell!(self.world, "the writer of {:?} is dead", self.files);
        self.open.clear();
        // What the dead one sent is there by then, or lost.
        sleep_ms(2 * LATENCY_MS).await;
        loop {
            self.client = Client::mount(&self.world, None).await.expect("a live volume is not refused");
            let (client, mut found) = (self.client.clone(), Vec::new());
            let reading = async {
                for &n in &self.files {
                    let oldest = self.world.oldest(n);
                    let ino = self.world.file(n, |file| file.ino);
                    let content = loop {
                        match read_whole(&client, ino).await {
                            Ok(content) => break content,
                            Err(_) => sleep_ms(300).await,
                        }
                    };
                    let known = self.world.file(n, |file| file.known());
                    tell!(
                        self.world,
                        "{n} is taken over with {} bytes, from state {oldest}: {known}",
                        content.len()
                    );
                    self.world.check_live(n, oldest, &content);
                    found.push((n, content));
                }
                client.sync().await
            };
            let death = client.life.ended();
            let cuts = self.world.cuts.load(Ordering::Relaxed);
            {
                pin_mut!(reading, death);
                let read = select(reading, death).await;
                // What the dead one had published and nobody had made durable goes with the server's power: it does not
                // come back to make it again.
                let kept = matches!(read, futures::future::Either::Left((Ok(_), _)));
                if !kept || self.world.cuts.load(Ordering::Relaxed) != cuts {
                    client.die();
                    continue;
                }
            }
            for (n, content) in found {
                self.world.taken_over(n, content, cuts);
            }
            let (client, opening) = (self.client.clone(), self.open_all());
            let death = client.life.ended();
            pin_mut!(opening, death);
            if let futures::future::Either::Left((Ok(()), _)) = select(opening, death).await {
                return;
            }
            client.die();
            sleep_ms(2 * LATENCY_MS).await;
        }
    }

    async fn step(&mut self) {
        let at = self.random.below(self.files.len() as u64) as usize;
        let what = self.random.below(20);
        tell!(self.world, "the writer of {:?}: step {what} with {}", self.files, self.files[at]);
        match what {
            0..=7 => self.write(at).await,
            8 | 9 => self.close(at).await,
            10..=12 => self.sync().await,
            13 | 14 => self.read_own(at).await,
            15 => self.truncate(at).await,
            16 => self.zero(at).await,
            _ => sleep_ms(self.random.below(900)).await,
        }
    }

    fn range(&mut self) -> (u64, u64) {
        let len = match self.random.below(8) {
            0 | 1 => 1 + self.random.below(400),
            2 | 3 => 600 + self.random.below(20_000),
            // Beyond what is staged: an object of its own.
            _ => (64 << 10) + 1 + self.random.below(60_000),
        };
        (self.random.below(SIZE_MAX - len), len)
    }

    async fn write(&mut self, at: usize) {
        let (offset, len) = self.range();
        let n = self.files[at];
        tell!(self.world, "{n} is written at {offset}, {len} bytes");
        let bytes: Vec<u8> =
            (0..len / 8 + 1).flat_map(|_| (self.random.number() | 0x0101).to_le_bytes()).collect();
        let bytes = &bytes[..len as usize];
        let end = (offset + len) as usize;
        self.world.file(n, |file| {
            file.change(|content| {
                content.resize(content.len().max(end), 0);
                content[offset as usize..end].copy_from_slice(bytes);
            })
        });
        // Memory may be full of what cannot be stored; then nothing was written.
        if self.open[at].0.write(offset, bytes, false).await.is_err() {
            self.world.file(n, File::take_back);
        }
    }

    async fn flush(&self, at: usize) -> bool {
        let (file, mark) = &self.open[at];
        file.flush(mark).await.is_ok()
    }

    async fn close(&mut self, at: usize) {
        if self.flush(at).await {
            tell!(self.world, "{} is closed", self.files[at]);
            let ino = self.world.file(self.files[at], |file| file.ino);
            self.world.closed(self.files[at], self.client.changed(ino));
        }
    }

    async fn sync(&mut self) {
        for at in 0..self.files.len() {
            if !self.flush(at).await {
                return;
            }
        }
        let Ok(instant) = self.client.sync().await else { return };
        tell!(self.world, "{:?} are durable at {instant}", self.files);
        count(&self.world.told.synced);
        self.files.iter().for_each(|&n| self.world.durable_at(n, instant));
    }

    /// Who wrote sees at once what it wrote, and nothing else.
    async fn read_own(&mut self, at: usize) {
        let latest = self.world.file(self.files[at], |file| file.latest());
        match self.open[at].0.read(0, u32::MAX).await {
            Ok(found) => assert!(found == **latest, "a writer reads something else than it wrote"),
            Err(errno) => {
                assert_eq!(errno, Errno::EIO);
                count(&self.world.told.refused);
            }
        }
    }

    async fn truncate(&mut self, at: usize) {
        let size = self.random.below(SIZE_MAX);
        let n = self.files[at];
        tell!(self.world, "{n} is cut to {size}");
        let ino = self.world.file(n, |file| {
            file.change(|content| content.resize(size as usize, 0));
            file.ino
        });
        let set = SetAttr { size: Some(size), by_handle: true, ..SetAttr::default() };
        let client = self.client.clone();
        let request = async {
            match client.call(Request::SetAttr { ino, set: set.clone() }).await?.1 {
                Reply::Attr(attr) => Ok(attr),
                other => panic!("{other:?}"),
            }
        };
        let done = self.open[at].0.set_attr(&set, request).await;
        if done.is_ok() {
            self.client.note_changed(ino);
        } else {
            // The session was over: whether it was done is not known, as to a program.
            self.client.die();
            std::future::pending::<()>().await;
        }
    }

    async fn zero(&mut self, at: usize) {
        let (offset, len) = self.range();
        self.world.file(self.files[at], |file| {
            file.change(|content| {
                let end = content.len().min((offset + len) as usize);
                content.get_mut(offset as usize..end).unwrap_or_default().fill(0);
            })
        });
        self.open[at].0.zero(offset, len, false, false).await.unwrap();
    }
}

async fn read_whole(client: &Client, ino: chronofs_core::Ino) -> Result<Vec<u8>, Errno> {
    let file = client.open(ino, false).await?;
    let found = file.read(0, u32::MAX).await;
    client.close(ino).await;
    found.map(|bytes| bytes.to_vec())
}

/// Somebody else opens files now and then.
async fn read_live(world: &Shared, mut random: Random) {
    loop {
        let client = Client::mount(world, None).await.expect("a live volume is not refused");
        let reading = async {
            for _ in 0..1 + random.below(6) {
                sleep_ms(random.below(700)).await;
                let n = random.below(lock(&world.files).len() as u64) as usize;
                let oldest = world.oldest(n);
                match read_whole(&client, world.file(n, |file| file.ino)).await {
                    Ok(found) => {
                        world.check_live(n, oldest, &found);
                        count(&world.told.read_live);
                    }
                    Err(errno) => {
                        assert_eq!(errno, Errno::EIO);
                        count(&world.told.refused);
                    }
                }
            }
        };
        let death = client.life.ended();
        {
            pin_mut!(reading, death);
            select(reading, death).await;
        }
        match random.one_in(2) {
            true => client.unmount().await,
            false => client.die(),
        }
    }
}

/// Somebody mounts instants that were acknowledged, and keeps some of them while they leave the window.
async fn read_past(world: &Shared, mut random: Random) {
    loop {
        sleep_ms(200 + random.below(1500)).await;
        let mut known = Vec::new();
        for (n, file) in lock(&world.files).iter().enumerate() {
            known.extend(file.instants.iter().rev().take(4).map(|&(at, state)| (n, at, state)));
        }
        if known.is_empty() {
            continue;
        }
        let (n, at, state) = known[random.below(known.len() as u64) as usize];
        let Some(client) = mount_past(world, at).await else { continue };
        for _ in 0..1 + random.below(4) {
            let reading = read_at(world, &client, n, state);
            let death = client.life.ended();
            pin_mut!(reading, death);
            if matches!(select(reading, death).await, futures::future::Either::Left((Err(()), _))) {
                break;
            }
            sleep_ms(random.below(1500)).await;
        }
        client.unmount().await;
    }
}

/// Whether the file shows just what it was, or nothing at all.
async fn read_at(world: &Shared, client: &Client, n: usize, state: usize) -> Result<(), ()> {
    let (ino, expected) = world.file(n, |file| (file.ino, file.state(state)));
    match read_whole(client, ino).await {
        Ok(found) => {
            assert!(found == **expected, "{n} is not at the instant what it was then");
            count(&world.told.read_past);
            Ok(())
        }
        Err(errno) => {
            assert_eq!(errno, Errno::EIO);
            count(&world.told.refused);
            Err(())
        }
    }
}

/// An instant in the window is never refused.
async fn mount_past(world: &Shared, at: Version) -> Option<Arc<Client>> {
    match Client::mount(world, Some(at)).await {
        Ok(client) => Some(client),
        Err(refusal) => {
            let window = match world.retention {
                Retention::None => 0,
                Retention::Seconds(seconds) => seconds * 1_000_000_000,
                Retention::Forever => u64::MAX,
            };
            let RefusalReason::Instant { latest, .. } = refusal.reason else { panic!("{refusal:?}") };
            assert!(latest.0 <= world.now().wall_ns + world.ahead_ns_max(), "{refusal:?}");
            let age = latest.0.saturating_sub(at.0);
            assert!(
                age >= window,
                "an instant {age} ns old, in a window of {window}, is refused: {refusal:?}"
            );
            None
        }
    }
}

/// Servers die, machines lose power, the store changes its mood, connections break, and the bucket is looked through.
async fn break_things(world: &Shared, mut random: Random) {
    let calm = 1 + random.below(3);
    loop {
        sleep_ms(random.below(700)).await;
        world.check_stays();
        match random.below(12 * calm) {
            0 | 1 => {
                world.stop_server(random.one_in(2));
                sleep_ms(random.below(1500)).await;
                world.start_server();
                world.check_reachable();
            }
            2 => {
                let conns: Vec<_> = lock(&world.conns).keys().copied().collect();
                if !conns.is_empty() {
                    let conn = conns[random.below(conns.len() as u64) as usize];
                    lock(&world.conns).remove(&conn);
                }
            }
            3 | 4 => world.bucket.set_mood(mood(&mut random)),
            5 => world.maintain(),
            // Just when something is deleted: all that allowed it must have been durable.
            9 | 10 => {
                let deleted = tokio::time::timeout(Duration::from_secs(2), world.bucket.next_delete());
                if deleted.await.is_ok() {
                    world.stop_server(true);
                    sleep_ms(random.below(500)).await;
                    world.start_server();
                    world.check_reachable();
                }
            }
            6..=8 => world.look_soon(),
            _ => world.check_reachable(),
        }
        world.check_tasks();
    }
}

/// All is well again: what was acknowledged is there, and nothing else in the store.
async fn finish(world: &Shared, mut writers: Vec<Writer>) {
    world.bucket.set_mood(Mood::Honest);
    world.start_server();
    while !world.bucket.is_quiet() {
        sleep_ms(1000).await;
    }
    for writer in &mut writers {
        store_all(writer).await;
    }
    world.check_reachable();
    look_at_all(world).await;
    pinned::look_at_pinned(world).await;
    for writer in writers {
        writer.client.die();
    }
    lock(&world.lives).iter().for_each(|life| life.end());
    // Sessions end, the window moves on, and the collector looks, until nothing is left to it.
    let window_s = match world.retention {
        Retention::Seconds(seconds) => seconds,
        _ => 0,
    };
    for _ in 0..4 {
        sleep_ms(1500 + window_s.min(10) * 300).await;
        world.look_soon();
    }
    pinned::look_at_pinned(world).await;
    pinned::release_all(world).await;
    for _ in 0..60 {
        sleep_ms(1000 + window_s.min(10) * 300).await;
        world.look_soon();
        if window_s > 60 || world.is_collected() {
            break;
        }
    }
    world.check_reachable();
    world.count_packed();
    world.verify();
    assert!(window_s > 60 || world.is_collected(), "{}", world.uncollected());
}

/// Whatever was written is stored, even if its client dies over it.
async fn store_all(writer: &mut Writer) {
    for _ in 0..20 {
        if writer.client.life.is_over() {
            writer.take_over().await;
        }
        let (client, before) = (writer.client.clone(), writer.world.told.synced.load(Ordering::Relaxed));
        {
            let death = client.life.ended();
            let sync = writer.sync();
            pin_mut!(sync, death);
            select(sync, death).await;
        }
        if !client.life.is_over() && writer.world.told.synced.load(Ordering::Relaxed) > before {
            return;
        }
        sleep_ms(500).await;
    }
    panic!("with an honest store nothing can be stored");
}

/// Everybody sees the same, now and at every instant that the window holds.
async fn look_at_all(world: &Shared) {
    let client = Client::mount(world, None).await.expect("a live volume is not refused");
    let files = lock(&world.files).len();
    for n in 0..files {
        let (ino, latest) = world.file(n, |file| (file.ino, file.latest()));
        let found = read_whole(&client, ino).await.expect("the store is honest");
        assert!(found == **latest, "what was stored is not what is read");
    }
    client.unmount().await;
    let mut instants: Vec<(Version, usize, usize)> = Vec::new();
    for (n, file) in lock(&world.files).iter().enumerate() {
        instants.extend(file.instants.iter().rev().take(3).map(|&(at, state)| (at, n, state)));
    }
    for (at, n, state) in instants {
        let Some(client) = mount_past(world, at).await else { continue };
        // A window may move on below a mount that is not there yet; one that is there keeps its instant.
        read_at(world, &client, n, state).await.expect("the store is honest");
        client.unmount().now_or_never();
        client.die();
    }
}
