//! Who did what: a row for each change that an account began, and for attempts that were refused. The schema lets nobody
//! change how something ended, nor remove it before its time ([`KEPT_S`]); only refused attempts go sooner, when newer ones
//! fill their room ([`REFUSED_MAX`]).

use super::{now_ns, shown, to_sql, unsigned};
use crate::AdminError;
use crate::model::Audited;
use rusqlite::{Row, Transaction, params};

/// Rows are kept for so long: a year and a month. The schema says the same.
pub const KEPT_S: u64 = 400 * 86_400;
/// So many refused attempts are kept.
pub const REFUSED_MAX: u64 = 10_000;
/// Outcome of what was done.
pub const DONE: &str = "done";
/// The most rows in one answer.
pub const LIST_MAX: u32 = 10_000;

/// An attempt. Nothing in it is a secret.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Attempt {
    /// `account NAME`, or what else the token is of, or `token ID` of an unknown one, or `nobody`.
    pub actor: String,
    /// The address that it came from.
    pub address: String,
    /// What was to be done: method and route.
    pub action: String,
    /// What with: the path, until it is known better.
    pub object: String,
}

/// Writes down that something begins; gives the number of the row.
pub fn begin(tx: &Transaction<'_>, attempt: &Attempt) -> Result<i64, AdminError> {
    let Attempt { actor, address, action, object } = attempt;
    let sql = "INSERT INTO audit (time_ns, actor, address, action, object) VALUES (?1, ?2, ?3, ?4, ?5)";
    tx.execute(sql, params![to_sql(now_ns()), actor, address, action, object])?;
    Ok(tx.last_insert_rowid())
}

/// Writes down how it ended.
pub fn end(
    tx: &Transaction<'_>,
    row: i64,
    object: &str,
    outcome: &str,
    refused: bool,
) -> Result<(), AdminError> {
    let sql = "UPDATE audit SET object = ?2, outcome = ?3, refused = ?4 WHERE n = ?1";
    tx.execute(sql, params![row, object, outcome, refused])?;
    if refused { make_room(tx) } else { Ok(()) }
}

/// Writes down what was done by who is no account.
pub fn note(tx: &Transaction<'_>, actor: &str, action: &str, object: &str) -> Result<(), AdminError> {
    let (actor, action) = (actor.to_owned(), action.to_owned());
    let attempt = Attempt { actor, address: String::new(), action, object: object.to_owned() };
    let row = begin(tx, &attempt)?;
    end(tx, row, object, DONE, false)
}

/// Writes down attempts that were refused before anything began, each with how often.
pub fn refused(tx: &Transaction<'_>, attempts: &[(Attempt, String, u64)]) -> Result<(), AdminError> {
    for (attempt, outcome, times) in attempts {
        let Attempt { actor, address, action, object } = attempt;
        let sql = "INSERT INTO audit (time_ns, actor, address, action, object, outcome, times, refused)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 1)";
        tx.execute(sql, params![to_sql(now_ns()), actor, address, action, object, outcome, to_sql(*times)])?;
    }
    make_room(tx)
}

fn make_room(tx: &Transaction<'_>) -> Result<(), AdminError> {
    let sql = "DELETE FROM audit WHERE refused = 1 AND n <=
        (SELECT n FROM audit WHERE refused = 1 ORDER BY n DESC LIMIT 1 OFFSET ?1)";
    tx.execute(sql, [to_sql(REFUSED_MAX)])?;
    Ok(())
}

/// Removes what is older than [`KEPT_S`].
pub fn prune(tx: &Transaction<'_>) -> Result<(), AdminError> {
    let before_ns = now_ns().saturating_sub((KEPT_S + 1) * 1_000_000_000);
    tx.execute("DELETE FROM audit WHERE time_ns < ?1", [to_sql(before_ns)])?;
    Ok(())
}

fn read(row: &Row<'_>) -> rusqlite::Result<Audited> {
    let outcome: Option<String> = row.get("outcome")?;
    Ok(Audited {
        n: unsigned(row, "n")?,
        at: shown(unsigned(row, "time_ns")?),
        who: row.get("actor")?,
        address: row.get("address")?,
        action: row.get("action")?,
        object: row.get("object")?,
        outcome: outcome.unwrap_or_else(|| "begun; how it ended is not known".to_owned()),
        times: unsigned(row, "times")?,
    })
}

/// The newest rows since an instant, of one actor if that is said, the newest first.
pub fn list(
    tx: &Transaction<'_>,
    since_ns: u64,
    who: Option<&str>,
    limit: u32,
) -> Result<Vec<Audited>, AdminError> {
    let sql =
        "SELECT * FROM audit WHERE time_ns >= ?1 AND (?2 IS NULL OR actor = ?2 OR actor = 'account ' || ?2)
        ORDER BY n DESC LIMIT ?3";
    let mut statement = tx.prepare_cached(sql)?;
    let rows = statement.query_map(params![to_sql(since_ns), who, limit.min(LIST_MAX)], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Database;

    fn attempt(n: u64) -> Attempt {
        let (actor, address) = ("account root".to_owned(), "127.0.0.1".to_owned());
        Attempt { actor, address, action: "POST /v1/volumes".to_owned(), object: n.to_string() }
    }

    #[test]
    fn how_something_ended_is_written_once_and_nothing_goes_before_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        let row = database.write(|tx| begin(tx, &attempt(1))).unwrap();
        let listed = || database.write(|tx| list(tx, 0, Some("root"), 10)).unwrap();
        assert!(listed()[0].outcome.starts_with("begun"));
        database.write(|tx| end(tx, row, "volume v", DONE, false)).unwrap();
        assert_eq!((listed()[0].outcome.as_str(), listed()[0].object.as_str()), (DONE, "volume v"));
        let changed = database.write(|tx| end(tx, row, "volume w", "forbidden", true)).unwrap_err();
        assert!(changed.to_string().contains("cannot be changed"), "{changed}");
        let gone = database.write(|tx| Ok(tx.execute("DELETE FROM audit", [])?)).unwrap_err();
        assert!(gone.to_string().contains("is kept for 400 days"), "{gone}");
        database.write(prune).unwrap();
        assert_eq!(listed().len(), 1);
        assert_eq!(database.write(|tx| list(tx, u64::MAX, None, 10)).unwrap(), []);
        assert_eq!(database.write(|tx| list(tx, 0, Some("anna"), 10)).unwrap(), []);
    }

    #[test]
    fn refused_attempts_have_room_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        database.write(|tx| begin(tx, &attempt(0))).unwrap();
        let many: Vec<_> = (1..=REFUSED_MAX + 50).map(|n| (attempt(n), "forbidden".to_owned(), 2)).collect();
        database.write(|tx| refused(tx, &many)).unwrap();
        database.write(|tx| refused(tx, &many[..10])).unwrap();
        let all = database.write(|tx| {
            Ok(tx.query_row("SELECT count(*), min(n) FROM audit", [], |row| Ok((row.get(0)?, row.get(1)?)))?)
        });
        assert_eq!(all.unwrap(), (REFUSED_MAX as i64 + 1, 1), "what was done is there still");
    }
}
