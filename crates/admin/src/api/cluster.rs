//! The cluster for its operators: how it is, and its small key space.

use super::auth::Who;
use super::questions::Silent;
use super::{Answer, App, Body};
use crate::AdminError;
use crate::db::{DATABASE_FILE, block_stores, directory, epochs, log_servers, stores, volumes};
use crate::model::{MetadataStore, Role};
use crate::state::{Facts, judge};
use axum::Json;
use axum::extract::State;
use chronofs_core::Version;
use chronofs_wire::admin::{Cluster, RestoreEpoch};
use chronofs_wire::question::{Asked, KeyOp, KeyRefused, KeyReply, Said};
use chronofs_wire::status::{
    ClusterStatus, LogServerStatus, Member, MetaSaid, ProcessStatus, RestoredAdmin, RestoredServer,
};
use futures::future::join_all;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A metadata server that does not answer for so long counts as unreachable.
const STATUS_WITHIN: Duration = Duration::from_secs(3);
/// One that has not learnt of a change for so long counts as behind.
const NEWEST_WITHIN: Duration = Duration::from_secs(2);
/// A change of the key space has to be durable by then, or it is not known whether it was done.
const KEYS_WITHIN: Duration = Duration::from_secs(15);
/// So much of a key stands in the audit log, as it is escaped.
const KEY_SHOWN_MAX: usize = 200;

/// Which cluster this is; any token will do
#[utoipa::path(get, path = "/v1/cluster", responses((status = 200, body = Cluster)), security(("token" = [])))]
pub(super) async fn cluster(_: super::auth::Known, State(app): State<Arc<App>>) -> Json<Cluster> {
    Json(identity(&app))
}

fn identity(app: &App) -> Cluster {
    let file = &app.cluster;
    Cluster {
        description: file.name.description().to_owned(),
        id: file.name.id().to_owned(),
        coordinators: file.coordinators.clone(),
        line: file.to_string(),
    }
}

/// How the cluster is; asks every metadata server, and waits 3 s for those that do not answer
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = ClusterStatus)), security(("token" = [])))]
pub(super) async fn status(who: Who, State(app): State<Arc<App>>) -> Answer<ClusterStatus> {
    let found = app.look(&who, |tx| {
        let metadata = stores::list_metadata(tx)?;
        let revisions = metadata.iter().map(|store| directory::revision(tx, &store.id));
        let revisions = revisions.collect::<Result<Vec<_>, _>>()?;
        let key_store = stores::key_store(tx)?.map(|store| store.id);
        let restored = (crate::db::restored::find(tx)?, epochs::list(tx)?, epochs::restored_admin(tx)?);
        let used = (volumes::used(tx)?, block_stores::count(tx)?, restored);
        Ok((metadata, revisions, key_store, used, log_servers::list(tx)?))
    });
    let (metadata, revisions, key_store, used, servers) = found.await?;
    let ((volumes, used_bytes), block_stores, (restored, restored_servers, restored_admin)) = used;
    let asked = metadata.into_iter().zip(revisions).map(|(store, revision)| {
        let holds_keys = key_store.as_ref() == Some(&store.id);
        asked_member(&app, store, revision, holds_keys)
    });
    let members: Vec<Member> = join_all(asked).await.into_iter().collect::<Result<_, _>>()?;
    let log_servers = servers.into_iter().map(|server| super::log_servers::status_of(&app, server));
    let log_servers: Vec<LogServerStatus> = log_servers.collect::<Result<_, _>>()?;
    let of_members = members
        .iter()
        .filter_map(|member| Some(format!("metadata store '{}': {}", member.name, member.fault.as_ref()?)));
    let of_servers = log_servers
        .iter()
        .filter_map(|server| Some(format!("log server '{}': {}", server.name, server.fault.as_ref()?)));
    let asked = app.clone();
    let (backups, schedules) = crate::backups::blocking(move || {
        Ok((crate::backups::all(&asked)?, crate::schedules::standing(&asked)?))
    })
    .await?;
    let late = schedules.iter().filter_map(|health| {
        let why = health.fault.as_ref()?;
        Some(match health.schedule.name.as_str() {
            "" => format!("backups: {why}"),
            name => format!("backups by schedule '{name}': {why}"),
        })
    });
    let mut warnings = crate::backups::warnings(&backups, volumes);
    warnings.extend(in_place(&restored_servers, restored_admin.as_ref()));
    warnings.extend(members.iter().filter_map(|member| {
        let warning = crate::state::warnings(&member.understood()?)?;
        Some(format!("metadata store '{}': {warning}", member.name))
    }));
    let faults: Vec<String> = of_members.chain(of_servers).chain(late).collect();
    Ok(Json(ClusterStatus {
        cluster: identity(&app),
        healthy: faults.is_empty(),
        faults,
        now_ns: crate::db::now_ns(),
        coordinator: ProcessStatus::look(app.started, &app.folder, app.locality.clone()),
        database_bytes: std::fs::metadata(app.folder.join(DATABASE_FILE)).map_or(0, |found| found.len()),
        members,
        log_servers,
        volumes,
        used_bytes,
        block_stores,
        running_snapshots: app.snapshots.running(),
        running_backups: crate::backups::running(&backups),
        warnings,
        restored,
        restored_servers,
        restored_admin,
        snapshot_readers: app.snapshots.all_readers(),
    }))
}

