//! A transfer that runs for as long as it is wanted to.

use std::{
    fs::File,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{
    Family, Lab, Node,
    payload::{self, Payload},
    script::Session,
};

const LIMIT: Duration = Duration::from_secs(10);
/// Read in one go, and the pause after it: half a megabyte a second, so that a
/// transfer of 20 MB runs for forty seconds unless it is told to finish.
const CHUNK: usize = 16 * 1024;
const PAUSE: Duration = Duration::from_millis(32);

/// A passive transfer from a lab's server to its client, with a reader that
/// takes its time.
#[derive(Debug)]
pub struct PacedTransfer {
    session: Session,
    hurry: Arc<AtomicBool>,
    reader: JoinHandle<Result<()>>,
    file: PathBuf,
}

impl PacedTransfer {
    /// Begins it; data has come when this returns.
    ///
    /// # Errors
    /// The data connection does not come about.
    pub fn begin(lab: &Lab, family: Family) -> Result<Self> {
        let mut session = Session::login(lab, family)?;
        let at = session.epsv()?;
        let mut data = lab
            .ns(Node::Client)
            .connect(at, LIMIT)?
            .context("connect for data")?;
        data.set_read_timeout(Some(LIMIT))?;
        session.send(&format!("RETR {}", payload::NAME))?;
        session.reply()?.be(150)?;
        let path = lab.dir().join(format!("paced-{}", at.port()));
        let mut file = File::create(&path)?;
        let mut first = [0];
        data.read_exact(&mut first)?;
        file.write_all(&first)?;
        let hurry = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&hurry);
        Ok(Self {
            session,
            hurry,
            reader: thread::spawn(move || read(data, file, &told)),
            file: path,
        })
    }

    /// Has neither the data come to its end nor the connection broken?
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.reader.is_finished()
    }

    /// Reads the rest at full speed; it must be the payload, and the server must be content.
    ///
    /// # Errors
    /// It breaks off, or something else arrives.
    pub fn finish(mut self, payload: &Payload) -> Result<()> {
        self.hurry.store(true, Ordering::Relaxed);
        let read = self.reader.join();
        read.map_err(|_| anyhow!("the reader panicked"))?
            .context("the data connection")?;
        ensure!(
            payload::sha256(&self.file)? == payload.sha256,
            "another file arrived"
        );
        self.session.reply()?.be(226)
    }
}

fn read(mut data: TcpStream, mut file: File, hurry: &AtomicBool) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = data.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        file.write_all(&chunk[..count])?;
        if !hurry.load(Ordering::Relaxed) {
            thread::sleep(PAUSE);
        }
    }
}
