//! What is done now and then, and nobody waits for.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::state::Core;

/// Does `work` after about every `interval`, for as long as the gateway lives and
/// is not drained. Nothing where no runtime is.
pub(crate) fn every<F>(
    core: &Arc<Core>,
    interval: Duration,
    work: impl Fn(Arc<Core>) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send,
{
    let Ok(runtime) = Handle::try_current() else {
        return;
    };
    // A gateway that nobody has any more is not kept alive by this.
    let core = Arc::downgrade(core);
    runtime.spawn(async move {
        while let Some(wait) = core.upgrade().map(|core| core.jitter.spread(interval)) {
            tokio::time::sleep(wait).await;
            let Some(core) = core.upgrade() else { return };
            if core.tasks.is_closed() {
                return;
            }
            work(core).await;
        }
    });
}