/// What waits for somebody after restores in place.
fn in_place(servers: &[RestoredServer], admin: Option<&RestoredAdmin>) -> Vec<String> {
    const ACCEPT: &str = "nothing is forgotten or deleted there until chronofs restore accept";
    let waiting = servers.iter().filter(|server| server.accepted_ns.is_none());
    let mut lines: Vec<String> = waiting
        .map(|server| {
            let RestoreEpoch { epoch, uid, cut_ns, began_ns, .. } = &server.restore;
            if began_ns.is_none() {
                return format!(
                    "a restore of metadata store '{}' in place from {uid} has not begun, because its server has not opened its \
                     store: until then nobody is refused, and a server of before that is started ends the restore",
                    server.store
                );
            }
            let lost = began_ns.map(|began_ns| match cut_ns {
                0 => format!("; all that came before {} is lost", Version(began_ns)),
                _ => format!("; what came between {} and {} is lost", Version(*cut_ns), Version(began_ns)),
            });
            let (store, lost) = (&server.store, lost.unwrap_or_default());
            format!("metadata store '{store}' was restored in place from {uid} (restore epoch {epoch}){lost}; {ACCEPT}")
        })
        .collect();
    if let Some(admin) = admin.filter(|admin| admin.accepted_ns.is_none()) {
        lines.push(format!(
            "the admin server was restored in place from {}, as of {}: tokens of accounts and stores that were revoked since work \
             again, which no server can know; revoke them again, then chronofs restore accept",
            admin.uid,
            Version(admin.cut_ns)
        ));
        lines.extend(admin.to_review());
    }
    lines
}

/// What a metadata server says of itself, and what ails it. A change is on its way to it for some milliseconds: one that
/// has not the newest revision is asked again before it counts as behind.
async fn asked_member(
    app: &App,
    store: MetadataStore,
    mut revision: u64,
    key_space: bool,
) -> Result<Member, AdminError> {
    let patience = Instant::now() + NEWEST_WITHIN;
    loop {
        let said = match store.epoch {
            // Nobody can answer who has never been there.
            0 => None,
            _ => app.questions.ask(&store.id, Asked::Status, STATUS_WITHIN).await.ok(),
        };
        let member = member(app, &store, revision, key_space, said)?;
        let newest = |said: MetaSaid| !said.assigned || said.figures.revision == revision;
        if member.understood().is_none_or(newest) || Instant::now() >= patience {
            return Ok(member);
        }
        tokio::time::sleep(NEWEST_WITHIN / 40).await;
        let id = store.id.clone();
        revision = app.database.run(move |tx| directory::revision(tx, &id)).await?;
    }
}

fn member(
    app: &App,
    store: &MetadataStore,
    revision: u64,
    key_space: bool,
    said: Option<Said>,
) -> Result<Member, AdminError> {
    let mut member = Member {
        id: super::known_id("metadata store", &store.name, &store.id)?,
        roles: vec!["storage".to_owned(), "tlog".to_owned()],
        address: store.address.clone(),
        epoch: store.epoch,
        state: chronofs_wire::status::MemberState::Healthy,
        fault: None,
        heard_s: app.heard(&store.id).map(|ago| ago.as_secs()),
        volumes: store.volumes.clone(),
        key_space,
        said: match said {
            Some(Said::Status(status)) => Some(status),
            _ => None,
        },
        name: store.name.clone(),
    };
    let facts = Facts {
        registered: store.epoch > 0,
        heard: app.heard(&store.id),
        up: app.started.elapsed(),
        starting: app.questions.starting(&store.id),
        answered: member.said.is_some(),
        said: member.understood(),
        revision,
    };
    (member.state, member.fault) = judge(&facts);
    Ok(member)
}

/// Read or change the operators' key space; changing needs the role `operator`
#[utoipa::path(post, path = "/v1/keys", request_body = KeyOp,
    responses((status = 200, body = KeyReply)), security(("token" = [])))]
pub(super) async fn keys(who: Who, State(app): State<Arc<App>>, Body(op): Body<KeyOp>) -> Answer<KeyReply> {
    let writes = op.writes();
    who.must_be(if writes { Role::Operator } else { Role::Viewer })?;
    let store = app.database.run(stores::key_store).await?.ok_or_else(|| {
        AdminError::Unavailable(
            "there is no metadata store yet, so there is nothing that could hold keys: create one with chronofs configure \
             create metadata-store NAME"
                .to_owned(),
        )
    })?;
    if let Some(key) = op.written() {
        // The value is nobody's business.
        let key: String = key.0.escape_ascii().map(char::from).take(KEY_SHOWN_MAX).collect();
        who.writes(&app).await?;
        who.did("write", "key", &key);
    }
    match app.questions.ask(&store.id, Asked::Keys(op), KEYS_WITHIN).await {
        Ok(Said::Keys(reply)) => Ok(Json(reply)),
        Ok(Said::Refused(refused)) => Err(refusal(&store.name, refused)),
        Ok(_) => Err(AdminError::Internal(format!(
            "the server of metadata store '{}' answered another question",
            store.name
        ))),
        Err(silent) => Err(unanswered(&store.name, silent, writes)),
    }
}

fn refusal(store: &str, refused: KeyRefused) -> AdminError {
    let said = format!("metadata store '{store}': {refused}");
    match refused {
        KeyRefused::DiskFull | KeyRefused::Replaying | KeyRefused::Damaged | KeyRefused::Stopped(_) => {
            AdminError::Unavailable(said)
        }
        _ => AdminError::Invalid(refused.to_string()),
    }
}

fn unanswered(store: &str, silent: Silent, writes: bool) -> AdminError {
    let server = format!("the server of metadata store '{store}', which holds the key space,");
    AdminError::Unavailable(match silent {
        Silent::NotTaken => {
            format!("{server} cannot be reached; nothing was done: see status, start it, and try again")
        }
        Silent::NotAnswered if writes => format!(
            "{server} took the change and has not said within {} s that it is durable: it may have been \
             committed, or not (1021); read the key before you try again",
            KEYS_WITHIN.as_secs()
        ),
        Silent::NotAnswered => {
            format!("{server} has not answered: see status, and try again")
        }
    })
}
