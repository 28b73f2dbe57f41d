//! Log servers: for those who configure, and for the servers themselves.

use super::auth::{LogServerToken, Who};
use super::servers::After;
use super::{Answer, App, Body, Created, Deleted, created, known_id};
use crate::AdminError;
use crate::db::{log_servers, tokens};
use crate::model::{ChangeLogServer, LogServer, NewLogServer};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use chronofs_wire::admin::{Register, Registered};
use chronofs_wire::http::ASSIGNMENT_WAIT;
use chronofs_wire::status::{LogServerStatus, MemberState};
use chronofs_wire::tlog::{LogAssignment, LogServerSaid};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// A log server reports every few seconds; one that was not heard of for so long is not connected.
const HEARD_WITHIN: Duration = Duration::from_secs(10);
/// Less room than this on its disk is worth a word.
const ROOM_MIN: u64 = 256 << 20;

fn with_state(app: &App, server: LogServer) -> LogServer {
    LogServer { connected: is_connected(app, &server.id), ..server }
}

/// Whether the log server with this id was heard of just now.
pub(crate) fn is_connected(app: &App, id: &str) -> bool {
    heard(app, id).is_some_and(|(at, _)| at.elapsed() < HEARD_WITHIN)
}

/// When the log server with this id was heard of, and what it said.
fn heard(app: &App, id: &str) -> Option<(Instant, LogServerSaid)> {
    app.log_servers.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
}

/// List log servers
#[utoipa::path(get, path = "/v1/log-servers", responses((status = 200, body = [LogServer])),
    security(("token" = [])))]
pub(super) async fn list(who: Who, State(app): State<Arc<App>>) -> Answer<Vec<LogServer>> {
    let servers = app.look(&who, log_servers::list).await?;
    Ok(Json(servers.into_iter().map(|server| with_state(&app, server)).collect()))
}

/// Create a log server; its token is in this answer only
#[utoipa::path(post, path = "/v1/log-servers", request_body = NewLogServer,
    responses((status = 201, body = LogServer)), security(("token" = [])))]
pub(super) async fn create(
    who: Who,
    State(app): State<Arc<App>>,
    Body(new): Body<NewLogServer>,
) -> Created<LogServer> {
    let server = app.act(&who, "create", move |tx| {
        let server = log_servers::create(tx, &new.name)?;
        let token = tokens::issue_log_server(tx, &server.id)?;
        Ok(LogServer { token: Some(token.to_string()), ..server })
    });
    server.await.map(created)
}

/// Show a log server
#[utoipa::path(get, path = "/v1/log-servers/{name}", params(("name" = String, Path)),
    responses((status = 200, body = LogServer)), security(("token" = [])))]
pub(super) async fn show(
    who: Who,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Answer<LogServer> {
    let server = app.look(&who, move |tx| log_servers::find(tx, &name)).await?;
    Ok(Json(with_state(&app, server)))
}

/// Give a log server a new token and revoke the old one
#[utoipa::path(patch, path = "/v1/log-servers/{name}", params(("name" = String, Path)),
    request_body = ChangeLogServer, responses((status = 200, body = LogServer)), security(("token" = [])))]
pub(super) async fn change(
    who: Who,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(change): Body<ChangeLogServer>,
) -> Answer<LogServer> {
    let server = app.act(&who, "change", move |tx| {
        let server = log_servers::find(tx, &name)?;
        let token = match change.new_token {
            true => Some(tokens::issue_log_server(tx, &server.id)?.to_string()),
            false => None,
        };
        Ok(LogServer { token, ..server })
    });
    Ok(Json(with_state(&app, server.await?)))
}

/// Delete a log server that no metadata store uses; its folder stays
#[utoipa::path(delete, path = "/v1/log-servers/{name}", params(("name" = String, Path)),
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn delete(who: Who, State(app): State<Arc<App>>, Path(name): Path<String>) -> Deleted {
    let deleted = app.delete::<LogServer>(&who, name, log_servers::delete).await?;
    app.members_changed().await?;
    Ok(deleted)
}

/// A log server goes by its name from now on
#[utoipa::path(post, path = "/v1/tlog/register", request_body = Register,
    responses((status = 200, body = Registered)), security(("token" = [])))]
pub(super) async fn register(
    server: LogServerToken,
    State(app): State<Arc<App>>,
    Body(register): Body<Register>,
) -> Result<Json<Registered>, AdminError> {
    let address = register.address.clone();
    let registered = app.database.run(move |tx| log_servers::register(tx, &server.0, &register)).await?;
    app.wake_pollers();
    app.members_changed().await?;
    tracing::info!(server = %registered.name, %address, epoch = registered.epoch, "log server registered");
    Ok(Json(Registered { cluster: Some(app.cluster.name.to_string()), ..registered }))
}

/// For whom a log server keeps copies; waits up to 20 s for a revision other than `after`
#[utoipa::path(get, path = "/v1/tlog/assignment", params(("boot" = u64, Query), ("after" = u64, Query)),
    responses((status = 200, body = LogAssignment)), security(("token" = [])))]
