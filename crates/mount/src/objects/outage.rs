//! What a mount does while the block store cannot be used: wait until it can, or fail what asks for it; and since when.
//!
//! Nothing that was written is given up for it in either case: it stays in memory and is stored later. What the store
//! says of one object or of its own space is no outage, and is told at once.

use crate::clock::jittered;
use crate::data::lock;
use bytes::Bytes;
use chronofs_blocks::hedge::Hedges;
use chronofs_blocks::outage::{Heard, is_outage};
use chronofs_blocks::{ObjectPort, Outage, ShownBy, StoreError, StoreOutage, Trouble};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The first and the longest wait between tries, where operations wait.
const WAIT_FIRST: Duration = Duration::from_millis(500);
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Where operations fail, those that begin so soon after one that failed share its error: what belongs together (pages of
/// a read, bytes of a file) waits for the tries of one request.
const FAILS_TOGETHER: Duration = Duration::from_millis(200);
/// How often what could not be read is looked for again, so that the end of an outage is noticed when nobody asks.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What becomes of operations that need the block store while it cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStoreOutage {
    /// They wait until it can be used again.
    #[default]
    Wait,
    /// They fail with EIO, after some tries.
    Fail,
}

/// Whether the block store can be used, and what is done while it cannot.
#[derive(Debug)]
pub(crate) struct Patience {
    pub(crate) on_outage: OnStoreOutage,
    outage: Outage,
    /// Nobody waits for the store any more.
    given_up: watch::Sender<bool>,
}

impl Patience {
    pub(crate) fn new(on_outage: OnStoreOutage) -> Arc<Self> {
        Arc::new(Patience { on_outage, outage: Outage::default(), given_up: watch::Sender::new(false) })
    }

    /// The outage there is, if any.
    pub(crate) fn outage(&self) -> Option<StoreOutage> {
        self.outage.now(Instant::now())
    }

    /// Has what waits for the store fail, now and from now on.
    pub(crate) fn give_up(&self) {
        self.given_up.send_replace(true);
    }

    fn hear<T>(&self, answer: &Result<T, StoreError>) -> Heard {
        let heard = self.outage.heard(answer, Instant::now());
        match (heard, answer) {
            (Heard::Began, Err(error)) => {
                let then = match self.on_outage {
                    OnStoreOutage::Wait => "operations that need it wait",
                    OnStoreOutage::Fail => "operations that need it fail",
                };
                tracing::warn!("the block store cannot be used: {}; {then}", error.reason);
            }
            (Heard::Ended(after), _) => {
                tracing::info!(seconds = after.as_secs(), "the block store can be used again");
            }
            _ => {}
        }
        heard
    }
}

/// A read that can be made again.
#[derive(Clone, Debug)]
struct Read {
    shown_by: Option<ShownBy>,
    name: String,
    offset: u64,
    len: u32,
}

/// A way to the store that waits or fails as it was told.
pub(super) struct Patient {
    port: Arc<dyn ObjectPort>,
    patience: Arc<Patience>,
    /// The last read that failed.
    failed: Mutex<Option<Read>>,
    /// The last error that says that the store cannot be used, and when it came.
    error: Mutex<Option<(tokio::time::Instant, StoreError)>>,
    this: Weak<Patient>,
}

impl Patient {
    pub(super) fn new(port: Arc<dyn ObjectPort>, patience: Arc<Patience>) -> Arc<Self> {
        Arc::new_cyclic(|this| Patient {
            port,
            patience,
            failed: Mutex::default(),
            error: Mutex::default(),
            this: this.clone(),
        })
    }

    /// Does `ask` until there is an answer, or once.
    async fn patiently<'a, T>(
        &self,
        ask: impl Fn() -> BoxFuture<'a, Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut given_up = self.patience.given_up.subscribe();
        let mut attempt = 1;
        if self.patience.on_outage == OnStoreOutage::Fail
            && let Some(error) = self.just_failed()
        {
            return Err(error);
        }
        loop {
            let answer = ask().await;
            if self.patience.hear(&answer) == Heard::Began {
                tokio::spawn(look_again(self.this.clone()));
            }
            let error = match answer {
                Err(error) if is_outage(&error) => error,
                answer => return answer,
            };
            *lock(&self.error) = Some((tokio::time::Instant::now(), error.clone()));
            if self.patience.on_outage == OnStoreOutage::Fail || *given_up.borrow_and_update() {
                return Err(error);
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(WAIT_FIRST, attempt, WAIT_MAX)) => attempt += 1,
                _ = given_up.changed() => return Err(error),
            }
        }
    }

    fn just_failed(&self) -> Option<StoreError> {
        let error = lock(&self.error);
        error.as_ref().filter(|(at, _)| at.elapsed() < FAILS_TOGETHER).map(|(_, error)| error.clone())
    }

    fn ask<'a>(&'a self, read: &'a Read) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        match read.shown_by {
            Some(shown_by) => self.port.get_slice(shown_by, &read.name, read.offset, read.len),
            None => self.port.get(&read.name, read.offset, read.len),
        }
    }

    async fn read(&self, read: Read) -> Result<Bytes, StoreError> {
        let noted = || async {
            let answer = self.ask(&read).await;
            if answer.as_ref().is_err_and(is_outage) {
                *lock(&self.failed) = Some(read.clone());
            }
            answer
        };
        self.patiently(|| Box::pin(noted())).await
    }
}

