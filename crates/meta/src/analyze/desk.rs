//! Looks that are under way, and their news. What was told stays until whoever follows says that it arrived; a look waits
//! while nobody fetches what it has to tell, and ends when nobody follows for a minute.

use super::{Stop, look};
use crate::collect::Collector;
use chronofs_wire::admin::AssignedStore;
use chronofs_wire::analyze::{Ended, Look, News, Told};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

/// Looks at once.
const LOOKS_MAX: usize = 4;
/// A look that nobody follows for so long is over.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(60);
/// How long an answer waits for news.
const NEWS_WITHIN: Duration = Duration::from_secs(2);
/// A look waits while so many of its news are not fetched.
const HELD_MAX: usize = 1024;
/// Bytes of news in an answer, about; at least one comes.
const ANSWER_MAX: usize = 512 << 10;

/// The looks of a server.
#[derive(Clone, Default)]
pub struct Looks {
    inner: Arc<Mutex<Known>>,
}

struct Known {
    /// Begins at the time: after a restart nobody who follows a look of before hears another.
    last: u64,
    desks: BTreeMap<u64, Desk>,
}

impl Default for Known {
    fn default() -> Known {
        // Microseconds: fewer looks begin in one, and JSON numbers of others stay exact.
        Known { last: crate::executor::now().wall_ns / 1_000, desks: BTreeMap::new() }
    }
}

/// Where a look puts its news. Clones are of the same look.
#[derive(Clone)]
pub(crate) struct Desk {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// Whose it is; gone when the server stops.
    home: Weak<Mutex<Known>>,
    /// There are news, or it ended.
    news: Notify,
    /// Some were fetched.
    room: Notify,
}

struct State {
    news: VecDeque<News>,
    /// Number of the first of them.
    first: u64,
    ended: Option<Ended>,
    /// The server stops, and the look with it.
    stops: bool,
    followed: Instant,
}

impl Looks {
    /// Begins a look, and gives its number.
    /// `replica`: what opens the store that [`Look::Repair`] names.
    pub fn begin(
        &self,
        collector: Collector,
        volume: Option<Uuid>,
        wanted: Look,
        replica: Option<AssignedStore>,
    ) -> Result<u64, String> {
        let mut known = self.lock();
        known.desks.retain(|_, desk| !desk.is_left());
        let running = known.desks.values().filter(|desk| desk.is_running()).count();
        if running >= LOOKS_MAX {
            return Err(format!(
                "{LOOKS_MAX} looks are under way at this metadata server: wait until one has ended"
            ));
        }
        known.last += 1;
        let (number, desk) = (known.last, Desk::new(&self.inner));
        known.desks.insert(number, desk.clone());
        drop(known);
        tokio::spawn(async move {
            let watched = async {
                loop {
                    tokio::time::sleep(FOLLOWED_WITHIN / 4).await;
                    if desk.is_left() {
                        return;
                    }
                }
            };
            let done = tokio::select! {
                done = look(&desk, &collector, volume, wanted, replica) => done,
                () = watched => Err(Stop::Left),
            };
            match done {
                Ok(sum) => desk.end(Ended::Whole(sum)),
                Err(Stop::Failed(why)) => desk.end(Ended::Stopped(why)),
                Err(Stop::Left) => desk.end(Ended::Stopped("nobody followed it any more".to_owned())),
                Err(Stop::Stops) => desk.stops(),
            }
        });
        Ok(number)
    }