pub(super) async fn assignment(
    server: LogServerToken,
    State(app): State<Arc<App>>,
    Query(After { boot, after }): Query<After>,
) -> Result<Json<LogAssignment>, AdminError> {
    let until = tokio::time::Instant::now() + ASSIGNMENT_WAIT;
    let mut changed = app.changed.subscribe();
    let mut stopping = app.stopping.clone();
    loop {
        changed.mark_unchanged();
        let (id, secrets) = (server.0.clone(), Arc::clone(&app.secrets));
        let asked = app.database.run(move |tx| {
            log_servers::check_boot(tx, &id, boot)?;
            log_servers::assignment(tx, &secrets, &id)
        });
        let assignment = asked.await?;
        if assignment.revision != after || *stopping.borrow() {
            return Ok(Json(assignment));
        }
        let woken = async {
            tokio::select! {
                result = changed.changed() => result.is_ok(),
                _ = stopping.changed() => false,
            }
        };
        if !timeout_at(until, woken).await.unwrap_or(false) {
            return Ok(Json(assignment));
        }
    }
}

/// How a log server is
#[utoipa::path(post, path = "/v1/tlog/report", request_body = LogServerSaid,
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn report(
    server: LogServerToken,
    State(app): State<Arc<App>>,
    Body(said): Body<LogServerSaid>,
) -> Result<StatusCode, AdminError> {
    let (id, boot) = (server.0.clone(), said.boot);
    app.database.run(move |tx| log_servers::check_boot(tx, &id, boot)).await?;
    let mut all = app.log_servers.lock().unwrap_or_else(PoisonError::into_inner);
    all.insert(server.0, (Instant::now(), said));
    Ok(StatusCode::NO_CONTENT)
}

/// A log server for `status`.
pub(super) fn status_of(app: &App, server: LogServer) -> Result<LogServerStatus, AdminError> {
    let id = known_id("log server", &server.name, &server.id)?;
    let heard = heard(app, &server.id);
    let (state, fault) =
        judge(&server, heard.as_ref().map(|(at, said)| (at.elapsed(), said)), app.started.elapsed());
    Ok(LogServerStatus {
        id,
        name: server.name,
        address: server.address,
        epoch: server.epoch,
        state,
        fault,
        heard_s: heard.as_ref().map(|(at, _)| at.elapsed().as_secs()),
        stores: server.stores,
        said: heard.map(|(_, said)| said),
    })
}

/// What ails a log server, of which this was heard so long ago.
fn judge(
    server: &LogServer,
    heard: Option<(Duration, &LogServerSaid)>,
    up: Duration,
) -> (MemberState, Option<String>) {
    if server.epoch == 0 {
        let why = "it was never started; start it with chronofs tlog start".to_owned();
        return (MemberState::NeverSeen, Some(why));
    }
    let said = match heard {
        Some((ago, said)) if ago < HEARD_WITHIN => said,
        Some((ago, _)) => {
            let why = format!("unreachable: last heard of {} s ago", ago.as_secs());
            return (MemberState::Unreachable, Some(why));
        }
        None => {
            let why =
                format!("unreachable: not heard of since the admin server started {} s ago", up.as_secs());
            return (MemberState::Unreachable, Some(why));
        }
    };
    let problem = said.copies.iter().find_map(|copy| {
        let store = copy.name.clone().unwrap_or_else(|| copy.id.to_string());
        Some(format!("the log copy of metadata store {store}: {}", copy.problem.as_ref()?))
    });
    let (free, size) = (said.process.disk_free_bytes, said.process.disk_bytes);
    let room = (size > 0 && free < ROOM_MIN)
        .then(|| format!("its disk is almost full: {} MiB are left; give it room", free >> 20));
    match problem.or(room) {
        Some(why) => (MemberState::Degraded, Some(why)),
        None => (MemberState::Healthy, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ails_a_log_server_is_said() {
        let server = LogServer {
            id: "1".to_owned(),
            name: "far".to_owned(),
            created: String::new(),
            address: None,
            epoch: 0,
            connected: false,
            stores: Vec::new(),
            token: None,
        };
        let up = Duration::from_secs(60);
        let said = |heard: Option<(Duration, &LogServerSaid)>, epoch| {
            judge(&LogServer { epoch, ..server.clone() }, heard, up)
        };
        assert_eq!(said(None, 0).0, MemberState::NeverSeen);
        assert_eq!(said(None, 1).0, MemberState::Unreachable);
        let mut well = LogServerSaid::default();
        (well.process.disk_bytes, well.process.disk_free_bytes) = (1 << 40, 1 << 39);
        let late = said(Some((Duration::from_secs(11), &well)), 1);
        assert_eq!(late, (MemberState::Unreachable, Some("unreachable: last heard of 11 s ago".to_owned())));
        assert_eq!(said(Some((Duration::from_secs(2), &well)), 1), (MemberState::Healthy, None));
        well.process.disk_free_bytes = 1 << 20;
        let full = said(Some((Duration::from_secs(2), &well)), 1);
        assert!(full.0 == MemberState::Degraded && full.1.unwrap().contains("almost full"));
    }
}
