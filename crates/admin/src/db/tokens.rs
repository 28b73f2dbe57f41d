//! Tokens: those of accounts, metadata stores and log servers (one each), and those of volumes (many). Only hashes are kept.

use super::{
    column, maybe_unsigned, now_ns, parsed, raise_revision, setting, shown, to_sql, unsigned, volumes,
};
use crate::AdminError;
use crate::model::{ChangeVolumeToken, NewVolumeToken, Role, VolumeToken, check_scope};
use chronofs_wire::identity::{Secret, Sha256, secret_matches};
use chronofs_wire::token::{Token, TokenKind};
use rusqlite::{OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

/// Setting: the address of this server that goes into tokens.
pub const ADDRESS: &str = "address";
/// Setting: SHA-256 of this server's certificate.
pub const PIN: &str = "certificate_sha256";

/// Who is asking.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Identity {
    /// An account.
    Account {
        /// Its name.
        name: String,
        /// What it may do.
        role: Role,
    },
    /// The server of a metadata store.
    MetadataStore {
        /// Id of the store.
        id: String,
        /// Its name.
        name: String,
    },
    /// A log server.
    LogServer {
        /// Its id.
        id: String,
    },
    /// A mount.
    Volume {
        /// Id of the volume.
        id: String,
        /// Its name.
        name: String,
        /// Id of its metadata store.
        metadata_store: String,
        /// Its mounts cannot write.
        read_only: bool,
    },
}

fn draw(tx: &Transaction<'_>, kind: TokenKind) -> Result<Token, AdminError> {
    let missing =
        || AdminError::Internal("the database was not set up: run chronofs admin init creds".to_owned());
    let address = setting(tx, ADDRESS)?.ok_or_else(missing)?;
    let pin = setting(tx, PIN)?.and_then(|pin| pin.parse().ok()).ok_or_else(missing)?;
    Ok(Token::draw(kind, &address, pin)?)
}

/// Makes the token of an account; one it had is revoked.
pub fn issue_account(tx: &Transaction<'_>, account: &str) -> Result<Token, AdminError> {
    issue(tx, TokenKind::Account, "account", account)
}

/// Makes the token of a metadata store; one it had is revoked.
pub fn issue_metadata(tx: &Transaction<'_>, store: &str) -> Result<Token, AdminError> {
    issue(tx, TokenKind::MetadataStore, "metadata_store", store)
}

/// Makes the token of a log server; one it had is revoked.
pub fn issue_log_server(tx: &Transaction<'_>, server: &str) -> Result<Token, AdminError> {
    issue(tx, TokenKind::LogServer, "log_server", server)
}

fn issue(tx: &Transaction<'_>, kind: TokenKind, column: &str, owner: &str) -> Result<Token, AdminError> {
    let token = draw(tx, kind)?;
    tx.execute(&format!("DELETE FROM token WHERE {column} = ?1"), [owner])?;
    tx.execute(
        &format!("INSERT INTO token (id, {column}, secret_sha256, created_ns) VALUES (?1, ?2, ?3, ?4)"),
        params![token.id.to_string(), owner, token.secret.sha256().to_string(), to_sql(now_ns())],
    )?;
    Ok(token)
}

/// Who holds the token with this id, if the secret is right and the token has not ended.
pub fn identify(tx: &Transaction<'_>, id: Uuid, secret: &Secret) -> Result<Option<Identity>, AdminError> {
    let id = id.to_string();
    let sql = "
        SELECT token.secret_sha256, account.name AS account_name, account.role AS role,
            metadata_store.id AS store_id, metadata_store.name AS store_name, token.log_server AS log_server
        FROM token LEFT JOIN account ON account.id = token.account
            LEFT JOIN metadata_store ON metadata_store.id = token.metadata_store
        WHERE token.id = ?1";
    let plain = tx.query_row(sql, [&id], |row| {
        let account: Option<String> = row.get("account_name")?;
        let identity = match (account, row.get("log_server")?) {
            (Some(name), _) => Identity::Account { name, role: parsed(row, "role")? },
            (None, Some(id)) => Identity::LogServer { id },
            (None, None) => {
                Identity::MetadataStore { id: row.get("store_id")?, name: row.get("store_name")? }
            }
        };
        Ok((parsed(row, "secret_sha256")?, identity))
    });
    let found: Option<(Sha256, Identity)> = match plain.optional()? {
        Some(found) => Some(found),
        None => identify_volume(tx, &id)?,
    };
    Ok(found.filter(|(kept, _)| secret_matches(&secret.0, kept)).map(|(_, identity)| identity))
}

fn identify_volume(tx: &Transaction<'_>, id: &str) -> Result<Option<(Sha256, Identity)>, AdminError> {
    let sql = "
        SELECT volume_token.secret_sha256, volume.id AS id, volume.name AS name, volume.metadata_store AS store,
            volume_token.read_only AS read_only
        FROM volume_token JOIN volume ON volume.id = volume_token.volume
        WHERE volume_token.id = ?1 AND deleted_ns IS NULL AND (ends_ns IS NULL OR ends_ns > ?2)";
    let found = tx.query_row(sql, params![id, to_sql(now_ns())], |row| {
        let identity = Identity::Volume {
            id: row.get("id")?,
            name: row.get("name")?,
            metadata_store: row.get("store")?,
            read_only: row.get("read_only")?,
        };
        Ok((parsed(row, "secret_sha256")?, identity))
    });
    Ok(found.optional()?)
}