/// Looks until the outage is over. What could not be put is tried again by whoever keeps the bytes.
async fn look_again(patient: Weak<Patient>) {
    loop {
        tokio::time::sleep(jittered(LOOK_EVERY, 0, LOOK_EVERY)).await;
        let Some(patient) = patient.upgrade() else { return };
        if patient.patience.outage().is_none() {
            return;
        }
        let Some(read) = lock(&patient.failed).clone() else { continue };
        let answer = patient.ask(&read).await;
        patient.patience.hear(&answer);
        if answer.is_err_and(|error| error.trouble == Trouble::NotShown) {
            *lock(&patient.failed) = None;
        }
    }
}

impl ObjectPort for Patient {
    fn put<'a>(&'a self, name: &'a str, bytes: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.patiently(|| self.port.put(name, bytes.clone())).await })
    }

    fn get<'a>(&'a self, name: &'a str, offset: u64, len: u32) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(self.read(Read { shown_by: None, name: name.to_owned(), offset, len }))
    }

    fn get_slice<'a>(
        &'a self,
        shown_by: ShownBy,
        name: &'a str,
        offset: u64,
        len: u32,
    ) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(self.read(Read { shown_by: Some(shown_by), name: name.to_owned(), offset, len }))
    }

    fn hedges(&self) -> Hedges {
        self.port.hedges()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_core::Errno;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Answers so many times with this error, then well.
    struct Away {
        times: AtomicU32,
        error: StoreError,
    }

    impl Away {
        fn answer<T>(&self, good: T) -> Result<T, StoreError> {
            let left =
                self.times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if left.is_ok() { Err(self.error.clone()) } else { Ok(good) }
        }
    }

    impl ObjectPort for Away {
        fn put<'a>(&'a self, _: &'a str, _: Bytes) -> BoxFuture<'a, Result<(), StoreError>> {
            Box::pin(async { self.answer(()) })
        }

        fn get<'a>(&'a self, _: &'a str, _: u64, _: u32) -> BoxFuture<'a, Result<Bytes, StoreError>> {
            Box::pin(async { self.answer(Bytes::new()) })
        }
    }

    fn patient(on_outage: OnStoreOutage, times: u32, error: StoreError) -> Arc<Patient> {
        let port = Arc::new(Away { times: times.into(), error });
        Patient::new(port, Patience::new(on_outage))
    }

    fn away() -> StoreError {
        StoreError::unavailable("o", Errno::EIO, "it does not answer")
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_told_to_wait_waits_as_long_as_it_takes() {
        let patient = patient(OnStoreOutage::Wait, 1000, away());
        let began = tokio::time::Instant::now();
        let waiting = tokio::time::timeout(Duration::from_secs(60), patient.put("o", Bytes::new())).await;
        assert!(waiting.is_err());
        assert_eq!(patient.patience.outage().unwrap().reason, "it does not answer");
        patient.put("o", Bytes::new()).await.unwrap();
        assert!(began.elapsed() > Duration::from_secs(600), "it is not asked all the time");
        assert_eq!(patient.patience.outage(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn when_it_is_given_up_what_waits_fails_and_nothing_waits_any_more() {
        let patient = patient(OnStoreOutage::Wait, 1000, away());
        let waiting = tokio::spawn({
            let patient = Arc::clone(&patient);
            async move { patient.put("o", Bytes::new()).await }
        });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!waiting.is_finished());
        patient.patience.give_up();
        assert!(waiting.await.unwrap().is_err());
        assert!(patient.get("o", 0, 1).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_told_to_fail_fails_and_goes_on_when_the_store_is_back() {
        let patient = patient(OnStoreOutage::Fail, 2, away());
        assert!(patient.put("o", Bytes::new()).await.is_err());
        assert!(patient.patience.outage().is_some());
        // Not asked: it fails together with the other.
        assert!(patient.get("o", 0, 1).await.is_err());
        tokio::time::sleep(FAILS_TOGETHER).await;
        assert!(patient.get("o", 0, 1).await.is_err());
        tokio::time::sleep(FAILS_TOGETHER).await;
        patient.put("o", Bytes::new()).await.unwrap();
        assert_eq!(patient.patience.outage(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_an_outage_is_noticed_when_nobody_asks() {
        let patient = patient(OnStoreOutage::Fail, 4, away());
        assert!(patient.get("o", 0, 1).await.is_err());
        // The fourth look is the first to find it: each comes after half of the time at the least.
        tokio::time::sleep(LOOK_EVERY * 2 - FAILS_TOGETHER).await;
        assert!(patient.patience.outage().is_some());
        tokio::time::sleep(LOOK_EVERY * 2 + FAILS_TOGETHER).await;
        assert_eq!(patient.patience.outage(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_answers_is_waited_for_by_nobody() {
        let full = StoreError::unavailable("o", Errno::ENOSPC, "it is full");
        let others = [StoreError::session_over("o"), StoreError::not_shown("o")];
        let said = [StoreError::missing("o", ""), StoreError::damaged("o", ""), full];
        for error in said.into_iter().chain(others) {
            let patient = patient(OnStoreOutage::Wait, 1, error.clone());
            let failed = patient.put("o", Bytes::new()).await.unwrap_err();
            assert_eq!(failed.trouble, error.trouble);
            assert_eq!(patient.patience.outage(), None);
        }
    }
}
