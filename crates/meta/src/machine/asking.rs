//! Hellos that name a token or a volume which this server does not know, or knows otherwise: it may have been made a
//! moment ago. They wait until the admin server was asked once more, after they came, and are decided then.

use super::group::{Effect, Group};
use super::session::ConnId;
use super::{Machine, hello};
use chronofs_engine::EngineError;
use chronofs_wire::message::{Hello, Refusal, RefusalReason};

/// How long a hello waits for the admin server at the most.
const WAIT_NS: u64 = 3_000_000_000;
/// How many may wait at once; others come again.
const ASKING_MAX: usize = 1024;
const RETRY_MS: u32 = 200;

/// A hello that waits for the admin server.
#[derive(Clone, Debug)]
pub(super) struct Asking {
    conn: ConnId,
    hello: Box<Hello>,
    /// Answered by this question to the admin server, or a later one.
    question: u64,
    until_ns: u64,
    /// What was asked for is here; its volumes may still have to be brought into the state.
    fresh: bool,
}

/// What became of the question that a hello waited for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// What the server knows is newer than the hello.
    Fresh,
    /// The admin server did not answer, because of this.
    Away(String),
}

/// A hello that is to be decided now for good.
pub type Asked = (ConnId, Box<Hello>, Told);

impl Machine {
    /// Refuses a hello, at once or after the admin server was asked once more.
    pub(super) fn refuse_or_ask(
        &mut self,
        group: &mut Group,
        conn: ConnId,
        hello: Box<Hello>,
        refusal: Refusal,
    ) {
        let may_be_old = matches!(refusal.reason, RefusalReason::Token | RefusalReason::UnknownVolume);
        if !self.config.asks_admin || !may_be_old {
            group.effects.push(Effect::Answer(conn, Err(refusal)));
            return;
        }
        if self.asking.len() >= ASKING_MAX {
            let refusal = hello::not_now(RETRY_MS, "too many clients wait for the admin server");
            group.effects.push(Effect::Answer(conn, Err(refusal)));
            return;
        }
        self.questions += 1;
        let (question, until_ns) = (self.questions, group.steady_ns + WAIT_NS);
        self.asking.push(Asking { conn, hello, question, until_ns, fresh: false });
        group.effects.push(Effect::AskAdmin(question));
    }

    /// The admin server was asked: answers every question up to this one.
    pub(super) fn admin_asked(&mut self, group: &Group, question: u64, failure: Option<&str>) {
        for asking in std::mem::take(&mut self.asking) {
            match failure {
                Some(failure) if asking.question <= question => {
                    self.asked.push((asking.conn, asking.hello, Told::Away(failure.to_owned())));
                }
                _ => {
                    let fresh = asking.fresh || asking.question <= question;
                    self.asking.push(Asking { fresh, ..asking });
                }
            }
        }
        self.look_again(group);
    }

    /// Lets those go on that are known now, that nothing more can be learnt about, or that waited for too long.
    pub(super) fn look_again(&mut self, group: &Group) {
        let settled = self.to_assign.is_none();
        for asking in std::mem::take(&mut self.asking) {
            let told = if self.check(group, &asking.hello).is_ok() || (asking.fresh && settled) {
                Told::Fresh
            } else if asking.until_ns <= group.steady_ns {
                Told::Away("it has not answered for 3 s".to_owned())
            } else {
                self.asking.push(asking);
                continue;
            };
            self.asked.push((asking.conn, asking.hello, told));
        }
    }

    /// Hellos to be decided now.
    pub fn take_asked(&mut self) -> Vec<Asked> {
        std::mem::take(&mut self.asked)
    }

    /// Decides a hello for good.
    pub fn decide_asked(&mut self, group: &mut Group, asked: &Asked) -> Result<(), EngineError> {
        let (conn, hello, told) = asked;
        match (self.check(group, hello), told) {
            (Ok(checked), _) => return self.come_in(group, *conn, hello.clone(), checked),
            (Err(refusal), Told::Fresh) => group.effects.push(Effect::Answer(*conn, Err(refusal))),
            (Err(_), Told::Away(_)) if self.is_recovering() && self.to_assign.is_some() => {
                let refusal = hello::not_now(500, "this server has restarted and collects what was lost");
                group.effects.push(Effect::Answer(*conn, Err(refusal)));
            }
            (Err(refusal), Told::Away(failure)) => {
                let message = format!(
                    "{}; this may be out of date, because the admin server cannot be asked now ({failure}): if token \
                     and volume are new, try again when it is back",
                    refusal.message
                );
                group.effects.push(Effect::Answer(*conn, Err(Refusal { message, ..refusal })));
            }
        }
        Ok(())
    }

    /// A connection is gone, and its hello with it.
    pub(super) fn stop_asking(&mut self, conn: ConnId) {
        self.asking.retain(|asking| asking.conn != conn);
    }
}