const SELECT: &str = "
SELECT volume_token.*, volume.name AS volume_name
FROM volume_token JOIN volume ON volume.id = volume_token.volume";

fn read(row: &Row<'_>) -> rusqlite::Result<VolumeToken> {
    Ok(VolumeToken {
        id: row.get("id")?,
        volume: row.get("volume_name")?,
        path: row.get("path")?,
        read_only: row.get("read_only")?,
        past: row.get("past")?,
        ends: maybe_unsigned(row, "ends_ns")?.map(shown),
        created: shown(unsigned(row, "created_ns")?),
        token: None,
    })
}

fn check_end(ends_ns: u64) -> Result<(), AdminError> {
    if ends_ns > now_ns() && i64::try_from(ends_ns).is_ok() {
        return Ok(());
    }
    Err(AdminError::Invalid(format!("a token cannot end at {}: choose an instant to come", shown(ends_ns))))
}

/// Makes a token of a volume, with the token in the answer; the metadata server learns of it.
pub fn create(tx: &Transaction<'_>, new: &NewVolumeToken) -> Result<VolumeToken, AdminError> {
    let path = check_scope(new.path.as_deref())?;
    new.ends_ns.map_or(Ok(()), check_end)?;
    let found = volumes::find(tx, &new.volume)?;
    let token = draw(tx, TokenKind::Volume)?;
    tx.execute(
        "INSERT INTO volume_token (id, volume, secret_sha256, path, read_only, past, ends_ns, created_ns)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            token.id.to_string(),
            found.volume.id,
            token.secret.sha256().to_string(),
            path,
            new.read_only,
            new.past,
            new.ends_ns.map(to_sql),
            to_sql(now_ns()),
        ],
    )?;
    raise_revision(tx, &found.metadata_store)?;
    Ok(VolumeToken { token: Some(token.to_string()), ..find(tx, &token.id.to_string())? })
}

/// All tokens of all volumes, by volume and age.
pub fn list(tx: &Transaction<'_>) -> Result<Vec<VolumeToken>, AdminError> {
    let mut statement = tx.prepare_cached(&format!("{SELECT} ORDER BY volume.name, volume_token.id"))?;
    let rows = statement.query_map([], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The token with this id.
pub fn find(tx: &Transaction<'_>, id: &str) -> Result<VolumeToken, AdminError> {
    let found = tx.query_row(&format!("{SELECT} WHERE volume_token.id = ?1"), [id], read).optional()?;
    found.ok_or_else(|| AdminError::NotFound { what: "volume-token", name: id.to_owned() })
}

/// Changes a token; the metadata server learns of it.
pub fn change(tx: &Transaction<'_>, id: &str, change: &ChangeVolumeToken) -> Result<VolumeToken, AdminError> {
    let token = find(tx, id)?;
    if let Some(read_only) = change.read_only {
        tx.execute("UPDATE volume_token SET read_only = ?2 WHERE id = ?1", params![token.id, read_only])?;
    }
    if let Some(past) = change.past {
        tx.execute("UPDATE volume_token SET past = ?2 WHERE id = ?1", params![token.id, past])?;
    }
    if let Some(ends_ns) = change.ends_ns {
        let ends_ns = Some(ends_ns).filter(|ns| *ns != 0);
        ends_ns.map_or(Ok(()), check_end)?;
        tx.execute(
            "UPDATE volume_token SET ends_ns = ?2 WHERE id = ?1",
            params![token.id, ends_ns.map(to_sql)],
        )?;
    }
    raise_volume_revision(tx, &token)?;
    find(tx, id)
}

/// Revokes a token; the metadata server learns of it and ends its mounts.
pub fn delete(tx: &Transaction<'_>, id: &str) -> Result<(), AdminError> {
    let token = find(tx, id)?;
    raise_volume_revision(tx, &token)?;
    tx.execute("DELETE FROM volume_token WHERE id = ?1", [token.id])?;
    Ok(())
}

fn raise_volume_revision(tx: &Transaction<'_>, token: &VolumeToken) -> Result<(), AdminError> {
    raise_revision(tx, &volumes::find(tx, &token.volume)?.metadata_store)
}

/// The tokens of a volume that have not ended, each as `volume-token 'ID'`.
pub(super) fn live_of_volume(tx: &Transaction<'_>, volume: &str) -> Result<Vec<String>, AdminError> {
    let sql = format!(
        "SELECT 'volume-token ''' || id || '''' FROM volume_token WHERE volume = ?1
            AND (ends_ns IS NULL OR ends_ns > {}) ORDER BY id",
        to_sql(now_ns())
    );
    column(tx, &sql, volume)
}
