//! Work that takes its time and waits for nothing: compressing, checking, reading many rows.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinError;

/// Does `work` where it holds nobody up: on a thread for such work. A runtime of one thread, as simulations have it, does
/// it on the spot: what comes from another thread would come at another moment each time.
pub async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}
