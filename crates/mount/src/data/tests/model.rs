//! A file under random operations, failures and delays, compared with a plain array.

use super::super::testing::{MemoryMeta, Rng, cases};
use super::*;
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use tokio::task::JoinHandle;

/// What the file must hold, and what it is done with.
struct Story {
    rng: Rng,
    /// The file without the truncations that are under way, then with one after the other of them: each cuts what was
    /// there when it was asked for and nothing that came later.
    models: Vec<Vec<u8>>,
    truncating: VecDeque<JoinHandle<()>>,
    size_max: u64,
}

impl Story {
    fn range(&mut self) -> (u64, u64) {
        let at = self.rng.below(self.size_max);
        let long = if self.rng.one_in(4) { self.size_max } else { self.size_max / 16 };
        (at, 1 + self.rng.below(long.min(self.size_max - at)))
    }

    fn noise(&mut self, len: u64) -> Vec<u8> {
        // Some bytes that compress and some that do not; never 0, so that holes tell.
        let mask = if self.rng.one_in(2) { 0xff } else { 0x03 };
        (0..len).map(|_| (self.rng.next() as u8 & mask).max(1)).collect()
    }

    /// Forgets how the file was without the truncations that are done.
    fn settle(&mut self) {
        while self.truncating.pop_front_if(|truncation| truncation.is_finished()).is_some() {
            self.models.remove(0);
        }
    }

    /// The file, when no truncation is under way.
    fn settled(&mut self) -> Option<&Vec<u8>> {
        self.settle();
        self.models.first().filter(|_| self.truncating.is_empty())
    }

    /// The size, or the smallest and the largest that it may be while truncations are under way.
    fn sizes(&self) -> RangeInclusive<u64> {
        let sizes = || self.models.iter().map(|model| model.len() as u64);
        sizes().min().unwrap()..=sizes().max().unwrap()
    }

