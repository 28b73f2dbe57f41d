//! Accounts.

use super::auth::Who;
use super::{Answer, App, Body, Created, Deleted, created};
use crate::db::{accounts, tokens};
use crate::model::{Account, ChangeAccount, NewAccount, WhoAmI};
use axum::Json;
use axum::extract::{Path, State};
use std::sync::Arc;

/// List accounts
#[utoipa::path(get, path = "/v1/accounts", responses((status = 200, body = [Account])), security(("token" = [])))]
pub(super) async fn list(who: Who, State(app): State<Arc<App>>) -> Answer<Vec<Account>> {
    app.look(&who, accounts::list).await.map(Json)
}

/// Create an account; its token is in this answer only
#[utoipa::path(post, path = "/v1/accounts", request_body = NewAccount,
    responses((status = 201, body = Account)), security(("token" = [])))]
pub(super) async fn create(
    who: Who,
    State(app): State<Arc<App>>,
    Body(new): Body<NewAccount>,
) -> Created<Account> {
    let account = app.act(&who, "create", move |tx| {
        let account = accounts::create(tx, &new)?;
        let token = tokens::issue_account(tx, &account.id)?;
        Ok(Account { token: Some(token.to_string()), ..account })
    });
    account.await.map(created)
}

/// Show an account
#[utoipa::path(get, path = "/v1/accounts/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Account)), security(("token" = [])))]
pub(super) async fn show(who: Who, State(app): State<Arc<App>>, Path(name): Path<String>) -> Answer<Account> {
    app.look(&who, move |tx| accounts::find(tx, &name)).await.map(Json)
}

/// Change an account's role, or give it a new token
#[utoipa::path(patch, path = "/v1/accounts/{name}", params(("name" = String, Path)), request_body = ChangeAccount,
    responses((status = 200, body = Account)), security(("token" = [])))]
pub(super) async fn change(
    who: Who,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(change): Body<ChangeAccount>,
) -> Answer<Account> {
    let account = app.act(&who, "change", move |tx| {
        let account = accounts::change(tx, &name, &change)?;
        let token = match change.new_token {
            true => Some(tokens::issue_account(tx, &account.id)?.to_string()),
            false => None,
        };
        Ok(Account { token, ..account })
    });
    account.await.map(Json)
}

/// Delete an account and revoke its token
#[utoipa::path(delete, path = "/v1/accounts/{name}", params(("name" = String, Path)),
    responses((status = 204)), security(("token" = [])))]
pub(super) async fn delete(who: Who, State(app): State<Arc<App>>, Path(name): Path<String>) -> Deleted {
    app.delete::<Account>(&who, name, accounts::delete).await
}

/// Whose token this is
#[utoipa::path(get, path = "/v1/whoami", responses((status = 200, body = WhoAmI)), security(("token" = [])))]
pub(super) async fn whoami(who: Who) -> Json<WhoAmI> {
    let server_version = env!("CARGO_PKG_VERSION").to_owned();
    Json(WhoAmI { account: who.name, role: who.role, server_version })
}
