//! Questions of operators: taken from the admin server, answered here. The link polls for them, so this server needs no way in
//! for anybody but mounts.

use crate::executor::Input;
use crate::holds;
use crate::http::{Pages, status_of};
use crate::reader::{answer_detach, answer_readers};
use chronofs_wire::http::AdminClient;
use chronofs_wire::question::{Answer, Answers, Asked, KeyRefused, Question, Said, Starting};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// After a failure: the admin server is away, or has not registered this start yet.
const RETRY: Duration = Duration::from_secs(1);
/// How often a server that is starting says so.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// Says that this server is starting until it is dropped.
pub(crate) async fn tell_starting(client: AdminClient) {
    let began = Instant::now();
    loop {
        // Whoever misses it is told again.
        drop(client.starting(&Starting { seconds: began.elapsed().as_secs() }).await);
        tokio::time::sleep(TELL_EVERY).await;
    }
}

/// Answers questions until it is dropped.
pub(crate) async fn answer_all(client: AdminClient, boot: u64, pages: Pages) {
    loop {
        match client.questions(boot).await {
            Ok(asked) => {
                for question in asked.questions {
                    tokio::spawn(answer(client.clone(), pages.clone(), question));
                }
            }
            Err(error) => {
                // The link says what is wrong with the admin server.
                tracing::debug!(%error, "no questions can be taken");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn answer(client: AdminClient, pages: Pages, question: Question) {
    let said = match question.asked {
        Asked::Status => match status_of(&pages).await {
            Some(status) => Said::Status(serde_json::to_value(status).unwrap_or_default()),
            // Who does not answer is told from one who is well by just that.
            None => return,
        },
        Asked::Keys(op) => {
            let (sender, answered) = oneshot::channel();
            let stopped = || Err(KeyRefused::Stopped("it is stopping".to_owned()));
            let sent: Result<(), mpsc::error::SendError<Input>> =
                pages.queue.send(Input::Keys(op, sender)).await;
            let answered = match sent {
                Ok(()) => answered.await.ok(),
                Err(_) => Some(stopped()),
            };
            // Without a word from the executor nobody knows whether it was done.
            let Some(answered) = answered else { return };
            answered.map_or_else(Said::Refused, Said::Keys)
        }
        Asked::Keep(wanted) => match holds::keep(&pages.collector, wanted).await {
            Some(done) => Said::Kept { problem: done.err() },
            None => return,
        },
        Asked::Holds => match holds::list(&pages.collector).await {
            Some(said) => said,
            None => return,
        },
        Asked::Readers { snapshot, forget } => answer_readers(&pages.collector, &snapshot, forget).await,
        Asked::Detach { force } => {
            let folder = pages.engine.parent().unwrap_or(&pages.engine);
            answer_detach(folder, &pages.collector, force, false).await
        }
        Asked::WouldDetach { force } => {
            let folder = pages.engine.parent().unwrap_or(&pages.engine);
            answer_detach(folder, &pages.collector, force, true).await
        }
        Asked::Look { volume, look, replica } => {
            let begun = pages.looks.begin(pages.collector, volume, look, replica.map(|replica| *replica));
            begun.map_or_else(Said::Trouble, Said::Looking)
        }
        Asked::ReleaseBrake => match pages.collector.release_brakes().await {
            Some(released) => released.map_or_else(Said::Trouble, |()| Said::Released),
            None => return,
        },
        Asked::Follow { look, seen } => Said::Looked(pages.looks.follow(look, seen).await),
    };
    let answers = Answers { answers: vec![Answer { id: question.id, said }] };
    if let Err(error) = client.answers(&answers).await {
        tracing::warn!(%error, "the answer to an operator's question did not arrive");
    }
}
