//! The link to the admin server: registers, follows who may keep copies here, says how it is. The server goes on without the
//! admin server with what it was told last.

use crate::folder::Folder;
use crate::http::Pages;
use crate::stores::Stores;
use chronofs_wire::admin::{Register, Registered};
use chronofs_wire::http::{AdminClient, ClientError};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;

const RETRY: Duration = Duration::from_secs(2);
/// How often the server says how it is.
const REPORT_EVERY: Duration = Duration::from_secs(3);

/// See the module.
pub(crate) struct AdminLink {
    pub(crate) client: AdminClient,
    pub(crate) register: Register,
    pub(crate) folder: Folder,
    pub(crate) stores: Arc<Stores>,
    pub(crate) pages: Pages,
    /// Told at every registration.
    pub(crate) registered: watch::Sender<Option<Registered>>,
}

impl AdminLink {
    /// Runs until the admin server says that the server is not the one any more, or of another cluster. Gives what it said.
    pub(crate) async fn run(mut self) -> ClientError {
        let mut told = false;
        loop {
            match self.serve(&mut told).await {
                error if error.is_wrong_cluster() || error.code() == Some("superseded") => return error,
                error => {
                    if !told {
                        tracing::error!(%error, "no link to the admin server; going on with what it said last");
                        told = true;
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn serve(&mut self, told: &mut bool) -> ClientError {
        let registered = match self.client.register_log_server(&self.register).await {
            Ok(registered) => registered,
            Err(error) => return error,
        };
        self.register.epoch = registered.epoch;
        *told = false;
        tracing::info!(
            server = registered.name,
            epoch = registered.epoch,
            "registered with the admin server"
        );
        if let Err(error) = self.folder.save_registered(&registered) {
            tracing::error!("{error:#}");
        }
        self.pages.epoch.store(registered.epoch, Ordering::Relaxed);
        self.registered.send_replace(Some(registered));
        let (client, pages) = (self.client.clone(), self.pages.clone());
        tokio::select! {
            error = self.follow() => error,
            error = report(client, pages) => error,
        }
    }

    /// Follows the assignments until a call fails.
    async fn follow(&self) -> ClientError {
        // The first answer comes at once, whatever is known already.
        let mut after = 0;
        loop {
            match self.client.log_assignment(self.register.boot, after).await {
                Ok(assignment) if assignment.revision == after => {}
                Ok(assignment) => {
                    self.stores.allow(&assignment);
                    after = assignment.revision;
                    if let Err(error) = self.folder.save_assignment(&assignment) {
                        tracing::error!(
                            "{error:#}; a restart without the admin server will use an older one"
                        );
                    }
                }
                Err(error) => return error,
            }
        }
    }
}

/// Says how the server is until a call fails. What hangs is not heard of, and is noticed by that.
async fn report(client: AdminClient, pages: Pages) -> ClientError {
    loop {
        if let Some(said) = pages.said().await
            && let Err(error) = client.report_log_server(&said).await
        {
            return error;
        }
        tokio::time::sleep(REPORT_EVERY).await;
    }
}
