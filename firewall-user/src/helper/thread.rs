//! The helper's thread: nothing else runs on it, so that a control line waits for nothing
//! but earlier ones.

use std::{
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use aya::maps::{MapData, RingBuf};
use tokio::{runtime, sync::oneshot};

use super::{Agent, Tables, Urgency, run};

/// How long the end of a helper is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(1);

/// A helper that runs. It stops with its handle.
#[derive(Debug)]
pub struct Helper {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    ended: oneshot::Receiver<anyhow::Result<()>>,
}

impl Helper {
    /// Has `make` make an agent and its ring on a new thread, and run there; put ahead of
    /// other processes, if `realtime`. The thread is in the network namespace of this one.
    ///
    /// # Errors
    /// Those of `make`; no thread can be had.
    pub async fn start<T: Tables>(
        realtime: bool,
        make: impl FnOnce() -> anyhow::Result<(Agent<T>, RingBuf<MapData>)> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let (begin, begun) = oneshot::channel();
        let body = move || {
            let work = || {
                let runtime = runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.context("the FTP helper cannot wait")?;
                let (agent, ring) = make()?;
                let urgency = Urgency::new(realtime);
                // Who waits for it may have gone.
                let _ = begin.send(());
                let stopped = async {
                    let _ = stopped.await;
                };
                runtime.block_on(run(agent, ring, urgency, stopped))
            };
            let _ = end.send(work());
        };
        let thread = thread::Builder::new().name("ftp-helper".to_owned());
        let thread = thread.spawn(body).context("start the FTP helper")?;
        let mut helper = Self {
            stop: Some(stop),
            thread: Some(thread),
            ended,
        };
        match begun.await {
            Ok(()) => Ok(helper),
            // It ended before it began, and says why.
            Err(_) => Err(match helper.ended().await {
                Err(error) => error,
                Ok(()) => anyhow!("the FTP helper ended"),
            }),
        }
    }

    /// Waits for its end, and tells what it came from.
    ///
    /// # Errors
    /// As [`run`].
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        let ended = (&mut self.ended).await;
        ended.unwrap_or_else(|_| Err(anyhow!("the FTP helper panicked")))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // What it has begun it brings to its end.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && !ends_within(&thread, PATIENCE)
        {
            log::warn!("the FTP helper does not end: what it is at is left undone");
        }
    }
}

/// Waits for the end of a thread. Returns whether it came.
fn ends_within<T>(thread: &JoinHandle<T>, limit: Duration) -> bool {
    let begun = Instant::now();
    while !thread.is_finished() {
        if begun.elapsed() >= limit {
            return false;
        }
        thread::sleep(LOOK);
    }
    true
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_thread_that_does_not_end_is_not_waited_for_forever() {
        let (end, ended) = channel::<()>();
        let thread = thread::spawn(move || ended.recv().is_err());
        assert!(!ends_within(&thread, Duration::from_millis(20)));
        drop(end);
        assert!(ends_within(&thread, Duration::from_secs(60)));
    }
}
