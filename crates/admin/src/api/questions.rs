//! Questions to metadata servers. The admin server may be on another machine and has no way in, so each server polls for
//! its questions and sends the answers. A question is handed out once, to the start that owns the store: whether one that
//! was handed out and not answered was done is not known, and it is not done a second time.

use super::auth::MetadataServer;
use super::{App, Body};
use crate::AdminError;
use crate::db::directory;
use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use chronofs_wire::question::{Answer, Answers, Asked, QUESTIONS_WAIT, Question, Questions, Said, Starting};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

/// A server that is there takes a question at once.
const TAKEN_WITHIN: Duration = Duration::from_secs(3);
/// A server that is starting says so every 2 s.
const STARTING_FOR: Duration = Duration::from_secs(7);

/// What was asked and is not answered yet.
#[derive(Default)]
pub(super) struct Open {
    inner: Mutex<Inner>,
    /// Changed with each question.
    asked: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    next_id: u64,
    next_poll: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// The newest poll of each metadata store. An older one may be that of a server that is gone, which nobody told us.
    polls: HashMap<String, u64>,
    starting: HashMap<String, (Instant, Duration)>,
}

struct Waiting {
    store: String,
    /// It was not handed out yet.
    asked: Option<Asked>,
    answer: oneshot::Sender<Said>,
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Silent {
    /// The server did not take the question; it was not done.
    NotTaken,
    /// The server took it; it may have been done.
    NotAnswered,
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the server of metadata store `store`, and waits.
    pub(super) async fn ask(&self, store: &str, asked: Asked, patience: Duration) -> Result<Said, Silent> {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut inner = self.lock();
            inner.next_id += 1;
            let id = inner.next_id;
            inner.waiting.insert(id, Waiting { store: store.to_owned(), asked: Some(asked), answer });
            id
        };
        self.asked.send_modify(|n| *n += 1);
        // Also when whoever asked has left meanwhile.
        let _forget = Forget { open: self, id };
        tokio::pin!(answered);
        let taken = || !matches!(self.lock().waiting.get(&id), Some(Waiting { asked: Some(_), .. }));
        // Who does not take it soon is not there.
        let soon = TAKEN_WITHIN.min(patience);
        match timeout(soon, &mut answered).await {
            Ok(Ok(said)) => return Ok(said),
            _ if !taken() => return Err(Silent::NotTaken),
            _ => {}
        }
        match timeout(patience.saturating_sub(soon), answered).await {
            Ok(Ok(said)) => Ok(said),
            _ => Err(Silent::NotAnswered),
        }
    }

    /// A poll begins, or a start that took over registered: older polls end.
    pub(super) fn begin_poll(&self, store: &str) -> u64 {
        let mut inner = self.lock();
        inner.next_poll += 1;
        let poll = inner.next_poll;
        inner.polls.insert(store.to_owned(), poll);
        inner.starting.remove(store);
        drop(inner);
        // Older ones end.
        self.asked.send_modify(|n| *n += 1);
        poll
    }

    /// What this poll is to be told. `None`: nothing yet.
    fn take(&self, store: &str, poll: u64) -> Option<Vec<Question>> {
        let mut inner = self.lock();
        if inner.polls.get(store) != Some(&poll) {
            return Some(Vec::new());
        }
        let its = inner.waiting.iter_mut().filter(|(_, waiting)| waiting.store == store);
        let taken: Vec<Question> =
            its.filter_map(|(&id, waiting)| Some(Question { id, asked: waiting.asked.take()? })).collect();
        (!taken.is_empty()).then_some(taken)
    }

    fn answer(&self, store: &str, answers: Vec<Answer>) {
        let mut inner = self.lock();
        for Answer { id, said } in answers {
            if inner.waiting.get(&id).is_some_and(|waiting| waiting.store == store)
                && let Some(waiting) = inner.waiting.remove(&id)
            {
                // Nobody listens any more if it took too long.
                let _ = waiting.answer.send(said);
            }
        }
    }

    /// For how long the server of a metadata store has been starting, if it is at it.
    pub(super) fn starting(&self, store: &str) -> Option<Duration> {
        let inner = self.lock();
        let (heard, since) = inner.starting.get(store)?;
        (heard.elapsed() < STARTING_FOR).then(|| *since + heard.elapsed())
    }
}