    /// News of a look; waits a little until there are some.
    pub async fn follow(&self, number: u64, seen: u64) -> Told {
        let desk = self.lock().desks.get(&number).filter(|desk| !desk.is_left()).cloned();
        let Some(desk) = desk else { return Told { gone: true, ..Told::default() } };
        desk.follow(seen).await
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    fn new(home: &Arc<Mutex<Known>>) -> Desk {
        let (news, followed) = (VecDeque::new(), Instant::now());
        let state = State { news, first: 1, ended: None, stops: false, followed };
        let (state, home) = (Mutex::new(state), Arc::downgrade(home));
        Desk { inner: Arc::new(Inner { state, home, news: Notify::new(), room: Notify::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody follows, or the server stops.
    pub(super) fn is_left(&self) -> bool {
        self.inner.home.strong_count() == 0 || self.lock().followed.elapsed() > FOLLOWED_WITHIN
    }

    fn is_running(&self) -> bool {
        let state = self.lock();
        state.ended.is_none() && !state.stops
    }

    /// Tells something if there is room for it; else gives it back.
    pub(super) fn try_tell(&self, news: News) -> Result<(), News> {
        let mut state = self.lock();
        if state.news.len() >= HELD_MAX {
            return Err(news);
        }
        state.news.push_back(news);
        drop(state);
        self.inner.news.notify_one();
        Ok(())
    }

    /// Tells something, as soon as there is room for it.
    pub(crate) async fn tell(&self, mut news: News) {
        loop {
            let room = self.inner.room.notified();
            match self.try_tell(news) {
                Ok(()) => return,
                Err(back) => news = back,
            }
            room.await;
        }
    }

    fn end(&self, ended: Ended) {
        self.lock().ended = Some(ended);
        self.inner.news.notify_one();
    }

    /// What is told is not the end: that comes from the look which is begun in place of this one.
    fn stops(&self) {
        self.lock().stops = true;
        self.inner.news.notify_one();
    }

    async fn follow(&self, seen: u64) -> Told {
        {
            let mut state = self.lock();
            state.followed = Instant::now();
            while state.first <= seen && state.news.pop_front().is_some() {
                state.first += 1;
            }
        }
        self.inner.room.notify_one();
        let wait = async {
            loop {
                let news = self.inner.news.notified();
                {
                    let state = self.lock();
                    if !state.news.is_empty() || state.ended.is_some() || state.stops {
                        return;
                    }
                }
                news.await;
            }
        };
        // Without news the answer says just that.
        let _ = timeout(NEWS_WITHIN, wait).await;
        let state = self.lock();
        if state.stops {
            return Told { gone: true, ..Told::default() };
        }
        let mut told = Told { upto: state.first - 1, ..Told::default() };
        let mut bytes = 0;
        for news in &state.news {
            bytes += serde_json::to_vec(news).map_or(0, |text| text.len());
            if bytes > ANSWER_MAX && !told.news.is_empty() {
                return told;
            }
            told.news.push(news.clone());
            told.upto += 1;
        }
        told.ended = state.ended.clone();
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_wire::analyze::{Progress, Sum};

    fn at(slices: u64) -> News {
        News::At(Progress { slices, ..Progress::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn news_stay_until_they_arrived_and_the_end_comes_behind_the_last() {
        let looks = Looks::default();
        let desk = Desk::new(&looks.inner);
        assert_eq!(desk.follow(0).await, Told::default());
        desk.tell(at(1)).await;
        desk.tell(at(2)).await;
        let first = desk.follow(0).await;
        assert_eq!((&first.news[..], first.upto, &first.ended), (&[at(1), at(2)][..], 2, &None));
        assert_eq!(desk.follow(0).await, first, "an answer that was lost comes again");
        let ended = Ended::Whole(Sum::Blocks(Progress::default()));
        desk.end(ended.clone());
        desk.tell(at(3)).await;
        assert_eq!(
            desk.follow(2).await,
            Told { news: vec![at(3)], upto: 3, ended: Some(ended), gone: false }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_of_a_server_that_stops_is_gone_and_not_at_its_end() {
        let looks = Looks::default();
        let desk = Desk::new(&looks.inner);
        desk.tell(at(1)).await;
        assert!(desk.is_running());
        desk.stops();
        assert_eq!(desk.follow(0).await, Told { gone: true, ..Told::default() });
        assert!(!desk.is_running());
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_waits_while_nobody_fetches_and_is_over_when_nobody_follows() {
        let looks = Looks::default();
        let desk = Desk::new(&looks.inner);
        let full = async {
            for n in 0..2 * HELD_MAX as u64 {
                desk.tell(at(n)).await;
            }
        };
        tokio::pin!(full);
        assert!(timeout(Duration::from_secs(1), &mut full).await.is_err());
        let told = desk.follow(0).await;
        assert_eq!(told.upto, HELD_MAX as u64);
        let (rest, ()) = tokio::join!(desk.follow(told.upto), full);
        assert!(!rest.news.is_empty());
        assert!(!desk.is_left());
        tokio::time::advance(FOLLOWED_WITHIN * 2).await;
        assert!(desk.is_left());
    }

    #[tokio::test]
    async fn an_answer_is_no_larger_than_it_may_be() {
        let looks = Looks::default();
        let desk = Desk::new(&looks.inner);
        let large = || News::Slice(Box::new(super::super::blocks::tests::fault(&"x".repeat(ANSWER_MAX / 2))));
        for _ in 0..3 {
            desk.tell(large()).await;
        }
        desk.end(Ended::Stopped("why".to_owned()));
        let mut seen = 0;
        for last in [false, false, true] {
            let told = desk.follow(seen).await;
            assert_eq!((told.news.len(), told.ended.is_some()), (1, last));
            seen = told.upto;
        }
    }
}
