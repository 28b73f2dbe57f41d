//! Accounts.

use super::{new_id, now_ns, parsed, shown, taken, to_sql, unsigned};
use crate::AdminError;
use crate::model::{Account, ChangeAccount, NewAccount, Role, check_name};
use rusqlite::{OptionalExtension, Row, Transaction, params};

const WHAT: &str = "account";

fn read(row: &Row<'_>) -> rusqlite::Result<Account> {
    Ok(Account {
        id: row.get("id")?,
        name: row.get("name")?,
        role: parsed(row, "role")?,
        created: shown(unsigned(row, "created_ns")?),
        token: None,
    })
}

/// Creates an account, without a token.
pub fn create(tx: &Transaction<'_>, new: &NewAccount) -> Result<Account, AdminError> {
    check_name(WHAT, &new.name)?;
    let id = new_id();
    tx.execute(
        "INSERT INTO account (id, name, role, created_ns) VALUES (?1, ?2, ?3, ?4)",
        params![id, new.name, new.role.to_string(), to_sql(now_ns())],
    )
    .map_err(taken(WHAT, &new.name))?;
    find(tx, &id)
}

/// All accounts by name.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<Account>, AdminError> {
    let mut statement = tx.prepare_cached("SELECT * FROM account ORDER BY name")?;
    let rows = statement.query_map([], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The account with this name or id.
pub fn find(tx: &Transaction<'_>, key: &str) -> Result<Account, AdminError> {
    let sql = "SELECT * FROM account WHERE name = ?1 OR id = ?1";
    let found = tx.query_row(sql, [key], read).optional()?;
    found.ok_or_else(|| AdminError::NotFound { what: WHAT, name: key.to_owned() })
}

/// Changes an account. The last one with the role `admin` keeps it.
pub fn change(tx: &Transaction<'_>, key: &str, change: &ChangeAccount) -> Result<Account, AdminError> {
    let account = find(tx, key)?;
    if let Some(role) = change.role {
        if role != Role::Admin {
            refuse_last_admin(tx, &account)?;
        }
        tx.execute("UPDATE account SET role = ?2 WHERE id = ?1", params![account.id, role.to_string()])?;
    }
    find(tx, &account.id)
}

/// Deletes an account and its token. The last one with the role `admin` stays.
pub fn delete(tx: &Transaction<'_>, key: &str) -> Result<(), AdminError> {
    let account = find(tx, key)?;
    refuse_last_admin(tx, &account)?;
    tx.execute("DELETE FROM account WHERE id = ?1", [account.id])?;
    Ok(())
}

fn refuse_last_admin(tx: &Transaction<'_>, account: &Account) -> Result<(), AdminError> {
    let sql = "SELECT count(*) FROM account WHERE role = 'admin' AND id <> ?1";
    let others: i64 = tx.query_row(sql, [&account.id], |row| row.get(0))?;
    if account.role != Role::Admin || others > 0 {
        return Ok(());
    }
    let users = vec!["this server, of which it is the only account with the role admin".to_owned()];
    Err(AdminError::InUse { what: WHAT, name: account.name.clone(), users })
}