struct Forget<'a> {
    open: &'a Open,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.open.lock().waiting.remove(&self.id);
    }
}

#[derive(Deserialize)]
pub(super) struct Boot {
    /// Drawn at the start that asks.
    boot: u64,
}

/// What a metadata server is asked; waits up to 20 s for questions
///
/// It is answered only while the start with this `boot` owns the store.
#[utoipa::path(get, path = "/v1/meta/questions", params(("boot" = u64, Query)),
    responses((status = 200, body = Questions)), security(("token" = [])))]
pub(super) async fn questions(
    server: MetadataServer,
    State(app): State<Arc<App>>,
    Query(Boot { boot }): Query<Boot>,
) -> Result<Json<Questions>, AdminError> {
    let id = server.id.clone();
    app.database.run(move |tx| directory::check_owner(tx, &id, boot)).await?;
    app.heard_of(&server.id);
    let poll = app.questions.begin_poll(&server.id);
    let (mut asked, mut stopping) = (app.questions.asked.subscribe(), app.stopping.clone());
    let waited = timeout(QUESTIONS_WAIT, async {
        loop {
            asked.mark_unchanged();
            if let Some(questions) = app.questions.take(&server.id, poll) {
                return questions;
            }
            if *stopping.borrow() {
                return Vec::new();
            }
            tokio::select! {
                _ = asked.changed() => {}
                _ = stopping.changed() => {}
            }
        }
    });
    let questions = waited.await.unwrap_or_default();
    app.heard_of(&server.id);
    Ok(Json(Questions { questions }))
}

/// What a metadata server answers
#[utoipa::path(post, path = "/v1/meta/answers", request_body = Answers,
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn answers(
    server: MetadataServer,
    State(app): State<Arc<App>>,
    Body(Answers { answers }): Body<Answers>,
) -> StatusCode {
    app.heard_of(&server.id);
    app.questions.answer(&server.id, answers);
    StatusCode::NO_CONTENT
}

/// A metadata server says that it opens its store
#[utoipa::path(post, path = "/v1/meta/starting", request_body = Starting,
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn starting(
    server: MetadataServer,
    State(app): State<Arc<App>>,
    Body(Starting { seconds }): Body<Starting>,
) -> StatusCode {
    let since = Duration::from_secs(seconds);
    app.questions.lock().starting.insert(server.id, (Instant::now(), since));
    StatusCode::NO_CONTENT
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronofs_wire::question::{Blob, KeyOp, KeyReply};

    const SOON: Duration = Duration::from_millis(30);

    fn clear() -> Asked {
        Asked::Keys(KeyOp::Clear { key: Blob::default() })
    }

    #[tokio::test]
    async fn a_question_is_handed_out_once_to_the_newest_poll_of_its_store() {
        let open = Arc::new(Open::default());
        let (old, new, other) = (open.begin_poll("a"), open.begin_poll("a"), open.begin_poll("b"));
        assert_eq!(open.take("a", new), None);
        let asking = tokio::spawn({
            let open = open.clone();
            async move { open.ask("a", clear(), Duration::from_secs(20)).await }
        });
        while open.lock().waiting.is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(open.take("a", old), Some(vec![]), "a poll that was followed by another ends");
        assert_eq!(open.take("b", other), None);
        let taken = open.take("a", new).unwrap();
        assert_eq!(open.take("a", new), None, "once");
        let said = Said::Keys(KeyReply::Committed { version: 7 });
        let answer = || vec![Answer { id: taken[0].id, said: said.clone() }];
        open.answer("b", answer());
        assert!(!asking.is_finished());
        open.answer("a", answer());
        assert_eq!(asking.await.unwrap(), Ok(said.clone()));
        open.answer("a", answer());
        assert!(open.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn silence_says_whether_it_may_have_been_done_and_is_forgotten() {
        let open = Open::default();
        let poll = open.begin_poll("a");
        assert_eq!(open.ask("a", clear(), SOON).await, Err(Silent::NotTaken));
        assert_eq!(open.take("a", poll), None, "nobody waits for it any more");
        let (asked, ()) = tokio::join!(open.ask("a", clear(), SOON), async {
            assert_eq!(open.take("a", poll).unwrap().len(), 1);
        });
        assert_eq!(asked, Err(Silent::NotAnswered));
        assert!(open.lock().waiting.is_empty());
    }
}
