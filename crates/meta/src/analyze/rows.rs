//! Every row of the metadata store, as at one version, while clients go on: what `meta verify` says of a folder that no
//! server uses.

use super::{Desk, Stop, rows_now};
use crate::collect::Collector;
use crate::machine::{SharedView, verify_keys};
use bytes::Bytes;
use chronofs_core::Version;
use chronofs_engine::{EngineError, ReadStop, Reads};
use chronofs_namespace::rows::Tally;
use chronofs_namespace::{list_volumes, tally, verify_each};
use chronofs_wire::analyze::{News, RowsSeen};
use chronofs_wire::status::memory_free_bytes;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// How often it is told how many rows were read.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How soon it is looked whether there is room for news again.
const ROOM_WITHIN: Duration = Duration::from_millis(20);

/// Memory for each object and small slice of the volume that is being checked, about.
const NAME_BYTES: u64 = 100;

/// Whether names of so many are kept in memory here: the server needs it for who uses it.
fn check_room(counted: u64, free_bytes: u64) -> Result<(), Stop> {
    let needed = counted.saturating_mul(NAME_BYTES);
    // 0: the machine does not say.
    if free_bytes == 0 || needed <= free_bytes / 4 {
        return Ok(());
    }
    Err(Stop::Failed(format!(
        "a volume has {counted} objects and small slices, whose counts would take about {} MiB of the server's memory, more than \
         a quarter of the {} MiB that are free: stop the server and run chronofs meta verify --db-folder",
        needed >> 20,
        free_bytes >> 20
    )))
}

/// Looks at every row.
pub(super) async fn look(desk: &Desk, collector: &Collector) -> Result<RowsSeen, Stop> {
    let (view, desk) = (rows_now(collector).await?, desk.clone());
    // It reads for long, and waits for who follows: not on a thread that others need.
    tokio::task::spawn_blocking(move || {
        let reads = Counted::new(view, desk);
        let mut faults = 0;
        let mut tell = |fault: String| {
            faults += 1;
            reads.tell(News::Row(fault));
        };
        let all = list_volumes(&reads)?;
        // One after another. A tally that cannot be read is a fault that is told below.
        let counted = |sums: Tally| [sums.held, sums.retired, sums.staged].iter().map(|sum| sum.count).sum();
        let most = all.iter().map(|(index, _)| tally(&reads, *index).map_or(0, counted)).max();
        check_room(most.unwrap_or(0), memory_free_bytes())?;
        let volumes = all.len() as u64;
        verify_each(&reads, &mut |fault| tell(fault.to_string()))?;
        verify_keys(&reads)?.into_iter().for_each(&mut tell);
        Ok(RowsSeen { at_ns: reads.version().0, volumes, rows: reads.rows.get(), faults })
    })
    .await?
}

/// A view that counts what is read of it, and can be read no more when nobody follows.
pub(super) struct Counted {
    view: SharedView,
    desk: Desk,
    rows: Cell<u64>,
    told: Cell<Instant>,
    /// Nobody is told how many.
    quiet: bool,
}

impl Counted {
    pub(super) fn new(view: SharedView, desk: Desk) -> Counted {
        Counted { view, desk, rows: Cell::new(0), told: Cell::new(Instant::now()), quiet: false }
    }

    pub(super) fn quiet(view: SharedView, desk: Desk) -> Counted {
        Counted { quiet: true, ..Counted::new(view, desk) }
    }

    pub(super) fn version(&self) -> Version {
        self.view.0.version()
    }

    fn tell(&self, news: News) {
        let mut news = news;
        // Who is left is told nothing; the next read ends the look.
        while !self.desk.is_left() {
            match self.desk.try_tell(news) {
                Ok(()) => return,
                Err(back) => news = back,
            }
            std::thread::sleep(ROOM_WITHIN);
        }
    }

    fn count(&self, rows: usize) -> Result<(), ReadStop> {
        self.rows.set(self.rows.get() + rows as u64);
        if self.told.get().elapsed() >= TELL_EVERY {
            if self.desk.is_left() {
                return Err(ReadStop::Failed(EngineError::Store("nobody follows any more".to_owned())));
            }
            self.told.set(Instant::now());
            if !self.quiet {
                self.tell(News::Rows(self.rows.get()));
            }
        }
        Ok(())
    }
}

impl Reads for Counted {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadStop> {
        self.count(1)?;
        self.view.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, ReadStop> {
        let found = self.view.scan(from, to, limit)?;
        self.count(found.len())?;
        Ok(found)
    }

    fn first(&self, from: &[u8], to: &[u8]) -> Result<Option<(Bytes, Bytes)>, ReadStop> {
        self.count(1)?;
        self.view.first(from, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_take_much_of_the_memory_of_a_server_is_left_to_a_stopped_one() {
        let free_bytes = 4 << 30;
        assert!(check_room((1 << 30) / NAME_BYTES, free_bytes).is_ok());
        let refused = check_room((1 << 30) / NAME_BYTES + 1, free_bytes);
        assert!(matches!(refused, Err(Stop::Failed(why)) if why.contains("stop the server")));
        assert!(check_room(u64::MAX, 0).is_ok(), "nothing is known");
    }
}