    fn grow(&mut self, size: u64) {
        for model in &mut self.models {
            model.resize(model.len().max(size as usize), 0);
        }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.grow(at + bytes.len() as u64);
        for model in &mut self.models {
            model[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        }
    }

    async fn write(&mut self, file: &File) {
        let (at, len) = self.range();
        let bytes = self.noise(len);
        let now = if self.rng.one_in(2) { file.try_write(at, &bytes, false) } else { None };
        match now {
            Some(result) => result.unwrap(),
            // With the store failing and memory full, a write may be told so; then nothing was written.
            None if file.write(at, &bytes, false).await.is_err() => return,
            None => {}
        }
        self.put(at, &bytes);
    }

    fn check_bytes(&self, found: &[u8], at: u64, len: u64) {
        let sizes = self.sizes();
        let shown = |size: u64| (at + len).min(size).saturating_sub(at);
        let seen = shown(*sizes.start())..=shown(*sizes.end());
        assert!(seen.contains(&(found.len() as u64)), "{} bytes of {at}+{len}, not {seen:?}", found.len());
        for (place, byte) in (at as usize..).zip(found) {
            let held = |model: &Vec<u8>| model.get(place).copied().unwrap_or(0) == *byte;
            assert!(self.models.iter().any(held), "byte {place} of {at}+{len} is {byte}");
        }
    }

    async fn check_read(&mut self, file: &File) {
        let (at, len) = self.range();
        if let Some(now) = file.try_read(at, len as u32) {
            self.check_bytes(&now.unwrap(), at, len);
        }
        let (one, other) = tokio::join!(file.read(at, len as u32), file.read(at, len as u32));
        self.check_bytes(&one.unwrap(), at, len);
        self.check_bytes(&other.unwrap(), at, len);
    }

    fn cut(&mut self) -> (u64, SetAttr) {
        let size = self.rng.below(self.size_max);
        let mut cut = self.models.last().unwrap().clone();
        cut.resize(size as usize, 0);
        self.models.push(cut);
        (size, SetAttr { size: Some(size), ..SetAttr::default() })
    }

    async fn truncate(&mut self, file: &File, meta: &MemoryMeta) {
        let (size, set) = self.cut();
        let attr = file.set_attr(&set, meta.truncate(size)).await.unwrap();
        assert_eq!(attr.size, size);
        assert!(self.truncating.drain(..).all(|earlier| earlier.is_finished()), "in order");
        self.models.drain(..self.models.len() - 1);
    }

    /// A truncation that its program stopped waiting for.
    async fn truncate_later(&mut self, file: &File, meta: &Arc<MemoryMeta>) {
        let (size, set) = self.cut();
        let (file, meta, wait) =
            (file.clone(), meta.clone(), Duration::from_millis(1 + self.rng.below(3000)));
        let mut truncation = Box::pin(async move {
            let request = async {
                tokio::time::sleep(wait).await;
                meta.truncate(size).await
            };
            file.set_attr(&set, request).await.unwrap();
        });
        // A program can only stop waiting for what has begun.
        let begun = futures::poll!(&mut truncation);
        assert!(begun.is_pending());
        self.truncating.push_back(tokio::spawn(truncation));
    }

    async fn zero(&mut self, file: &File) {
        let (at, len) = self.range();
        let extend = self.rng.one_in(3);
        file.zero(at, len, extend, false).await.unwrap();
        if extend {
            self.grow(at + len);
        }
        for model in &mut self.models {
            let end = ((at + len) as usize).min(model.len());
            model.get_mut(at as usize..end).unwrap_or_default().fill(0);
        }
    }

    fn extend(&mut self, file: &File) {
        let end = self.rng.below(self.size_max);
        file.extend(end, false).unwrap();
        self.grow(end);
    }

    async fn seek(&mut self, file: &File) {
        let at = self.rng.below(self.size_max);
        let Some(model) = self.settled() else { return };
        let rest = model.get(at as usize..).unwrap_or(&[]);
        let data = file.seek(at, Seek::Data).await;
        let until = data.map_or(rest.len(), |found| (found - at) as usize);
        assert!(rest[..until].iter().all(|byte| *byte == 0), "data before {data:?} from {at}");
        match file.seek(at, Seek::Hole).await {
            Ok(found) if found < model.len() as u64 => assert_eq!(model[found as usize], 0),
            Ok(found) => assert_eq!(found, model.len() as u64),
            Err(errno) => assert!(errno == Errno::ENXIO && rest.is_empty()),
        }
    }

    async fn append(&mut self, file: &File) {
        let len = 1 + self.rng.below(self.size_max / 32);
        let bytes = self.noise(len);
        if self.sizes().end() + len <= self.size_max
            && let Ok(at) = file.append(&bytes, false).await
        {
            assert!(self.sizes().contains(&at), "appended at {at}");
            self.put(at, &bytes);
        }
    }
}

async fn play(seed: u64) {
    let mut rng = Rng::new(seed);
    let large = rng.one_in(4);
    let block_size = if large { 40 << 10 } else { 256 };
    let fail_one_in = [0, 3, 10][rng.below(3) as usize];
    let world = World::new(seed, block_size, fail_one_in, [0, 5, 3000][rng.below(3) as usize], rng.one_in(2));
    let size_max = u64::from(block_size) * 16;
    let tuning = Tuning {
        dirty_bytes_max: if rng.one_in(3) { size_max / 4 } else { size_max * 16 },
        cache_bytes_max: if rng.one_in(3) { size_max / 4 } else { size_max * 16 },
        slices_per_block_max: 6,
        ..Tuning::default()
    };
    let data = world.mount(1, tuning.clone());
    let mut file = world.open(&data);
    let mark = file.error_mark();
    let mut story = Story { rng, models: vec![Vec::new()], truncating: VecDeque::new(), size_max };
    for _ in 0..if large { 25 } else { 60 } {
        match story.rng.below(24) {
            0..=5 => story.write(&file).await,
            6..=10 => story.check_read(&file).await,
            11 => story.truncate(&file, &world.meta).await,
            12 | 13 => story.zero(&file).await,
            14 => story.seek(&file).await,
            15 => story.append(&file).await,
            16 | 17 => {
                let flushed = file.flush(&mark).await;
                assert!(flushed.is_ok() || fail_one_in > 0, "{flushed:?}");
            }
            18 | 19 => story.truncate_later(&file, &world.meta).await,
            20 => story.extend(&file),
            21 => tokio::time::sleep(Duration::from_millis(story.rng.below(4000))).await,
            22 => world.meta.pack(&world.port),
            _ => file = world.open(&data),
        }
        let attr = file.overlay(world.meta.attr());
        story.settle();
        assert!(story.sizes().contains(&attr.size), "size {} is not {:?}", attr.size, story.sizes());
    }
    world.faults.heal();
    for truncation in std::mem::take(&mut story.truncating) {
        truncation.await.unwrap();
        story.models.remove(0);
    }
    file.flush(&mark).await.unwrap();
    check_published(&world, &story, &data, tuning).await;
    data.stop();
}

/// What another mount sees after everything was flushed.
async fn check_published(world: &World, story: &Story, data: &Data<MemoryMeta>, tuning: Tuning) {
    assert_eq!(data.budget.used(), 0, "memory is given back");
    let [model] = &story.models[..] else { panic!("truncations are left") };
    assert_eq!(world.meta.attr().size, model.len() as u64);
    let other = world.mount(2, tuning);
    let seen = world.open(&other).read(0, u32::MAX).await.unwrap();
    assert!(seen == model, "another mount sees other bytes");
}

#[test]
fn a_file_reads_as_a_plain_array_whatever_fails_or_dawdles() {
    let replay = std::env::var("CHRONOFS_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let seeds = replay.map_or(0..u64::from(cases(1000)), |seed| seed..seed + 1);
    for seed in seeds {
        let played = std::panic::catch_unwind(|| runtime().block_on(play(seed)));
        assert!(played.is_ok(), "failed with CHRONOFS_SEED={seed}");
    }
}
