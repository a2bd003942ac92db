//! The helper's thread: nothing else runs on it, so that a control line waits for nothing
//! but earlier ones.

use std::thread::{self, JoinHandle};

use anyhow::{Context as _, anyhow};
use aya::maps::{MapData, RingBuf};
use tokio::{runtime, sync::oneshot};

use super::{Agent, Tables, Urgency, run};

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
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
