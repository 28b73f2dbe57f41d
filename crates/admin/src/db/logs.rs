//! Copies of the logs of metadata stores: which are wanted, which count, and since which epoch.
//!
//! The owner of a store opens epochs of its log. One that asks again because the answer got lost gets the same answer.

use super::{directory, log_servers, raise_revision, to_sql, unsigned};
use crate::AdminError;
use chronofs_wire::log::{LogCopies, LogEpoch, OpenLog};
use chronofs_wire::tlog::server_of;
use rusqlite::{Row, Transaction, params};
use std::collections::BTreeSet;

/// More epochs than there can be.
const EPOCH_MAX: u64 = 1 << 48;
/// More copies than anybody wants to wait for.
const COPIES_MAX: usize = 8;

fn json(row: &Row<'_>, column: &str) -> rusqlite::Result<LogCopies> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
}

fn text(copies: &LogCopies) -> Result<String, AdminError> {
    serde_json::to_string(copies).map_err(|e| AdminError::Internal(format!("copies of a log: {e}")))
}

/// How the log of a metadata store stands.
pub fn of(tx: &Transaction<'_>, store: &str) -> Result<LogEpoch, AdminError> {
    let sql = "SELECT log_wanted, log_members, log_epoch, log_boot FROM metadata_store WHERE id = ?1";
    Ok(tx.query_row(sql, [store], |row| {
        Ok(LogEpoch {
            epoch: unsigned(row, "log_epoch")?,
            members: json(row, "log_members")?,
            wanted: json(row, "log_wanted")?,
            boot: row.get::<_, Option<String>>("log_boot")?.and_then(|boot| boot.parse().ok()).unwrap_or(0),
        })
    })?)
}

/// Says which copies of a log are wanted, or how many of them may lack what is durable.
pub fn want(
    tx: &Transaction<'_>,
    store: &str,
    copies: Option<Vec<String>>,
    anti_quorum: Option<u32>,
) -> Result<(), AdminError> {
    let before = of(tx, store)?.wanted;
    let wanted = LogCopies {
        copies: copies.unwrap_or(before.copies),
        anti_quorum: anti_quorum.unwrap_or(before.anti_quorum),
    };
    check(tx, &wanted)?;
    let sql = "UPDATE metadata_store SET log_wanted = ?2 WHERE id = ?1";
    tx.execute(sql, params![store, text(&wanted)?])?;
    raise_revision(tx, store)
}

/// No log has copies, and none ever had.
pub fn forget_all(tx: &Transaction<'_>) -> Result<(), AdminError> {
    let none = text(&LogCopies::default())?;
    let sql = "UPDATE metadata_store SET log_wanted = ?1, log_members = ?1, log_epoch = 0, log_after = 0, log_boot = NULL";
    tx.execute(sql, [none])?;
    Ok(())
}

fn check(tx: &Transaction<'_>, wanted: &LogCopies) -> Result<(), AdminError> {
    let refused = |why: String| Err(AdminError::Invalid(why));
    let distinct: BTreeSet<&String> = wanted.copies.iter().collect();
    if distinct.len() < wanted.copies.len() {
        return refused("a log copy is named twice".to_owned());
    }
    if wanted.copies.len() > COPIES_MAX {
        return refused(format!(
            "{} log copies are too many: the limit is {COPIES_MAX}",
            wanted.copies.len()
        ));
    }
    for copy in &wanted.copies {
        if let Some(server) = server_of(copy) {
            if !log_servers::exists(tx, server)? {
                let known = log_servers::copy_names(tx)?.join(", ");
                let known =
                    if known.is_empty() { "there are none".to_owned() } else { format!("there are {known}") };
                return refused(format!(
                    "there is no log server '{server}' ({known}): make one with chronofs configure create log-server {server}"
                ));
            }
            continue;
        }
        // One name for one folder: two of them would count twice what is there once.
        let plain = |part: &str| !matches!(part, "" | "." | "..");
        let named = copy.strip_prefix('/').is_some_and(|path| path.split('/').all(plain));
        if !named || copy.chars().any(char::is_control) {
            return refused(format!(
                "'{copy}' is no place for a log copy: write the absolute path of a folder on another disk, without //, . and .., or tlog: and the name of a log server"
            ));
        }
    }
    let copies = wanted.copies.len();
    let allowed = copies.saturating_sub(1) / 2;
    if wanted.anti_quorum as usize > allowed {
        // Else two owners could each make something durable in copies of their own.
        return refused(format!(
            "a log anti quorum of {} is too high for {copies} log copies: more than half of them must have what is durable, \
             so up to {allowed} is allowed",
            wanted.anti_quorum
        ));
    }
    Ok(())
}

/// Opens another epoch for the start that owns the store.
pub fn open(tx: &Transaction<'_>, store: &str, open: &OpenLog) -> Result<LogEpoch, AdminError> {
    directory::check_owner(tx, store, open.boot)?;
    if open.above > EPOCH_MAX {
        return Err(AdminError::Invalid(format!("{} cannot have been an epoch", open.above)));
    }
    let found = of(tx, store)?;
    let sql = "SELECT log_after FROM metadata_store WHERE id = ?1";
    let after = tx.query_row(sql, [store], |row| unsigned(row, "log_after"))?;
    let same_boot = found.boot == open.boot;
    let members = match &open.change {
        None => found.members.clone(),
        Some(change) => {
            let again = same_boot && after == change.after && found.members == change.members;
            if again && found.epoch > open.above.max(change.after) {
                return Ok(found);
            }
            // Where no copy counts there is nothing that an owner could have missed.
            if change.after != found.epoch && !again && !found.members.copies.is_empty() {
                return Err(AdminError::Superseded(format!(
                    "epoch {} of the log is over: {} is the last one; restart the metadata server",
                    change.after, found.epoch
                )));
            }
            change.members.clone()
        }
    };
    let epoch = found.epoch.max(open.above) + 1;
    let ended = open.change.as_ref().map_or(found.epoch, |change| change.after);
    tx.execute(
        "UPDATE metadata_store SET log_members = ?2, log_epoch = ?3, log_after = ?4, log_boot = ?5 WHERE id = ?1",
        params![store, text(&members)?, to_sql(epoch), to_sql(ended), open.boot.to_string()],
    )?;
    raise_revision(tx, store)?;
    Ok(LogEpoch { epoch, members, wanted: found.wanted, boot: open.boot })
}
